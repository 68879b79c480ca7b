"""Copies of the same weights in the formats of other engines, and what training leaves beside them.

Law: pure, by name. A file is a double only beside weights that stay: where a folder's only weights are ONNX files, they
are the model. The names are those under which transformers, Optimum, diffusers and llama.cpp write them, and that
Meta, Mistral and OpenAI publish.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import translate

_SAFETENSORS = re.compile(r"(?:model|diffusion_pytorch_model).*\.safetensors", re.DOTALL)
_PYTORCH = re.compile(r"(?:pytorch_model|diffusion_pytorch_model).*\.bin", re.DOTALL)
_ADAPTER = re.compile(r"adapter_model.*\.(?:safetensors|bin)", re.DOTALL)
_MAIN = (_SAFETENSORS, _PYTORCH)

_VARIANT = r"(?:fp16|bf16|fp32|fp8|float16|bfloat16|float32|int8|int4|4bit|8bit|non_ema|ema|ema_only|emaonly)"
_STEM = r"(?P<stem>model|pytorch_model|diffusion_pytorch_model|adapter_model)"
_END = r"\.(?P<end>(?:safetensors|bin))"
# `model.fp16-00001-of-00002.safetensors` and `model-00001-of-00002.fp16.safetensors` are both written.
_VARIANTS = (
    re.compile(rf"{_STEM}\.{_VARIANT}(?:-\d+-of-\d+)?{_END}"),
    re.compile(rf"{_STEM}-\d+-of-\d+\.{_VARIANT}{_END}"),
    re.compile(rf"{_STEM}{_END}\.index\.{_VARIANT}\.json"),
)

PYTORCH = "PyTorch"
TENSORFLOW = "TensorFlow"
FLAX = "Flax"
RUST = "Rust"
CONSOLIDATED = "the consolidated checkpoint of the model's author"
VARIANT = "another precision"
ONNX = "ONNX"
OPENVINO = "OpenVINO"
COREML = "Core ML"
ORIGINAL = "the original format of the model's author"
METAL = "Metal"
GGUF = "GGUF"
TRAINING = "the state of a training run"
# An entry that includes these by a pattern of their own means them; of the others a pattern like `*.bin` says nothing.
_CHOSEN_BY_PATTERN = frozenset({CONSOLIDATED, VARIANT, ONNX, OPENVINO, COREML, ORIGINAL, METAL, GGUF})

_FOLDERS = {"onnx": ONNX, "openvino": OPENVINO, "coreml": COREML, "saved_model": TENSORFLOW}
_TOP_FOLDERS = {"original": ORIGINAL, "metal": METAL}
_TRAINING_FOLDER = re.compile(r"(?:global_step|checkpoint-)\d+")
_PACKAGE = re.compile(r".+\.(?:mlpackage|mlmodelc)")


def _names(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


_FILES = (
    (TENSORFLOW, _names("tf_model*.h5", "tf_model*.h5.index.json", "saved_model.pb", "*.tflite", "model.ckpt*")),
    (FLAX, _names("flax_model*.msgpack", "flax_model*.msgpack.index.json", "diffusion_flax_model*.msgpack")),
    (RUST, _names("rust_model.ot")),
    (CONSOLIDATED, _names("consolidated*.safetensors", "consolidated*.pth", "consolidated*.pt")),
    (CONSOLIDATED, _names("consolidated*.index.json")),
    (ONNX, _names("*model*.onnx", "*model*.onnx_data*", "*model*.onnx.data", "*model*.ort")),
    (OPENVINO, _names("openvino_*.bin", "openvino_*.xml", "openvino_*.json")),
    (COREML, _names("*.mlmodel")),
    (GGUF, _names("*.gguf")),
    (TRAINING, _names("optimizer*.bin", "optimizer*.pt", "scheduler*.bin", "scheduler*.pt", "scaler*.pt")),
    (TRAINING, _names("rng_state*.pth", "random_states_*.pkl", "*_optim_states.pt", "*_model_states.pt")),
    (TRAINING, _names("training_args.bin", "trainer_state.json", "events.out.tfevents.*")),
)


def find_doubles(paths: Collection[str], patterns: Iterable[Collection[str]] = ()) -> dict[str, str]:
    """Return the paths that are doubles, and of which kind. `patterns`: for each glob that the catalog's entry
    includes, the paths that it selects; one that selects only doubles of other engines means them, and they stay."""
    candidates = {path: kind for path in paths if (kind := kind_of(path)) is not None}
    if not candidates:
        return {}
    main = _Main(path for path in paths if candidates.get(path, PYTORCH) == PYTORCH)
    doubles = {path: kind for path, kind in candidates.items() if main.has_again(path, kind)}
    for selected in patterns:
        if selected and all(doubles.get(path) in _CHOSEN_BY_PATTERN for path in selected):
            for path in selected:
                candidates.pop(path, None)
    return {path: kind for path, kind in doubles.items() if path in candidates}


def kind_of(path: str) -> str | None:
    """Return the kind of double that a file is, if its folder has the weights otherwise; None for every other file."""
    *folders, name = path.split("/")
    if folders:
        if folders[0] in _TOP_FOLDERS:
            return _TOP_FOLDERS[folders[0]]
        for folder in folders:
            if folder in _FOLDERS:
                return _FOLDERS[folder]
            if _TRAINING_FOLDER.fullmatch(folder):
                return TRAINING
            if _PACKAGE.fullmatch(folder):
                return COREML
    for kind, pattern in _FILES:
        if pattern.match(name):
            return kind
    if any(pattern.fullmatch(name) for pattern in _VARIANTS):
        return VARIANT
    base = name.removesuffix(".index.json")
    return PYTORCH if _PYTORCH.fullmatch(base) or re.fullmatch(r"adapter_model.*\.bin", base) else None


def summarize(doubles: Mapping[str, str], sizes: Mapping[str, int | None]) -> dict[str, tuple[int, int, str]]:
    """Return the number of files, their bytes as far as known, and the first path of each kind."""
    found: dict[str, tuple[int, int, str]] = {}
    for path in sorted(doubles):
        count, size, first = found.get(doubles[path], (0, 0, path))
        found[doubles[path]] = (count + 1, size + (sizes.get(path) or 0), first)
    return found


class _Main:
    """The weights that stay: the files of each folder that are no double of another engine."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._names: dict[str, set[str]] = {}
        for path in paths:
            folder, _, name = path.rpartition("/")
            if any(pattern.fullmatch(name) for pattern in (*_MAIN, _ADAPTER)):
                self._names.setdefault(folder, set()).add(name)

    def has_again(self, path: str, kind: str) -> bool:
        """Return whether the weights of a file of this kind are there in another file that stays."""
        folder, _, name = path.rpartition("/")
        beside = self._names.get(folder, set())
        if kind == PYTORCH:
            return _has_safetensors(name, beside)
        if kind == VARIANT:
            found = next(match for match in (form.fullmatch(name) for form in _VARIANTS) if match)
            plain = re.compile(rf"{found['stem']}(?:-\d+-of-\d+)?\.{found['end']}")
            return any(plain.fullmatch(other) for other in beside)
        around = _folders_above(path)
        if kind == TRAINING:
            return any(self._names.get(each) for each in around)
        near = around if kind == GGUF or _in_folder_of_kind(path) else around[:1]
        return any(_has_model(self._names.get(each, ())) for each in near)


def _in_folder_of_kind(path: str) -> bool:
    """Return whether a folder of the path is that of another engine, as `onnx/`: what it has again lies around it."""
    folders = path.split("/")[:-1]
    return any(
        folder in _FOLDERS or (number == 0 and folder in _TOP_FOLDERS) or _PACKAGE.fullmatch(folder)
        for number, folder in enumerate(folders)
    )


def _has_safetensors(name: str, beside: Collection[str]) -> bool:
    stems = ("diffusion_pytorch_model", "adapter_model")
    stem = next((stem for stem in stems if name.startswith(stem)), "model")
    return any(other.startswith(stem) and other.endswith(".safetensors") for other in beside)


def _has_model(names: Iterable[str]) -> bool:
    return any(pattern.fullmatch(name) for name in names for pattern in _MAIN)


def _folders_above(path: str) -> list[str]:
    """Return the folder of a path and those around it, the root last."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(len(parts), -1, -1)]
