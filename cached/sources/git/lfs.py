"""The batch API of Git LFS: where the bytes of an oid are now.

Law: asks and reads answers; carries no bytes of files. What an answer gives (an address, headers, a lifetime) goes to
that address only. A lifetime is a hint: some servers sign for less than they say, so a refusal renews it. Format:
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient, http_code
from cached.sources.git.access import credentials_for, explained_status, has_credentials
from cached.sources.oauth import quoted, read_seconds
from cached.sources.signed_urls import is_header, lifetime_s
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import is_retried, response_error
from cached.transport.pages import page_error, page_in
from cached.transport.response import sent_at
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import Address, Origin, display_url

_TYPE = "application/vnd.git-lfs+json"
_HEADERS: Headers = (("Content-Type", _TYPE), ("Accept", _TYPE))
MAX_OBJECTS = 100  # of a request, as the specification has it
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_SECTION = re.compile(r"\s*\[\s*([^\]]*?)\s*\]")
_MAX_HEADERS = 32
_PUSH = "push the file to the LFS server again: `git lfs push --all`"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object of Git LFS, its size in bytes, and the path of its file, for messages."""

    oid: str
    size: int
    path: str


def endpoint_of(repository: str) -> str:
    """Return the LFS server of a repository, as Git LFS finds it."""
    return f"{repository if repository.endswith('.git') else f'{repository}.git'}/info/lfs"


def endpoint_in(config: bytes) -> str | None:
    """Return `lfs.url` of a `.lfsconfig` (git-config(1)); None without one."""
    section, found = "", None
    for line in config.decode("utf-8", "replace").splitlines():
        header = _SECTION.match(line)
        if header is not None:
            section = header[1].lower()
        name, equals, value = line.partition("=")
        if section == "lfs" and equals and name.strip().lower() == "url":
            found = value.strip().strip('"')
    return found or None


