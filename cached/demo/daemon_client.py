"""Talk to the demo's processes as anybody could: HTTP on loopback.

Law: standard library, no proxy, short timeouts; a door that does not answer yet is a plain False.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from contextlib import closing
from typing import Any

from cached.contract.errors import Permanent

Address = tuple[str, int]
HOST = "127.0.0.1"
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)")


def url(address: Address, path: str = "") -> str:
    """`http://HOST:PORT/path`."""
    return f"http://{address[0]}:{address[1]}{path}"


def spell(address: Address) -> str:
    """`HOST:PORT`, as `--listen` reads it."""
    return f"{address[0]}:{address[1]}"


def free_address(preferred_port: int) -> Address:
    """An address of this machine that nobody listens on: the preferred port if it is free, else any."""
    for port in (preferred_port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return HOST, probe.getsockname()[1]
    raise Permanent("no_port", f"expected a free port on {HOST}, found none", "end some of what listens there")


def answers(address: Address, path: str) -> bool:
    """Tell whether GET `path` is answered with 200 now."""
    try:
        status, _ = _ask(address, "GET", path, None)
    except (OSError, http.client.HTTPException):
        return False
    return status == 200


def get_text(address: Address, path: str) -> str:
    """The body of GET `path`."""
    return _expect_200(address, "GET", path, None).decode()


def post_json(address: Address, path: str, body: object) -> Any:
    """POST `body` as JSON and read JSON back."""
    return json.loads(_expect_200(address, "POST", path, json.dumps(body).encode()))


def metric(exposition: str, name: str, label: str = "") -> float:
    """The sum of a metric's samples, of those with `label` (as `stage="load"`) if given; 0 where it has none.

    Reads Prometheus' text format.
    """
    samples = (_SAMPLE.match(line) for line in exposition.splitlines())
    return sum(
        float(sample["value"])
        for sample in samples
        if sample is not None and sample["name"] == name and label in (sample["labels"] or "")
    )


def _expect_200(address: Address, method: str, path: str, body: bytes | None) -> bytes:
    try:
        status, data = _ask(address, method, path, body)
    except (OSError, http.client.HTTPException) as error:
        raise Permanent("demo_answer", f"{method} {url(address, path)}: {error}", "look at its log") from error
    if status != 200:
        said = data[:300].decode(errors="replace")
        message = f"{method} {url(address, path)}: expected status 200, found {status}: {said}"
        raise Permanent("demo_answer", message, "look at its log")
    return data


def _ask(address: Address, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(*address, timeout=30)) as connection:
        connection.request(method, path, body, {} if body is None else {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
