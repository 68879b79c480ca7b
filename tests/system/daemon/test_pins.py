"""Digests that were promised: met, or nothing is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, model, prefetched, publish_files, write_files

V1 = ModelRef("tiny", "v1")
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 2000}
WRONG = Digest("0" * 64)


pytestmark = pytest.mark.long


def _nothing_is_published(daemon: DaemonProcess) -> bool:
    public = daemon.layout.public
    return not [*public.models.iterdir(), *public.snapshots.iterdir()]


def test_the_right_pin_is_met(daemon: DaemonProcess, source: Path) -> None:
    """A version whose content has the pinned digest is ready, and told as pinned."""
    manifest = publish_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=manifest.digest)})
    daemon.start()
    daemon.wait_ready(V1)
    status = daemon.status(V1)
    assert status is not None
    assert (status["digest"], status["pinned"]) == (str(manifest.digest), True)
    assert daemon.metric("holdfast_model_pinned", model="tiny", version="v1") == 1


def test_without_a_pin_the_digest_is_told_as_found(daemon: DaemonProcess, source: Path) -> None:
    """An unpinned version's digest is computed at its first fetch, and holdfast_model_pinned is 0."""
    manifest = write_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    status = daemon.status(V1)
    assert status is not None
    assert (status["digest"], status["pinned"]) == (str(manifest.digest), False)
    assert daemon.samples("holdfast_model_pinned") == {frozenset({("model", "tiny"), ("version", "v1")}): 0}


@pytest.mark.parametrize(("kind", "fetched"), [(publish_files, 0), (write_files, sum(map(len, FILES.values())))])
def test_a_wrong_pin_publishes_nothing(daemon: DaemonProcess, source: Path, kind: object, fetched: int) -> None:
    """A wrong pin fails with both digests and publishes nothing; with a manifest at the source nothing is even
    fetched. The corrected pin is met, and what was fetched is not fetched again."""
    assert kind in (publish_files, write_files)
    manifest = publish_files(source, FILES) if kind is publish_files else write_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=WRONG)})
    daemon.start()
    status = daemon.wait_state(V1, "failed")
    assert status["error"]["code"] == "digest_mismatch"
    assert status["error"]["permanent"] is True
    assert str(WRONG) in status["error"]["message"]
    assert str(manifest.digest) in status["error"]["message"]
    assert _nothing_is_published(daemon)
    assert daemon.metric("holdfast_fetch_bytes_total") == fetched
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=manifest.digest)})
    daemon.wait_state(V1, "ready")
    assert daemon.digest(V1) == manifest.digest
    assert daemon.metric("holdfast_fetch_bytes_total") == sum(map(len, FILES.values()))


def test_a_pull_may_pin(daemon: DaemonProcess, source: Path) -> None:
    """A pull's pin holds where the catalog has none: a wrong one fails that pull, the right one is met."""
    manifest = publish_files(source, FILES)
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start()
    assert _verdict(daemon, WRONG) == "digest_mismatch"
    assert _nothing_is_published(daemon)
    daemon.wait_state(V1, None)
    daemon.pull("tiny@v1", manifest.digest)
    daemon.wait_ready(V1)
    assert (daemon.status(V1) or {})["pinned"] is True


@pytest.mark.parametrize("kind", [publish_files, write_files])
@pytest.mark.parametrize("prefetches", [False, True])
def test_a_pulls_wrong_pin_is_its_own(
    daemon: DaemonProcess, source: Path, kind: Callable[..., Manifest], *, prefetches: bool
) -> None:
    """A pull that pins wrong is told so, and no other: what is here stays ready, also after a restart."""
    manifest = kind(source, FILES)
    daemon.write_catalog({"tiny": (prefetched if prefetches else model)(f"file://{source}")})
    daemon.start()
    daemon.pull("tiny@v1")
    daemon.wait_ready(V1)
    assert _verdict(daemon, WRONG) == "digest_mismatch"
    status = daemon.wait_state(V1, "ready")
    assert (status["digest"], status["error"], status["refused_pins"]) == (str(manifest.digest), None, {})
    assert daemon.pull("tiny@v1") == "ready"
    daemon.stop()
    daemon.start()
    assert daemon.pull("tiny@v1") == "ready"


