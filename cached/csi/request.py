"""A volume as the kubelet asks for it, checked: which versions, in which form, for which pod, and where.

Law: pure, but for the real path of the target's folder. Whatever is not understood is refused by name: a volume that
ignores an attribute is not what its author meant. What begins with `csi.storage.k8s.io/` is the kubelet's own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cached.contract.annotations import CSI_DRIVER
from cached.contract.errors import InvalidReference, Permanent
from cached.contract.reference import ModelRef, ModelRequest, add_pins, parse_models
from cached.core.demand import PodWant
from cached.csi.mounts import find_target

DRIVER = CSI_DRIVER
INVALID = "invalid_volume"

_KUBELET = "csi.storage.k8s.io/"
_POD_UID, _POD_NAME, _POD_NAMESPACE = (f"{_KUBELET}pod.{key}" for key in ("uid", "name", "namespace"))
_EPHEMERAL = f"{_KUBELET}ephemeral"
_ATTRIBUTES = ("model", "version", "models", "digest", "verify")
_MOUNT_FLAGS = ("ro", "nosuid", "nodev", "noexec")  # what every volume has anyway
_READ_MODES = ("SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY")
_INLINE_MODE = "SINGLE_NODE_WRITER"  # which the kubelet gives every inline volume, read-only or not
_HOW = "write `model: llama-3.1-8b` and `version: v3`, or `models: base=llama-3.1-8b@v3,adapter=support-lora@v7`"


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """One checked request. `is_tree`: the volume is a tree with names, asked for with `models`; else it is the one
    snapshot itself. `target` is where the kubelet wants it."""

    volume_id: str
    target: Path
    models: tuple[ModelRequest, ...]
    is_tree: bool
    is_hashed: bool
    pod_uid: str
    pod_name: str
    namespace: str

    @property
    def wants(self) -> tuple[PodWant, ...]:
        """The versions that the volume's pod wants."""
        pod = f"{self.namespace}/{self.pod_name}"
        return tuple(PodWant(self.pod_uid, pod, each.ref, each.pin) for each in self.models)


@dataclass(frozen=True, slots=True)
class Access:
    """How the kubelet means to use a volume: the kind of access (`mount`, `block`, None: not said), the access mode's
    name, and options of a persistent volume."""

    kind: str | None
    mode: str
    fs_type: str = ""
    mount_flags: Sequence[str] = ()


def parse_request(
    volume_id: str, target: str, attributes: Mapping[str, str], access: Access, secrets: Collection[str], pods: Path
) -> VolumeRequest:
    """Check a request to publish a volume; `pods` is the kubelet's folder of pods, `secrets` the names of what came
    with it. Raises `Permanent` (`invalid_volume`)."""
    path = check_target(volume_id, target, pods)
    missing = [key for key in (_POD_UID, _POD_NAME, _POD_NAMESPACE) if not attributes.get(key)]
    if missing:
        _refuse(
            f"the kubelet does not say whose volume this is: {', '.join(missing)} is missing",
            f"set `podInfoOnMount: true` in the CSIDriver object {DRIVER}, as the overlay `csi` does",
        )
    _check_access(access, is_inline=attributes.get(_EPHEMERAL) == "true")
    if secrets:
        _refuse("the volume has a nodePublishSecretRef", "leave it out: credentials of sources are the daemon's")
    unknown = sorted(key for key in attributes if key not in _ATTRIBUTES and not key.startswith(_KUBELET))
    if unknown:
        named = ", ".join(key[:100] for key in unknown[:5])
        _refuse(f"volumeAttributes: no such attribute: {named}", f"there are {', '.join(_ATTRIBUTES)}")
    return VolumeRequest(
        volume_id=volume_id,
        target=path,
        models=_parse_models(attributes),
        is_tree="models" in attributes,
        is_hashed=_parse_verify(attributes.get("verify", "record")),
        pod_uid=attributes[_POD_UID],
        pod_name=attributes[_POD_NAME],
        namespace=attributes[_POD_NAMESPACE],
    )


def check_target(volume_id: str, target: str, pods: Path) -> Path:
    """Return the target's real path; raises `Permanent` (`invalid_volume`) unless both are there, and the target is a
    place for a volume in the kubelet's folder of pods."""
    if not volume_id:
        _refuse("volume_id is missing", "give the id of the volume")
    if not target:
        _refuse("target_path is missing", "give the path at which the volume is to be")
    path = Path(target)
    real = os.path.join(os.path.realpath(path.parent), path.name)
    is_plain = path.is_absolute() and os.path.normpath(target) == target and target.isprintable()
    if not is_plain or find_target(real, os.path.realpath(pods)) != real:
        _refuse(
            f"target_path: expected {pods}/<uid>/volumes/kubernetes.io~csi/<volume>/mount, found {target[:300]!r}",
            "start the daemon with the kubelet's own --kubelet-dir (the kubelet's --root-dir)",
        )
    return Path(real)


def _check_access(access: Access, *, is_inline: bool) -> None:
    if access.kind is None:
        _refuse("volume_capability is missing", "say how the volume is used: as a mount")
    if access.kind != "mount":
        _refuse("the volume is asked for as a block device", "write `volumeMode: Filesystem`")
    modes = (*_READ_MODES, _INLINE_MODE) if is_inline else _READ_MODES
    if access.mode not in modes:
        _refuse(
            f"access mode: expected one that only reads ({', '.join(_READ_MODES)}), found {access.mode}",
            "write `accessModes: [ReadOnlyMany]` in the PersistentVolume and its claim",
        )
    if access.fs_type:
        _refuse(f"fsType: expected none, found {access.fs_type[:100]!r}", "leave fsType out: nothing is formatted")
    other = [flag for flag in access.mount_flags if flag not in _MOUNT_FLAGS]
    if other:
        listed = ", ".join(_MOUNT_FLAGS)
        _refuse(f"mountOptions: expected none but {listed}, found {other[0][:100]!r}", "leave mountOptions out")


def _parse_models(attributes: Mapping[str, str]) -> tuple[ModelRequest, ...]:
    also = [key for key in ("model", "version") if key in attributes]
    try:
        if "models" in attributes:
            if also:
                _refuse(f"volumeAttributes: models and {also[0]} exclude each other", _HOW)
            models = parse_models(attributes["models"])
        elif len(also) == 2:
            models = (ModelRequest(ModelRef(attributes["model"], attributes["version"])),)
        else:
            found = f"{also[0]} alone" if also else "neither"
            _refuse(f"volumeAttributes: expected model and version, or models, found {found}", _HOW)
        return add_pins(models, attributes["digest"]) if "digest" in attributes else models
    except InvalidReference as error:
        raise Permanent(INVALID, f"volumeAttributes: {error.message}", f"{_HOW}; {error.remedy}") from error


def _parse_verify(text: str) -> bool:
    if text not in ("record", "full"):
        _refuse(f"volumeAttributes: verify: expected record or full, found {text[:100]!r}", "write `verify: record`")
    return text == "full"


def _refuse(message: str, remedy: str) -> NoReturn:
    raise Permanent(INVALID, message, remedy)
