"""Small requests that fill the servers of benchmarks: registries and emulators of object stores on loopback.

Law: nothing here is measured.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.measure import failed

_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to a request, `METHOD HOST/PATH`."""

    request: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def expect(self, status: int) -> Answer:
        """Return this answer if it has this status. Raises `Permanent` (`bench_failed`) otherwise."""
        if self.status != status:
            raise failed(f"{self.request}: expected {status}, found {self.status} {self.body[:200]!r}")
        return self


def ask(
    host: str, method: str, path: str, data: bytes | Path = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one request to `HOST:PORT`, a file's content where `data` is a path. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(host, timeout=_TIMEOUT_S)
    try:
        if isinstance(data, Path):
            with data.open("rb") as file:
                length = {"Content-Length": str(data.stat().st_size)}
                connection.request(method, path, file, {**(headers or {}), **length})
                answer = connection.getresponse()
        else:
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
        return Answer(f"{method} {host}{path}", answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()
