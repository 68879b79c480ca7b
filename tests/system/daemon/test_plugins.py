"""Plugins: a package that offers a scheme spoils its own versions, and never the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, publish_files

V1 = ModelRef("tiny", "v1")
FILES = {"config.json": b"{}", "model.bin": b"weights"}
MODULES = {
    "ends_at_import": "import sys\nsys.exit('this package needs a GPU')\n",
    "ends_later": """
import sys
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import identity_of
from cached.transport.target import StreamTarget

class Ends:
    kind = "ends"
    def __init__(self, uri, client, opener):
        self.display = uri
    async def resolve(self):
        if "stream" not in self.display:
            sys.exit(3)
        return Listing((RemoteFile("f.bin", "f", 1, "v"),), identity_of("ends"))
    async def locate(self, file):
        return StreamTarget(lambda cancellation: sys.exit(4))
    async def aclose(self):
        sys.exit(5)
""",
    "blocks": "import threading\nthreading.Event().wait()\n",
}
ENTRY_POINTS = {"early": "ends_at_import:Ends", "later": "ends_later:Ends", "blocks": "blocks:Blocks"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon beside which a package with these plugins is installed."""
    site = tmp_path / "site"
    folder = site / "strange-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    lines = "\n".join(f"{scheme} = {value}" for scheme, value in ENTRY_POINTS.items())
    (folder / "entry_points.txt").write_text(f"[holdfast.sources]\n{lines}\n")
    for name, text in MODULES.items():
        (site / f"{name}.py").write_text(text)
    options = ("--stall-timeout", "0.1")
    with daemon_process(tmp_path, *options, environment={"PYTHONPATH": str(site)}) as process:
        yield process


def test_a_plugin_that_ends_the_process_fails_its_versions_alone(daemon: DaemonProcess, source: Path) -> None:
    """`sys.exit` in a plugin, at its import, in its listing or in its bytes, is `bad_plugin` or `internal` of its
    version; the daemon goes on, and has the others."""
    publish_files(source, FILES)
    models = {"early": "early://m", "listing": "later://m", "stream": "later://stream"}
    daemon.write_catalog(
        {**{name: prefetched(uri) for name, uri in models.items()}, "tiny": prefetched(f"file://{source}")}
    )
    daemon.start()
    daemon.wait_ready(V1)
    codes = {name: daemon.wait_state(ModelRef(name, "v1"), "failed")["error"]["code"] for name in models}
    assert codes == {"early": "bad_plugin", "listing": "bad_plugin", "stream": "internal"}
    assert daemon.code() is None and daemon.stop() == 0


def test_a_plugin_that_blocks_for_ever_takes_nothing_along(daemon: DaemonProcess, source: Path) -> None:
    """However many versions have a plugin whose import never ends, each fails as `stalled`, other versions are fetched,
    and the daemon ends when told."""
    publish_files(source, FILES)
    blocked = [ModelRef(f"b{number}", "v1") for number in range(20)]
    models = {ref.name: prefetched("blocks://m") for ref in blocked}
    daemon.write_catalog({**models, "tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    for ref in blocked:
        daemon.wait_error(ref, "stalled")
    assert daemon.code() is None and daemon.stop() == 0
