"""Sequence classification: scores of texts and of pairs of texts, as the libraries of the model's folder compute them.

Law: runs in the model's thread only, except `prepare`, which has a tokenizer of its own. Padding is masked; a model
whose padded scores are not those alone, tried at warm-up, is run one sequence at a time.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cached.contract.errors import Permanent
from server.engine.embedding.documents import read_document, unsupported
from server.engine.embedding.recipe import read_entries, read_prompts
from server.engine.embedding.requirements import check_requirements, check_version
from server.engine.embedding.steps import find_activation
from server.engine.embedding.texts import lower_case, refuse_adapter, tell_unknown_options
from server.engine.embedding.transformer_settings import SCORES, TransformerSettings, read_transformer
from server.engine.engine import Job, fail_without_numbers
from server.engine.kinds import Declared
from server.engine.model_files import LibraryOptions, Loaded, load_classifier, positions
from server.engine.passes import MAX_SEQUENCES, PassQueue
from server.engine.tokenizer import Tokens, bound, too_long
from server.engine.types import (
    About,
    Activation,
    Features,
    InvalidRequest,
    ModelKind,
    Prompt,
    Scored,
    ScoringInputs,
    ScoringRequest,
)

_LOG = logging.getLogger(__name__)
_TOLERANCE = {
    torch.float32: 1e-4,
    torch.float64: 1e-4,
}  # of the scores' size; a wrong mask moves them by a tenth or more
_TOLERANCE_HALF = 0.05
_TRIED = (9, 3, 14)  # tokens of the sequences that warm-up compares alone and together
# The activations of torch.nn that a folder may name: each acts on a number alone, and needs no argument.
_ACTIVATIONS = (
    *("Identity", "Sigmoid", "Tanh", "ReLU", "LogSigmoid", "Softplus", "ELU", "GELU", "Hardsigmoid", "Hardtanh"),
    *("LeakyReLU", "Mish", "ReLU6", "SELU", "SiLU", "Softsign"),
)

_ADVICE = "; with truncate: true it is cut"

ScoringJob = Job[ScoringInputs, Scored]


@dataclass(frozen=True, slots=True)
class ClassifierRecipe:
    """What sentence-transformers' files say of a classifier. `activation` is None where they say nothing."""

    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    activation: object = None
    prompt: str = ""
    from_modules: bool = False


