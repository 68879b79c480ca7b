#!/usr/bin/env bash
# sentence-transformers 6.2.0 with transformers 5.23.0: CrossEncoder("folder").predict gives other scores for the same
# weights and tokenizer once a chat_template.jinja lies in a folder of BertForSequenceClassification without modules.json.
# A pair of texts is then written as two messages, of the roles query and document, through the template: [CLS] and [SEP]
# are gone, and the token types are all 0. No warning tells of it. transformers' own text-classification pipeline has the
# same score with the template and without. A copy that CrossEncoder.save_pretrained wrote before the template was added
# has modules.json, and keeps its score too.
#
# Why, in the source of 6.2.0: Transformer.infer_modalities adds "message" to what a model takes wherever its tokenizer has
# a template, whatever the model is, and preprocess turns every text into messages where it is there. A folder with the
# modules.json of a CrossEncoder does not come there: load_config takes what the folder's files say, or else text alone.
# A classifier that was trained from a chat model, and saved with its tokenizer, has such a template.
#
# Seen with a BERT of random weights, one label, and a template that ends each message with an exclamation mark:
#     no template: CrossEncoder -0.894, pipeline -0.894; read: [CLS] what colour is it [SEP] the sky is blue [SEP]
#     a template: CrossEncoder 1.269, pipeline -0.894; read: what colour is it! the sky is blue!
#     a template and modules.json: CrossEncoder -0.894, pipeline -0.894; read: [CLS] what colour is it [SEP] the sky is blue [SEP]
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check sentence-transformers==6.2.0 \
  transformers==5.23.0 torch==2.13.0 tokenizers==0.23.3 safetensors==0.8.0 huggingface_hub==2.4.0

cat > "$work/score.py" <<'PYTHON'
"""Score one pair with both libraries: without a chat template, with one, and with one beside modules.json."""

import pathlib
import sys

import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, pipeline

QUERY, DOCUMENT = "what colour is it", "the sky is blue"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *QUERY.split(), "the", "sky", "blue", "!"]
TEMPLATE = "{% for message in messages %}{{ message.content }}!{% endfor %}"


def show(state, folder):
    """Print the pair's score by CrossEncoder and by the pipeline, and the tokens that CrossEncoder gives to the model."""
    encoder = CrossEncoder(str(folder))
    (score,) = encoder.predict([(QUERY, DOCUMENT)], activation_fn=torch.nn.Identity())
    read = encoder.tokenizer.decode(encoder.preprocess([(QUERY, DOCUMENT)])["input_ids"][0])
    classify = pipeline("text-classification", str(folder), device="cpu", function_to_apply="none")
    answer = classify({"text": QUERY, "text_pair": DOCUMENT})
    print(f"{state}: CrossEncoder {score:.3f}, pipeline {answer['score']:.3f}; read: {read}")


torch.set_num_threads(1)
torch.manual_seed(0)
plain, saved = pathlib.Path(sys.argv[1], "plain"), pathlib.Path(sys.argv[1], "saved")
BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(plain)
config = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    initializer_range=0.5,
    num_labels=1,
)
BertForSequenceClassification(config).save_pretrained(plain)
CrossEncoder(str(plain)).save_pretrained(str(saved))
assert (saved / "modules.json").is_file() and not (plain / "modules.json").exists()

show("no template", plain)
for folder in (plain, saved):
    (folder / "chat_template.jinja").write_text(TEMPLATE)
show("a template", plain)
show("a template and modules.json", saved)
PYTHON

expected='no template: CrossEncoder -0.894, pipeline -0.894; read: [CLS] what colour is it [SEP] the sky is blue [SEP]
a template: CrossEncoder 1.269, pipeline -0.894; read: what colour is it! the sky is blue!
a template and modules.json: CrossEncoder -0.894, pipeline -0.894; read: [CLS] what colour is it [SEP] the sky is blue [SEP]'
mkdir "$work/models"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' \
  "$work/venv/bin/python" "$work/score.py" "$work/models" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" |
  grep -E '^(sentence-transformers|transformers|torch|tokenizers|safetensors) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
