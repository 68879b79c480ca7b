"""Many versions at once."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, publish_files, write_files
from tests.support.stores import fill_root

COUNT = 50
AT_ONCE = 16  # prefetches of small files that run when the pull comes


pytestmark = [pytest.mark.long, pytest.mark.in_memory]


def test_many_versions_arrive_and_a_pull_goes_ahead(daemon: DaemonProcess, source: Path) -> None:
    """Fifty prefetched versions all become ready; one that is pulled at the same time does not wait for them all."""
    versions = {}
    for number in range(COUNT):
        files = {f"{name}.bin": random.Random(f"{number}{name}").randbytes(60_000) for name in "abc"}
        (publish_files if number % 2 else write_files)(source / str(number), files)
        versions[f"v{number}"] = {"source": f"file://{source}/{number}"}
    daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": list(versions)}}})
    daemon.start("--max-bandwidth", "2MiB/s")
    refs = [ModelRef("m", version) for version in versions]
    daemon.wait(lambda: daemon.state(refs[0]) == "ready", "the first")
    daemon.pull(f"m@v{COUNT - 1}")
    before = len(_ready(daemon))
    daemon.wait_ready(*refs)
    # In the order of the log: how much later this test looks at anything does not matter.
    assert _ready(daemon).index(f"v{COUNT - 1}") <= before + AT_ONCE
    assert daemon.metric("holdfast_fetch_bytes_total") == COUNT * 180_000
    assert daemon.metric("holdfast_requests_total", result="miss") == COUNT
    assert daemon.metric("holdfast_requests_total") == COUNT + 1
    assert "WARNING" not in daemon.log()


def _ready(daemon: DaemonProcess) -> list[str]:
    """The versions that became ready, in order."""
    return re.findall(r" m@(\w+): ready, ", daemon.log())


def test_a_node_full_of_versions_is_ready_again(daemon: DaemonProcess) -> None:
    """Hundreds of versions are ready after a start, while the listeners answer; nothing is hashed or fetched."""
    published = fill_root(daemon.layout, versions=150, files=20)
    daemon.write_catalog(
        {
            ref.name: {
                "versions": {ref.version: {"source": "http://127.0.0.1:9/", "digest": str(digest)}},
                "prefetch": {"versions": [ref.version]},
            }
            for ref, digest in published.items()
        }
    )
    daemon.start()
    models = daemon.document()["models"]
    assert {(item["model"], item["state"]) for item in models} == {(ref.name, "ready") for ref in published}
    daemon.wait(lambda: daemon.metric("holdfast_model_pinned") == len(published), "all pinned")
    assert daemon.metric("holdfast_requests_total", result="hit") == len(published)
    assert daemon.metric("holdfast_fetch_bytes_total") == 0
    assert "WARNING" not in daemon.log()
