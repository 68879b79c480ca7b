"""What the API's requests and answers look like: paths, selectors in queries, patches, and objects as `Accept` asks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tests.support.kube_store import ApiError, Key, Kind, Match, Object, apply_json_patch, merge, selector

_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<rest>.+)"
)
_KINDS = {
    "mutatingwebhookconfigurations": "MutatingWebhookConfiguration",
    "configmaps": "ConfigMap",
    "serviceaccounts": "ServiceAccount",
}
_LONGEST_EVENT_MESSAGE = 1024


def make_pod(
    name: str,
    node: str = "",
    annotations: Mapping[str, str] | None = None,
    *,
    namespace: str = "default",
    phase: str = "Pending",
) -> Object:
    """A pod as the API server would store it, less what is not read here."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": dict(annotations or {}),
            "labels": {"app": name},
            "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsType": "FieldsV1"}],
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "server", "image": "example/server:1", "env": [{"name": "A", "value": "b" * 200}]}],
        },
        "status": {"phase": phase},
    }


def resource_of(path: str) -> tuple[Kind, str, str]:
    """The kind, namespace and name that a path means."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    resource, _, name = found["rest"].partition("/")
    return Kind(found["core"] or found["group"], resource), found["namespace"] or "", name.removesuffix("/status")


def key_of(path: str) -> Key:
    return Key(*resource_of(path))


def selected(request: web.Request, kind: Kind) -> Match:
    return selector(kind, request.query.get("fieldSelector", ""), request.query.get("labelSelector", ""))


def patched(content_type: str, old: Object, body: Any) -> Object:
    if content_type == "application/json-patch+json":
        result: Object = apply_json_patch(old, body)
        return result
    if content_type in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
        result = merge(old, body)  # the two differ in lists only
        return result
    raise ApiError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {content_type}")


def validate(kind: Kind, namespace: str, body: Object) -> None:
    if kind.resource != "events":
        return
    if body["involvedObject"].get("namespace") != namespace:
        raise ApiError(422, "Invalid", "involvedObject.namespace: Invalid value: does not match event.namespace")
    if len(body.get("message", "")) > _LONGEST_EVENT_MESSAGE:
        raise ApiError(422, "Invalid", f"message: Invalid value: can have at most {_LONGEST_EVENT_MESSAGE} characters")


def kind_name(kind: Kind) -> str:
    return _KINDS.get(kind.resource, kind.resource.removesuffix("s").capitalize())


def shown(answer: Object, request: web.Request) -> Object:
    """The answer as the request's Accept asks for it."""
    accept = request.headers.get("Accept", "")
    if "as=PartialObjectMetadataList" in accept and "items" in answer:
        items = [metadata_of(each) for each in answer["items"]]
        return {**answer, "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "items": items}
    if "items" in answer:
        return answer
    if "as=PartialObjectMetadata;" in accept:
        return metadata_of(answer)
    kind, _, _ = resource_of(request.path)
    return {"kind": kind_name(kind), "apiVersion": kind.group_version, **answer}


def metadata_of(each: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": each["metadata"]}


def line(request: web.Request, kind: Kind, event: Object) -> bytes:
    whole = {"kind": kind_name(kind), "apiVersion": kind.group_version, **event["object"]}
    partial = "as=PartialObjectMetadata;" in request.headers.get("Accept", "")
    return json.dumps({"type": event["type"], "object": metadata_of(whole) if partial else whole}).encode() + b"\n"


def answer_json(code: int, body: Object) -> web.Response:
    return web.json_response(body, status=code)
