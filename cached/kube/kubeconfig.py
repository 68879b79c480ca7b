"""Read a KUBECONFIG file: the cluster, user and namespace of its current context.

Law: reads only the given files; runs no program, so a user with a login plugin is refused, with the remedy. Format:
`kubectl config` and the v1 `Config` of client-go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cached.contract.errors import Permanent
from cached.kube.cluster import ApiServer, Material, in_cluster

_FOREIGN = ("exec", "auth-provider", "username", "as")
_SECTIONS = ("clusters", "users", "contexts")


def find_cluster(environment: Mapping[str, str]) -> ApiServer | None:
    """Return the cluster of KUBECONFIG, else the one of this pod, else None; raises `Permanent`. `~/.kube/config` is
    not read: a laptop must not join a cluster because its owner once logged in to it."""
    files = environment.get("KUBECONFIG")
    return load([Path(name) for name in files.split(":") if name]) if files else in_cluster(environment)


def load(files: list[Path]) -> ApiServer:
    """Read the current context; of several files the first with a name wins. Raises `Permanent`."""
    merged = _merge(files)
    where = ":".join(map(str, files))
    current = merged["current-context"]
    if not current:
        _refuse(where, "no current-context", "set one with `kubectl config use-context NAME`")
    context = _named(merged, "contexts", current, where)
    cluster = _named(merged, "clusters", context.get("cluster"), where)
    user = _named(merged, "users", context.get("user"), where)
    foreign = [key for key in _FOREIGN if user.get(key)]
    if foreign:
        _refuse(
            where,
            f"the user {context.get('user')!r} logs in with `{foreign[0]}`, which Holdfast does not run",
            "use a user with a token or a client certificate: `kubectl create token holdfast -n holdfast-system`",
        )
    if cluster.get("proxy-url"):
        _refuse(where, "the cluster has a `proxy-url`, which Holdfast does not use", "name the API server directly")
    return ApiServer(
        server=str(cluster.get("server", "")).rstrip("/") or _refuse(where, "the cluster has no server", "name it"),
        server_name=cluster.get("tls-server-name"),
        authority=_material(cluster, "certificate-authority", where),
        verify=not cluster.get("insecure-skip-tls-verify"),
        certificate=_material(user, "client-certificate", where),
        key=_material(user, "client-key", where),
        token=user.get("token") or _path(user, "tokenFile"),
    )


def _merge(files: list[Path]) -> dict[str, Any]:
    merged: dict[str, Any] = {"current-context": "", **{section: {} for section in _SECTIONS}}
    for file in files:
        document = _document(file)
        merged["current-context"] = merged["current-context"] or document.get("current-context") or ""
        for section in _SECTIONS:
            for item in document.get(section) or ():
                # The key "" has the folder that paths are relative to.
                body = {**(item.get(section.removesuffix("s")) or {}), "": file.parent}
                merged[section].setdefault(item.get("name"), body)
    return merged


def _document(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        _refuse(str(file), f"cannot be read: {error}", "check KUBECONFIG", error)
    if not isinstance(document, dict) or not all(_is_section(document.get(name), name) for name in _SECTIONS):
        _refuse(str(file), "is not a kubeconfig", "check KUBECONFIG")
    return document


def _is_section(found: object, name: str) -> bool:
    """Return whether this is a list of names, each with a mapping."""
    return found is None or (
        isinstance(found, list)
        and all(isinstance(item, dict) and isinstance(item.get(name.removesuffix("s")), dict | None) for item in found)
    )


def _named(merged: dict[str, Any], section: str, name: object, where: str) -> dict[str, Any]:
    found: dict[str, Any] | None = merged[section].get(name)
    if found is None:
        _refuse(where, f"{name!r} is not among its {section}", "see `kubectl config view`")
    return found


def _material(entry: dict[str, Any], key: str, where: str) -> Material | None:
    """Return the bytes of `key-data`, which wins as in kubectl, or the path in `key`."""
    data = entry.get(f"{key}-data")
    if not data:
        return _path(entry, key)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        _refuse(where, f"{key}-data is not base64", "encode the PEM with `base64 -w0`", error)


def _path(entry: dict[str, Any], key: str) -> Path | None:
    name = entry.get(key)
    return Path(entry[""]) / name if name else None


def _refuse(where: str, problem: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise Permanent("kube_bad_kubeconfig", f"{where}: {problem}", remedy) from cause
