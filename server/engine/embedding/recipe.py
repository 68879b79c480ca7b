"""What a model's folder says about its vectors: `modules.json`, `config_sentence_transformers.json`, what they name.

Law: reads JSON only; order and meaning are sentence-transformers' (6.2.0, `base/model.py`). Module types of another
package are code of the model, which is never run. Without `modules.json` the library takes the mean of a plain encoder
and reads none of its own files; such files without it are a folder that lost a part.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

from cached.contract.errors import Permanent
from server.engine.embedding.documents import (
    Document,
    count,
    damaged,
    read_document,
    read_json,
    section,
    show,
    unsupported,
    warn_unknown,
)
from server.engine.embedding.module_settings import (
    READERS,
    SENTENCE,
    TOKENS,
    NormalizeSettings,
    PoolingSettings,
    StepSettings,
)
from server.engine.embedding.requirements import check_requirements, check_version
from server.engine.embedding.transformer_settings import SETTINGS_FILES, TransformerSettings, read_transformer

_MODULES = "modules.json"
_MODEL = "config_sentence_transformers.json"
_MODEL_FIELDS = frozenset({"model_type", "__version__", "prompts", "default_prompt_name", "similarity_fn_name"})
_MODEL_FIELDS |= {"truncate_dim", "requirements"}
_ENTRY_FIELDS = ("idx", "name", "path", "type", "kwargs")
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_MODULE_FOLDER = re.compile(r"\d+_[A-Za-z]\w*")
# Where a class of sentence-transformers is defined; older saves say `sentence_transformers.models.<Class>`.
_DEFINED_IN = {
    "Transformer": "base.modules.transformer",
    "Dense": "base.modules.dense",
    "Normalize": "base.modules.normalize",
    "Pooling": "sentence_transformer.modules.pooling",
    "LayerNorm": "sentence_transformer.modules.layer_norm",
    "Dropout": "sentence_transformer.modules.dropout",
    "WeightedLayerPooling": "sentence_transformer.modules.weighted_layer_pooling",
}


def _no_prompts() -> Mapping[str, str]:
    return MappingProxyType({"query": "", "document": ""})  # which every model has in the library


@dataclass(frozen=True, slots=True)
class Recipe:
    """How texts become vectors: prompt, transformer, the steps in their order, and the cut to `truncate_dim` numbers.
    `similarity` is how the authors compare vectors; `from_modules`: the folder has a `modules.json`."""

    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    steps: tuple[StepSettings, ...] = (PoolingSettings(),)
    prompts: Mapping[str, str] = field(default_factory=_no_prompts)
    default_prompt: str | None = None
    similarity: str | None = None
    truncate_dim: int | None = None
    from_modules: bool = False

    @property
    def leaves_out_prompts(self) -> bool:
        """Whether a pooling counts no token of a prompt."""
        return any(isinstance(step, PoolingSettings) and not step.include_prompt for step in self.steps)


def type_names(kind: str) -> tuple[str, ...]:
    """Return the `type`s in modules.json that are sentence-transformers' class `kind`."""
    home = _DEFINED_IN[kind]
    rooms = {f"sentence_transformers.{home}", "sentence_transformers.sentence_transformer.modules"}
    rooms |= {"sentence_transformers.models", f"sentence_transformers.models.{kind}"}
    rooms.add(f"sentence_transformers.{home.rpartition('.')[0]}")
    return tuple(sorted(f"{room}.{kind}" for room in rooms))


_KINDS = {name: kind for kind in _DEFINED_IN for name in type_names(kind)}


def read_recipe(directory: Path) -> Recipe:
    """Read sentence-transformers' files in a model's folder; raises `Permanent` for what is not served."""
    path = directory / _MODULES
    if not path.is_file():
        _refuse_lost_modules(directory)
        return Recipe()
    model = _read_model(directory / _MODEL)
    entries = read_entries(path)
    transformer = read_transformer(directory, entries[0][1])
    steps: list[StepSettings] = []
    for kind, folder in entries[1:]:
        step = READERS[kind](directory / folder)
        if step is not None:
            steps.append(step)
    _check_order(path, steps)
    _tell_unnamed(directory, {folder for _, folder in entries})
    return Recipe(transformer, tuple(steps), *model, from_modules=True)


