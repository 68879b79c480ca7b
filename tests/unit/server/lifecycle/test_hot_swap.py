"""The hot swap in this process, with what goes wrong around it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from cached.contract.layout import PublicLayout
from server import options
from server.api.routes import private_application
from server.lifecycle import hot_swap
from server.lifecycle.cold_start import ColdStart
from server.lifecycle.hot_swap import ModelManager
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Ready, ServerReadiness
from server.lifecycle.registry import ModelRegistry
from server.lifecycle.snapshot import hold
from tests.support.snapshots import make_public
from tests.support.versions import add_version, with_other_weights

NAME = "acme/tiny"


@asynccontextmanager
async def keeping(public: PublicLayout) -> AsyncIterator[ModelRegistry]:
    """A model manager that serves what the symlink of `acme/tiny@v1` leads to, while the block runs."""
    settings = options.parse(
        ["--root", str(public.path), "--model", NAME, "--version", "v1", "--device", "cpu", "--cache-limit", "64MiB"]
    )
    held = {entry.name: hold(entry.path, entry.pin) for entry in settings.models}
    catalog, metrics = ModelRegistry(), ServerMetrics()
    readiness = ServerReadiness(metrics)
    application = partial(private_application, limits=settings.limits)
    kept = ModelManager(settings, held, catalog, readiness, metrics, application, ColdStart(None, None))
    await kept.start()
    readiness.enter(Ready())
    try:
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(kept.swap_models(group))
            yield catalog
            keeper.cancel()
    finally:
        for served in catalog.list_models():
            served.close()


async def test_what_nobody_foresaw_in_a_swap_leaves_the_old_version_serving(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No port for the golden predictions, no thread: the swap fails, tells why, and the server goes on."""
    public = make_public(tmp_path / "public")
    old = add_version(public, f"{NAME}@v1", llama)
    async with keeping(public) as catalog:

        async def admit(*_arguments: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(hot_swap, "admit", admit)
        add_version(public, f"{NAME}@v1", with_other_weights(llama, tmp_path / "other"))
        async with asyncio.timeout(100):
            while NAME not in catalog.pending or catalog.pending[NAME].state != "failed":
                await asyncio.sleep(0.01)
        assert "Too many open files" in str(catalog.pending[NAME].error)
        assert catalog.find(NAME).card.snapshot.digest == old
