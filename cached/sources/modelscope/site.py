"""ModelScope's API, as its client asks it (modelscope-hub 0.5): the list of files, and their addresses.

Law: a token goes to the site's own origin only, and not over plain HTTP to another machine. A listing that the site may
have cut is no listing. The client's login is not read: its file is a pickle, which runs what it holds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from cached.contract.digest import is_hex
from cached.contract.errors import HoldfastError, InvalidManifest, Permanent, Transient
from cached.contract.manifest import check_size
from cached.core.listing import RemoteFile, is_other_record
from cached.sources.modelscope.address import ModelScopeAddress
from cached.sources.oauth import quoted
from cached.sources.signed_urls import lifetime_s
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.ssrf import is_loopback
from cached.transport.git_blob import GIT_OID
from cached.transport.response import sent_at
from cached.transport.service.requests import Service
from cached.transport.service.tokens import FixedHeaders
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import Address

DEFAULT_ENDPOINT = "https://modelscope.cn"
MOST_ENTRIES = 3000  # of a listing: the site cuts a longer one without a word (the client's constant)
_MAX_ANSWER_BYTES = 16 * 1024 * 1024  # 3,000 entries take some 2 MB
_GOOD = (200, 206)


@dataclass(frozen=True, slots=True)
class RevisionFiles:
    """The files of a revision; `commit`: what that is, where the site says so."""

    files: tuple[RemoteFile, ...]
    commit: str | None


class Site:
    """The site with the token and settings of the current environment, so that a rotated token applies at once."""

    def __init__(self, address: ModelScopeAddress, client: HttpClient, cancellation: Cancellation) -> None:
        """Raises `Permanent` (`invalid_source`, `unauthorized`)."""
        self._address = address
        self._client = client
        self._cancellation = cancellation
        self._endpoint = _endpoint(address)
        self._headers = _headers(address, self._endpoint)
        credentials = FixedHeaders([self._endpoint], self._headers)
        self._service = Service(client, cancellation, str(address), credentials, self._explain)

    @property
    def identity(self) -> tuple[str, ...]:
        """What decides the answer for a file. Of the token only its presence counts."""
        return self._endpoint, self._address.repo, "token" if self._headers else ""

    def tree(self) -> RevisionFiles:
        """Return the files below the address's folder, with paths relative to it. Raises as `Source.resolve`."""
        query = {"Revision": self._address.revision, "Recursive": "True"}
        if self._address.folder:
            query["Root"] = self._address.folder.rstrip("/")
        url = f"{self._api}/repo/files?{urlencode(query, quote_via=quote)}"
        answer = self._service.get_json(url, limit_bytes=_MAX_ANSWER_BYTES)
        if isinstance(answer, dict) and (answer.get("Success") is False or answer.get("Code", 200) != 200):
            raise self._refused(answer)
        data = answer.get("Data") if isinstance(answer, dict) else None
        entries = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(entries, list):
            raise self._bad("an answer without a list of files")
        if len(entries) >= MOST_ENTRIES:
            raise Permanent(
                "too_many_files",
                f"{self._address}: expected fewer than {MOST_ENTRIES} files and folders, found {len(entries)}: "
                "ModelScope cuts longer lists without saying so",
                "name the folder of the repository that holds the version",
            )
        latest = data.get("LatestCommitter")
        commit = latest.get("Id") if isinstance(latest, dict) else None
        commit = commit if isinstance(commit, str) and GIT_OID.fullmatch(commit) else None
        return RevisionFiles(tuple(self._files(entries, commit)), commit)

    def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        """Return the bytes of a small file."""
        ref, _, path = file.key.partition(":")
        return self._service.get(self._url(ref, path), limit_bytes=limit_bytes).body

    def target(self, file: RemoteFile) -> HttpTarget:
        """Return the current address of a file's bytes: at the site, or where that redirects to, without the token. A
        site that does not know the commit is asked by the revision's name, where a sha256 decides."""
        ref, _, path = file.key.partition(":")
        url, where = self._url(ref, path), f"{self._address}: {file.path}"
        response = self._service.peek(url)
        if response.status == 404 and file.sha256 is not None and ref != self._address.revision:
            by_name = self._url(self._address.revision, path)
            found = self._service.peek(by_name)
            if found.status != 404:
                url, response = by_name, found
        redirect = response.redirect_url
        if redirect is None and response.status not in _GOOD:
            error = self._service.error_of(url, response)
            raise _about(error, where)
        stored = file.size if file.sha256 is not None else None
        if redirect is None or Address.parse(redirect).origin == Address.parse(self._endpoint).origin:
            return HttpTarget(redirect or url, self._headers, stored_bytes=stored)
        ends_in_s = lifetime_s(redirect, sent_at(response.headers.get("Date")))
        return HttpTarget(redirect, chosen_by=self._endpoint, stored_bytes=stored, lifetime_s=ends_in_s)

    @property
    def _api(self) -> str:
        return f"{self._endpoint}/api/v1/models/{self._address.repo}"

    def _url(self, ref: str, path: str) -> str:
        return f"{self._api}/repo?{urlencode({'Revision': ref, 'FilePath': path}, quote_via=quote)}"

    def _files(self, entries: list[Any], commit: str | None) -> Iterator[RemoteFile]:
        folder = self._address.folder
        for entry in entries:
            path = entry.get("Path") if isinstance(entry, dict) else None
            if not isinstance(path, str) or not path:
                raise self._bad("an entry without a path")
            if entry.get("Type") == "tree":
                continue
            if folder and not path.startswith(folder):
                raise self._bad(f"the path {path[:200]!r}, outside the folder that was asked for")
            relative = path[len(folder) :]
            if not is_other_record(relative):
                yield self._file(entry, path, relative, commit)

    def _file(self, entry: dict[str, Any], path: str, relative: str, commit: str | None) -> RemoteFile:
        """Return a file: with its sha256; else at the commit that wrote it last, which names its bytes."""
        key, size, sha256 = f"{commit or self._address.revision}:{path}", entry.get("Size"), entry.get("Sha256")
        if entry.get("Type", "blob") not in ("blob", "file"):
            problem: HoldfastError = Permanent(
                "not_a_file",
                f"{self._address}: expected a regular file, found {str(entry.get('Type'))[:40]!r}: {path[:200]!r}",
                "put a regular file in its place, or leave it out with `exclude`",
            )
            return RemoteFile(relative, key, None, problem=problem)
        try:
            check_size(path, size)
        except InvalidManifest as error:
            return RemoteFile(relative, key, None, problem=self._bad(error.message))
        if isinstance(sha256, str) and sha256:
            if not is_hex(sha256):
                return RemoteFile(
                    relative, key, size, problem=self._bad(f"the sha256 {sha256[:80]!r} of {path[:200]!r}")
                )
            return RemoteFile(relative, key, size, validator=sha256, sha256=sha256)
        written = entry.get("Revision")
        if isinstance(written, str) and GIT_OID.fullmatch(written):
            return RemoteFile(relative, f"{written}:{path}", size, validator=written)
        return RemoteFile(relative, key, size)

    def _bad(self, found: str) -> Transient:
        problem = f"{self._address}: expected an answer of ModelScope's API from {self._endpoint}, found {found}"
        return Transient("bad_response", problem, "check MODELSCOPE_ENDPOINT, and a proxy before it")

    def _refused(self, answer: dict[str, Any]) -> HoldfastError:
        """Return the error of an answer 200 that says it is none."""
        said = quoted(str(answer.get("Message", "")))
        return Permanent(
            "refused",
            f"{self._address}: {self._endpoint} refuses the request: {str(answer.get('Code'))[:20]}, {said}",
            "check the name and the revision; look at the repository on the site",
        )

    def _explain(self, response: Response) -> HoldfastError | None:
        said = quoted(_message_of(response))
        shown = f"{self._address}: {self._endpoint} answered {response.status}" + (f", {said}" if said else "")
        has_token = bool(self._headers)
        give = (
            "use a token of an account that may read the repository"
            if has_token
            else "set MODELSCOPE_API_TOKEN to a token of an account that may read it"
        )
        if response.status == 401:
            return Permanent("unauthorized", shown, give)
        if response.status == 403:
            return Permanent("forbidden", shown, give)
        if response.status in (404, 410):
            return Permanent(
                "not_found",
                f"{shown}: there is no repository {self._address.repo}, no revision {self._address.revision}, or it is "
                "private",
                f"check the name and the revision; if it is private, {give}",
            )
        return None


