"""Tokens of Microsoft Entra ID for Azure Storage: from a federated token or a client's secret, else from the managed
identity of this machine.

Law: a token file is read anew for each token. A secret goes to the authority only, over TLS (or to loopback), and is
never in a message. Sources: learn.microsoft.com, "Microsoft identity platform and the OAuth 2.0 client credentials
flow" and "How to use managed identities for Azure resources on an Azure VM to acquire an access token".
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.oauth import explain_refusal, read_token
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.ssrf import is_loopback
from cached.transport.service.requests import Service
from cached.transport.service.tokens import Token
from cached.transport.urls import display_url

_AUTHORITY = "https://login.microsoftonline.com"
_MACHINE = "http://169.254.169.254"
_MACHINE_PATH = "/metadata/identity/oauth2/token"
_MACHINE_PATIENCE_S = 0.8  # to connect: it is on this machine, or nowhere
_STORAGE = "https://storage.azure.com/"
_JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_MAX_FILE_BYTES = 1024 * 1024
_RESTARTING = 410  # "IMDS is going through updates": another try may succeed
NO_IDENTITY = "no_identity"
SIGN_IN = (
    "give the pod a workload identity (the label azure.workload.identity/use and an annotated service account), the "
    "node a managed identity, or set AZURE_STORAGE_SAS_TOKEN; for a public container add ?anonymous=true"
)


@dataclass(frozen=True, slots=True)
class EntraClient:
    """A client of Entra ID: its id, its tenant, and the variables that hold its federated token's file, or else its
    secret."""

    client_id: str
    tenant: str
    client: HttpClient

    @classmethod
    def of_environment(cls, client: HttpClient) -> EntraClient | None:
        """Return the client that the environment names, as workload identity does; None without one."""
        names = ("AZURE_CLIENT_ID", "AZURE_TENANT_ID")
        client_id, tenant = (os.environ.get(name, "") for name in names)
        proof = os.environ.get("AZURE_FEDERATED_TOKEN_FILE") or os.environ.get("AZURE_CLIENT_SECRET")
        return cls(client_id, tenant, client) if client_id and tenant and proof else None

    def issue(self, cancellation: Cancellation) -> Token:
        """Ask for a token. Raises `Permanent` (`unauthorized`, `bad_credentials`) and `Transient`."""
        subject = "Microsoft Entra ID"
        remedy = "check the identity's federated credential (issuer and subject), AZURE_CLIENT_ID and AZURE_TENANT_ID"
        service = Service(self.client, cancellation, subject, explain=explain_refusal(subject, remedy))
        authority = (os.environ.get("AZURE_AUTHORITY_HOST") or _AUTHORITY).rstrip("/")
        if "://" not in authority:
            authority = f"https://{authority}"
        _check_authority(authority)
        url = f"{authority}/{quote(self.tenant, safe='')}/oauth2/v2.0/token"
        fields = {"grant_type": "client_credentials", "client_id": self.client_id, "scope": f"{_STORAGE}.default"}
        path = os.environ.get("AZURE_FEDERATED_TOKEN_FILE")
        if path:
            fields |= {"client_assertion_type": _JWT_BEARER, "client_assertion": _read(Path(path))}
        else:
            fields["client_secret"] = os.environ.get("AZURE_CLIENT_SECRET", "")
        return read_token(service.post_form(url, fields), display_url(url))


@dataclass(frozen=True, slots=True)
class ManagedIdentity:
    """The identity of this machine, from its metadata service; `AZURE_CLIENT_ID` chooses one of several."""

    client: HttpClient

    def issue(self, cancellation: Cancellation) -> Token:
        """Ask for a token. Raises `Permanent` (`no_identity`) if this machine has none, and `Transient`."""
        subject = "Azure's instance metadata service"

        def explain(response: Response) -> HoldfastError | None:
            refusal = explain_refusal(subject, SIGN_IN)(response)
            if response.status == _RESTARTING:
                return Transient("http_410", f"{subject} is being updated", "it is tried again")
            return None if refusal is None else Permanent(NO_IDENTITY, refusal.message, refusal.remedy)

        host = (os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or _MACHINE).rstrip("/")
        query = {"api-version": "2018-02-01", "resource": _STORAGE}
        if os.environ.get("AZURE_CLIENT_ID"):
            query["client_id"] = os.environ["AZURE_CLIENT_ID"]
        url = f"{host}{_MACHINE_PATH}?{urlencode(query, quote_via=quote)}"
        client = HttpClient(replace(self.client.settings, connect_timeout_s=_MACHINE_PATIENCE_S))
        try:
            service = Service(client, cancellation, subject, explain=explain)
            return read_token(service.get_json(url, (("Metadata", "true"),)), display_url(url))
        finally:
            client.close()


def _check_authority(authority: str) -> None:
    try:
        parts = urlsplit(authority)
    except ValueError as error:
        raise _bad("AZURE_AUTHORITY_HOST: expected https://host, found no URL") from error
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise _bad(f"AZURE_AUTHORITY_HOST: expected https://host, found {display_url(authority)[:200]}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _bad(f"AZURE_FEDERATED_TOKEN_FILE: {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise _bad(f"AZURE_FEDERATED_TOKEN_FILE: expected at most {_MAX_FILE_BYTES} bytes in {path}, found more")
    return data.decode("utf-8", errors="replace").strip()


def _bad(problem: str) -> Permanent:
    return Permanent("bad_credentials", problem, "correct the variable, or the label of the pod that sets it")
