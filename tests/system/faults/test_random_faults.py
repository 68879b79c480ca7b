"""Faults in any order, at every network source, on versions of many sizes: hours of bad luck in minutes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.certificates import Certificates
from tests.support.daemon import daemon_process, model
from tests.support.origin_faults import (
    Endless,
    Extra,
    Fault,
    FlipBit,
    Hangup,
    Headers,
    IgnoreRange,
    InChunks,
    RangeAs200,
    Raw,
    ResetAfter,
    Stall,
    Status,
    Truncate,
)
from tests.support.stages import content, open_stages

_MIB = 1024 * 1024
_SIZES = (0, 1, 4095, 4096, 4 * _MIB + 1, 32 * _MIB, 32 * _MIB + 1, 70 * _MIB)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_what_is_published_is_right(tmp_path: Path, certificates: Certificates, seed: int) -> None:
    """Every version ends ready with every byte right, or failed with a reason; none ends in between."""
    chance = random.Random(seed)
    options = ("--scrub-rate", "0", "--stall-timeout", "2", "--connections", "16")
    with open_stages(tmp_path, certificates) as stages:
        staged = {}
        for number, size in enumerate(_SIZES):
            for source in ("http", "s3", "hf"):
                name = f"{source}-{number}"
                data = content(f"{seed} {name}", size)
                staged[name] = stages.stage(source, name, {"model.bin": data, "config.json": b"{}" + data[:9]})
                for place in staged[name].places.values():
                    place.script(*(_fault(chance, size) for _ in range(chance.randrange(4))))
        with daemon_process(tmp_path / "node", *options, environment=stages.environment) as daemon:
            daemon.write_catalog({name: model(each.uri) for name, each in staged.items()})
            daemon.start()
            for name in staged:
                daemon.pull(f"{name}@v1")
            for name, each in staged.items():
                ref = ModelRef(name, "v1")
                daemon.wait(lambda ref=ref: daemon.state(ref) in ("ready", "failed"), f"the end of {ref}")  # type: ignore[misc]
                if daemon.state(ref) == "ready":
                    assert daemon.files(ref) == each.files
                else:
                    assert daemon.error(ref)["remedy"]
                    assert not daemon.path(ref).is_symlink()
            assert daemon.stop() == 0


def _fault(chance: random.Random, size: int) -> Fault:
    some = chance.randrange(size + 1)
    faults: tuple[Fault, ...] = (
        ResetAfter(some),
        Truncate(some),
        Hangup(),
        Extra(),
        RangeAs200(),
        IgnoreRange(),
        InChunks(chance.choice((1000, 100_000))),
        Stall(some),
        FlipBit(some),
        Endless(),
        Status(503, {"Retry-After": "0"}),
        Status(403),
        Headers({"Content-Encoding": "gzip"}),
        Headers({"Content-Length": str(size + 1)}),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    )
    return chance.choice(faults)
