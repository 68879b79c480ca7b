"""Whole daemons and a version of many small files: a node that comes later asks the origin for none of them."""

from __future__ import annotations

import hashlib
import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from tests.support.origin import HostileOrigin
from tests.system.peers.test_pool import REF, Neighbourhood

FILES = {f"parts/{n:04}.json": random.Random(n).randbytes(n % 251 + 1) + str(n).encode() for n in range(2000)}


pytestmark = [pytest.mark.long, pytest.mark.in_memory]


def test_small_files_come_from_a_neighbour_together(tmp_path: Path) -> None:
    """Of 2,000 small files the second node asks the origin for none: it lists the version there, and its neighbour
    sends each byte once."""
    with HostileOrigin(host="127.0.0.1") as origin, ExitStack() as stack:
        entries = []
        for name, data in FILES.items():
            origin.put(f"/m/{name}", data)
            entries.append(FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)))
        origin.put(f"/m/{MANIFEST_NAME}", Manifest.build(entries).canonical())
        pool = Neighbourhood(stack, tmp_path, origin, 2)
        first = pool.make(0)
        first.start()
        first.wait_ready(REF)
        time.sleep(1.0)  # that no member has it is remembered for a moment
        asked = len(origin.requests)
        second = pool.make(1)
        second.start()
        second.wait_ready(REF)
        assert [seen.path for seen in origin.requests[asked:] if not seen.path.endswith(MANIFEST_NAME)] == []
        assert {name: data for name, data in second.files(REF).items() if name in FILES} == FILES
        size = sum(map(len, FILES.values()))
        assert second.metric("holdfast_fetch_bytes_total", source="peer") == size
        assert first.metric("holdfast_peer_sent_bytes_total") == size
