"""Turn the inputs of an embedding request into tokens: prompt, special tokens, limits, truncation.

Law: a tokenizer keeps settings between calls, so this one belongs to one thread. An input that does not fit is refused
unless the request says that it may be cut. Prompts, their length and the tokenizer's call are as in
sentence-transformers 6.2.0 (`base/model.py`, `base/modules/transformer.py`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from cached.contract.errors import Permanent
from server.engine.embedding.recipe import Recipe
from server.engine.tokenizer import NO_LIMIT, bound, too_long
from server.engine.types import EmbeddingRequest, EncodedText, InvalidRequest, Prompt, Truncation

_LOG = logging.getLogger(__name__)
_ADVICE = "; with truncate: true it is cut"
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class EmbeddingTexts:
    """An encoder's tokenizer, prompts and limits. `positions`: the most tokens that the encoder can take, None for any
    number. `context` is the least of that and of what the model's files say, None without a limit."""

    def __init__(self, tokenizer: Any, recipe: Recipe, vocabulary: int, positions: int | None) -> None:
        settings = recipe.transformer
        self._tokenizer = copy.deepcopy(tokenizer)
        self._recipe = recipe
        self._vocabulary = vocabulary
        self._positions = positions
        own = settings.max_length or self._tokenizer.model_max_length
        if type(own) is not int:
            raise _no_context(f"model_max_length {own!r} in tokenizer_config.json")
        self.context = self._least(own if own < NO_LIMIT else None)
        if self.context is not None and self.context < 1:
            raise _no_context(f"{self.context}: {positions} positions, {own} in the tokenizer's files")
        self._side: str = self._tokenizer.truncation_side
        padding = tokenizer.pad_token_id
        # Padding is masked, so any id does where the tokenizer's own is none that the encoder has.
        self.padding_id: int = padding if padding is not None and 0 <= padding < vocabulary else 0
        self._prompt_tokens = self._count_prompts()

    def encode(self, request: EmbeddingRequest) -> tuple[EncodedText, ...]:
        """Return the inputs in tokens; raises `InvalidRequest`."""
        name, prompt = self._choose_prompt(request)
        limit = self._limit(request)
        texts: list[EncodedText] = []
        for one in request.inputs:
            if isinstance(one, str):
                encoded = self._encode_text(prompt + one, limit, request.truncation)
                texts.append(EncodedText(*encoded, prompt_tokens=self._prompt_tokens.get(name, 0) if prompt else 0))
            else:
                texts.append(EncodedText(self._cut_ids(one, limit, request.truncation)))
        for text in texts:
            self._check(text)
        return tuple(texts)

    def _least(self, *limits: int | None) -> int | None:
        return min((limit for limit in (self._positions, *limits) if limit is not None), default=None)

    def _limit(self, request: EmbeddingRequest) -> int | None:
        """Return the most tokens of one input of this request."""
        settings = self._recipe.transformer
        limit = self.context
        own = {"query": settings.query_length, "document": settings.document_length}.get(request.input_type or "")
        if own is not None and settings.max_length is None:
            limit = self._least(own)
        wanted = request.truncation.tokens if request.truncation is not None else None
        if wanted is not None:
            if limit is not None and wanted > limit:
                raise InvalidRequest(
                    f"truncate_prompt_tokens: expected at most {limit}, the context, found {wanted}",
                    "truncate_prompt_tokens",
                )
            limit = wanted
        return limit

    def _choose_prompt(self, request: EmbeddingRequest) -> tuple[str, str]:
        """Return the name and text of the prompt that stands before each text; raises `InvalidRequest`."""
        prompts = self._recipe.prompts
        if request.prompt_name is None and request.input_type is None:
            name = self._recipe.default_prompt
            return (name, prompts[name]) if name is not None else ("", "")
        param = "input_type" if request.prompt_name is None else "prompt_name"
        name = request.prompt_name if request.prompt_name is not None else str(request.input_type)
        if name not in prompts:
            known = ", ".join(prompts)
            raise InvalidRequest(f"{param}: expected one of this model's prompts, {known}, found {name[:60]!r}", param)
        if request.prompt_name is None and name == "document" and not prompts[name]:
            # The library takes `document`, which every model has, if only an empty one; these authors mean another.
            other = next((one for one in _DOCUMENT_PROMPTS if prompts.get(one)), None)
            if other is not None:
                raise InvalidRequest(
                    f"{param}: this model's prompt of documents is named: prompt_name {other!r}", param
                )
        if prompts[name] and any(not isinstance(one, str) for one in request.inputs):
            raise InvalidRequest(f"{param}: a prompt stands before a text; put its tokens among the token ids", param)
        return name, prompts[name]

    def _count_prompts(self) -> dict[str, int]:
        """Return how many tokens a pooling leaves out for each prompt; empty where none leaves any out."""
        if not self._recipe.leaves_out_prompts:
            return {}
        counts: dict[str, int] = {}
        special = set(self._tokenizer.all_special_ids)
        for name, prompt in self._recipe.prompts.items():
            if prompt:
                ids, _ = self._call(prompt, self.context, Truncation())
                counts[name] = len(ids) - (1 if ids and ids[-1] in special else 0)
        return counts

    def _encode_text(
        self, text: str, limit: int | None, truncation: Truncation | None
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        if limit is not None:
            side = "right" if truncation is None else self._cut_side(truncation)
            text, certain = bound(self._tokenizer, text, limit, side)
            if certain is not None and truncation is None:
                raise too_long(limit, f"more than {certain} in the input{_ADVICE}", "input")
        ids, types = self._call(text, limit, truncation)
        if limit is not None and len(ids) > limit:
            if truncation is not None:  # a tokenizer cuts nothing where its special tokens alone are more
                raise InvalidRequest(
                    f"input: it cannot be cut to {limit} tokens, with the special ones among them", "input"
                )
            raise too_long(limit, f"{len(ids)} in the input{_ADVICE}", "input")
        return ids, types

    def _call(
        self, text: str, limit: int | None, truncation: Truncation | None
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        options: dict[str, Any] = {"add_special_tokens": self._recipe.transformer.special_tokens}
        if truncation is not None and limit is not None:
            self._tokenizer.truncation_side = self._cut_side(truncation)
            options |= {"truncation": "longest_first", "max_length": limit}
        found = self._tokenizer(text, **options)
        types = found.get("token_type_ids")
        return tuple(found["input_ids"]), None if types is None else tuple(types)

    def _cut_side(self, truncation: Truncation) -> str:
        return truncation.side or self._side

    def _cut_ids(self, ids: Prompt, limit: int | None, truncation: Truncation | None) -> tuple[int, ...]:
        """Return token ids as they were sent, cut where the request allows it."""
        found = tuple(int(token) for token in ids)
        if limit is not None and len(found) > limit:
            if truncation is None:
                raise too_long(limit, f"{len(found)} in the input{_ADVICE}", "input")
            found = found[-limit:] if self._cut_side(truncation) == "left" else found[:limit]
        return found

    def _check(self, text: EncodedText) -> None:
        if not text.ids:
            raise InvalidRequest("input: expected at least one token, found none", "input")
        wrong = next((token for token in text.ids if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(f"input: expected token ids from 0 to {self._vocabulary - 1}, found {wrong}", "input")


def _no_context(found: str) -> Permanent:
    return Permanent(
        "invalid_config",
        f"expected a context of at least 1 token, found {found}",
        "correct max_position_embeddings in config.json, model_max_length in tokenizer_config.json, or max_seq_length "
        "in sentence_bert_config.json",
    )


def lower_case(tokenizer: Any, path: Path) -> None:
    """Have the tokenizer lower every text first, as `do_lower_case` of sentence_bert_config.json does."""
    if not getattr(tokenizer, "is_fast", False):
        raise Permanent(
            "unsupported_model",
            f"{path}: do_lower_case: expected a tokenizer with a tokenizer.json, found {type(tokenizer).__name__}",
            "publish the model with its tokenizer.json",
        )
    backend = tokenizer.backend_tokenizer
    own: Any = backend.normalizer
    several = isinstance(own, NormalizerSequence)
    parts: list[Any] = list(own) if several else [] if own is None else [own]
    if not any(isinstance(part, Lowercase) for part in parts):
        backend.normalizer = NormalizerSequence([Lowercase(), *parts])


def tell_unknown_options(tokenizer: object, options: Iterable[str], folder: Path) -> None:
    """Warn about arguments that a tokenizer's class takes and does nothing with."""
    unknown = sorted(name for name in options if not hasattr(tokenizer, name))
    if unknown:
        _LOG.warning(
            "%s: tokenizer_args: passed on to transformers, whose %s has no such setting: %s",
            folder,
            type(tokenizer).__name__,
            ", ".join(unknown)[:300],
        )


def refuse_adapter(folder: Path) -> None:
    """Refuse an adapter's folder: the library would load the model that it names, and not the weights beside it."""
    if (folder / "adapter_config.json").is_file():
        raise Permanent(
            "unsupported_model",
            f"{folder / 'adapter_config.json'}: expected an encoder's own weights, found an adapter, whose base lies "
            "elsewhere",
            "merge the adapter into its base (merge_and_unload) and publish the result",
        )
