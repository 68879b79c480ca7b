"""The credential files of Google Cloud ("application default credentials"), each as a way to ask for a token.

Law: a file is read anew for each token, so that a rotated one applies at once. A secret goes to the token endpoint that
its file names, over TLS (or to loopback), and is never in a message. Formats: google.aip.dev/auth, 4110 to 4117; RFC
8693 for the exchange of tokens.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cached.contract.errors import Permanent, Transient
from cached.sources.oauth import explain_refusal, read_token
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.ssrf import is_loopback
from cached.transport.credentials import basic
from cached.transport.service.requests import Service
from cached.transport.service.tokens import Token
from cached.transport.urls import display_url

_MAX_FILE_BYTES = 1024 * 1024
_ENDPOINT = "https://oauth2.googleapis.com/token"
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_REQUESTED_TYPE = "urn:ietf:params:oauth:token-type:access_token"
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"  # what an impersonation asks for
_ASSERTION_S = 3600
_REMEDY = "check the credential file, and that its account or pool may still be used"
_FORMS = "external_account, authorized_user, service_account or impersonated_service_account"


@dataclass(frozen=True, slots=True)
class CredentialFile:
    """One credential file. `scope`: what its tokens are for."""

    path: Path
    scope: str
    client: HttpClient

    def issue(self, cancellation: Cancellation) -> Token:
        """Ask for a token. Raises `Permanent` (`unauthorized`, `bad_credentials`) and `Transient`."""
        subject = f"the Google credentials {self.path}"
        service = Service(self.client, cancellation, subject, explain=explain_refusal(subject, _REMEDY))
        return _Issue(service, self.path, self.scope).by_type(_read_json(self.path))


@dataclass(frozen=True, slots=True)
class _Issue:
    service: Service
    path: Path
    scope: str

    def by_type(self, info: dict[str, Any]) -> Token:
        kind = info.get("type")
        if kind == "external_account":
            return self._external_account(info)
        if kind == "authorized_user":
            return self._authorized_user(info)
        if kind == "service_account":
            return self._service_account(info)
        if kind == "impersonated_service_account":
            source = info.get("source_credentials")
            if not isinstance(source, dict) or source.get("type") == kind:
                raise self._bad("expected source_credentials of another type in it")
            inner = _Issue(self.service, self.path, _PLATFORM).by_type(source)
            delegates = info.get("delegates")
            return self._impersonate(info, inner, delegates if isinstance(delegates, list) else [])
        raise self._bad(f"expected the type {_FORMS}, found {str(kind)[:40]!r}")

    def _external_account(self, info: dict[str, Any]) -> Token:
        impersonated = "service_account_impersonation_url" in info
        fields = {
            "grant_type": _EXCHANGE,
            "audience": self._text(info, "audience"),
            "scope": _PLATFORM if impersonated else self.scope,
            "requested_token_type": _REQUESTED_TYPE,
            "subject_token": self._subject_token(info),
            "subject_token_type": self._text(info, "subject_token_type"),
        }
        headers: tuple[tuple[str, str], ...] = ()
        if "client_id" in info:
            headers = (("Authorization", basic(str(info["client_id"]), str(info.get("client_secret", "")))),)
        elif "workforce_pool_user_project" in info:
            fields["options"] = json.dumps({"userProject": str(info["workforce_pool_user_project"])})
        url = self._secure(self._text(info, "token_url"))
        token = read_token(self.service.post_form(url, fields, headers), display_url(url))
        return self._impersonate(info, token, []) if impersonated else token

    def _subject_token(self, info: dict[str, Any]) -> str:
        """Return the token of the identity outside Google Cloud: from a file, or from a local service."""
        source = info.get("credential_source")
        if not isinstance(source, dict):
            raise self._bad("expected credential_source in it")
        if isinstance(source.get("file"), str):
            found = _read(Path(source["file"]))
        elif isinstance(source.get("url"), str) and "environment_id" not in source:
            headers = tuple((str(name), str(value)) for name, value in _section(source, "headers").items())
            found = self.service.get(source["url"], headers, _MAX_FILE_BYTES).body
        else:
            raise self._bad(
                "expected a credential_source with a file or a url, found another (an executable, or AWS), which is "
                "not supported"
            )
        form = _section(source, "format")
        if form.get("type", "text") == "text":
            return found.decode("utf-8", errors="replace").strip()
        try:
            return str(json.loads(found)[form["subject_token_field_name"]])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise self._bad("expected a JSON object with the subject token in its credential_source") from error

    def _impersonate(self, info: dict[str, Any], token: Token, delegates: list[Any]) -> Token:
        """Exchange a token for one of the service account that the file names (IAM Credentials API)."""
        url = self._secure(self._text(info, "service_account_impersonation_url"))
        lifetime_s = _section(info, "service_account_impersonation").get("token_lifetime_seconds", 3600)
        asked = {"delegates": delegates, "scope": [self.scope], "lifetime": f"{lifetime_s}s"}
        answer = self.service.post_json(url, asked, (("Authorization", f"Bearer {token.value}"),))
        value = answer.get("accessToken") if isinstance(answer, dict) else None
        if not isinstance(value, str) or not value:
            raise Transient("bad_response", f"{display_url(url)}: expected an accessToken, found none", _REMEDY)
        return Token(value, _until(answer.get("expireTime")))

    def _authorized_user(self, info: dict[str, Any]) -> Token:
        fields = {name: self._text(info, name) for name in ("client_id", "client_secret", "refresh_token")}
        url = self._secure(str(info.get("token_uri") or _ENDPOINT))
        answer = self.service.post_form(url, {"grant_type": "refresh_token", **fields})
        return read_token(answer, display_url(url))

    def _service_account(self, info: dict[str, Any]) -> Token:
        url = self._secure(str(info.get("token_uri") or _ENDPOINT))
        now = int(time.time())
        header = {"alg": "RS256", "typ": "JWT", "kid": str(info.get("private_key_id", ""))}
        claims = {
            "iss": self._text(info, "client_email"),
            "scope": self.scope,
            "aud": str(info.get("token_uri") or _ENDPOINT),
            "iat": now,
            "exp": now + _ASSERTION_S,
        }
        signed = f"{_encoded(header)}.{_encoded(claims)}"
        assertion = f"{signed}.{_url_safe(self._sign(self._text(info, 'private_key'), signed.encode()))}"
        answer = self.service.post_form(url, {"grant_type": _JWT_BEARER, "assertion": assertion})
        return read_token(answer, display_url(url))

    def _sign(self, key: str, data: bytes) -> bytes:
        try:
            from cryptography.hazmat.primitives import hashes, serialization
            from cryptography.hazmat.primitives.asymmetric import padding, rsa
        except ImportError as error:
            raise Permanent(
                "missing_extra",
                f"the Google credentials {self.path}: expected the Python package cryptography to sign with this key "
                "file, found none",
                "install it: `pip install 'holdfast[gcs-keys]'`; better, use workload identity, which needs no key",
            ) from error
        try:
            private = serialization.load_pem_private_key(key.encode(), password=None)
        except (ValueError, TypeError) as error:
            raise self._bad("expected private_key to be a key in PEM, found something else") from error
        if not isinstance(private, rsa.RSAPrivateKey):
            raise self._bad("expected private_key to be an RSA key, found another kind")
        return private.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def _text(self, info: dict[str, Any], name: str) -> str:
        value = info.get(name)
        if not isinstance(value, str) or not value:
            raise self._bad(f"expected {name} in it, found none")
        return value

    def _secure(self, url: str) -> str:
        """Return `url` if a secret may be sent there."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise self._bad("expected an https:// address of a token endpoint, found no URL") from error
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise self._bad(f"expected an https:// address of a token endpoint, found {display_url(url)[:200]}")
        return url

    def _bad(self, problem: str) -> Permanent:
        return _bad_file(self.path, problem)


def _section(info: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object in the file; an empty one if there is none."""
    found = info.get(name)
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise _bad_file(path, "expected JSON, found something else") from error
    if not isinstance(found, dict):
        raise _bad_file(path, "expected a JSON object, found something else")
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # the latter for a path with a zero byte
        raise _bad_file(path, f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise _bad_file(path, f"expected at most {_MAX_FILE_BYTES} bytes, found more")
    return data


def _bad_file(path: Path, problem: str) -> Permanent:
    return Permanent(
        "bad_credentials",
        f"the Google credentials {path}: {problem}",
        "correct the file, or point GOOGLE_APPLICATION_CREDENTIALS at another one",
    )


def _until(at: object) -> float | None:
    """Return the seconds until an RFC 3339 time; None for anything else."""
    try:
        end = datetime.fromisoformat(str(at)).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, end - time.time())


def _encoded(document: Mapping[str, object]) -> str:
    return _url_safe(json.dumps(document, separators=(",", ":")).encode())


def _url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
