#!/usr/bin/env bash
# transformers 5.23.0: AutoTokenizer.from_pretrained(folder), where the folder has config.json and none of the tokenizer's
# files, returns a tokenizer for many model types that knows its special tokens and nothing else, so that texts differ by
# their length at most. Nothing is raised and nothing is logged, though the documentation of the tokenizer's base class
# names OSError for it, and other model types (llama, mistral) do raise in the same call. A model served from a folder that
# lost vocab.txt, or from a download with patterns that left it out, answers every text, and every answer is worthless.
#
# Why, in the source: the class is found by the model's type alone, and each of these classes has a vocabulary of its
# special tokens as the default for the vocabulary that it is given none of.
#
# Seen with a folder that holds config.json with the model's type, and nothing else; the ids are of two texts of two words:
#     bert: BertTokenizer of 5 tokens, special ones all: [2, 1, 1, 3] and [2, 1, 1, 3]
#     roberta: RobertaTokenizer of 5 tokens, special ones all: [2, 3] and [2, 3]
#     xlm-roberta: XLMRobertaTokenizer of 5 tokens, special ones all: [0, 3, 3, 2] and [0, 3, 3, 2]
#     gpt2: GPT2Tokenizer of 1 tokens, special ones all: [] and []
#     qwen2: Qwen2Tokenizer of 1 tokens, special ones all: [] and []
#     llama: ValueError
#     mistral: ValueError
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3

cat > "$work/tokens.py" <<'PYTHON'
"""Load the tokenizer of folders that have none, and print what two texts become."""

import json
import pathlib
import sys

from transformers import AutoTokenizer

for kind in ("bert", "roberta", "xlm-roberta", "gpt2", "qwen2", "llama", "mistral"):
    folder = pathlib.Path(sys.argv[1], kind)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        print(f"{kind}: {type(error).__name__}")
        continue
    special = "special ones all" if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens) else "with words"
    one, two = (tokenizer(text)["input_ids"] for text in ("hello world", "good bye"))
    print(f"{kind}: {type(tokenizer).__name__} of {len(tokenizer)} tokens, {special}: {one} and {two}")
PYTHON

expected="bert: BertTokenizer of 5 tokens, special ones all: [2, 1, 1, 3] and [2, 1, 1, 3]
roberta: RobertaTokenizer of 5 tokens, special ones all: [2, 3] and [2, 3]
xlm-roberta: XLMRobertaTokenizer of 5 tokens, special ones all: [0, 3, 3, 2] and [0, 3, 3, 2]
gpt2: GPT2Tokenizer of 1 tokens, special ones all: [] and []
qwen2: Qwen2Tokenizer of 1 tokens, special ones all: [] and []
llama: ValueError
mistral: ValueError"
mkdir "$work/models"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 \
  "$work/venv/bin/python" "$work/tokens.py" "$work/models" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/pip" | grep -E '^(transformers|tokenizers) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
