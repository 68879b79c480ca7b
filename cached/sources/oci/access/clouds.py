"""Logins that a cloud gives to its own machines and pods: Amazon ECR, Google Artifact Registry, Azure's registry.

Law: asked only for a registry of that cloud, and only where Docker's configuration has no login for it. Without an
identity of the cloud there is no login: a public repository is read without one. Sources: ECR GetAuthorizationToken (12
hours); Google, "Access token authentication" (the user `oauth2accesstoken`); Azure/acr, "AAD-OAuth.md" (an Entra token
is exchanged for a refresh token of the registry, at the registry itself).
"""

from __future__ import annotations

import base64
import os
import re
import time
from pathlib import Path
from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.oci.access.logins import Login
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.requests import Service

_ECR = re.compile(r"(\d{12})\.dkr[.-]ecr(-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|on\.aws)")
_GOOGLE = re.compile(r"(?:[a-z0-9-]+-docker\.pkg\.dev|(?:[a-z]+\.)?gcr\.io)")
_AZURE = re.compile(r"[a-z0-9-]+\.azurecr\.(?:io|cn|us)")
_ECR_CONNECT_S, _ECR_READ_S = 4, 10  # twice: a host that cannot be reached is told within 10 s
_GOOGLE_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
_AZURE_IMDS = "http://169.254.169.254/metadata/identity/oauth2/token"
_AZURE_RESOURCE = "https://containerregistry.azure.net"
_AZURE_REFRESH_S = 3 * 3600.0  # of the registry's refresh token
_ABSENT = frozenset({"connect", "stalled", "reset", "not_found"})


def find_cloud_login(host: str, origin: str, client: HttpClient, cancellation: Cancellation) -> Login | None:
    """Return the login that the cloud of the registry `host` gives this process; None for another registry, or without
    an identity. `origin`: where the registry is asked, `https://host`. Raises `HoldfastError`."""
    ecr = _ECR.fullmatch(host)
    if ecr is not None:
        return _ecr_login(host, account=ecr[1], region=ecr[3])
    if _GOOGLE.fullmatch(host):
        return _google_login(Service(client, cancellation, host))
    if _AZURE.fullmatch(host):
        return _azure_login(host, origin, Service(client, cancellation, host))
    return None


def _ecr_login(host: str, *, account: str, region: str) -> Login | None:
    import botocore.session  # a second: only where ECR is used
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    from cached.sources.aws_answers import STRANGE, bound_answers

    settings = Config(connect_timeout=_ECR_CONNECT_S, read_timeout=_ECR_READ_S, retries={"total_max_attempts": 2})
    try:
        session = botocore.session.get_session()
        ecr = session.create_client("ecr", region_name=region, config=settings)
        bound_answers(session, ecr, _ECR_CONNECT_S, _ECR_READ_S)
        found = ecr.get_authorization_token(registryIds=[account])["authorizationData"][0]
        user, _, password = base64.b64decode(found["authorizationToken"], validate=True).decode().partition(":")
    except NoCredentialsError:
        return None
    except (ClientError, BotoCoreError, OSError) as error:
        code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
        if code in ("AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException"):
            raise Permanent(
                "forbidden",
                f"{host}: ECR refuses a token for the registry ({code})",
                "allow ecr:GetAuthorizationToken, ecr:BatchGetImage and ecr:GetDownloadUrlForLayer to this role",
            ) from error
        problem = f"{host}: expected a token of ECR, found {code or type(error).__name__}"
        raise Transient("login", problem, "check the way to ECR's API") from error
    except STRANGE as error:
        raise _strange(host, "ECR") from error
    return Login(user, password, lifetime_s=_left_s(found.get("expiresAt")))


def _left_s(ends: Any) -> float | None:
    try:
        return max(0.0, float(ends.timestamp()) - time.time())
    except (AttributeError, ValueError, OverflowError):
        return None


def _google_login(service: Service) -> Login | None:
    metadata = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    try:
        answer = service.get_json(f"http://{metadata}{_GOOGLE_PATH}", (("Metadata-Flavor", "Google"),))
    except HoldfastError as error:
        if error.code in _ABSENT:
            return None
        raise
    return Login("oauth2accesstoken", _text(answer, "access_token", metadata), lifetime_s=_lifetime_s(answer))


def _azure_login(host: str, origin: str, service: Service) -> Login | None:
    entra = _entra_token(service)
    if entra is None:
        return None
    fields = {"grant_type": "access_token", "service": host, "access_token": entra}
    if os.environ.get("AZURE_TENANT_ID"):
        fields["tenant"] = os.environ["AZURE_TENANT_ID"]
    answer = service.post_form(f"{origin}/oauth2/exchange", fields)
    return Login(identity=_text(answer, "refresh_token", host), lifetime_s=_AZURE_REFRESH_S)


def _entra_token(service: Service) -> str | None:
    """Return a token of this workload's (or machine's) identity for Azure's registries; None without an identity."""
    client_id, tenant, file = (
        os.environ.get(name) for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE")
    )
    if client_id and tenant and file:
        authority = os.environ.get("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com").rstrip("/")
        fields = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": _read_token(file),
            "scope": f"{_AZURE_RESOURCE}/.default",
        }
        answer = service.post_form(f"{authority}/{tenant}/oauth2/v2.0/token", fields)
        return _text(answer, "access_token", authority)
    chosen = f"&client_id={client_id}" if client_id else ""
    url = f"{_AZURE_IMDS}?api-version=2018-02-01&resource={_AZURE_RESOURCE}{chosen}"
    try:
        answer = service.get_json(url, (("Metadata", "true"),))
    except HoldfastError as error:
        if error.code in _ABSENT or error.code == "http_400":  # a machine without an identity
            return None
        raise
    return _text(answer, "access_token", "IMDS")


def _read_token(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        problem = f"AZURE_FEDERATED_TOKEN_FILE: {file} cannot be read ({type(error).__name__})"
        raise Permanent("unauthorized", problem, "mount the workload identity's token there") from error


def _text(answer: Any, name: str, where: str) -> str:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value or not value:
        raise _strange(where, f"{name} of the token service")
    return value


def _lifetime_s(answer: Any) -> float | None:
    value = answer.get("expires_in")
    return float(value) if isinstance(value, int | float) and 0 < value < 10**9 else None


def _strange(where: str, what: str) -> Transient:
    problem = f"{where}: expected {what}, found something else"
    return Transient("bad_response", problem, "it is tried again; if it goes on, the service is at fault")
