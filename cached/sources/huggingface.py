"""Versions in a model repository of the Hugging Face Hub, or of a Hub at HF_ENDPOINT.

Law: huggingface_hub finds the commit, the files and where their bytes are; it never downloads, and nothing here writes
to its cache. One resolution asks once what a moving revision points to, and from then on names the commit only. A
file's sha256 is what the Hub's API lists for Git LFS, or what a manifest says, never an ETag. Bytes are asked for
with the token at the Hub's own origin, and without it anywhere else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

# Before the import, which reads it: without it the first request would also fetch a list for the user agent from the
# Hub and write that under HF_HOME.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, get_token, hf_raise_for_status
from huggingface_hub.errors import OIDCError

from cached.contract.digest import is_hex
from cached.contract.errors import InvalidManifest, Permanent, Transient
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, check_size
from cached.sources.base import HttpTarget, Listing, RemoteFile
from cached.sources.hub_address import HubAddress
from cached.sources.hub_errors import Asked, bad_response, offline, source_changed, translated
from cached.sources.naming import check_names, is_reserved
from cached.wire.gitblob import git_blob_hasher

_TIMEOUT_S = 30.0  # to connect, and between two reads
_SHA1 = re.compile(r"[0-9a-f]{40}")
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as huggingface_hub reads its variables


class HuggingFaceSource:
    """A `Source` over a repository, or a folder of it, at one revision."""

    kind = "hf"

    def __init__(self, uri: str) -> None:
        self._address = HubAddress.parse(uri)

    @property
    def display(self) -> str:
        return str(self._address)

    async def resolve(self) -> Listing:
        """Resolve the revision to a commit and list its files; in a thread, as huggingface_hub blocks."""
        return await asyncio.to_thread(self._resolve)

    async def locate(self, file: RemoteFile) -> HttpTarget:
        """Say where a listed file is now: on the Hub itself, with the token, or at a signed URL elsewhere, without."""
        return await asyncio.to_thread(self._locate, file)

    async def aclose(self) -> None:
        """Nothing is held: huggingface_hub shares one client in the process and closes it at exit."""

    def _resolve(self) -> Listing:
        hub = _Hub.from_environment(self._address)
        commit = hub.commit()
        files = tuple(sorted(hub.files(commit), key=lambda file: file.path))
        if not files:
            raise Permanent(
                "not_found", f"{self.display}: expected files, found none", f"look at the files on {hub.asked().page}"
            )
        check_names(self.display, (file.path for file in files))
        listed = next((file for file in files if file.path == MANIFEST_NAME), None)
        if listed is None:
            return Listing(files, revision=commit)
        manifest = Manifest.parse(hub.read_manifest(listed))
        return Listing(self._mirrored(manifest, files), manifest, commit)

    def _mirrored(self, manifest: Manifest, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
        by_path = {file.path: file for file in files}
        return tuple(self._confirmed(entry, by_path.get(entry.path)) for entry in manifest.files)

    def _confirmed(self, entry: FileEntry, found: RemoteFile | None) -> RemoteFile:
        where = f"{self.display}: {MANIFEST_NAME} lists {entry.path!r}"
        remedy = "publish the version again with `holdfast publish`, and upload the whole of it in one commit"
        if found is None:
            raise InvalidManifest(f"{where}, which the repository lacks", remedy)
        if found.size != entry.size or found.sha256 not in (None, entry.sha256):
            raise InvalidManifest(
                f"{where} with {entry.size} bytes, sha256 {entry.sha256}; the repository has {found.size} bytes, "
                f"sha256 {found.sha256 or 'not listed'}",
                remedy,
            )
        return replace(found, sha256=entry.sha256)

    def _locate(self, file: RemoteFile) -> HttpTarget:
        return _Hub.from_environment(self._address).target(file)


@dataclass(frozen=True, slots=True)
class _Hub:
    """One Hub and what may be asked of it, as the environment says at the moment: a rotated token counts at once."""

    address: HubAddress
    endpoint: str
    token: str | None = field(repr=False)

    @classmethod
    def from_environment(cls, address: HubAddress) -> _Hub:
        if any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
            raise offline(str(address))
        endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        scheme, host, _ = _origin(endpoint)
        if scheme not in ("http", "https") or not host or "@" in endpoint:
            raise Permanent(
                "invalid_source",
                f"{address}: expected HF_ENDPOINT as an http(s) URL without credentials",
                "set HF_ENDPOINT to the Hub's address, as https://hub.example.com, or unset it",
            )
        return cls(address, endpoint, _token(address))

    def asked(self, what: str = "") -> Asked:
        shown = f"{self.address}: {what}" if what else str(self.address)
        return Asked(self.endpoint, self.address.repo, self.address.revision, shown, self.token is not None)

    def commit(self) -> str:
        """The commit that the revision names now."""
        asked, address = self.asked(), self.address
        api = HfApi(endpoint=self.endpoint, token=self.token or False, library_name="holdfast")
        with translated(asked):
            try:
                commit = api.model_info(address.repo, revision=address.revision, timeout=_TIMEOUT_S).sha
            except (KeyError, TypeError, AttributeError) as error:  # from its reading of a strange answer
                raise bad_response(asked, f"something else about the repository ({type(error).__name__})") from error
        pinned = _SHA1.fullmatch(address.revision) is not None
        if not isinstance(commit, str) or not _SHA1.fullmatch(commit) or (pinned and commit != address.revision):
            raise bad_response(asked, f"the commit {str(commit)[:80]!r} for {address.revision!r}")
        return commit

    def files(self, commit: str) -> Iterator[RemoteFile]:
        """The files under the address's folder, with paths relative to it."""
        asked = self.asked()
        for entry in self._tree(commit):
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                raise bad_response(asked, "a tree entry without a path")
            if entry.get("type") != "file":
                continue
            path = entry["path"]
            relative = path.removeprefix(self.address.folder)
            if self.address.folder and relative == path:
                raise bad_response(asked, f"the path {path[:200]!r}, outside the folder that was asked for")
            if not is_reserved(relative):
                yield _remote_file(asked, f"{commit}:{path}", relative, entry)

    def _tree(self, commit: str) -> Iterator[Any]:
        # Not HfApi.list_repo_tree, which (2.4) waits for a page without a timeout, sleeps through any Retry-After in
        # our thread, and follows a next link to any origin with the token: waiting is the scheduler's business.
        folder = quote(self.address.folder.rstrip("/"), safe="")
        url = f"{self.endpoint}/api/models/{self.address.repo}/tree/{commit}" + (f"/{folder}" if folder else "")
        url += "?recursive=true&expand=false"
        asked, seen = self.asked(), set[str]()
        while url:
            seen.add(url)
            with translated(asked):
                response = get_session().get(url, headers=self._headers(), timeout=_TIMEOUT_S)
                hf_raise_for_status(response)
                page = response.json()
            if not isinstance(page, list):
                raise bad_response(asked, f"{type(page).__name__} where the list of files should be")
            yield from page
            following = response.links.get("next", {}).get("url")
            url = urljoin(url, following) if following else ""
            if url in seen or (url and _origin(url) != _origin(self.endpoint)):
                raise bad_response(asked, "a next page that is the same again, or on another host")

    def read_manifest(self, listed: RemoteFile) -> bytes:
        """The bytes of a listed `holdfast.json`, checked against the listing."""
        asked = self.asked(MANIFEST_NAME)
        assert listed.size is not None  # what a Hub lists always has a size
        if listed.size > MAX_MANIFEST_BYTES:
            raise InvalidManifest(
                f"{asked.what}: expected at most {MAX_MANIFEST_BYTES} bytes, found {listed.size}",
                "publish the version again with `holdfast publish`",
            )
        headers = {**self._headers(), "Accept-Encoding": "identity"}  # the listed ids are of the plain bytes
        data = bytearray()
        with (
            translated(asked),
            get_session().stream("GET", self._url(listed), headers=headers, timeout=_TIMEOUT_S) as response,
        ):
            hf_raise_for_status(response)
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > listed.size:
                    break
        hasher = hashlib.sha256() if listed.sha256 else git_blob_hasher(listed.size)
        hasher.update(data)
        if len(data) != listed.size or hasher.hexdigest() != listed.validator:
            raise source_changed(asked, f"{listed.size} bytes with the id {listed.validator}", "other bytes")
        return bytes(data)

    def target(self, file: RemoteFile) -> HttpTarget:
        """Where the file's bytes are now. No `If-Match`: a commit's content never changes."""
        asked, url = self.asked(file.path), self._url(file)
        with translated(asked):
            found = get_hf_file_metadata(
                url, token=self.token or False, timeout=_TIMEOUT_S, endpoint=self.endpoint, library_name="holdfast"
            )
        commit = file.key.partition(":")[0]
        if found.commit_hash is None:
            raise bad_response(asked, "an answer without the header X-Repo-Commit")
        if found.commit_hash != commit:
            raise source_changed(asked, f"commit {commit}", f"commit {found.commit_hash[:80]}")
        if found.size is not None and file.size is not None and found.size != file.size:
            raise source_changed(asked, f"{file.size} bytes", f"{found.size} bytes")
        location = urljoin(url, found.location)
        if _origin(location)[0] not in ("http", "https"):
            raise bad_response(asked, "a location that is no http(s) URL")
        if self.token is None or _origin(location) != _origin(self.endpoint):
            return HttpTarget(location)
        return HttpTarget(location, (("Authorization", f"Bearer {self.token}"),))

    def _url(self, file: RemoteFile) -> str:
        commit, _, path = file.key.partition(":")
        return f"{self.endpoint}/{self.address.repo}/resolve/{commit}/{quote(path)}"

    def _headers(self) -> dict[str, str]:
        # httpx2 takes the token off where a redirect leaves the Hub.
        return {"User-Agent": "holdfast"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


def _token(address: HubAddress) -> str | None:
    """HF_TOKEN, or the token file, as huggingface_hub finds it; None where there is none, or it may not be sent."""
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        token = get_token()
    except httpx2.HTTPError as error:  # also an OSError, in huggingface_hub's: first
        raise Transient(
            "connect",
            f"{address}: the token for the Hub cannot be renewed ({type(error).__name__})",
            "check the network, or set HF_TOKEN to a token that needs no renewal",
        ) from error
    except (OSError, UnicodeError, OIDCError) as error:
        raise Permanent(
            "unauthorized",
            f"{address}: the token for the Hub cannot be read ({type(error).__name__})",
            f"check HF_TOKEN, or the file {constants.HF_TOKEN_PATH}",
        ) from error
    # An HTTP library would refuse such a header with an error that quotes it.
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
        raise Permanent(
            "unauthorized",
            f"{address}: the token for the Hub has characters that no token has",
            f"copy it again into HF_TOKEN, or into {constants.HF_TOKEN_PATH}",
        )
    return token


def _remote_file(asked: Asked, key: str, path: str, entry: dict[str, Any]) -> RemoteFile:
    """Read one file of `GET /api/models/{repo}/tree/{commit}`: `{path, size, oid, lfs?: {oid, size}}`."""
    lfs = entry.get("lfs")
    described = entry if lfs is None else lfs
    if not isinstance(described, dict):
        raise bad_response(asked, f"no Git LFS record for {path[:200]!r}")
    oid, size = described.get("oid"), described.get("size")
    if not isinstance(oid, str) or not (is_hex(oid) if lfs is not None else _SHA1.fullmatch(oid)):
        raise bad_response(asked, f"the id {str(oid)[:80]!r} for {path[:200]!r}")
    try:
        check_size(path, size)
    except InvalidManifest as error:
        raise bad_response(asked, error.message) from error
    if lfs is None:
        return RemoteFile(path, key, size, validator=oid, git_oid=oid)
    return RemoteFile(path, key, size, validator=oid, sha256=oid)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port; nothing at all where the URL is broken."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None
