"""What is here is what is asked for now: compared at every change of the catalog, and after every start."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from cached.commands.shared.control_client import PullAnswer
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, model, prefetched, publish_files, write_files
from tests.support.nginx import nginx
from tests.support.origin import HostileOrigin

V1 = ModelRef("tiny", "v1")
WEIGHTS = bytes(range(256)) * 4000
FILES = {"config.json": b"{}", "extra.bin": b"x", "model.safetensors": WEIGHTS}


def _wait_for(daemon: DaemonProcess, digest: object) -> dict[str, Any]:
    daemon.wait(lambda: daemon.path(V1).exists() and daemon.digest(V1) == digest, f"the name to lead to {digest}")
    return daemon.wait_state(V1, "ready")


def test_another_source_is_fetched_and_takes_the_name(daemon: DaemonProcess, source: Path) -> None:
    """A version that is here is resolved again when its source in the catalog changes, and its name moves at once."""
    old = write_files(source / "old", FILES)
    new = write_files(source / "new", {**FILES, "model.safetensors": b"new"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/new")})
    status = _wait_for(daemon, new.digest)
    assert (status["digest"], status["held"], status["stale"]) == (str(new.digest), str(new.digest), None)
    assert status["source"] == f"file://{source}/new"
    assert f"no longer to {old.digest}" in daemon.log()


@pytest.mark.parametrize(
    ("filters", "left"),
    [({"include": ["*.json"]}, {"config.json"}), ({"exclude": ["extra.bin"]}, {"config.json", "model.safetensors"})],
)
def test_other_filters_select_again(
    daemon: DaemonProcess, source: Path, filters: dict[str, Any], left: set[str]
) -> None:
    """A changed `include` or `exclude` gives another version, without a byte that is here being fetched again."""
    write_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    before = daemon.metric("holdfast_fetch_bytes_total")
    daemon.write_catalog({"tiny": {**prefetched(f"file://{source}"), **filters}})
    daemon.wait(lambda: set(daemon.files(V1)) == left, f"{left} alone")
    daemon.wait_state(V1, "ready")
    assert daemon.metric("holdfast_fetch_bytes_total") == before


def test_a_pull_right_after_an_edit(daemon: DaemonProcess, source: Path) -> None:
    """A person who edits the catalog and pulls at once is answered with what it says now, every time."""
    digests = [write_files(source / name, {**FILES, "config.json": name.encode()}).digest for name in ("a", "b")]
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/a")})
    daemon.start()
    daemon.wait_ready(V1)
    for turn in range(1, 9):
        daemon.write_catalog({"tiny": prefetched(f"file://{source}/{'ab'[turn % 2]}")})
        assert _pulled(daemon, refresh=False).digest == str(digests[turn % 2])


def test_removed_and_back_with_another_source(daemon: DaemonProcess, source: Path) -> None:
    """A version that leaves the catalog and comes back from elsewhere is what it is listed as then, once it is asked
    for; until then its status says that it is not."""
    old = write_files(source / "old", FILES)
    new = write_files(source / "new", {"config.json": b"[]"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"other": model(f"file://{source}/new")})
    daemon.write_catalog({"tiny": model(f"file://{source}/new")})
    daemon.wait(lambda: bool((daemon.status(V1) or {})["stale"]), "`stale`")
    status = daemon.status(V1) or {}
    assert (status["state"], status["digest"]) == ("ready", str(old.digest))
    assert (status["stale"]["reason"], status["stale"]["digest"]) == ("catalog_changed", None)
    assert daemon.pull("tiny@v1") != "ready"
    assert _wait_for(daemon, new.digest)["stale"] is None


@pytest.mark.parametrize("killed", [False, True])
def test_a_change_while_the_daemon_is_away(daemon: DaemonProcess, source: Path, *, killed: bool) -> None:
    """What a version was fetched for outlives the daemon: a change made in between is found at the next start."""
    write_files(source / "old", FILES)
    new = write_files(source / "new", {**FILES, "config.json": b"[]"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.kill() if killed else daemon.stop()
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/new")})
    daemon.start()
    _wait_for(daemon, new.digest)


def test_nothing_changed_asks_no_source(daemon: DaemonProcess, source: Path) -> None:
    """After a restart with the same catalog nothing is resolved again: the source may be away."""
    old = write_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.stop()
    shutil.rmtree(source)
    daemon.start()
    assert daemon.pull("tiny@v1") == "ready"
    assert (daemon.status(V1) or {})["digest"] == str(old.digest)


def test_the_old_content_stays_until_the_new_is_there(daemon: DaemonProcess, source: Path) -> None:
    """Where the new source fails for good, the name leads to the old content; the status says `failed`, what is held,
    and that it is not what is asked for."""
    old = write_files(source / "old", FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/nowhere")})
    status = daemon.wait_state(V1, "failed")
    assert (status["error"]["code"], status["held"]) == ("not_found", str(old.digest))
    assert status["stale"]["reason"] == "catalog_changed"
    assert daemon.digest(V1) == old.digest
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old")})
    status = daemon.wait_state(V1, "ready")
    assert (status["digest"], status["source"], status["stale"]) == (str(old.digest), f"file://{source}/old", None)


def test_a_pin_is_met_wherever_it_came_from(daemon: DaemonProcess, source: Path) -> None:
    """A pinned version whose digest is here is not resolved again when its source changes."""
    old = publish_files(source / "old", FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old", digest=old.digest)})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/nowhere", digest=old.digest)})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/nowhere", digest=old.digest), "x": {"versions": {}}})
    daemon.wait(lambda: daemon.log().count("catalog: ") >= 2, "the edit to be read")
    assert daemon.state(V1) == "ready"


@pytest.mark.parametrize("moved", [False, True])
def test_an_older_releases_version_is_taken_over(daemon: DaemonProcess, source: Path, *, moved: bool) -> None:
    """A name without a record is resolved again; nothing is fetched twice where its status named the same source and
    all paths and sizes agree, and everything where the catalog names another."""
    write_files(source / "old", FILES)
    write_files(source / "new", {**FILES, "model.safetensors": bytes(len(WEIGHTS))})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.stop()
    shutil.rmtree(daemon.layout.private / "fetched")
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/{'new' if moved else 'old'}")})
    daemon.start()
    daemon.wait(lambda: _record(daemon) is not None, "a record")
    daemon.wait_state(V1, "ready")
    assert daemon.files(V1)["model.safetensors"] == (bytes(len(WEIGHTS)) if moved else WEIGHTS)
    assert (daemon.metric("holdfast_fetch_bytes_total") > 0) is moved


def test_a_record_of_other_content_counts_for_nothing(daemon: DaemonProcess, source: Path) -> None:
    """Between the record and the name a crash leaves a record that is ahead: the old content is not taken for what
    it was about to be replaced with."""
    write_files(source / "old", FILES)
    new = write_files(source / "new", {**FILES, "model.safetensors": bytes(len(WEIGHTS))})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old")})
    daemon.start()
    daemon.wait_ready(V1)
    target = daemon.path(V1).readlink()
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/new")})
    _wait_for(daemon, new.digest)
    daemon.stop()
    daemon.path(V1).unlink()
    daemon.path(V1).symlink_to(target)
    daemon.start()
    _wait_for(daemon, new.digest)


def _record(daemon: DaemonProcess) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads((daemon.layout.private / "fetched" / "tiny" / "v1.json").read_text())
    except FileNotFoundError:
        return None
    return document


def test_a_refresh_takes_what_the_source_has_now(daemon: DaemonProcess, source: Path) -> None:
    """A version whose source was published over is ready as it is; `pull --refresh` fetches what differs and moves the
    name. Asked again, nothing is fetched."""
    old = publish_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    new = publish_files(source, {**FILES, "config.json": b"[]"})
    assert daemon.pull("tiny@v1") == "ready"
    assert daemon.digest(V1) == old.digest
    assert _pulled(daemon, refresh=True).digest == str(new.digest)
    assert daemon.digest(V1) == new.digest
    fetched = daemon.metric("holdfast_fetch_bytes_total")
    assert _pulled(daemon, refresh=True).digest == str(new.digest)
    assert daemon.metric("holdfast_fetch_bytes_total") == fetched
    assert fetched == sum(map(len, FILES.values())) + 2


def test_a_refresh_without_promised_digests_fetches_what_changed(daemon: DaemonProcess, source: Path) -> None:
    """Where no sha256 is promised, a refresh fetches the files whose validators changed, and no other."""
    write_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    write_files(source, {"config.json": b"[1]"})
    assert _pulled(daemon, refresh=True).error is None
    assert daemon.files(V1) == {**FILES, "config.json": b"[1]"}
    assert daemon.metric("holdfast_fetch_bytes_total") == sum(map(len, FILES.values())) + 3


def test_a_refresh_of_a_pinned_version(daemon: DaemonProcess, source: Path) -> None:
    """A pin stays a pin: who refreshes a pinned version whose source has other content is told so, and what is here
    stays ready."""
    old = publish_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=old.digest)})
    daemon.start()
    daemon.wait_ready(V1)
    publish_files(source, {**FILES, "config.json": b"[]"})
    error = _pulled(daemon, refresh=True).error
    assert error is not None and error.code == "digest_mismatch"
    status = daemon.wait_state(V1, "ready")
    assert (status["digest"], status["error"], status["pinned"]) == (str(old.digest), None, True)


def test_a_refresh_of_what_is_gone_at_its_source(daemon: DaemonProcess, source: Path) -> None:
    """A refresh whose source has nothing any more fails for who asked; what is here stays ready."""
    old = write_files(source / "m", FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/m")})
    daemon.start()
    daemon.wait_ready(V1)
    shutil.rmtree(source / "m")
    error = _pulled(daemon, refresh=True).error
    assert error is not None and error.code == "not_found"
    status = daemon.wait_state(V1, "ready")
    assert (status["digest"], status["error"]) == (str(old.digest), None)


def test_drift_is_told_and_not_taken(daemon: DaemonProcess, source: Path) -> None:
    """With `--resolve-interval` a version whose source was published over is told as stale with both digests, in
    status, log and metric; what is here stays, until a person refreshes it."""
    old = publish_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start("--resolve-interval", "0.2s")
    daemon.wait_ready(V1)
    new = publish_files(source, {**FILES, "config.json": b"[]"})
    stale = _stale(daemon)
    assert (stale["reason"], stale["digest"]) == ("source_changed", str(new.digest))
    assert (daemon.status(V1) or {})["digest"] == str(old.digest)
    assert daemon.metric("holdfast_model_stale", model="tiny", version="v1") == 1
    assert f"here {old.digest}, there {new.digest}" in daemon.log()
    assert daemon.digest(V1) == old.digest
    assert _pulled(daemon, refresh=True).digest == str(new.digest)
    assert daemon.wait_state(V1, "ready")["stale"] is None


def test_an_unchanged_manifest_is_confirmed_not_listed(daemon: DaemonProcess, source: Path, tmp_path: Path) -> None:
    """After the first comparison a web server confirms `holdfast.json` with 304; the next publish is told as drift, and
    is confirmed in its turn."""
    log = tmp_path / "nginx" / "access.log"
    publish_files(source, FILES)
    _make_older(source / "holdfast.json", 100)
    with nginx(tmp_path / "nginx", source) as base:
        daemon.write_catalog({"tiny": prefetched(base)})
        daemon.start("--resolve-interval", "0.2s")
        daemon.wait_ready(V1)
        daemon.wait(lambda: log.read_text().count(" 304 GET /holdfast.json") >= 2, "confirmations")
        new = publish_files(source, {**FILES, "config.json": b"[]"})
        _make_older(source / "holdfast.json", 50)
        assert _stale(daemon)["digest"] == str(new.digest)
        confirmed = log.read_text().count(" 304 GET /holdfast.json")
        daemon.wait(lambda: log.read_text().count(" 304 GET /holdfast.json") >= confirmed + 2, "confirmations")
        assert _stale(daemon)["digest"] == str(new.digest)


def _make_older(path: Path, seconds: float) -> None:
    """Give a file an mtime before now, as after a publish some time ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_drift_without_promised_digests(daemon: DaemonProcess, source: Path) -> None:
    """Where the source promises no sha256, another validator is told as a change whose digest is not known; what comes
    back to what it was is not stale any more."""
    write_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start("--resolve-interval", "0.2s")
    daemon.wait_ready(V1)
    write_files(source, {"more.json": b"[1]"})
    assert (_stale(daemon)["reason"], _stale(daemon)["digest"]) == ("source_changed", None)
    (source / "more.json").unlink()
    daemon.wait(lambda: (daemon.status(V1) or {})["stale"] is None, "no `stale`")
    assert daemon.metric("holdfast_fetch_bytes_total") == sum(map(len, FILES.values()))


