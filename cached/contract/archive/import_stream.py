"""The stream of an import: how a client hands a version to the daemon, over the connection of its request.

Law: standard library only. After 101 the client sends the length of the manifest in decimal and a newline, and the
manifest; the daemon answers with a line of JSON, `{"need": [sha256, …]}`, the blobs that it lacks. Of these the client
sends each as its sha256, a newline and its bytes, in any order, and at last `done` and a newline, once all that it has
read was right. The daemon publishes only after that, and answers with a line of JSON, `{"digest": …}`. At any time it
may answer `{"error": {code, message, remedy, permanent}}` instead and hang up; nothing is published then, nor if the
client hangs up before `done`.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import MAX_MANIFEST_BYTES

PROTOCOL = "holdfast-import"
DONE = "done"
IMPORTED, IMPORT_KIND = "an imported archive", "import"  # the source of such a version: in its status, in metrics
_MAX_LINE_BYTES = 2 * MAX_MANIFEST_BYTES  # of the blobs that are needed: 67 bytes each, of a manifest's 100 and more


def send_line(stream: socket.socket, text: str) -> None:
    """Send one line. Raises OSError."""
    stream.sendall(f"{text}\n".encode())


def send_document(stream: socket.socket, document: dict[str, Any]) -> None:
    """Send one line of JSON. Raises OSError."""
    send_line(stream, json.dumps(document))


def send_error(stream: socket.socket, error: HoldfastError) -> None:
    """Send an error in place of an answer. Raises OSError."""
    fields = ("code", "message", "remedy", "permanent")
    send_document(stream, {"error": {field: getattr(error, field) for field in fields}})


class LineReader:
    """Reads lines and bytes of a blocking stream. Raises OSError, and `Transient` (`hung_up`) at its early end."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._ahead = b""

    def read_line(self, max_bytes: int = _MAX_LINE_BYTES) -> str:
        """Return the next line; raises `Permanent` (`bad_request`) for a longer one, or one that is not ASCII."""
        pieces = [self._ahead]
        while b"\n" not in pieces[-1]:
            if sum(map(len, pieces)) > max_bytes:
                raise Permanent(
                    "bad_request", f"a line of more than {max_bytes} bytes", "use the client of this release"
                )
            pieces.append(self._receive(1 << 16))
        line, _, self._ahead = b"".join(pieces).partition(b"\n")
        try:
            return line.decode("ascii")
        except UnicodeDecodeError as error:
            raise Permanent("bad_request", f"a line that is not text: {line[:40]!r}", "send it again") from error

    def read_document(self) -> dict[str, Any]:
        """Return the JSON object of the next line; raises the error that it may be."""
        try:
            document = json.loads(self.read_line())
        except (ValueError, RecursionError) as error:
            raise Permanent("bad_answer", f"the daemon's answer is not JSON: {error}", "look at its log") from error
        if not isinstance(document, dict):
            raise Permanent("bad_answer", f"expected an object, found {document!r:.100}", "look at the daemon's log")
        if isinstance(found := document.get("error"), dict):
            kind = Permanent if found["permanent"] else Transient
            raise kind(found["code"], found["message"], found["remedy"])
        return document

    def read_into(self, buffer: memoryview) -> int:
        """Read what is there, at least one byte of a non-empty buffer; return the number of bytes."""
        if self._ahead:
            taken = min(len(buffer), len(self._ahead))
            buffer[:taken], self._ahead = self._ahead[:taken], self._ahead[taken:]
            return taken
        taken = self._stream.recv_into(buffer)
        if not taken:
            raise _hung_up()
        return taken

    def _receive(self, size: int) -> bytes:
        data = self._stream.recv(size)
        if not data:
            raise _hung_up()
        return data


def _hung_up() -> Transient:
    return Transient(
        "hung_up", "the other side hung up before the import was over", "see why it ended, and import again"
    )
