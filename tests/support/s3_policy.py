"""A proxy before an S3 server that denies what a bucket's policy would."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.support.http_server import serve_http

Policy = Callable[[str, str, Mapping[str, str]], bool]  # method, path and query, headers: is it allowed?
Change = Callable[[str, str, bytes], bytes]  # method, path and query, body: what arrives
_DENIED = b"<Error><Code>AccessDenied</Code><Message>explicit deny in a resource-based policy</Message></Error>"
_HOPS = frozenset({"transfer-encoding", "connection", "content-length"})


def requester_pays(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Every request says who pays."""
    return headers.get("x-amz-request-payer") == "requester"


def encrypted_with(algorithm: str, key_id: str | None = None) -> Policy:
    """What makes an object names its encryption."""

    def policy(method: str, path: str, headers: Mapping[str, str]) -> bool:
        makes = (method == "PUT" and "partNumber" not in path) or (method == "POST" and "uploads" in path)
        given = headers.get("x-amz-server-side-encryption"), headers.get("x-amz-server-side-encryption-aws-kms-key-id")
        return not makes or given == (algorithm, key_id)

    return policy


def everything(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Nothing is denied."""
    return True


def unchanged(method: str, path: str, body: bytes) -> bytes:
    """Every request's body goes on as it came."""
    return body


@contextmanager
def guarded(url: str, policy: Policy, change: Change = unchanged) -> Iterator[str]:
    """The address of a proxy to `url` that answers 403 to what `policy` does not allow, and may change bodies."""
    upstream = urlsplit(url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            if not policy(self.command, self.path, headers):
                self.answer(403, [("Content-Type", "application/xml")], _DENIED)
                return
            connection = http.client.HTTPConnection(upstream, timeout=120)
            try:
                connection.request(self.command, self.path, change(self.command, self.path, body), headers)
                answer = connection.getresponse()
                kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOPS]
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self.answer(answer.status, kept, answer.read(), length)
            finally:
                connection.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    with serve_http(Handler) as host:
        yield f"http://{host}"
