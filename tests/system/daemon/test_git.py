"""A version in a Git repository, pulled by a real daemon: killed in the middle, while its addresses end."""

from __future__ import annotations

import json
import random
from pathlib import Path

from cached.contract.reference import ModelRef
from cached.sources.git.access import variable_of
from cached.transport.urls import Address
from tests.support.daemon import daemon_process, model
from tests.support.git_host import TOKEN, USER, git_host

V1 = ModelRef("tiny", "v1")
MIB = 1024 * 1024
BIG = 100 * MIB


def test_a_killed_pull_goes_on_while_its_addresses_end(tmp_path: Path) -> None:
    """A branch of a private repository is pulled, large files from Git LFS; after kill -9, with every address that was
    given ended, the next start goes on from what is on the disk, and has the bytes that were committed."""
    files = {
        "config.json": b"{}",
        "model.bin": random.Random(4).randbytes(BIG),
        "sub dir/tokenizer.json": random.Random(5).randbytes(MIB),
        "empty.txt": b"",
    }
    with git_host(tmp_path / "git", private=True) as host:
        repository = host.create("team/tiny")
        commit = repository.commit(files, branch="release/v1")
        environment = {variable_of(Address.parse(host.url).origin): f"{USER}:{TOKEN}"}
        options = ("--scrub-rate", "0", "--connections", "1", "--max-bandwidth", "50MiB/s")
        with daemon_process(tmp_path / "node", *options, environment=environment) as daemon:
            daemon.write_catalog({"tiny": model(f"git+{host.url}/team/tiny@release/v1", trust="checked")})
            daemon.start()
            daemon.pull("tiny@v1")
            daemon.wait(lambda: (daemon.status(V1) or {}).get("bytes_done", 0) > 70 * MIB, "70 MiB")
            first = daemon.metric("holdfast_fetch_bytes_total", source="git")
            daemon.kill()
            host.expire()
            daemon.start()
            daemon.wait_ready(V1)
            second = daemon.metric("holdfast_fetch_bytes_total", source="git")
            assert second < BIG and first + second <= BIG + 3 * MIB + 64 * MIB
            assert daemon.files(V1) == files
            assert (daemon.status(V1) or {})["trust"] == "checked"
            record = json.loads((daemon.layout.root / "private" / "fetched" / "tiny" / "v1.json").read_text())
            assert record["revision"] == commit
            assert TOKEN not in daemon.log_file.read_text()
