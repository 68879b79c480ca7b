"""A token server for a real registry: signs what the Distribution project's "Token Authentication" asks for.

Law: a certificate of its own, real sockets on 127.0.0.1. Knows one user; a request without a login gets a token without
rights, as public token servers answer.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509 import load_pem_x509_certificate

from tests.support.certificates import self_signed
from tests.support.http_server import serve_http

ISSUER, SERVICE = "holdfast-tests", "registry.test"
USER, PASSWORD, IDENTITY = "robot$reader", "p:ss-wörd", "identity-of-the-robot"


@dataclass
class RegistryTokens:
    """What it gave and saw. `lifetime_s`: of the next tokens; `says`: whether it names that as `expires_in`; `actions`:
    the rights that a login has."""

    certificate: Path
    url: str = ""
    lifetime_s: float = 300.0
    says: bool = True
    actions: tuple[str, ...] = ("pull", "push", "delete")
    issued: list[str] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def settings(self) -> str:
        """The registry's configuration for this server."""
        realm, bundle = f"{self.url}/token", json.dumps(str(self.certificate))
        return f"auth: {{token: {{realm: {realm}, service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {bundle}}}}}"


@contextmanager
def registry_tokens(folder: Path) -> Iterator[RegistryTokens]:
    """Serve until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    key = rsa.generate_private_key(65537, 2048)
    certificate = folder / "tokens.pem"
    certificate.write_bytes(self_signed(key))
    state = RegistryTokens(certificate)
    der = load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}

    def sign(claims: dict[str, Any]) -> str:
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        return f"{text}.{_base64url(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            given = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            login = self.headers.get("Authorization", "").removeprefix("Basic ")
            expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            self._answer(given, known=login == expected, anonymous=not login)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            given = {name: values[0] for name, values in parse_qs(body).items()}
            self._answer(given, known=given.get("refresh_token") == IDENTITY, anonymous=False)

        def _answer(self, given: dict[str, str], *, known: bool, anonymous: bool) -> None:
            with state.lock:
                state.asked.append(given)
            if not known and not anonymous:
                self._send(401, {"details": "incorrect username or password"})
                return
            kind, name, actions = given["scope"].split(":")
            granted = [each for each in actions.split(",") if known and each in state.actions]
            now = int(time.time())
            claims = {
                **{"iss": ISSUER, "sub": USER if known else "", "aud": given["service"], "jti": uuid4().hex},
                **{"iat": now - 1, "nbf": now - 1, "exp": now + max(1, round(state.lifetime_s))},
                "access": [{"type": kind, "name": name, "actions": granted}] if granted else [],
            }
            token = sign(claims)
            with state.lock:
                state.issued.append(token)
            self._send(200, {"token": token, **({"expires_in": state.lifetime_s} if state.says else {})})

        def _send(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serve_http(Handler) as host:
        state.url = f"http://{host}"
        yield state


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
