"""The catalog in force: prefetch, pulls, edits of the file in every way that it is edited."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, model, prefetched, write_files

V1, V2 = ModelRef("tiny", "v1"), ModelRef("tiny", "v2")


def test_ready_once_the_catalog_is_loaded(daemon: DaemonProcess) -> None:
    """/readyz is 503 with the reason until the catalog is there, and 200 from then on."""
    daemon.catalog.parent.rmdir()
    daemon.listen()
    daemon.wait(lambda: str(daemon.catalog) in daemon.get("/readyz")[1], "the missing catalog as the reason")
    assert daemon.get("/readyz")[0] == 503
    assert daemon.get("/healthz")[0] == 200
    daemon.catalog.parent.mkdir()
    daemon.write_catalog({})
    daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "200 from /readyz")


def test_a_pull_before_the_catalog_waits_for_it(daemon: DaemonProcess, source: Path) -> None:
    """What is pulled while there is no catalog yet is queued, and fetched once there is one."""
    write_files(source, {"a.bin": b"a"})
    daemon.listen()
    assert daemon.pull("tiny@v1") == "queued"
    assert daemon.state(V1) == "queued"
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.wait_ready(V1)


def test_prefetched_and_pulled_versions_arrive(daemon: DaemonProcess, source: Path) -> None:
    """What the catalog prefetches arrives by itself, what it only lists when it is pulled."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"tiny": {**model(f"file://{source}", "v1", "v2"), "prefetch": {"versions": ["v1"]}}})
    daemon.start()
    daemon.wait_ready(V1)
    assert daemon.state(V2) is None
    daemon.pull("tiny@v2")
    daemon.wait_ready(V2)
    assert daemon.digest(V1) == daemon.digest(V2)


def test_an_unknown_model_is_refused_until_the_catalog_has_it(daemon: DaemonProcess, source: Path) -> None:
    """A pull of what the catalog lacks fails with `unknown_model`, and is met without another once it is listed."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"other": model(f"file://{source}")})
    daemon.start()
    assert daemon.pull("tiny@v1") == "failed"
    error = daemon.error(V1)
    assert (error["code"], error["permanent"]) == ("unknown_model", True)
    assert error["remedy"]
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.wait_state(V1, "ready")


def test_a_bad_entry_is_rejected_alone(daemon: DaemonProcess, source: Path) -> None:
    """A bad entry is named in the log with its line, and all others are served."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog_text(
        "models:\n"
        "  tiny:\n"
        f"    versions: {{v1: {{source: 'file://{source}'}}}}\n"
        "    prefetch: {versions: [v1]}\n"
        "  bad--name:\n"
        "    versions: {}\n"
    )
    daemon.start()
    daemon.wait_ready(V1)
    assert "line 5" in daemon.log()
    assert "bad--name" in daemon.log()
    assert daemon.metric("holdfast_catalog_rejected_entries") == 1
    assert daemon.metric("holdfast_catalog_models") == 1


def test_a_broken_file_leaves_the_last_good_catalog_in_force(daemon: DaemonProcess, source: Path) -> None:
    """A catalog that is no YAML changes nothing: what the last one listed can still be pulled."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start()
    (in_force,) = daemon.samples("holdfast_catalog_info")
    daemon.write_catalog_text("models: [")
    daemon.wait(lambda: "the last good catalog stays in force" in daemon.log(), "the log about it")
    daemon.pull("tiny@v1")
    daemon.wait_ready(V1)
    assert daemon.get("/readyz")[0] == 200
    assert set(daemon.samples("holdfast_catalog_info")) == {in_force}
    assert daemon.metric("holdfast_catalog_generation") == 1
    assert daemon.metric("holdfast_catalog_unusable") == 1


def test_a_catalog_that_comes_back_is_usable_again(daemon: DaemonProcess, source: Path) -> None:
    """A file that went away counts as unusable until it is there again, also where its text is the one of before."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start()
    away = daemon.catalog.with_name("away")
    daemon.catalog.rename(away)
    daemon.wait(lambda: daemon.metric("holdfast_catalog_unusable") == 1, "an unusable catalog")
    away.rename(daemon.catalog)
    daemon.wait(lambda: daemon.metric("holdfast_catalog_unusable") == 0, "a usable catalog")
    assert daemon.metric("holdfast_catalog_generation") == 1


