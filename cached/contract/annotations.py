"""The annotations of a pod (design, section 2), parsed in one place for the injector and the daemon, and the keys that
the daemon sets on its node: an annotation, and the label `weights.holdfast.dev/<40 hex of the manifest digest>=ready`.

Law: pure. A pod without `holdfast.dev/model` or `holdfast.dev/models` requests nothing; the annotations of any other
pod are valid as a whole or refused, with a message that says how to write them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from cached.contract.digest import Digest
from cached.contract.errors import InvalidReference, Permanent
from cached.contract.layout import DEFAULT_MOUNT
from cached.contract.reference import ModelRef, ModelRequest, add_pins, parse_models, variable_suffix

PREFIX = "holdfast.dev/"
MODEL = PREFIX + "model"
MODELS = PREFIX + "models"
VERSION = PREFIX + "version"
DIGEST = PREFIX + "digest"
VERIFY = PREFIX + "verify"
CONTAINERS = PREFIX + "containers"
MOUNT_PATH = PREFIX + "mount-path"
AFFINITY = PREFIX + "affinity"
GATE = PREFIX + "gate"
MODE = PREFIX + "mode"
INJECTED = PREFIX + "injected"  # the injector's mark, so that no second injector adds the gate again
# What each is for, for the error of an unknown one and for docs/reference/annotations.md: value, default, meaning.
MEANINGS: Mapping[str, tuple[str, str, str]] = {
    MODEL: ("a model's name, as `llama-3.1-8b` or `acme/llama-3.1-8b`", "", f"one model, with `{VERSION}`"),
    VERSION: ("a version, as `v3`", "", f"the version of `{MODEL}`"),
    MODELS: (
        "`base=llama-3.1-8b@v3,adapter=support-lora@v7`; an alias may be left out",
        "",
        "several models; each alias has `HOLDFAST_MODEL_PATH_<ALIAS>`, and `holdfast serve` serves all, adapters "
        "beside their base",
    ),
    DIGEST: (
        "`sha256:…`; of several models `base=sha256:…,…`",
        "the catalog's pin",
        "the only content that will do, by manifest digest",
    ),
    VERIFY: (
        "`record` or `full`",
        "`record`",
        "compare size, mtime and inode with the daemon's record, or hash every file again before the pod starts",
    ),
    CONTAINERS: (
        "containers' names, comma-separated",
        "all but sidecars",
        "which containers get the mount and the variables",
    ),
    MOUNT_PATH: ("an absolute path", f"`{DEFAULT_MOUNT}`", "where the weights are mounted"),
    AFFINITY: (
        "`preferred` or `required`",
        "`preferred`",
        "rather a node that has the pinned weights, or no other node",
    ),
    GATE: (
        "`init` or `sidecar`",
        "`init`",
        "an init container that waits and ends; or a sidecar that stays and holds the lease, with a probe, a hook and "
        "metrics on port 9401, which starts a warm pod later and makes `Unhealthy` Events while it waits",
    ),
    MODE: (
        "`gate` or `csi`",
        "the injector's `--mode`",
        "behind a gate, or in a CSI volume of its own without any container",
    ),
    INJECTED: ("the injector's mark", "", "set by the injector, so that no second one adds the gate again"),
}
KNOWN = tuple(MEANINGS)

SUMMARY = PREFIX + "summary"  # on a node, not on a pod: the cache's contents, for a person
LABEL_PREFIX = "weights.holdfast.dev/"  # on a node; the injector's node affinity selects it
CSI_LABEL = LABEL_PREFIX + "csi"  # on a node that mounts volumes; no digest has three digits
CSI_DRIVER = "weights.holdfast.dev"  # the name of the driver in volumes, in the CSIDriver object and at kubelets
LABEL_VALUE = "ready"
_LABEL_DIGITS = 40  # a label's name may have 63 characters; 160 bits are as many as git trusts

_CONTAINER = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 label, as Kubernetes names containers
_HOW_ONE = f"write `{MODEL}: llama-3.1-8b` and `{VERSION}: v3`"
_HOW_MANY = f"`{MODELS}: base=llama-3.1-8b@v3,adapter=support-lora@v7`"


@dataclass(frozen=True, slots=True)
class WeightsRequest:
    """The request of one pod. `containers`: None for all of them; `gate`: how the pod is held back, None: by the
    default; `mode`: by which way it gets its weights, None: by the cluster's default; `injected`: the value of the
    injector's mark."""

    models: tuple[ModelRequest, ...]
    verify: Literal["record", "full"]
    containers: tuple[str, ...] | None
    mount_path: str
    affinity: Literal["preferred", "required"]
    gate: Literal["init", "sidecar"] | None
    mode: Literal["gate", "csi"] | None
    injected: str | None


def weights_label(digest: Digest) -> str:
    """Return the key of the node label of a ready snapshot."""
    return LABEL_PREFIX + digest.hex[:_LABEL_DIGITS]


def requests_weights(annotations: Mapping[str, str]) -> bool:
    """Return whether these annotations request weights, valid or not. The webhook's `matchConditions` test the same."""
    return MODEL in annotations or MODELS in annotations