class Classifier:
    """A sequence classification model on its device; the model of `/v1/rerank` and `/v1/classify`."""

    def __init__(self, loaded: Loaded, recipe: ClassifierRecipe, device: str) -> None:
        self._loaded = loaded
        self._recipe = recipe
        self._device = device
        self._rank = _ranking(loaded.config, recipe)
        self._label = _labelling(loaded.config)
        self._tokenizer = copy.deepcopy(loaded.tokenizer)  # a tokenizer keeps settings between calls
        self._side: str = self._tokenizer.truncation_side
        self._tokens = Tokens(loaded.tokenizer, loaded.config, _context(loaded, recipe))
        self._passes = PassQueue[ScoringJob, Features, tuple[float, ...]](
            torch.device(device).type, lambda features: (sorted(features), len(features["input_ids"])), 1
        )

    @classmethod
    def load(cls, directory: Path, declared: Declared, device: str, dtype: str) -> Classifier:
        """Load the classifier of a model's folder; raises `HoldfastError`."""
        recipe = read_recipe(directory, declared)
        settings, folder = recipe.transformer, directory / declared.inside
        refuse_adapter(folder)
        options = LibraryOptions(settings.config_options, settings.model_options, settings.tokenizer_options)
        loaded = load_classifier(folder, declared.architecture, device, dtype, options)
        tell_unknown_options(loaded.tokenizer, settings.tokenizer_options, folder)
        if settings.lower_case:
            lower_case(loaded.tokenizer, folder)
        return cls(loaded, recipe, device)

    @property
    def about(self) -> About:
        loaded, labels = self._loaded, self._loaded.config.id2label
        return About(
            ModelKind.CLASSIFICATION,
            self._tokens.context,
            self._device,
            str(loaded.dtype).removeprefix("torch."),
            loaded.weight_bytes,
            batch=self._passes.max_sequences,
            labels=tuple(str(labels.get(at, f"LABEL_{at}")) for at in range(int(loaded.config.num_labels))),
        )

    def warm_up(self) -> None:
        """Score a text and check the numbers, then check whether inputs can be batched; raises `Permanent`."""
        vocabulary, labels = self._tokens.vocabulary, int(self._loaded.config.num_labels)
        padding = {self._loaded.config.pad_token_id, self._loaded.tokenizer.pad_token_id}
        usable = [token for token in range(min(vocabulary, 512)) if token not in padding]
        tried = [[usable[(7 * row + 3 * at) % len(usable)] for at in range(width)] for row, width in enumerate(_TRIED)]
        inputs = [_features(ids) for ids in tried]
        alone = torch.cat([self.score([one]) for one in inputs])
        if tuple(alone.shape) != (len(_TRIED), labels) or not bool(torch.isfinite(alone).all()):
            raise Permanent(
                "bad_model",
                f"a dummy inference: expected {labels} finite scores, found shape {tuple(alone.shape)}",
                "check that the weights are the ones that belong to config.json",
            )
        try:
            difference = float((self.score(inputs) - alone).abs().max() / alone.abs().max().clamp_min(1e-6))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            _LOG.warning("%s is run one text at a time: %s", type(self._loaded.module).__name__, error)
            return
        if not difference <= _TOLERANCE.get(self._loaded.dtype, _TOLERANCE_HALF):
            name = type(self._loaded.module).__name__
            _LOG.warning("%s is run one text at a time: in a batch its scores differ by %.2g", name, difference)
            return
        self._passes.max_sequences = MAX_SEQUENCES

    def prepare(self, request: ScoringRequest) -> ScoringInputs:
        """Turn a request into tokens; raises `InvalidRequest` where an input is longer than the context."""
        if request.ranks:
            self._check_ranks()
        inputs = tuple(self._encode(one, request) for one in request.inputs)
        return ScoringInputs(inputs, request.activation)

    def _check_ranks(self) -> None:
        """Refuse to rank with a model of several labels, and with one whose library writes a pair as a chat."""
        found = None
        if self._loaded.config.num_labels != 1:
            found = f"this model has {self._loaded.config.num_labels} labels, a reranker has one"
        elif not self._recipe.from_modules and self._loaded.tokenizer.chat_template:
            found = (
                "this model has a chat template and no modules.json: sentence-transformers writes a query and a "
                "document as a chat, which is not done here (publish modules.json with the model)"
            )
        if found is not None:
            raise InvalidRequest(f"{found}: use /v1/classify", "model", "unsupported_operation")

    @property
    def room(self) -> int:
        """Return how many more jobs can be admitted; the inputs of jobs admitted together are batched together."""
        return self._passes.room

    @property
    def busy(self) -> bool:
        return self._passes.busy

    def step(self, arrived: list[ScoringJob]) -> None:
        """Admit the jobs, batch their inputs by length, and run one pass of the model."""
        live = self._passes.next_pass({job: job.request.inputs for job in arrived})
        if live:
            logits = self.score([one.value for one in live])
            for one, row in zip(live, logits, strict=True):
                if bool(row.isfinite().all()):
                    one.result = tuple(self.activate(row, one.job.request.activation).tolist())
                else:
                    fail_without_numbers(one.job)
        for job, scores in self._passes.take_complete(live).items():
            job.emit(Scored(tuple(scores), job.request.tokens))
            job.finish()

    def reset(self) -> None:
        self._passes.clear()

    @torch.inference_mode()
    def score(self, inputs: list[Features]) -> torch.Tensor:
        """Score inputs in one pass; returns the logits, float32 of shape (inputs, labels), on the CPU."""
        tokenizer = self._loaded.tokenizer
        width = max(len(one["input_ids"]) for one in inputs)
        padding = {"input_ids": self._padding_id(), "token_type_ids": tokenizer.pad_token_type_id}
        features = {
            name: torch.tensor([_pad(one[name], width, padding.get(name, 0), tokenizer.padding_side) for one in inputs])
            for name in inputs[0]
        }
        out = self._loaded.module(**{name: tensor.to(self._device) for name, tensor in features.items()})
        logits: torch.Tensor = out.logits
        return logits.float().cpu()

    def _padding_id(self) -> int:
        for found in (self._loaded.config.pad_token_id, self._loaded.tokenizer.pad_token_id):
            if found is not None:
                return int(found)
        return 0

    def activate(self, logits: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Turn one input's logits into what a request asks for."""
        if activation is Activation.NONE:
            return logits
        return (self._rank if activation is Activation.RANKING else self._label)(logits)

    def _encode(self, text: Prompt | tuple[str, str], request: ScoringRequest) -> Features:
        limit, truncation, param = self._limit(request), request.truncation, request.param
        side = (truncation.side if truncation is not None else None) or self._side
        if isinstance(text, tuple) and text and isinstance(text[0], int):
            ids = [token for token in text if isinstance(token, int)]
            if truncation is not None and limit is not None and len(ids) > limit:
                ids = ids[-limit:] if side == "left" else ids[:limit]
            self._check_length(ids, limit, param)
            self._tokens.check_ids(ids, param)
            return _features(ids)
        parts = [text] if isinstance(text, str) else [str(part) for part in text]
        parts[0] = self._recipe.prompt + parts[0]
        for at, part in enumerate(parts):
            if limit is not None:
                parts[at], certain = bound(self._tokenizer, part, limit, side)
                if certain is not None and truncation is None:
                    raise too_long(limit, f"more than {certain} in the input{_ADVICE}", param)
        self._tokenizer.truncation_side = side
        is_cut = truncation is not None and limit is not None
        encoded = self._tokenizer(
            *parts,
            add_special_tokens=self._recipe.transformer.special_tokens,
            truncation="longest_first" if is_cut else False,
            max_length=limit if is_cut else None,
        )
        features: Features = {name: list(values) for name, values in encoded.items()}
        if is_cut and limit is not None and len(features["input_ids"]) > limit:
            # A tokenizer cuts nothing where its special tokens alone are more.
            raise InvalidRequest(
                f"{param}: it cannot be cut to {limit} tokens, with the special ones among them", param
            )
        self._check_length(features["input_ids"], limit, param)
        return features

    def _limit(self, request: ScoringRequest) -> int | None:
        """Return the most tokens of one input of this request."""
        context, wanted = self._tokens.context, request.truncation.tokens if request.truncation is not None else None
        if wanted is not None and context is not None and wanted > context:
            raise InvalidRequest(
                f"truncate_prompt_tokens: expected at most {context}, the context, found {wanted}",
                "truncate_prompt_tokens",
            )
        return context if wanted is None else wanted

    def _check_length(self, ids: list[int], limit: int | None, param: str) -> None:
        if not ids:
            raise InvalidRequest(f"{param}: expected at least one token, found none", param)
        if limit is not None and len(ids) > limit:
            raise too_long(limit, f"{len(ids)} in an input{_ADVICE}", param)


def read_recipe(directory: Path, declared: Declared) -> ClassifierRecipe:
    """Read what sentence-transformers wrote beside a classifier; raises `Permanent` for a setting that is not honoured.
    Without modules.json it reads none of these files, nor does this."""
    if not (directory / "modules.json").is_file():
        return ClassifierRecipe()
    path = directory / "config_sentence_transformers.json"
    model = read_document(path)
    read_entries(directory / "modules.json")
    if model.get("keep_in_fp32_modules"):
        raise unsupported(path, "keep_in_fp32_modules", model["keep_in_fp32_modules"], "none")
    check_version(path, model.get("__version__"))
    check_requirements(path, model.get("requirements"))
    transformer = read_transformer(directory, declared.inside, SCORES)
    for name, length in (("query_length", transformer.query_length), ("document_length", transformer.document_length)):
        if length is not None:
            raise unsupported(directory / declared.inside, name, length, "null: a pair is cut as a whole")
    prompts, default = read_prompts(path, model, {})
    return ClassifierRecipe(
        transformer, model.get("activation_fn"), prompts[default] if default is not None else "", from_modules=True
    )


def _context(loaded: Loaded, recipe: ClassifierRecipe) -> int | None:
    """Return the least of the model's positions and the limit of its files, as for embeddings."""
    limit = recipe.transformer.max_length or loaded.tokenizer.model_max_length
    own = positions(loaded.config)
    return limit if own is None else min(own, limit)


def _ranking(config: Any, recipe: ClassifierRecipe) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return sentence-transformers' activation of a CrossEncoder (6.2, `get_default_activation_fn`)."""
    older = getattr(config, "sbert_ce_default_activation_function", None)
    named = getattr(config, "sentence_transformers", None)
    newer = named.get("activation_fn", older) if isinstance(named, dict) else older
    name = newer if recipe.activation is None else recipe.activation
    if name is None:
        return torch.sigmoid if config.num_labels == 1 else torch.nn.Identity()
    found = find_activation(name) if isinstance(name, str) and name.rpartition(".")[2] in _ACTIVATIONS else None
    if found is None:
        expected = ", ".join(f"torch.nn.{known}" for known in _ACTIVATIONS)
        raise Permanent(
            "unsupported_model",
            f"config.json: expected an activation function of {expected}, found {name!r}",
            "serve it with your own code (--app MODULE:FACTORY)",
        )
    return found


def _labelling(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what transformers' text-classification pipeline (5.23) applies to the logits."""
    if config.problem_type == "regression":
        return torch.nn.Identity()
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return torch.sigmoid
    return lambda logits: logits.softmax(-1)


def _features(ids: list[int]) -> Features:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _pad(values: list[int], width: int, filler: int, side: str) -> list[int]:
    rest = [filler] * (width - len(values))
    return rest + values if side == "left" else values + rest
