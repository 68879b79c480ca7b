"""The access to one bucket: whose credentials its requests carry, and what an answer means.

Law: the first of these that is there: `GOOGLE_APPLICATION_CREDENTIALS`, the file of `gcloud auth application-default
login`, the metadata server (a node's, or GKE's for a service account). Without any the requests are anonymous, for
public buckets. A token goes to the location's own endpoint only.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient, http_code
from cached.sources.gcs.address import GcsAddress
from cached.sources.gcs.credentials import CredentialFile
from cached.sources.oauth import check_tls, explain_refusal, quoted, read_token
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import is_retried
from cached.transport.service.requests import Service
from cached.transport.service.tokens import BearerTokens, Token
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import display_url

READ = "https://www.googleapis.com/auth/devstorage.read_only"
WRITE = "https://www.googleapis.com/auth/devstorage.read_write"
_METADATA = "Google's metadata server"
_METADATA_HOST = "metadata.google.internal"
_METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
_METADATA_PATIENCE_S = 3.0  # to connect: it is on this machine
_FLAVOR: Headers = (("Metadata-Flavor", "Google"),)  # in its answers too: a portal has it not
_NO_IDENTITY = "no_identity"
_TRUE = frozenset({"1", "true", "yes"})
_SIGN_IN = (
    "give the pod a service account that may read the bucket (workload identity), or name a credential file in "
    "GOOGLE_APPLICATION_CREDENTIALS; for a public bucket add ?anonymous=true"
)
_ROLE = "grant roles/storage.objectViewer on the bucket; to publish, roles/storage.objectUser"


@dataclass(frozen=True, slots=True)
class _Found:
    """The credentials: `tokens`, None for anonymous requests; `lacking`: why none were found, if they were looked
    for."""

    tokens: BearerTokens | None
    lacking: HoldfastError | None


class GcsAccess:
    """The requests of a location. Thread-safe; sends nothing before the first request. `scope`: what its tokens are
    for."""

    def __init__(self, address: GcsAddress, client: HttpClient, scope: str) -> None:
        self._address = address
        self._client = client
        self._scope = scope
        self._finding = threading.Lock()
        self._found: list[_Found] = []  # at most one

    def service(self, cancellation: Cancellation) -> Service:
        """Return the service with its credentials, for requests that end with `cancellation`. May wait for a token."""
        found = self._credentials(cancellation)
        explain = Explanation(self._address, found.lacking)
        return Service(self._client, cancellation, self._address.display, found.tokens, explain)

    def headers_for(self, url: str, cancellation: Cancellation) -> Headers:
        """Return the headers that authorize a request to `url`. May wait for a token."""
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
        """Return `target` with a token, if there are credentials. May wait for one."""
        tokens = self._credentials(cancellation).tokens
        return target if tokens is None else tokens.authorize(target, cancellation)

    def authorize_now(self, target: HttpTarget) -> HttpTarget | None:
        """Return what `authorize` does, without waiting; None where credentials must be asked for first."""
        found = self._found[0] if self._found else None
        if self._address.anonymous or (found is not None and found.tokens is None):
            return target
        return None if found is None or found.tokens is None else found.tokens.authorize_now(target)

    def _credentials(self, cancellation: Cancellation) -> _Found:
        with self._finding:
            if not self._found:
                self._found.append(self._find(cancellation))
            return self._found[0]

    def _find(self, cancellation: Cancellation) -> _Found:
        if self._address.anonymous:
            return _Found(None, None)
        check_tls(self._address.endpoint, self._address.display)
        path = _credential_file()
        if path is not None:
            tokens = BearerTokens([self._address.endpoint], CredentialFile(path, self._scope, self._client).issue)
            return _Found(tokens, None)
        if os.environ.get("NO_GCE_CHECK", "").lower() in _TRUE:
            return _Found(None, None)
        tokens = BearerTokens([self._address.endpoint], self._ask_metadata)
        try:
            tokens.headers_for(self._address.endpoint, cancellation)
        except HoldfastError as error:
            if error.code != _NO_IDENTITY and _name_error(error) is None:
                raise
            return _Found(None, error)
        return _Found(tokens, None)

    def _ask_metadata(self, cancellation: Cancellation) -> Token:
        host = os.environ.get("GCE_METADATA_HOST") or _METADATA_HOST
        url = f"http://{host}{_METADATA_PATH}"
        client = HttpClient(replace(self._client.settings, connect_timeout_s=_METADATA_PATIENCE_S))
        try:
            service = Service(client, cancellation, _METADATA, explain=_explain_metadata)
            response = service.ask(url, _FLAVOR)
            if _FLAVOR[0] not in response.headers.items() and not is_retried(response.status):
                problem = f"{_METADATA}: {display_url(url)} is answered by something else"
                raise Permanent(_NO_IDENTITY, problem, _SIGN_IN)
            if response.status != 200:
                raise service.error_of(url, response)
            return read_token(_document(response), display_url(url))
        finally:
            client.close()


def _explain_metadata(response: Response) -> HoldfastError | None:
    if response.status == 404:
        return Permanent(_NO_IDENTITY, f"{_METADATA}: this machine, or pod, has no service account", _SIGN_IN)
    return explain_refusal(_METADATA, _SIGN_IN)(response)


def _document(response: Response) -> Any:
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        return None


def _credential_file() -> Path | None:
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        return Path(named)
    folder = os.environ.get("CLOUDSDK_CONFIG")
    path = (Path(folder) if folder else Path("~/.config/gcloud").expanduser()) / "application_default_credentials.json"
    return path if path.exists() else None


def _name_error(error: HoldfastError) -> socket.gaierror | None:
    """Return the error of the name server: the metadata server has no name outside of Google Cloud."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, socket.gaierror):
        cause = cause.__cause__
    return cause


