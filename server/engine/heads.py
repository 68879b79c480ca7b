"""Find the head of a model whose config.json names no architecture, by the names of its tensors.

Law: reads headers, no weights. Modules are built without memory (torch's meta device) and compared by their names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto import modeling_auto

from cached.contract.errors import Permanent
from server.engine import architectures
from server.engine.kinds import Declared
from server.engine.types import ModelKind
from server.weights.format.checkpoint import open_checkpoint
from server.weights.pretrained import read_config

_LOG = logging.getLogger(__name__)
_auto: Any = modeling_auto  # its mappings are untyped
_NEEDLESS = "pooler."  # of a bare encoder: only its hidden states are read


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A class that has all its tensors in the files, and how many of theirs it has no place for."""

    architecture: str
    kind: ModelKind | None
    left: int


def find_head(directory: Path, declared: Declared) -> Declared:
    """Return `declared` with its kind and architecture; raises `Permanent` (`unsupported_model`, `invalid_config`)."""
    if declared.kind is not None:
        return declared
    config = read_config(directory)
    with open_checkpoint(directory) as checkpoint:
        names = set(checkpoint.tensors)
    found = sorted(_candidates(config, names), key=lambda one: one.left)
    best = [one for one in found if one.left == found[0].left]
    if len({one.kind for one in best}) != 1 or best[0].kind is None:
        shown = " or ".join(one.architecture for one in best) or f"no head that {declared.model_type} has"
        raise Permanent(
            "unsupported_model",
            f"{directory / 'config.json'}: expected `architectures`, or tensors of a model that generates text, embeds "
            f"or classifies sequences; found no `architectures`, and the tensors of {shown}",
            "name the model's class in `architectures`; what is not served here runs with your own code (--app)",
        )
    return replace(declared, kind=best[0].kind, architecture=best[0].architecture)


def _candidates(config: Any, names: set[str]) -> Iterator[_Candidate]:
    heads: tuple[tuple[Any, ModelKind | None], ...] = (
        (_auto.MODEL_MAPPING, ModelKind.EMBEDDINGS),
        (_auto.MODEL_FOR_CAUSAL_LM_MAPPING, ModelKind.COMPLETIONS),
        (_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, ModelKind.CLASSIFICATION),
        (_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, None),
        (_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING, None),
        (_auto.MODEL_FOR_MASKED_LM_MAPPING, None),
        (_auto.MODEL_FOR_PRETRAINING_MAPPING, None),
    )
    seen: set[str] = set()
    for mapping, kind in heads:
        model_class = mapping.get(type(config), None)
        for one in model_class if isinstance(model_class, tuple) else (model_class,):
            if one is None or one.__name__ in seen:
                continue
            seen.add(one.__name__)
            left = _count_left(one, config, names)
            if left is not None:
                yield _Candidate(one.__name__, kind if _is_allowed(one.__name__, config, kind) else None, left)


def _count_left(model_class: Any, config: Any, names: set[str]) -> int | None:
    """Return how many of `names` the class has no place for; None where it lacks one of its own, or cannot be built
    with this configuration."""
    try:
        with torch.device("meta"):
            module = model_class(config)
    except (ImportError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        _LOG.info("%s is not what the folder holds: %s", model_class.__name__, error)
        return None
    tied = set(getattr(module, "all_tied_weights_keys", None) or {})
    own = set(module.state_dict())
    prefix = f"{module.base_model_prefix}."
    bare = module.base_model is module
    for shown in (own, {prefix + name for name in own}) if bare else (own,):
        missing = {name for name in shown - names if name.removeprefix(prefix) not in tied and name not in tied}
        if not [name for name in missing if not (bare and name.removeprefix(prefix).startswith(_NEEDLESS))]:
            return len(names - shown)
    return None


def _is_allowed(architecture: str, config: Any, kind: ModelKind | None) -> bool:
    if kind is ModelKind.EMBEDDINGS:
        return config.model_type in architectures.ENCODERS
    return architecture in (architectures.GENERATORS if kind is ModelKind.COMPLETIONS else architectures.CLASSIFIERS)
