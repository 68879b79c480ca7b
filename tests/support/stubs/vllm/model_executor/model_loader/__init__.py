"""Load formats by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm.config import VllmConfig
from vllm.config.load import LoadConfig
from vllm.logger import init_logger

from .base_loader import BaseModelLoader
from .default_loader import DefaultModelLoader

logger = init_logger(__name__)

_LOAD_FORMAT_TO_MODEL_LOADER: dict[str, type[BaseModelLoader]] = {"auto": DefaultModelLoader}


def register_model_loader(load_format: str) -> Callable[[type[BaseModelLoader]], type[BaseModelLoader]]:
    def register(loader: type[BaseModelLoader]) -> type[BaseModelLoader]:
        if load_format in _LOAD_FORMAT_TO_MODEL_LOADER:
            logger.warning("Load format `%s` is already registered", load_format)
        if not issubclass(loader, BaseModelLoader):
            raise ValueError("not a BaseModelLoader")
        _LOAD_FORMAT_TO_MODEL_LOADER[load_format] = loader
        return loader

    return register


def get_model_loader(load_config: LoadConfig) -> BaseModelLoader:
    return _LOAD_FORMAT_TO_MODEL_LOADER[load_config.load_format](load_config)


def get_model(
    *,
    vllm_config: VllmConfig,
    model_config: object,
    prefix: str = "",
    load_config: LoadConfig | None = None,
) -> torch.nn.Module:
    loader = get_model_loader(load_config or vllm_config.load_config)
    return loader.load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
