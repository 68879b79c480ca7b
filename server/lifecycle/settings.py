"""The settings of one server. Law: values, checked where they are parsed (`server.options`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.engine.types import Limits
from server.lifecycle.entries import ModelEntry
from server.lifecycle.golden import Mode


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """One server. `models` is empty where the file `follow` names them; `app` is None for our own API. A model idle for
    `probe_interval_s` gets a dummy inference, and is unhealthy where that takes `probe_timeout_s`."""

    models: tuple[ModelEntry, ...]
    follow: Path | None
    root: Path
    host: str
    port: int
    device: str
    dtype: str
    app: str | None
    drain_timeout_s: float
    probe_interval_s: float
    probe_timeout_s: float
    golden: Mode
    limits: Limits
