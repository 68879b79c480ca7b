"""Versions from a real registry, pulled by a real daemon: killed in the middle, with tokens that end in the middle."""

from __future__ import annotations

import json
import random
from pathlib import Path

from cached.contract.reference import ModelRef
from tests.support.daemon import daemon_process, model
from tests.support.publishing import published
from tests.support.registry import docker_registry
from tests.support.registry_tokens import PASSWORD, USER, registry_tokens

V1 = ModelRef("tiny", "v1")
MIB = 1024 * 1024
BIG = 100 * MIB


def test_a_killed_pull_goes_on_while_its_tokens_end(tmp_path: Path) -> None:
    """A published version is pulled with tokens of two seconds; after kill -9 the next start goes
    on, with two segments of the one connection at most twice, and has the digest that was published."""
    folder = tmp_path / "m"
    folder.mkdir()
    files = {"config.json": b"{}", "model.bin": random.Random(4).randbytes(BIG)}
    for path, data in files.items():
        (folder / path).write_bytes(data)
    with (
        registry_tokens(tmp_path / "tokens") as tokens,
        docker_registry(tmp_path / "r", more=tokens.settings) as registry,
    ):
        login = {"auths": {registry.host: {"username": USER, "password": PASSWORD}}}
        (tmp_path / "config.json").write_text(json.dumps(login))
        uri = f"oci://{registry.host}/team/tiny:v1"
        digest = published(folder, uri, "--keep-all", env={"DOCKER_CONFIG": str(tmp_path)})["digest"]
        tokens.lifetime_s = 2
        options = ("--scrub-rate", "0", "--connections", "1", "--max-bandwidth", "50MiB/s")
        with daemon_process(tmp_path / "node", *options, environment={"DOCKER_CONFIG": str(tmp_path)}) as daemon:
            daemon.write_catalog({"tiny": model(uri, trust="known")})
            daemon.start()
            daemon.pull("tiny@v1")
            daemon.wait(lambda: (daemon.status(V1) or {}).get("bytes_done", 0) > 70 * MIB, "70 MiB")
            first = daemon.metric("holdfast_fetch_bytes_total", source="oci")
            daemon.kill()
            issued = len(tokens.issued)
            daemon.start()
            daemon.wait_ready(V1)
            second = daemon.metric("holdfast_fetch_bytes_total", source="oci")
            assert second < BIG and first + second <= BIG + 2 + 64 * MIB
            assert str(daemon.digest(V1)) == digest and daemon.files(V1) == files
            assert (daemon.status(V1) or {})["trust"] == "known"
            assert len(tokens.issued) > issued or second == 0  # on a busy machine the kill may come after the last byte
            assert PASSWORD not in daemon.log_file.read_text()
