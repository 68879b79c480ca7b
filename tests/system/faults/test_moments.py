"""Faults that are a matter of the moment: what changes, hangs or ends while something is under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.certificates import Certificates
from tests.support.daemon import DaemonProcess, daemon_process, model
from tests.support.origin_faults import DoFirst, DripHead, ResetAfter, Stall
from tests.support.stages import SIZE, Place, Stages, content, etag, manifest_of, open_stages, s3_listing

GRACE_S = 60.0  # twice the kubelet's: the machine is busy


@pytest.fixture
def stages(tmp_path: Path, certificates: Certificates) -> Iterator[Stages]:
    with open_stages(tmp_path, certificates) as opened:
        yield opened


@pytest.fixture
def daemon(tmp_path: Path, stages: Stages) -> Iterator[DaemonProcess]:
    with daemon_process(tmp_path / "node", "--scrub-rate", "0", environment=stages.environment) as process:
        yield process


@pytest.mark.parametrize("source", ["http", "s3"])
def test_an_object_replaced_while_it_comes_is_taken_new_or_not_at_all(
    daemon: DaemonProcess, stages: Stages, source: str
) -> None:
    """Half of the old object and half of the new one are never put together: the version is listed again, and new."""
    old, new = content("old"), content("new")
    staged = stages.stage(source, "m", {"model.bin": old}, sealed=False)
    place, listing = staged.places["bytes"], staged.places["listing"]

    def replace_it() -> None:
        stages.origin.put(place.path, new, etag=etag(new))
        if source == "s3":
            stages.origin.put(listing.path, s3_listing({"model.bin": new}), content_type="application/xml")

    place.script(DoFirst(replace_it, ResetAfter(SIZE // 2)))
    daemon.write_catalog({"m": model(staged.uri)})
    daemon.start()
    daemon.pull("m@v1")
    daemon.wait_ready(ModelRef("m", "v1"))
    assert daemon.files(ModelRef("m", "v1")) == {"model.bin": new}
    assert daemon.metric("holdfast_fetch_errors_total", source=source, reason="source_changed") >= 1


def test_two_publishers_of_one_version_are_never_mixed(daemon: DaemonProcess, stages: Stages) -> None:
    """Files of one publisher under the manifest of another fail the version by their sha256; no mix is published."""
    mine, yours = ({name: content(f"{who} {name}") for name in ("a.bin", "b.bin")} for who in ("mine", "yours"))
    staged = stages.stage("s3", "m", mine)
    stages.origin.put("/m/m/b.bin", yours["b.bin"], etag=etag(yours["b.bin"]))
    daemon.write_catalog({"m": model(staged.uri)})
    daemon.start()
    daemon.pull("m@v1")
    error = daemon.wait_state(ModelRef("m", "v1"), "failed")["error"]
    assert error["code"] == "digest_mismatch" and "b.bin" in error["message"]
    assert not daemon.path(ModelRef("m", "v1")).is_symlink()
    stages.origin.put("/m/m/holdfast.json", manifest_of({**mine, "b.bin": yours["b.bin"]}))
    daemon.pull("m@v1")
    daemon.wait_state(ModelRef("m", "v1"), "ready")


@pytest.mark.parametrize("place", ["listing", "bytes", "locate", "revision", "manifest"])
def test_sigterm_ends_while_every_source_says_nothing(daemon: DaemonProcess, stages: Stages, place: str) -> None:
    """Requests that hang, whatever they are for, keep a daemon that was told to stop no longer than its grace."""
    catalog, waiting = {}, []
    for source in ("http", "s3", "hf"):
        for number in range(2):
            name = f"{source}-{number}"
            staged = stages.stage(source, name, sealed=place == "bytes")
            if place in staged.places:
                staged.places[place].always(Stall(None) if number % 2 else DripHead())
                waiting.append(staged.places[place])
                catalog[name] = model(staged.uri)
    daemon.write_catalog(catalog)
    daemon.start()
    for name in catalog:
        daemon.pull(f"{name}@v1")
    for each in waiting:
        daemon.wait(partial(_was_asked, each), f"a request for {each.path}")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < GRACE_S
    assert "leaving at once" not in daemon.log()


def _was_asked(place: Place) -> bool:
    return any(seen.path.partition("?")[0] == place.path for seen in place.origin.requests)
