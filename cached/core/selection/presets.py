"""The preset of a catalog's entry (`for:`): which of a model's weights one engine reads.

Law: pure. An index decides where there is one; its content is the caller's to read, since a listing has names only.
Files that hold no weights all stay, but those in the folders of other engines.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cached.contract.errors import Permanent
from cached.contract.loadable.names import CONFIG, folder_of, index_format, is_weights, name_of, shard_sets
from cached.core.selection import earlier_filters
from cached.core.selection.copies import CONSOLIDATED, GGUF, PYTORCH, VARIANT, find_doubles, kind_of

PRESETS = "transformers, vllm, gguf:QUANTIZATION (as gguf:Q4_K_M) or all"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"
_GGUF = re.compile(r"gguf:(?P<quantization>[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*)")
# A quantization as llama.cpp names them, alone between separators.
_QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|F16|F32|FP16|FP32|MXFP4(?:_MOE)?))(?=[-._/]|$)",
    re.IGNORECASE,
)
_PROJECTOR = re.compile(r"mmproj", re.IGNORECASE)
_PROJECTOR_ORDER = ("F16", "BF16", "FP16", "F32", "FP32")
_OF_ANOTHER_ENGINE = "weights that {engine} does not read"


@dataclass(frozen=True, slots=True)
class Preset:
    """`engine`: `default` (without `for:`), `earlier`, `all`, `transformers`, `vllm` or `gguf`, with its
    `quantization`. `earlier` is the default of releases before the presets, which pins may rest on."""

    engine: str = "default"
    quantization: str = ""

    def __str__(self) -> str:
        return f"{self.engine}:{self.quantization}" if self.quantization else self.engine


DEFAULT = Preset()
EARLIER = Preset("earlier")


def parse_preset(text: str) -> Preset:
    """Return the preset that a catalog or an option names; raises ValueError with what was expected."""
    if text in ("all", "transformers", "vllm"):
        return Preset(text)
    gguf = _GGUF.fullmatch(text)
    if gguf is not None:
        return Preset("gguf", gguf["quantization"].upper())
    raise ValueError(f"expected {PRESETS}, found {text[:100]!r}")


@dataclass(frozen=True, slots=True)
class Indexes:
    """The content of the small files that a preset reads first. `shards`: for each index, the paths that it names.
    `explicit`: `transformers_weights` of config.json, the file that transformers loads, or an index."""

    shards: Mapping[str, Collection[str]]
    explicit: str | None = None


NO_INDEXES = Indexes({})


def files_to_read(preset: Preset, paths: Collection[str]) -> tuple[str, ...]:
    """Return the small files whose content decides what the preset picks: indexes, and config.json."""
    if preset.engine not in ("transformers", "vllm"):
        return ()
    return tuple(path for path in paths if index_format(path) is not None or path == CONFIG)


def find_left_out(
    preset: Preset, paths: Collection[str], indexes: Indexes, patterns: Collection[Collection[str]]
) -> dict[str, str]:
    """Return the paths that the preset leaves out, each with the reason. `patterns` as `find_doubles` takes them.

    Raises `Permanent` (`nothing_selected`) where no file has the quantization that is asked for.
    """
    if preset.engine == "all":
        return {}
    if preset == DEFAULT:
        return find_doubles(paths, patterns)
    if preset == EARLIER:
        return earlier_filters.find_doubles(paths)
    if preset.engine == "gguf":
        return _all_but_gguf(paths, preset.quantization)
    return _all_but_one_copy(paths, indexes, preset.engine)


def _all_but_one_copy(paths: Collection[str], indexes: Indexes, engine: str) -> dict[str, str]:
    named = {name for index, names in indexes.shards.items() if kind_of(index) is None for name in names}
    others = (path for path in paths if path not in named and path != indexes.explicit)
    left_out = {path: kind for path in others if (kind := kind_of(path)) not in (None, PYTORCH, VARIANT)}
    if engine == "vllm" and not any(is_weights(path) for path in paths if path not in left_out):
        left_out = {path: kind for path, kind in left_out.items() if kind != CONSOLIDATED}
    if not any(is_weights(path) for path in paths if path not in left_out):
        _require_none(left_out, engine)
    rest = [path for path in paths if path not in left_out]
    doubles = find_doubles(rest)
    folders: dict[str, list[str]] = {}
    for path in rest:
        if is_weights(path) and path not in doubles:
            folders.setdefault(folder_of(path), []).append(path)
    chosen: set[str] = set()
    for folder in folders.keys() | {folder_of(index) for index in indexes.shards} | {""}:
        chosen.update(_choose_weights(folder, folders.get(folder, []), rest, indexes, engine))
    reason = _OF_ANOTHER_ENGINE.format(engine=engine)
    for path in rest:
        if is_weights(path) and path not in chosen:
            left_out[path] = doubles.get(path, reason)
        elif path in doubles:
            left_out[path] = doubles[path]  # the index of weights that stay out
    return left_out


def _require_none(left_out: Mapping[str, str], engine: str) -> None:
    """Raise `Permanent` (`nothing_selected`) where all the weights are of other engines."""
    kinds = sorted({kind for path, kind in left_out.items() if is_weights(path)})
    if kinds:
        raise Permanent(
            "nothing_selected",
            f"expected weights that {engine} reads (*.safetensors or *.bin), found only: {', '.join(kinds)}",
            "write another preset (`for: all` takes every file), or another source",
        )


def _choose_weights(
    folder: str, weights: Collection[str], paths: Collection[str], indexes: Indexes, engine: str
) -> Collection[str]:
    """Return the weights that the engine reads of one folder, in the engine's own order of preference. `weights` are
    those of the folder without doubles."""
    adapters = [path for path in weights if name_of(path).startswith("adapter_model")]
    if folder == "" and indexes.explicit is not None and engine == "transformers":
        return {*adapters, *indexes.shards.get(indexes.explicit, ()), indexes.explicit}
    single = [f"{folder}model.safetensors"]
    sharded = _indexed(folder, SAFETENSORS_INDEX, "model-", ".safetensors", weights, indexes)
    # transformers looks for the single file first, vLLM asks the index which files count.
    safetensors = (single, sharded) if engine == "transformers" else (sharded, single)
    if engine == "vllm" and not sharded and single[0] not in weights:
        every = [path for path in weights if path.endswith(".safetensors")]
        safetensors = (every, [])
    older = [f"{folder}pytorch_model.bin"], _indexed(folder, PYTORCH_INDEX, "pytorch_model-", ".bin", weights, indexes)
    for candidate in (*safetensors, *older):
        found = [path for path in candidate if path in paths]
        if found:
            return {*adapters, *found}
    # Nothing under the engine's names: another library's part of the model (diffusers, a module's own), which stays.
    return weights


def _indexed(
    folder: str, index: str, start: str, end: str, weights: Collection[str], indexes: Indexes
) -> Collection[str]:
    """Return the shards that an index names; without its content those of a complete set by their names."""
    if folder + index in indexes.shards:
        return indexes.shards[folder + index]
    names = [path for path in weights if name_of(path).startswith(start) and path.endswith(end)]
    plain = [shards for shards in shard_sets(names).values() if kind_of(shards.found[0]) != VARIANT]
    return [path for shards in plain for path in shards.found]


def _all_but_gguf(paths: Collection[str], wanted: str) -> dict[str, str]:
    files = [path for path in paths if path.lower().endswith(".gguf")]
    models = {path: quantization_of(path) for path in files if not _PROJECTOR.search(name_of(path))}
    named = [path for path, found in models.items() if found == wanted]
    if not named:
        named = [path for path, found in models.items() if found is not None and found.removeprefix("UD-") == wanted]
    if not named:
        there = ", ".join(sorted({found for found in models.values() if found})) or "none"
        raise Permanent(
            "nothing_selected",
            f"expected a GGUF file of the quantization {wanted}, found these quantizations: {there}",
            "write one of these after `for: gguf:`, or another source",
        )
    projectors = _choose_projector([path for path in files if path not in models])
    chosen = {*named, *projectors}
    left_out: dict[str, str] = {}
    for path in paths:
        if path in chosen:
            continue
        kind = kind_of(path)
        if kind is not None or is_weights(path) or path.endswith(".safetensors.index.json"):
            left_out[path] = "other GGUF files" if kind == GGUF else "weights of other engines"
    return left_out


def quantization_of(path: str) -> str | None:
    """Return the quantization that a GGUF file's name, or else its folder's, says; upper case."""
    found = _QUANTIZATION.findall(name_of(path)) or _QUANTIZATION.findall(folder_of(path))
    return found[-1].upper() if found else None


def _choose_projector(paths: Collection[str]) -> Collection[str]:
    """Return one precision of a vision model's projector, 16 bit if it is there."""
    by_precision = {quantization_of(path): path for path in paths}
    first = next((by_precision[each] for each in _PROJECTOR_ORDER if each in by_precision), None)
    return paths if first is None else [first]
