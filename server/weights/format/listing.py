"""Which files of a model's folder hold its weights, and from which of them each tensor comes.

Law: reads config.json and the index, and lists the folder; opens no weight file. The choice of the files is that of
transformers' `from_pretrained` (5.23, `_get_resolved_checkpoint_files`): the file that config.json names, then
`model.safetensors`, then its index. Beyond that a complete set of shards needs no index. Where there is an index, it
decides which file each tensor comes from. A distributed checkpoint in the folder is refused: beside other weights
transformers joins both, and takes each tensor from the file that its folder lists last.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached.contract.loadable.names import is_ranks_part
from server.weights.errors import WeightsError
from server.weights.format.foreign import HEAD_BYTES, identify_stand_in
from server.weights.format.safetensors import Header

_LOG = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
_FIELD = "transformers_weights"
_INDEX_SUFFIX = ".safetensors.index.json"
_SUFFIX = ".safetensors"
_MAX_JSON_BYTES = 100_000_000
_SHARD = re.compile(r"model-(\d{1,6})-of-(\d{1,6})\.safetensors")
_VARIANT = re.compile(
    r"model\.[^.]+\.safetensors|model\.[^.]+-\d+-of-\d+\.safetensors|model-\d+-of-\d+\.[^.]+\.safetensors"
)
_SHOWN = 5
_PICKLE = (
    "a pickle, which can carry code",
    "convert it (transformers' `save_pretrained`), then publish the model again",
)
_OTHER = ("another format", _PICKLE[1])
_OTHER_FORMATS = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), _PICKLE),
    **dict.fromkeys((".gguf", ".h5", ".msgpack", ".onnx", ".npz"), _OTHER),
}
_PUBLISH_AGAIN = "download the missing file, or correct the `include` that left it out, then publish the model again"


@dataclass(frozen=True, slots=True)
class ShardListing:
    """Weight files; `weight_map` is the file of each tensor, as the folder's `index` has it, if there is one."""

    paths: Sequence[Path]
    index: Path | None = None
    weight_map: Mapping[str, Path] | None = None

    def locate(self, headers: Sequence[Header]) -> dict[str, int]:
        """Return the number of the file that each tensor comes from, in the order of the files and of their bytes.

        `headers` are those of `paths`. Raises `Permanent` where a tensor is in two files and no index decides, or where
        a file lacks a tensor that the index has there.
        """
        if self.index is None or self.weight_map is None:
            return self._locate_once(headers)
        located: dict[str, int] = {}
        left_out: list[str] = []
        for number, (path, header) in enumerate(zip(self.paths, headers, strict=True)):
            for tensor in header.tensors:
                if self.weight_map.get(tensor) == path:
                    located[tensor] = number
                else:
                    left_out.append(tensor)
        for tensor, path in self.weight_map.items():
            if tensor not in located:
                raise self._disagreement(self.index, tensor, path, headers)
        if left_out:
            _LOG.warning(
                "%s: %d tensors are left out, as the index does not name them, or names another file for them: %s",
                self.index,
                len(left_out),
                _some(left_out),
            )
        return located

    def keep(self, paths: Collection[Path]) -> ShardListing:
        """Return the listing of these files only."""
        kept = [path for path in self.paths if path in paths]
        if self.weight_map is None:
            return ShardListing(kept)
        return ShardListing(kept, self.index, {name: path for name, path in self.weight_map.items() if path in paths})

    def _locate_once(self, headers: Sequence[Header]) -> dict[str, int]:
        located: dict[str, int] = {}
        for number, header in enumerate(headers):
            for tensor in header.tensors:
                if tensor in located:
                    raise WeightsError(
                        "invalid_weights",
                        f"{self.paths[number]}: the tensor {tensor!r} is also in {self.paths[located[tensor]].name}, "
                        "and no index says which one counts",
                        f"remove the file that is left over, or publish {INDEX_FILE} with the model",
                    )
                located[tensor] = number
        return located

    def _disagreement(self, index: Path, tensor: str, path: Path, headers: Sequence[Header]) -> WeightsError:
        others = [found.name for found, header in zip(self.paths, headers, strict=True) if tensor in header.tensors]
        return WeightsError(
            "invalid_weights",
            f"{index}: the tensor {tensor!r} should be in {path.name}, found in {', '.join(others) or 'no file'}",
            "the index and the files are of different versions of the model: download all of one version, then publish "
            "it again",
        )


