#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy.save and save_file write a transposed or Fortran-ordered array with its values in
# the order of memory, under the shape of the array: the file holds another matrix, and nothing is raised or warned of.
# So does safetensors.mlx with a transposed array. 0.7.0 wrote the right values for each of them, and safetensors.torch
# refuses a tensor that is not contiguous. Kernels of TensorFlow, scikit-learn and JAX are transposed when weights are
# converted for PyTorch, so this is what converters pass.
#
# It meets model2vec 0.10.0: convert_legacy_pipeline takes `coef.T` of a scikit-learn classifier as a layer, and
# save_pretrained passes it on. The converted classifier is right in memory; the saved one answers with other classes
# after it is loaded. (Its embeddings are made contiguous before; the layers of its head are not.)
#
# Why, in the source of 0.8.0: numpy.py hands the serializer an array's address and size in place of the bytes that
# `tobytes()` gave before, which are in C order for every array; it does not look at the strides. The docstring has asked
# for contiguous tensors all along, and a Fortran-ordered array is contiguous too (`flags.f_contiguous`).
#
# Seen, each array saved and loaded again:
#     safetensors 0.7.0: C order right, transposed right, Fortran order right, swapped axes right, mlx transposed right
#     safetensors 0.7.0: of 50 inputs the loaded head gives all the class that the converted one gives
#     safetensors 0.8.0: C order right, transposed other values, Fortran order other values, swapped axes other values, mlx transposed other values
#     safetensors 0.8.0: of 50 inputs the loaded head gives less than half the class that the converted one gives
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6 model2vec==0.10.0 scikit-learn==1.9.1 skops==0.16.0 mlx==0.32.4 mlx-cpu==0.32.4
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/before" safetensors==0.7.0

cat > "$work/save.py" <<'PYTHON'
"""Save arrays in several memory orders, and a converted head, and print what is loaded again."""

import pathlib
import sys

import mlx.core as mx
import numpy as np
import safetensors
import safetensors.mlx
import skops.io
from model2vec import StaticModel
from model2vec.inference import StaticModelPipeline
from model2vec.inference.model import convert_legacy_pipeline
from safetensors.numpy import load, load_file, save, save_file
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer, models, pre_tokenizers

work = pathlib.Path(sys.argv[1])


def saved(array):
    save_file({"weight": array}, work / "one.safetensors")
    again = load_file(work / "one.safetensors")["weight"], load(save({"weight": array}))["weight"]
    return "right" if all(np.array_equal(array, each) for each in again) else "other values"


kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {
    "C order": kernel,
    "transposed": kernel.T,
    "Fortran order": np.asfortranarray(kernel),
    "swapped axes": np.arange(8, dtype=np.float32).reshape(2, 2, 2).swapaxes(0, 1),
}
results = ", ".join(f"{name} {saved(array)}" for name, array in arrays.items())
safetensors.mlx.save_file({"weight": mx.array(kernel).T}, work / "mlx.safetensors")
results += f", mlx transposed {'right' if np.array_equal(kernel.T, load_file(work / 'mlx.safetensors')['weight']) else 'other values'}"
print(f"safetensors {safetensors.__version__}: {results}")

words = [f"word{n}" for n in range(50)]
vocabulary = {"[UNK]": 0, "[PAD]": 1, **{word: n + 2 for n, word in enumerate(words)}}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
vectors = np.random.default_rng(0).standard_normal((len(vocabulary), 8)).astype(np.float32)
model = StaticModel(vectors, tokenizer)
inputs = model.encode(words)
head = make_pipeline(MLPClassifier((6,), max_iter=2000, random_state=0)).fit(inputs, inputs[:, :3].argmax(axis=1))
model.save_pretrained(work / "legacy")
skops.io.dump(head, work / "legacy" / "pipeline.skops")
converted = convert_legacy_pipeline(work / "legacy")
assert np.array_equal(converted.predict(words), head.predict(inputs))
converted.save_pretrained(work / "converted")
again = StaticModelPipeline.from_pretrained(work / "converted")
same = np.count_nonzero(again.predict(words) == converted.predict(words))
part = "all" if same == len(words) else "less than half" if same < len(words) / 2 else f"{same}"
print(f"safetensors {safetensors.__version__}: of {len(words)} inputs the loaded head gives {part} the class that the converted one gives")
PYTHON

expected="safetensors 0.7.0: C order right, transposed right, Fortran order right, swapped axes right, mlx transposed right
safetensors 0.7.0: of 50 inputs the loaded head gives all the class that the converted one gives
safetensors 0.8.0: C order right, transposed other values, Fortran order other values, swapped axes other values, mlx transposed other values
safetensors 0.8.0: of 50 inputs the loaded head gives less than half the class that the converted one gives"
found=""
for packages in "$work/before" ""; do
  folder=$(mktemp -d -p "$work")
  if ! found+=$(PYTHONPATH="$packages" PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 HF_HOME="$work/home" \
    "$work/venv/bin/python" "$work/save.py" "$folder" 2> "$work/errors"); then
    cat "$work/errors" >&2
  fi
  found+=$'\n'
done
found=${found%$'\n'}
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(safetensors|numpy|model2vec|scikit-learn|skops|mlx|mlx-cpu) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