def test_a_version_that_follows_takes_what_its_source_has(daemon: DaemonProcess, source: Path) -> None:
    """With `follow: true` what the source has later takes the name by itself."""
    publish_files(source, FILES)
    daemon.write_catalog({"tiny": {**prefetched(f"file://{source}"), "follow": True}})
    daemon.start("--resolve-interval", "0.2s")
    daemon.wait_ready(V1)
    new = publish_files(source, {**FILES, "config.json": b"[]"})
    assert _wait_for(daemon, new.digest)["digest"] == str(new.digest)


def test_a_pinned_version_follows_nothing(daemon: DaemonProcess, source: Path) -> None:
    """A pin stays a pin, also with `follow: true`."""
    old = publish_files(source / "old", FILES)
    publish_files(source / "new", FILES)
    models = {
        "tiny": {**prefetched(f"file://{source}/old", digest=old.digest), "follow": True},
        "other": prefetched(f"file://{source}/new"),
    }
    daemon.write_catalog(models)
    daemon.start("--resolve-interval", "0.2s")
    other = ModelRef("other", "v1")
    daemon.wait_ready(V1, other)
    for folder in ("old", "new"):
        publish_files(source / folder, {**FILES, "config.json": b"[]"})
    daemon.wait(lambda: bool((daemon.status(other) or {})["stale"]), "`stale` of the unpinned one")
    assert (daemon.state(V1), daemon.digest(V1)) == ("ready", old.digest)
    assert (daemon.status(V1) or {})["stale"] is None


