"""The node's labels and summary: what is written follows what was last asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cached.contract.annotations import CSI_LABEL
from cached.contract.digest import Digest
from cached.kube.client import KubeClient
from cached.kube.node import NodePace, NodeReport
from tests.support.fake_api import FakeApi

NODE = "/api/v1/nodes/node1"
A, B, C = (Digest(letter * 64) for letter in "abc")
QUICK = NodePace(backoff_s=0.01, backoff_cap_s=0.05)


def label(digest: Digest) -> str:
    return f"weights.holdfast.dev/{digest.hex[:40]}"


def make(api: FakeApi, more: dict[str, str] | None = None) -> None:
    api.create("/api/v1/nodes", {"metadata": {"name": "node1", "labels": {"gpu": "h100", **(more or {})}}})


def labels(api: FakeApi) -> dict[str, str]:
    found: dict[str, str] = api.get(NODE)["metadata"]["labels"]
    return found


def summary(api: FakeApi) -> str | None:
    found: str | None = api.get(NODE)["metadata"].get("annotations", {}).get("holdfast.dev/summary")
    return found


def patches(api: FakeApi) -> list[Any]:
    return [each.body["metadata"] for each in api.asked if each.method == "PATCH"]


def nobody() -> None:
    """For tests that do not look at foreign labels."""


async def test_what_is_published_is_labelled(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """Every published snapshot has its label, with the value that the injector's affinity asks for; others stay."""
    make(api)
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        report.publish(frozenset({A, B}))
        await until(lambda: len(labels(api)) == 3, "the labels")
        assert labels(api) == {"gpu": "h100", label(A): "ready", label(B): "ready"}
        report.publish(frozenset({B}))
        await until(lambda: label(A) not in labels(api), "the label's end")
        await until(lambda: report.in_force, "a report in force")
        assert len(patches(api)) == 2


