"""The settings of one server: among them the wanted models, under their names for clients, and where each leads now.

Law: values, and no state between calls; reads names, symlinks, and the one small file that an operator may change
while the server runs. Polling, not inotify: a poll costs a few system calls and misses nothing that a watch can lose,
and a load takes longer than the wait for the next poll.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, describe_read_error
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRequest, parse_models
from server.engine.types import Limits
from server.lifecycle.absence import Absence, explain_absence
from server.lifecycle.snapshot import names, target_of

_ADAPTER_FILE = "adapter_config.json"
_MAX_FILE_BYTES = 64 * 1024


class GoldenMode(StrEnum):
    """The effect of golden predictions: on readiness, a warning, or none."""

    REQUIRE = "require"
    WARN = "warn"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model or adapter: its name for clients, its path, and its pinned digest if any."""

    name: str
    path: Path
    pin: Digest | None = None

    @classmethod
    def at(cls, path: Path, pin: Digest | None) -> ModelEntry:
        """Return the entry of the folder at `path`, under its name in the cache."""
        return cls(names(path)[0], path, pin)

    def __str__(self) -> str:
        name, version = names(self.path)
        return f"{name}@{version}" if version else str(self.path)

    @property
    def log_fields(self) -> dict[str, str]:
        """What an event of the log says of it."""
        name, version = names(self.path)
        return {"model": name, **({"version": version} if version else {})}


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """One server. `models` is empty where the file `follow` names them; `app` is None for our own API. A model idle for
    `probe_interval_s` gets a dummy inference, and is unhealthy where that takes `probe_timeout_s`. On SIGTERM work
    goes on for `drain_linger_s`; then the requests in flight have `drain_timeout_s`."""

    models: tuple[ModelEntry, ...]
    follow: Path | None
    root: Path
    host: str
    port: int
    device: str
    dtype: str
    app: str | None
    drain_linger_s: float
    drain_timeout_s: float
    probe_interval_s: float
    probe_timeout_s: float
    golden: GoldenMode
    termination_log: Path | None
    limits: Limits
    tracing: str


@dataclass(frozen=True, slots=True)
class ResolvedEntry:
    """Where an entry leads; `target` is None where its weights are absent, and `absence` says what is known of them."""

    entry: ModelEntry
    target: Path | None
    absence: Absence | None = field(default=None, compare=False)  # not what is served: its text changes all the time

    @property
    def version(self) -> str | None:
        return names(self.entry.path)[1]

    @property
    def is_adapter(self) -> bool:
        # Unlike Path.is_file this raises nothing where the folder is unreadable: the load reports that.
        return self.target is not None and os.path.isfile(self.target / _ADAPTER_FILE)


def entries_of(models: Sequence[ModelRequest], root: Path) -> tuple[ModelEntry, ...]:
    """Return the entries under `root`, named by alias, else by name, with the version where two share a name."""
    layout = PublicLayout(root)
    plain = [wanted.ref.name for wanted in models if wanted.alias is None]
    aliases = [
        wanted.alias or (wanted.ref.name if plain.count(wanted.ref.name) == 1 else str(wanted.ref)) for wanted in models
    ]
    duplicates = sorted({name for name in aliases if aliases.count(name) > 1})
    if duplicates:
        raise Permanent(
            "same_name",
            f"expected a name for each model, found {duplicates[0]!r} for two",
            "give one of them another alias",
        )
    return tuple(
        ModelEntry(name, layout.model_link(wanted.ref), wanted.pin)
        for name, wanted in zip(aliases, models, strict=True)
    )


def read_followed(path: Path, root: Path) -> tuple[ModelEntry, ...]:
    """Read the file at `path`: the text of `holdfast.dev/models`, which may be split over lines. Raises `Permanent`
    where it is unreadable, empty or invalid."""
    remedy = "write references as in holdfast.dev/models: base=llama-3.1-8b@v3,adapter=support-lora@v7"
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(
            "no_models", describe_read_error(path, error), "check --follow and the volume it is on"
        ) from error
    text = ",".join(part for line in text.splitlines() if (part := line.strip().strip(",")))
    if not text:
        raise Permanent("no_models", f"{path}: expected models, found an empty file", remedy)
    try:
        return entries_of(parse_models(text), root)
    except HoldfastError as error:
        raise Permanent(error.code, f"{path}: {error.message}", error.remedy) from error


def resolve_entries(settings: ServeOptions) -> list[ResolvedEntry]:
    """Resolve every wanted entry; raises `Permanent` where the followed file is unreadable or invalid."""
    entries = settings.models or read_followed(settings.follow or Path(), settings.root)
    return [_resolve(entry) for entry in entries]


def _resolve(entry: ModelEntry) -> ResolvedEntry:
    target = target_of(entry.path)
    return ResolvedEntry(entry, target, explain_absence(entry.path) if target is None else None)


def base_for(adapter: ModelEntry, named: str, models: Sequence[ModelEntry]) -> str:
    """Return the name of the adapter's base model; `named` is the base that the adapter names. A single model is the
    base. Among several, `named` must match one by its name in the cache, with or without the part before the last `/`,
    or by its name for clients. Raises `Permanent`."""
    if len(models) == 1:
        return models[0].name
    wanted = named.rstrip("/").casefold()
    found = [model.name for model in models if wanted and wanted in _names_of(model)]
    if len(found) != 1:
        found = [model.name for model in models if wanted.rpartition("/")[2] in _names_of(model)] if wanted else []
    if len(found) != 1:
        raise Permanent(
            "adapter_base",
            f"{adapter.name}: expected its base, {named or 'of which it says nothing'!r}, to be one of "
            f"{', '.join(model.name for model in models) or 'no models'}",
            "serve it with its base alone, or give the base that name as its alias",
        )
    return found[0]


def _names_of(model: ModelEntry) -> set[str]:
    name = names(model.path)[0]
    return {called.casefold() for called in (model.name, name, name.rpartition("/")[2])}