def list_shards(directory: Path) -> ShardListing:
    """List the weight files of a folder without opening them; raises `Permanent` where there are none."""
    return list_for_config(directory, read_named_file(directory))


def list_for_config(directory: Path, named: object) -> ShardListing:
    """List the weight files of a folder whose configuration has `named` as `transformers_weights`, None for none."""
    listing = find_shards(directory, named)
    if listing is None:
        raise explain_no_weights(directory)
    return listing


def find_shards(directory: Path, named: object) -> ShardListing | None:
    """As `list_for_config`, but return None where no file has a name that is looked for."""
    parts = [path for path in _entries(directory) if is_ranks_part(path.name)]
    if parts:
        raise WeightsError(
            "invalid_weights",
            f"{directory}: expected whole weights, found ranks' parts of a distributed checkpoint: "
            f"{_some([part.name for part in parts])}",
            "load it with transformers, and publish what `save_pretrained` writes; or remove these files, if they are "
            "left over",
        )
    if named is not None:
        return _list_named(directory, named)
    if (directory / SINGLE_FILE).is_file():
        return ShardListing([directory / SINGLE_FILE])
    if (directory / INDEX_FILE).is_file():
        return _read_index(directory, directory / INDEX_FILE)
    shards = _find_set(directory)
    return ShardListing(shards) if shards else None


def read_named_file(directory: Path) -> object:
    """Return `transformers_weights` of the folder's config.json, None where it has none."""
    path = directory / CONFIG_FILE
    return _read_json(path).get(_FIELD) if path.is_file() else None


def _list_named(directory: Path, named: object) -> ShardListing:
    """List the weight files of a folder whose configuration names a file or an index."""
    where = directory / CONFIG_FILE
    if not isinstance(named, str) or not named.endswith((_SUFFIX, _INDEX_SUFFIX)):
        raise WeightsError(
            "invalid_config",
            f"{where}: expected `{_FIELD}` to name a `*{_SUFFIX}` or a `*{_INDEX_SUFFIX}`, found {named!r}",
            "correct the field, or remove it: the weights are then looked for under their usual names",
        )
    path = _join(directory, named)
    if path is None:
        raise WeightsError(
            "invalid_config",
            f"{where}: expected `{_FIELD}` to name a file inside the model's folder, found {named!r}",
            "move the file into the folder, and name it there",
        )
    if not path.is_file():
        raise WeightsError(
            "unreadable", f"{where}: `{_FIELD}` names {named}, which is not in the folder", _PUBLISH_AGAIN
        )
    return _read_index(directory, path) if named.endswith(_INDEX_SUFFIX) else ShardListing([path])


