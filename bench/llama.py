"""Write a Llama with random weights and a tokenizer, for servers to load without a network.

Law: writes below the given folder. Every token is a word of four letters, so that each decodes to text at once, without
a decoder that waits for the rest of a character; no token ends a text early.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

_SPACE = "Ġ"  # how byte-level tokenizers write the space that begins a word


class Shape(NamedTuple):
    """The sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int


# Some 45, 134 and 8 000 million parameters. https://huggingface.co/HuggingFaceTB/SmolLM2-135M, meta-llama/Llama-3.1-8B
SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 1024),
    "45m": Shape(512, 8, 8, 4, 1536, 16384),
    "135m": Shape(576, 30, 9, 3, 1536, 49152),
    "8b": Shape(4096, 32, 32, 8, 14336, 128256),
}


def words(count: int) -> list[str]:
    """Return the first `count` words of four letters."""
    return ["".join(letters) for letters in itertools.islice(itertools.product(ascii_lowercase, repeat=4), count)]


def write(folder: Path, shape: Shape, dtype: str, device: str) -> Path:
    """Write and return the model's folder, unless it exists; `dtype` is torch's name, `device` draws the weights."""
    if (folder / "tokenizer_config.json").exists():  # written last
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.ffn,
        vocab_size=shape.vocab,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(7)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()  # the servers, in other processes, measure the free memory
    _write_tokenizer(folder, shape.vocab)
    return folder


def _write_tokenizer(folder: Path, vocab: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    wrap: Any = PreTrainedTokenizerFast
    vocabulary = {_SPACE + word: number for number, word in enumerate(words(vocab))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    wrap(tokenizer_object=tokenizer).save_pretrained(folder)