async def test_at_start_labels_are_reconciled(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """Labels of snapshots that are gone go, wrong values are corrected, and no other's label is touched."""
    make(api, {label(A): "ready", label(B): "broken", "other/x": "1"})
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        report.publish(frozenset({B, C}))
        await until(lambda: label(C) in labels(api), "the labels")
    assert labels(api) == {"gpu": "h100", "other/x": "1", label(B): "ready", label(C): "ready"}
    assert patches(api) == [{"labels": {label(A): None, label(B): "ready", label(C): "ready"}}]


async def test_a_node_that_mounts_volumes_is_labelled(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """The label of a node that mounts volumes is no snapshot's: publications leave it alone, and its removal is
    waited for. One that a killed daemon left goes at the next start."""
    make(api, {CSI_LABEL: "ready"})
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        report.publish(frozenset({A}))
        await until(lambda: label(A) in labels(api), "the labels")
        assert CSI_LABEL not in labels(api)
        await report.report_csi(ready=True)
        await until(lambda: labels(api).get(CSI_LABEL) == "ready", "the label")
        report.publish(frozenset({B}))
        await until(lambda: label(B) in labels(api), "the next labels")
        assert labels(api) == {"gpu": "h100", label(B): "ready", CSI_LABEL: "ready"}
        await report.report_csi(ready=False)
        assert CSI_LABEL not in labels(api)


async def test_before_the_store_is_known_no_label_is_judged(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """A daemon that has not told yet what it holds removes nothing."""
    make(api, {label(A): "ready"})
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        await until(lambda: report.labels, "a look at the node")
        report.summarise("x")
        await until(lambda: summary(api) == "x", "the summary")
    assert labels(api)[label(A)] == "ready"


async def test_a_label_is_withdrawn_before_the_deletion(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """Inside the block the API has confirmed that the label is gone, and no publication of others brings it back."""
    make(api)
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        report.publish(frozenset({A}))
        await until(lambda: label(A) in labels(api) and report.in_force, "the label")
        async with report.withdrawn(A) as confirmed:
            assert confirmed
            assert label(A) not in labels(api)
            report.publish(frozenset({A, B}))
            await until(lambda: label(B) in labels(api), "the other's label")
            assert label(A) not in labels(api)
            report.publish(frozenset({B}))
        await until(lambda: report.in_force, "a report in force")
        assert label(A) not in labels(api)


async def test_a_deletion_that_did_not_happen_gives_the_label_back(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """A snapshot that turns out to be in use is labelled again, also when two deletions of it overlapped."""
    make(api)
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        report.publish(frozenset({A}))
        await until(lambda: label(A) in labels(api) and report.in_force, "the label")
        async with report.withdrawn(A):
            async with report.withdrawn(A):
                assert label(A) not in labels(api)
            await until(lambda: report.in_force, "a report in force")
            assert label(A) not in labels(api)
        await until(lambda: label(A) in labels(api), "the label again")


async def test_a_deletion_does_not_wait_for_a_lost_api(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """Where the API does not answer, the deletion goes on, and the label goes when the API is back."""
    make(api)
    report = NodeReport(client, "node1", replace(QUICK, withdraw_s=0.05))
    async with running(report.run(nobody)):
        report.publish(frozenset({A, B}))
        await until(lambda: label(A) in labels(api) and report.in_force, "the labels")
        api.hang("PATCH", NODE)
        async with report.withdrawn(A) as confirmed:
            assert not confirmed
            report.publish(frozenset({B}))
        assert label(A) in labels(api)
        api.drop("PATCH", NODE, times=3)
        api.drop_hanging()
        await until(lambda: label(A) not in labels(api), "the label's end")
        assert label(B) in labels(api)


async def test_before_the_first_answer_nothing_is_waited_for(client: KubeClient) -> None:
    """A daemon that never reached the API evicts at once."""
    report = NodeReport(client, "node1", replace(QUICK, withdraw_s=1e9))
    async with report.withdrawn(A) as confirmed:
        assert not confirmed


async def test_a_refused_patch_is_tried_again(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """Missing rights, conflicts and overload do not lose what was asked for."""
    make(api)
    for code in (403, 409, 429, 500):
        api.refuse("PATCH", NODE, code)
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        report.publish(frozenset({A}))
        await until(lambda: label(A) in labels(api), "the label")
        await until(lambda: report.in_force, "a report in force")
        assert report.failures == 4


async def test_labels_that_somebody_removed_come_back(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """Every look at the node compares; what other labels it has is told to the parts that select by them."""
    make(api)
    changes: list[int] = []
    report = NodeReport(client, "node1", replace(QUICK, refresh_s=0.02))
    async with running(report.run(lambda: changes.append(1))):
        report.publish(frozenset({A}))
        await until(lambda: label(A) in labels(api), "the label")
        assert (len(changes), report.labels["gpu"]) == (1, "h100")
        api.patch(NODE, {"metadata": {"labels": {label(A): None}}})
        await until(lambda: label(A) in labels(api), "the label again")
        assert len(changes) == 1
        api.patch(NODE, {"metadata": {"labels": {"gpu": "b200"}}})
        await until(lambda: len(changes) == 2, "the news")
        assert report.labels["gpu"] == "b200"


async def test_the_summary_is_written_seldom(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """The first summary is written at once, and before its time has come no other."""
    make(api)
    report = NodeReport(client, "node1", replace(QUICK, summary_s=1e6))
    async with running(report.run(nobody)):
        for number in range(5):
            report.summarise(str(number))
            await until(lambda: report.in_force, "a look at what is asked for")
    assert [each["annotations"]["holdfast.dev/summary"] for each in patches(api)] == ["0"]


async def test_the_last_summary_is_written_in_time(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """A summary that had to wait is written when its time has come, unasked; the same is not repeated."""
    make(api)
    report = NodeReport(client, "node1", replace(QUICK, summary_s=0.05))
    async with running(report.run(nobody)):
        report.summarise("first")
        await until(lambda: summary(api) == "first", "the first")
        report.summarise("last")
        await until(lambda: summary(api) == "last", "the last")
        report.summarise("last")
        await until(lambda: report.in_force, "a report in force")
    assert len(patches(api)) == 2


async def test_only_metadata_of_the_own_node_is_touched(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """Get and patch of the own node are all the rights this needs, and nodes' long statuses stay where they are."""
    make(api)
    report = NodeReport(client, "node1", QUICK)
    async with running(report.run(nobody)):
        report.publish(frozenset({A}))
        await until(lambda: label(A) in labels(api), "the label")
    assert {(each.method, each.path) for each in api.asked} == {("GET", NODE), ("PATCH", NODE)}
    assert all("PartialObjectMetadata" in each.headers["Accept"] for each in api.asked)
