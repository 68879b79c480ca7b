"""Clients of a Service without kube-proxy, in a pod: they choose among the addresses that a file has.

Law: the standard library alone, for it runs in a pod as `python3 -u - FOLDER`, fed on standard input. In FOLDER,
`endpoints` has `host:port` words; once `stop` exists, one object is printed: `{"answers": [...], "failures": [...]}`.
A kept connection stays with its endpoint until the server ends it, as under kube-proxy; nothing is ever retried.
"""

import http.client
import itertools
import json
import select
import sys
import threading
import time
from pathlib import Path

FOLDER = Path(sys.argv[1])
THINK_S = (0.0, 0.05, 0.4, 3.3)
_turn = itertools.count()


class Client(threading.Thread):
    """One client; every second request streams."""

    def __init__(self, kept: bool, think_s: float) -> None:
        super().__init__()
        self.kept, self.think_s = kept, think_s
        self.answers = 0
        self.failures: list[str] = []
        self.connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        while not (FOLDER / "stop").exists():
            time.sleep(self.think_s)
            try:
                self.ask()
                self.answers += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                peer = self.connection and f"{self.connection.host}:{self.connection.port}"
                self.failures.append(f"{time.strftime('%X')} {peer} kept={self.kept}: {error!r}")
                self.leave()

    def ask(self) -> None:
        if self.connection is not None and self.connection.sock is not None:
            readable, _, _ = select.select([self.connection.sock], [], [], 0)
            if readable:  # the server ended it between two requests, which every client library sees
                self.leave()
        if self.connection is None:
            endpoints = (FOLDER / "endpoints").read_text().split()
            host, _, port = endpoints[next(_turn) % len(endpoints)].rpartition(":")
            self.connection = http.client.HTTPConnection(host, int(port), timeout=120)
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 4, "stream": bool(self.answers % 2)})
        self.connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200 or (self.answers % 2 and b"[DONE]" not in text):
            raise ValueError(f"status {answer.status}: {text[:200]!r}")
        if not self.kept or answer.will_close:
            self.leave()

    def leave(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def main() -> None:
    clients = [Client(kept, think_s) for kept in (True, False) for think_s in THINK_S]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    failures = [failure for client in clients for failure in client.failures]
    print(json.dumps({"answers": [client.answers for client in clients], "failures": failures}))


main()
