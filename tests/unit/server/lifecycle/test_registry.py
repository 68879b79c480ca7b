from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.engine.engine import Job, ThreadedEngine
from server.engine.types import (
    About,
    Continuation,
    GenerationEvent,
    GenerationRequest,
    InvalidRequest,
    ModelKind,
    Sampling,
)
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.registry import Card, ModelRegistry, ServedText
from server.lifecycle.snapshot import Snapshot
from tests.support.generating import completion


class Idle:
    """A model that takes nothing up."""

    room = 0
    busy = False

    def prepare(self, _request: GenerationRequest) -> Continuation:
        return Continuation(((1,),), (1,), Sampling(), ())

    def step(self, arrived: list[Job[Continuation, GenerationEvent]]) -> None:
        raise AssertionError(arrived)

    def reset(self) -> None:
        raise AssertionError


def served(name: str, version: str = "v1") -> ServedText:
    about = About(ModelKind.COMPLETIONS, 10, "cpu", "float32", 1)
    card = Card(name, Snapshot(Path("/m"), f"acme/{name}", version, None), about, 0)
    metrics = ServerMetrics().model(name)
    return ServedText(card, ThreadedEngine(Idle(), 2, metrics), metrics)


async def test_a_model_is_found_by_each_of_its_names() -> None:
    """The name it is served under, its name in the cache, and that with the version all mean the model."""
    catalog, small, large = ModelRegistry(), served("small"), served("large")
    assert catalog.put(small) is None
    assert catalog.put(large) is None
    for name in ("small", "acme/small", "acme/small@v1"):
        assert catalog.find(name) is small
    with pytest.raises(InvalidRequest, match="'large', 'small'") as caught:
        catalog.find("acme/small@v2")
    assert caught.value.code == "model_not_found"
    with pytest.raises(InvalidRequest, match="/v1/chat/completions"):
        catalog.find_encoder("small")
    small.close()
    large.close()


async def test_a_request_that_names_no_model_means_the_only_one() -> None:
    """Where there are several, it must say which."""
    catalog, small, large = ModelRegistry(), served("small"), served("large")
    catalog.put(small)
    assert catalog.find(None) is small
    catalog.put(large)
    with pytest.raises(InvalidRequest, match="expected one of"):
        catalog.find(None)
    small.close()
    large.close()


async def test_a_new_version_takes_the_old_ones_place_and_the_old_one_drains() -> None:
    """New requests find the new version at once; the old one is idle only when its last request is over."""
    catalog, old, new = ModelRegistry(), served("m", "v1"), served("m", "v2")
    catalog.put(old)
    with old.requests.track():
        assert catalog.put(new) is old
        assert catalog.find("m") is new
        draining = asyncio.ensure_future(old.requests.wait_drained())
        await asyncio.sleep(0)
        assert not draining.done()
    await draining
    old.close()
    with pytest.raises(Exception, match="taken out of service"):
        async with old.engine.submit(completion("x")):
            pass
    assert catalog.remove("m") is new
    assert catalog.list_models() == ()
    new.close()
