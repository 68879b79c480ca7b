"""Addresses on a Hub: `hf://[models/]org/repo[@revision][/folder]`, in huggingface_hub's grammar, for model
repositories only.

Law: pure. Grammar: `huggingface_hub.parse_hf_uri` (2.4), `hf://[<TYPE>/]<ID>[@<REVISION>][/<PATH>]`. Stricter, as that
accepts `..`, queries and control characters; in addition, `hf://repo@revision` names one of the Hub's oldest models.
Text that looks like credentials is refused and not repeated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cached.contract.errors import InvalidManifest, Permanent
from cached.contract.manifest import check_path

SCHEME = "hf://"
DEFAULT_REVISION = "main"
_EXAMPLE = "write it as `hf://org/repo@revision` or `hf://org/repo@revision/folder/`"
_REPO = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?/)?[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/-]{0,254}")
# The only revisions written with a plain `/`: elsewhere the first `/` ends the revision.
_SPECIAL_REVISION = re.compile(r"refs/(?:pr/[0-9]+|convert/[A-Za-z0-9_.-]+)(?=/|$)")
_OTHER_KINDS = {"datasets": "a dataset", "spaces": "a Space", "buckets": "a bucket", "kernels": "a kernel"}
_SINGULAR = frozenset({"model", "dataset", "space", "bucket", "kernel"})  # huggingface_hub refuses these too
_IS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")  # of users; a repository's name has no such form
_TOKEN = f"{_EXAMPLE}; a token goes into HF_TOKEN"


@dataclass(frozen=True, slots=True)
class HubAddress:
    """`repo`: `org/name` or `name`; `revision`: branch, tag, commit or its prefix; `folder`: empty, or ends in `/`."""

    repo: str
    revision: str
    folder: str

    @classmethod
    def parse(cls, uri: str) -> HubAddress:
        """Parse a URI. Raises `Permanent` (`invalid_source`)."""
        body = uri[len(SCHEME) :]
        # A colon in the body can only be part of user:password.
        if uri[: len(SCHEME)].lower() != SCHEME or ":" in body:
            raise _refuse("expected a source `hf://…` without credentials", _TOKEN)
        if _IS_TOKEN.search(body):
            raise _refuse("expected a source `hf://…` without credentials, found a token of the Hub", _TOKEN)
        repo, revision, folder = _parts(_without_kind(body if body.endswith("//") else body.removesuffix("/")))
        _check_repo(repo)
        _check_revision(uri, revision)
        return cls(repo, revision, _checked_folder(uri, folder))

    def __str__(self) -> str:
        special = _SPECIAL_REVISION.fullmatch(self.revision)
        revision = self.revision if special else self.revision.replace("/", "%2F")
        return f"{SCHEME}{self.repo}@{revision}" + (f"/{self.folder}" if self.folder else "")


def _check_repo(repo: str) -> None:
    legal = _REPO.fullmatch(repo) and "--" not in repo and ".." not in repo and not repo.endswith(".git")
    if not legal:
        raise _refuse(f"expected a repository `org/name` or `name` on the Hub, found {repo[:200]!r}", _EXAMPLE)


def _without_kind(body: str) -> str:
    kind, slash, rest = body.partition("/")
    if kind in _OTHER_KINDS:
        found = f"{_OTHER_KINDS[kind]} (`{kind}/`)"
        raise _refuse(f"expected a model repository, found {found}", f"{_EXAMPLE}: only models are served")
    if kind in _SINGULAR and slash:
        raise _refuse(f"expected `models/` or no kind at all, found `{kind}/`", _EXAMPLE)
    return rest if kind == "models" else body


def _parts(body: str) -> tuple[str, str, str]:
    """Return repository, revision and folder. A `@` after the second name belongs to the folder."""
    repo, at, rest = body.partition("@")
    if at and repo.count("/") <= 1:
        special = _SPECIAL_REVISION.match(rest)
        if special:
            return repo, special[0], rest[special.end() + 1 :]
        revision, _, folder = rest.partition("/")
        return repo, revision.replace("%2F", "/").replace("%2f", "/"), folder
    names = body.split("/", 2)
    return "/".join(names[:2]), DEFAULT_REVISION, names[2] if len(names) > 2 else ""


def _check_revision(uri: str, revision: str) -> None:
    # The rules of git-check-ref-format whose violation could change the meaning of a URL or a path.
    broken = any(part in ("", ".", "..") for part in revision.split("/")) or ".." in revision
    if broken or not _REVISION.fullmatch(revision):
        raise _refuse(
            f"{uri[:300]!r}: expected a branch, tag or commit after `@`, found {revision[:200]!r}",
            f"{_EXAMPLE}; a `/` inside a branch's name is written %2F",
        )


def _checked_folder(uri: str, folder: str) -> str:
    if not folder:
        return ""
    try:
        check_path(folder.removesuffix("/"))
    except InvalidManifest as error:
        raise _refuse(f"{uri[:300]!r}: not a folder: {error.message}", _EXAMPLE) from error
    return folder.removesuffix("/") + "/"


def _refuse(message: str, remedy: str) -> Permanent:
    return Permanent("invalid_source", message, remedy)
