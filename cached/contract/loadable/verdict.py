"""The verdict on a version: the findings about its files.

Law: reads through the caller's function: the first bytes and headers of weights, indexes, `config.json`, and the first
bytes of the other files that an engine reads by name. Files that none reads cost nothing.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Mapping
from typing import Any

from cached.contract.loadable import names
from cached.contract.loadable.findings import Finding, describe_names
from cached.contract.loadable.first_bytes import LOOKED_AT_BYTES, NEVER_MARKUP, XML, is_xml, page_in, pointer_in
from cached.contract.loadable.names import folder_of, index_format, is_weights, name_of, role_of
from cached.contract.loadable.weights import Read, find_damage

_MAX_INDEX_BYTES = 64 << 20
_MAX_CONFIG_BYTES = 1 << 20
_NAMED_WEIGHTS = "transformers_weights"  # a field of config.json
_READ_BY_NAME = (".safetensors", ".safetensors.index.json")  # what it may name
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# Models that read bytes or characters: their tokenizer has no vocabulary file.
_BYTE_TOKENIZERS = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})
_BRING_TOKENIZER = (
    "add the tokenizer's files (tokenizer.json, or tokenizer.model, or vocab.json with merges.txt) from where the "
    "model comes from"
)
_FETCH_AGAIN = "fetch the file again from where the model comes from"
# Names of files that certainly hold no weights.
_TEXTS = (
    *(".json", ".txt", ".md", ".jinja", ".py", ".model", ".yaml", ".yml", ".png", ".jpg", ".svg", ".pdf", ".csv"),
    *(".html", ".toml", ".tiktoken", ".spm", ".vocab"),
)


def is_checked(path: str) -> bool:
    """Return whether `find_problems` reads anything of this file."""
    return is_weights(path) or role_of(path) is not None


def find_problems(sizes: Mapping[str, int], read: Read) -> tuple[Finding, ...]:
    """Return the findings about a version's files, `sizes` in bytes by path. Raises what `read` raises."""
    findings: list[Finding] = []
    for path in sorted(filter(is_checked, sizes)):
        findings += _check_file(path, sizes[path], read)
    bad = {finding.path for finding in findings}
    findings += _check_shards(sizes, read, bad)
    if names.CONFIG in sizes and names.CONFIG not in bad:
        findings += _check_model(sizes, read)
    return tuple(findings)


def find_name_problems(paths: Collection[str]) -> tuple[Finding, ...]:
    """Return the findings that the names alone prove, before a byte is fetched: incomplete sets of shards of which no
    index decides, and a generating model without a tokenizer."""
    findings = _incomplete_sets(paths, frozenset(map(folder_of, filter(index_format, paths))))
    # Only its bytes tell whether tokenizer_config.json names a tokenizer that needs no vocabulary.
    is_generating = "generation_config.json" in paths and names.CONFIG in paths and any(map(is_weights, paths))
    if is_generating and "tokenizer_config.json" not in paths and not has_tokenizer(paths):
        findings.append(_no_tokenizer("generation_config.json"))
    return tuple(findings)


def has_tokenizer(paths: Collection[str]) -> bool:
    """Return whether a version has a tokenizer's vocabulary, in whatever form: in the root, or in `tokenizer/`."""
    near = {name_of(path) for path in paths if folder_of(path) in ("", "tokenizer/")}
    if near & {*names.WHOLE_TOKENIZERS} or any(path.endswith(".gguf") for path in paths):
        return True
    if any(name.startswith("tokenization_") and name.endswith(".py") for name in near):
        return True
    return any(role_of(name) == "vocabulary" and name != "merges.txt" for name in near)


def _check_file(path: str, size: int, read: Read) -> list[Finding]:
    beginning = read(path, 0, min(size, LOOKED_AT_BYTES))
    found = find_stand_in(path, size, beginning)
    if found is not None:
        return [found]
    if not is_weights(path):
        return []
    damage = find_damage(path, size, beginning, read)
    return [] if damage is None else [Finding("incomplete", path, f"{path} {damage}", _FETCH_AGAIN)]