def read_entries(path: Path) -> list[tuple[str, str]]:
    """Return class and folder of each module in modules.json, the transformer first; raises `Permanent`."""
    listed = read_json(path)
    if not isinstance(listed, list) or not listed:
        raise damaged(path, f"expected a list of modules, found {show(listed)}")
    entries: list[tuple[str, str]] = []
    names: set[str] = set()
    for entry in listed:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "path", "type")):
            raise damaged(path, f"expected name, path and type as texts, found {show(entry)}")
        warn_unknown(path, entry, _ENTRY_FIELDS)
        if entry["name"] in names:
            raise damaged(path, f"expected a name of its own for each module, found {show(entry['name'])} twice")
        names.add(entry["name"])
        entries.append((_kind(path, entry["type"]), _inside(path, entry["path"])))
    for position, (kind, _) in enumerate(entries):
        if (kind == "Transformer") != (position == 0):
            raise Permanent(
                "unsupported_model", f"{path}: expected one Transformer, first, found {kind} at {position}", "use --app"
            )
    return entries


def _kind(path: Path, name: str) -> str:
    kind = _KINDS.get(name)
    if kind is not None:
        return kind
    ours = name.startswith("sentence_transformers.")
    what = "a module that is not served" if ours else "code of another package, which is never run"
    raise Permanent(
        "unsupported_model",
        f"{path}: expected modules of sentence-transformers ({', '.join(_DEFINED_IN)}), found {name[:120]}, {what}",
        "serve it with --app",
    )


def _inside(path: Path, where: str) -> str:
    windows = PureWindowsPath(where)
    if windows.anchor or ".." in windows.parts or "\0" in where:
        raise damaged(path, f"path: expected a folder inside the model's, found {show(where)}")
    return where


def _check_order(path: Path, steps: list[StepSettings]) -> None:
    """Refuse a step that would read a vector which no step before it makes."""
    have = {TOKENS}
    for step in steps:
        if step.source in have:
            have.add(step.target)
        elif not isinstance(step, NormalizeSettings):  # which the library skips where it has nothing to read
            kind = type(step).__name__.removesuffix("Settings")
            raise damaged(path, f"expected a Pooling before {kind}, which reads {step.source}")
    if SENTENCE not in have:
        raise damaged(path, "expected a Pooling among the modules, found none: nothing makes one vector of the tokens")


def _read_model(path: Path) -> tuple[Mapping[str, str], str | None, str | None, int | None]:
    """Return prompts, default prompt, similarity and dimension of config_sentence_transformers.json."""
    document = read_document(path) if path.exists() else {}
    kind = document.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise unsupported(path, "model_type", kind, "SentenceTransformer, which makes one vector of a text")
    warn_unknown(path, document, _MODEL_FIELDS)
    check_version(path, document.get("__version__"))
    check_requirements(path, document.get("requirements"))
    prompts, default = read_prompts(path, document, _no_prompts())
    similarity = document.get("similarity_fn_name")
    return (
        prompts,
        default,
        similarity if similarity in _SIMILARITIES else None,
        count(path, document, "truncate_dim"),
    )


def read_prompts(path: Path, document: Document, own: Mapping[str, str]) -> tuple[Mapping[str, str], str | None]:
    """Return the prompts by name, with those that the library's class has of its `own`, and the default one's name."""
    prompts: dict[str, Any] = {**own, **section(path, document, "prompts")}
    for name, text in prompts.items():
        if text is not None and not isinstance(text, str):
            raise damaged(path, f"prompts.{name[:60]}: expected a text, found {show(text)}")
    default = document.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        expected = f"one of {', '.join(prompts)}" if prompts else "null, as there are no prompts"
        raise damaged(path, f"default_prompt_name: expected {expected}, found {show(default)}")
    return MappingProxyType({name: text or "" for name, text in prompts.items()}), default


def _module_folders(directory: Path) -> list[str]:
    try:
        found = [one for one in directory.iterdir() if _MODULE_FOLDER.fullmatch(one.name) and one.is_dir()]
    except OSError as error:
        raise damaged(directory, f"expected a model's folder: {error}") from error
    # Some modules had no file in older versions; Git and object stores then keep no folder either, or an empty one.
    return sorted(one.name for one in found if (one / "config.json").is_file() or "Normalize" in one.name)


def _refuse_lost_modules(directory: Path) -> None:
    names = [name for name in (*SETTINGS_FILES, _MODEL) if (directory / name).is_file()]
    found = [*_module_folders(directory), *names]
    if found:
        raise Permanent(
            "invalid_config",
            f"{directory}: expected {_MODULES}, which says what is done with {', '.join(found)}, found none",
            f"publish {_MODULES} with the model; a plain encoder without these files is served with the mean",
        )


def _tell_unnamed(directory: Path, named: set[str]) -> None:
    first = {Path(folder).parts[0] for folder in named if folder}
    left = [name for name in _module_folders(directory) if name not in first]
    if left:
        logging.getLogger(__name__).warning(
            "%s: without effect, as in sentence-transformers: %s does not name the modules %s",
            directory,
            _MODULES,
            ", ".join(left)[:300],
        )
