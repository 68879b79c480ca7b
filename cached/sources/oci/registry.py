"""One repository of a registry: its manifests, its small blobs, and the addresses of the others.

Law: blocking. Mirrors are asked first and believed only as far as a digest proves them; the registry itself is asked
last, and its error is the one that is told. The bytes of a manifest are hashed here, whatever its headers say.
Protocol: OCI Distribution Specification 1.1, "Pull".
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.sources.oci.access.auth import RegistryAuth
from cached.sources.oci.access.clouds import find_cloud_login
from cached.sources.oci.access.hosts import Endpoint, find_endpoints
from cached.sources.oci.access.logins import Login, find_docker_login
from cached.sources.oci.address import OciAddress
from cached.sources.oci.manifest import ACCEPT, MAX_DOCUMENT_BYTES, digest_of
from cached.sources.signed_urls import lifetime_s
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import response_error
from cached.transport.pages import page_error, page_in
from cached.transport.response import sent_at
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import Address, display_url, origin_of

T = TypeVar("T")

_TRIES = 3  # without credentials, with those that a 401 asks for, and with new ones
_CODE = re.compile(r"[A-Z_]{1,64}")
_NO_RANGE = 416  # to the first byte of an empty blob
_AWAY = frozenset({"connect", "stalled", "reset", "tls_verification"})


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """The bytes of a manifest, and their digest."""

    data: bytes = field(repr=False)
    digest: str
    content_type: str


@dataclass(slots=True)
class _Endpoint:
    """One endpoint. `is_direct`: it serves blobs itself; `is_away`: it did not answer at all."""

    endpoint: Endpoint
    auth: RegistryAuth
    is_direct: bool = False
    is_away: bool = False


class Registry:
    """The repository of an address. Thread-safe."""

    def __init__(self, address: OciAddress, client: HttpClient, *, endpoints: Sequence[Endpoint] | None = None) -> None:
        """`endpoints`: the servers to ask; None: those that the configuration names."""
        self._address = address
        self._client = client
        self._endpoints = endpoints
        self._lock = threading.Lock()
        self._found: list[_Endpoint] = []
        self._located: set[str] = set()

    def manifest(self, reference: str, cancellation: Cancellation) -> FoundManifest:
        """Return the manifest that a tag or a digest names. Raises `HoldfastError`."""
        by_digest = reference.startswith("sha256:")
        servers = [s for s in self._servers() if (s.endpoint.pulls if by_digest else s.endpoint.resolves)]
        return self._first(servers, lambda server: self._manifest(server, reference, cancellation))

    def blob_target(self, digest: str, cancellation: Cancellation) -> HttpTarget:
        """Return the current address of a blob: at the registry with the credentials, or where it redirects to, without
        them. A blob that is asked for again was not good where it was: then every server is asked. Raises
        `HoldfastError`."""
        with self._lock:
            is_first = digest not in self._located
            self._located.add(digest)
        servers = [server for server in self._servers() if server.endpoint.pulls]
        return self._first(servers, lambda server: self._blob_target(server, digest, cancellation, trusting=is_first))

    def small_blob(self, digest: str, limit_bytes: int, cancellation: Cancellation) -> bytes:
        """Return the bytes of a blob, compared with its digest. Raises `HoldfastError`."""
        data = self._client.fetch(self.blob_target(digest, cancellation), limit_bytes, cancellation).body
        if digest_of(data) != digest:
            remedy = "push it again; a registry that changes blobs cannot be used"
            raise DigestMismatch(f"{self._address.display}: a blob", digest, digest_of(data), remedy)
        return data

    def refuse(self, target: HttpTarget) -> None:
        """Note that a server refused the credentials of `target`."""
        if target.issuer is not None:
            target.issuer.refuse(target.headers)

    def _servers(self) -> list[_Endpoint]:
        with self._lock:
            if not self._found:
                endpoints = self._endpoints or find_endpoints(self._address.host)
                auths = (registry_auth(self._address, each, self._client, "pull") for each in endpoints)
                self._found = [_Endpoint(each, auth) for each, auth in zip(endpoints, auths, strict=True)]
            return list(self._found)

    def _first(self, servers: Sequence[_Endpoint], ask: Callable[[_Endpoint], T]) -> T:
        """Return the first answer; raise the registry's own error if there is none, a mirror's if it was not asked."""
        errors: list[HoldfastError] = []
        for server in sorted(servers, key=lambda each: each.is_away):
            try:
                return ask(server)
            except HoldfastError as error:
                server.is_away = error.code in _AWAY
                errors.insert(len(errors) if server.endpoint.namespace is None else 0, error)
        if not errors:
            raise Permanent(
                "bad_hosts",
                f"{self._address.display}: no server of the registry may be asked for this",
                "give one of them in hosts.toml the capabilities `pull` and `resolve`",
            )
        raise self._about(errors[-1])

    def _manifest(self, server: _Endpoint, reference: str, cancellation: Cancellation) -> FoundManifest:
        url = server.endpoint.url(f"{self._address.repository}/manifests/{reference}")
        send = self._sender(cancellation)
        response = self._ask(server, url, send, (("Accept", ACCEPT),), cancellation)
        where = display_url(url)
        if response.status != 200:
            raise error_of(response, f"the manifest {reference}")
        page = page_in(response.body)
        if page is not None:
            raise page_error("a manifest", display_url(response.url), page)
        found = digest_of(response.body)
        said = response.headers.get("Docker-Content-Digest", "")
        expected = reference if reference.startswith("sha256:") else said
        if expected.startswith("sha256:") and expected != found:
            remedy = "push it again; a registry, or a proxy before it, that changes manifests cannot be used"
            raise DigestMismatch(f"{where}: the manifest's digest", expected, found, remedy)
        return FoundManifest(response.body, found, response.headers.get_content_type())

    def _blob_target(self, server: _Endpoint, digest: str, cancellation: Cancellation, *, trusting: bool) -> HttpTarget:
        url = server.endpoint.url(f"{self._address.repository}/blobs/{digest}")
        if server.is_direct and trusting:
            return server.auth.authorize(HttpTarget(url), cancellation)
        response = self._ask(
            server, url, lambda target: self._client.peek_any_status(target, cancellation), (), cancellation
        )
        if response.status in (200, 206, _NO_RANGE):
            server.is_direct = True
            return server.auth.authorize(HttpTarget(url), cancellation)
        location = response.redirect_url
        if location is None:
            raise error_of(response, f"the blob {digest}")
        if Address.parse(location).origin == Address.parse(url).origin:
            return server.auth.authorize(HttpTarget(location), cancellation)
        ends_in_s = lifetime_s(location, sent_at(response.headers.get("Date")))
        return HttpTarget(location, chosen_by=url, lifetime_s=ends_in_s)

    def _sender(self, cancellation: Cancellation) -> Callable[[HttpTarget], Response]:
        return lambda target: self._client.fetch_any_status(target, MAX_DOCUMENT_BYTES, cancellation)

    def _ask(
        self,
        server: _Endpoint,
        url: str,
        send: Callable[[HttpTarget], Response],
        headers: Headers,
        cancellation: Cancellation,
    ) -> Response:
        """Return the answer of any status, after the credentials that a 401 asks for."""
        for _ in range(_TRIES):
            sent = server.auth.headers_for(url, cancellation)
            response = send(HttpTarget(url, (*headers, *sent)))
            if response.status != 401:
                break
            server.auth.learn(response, sent)
        return response

    def _about(self, error: HoldfastError) -> HoldfastError:
        if isinstance(error, DigestMismatch) or error.message.startswith(self._address.display):
            return error
        about = _with_message(error, f"{self._address.display}: {error.message}")
        about.__cause__ = error
        return about


def registry_auth(address: OciAddress, endpoint: Endpoint, client: HttpClient, actions: str) -> RegistryAuth:
    """Return the credentials for an endpoint: of the registry, or of the mirror that it is. `actions`: the rights to
    ask for, as in a token's scope."""
    own = address.host if endpoint.namespace is None else Address.parse(endpoint.base).origin.netloc

    def find(cancellation: Cancellation) -> Login | None:
        found = find_docker_login(own, address.repository, cancellation)
        return found or find_cloud_login(own, origin_of(endpoint.base), client, cancellation)

    return RegistryAuth(endpoint.base, address.repository, client, find, actions)


def error_of(response: Response, what: str) -> HoldfastError:
    """Return the error of a registry's answer that is no success. `what`: the thing that was asked for."""
    where, code = display_url(response.url), next(_codes(response.body), "")
    if response.status == 404:
        found = f"{where} answered 404{f' {code}' if code else ''}: the registry does not have {what}"
        return Permanent("not_found", found, "check repository, tag and digest for typing errors, or push it there")
    error = response_error(response.status, response.headers, where, response.body)
    shown = f"{where} answered {response.status}"
    return _with_message(error, error.message.replace(shown, f"{shown} {code}".rstrip(), 1))


def _with_message(error: HoldfastError, message: str) -> HoldfastError:
    if isinstance(error, Transient):
        return Transient(error.code, message, error.remedy, retry_after_s=error.retry_after_s)
    return Permanent(error.code, message, error.remedy)


def _codes(body: bytes) -> Iterator[str]:
    """Yield the codes of a registry's error document: `{"errors": [{"code": …}]}`."""
    try:
        found = json.loads(body)["errors"]
        yield from (each["code"] for each in found if _CODE.fullmatch(each["code"]))
    except (ValueError, RecursionError, LookupError, TypeError):
        return
