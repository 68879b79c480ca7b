"""The commit that a revision names now.

Law: a branch, a tag or `HEAD` is one request, in Git's own order of names (gitrevisions(7)). 40 hex digits are an id,
without a request. An abbreviated id that no branch or tag begins with is looked for among all commits, without their
files.
"""

from __future__ import annotations

import re

from cached.contract.errors import Permanent
from cached.sources.git.address import DEFAULT_REVISION
from cached.sources.git.pack import COMMIT, ids_of
from cached.sources.git.remote import Remote
from cached.sources.git.versions import Ref
from cached.transport.connection.cancel import Cancellation

_FULL = re.compile(r"[0-9a-fA-F]{40}")
_SHORT = re.compile(r"[0-9a-fA-F]{4,39}")
_SHOWN = 5


def is_id(revision: str) -> bool:
    """Return whether a revision is the whole id of an object, and so never names another one."""
    return _FULL.fullmatch(revision) is not None


def find_commit(remote: Remote, revision: str, cancellation: Cancellation) -> str:
    """Return the id of the commit, or of the tag, that `revision` names. Raises `Permanent` (`not_found`)."""
    if is_id(revision):
        return revision.lower()
    names = _names_of(revision)
    by_name = {ref.name: ref for ref in remote.refs(names, cancellation)}
    for name in names:
        if name in by_name:
            return by_name[name].commit
    refs = remote.refs((), cancellation)
    if not refs:
        raise Permanent(
            "not_found",
            f"{remote.where}: expected a commit, found an empty repository",
            "push a commit, or correct the address",
        )
    if _SHORT.fullmatch(revision):
        return _find_abbreviated(remote, revision.lower(), refs, cancellation)
    raise _no_revision(remote, revision, refs)


def _names_of(revision: str) -> tuple[str, ...]:
    if revision == DEFAULT_REVISION:
        return (DEFAULT_REVISION,)
    qualified = (revision,) if revision.startswith("refs/") else ()
    return (*qualified, f"refs/{revision}", f"refs/tags/{revision}", f"refs/heads/{revision}")


def _find_abbreviated(remote: Remote, prefix: str, refs: list[Ref], cancellation: Cancellation) -> str:
    found = {ref.commit for ref in refs if ref.commit.startswith(prefix)}
    if not found:
        if not remote.version(cancellation).filters:
            raise Permanent(
                "not_found",
                f"{remote.where}: no branch or tag begins with {prefix}, and the server cannot list commits without "
                "their files",
                "write all 40 digits of the commit's id",
            )
        tips = sorted({ref.oid for ref in refs})
        history = remote.objects(tips, ("filter tree:0",), cancellation)
        found = {oid for oid in ids_of(history, COMMIT) if oid.startswith(prefix)}
    if len(found) == 1:
        return found.pop()
    if found:
        shown = ", ".join(sorted(found)[:_SHOWN])
        problem = f"{remote.where}: expected one commit that begins with {prefix}, found {len(found)}: {shown}"
        raise Permanent("ambiguous", problem, "write more digits of the commit's id")
    raise _no_revision(remote, prefix, refs)


def _no_revision(remote: Remote, revision: str, refs: list[Ref]) -> Permanent:
    names = [ref.name.removeprefix("refs/heads/").removeprefix("refs/tags/") for ref in refs]
    known = sorted({name for name in names if not name.startswith("refs/") and name != DEFAULT_REVISION})
    shown = ", ".join(name[:60] for name in known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
    problem = (
        f"{remote.where}: the repository has no branch, tag or commit {revision!r}; it has {shown or 'no branches'}"
    )
    return Permanent("not_found", problem, "correct what follows `@`; a commit is written with its id")
