"""A small sentence-transformers model to change, embedded here and by the library itself."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from server.engine.encoder import EmbeddingJob, Encoder
from server.engine.types import EmbeddingRequest

Vectors = npt.NDArray[np.float32]
HIDDEN = 16
LAYERS = 3
POSITIONS = 48
PREFIX = "sentence_transformers.models"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("kelp", "number", "of", "many", "held", "fast", "hold", "##fast", "anchor", "to", "rock", "query", "passage")


def build(folder: Path) -> Path:
    """Write a random BERT of few numbers with a tokenizer of few words, pooled by the mean."""
    torch.manual_seed(3)
    vocabulary = save_tokenizer(folder)
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.4,
    )
    model: Any = transformers.BertModel(config)
    model.save_pretrained(folder)
    write(folder, "sentence_bert_config.json", max_seq_length=None, do_lower_case=False)
    modules(folder, "Pooling")
    write(folder, "1_Pooling/config.json", embedding_dimension=HIDDEN, pooling_mode="mean")
    return folder


def save_tokenizer(folder: Path) -> int:
    """Save a word piece tokenizer as BERT's; returns the size of its vocabulary."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*_SPECIAL, *_WORDS, *characters, *(f"##{one}" for one in characters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    wrap: Any = transformers.BertTokenizer
    wrap(tokenizer_object=tokenizer, do_lower_case=True, model_max_length=512).save_pretrained(folder)
    return len(vocabulary)


def write(folder: Path, name: str, **fields: Any) -> None:
    """Set fields of a JSON file, which is made where it is not there."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **fields}))


def replace(folder: Path, name: str, document: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def modules(folder: Path, *kinds: str) -> None:
    """Name a Transformer and these modules after it in modules.json, each in its usual folder."""
    listed = [("", "Transformer"), *((f"{index}_{kind}", kind) for index, kind in enumerate(kinds, 1))]
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"{PREFIX}.{kind}"}
        for index, (path, kind) in enumerate(listed)
    ]
    replace(folder, "modules.json", entries)


def dense(folder: Path, name: str, inputs: int, outputs: int, **fields: Any) -> None:
    """Write a Dense module with random weights."""
    replace(folder, f"{name}/config.json", {"in_features": inputs, "out_features": outputs, **fields})
    generator = torch.Generator().manual_seed(inputs * 100 + outputs)
    weights = {"linear.weight": torch.randn(outputs, inputs, generator=generator)}
    if fields.get("bias", True):
        weights["linear.bias"] = torch.randn(outputs, generator=generator)
    if fields.get("use_residual", False) and inputs != outputs:
        weights["residual.weight"] = torch.randn(outputs, inputs, generator=generator)
    if str(fields.get("activation_function")).endswith("PReLU"):
        weights["activation_function.weight"] = torch.tensor([0.3])
    save_file(weights, folder / name / "model.safetensors")


def embed(encoder: Encoder, texts: Sequence[Any], **wanted: Any) -> Vectors:
    """The vectors of one request; raises what the request is refused with."""
    prepared = encoder.prepare(EmbeddingRequest(None, tuple(texts), as_base64=False, **wanted))

    async def answer() -> Any:
        job = EmbeddingJob(prepared)
        encoder.step([job])
        while encoder.busy:
            encoder.step([])
        return await anext(job.stream())

    return np.stack([np.frombuffer(vector, "<f4") for vector in asyncio.run(answer()).vectors])


def by_library(folder: Path, texts: Iterable[str], **wanted: Any) -> Vectors:
    """The library's vectors of a folder, a text at a time: with padding on the left its batches differ."""
    call = wanted.pop("call", "encode")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer  # brings sklearn: not in workers without these tests

        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        found = [getattr(model, call)(text, show_progress_bar=False, **wanted) for text in texts]
    return np.stack([np.asarray(one, np.float32) for one in found])
