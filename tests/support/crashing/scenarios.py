"""The pieces of a daemon's life that crash tests cut at every point: together they take every durable step there is.

Law: small versions, chosen so that each is whole in a fraction of a second; what happens in a scenario is caused by its
catalog, its commands and signals, as by an administrator.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State, encode
from tests.support.crashing.journal import replace_bytes
from tests.support.crashing.stage import Scenario, Stage
from tests.support.crashing.warm import SEGMENT_BYTES, WarmDaemon
from tests.support.daemon import prefetched
from tests.support.filling import manifest_of
from tests.support.origin_faults import Stall

ONE, TWO, THREE = (ModelRef("acme/tiny", version) for version in ("v1", "v2", "v3"))
_NAME = "acme/tiny"


def _bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


_BIG = _bytes(1, 5 * SEGMENT_BYTES + 1234)
_FIRST = {"config.json": b"{}", "model.safetensors": _BIG, "sub/deep/tokens.json": _bytes(2, 5000)}
_SECOND = {"config.json": b'{"v": 2}', "model.safetensors": _BIG}
_SMALL = {"config.json": b"{}", "model.safetensors": _bytes(3, 200_001)}
_OTHER = {"config.json": b"{}", "model.safetensors": _bytes(4, 200_002)}


def _wanting(urls: Mapping[str, str], wanted: set[str], digests: Mapping[str, Digest] | None = None) -> dict[str, Any]:
    """A catalog of one model: a source for each version, and which are wanted."""
    pins = digests or {}
    versions = {
        v: {"source": url, **({"digest": str(pins[v])} if v in pins else {})} for v, url in sorted(urls.items())
    }
    return (
        {_NAME: {"versions": versions, "prefetch": {"versions": sorted(wanted)}}}
        if wanted
        else {_NAME: {"versions": versions}}
    )


# --- the first fetch of an empty root: ranges, commit, publication; then a version that shares a blob ---------------


def _serve_first(on: Stage) -> None:
    on.serve("v1", _FIRST)
    on.serve("v2", _SECOND)


def _first_catalog(on: Stage) -> dict[str, Any]:
    return _wanting({v: on.origin.url(f"/{v}/") for v in ("v1", "v2")}, {"v1", "v2"})


def _fetch_first(on: Stage) -> None:
    on.daemon.write_catalog(_wanting({v: on.origin.url(f"/{v}/") for v in ("v1", "v2")}, {"v1"}))
    on.daemon.start()
    on.daemon.wait_ready(ONE)
    on.daemon.write_catalog(_first_catalog(on))
    on.daemon.wait_ready(ONE, TWO)
    assert on.daemon.stop() == 0


FIRST = Scenario("first", {ONE: _FIRST, TWO: _SECOND}, _serve_first, _first_catalog, _fetch_first)


# --- files whose sha256 no source promised ----------------------------------------------------------------------------


def _serve_unlisted(on: Stage) -> None:
    on.serve_unlisted("v1", {"config.json": b"{}", "model.safetensors": _BIG})


def _catalog_of_v1(on: Stage) -> dict[str, Any]:
    return {_NAME: prefetched(on.origin.url("/v1/"))}


def _fetch_v1(on: Stage) -> None:
    on.daemon.write_catalog(_catalog_of_v1(on))
    on.daemon.start()
    on.daemon.wait_ready(ONE)


UNLISTED = Scenario(
    "unlisted",
    {ONE: {"config.json": b"{}", "model.safetensors": _BIG}},
    _serve_unlisted,
    _catalog_of_v1,
    _fetch_v1,
    again=("ingest data", "ingest state", "blob"),
)


# --- SIGTERM in the middle of a fetch, and what goes on from there -------------------------------------------------


def _stop_in_the_middle(on: Stage) -> None:
    daemon = on.daemon
    on.origin.heal("/slow/model.safetensors")  # faults that an earlier life left
    on.origin.script("/slow/model.safetensors", *[_Pass()] * 3, *[Stall(1000)] * 2)
    on.daemon.write_catalog({_NAME: prefetched(on.origin.url("/slow/"))})
    daemon.start()
    daemon.wait(lambda: _is_recorded(daemon) or daemon.path(ONE).exists(), "a record, or the end of what was recorded")
    assert daemon.stop() == 0


def _is_recorded(daemon: WarmDaemon) -> bool:
    return any(daemon.layout.ingest.glob("*/state.json"))


class _Pass:
    """No fault at all."""

    def apply(self, reply: Any, whole: memoryview) -> Any:
        return reply


def _serve_slow(on: Stage) -> None:
    on.serve("v1", _FIRST)
    on.serve("slow", _FIRST)


STOPPED = Scenario(
    "stopped", {ONE: _FIRST}, _serve_slow, _catalog_of_v1, _stop_in_the_middle, again=("ingest data", "ingest state")
)


# --- a version whose content changes, its pin with it --------------------------------------------------------------


def _serve_changed(on: Stage) -> None:
    on.serve("old", _SMALL)
    on.serve("new", _OTHER)


def _changed_catalog(on: Stage) -> dict[str, Any]:
    return {_NAME: prefetched(on.origin.url("/new/"), digest=manifest_of(_OTHER).digest)}


def _have_old(on: Stage) -> None:
    on.daemon.write_catalog({_NAME: prefetched(on.origin.url("/old/"), digest=manifest_of(_SMALL).digest)})
    on.daemon.start()
    on.daemon.wait_ready(ONE)
    assert on.daemon.stop() == 0


def _change(on: Stage) -> None:
    on.daemon.write_catalog(_changed_catalog(on))
    on.daemon.start()
    on.daemon.wait(lambda: _is_changed(on), "the new content")
    on.daemon.wait_ready(ONE)
    on.daemon.control.gc(dry_run=False)


def _is_changed(on: Stage) -> bool:
    return on.daemon.digest(ONE) == manifest_of(_OTHER).digest


CHANGED = Scenario("changed", {ONE: _OTHER}, _serve_changed, _changed_catalog, _change, _have_old, done=_is_changed)


# --- a quota that two old versions fill ----------------------------------------------------------------------------

_LARGE = {"model.safetensors": _bytes(5, 3 * SEGMENT_BYTES + 100), "config.json": b'{"v": 3}'}


def _serve_evicting(on: Stage) -> None:
    for name, files in (("v1", _SMALL), ("v2", _OTHER), ("v3", _LARGE)):
        on.serve(name, files)


def _catalog_of_v3(on: Stage) -> dict[str, Any]:
    return _wanting({v: on.origin.url(f"/{v}/") for v in ("v1", "v2", "v3")}, {"v3"})


def _have_two(on: Stage) -> None:
    on.daemon.write_catalog(_wanting({v: on.origin.url(f"/{v}/") for v in ("v1", "v2")}, {"v1", "v2"}))
    on.daemon.start()
    on.daemon.wait_ready(ONE, TWO)
    assert on.daemon.stop() == 0


def _make_room(on: Stage) -> None:
    on.daemon.write_catalog(_catalog_of_v3(on))
    on.daemon.start()
    on.daemon.wait_ready(THREE)


EVICTED = Scenario(
    "evicted",
    {THREE: _LARGE},
    _serve_evicting,
    _catalog_of_v3,
    _make_room,
    _have_two,
    options=(
        "--scrub-rate",
        "0",
        "--connections",
        "2",
        "--quota",
        "1000000",
        "--high-watermark",
        "0.75",
        "--low-watermark",
        "0.7",
    ),
    again=("ingest data", "ingest state", "blob", "trashed snapshot", "model name"),
)


# --- a bit that flips ----------------------------------------------------------------------------------------------


def _flip(on: Stage) -> None:
    """As rot does: the bytes change, and nothing that a file system tells of them."""
    blob = on.daemon.layout.blob(next(e.sha256 for e in manifest_of(_SMALL).files if e.size > 1000))
    found = blob.stat()
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    replace_bytes(blob, bytes(data))
    os.utime(blob, ns=(found.st_atime_ns, found.st_mtime_ns))
    on.spoiled.add(found.st_ino)


def _have_one(on: Stage) -> None:
    on.daemon.write_catalog(_catalog_of_v1(on))
    on.daemon.start()
    on.daemon.wait_ready(ONE)
    assert on.daemon.stop() == 0


def _serve_small(on: Stage) -> None:
    on.serve("v1", _SMALL)


def _mend(on: Stage) -> None:
    daemon = on.daemon
    daemon.write_catalog(_catalog_of_v1(on))
    daemon.start()
    daemon.wait(lambda: _mended(on), "good bytes")
    daemon.wait_ready(ONE)
    record = daemon.path(ONE) / ".holdfast" / "verified.json"
    for _ in range(2):  # the first may still be doing the last of it when the second is seen
        seen = record.stat().st_ino
        daemon.wait(lambda seen=seen: record.stat().st_ino != seen, "another round of the scrub")


def _mended(on: Stage) -> bool:
    try:
        return (on.daemon.path(ONE) / "model.safetensors").read_bytes() == _SMALL["model.safetensors"]
    except FileNotFoundError:
        return False


ROTTEN = Scenario(
    "rotten",
    {ONE: _SMALL},
    _serve_small,
    _catalog_of_v1,
    _mend,
    _have_one,
    _flip,
    done=_mended,
    options=("--scrub-rate", "1GiB/s", "--scrub-period", "1s", "--connections", "2"),
)


# --- gc: an eviction by hand, orphans, pins ------------------------------------------------------------------------


def _orphan(on: Stage) -> None:
    """A blob that nothing links, a partial blob that nothing fetches, a blob in quarantine."""
    layout = on.daemon.layout
    _put(layout.blob(manifest_of({"x": b"orphan"}).files[0].sha256), b"orphan", 0o444)
    folder = layout.ingest / ("a" * 64)
    folder.mkdir(mode=0o700)
    _put(folder / "data", bytes(10_000), 0o600)
    _put(folder / "state.json", b'{"done":[[0,4096]],"size":10000,"validator":"x"}', 0o600)
    _put(layout.quarantine / ("b" * 64), b"bad", 0o444)


def _put(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _gc_catalog(on: Stage) -> dict[str, Any]:
    return _wanting({v: on.origin.url(f"/{v}/") for v in ("v1", "v2")}, {"v2"})


def _collect(on: Stage) -> None:
    on.daemon.write_catalog(_gc_catalog(on))
    on.daemon.start()
    on.daemon.control.pin(TWO)
    on.daemon.wait(lambda: _is_collected(on), "a sweep: until v2 has claimed its files there is none")
    assert not on.daemon.path(ONE).exists()


def _is_collected(on: Stage) -> bool:
    on.daemon.control.gc(dry_run=False)
    return not any(on.daemon.layout.quarantine.iterdir())


COLLECTED = Scenario("collected", {TWO: _OTHER}, _serve_evicting, _gc_catalog, _collect, _have_two, _orphan)


# --- the start after a crash ---------------------------------------------------------------------------------------


def _litter(on: Stage) -> None:
    """All that a crash can leave, at once."""
    layout = on.daemon.layout
    public = layout.public
    _orphan(on)
    trashed = layout.trash / f"{'c' * 64}-1"
    (trashed / ".holdfast").mkdir(parents=True)
    _put(trashed / ".holdfast" / "manifest.json", b"{}", 0o444)
    half = public.snapshots / ".tmp-half"
    (half / ".holdfast").mkdir(parents=True)
    _put(half / "model.safetensors", b"half", 0o444)
    for folder in (
        layout.root,
        layout.private,
        public.path,
        public.status,
        public.models / "acme--tiny",
        public.status / "acme--tiny",
        layout.ingest / ("a" * 64),
    ):
        _put(folder / ".tmp-left", b"left", 0o600)
    os.symlink("nowhere", public.models / "acme--tiny" / ".tmp-name")
    os.symlink(f"../../snapshots/{'d' * 64}", public.models / "acme--tiny" / "v9")
    _write_status(layout, ModelRef("acme/gone", "v1"))
    for parent, mode in ((public.models, 0o755), (public.status, 0o755), (layout.fetched, 0o700)):
        (parent / "acme--emptied").mkdir(mode)
    snapshot = public.snapshot(manifest_of(_SMALL).digest)
    replace_bytes(snapshot.manifest, manifest_of(_OTHER).canonical())
    on.spoiled.update(os.lstat(path).st_ino for path in (snapshot.manifest, public.models / "acme--tiny" / "v9"))


def _write_status(layout: Layout, ref: ModelRef) -> None:
    path = layout.public.model_status(ref)
    path.parent.mkdir()
    status = ModelStatus(ref.name, ref.version, State.READY, None, False, "", None, 0, None, None, "", "", None)
    path.write_bytes(encode(status.document()))


def _tidy(on: Stage) -> None:
    _fetch_v1(on)
    on.daemon.wait(lambda: not on.daemon.layout.public.status.joinpath("acme--gone").exists(), "an end of old statuses")


LITTERED = Scenario("littered", {ONE: _SMALL}, _serve_small, _catalog_of_v1, _tidy, _have_one, _litter)

ALL = (FIRST, UNLISTED, STOPPED, CHANGED, EVICTED, ROTTEN, COLLECTED, LITTERED)
