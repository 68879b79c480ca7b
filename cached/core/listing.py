"""The listing of a source: the files of one version, and the check of their names.

Law: pure. A chosen file with a name that is invalid in a manifest is refused, never skipped: a version with a silently
missing file is worse than none. Files that the filters leave out may have any name.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from cached.contract.errors import HoldfastError, InvalidManifest, Permanent
from cached.contract.manifest import CHAINS_NAME, RESERVED, Manifest, check_path, check_tree
from cached.contract.trust import Trust

_REMEDY = "rename it at the source, or leave it out with `exclude` in the model's entry of the catalog"


def check_names(where: str, paths: Iterable[str]) -> None:
    """Raise `Permanent` (`bad_name`) with the place and the first path that is invalid in a manifest."""
    listed = list(paths)
    try:
        for path in listed:
            check_path(path)
        check_tree(listed)
    except InvalidManifest as error:
        raise Permanent("bad_name", f"{where}: {error.message}", _REMEDY) from error


def bad_name(where: str, path: str) -> Permanent | None:
    """Return the error of a path that is invalid in a manifest, None for a valid one."""
    try:
        check_names(where, [path])
    except Permanent as error:
        return error
    return None


def is_reserved(path: str) -> bool:
    """Return whether `path` is one of Holdfast's own records at a source, and so no content."""
    return path.startswith(RESERVED) and path[len(RESERVED) :][:1] in ("", "/")


def is_other_record(path: str) -> bool:
    """Return whether `path` is such a record that no listing has: any but the chaining values."""
    return is_reserved(path) and path != CHAINS_NAME


def format_path(path: str) -> str:
    """Return `path` for a message, escaped if it has characters unsafe for a terminal or log."""
    return path if path.isprintable() else repr(path)


@dataclass(frozen=True, slots=True)
class WeakValidators:
    """Weak validators of an object: they can show a change, never prove that there was none.

    `etag`: a weak ETag, verbatim. `last_modified`: an HTTP date, at most servers the file's mtime, which `cp -p` and
    `rsync -t` give to other content, so RFC 9110, 8.8.2.2, which calls an old one strong, is not followed.
    `origin`: the answering host (`scheme://host[:port]`): a redirect may lead to another one next time.
    `listing`: random; two listings may find different objects.
    """

    etag: str | None = None
    last_modified: str | None = None
    origin: str | None = None
    listing: str = field(default_factory=lambda: secrets.token_hex(16), compare=False)


class Algorithm(StrEnum):
    """A sum of a whole file that is weaker than sha256, in the order in which one is chosen to be verified: the
    cheapest first, as each finds damage; md5 costs more than sha256."""

    CRC32C = "crc32c"
    CRC64NVME = "crc64nvme"
    CRC32 = "crc32"
    SHA1 = "sha1"
    MD5 = "md5"


_CHOICE = tuple(Algorithm)
_SUM_DIGITS = {
    Algorithm.CRC32C: 8,
    Algorithm.CRC64NVME: 16,
    Algorithm.CRC32: 8,
    Algorithm.SHA1: 40,
    Algorithm.MD5: 32,
}
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Checksum:
    """A promised sum of a whole file: lower-case hex digits, of a CRC its bytes in big-endian order. The constructor
    raises ValueError for anything else."""

    algorithm: Algorithm
    hex: str

    def __post_init__(self) -> None:
        if len(self.hex) != _SUM_DIGITS[self.algorithm] or not _HEX.fullmatch(self.hex):
            raise ValueError(f"expected {_SUM_DIGITS[self.algorithm]} hex digits of a {self.algorithm}")

    @classmethod
    def from_base64(cls, algorithm: Algorithm, text: str) -> Checksum:
        """Parse a sum as object stores and Content-MD5 write it. Raises ValueError."""
        return cls(algorithm, base64.b64decode(text, validate=True).hex())


