"""Artifacts that only the MLflow server itself can read (`mlflow-artifacts:/…`).

Law: never HEAD, and never a range of a large file before a small one showed that the server has its own files: over an
object store each of these makes the server fetch the whole object. Sizes come from the listing. A file is read by a
presigned address where the server gives one, else through the server. Listings have no sum and no validator: files are
asked for their ETags where these cost nothing, so that they are `versioned`, read in parts and resumed, else `sized`.

Traps, as MLflow 3.17 answers: a folder that is missing is an empty one; an empty file has no `file_size`; `#` in a path
is refused, and percent-encodings in a name are decoded once more than they were encoded.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import MANIFEST_NAME, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, PUBLISHING_NAME
from cached.contract.program.thread_pool import start_pool
from cached.core.listing import Listing, RemoteFile, Unlisted, WeakValidators, bad_name, is_reserved
from cached.sources.base import identity_of, stretched
from cached.sources.manifests import read_manifest, unfinished_publish
from cached.sources.mlflow.registry import is_absent
from cached.sources.mlflow.server import ARTIFACTS, MlflowServer, bad_answer
from cached.sources.objects import bad_listing
from cached.sources.signed_urls import is_header, lifetime_s
from cached.sources.stores import split_address
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.response import strong_etag
from cached.transport.service.requests import Service
from cached.transport.target import HttpTarget
from cached.transport.urls import Address, next_hop

_MAX_FILES = 100_000
_MAX_FOLDERS = 10_000
_MAX_DEPTH = 64
_LARGE_BYTES = 1024 * 1024  # a smaller file is never read in parts
_AT_ONCE = 8
_PRESIGNED_S = 300.0  # MLFLOW_PRESIGNED_DOWNLOAD_URL_TTL_SECONDS of the server, unless the URL says
_MAX_ASKED = 256  # files whose ETags are asked for, one small request each
_EMPTY_SHA256 = hashlib.sha256().hexdigest()
_OK, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416
_NOT_OFFERED = frozenset({404, 405, 501})
_NAME_REMEDY = "rename it, or give the experiment a store that this node reads itself"


class ProxiedArtifacts:
    """A `Source` over a folder, or a file, of artifacts. The caller closes `client`."""

    kind = "mlflow"

    def __init__(self, uri: str, server: MlflowServer, client: HttpClient) -> None:
        """`uri`: `mlflow-artifacts:/path`, `mlflow-artifacts://host/path`, or that of the server's method. Raises
        `Permanent` (`bad_address`)."""
        self._base, self._root = _split(uri, server.tracking)
        self.display = f"mlflow-artifacts:/{self._root}"
        self._server = server
        self._client = client
        self._chosen_by = None if self._base == server.tracking else server.tracking
        # None while unknown: it is the same for all files, and asked with the first one.
        self._presigns: bool | None = None
        self._asking = threading.Lock()
        mine = dict(server.credentials.headers_for(self._base, Cancellation())).get("Authorization")
        self._identity = identity_of(self.kind, self._base, stretched(mine) if mine else "")

    async def resolve(self) -> Listing:
        """List the folder, and the folders below it. Raises as `Source.resolve`."""
        return await call_in_thread(self._resolve)

    async def locate(self, file: RemoteFile) -> HttpTarget:
        """Return the presigned address of `file`, or that of the server's method. Raises as `Source.locate`."""
        return await call_in_thread(partial(self._locate, file))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _resolve(self, cancellation: Cancellation) -> Listing:
        service = self._server.service(self._client, cancellation, self.display, self._chosen_by)
        files, unlisted = self._crawl(service)
        if not files and not unlisted:
            single = self._single(service)
            if single is None:
                raise Permanent(
                    "not_found",
                    f"{self.display}: expected artifacts there, found none (the server answers so for a folder that "
                    "is missing, too)",
                    "check the folder in the location, and that the run logged its model",
                )
            files = [single]
        manifest = next((file for file in files if file.path == MANIFEST_NAME), None)
        if manifest is not None:
            return self._published(manifest, cancellation)
        if any(file.path == PUBLISHING_NAME for file in files):
            raise unfinished_publish(f"{self.display}/{PUBLISHING_NAME}")
        kept = [file for file in files if not is_reserved(file.path)]
        by_path = sorted(self._described(kept, cancellation), key=lambda file: file.path)
        return Listing(tuple(by_path), self._identity, unlisted=tuple(unlisted))

    def _published(self, file: RemoteFile, cancellation: Cancellation) -> Listing:
        response = self._client.fetch(self._locate(file, cancellation), MAX_MANIFEST_BYTES, cancellation)
        manifest = read_manifest(response.body, f"{self.display}/{MANIFEST_NAME}")
        files = (
            RemoteFile(each.path, self._key(each.path), each.size, sha256=each.sha256, problem=self._problem(each.path))
            for each in manifest.files
        )
        return Listing(tuple(files), self._identity, manifest)

    def _described(self, files: list[RemoteFile], cancellation: Cancellation) -> list[RemoteFile]:
        """Return the files with the ETags that their bytes come with, of many files the large ones only, and empty ones
        with their size."""
        readable = [file for file in files if file.problem is None]
        is_few = len(readable) <= _MAX_ASKED
        asked = {file.path for file in readable if is_few or file.size is None or file.size > _LARGE_BYTES}
        small = min((file for file in readable if file.size), key=lambda file: file.size or 0, default=None)
        if not 0 < len(asked) <= _MAX_ASKED or small is None:
            return files
        try:
            passes_on = not self._locate(small, cancellation).answers_head
        except HoldfastError:
            return files  # the pull of that file tells
        is_small = (small.size or 0) <= _LARGE_BYTES
        if passes_on and not (is_small and self._ask_version(small, cancellation).validator):
            return files
        pool = start_pool(min(_AT_ONCE, len(asked)), "mlflow-etag")
        try:
            return list(pool.map(lambda f: self._ask_version(f, cancellation) if f.path in asked else f, files))
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask_version(self, file: RemoteFile, cancellation: Cancellation) -> RemoteFile:
        """Return `file` with what the answer to a range of it says: its strong ETag, or that it is empty."""
        try:
            answer = self._client.peek_any_status(self._locate(file, cancellation), cancellation)
        except HoldfastError:
            return file  # the pull of that file tells
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        etag = strong_etag(answer.headers)
        if answer.status == _PARTIAL and total == str(file.size) and etag is not None:
            return replace(file, validator=etag, weak_validators=None)
        is_empty = (answer.status, total) == (_NOT_SATISFIABLE, "0") or (
            answer.status == _OK and answer.headers.get("Content-Length") == "0"
        )
        if file.size is None and is_empty:
            return replace(file, size=0, sha256=_EMPTY_SHA256, weak_validators=None)
        return file

    def _crawl(self, service: Service) -> tuple[list[RemoteFile], list[Unlisted]]:
        """Return the files below the root, and the folders that the server cannot list."""
        files: list[RemoteFile] = []
        unlisted: list[Unlisted] = []
        folders = [""]
        for prefix in folders:  # grows by the folders found
            entries = self._read_folder(service, self._key(prefix.rstrip("/")))
            if not prefix and list(entries) == [self._root.rpartition("/")[2]] and not self._is_folder(service):
                return [], []  # some stores list a file as itself
            for name, (is_folder, size) in entries.items():
                path = prefix + name
                problem = self._problem(path)
                if not is_folder:
                    weak = WeakValidators()
                    files.append(RemoteFile(path, self._key(path), size, problem=problem, weak_validators=weak))
                elif problem is not None and not is_reserved(path):
                    unlisted.append(Unlisted(f"{path}/", problem))
                elif problem is None:
                    folders.append(f"{path}/")
            if len(files) > _MAX_FILES or len(folders) > _MAX_FOLDERS or prefix.count("/") >= _MAX_DEPTH:
                raise Permanent(
                    "too_many_files",
                    f"{self.display}: expected at most {_MAX_FILES} files in {_MAX_FOLDERS} folders, "
                    f"{_MAX_DEPTH} deep, found more at {prefix[:200] or '/'}",
                    "name the model's own folder",
                )
        return files, unlisted

    def _single(self, service: Service) -> RemoteFile | None:
        """Return the root as a file, None if there is no such file."""
        parent, _, name = self._root.rpartition("/")
        is_folder, size = self._read_folder(service, parent).get(name, (True, None)) if name else (True, None)
        if is_folder:
            return None
        problem = self._problem(name)
        return RemoteFile(name, self._root, size, problem=problem, weak_validators=WeakValidators())

    def _is_folder(self, service: Service) -> bool:
        parent, _, name = self._root.rpartition("/")
        return not name or self._read_folder(service, parent).get(name, (True, None))[0]

    def _read_folder(self, service: Service, path: str) -> dict[str, tuple[bool, int | None]]:
        """Return the entries of a folder by name: whether each is a folder, and its size if the server says it."""
        found = service.get_json(f"{self._base}{ARTIFACTS}/artifacts?path={quote(path, safe='')}")
        listed = found.get("files", []) if isinstance(found, dict) else None
        if not isinstance(listed, list):
            raise bad_answer(self.display, "a list of files", found)
        entries: dict[str, tuple[bool, int | None]] = {}
        for each in listed:
            name, is_folder, size = _entry(each, self.display)
            if name in entries:
                raise bad_listing(self.display, f"the name {name[:200]!r} twice")
            entries[name] = is_folder, size
        return entries

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root and path else self._root or path

    def _problem(self, path: str) -> HoldfastError | None:
        """Return the error of a name that no version may have, or that the server reads as another one."""
        problem = bad_name(self.display, path)
        if problem is None and ("#" in path or unquote(path) != path):
            shown = f"{self.display}: {path[:200]!r}: MLflow's server refuses `#` in a name and decodes `%` in it"
            return Permanent("bad_name", f"{shown}, so that it cannot be asked for", _NAME_REMEDY)
        return problem

    def _locate(self, file: RemoteFile, cancellation: Cancellation) -> HttpTarget:
        target = self._presigned(file, cancellation)
        if target is None:
            url = f"{self._base}{ARTIFACTS}/artifacts/{quote(file.key, safe='/')}"
            headers = self._server.credentials.headers_for(url, cancellation)
            target = HttpTarget(url, headers, chosen_by=self._chosen_by, answers_head=False)
        promised = file.sha256 is not None
        return replace(
            target,
            if_match=file.validator or None,
            weak_validators=None if promised else file.weak_validators,
            stored_bytes=file.size,
        )

    def _presigned(self, file: RemoteFile, cancellation: Cancellation) -> HttpTarget | None:
        """Return the presigned address of `file`; None where the server has none to give."""
        if self._presigns is None:
            with self._asking:  # one file asks whether there are any, the others wait for that
                if self._presigns is None:
                    return self._ask_presigned(file, cancellation)
        return self._ask_presigned(file, cancellation) if self._presigns else None

    def _ask_presigned(self, file: RemoteFile, cancellation: Cancellation) -> HttpTarget | None:
        service = self._server.service(self._client, cancellation, self.display, self._chosen_by)
        url = f"{self._base}{ARTIFACTS}/presigned/{quote(file.key, safe='/')}"
        response = service.ask(url)
        if response.status in _NOT_OFFERED and not is_absent(response) and not self._presigns:
            self._presigns = False
            return None
        if response.status != _OK:
            raise service.error_of(url, response)
        self._presigns = True
        return self._read_presigned(response, url)

    def _read_presigned(self, response: Response, asked: str) -> HttpTarget:
        try:
            document = json.loads(response.body)
        except (ValueError, RecursionError) as error:
            raise bad_answer(self.display, "a presigned address", f"{len(response.body)} bytes") from error
        url = document.get("url") if isinstance(document, dict) else None
        headers = document.get("headers") or {} if isinstance(document, dict) else None
        if not isinstance(url, str) or not isinstance(headers, dict):
            raise bad_answer(self.display, "a presigned address with its headers", type(document).__name__)
        if not all(is_header(name, value) for name, value in headers.items()):
            raise bad_answer(self.display, "the headers of a presigned address", "some that cannot be sent")
        following = next_hop(Address.parse(asked), url)
        ends_in_s = lifetime_s(following.url, time.time())
        return HttpTarget(
            following.url,
            tuple(headers.items()),
            chosen_by=self._server.tracking,
            lifetime_s=_PRESIGNED_S if ends_in_s is None else ends_in_s,
        )


