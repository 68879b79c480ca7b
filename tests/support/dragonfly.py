"""A stand-in for the HTTP proxy of Dragonfly's dfdaemon, and for the tasks that the daemons of a cluster share.

Written from dragonflyoss/client 1.5.1 (commit ff17c0b): `dragonfly-client/src/proxy/mod.rs` (`handler`,
`registry_mirror_http_handler`, `http_handler`, `proxy_via_dfdaemon`, `make_download_task_request`,
`make_response_headers`, `make_error_response`), `proxy/header.rs`, `dragonfly-client-util/src/id_generator/mod.rs`
(`task_id`) and `dragonfly-client-backend/src/http.rs` (redirects are followed, certificates are not verified).

What is left out: pieces, schedulers, and CONNECT with its own certificates, which nothing here asks for.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tests.support.http_server import QuietServer, make_range_reply, serve_http

# `default_proxy_rule_filtered_query_params`: of S3, GCS and OSS; those of OBS and COS are like them.
_FILTERED = frozenset(
    {f"X-Amz-{name}" for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")}
    | {f"X-Goog-{name}" for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")}
    | {"X-Amz-Security-Token", "X-Amz-User-Agent", "OSSAccessKeyId", "Expires", "Signature", "SecurityToken", "ns"}
)


@dataclass(frozen=True)
class Asked:
    """A request to a dfdaemon; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Task:
    """What is known of a task: its bytes, and the origin's headers."""

    data: bytes
    headers: dict[str, str]


@dataclass
class Cluster:
    """The tasks that dfdaemons share. `refusal`: the status and the kind of error that all answers are; `truncates`:
    bodies end early."""

    tasks: dict[str, Task] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)  # URLs that were asked of an origin
    refusal: tuple[int, str] | None = None
    truncates: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def corrupt(self) -> None:
        """Change a byte of every task, as a failing disk of a node does: pieces have a CRC32 on the wire only."""
        with self.lock:
            for task in self.tasks.values():
                task.data = bytes([task.data[0] ^ 1]) + task.data[1:]


@contextmanager
def serve_dfdaemon(cluster: Cluster) -> Iterator[str]:
    """Run one dfdaemon's proxy; yields its `http://127.0.0.1:PORT`."""

    class Handler(_Handler):
        shared = cluster

    with serve_http(Handler, _JoinedServer) as address:
        yield f"http://{address}"


class _JoinedServer(QuietServer):
    daemon_threads = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    shared: Cluster

    def do_GET(self) -> None:
        cluster = self.shared
        headers = {name.lower(): value for name, value in self.headers.items()}
        cluster.requests.append(Asked(self.command, self.path, headers))
        if cluster.refusal is not None:
            status, kind = cluster.refusal
            self._answer(status, {"X-Dragonfly-Error-Type": kind} if kind else {}, b"")
            return
        # Without a host in the request line it is a mirror's request, and the header names the registry.
        url = self.path if "://" in self.path else headers["x-dragonfly-registry"] + self.path
        if headers.get("x-dragonfly-use-p2p", "").lower() != "true":
            answer = _ask_origin(url, self.headers)
            self._answer(answer[0], answer[1], answer[2])
            return
        id_ = _task_id(url, headers)
        with cluster.lock:
            task = cluster.tasks.get(id_)
            if task is None:
                asked = headers.get("x-dragonfly-prefetch", "").lower() == "true"
                assert asked or "range" not in headers, "the stand-in fetches whole tasks only"
                cluster.fetched.append(url)
                status, found, data = _ask_origin(url, self.headers)
                if status != 200:
                    self._answer(status, found | {"X-Dragonfly-Error-Type": "backend"}, b"")
                    return
                task = cluster.tasks[id_] = Task(data, found)
        status, told, body = make_range_reply(task.data, headers.get("range", ""), dict(task.headers))
        told |= {"X-Dragonfly-Task-ID": id_, "X-Dragonfly-Server-IP": "127.0.0.1"}
        self._answer(status, told, body)

    do_HEAD = do_POST = do_GET

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.shared.truncates:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def _task_id(url: str, headers: Mapping[str, str]) -> str:
    content = headers.get("x-dragonfly-content-for-calculating-task-id")
    if content is not None:
        return hashlib.sha256(content.encode()).hexdigest()
    filtered = headers.get("x-dragonfly-filtered-query-params")
    dropped = _FILTERED if filtered is None else {each.strip() for each in filtered.split(",")}
    parts = urlsplit(url)
    query = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] not in dropped])
    named = urlunsplit(parts._replace(query=query)) + headers.get("x-dragonfly-tag", "")
    return hashlib.sha256((named + headers.get("x-dragonfly-application", "") + "STANDARD").encode()).hexdigest()


def _ask_origin(url: str, given: Message) -> tuple[int, dict[str, str], bytes]:
    """Fetch a whole resource as dfdaemon's backend does: with the client's headers but `Host` and the range, without a
    check of certificates, and over redirects."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    kept = {name: value for name, value in given.items() if name.lower() not in ("host", "range")}
    try:
        with opener.open(urllib.request.Request(url, headers=kept), timeout=5) as answer:
            return answer.status, _passed_on(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _passed_on(error.headers), b""
    except (OSError, http.client.HTTPException):
        return 500, {}, b""


def _passed_on(headers: Message) -> dict[str, str]:
    dropped = ("content-length", "content-range", "transfer-encoding", "connection", "server", "date")
    return {name: value for name, value in headers.items() if name.lower() not in dropped}
