"""Local files whose bytes are shared with the store in place of being copied: `link: true` in the catalog.

Law: a clone of the file's extents (a reflink), never a hard link: what the store holds may not change with the source,
nor may the source's mode, and a blob's link count says which snapshots have it. The clone is a complete partial blob:
the download that follows hashes it, as one that is resumed.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.fetch.blob import BlobSpec
from cached.fetch.bodies.local_file import LocalBody
from cached.fetch.small_attempt import is_small
from cached.store.blob.ingest import Ingest
from cached.transport.target import LocalTarget

_log = logging.getLogger(__name__)
# Of FICLONE, ioctl_ficlone(2): other file system, not supported there, or for these files.
_CANNOT = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.ETXTBSY})


def share_files(layout: Layout, files: Iterable[tuple[BlobSpec, LocalTarget]]) -> None:
    """Clone files into their partial blobs; blocking. One that cannot be cloned, or has changed, is left to its
    download, which copies it or says why not; the log says once of these files that they are copied."""
    for spec, target in files:
        if spec.key.size is None or not spec.key.validator or is_small(spec):
            continue
        try:
            _share(layout, spec, target)
        except OSError as error:
            if error.errno in _CANNOT:
                reason = "it is on another file system" if error.errno == errno.EXDEV else "no reflinks there"
                _log.info("%s: copied in place of shared (`link: true`): %s", target.path, reason)
                return
            _log.warning("%s: copied in place of shared (`link: true`): %s", target.path, error.strerror)
        except HoldfastError as error:
            _log.info("%s: not shared (`link: true`): %s", target.path, error.message)


def _share(layout: Layout, spec: BlobSpec, target: LocalTarget) -> None:
    """Clone one file. Raises OSError where it cannot be, `HoldfastError` where it has changed."""
    size = spec.key.size
    assert size is not None
    with LocalBody(target, 0, None) as body:
        if body.total != size:
            return
        ingest = Ingest(layout.ingest / spec.key.id, spec.key)
        try:
            if ingest.recorded():
                return  # an earlier attempt's bytes, which its download goes on from
            ingest.share(body.descriptor)
            body.check_unchanged()
            ingest.record([(0, size)])
        except (OSError, HoldfastError):
            ingest.discard()
            raise
        finally:
            ingest.close()