def is_proxied(uri: str) -> bool:
    """Return whether an address of artifacts is one that only a server of MLflow can read."""
    parts = split_address(uri)
    return parts.scheme == "mlflow-artifacts" or (
        parts.scheme in ("http", "https") and f"{ARTIFACTS}/artifacts/" in f"{parts.path}/"
    )


def _split(uri: str, tracking: str) -> tuple[str, str]:
    """Return the address of the server that serves the artifacts, and their path in it. Rule: MLflow's own
    (`MlflowArtifactsRepository.resolve_uri`): another host keeps the scheme and the path of the tracking server."""
    parts = split_address(uri)
    base, path = tracking, parts.path
    ours = urlsplit(tracking)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise _bad_root("credentials or parameters in it")
    if parts.scheme == "mlflow-artifacts":
        if parts.netloc:
            base = f"{ours.scheme}://{parts.netloc}{ours.path}".rstrip("/")
    else:
        prefix, _, path = path.partition(f"{ARTIFACTS}/artifacts")
        base = f"{parts.scheme}://{parts.netloc}{prefix}".rstrip("/")
        path = unquote(path)
    Address.parse(base)
    names = [name for name in path.split("/") if name]
    if any(name in (".", "..") for name in names):
        raise _bad_root("`.` or `..` in its path")
    return base, "/".join(names)


def _bad_root(found: str) -> Permanent:
    return Permanent(
        "bad_address",
        f"expected the address of a folder as mlflow-artifacts:/path, found {found}",
        "correct the source of the version in MLflow",
    )


def _entry(each: Any, where: str) -> tuple[str, bool, int | None]:
    """Return the name, whether it is a folder, and the size of one entry of a listing. Raises `Transient`."""
    path = each.get("path") if isinstance(each, dict) else None
    if not isinstance(path, str) or not path or "/" in path or path in (".", ".."):
        raise bad_listing(where, f"the name {str(path)[:200]!r} in a folder")
    is_folder, size = each.get("is_dir", False), each.get("file_size")
    if isinstance(size, str) and size.isascii() and size.isdecimal():  # int64 in protobuf's own JSON
        size = int(size[:20])
    if not isinstance(is_folder, bool):
        raise bad_listing(where, f"the kind {str(is_folder)[:40]!r} of {path[:200]!r}")
    if size is None or is_folder:
        return path, is_folder, None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
        raise bad_listing(where, f"the size {str(size)[:40]!r} of {path[:200]!r}")
    return path, is_folder, size
