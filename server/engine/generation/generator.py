"""A causal language model for completions and chats, batched where its architecture allows it.

Law: runs in the model's thread only, except `prepare`, which has a tokenizer of its own. Sampling follows the request,
and the model's folder where a request says nothing (`server.engine.settings`). Warm-up checks whether rows can be
batched: an architecture whose batched logits differ from those of the plain forward pass runs one sequence at a time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program.units import format_size
from server.engine.generation.batch import Batch, GenerationObserver
from server.engine.generation.batch_check import BatchCheck
from server.engine.generation.batched_forward import BatchedForward
from server.engine.generation.kv_cache import SPARE_COLUMNS, empty_cache
from server.engine.generation.sequence import GenerationJob, GenerationSequence
from server.engine.generation.sequential import SequentialRunner
from server.engine.lora import Adapter, Adapters
from server.engine.model_files import Loaded, load_causal_lm, positions
from server.engine.settings import FolderSettings, read_settings
from server.engine.tokenizer import Tokens
from server.engine.types import About, ChatRequest, Continuation, GenerationRequest, Limits, ModelKind
from server.weights.host import memory

_LOG = logging.getLogger(__name__)
_CACHE_SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the memory free after the load; a step's work needs the rest
# Of the logits' spread. A wrong mask or position changes them by half or more; rounding by 1e-6 and 2e-2 as measured
# with small models of twenty architectures, more with many layers.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_HALF = 0.15
_NO_CONTEXT_TOKENS = 4096  # generated at most where neither the request nor the model has a limit


class TextGenerator:
    """A causal language model on its device; the model of `/v1/completions` and `/v1/chat/completions`."""

    def __init__(
        self, loaded: Loaded, settings: FolderSettings, device: str, limits: Limits, observer: GenerationObserver
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._device = device
        self._limits = limits
        self._observer = observer
        self._tokens = Tokens(loaded.tokenizer, loaded.config, positions(loaded.config))
        padding = min(settings.ends, default=self._tokens.padding_id)
        self._adapters = Adapters(loaded.module, loaded.dtype, device)
        self._runner: Batch | SequentialRunner = SequentialRunner(
            loaded.module, device, padding, observer, self._adapters
        )
        self._token_bytes = 0  # of the KV cache of a batch
        self._jobs: list[tuple[GenerationJob, list[GenerationSequence]]] = []
        self._waiting: deque[GenerationSequence] = deque()

    @classmethod
    def load(
        cls,
        directory: Path,
        device: str,
        dtype: str,
        limits: Limits,
        observer: GenerationObserver,
        architecture: str | None = None,
    ) -> TextGenerator:
        """Load the causal language model of a folder, by its own architecture or by `architecture`; raises
        `HoldfastError`."""
        loaded = load_causal_lm(directory, device, dtype, architecture)
        return cls(loaded, read_settings(directory, loaded), device, limits, observer)

    @property
    def about(self) -> About:
        loaded, tokens = self._loaded, self._tokens
        return About(
            ModelKind.COMPLETIONS,
            tokens.context,
            self._device,
            str(loaded.dtype).removeprefix("torch."),
            loaded.weight_bytes,
            tokens.has_chat_template,
            self._runner.max_rows,
        )

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run one token and check the logits, then check whether rows can be batched; raises `Permanent`."""
        ids = torch.tensor([[min(self._settings.ends, default=0)]], device=self._device)
        logits = self._loaded.module(input_ids=ids).logits
        found, vocabulary = tuple(logits.shape), self._tokens.vocabulary
        if found != (1, 1, vocabulary) or not bool(torch.isfinite(logits).all()):
            raise Permanent(
                "bad_model",
                f"a dummy inference: expected finite logits of shape (1, 1, {vocabulary}), found shape {found}",
                "check that the weights are the ones that belong to config.json",
            )
        self._adapters.survey()
        if self._limits.batch > 1:
            self._enable_batching()

    def load_adapter(self, directory: Path) -> Adapter:
        """Load an adapter for this model, from any thread; raises `HoldfastError`."""
        return self._adapters.load(directory)

    def share_memory(self, models: int) -> None:
        """Set the KV cache's limit to one of `models` equal shares of the memory, from any thread."""
        if isinstance(self._runner, Batch):
            self._runner.max_tokens = self._divide_memory(self._runner.cached_tokens, models)

    def prepare(self, request: GenerationRequest) -> Continuation:
        """Turn a request into tokens; raises `InvalidRequest` where it does not fit the context."""
        options = request.options
        room = options.max_tokens or 1
        if isinstance(request, ChatRequest):
            prompts = [self._tokens.encode_chat(request, room=room)]
        else:
            prompts = [self._tokens.encode(prompt, "prompt", room=room) for prompt in request.prompts]
        self._tokens.check_ids((token for token, _ in options.sampling.logit_bias), "logit_bias")
        choices = tuple(tuple(ids) for ids in prompts for _ in range(options.choices))
        max_tokens = tuple(self._limit_tokens(len(ids), options.max_tokens) for ids in choices)
        sampling = self._settings.fill(options.sampling, options.left_out)
        stop = (*options.stop, *self._settings.stop)
        return Continuation(choices, max_tokens, sampling, stop, options.adapter)

    @property
    def busy(self) -> bool:
        return self._runner.busy or bool(self._waiting)

    @property
    def room(self) -> int:
        return max(0, self._runner.room - len(self._waiting))

    def step(self, arrived: list[GenerationJob]) -> None:
        """Admit the jobs' choices, and run one step."""
        for job in arrived:
            choices = range(len(job.request.prompts))
            loaded, settings = self._loaded, self._settings
            sequences = [GenerationSequence(job, at, loaded.tokenizer, settings, loaded.module) for at in choices]
            self._jobs.append((job, sequences))
            self._waiting.extend(sequences)
        if self.busy:
            self._runner.step(self._waiting)
        for job, sequences in self._jobs:
            if all(sequence.done for sequence in sequences):
                job.finish()
        self._jobs = [(job, sequences) for job, sequences in self._jobs if not job.ended]

    def reset(self) -> None:
        self._jobs = []
        self._waiting.clear()
        self._runner.reset()

    def _limit_tokens(self, prompt_tokens: int, wanted: int | None) -> int:
        if wanted is not None:
            return wanted
        left = _NO_CONTEXT_TOKENS if self._tokens.context is None else self._tokens.context - prompt_tokens
        left = self._settings.limit(prompt_tokens, left)
        return left if self._limits.max_tokens is None else min(left, self._limits.max_tokens)

    def _enable_batching(self) -> None:
        forward = BatchedForward(self._loaded.module, self._loaded.config, self._device)
        check = BatchCheck(self._loaded.module, forward, self._tokens.vocabulary, self._device)
        cache = empty_cache(self._loaded.config)
        reason = "its cache cannot hold rows" if cache is None else self._find_difference(check.difference_alone)
        if cache is None or reason is not None:
            _LOG.warning("%s is served one sequence at a time: %s", type(self._loaded.module).__name__, reason)
            return
        reason = self._find_difference(check.difference_together)
        if reason is not None:
            _LOG.warning("%s reads prompts one at a time: %s", type(self._loaded.module).__name__, reason)
            forward.clear()
        forward.prefill(cache, [0])
        self._token_bytes = cache.token_bytes()
        max_tokens = self._divide_memory(0, models=1)
        prompts = self._limits.batch if reason is None else 1
        self._runner = Batch(forward, self._limits.batch, prompts, max_tokens, self._observer, self._adapters)

    def _find_difference(self, check: Callable[[], float]) -> str | None:
        """Return why rows cannot be batched as `check` batches them; None where they can."""
        try:
            difference = check()
        except (HoldfastError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            return f"batching it fails: {error!r}"
        if not difference <= _TOLERANCE.get(self._loaded.dtype, _TOLERANCE_HALF):
            return f"in a batch its logits differ by {difference:.2g} of their spread"
        return None

    def _divide_memory(self, cached_tokens: int, models: int) -> int:
        """Return the most tokens of the KV cache in a share of the free memory and of that in use, and bound the
        context by them; raises `Permanent` (`no_memory`)."""
        most = self._limits.cache_bytes
        if most is None:
            free = _free_bytes(self._device) + cached_tokens * self._token_bytes
            most = int(free * _CACHE_SHARE.get(torch.device(self._device).type, _CACHE_SHARE["cpu"]))
        most //= models
        tokens = most // self._token_bytes
        if tokens < 2 * SPARE_COLUMNS:
            raise Permanent(
                "no_memory",
                f"expected memory for at least {2 * SPARE_COLUMNS} tokens of {self._token_bytes} bytes beside the "
                f"weights, found {format_size(most)}",
                "give the pod more memory or a larger GPU, or raise --cache-limit",
            )
        _LOG.info("batches of at most %d sequences, %d tokens, %s", self._limits.batch, tokens, format_size(most))
        self._tokens.limit(tokens - SPARE_COLUMNS)
        return tokens


def _free_bytes(device: str) -> int:
    if torch.device(device).type != "cuda":
        return memory.free_bytes()
    kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # freed, so it counts
    return int(torch.cuda.mem_get_info(device)[0]) + kept_by_torch
