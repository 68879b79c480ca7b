"""Limits of the kernel and the container: threads, open files, and calls that a sandbox refuses."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from cached.contract.reference import ModelRef
from cached.fetch.small_attempt import SMALL_BYTES
from tests.support.daemon import (
    REPOSITORY,
    DaemonProcess,
    bare_environment,
    daemon_command,
    daemon_process,
    model,
    publish_files,
)

REF = ModelRef("acme/tiny", "v1")
# Each more than what is received into memory and hashed by the thread that receives it.
FILES = {f"shard-{number}.bin": os.urandom(SMALL_BYTES + 4097) for number in range(4)}
SMALL_FILES = {f"small-{number}.bin": os.urandom(2000) for number in range(50)}
# Python imports this first. One file says how many threads may still start, another that a call is refused.
CONFINED = """
import os, threading
folder = os.environ["CONFINED"]
start_new_thread, setpriority = threading._start_new_thread, os.setpriority

def start(*arguments):
    try:
        left = int(open(os.path.join(folder, "threads")).read())
    except FileNotFoundError:
        return start_new_thread(*arguments)
    if left <= 0:
        raise RuntimeError("can't start new thread")
    with open(os.path.join(folder, "threads"), "w") as told:
        told.write(str(left - 1))
    return start_new_thread(*arguments)

def refuse(*arguments):
    if os.path.exists(os.path.join(folder, "setpriority")):
        raise PermissionError(1, "Operation not permitted")
    return setpriority(*arguments)

threading._start_new_thread, os.setpriority = start, refuse
"""


pytestmark = pytest.mark.long


@pytest.fixture
def confined(tmp_path: Path) -> Path:
    """A folder whose files say what a daemon with `environment_of` it may not do."""
    folder = tmp_path / "confined"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CONFINED)
    return folder


def environment_of(confined: Path) -> dict[str, str]:
    return {"CONFINED": str(confined), "PYTHONPATH": f"{confined}:{REPOSITORY}"}


@pytest.fixture
def daemon(tmp_path: Path, confined: Path) -> Iterator[DaemonProcess]:
    publish_files(tmp_path / "source", FILES)
    with daemon_process(tmp_path, "--scrub-rate", "0", environment=environment_of(confined)) as process:
        process.write_catalog({"acme/tiny": model(f"file://{tmp_path}/source")})
        yield process


def open_files(daemon: DaemonProcess) -> int:
    """How many descriptors are open, those of the control socket's connections not counted."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def test_no_thread_is_transient_and_leaks_nothing(daemon: DaemonProcess, confined: Path) -> None:
    """Where no thread can be started a fetch waits with code and remedy, keeps no descriptor and no reservation, and is
    ready once threads can be had again."""
    daemon.start()
    before = open_files(daemon)
    (confined / "threads").write_text("0")
    daemon.pull("acme/tiny@v1")
    error = daemon.wait_error(REF, "no_thread")
    assert not error["permanent"]
    assert "podPidsLimit" in error["remedy"]
    daemon.wait(lambda: open_files(daemon) <= before, "no descriptor left open")
    daemon.wait(lambda: daemon.document()["disk"]["reserved"] == 0, "no reservation left")
    (confined / "threads").unlink()
    daemon.pull("acme/tiny@v1")
    daemon.wait_ready(REF)
    assert daemon.files(REF) == FILES
    assert "Traceback" not in daemon.log()


def test_no_thread_for_a_folder_is_transient(daemon: DaemonProcess, confined: Path, tmp_path: Path) -> None:
    """A folder is asked in threads of its own, as it may hang: without one its files wait, and come with one."""
    publish_files(tmp_path / "small", SMALL_FILES)
    daemon.write_catalog({"acme/tiny": model(f"file://{tmp_path}/small")})
    daemon.start()
    (confined / "threads").write_text("0")
    daemon.pull("acme/tiny@v1")
    assert not daemon.wait_error(REF, "no_thread")["permanent"]
    (confined / "threads").unlink()
    daemon.wait_ready(REF)
    assert daemon.files(REF) == SMALL_FILES


def test_no_thread_for_a_listing_is_transient(daemon: DaemonProcess, confined: Path) -> None:
    """A call to a source that gets no thread is tried again, and SIGTERM still ends the daemon with 0."""
    daemon.write_catalog({"acme/tiny": model("http://127.0.0.1:9/nothing")})
    daemon.start()
    (confined / "threads").write_text("0")
    daemon.pull("acme/tiny@v1")
    assert not daemon.wait_error(REF, "no_thread")["permanent"]
    assert daemon.stop() == 0


@pytest.mark.parametrize("threads", [0, 1, 3, 6, 12, 20])
def test_too_few_threads_at_the_start_are_refused_with_a_sentence(
    daemon: DaemonProcess, confined: Path, threads: int
) -> None:
    """A daemon that cannot have the threads it needs ends with 1 and the remedy, without a traceback."""
    (confined / "threads").write_text(str(threads))
    daemon.launch()
    code = daemon.end_within(120)
    assert code == 1
    assert "podPidsLimit" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_no_descriptor_is_transient_and_no_rot(tmp_path: Path, confined: Path) -> None:
    """A daemon at its limit of open files tells fetches to wait, takes nothing for rotten, and goes on once there is
    room."""
    publish_files(tmp_path / "source", FILES | SMALL_FILES)
    publish_files(tmp_path / "other", {"a.bin": b"a" * 5000})
    with daemon_process(tmp_path, "--scrub-period", "1s") as daemon:
        daemon.write_catalog(
            {"acme/held": model(f"file://{tmp_path}/other"), "acme/tiny": model(f"file://{tmp_path}/source")}
        )
        daemon.start()
        daemon.pull("acme/held@v1")
        daemon.wait_ready(ModelRef("acme/held", "v1"))
        daemon.pull("acme/tiny@v1")  # before the limit: afterwards the socket lets no client in
        hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, hard))
        daemon.catalog.write_text(daemon.catalog.read_text())
        daemon.wait(
            lambda: "no_descriptor" in str(daemon.status(REF)) or "open files" in daemon.log(), "the limit told"
        )
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
        daemon.wait_ready(REF, ModelRef("acme/held", "v1"))
        daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "200 from /readyz")
        assert daemon.files(REF) == FILES | SMALL_FILES
        assert daemon.metric("holdfast_verify_failures_total") == 0
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0