class Explanation:
    """Explains the answers of the service about a location. `lacking`: why no credentials were found, if they were
    looked for."""

    def __init__(self, address: GcsAddress, lacking: HoldfastError | None) -> None:
        self._where = address.display
        self._bucket = address.bucket
        self._lacking = lacking

    def __call__(self, response: Response) -> HoldfastError | None:
        """Return the error of a response; None for the general one."""
        said = quoted(message_of(response))
        status = response.status
        shown = f"{self._where}: the service answered {status}" + (f" ({said})" if said else "")
        if status in (400, 403) and "requester pays" in said.lower():
            return Permanent("forbidden", shown, "add ?user_project=PROJECT, the project that pays, to the location")
        if status == 403 and _is_throttled(response.body):
            return Transient(http_code(429), shown, "it is tried again; if it stays so, look at the bucket's quota")
        if status in (401, 403) and self._lacking is not None:
            return self._without_credentials(shown)
        if status == 401:
            return Permanent("unauthorized", shown, _SIGN_IN)
        if status == 403:
            return Permanent("forbidden", shown, _ROLE)
        if status == 404:
            return Permanent("not_found", f"{shown}: there is no bucket {self._bucket}", "correct the bucket's name")
        return None

    def _without_credentials(self, shown: str) -> HoldfastError:
        """Return the error of an anonymous request: one that another try may mend if the name server was at fault."""
        assert self._lacking is not None
        problem = f"{shown}; no Google credentials were found ({self._lacking.message})"
        cause = _name_error(self._lacking)
        if cause is not None and cause.errno == socket.EAI_AGAIN:
            return Transient("unauthorized", problem, _SIGN_IN)
        return Permanent("unauthorized", problem, _SIGN_IN)


def _is_throttled(body: bytes) -> bool:
    """Return whether a 403 is for too many requests: older answers of the service say so (`rateLimitExceeded`)."""
    return b"ateLimitExceeded" in body


def message_of(response: Response) -> str:
    """Return the message of an error answer; empty if it has none."""
    document = _document(response)
    error = document.get("error") if isinstance(document, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""
