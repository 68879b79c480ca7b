"""Render a kustomization as `kubectl kustomize` does, for the features that manifests/ uses, where there is no kubectl.

Law: reads files; knows a field or fails. Where kubectl is at hand, a test compares the two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
_FIELDS = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "configMapGenerator",
    "patches",
    "labels",
    "images",
    "transformers",
}
# What strategic merge goes by, per list; every other list is replaced.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "webhooks": "name",
}


def render(folder: Path) -> list[Json]:
    """The objects of a kustomization, in no order to rely on."""
    return _build(folder, [])


def documents(path: Path) -> list[Json]:
    """The objects of one file."""
    return [found for found in yaml.load_all(path.read_text(), yaml.CSafeLoader) if found]


def _build(folder: Path, objects: list[Json]) -> list[Json]:
    """Add a kustomization to `objects`: a component sees what is there before it, a base sees nothing."""
    spec = documents(folder / "kustomization.yaml")[0]
    unknown = set(spec) - _FIELDS
    assert not unknown, f"{folder}: teach tests/support/kustomize.py {unknown}"
    for name in spec.get("resources", ()):
        objects += _build(folder / name, []) if (folder / name).is_dir() else documents(folder / name)
    for generator in spec.get("configMapGenerator", ()):
        _generate(objects, folder, generator)
    for name in spec.get("components", ()):
        objects = _build(folder / name, objects)
    for patch in spec.get("patches", ()):
        body = documents(folder / patch["path"]) if "path" in patch else list(yaml.safe_load_all(patch["patch"]))
        for change in body:
            if "target" not in patch or any(_identity(found) == _identity(change) for found in objects):
                _patch(objects, change)
    for labels in spec.get("labels", ()):
        _label(objects, labels)
    for image in spec.get("images", ()):
        _set_image(objects, image)
    for name in spec.get("transformers", ()):
        for transformer in render(folder / name):
            _replace(objects, transformer)
    return objects


def _identity(found: Json) -> tuple[str, str, str]:
    return found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]


def _generate(objects: list[Json], folder: Path, generator: Json) -> None:
    generator.setdefault("options", {})
    assert generator["options"].get("disableNameSuffixHash") or not generator.get("behavior")
    data = {name: (folder / name).read_text() for name in generator["files"]}
    metadata: Json = {key: generator[key] for key in ("name", "namespace") if key in generator}
    options = generator["options"]
    metadata |= {key: dict(options[key]) for key in ("labels", "annotations") if key in options}
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    if generator.get("behavior") == "replace":
        there = next(o for o in objects if _identity(o) == _identity(made))
        there["data"] = data
    else:
        objects.append(made)


def _patch(objects: list[Json], change: Json) -> None:
    there = next(o for o in objects if _identity(o) == _identity(change))
    if change.pop("$patch", None) == "delete":
        objects.remove(there)
    else:
        _merge(there, change)


def _merge(there: Json, change: Json) -> None:
    for key, value in change.items():
        if value is None:
            there.pop(key, None)
        elif isinstance(value, dict) and isinstance(there.get(key), dict):
            _merge(there[key], value)
        elif isinstance(value, list) and key in _KEYS and key in there:
            _merge_list(there[key], value, _KEYS[key])
        else:
            there[key] = value


def _merge_list(there: list[Json], changes: list[Json], by: str) -> None:
    for change in changes:
        same = next((item for item in there if item.get(by) == change.get(by)), None)
        if change.get("$patch") == "delete":
            if same is not None:
                there.remove(same)
        elif same is None:
            there.append(change)
        else:
            _merge(same, change)


def _label(objects: list[Json], labels: Json) -> None:
    for found in objects:
        found["metadata"].setdefault("labels", {}).update(labels["pairs"])
        template = found.get("spec", {}).get("template") if labels.get("includeTemplates") else None
        if template:
            template["metadata"].setdefault("labels", {}).update(labels["pairs"])


def _set_image(objects: list[Json], image: Json) -> None:
    for container in (container for found in objects for container in containers(found)):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def containers(found: Json) -> Iterator[Json]:
    """The containers and init containers of a workload or a pod; none for other kinds."""
    spec = (
        found.get("spec", {}) if found["kind"] == "Pod" else found.get("spec", {}).get("template", {}).get("spec", {})
    )
    yield from spec.get("initContainers", ())
    yield from spec.get("containers", ())


def _replace(objects: list[Json], transformer: Json) -> None:
    assert transformer["kind"] == "ReplacementTransformer"
    for replacement in transformer["replacements"]:
        value = _at(_selected(objects, replacement["source"])[0], replacement["source"]["fieldPath"])[0]()
        for target in replacement["targets"]:
            for found in _selected(objects, target["select"]):
                for path in target["fieldPaths"]:
                    get, put = _at(found, path)
                    put(_spliced(get(), value, target.get("options", {})))


def _spliced(text: str, value: str, options: Json) -> str:
    if "delimiter" not in options:
        return value
    parts = text.split(options["delimiter"])
    parts[options["index"]] = value
    return str(options["delimiter"]).join(parts)


def _selected(objects: list[Json], select: Json) -> list[Json]:
    return [o for o in objects if o["kind"] == select["kind"] and o["metadata"]["name"] == select["name"]]


def _at(found: Json, path: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Reader and writer of a field such as `spec.env.[name=X].value`."""
    *way, last = path.split(".")
    at: Any = found
    for step in way:
        if step.startswith("["):
            key, _, value = step.strip("[]").partition("=")
            at = next(item for item in at if item[key] == value)
        else:
            at = at[step]
    return lambda: copy.deepcopy(at[last]), lambda value: at.__setitem__(last, value)


def unordered(value: Any) -> Any:
    """Return it with lists of named things by name: kustomize puts what a patch adds in front, and nothing depends on
    that."""
    if isinstance(value, dict):
        return {key: unordered(item) for key, item in value.items()}
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        return {item["name"]: unordered(item) for item in value}
    return [unordered(item) for item in value] if isinstance(value, list) else value