def test_the_soft_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    """The daemon takes as many open files as the hard limit allows."""
    with Limited(tmp_path, (100, 1000)) as daemon:
        daemon.write_catalog({})
        daemon.start()
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (1000, 1000)


def test_a_low_limit_of_open_files_narrows_the_doors(tmp_path: Path) -> None:
    """With few open files allowed the daemon runs, lets fewer clients in at once, and says so once."""
    with Limited(tmp_path, (256, 256)) as daemon:
        daemon.write_catalog({})
        daemon.start()
        assert daemon.log().count("the limit of open files is 256") == 1


def test_too_few_open_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    """With fewer open files than a fetch needs the daemon ends with 1, naming the limit, the need and the remedy."""
    with Limited(tmp_path, (64, 64)) as daemon:
        daemon.write_catalog({})
        daemon.launch()
        assert daemon.end_within(120) == 1
        assert "the limit of open files is 64, and 144 are needed" in daemon.log()
        assert "ulimit -n" in daemon.log()
        assert "Traceback" not in daemon.log()


def test_without_proc_the_start_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """Where /proc is not mounted the daemon ends with 1 and says what to mount."""
    hidden = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], check=False).returncode != 0:
        pytest.skip("/proc cannot be hidden here")
    done = subprocess.run(
        [*hidden, *daemon_command(tmp_path / "root", tmp_path / "catalog.yaml")],
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "/proc is not mounted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_priority_does_not_stop_the_scrub(tmp_path: Path, confined: Path) -> None:
    """Where a sandbox refuses setpriority the scrub works at the ordinary one, and says so."""
    publish_files(tmp_path / "source", {"a.bin": b"a" * 5000})
    (confined / "setpriority").touch()
    with daemon_process(tmp_path, "--scrub-period", "1s", environment=environment_of(confined)) as daemon:
        daemon.write_catalog({"acme/tiny": model(f"file://{tmp_path}/source")})
        daemon.start()
        daemon.pull("acme/tiny@v1")
        daemon.wait(lambda: daemon.metric("holdfast_scrub_bytes_total") > 0, "bytes scrubbed")
        assert "ordinary priority" in daemon.log()


def test_a_limit_of_file_sizes_is_told_as_one(tmp_path: Path) -> None:
    """Where the process may not write a file as long as a blob the status names that limit, not the disk, and the fetch
    goes on once it is lifted."""
    publish_files(tmp_path / "source", FILES)
    with daemon_process(tmp_path) as daemon:
        daemon.write_catalog({"acme/tiny": model(f"file://{tmp_path}/source")})
        daemon.start()
        hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (SMALL_BYTES, hard))
        daemon.pull("acme/tiny@v1")
        daemon.wait(lambda: "file_size_limit" in str(daemon.status(REF)), "the limit told")
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
        daemon.wait_ready(REF)
        assert daemon.files(REF) == FILES


def test_a_command_without_descriptors_says_so(tmp_path: Path) -> None:
    """A gate, `verify` or `publish` that may not open one more file names the limit and who raises it, and does not
    send a person to the disk, the volume or another port."""
    publish_files(tmp_path / "source", {f"{number}.bin": b"a" * 5000 for number in range(12)})
    with daemon_process(tmp_path) as daemon:
        daemon.write_catalog({"acme/tiny": model(f"file://{tmp_path}/source")})
        daemon.start()
        daemon.pull("acme/tiny@v1")
        daemon.wait_ready(REF)
        public, root = str(daemon.layout.public.path), str(daemon.layout.root)
        gate = ["gate", "--root", public, "--model", "acme/tiny", "--version", "v1", "--timeout", "100", "--once"]
        daemon.stop()  # which would hash for `verify`
        for words in (
            [*gate, "--verify", "full"],
            [*gate, "--listen", "127.0.0.1:0"],
            ["verify", "--root", root],
            ["publish", "--threads", "4", str(tmp_path / "source"), str(tmp_path / "published")],
        ):
            failures = [ended.stderr for most in (5, 6, 7, 9, 14) if (ended := _run_with_files(most, words)).returncode]
            assert failures, words
            for said in failures:
                assert "its limit" in said, words
                assert "raise the limit of open files" in said, words


def _run_with_files(most: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'ulimit -n {most}; exec "$@"', "sh", sys.executable, "-m", "cached.cli", *words],
        env=bare_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


class Limited(DaemonProcess):
    """A daemon that begins with these limits of open files, soft and hard."""

    def __init__(self, folder: Path, limits: tuple[int, int]) -> None:
        super().__init__(folder)
        self._limits = limits

    def launch_into(self, log: IO[bytes] | int, *more: str) -> None:
        self._process = subprocess.Popen(
            [*daemon_command(self.layout.root, self.catalog), *more],
            env=bare_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, self._limits),
        )

    def __enter__(self) -> Limited:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