def find_stand_in(path: str, size: int, beginning: bytes) -> Finding | None:
    """Return the finding about a file that is a pointer or a page in place of the file that its name promises."""
    pointer = pointer_in(beginning, size)
    if pointer is not None:
        remedy = "fetch the file itself with `git lfs pull` (or `hf download`)"
        if "annex" in pointer:
            remedy = "fetch the file itself with `git annex get`"
        return Finding("lfs_pointer", path, f"{path} is {pointer}, not the file itself", remedy)
    if not path.lower().endswith(NEVER_MARKUP):
        return None
    page = page_in(beginning) or (XML if is_xml(beginning) else None)
    if page is None:
        return None
    remedy = f"{_FETCH_AGAIN}, with the credentials that it asks for"
    return Finding("web_page", path, f"{path} is {page}, not the file itself", remedy)


def _check_shards(sizes: Mapping[str, int], read: Read, bad: Collection[str]) -> list[Finding]:
    """Check the indexes, and the numbered shards of which no index decides."""
    findings: list[Finding] = []
    decided: set[str] = set()
    explicit = _explicit_weights(sizes, read)
    for path in sorted(sizes):
        if index_format(path) is None or path in bad or not _decides(path, sizes):
            continue
        if sizes[path] > _MAX_INDEX_BYTES:
            decided.add(folder_of(path))
            continue
        named = shards_of(path, sizes[path], read)
        if named is None:
            message = f"{path} is no index: expected a JSON object with `weight_map`"
            findings.append(Finding("bad_index", path, message, _FETCH_AGAIN))
            continue
        decided.add(folder_of(path))
        # transformers takes the single file before the index, vLLM asks the index.
        is_needed = path.replace(".index", "").removesuffix(".json") not in sizes
        if not named:
            message = f"{path} names no tensor: its `weight_map` is empty"
            findings.append(Finding("bad_index", path, message, _FETCH_AGAIN, fatal=is_needed))
        if path == explicit:  # transformers looks for its files from the model's own folder
            named = tuple(name.removeprefix(folder_of(path)) for name in named)
        missing = [name for name in named if name not in sizes]
        if missing:
            message = f"{path} names files that are not there: {describe_names(missing)}"
            remedy = "fetch the missing files, or remove the index if the model does not need them"
            findings.append(Finding("incomplete", path, message, remedy, fatal=is_needed))
    return findings + _incomplete_sets(sizes, decided)


def _incomplete_sets(paths: Collection[str], decided: Collection[str]) -> list[Finding]:
    findings = []
    for shards in names.shard_sets(filter(is_weights, paths)).values():
        first = shards.found[0]
        if not shards.is_complete and folder_of(first) not in decided:
            message = f"{shards.pattern}: expected {shards.count} files, found {len(shards.found)}"
            findings.append(Finding("incomplete", first, message, "fetch the missing files too"))
    return findings


def shards_of(path: str, size: int, read: Read) -> tuple[str, ...] | None:
    """Return the paths of the files that an index names, sorted; None if it is no index."""
    index = _read_json(path, size, _MAX_INDEX_BYTES, read)
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        return None
    return tuple(sorted({posixpath.normpath(folder_of(path) + name) for name in set(named.values())}))


def _decides(path: str, paths: Collection[str]) -> bool:
    """Return whether this index lists the weights: an index of the older format may remain without its shards."""
    if index_format(path) == "safetensors":
        return True
    folder = folder_of(path)
    return not any(other.endswith(".safetensors") and folder_of(other) == folder for other in paths)


