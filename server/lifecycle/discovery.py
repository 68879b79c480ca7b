"""Resolve the wanted entries: where each symlink leads now, and which entries are adapters of which model.

Law: keeps no state between calls. Polling, not inotify: a poll costs a few system calls and misses nothing that a watch
can lose, and a load takes longer than the wait for the next poll.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import Permanent
from server.lifecycle.entries import ModelEntry, read_followed
from server.lifecycle.settings import ServeOptions
from server.lifecycle.snapshot import names, target_of

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class ResolvedEntry:
    """Where an entry leads; `target` is None where its weights are absent."""

    entry: ModelEntry
    target: Path | None

    @property
    def version(self) -> str | None:
        return names(self.entry.path)[1]

    @property
    def is_adapter(self) -> bool:
        # Unlike Path.is_file this raises nothing where the folder is unreadable: the load reports that.
        return self.target is not None and os.path.isfile(self.target / ADAPTER_FILE)


def resolve_entries(settings: ServeOptions) -> list[ResolvedEntry]:
    """Resolve every wanted entry; raises `Permanent` where the followed file is unreadable or invalid."""
    entries = settings.models or read_followed(settings.follow or Path(), settings.root)
    return [ResolvedEntry(entry, target_of(entry.path)) for entry in entries]


def base_for(adapter: ModelEntry, says: str, models: Sequence[ModelEntry]) -> str:
    """Return the name of the adapter's base model; `says` is the base that the adapter names. Raises `Permanent`.

    A single model is the base. Among several, `says` must match one by its name in the cache, with or without the part
    before the last `/`, or by its name for clients.
    """
    if len(models) == 1:
        return models[0].name
    wanted = says.rstrip("/").casefold()
    found = [model.name for model in models if wanted and wanted in _names_of(model)]
    if len(found) != 1:
        found = [model.name for model in models if wanted.rpartition("/")[2] in _names_of(model)] if wanted else []
    if len(found) != 1:
        raise Permanent(
            "adapter_base",
            f"{adapter.name}: expected its base, {says or 'of which it says nothing'!r}, to be one of "
            f"{', '.join(model.name for model in models) or 'no models'}",
            "serve it with its base alone, or give the base that name as its alias",
        )
    return found[0]


def _names_of(model: ModelEntry) -> set[str]:
    name = names(model.path)[0]
    return {called.casefold() for called in (model.name, name, name.rpartition("/")[2])}
