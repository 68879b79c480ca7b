"""A pod with the mount, hostile: what it can do to the cache, as nobody and as root behind a read-only mount."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, write_files
from tests.support.others import NOBODY, let_others_in, needs_root

TINY = ModelRef("acme/tiny", "v1")
FILES = {"config.json": b"{}", "sub/model.safetensors": b"weights" * 1000}

# Tries to change everything under argv[1] in every way, and tells what worked.
ATTACK = """
import json, os, sys
root, worked = sys.argv[1], []
def attempt(what, act):
    try:
        act()
    except OSError:
        return
    worked.append(what)
for folder, folders, files in os.walk(root):
    attempt(f"create in {folder}", lambda: os.close(os.open(os.path.join(folder, "evil"), os.O_CREAT | os.O_WRONLY)))
    attempt(f"mkdir in {folder}", lambda: os.mkdir(os.path.join(folder, "evil")))
    attempt(f"chmod {folder}", lambda: os.chmod(folder, 0o777))
    for name in files + folders:
        path = os.path.join(folder, name)
        attempt(f"chmod {path}", lambda: os.chmod(path, 0o666))
        attempt(f"rename {path}", lambda: os.rename(path, path + ".gone"))
        attempt(f"link {path}", lambda: os.link(path, path + ".link"))
        attempt(f"unlink {path}", lambda: os.unlink(path))
        if not os.path.isdir(path):
            attempt(f"write {path}", lambda: os.close(os.open(path, os.O_WRONLY)))
            attempt(f"truncate {path}", lambda: os.truncate(path, 0))
            attempt(f"touch {path}", lambda: os.utime(path))
print(json.dumps(worked))
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("running")
    let_others_in(folder)
    write_files(folder / "source", FILES)
    with daemon_process(folder, "--scrub-rate", "0") as daemon:
        daemon.write_catalog({"acme/tiny": prefetched(f"file://{folder}/source")})
        daemon.start()
        daemon.wait_ready(TINY)
        yield daemon


# The interpreter may lie where only its owner comes: the process starts as it is and becomes another user then.
BECOME_NOBODY = f"import json, os, socket, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd="/").stdout


@needs_root
def test_nobody_can_change_anything(running: DaemonProcess) -> None:
    """A pod's ordinary user changes nothing under public/, even where its mount were writable."""
    assert json.loads(python(BECOME_NOBODY + ATTACK, running.layout.public.path)) == []
    assert running.files(TINY) == FILES


@needs_root
def test_nobody_sees_nothing_private(running: DaemonProcess) -> None:
    """private/ cannot be listed, and the control socket not be reached, by another user than the daemon's."""
    code = """
for act in (lambda: os.listdir(sys.argv[1]), lambda: os.stat(sys.argv[2]),
            lambda: socket.socket(socket.AF_UNIX).connect(os.path.relpath(sys.argv[2], "/"))):
    try:
        act()
    except PermissionError:
        print("refused")
"""
    said = python(BECOME_NOBODY + code, running.layout.private, running.layout.socket)
    assert said.split() == ["refused"] * 3


def test_root_in_a_pod_can_change_nothing(running: DaemonProcess) -> None:
    """Root in a container, behind the read-only mount that the injector gives it, changes nothing."""
    public = running.layout.public.path
    script = f"""
set -e
mount --bind {public} /mnt
mount -o remount,ro,bind /mnt
exec {sys.executable} -c "$1" /mnt
"""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", ATTACK]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if (result.returncode and "unshare" in result.stderr + result.stdout) or "mount" in result.stderr:
        pytest.skip(f"cannot mount here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
    assert running.files(TINY) == FILES


def test_no_symlink_leads_out_of_public(running: DaemonProcess) -> None:
    """Every symlink under public/ is relative and ends below it: what a pod mounts is all that it reads."""
    public = running.layout.public.path
    links = [path for path in public.rglob("*") if path.is_symlink()]
    assert links
    for link in links:
        assert not os.path.isabs(os.readlink(link))
        assert link.resolve().is_relative_to(public.resolve())


def test_a_symlink_in_a_source_brings_no_file_of_the_node(tmp_path: Path) -> None:
    """A publisher's folder with a link to a file of the node is refused, and nothing of that file is published."""
    source = tmp_path / "source"
    write_files(source, FILES)
    (tmp_path / "secret").write_text("the node's own")
    (source / "harmless.txt").symlink_to(tmp_path / "secret")
    with daemon_process(tmp_path, "--scrub-rate", "0") as daemon:
        daemon.write_catalog({"acme/tiny": prefetched(f"file://{source}")})
        daemon.start()
        assert "harmless.txt" in daemon.wait_state(TINY, "failed")["error"]["message"]
        assert not daemon.path(TINY).exists()