def _stale(daemon: DaemonProcess) -> dict[str, Any]:
    daemon.wait(lambda: bool((daemon.status(V1) or {})["stale"]), "`stale`")
    stale: dict[str, Any] = (daemon.status(V1) or {})["stale"]
    return stale


def _pulled(daemon: DaemonProcess, *, refresh: bool) -> PullAnswer:
    """The answer of a pull, once it has one."""
    asked = daemon.control.pull(V1, None, refresh=refresh)

    def answer() -> PullAnswer:
        return daemon.control.get_pull(asked.id)

    daemon.wait(lambda: answer().digest is not None or answer().error is not None, "the answer of the pull")
    return answer()


def test_what_peers_told_is_not_stale_for_want_of_a_listing(daemon: DaemonProcess) -> None:
    """A version whose manifest other nodes told has no validators of its source: it counts as changed there when a size
    differs, and not before."""
    with HostileOrigin(host="127.0.0.1") as origin:
        url = origin.put("/model.safetensors", WEIGHTS, etag='"old"')
        daemon.write_catalog({"tiny": prefetched(url)})
        daemon.start()
        daemon.wait_ready(V1)
        daemon.stop()
        path = daemon.layout.fetch_record(V1)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}, "manifest_from": "peers"}))
        daemon.start("--resolve-interval", "0.2s")
        before = len(origin.requests)
        daemon.wait(lambda: len(origin.requests) > before + 4, "some listings")
        assert daemon.wait_state(V1, "ready")["stale"] is None
        origin.put("/model.safetensors", WEIGHTS + b"more", etag='"new"')
        daemon.wait(lambda: (daemon.status(V1) or {}).get("stale") is not None, "stale")
