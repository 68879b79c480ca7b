"""Text completion with a causal language model, one request at a time.

Law: runs in the model's thread only. transformers' own `generate` steps the model, so that every architecture's
cache is right; sampling is what the request says and nothing from the model's folder but its end tokens.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import torch
import transformers

from cached.contract.errors import Permanent
from server.events import About, Accepted, CompletionEvent, Delta, Finished, Kind
from server.jobs import Job
from server.loader import Loaded, load_causal_lm
from server.requests import CompletionRequest, InvalidRequest
from server.tokens import GrowingText, Tokens

_GenerationConfig: Any = transformers.GenerationConfig  # untyped there
_GREEDY_BELOW = 1e-5  # dividing by less overflows
_CompletionJob = Job[CompletionRequest, CompletionEvent]


class Generator:
    """A causal language model on its device; the model of `/v1/completions`."""

    batch_jobs = 1

    def __init__(self, loaded: Loaded, device: str) -> None:
        self._module = loaded.module
        self._device = device
        self._tokenizer = loaded.tokenizer
        self._vocabulary = int(loaded.config.vocab_size)
        self._tokens = Tokens(loaded.tokenizer, loaded.config, getattr(loaded.config, "max_position_embeddings", None))
        self._ends = _end_tokens(loaded)
        # What a request leaves unset, `generate` would take from here: only what no request can say may stay.
        loaded.module.generation_config = self._generation_config({})
        self.about = About(
            Kind.COMPLETIONS,
            self._tokens.context,
            device,
            str(loaded.dtype).removeprefix("torch."),
            loaded.weight_bytes,
        )

    @classmethod
    def load(cls, directory: Path, device: str, dtype: str) -> Generator:
        """Load the causal language model of a folder; raises `HoldfastError`."""
        return cls(load_causal_lm(directory, device, dtype), device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Read a token, check the answer's shape, generate two; raises `Permanent` where it is not as expected."""
        ids = torch.tensor([[self._ends[0] if self._ends else 0]], device=self._device)
        logits = self._module(input_ids=ids).logits
        found = tuple(logits.shape)
        if found != (1, 1, self._vocabulary) or not bool(torch.isfinite(logits).all()):
            raise Permanent(
                "bad_model",
                f"a dummy inference: expected finite logits of shape (1, 1, {self._vocabulary}), found shape {found}",
                "check that the weights are the ones that belong to config.json",
            )
        config = self._generation_config({"max_new_tokens": 2, "do_sample": False})
        self._module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)

    def process(self, jobs: list[_CompletionJob]) -> None:
        """Answer the jobs one after the other, each prompt in its turn."""
        for job in jobs:
            request = job.request
            try:
                prompts = [self._tokens.encode(p, "prompt", room=request.max_tokens) for p in request.prompts]
            except InvalidRequest as error:
                job.fail(error)
                continue
            job.emit(Accepted(sum(map(len, prompts))))
            for index, ids in enumerate(prompts):
                if not job.cancelled:
                    self._answer(job, index, ids)
            job.finish()

    @torch.inference_mode()
    def _answer(self, job: _CompletionJob, index: int, prompt: list[int]) -> None:
        request = job.request
        text = GrowingText(self._tokenizer, prompt, request.stop)
        watch = _Watch(job, index, text, self._ends)
        ids = torch.tensor([prompt], device=self._device)
        torch.manual_seed(secrets.randbits(63) if request.seed is None else request.seed)
        self._module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self._generation_config({"max_new_tokens": request.max_tokens, **_sampling(request)}),
            stopping_criteria=transformers.StoppingCriteriaList([watch]),
        )
        rest = text.finish()
        if rest:
            job.emit(Delta(index, rest))
        job.emit(Finished(index, "stop" if watch.ended or text.stopped else "length", watch.tokens))

    def _generation_config(self, wanted: dict[str, Any]) -> Any:
        padding = self._ends[0] if self._ends else self._tokens.padding_id
        return _GenerationConfig(eos_token_id=self._ends or None, pad_token_id=padding, **wanted)


class _Watch(transformers.StoppingCriteria):
    """Sees each token as it comes: hands its text over, and stops at an end token, a stop text or a cancel."""

    def __init__(self, job: _CompletionJob, index: int, text: GrowingText, ends: list[int]) -> None:
        self._job = job
        self._index = index
        self._text = text
        self._ends = ends
        self.tokens = 0
        self.ended = False

    def __call__(self, input_ids: torch.Tensor, *_scores: Any, **_more: Any) -> torch.Tensor:
        token = int(input_ids[0, -1])
        self.tokens += 1
        if token in self._ends:
            self.ended = True
        else:
            delta = self._text.push(token)
            if delta:
                self._job.emit(Delta(self._index, delta))
        stop = self.ended or self._text.stopped or self._job.cancelled
        return torch.full((1,), stop, dtype=torch.bool, device=input_ids.device)


def _sampling(request: CompletionRequest) -> dict[str, Any]:
    if request.temperature < _GREEDY_BELOW or request.top_p < _GREEDY_BELOW:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}


def _end_tokens(loaded: Loaded) -> list[int]:
    candidates = (
        loaded.module.generation_config.eos_token_id,
        loaded.config.eos_token_id,
        loaded.tokenizer.eos_token_id,
    )
    found: Any = next((candidate for candidate in candidates if candidate is not None), [])
    ends = [found] if isinstance(found, int) else list(found)
    return [token for token in ends if 0 <= token < int(loaded.config.vocab_size)]
