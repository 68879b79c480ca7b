"""Starting: the tree, the listeners, what is refused before anything begins."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import (
    DaemonProcess,
    bare_environment,
    daemon_command,
    daemon_process,
    prefetched,
    write_files,
)

TINY = ModelRef("acme/tiny", "v1")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that holds `acme/tiny@v1`, for tests that only look."""
    folder = tmp_path_factory.mktemp("running")
    write_files(folder / "source", {"config.json": b"{}", "sub/model.safetensors": b"weights" * 1000})
    with daemon_process(folder) as daemon:
        daemon.write_catalog({"acme/tiny": prefetched(f"file://{folder}/source")})
        daemon.start()
        daemon.wait_ready(TINY)
        yield daemon


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_public_folders_are_open_and_their_files_read_only(running: DaemonProcess) -> None:
    """Every folder under public/ is 0755, every file of a snapshot 0444, every status file 0644."""
    public = running.layout.public
    assert {_mode(path) for path in public.path.rglob("*") if path.is_dir() and not path.is_symlink()} == {0o755}
    assert {_mode(path) for path in public.snapshots.rglob("*") if path.is_file()} == {0o444}
    assert {_mode(path) for path in public.status.rglob("*.json")} == {0o644}
    assert _mode(running.layout.root) == _mode(public.path) == 0o755


def test_private_is_for_the_daemon_alone(running: DaemonProcess) -> None:
    """private/ and every folder in it is 0700, the control socket 0600."""
    private = running.layout.private
    assert {_mode(path) for path in (private, *private.rglob("*")) if path.is_dir()} == {0o700}
    assert stat.S_ISSOCK(os.lstat(running.layout.socket).st_mode)
    assert _mode(running.layout.socket) == 0o600


def test_the_layout_says_its_version(running: DaemonProcess) -> None:
    """VERSION holds "1" and a newline."""
    assert running.layout.version.read_text() == "1\n"


def test_a_version_is_a_folder_of_its_own_files(running: DaemonProcess) -> None:
    """models/<name>/<version> is a relative symlink to a snapshot with the original names, hard-linked to blobs."""
    link = running.path(TINY)
    assert os.readlink(link).startswith("../../snapshots/")
    assert running.files(TINY) == {"config.json": b"{}", "sub/model.safetensors": b"weights" * 1000}
    assert all(os.stat(link / name).st_nlink == 2 for name in running.files(TINY))


def test_the_snapshot_hashes_to_its_name(running: DaemonProcess) -> None:
    """sha256 of .holdfast/manifest.json is the snapshot's name, and the digest that the status tells."""
    status = running.status(TINY)
    assert status is not None
    assert status["digest"] == str(running.digest(TINY))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path", ["/", "/page/events", "/v1/status", "/metrics", "/healthz", "/v1/pull", "/v1/gc", "/v1/pin"]
)
def test_the_port_only_reads(running: DaemonProcess, method: str, path: str) -> None:
    """The TCP port refuses whatever could change anything."""
    assert running.request(method, path)[0] in (404, 405)


def test_the_process_answers_healthz(running: DaemonProcess) -> None:
    """/healthz is 200 while the process answers."""
    assert running.get("/healthz")[0] == 200


def test_a_second_daemon_on_the_same_root_is_refused(running: DaemonProcess, tmp_path: Path) -> None:
    """One daemon a root: the second ends with 1 and says why, and the first is not disturbed."""
    result = _run(daemon_command(running.layout.root, running.catalog))
    assert result.returncode == 1
    assert "another daemon works here" in result.stderr
    assert running.control.status()["daemon"]["pid"] == running.pid


def test_a_lock_that_outlives_its_daemon_for_a_moment_is_waited_for(running: DaemonProcess) -> None:
    """A child of an earlier daemon may hold the lock a little longer than that daemon lives: the next start goes
    on when it is free."""
    assert running.stop() == 0
    descriptor = os.open(running.layout.private, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(0.5, os.close, (descriptor,)).start()
    running.start()


def test_an_occupied_port_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """Where the port is taken the daemon ends with 1, naming it and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = _run([*daemon_command(tmp_path / "root", tmp_path / "catalog.yaml"), "--listen", address])
    assert result.returncode == 1
    assert address in result.stderr
    assert "--listen" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--listen", "nowhere"),
        ("--quota", "much"),
        ("--quota", "0"),
        ("--high-watermark", "1.5"),
        ("--low-watermark", "0"),
        ("--high-watermark", "0.95"),
        ("--connections", "0"),
        ("--connections-per-origin", "-1"),
        ("--max-bandwidth", "0"),
        ("--scrub-rate", "fast"),
        ("--fs-verity", "maybe"),
        ("--stall-timeout", "0"),
        ("--log-level", "loud"),
        ("--kube", "maybe"),
        ("--nonsense", "1"),
    ],
)
def test_a_bad_option_is_a_usage_error(tmp_path: Path, option: str, value: str) -> None:
    """A value that cannot be is refused with 2, before anything is made."""
    result = _run([*daemon_command(tmp_path / "root", tmp_path / "catalog.yaml"), option, value])
    assert result.returncode == 2
    assert option in result.stderr
    assert not (tmp_path / "root").exists()


def test_a_bad_variable_is_a_usage_error(tmp_path: Path) -> None:
    """The environment's values are judged as the command line's, and named."""
    command = daemon_command(tmp_path / "root", tmp_path / "catalog.yaml")
    result = _run(command, {"HOLDFAST_QUOTA": "much"})
    assert result.returncode == 2
    assert "HOLDFAST_QUOTA" in result.stderr


def test_options_come_from_the_environment_too(tmp_path: Path) -> None:
    """HOLDFAST_QUOTA is --quota."""
    with daemon_process(tmp_path, environment={"HOLDFAST_QUOTA": "7MiB"}) as daemon:
        daemon.write_catalog({})
        daemon.start()
        assert daemon.document()["disk"]["capacity"] == 7 * 1024 * 1024


def test_another_layout_version_is_refused(tmp_path: Path) -> None:
    """A root of a layout that this release does not know is left alone: exit 1, both versions named."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "VERSION").write_text("2\n")
    result = _run(daemon_command(tmp_path / "root", tmp_path / "catalog.yaml"))
    assert result.returncode == 1
    assert "'1'" in result.stderr
    assert "'2'" in result.stderr


def test_a_deep_root_has_a_control_socket_too(tmp_path: Path) -> None:
    """A root whose socket's path does not fit a Unix address (107 bytes) works like any other."""
    with daemon_process(tmp_path / ("d" * 120)) as daemon:
        daemon.write_catalog({})
        daemon.start()
        assert daemon.control.status()["daemon"]["pid"] == daemon.pid
        assert daemon.stop() == 0
        assert not daemon.layout.socket.exists()


def test_a_damaged_list_of_pins_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """pins.json that is no list of pins ends the start with 1, naming the file: its pins would be lost unseen."""
    pins = tmp_path / "root" / "private" / "pins.json"
    pins.parent.mkdir(parents=True)
    pins.write_text("[")
    result = _run(daemon_command(tmp_path / "root", tmp_path / "catalog.yaml"))
    assert result.returncode == 1
    assert str(pins) in result.stderr


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a daemon that ends by itself."""
    return subprocess.run(
        command,
        env={**bare_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
