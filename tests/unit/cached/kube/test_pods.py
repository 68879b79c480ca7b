"""The pod watch: what the node's pods want, through everything that can happen to a watch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.kube.client import KubeClient
from cached.kube.cluster import ApiServer
from cached.kube.pods import PodName, PodWatch, WatchPace
from cached.node.cluster import PodLife
from tests.support.fake_api import FakeApi
from tests.support.kube_shapes import make_pod

PODS = "/api/v1/namespaces/default/pods"
QUICK = WatchPace(backoff_s=0.01, backoff_cap_s=0.05)
LLAMA = {"holdfast.dev/model": "llama", "holdfast.dev/version": "v3"}
A = Digest("a" * 64)


class Seen:
    """A watch, how often it said that something changed, and whom it refused."""

    def __init__(self, client: KubeClient, pace: WatchPace = QUICK) -> None:
        self.changes = 0
        self.refused: list[tuple[PodName, Permanent]] = []
        self.watch = PodWatch(client, "node1", lambda pod, error: self.refused.append((pod, error)), pace)

    def changed(self) -> None:
        self.changes += 1

    def wants(self) -> list[str]:
        return sorted(f"{want.pod} {want.ref}" for want in self.watch.list_wants())

    def run(self) -> Any:
        return self.watch.run(self.changed)


def lists(api: FakeApi) -> list[dict[str, str]]:
    return [dict(each.query) for each in api.asked if each.path == "/api/v1/pods" and "watch" not in each.query]


def watches(api: FakeApi) -> list[dict[str, str]]:
    return [dict(each.query) for each in api.asked if "watch" in each.query]


async def test_the_pods_of_this_node_want_what_they_are_annotated_with(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """Annotated pods bound to this node want their versions; others, finished ones, and plain pods want nothing."""
    several = {"holdfast.dev/models": "base=llama@v3,lora@v7", "holdfast.dev/digest": f"base={A}"}
    pod = api.create(PODS, make_pod("two", "node1", several))
    api.create(PODS, make_pod("elsewhere", "node2", LLAMA))
    api.create(PODS, make_pod("unbound", "", LLAMA))
    api.create(PODS, make_pod("plain", "node1"))
    api.create(PODS, make_pod("done", "node1", LLAMA, phase="Succeeded"))
    api.create(PODS, make_pod("failed", "node1", LLAMA, phase="Failed"))
    seen = Seen(client)
    assert not seen.watch.synced
    async with running(seen.run()):
        await until(lambda: seen.watch.synced, "the first list")
        uid = pod["metadata"]["uid"]
        assert [(w.uid, w.pod, str(w.ref), w.pin) for w in seen.watch.list_wants()] == [
            (uid, "default/two", "llama@v3", A),
            (uid, "default/two", "lora@v7", None),
        ]
        name = PodName(uid, "default", "two")
        assert seen.watch.find_name(uid) == name
        assert seen.watch.find_pods(ModelRef("lora", "v7")) == (name,)
        assert seen.watch.find_pods(ModelRef("lora", "v8")) == ()
        assert seen.changes >= 1


async def test_a_pod_wants_from_its_binding_to_its_end(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """A pod's want begins when it is bound, long before its containers, and ends when its deletion begins."""
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        api.create(PODS, make_pod("p", "", LLAMA))
        api.patch(f"{PODS}/p", {"spec": {"nodeName": "node1"}})
        await until(lambda: seen.wants() == ["default/p llama@v3"], "the want of a bound pod")
        api.patch(f"{PODS}/p", {"metadata": {"deletionTimestamp": "2026-11-20T00:00:00Z"}})
        await until(lambda: seen.wants() == [], "no want of a pod being deleted")
        api.delete(f"{PODS}/p")
        api.create(PODS, make_pod("p", "node1", LLAMA))
        await until(lambda: len(seen.wants()) == 1, "the want of the next pod of that name")
        api.patch(f"{PODS}/p", {"status": {"phase": "Succeeded"}})
        await until(lambda: seen.wants() == [], "no want of a finished pod")


