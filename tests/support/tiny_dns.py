"""A name server for clusters that have none: A records of names in a JSON file, read at each question. Runs in a pod.

The file is {name: [IPv4 address, …]}, with names in full. Of a name that is not there it says so; of another type, that
there is nothing of it. Standard library only: it is started as `python3 -c` with this file's text.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys
from pathlib import Path

_HEAD = struct.Struct(">6H")
_RECORD = struct.Struct(">3HIH")
_A, _INTERNET, _TTL_S = 1, 1, 5
_RESPONSE, _NO_SUCH_NAME = 0x8580, 3  # authoritative, recursion available


def answer(question: bytes, names: dict[str, list[str]]) -> bytes:
    """Return the response to a query of one question."""
    number = _HEAD.unpack_from(question)[0]
    at, labels = _HEAD.size, []
    while size := question[at]:
        labels.append(question[at + 1 : at + 1 + size].decode())
        at += 1 + size
    kind = struct.unpack_from(">H", question, at + 1)[0]
    asked = question[_HEAD.size : at + 5]
    found = names.get(".".join(labels).lower())
    addresses = (found or []) if kind == _A else []
    records = [
        _RECORD.pack(0xC000 | _HEAD.size, _A, _INTERNET, _TTL_S, 4) + ipaddress.IPv4Address(address).packed
        for address in addresses
    ]
    status = _RESPONSE | (_NO_SUCH_NAME if found is None else 0)
    return _HEAD.pack(number, status, 1, len(records), 0, 0) + asked + b"".join(records)


def serve(port: int, file: Path) -> None:
    """Answer for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", port))
        while True:
            question, asker = server.recvfrom(4096)
            names = json.loads(file.read_text()) if file.exists() else {}
            server.sendto(answer(question, names), asker)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
