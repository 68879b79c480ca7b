"""Values that no author writes, in every field of a sentence-transformers model, against the library. Slow."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cached.contract.errors import HoldfastError
from server.engine.encoder import Encoder
from server.engine.types import Truncation
from tests.support.embedding import HIDDEN, Vectors, build, by_library, dense, embed, modules, replace, write

TEXTS = ("x", "kelp of many", "held FAST " * 30)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    "",
    "x",
    [],
    ["x"],
    {},
    {"x": 1},
    "mean",
    "cls",
    7,
    "token_embeddings",
)
MUTATIONS = 120


def build_all(folder: Path) -> None:
    """Write a model with every module that is served and most fields set."""
    build(folder)
    modules(folder, "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
    dense(folder, "2_Dense", HIDDEN, 6)
    replace(folder, "3_LayerNorm/config.json", {"dimension": 6})
    save_file(
        {"norm.weight": torch.rand(6) + 0.5, "norm.bias": torch.rand(6)}, folder / "3_LayerNorm/model.safetensors"
    )
    replace(folder, "4_Normalize/config.json", {"module_input_name": "sentence_embedding", "module_output_name": None})
    replace(folder, "5_Dropout/config.json", {"dropout": 0.1})
    model = {
        "model_type": "SentenceTransformer",
        "__version__": {"sentence_transformers": "6.2.0"},
        "prompts": {"query": "Query: ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "cosine",
        "truncate_dim": 5,
        "requirements": {"transformers": ">=5"},
    }
    replace(folder, "config_sentence_transformers.json", model)
    write(
        folder,
        "sentence_bert_config.json",
        max_seq_length=30,
        transformer_task="feature-extraction",
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
        processing_kwargs={"text": {"max_length": 20}, "common": {}},
        unpad_inputs=None,
        query_length=None,
        document_length=None,
        query_expansion=None,
        tokenizer_name_or_path=None,
        model_args={"torch_dtype": "float32"},
        tokenizer_args={"padding_side": "right"},
        config_args={"hidden_act": "gelu"},
    )


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in a JSON document."""
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def library_vectors(folder: Path) -> Vectors | None:
    """The library's vectors; None where it fails on the folder, in whatever way."""
    try:
        return by_library(folder, TEXTS)
    except Exception:  # noqa: BLE001 - it fails in many ways, and any is a refusal
        return None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_spoiled_field_is_refused_or_means_what_it_means_to_the_library(seed: int, tmp_path: Path) -> None:
    """With a field of any file removed or set to a strange value, the load is refused with a reason, or the vectors are
    the library's, or the library itself fails."""
    chosen = random.Random(seed)
    base, folder = tmp_path / "base", tmp_path / "spoiled"
    build_all(base)
    files = sorted(
        path.relative_to(base)
        for path in base.rglob("*.json")
        if path.name not in ("tokenizer.json", "config.json") or path.parent != base
    )
    served = 0
    for _ in range(MUTATIONS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        path = folder / chosen.choice(files)
        document = json.loads(path.read_text())
        *way, last = chosen.choice(list(places(document)))
        inner = document
        for key in way:
            inner = inner[key]
        value: Any = "removed"
        if chosen.random() < 0.15:
            del inner[last]
        else:
            value = inner[last] = chosen.choice(VALUES)
        path.write_text(json.dumps(document))
        try:
            encoder = Encoder.load(folder, "cpu", "auto")
            encoder.warm_up()
            found = embed(encoder, TEXTS, truncation=Truncation())
        except HoldfastError:
            continue
        expected = library_vectors(folder)
        if expected is not None:
            served += 1
            where = (path.name, *way, last, value)
            assert found.shape == expected.shape, where
            assert np.abs(found - expected).max() <= 1e-5, where
    assert served > 0
