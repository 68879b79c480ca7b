"""Versions in a model repository of the Hugging Face Hub, or of a Hub at HF_ENDPOINT.

Law: huggingface_hub finds the token and interprets error answers; it sends nothing, and nothing here writes to its
cache. Our own HTTP client sends the requests, with its timeouts and its rules for redirects. One resolution resolves a
moving revision once, and from then on names the commit only. A file's sha256 comes from the Hub's API for Git LFS, or
from a manifest, never from an ETag. The token goes to the Hub's own origin only. Every file has an id that its bytes
are checked against, so a mirror may lack parts of the Hub's API, and its headers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any
from urllib.parse import parse_qs, quote

# Before the import, which reads it: without it the first request would also fetch a list for the user agent from the
# Hub and write that under HF_HOME.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import httpx2
from huggingface_hub import constants, get_token, hf_raise_for_status
from huggingface_hub.errors import EntryNotFoundError, OIDCError, RepositoryNotFoundError

from cached.contract.errors import HoldfastError, InvalidManifest, Permanent, Transient
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry
from cached.contract.program import limits
from cached.core.listing import Listing, RemoteFile, split_chains
from cached.sources.base import identity_of
from cached.sources.huggingface.address import DEFAULT_REVISION, HubAddress
from cached.sources.huggingface.entries import SIBLING, TREE_ENTRY, has_ids, is_commit, parse_files
from cached.sources.huggingface.errors import (
    HubRequest,
    bad_response,
    explain_errors,
    joined,
    lacks_api,
    lacks_commit,
    source_changed,
    too_many_files,
    translate_errors,
    web_page,
    without_api,
)
from cached.sources.manifests import read_manifest
from cached.sources.signed_urls import lifetime_s
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.git_blob import git_blob_hasher
from cached.transport.pages import HTML, is_page_type, page_in
from cached.transport.response import sent_at
from cached.transport.target import Expected, HttpTarget
from cached.transport.urls import Address, Origin, display_url, split_url

_MAX_ANSWER_BYTES = 16 * 1024 * 1024  # a page of the tree, or the metadata of a repository: some 300 KB
_MAX_FILES = 50_000
_MAX_PAGES = 1_000
_MAX_HOPS = 10
_TREE_QUERY = "?recursive=true&expand=false"
_COMMIT_QUERY = "?expand=sha"  # else the answer has the name of every file too
_FILES_QUERY = "?blobs=true"  # as huggingface_hub's `model_info(files_metadata=True)`
# Refusals of all files in one answer: too many for that, or a parameter that a mirror does not know.
_WITHOUT_FILES = frozenset({"too_large", "http_400", "http_500", "http_502", "http_504"})
_BAD_REQUEST, _UNAUTHORIZED = 400, 401
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as huggingface_hub parses its variables


class HuggingFaceSource:
    """A `Source` over a repository, or a folder of it, at one revision."""

    kind = "hf"

    def __init__(self, uri: str, client: HttpClient) -> None:
        """The caller closes `client`. Raises `Permanent` (`invalid_source`)."""
        self._address = HubAddress.parse(uri)
        self._client = client

    @property
    def display(self) -> str:
        return str(self._address)

    async def resolve(self) -> Listing:
        """Resolve the revision to a commit and list its files."""
        return await call_in_thread(self._resolve)

    async def is_current(self, tag: str) -> bool:
        """Return whether the revision still is the commit `tag`."""
        commit = await call_in_thread(lambda cancellation: _Hub(self._address, self._client, cancellation).commit())
        return commit == tag

    async def locate(self, file: RemoteFile) -> HttpTarget:
        """Return the address of a listed file: on the Hub with the token, or a signed URL elsewhere without it."""
        return await call_in_thread(lambda cancellation: _Hub(self._address, self._client, cancellation).target(file))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _resolve(self, cancellation: Cancellation) -> Listing:
        hub = _Hub(self._address, self._client, cancellation)
        commit, listed = hub.list_files()
        files, chains = split_chains(sorted(listed, key=attrgetter("path")))
        if not files:
            raise Permanent(
                "not_found", f"{self.display}: expected files, found none", f"look at the files on {hub.request.page}"
            )
        by_path = {file.path: file for file in files}
        if MANIFEST_NAME not in by_path:
            return Listing(files, hub.identity(), revision=commit, tag=commit, chains=chains)
        manifest = read_manifest(hub.read_manifest(by_path[MANIFEST_NAME]), f"{self.display}: {MANIFEST_NAME}")
        mirrored = tuple(self._confirmed(entry, by_path.get(entry.path)) for entry in manifest.files)
        return Listing(mirrored, hub.identity(), manifest, commit, tag=commit, chains=chains)

    def _confirmed(self, entry: FileEntry, found: RemoteFile | None) -> RemoteFile:
        where = f"{self.display}: {MANIFEST_NAME} lists {entry.path!r}"
        remedy = "publish the version again with `holdfast publish`, and upload the whole of it in one commit"
        problem: HoldfastError | None = None
        if found is None:
            found = RemoteFile(entry.path, "", entry.size)
            problem = InvalidManifest(f"{where}, which the repository lacks", remedy)
        elif found.size != entry.size or found.sha256 not in (None, entry.sha256):
            problem = InvalidManifest(
                f"{where} with {entry.size} bytes, sha256 {entry.sha256}; the repository has {found.size} bytes, "
                f"sha256 {found.sha256 or 'not listed'}",
                remedy,
            )
        return replace(found, sha256=entry.sha256, problem=found.problem or problem)


class _Hub:
    """One Hub with the token and settings of the current environment, so that a rotated token applies at once."""

    def __init__(self, address: HubAddress, client: HttpClient, cancellation: Cancellation) -> None:
        if any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
            raise Permanent(
                "offline",
                f"{address}: the Hub may not be asked, as HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set",
                "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE for this process, or name a source that it may reach",
            )
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        origin = _find_origin(self._endpoint)
        if origin is None or "@" in self._endpoint:
            raise Permanent(
                "invalid_source",
                f"{address}: expected HF_ENDPOINT as an http(s) URL without credentials",
                "set HF_ENDPOINT to the Hub's address, as https://hub.example.com, or unset it",
            )
        self._origin = origin
        self._address = address
        self._token = _find_token(address)
        self._client = client
        self._cancellation = cancellation
        with_token = self._token is not None
        self.request = HubRequest(self._endpoint, address.repo, address.revision, str(address), with_token)

    def identity(self) -> str:
        """Return the identity of answers for `commit:path`. Of the token only its presence counts: a renewed one reads
        the same, and a file without sha256 has the id of its content."""
        return identity_of("hf", self._endpoint, self._address.repo, "token" if self._token else "")

    def commit(self) -> str:
        """Return the commit that the revision names now."""
        return self._commit_in(self._read_revision(_COMMIT_QUERY))

    def list_files(self) -> tuple[str, Iterator[RemoteFile]]:
        """Return the commit that the revision names now, and the files under the address's folder, with paths relative
        to it. One answer has both, unless a folder is named or that answer lacks files or ids: then the tree has them.
        """
        folder = self._address.folder
        commit, siblings = (self.commit(), None) if folder else self._read_siblings()
        if siblings is None or len(siblings) >= _MAX_FILES:
            return commit, self._read_tree(commit)
        return commit, parse_files(self.request, commit, folder, siblings, SIBLING)

    def _commit_in(self, found: Any) -> str:
        revision = self._address.revision
        commit = found.get("sha") if isinstance(found, dict) else None
        if not is_commit(commit) or (is_commit(revision) and commit != revision):
            raise bad_response(self.request, f"the commit {str(commit)[:80]!r} for {revision!r}")
        return commit

    def _read_siblings(self) -> tuple[str, list[Any] | None]:
        """Return the commit that the revision names now, and the files of its metadata, None where those lack ids or
        sizes. From `_MAX_FILES` on, the Hub may omit some."""
        try:
            found = self._read_revision(_FILES_QUERY)
        except HoldfastError as error:
            if error.code not in _WITHOUT_FILES:
                raise
            return self.commit(), None
        commit, siblings = self._commit_in(found), found.get("siblings")
        return commit, siblings if has_ids(siblings) else None

    def _read_revision(self, query: str) -> Any:
        """Return the Hub's metadata of the revision, or of the repository from a mirror that has only that."""
        repository = f"{self._endpoint}/api/models/{self._address.repo}"
        url = f"{repository}/revision/{quote(self._address.revision, safe='')}{query}"
        answer = self._ask(self.request, url)
        if answer.status == _BAD_REQUEST and query == _COMMIT_QUERY:  # a mirror that does not know the parameter
            return self._read_revision("")
        if lacks_api(answer) and self._address.revision == DEFAULT_REVISION:
            other = self._ask(self.request, repository + query)
            answer = other if other.status == 200 else answer
        try:
            return _read_json(self.request, _checked(self.request, url, answer))
        except HoldfastError as error:
            raise (without_api(error, "revision") if lacks_api(answer) else error) from error

    def _read_tree(self, commit: str) -> Iterator[RemoteFile]:
        """Return the files of the repository's tree, or of its substitute on a mirror without trees."""
        request, folder = self.request, self._address.folder
        url = f"{self._endpoint}/api/models/{self._address.repo}/tree/{commit}"
        url += (f"/{quote(folder.rstrip('/'), safe='')}" if folder else "") + _TREE_QUERY
        first = self._ask(request, url)
        if not lacks_commit(first):
            return parse_files(request, commit, folder, self._pages(url, first), TREE_ENTRY)
        found, siblings = self._read_siblings()
        if siblings is None:
            try:
                _checked(request, url, first)
                raise bad_response(request, f"HTTP {first.status} for the list of files")
            except HoldfastError as error:
                raise without_api(error, "tree") from error
        if found != commit:
            raise source_changed(request, f"commit {commit}", f"commit {found}")
        if len(siblings) >= _MAX_FILES:
            raise too_many_files(request, _MAX_FILES, _MAX_PAGES)
        below = [each for each in siblings if str(each.get(SIBLING.path)).startswith(folder)]
        return parse_files(request, commit, folder, below, SIBLING)

    def _pages(self, first_url: str, response: Response) -> Iterator[Any]:
        """Yield the entries of a tree but for its folders."""
        request = self.request
        url, seen, entries = first_url, set[str](), 0
        while url:
            seen.add(url)
            answer = _checked(request, url, response)
            page = _read_json(request, answer)
            if not isinstance(page, list):
                raise bad_response(request, f"{type(page).__name__} where the list of files should be")
            entries += len(page)
            if entries > _MAX_FILES or len(seen) > _MAX_PAGES:
                raise too_many_files(request, _MAX_FILES, _MAX_PAGES)
            yield from (entry for entry in page if not isinstance(entry, dict) or entry.get("type") == "file")
            following = answer.links.get("next", {}).get("url")
            url = self._next_page(first_url, joined(request, url, following)) if following else ""
            if url in seen:
                raise bad_response(request, "a next page that is the same again")
            if url:
                response = self._ask(request, url)

    def _next_page(self, first_url: str, following: str) -> str:
        """Return the URL of the next page here. Of the Hub's own link, which a mirror may pass, the cursor counts."""
        if following.startswith(f"{self._endpoint}/api/"):
            return following
        cursor = parse_qs(split_url(following).query).get("cursor")
        if not cursor:
            raise bad_response(self.request, "a next page on another host")
        return f"{first_url}&cursor={quote(cursor[0], safe='')}"

    def read_manifest(self, listed: RemoteFile) -> bytes:
        """Return the bytes of a listed `holdfast.json`, checked against the listing."""
        request = self._request_for(MANIFEST_NAME)
        assert listed.size is not None  # a Hub's listing always has a size
        if listed.size > MAX_MANIFEST_BYTES:
            raise InvalidManifest(
                f"{request.subject}: expected at most {MAX_MANIFEST_BYTES} bytes, found {listed.size}",
                "publish the version again with `holdfast publish`",
            )
        url = self._url(listed)
        found = self._ask(request, url, MAX_MANIFEST_BYTES)
        if lacks_commit(found):
            found = self._ask(request, self._url(listed, self._address.revision), MAX_MANIFEST_BYTES)
        data = _checked(request, url, found).content
        hasher = hashlib.sha256() if listed.sha256 else git_blob_hasher(listed.size)
        hasher.update(data)
        if len(data) != listed.size or hasher.hexdigest() != listed.validator:
            raise source_changed(request, f"{listed.size} bytes with the id {listed.validator}", "other bytes")
        return data

    def target(self, file: RemoteFile) -> HttpTarget:
        """Return the current address of the file's bytes. No `If-Match` with a commit: its content never changes.

        A mirror need not send its commit, as the listed id decides. A mirror that knows the file under the revision's
        name only is asked for that.
        """
        request, url, url_by_name = (
            self._request_for(file.path),
            self._url(file),
            self._url(file, self._address.revision),
        )
        try:
            answer, location = self._ask_head(request, url)
            return self._target(request, file, answer, location)
        except Permanent as error:
            named = isinstance(error.__cause__, (EntryNotFoundError, RepositoryNotFoundError))
            if error.code != "not_found" or named or url_by_name == url:
                raise
            try:
                answer, location = self._ask_head(request, url_by_name)
            except HoldfastError:
                raise error from None
        target = self._target(request, file, answer, location)
        etag = answer.headers.get("ETag", "")
        return replace(target, if_match=etag) if etag.startswith('"') and target.chosen_by is None else target

    def _target(self, request: HubRequest, file: RemoteFile, answer: httpx2.Response, location: str) -> HttpTarget:
        commit, found = file.key.partition(":")[0], answer.headers.get("X-Repo-Commit", "")
        if found not in ("", commit):
            raise source_changed(request, f"commit {commit}", f"commit {found[:80]}")
        # Some mirrors send 0 for an unknown size.
        sent = answer.headers.get("Content-Length") if answer.status_code == 200 else None
        size = answer.headers.get("X-Linked-Size") or (sent if sent != "0" else None)
        if size and file.size is not None and size != str(file.size):
            if is_page_type(Expected(file.path, file.size, promised=True), answer.headers.get("Content-Type", "")):
                raise web_page(request, HTML, display_url(location))
            raise source_changed(request, f"{file.size} bytes", f"{size[:80]} bytes")
        origin = _find_origin(location)
        if origin is None:
            raise bad_response(request, "a location that is no http(s) URL")
        if origin.scheme == "http" and self._origin.scheme == "https":
            raise Permanent(
                "insecure_redirect",
                f"{request.subject}: {request.endpoint} redirects from TLS to plain HTTP",
                "use a Hub, or a mirror, that keeps to https",
            )
        stored_bytes = None if file.sha256 is None and file.git_oid is None else file.size
        if origin != self._origin:
            ends_in_s = lifetime_s(location, sent_at(answer.headers.get("Date")))
            return HttpTarget(location, chosen_by=self._endpoint, stored_bytes=stored_bytes, lifetime_s=ends_in_s)
        return replace(self._own(location), stored_bytes=stored_bytes)

    def _request_for(self, path: str) -> HubRequest:
        return replace(self.request, subject=f"{self._address}: {path}")

    def _url(self, file: RemoteFile, revision: str = "") -> str:
        """Return the address of the file at its commit, or at another name of that: some mirrors know only branches."""
        commit, _, path = file.key.partition(":")
        return f"{self._endpoint}/{self._address.repo}/resolve/{quote(revision or commit, safe='')}/{quote(path)}"

    def _ask(self, request: HubRequest, url: str, limit_bytes: int = _MAX_ANSWER_BYTES) -> Response:
        """Return the answer of any status. Raises for a web page in its place."""
        with explain_errors(request):
            found = self._client.fetch_any_status(self._own(url), limit_bytes, self._cancellation)
            if found.status == _UNAUTHORIZED and self._has_newer_token():
                found = self._client.fetch_any_status(self._own(url), limit_bytes, self._cancellation)
        page = page_in(found.body) if found.status == 200 else None
        if page is not None:
            raise web_page(request, page, display_url(found.url))
        return found

    def _ask_head(self, request: HubRequest, url: str) -> tuple[httpx2.Response, str]:
        """Return the head of the Hub's own answer for a file, and the address of its bytes.

        Follows redirects within the Hub; a redirect away from it is the answer, with the Hub's metadata of the file. A
        mirror without HEAD is assumed to have the file: its bytes are checked.
        """
        for _ in range(_MAX_HOPS):
            with explain_errors(request):
                found = self._client.head_any_status(self._own(url), self._cancellation)
                if found.status == _UNAUTHORIZED and self._has_newer_token():
                    found = self._client.head_any_status(self._own(url), self._cancellation)
            if found.status in (405, 501):
                return httpx2.Response(found.status), url
            answer = _checked(request, url, found)
            location = joined(request, url, answer.headers["Location"]) if answer.has_redirect_location else url
            if location == url or _find_origin(location) != self._origin:
                return answer, location
            url = location
        raise bad_response(request, f"more than {_MAX_HOPS} redirects")

    def _has_newer_token(self) -> bool:
        """Read the token again after a refusal: a file that is renewed, or one that is exchanged, may have another."""
        refused, self._token = self._token, _find_token(self._address)
        return self._token not in (None, refused)

    def _own(self, url: str) -> HttpTarget:
        return HttpTarget(url, (("Authorization", f"Bearer {self._token}"),) if self._token else ())


