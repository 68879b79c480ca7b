"""The connections of a publish to a store over HTTP, and the errors of those that break.

Law: a name is resolved and a connection opened within a limit; certificates are checked with SSL_CERT_FILE and
SSL_CERT_DIR, as the HTTP client of the sources does.
"""

from __future__ import annotations

import ssl
from http.client import HTTPMessage

import aiohttp

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.program import limits
from cached.transport.connection.resolver import BoundedResolver
from cached.transport.connection.settings import HttpSettings

_CONNECT_TIMEOUT_S = 9.0


def open_session(limit: int, *, read_timeout_s: float, timeout_s: float | None = None) -> aiohttp.ClientSession:
    """Open a session of at most `limit` connections, each of which may be silent for `read_timeout_s`; a request
    may take `timeout_s` in all."""
    connector = aiohttp.TCPConnector(
        limit=limit, ssl=ssl.create_default_context(), resolver=BoundedResolver(_CONNECT_TIMEOUT_S)
    )
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S, sock_read=read_timeout_s)
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=True, headers={"User-Agent": HttpSettings().user_agent}
    )


def broken(error: Exception, where: str) -> HoldfastError:
    """Return our error of a request without an answer: aiohttp's, a timeout or an OSError."""
    short = limits.find_limit_error(error, where)
    if short is not None:
        return short
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Permanent(
            "tls_verification",
            f"{where}: its certificate is not trusted",
            "name the file of the authority that signed it in SSL_CERT_FILE",
        )
    if isinstance(error, TimeoutError):
        return Transient("stalled", f"{where}: no answer in time", "publish again; look at the network to that host")
    code = "connect" if isinstance(error, aiohttp.ClientConnectorError) else "reset"
    reason = getattr(error, "strerror", None) or type(error).__name__
    return Transient(code, f"{where}: no connection, or it broke ({reason})", "publish again; check the network")


def headers_of(answer: aiohttp.ClientResponse) -> HTTPMessage:
    """Return the headers of an answer, all lines of each name."""
    headers = HTTPMessage()
    for name, value in answer.headers.items():
        headers[name] = value
    return headers
