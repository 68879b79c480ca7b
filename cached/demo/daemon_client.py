"""HTTP requests of the demo to its own processes, on loopback.

Law: standard library, no proxy, 30 s a request; every failure is `Permanent`.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from contextlib import closing

from cached.contract.errors import Permanent

Address = tuple[str, int]
HOST = "127.0.0.1"


def free_address(preferred_port: int) -> Address:
    """Return an address without a listener: the preferred port if it is free, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred_port))
        except OSError:
            probe.bind((HOST, 0))
        return HOST, probe.getsockname()[1]


def answers(address: Address, path: str) -> bool:
    """Tell whether GET `path` returns 200 now."""
    try:
        return bool(ask(address, path))
    except Permanent:
        return False


def ask(address: Address, path: str, body: object = None) -> str:
    """Return the text of GET `path`, or of POST with `body` as JSON; raises `Permanent` unless the status is 200."""
    method, sent = ("GET", None) if body is None else ("POST", json.dumps(body))
    url = f"{method} http://{address[0]}:{address[1]}{path}"
    try:
        with closing(http.client.HTTPConnection(*address, timeout=30)) as connection:
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Permanent("demo_answer", f"{url}: {error}", "look at its log") from error
    if response.status != 200:
        found = f"{url}: expected status 200, found {response.status}: {text[:300]}"
        raise Permanent("demo_answer", found, "look at its log")
    return text


def metric(exposition: str, name: str, label: str = "") -> float:
    """Sum a metric's samples in Prometheus' text format, or those with `label` (as `stage="load"`); 0 without any."""
    samples = (line for line in exposition.splitlines() if re.match(rf"{name}[{{ ]", line) and label in line)
    return sum(float(line.rpartition(" ")[2]) for line in samples)