class LfsServer:
    """The LFS server at `endpoint`. `userinfo`: of the repository's location, if the server is at its origin;
    `chosen_by`: the repository that named an endpoint of another origin, else None."""

    def __init__(
        self,
        endpoint: str,
        where: str,
        client: HttpClient,
        userinfo: tuple[str, str] | None,
        chosen_by: str | None,
    ) -> None:
        """Raises `Permanent` as `credentials_for`."""
        self._endpoint = endpoint.rstrip("/")
        self._where = where
        self._client = client
        self._chosen_by = chosen_by
        self._origin: Origin = Address.parse(endpoint).origin
        self._credentials = credentials_for(self._origin, userinfo, where)

    def locate(self, wanted: Sequence[Wanted], cancellation: Cancellation) -> list[HttpTarget | HoldfastError]:
        """Return the address of each object, at most `MAX_OBJECTS` of them, or the error of that one. Raises
        `Transient` and `Permanent` for all."""
        answer, date = self._ask(wanted, cancellation)
        objects, now = _objects_in(answer, self._where), sent_at(date)
        return [self._located(each, objects.get(each.oid), now) for each in wanted]

    def _located(self, wanted: Wanted, found: dict[str, Any] | None, now: float) -> HttpTarget | HoldfastError:
        where, shown = f"{self._where}: {wanted.path}", f"the object {wanted.oid[:12]}…"
        try:
            if found is None:
                raise _bad_answer(where, f"no word of {shown}")
            if isinstance(found.get("error"), dict):
                raise _object_error(found["error"], shown, where)
            actions = found.get("actions")
            action = actions.get("download") if isinstance(actions, dict) else None
            if not isinstance(action, dict) or not isinstance(action.get("href"), str):
                raise _bad_answer(where, f"no address of {shown}")
            return self._target(action, wanted.size, now, where, authenticated=found.get("authenticated") is True)
        except HoldfastError as error:
            return error

    def _ask(self, wanted: Sequence[Wanted], cancellation: Cancellation) -> tuple[Any, str | None]:
        """Return the answer for the objects, and its date."""
        url = f"{self._endpoint}/objects/batch"
        where = self._where
        objects = [{"oid": oid, "size": size} for oid, size in {each.oid: each.size for each in wanted}.items()]
        document = {"operation": "download", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
        target = HttpTarget(
            url, (*_HEADERS, *self._credentials.headers_for(url, cancellation)), chosen_by=self._chosen_by
        )
        try:
            response = self._client.post_any_status(
                target, json.dumps(document).encode(), _MAX_ANSWER_BYTES, cancellation
            )
        except Transient as error:
            message = f"{where}: {error.message}"
            raise Transient(error.code, message, error.remedy, retry_after_s=error.retry_after_s) from error
        except Permanent as error:
            raise Permanent(error.code, f"{where}: {error.message}", error.remedy) from error
        if response.status != 200:
            general = response_error(response.status, response.headers, f"{where}: {display_url(url)}", b"")
            raise self._explain(response) or general
        page = page_in(response.body)
        if page is not None:
            raise page_error("an answer of the LFS batch API", f"{where}: {display_url(response.url)}", page)
        try:
            return json.loads(response.body), response.headers.get("Date")
        except (ValueError, RecursionError) as error:
            raise _bad_answer(where, f"{len(response.body)} bytes that are not JSON") from error

    def _target(self, action: dict[str, Any], size: int, now: float, where: str, *, authenticated: bool) -> HttpTarget:
        origin = _origin_of(action["href"], where)
        if origin.scheme == "http" and self._origin.scheme == "https":
            raise Permanent(
                "insecure_redirect",
                f"{where}: {display_url(self._endpoint)} leads from TLS to plain HTTP",
                "use an LFS server that keeps to https",
            )
        headers = _headers_in(action.get("header"), where)
        own: Headers = () if authenticated else self._credentials.headers_for(action["href"], Cancellation())
        if not any(name.lower() == "authorization" for name, _ in headers):
            headers = (*headers, *own)
        target = HttpTarget(action["href"], headers, stored_bytes=size, lifetime_s=_lifetime_s(action, now))
        chosen_by = self._endpoint if origin != self._origin else self._chosen_by
        return target if chosen_by is None else replace(target, chosen_by=chosen_by)

    def _explain(self, response: Response) -> HoldfastError | None:
        shown = f"{self._where}: the LFS server {display_url(self._endpoint)} answered {response.status}"
        if response.status in (404, 501):
            remedy = (
                "switch Git LFS on for this repository at its host, or name its LFS server as lfs.url in .lfsconfig"
            )
            return Permanent("not_found", f"{shown}: it has no LFS for this repository", remedy)
        if response.status in (401, 403):
            sent = has_credentials(self._origin, self._credentials, self._client)
            return explained_status(response.status, shown, self._origin, with_credentials=sent)
        if response.status == 507 or response.status == 509:
            problem = f"{shown}: it has no bandwidth or space left for this repository"
            return Transient(http_code(response.status), problem, "look at the quota of Git LFS at the host")
        return None


def _objects_in(answer: Any, where: str) -> dict[str, dict[str, Any]]:
    """Return the objects of an answer by their oids."""
    if isinstance(answer, dict) and answer.get("transfer", "basic") != "basic":
        raise _bad_answer(where, f"the transfer {str(answer.get('transfer'))[:40]!r} where `basic` was asked for")
    objects = answer.get("objects") if isinstance(answer, dict) else None
    if not isinstance(objects, list):
        raise _bad_answer(where, "no list of objects")
    return {str(each.get("oid")): each for each in objects if isinstance(each, dict)}


def _object_error(error: dict[str, Any], shown: str, where: str) -> HoldfastError:
    code = error.get("code")
    status = code if isinstance(code, int) and not isinstance(code, bool) and 100 <= code <= 599 else 0
    said = quoted(str(error.get("message", "")))
    problem = f"{where}: the LFS server refuses {shown}: {status or 'no code'}" + (said and f", {said}")
    if status in (404, 410):
        return Permanent("not_found", problem, _PUSH)
    if status in (401, 403):
        return Permanent("forbidden", problem, "give a token of an account that may read the LFS objects")
    if status == 0 or is_retried(status):
        code = http_code(status) if status else "bad_response"
        return Transient(code, problem, "it is tried again; look at the LFS server, or its quota")
    return Permanent(http_code(status), problem, _PUSH)


def _bad_answer(where: str, found: str) -> Transient:
    problem = f"{where}: expected an answer of the LFS batch API, found {found}"
    return Transient("bad_response", problem, "check that lfs.url, or the repository's host, is an LFS server")


def _origin_of(href: str, where: str) -> Origin:
    try:
        return Address.parse(href).origin
    except Permanent as error:
        raise _bad_answer(where, "an address that is no http(s) URL") from error


def _headers_in(given: Any, where: str) -> Headers:
    if given is None:
        return ()
    if not isinstance(given, dict) or len(given) > _MAX_HEADERS:
        raise _bad_answer(where, "headers that are no table of text")
    for name, value in given.items():
        if not is_header(name, value):
            raise _bad_answer(where, "a header that cannot be sent")
    return tuple(given.items())


def _lifetime_s(action: dict[str, Any], now: float) -> float | None:
    """Return the seconds for which an address is valid, the least of what it says: in `expires_in`, `expires_at` and
    its own parameters. `now`: by the server's clock."""
    ends = [read_seconds(action.get("expires_in")), lifetime_s(action["href"], now)]
    try:
        at = datetime.fromisoformat(str(action.get("expires_at")))
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        ends.append(max(0.0, at.timestamp() - now) if at.timestamp() > 0 else None)  # Go's zero time stands for none
    except (ValueError, OverflowError):
        ends.append(None)
    known = [each for each in ends if each is not None]
    return min(known) if known else None
