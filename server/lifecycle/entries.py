"""The wanted models: their names for clients, and the symlinks to their weights.

Law: reads names, and the one small file that an operator may change while the server runs; never follows a symlink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRequest, parse_models
from server.lifecycle.snapshot import names

_MAX_FILE_BYTES = 64 * 1024


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
        raise Permanent("no_models", f"{path}: {error}", "check --follow and the volume it is on") from error
    text = ",".join(part for line in text.splitlines() if (part := line.strip().strip(",")))
    if not text:
        raise Permanent("no_models", f"{path}: expected models, found an empty file", remedy)
    try:
        return entries_of(parse_models(text), root)
    except HoldfastError as error:
        raise Permanent(error.code, f"{path}: {error.message}", error.remedy) from error
