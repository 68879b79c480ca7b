"""What a model's folder says about generation: its end tokens, the sampling that its authors chose, forbidden tokens.

Law: read once, after the load; a setting that is neither honoured nor without effect is refused by name. docs/models.md
has the table of all of them. The constraints on tokens are transformers' own logits processors, made for each sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cached.contract.errors import Permanent
from server.engine.model_files import Loaded
from server.engine.types import Sampling

# Searches and settings of `generate` that another loop than its greedy or sampling one computes, with neutral values.
_NOT_COMPUTED: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0, 0.0),
    "constraints": ([],),
    "force_words_ids": ([],),
    "dola_layers": (),
    "guidance_scale": (1, 1.0),
    "watermarking_config": (),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0, 1.0),
    "eta_cutoff": (0, 0.0, 1.0),
    "top_h": (),
    "max_time": (),
    "token_healing": (False,),
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# What `_get_logits_processor` makes a processor of, besides the repetition penalty, with its values for none.
_CONSTRAINTS: dict[str, tuple[object, ...]] = {
    "sequence_bias": (),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
}

Constraint = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """The settings of one folder. `sampling`: the values for fields that a request leaves out. `max_new_tokens` and
    `max_length` (with the prompt) bound a request without a limit of its own."""

    ends: frozenset[int]
    sampling: dict[str, Any]
    stop: tuple[str, ...]
    max_new_tokens: int | None
    max_length: int | None
    constraining: Any  # transformers' generation configuration; None where nothing constrains tokens

    def fill(self, asked: Sampling, left_out: Iterable[str]) -> Sampling:
        """Return `asked` with the folder's values for the fields that the request leaves out."""
        return replace(asked, **{name: self.sampling[name] for name in left_out if name in self.sampling})

    def limit(self, prompt_tokens: int, left: int) -> int:
        """Return the most tokens to generate where a request says nothing and `left` tokens fit."""
        if self.max_new_tokens is not None:
            return min(left, self.max_new_tokens)
        return left if self.max_length is None else max(1, min(left, self.max_length - prompt_tokens))

    def constrain(self, module: Any, ids: list[int], sampling: Sampling, limit: int) -> Constraint | None:
        """Return what changes the logits (1, vocabulary) of the sequence `ids`, which grows; None for nothing."""
        if self.constraining is None:
            return None
        config, prompt_tokens = copy.copy(self.constraining), len(ids)
        config.do_sample, config.max_length = False, prompt_tokens + limit
        config.repetition_penalty = sampling.repetition_penalty
        device = module.device
        config._eos_token_tensor = torch.tensor(sorted(self.ends), device=device) if self.ends else None
        prompt = torch.tensor([ids], device=device)
        processors = module._get_logits_processor(config, prompt_tokens, encoder_input_ids=prompt, device=device)

        def constrain(logits: torch.Tensor) -> torch.Tensor:
            changed: torch.Tensor = processors(torch.tensor([ids], device=logits.device), logits)
            return changed

        return constrain


def read_settings(directory: Path, loaded: Loaded) -> FolderSettings:
    """Read the settings of a loaded model; raises `Permanent` (`unsupported_model`, `invalid_config`)."""
    found = loaded.module.generation_config
    where = directory / "generation_config.json"
    where = where if where.is_file() else directory / "config.json"
    for name, neutral in _NOT_COMPUTED.items():
        value = getattr(found, name, None)
        if value is not None and value not in neutral:
            raise Permanent(
                "unsupported_model",
                f"{where}: {name}={_shown(value)} is not computed here, and leaving it out would change the text",
                "publish the folder without it, or serve it with your own code (--app MODULE:FACTORY)",
            )
    _refuse_cleaning(directory, loaded.tokenizer)
    constrains = any(
        getattr(found, name, None) is not None and getattr(found, name) not in neutral
        for name, neutral in _CONSTRAINTS.items()
    )
    stop = found.stop_strings or ()
    if not isinstance(stop, str) and not (isinstance(stop, list | tuple) and all(isinstance(one, str) for one in stop)):
        raise Permanent(
            "invalid_config",
            f"{where}: expected a text or a list of texts as stop_strings, found {_shown(stop)}",
            "correct it",
        )
    settings = FolderSettings(
        frozenset(_ends(where, loaded)),
        _sampling(where, found),
        (stop,) if isinstance(stop, str) else tuple(stop),
        _count(where, found, "max_new_tokens"),
        _count(where, found, "max_length"),
        found if constrains else None,
    )
    _try(where, settings, loaded)
    return settings


def _count(where: Path, found: Any, name: str) -> int | None:
    value = getattr(found, name)
    if value is not None and (type(value) is not int or value < 1):
        raise Permanent(
            "invalid_config", f"{where}: expected a whole number of at least 1 as {name}, found {value!r}", "correct it"
        )
    return value


def _try(where: Path, settings: FolderSettings, loaded: Loaded) -> None:
    """Apply the constraints once: a wrong value must end the load, not a request and all that run beside it."""
    try:
        constrain = settings.constrain(loaded.module, [0, 0], Sampling(), 2)
        if constrain is not None:
            constrain(torch.zeros((1, int(loaded.config.get_text_config().vocab_size)), device=loaded.module.device))
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, RuntimeError) as error:
        named = [name for name in _CONSTRAINTS if getattr(settings.constraining, name, None) is not None]
        raise Permanent(
            "invalid_config", f"{where}: transformers cannot apply {', '.join(named)}: {error}", "correct it"
        ) from error


def _sampling(where: Path, found: Any) -> dict[str, Any]:
    """Return the folder's sampling. `do_sample: false` is greedy; the rest counts unless it says so, as in vLLM."""
    given: dict[str, Any] = {}
    for name in _SAMPLING:
        value = getattr(found, name, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise Permanent(
                "invalid_config", f"{where}: expected a number of at least 0 as {name}, found {value!r}", "correct it"
            )
        given[name] = int(value) if name == "top_k" else float(value)
    if found.do_sample is False:
        kept = {name: value for name, value in given.items() if name == "repetition_penalty"}
        return {**kept, "temperature": 0.0}
    return given


def _ends(where: Path, loaded: Loaded) -> set[int]:
    """Return all end tokens: of generation_config.json, of config.json, and the tokenizer's own. Each alone is wrong
    for some published model: chat models end with a token that only one of the three names."""
    text = loaded.config.get_text_config()
    named = (loaded.module.generation_config.eos_token_id, loaded.config.eos_token_id, text.eos_token_id)
    ends: set[int] = set()
    for found in (*named, loaded.tokenizer.eos_token_id):
        items = [] if found is None else found if isinstance(found, list | tuple) else [found]
        if not all(type(item) is int for item in items):
            raise Permanent(
                "invalid_config",
                f"{where}: expected eos_token_id as one id or a list of ids, found {found!r}",
                "correct it",
            )
        ends.update(items)
    return {token for token in ends if 0 <= token < int(text.vocab_size)}


def _refuse_cleaning(directory: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer that changes text after it was decoded: streamed text cannot be taken back."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_bpe = type(getattr(backend, "model", None)).__name__ == "BPE"
    if is_bpe and not getattr(
        tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
    ):
        return  # transformers ignores it there
    raise Permanent(
        "unsupported_model",
        f"{directory / 'tokenizer_config.json'}: clean_up_tokenization_spaces=true changes text after it is generated",
        "publish the folder with clean_up_tokenization_spaces: false, or serve it with your own code (--app)",
    )


def _shown(value: object) -> str:
    return repr(value)[:60]
