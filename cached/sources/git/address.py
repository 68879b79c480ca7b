"""Locations in Git repositories: `git+https://host/path/repo[@revision][#folder]`.

Law: pure. The path up to the first `@` names the repository as `git clone` takes it; what follows it is a branch, a tag
or a commit, `/` included; what follows `#` is a folder or a file of that commit, literally. User information goes to
the host's own origin, and is in no message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from cached.contract.errors import InvalidManifest, Permanent
from cached.contract.manifest import check_path
from cached.transport.urls import Address, Origin

DEFAULT_REVISION = "HEAD"
_EXAMPLE = "write it as `git+https://host/org/repo@revision` or `git+https://host/org/repo@revision#folder`"
_SCHEME = re.compile(r"git\+(https?)://", re.IGNORECASE)
# git-check-ref-format(1), without what could end a line or change a URL.
_REVISION = re.compile(r"(?!/)(?!.*(?://|\.\.|@\{|/\.|\.lock(?:/|$)))[^\x00-\x20\x7f~^:?*\[\\]{1,255}(?<![/.])")
_REPO = re.compile(r"(?:/[^/\s?#\\\x00-\x1f\x7f]{1,255}){1,16}")
_PAGE = re.compile(r"(/.+?)/(?:-/)?(?:tree|blob|raw|src/branch|src/tag|src/commit)/([^/]+)(?:/(.*))?")
_PAGES = frozenset({"github.com", "gitlab.com", "huggingface.co", "bitbucket.org", "codeberg.org"})


@dataclass(frozen=True, slots=True)
class GitAddress:
    """`url`: the repository's, without user information; `revision`: a branch, tag or commit; `path`: of a folder or a
    file in it, empty for all of it."""

    url: str
    origin: Origin
    revision: str
    path: str
    userinfo: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, uri: str) -> GitAddress:
        """Parse a URI. Raises `Permanent` (`bad_source`, `bad_url`)."""
        scheme = _SCHEME.match(uri)
        if scheme is None:
            raise _refuse("expected a source `git+https://…`", _EXAMPLE)
        place, mark, path = uri[scheme.end() :].partition("#")
        authority, slash, rest = place.partition("/")
        repo, at, revision = rest.partition("@")
        address = Address.parse(f"{scheme[1].lower()}://{authority}{slash}{repo.rstrip('/')}")
        shown = f"git+{address.origin.scheme}://{address.origin.netloc}"
        if "?" in place:
            raise _refuse(f"{shown}: expected no query in the address of a repository, found `?`", _EXAMPLE)
        repository = address.resource.rstrip("/")
        shown += repository
        _check_page(address.origin, repository, has_revision=bool(at))
        if not _REPO.fullmatch(repository) or {".", ".."} & set(repository.split("/")):
            raise _refuse(f"{shown[:300]}: expected the path of a repository after the host", _EXAMPLE)
        revision = unquote(revision) if at else DEFAULT_REVISION
        if not _REVISION.fullmatch(revision):
            raise _refuse(
                f"{shown[:300]}: expected a branch, tag or commit after `@`, found {revision[:200]!r}",
                f"{_EXAMPLE}; a `#` inside a branch's name is written %23",
            )
        url = f"{address.origin.scheme}://{address.origin.netloc}{repository}"
        return cls(url, address.origin, revision, _checked(path, shown) if mark else "", address.userinfo)

    @property
    def display(self) -> str:
        """The URI for messages, without user information."""
        return f"git+{self.url}@{self.revision}" + (f"#{self.path}" if self.path else "")


def _check_page(origin: Origin, repository: str, *, has_revision: bool) -> None:
    """Raise `Permanent` for the address of a web page, as a browser shows it."""
    page = None if has_revision else _PAGE.fullmatch(repository)
    if page is None or not (origin.host in _PAGES or "/-/" in repository):
        return
    right = f"git+{origin.scheme}://{origin.netloc}{page[1]}@{page[2]}" + (f"#{unquote(page[3])}" if page[3] else "")
    raise _refuse(f"expected a repository, found the address of a web page of {origin.host}", f"write it as {right}")


def _checked(path: str, shown: str) -> str:
    path = path.removesuffix("/")
    if path.startswith("subdirectory="):
        raise _refuse(f"{shown[:300]}: expected a folder after `#`, found pip's `subdirectory=`", _EXAMPLE)
    try:
        check_path(path)
    except InvalidManifest as error:
        raise _refuse(f"{shown[:300]}: not a folder of a repository: {error.message}", _EXAMPLE) from error
    return path


def _refuse(message: str, remedy: str) -> Permanent:
    return Permanent("bad_source", message, remedy)
