"""The batch API of Git LFS: addresses, their lifetimes, and answers that are none."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cached.conformance.front import front_of
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.git.lfs import LfsServer, Wanted, endpoint_in, endpoint_of
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget
from tests.support.git_host import GitHost

GOOD, BAD = (Wanted(hashlib.sha256(data).hexdigest(), len(data), f"{data.decode()}.bin") for data in (b"good", b"bad"))
PAGE = b"<!doctype html><html><title>Sign in</title></html>"


def server(endpoint: str, client: HttpClient) -> LfsServer:
    return LfsServer(endpoint, "git+http://host/m@main", client, None, None)


def locate(host: GitHost, client: HttpClient, *wanted: Wanted) -> list[HttpTarget | HoldfastError]:
    return server(host.create_lfs(b"good", b"bad"), client).locate(wanted or (GOOD,), Cancellation())


@pytest.mark.parametrize(
    ("error", "code", "permanent"),
    [
        ({"code": 404, "message": "gone"}, "not_found", True),
        ({"code": 410}, "not_found", True),
        ({"code": 403, "message": "no"}, "forbidden", True),
        ({"code": 422, "message": "what"}, "http_422", True),
        ({"code": 429, "message": "slow"}, "http_429", False),
        ({"code": 507, "message": "full"}, "http_507", False),
        ({"code": 509, "message": "bandwidth"}, "http_5xx", False),
        ({"code": 10**30}, "bad_response", False),
        ({}, "bad_response", False),
    ],
)
def test_the_error_of_one_object_is_told_with_its_file(
    error: dict[str, Any], code: str, permanent: bool, host: GitHost, client: HttpClient
) -> None:
    """An answer 200 may refuse single objects: the error names the file, and the others are there."""

    def refuse(answer: dict[str, Any]) -> Any:
        for each in answer["objects"]:
            if each["oid"] == BAD.oid:
                each["error"] = error
        return answer

    host.batch = refuse
    good, bad = locate(host, client, GOOD, BAD)
    assert isinstance(good, HttpTarget)
    assert isinstance(bad, HoldfastError)
    assert (bad.code, bad.permanent) == (code, permanent)
    assert "bad.bin" in bad.message
    assert bad.remedy


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"objects": None},
        {"objects": [1, None, {}]},
        {"objects": [], "transfer": "basic"},
        {"objects": [{"oid": "OID"}]},
        {"objects": [{"oid": "OID", "actions": {"download": {}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": 1}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": "/relative"}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": "file:///etc/passwd"}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": "HREF", "header": []}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": "HREF", "header": {"A b": "c"}}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": "HREF", "header": {"A": "b\r\nC: d"}}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": "HREF", "header": {"A": "\u0100"}}}}]},
        {"objects": [{"oid": "OID", "actions": {"download": {"href": "HREF"}}}], "transfer": "ssh"},
    ],
)
def test_an_answer_that_no_lfs_server_gives_is_a_bad_response(answer: Any, host: GitHost, client: HttpClient) -> None:
    """An answer without the object, without an address, with an address or headers that cannot be sent, or for another
    transfer is `bad_response`."""
    text = json.dumps(answer).replace("OID", GOOD.oid).replace("HREF", f"{host.url}/x")
    host.batch = lambda _answer: json.loads(text)
    try:
        (found,) = locate(host, client)
    except HoldfastError as error:
        found = error
    assert isinstance(found, Transient)
    assert found.code == "bad_response"
    assert found.remedy


@pytest.mark.parametrize("body", [PAGE, b"", b'{"objects": [', b"[" * 200_000, b" " * (5 << 20)])
def test_what_is_no_json_is_an_error(body: bytes, host: GitHost, client: HttpClient) -> None:
    """A web page, a cut, an absurdly deep and an absurdly long answer are errors with a remedy."""
    endpoint = host.create_lfs(b"good").removeprefix(host.url)
    with front_of(host.url) as front:
        front.answer(200, body)
        with pytest.raises(HoldfastError) as caught:
            server(front.url + endpoint, client).locate([GOOD], Cancellation())
    assert caught.value.code in ("bad_response", "too_large")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("status", "code", "permanent"),
    [
        (401, "unauthorized", True),
        (403, "forbidden", True),
        (404, "not_found", True),
        (422, "http_422", True),
        (429, "http_429", False),
        (501, "not_found", True),
        (503, "http_503", False),
        (507, "http_507", False),
        (509, "http_5xx", False),
    ],
)
def test_each_status_has_its_error(status: int, code: str, permanent: bool, host: GitHost, client: HttpClient) -> None:
    """A refusal of all objects is permanent where a person must act, and says what to do; a pause that is asked for is
    kept."""
    endpoint = host.create_lfs(b"good").removeprefix(host.url)
    with front_of(host.url) as front:
        front.answer(status, b"", {"Retry-After": "7"})
        with pytest.raises(HoldfastError) as caught:
            server(front.url + endpoint, client).locate([GOOD], Cancellation())
    assert (caught.value.code, caught.value.permanent) == (code, permanent)
    assert caught.value.remedy
    if isinstance(caught.value, Transient) and status in (429, 503):
        assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("action", "lifetime_s"),
    [
        ({}, None),
        ({"expires_in": 60}, 60),
        ({"expires_in": "60"}, 60),
        ({"expires_in": 0}, None),
        ({"expires_in": True, "expires_at": "0001-01-01T00:00:00Z"}, None),
        ({"expires_at": "2999-01-01T00:00:00Z", "expires_in": 5}, 5),
        ({"expires_at": "2001-01-01T00:00:00Z"}, 0),
        ({"expires_at": "soon"}, None),
    ],
)
def test_an_address_ends_when_its_answer_says(
    action: dict[str, Any], lifetime_s: float | None, host: GitHost, client: HttpClient
) -> None:
    """The least of `expires_in` and `expires_at` is the lifetime; what is no time is none."""

    def answer(answer: dict[str, Any]) -> Any:
        download = answer["objects"][0]["actions"]["download"]
        del download["expires_in"]
        download.update(action)
        return answer

    host.batch = answer
    (target,) = locate(host, client)
    assert isinstance(target, HttpTarget)
    assert target.lifetime_s == lifetime_s


def test_from_tls_no_address_leads_to_plain_http(host: GitHost, client: HttpClient) -> None:
    """An LFS server with TLS that gives an address without it is refused; no header of it is shown."""
    one = server("https://lfs.example.com/m", client)
    action = {"href": "http://cdn.example.com/x", "header": {"Authorization": "RemoteAuth verySecret"}}
    found = one._located(GOOD, {"actions": {"download": action}}, 0.0)
    assert isinstance(found, Permanent)
    assert found.code == "insecure_redirect"
    assert "verySecret" not in f"{found} {one!r}"


def test_an_address_elsewhere_has_its_own_headers_alone(host: GitHost, client: HttpClient) -> None:
    """Credentials go to the server's own origin, unless its answer says that the address needs none; another origin
    gets what the answer gives, and counts as chosen by the server: it may not lead to this machine."""
    endpoint = "https://me:verySecret@lfs.example.com/m"
    one = LfsServer(endpoint, "git+https://host/m@main", client, ("me", "verySecret"), None)

    def located(href: str, **more: Any) -> HttpTarget:
        found = one._located(GOOD, {"actions": {"download": {"href": href, "header": {"X-Sign": "s"}}}, **more}, 0.0)
        assert isinstance(found, HttpTarget)
        return found

    own, pre, other = (
        located("https://lfs.example.com/x"),
        located("https://lfs.example.com/x", authenticated=True),
        located("https://cdn.example.com/x"),
    )
    assert [name for name, _ in own.headers] == ["X-Sign", "Authorization"]
    assert pre.headers == other.headers == (("X-Sign", "s"),)
    assert (own.chosen_by, other.chosen_by) == (None, endpoint)
    assert "verySecret" not in f"{own!r} {other!r}"


@pytest.mark.parametrize(
    ("config", "url"),
    [
        (b"", None),
        (b"[lfs]\n\turl = https://lfs.example.com/m\n", "https://lfs.example.com/m"),
        (b'[LFS]\nURL="https://lfs.example.com/m"', "https://lfs.example.com/m"),
        (b'[lfs "https://x"]\nurl = https://no\n[remote "origin"]\nlfsurl = https://no\n', None),
        (b"[lfs]\nurl = https://one\n[other]\nurl = https://no\n", "https://one"),
        (b"\xff\xfe[lfs\nurl", None),
    ],
)
def test_lfs_url_of_a_config(config: bytes, url: str | None) -> None:
    """`lfs.url` counts in any case and quoting, and no other `url`."""
    assert endpoint_in(config) == url


def test_an_lfs_server_is_beside_its_repository() -> None:
    """The server of a repository is found as Git LFS finds it, with and without `.git`."""
    assert endpoint_of("https://h/a/m") == endpoint_of("https://h/a/m.git") == "https://h/a/m.git/info/lfs"
