"""Whatever the size and the number of connections: the bytes are right, and nothing but the blob stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fetching import MIB, check_committed, http, local, noise, open_engine, private_files, spec_of
from tests.support.origin import HostileOrigin

SIZES = (0, 1, 4095, 4096, 4097, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 32 * MIB - 1, 32 * MIB, 32 * MIB + 1, 70 * MIB)


@pytest.mark.parametrize("connections", [1, 2, 8])
def test_every_size_arrives(tmp_path: Path, origin: HostileOrigin, connections: int) -> None:
    """A blob of any size is committed with its promised sha256, mode 0444, and its partial folder is gone."""
    with open_engine(tmp_path / "root", connections) as engine:
        downloads = []
        for size in SIZES:
            data = noise()[:size]
            origin.put(f"/{size}", data, etag='"v1"')
            downloads.append((data, engine.launch(spec_of(data, name=str(size)), http(origin.url(f"/{size}")))))
        for data, download in downloads:
            verified = download.result.result(120)
            check_committed(engine.layout, data, verified)
            assert verified.fresh
        assert len(private_files(engine.layout)) == len(SIZES)
        assert engine.counts.received_bytes == sum(SIZES)
        assert engine.counts.failures == []


@pytest.mark.parametrize("size", [0, 1, 4097, 4 * MIB, 33 * MIB + 5])
def test_local_files_arrive(tmp_path: Path, size: int) -> None:
    """A local file becomes a blob like any other."""
    data = noise()[:size]
    (tmp_path / "file").write_bytes(data)
    with open_engine(tmp_path / "root", 2) as engine:
        verified = engine.fetch(spec_of(data), local(tmp_path / "file"))
        check_committed(engine.layout, data, verified)
        assert private_files(engine.layout) == {f"blobs/{verified.sha256[:2]}/{verified.sha256}"}
