"""Kubernetes objects with the semantics of the API server's storage: versions, conflicts, selectors, a history that is
compacted. Written from the API's documentation; knows no HTTP.

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Match = Callable[[Object], bool]


class ApiError(Exception):
    """A refusal, as the `Status` object that carries it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


@dataclass(frozen=True)
class Kind:
    """One resource: `group_version` is `v1` or `apps/v1`."""

    group_version: str
    resource: str


@dataclass(frozen=True)
class Key:
    """One object of a kind; `namespace` is empty for those that have none."""

    kind: Kind
    namespace: str
    name: str


@dataclass(frozen=True)
class Change:
    """One step of the history. `old` or `new` is None where there was or is nothing."""

    version: int
    kind: Kind
    old: Object | None
    new: Object | None


@dataclass(frozen=True)
class Page:
    items: list[Object]
    version: int
    more: str | None


@dataclass
class Store:
    """All objects of a cluster. Not thread-safe: its users lock."""

    objects: dict[Key, Object] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    version: int = 100
    compacted: int = 0  # changes up to this version are forgotten
    _pages: dict[str, tuple[int, list[Object]]] = field(default_factory=dict)

    def get(self, key: Key) -> Object:
        if key not in self.objects:
            raise ApiError(404, "NotFound", f'{key.kind.resource} "{key.name}" not found')
        return copy.deepcopy(self.objects[key])

    def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        made = copy.deepcopy(body)
        metadata = made.setdefault("metadata", {})
        if metadata.setdefault("namespace", namespace) != namespace:
            message = "the namespace of the provided object does not match the namespace sent on the request"
            raise ApiError(400, "BadRequest", message)
        if not namespace:
            del metadata["namespace"]
        if "name" not in metadata and "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if not metadata.get("name"):
            raise ApiError(422, "Invalid", "metadata.name: Required value: name or generateName is required")
        if metadata.get("resourceVersion"):
            raise ApiError(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        key = Key(kind, namespace, metadata["name"])
        if key in self.objects:
            raise ApiError(409, "AlreadyExists", f'{kind.resource} "{key.name}" already exists')
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata["creationTimestamp"] = _now()
        return self._keep(key, made)

    def update(self, key: Key, body: Object) -> Object:
        """Replace; a resourceVersion in `body` must be the object's."""
        old = self.get(key)["metadata"]
        new = copy.deepcopy(body)
        metadata = new.setdefault("metadata", {})
        if metadata.get("resourceVersion", old["resourceVersion"]) != old["resourceVersion"]:
            message = f'Operation cannot be fulfilled on {key.kind.resource} "{key.name}": the object has been modified'
            raise ApiError(409, "Conflict", message + "; please apply your changes to the latest version and try again")
        metadata |= {name: old[name] for name in ("uid", "creationTimestamp", "name") if name in old}
        if key.namespace:
            metadata["namespace"] = key.namespace
        metadata["resourceVersion"] = old["resourceVersion"]
        if new == self.objects[key]:
            return new  # nothing changed: no new version, and no watch is told
        return self._keep(key, new)

    def delete(self, key: Key) -> Object:
        old = self.get(key)
        self.version += 1
        del self.objects[key]
        # The deletion has a version of its own, and the object that is told carries it.
        last = copy.deepcopy(old)
        last["metadata"]["resourceVersion"] = str(self.version)
        self.history.append(Change(self.version, key.kind, last, None))
        return old

    def list(self, kind: Kind, namespace: str, match: Match, limit: int, token: str) -> Page:
        """One page; all of them are of the moment of the first."""
        if token:
            if token not in self._pages or self._pages[token][0] <= self.compacted:
                raise ApiError(410, "Expired", "The provided continue parameter is too old")
            version, items = self._pages[token]
        else:
            version = self.version
            items = [
                copy.deepcopy(each)
                for key, each in sorted(self.objects.items(), key=lambda item: (item[0].namespace, item[0].name))
                if key.kind == kind and namespace in ("", key.namespace) and match(each)
            ]
        if not limit or len(items) <= limit:
            return Page(items, version, None)
        more = uuid.uuid4().hex
        self._pages[more] = (version, items[limit:])
        return Page(items[:limit], version, more)

    def compact(self) -> None:
        """Forget the history and every list under way, as etcd does every five minutes."""
        self.compacted = self.version
        self.history.clear()

    def _keep(self, key: Key, new: Object) -> Object:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        old = self.objects.get(key)
        self.objects[key] = new
        self.history.append(Change(self.version, key.kind, old, copy.deepcopy(new)))
        return copy.deepcopy(new)


def told(change: Change, match: Match) -> Object | None:
    """What a watch with this selector says of a change: coming into the selection is ADDED, leaving it DELETED."""
    before = change.old is not None and match(change.old)
    if change.new is not None and match(change.new):
        return {"type": "MODIFIED" if before else "ADDED", "object": change.new}
    if not before or change.old is None:
        return None
    gone = copy.deepcopy(change.old)
    gone["metadata"]["resourceVersion"] = str(change.version)
    return {"type": "DELETED", "object": gone}


# What the API server lets one select pods by; everything else has its name and namespace.
_FIELDS = {
    "pods": {
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    }
}


def selector(kind: Kind, fields: str, labels: str) -> Match:
    """Read a field selector and a label selector (equality only)."""
    known = _FIELDS.get(kind.resource, set()) | {"metadata.name", "metadata.namespace"}
    terms = [_term(text) for text in fields.split(",") if text]
    for name, _, _ in terms:
        if name not in known:
            raise ApiError(400, "BadRequest", f"field label not supported: {name}")
    wanted = [_term(text) for text in labels.split(",") if text]

    def match(each: Object) -> bool:
        found = each["metadata"].get("labels") or {}
        return all((_at(each, name) == value) is equal for name, value, equal in terms) and all(
            (found.get(name) == value) is equal for name, value, equal in wanted
        )

    return match


def merge(old: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def apply_json_patch(old: Any, operations: list[Object]) -> Any:
    """A JSON patch (RFC 6902): add, remove, replace, test."""
    document = copy.deepcopy(old)
    for operation in operations:
        try:
            *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
            parent = document
            for part in path:
                parent = parent[int(part)] if isinstance(parent, list) else parent[part]
            _operate(parent, last, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ApiError(422, "Invalid", f"the server rejected our request: {operation}: {error!r}") from error
    return document


def _operate(parent: Any, last: str, operation: Object) -> None:
    act = operation["op"]
    place: Any = last
    if isinstance(parent, list):
        place = len(parent) if last == "-" else int(last)
    if act == "add" and isinstance(parent, list):
        parent.insert(place, operation["value"])
        return
    if act != "add":
        found = parent[place]  # it must be there
        if act == "test" and found != operation["value"]:
            raise ValueError("the test failed")
    if act in ("add", "replace"):
        parent[place] = operation["value"]
    elif act == "remove":
        del parent[place]
    elif act != "test":
        raise ValueError(f"no such operation: {act}")


def _term(text: str) -> tuple[str, str, bool]:
    if "!=" in text:
        name, _, value = text.partition("!=")
        return name, value, False
    name, _, value = text.replace("==", "=").partition("=")
    return name, value, True


def _at(each: Object, path: str) -> str:
    found: Any = each
    for part in path.split("."):
        found = found.get(part, "") if isinstance(found, Mapping) else ""
    return str(found)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
