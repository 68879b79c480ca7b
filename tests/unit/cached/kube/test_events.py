"""Events: said without waiting, merged, limited, and never a failure of their sender."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cached.kube.client import KubeClient
from cached.kube.events import FAILED, FETCHING, EventPace, EventQueue
from cached.kube.pods import PodName
from tests.support.fake_api import FakeApi

EVENTS = "/api/v1/namespaces/default/events"
POD = PodName("uid-1", "default", "p")
QUICK = EventPace(backoff_s=0.01, backoff_cap_s=0.05)


async def test_an_event_is_what_kubectl_describe_shows(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """An event names its pod by uid, its reason, its source and its times."""
    events = EventQueue(client, "node1", QUICK)
    async with running(events.run()):
        events.add(POD, FAILED, "no such model", "Warning")
        await until(lambda: api.all(EVENTS), "the event")
    event = api.all(EVENTS)[0]
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "default",
        "name": "p",
        "uid": "uid-1",
    }
    assert (event["reason"], event["message"], event["type"]) == ("WeightsFailed", "no such model", "Warning")
    assert (event["reportingComponent"], event["source"]) == ("holdfast", {"component": "holdfast", "host": "node1"})
    assert event["count"] == 1
    assert event["firstTimestamp"] == event["lastTimestamp"]


async def test_the_same_again_raises_the_count(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """What was said already is counted up, waiting or written; anything different is an event of its own."""
    events = EventQueue(client, "node1", QUICK)
    events.add(POD, FETCHING, "same")
    events.add(POD, FETCHING, "same")
    async with running(events.run()):
        await until(lambda: api.all(EVENTS), "the event")
        assert api.all(EVENTS)[0]["count"] == 2
        events.add(POD, FETCHING, "same")
        await until(lambda: api.all(EVENTS)[0]["count"] == 3, "the count")
        events.add(POD, FETCHING, "other")
        await until(lambda: len(api.all(EVENTS)) == 2, "the other")


async def test_an_event_that_ran_out_is_written_anew(
    api: FakeApi, client: KubeClient, running: Any, until: Any
) -> None:
    """Events live an hour: one that is gone when it should be counted up is made again."""
    events = EventQueue(client, "node1", QUICK)
    async with running(events.run()):
        events.add(POD, FETCHING, "same")
        await until(lambda: api.all(EVENTS), "the event")
        api.delete(f"{EVENTS}/{api.all(EVENTS)[0]['metadata']['name']}")
        events.add(POD, FETCHING, "same")
        await until(lambda: api.all(EVENTS), "the event again")
    assert api.all(EVENTS)[0]["count"] == 1


async def test_one_pod_cannot_flood(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """A pod's events beyond its bucket are dropped and counted; another pod's are not touched."""
    events = EventQueue(client, "node1", replace(QUICK, burst=3))
    for number in range(10):
        events.add(POD, FETCHING, str(number))
    events.add(PodName("uid-2", "default", "q"), FETCHING, "x")
    async with running(events.run()):
        await until(lambda: events.statistics.written == 4, "the events")
    assert events.statistics.dropped == 7
    assert len(api.all(EVENTS)) == 4


async def test_a_lost_api_costs_the_oldest(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """While the API is away events wait, bounded, the oldest dropped; afterwards the newest are written."""
    api.drop("POST", EVENTS, times=float("inf"))
    events = EventQueue(client, "node1", replace(QUICK, queue=5))
    async with running(events.run()):
        for number in range(20):
            events.add(PodName(f"uid-{number}", "default", f"p{number}"), FETCHING, "x")
        assert len(events) == 5
        assert events.statistics.dropped == 15
        await until(lambda: len(api.asked) >= 3, "tries")
        api.heal()
        await until(lambda: events.statistics.written == 5, "the events")
    assert {each["involvedObject"]["name"] for each in api.all(EVENTS)} == {f"p{n}" for n in range(15, 20)}
    assert events.statistics.failures >= 3


async def test_a_refused_event_is_left(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """An event that may never be written, as in a namespace that is being deleted, does not hold up the next."""
    api.refuse("POST", EVENTS, 403)
    events = EventQueue(client, "node1", QUICK)
    async with running(events.run()):
        events.add(POD, FETCHING, "one")
        events.add(POD, FETCHING, "two")
        await until(lambda: api.all(EVENTS), "the second")
    assert [each["message"] for each in api.all(EVENTS)] == ["two"]
    assert events.statistics.refused == 1


async def test_long_names_and_messages_fit(api: FakeApi, client: KubeClient, running: Any, until: Any) -> None:
    """The longest pod name and any message make an event that the API takes."""
    events = EventQueue(client, "node1", QUICK)
    async with running(events.run()):
        events.add(PodName("u", "default", "p" * 236 + "." + "q" * 16), FETCHING, "m" * 5000)
        await until(lambda: api.all(EVENTS), "the event")
    event = api.all(EVENTS)[0]
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"]) == 1024