def _checked(request: HubRequest, url: str, response: Response) -> httpx2.Response:
    """Return the answer for huggingface_hub, which knows the Hub's errors by their headers; raise those as ours."""
    headers = [(name, value) for name, value in response.headers.items() if name.lower() != "content-encoding"]
    answer = httpx2.Response(response.status, headers=headers, content=response.body)
    answer.request = httpx2.Request("GET", url)
    with translate_errors(request):
        hf_raise_for_status(answer)
    return answer


def _read_json(request: HubRequest, answer: httpx2.Response) -> Any:
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError) as error:
        raise bad_response(request, f"something else than JSON ({type(error).__name__})") from error


def _find_token(address: HubAddress) -> str | None:
    """Return HF_TOKEN, or the token file's, as huggingface_hub finds it; None without one, or if it may not be sent."""
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        token = get_token()
    except httpx2.HTTPError as error:  # first, as huggingface_hub's is also an OSError
        raise Transient(
            "connect",
            f"{address}: the token for the Hub cannot be renewed ({type(error).__name__})",
            "check the network, or set HF_TOKEN to a token that needs no renewal",
        ) from error
    except (OSError, UnicodeError, OIDCError) as error:
        raise limits.find_limit_error(error, f"{address}: reading the token for the Hub") or Permanent(
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


def _find_origin(url: str) -> Origin | None:
    """Return the origin of an http(s) URL, None for anything else."""
    try:
        return Address.parse(url).origin
    except Permanent:
        return None
