"""What is wrong with a folder that is to be published: files that no server can use.

Law: reads only the beginnings of files, indexes and golden predictions. Only what is certainly wrong is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cached.contract.errors import Permanent
from cached.contract.golden import MAX_GOLDEN_BYTES, Golden
from cached.contract.loadable.findings import Finding
from cached.contract.loadable.first_bytes import MAX_POINTER_BYTES
from cached.contract.loadable.verdict import find_problems, find_stand_in, is_checked
from cached.contract.loadable.weights import Read
from cached.sources.local.tree import PlainFile, file_error


def find_unusable(files: Sequence[PlainFile]) -> tuple[Finding, ...]:
    """Return the findings about the files as a version; a pointer of Git LFS is one whatever its name."""
    read = reader({file.path: file for file in files})
    findings = list(find_problems({file.path: file.size for file in files}, read))
    for file in files:
        if file.size <= MAX_POINTER_BYTES and not is_checked(file.path):
            found = find_stand_in(file.path, file.size, read(file.path, 0, file.size))
            findings += [] if found is None else [found]
    return tuple(findings)


def reader(files: Mapping[str, PlainFile]) -> Read:
    """Return the function that reads a part of one of these files; it raises `HoldfastError` with the file's name."""

    def read(path: str, offset: int, length: int) -> bytes:
        file = files[path]
        try:
            with file.real.open("rb", buffering=0) as opened:
                opened.seek(offset)
                return opened.read(length)
        except OSError as error:
            raise file_error(error, file.real) from error

    return read


def check_golden(file: PlainFile) -> None:
    """Raise `HoldfastError`, with the file's name, for golden predictions that no server can replay."""
    data = reader({file.path: file})(file.path, 0, MAX_GOLDEN_BYTES + 1)
    try:
        Golden.parse(data)
    except Permanent as error:
        raise Permanent(error.code, f"{file.real}: {error.message}", error.remedy) from error
