"""Downloads through this node's Dragonfly: verified as from the origin, and from the origin where it does not help."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.fetch.blob import SEGMENT_BYTES
from cached.transport.origin_proxy import OriginProxySettings, parse_origin_proxy
from tests.support.dragonfly import Cluster, serve_dfdaemon
from tests.support.fetching import MIB, Engine, check_committed, http, noise, open_engine, spec_of
from tests.support.origin import HostileOrigin

SMALL = noise()[:1000]
LARGE = noise()[: SEGMENT_BYTES + 2 * MIB + 5]
BOTH = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def engine(tmp_path: Path, cluster: Cluster) -> Iterator[Engine]:
    """An engine that asks a dfdaemon of the cluster."""
    with serve_dfdaemon(cluster) as url:
        settings = OriginProxySettings(parse_origin_proxy(f"dragonfly={url}"))
        with open_engine(tmp_path / "root", origin_proxy=settings) as opened:
            yield opened


@BOTH
def test_a_blob_comes_through_dragonfly(engine: Engine, cluster: Cluster, origin: HostileOrigin, data: bytes) -> None:
    """A blob is committed from what dfdaemon sends, which asks the origin once, and counted so."""
    url = origin.put("/f", data, etag='"v1"')
    check_committed(engine.layout, data, engine.fetch(spec_of(data), http(url)))
    assert len(origin.requests) == 1
    assert cluster.fetched == [url]
    assert engine.counts.proxy_bytes == engine.counts.received_bytes == len(data)


@BOTH
def test_wrong_bytes_come_again_from_the_origin(
    engine: Engine, cluster: Cluster, origin: HostileOrigin, data: bytes
) -> None:
    """Wrong bytes of Dragonfly's are not committed, and not the source's fault: the blob comes from the origin."""
    url = origin.put("/f", data, etag='"v1"')
    check_committed(engine.layout, data, engine.fetch(spec_of(data), http(url)))
    cluster.corrupt()
    blob = engine.layout.blob(hashlib.sha256(data).hexdigest())
    blob.unlink()
    check_committed(engine.layout, data, engine.fetch(spec_of(data), http(url)))
    assert (engine.counts.proxy_mismatches, engine.counts.mismatches) == (1, 1)
    assert not engine.counts.failures
    assert engine.counts.proxy_bytes == 2 * len(data)
    assert engine.counts.received_bytes == 3 * len(data)


@BOTH
def test_an_object_of_another_length_is_not_believed(
    engine: Engine, cluster: Cluster, origin: HostileOrigin, data: bytes
) -> None:
    """A task of another length than the source's file is left for the origin, and no fault of the source."""
    url = origin.put("/f", data + b"more", etag='"v1"')
    other = spec_of(data + b"more")
    engine.fetch(other, http(url))
    task = cluster.tasks.popitem()[1]
    named = f"sha256:{hashlib.sha256(data).hexdigest()}"
    cluster.tasks[hashlib.sha256(named.encode()).hexdigest()] = task
    origin.put("/g", data, etag='"v1"')
    check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/g"))))
    assert not engine.counts.failures


def test_a_dragonfly_that_breaks_off_delays_nothing_for_long(
    engine: Engine, cluster: Cluster, origin: HostileOrigin
) -> None:
    """Bodies that end early are tried again at the origin; what came before counts."""
    cluster.truncates = True
    url = origin.put("/f", LARGE, etag='"v1"')
    check_committed(engine.layout, LARGE, engine.fetch(spec_of(LARGE), http(url)))


def test_a_blob_of_unknown_content_is_the_origins(engine: Engine, cluster: Cluster, origin: HostileOrigin) -> None:
    """A blob that only its ETag promises is asked of the origin: nothing would tell other bytes."""
    url = origin.put("/f", SMALL, etag='"v1"')
    engine.fetch(spec_of(SMALL, sha256=None), http(url))
    assert not cluster.requests
