#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: from_pretrained(folder, gguf_file=…) leaves out how positions are scaled, so that the
# model writes other tokens than the one that the file was made of: `llama.rope.scaling.type` and `.factor` (linear, yarn), the
# tensor rope_freqs.weight (the scaling of Llama 3.1 and later, which converted files carry as that tensor alone), and of
# StarCoder2 the base itself, `starcoder2.rope.freq_base`. All are standard names of the format. No key is reported as missing
# or unexpected, and no message tells of it at the default level. Without scaling, the same files give the same logits.
#
# Why, in the source: GGUF_CONFIG_MAPPING of integrations/ggml.py names rope.freq_base for most architectures, and
# rope.scaling for none; load_gguf_checkpoint passes over the keys and tensors that it does not map, the keys with a message at
# level info, the tensors with none. (For gpt-oss alone it reads the scaling, but the first part of each field: the factor would be
# 27, the length of its key, but from_pretrained ends in a TypeError.)
#
# Seen with models of random weights, each written with gguf and read back:
#     llama, base 10000: same logits, same tokens; rope read: default, base 10000, keys reported: 0
#     llama, base 500000: same logits, same tokens; rope read: default, base 500000, keys reported: 0
#     llama, linear: other logits, other tokens; rope read: default, base 10000, keys reported: 0
#     llama, yarn: other logits, other tokens; rope read: default, base 10000, keys reported: 0
#     llama, llama3: other logits, other tokens; rope read: default, base 500000, keys reported: 0
#     starcoder2, base 10000: same logits, same tokens; rope read: default, base 10000, keys reported: 0
#     starcoder2, base 1000000: other logits, other tokens; rope read: default, base 10000, keys reported: 0
#     messages that name rope: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 gguf==0.19.0 \
  numpy==2.4.6 accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0

cat > "$work/load.py" <<'PYTHON'
"""Write models as GGUF files, with their rope scaling by the format's names; print whether each writes the same when read."""

import pathlib
import sys

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

LLAMA = (MODEL_ARCH.LLAMA, LlamaConfig, LlamaForCausalLM)
STARCODER2 = (MODEL_ARCH.STARCODER2, Starcoder2Config, Starcoder2ForCausalLM)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    **{"original_max_position_embeddings": 16, "rope_theta": 500000.0},
}
MODELS = {
    "llama, base 10000": (LLAMA, {"rope_type": "default", "rope_theta": 10000.0}),
    "llama, base 500000": (LLAMA, {"rope_type": "default", "rope_theta": 500000.0}),
    "llama, linear": (LLAMA, {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    "llama, yarn": (LLAMA, YARN),
    "llama, llama3": (LLAMA, LLAMA3),
    "starcoder2, base 10000": (STARCODER2, {"rope_type": "default", "rope_theta": 10000.0}),
    "starcoder2, base 1000000": (STARCODER2, {"rope_type": "default", "rope_theta": 1000000.0}),
}
SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False},
}


def interleaved(weight, heads):
    """Order the rows of a query or key projection as files of the architecture llama have them."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, architecture):
    config, rope = model.config, model.config.rope_parameters
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(config.vocab_size)])
    if architecture is MODEL_ARCH.LLAMA:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)
    size = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        unscaled = rope["rope_theta"] ** -(torch.arange(0, size, 2) / size)
        writer.add_tensor("rope_freqs.weight", (unscaled / model.model.rotary_emb.inv_freq).numpy())
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if architecture is MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            tensor = interleaved(tensor, config.num_attention_heads)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


torch.set_num_threads(1)
for number, (shown, ((architecture, config, kind), rope)) in enumerate(MODELS.items()):
    torch.manual_seed(0)
    model = kind(config(**SIZES, rope_parameters=rope)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    folder = pathlib.Path(sys.argv[1], str(number))
    folder.mkdir()
    write(folder / "model.gguf", model, architecture)
    read, report = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", output_loading_info=True)
    prompt = torch.arange(1, 33)[None]
    with torch.no_grad():
        wanted, found = model(prompt).logits, read.eval()(prompt).logits
    logits = "same" if torch.allclose(wanted, found, atol=1e-3) else "other"
    tokens = "same" if torch.equal(wanted.argmax(-1), found.argmax(-1)) else "other"
    rope = read.config.rope_parameters
    print(
        f"{shown}: {logits} logits, {tokens} tokens; rope read: {rope['rope_type']}, base {rope['rope_theta']:.0f}, "
        f"keys reported: {sum(len(keys) for keys in report.values())}"
    )
PYTHON

expected="llama, base 10000: same logits, same tokens; rope read: default, base 10000, keys reported: 0
llama, base 500000: same logits, same tokens; rope read: default, base 500000, keys reported: 0
llama, linear: other logits, other tokens; rope read: default, base 10000, keys reported: 0
llama, yarn: other logits, other tokens; rope read: default, base 10000, keys reported: 0
llama, llama3: other logits, other tokens; rope read: default, base 500000, keys reported: 0
starcoder2, base 10000: same logits, same tokens; rope read: default, base 10000, keys reported: 0
starcoder2, base 1000000: other logits, other tokens; rope read: default, base 10000, keys reported: 0
messages that name rope: 0"
mkdir "$work/models"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' \
  "$work/venv/bin/python" "$work/load.py" "$work/models" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
found+=$'\n'"messages that name rope: $(grep -ci rope "$work/errors" || true)"
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" |
  grep -E '^(transformers|torch|gguf|numpy) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
