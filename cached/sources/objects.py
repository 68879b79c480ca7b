"""The pages of an object store's listing, as the files of a version.

Law: sends no request itself. A page that is no listing of the prefix is `bad_response`; a listing is complete, and
bounded whatever a server sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import MANIFEST_NAME, MAX_FILE_BYTES, PUBLISHING_NAME
from cached.contract.program.thread_pool import start_pool
from cached.core.listing import Checksum, RemoteFile, bad_name, is_reserved
from cached.sources.manifests import unfinished_publish

_MAX_OBJECTS = 200_000  # about a manifest's maximum; a bucket's root may have any number
_AT_ONCE = 8
_MAX_PAGES = 10_000  # some servers send pages of any size, a faulty one endlessly


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing: its full key, its size in bytes, its strong validator, the sums that the store has of
    it, and why it cannot be fetched, else None."""

    key: str
    size: int
    validator: str
    sums: tuple[Checksum, ...] = ()
    problem: HoldfastError | None = None


class ObjectPages:
    """The objects under `prefix`, by key, collected page by page. `where`: the location, for messages."""

    def __init__(self, where: str, prefix: str) -> None:
        self.objects: dict[str, StoredObject] = {}
        self._where = where
        self._prefix = prefix
        self._pages = 0
        self._tokens: set[str] = set()

    def add_page(self, objects: Iterable[StoredObject], next_token: str) -> bool:
        """Add a page; return whether there is another one, at `next_token`. Raises `Transient` (`bad_response`) for a
        foreign or repeated key, a size out of bounds and a repeated token, `Permanent` (`too_many_files`)."""
        self._pages += 1
        for each in objects:
            if not each.key.startswith(self._prefix):
                raise bad_listing(self._where, f"the key {each.key[:200]!r} in a listing of {self._prefix[:200]!r}")
            if not 0 <= each.size <= MAX_FILE_BYTES:
                raise bad_listing(self._where, f"the size {str(each.size)[:40]} of {each.key[:200]!r}")
            if each.key in self.objects:
                raise bad_listing(self._where, f"the key {each.key[:200]!r} twice")
            self.objects[each.key] = each
        check_bounds(self._where, len(self.objects), self._pages)
        if next_token in self._tokens:
            raise bad_listing(self._where, "a next page that is the same again")
        self._tokens.add(next_token)
        return bool(next_token)


def check_bounds(where: str, objects: int, pages: int) -> None:
    """Raise `Permanent` (`too_many_files`) for a listing of more than any version has."""
    if objects > _MAX_OBJECTS or pages > _MAX_PAGES:
        raise Permanent(
            "too_many_files",
            f"{where}: expected at most {_MAX_OBJECTS} objects on {_MAX_PAGES} pages, found more",
            "name the version's own prefix, not the whole bucket",
        )


def bad_listing(where: str, found: str) -> Transient:
    """Return the error of a listing that contradicts the request."""
    return Transient(
        "bad_response",
        f"{where}: expected a listing of the store, found {found}",
        "check the endpoint, and a proxy or gateway before it",
    )


def files_of(objects: Iterable[StoredObject], prefix: str, uri: Callable[[str], str]) -> tuple[RemoteFile, ...]:
    """Return the files of a version without a manifest, by path; `uri` gives a key's URI for messages. The empty `…/`
    keys that consoles create for folders are no files. Raises `Transient` (`publishing`) if a publish is under way."""
    files = []
    for each in objects:
        path = each.key[len(prefix) :]
        if path in (PUBLISHING_NAME, MANIFEST_NAME):
            raise unfinished_publish(uri(each.key))
        if not is_reserved(path) and not (each.size == 0 and (not path or path.endswith("/"))):
            files.append(file_of(each, path))
    return tuple(sorted(files, key=lambda file: file.path))


def file_of(found: StoredObject, path: str) -> RemoteFile:
    """Return an object as the file at `path`."""
    return RemoteFile(path, found.key, found.size, found.validator, problem=found.problem, sums=found.sums)


def find_each(
    paths: Sequence[str], prefix: str, uri: Callable[[str], str], find: Callable[[str], StoredObject | None]
) -> tuple[RemoteFile, ...]:
    """Return the files at `paths` below `prefix`, in that order: `find` returns the object with a key, None without
    one, and is called by several threads. A file that is missing or unreadable is there with its `problem`."""

    def describe(path: str) -> RemoteFile:
        key = prefix + path
        problem: HoldfastError | None = bad_name(uri(prefix), path)
        if problem is None:
            try:
                found = find(key)
            except HoldfastError as error:
                return RemoteFile(path, key, None, problem=error)
            if found is not None:
                return file_of(found, path)
            problem = Permanent("not_found", f"{uri(key)}: there is no such object", "check the key")
        return RemoteFile(path, key, None, problem=problem)

    pool = start_pool(min(_AT_ONCE, max(1, len(paths))), "find")
    try:
        return tuple(pool.map(describe, paths))
    finally:
        pool.shutdown(cancel_futures=True)
