"""What every load format is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from vllm.config import VllmConfig
from vllm.config.load import LoadConfig


class BaseModelLoader(ABC):
    def __init__(self, load_config: LoadConfig) -> None:
        self.load_config = load_config

    @abstractmethod
    def download_model(self, model_config: Any) -> None: ...

    @abstractmethod
    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None: ...

    def load_model(self, vllm_config: VllmConfig, model_config: Any, prefix: str = "") -> torch.nn.Module:
        with torch.device(self.load_config.device or vllm_config.device_config.device):
            model: torch.nn.Module = model_config.build(prefix)
        self.load_weights(model, model_config)
        return model.eval()
