"""vLLM's own load format, without its readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vllm.config.load import LoadConfig

from .base_loader import BaseModelLoader


class DefaultModelLoader(BaseModelLoader):
    @dataclass
    class Source:
        model_or_path: str
        revision: str | None
        subfolder: str | None = None
        prefix: str = ""
        fall_back_to_pt: bool = True
        allow_patterns_overrides: list[str] | None = None
        is_unused_weight: Callable[[str], bool] | None = None

    counter_before_loading_weights: float = 0.0
    counter_after_loading_weights: float = 0.0

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        self.local_expert_ids: set[int] | None = None
        self._encoder_only_lm_prefixes: tuple[str, ...] | None = None
        self._encoder_only_weights_mapper = None
        if load_config.model_loader_extra_config.keys() - {"num_threads", "enable_weights_track"}:
            raise ValueError("Unexpected extra config keys")
        self.enable_weights_track = load_config.model_loader_extra_config.get("enable_weights_track", True)

    def _get_weights_iterator(self, source: Source) -> Iterator[tuple[str, torch.Tensor]]:
        raise NotImplementedError

    def get_all_weights(self, model_config: Any, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        first = DefaultModelLoader.Source(
            model_config.model,
            model_config.revision,
            allow_patterns_overrides=getattr(model, "allow_patterns_overrides", None),
            is_unused_weight=getattr(model, "is_unused_checkpoint_weight", None),
        )
        for source in (first, *getattr(model, "secondary_weights", ())):
            yield from self._get_weights_iterator(source)

    def download_model(self, model_config: Any) -> None:
        raise NotImplementedError

    def load_weights(self, model: Any, model_config: Any) -> None:
        if model_config.quantization == "torchao":
            self.load_config.safetensors_load_strategy = "torchao"
        loaded = model.load_weights(self.get_all_weights(model_config, model))
        missing = {name for name, _ in model.named_parameters()} - loaded
        if self.enable_weights_track and missing:
            raise ValueError(f"Following weights were not initialized from checkpoint: {missing}")
