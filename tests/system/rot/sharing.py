"""A daemon with one version, and another one in its catalog that shares blobs of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, model, prefetched, publish_files

V1, OTHER = ModelRef("tiny", "v1"), ModelRef("other", "v1")


@contextmanager
def sharing_daemon(
    folder: Path, source: Path, files: Mapping[str, bytes], shared: Mapping[str, bytes]
) -> Iterator[DaemonProcess]:
    """Start it, without a scrub, once `files` are published as V1; `shared` are at the source of OTHER."""
    with daemon_process(folder, "--scrub-rate", "0") as process:
        publish_files(source / "a", files)
        publish_files(source / "b", shared)
        process.write_catalog({"tiny": prefetched(f"file://{source}/a"), "other": model(f"file://{source}/b")})
        process.start()
        process.wait_ready(V1)
        yield process
