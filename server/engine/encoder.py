"""Sentence embeddings: an encoder's hidden states, pooled as the model's own folder says.

Law: runs in the model's thread only. Padding is masked: other sequences of a batch change a vector by rounding only.
Pooling as sentence-transformers defines it (`modules.json`, `1_Pooling/config.json`); the mean without those files.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cached.contract.errors import HoldfastError, Permanent
from server.engine.engine import Job, fail_without_numbers
from server.engine.model_files import Loaded, load_encoder
from server.engine.tokenizer import Tokens
from server.engine.types import About, Embedded, EmbeddingRequest, Kind

_MAX_BATCH_SEQUENCES = 64
# Tokens with padding. Bounds the memory of one pass, and its time, in which the model shows no progress to the health
# check. On two cores MiniLM takes as long for 8 passes of 2048 as for one of 16384, which is 14 s.
_MAX_BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}
_POOLING_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How hidden states become a vector. `transformer` is the encoder's folder inside the model's folder."""

    transformer: str = ""
    pooling: str = "mean"
    normalize: bool = False


Inputs = tuple[list[int], ...]  # a request in tokens
EmbeddingJob = Job[Inputs, Embedded]


@dataclass(slots=True)
class _Sequence:
    """One input of one job, and its vector once it is computed."""

    job: EmbeddingJob
    ids: list[int]
    vector: bytes = b""


class Encoder:
    """An encoder on its device; the model of `/v1/embeddings`."""

    def __init__(self, loaded: Loaded, recipe: Recipe, device: str) -> None:
        self._module = loaded.module
        self._recipe = recipe
        self._device = device
        self._pass_tokens = _MAX_BATCH_TOKENS.get(torch.device(device).type, _MAX_BATCH_TOKENS["cpu"])
        self._dimension = int(loaded.config.hidden_size)
        self._tokens = Tokens(loaded.tokenizer, loaded.config, context(loaded))
        self._taken: dict[EmbeddingJob, list[_Sequence]] = {}
        self._passes: deque[list[_Sequence]] = deque()
        self.about = About(
            Kind.EMBEDDINGS,
            self._tokens.context,
            device,
            str(loaded.dtype).removeprefix("torch."),
            loaded.weight_bytes,
            batch=_MAX_BATCH_SEQUENCES,
        )

    @classmethod
    def load(cls, directory: Path, device: str, dtype: str) -> Encoder:
        """Load the encoder of a model's folder; raises `HoldfastError`."""
        recipe = read_recipe(directory)
        return cls(load_encoder(directory / recipe.transformer, device, dtype), recipe, device)

    def warm_up(self) -> None:
        """Embed a text and check the vector's shape; raises `Permanent` (`bad_model`) where it is wrong."""
        vectors = self.embed([self._tokens.encode("ready", "input")])
        found = tuple(vectors.shape)
        if found != (1, self._dimension) or not bool(torch.isfinite(vectors).all()):
            raise Permanent(
                "bad_model",
                f"a dummy inference: expected one finite vector of {self._dimension} numbers, found shape {found}",
                "check that the weights are the ones that belong to config.json",
            )

    def prepare(self, request: EmbeddingRequest) -> Inputs:
        """Turn a request into tokens; raises `InvalidRequest` where an input is longer than the context."""
        return tuple(self._tokens.encode(text, "input") for text in request.inputs)

    @property
    def room(self) -> int:
        """Return how many more jobs can be admitted; the inputs of jobs admitted together are batched together."""
        return max(0, _MAX_BATCH_SEQUENCES - len(self._taken))

    @property
    def busy(self) -> bool:
        return bool(self._passes)

    def step(self, arrived: list[EmbeddingJob]) -> None:
        """Admit the jobs, batch their inputs by length, and run one pass of the model."""
        taken = {job: [_Sequence(job, ids) for ids in job.request] for job in arrived}
        self._taken.update(taken)
        new = [sequence for sequences in taken.values() for sequence in sequences]
        self._passes.extend(_batches(new, self._pass_tokens))
        live = [sequence for sequence in self._passes.popleft() if not sequence.job.ended]
        if live:
            vectors = self.embed([sequence.ids for sequence in live])
            finite: list[bool] = vectors.isfinite().all(1).tolist()
            for sequence, row in zip(live, vectors.numpy().astype("<f4"), strict=True):
                sequence.vector = row.tobytes()
            for job in {one.job: None for one, is_finite in zip(live, finite, strict=True) if not is_finite}:
                fail_without_numbers(job)
        for job in {sequence.job: None for sequence in live if not sequence.job.ended}:
            sequences = self._taken[job]
            if all(sequence.vector for sequence in sequences):
                tokens = sum(len(sequence.ids) for sequence in sequences)
                job.emit(Embedded(tuple(sequence.vector for sequence in sequences), tokens))
                job.finish()
        self._taken = {job: sequences for job, sequences in self._taken.items() if not job.ended}

    def reset(self) -> None:
        self._taken = {}
        self._passes.clear()

    @torch.inference_mode()
    def embed(self, sequences: list[list[int]]) -> torch.Tensor:
        """Embed token sequences in one pass; returns float32 of shape (sequences, dimension), on the CPU."""
        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), self._tokens.padding_id)
        mask = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        mask = mask.to(self._device)
        states = self._module(input_ids=ids.to(self._device), attention_mask=mask).last_hidden_state
        vectors = pool(states.float(), mask, self._recipe.pooling)
        if self._recipe.normalize:
            vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
        return vectors.cpu()