def _read_index(directory: Path, index: Path) -> ShardListing:
    """Read an index. Its files are relative to the model's folder, also where the index is in a subfolder."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _refuse(index, f"expected `weight_map` to map tensors to files, found {str(weight_map)[:80]}")
    paths: dict[str, Path] = {}
    for tensor, name in weight_map.items():
        if isinstance(name, str) and name in paths:
            continue
        path = _join(directory, name) if isinstance(name, str) else None
        if path is None:
            raise _refuse(index, f"the tensor {tensor!r} names the file {name!r}, expected a file in the same folder")
        if not path.is_file():
            raise WeightsError(
                "unreadable",
                f"{index}: the tensor {tensor!r} and perhaps more are in {name}, which is not in the folder",
                _PUBLISH_AGAIN,
            )
        paths[name] = path
    placed = {tensor: paths[name] for tensor, name in weight_map.items()}
    return ShardListing(sorted(set(paths.values())), index, placed)


def _join(directory: Path, name: str) -> Path | None:
    """Return the path of `name` below `directory`, None where it is not below. Symlinks are followed, as a Hub's cache
    consists of them."""
    if not name or "\0" in name:
        return None
    path = os.path.normpath(directory / name)
    root = os.path.normpath(directory)
    return Path(path) if path != root and os.path.commonpath([root, path]) == root else None


def _find_set(directory: Path) -> list[Path]:
    """Return all of `model-0000i-of-0000n.safetensors`, none where there is none; raises `Permanent` for a part."""
    sets: dict[str, dict[int, Path]] = {}
    for path in _entries(directory):
        found = _SHARD.fullmatch(path.name)
        if found is not None and path.is_file():
            sets.setdefault(found[2], {})[int(found[1])] = path
    if not sets:
        return []
    if len(sets) > 1:
        names = ", ".join(f"{len(numbers)} files …-of-{total}" for total, numbers in sorted(sets.items()))
        raise WeightsError(
            "no_weights",
            f"{directory}: expected one set of shards or {INDEX_FILE}, found several: {names}",
            "remove the files of the older set, or publish the index with the model",
        )
    ((total, numbers),) = sets.items()
    expected = range(1, int(total) + 1)
    if numbers.keys() != set(expected):
        missing = [f"model-{number:0{len(total)}}-of-{total}{_SUFFIX}" for number in expected if number not in numbers]
        raise WeightsError(
            "no_weights",
            f"{directory}: expected {int(total)} shards, found {len(numbers)}, without {_some(missing)}",
            _PUBLISH_AGAIN,
        )
    return [numbers[number] for number in expected]


def explain_no_weights(directory: Path) -> WeightsError:
    """Name the files that a person may have taken for the weights, and why each is not read."""
    found = [(path, *reason) for path in _walk(directory) if (reason := _explain(directory, path)) is not None]
    found.sort(key=lambda item: item[0].suffix != _SUFFIX)
    names = "; ".join(f"{path.relative_to(directory)} ({reason})" for path, reason, _ in found[:_SHOWN])
    return WeightsError(
        "no_weights",
        f"expected {SINGLE_FILE}, {INDEX_FILE} or all of model-0000i-of-0000n{_SUFFIX} in {directory}, "
        f"found {names or 'no weights at all'}" + (f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""),
        found[0][2] if found else "publish the model's safetensors files, and check what `include` leaves out",
    )


def _explain(directory: Path, path: Path) -> tuple[str, str] | None:
    """Return why a file is not read as weights, and what to do; None for a file that is no weights."""
    name = path.relative_to(directory).as_posix()
    name_it = f"name it in config.json (`{_FIELD}: {name!r}`)"
    if path.suffix in _OTHER_FORMATS:
        return _OTHER_FORMATS[path.suffix]
    if not path.name.endswith((_SUFFIX, _INDEX_SUFFIX)):
        return None
    if path.name.startswith("."):
        return "a name with a dot first: a copy that a system or an editor left", "publish the model's own files"
    if path.parent != directory:
        return "in a subfolder", f"load {path.parent} instead, or {name_it}"
    if path.name == "adapter_model.safetensors":
        return "an adapter, which is not a whole model", "serve it beside its base model, or merge it into the base"
    if path.name.endswith(_INDEX_SUFFIX):
        return f"an index whose name is not {INDEX_FILE}", f"rename it to {INDEX_FILE}, or {name_it}"
    if _VARIANT.fullmatch(path.name):
        return "a variant, which is read only when it is asked for", f"rename it to {SINGLE_FILE}, or {name_it}"
    return "a name that is not looked for", f"rename it to {SINGLE_FILE}, or {name_it}"


def _walk(directory: Path) -> Iterator[Path]:
    """Yield the files of a folder, and of its subfolders, in order."""
    for path in _entries(directory):
        if path.is_file():
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from (inner for inner in _entries(path) if inner.is_file())


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise WeightsError(
            "unreadable", f"{directory}: {error.strerror}", "check that the folder is mounted and may be read"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object as Python's parser does, which transformers uses."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise WeightsError(
            "unreadable", f"{path}: {error.strerror}", "check that the version is complete and may be read"
        ) from error
    if len(data) > _MAX_JSON_BYTES:
        raise _refuse(path, f"more than {_MAX_JSON_BYTES} bytes, which no index or configuration has")
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        found = identify_stand_in(data[:HEAD_BYTES])
        if found is None:
            raise _refuse(path, f"not JSON in UTF-8: {error}") from error
        raise WeightsError(
            "invalid_weights", f"{path}: expected JSON, found {found.kind}, of {len(data)} bytes", found.remedy
        ) from error
    if not isinstance(document, dict):
        raise _refuse(path, f"expected a JSON object, found {type(document).__name__}")
    return document


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _refuse(path: Path, message: str) -> WeightsError:
    return WeightsError(
        "invalid_weights", f"{path}: {message}", "download this file again, then publish the model again"
    )
