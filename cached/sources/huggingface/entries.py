"""The files in the two listings of a Hub: the metadata of a revision, and the tree of a commit.

Law: parses only. What makes no sense of one file is a problem of that file; an entry without a path is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeGuard

from cached.contract.manifest import is_size
from cached.core.listing import RemoteFile, is_other_record
from cached.sources.huggingface.errors import HubRequest, bad_response
from cached.transport.git_blob import GIT_OID

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Names(NamedTuple):
    """What a listing calls the path of a file, its Git blob id, and the sha256 in its Git LFS record, which is `lfs` in
    both, as is `size`."""

    path: str
    oid: str
    sha256: str


SIBLING = Names("rfilename", "blobId", "sha256")  # `GET /api/models/{repo}/revision/{revision}?blobs=true`
TREE_ENTRY = Names("path", "oid", "oid")  # `GET /api/models/{repo}/tree/{commit}`


def is_commit(text: object) -> TypeGuard[str]:
    """Return whether `text` is the full id of a commit."""
    return isinstance(text, str) and GIT_OID.fullmatch(text) is not None


def has_ids(siblings: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Return whether the metadata of a revision lists files, and each with an id and a size."""
    if not isinstance(siblings, list) or not siblings:
        return False
    return all(isinstance(each, dict) and "blobId" in each and "size" in each for each in siblings)


def parse_files(
    request: HubRequest, commit: str, folder: str, entries: Iterable[Any], names: Names
) -> Iterator[RemoteFile]:
    """Yield the listed files with paths relative to `folder`, which is empty or ends in `/`. Raises `Transient`
    (`bad_response`) for an entry without a path, or with one outside the folder."""
    name_of_path, name_of_oid, name_of_sha256 = names
    for entry in entries:
        path = entry.get(name_of_path) if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise bad_response(request, "a listed file without a path")
        relative = path.removeprefix(folder)
        if folder and relative == path:
            raise bad_response(request, f"the path {path[:200]!r}, outside the folder that was asked for")
        if is_other_record(relative):
            continue
        size, oid, lfs, is_id = entry.get("size"), entry.get(name_of_oid), entry.get("lfs"), GIT_OID.fullmatch
        if lfs is not None:
            record = lfs if isinstance(lfs, dict) else {}
            size, oid, is_id = record.get("size"), record.get(name_of_sha256), _SHA256.fullmatch
        if not isinstance(oid, str) or not is_id(oid) or not is_size(size):
            found = f"the id {str(oid)[:80]!r} and the size {str(size)[:80]!r} for {path[:200]!r}"
            yield RemoteFile(relative, f"{commit}:{path}", None, problem=bad_response(request, found))
        elif lfs is None:  # by position: keywords take half as long again
            yield RemoteFile(relative, f"{commit}:{path}", size, oid, None, oid)
        else:
            yield RemoteFile(relative, f"{commit}:{path}", size, oid, oid)
