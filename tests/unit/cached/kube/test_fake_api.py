"""The fake API server speaks as the real one is documented to: what the other tests rely on."""

from __future__ import annotations

from typing import Any

import pytest

from cached.contract.errors import Permanent, Transient
from cached.kube.client import Call, KubeClient
from cached.kube.errors import Conflict, Gone
from tests.support.fake_api import FakeApi
from tests.support.kube_shapes import make_pod

SECRETS = "/api/v1/namespaces/here/secrets"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
PODS = "/api/v1/pods"


async def test_whoever_writes_second_conflicts(client: KubeClient) -> None:
    """An update with an old resourceVersion, and a second creation, are conflicts; without a version the last wins."""
    made = await client.request(Call("POST", SECRETS, body={"metadata": {"name": "s"}, "data": {"a": "MQ=="}}))
    changed = await client.request(Call("PUT", f"{SECRETS}/s", body={**made, "data": {"a": "Mg=="}}))
    assert int(changed["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    with pytest.raises(Conflict):
        await client.request(Call("PUT", f"{SECRETS}/s", body=made))
    with pytest.raises(Conflict):
        await client.request(Call("POST", SECRETS, body={"metadata": {"name": "s"}}))
    await client.request(Call("PUT", f"{SECRETS}/s", body={"metadata": {"name": "s"}, "data": {}}))
    assert (await client.request(Call("GET", f"{SECRETS}/s")))["data"] == {}


async def test_patches_by_their_content_type(client: KubeClient) -> None:
    """JSON patches add, replace, remove and test; what is no patch is refused."""
    await client.request(Call("POST", HOOKS, body={"metadata": {"name": "h"}, "webhooks": [{"clientConfig": {}}]}))
    path = f"{HOOKS}/h"
    steps: Any = [
        {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "Q0E="},
        {"op": "test", "path": "/webhooks/0/clientConfig/caBundle", "value": "Q0E="},
    ]
    patch = Call("PATCH", path, body=steps, content_type="application/json-patch+json")
    assert (await client.request(patch))["webhooks"] == [{"clientConfig": {"caBundle": "Q0E="}}]
    failing: Any = [{"op": "test", "path": "/metadata/name", "value": "other"}]
    for body, kind in ((failing, "application/json-patch+json"), ({}, "application/json")):
        with pytest.raises(Permanent):
            await client.request(Call("PATCH", path, body=body, content_type=kind))


async def test_a_patch_that_changes_nothing_tells_nobody(api: FakeApi, client: KubeClient) -> None:
    """Writing what is there gives no new version."""
    made = api.create(SECRETS, {"metadata": {"name": "s"}})
    assert api.patch(f"{SECRETS}/s", {"metadata": {"name": "s"}})["metadata"] == made["metadata"]


async def test_a_watch_begins_after_its_version(api: FakeApi, client: KubeClient) -> None:
    """From a version come the changes after it; what comes into a selection is added, what leaves it deleted."""
    first = api.create("/api/v1/namespaces/a/pods", make_pod("p", "", namespace="a"))
    query = {
        "watch": "true",
        "resourceVersion": first["metadata"]["resourceVersion"],
        "fieldSelector": "spec.nodeName=n,status.phase!=Failed",
    }
    api.patch("/api/v1/namespaces/a/pods/p", {"spec": {"nodeName": "n"}})
    api.patch("/api/v1/namespaces/a/pods/p", {"status": {"phase": "Running"}})
    api.patch("/api/v1/namespaces/a/pods/p", {"status": {"phase": "Failed"}})
    api.delete("/api/v1/namespaces/a/pods/p")
    async with client.watch(Call("GET", PODS, query), 30) as events:
        seen = [await anext(events) for _ in range(3)]
        api.order_watchers("end")
        assert [event async for event in events] == []
    assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert versions == sorted(set(versions))


async def test_a_namespace_sees_its_own(api: FakeApi, client: KubeClient) -> None:
    """A list or a watch in a namespace has that namespace's objects alone."""
    query = {"watch": "true", "resourceVersion": "0"}
    async with client.watch(Call("GET", "/api/v1/namespaces/b/pods", query), 30) as events:
        api.create("/api/v1/namespaces/a/pods", make_pod("p", namespace="a"))
        api.create("/api/v1/namespaces/b/pods", make_pod("q", namespace="b"))
        assert (await anext(events))["object"]["metadata"]["name"] == "q"
    assert len((await client.request(Call("GET", "/api/v1/namespaces/b/pods")))["items"]) == 1
    assert len((await client.request(Call("GET", PODS)))["items"]) == 2


async def test_a_version_that_is_compacted_is_gone(api: FakeApi, client: KubeClient) -> None:
    """A watch from before a compaction, and a page of a list from before it, are 410."""
    for name in "abc":
        api.create("/api/v1/namespaces/default/pods", make_pod(name))
    page = await client.request(Call("GET", PODS, {"limit": "1"}))
    old = page["metadata"]["resourceVersion"]
    api.create("/api/v1/namespaces/default/pods", make_pod("d"))
    second = await client.request(Call("GET", PODS, {"limit": "1", "continue": page["metadata"]["continue"]}))
    assert (second["items"][0]["metadata"]["name"], second["metadata"]["resourceVersion"]) == ("b", old)
    api.compact()
    with pytest.raises(Gone):
        await client.request(Call("GET", PODS, {"continue": second["metadata"]["continue"]}))
    async with client.watch(Call("GET", PODS, {"watch": "true", "resourceVersion": old}), 30) as events:
        with pytest.raises(Gone):
            await anext(events)


async def test_what_the_api_does_not_know_is_refused(client: KubeClient) -> None:
    """An unknown field in a selector is a bad request, and a version of the future a timeout."""
    with pytest.raises(Permanent, match="field label not supported"):
        await client.request(Call("GET", PODS, {"fieldSelector": "spec.image=x"}))
    with pytest.raises(Transient):
        await client.request(Call("GET", PODS, {"resourceVersion": "999999"}))