def _check_model(sizes: Mapping[str, int], read: Read) -> list[Finding]:
    if sizes[names.CONFIG] > _MAX_CONFIG_BYTES:
        return []
    config = _read_json(names.CONFIG, sizes[names.CONFIG], _MAX_CONFIG_BYTES, read)
    if not isinstance(config, dict):
        message = f"{names.CONFIG} is no JSON object"
        return [Finding("bad_config", names.CONFIG, message, _FETCH_AGAIN)]
    said = config.get(_NAMED_WEIGHTS)
    if said is not None and not (isinstance(said, str) and said.endswith(_READ_BY_NAME)):
        message = (
            f"{names.CONFIG}: expected `{_NAMED_WEIGHTS}` to name a *.safetensors file or its index, found "
            f"{repr(said)[:80]}"
        )
        return [Finding("bad_config", names.CONFIG, message, "correct the field, or take it out")]
    explicit = _explicit_weights(sizes, read)
    if explicit is not None and explicit not in sizes:
        message = f"{names.CONFIG} names the weights {explicit!r} ({_NAMED_WEIGHTS}), which are not there"
        return [Finding("incomplete", names.CONFIG, message, "fetch that file too, or take the field out")]
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        return []
    if architectures and not any(
        is_weights(path) or not path.lower().endswith(_TEXTS)
        for path in sizes
        if "." in path and not name_of(path).startswith(".")
    ):
        message = f"{names.CONFIG} describes {architectures[0]}, and there is no file of weights"
        return [Finding("no_weights", names.CONFIG, message, "add the weights (*.safetensors) of the model")]
    parts = sorted(filter(names.is_ranks_part, sizes))
    noted = [_distributed(parts)] if parts else _check_names(sizes, explicit)
    return noted + _check_tokenizer(architectures, sizes, read)


def _distributed(parts: list[str]) -> Finding:
    message = f"{describe_names(parts)}: of a distributed checkpoint, which transformers alone loads, with all others"
    remedy = "load it with transformers, and publish what `save_pretrained` writes; or remove what is left over"
    return Finding("distributed", parts[0], message, remedy, fatal=False)


def _check_names(sizes: Mapping[str, int], explicit: str | None) -> list[Finding]:
    """Note weights of which none has a name that transformers looks for; vLLM reads any `*.safetensors`."""
    weights = [path for path in sizes if is_weights(path) and not folder_of(path)]
    others = [path for path in weights if path.endswith(".safetensors") and not path.startswith("adapter_")]
    is_found = explicit is not None or any(
        path == "model.safetensors" or not path.endswith(".safetensors") or index_format(path) for path in weights
    )
    is_found = is_found or any(index_format(path) and not folder_of(path) for path in sizes)
    if is_found or not others or any(path.startswith("model-") for path in names.shard_sets(others)):
        return []
    message = f"no engine but vLLM looks for {describe_names(sorted(others))}: expected model.safetensors or its index"
    remedy = f"rename it, or name it in {names.CONFIG} (`{_NAMED_WEIGHTS}`)"
    return [Finding("other_names", min(others), message, remedy, fatal=False)]


def _check_tokenizer(architectures: list[str], sizes: Mapping[str, int], read: Read) -> list[Finding]:
    generates = any(name.endswith(_GENERATES) for name in architectures)
    if generates and not has_tokenizer(sizes) and not _needs_no_vocabulary(sizes, read):
        return [_no_tokenizer(architectures[0])]
    return []


def _explicit_weights(sizes: Mapping[str, int], read: Read) -> str | None:
    """Return the file that config.json names for transformers: its weights, or their index."""
    if names.CONFIG not in sizes:
        return None
    config = _read_json(names.CONFIG, sizes[names.CONFIG], _MAX_CONFIG_BYTES, read)
    named = config.get(_NAMED_WEIGHTS) if isinstance(config, dict) else None
    return posixpath.normpath(named) if isinstance(named, str) and named else None


def _needs_no_vocabulary(sizes: Mapping[str, int], read: Read) -> bool:
    """Return whether `tokenizer_config.json` names a tokenizer of bytes or characters, or one with code of its own."""
    name = "tokenizer_config.json"
    config = _read_json(name, sizes[name], _MAX_CONFIG_BYTES, read) if name in sizes else None
    if not isinstance(config, dict):
        return False
    return config.get("tokenizer_class") in _BYTE_TOKENIZERS or "AutoTokenizer" in (config.get("auto_map") or ())


def _no_tokenizer(whose: str) -> Finding:
    message = f"a model that generates text ({whose}) has no tokenizer beside it"
    return Finding("no_tokenizer", names.CONFIG, message, _BRING_TOKENIZER)


def _read_json(path: str, size: int, limit: int, read: Read) -> Any:
    """Return a file's JSON value; None if it is none or longer than `limit`."""
    if size > limit:
        return None
    try:
        return json.loads(read(path, 0, size))
    except (ValueError, RecursionError):
        return None
