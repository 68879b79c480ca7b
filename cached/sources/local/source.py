"""Versions in a folder of this machine: a local disk, NFS, a mounted volume claim.

Law: opens only the manifest, writes nothing. A location is `file:///absolute/path` (percent-encoded) or a plain
absolute path (literal); both name the version's folder, or one file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from cached.contract.errors import HoldfastError, InvalidManifest, Permanent, Transient
from cached.contract.manifest import (
    CHAINS_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PUBLISHING_NAME,
    FileEntry,
    Manifest,
)
from cached.contract.program.plain_files import READ_FLAGS
from cached.core.listing import Listing, RemoteFile, check_names
from cached.sources.base import identity_of
from cached.sources.local.tree import PlainFile, file_error, find_file, find_inside, walk
from cached.sources.manifests import unfinished_publish
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import LocalTarget, Target, local_validator

_SCHEME = "file://"
_IDENTITY = identity_of("file")  # a key is the file's real path, unique alone


class LocalSource:
    """A `Source` over a folder or a single file."""

    kind = "file"

    def __init__(self, uri: str) -> None:
        self._base = local_path(uri)

    @property
    def display(self) -> str:
        return self._base.as_uri()

    async def resolve(self) -> Listing:
        """List the folder, in a thread, as a network file system may be slow."""
        return await call_in_thread(lambda _cancellation: self._resolve())

    async def find(self, paths: Sequence[str]) -> Listing:
        """Describe named files below the folder. Raises as `Describing.find` says."""
        return await call_in_thread(lambda _cancellation: Listing(tuple(map(self._find, paths)), _IDENTITY))

    async def locate(self, file: RemoteFile) -> Target:
        """Return the file's real path if it is unchanged since the listing. Raises `Transient` (`source_changed`)."""
        return await call_in_thread(lambda _cancellation: _locate(file))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _resolve(self) -> Listing:
        try:
            kind = os.stat(self._base).st_mode
        except OSError as error:
            raise file_error(error, self._base) from error
        if not stat.S_ISDIR(kind):
            return Listing((_remote(find_file(self._base)),), _IDENTITY)
        manifest = self._manifest()
        if manifest is not None:
            files = tuple(self._published(entry) for entry in manifest.files)
            return Listing(files, _IDENTITY, manifest, chains=self._chains())
        self._refuse_unfinished()
        tree = walk(self._base)
        self._refuse_unfinished()  # one that was under way during the walk
        if not (tree.files or tree.odd or tree.unlisted):
            raise Permanent(
                "not_found", f"{self._base}: expected {MANIFEST_NAME} or files, found none", "check the path"
            )
        odd = (RemoteFile(path, "", None, problem=problem) for path, problem in sorted(tree.odd.items()))
        return Listing((*map(_remote, tree.files), *odd), _IDENTITY, unlisted=tuple(tree.unlisted))

    def _refuse_unfinished(self) -> None:
        """Raise `Transient` (`publishing`) where a publish is under way, or has ended since no manifest was found."""
        for path in (self._base / PUBLISHING_NAME, self._base / MANIFEST_NAME):
            if os.path.lexists(path):
                raise unfinished_publish(str(path))

    def _manifest(self) -> Manifest | None:
        path = self._base / MANIFEST_NAME
        try:
            os.lstat(path)
            real = find_inside(self._base, MANIFEST_NAME).real
            with open(os.open(real, READ_FLAGS), "rb") as opened:
                return Manifest.parse(opened.read(MAX_MANIFEST_BYTES + 1))
        except InvalidManifest as error:
            raise InvalidManifest(f"{path}: {error.message}", error.remedy) from error
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_error(error, path) from error

    def _chains(self) -> RemoteFile | None:
        """Return the file of chaining values, a hint; None if it is not there, or is no file that may be read."""
        try:
            return _remote(find_inside(self._base, CHAINS_NAME))
        except HoldfastError:
            return None

    def _find(self, path: str) -> RemoteFile:
        try:
            check_names(self.display, [path])
            return _remote(find_inside(self._base, path))
        except HoldfastError as error:
            return RemoteFile(path, "", None, problem=error)

    def _published(self, entry: FileEntry) -> RemoteFile:
        try:
            file = find_inside(self._base, entry.path)
            if file.size != entry.size:
                raise Permanent(
                    "size_mismatch",
                    f"{self._base / entry.path}: expected {entry.size} bytes as in {MANIFEST_NAME}, found {file.size}",
                    "publish the version again with `holdfast publish`",
                )
        except HoldfastError as error:
            return RemoteFile(entry.path, "", entry.size, "", entry.sha256, problem=error)
        return RemoteFile(entry.path, str(file.real), entry.size, file.validator, entry.sha256)


def local_path(uri: str) -> Path:
    """Return the absolute path of a `file://` URI or a plain absolute path. Raises `Permanent` (`bad_source`)."""
    text = uri
    if uri[: len(_SCHEME)].lower() == _SCHEME:
        host, slash, rest = uri[len(_SCHEME) :].partition("/")
        if host.lower() not in ("", "localhost"):
            raise Permanent(
                "bad_source",
                f"expected file:///path of this machine, found the host {host[:80]!r}",
                "mount that host's files here and name the path with three slashes: file:///mnt/…",
            )
        text = slash + unquote(rest, errors="surrogateescape")
    if not text.startswith("/") or "\0" in text:
        raise Permanent(
            "bad_source", f"expected an absolute path or file:///path, found {uri[:200]!r}", "write the whole path"
        )
    return Path(os.path.normpath(text))


def _remote(file: PlainFile) -> RemoteFile:
    return RemoteFile(file.path, str(file.real), file.size, file.validator)


def _locate(file: RemoteFile) -> LocalTarget:
    path = Path(file.key)
    try:
        found = os.lstat(path)
    except OSError as error:
        raise file_error(error, path) from error
    if not stat.S_ISREG(found.st_mode) or local_validator(found) != file.validator:
        raise Transient(
            "source_changed",
            f"{path}: expected the file as it was listed ({file.validator}), found {local_validator(found)}",
            "it is listed and read again from the start",
        )
    return LocalTarget(path, file.validator)
