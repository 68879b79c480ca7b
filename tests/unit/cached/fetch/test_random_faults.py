"""All faults at once, in an order that a seed decides: what is committed is right, and everything comes back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.transport.connection.cancel import Cancelled
from tests.support.fetching import DEADLINE_S, MIB, check_committed, http, noise, open_engine, spec_of
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import (
    Both,
    CloseAfterwards,
    Extra,
    Fault,
    FlipBit,
    Hangup,
    IgnoreRange,
    InChunks,
    RangeAs200,
    ResetAfter,
    Status,
    Truncate,
)

_SIZES = (0, 1, 4097, 3 * MIB, 4 * MIB + 1, 32 * MIB + 1, 66 * MIB, 70 * MIB)


def _faults(chance: random.Random, size: int) -> list[Fault]:
    def some() -> int:
        return chance.randrange(size + 1)

    kinds: list[Fault] = [
        ResetAfter(some()),
        Truncate(some()),
        Hangup(),
        Extra(),
        CloseAfterwards(),
        RangeAs200(),
        IgnoreRange(),
        InChunks(chance.choice((1000, 100_000, MIB))),
        Both(IgnoreRange(), InChunks(MIB)),
        Both(InChunks(MIB), ResetAfter(some())),
        Status(503, {"Retry-After": "0"}),
        Status(403),
    ]
    return chance.choices(kinds, k=chance.randrange(6))


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 60))])
def test_foul_weather(tmp_path: Path, origin: HostileOrigin, seed: int) -> None:
    """Whatever the origin does, a download ends with the right blob, or with an error that says why, or cancelled."""
    chance = random.Random(seed)
    with open_engine(tmp_path / "root", chance.choice((1, 2, 5)), per_origin=chance.choice((1, 3, 5))) as engine:
        downloads = []
        for n in range(8):
            size = chance.choice(_SIZES)
            data, path = noise()[n : n + size], f"/{n}"
            origin.put(path, data, etag='"v1"')
            known = chance.random() < 0.7
            if known and size and chance.random() < 0.3:
                origin.script(path, FlipBit(chance.randrange(size)))
            origin.script(path, *_faults(chance, size))
            spec = spec_of(data, name=path, sha256="" if known else None, size=size if known else None)
            downloads.append((data, engine.launch(spec, http(origin.url(path)), chance.randrange(3))))
        for _, download in chance.sample(downloads, 2):
            download.priority = chance.randrange(3)
        downloads[chance.randrange(8)][1].cancel()
        for data, download in downloads:
            error = download.result.exception(DEADLINE_S)
            if error is None:
                check_committed(engine.layout, data, download.result.result())
            else:
                assert isinstance(error, (Cancelled, HoldfastError))
