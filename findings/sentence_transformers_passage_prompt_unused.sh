#!/usr/bin/env bash
# sentence-transformers 6.2.0: encode_document does not use a prompt named "passage" or "corpus", while encode_query of the
# same model uses "query": queries get their prompt, documents none, without a word. The documentation of encode_document
# names "document", "passage" and "corpus" as the prompts that it looks for, in this order, and SentenceTransformer's own
# example of `prompts` is {"query": "query: ", "passage": "passage: "}. encode(texts, prompt_name="passage") uses the prompt.
#
# Why, in the source of 6.2.0: every model starts with the prompts query and document (_default_prompts), which
# _validate_prompts fills with "" where neither the argument nor the file sets them. encode_document takes the first of the
# three names that is there; "document" always is, if only with an empty text. The remedy is to name the prompt "document".
#
# Seen with a BERT of random weights whose prompts are "query" and the one named here:
#     "document" of the argument prompts: encode_query with its prompt, encode_document with its prompt
#     "document" of config_sentence_transformers.json: encode_query with its prompt, encode_document with its prompt
#     "passage" of the argument prompts: encode_query with its prompt, encode_document without a prompt
#     "passage" of config_sentence_transformers.json: encode_query with its prompt, encode_document without a prompt
#     "corpus" of the argument prompts: encode_query with its prompt, encode_document without a prompt
#     "corpus" of config_sentence_transformers.json: encode_query with its prompt, encode_document without a prompt
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check sentence-transformers==6.2.0 \
  transformers==5.23.0 torch==2.13.0 tokenizers==0.23.3 safetensors==0.8.0 huggingface_hub==2.4.0

cat > "$work/embed.py" <<'PYTHON'
"""Embed one text as a query and as a document; print which prompt each vector has, for three names of the second prompt."""

import json
import pathlib
import sys

import numpy
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] find this : the sky is blue".split()
TEXT = "the sky is blue"
PROMPTS = {"query": "find: ", "document": "this: "}


def prompt_of(model, vector, kind):
    """Say whether this is the vector of the text with the prompt of its kind, or of the bare text."""
    with_prompt = numpy.allclose(vector, model.encode(TEXT, prompt=PROMPTS[kind]), atol=1e-6)
    bare = numpy.allclose(vector, model.encode(TEXT, prompt=""), atol=1e-6)
    return {(True, False): "with its prompt", (False, True): "without a prompt"}.get((with_prompt, bare), "unclear")


def show(name, source, model):
    query = prompt_of(model, model.encode_query(TEXT), "query")
    document = prompt_of(model, model.encode_document(TEXT), "document")
    print(f'"{name}" of {source}: encode_query {query}, encode_document {document}')


torch.set_num_threads(1)
torch.manual_seed(0)
bare, saved = pathlib.Path(sys.argv[1], "bare"), pathlib.Path(sys.argv[1], "saved")
BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(bare)
config = BertConfig(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
BertModel(config).save_pretrained(bare)
SentenceTransformer(str(bare)).save_pretrained(str(saved))

settings = saved / "config_sentence_transformers.json"
for name in ("document", "passage", "corpus"):
    prompts = {"query": PROMPTS["query"], name: PROMPTS["document"]}
    show(name, "the argument prompts", SentenceTransformer(str(bare), prompts=prompts))
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "prompts": prompts}))
    show(name, settings.name, SentenceTransformer(str(saved)))
PYTHON

expected='"document" of the argument prompts: encode_query with its prompt, encode_document with its prompt
"document" of config_sentence_transformers.json: encode_query with its prompt, encode_document with its prompt
"passage" of the argument prompts: encode_query with its prompt, encode_document without a prompt
"passage" of config_sentence_transformers.json: encode_query with its prompt, encode_document without a prompt
"corpus" of the argument prompts: encode_query with its prompt, encode_document without a prompt
"corpus" of config_sentence_transformers.json: encode_query with its prompt, encode_document without a prompt'
mkdir "$work/models"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' \
  "$work/venv/bin/python" "$work/embed.py" "$work/models" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" |
  grep -E '^(sentence-transformers|transformers|torch|tokenizers|safetensors) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
