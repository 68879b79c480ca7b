"""The cluster: is the API reached, are the daemon's rights there, does the node's object say what the node has, and
does the injector answer.

Law: reads, and asks about rights (SelfSubjectAccessReview); creates nothing that stays.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cached.commands.shared.tree import list_held_versions
from cached.contract.annotations import CSI_LABEL, LABEL_PREFIX, weights_label
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.program.units import format_count
from cached.doctor.blocking import run_in_thread
from cached.doctor.findings import CheckResult, failed, of_error, ok, skipped, warning
from cached.kube.client import METADATA, Call, KubeClient
from cached.kube.kubeconfig import find_cluster

_NEEDED = (
    ("", "pods", ("get", "list", "watch")),
    ("", "events", ("create", "patch")),
    ("", "nodes", ("get", "patch")),
)
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/holdfast-injector"
_INJECTOR, _PORT = "holdfast-injector", 443
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_SOON_DAYS = 14


async def check_cluster(kube: str, node: str, layout: Layout, timeout_s: float) -> AsyncIterator[CheckResult]:
    """Yield what is found about the cluster of KUBECONFIG, or that this runs in. `kube`: the daemon's `--kube`."""
    area = "kubernetes"
    try:
        found = None if kube == "off" else find_cluster(os.environ)
    except HoldfastError as error:
        yield of_error(area, error)
        return
    if found is None:
        yield skipped(area, "no cluster: --kube off, or neither KUBECONFIG nor a pod's service account is here")
        return
    try:
        async with KubeClient(found, timeout_s) as client:
            async for finding in _check_node(client, node, layout):
                yield finding
            async for finding in _check_rights(client):
                yield finding
            yield await _check_webhook(client)
    except HoldfastError as error:
        yield of_error(area, error)
    namespace = _find_own_namespace()
    if namespace is not None:
        yield await _check_injector(namespace, timeout_s)


def _find_own_namespace() -> str | None:
    """Return the namespace of the pod that this runs in, which is Holdfast's; None outside of a pod."""
    try:
        return _NAMESPACE.read_text().strip()
    except OSError:
        return None


async def _check_node(client: KubeClient, node: str, layout: Layout) -> AsyncIterator[CheckResult]:
    area = "node object"
    try:
        document = await client.request(Call("GET", f"/api/v1/nodes/{node}", accept=METADATA))
    except HoldfastError as error:
        yield failed(area, f"{node}: {error.message}", f"name the node with --node or HOLDFAST_NODE; {error.remedy}")
        return
    yield ok("kubernetes", f"the API answers, node {node} is there")
    labels = document.get("metadata", {}).get("labels") or {}
    there = {name for name in labels if name.startswith(LABEL_PREFIX) and name != CSI_LABEL}
    try:
        held = {weights_label(version.digest) for version in list_held_versions(layout.public)}
    except OSError as error:
        text = f"its labels are not compared: {error.filename or layout.public.path}: {error.strerror}"
        yield skipped(area, text, "run it as the daemon's user")
        return
    if missing := held - there:
        lacking = f"no label for {len(missing)} of {format_count(len(held), 'version')} here"
        text = f"{lacking}: pods are not drawn to this node by them"
        yield warning(area, text, "the daemon writes them: see whether it runs, and its right to patch its node")
    if extra := there - held:
        text = f"{format_count(len(extra), 'label')} of versions that are not here: {', '.join(sorted(extra)[:2])}"
        yield warning(
            area, text, "the daemon removes them within minutes; if it runs no more, `kubectl label node` does"
        )
    if not missing and not extra:
        yield ok(area, f"its labels are those of the {format_count(len(held), 'snapshot')} here")


async def _check_rights(client: KubeClient) -> AsyncIterator[CheckResult]:
    area = "rights"
    asked = [(group, resource, verb) for group, resource, verbs in _NEEDED for verb in verbs]
    try:
        answers = await asyncio.gather(*(_may(client, *each) for each in asked))
    except HoldfastError as error:
        yield skipped(area, f"not told: {error.message}", error.remedy)
        return
    lacking = [f"{verb} {resource}" for (_, resource, verb), may in zip(asked, answers, strict=True) if not may]
    if lacking:
        yield failed(area, f"the service account may not {', '.join(lacking)}", "apply the ClusterRole holdfast-daemon")
    else:
        yield ok(area, "pods, events and its node: all that the daemon asks for")


async def _may(client: KubeClient, group: str, resource: str, verb: str) -> bool:
    spec = {"resourceAttributes": {"group": group, "resource": resource, "verb": verb}}
    kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    answer = await client.request(Call("POST", _REVIEWS, body={**kind, "spec": spec}))
    return bool(answer.get("status", {}).get("allowed"))


async def _check_webhook(client: KubeClient) -> CheckResult:
    """Return whether the webhook is registered with a certificate, where this account may read that."""
    area = "webhook"
    try:
        document: Mapping[str, Any] = await client.request(Call("GET", _WEBHOOKS))
    except HoldfastError as error:
        if error.code == "kube_forbidden":
            text = "its configuration is not read: the daemon's account has no right to it"
            return skipped(area, text, "`kubectl get mutatingwebhookconfiguration holdfast-injector`, with more rights")
        if error.code == "kube_not_found":
            text = "no MutatingWebhookConfiguration holdfast-injector: annotated pods get no gate from it"
            return skipped(area, text, "apply manifests/, unless the overlay `policy` injects in its place")
        return of_error(area, error)
    hooks = document.get("webhooks") or []
    if not all(hook.get("clientConfig", {}).get("caBundle") for hook in hooks) or not hooks:
        return failed(area, "its configuration has no caBundle", "the injector adds it: read its log")
    return ok(area, "registered, with a certificate authority")


async def _check_injector(namespace: str, timeout_s: float) -> CheckResult:
    """Return whether the injector's service answers with a certificate that lasts; any client may ask."""
    area, host = "webhook", f"{_INJECTOR}.{namespace}.svc"
    try:
        ends = await run_in_thread(partial(_read_expiry, host, timeout_s), timeout_s)
    except socket.gaierror as error:
        remedy = (
            f"the overlay `policy` has none; else `kubectl -n {namespace} get service {_INJECTOR}`, and see the DNS"
        )
        return skipped(area, f"{host} is not found by its name: {error.strerror}", remedy)
    except (OSError, TimeoutError) as error:
        text = f"{host}:{_PORT} does not answer from here: {error or 'no answer in time'}"
        remedy = f"a network policy may forbid it; `kubectl -n {namespace} get pods` shows the injector"
        return skipped(area, text, remedy)
    if ends is None:
        return ok(area, "the injector answers; its certificate is not read without the package cryptography")
    days = (ends - datetime.now(UTC)).total_seconds() / 86400
    if days < 0:
        return failed(area, "the injector's certificate has expired", "restart the injector, and read its log")
    if days < _SOON_DAYS:
        return warning(area, f"the injector's certificate ends in {days:.0f} days", "it renews it: read its log")
    return ok(area, f"the injector answers; its certificate lasts {days:.0f} days")


def _read_expiry(host: str, timeout_s: float) -> datetime | None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent; the API server verifies it
    plain = socket.create_connection((host, _PORT), timeout_s)
    with plain, context.wrap_socket(plain, server_hostname=host) as tls:
        data = tls.getpeercert(binary_form=True)
    try:
        from cryptography import x509
    except ImportError:
        return None
    return x509.load_der_x509_certificate(data or b"").not_valid_after_utc
