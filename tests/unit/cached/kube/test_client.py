"""The client: what comes back, what goes wrong, and that nothing hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.kube.client import MERGE_PATCH, METADATA, Call, KubeClient
from cached.kube.cluster import ApiServer
from cached.kube.errors import Conflict, Gone, NotFound, Unreachable
from tests.support.certificates import make_certificates
from tests.support.fake_api import FakeApi
from tests.support.kube_shapes import make_pod

NODES, NODE = "/api/v1/nodes", "/api/v1/nodes/n"


async def test_metadata_is_all_that_is_asked_for(api: FakeApi, client: KubeClient) -> None:
    """A request for metadata brings no spec and no status."""
    api.create("/api/v1/namespaces/default/pods", make_pod("p", "n"))
    pod = await client.request(Call("GET", "/api/v1/namespaces/default/pods/p", accept=METADATA))
    assert pod["metadata"]["name"] == "p"
    assert "spec" not in pod


async def test_a_merge_patch_removes_with_null(api: FakeApi, client: KubeClient) -> None:
    """A patch sets what it names, removes what it nulls, and leaves the rest."""
    api.create(NODES, {"metadata": {"name": "n", "labels": {"a": "1", "b": "2"}}})
    body = {"metadata": {"labels": {"b": None, "c": "3"}}}
    await client.request(Call("PATCH", NODE, body=body, content_type=MERGE_PATCH))
    assert api.get(NODE)["metadata"]["labels"] == {"a": "1", "c": "3"}


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (401, Transient, "kube_unauthorized"),
        (403, Permanent, "kube_forbidden"),
        (404, NotFound, "kube_not_found"),
        (409, Conflict, "kube_conflict"),
        (410, Gone, "kube_gone"),
        (422, Permanent, "kube_refused"),
        (429, Transient, "kube_busy"),
        (500, Transient, "kube_busy"),
        (503, Transient, "kube_busy"),
    ],
)
async def test_refusals_are_split_by_remedy(
    api: FakeApi, client: KubeClient, code: int, kind: type[HoldfastError], word: str
) -> None:
    """Each status becomes an error that says whether to try again, with what the server said."""
    api.refuse("GET", NODE, code, headers={"Retry-After": "7"})
    with pytest.raises(kind) as refused:
        await client.request(Call("GET", NODE))
    assert refused.value.code == word
    assert f"scripted: {code}" in refused.value.message
    if word == "kube_busy":
        assert isinstance(refused.value, Transient)
        assert refused.value.retry_after_s == 7


async def test_a_dropped_connection_is_unreachable(api: FakeApi, client: KubeClient) -> None:
    """A reset is no exception of the library's."""
    api.drop("GET", NODE, times=9)  # idempotent requests are sent again by the library
    with pytest.raises(Unreachable):
        await client.request(Call("GET", NODE))


async def test_a_server_that_never_answers_is_unreachable(api: FakeApi) -> None:
    """A request ends after its time."""
    api.hang("GET", NODE)
    async with KubeClient(api.cluster(), timeout_s=0.05) as client:
        with pytest.raises(Unreachable):
            await client.request(Call("GET", NODE))


async def test_nobody_there_is_unreachable() -> None:
    """A refused connection names the server."""
    async with KubeClient(ApiServer("http://127.0.0.1:1")) as client:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
            await client.request(Call("GET", NODE))


async def test_a_rotated_token_is_read_at_once(tmp_path: Path) -> None:
    """When the token is replaced, the next request has the new one, without a failure in between."""
    file = tmp_path / "token"
    file.write_text("old")
    with FakeApi(tokens={"old"}) as api:
        api.create(NODES, {"metadata": {"name": "n"}})
        async with KubeClient(ApiServer(api.url, token=file)) as client:
            await client.request(Call("GET", NODE))
            file.write_text("new")
            api.tokens = {"new"}
            await client.request(Call("GET", NODE))


async def test_a_wrong_token_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    """No error carries the token."""
    with FakeApi(tokens={"right"}) as api:
        async with KubeClient(ApiServer(api.url, token="wrong-secret")) as client:
            with pytest.raises(Transient) as refused:
                await client.request(Call("GET", NODE))
    assert "wrong-secret" not in str(refused.value)


async def test_a_server_with_another_authority_is_not_trusted(tmp_path: Path) -> None:
    """A certificate that the cluster's authority did not sign ends the connection before the token is sent."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    with FakeApi(theirs) as api:
        async with KubeClient(ApiServer(api.url, authority=ours.authority, token="t")) as client:
            with pytest.raises(Unreachable):
                await client.request(Call("GET", NODE))
        assert not api.asked


async def test_a_new_authority_is_taken_up(tmp_path: Path) -> None:
    """When the cluster's authority is replaced on disk, the client trusts the new one without a restart."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    old, new = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    file = tmp_path / "ca.crt"
    file.write_bytes(old.authority.read_bytes())
    with FakeApi(new) as api:
        api.create(NODES, {"metadata": {"name": "n"}})
        async with KubeClient(ApiServer(api.url, authority=file)) as client:
            file.write_bytes(new.authority.read_bytes())
            with pytest.raises(Unreachable):
                await client.request(Call("GET", NODE))
            assert await client.request(Call("GET", NODE))


async def test_an_answer_that_is_no_object_is_ours(api: FakeApi, client: KubeClient) -> None:
    """What is not JSON, as from a proxy, becomes an error that says so."""
    api.refuse("GET", NODE, 200)
    assert (await client.request(Call("GET", NODE)))["kind"] == "Status"
    with pytest.raises(NotFound):
        await client.request(Call("GET", "/nonsense"))


async def test_a_watch_yields_events_until_its_end(api: FakeApi, client: KubeClient) -> None:
    """Changes and bookmarks come one by one, and the server's end is the end of the iteration."""
    call = Call("GET", NODES, {"watch": "true", "resourceVersion": "0", "allowWatchBookmarks": "true"})
    async with client.watch(call, stall_s=30) as events:
        api.create(NODES, {"metadata": {"name": "n", "annotations": {"long": "x" * 300_000}}})
        first = await anext(events)
        assert (first["type"], len(first["object"]["metadata"]["annotations"]["long"])) == ("ADDED", 300_000)
        api.order_watchers("bookmark")
        assert (await anext(events))["type"] == "BOOKMARK"
        api.order_watchers("end")
        assert [event async for event in events] == []


@pytest.mark.parametrize(
    ("order", "kind"), [("error 410", Gone), ("error 500", Transient), ("drop", Unreachable), ("garbage", Transient)]
)
async def test_a_watch_that_goes_wrong(api: FakeApi, client: KubeClient, order: str, kind: type[HoldfastError]) -> None:
    """An ERROR event, a reset and nonsense are errors of ours."""
    call = Call("GET", NODES, {"watch": "true", "resourceVersion": "0"})
    async with client.watch(call, stall_s=30) as events:
        api.order_watchers(order)
        with pytest.raises(kind):
            await anext(events)


async def test_a_silent_watch_ends(api: FakeApi, client: KubeClient) -> None:
    """A watch in which nothing comes, not even a bookmark, does not hang for ever."""
    async with client.watch(Call("GET", NODES, {"watch": "true"}), stall_s=0.05) as events:
        with pytest.raises(Unreachable):
            await anext(events)
