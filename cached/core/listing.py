"""What a source lists: the files of one version, and the names that a version may hold.

Law: pure. A chosen file with a name that no manifest could carry is refused by name, never skipped: a version with a
file silently missing is worse than none. What a version leaves out may have any name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from cached.contract.errors import HoldfastError, InvalidManifest, Permanent
from cached.contract.manifest import RESERVED, Manifest, check_path, check_tree

_REMEDY = "rename it at the source, or leave it out with `exclude` in the model's entry of the catalog"


def check_names(where: str, paths: Iterable[str]) -> None:
    """Raise `Permanent` (`bad_name`) that names the place and the first path that no manifest could carry."""
    listed = list(paths)
    try:
        for path in listed:
            check_path(path)
        check_tree(listed)
    except InvalidManifest as error:
        raise Permanent("bad_name", f"{where}: {error.message}", _REMEDY) from error


def is_reserved(path: str) -> bool:
    """Tell whether `path` is a record of Holdfast's own at a source, and so no content."""
    return path == RESERVED or path.startswith(f"{RESERVED}/")


def shown(path: str) -> str:
    """`path` for a message: as it is, or escaped where it holds what no terminal or log should be given."""
    return path if path.isprintable() else repr(path)


@dataclass(frozen=True, slots=True)
class Signs:
    """What an answer said of an object that can show a change and never proves that there was none.

    `etag`: a weak ETag as it came. `last_modified`: an HTTP date: it is the file's mtime at most servers, which `cp -p`
    and `rsync -t` give to other content, so RFC 9110, 8.8.2.2, which calls it strong when it is old, is not followed.
    `origin`: who said it (`scheme://host[:port]`): a redirect may lead to another host next time, with others.
    `listing`: random; what one listing found may be another object than what the next one finds.
    """

    etag: str | None = None
    last_modified: str | None = None
    origin: str | None = None
    listing: str = field(default_factory=lambda: secrets.token_hex(16), compare=False)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file at a source, as it is listed there: whether a version may hold it is judged when it is chosen.

    `path`: its path in the snapshot. `key`: the source's own address of it (an object key, a URL, a path), which with
    the listing's `identity` names one object and no other.
    `size`: bytes, None while unknown. `validator`: a strong one, which is another whenever a byte is (a strong ETag, a
    version, a blob id, mtime with size and inode); empty where the source has none. `signs`: what there is instead, at
    HTTP. A file that has neither validator nor promised content comes in one answer or not at all. `sha256`: 64 hex
    digits only where the source vouches for them (a manifest, a Git LFS oid), never an ETag. `git_oid`: the Git blob id
    (sha1 of `blob <size>\\0` + bytes), if known.
    `problem`: why nothing can be fetched for it, None where something can; raised only if the file is chosen.
    """

    path: str
    key: str
    size: int | None
    validator: str = ""
    sha256: str | None = None
    git_oid: str | None = None
    problem: HoldfastError | None = None
    signs: Signs | None = None

    @property
    def version(self) -> str:
        """What names this version of the object among all that its key had or will have."""
        return self.validator or (self.signs.listing if self.signs is not None else "")


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder whose files the source cannot tell. `path` ends in `/`; `problem` says why, and is raised only if a file
    below it could be chosen."""

    path: str
    problem: HoldfastError


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one version. `manifest` where the source carries one (`holdfast.json`); then `files` mirror it.

    `identity`: made by `identity_of` from everything that decides what the server answers for a file's `key`: its
    address, the query, the user, the environment. Equal for two listings only if equal keys are one object.
    `revision` is what a moving name was resolved to (a commit), for status and logs. `unlisted`: folders without files
    here. A listing may hold what no version may: `filters.choose` judges what it chooses, and nothing else.
    """

    files: tuple[RemoteFile, ...]
    identity: str
    manifest: Manifest | None = None
    revision: str | None = None
    unlisted: tuple[Unlisted, ...] = ()