def test_a_pull_and_a_catalog_that_pin_differently(daemon: DaemonProcess, source: Path) -> None:
    """A pull that pins another digest than the catalog is refused by itself; the status stays that of the version."""
    manifest = publish_files(source, FILES)
    daemon.write_catalog({"tiny": model(f"file://{source}", digest=manifest.digest)})
    daemon.start()
    assert _verdict(daemon, WRONG) == "digest_mismatch"
    assert daemon.state(V1) is None
    daemon.pull("tiny@v1")
    daemon.wait_ready(V1)
    assert _verdict(daemon, WRONG) == "digest_mismatch"
    assert daemon.state(V1) == "ready"


def test_two_pulls_each_get_their_answer(daemon: DaemonProcess, source: Path) -> None:
    """Of two pulls at once that pin differently, the one that is right is met, and the other told what is here."""
    manifest = write_files(source, FILES)
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start("--max-bandwidth", "200KiB/s")
    wrong = daemon.control.pull(V1, WRONG, refresh=False)
    right = daemon.control.pull(V1, manifest.digest, refresh=False)
    daemon.wait(lambda: daemon.control.get_pull(right.id).digest == str(manifest.digest), "the right pin to be met")
    error = daemon.control.get_pull(wrong.id).error
    assert error is not None and error.code == "digest_mismatch"
    daemon.wait_state(V1, "ready")


def test_what_the_catalog_lacks_and_is_here_stays_ready(daemon: DaemonProcess, source: Path) -> None:
    """Who pulls a version that left the catalog is told `unknown_model`; its status stays `ready`: it is here."""
    write_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"other": model(f"file://{source}")})
    daemon.wait(lambda: daemon.log().count("catalog: ") == 2, "the edit to be read")
    assert _verdict(daemon, None) == "unknown_model"
    assert daemon.state(V1) == "ready"


def _verdict(daemon: DaemonProcess, pin: Digest | None) -> str:
    """The code of the error that a pull with this pin ends with."""
    asked = daemon.control.pull(V1, pin, refresh=False)
    daemon.wait(lambda: daemon.control.get_pull(asked.id).error is not None, "the pull's own answer")
    error = daemon.control.get_pull(asked.id).error
    assert error is not None
    return error.code


def test_a_pin_that_comes_later_is_told(daemon: DaemonProcess, source: Path) -> None:
    """A version that is here already counts as pinned as soon as the catalog promises its digest."""
    manifest = publish_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=manifest.digest)})
    daemon.wait(lambda: daemon.metric("holdfast_model_pinned") == 1, "holdfast_model_pinned 1")
    assert daemon.metric("holdfast_fetch_bytes_total") == sum(map(len, FILES.values()))


def test_a_new_pin_replaces_the_content_of_a_name(daemon: DaemonProcess, source: Path) -> None:
    """Where the catalog's digest changes, the name moves to the new content in one step, or stays where it was."""
    old = publish_files(source / "old", FILES)
    new = publish_files(source / "new", {"config.json": b"[]"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old", digest=old.digest)})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/old", digest=new.digest)})
    daemon.wait_state(V1, "failed")
    assert daemon.digest(V1) == old.digest
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/new", digest=new.digest)})
    daemon.wait_state(V1, "ready")
    assert daemon.digest(V1) == new.digest
    assert daemon.files(V1) == {"config.json": b"[]"}


def test_a_failure_that_nobody_waits_for_leaves_what_is_here(daemon: DaemonProcess, source: Path) -> None:
    """A name whose new pin could not be met is told as ready again, with its digest, once that pin is withdrawn."""
    old = publish_files(source, FILES)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=old.digest)})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=WRONG)})
    daemon.wait_state(V1, "failed")
    daemon.write_catalog({"tiny": model(f"file://{source}", digest=old.digest)})
    assert daemon.wait_state(V1, "ready")["digest"] == str(old.digest)
