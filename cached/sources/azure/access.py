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
import time
from functools import partial
from hashlib import sha256
from urllib.parse import quote, urlencode

from cached.contract.errors import HoldfastError, Permanent
from cached.sources.access import LocationAccess, LocationCredentials
from cached.sources.azure.address import AzureAddress
from cached.sources.azure.environment import StorageSecret, find_secret
from cached.sources.azure.identity import NO_IDENTITY, SIGN_IN, EntraClient, ManagedIdentity
from cached.sources.oauth import check_tls, quoted
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.tokens import BearerTokens
from cached.transport.target import Headers

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


class AzureAccess(LocationAccess):
    """The requests of a container's location. `permissions`: of a signature that a key signs."""

    def __init__(self, address: AzureAddress, client: HttpClient, permissions: str) -> None:
        super().__init__(client, address.display, is_anonymous=address.anonymous)
        self._address = address
        self._permissions = permissions

    def _find(self, cancellation: Cancellation) -> LocationCredentials:
        secret = find_secret(self._address.account)
        if secret is not None:
            return LocationCredentials(sign=partial(self._add_signature, secret))
        check_tls(self._address.endpoint, self._address.display)
        entra = EntraClient.of_environment(self._client)
        if entra is not None:
            return LocationCredentials(BearerTokens([self._address.endpoint], entra.issue))
        tokens = BearerTokens([self._address.endpoint], ManagedIdentity(self._client).issue)
        try:
            tokens.headers_for(self._address.endpoint, cancellation)
        except HoldfastError as error:
            if error.code not in (NO_IDENTITY, "connect"):
                raise
            return LocationCredentials(lacking=error)
        return LocationCredentials(tokens)

    def _add_signature(self, secret: StorageSecret, url: str) -> str:
        sas = secret.sas or sign_container(self._address, secret.key or "", self._permissions, time.time())
        return f"{url}{'&' if '?' in url else '?'}{sas}"

    def _explain(self, lacking: HoldfastError | None, response: Response) -> HoldfastError | None:
        status, code = response.status, code_of(response)
        message = _DETAIL.search(response.body) or _MESSAGE.search(response.body)
        said = quoted(message[1].decode("utf-8", errors="replace").partition("\n")[0]) if message else ""
        shown = f"{self._address.display}: the service answered {status}" + (f" {code}" if code else "")
        shown += f" ({said})" if said else ""
        is_refused = status in (401, 403) or code in _NO_ACCESS or code == "ResourceNotFound"
        if is_refused and lacking is not None:
            problem = f"{shown}; no Azure credentials were found ({lacking.message})"
            return Permanent("unauthorized", problem, SIGN_IN)
        if status == 401 or code in _NO_ACCESS or code in _NOT_AUTHENTIC:
            return Permanent("unauthorized", shown, SIGN_IN)
        if status == 403:
            return Permanent("forbidden", shown, _ROLE)
        if status == 404:
            problem = f"{shown}: there is no container {self._address.container}, or it is not public"
            return Permanent("not_found", problem, "correct the account and the container")
        return None


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


def code_of(response: Response) -> str:
    """Return the service's own name of an error; empty if it has none."""
    named = _CODE.search(response.body)
    return named[1].decode("ascii") if named else quoted(response.headers.get("x-ms-error-code", ""))
