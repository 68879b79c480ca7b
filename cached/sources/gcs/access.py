"""The access to one bucket: whose credentials its requests carry, and what an answer means.

Law: the first of these that is there: `GOOGLE_APPLICATION_CREDENTIALS`, the file of `gcloud auth application-default
login`, the metadata server (a node's, or GKE's for a service account). Without any the requests are anonymous, for
public buckets. A token goes to the location's own endpoint only.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient, http_code
from cached.sources.access import LocationAccess, LocationCredentials
from cached.sources.gcs.address import GcsAddress
from cached.sources.gcs.credentials import CredentialFile
from cached.sources.oauth import check_tls, explain_refusal, quoted, read_token
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import is_retried
from cached.transport.service.requests import Service
from cached.transport.service.tokens import BearerTokens, Token
from cached.transport.target import Headers
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


class GcsAccess(LocationAccess):
    """The requests of a bucket's location. `scope`: what its tokens are for."""

    def __init__(self, address: GcsAddress, client: HttpClient, scope: str) -> None:
        super().__init__(client, address.display, is_anonymous=address.anonymous)
        self._address = address
        self._scope = scope

    def _find(self, cancellation: Cancellation) -> LocationCredentials:
        check_tls(self._address.endpoint, self._address.display)
        path = _credential_file()
        if path is not None:
            return LocationCredentials(
                BearerTokens([self._address.endpoint], CredentialFile(path, self._scope, self._client).issue)
            )
        if os.environ.get("NO_GCE_CHECK", "").lower() in _TRUE:
            return LocationCredentials()
        tokens = BearerTokens([self._address.endpoint], self._ask_metadata)
        try:
            tokens.headers_for(self._address.endpoint, cancellation)
        except HoldfastError as error:
            if error.code != _NO_IDENTITY and _name_error(error) is None:
                raise
            return LocationCredentials(lacking=error)
        return LocationCredentials(tokens)

    def _explain(self, lacking: HoldfastError | None, response: Response) -> HoldfastError | None:
        said = quoted(message_of(response))
        status = response.status
        shown = f"{self._address.display}: the service answered {status}" + (f" ({said})" if said else "")
        if status in (400, 403) and "requester pays" in said.lower():
            return Permanent("forbidden", shown, "add ?user_project=PROJECT, the project that pays, to the location")
        if status == 403 and _is_throttled(response.body):
            return Transient(http_code(429), shown, "it is tried again; if it stays so, look at the bucket's quota")
        if status in (401, 403) and lacking is not None:
            return _explain_anonymous(shown, lacking)
        if status == 401:
            return Permanent("unauthorized", shown, _SIGN_IN)
        if status == 403:
            return Permanent("forbidden", shown, _ROLE)
        if status == 404:
            return Permanent(
                "not_found", f"{shown}: there is no bucket {self._address.bucket}", "correct the bucket's name"
            )
        return None

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
    return path if os.path.exists(path) else None  # not in a home that is another user's


def _name_error(error: HoldfastError) -> socket.gaierror | None:
    """Return the error of the name server: the metadata server has no name outside of Google Cloud."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, socket.gaierror):
        cause = cause.__cause__
    return cause


def _explain_anonymous(shown: str, lacking: HoldfastError) -> HoldfastError:
    """Return the error of an anonymous request: one that another try may mend if the name server was at fault."""
    problem = f"{shown}; no Google credentials were found ({lacking.message})"
    cause = _name_error(lacking)
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
