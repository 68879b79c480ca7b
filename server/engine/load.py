"""Find out what kind of model a folder holds, and load it.

Law: decides by the folder's own files; importing this module imports torch and transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

from cached.contract.errors import Permanent
from server.engine.encoder import Encoder
from server.engine.generation.batch import GenerationObserver
from server.engine.generation.generator import TextGenerator
from server.engine.types import Kind, Limits

_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")


def load(
    directory: Path, device: str, dtype: str, limits: Limits, observer: GenerationObserver
) -> Encoder | TextGenerator:
    """Load the model in `directory`; raises `HoldfastError`."""
    if kind_of(directory) is Kind.COMPLETIONS:
        return TextGenerator.load(directory, device, dtype, limits, observer)
    return Encoder.load(directory, device, dtype)


def kind_of(directory: Path) -> Kind:
    """Return what the model in `directory` computes; raises `Permanent` (`invalid_config`). A folder with
    `modules.json` embeds: a sentence encoder made of a language model keeps that model's architecture."""
    path = directory / "config.json"
    if (directory / "modules.json").is_file():
        return Kind.EMBEDDINGS
    try:
        architectures = json.loads(path.read_bytes()).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise Permanent(
            "invalid_config",
            f"expected a JSON object in {path}: {error}",
            "publish the model's config.json with it, or serve the folder with --app",
        ) from error
    causal = any(str(name).endswith(_CAUSAL_SUFFIXES) for name in architectures)
    return Kind.COMPLETIONS if causal else Kind.EMBEDDINGS
