"""The access to one container: what authorizes its requests, and what an answer means.

Law: the first of these that is there: a shared access signature, a key (which only signs a signature of our own for
this container), a federated token or a client's secret, the machine's managed identity. Without any the requests are
anonymous, for public containers. What authorizes goes to the account's own endpoint only.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import threading
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from urllib.parse import quote, urlencode

from cached.contract.errors import HoldfastError, Permanent
from cached.sources.azure.address import AzureAddress
from cached.sources.azure.environment import StorageSecret, find_secret
from cached.sources.azure.identity import NO_IDENTITY, SIGN_IN, EntraClient, ManagedIdentity
from cached.sources.oauth import check_tls, quoted
from cached.sources.signed_urls import lifetime_s
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.requests import Service
from cached.transport.service.tokens import BearerTokens
from cached.transport.target import Headers, HttpTarget

VERSION: Headers = (("x-ms-version", "2024-11-04"),)  # a token without a version is refused
READ = "rl"
WRITE = "rcwdl"
_SIGNATURE_VERSION = "2022-11-02"
_SIGNATURE_S = 12 * 3600
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,1000})")
_DETAIL = re.compile(rb"<AuthenticationErrorDetail>([^<]{1,1000})")
_ROLE = (
    "grant the role Storage Blob Data Reader on the container (to publish: Storage Blob Data Contributor); check the "
    "account's network rules"
)
_NO_ACCESS = frozenset({"PublicAccessNotPermitted", "NoAuthenticationInformation"})
_NOT_AUTHENTIC = frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo"})


@dataclass(frozen=True, slots=True)
class _Found:
    """What authorizes requests: a secret or tokens; `lacking`: why neither was found, if they were looked for."""

    secret: StorageSecret | None = None
    tokens: BearerTokens | None = None
    lacking: HoldfastError | None = None


class AzureAccess:
    """The requests of a location. Thread-safe; sends nothing before the first request. `permissions`: of a signature
    that a key signs."""

    def __init__(self, address: AzureAddress, client: HttpClient, permissions: str) -> None:
        self._address = address
        self._client = client
        self._permissions = permissions
        self._finding = threading.Lock()
        self._found: list[_Found] = []  # at most one

    def service(self, cancellation: Cancellation) -> Service:
        """Return the service with its tokens, for requests that end with `cancellation`, to URLs that are `signed`. May
        wait for a token."""
        found = self._credentials(cancellation)
        explain = Explanation(self._address, found.lacking)
        return Service(self._client, cancellation, self._address.display, found.tokens, explain)

    def signed(self, url: str, cancellation: Cancellation) -> str:
        """Return `url` with a signature, if that is what authorizes."""
        secret = self._credentials(cancellation).secret
        return url if secret is None else self._with_sas(url, secret)

    def headers_for(self, url: str, cancellation: Cancellation) -> Headers:
        """Return the headers that authorize a request to `url`, beside a signature. May wait for a token."""
        tokens = self._credentials(cancellation).tokens
        return () if tokens is None else tokens.headers_for(url, cancellation)

    def refuse(self, headers: Headers) -> bool:
        """Note that the service refused `headers`; return whether others may be accepted."""
        tokens = self._found[0].tokens if self._found else None
        return tokens is not None and tokens.refuse(headers)

    def explain(self, response: Response) -> HoldfastError | None:
        """Return the error of a response; None for the general one."""
        return Explanation(self._address, self._found[0].lacking if self._found else None)(response)

    def authorize(self, target: HttpTarget, cancellation: Cancellation) -> HttpTarget:
        """Return `target` with a signature or a token, as long as that is valid. May wait for a token."""
        found = self._credentials(cancellation)
        if found.tokens is not None:
            return found.tokens.authorize(target, cancellation)
        return self._with_signature(target, found.secret)

    def authorize_now(self, target: HttpTarget) -> HttpTarget | None:
        """Return what `authorize` does, without waiting; None where credentials must be asked for first."""
        if self._address.anonymous:
            return target
        found = self._found[0] if self._found else None
        if found is None:
            return None
        if found.tokens is not None:
            return found.tokens.authorize_now(target)
        return self._with_signature(target, found.secret)

    def _with_signature(self, target: HttpTarget, secret: StorageSecret | None) -> HttpTarget:
        if secret is None:
            return target
        url = self._with_sas(target.url, secret)
        return replace(target, url=url, lifetime_s=lifetime_s(url, time.time()))

    def _with_sas(self, url: str, secret: StorageSecret) -> str:
        sas = secret.sas or sign_container(self._address, secret.key or "", self._permissions, time.time())
        return f"{url}{'&' if '?' in url else '?'}{sas}"

    def _credentials(self, cancellation: Cancellation) -> _Found:
        with self._finding:
            if not self._found:
                self._found.append(self._find(cancellation))
            return self._found[0]

    def _find(self, cancellation: Cancellation) -> _Found:
        if self._address.anonymous:
            return _Found()
        secret = find_secret(self._address.account)
        if secret is not None:
            return _Found(secret)
        check_tls(self._address.endpoint, self._address.display)
        entra = EntraClient.of_environment(self._client)
        if entra is not None:
            return _Found(tokens=BearerTokens([self._address.endpoint], entra.issue))
        tokens = BearerTokens([self._address.endpoint], ManagedIdentity(self._client).issue)
        try:
            tokens.headers_for(self._address.endpoint, cancellation)
        except HoldfastError as error:
            if error.code not in (NO_IDENTITY, "connect"):
                raise
            return _Found(lacking=error)
        return _Found(tokens=tokens)


def sign_container(address: AzureAddress, key: str, permissions: str, now: float) -> str:
    """Return a signature for the container, made with the account's `key` at `now` (POSIX time). Raises `Permanent`
    (`bad_credentials`). Format: learn.microsoft.com, "Create a service SAS", version 2020-12-06 and later."""
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + _SIGNATURE_S))
    resource = f"/blob/{address.account}/{address.container}"
    signed = (permissions, "", ends, resource, "", "", "", _SIGNATURE_VERSION, "c", "", "", "", "", "", "", "")
    try:
        secret = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Permanent(
            "bad_credentials",
            f"{address.display}: expected the account's key in base64, found something else",
            "correct AZURE_STORAGE_KEY or AZURE_STORAGE_CONNECTION_STRING",
        ) from error
    signature = base64.b64encode(hmac.new(secret, "\n".join(signed).encode(), sha256).digest()).decode("ascii")
    given = {"sp": permissions, "se": ends, "sv": _SIGNATURE_VERSION, "sr": "c", "sig": signature}
    return urlencode(given, quote_via=quote)


class Explanation:
    """Explains the answers of the service about a location. `lacking`: why no credentials were found, if they were
    looked for."""

    def __init__(self, address: AzureAddress, lacking: HoldfastError | None) -> None:
        self._where = address.display
        self._container = address.container
        self._lacking = lacking

    def __call__(self, response: Response) -> HoldfastError | None:
        """Return the error of a response; None for the general one."""
        status, code = response.status, code_of(response)
        message = _DETAIL.search(response.body) or _MESSAGE.search(response.body)
        said = quoted(message[1].decode("utf-8", errors="replace").partition("\n")[0]) if message else ""
        shown = f"{self._where}: the service answered {status}" + (f" {code}" if code else "")
        shown += f" ({said})" if said else ""
        is_refused = status in (401, 403) or code in _NO_ACCESS or code == "ResourceNotFound"
        if is_refused and self._lacking is not None:
            problem = f"{shown}; no Azure credentials were found ({self._lacking.message})"
            return Permanent("unauthorized", problem, SIGN_IN)
        if status == 401 or code in _NO_ACCESS or code in _NOT_AUTHENTIC:
            return Permanent("unauthorized", shown, SIGN_IN)
        if status == 403:
            return Permanent("forbidden", shown, _ROLE)
        if status == 404:
            problem = f"{shown}: there is no container {self._container}, or it is not public"
            return Permanent("not_found", problem, "correct the account and the container")
        return None


def code_of(response: Response) -> str:
    """Return the service's own name of an error; empty if it has none."""
    named = _CODE.search(response.body)
    return named[1].decode("ascii") if named else quoted(response.headers.get("x-ms-error-code", ""))
