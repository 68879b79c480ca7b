"""A file system that turns read-only, as kernels make it after a fault, and devices that fail."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import daemon_process
from tests.support.faulty import mounted_faulty
from tests.support.gates import Gates
from tests.support.mounts import mounted, mounted_image, remount
from tests.system.disk.conftest import MIB, OPTIONS, Place, Start, check_public, error_of, told, wait_told

A, B = ModelRef("m", "a"), ModelRef("m", "b")


def test_read_only_while_idle(on_ext4: Start, place: Place, tmp_path: Path) -> None:
    """The daemon stays up, says it on the port and once in its log, is not ready; a gate still opens with what is
    published; it goes on when the file system is writable again."""
    with on_ext4(24 * MIB) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", MIB), "b": place("b", MIB)}}})
        daemon.start()
        daemon.pull("m@a")
        daemon.wait_ready(A)
        remount(daemon.layout.root, "ro")
        daemon.wait(lambda: daemon.get("/readyz")[0] == 503, "503 from /readyz")
        assert daemon.document()["disk"]["error"]["code"] == "not_writable"
        assert daemon.get("/healthz")[0] == 200
        daemon.pull("m@b")
        daemon.wait(lambda: error_of(daemon, B).get("code") == "not_writable", "not_writable")
        check_public(daemon)
        with closing_gates(Gates(daemon.layout.public, tmp_path)) as gates:
            assert gates.start_bare("--model", "m", "--version", "a", "--once").wait() == 0
        assert daemon.document()["disk"]["capacity"] > 0
        assert daemon.log().count("status files: ") == 1
        remount(daemon.layout.root, "rw")
        wait_told(daemon, B, "ready")
        daemon.wait_state(B, "ready")
        daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "200 from /readyz")
        assert "Traceback" not in daemon.log()


def test_a_fault_of_the_file_system_while_fetching(tmp_path: Path, place: Place) -> None:
    """Where the kernel stops writing in the middle of a fetch, the daemon says so and shows nothing half; after the
    repair it goes on."""
    folder = tmp_path / "root"
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        with mounted_image(folder, "ext4", 48 * MIB, "-m", "0", "-e", "remount-ro"):
            daemon.write_catalog({"m": {"versions": {"a": place("a", 8 * MIB, MIB)}, "prefetch": {"versions": ["a"]}}})
            daemon.start("--max-bandwidth", "2MiB/s")
            daemon.wait(lambda: told(daemon, A).get("state") == "fetching", "bytes on their way")
            _fault(folder)
            daemon.wait(lambda: error_of(daemon, A).get("code") in ("not_writable", "disk"), "an error")
            daemon.wait(lambda: daemon.get("/readyz")[0] == 503, "503 from /readyz")
            assert daemon.get("/healthz")[0] == 200
            assert not daemon.path(A).exists()
            check_public(daemon)
            daemon.kill()
        image = tmp_path / "root.image"
        assert subprocess.run(["e2fsck", "-fy", image], capture_output=True).returncode in (0, 1)
        with mounted(image, folder):
            daemon.start()
            wait_told(daemon, A, "ready")
            check_public(daemon)
            daemon.kill()


def _fault(folder: Path) -> None:
    """Have ext4 meet an error, as its own tests do."""
    number = os.stat(folder).st_dev
    name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    try:
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")
    except OSError as error:
        pytest.skip(f"cannot make ext4 fail here: {error}")


def test_read_only_while_evicting(on_ext4: Start, place: Place) -> None:
    """An eviction that cannot be carried out leaves the version as it was, and says so; later it is carried out."""
    with on_ext4(48 * MIB, "--quota", "3MiB") as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", 2 * MIB), "b": place("b", 2 * MIB)}}})
        daemon.start()
        daemon.pull("m@a")
        daemon.wait_ready(A)
        remount(daemon.layout.root, "ro")
        daemon.pull("m@b")
        daemon.wait(lambda: "eviction of m@a" in daemon.log(), "an eviction that failed")
        assert told(daemon, A)["state"] == "ready"
        check_public(daemon)
        remount(daemon.layout.root, "rw")
        wait_told(daemon, B, "ready")
        assert daemon.log().count("eviction of m@a: evicting") == 1
        check_public(daemon)


@pytest.mark.parametrize(
    "operation", ["write", *(pytest.param(each, marks=pytest.mark.slow) for each in ("create", "link", "statfs"))]
)
def test_a_disk_that_fails(tmp_path: Path, place: Place, operation: str) -> None:
    """Where the device fails (EIO), the daemon stays up and says so, naming the disk; nothing half is visible, and it
    goes on by itself when the device answers again."""
    with mounted_faulty(tmp_path / "root") as disk, daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", MIB, 5000), "b": place("b", MIB)}}})
        daemon.start()
        daemon.pull("m@a")
        daemon.wait_ready(A)
        disk.fail[operation] = errno.EIO
        daemon.command("/v1/pull", {"model": "m", "version": "b"})
        daemon.wait(
            lambda: "disk" in (error_of(daemon, B).get("code"), (daemon.document()["disk"]["error"] or {}).get("code")),
            "an error",
        )
        assert daemon.get("/healthz")[0] == 200
        if operation != "statfs":  # the space that was known before may have sufficed
            assert not daemon.path(B).exists()
        check_public(daemon)
        disk.fail.clear()
        wait_told(daemon, B, "ready")
        check_public(daemon)
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0


@contextmanager
def closing_gates(gates: Gates) -> Iterator[Gates]:
    """None of them is left."""
    try:
        yield gates
    finally:
        gates.end()
