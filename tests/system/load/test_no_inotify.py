"""A kernel that has no inotify instance or watch left for the daemon: it looks by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.fetch.small_attempt import SMALL_BYTES
from tests.support.daemon import DaemonProcess, bare_environment, daemon_command, model, publish_files

FILES = {f"shard-{number}.bin": os.urandom(SMALL_BYTES + 4097) for number in range(4)}

pytestmark = pytest.mark.long


@pytest.mark.parametrize("kind", ["instances", "watches"])
def test_without_inotify_the_catalog_is_looked_at(tmp_path: Path, kind: str) -> None:
    """Where no inotify instance or watch is left the daemon says so once, with the limit's name, and polls."""
    if subprocess.run(["unshare", "-Ur", "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    publish_files(tmp_path / "source", FILES)
    with WithoutInotify(tmp_path, kind) as daemon:
        daemon.write_catalog({})
        daemon.start()
        assert daemon.log().count(f"fs.inotify.max_user_{kind}") == 1
        daemon.write_catalog({"acme/tiny": model(f"file://{tmp_path}/source")})
        daemon.wait(lambda: "catalog: 1 models" in daemon.log(), "the new catalog in force")
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0


@pytest.mark.parametrize("kind", ["instances", "watches"])
def test_without_inotify_what_is_deleted_by_hand_comes_back(tmp_path: Path, kind: str) -> None:
    """Where the kernel tells of nothing, a name, a snapshot, a status file and a file of a snapshot are still put back,
    and a lease is still seen."""
    if subprocess.run(["unshare", "-Ur", "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    publish_files(tmp_path / "source", FILES)
    refs = [ModelRef("acme/tiny", version) for version in ("v1", "v2", "v3", "v4")]
    listed = {ref.version: {"source": f"file://{tmp_path}/source"} for ref in refs[:1]}
    for ref in refs[1:]:
        publish_files(tmp_path / ref.version, {**FILES, ref.version: ref.version.encode()})
        listed[ref.version] = {"source": f"file://{tmp_path}/{ref.version}"}
    with WithoutInotify(tmp_path, kind) as daemon:
        daemon.write_catalog({"acme/tiny": {"versions": listed, "prefetch": {"versions": list(listed)}}})
        daemon.start()
        daemon.wait_ready(*refs)
        name, snapshot, status, file = refs
        before = [daemon.files(ref) for ref in refs]
        daemon.layout.public.model_link(name).unlink()
        shutil.rmtree(daemon.path(snapshot).resolve())
        daemon.layout.public.model_status(status).unlink()
        (daemon.path(file) / file.version).unlink()
        held = lease.take_shared(daemon.path(status) / ".holdfast" / "lease")
        assert held is not None
        with held:
            daemon.wait(lambda: _holds(daemon, refs, before), "all of it back")
            daemon.wait(lambda: any(each["leased"] for each in daemon.document()["models"]), "the lease")
        assert daemon.stop() == 0


def _holds(daemon: DaemonProcess, refs: Sequence[ModelRef], files: Sequence[dict[str, bytes]]) -> bool:
    try:
        return [daemon.files(ref) for ref in refs] == files and all(map(daemon.status, refs))
    except (FileNotFoundError, NotADirectoryError):
        return False


class WithoutInotify(DaemonProcess):
    """A daemon in a user namespace that has no inotify instances, or no watches."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder)
        self._kind = kind

    def launch_into(self, log: IO[bytes] | int, *more: str) -> None:
        limited = f'echo 0 > /proc/sys/user/max_inotify_{self._kind}; exec "$@"'
        self._process = subprocess.Popen(
            ["unshare", "-Ur", "sh", "-c", limited, "sh", *daemon_command(self.layout.root, self.catalog), *more],
            env=bare_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> WithoutInotify:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
