"""Admission reviews over HTTP: `admission.k8s.io/v1`, as the API server's documentation of webhooks describes it.

Law: one review in, one response out, no state, so that a dry run needs no care. An invalid request of a pod is denied
with what to write instead; only an input that is no review is an HTTP error.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program.logs import about
from sidecar.injector.catalog_view import NO_CATALOG, CatalogView
from sidecar.injector.pod.gate_container import Json
from sidecar.injector.pod.patch import ClusterDefaults, Patch, patch_pod
from sidecar.injector.pod.schema import check_pod

_log = logging.getLogger(__name__)
_API_VERSION = "admission.k8s.io/v1"
_MAX_REVIEW_BYTES = 8 << 20  # the API server takes requests of 3 MiB, and a review may hold two objects
_PODS = {"group": "", "version": "v1", "resource": "pods"}


@dataclass(frozen=True, slots=True)
class ReviewResponse:
    """The response; `result` is for the metrics: `injected`, `unchanged` or `denied`."""

    result: str
    body: bytes


class Reviewer:
    """Answers reviews; `catalog` is the current catalog, and `driver_nodes` are the nodes with the CSI driver."""

    def __init__(self, defaults: ClusterDefaults, driver_nodes: Callable[[], AbstractSet[str]]) -> None:
        self._defaults = defaults
        self._driver_nodes = driver_nodes
        self.catalog: CatalogView = NO_CATALOG

    def review(self, body: bytes) -> ReviewResponse:
        """Answer one AdmissionReview; raises `Permanent` (`invalid_review`) where it is none."""
        request = _request(body)
        uid = request["uid"]
        if request.get("operation") != "CREATE" or request.get("resource") != _PODS or request.get("subResource"):
            return _allowed(uid, Patch())
        pod = request.get("object")
        if not isinstance(pod, dict) or not isinstance(pod.get("spec"), dict):
            raise _invalid("`object` is no pod")
        check_pod(pod)
        try:
            patch = patch_pod(pod, _namespace(request, pod), self._defaults, self.catalog, self._driver_nodes())
        except HoldfastError as error:
            _log.info(
                "denied a pod in %s: %s", request.get("namespace"), error, extra=about(pod=_name_of(request, pod))
            )
            return _denied(uid, error)
        return _allowed(uid, patch)


def review_application(reviewer: Reviewer, count: Callable[[str, float], None]) -> web.Application:
    """Return the webhook's server; `count` receives each result (also `invalid`) and its seconds."""
    app = web.Application(client_max_size=_MAX_REVIEW_BYTES)

    async def mutate(request: web.Request) -> web.Response:
        body = await request.read()
        started = time.perf_counter()
        try:
            reviewed = reviewer.review(body)
        except Permanent as error:
            count("invalid", time.perf_counter() - started)
            _log.warning("%s", error)
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")
        count(reviewed.result, time.perf_counter() - started)
        return web.Response(body=reviewed.body, content_type="application/json")

    app.router.add_post("/mutate", mutate)
    return app


def _request(body: bytes) -> Json:
    try:
        review = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid("not JSON") from error
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise _invalid("not an AdmissionReview")
    if review.get("apiVersion") != _API_VERSION:
        raise _invalid(f"apiVersion is {str(review.get('apiVersion'))[:100]!r}")
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise _invalid("no `request` with a `uid`")
    return request


def _namespace(request: Json, pod: Json) -> str:
    """Return the namespace that the API server creates the pod in, which the pod itself need not say."""
    namespace = request.get("namespace") or (pod.get("metadata") or {}).get("namespace")
    if not isinstance(namespace, str):
        raise _invalid("no `request.namespace`")
    return namespace


def _name_of(request: Json, pod: Json) -> str:
    """Return the pod's name, of one that the API server has yet to name its beginning."""
    metadata = pod.get("metadata") or {}
    return f"{request.get('namespace')}/{metadata.get('name') or metadata.get('generateName') or ''}"


def _allowed(uid: str, patch: Patch) -> ReviewResponse:
    response: Json = {"uid": uid, "allowed": True}
    if patch.operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(patch.operations).encode()).decode()
    if patch.warnings:
        response["warnings"] = list(patch.warnings)
    return ReviewResponse("injected" if patch.operations else "unchanged", _encode(response))


def _denied(uid: str, error: HoldfastError) -> ReviewResponse:
    status = {
        "status": "Failure",
        "code": HTTPStatus.UNPROCESSABLE_ENTITY.value,
        "reason": "Invalid",
        "message": f"{error.message}. What to do: {error.remedy}",
    }
    return ReviewResponse("denied", _encode({"uid": uid, "allowed": False, "status": status}))


def _encode(response: Json) -> bytes:
    return json.dumps({"apiVersion": _API_VERSION, "kind": "AdmissionReview", "response": response}).encode()


def _invalid(problem: str) -> Permanent:
    return Permanent(
        "invalid_review",
        f"expected an AdmissionReview of {_API_VERSION}: {problem}",
        "the webhook configuration's admissionReviewVersions must be [v1]",
    )