def pool(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """Reduce hidden states (sequences, tokens, dimension) to one vector per sequence, without the padding."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    if mode == "mean":
        return (states * weights).sum(1) / weights.sum(1)
    if mode == "cls":
        return states[:, 0]
    if mode == "max":
        return states.masked_fill(weights == 0, float("-inf")).amax(1)
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


def context(loaded: Loaded) -> int | None:
    """Return the encoder's number of positions, None where unbounded; RoBERTa's begin after its padding index."""
    limit = getattr(loaded.config, "max_position_embeddings", None)
    table = getattr(getattr(loaded.module, "embeddings", None), "position_embeddings", None)
    reserved = getattr(table, "padding_idx", None)
    return limit if limit is None or reserved is None else limit - reserved - 1


def read_recipe(directory: Path) -> Recipe:
    """Read `modules.json` and the files that it names; raises `Permanent` for a module that is not supported."""
    path = directory / "modules.json"
    if not path.is_file():
        pooling = directory / "1_Pooling" / "config.json"
        return Recipe(pooling=_pooling(pooling)) if pooling.is_file() else Recipe()
    transformer, mode, normalize = "", "mean", False
    try:
        for module in _json(path):
            kind, where = str(module["type"]).rpartition(".")[2], _inside(path, str(module["path"]))
            if kind == "Transformer":
                transformer = where
            elif kind == "Pooling":
                mode = _pooling(directory / where / "config.json")
            elif kind == "Normalize":
                normalize = True
            else:
                raise Permanent(
                    "unsupported_model", f"{path}: the module {module['type']} is not supported", "serve it with --app"
                )
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return Recipe(transformer, mode, normalize)


def _pooling(path: Path) -> str:
    document = _json(path)
    flags = [name for name, on in document.items() if name.startswith("pooling_mode_") and on is True]
    found = [document["pooling_mode"]] if "pooling_mode" in document else [_POOLING_MODES.get(n, n) for n in flags]
    if len(found) != 1 or found[0] not in _POOLING_MODES.values():
        expected = ", ".join(_POOLING_MODES.values())
        raise Permanent(
            "unsupported_model",
            f"{path}: expected one pooling mode of {expected}, found {found}",
            "serve it with --app",
        )
    return str(found[0])


def _inside(path: Path, where: str) -> str:
    if where.startswith("/") or ".." in Path(where).parts:
        raise _damaged(path, ValueError(f"{where!r} is not inside the model's folder"))
    return where


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> HoldfastError:
    return Permanent("invalid_config", f"{path}: {error!r}", "publish the model's folder whole")


def _batches(sequences: list[_Sequence], most_tokens: int) -> Iterator[list[_Sequence]]:
    """Group sequences by length, so that little is padded; each group fits one pass."""
    batch: list[_Sequence] = []
    for sequence in sorted(sequences, key=lambda s: len(s.ids)):
        if batch and (len(batch) == _MAX_BATCH_SEQUENCES or (len(batch) + 1) * len(sequence.ids) > most_tokens):
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch
