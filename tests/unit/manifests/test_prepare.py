"""What the daemon's init container does to the node's folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

DAEMON_SET = Path(__file__).resolve().parents[3] / "manifests" / "base" / "daemon" / "daemonset.yaml"
USER = 65532


@pytest.mark.skipif(os.geteuid() != 0, reason="changing owners needs root")
def test_a_daemon_gets_what_a_privileged_one_wrote(tmp_path: Path) -> None:
    """Folders and files of root's, as a kubelet or a daemon of the overlay `csi` makes them, belong to the daemon's
    user afterwards; modes and times stay, and nothing outside is touched through a symlink."""
    root, outside = tmp_path / "holdfast", tmp_path / "outside"
    outside.write_bytes(b"")
    folder = root / "private" / "blobs" / "ab"
    folder.mkdir(parents=True, mode=0o700)
    blob = folder / "blob"
    blob.write_bytes(b"weights")
    blob.chmod(0o444)
    before = blob.stat()
    (root / "link").symlink_to(outside)
    (prepare,) = yaml.safe_load(DAEMON_SET.read_text())["spec"]["template"]["spec"]["initContainers"]
    for _ in range(2):
        command = [part.replace("/var/lib/holdfast", str(root)) for part in prepare["command"]]
        subprocess.run(command, check=True)
        for path in (root, root / "public", root / "private", folder, blob, root / "link"):
            assert path.lstat().st_uid == path.lstat().st_gid == USER
    assert (blob.stat().st_mode, blob.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert outside.stat().st_uid == 0
