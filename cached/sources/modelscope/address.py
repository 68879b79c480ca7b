"""Addresses on ModelScope: `ms://[models/]org/name[@revision][/folder]`.

Law: pure. The grammar is that of `hf://`: a `/` inside a revision is written %2F.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cached.contract.errors import InvalidManifest, Permanent
from cached.contract.manifest import check_path

SCHEME = "ms://"
DEFAULT_REVISION = "master"
_EXAMPLE = "write it as `ms://org/name@revision` or `ms://org/name@revision/folder/`"
_TOKEN = f"{_EXAMPLE}; a token goes into MODELSCOPE_API_TOKEN"
_REPO = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?/[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?"
)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/-]{0,254}")
_OTHER_KINDS = {"datasets": "a dataset", "studios": "a studio", "skills": "a skill", "mcp": "an MCP server"}


@dataclass(frozen=True, slots=True)
class ModelScopeAddress:
    """`repo`: `org/name`; `revision`: a branch, tag or commit; `folder`: empty, or ends in `/`."""

    repo: str
    revision: str
    folder: str

    @classmethod
    def parse(cls, uri: str) -> ModelScopeAddress:
        """Parse a URI. Raises `Permanent` (`invalid_source`)."""
        body = uri[len(SCHEME) :]
        if uri[: len(SCHEME)].lower() != SCHEME or ":" in body or "?" in body or "#" in body:
            raise _refuse(
                "expected a source `ms://…` without credentials, query and fragment",
                _TOKEN,
            )
        kind, _, rest = body.partition("/")
        if kind in _OTHER_KINDS:
            raise _refuse(f"expected a model repository, found {_OTHER_KINDS[kind]} (`{kind}/`)", _EXAMPLE)
        repo, revision, folder = _parts(rest if kind == "models" and rest.count("/") else body)
        if "/" not in repo and "@" in body:  # perhaps a token: it is not repeated
            raise _refuse("expected a repository `org/name` of ModelScope before the `@`, found no `/`", _TOKEN)
        if not _REPO.fullmatch(repo) or ".." in repo:
            raise _refuse(f"expected a repository `org/name` of ModelScope, found {repo[:200]!r}", _EXAMPLE)
        broken = any(part in ("", ".", "..") for part in revision.split("/")) or ".." in revision
        if broken or not _REVISION.fullmatch(revision):
            found = f"found {revision[:200]!r}"
            raise _refuse(
                f"{SCHEME}{repo}: expected a branch, tag or commit after `@`, {found}",
                f"{_EXAMPLE}; a `/` inside a branch's name is written %2F",
            )
        return cls(repo, revision, _checked_folder(f"{SCHEME}{repo}", folder))

    def __str__(self) -> str:
        revision = self.revision.replace("/", "%2F")
        return f"{SCHEME}{self.repo}@{revision}" + (f"/{self.folder}" if self.folder else "")


def _parts(body: str) -> tuple[str, str, str]:
    """Return repository, revision and folder. A `@` after the second name belongs to the folder."""
    repo, at, rest = body.partition("@")
    if at and repo.count("/") <= 1:
        revision, _, folder = rest.partition("/")
        return repo, re.sub("%2F", "/", revision, flags=re.IGNORECASE), folder
    names = body.split("/", 2)
    return "/".join(names[:2]), DEFAULT_REVISION, names[2] if len(names) > 2 else ""


def _checked_folder(shown: str, folder: str) -> str:
    folder = folder.removesuffix("/")
    if not folder:
        return ""
    try:
        check_path(folder)
    except InvalidManifest as error:
        raise _refuse(f"{shown}: not a folder: {error.message}", _EXAMPLE) from error
    return f"{folder}/"


def _refuse(message: str, remedy: str) -> Permanent:
    return Permanent("invalid_source", message, remedy)
