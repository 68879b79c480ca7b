"""The format of an archive: a tar of the published layout, and a record of the name it had.

Law: pure. The manifest comes first, so that a reader of a stream knows each file before its bytes; then the record;
then the files in the manifest's order. Owner, mode and time are constants: one version is one archive, byte for byte.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass

from cached.contract.archive.tar import BLOCK
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import MANIFEST_NAME, RESERVED, Manifest
from cached.contract.reference import ModelRef

EXPORT_NAME = f"{RESERVED}/export.json"
EXPORT_SCHEMA = "holdfast.dev/export/v1"
MAX_RECORD_BYTES = 64 * 1024
END_BYTES = 2 * BLOCK  # of zeros mark the end (POSIX.1-2001, pax)
_MODE = 0o644
_MTIME = 315532800  # 1980-01-01: some tools warn of 1970
_FILL_BYTES = 20 * BLOCK  # an archive is a multiple of that


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """The name that the version had where it was exported, and its manifest digest."""

    ref: ModelRef
    digest: Digest

    def encode(self) -> bytes:
        """Return the JSON of the record."""
        document = {
            "digest": str(self.digest),
            "model": self.ref.name,
            "schema": EXPORT_SCHEMA,
            "version": self.ref.version,
        }
        return (json.dumps(document, indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> ExportRecord:
        """Parse a record; raises `Permanent` (`bad_archive`)."""
        try:
            document = json.loads(data)
            schema = document["schema"]
            record = cls(ModelRef(document["model"], document["version"]), Digest.parse(document["digest"]))
        except (ValueError, KeyError, TypeError, RecursionError, HoldfastError) as error:
            raise bad_archive(where, f"expected `{EXPORT_NAME}` as {EXPORT_SCHEMA}, found {error!r}") from error
        if schema != EXPORT_SCHEMA:
            raise bad_archive(where, f"expected `{EXPORT_NAME}` as {EXPORT_SCHEMA}, found {schema!r:.100}")
        return record


def make_header(path: str, size: int) -> bytes:
    """Return the tar header of a file, with a pax header before it where ustar cannot say its name or size."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size, _MODE, _MTIME
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def count_padding(size: int) -> int:
    """Return the zero bytes that follow the `size` bytes of a file."""
    return -size % BLOCK


def make_end(written: int) -> bytes:
    """Return the end of an archive of `written` bytes so far."""
    return bytes(END_BYTES + -(written + END_BYTES) % _FILL_BYTES)


def compute_size(ref: ModelRef, manifest: Manifest) -> int:
    """Return the bytes of a version's archive."""
    record = ExportRecord(ref, manifest.digest).encode()
    files = [(MANIFEST_NAME, len(manifest.canonical())), (EXPORT_NAME, len(record))]
    files += [(entry.path, entry.size) for entry in manifest.files]
    size = sum(len(make_header(path, size)) + size + count_padding(size) for path, size in files)
    return size + len(make_end(size))


def bad_archive(where: str, problem: str) -> Permanent:
    """Return the error of an archive that is not one of a whole version."""
    return Permanent(
        "bad_archive", f"{where}: {problem}", "copy the archive again, or export it again with `holdfast export`"
    )
