"""vLLM's weights from a mounted snapshot, read straight onto the rank's GPU.

Law: reads a mounted folder and never downloads. vLLM's own code (`DefaultModelLoader`) selects and converts tensors and
finds missing ones; only the reading is ours. The lease is held until the process ends, as vLLM reads weights again when
it wakes up or reloads.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from vllm import config as vllm_config
from vllm.logger import init_logger
from vllm.model_executor.model_loader import weight_utils
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

from cached.contract.errors import Permanent
from cached.contract.program.units import format_size
from server.lifecycle.snapshot import HeldFolder, hold, target_of
from server.weights import report
from server.weights.cuda.accelerator import DeviceLike, find_accelerator
from server.weights.files import iter_tensors
from server.weights.format.checkpoint import open_checkpoint
from server.weights.format.listing import ShardListing, explain_no_weights, find_shards, read_named_file
from server.weights.settings import LoaderSettings

_LOG = init_logger("vllm.plugins.holdfast")  # vLLM shows the logs below its own name

# Keys of --model-loader-extra-config, which set these variables.
_VARIABLES = {
    "threads": "HOLDFAST_LOADER_THREADS",
    "slots": "HOLDFAST_LOADER_SLOTS",
    "slot_size": "HOLDFAST_LOADER_SLOT_SIZE",
    "io": "HOLDFAST_LOADER_IO",
}
_TRACK = "enable_weights_track"  # a key of newer vLLM versions

_HELD: dict[Path, HeldFolder] = {}


class HoldfastModelLoader(DefaultModelLoader):  # type: ignore[misc] # vLLM has no types where it is not installed
    """`--load-format holdfast`. Raises `HoldfastError` for a refusal, and vLLM's own errors otherwise."""

    def __init__(self, load_config: Any) -> None:
        extra = load_config.model_loader_extra_config
        if not isinstance(extra, dict) or extra.keys() - _VARIABLES.keys() - {_TRACK}:
            raise Permanent(
                "invalid_setting",
                f"--model-loader-extra-config: expected an object with any of {', '.join(_VARIABLES)} and {_TRACK}, "
                f"found {extra!r}",
                "correct it, or leave it out",
            )
        strategy = getattr(load_config, "safetensors_load_strategy", None)
        if strategy not in (None, "lazy"):
            raise Permanent(
                "invalid_setting",
                f"--safetensors-load-strategy {strategy} is for other load formats",
                "leave it out: this one sees for itself what is cached",
            )
        self.counter_before_loading_weights = 0.0  # vLLM's: when the first weight was requested
        self._variables = {_VARIABLES[key]: str(value) for key, value in extra.items() if key in _VARIABLES}
        self._vllm_config: Any = None
        LoaderSettings.from_environment({**os.environ, **self._variables})  # raises for an invalid value at once
        theirs = {key: value for key, value in extra.items() if key not in _VARIABLES}
        super().__init__(dataclasses.replace(load_config, model_loader_extra_config=theirs))

    def load_model(self, vllm_config: Any, model_config: Any, **rest: Any) -> Any:
        self._vllm_config = vllm_config
        return super().load_model(vllm_config=vllm_config, model_config=model_config, **rest)

    def download_model(self, model_config: Any) -> None:
        """Check that the weights are mounted; downloads nothing."""
        _weights(self.Source(model_config.model, model_config.revision))

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        began = time.perf_counter()
        reports: list[report.LoadReport] = []
        stop = report.subscribe(reports.append)
        try:
            super().load_weights(model, model_config)
        finally:
            stop()
        seconds = time.perf_counter() - began
        nbytes = sum(found.bytes for found in reports)
        _LOG.info(
            "Loading weights with holdfast: %s onto %s in %.2f seconds, %.1f GB/s, %s of it not in the page cache",
            format_size(nbytes),
            ", ".join(sorted({found.device for found in reports})),
            seconds,
            nbytes / seconds / 1e9,
            format_size(sum(found.cold_bytes for found in reports)),
        )

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the weights of one of vLLM's sources; a model may have several."""
        if self.load_config.safetensors_load_strategy == "torchao":  # set by vLLM once it knows the checkpoint
            raise Permanent(
                "unsupported_quantization",
                f"{source.model_or_path}: torchao's tensors are put together from several by vLLM's own reader",
                "use --load-format safetensors for this model",
            )
        weights = self._without_language_model(*_weights(source))
        keys = self._keys(weights, getattr(source, "is_unused_weight", None))
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        return _prefixed(source.prefix, iter_tensors(weights, self._device(), keys=keys))

    def _without_language_model(self, folder: Path, weights: ShardListing) -> ShardListing:
        """With --mm-encoder-only, return the files that hold more than the language model, as the index has it."""
        prefixes = getattr(self, "_encoder_only_lm_prefixes", None)
        if prefixes is None or weights.index is None:
            return weights
        kept = weight_utils.filter_mm_encoder_only_safetensors_files(
            [str(path) for path in weights.paths],
            str(folder),
            os.path.relpath(weights.index, folder),
            prefixes,
            weights_mapper=self._encoder_only_weights_mapper,
        )
        if not kept:
            raise Permanent(
                "no_weights",
                f"{folder}: no file holds anything but the language model ({', '.join(prefixes)})",
                "leave out --mm-encoder-only",
            )
        return weights.keep({Path(path) for path in kept})

    def _keys(self, weights: ShardListing, unused: Callable[[str], bool] | None) -> list[str] | None:
        """Return the tensors that this rank's model needs, None for all; other ranks' experts are not read."""
        experts = getattr(self, "local_expert_ids", None)
        if experts is None and unused is None:
            return None
        with open_checkpoint(weights) as checkpoint:
            names = list(checkpoint.tensors)
        if unused is not None:
            names = [name for name in names if not unused(name)] or names
        if experts is not None:
            from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight  # newer versions have it

            names = [name for name in names if not should_skip_weight(name, experts)]
        return names

    def _device(self) -> DeviceLike:
        """Return this rank's GPU, or the CPU where vLLM runs on one or on a device this loader does not know."""
        current = getattr(vllm_config, "get_current_vllm_config_or_none", None)  # newer versions have it
        config = self._vllm_config or (current() if current is not None else None)
        engram = getattr(config, "engram_config", None)
        if engram is not None and engram.cpu_offload:  # tables larger than the device
            return "cpu"
        wanted = self.load_config.device or (config.device_config.device if config else current_platform.device_type)
        if torch.device(wanted).type != "cuda" or not current_platform.is_cuda():
            return "cpu"
        environment = {**os.environ, **self._variables}
        if config is not None:
            parallel = config.parallel_config  # all ranks of all local replicas read the same files
            readers = max(1, int(parallel.local_world_size)) * max(1, int(parallel.data_parallel_size_local))
            environment["LOCAL_WORLD_SIZE"] = str(readers)
        device = torch.device("cuda", torch.cuda.current_device())
        return find_accelerator(device, LoaderSettings.from_environment(environment)) or "cpu"


