"""What can be seen of what is wanted: where each symlink leads at this moment, and which are adapters of which model.

Law: looks, once for each call, and remembers nothing. Not told by inotify: a look costs a few system calls, misses
nothing that a watch can lose, and loading what it finds takes longer than what is lost until the next look.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import Permanent
from server.lifecycle.entries import Entry, read_followed
from server.lifecycle.settings import Settings
from server.lifecycle.snapshot import names, target_of

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where an entry leads: None where its weights are not there."""

    entry: Entry
    target: Path | None

    @property
    def version(self) -> str | None:
        return names(self.entry.path)[1]

    @property
    def is_adapter(self) -> bool:
        # Unlike Path.is_file this raises nothing where the folder may not be read: loading it will say so.
        return self.target is not None and os.path.isfile(self.target / ADAPTER_FILE)


def look(settings: Settings) -> list[Sighting]:
    """Look at everything that is wanted; raises `Permanent` where a followed file says nothing that can be served."""
    entries = settings.models or read_followed(settings.follow or Path(), settings.root)
    return [Sighting(entry, target_of(entry.path)) for entry in entries]


def base_for(adapter: Entry, says: str, models: Sequence[Entry]) -> str:
    """The name of the model that an adapter is for, which `says` what it was made for; raises `Permanent`.

    With one model there is no question. Among several the adapter's own word decides, by their names in the cache, with
    or without what is before the last `/`, or by what clients call them.
    """
    if len(models) == 1:
        return models[0].name
    meant = says.rstrip("/").casefold()
    found = [model.name for model in models if meant and meant in _called(model)]
    if len(found) != 1:
        found = [model.name for model in models if meant.rpartition("/")[2] in _called(model)] if meant else []
    if len(found) != 1:
        raise Permanent(
            "adapter_base",
            f"{adapter.name}: expected its base, {says or 'of which it says nothing'!r}, to be one of "
            f"{', '.join(model.name for model in models) or 'no models'}",
            "serve it with its base alone, or give the base that name as its alias",
        )
    return found[0]


def _called(model: Entry) -> set[str]:
    name = names(model.path)[0]
    return {called.casefold() for called in (model.name, name, name.rpartition("/")[2])}
