"""An origin that counts what it sends to whom: files of a folder over HTTP, with ranges and ETags. Runs in a pod.

`GET /-/sent` is what was sent since the last reset, `GET /-/reset` forgets it. `GET /-/cut/ADDRESS/END` closes, from
now on, every connection from that address that asks for a file whose name ends so; without END, any. Standard library
only: it is started as `python3 -c` with this file's text.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_COPIED_AT_ONCE = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """One connection. The state is the server's, of all connections."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    lock = threading.Lock()
    sent: list[dict[str, object]] = []  # noqa: RUF012
    cut: dict[str, str] = {}  # noqa: RUF012

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: what counts is in `sent`."""

    def _answer(self, *, has_body: bool) -> None:
        if self.path.startswith("/-/"):
            self._control(*self.path[3:].split("/"))
        elif self.path.endswith(self.cut.get(self.client_address[0], "\0")):
            self.close_connection = True  # as a network that carries nothing any more
        else:
            self._send_file(self.folder / self.path.lstrip("/"), has_body=has_body)

    def _control(self, word: str, address: str = "", end: str = "") -> None:
        with self.lock:
            body = json.dumps(self.sent).encode()
            if word == "reset":
                self.sent.clear()
                self.cut.clear()
            elif word == "cut":
                self.cut[address] = end
        self._send_head(200, len(body), [])
        self.wfile.write(body)

    def _send_file(self, path: Path, *, has_body: bool) -> None:
        if not path.is_file():
            self._send_head(404, 0, [])
            return
        found = path.stat()
        first, last = 0, found.st_size - 1
        headers = [("ETag", f'"{found.st_size}-{found.st_mtime_ns}"'), ("Accept-Ranges", "bytes")]
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(last, int(asked[2] or last))
            headers.append(("Content-Range", f"bytes {first}-{last}/{found.st_size}"))
        self._send_head(206 if asked else 200, last - first + 1, headers)
        if has_body:
            self._copy(path, first, last - first + 1)

    def _copy(self, path: Path, first: int, left: int) -> None:
        sent = 0
        try:
            with path.open("rb") as file:
                file.seek(first)
                while left and (data := file.read(min(left, _COPIED_AT_ONCE))):
                    self.wfile.write(data)
                    sent, left = sent + len(data), left - len(data)
        finally:
            with self.lock:
                self.sent.append({"to": self.client_address[0], "path": self.path, "bytes": sent})

    def _send_head(self, status: int, length: int, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[2])
    os.makedirs(Handler.folder, exist_ok=True)
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