def _weights(source: Any) -> tuple[Path, ShardListing]:
    """Return the folder and the files of `source`; raises `Permanent` where it is not mounted here."""
    folder = _hold(source.model_or_path)
    subfolder = getattr(source, "subfolder", None)
    if subfolder is not None:
        folder /= subfolder
    if source.allow_patterns_overrides is None:
        listing = find_shards(folder, read_named_file(folder))
        if listing is not None:
            return folder, listing
    patterns = source.allow_patterns_overrides or ["*.safetensors"]
    # As vLLM does: the first pattern that matches decides, and without patterns every file counts, whatever its name.
    found = next((files for pattern in patterns if (files := _matching(folder, pattern))), [])
    if not found and source.allow_patterns_overrides is None:
        raise explain_no_weights(folder)
    if not found or any(path.suffix != ".safetensors" for path in found):
        raise Permanent(
            "no_weights",
            f"expected safetensors files in {folder} ({', '.join(patterns)}), found "
            f"{', '.join(path.name for path in found) or 'none'}",
            "publish the model's safetensors files, or choose another --load-format",
        )
    return folder, ShardListing(found)


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files that fit, without the copies with a dot first that systems and editors leave."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _hold(model: str) -> Path:
    """Return the model's folder without symlinks, leased where it is a snapshot."""
    path = Path(model)
    target = target_of(path)
    if target is None:
        mounted = os.environ.get("HOLDFAST_MODEL_PATH", "")
        raise Permanent(
            "no_model",
            f"expected the folder of a mounted model, found {model!r}",
            "annotate the pod with holdfast.dev/model and give vLLM the path, "
            f"{mounted or '$HOLDFAST_MODEL_PATH'}; --load-format holdfast downloads nothing",
        )
    if target not in _HELD:
        held = hold(path)
        target = held.snapshot.path
        _HELD[target] = held
    return target


def _prefixed(prefix: str, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        yield prefix + name, tensor
        del tensor  # else it would keep its memory range while the next one is filled