async def test_every_pod_of_the_node_is_known_to_live(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """Whether a pod lives is known of all pods of the node, annotated or not, by its object's uid and by that which
    the kubelet uses, which a static pod has in an annotation. Without any pod nothing is known: the daemon's own one is
    on its node."""
    seen = Seen(client)
    assert seen.watch.find_life("any") is PodLife.UNKNOWN
    api.create(PODS, make_pod("elsewhere", "node2"))
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        assert seen.watch.find_life("any") is PodLife.UNKNOWN
        api.create(PODS, make_pod("daemon", "node1"))
        uid = str(api.create(PODS, make_pod("plain", "node1"))["metadata"]["uid"])
        static = api.create(PODS, make_pod("static", "node1", {"kubernetes.io/config.mirror": "hash"}))
        await until(lambda: seen.watch.find_life("hash") is PodLife.ALIVE, "the static pod")
        assert seen.watch.find_life(static["metadata"]["uid"]) is PodLife.ALIVE
        assert seen.watch.find_life(uid) is PodLife.ALIVE
        assert seen.watch.find_life("any") is PodLife.ABSENT
        api.patch(f"{PODS}/plain", {"metadata": {"deletionTimestamp": "2026-11-20T00:00:00Z"}})
        await until(lambda: seen.watch.find_life(uid) is PodLife.ENDING, "a pod that is deleted")
        api.delete(f"{PODS}/plain")
        await until(lambda: seen.watch.find_life(uid) is PodLife.ABSENT, "its end")
    again = Seen(client)
    async with running(again.run()):
        await until(lambda: again.watch.find_life("hash") is PodLife.ALIVE, "what a list has")
    assert seen.changes == 1


async def test_a_pod_without_a_grace_period_ends_at_once(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """A pod that is deleted without notice wants nothing any more."""
    api.create(PODS, make_pod("p", "node1", LLAMA))
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: seen.wants(), "the want")
        api.delete(f"{PODS}/p")
        await until(lambda: not seen.wants(), "its end")


async def test_what_does_not_change_a_want_wakes_nobody(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """A pod's changes of status, and plain pods, are taken in without a call of `changed`."""
    api.create(PODS, make_pod("p", "node1", LLAMA))
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        before = seen.changes
        api.patch(f"{PODS}/p", {"status": {"phase": "Running"}})
        api.create(PODS, make_pod("plain", "node1"))
        await until(lambda: seen.watch.statistics.events >= 2, "the events")
        assert seen.changes == before
        api.patch(f"{PODS}/p", {"metadata": {"annotations": {"holdfast.dev/version": "v4"}}})
        await until(lambda: seen.wants() == ["default/p llama@v4"], "the new version")
        assert seen.changes == before + 1


async def test_bad_annotations_are_told_once_and_want_nothing(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """A pod that asks wrongly is refused once, over status changes and relists, and others are not disturbed."""
    api.create(PODS, make_pod("bad", "node1", {"holdfast.dev/model": "llama"}))
    api.create(PODS, make_pod("good", "node1", LLAMA))
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        api.patch(f"{PODS}/bad", {"status": {"phase": "Running"}})
        await until(lambda: seen.watch.statistics.events >= 1, "the event")
        api.order_watchers("error 410")
        await until(lambda: seen.watch.statistics.lists == 2, "a relist")
        assert [(str(pod), error.code) for pod, error in seen.refused] == [("default/bad", "invalid_annotations")]
        assert seen.wants() == ["default/good llama@v3"]


async def test_only_metadata_is_asked_for(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """Neither list nor watch brings pods' specs over the network."""
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
    assert all("PartialObjectMetadata" in each.headers["Accept"] for each in api.asked)
    assert lists(api)[0]["resourceVersion"] == "0"
    watch = watches(api)[0]
    assert watch["allowWatchBookmarks"] == "true"
    assert 240 <= int(watch["timeoutSeconds"]) <= 300


@pytest.mark.parametrize("order", ["end", "drop", "error 500", "garbage"])
async def test_a_watch_that_ends_goes_on_where_it_was(
    api: FakeApi, client: KubeClient, running: Any, until: Any, order: str
) -> None:
    """After an end, a reset, an error or nonsense the watch goes on from its last version: no change is missed, no list
    is needed."""
    api.create(PODS, make_pod("p", "node1", LLAMA))
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        api.order_watchers("bookmark")
        await until(lambda: seen.watch.statistics.events, "the bookmark")
        last = str(api.store.version)
        api.hang("GET", "^/api/v1/pods$")
        api.order_watchers(order)
        await until(lambda: len(watches(api)) == 2, "a watch that does not stand")
        api.delete(f"{PODS}/p")
        api.drop_hanging()
        await until(lambda: not seen.wants(), "the change made since")
        assert len(lists(api)) == 1
        assert {query["resourceVersion"] for query in watches(api)[1:]} == {last}


async def test_a_silent_watch_is_given_up(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """A peer that hangs is left after a silence, and nothing is missed."""
    seen = Seen(client, replace(QUICK, stall_s=0.2))
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        api.order_watchers("mute")
        api.create(PODS, make_pod("p", "node1", LLAMA))
        await until(lambda: seen.wants(), "the change that was not told")


@pytest.mark.parametrize("gone_as", ["event", "status"])
async def test_a_version_too_old_lists_again(
    api: FakeApi, client: KubeClient, running: Any, until: Any, gone_as: str
) -> None:
    """410, as a status or an event, leads to a consistent list, whose difference takes effect: deletions too."""
    api.gone_as = gone_as
    api.create(PODS, make_pod("old", "node1", LLAMA))
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        api.drop("GET", "^/api/v1/pods$", times=float("inf"))
        api.order_watchers("drop")
        await until(lambda: not seen.watch.statistics.connected, "the loss")
        api.delete(f"{PODS}/old")
        api.create(PODS, make_pod("new", "node1", LLAMA))
        api.compact()
        api.heal()
        await until(lambda: seen.wants() == ["default/new llama@v3"], "the list's difference")
    assert "resourceVersion" not in lists(api)[-1]
    assert seen.watch.statistics.lists == 2


async def test_bookmarks_save_the_list(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """A bookmark moves the version, so that a compaction of what is before it costs nothing."""
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        for number in range(5):
            api.create(PODS, make_pod(f"elsewhere-{number}", "node2"))
        api.compact()
        api.order_watchers("bookmark")
        await until(lambda: seen.watch.statistics.events, "the bookmark")
        api.order_watchers("end")
        await until(lambda: len(watches(api)) == 2 and api.watchers, "the next watch")
        api.create(PODS, make_pod("p", "node1", LLAMA))
        await until(lambda: seen.wants(), "the change")
    assert len(lists(api)) == 1


async def test_a_lost_api_keeps_what_is_known_and_says_so(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """While the API is away the pods known last stay in force, and the statistics say since when."""
    api.create(PODS, make_pod("p", "node1", LLAMA))
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: seen.watch.statistics.connected, "the connection")
        since = seen.watch.statistics.since
        api.drop("GET", ".", times=float("inf"))
        api.order_watchers("drop")
        await until(lambda: seen.watch.statistics.failures >= 3, "failures")
        statistics = seen.watch.statistics
        assert not statistics.connected
        assert statistics.since >= since
        assert (seen.watch.synced, seen.wants()) == (True, ["default/p llama@v3"])
        api.heal()
        await until(lambda: seen.watch.statistics.connected, "the connection again")
    assert len(lists(api)) == 1


@pytest.mark.parametrize("code", [401, 403, 429, 500])
async def test_a_refused_list_is_tried_again(
    api: FakeApi, client: KubeClient, running: Any, until: Any, code: int
) -> None:
    """Whatever the API answers at first, missing rights too, the watch goes on trying: rights are given later."""
    api.refuse("GET", "pods", code, times=3)
    seen = Seen(client)
    async with running(seen.run()):
        await until(lambda: seen.watch.synced, "the first list")
    assert len(lists(api)) == 4


async def test_a_token_that_rotates_is_not_noticed(tmp_path: Path, running: Any, until: Any) -> None:
    """When the token changes between two requests, the watch goes on without a failure."""
    file = tmp_path / "token"
    file.write_text("one")
    with FakeApi(tokens={"one"}) as api:
        async with KubeClient(ApiServer(api.url, token=file)) as client:
            seen = Seen(client)
            async with running(seen.run()):
                await until(lambda: api.watchers, "a watch")
                file.write_text("two")
                api.tokens = {"two"}
                api.order_watchers("end")
                await until(lambda: len(watches(api)) == 2 and api.watchers, "the next watch")
            assert seen.watch.statistics.failures == 0


async def test_a_list_comes_in_pages(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """A consistent list is read page by page, and all of it counts."""
    for number in range(7):
        api.create(PODS, make_pod(f"p{number}", "node1", LLAMA))
    seen = Seen(client, replace(QUICK, page=3))
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        api.order_watchers("error 410")
        await until(lambda: seen.watch.statistics.lists == 2, "a relist")
        assert len(seen.wants()) == 7
    assert ["continue" in query for query in lists(api)] == [False, False, True, True]


async def test_pages_that_expire_are_read_at_once(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """When the API forgets a list half-way, it is asked for in one piece."""
    for number in range(5):
        api.create(PODS, make_pod(f"p{number}", "node1", LLAMA))
    seen = Seen(client, replace(QUICK, page=2))
    async with running(seen.run()):
        await until(lambda: api.watchers, "a watch")
        api.expire_pages = True
        api.order_watchers("error 410")
        await until(lambda: seen.watch.statistics.lists == 2, "a relist")
        assert len(seen.wants()) == 5
    assert "limit" not in lists(api)[-1]
