"""The MLflow server of a location: its addresses, the credentials of requests, and what its errors mean.

Law: credentials go to the server that they are for: those of the environment to `MLFLOW_TRACKING_URI` (and
`MLFLOW_REGISTRY_URI`), or to the location's own server where the environment names none. None is shown.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.mlflow.address import MlflowAddress
from cached.sources.oauth import quoted
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.credentials import basic
from cached.transport.service.requests import Service
from cached.transport.service.tokens import FixedHeaders
from cached.transport.target import Headers
from cached.transport.urls import Address, display_url

_API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LOG_IN = (
    "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for the server of "
    "MLFLOW_TRACKING_URI, or put its user and password into a netrc file (NETRC)"
)


@dataclass(frozen=True, slots=True)
class MlflowServer:
    """`tracking` and `registry`: the addresses, without a slash at their end and without user information."""

    tracking: str
    registry: str
    credentials: FixedHeaders = field(repr=False)

    @classmethod
    def of(cls, address: MlflowAddress) -> MlflowServer:
        """Find the server of a location in it and in the environment. Raises `Permanent` (`no_tracking_server`)."""
        environment = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        named = address.tracking_uri or environment
        if not named:
            raise Permanent(
                "no_tracking_server",
                f"{address.location}: expected the MLflow server in MLFLOW_TRACKING_URI or tracking_uri, found none",
                "set MLFLOW_TRACKING_URI for the daemon, or write the location with ?tracking_uri=https://…",
            )
        tracking, user = _split(named, address.location, "MLFLOW_TRACKING_URI")
        registry, registry_user = tracking, None
        other = os.environ.get("MLFLOW_REGISTRY_URI", "").strip()
        if other and address.tracking_uri is None:
            registry, registry_user = _split(other, address.location, "MLFLOW_REGISTRY_URI")
        headers = _environment_headers()
        mine = [tracking, registry]
        if environment and address.tracking_uri is not None:
            theirs = _split(environment, address.location, "MLFLOW_TRACKING_URI")
            if Address.parse(theirs[0]).origin != Address.parse(tracking).origin:
                headers = ()
            else:
                user = theirs[1]
        user = user or registry_user
        if not headers and user is not None:
            headers = (("Authorization", basic(*user)),)
        return cls(tracking, registry, FixedHeaders(mine if headers else (), headers))

    def service(
        self, client: HttpClient, cancellation: Cancellation, subject: str, chosen_by: str | None = None
    ) -> Service:
        """Return the service with its credentials, for requests that end with `cancellation`. `chosen_by`: the server
        that named another one's address."""
        return Service(client, cancellation, subject, self.credentials, MlflowErrors(subject), chosen_by)

    def registry_url(self, method: str, **query: str) -> str:
        """Return the URL of a method of the model registry, as `model-versions/get`."""
        return f"{self.registry}{_API}/{method}?{urlencode(query, quote_via=quote)}"

    def tracking_url(self, method: str, **query: str) -> str:
        """Return the URL of a method of the tracking server."""
        return f"{self.tracking}{_API}/{method}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")


class MlflowErrors:
    """Explains MLflow's errors: JSON with `error_code` and `message`."""

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def __call__(self, response: Response) -> HoldfastError | None:
        """Return the error of a response; None for the general one."""
        status = response.status
        said = quoted(_message(response))
        shown = f"{self._subject}: {display_url(response.url)} answered {status}" + (f" ({said})" if said else "")
        if status == 401:
            return Permanent("unauthorized", shown, _LOG_IN)
        if status == 403 and b"Invalid Host header" in response.body:
            remedy = "add the host of MLFLOW_TRACKING_URI to the server's --allowed-hosts"
            return Permanent("forbidden", f"{shown}: the server does not know itself by this name", remedy)
        if status == 403:
            return Permanent("forbidden", shown, f"give this user READ permission in MLflow; or {_LOG_IN}")
        if status == 503 and b"--no-serve-artifacts" in response.body:
            return Permanent(
                "forbidden",
                f"{shown}: the server serves no artifacts",
                "run it with --serve-artifacts, or give the experiment a store that this node reads itself",
            )
        if status == 404 and not said:
            return Permanent(
                "not_found", f"{shown}: expected MLflow's API there", "check MLFLOW_TRACKING_URI, also its path"
            )
        if status in (400, 404) and said:
            return Permanent("not_found", shown, "check the name, version or alias on the server's page of models")
        return None


def error_code(response: Response) -> str:
    """Return the `error_code` of MLflow's error; empty if the answer is none."""
    document = _document(response)
    found = document.get("error_code") if isinstance(document, dict) else None
    return found if isinstance(found, str) else ""


def _message(response: Response) -> str:
    document = _document(response)
    found = document.get("message") if isinstance(document, dict) else None
    return found if isinstance(found, str) else ""


def _document(response: Response) -> Any:
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        return None


def _environment_headers() -> Headers:
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:  # before a token, as for MLflow
        return (("Authorization", basic(user, password)),)
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return (("Authorization", f"Bearer {token}"),) if token else ()


def _split(uri: str, location: str, variable: str) -> tuple[str, tuple[str, str] | None]:
    """Return the address of a server, and the user and password in it. Raises `Permanent` for what is no server: a
    database's URI has a password and is not quoted."""
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment:
            host = parts.netloc.rpartition("@")[2]
            user = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
            address = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
            Address.parse(address)
            return address, user
    except ValueError:
        pass
    match = _SCHEME.match(uri)
    found = f"the scheme {match[1][:20]!r}" if match and match[1] not in ("http", "https") else "something else"
    raise Permanent(
        "no_tracking_server",
        f"{location}: expected an MLflow server as http(s)://host[:port] in {variable}, found {found}",
        "name the server's own address; a database, a folder and Databricks are not read",
    )


def bad_answer(subject: str, expected: str, found: object) -> Transient:
    """Return the error of an answer without what it must have."""
    return Transient(
        "bad_response",
        f"{subject}: expected {expected} in the server's answer, found {str(found)[:80]!r}",
        "check that MLFLOW_TRACKING_URI is an MLflow server's own address",
    )