def promises_content(checksum: Checksum | None) -> bool:
    """Return whether two contents have this sum only if they were made for it: not a CRC."""
    return checksum is not None and checksum.algorithm in (Algorithm.SHA1, Algorithm.MD5)


@dataclass(
    unsafe_hash=True, slots=True
)  # no caller changes one; `frozen` makes 100,000 files take a fifth of a second more
class RemoteFile:
    """One file in a source's listing; its name is checked when a version chooses it.

    `path`: its path in the snapshot. `key`: its address at the source (an object key, a URL, a path), unique together
    with the listing's `identity`.
    `size`: bytes, None while unknown. `validator`: a strong one, which changes with every change of a byte (a strong
    ETag, a version, a blob id, mtime with size, inode and ctime); empty if the source has none. `signs`: the weak
    validators then, over HTTP. A file with neither validator nor promised content is fetched in a single answer.
    `sha256`: 64 hex digits promised by the source (a manifest, a Git LFS oid), never an ETag. `git_oid`: the Git blob
    id (sha1 of `blob <size>\\0` + bytes), if known. `sums`: weaker sums of the whole file that the source promises, of
    which one is verified where there is neither sha256 nor git id. `object_version`: the name of this version at a
    store that keeps old ones, for its address; no part of what identifies the file. `problem`: why the file cannot be
    fetched, else None; raised only if the file is chosen.
    """

    path: str
    key: str
    size: int | None
    validator: str = ""
    sha256: str | None = None
    git_oid: str | None = None
    problem: HoldfastError | None = None
    weak_validators: WeakValidators | None = None
    sums: tuple[Checksum, ...] = ()
    object_version: str = ""

    @property
    def checksum(self) -> Checksum | None:
        """The sum that is verified beside sha256; None without one, and where a better promise makes it idle."""
        if self.sha256 is not None or self.git_oid is not None or not self.sums:
            return None
        return min(self.sums, key=lambda each: _CHOICE.index(each.algorithm))

    @property
    def is_promised(self) -> bool:
        """Whether the source promises the content itself: two answers that fit are the same bytes."""
        return self.sha256 is not None or self.git_oid is not None or promises_content(self.checksum)

    @property
    def trust(self) -> Trust:
        """What the source vouches for of this file."""
        if self.sha256 is not None:
            return Trust.KNOWN
        if self.git_oid is not None or self.sums:
            return Trust.CHECKED
        return Trust.VERSIONED if self.validator else Trust.SIZED

    @property
    def version(self) -> str:
        """The name of this version of the object, unique among all versions under its key."""
        return self.validator or (self.weak_validators.listing if self.weak_validators is not None else "")


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder that the source cannot list. `path` ends in `/`; `problem`: the reason, raised only if a file below the
    folder could be chosen."""

    path: str
    problem: HoldfastError


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one version. `manifest`: the source's own (`holdfast.json`), if any; `files` then mirror it.

    `identity`: made from everything that decides the server's answer for a file's `key`: address,
    query, user, environment. Equal for two listings only if equal keys are one object.
    `revision`: the commit that a moving name was resolved to, for status and logs. `tag`: the source's strong validator
    of the whole listing (the ETag of `holdfast.json`, a commit), None without one. `unlisted`: folders without files
    here. `chains`: where the chaining values of a version that `publish` wrote are, if they are there: that file may be
    missing. A listing may have names invalid in a version: `filters.choose_files` checks the files it chooses only.
    """

    files: tuple[RemoteFile, ...]
    identity: str
    manifest: Manifest | None = None
    revision: str | None = None
    unlisted: tuple[Unlisted, ...] = ()
    tag: str | None = None
    chains: RemoteFile | None = None


def split_chains(files: Iterable[RemoteFile]) -> tuple[tuple[RemoteFile, ...], RemoteFile | None]:
    """Return the files without the chaining values, and these, None if they are not there."""
    content: list[RemoteFile] = []
    chains = None
    for file in files:
        if file.path == CHAINS_NAME:
            chains = file
        else:
            content.append(file)
    return tuple(content), chains