def _about(error: HoldfastError, where: str) -> HoldfastError:
    message = f"{where}: {error.message}"
    if isinstance(error, Transient):
        return Transient(error.code, message, error.remedy, retry_after_s=error.retry_after_s)
    return Permanent(error.code, message, error.remedy)


def _message_of(response: Response) -> str:
    try:
        document = json.loads(response.body)
    except (ValueError, RecursionError):
        return ""
    return str(document.get("Message") or document.get("message") or "") if isinstance(document, dict) else ""


def _endpoint(address: ModelScopeAddress) -> str:
    given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or DEFAULT_ENDPOINT
    endpoint = given.strip().rstrip("/")
    if "://" not in endpoint:  # the client takes a name alone
        endpoint = f"https://{endpoint}"
    try:
        parsed = Address.parse(endpoint)
    except Permanent:
        parsed = None
    if parsed is None or parsed.userinfo is not None or "?" in endpoint or "#" in endpoint:
        raise Permanent(
            "invalid_source",
            f"{address}: expected MODELSCOPE_ENDPOINT as an http(s) URL without credentials and query",
            f"set MODELSCOPE_ENDPOINT to the site's address, as {DEFAULT_ENDPOINT}, or unset it",
        )
    return parsed.url.rstrip("/")


def _headers(address: ModelScopeAddress, endpoint: str) -> Headers:
    """Return what carries the token: the header of the newer API, and the cookie of the older one."""
    token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    if not token:
        return ()
    if not re.fullmatch(r"[!-~]+", token) or set(token) & set(';,"\\'):
        raise Permanent(
            "unauthorized",
            f"{address}: the token for ModelScope has characters that no token has",
            "copy it again into MODELSCOPE_API_TOKEN",
        )
    origin = Address.parse(endpoint).origin
    if origin.scheme != "https" and not is_loopback(origin.host):
        raise Permanent(
            "invalid_source",
            f"{address}: expected https for requests with the token, found plain HTTP in MODELSCOPE_ENDPOINT",
            "use the site's https address, or unset MODELSCOPE_API_TOKEN",
        )
    return (("Authorization", f"Bearer {token}"), ("Cookie", f"m_session_id={token}"))