def parse(annotations: Mapping[str, str]) -> WeightsRequest | None:
    """Parse a pod's annotations; None without a request. Raises `Permanent` (`invalid_annotations`)."""
    if not requests_weights(annotations):
        return None
    unknown = sorted(key for key in annotations if key.startswith(PREFIX) and key not in KNOWN)
    if unknown:
        _refuse(
            f"no such annotation: {', '.join(key[:100] for key in unknown[:5])}", f"there are {', '.join(KNOWN[:-1])}"
        )
    return WeightsRequest(
        models=_models(annotations),
        verify="full" if _choice(annotations, VERIFY, ("record", "full")) == "full" else "record",
        containers=_containers(annotations.get(CONTAINERS)),
        mount_path=_mount_path(annotations.get(MOUNT_PATH, str(DEFAULT_MOUNT))),
        affinity="required" if _choice(annotations, AFFINITY, ("preferred", "required")) == "required" else "preferred",
        gate=_gate(annotations),
        mode=_mode(annotations),
        injected=annotations.get(INJECTED),
    )


def _models(annotations: Mapping[str, str]) -> tuple[ModelRequest, ...]:
    models = _several(annotations) if MODELS in annotations else (_one(annotations),)
    pins = annotations.get(DIGEST)
    if pins is None:
        return models
    try:
        return add_pins(models, pins)
    except InvalidReference as error:
        _refuse(f"{DIGEST}: {error.message}", error.remedy, error)


def _one(annotations: Mapping[str, str]) -> ModelRequest:
    if VERSION not in annotations:
        name, at, version = annotations[MODEL].partition("@")
        how = f"write `{MODEL}: {name[:100]}` and `{VERSION}: {version[:100]}`" if at else _HOW_ONE
        _refuse(f"{MODEL} without {VERSION}", how)
    try:
        return ModelRequest(ModelRef(annotations[MODEL], annotations[VERSION]))
    except InvalidReference as error:
        _refuse(f"{MODEL} and {VERSION}: {error.message}", f"{_HOW_ONE}; {error.remedy}", error)


def _several(annotations: Mapping[str, str]) -> tuple[ModelRequest, ...]:
    also = [key for key in (MODEL, VERSION) if key in annotations]
    if also:
        _refuse(f"{MODELS} and {also[0]} exclude each other", f"for one model {_HOW_ONE}; for several {_HOW_MANY}")
    try:
        models = parse_models(annotations[MODELS])
    except InvalidReference as error:
        _refuse(f"{MODELS}: {error.message}", f"write {_HOW_MANY}; {error.remedy}", error)
    suffixes = [variable_suffix(wanted.alias) for wanted in models if wanted.alias]
    twice = sorted({suffix for suffix in suffixes if suffixes.count(suffix) > 1})
    if twice:
        _refuse(
            f"{MODELS}: two aliases give the same variable HOLDFAST_MODEL_PATH_{twice[0]}",
            "choose aliases that differ in more than case, `.`, `_` and `-`",
        )
    return models


def _choice(annotations: Mapping[str, str], key: str, choices: Sequence[str]) -> str:
    """Return the annotation's value, by default the first of `choices`."""
    found = annotations.get(key, choices[0])
    if found not in choices:
        _refuse(f"{key}: expected {' or '.join(choices)}, found {found[:100]!r}", f"write `{key}: {choices[0]}`")
    return found


def _gate(annotations: Mapping[str, str]) -> Literal["init", "sidecar"] | None:
    if GATE not in annotations:
        return None
    return "sidecar" if _choice(annotations, GATE, ("init", "sidecar")) == "sidecar" else "init"


def _mode(annotations: Mapping[str, str]) -> Literal["gate", "csi"] | None:
    if MODE not in annotations:
        return None
    if _choice(annotations, MODE, ("gate", "csi")) == "gate":
        return "gate"
    if GATE in annotations:
        _refuse(
            f"`{MODE}: csi` and {GATE} exclude each other: a pod with a volume of its own has no gate",
            f"leave one of them out, or write `{MODE}: gate`",
        )
    return "csi"


def _containers(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    bad = [name for name in names if not _CONTAINER.fullmatch(name) or names.count(name) > 1]
    if bad:
        _refuse(
            f"{CONTAINERS}: expected the pod's container names, each once, found {bad[0][:100]!r} in {text[:200]!r}",
            f"write `{CONTAINERS}: server,metrics`, or leave it out for all containers",
        )
    return names


def _mount_path(text: str) -> str:
    good = text.startswith("/") and not text.startswith("//") and posixpath.normpath(text) == text and text != "/"
    # The container runtime ends the path at a colon, and Kubernetes refuses one.
    if not good or ":" in text or not text.isprintable():
        _refuse(
            f"{MOUNT_PATH}: expected an absolute path without `.`, `..`, `//` or `:` and not ending in `/`, "
            f"found {text[:200]!r}",
            f"write `{MOUNT_PATH}: {DEFAULT_MOUNT}`",
        )
    return text


def _refuse(message: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise Permanent("invalid_annotations", message, remedy) from cause