def test_a_config_maps_update_is_noticed(daemon: DaemonProcess, source: Path) -> None:
    """The kubelet's way to update: the folder that `..data` points at is replaced, the file itself is never touched."""
    write_files(source, {"a.bin": b"a"})
    folder = daemon.catalog.parent
    _mount(folder, "first", {"tiny": prefetched(f"file://{source}")})
    daemon.catalog.symlink_to("..data/catalog.yaml")
    daemon.start()
    daemon.wait_ready(V1)
    _mount(folder, "second", {"tiny": prefetched(f"file://{source}", "v1", "v2")})
    daemon.wait_ready(V2)


def test_a_version_that_leaves_the_catalog_is_called_off(daemon: DaemonProcess, source: Path) -> None:
    """An entry removed while it is fetched stops the fetch and takes its status away; nothing is published."""
    write_files(source, {"a.bin": bytes(20_000_000)})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start("--max-bandwidth", "1MiB/s")
    daemon.wait_state(V1, "fetching")
    daemon.write_catalog({})
    daemon.wait_state(V1, None)
    daemon.wait(lambda: daemon.metric("holdfast_fetch_in_progress") == 0, "no fetch in progress")
    assert not daemon.path(V1).exists()


def test_a_pull_of_what_left_the_catalog_says_so(daemon: DaemonProcess, source: Path) -> None:
    """A pulled version whose entry goes while it is fetched ends as `failed` with `unknown_model`: a client waits."""
    write_files(source, {"a.bin": bytes(20_000_000)})
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start("--max-bandwidth", "1MiB/s")
    daemon.pull("tiny@v1")
    daemon.wait_state(V1, "fetching")
    daemon.write_catalog({"other": model(f"file://{source}")})
    daemon.wait_state(V1, "failed")
    daemon.wait(lambda: daemon.metric("holdfast_fetch_in_progress") == 0, "no fetch in progress")
    _settle(daemon)
    assert daemon.error(V1)["code"] == "unknown_model"


def test_an_entry_that_comes_back_is_fetched_after_all(daemon: DaemonProcess, source: Path) -> None:
    """Removed and restored, or given another source while it is fetched: the version arrives as it is listed now."""
    write_files(source / "one", {"a.bin": bytes(20_000_000)})
    two = write_files(source / "two", {"a.bin": b"two"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/one")})
    daemon.start("--max-bandwidth", "2MiB/s")
    daemon.wait_state(V1, "fetching")
    daemon.write_catalog({})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/two")})
    daemon.wait_ready(V1)
    assert daemon.digest(V1) == two.digest


def test_a_version_nobody_wants_stays_until_space_is_needed(daemon: DaemonProcess, source: Path) -> None:
    """A published version whose entry goes stays on the node, ready."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"other": prefetched(f"file://{source}")})
    daemon.wait_ready(ModelRef("other", "v1"))
    assert daemon.state(V1) == "ready"
    assert daemon.files(V1) == {"a.bin": b"a"}


def _mount(folder: Path, name: str, models: dict[str, object]) -> None:
    data = folder / f"..{name}"
    data.mkdir()
    (data / "catalog.yaml").write_text(json.dumps({"models": models}))
    fresh = folder / "..data_tmp"
    fresh.symlink_to(data.name)
    fresh.replace(folder / "..data")


def _settle(daemon: DaemonProcess) -> None:
    """Two edits, one after the other, that the daemon has read: whatever it had still to do before is done. As many
    models as in the catalog before, so that what is said of a missing one does not change."""
    for name in ("x", "y"):
        daemon.write_catalog({name: {"versions": {"v1": {}}}})  # no source: rejected, with a line in the log
        said = f"{name}@v1: no `source`"
        daemon.wait(partial(_says, daemon, said), said)


def _says(daemon: DaemonProcess, text: str) -> bool:
    return text in daemon.log()
