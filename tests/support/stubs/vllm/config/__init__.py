"""Configurations, and the one that is in force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .load import LoadConfig


@dataclass
class DeviceConfig:
    device: str | torch.device = "cpu"


@dataclass
class ParallelConfig:
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size_local: int = 1

    @property
    def local_world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


@dataclass
class VllmConfig:
    load_config: LoadConfig = field(default_factory=LoadConfig)
    device_config: DeviceConfig = field(default_factory=DeviceConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    engram_config: None = None


_current: list[VllmConfig] = []


@contextmanager
def set_current_vllm_config(vllm_config: VllmConfig) -> Iterator[None]:
    _current.append(vllm_config)
    try:
        yield
    finally:
        _current.pop()


def get_current_vllm_config_or_none() -> VllmConfig | None:
    return _current[-1] if _current else None
