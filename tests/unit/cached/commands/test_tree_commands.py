"""The commands that only read the public tree: ls, status, verify."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from cached.commands import golden, ls, status, verify
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.contract.status import State, StatusError, parse_timestamp, timestamp
from tests.support.control import ControlServer, model_status, write_heartbeat, write_status
from tests.support.users import hidden_from_others
from tests.unit.cached.commands.conftest import publish

BASE = ModelRef("acme/llama", "v3")
OTHER = ModelRef("minilm", "1")
FILES = {"config.json": b"{}", "weights/model.safetensors": b"w" * 5000}
NO_MODEL = StatusError("unknown_model", "the catalog has no minilm", "add minilm to the catalog", permanent=True)


def test_ls_lists_versions_without_a_daemon(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """`ls` shows name, version, size, number of files and digest of each version, with no daemon about."""
    digest = publish(layout, BASE, FILES)
    assert ls.main(["--root", str(layout.root)]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["acme/llama@v3", "ready", "4.9", "KiB", "2", str(digest)[:19]]


def test_ls_json_is_for_machines(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """`ls --json` gives whole digests, sizes in bytes and the folder of each version."""
    digest = publish(layout, BASE, FILES)
    assert ls.main(["--root", str(layout.root), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    for moment in ("since", "last_used"):
        assert time.time() - parse_timestamp(found.pop(moment)) < 60
    assert found == {
        "model": "acme/llama",
        "version": "v3",
        "state": "ready",
        "digest": str(digest),
        "pinned": None,
        "bytes": 5002,
        "files": 2,
        "path": str(layout.public.model_link(BASE)),
        "stale": None,
        "trust": None,
        "exclusive_bytes": 5002,
        "shared_bytes": 0,
        "leased": False,
        "kept_by": None,
    }


def test_ls_tells_what_is_shared_and_in_use(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """What two versions share is exclusive to neither, a leased one is in use now, and to look is no use; `--wide`
    shows it in columns after those that were there."""
    publish(layout, BASE, FILES)
    publish(layout, OTHER, {**FILES, "more.bin": b"m" * 100})
    path = layout.public.snapshot(Digest(layout.public.model_link(BASE).resolve().name)).lease
    before = path.stat().st_mtime_ns
    with lease.take_shared(path) or pytest.fail("no lease"):
        assert ls.main(["--root", str(layout.root), "--json"]) == 0
        base, other = json.loads(capsys.readouterr().out)
        assert (base["exclusive_bytes"], base["shared_bytes"], base["leased"]) == (0, 5002, True)
        assert (other["exclusive_bytes"], other["shared_bytes"], other["leased"]) == (100, 5002, False)
        assert ls.main(["--root", str(layout.root), "--wide"]) == 0
        head, row, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["VERSION", "STATE", "SIZE", "FILES", "DIGEST"]
    assert row.split()[-2:] == ["now", "lease"]
    assert path.stat().st_mtime_ns == before


def test_ls_has_uses_and_pins_from_a_daemon(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon that answers tells last uses and pins, which the tree has not."""
    publish(layout, BASE, FILES)
    told = {"model": "acme/llama", "version": "v3", "last_used": "2020-01-01T00:00:00Z", "leased": False}
    control.answers["GET /v1/status"] = 200, {"models": [{**told, "kept_by": ["holdfast pin"]}]}
    assert ls.main(["--root", str(layout.root), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["last_used"], found["kept_by"]) == ("2020-01-01T00:00:00Z", ["holdfast pin"])


def test_ls_shows_what_is_on_its_way(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """`ls` also lists versions that have a status and no symlink yet, with their state."""
    write_status(layout, model_status(OTHER, State.FETCHING, bytes_total=2048, bytes_done=1024))
    assert ls.main(["--root", str(layout.root)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["minilm@1", "fetching", "2.0", "KiB", "-", "-"]


def test_ls_skips_what_is_not_ours(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Names in the tree that are no references, and links that lead nowhere, are skipped."""
    (layout.public.models / ".tmp-x").mkdir()
    (layout.public.models / "minilm").mkdir()
    (layout.public.models / "minilm" / "1").symlink_to("../../snapshots/" + "0" * 64)
    (layout.public.models / "minilm" / ".tmp-1").symlink_to("x")
    assert ls.main(["--root", str(layout.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_ls_of_an_empty_node_says_what_to_do(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty node is no error, and `ls` says how to get a version."""
    assert ls.main(["--root", str(layout.root)]) == 0
    assert "holdfast pull" in capsys.readouterr().out


@pytest.mark.parametrize("command", [ls, status, verify])
def test_a_root_that_is_none_fails_with_a_remedy(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a cache under the root, reading commands exit 1, name the path and say what to do."""
    assert command.main(["--root", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error
    assert "--root" in error


@pytest.mark.parametrize("command", [ls, status, verify])
def test_a_root_that_may_not_be_read_is_told_apart(
    layout: Layout, capsys: pytest.CaptureFixture[str], command: ModuleType
) -> None:
    """A root that this user may not look into is not said to be missing: reading commands exit 1 and name the user to
    be."""
    with hidden_from_others(layout.root):
        assert command.main(["--root", str(layout.root)]) == 1
    error = capsys.readouterr().err
    assert f"may not read {layout.public.path}: Permission denied" in error
    assert "daemon's user" in error


LONG = ModelRef("a" * 60 + "/" + "b" * 60, "v" * 100)


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("command", [ls, status])
def test_long_names_leave_the_table_its_lines(
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: ModuleType,
    columns: int,
) -> None:
    """On a terminal a long name is cut in its middle, so that each version stays on a line; a short one stays whole.
    Elsewhere every name is whole, for who parses the table."""
    for ref in (LONG, BASE):
        publish(layout, ref, FILES)
        write_status(layout, model_status(ref, State.READY, bytes_total=5002))
    assert command.main(["--root", str(layout.root)]) == 0
    assert str(LONG) in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert command.main(["--root", str(layout.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("VERSION", "aaa", "acme"))]
    assert len(rows) == 3
    assert max(map(len, rows)) <= columns
    assert any(line.startswith(f"{BASE} ") for line in rows)
    assert [line for line in rows if line.startswith("aaa") and "…" in line and "vv " in line]


def test_root_comes_from_the_environment(
    layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOLDFAST_ROOT names the root where --root does not."""
    publish(layout, BASE, FILES)
    monkeypatch.setenv("HOLDFAST_ROOT", str(layout.root))
    assert ls.main([]) == 0
    assert "acme/llama@v3" in capsys.readouterr().out


def test_status_shows_heartbeat_disk_and_progress(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` shows the daemon, the disk, and each version's state, bytes, rate and remaining time."""
    write_heartbeat(layout, time.time())
    write_status(
        layout,
        model_status(BASE, State.FETCHING, bytes_total=4096, bytes_done=1024, rate_bytes_per_s=1024.0, eta_s=3.0),
    )
    assert status.main(["--root", str(layout.root)]) == 0
    out = capsys.readouterr().out
    assert "0.1.0 on node-a, pid 4242" in out
    assert "NOT RUNNING" not in out
    assert "free of" in out
    assert "1.0 KiB of 4.0 KiB (25 %), 1.0 KiB/s, 3s left" in out


def test_status_shows_what_comes_from_other_nodes(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` shows, while a version comes, how much of it other nodes sent, as text and as JSON."""
    write_heartbeat(layout, time.time())
    coming = model_status(BASE, State.FETCHING, bytes_total=4096, bytes_done=1024, bytes_from_peers=768)
    write_status(layout, coming)
    assert status.main(["--root", str(layout.root)]) == 0
    assert "1.0 KiB of 4.0 KiB (25 %), 75 % of it from other nodes" in capsys.readouterr().out
    assert status.main(["--root", str(layout.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["bytes_from_peers"] == 768


def test_status_tells_who_waits_and_how_long(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` lists the pods that the daemon knows to wait, each with its version and its own time, and of many how
    many more, and has the disk within the daemon's quota; `--json` has all of it, and null where no daemon tells."""
    write_status(layout, model_status(BASE, State.FETCHING))
    now = time.time()
    since = [timestamp(now - 5 * 3600), None, *(timestamp(now) for _ in range(30))]
    pods = [
        {"pod": f"team/pod-{n}", "model": BASE.name, "version": BASE.version, "since": each}
        for n, each in enumerate(since)
    ]
    disk = {"capacity": 4096, "used": 1024, "reserved": 512, "free": 2560, "error": None}
    control.answers["GET /v1/waiting"] = 200, {"pods": pods, "disk": disk}
    assert status.main(["--root", str(layout.root)]) == 0
    shown = capsys.readouterr().out.splitlines()
    first = shown.index(next(line for line in shown if line.startswith("POD")))
    assert shown[first + 1].split()[:2] == ["team/pod-0", str(BASE)]
    assert shown[first + 1].split()[2].startswith("5h0")
    assert shown[first + 2].split() == ["team/pod-1", str(BASE), "-"]
    assert shown[first + 21].startswith("and 12 more")
    assert "disk    2.5 KiB free of 4.0 KiB, 38 % full" in shown
    assert status.main(["--root", str(layout.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["waiting"], told["disk"]) == (pods, disk)
    control.answers["GET /v1/waiting"] = 404, {}  # an older daemon
    assert status.main(["--root", str(layout.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["waiting"] is None


def test_status_tells_errors_with_their_remedy(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed version shows its reason and what to do about it."""
    write_status(layout, model_status(OTHER, State.FAILED, error=NO_MODEL))
    assert status.main(["--root", str(layout.root)]) == 0
    assert "minilm@1: the catalog has no minilm\n  what to do: add minilm to the catalog" in capsys.readouterr().out


def test_status_says_when_the_heartbeat_stopped(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """An old heartbeat is called out."""
    write_heartbeat(layout, time.time() - 3600)
    assert status.main(["--root", str(layout.root)]) == 0
    assert "NOT RUNNING?" in capsys.readouterr().out


def test_status_json_has_the_shape_of_the_daemons(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """`status --json` has `daemon`, `disk` and `models`, the models as their status files are."""
    shown = model_status(OTHER, State.FAILED, error=NO_MODEL)
    write_heartbeat(layout, time.time())
    write_status(layout, shown)
    assert status.main(["--root", str(layout.root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["daemon"]["node"] == "node-a"
    assert set(document["disk"]) == {"capacity", "used", "reserved", "free", "error"}
    assert document["models"] == [json.loads(json.dumps(shown.document()))]


def test_a_broken_status_file_is_read_as_absent(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Garbage in a status file neither stops `status` nor shows up."""
    write_status(layout, model_status(OTHER, State.FETCHING))
    layout.public.model_status(OTHER).write_bytes(b"{")
    layout.public.daemon_status.write_bytes(b'{"updated": "yesterday"}')
    assert status.main(["--root", str(layout.root)]) == 0
    assert "minilm" not in capsys.readouterr().out


def test_watch_ends_well_with_ctrl_c(layout: Layout) -> None:
    """`status --watch` prints again and again, and exits 0 on SIGINT."""
    write_heartbeat(layout, time.time())
    command = [sys.executable, "-m", "cached", "status", "--watch", "--json", "--root", str(layout.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["daemon"]["pid"] == 4242
        assert json.loads(watching.stdout.readline())["daemon"]["pid"] == 4242
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=120)
    assert (watching.returncode, errors) == (0, "")


def test_watch_draws_nothing_on_a_dumb_terminal(layout: Layout) -> None:
    """With TERM=dumb `status --watch` writes its lines again and again, and no escape."""
    write_heartbeat(layout, time.time())
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "cached", "status", "--watch", "--root", str(layout.root)]
    with subprocess.Popen(command, stdout=theirs, env={**os.environ, "TERM": "dumb"}) as watching:
        os.close(theirs)
        shown = b""
        while shown.count(b"daemon ") < 2:
            shown += os.read(mine, 4096)
        watching.send_signal(signal.SIGINT)
        watching.wait(60)
    os.close(mine)
    assert b"\x1b" not in shown


def test_ls_says_what_is_hashed_again(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """A held version whose files are hashed again is `verifying`; one under whose name something else is fetched is
    `ready`."""
    checked, replaced = str(publish(layout, BASE, FILES)), str(publish(layout, OTHER, {"a": b"a"}))
    for ref, digest, held in ((BASE, checked, checked), (OTHER, None, replaced)):
        status = model_status(ref, State.VERIFYING, bytes_total=5000, bytes_done=100)
        write_status(layout, dataclasses.replace(status, digest=digest, held=held))
    assert ls.main(["--root", str(layout.root)]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == [str(BASE), "verifying"] and second.split()[:2] == [str(OTHER), "ready"]


def test_verify_without_a_daemon_says_that_it_repairs_nothing(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no daemon runs the versions are hashed all the same, and stderr says that nothing was repaired, and why."""
    publish(layout, BASE, FILES)
    assert verify.main(["--root", str(layout.root)]) == 0
    shown = capsys.readouterr()
    assert "ok" in shown.out
    assert "nothing was repaired" in shown.err and "no daemon here" in shown.err


def test_verify_passes_whole_versions(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify` exits 0 and says ok for each version, hashing shared content once."""
    publish(layout, BASE, FILES)
    publish(layout, OTHER, FILES)
    assert verify.main(["--root", str(layout.root), "--threads", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("acme/llama@v3  ok  2 files, 4.9 KiB")
    assert second == "minilm@1  ok  the same content as acme/llama@v3"


def test_verify_names_the_file_that_changed(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """One flipped byte makes `verify` exit 1 and name version and file; the others are checked all the same."""
    digest = publish(layout, BASE, FILES)
    publish(layout, OTHER, {"a": b"a"})
    victim = layout.public.snapshot(digest).path / "weights" / "model.safetensors"
    victim.chmod(0o644)
    victim.write_bytes(b"W" + FILES["weights/model.safetensors"][1:])
    assert verify.main(["--root", str(layout.root)]) == 1
    shown = capsys.readouterr()
    assert "acme/llama@v3  MISMATCH  weights/model.safetensors: sha256" in shown.out
    assert "minilm@1  ok" in shown.out
    assert "what to do" in shown.err


@pytest.mark.parametrize("gone", ["config.json", ".holdfast/manifest.json"])
def test_verify_names_a_file_that_is_gone(gone: str, layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file or manifest is a mismatch that names it."""
    digest = publish(layout, BASE, FILES)
    (layout.public.snapshot(digest).path / gone).unlink()
    assert verify.main(["acme/llama@v3", "--root", str(layout.root)]) == 1
    out = capsys.readouterr().out
    assert "MISMATCH" in out
    assert Path(gone).name in out


def test_verify_of_what_is_not_here_says_so(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """A version that is not on the node exits 1, is named once in the reason, and how to fetch it is said."""
    assert verify.main(["minilm@1", "--root", str(layout.root)]) == 1
    error = capsys.readouterr().err
    assert "holdfast verify: minilm@1 is not on this node" in error
    assert "holdfast pull minilm@1" in error


def test_golden_says_why_a_server_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that refuses the connection is told in words, not as Python has it."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    arguments = ["record", f"http://127.0.0.1:{port}", "--output", str(tmp_path / "g.json"), "--input", "hi"]
    assert golden.main(arguments) == 1
    error = capsys.readouterr().err
    assert "Connection refused" in error
    assert "urlopen" not in error


def test_verify_does_not_touch_what_is_being_evicted(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an eviction holds the lease, `verify` reports that instead of hashing."""
    digest = publish(layout, BASE, FILES)
    held = lease.take_exclusive(layout.public.snapshot(digest).lease)
    assert held is not None
    with held:
        assert verify.main(["--root", str(layout.root)]) == 1
    assert "being evicted" in capsys.readouterr().out
