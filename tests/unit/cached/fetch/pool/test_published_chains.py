"""The chaining values at a version's source: what is read from there, and what the log says of the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing

import pytest

from cached.contract.reference import ModelRef
from cached.core.listing import RemoteFile
from cached.fetch.pool.published_chains import PublishedChains
from cached.peers.chain_file import MAX_CHAIN_FILE_BYTES, encode_chains
from cached.sources.http.source import WebSource
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Fault, ResetAfter, Status, Truncate

REF, STATES = ModelRef("m", "v1"), {"1" * 64: bytes(32)}
WRITTEN = encode_chains(STATES) or b""
PATH = "/m/.holdfast/chains"


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with closing(HttpClient(HttpSettings())) as made:
        yield made


async def read(origin: HostileOrigin, client: HttpClient, reader: PublishedChains) -> object:
    """What the version's published chaining values are, as its own listing names them."""
    origin.publish("/m/", {"config.json": b"{}"})
    source = WebSource(origin.url("/m/"), client)
    chains = (await source.resolve()).chains
    assert chains is not None
    return await reader.read(REF, source, chains)


async def test_published_states_are_read(client: HttpClient) -> None:
    """The file that `publish` wrote gives its states, by one request."""
    with HostileOrigin() as origin:
        origin.put(PATH, WRITTEN)
        assert await read(origin, client, PublishedChains(client)) == STATES
        assert [seen.path for seen in origin.requests].count(PATH) == 1


async def test_a_missing_file_is_no_trouble(client: HttpClient, caplog: pytest.LogCaptureFixture) -> None:
    """A version that an earlier release published has none: that costs one answer 404, and the log is silent; so it is
    for 403, by which a store may say that there is nothing."""
    caplog.set_level(logging.INFO)
    with HostileOrigin() as origin:
        assert await read(origin, client, PublishedChains(client)) == {}
        origin.always(PATH, Status(403))
        assert await read(origin, client, PublishedChains(client)) == {}
        assert [seen.path for seen in origin.requests].count(PATH) == 2
    assert not [each for each in caplog.records if each.name.startswith("cached.fetch")]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (WRITTEN[:-1], None),
        (b"<!doctype html><title>404</title>", None),
        (bytes(MAX_CHAIN_FILE_BYTES + 1), None),
        (WRITTEN, Truncate(20)),
        (WRITTEN, ResetAfter(20)),
        (WRITTEN, Status(500)),
    ],
    ids=["cut short", "a page", "too large", "truncated", "reset", "500"],
)
async def test_what_is_of_no_use_is_said_once(
    client: HttpClient, caplog: pytest.LogCaptureFixture, data: bytes, fault: Fault | None
) -> None:
    """Anything else tells nothing and fails nothing; the log has the reason, once for the same one."""
    reader = PublishedChains(client)
    with HostileOrigin() as origin:
        origin.put(PATH, data)
        if fault is not None:
            origin.always(PATH, fault)
        assert await read(origin, client, reader) == {}
        assert await read(origin, client, reader) == {}
    said = [each.getMessage() for each in caplog.records if each.name.startswith("cached.fetch")]
    assert len(said) == 1
    assert said[0].startswith("m@v1: its published chaining values are of no use: ")


async def test_a_source_that_may_not_be_read_is_said(client: HttpClient, caplog: pytest.LogCaptureFixture) -> None:
    """Where the address of the file itself fails, that is said, and nothing is raised."""
    source = WebSource("http://127.0.0.1:1/m/", client)
    assert await PublishedChains(client).read(REF, source, RemoteFile("x", "http://127.0.0.1:1/m/x", None)) == {}
    assert "of no use" in caplog.text
