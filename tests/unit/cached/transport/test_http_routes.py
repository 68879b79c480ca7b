"""Redirects and credentials: who gets to see what."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cached.contract.errors import Permanent, Transient
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.credentials import basic
from cached.transport.target import HttpTarget
from cached.transport.urls import display_url
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Redirect, Status
from tests.support.reading import MakeClient, error_of, read_all
from tests.support.users import hidden_from_others

SECRET = (("Authorization", "Bearer s3cret"), ("Cookie", "session=s3cret"), ("X-Amz-Security-Token", "s3cret"))


def fetch(client: HttpClient, url: str, *headers: tuple[str, str]) -> bytes:
    return client.fetch(HttpTarget(url, headers), 10_000, Cancellation()).body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(client: HttpClient, origin: HostileOrigin, status: int) -> None:
    """Every kind of redirect leads to the object, on the same connection, with the range and the validator."""
    origin.put("/new place/é", b"0123456789", etag='"v1"')
    origin.script("/old", Redirect("/new%20place/%C3%A9", status))
    target = HttpTarget(origin.url("/old"), SECRET, if_match='"v1"')
    origin.put("/new%20place/%C3%A9", b"0123456789", etag='"v1"')
    with client.get(target, 2, 3, Cancellation()) as body:
        assert read_all(body) == b"234"
    first, second = origin.requests
    assert first.connection == second.connection
    assert second.headers["range"] == "bytes=2-4"
    assert second.headers["if-match"] == '"v1"'
    assert second.headers["authorization"] == "Bearer s3cret"


def test_a_location_in_raw_utf8_is_followed(client: HttpClient, origin: HostileOrigin) -> None:
    """A Location with bytes that must be encoded is encoded, not refused."""
    origin.put("/%C3%A9%20x", b"found")
    origin.script("/old", Redirect("/é x".encode().decode("latin-1")))
    assert fetch(client, origin.url("/old")) == b"found"


def test_credentials_stay_with_their_origin(client: HttpClient, origin: HostileOrigin) -> None:
    """A redirect to another host name or port takes no header of the target along, not even on the way back."""
    with HostileOrigin(host="127.0.0.1") as other:
        other.put("/b", b"payload")
        back = f"http://127.0.0.1:{origin.port}/c"  # the first origin's port under another name
        origin.script("/a", Redirect(other.url("/b")))
        origin.script("/d", Redirect(back))
        origin.put("/c", b"payload")
        assert fetch(client, origin.url("/a"), *SECRET) == b"payload"
        assert fetch(client, origin.url("/d"), *SECRET) == b"payload"
        other.script("/b", Redirect(origin.url("/c")))
        origin.script("/a", Redirect(other.url("/b")))
        assert fetch(client, origin.url("/a"), *SECRET) == b"payload"
        seen = origin.requests + other.requests
    with_secret = [one.path for one in seen if "s3cret" in str(one.headers)]
    assert with_secret == ["/a", "/d", "/a"]
    assert sum(one.path in ("/b", "/c") for one in seen) == 4


def test_a_redirect_cannot_choose_credentials(client: HttpClient, origin: HostileOrigin) -> None:
    """User information in a Location is not sent."""
    origin.put("/b", b"payload")
    origin.script("/a", Redirect(f"http://user:pass@localhost:{origin.port}/b"))
    assert fetch(client, origin.url("/a")) == b"payload"
    assert "authorization" not in origin.requests[1].headers


def test_a_redirect_loop_ends(client: HttpClient, origin: HostileOrigin) -> None:
    """A loop, and a chain that is too long, are permanent."""
    origin.script("/a", Redirect("/b"))
    origin.script("/b", Redirect("/a"))
    error = error_of(client, origin.url("/a"))
    assert isinstance(error, Permanent)
    assert error.code == "redirect_loop"
    for hop in range(20):
        origin.script(f"/{hop}", Redirect(f"/{hop + 1}"))
    error = error_of(client, origin.url("/0"))
    assert error.code == "redirect_loop"
    assert len(origin.requests) == 2 + 11


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://127.0.0.1/"])
def test_redirects_to_other_schemes_are_refused(client: HttpClient, origin: HostileOrigin, location: str) -> None:
    """A redirect leads to HTTP or nowhere."""
    origin.script("/a", Redirect(location))
    error = error_of(client, origin.url("/a"))
    assert isinstance(error, Permanent)
    assert error.code == "insecure_redirect"


def test_userinfo_is_sent_as_basic_and_never_shown(client: HttpClient, origin: HostileOrigin) -> None:
    """User information of a URL reaches the server decoded, and no message; nor does the query."""
    url = f"http://us%40er:p%3Aw@localhost:{origin.port}/missing?X-Amz-Signature=s3cret#part"
    error = error_of(client, url)
    assert error.code == "not_found"
    assert origin.requests[0].headers["authorization"] == basic("us@er", "p:w")
    assert origin.requests[0].path == "/missing?X-Amz-Signature=s3cret"
    assert f"http://localhost:{origin.port}/missing" in str(error)
    assert not any(secret in str(error) + repr(error.__cause__) for secret in ("s3cret", "p%3Aw", "p:w", "us%40er"))


def test_netrc_speaks_for_its_host(
    make_client: MakeClient, origin: HostileOrigin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The netrc file's entry goes to its host, gives way to the target's own header, and is dropped by redirects."""
    netrc = tmp_path / "credentials"
    netrc.write_text("machine localhost login me password from-netrc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    client = make_client(HttpSettings())
    expected = basic("me", "from-netrc")
    origin.put("/a", b"payload")
    fetch(client, origin.url("/a"))
    fetch(client, origin.url("/a"), ("Authorization", "Bearer own"))
    fetch(client, f"http://127.0.0.1:{origin.port}/a")
    origin.script("/a", Redirect(f"http://127.0.0.1:{origin.port}/a"))
    fetch(client, origin.url("/a"))
    found = [seen.headers.get("authorization") for seen in origin.requests]
    assert found == [expected, "Bearer own", None, expected, None]


def test_a_home_of_another_user_has_no_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home that this user may not look into, as HOME of a process that changed its user, is no error."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine localhost login me password from-netrc\n")
    monkeypatch.setenv("HOME", str(home))
    with hidden_from_others(home):
        client = HttpClient(HttpSettings())
        assert client.credentials("http://localhost/") is None
        client.close()


@pytest.mark.parametrize(
    "query", ["X-Amz-Signature=0", "a=1&X-Goog-Signature=0", "Expires=1&Signature=0", "se=1&sig=0"]
)
def test_a_signed_url_gets_no_netrc(
    query: str, make_client: MakeClient, origin: HostileOrigin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signed URL authorises itself: S3 refuses a password beside the signature."""
    netrc = tmp_path / "credentials"
    netrc.write_text("machine localhost login me password from-netrc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    origin.put("/a", b"payload")
    fetch(make_client(HttpSettings()), origin.url(f"/a?{query}"))
    assert [seen.headers.get("authorization") for seen in origin.requests] == [None]


def test_the_home_netrc_is_found(make_client: MakeClient, origin: HostileOrigin, tmp_path: Path) -> None:
    """Without `NETRC` the file in the home folder counts."""
    (tmp_path / ".netrc").write_text("machine localhost login me password from-home\n")
    origin.put("/a", b"payload")
    fetch(make_client(HttpSettings()), origin.url("/a"))
    assert origin.requests[0].headers["authorization"] == basic("me", "from-home")


@pytest.mark.parametrize("content", [None, "machine localhost login me pass-word s3cret\n"])
def test_an_unreadable_netrc_is_ignored_with_one_warning(
    make_client: MakeClient,
    origin: HostileOrigin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: str | None,
) -> None:
    """A netrc file that cannot be used is named once in the log, without a word of what it says."""
    netrc = tmp_path / "credentials"
    if content is not None:
        netrc.write_text(content)
    monkeypatch.setenv("NETRC", str(netrc))
    origin.put("/a", b"payload")
    with caplog.at_level(logging.WARNING):
        client = make_client(HttpSettings())
        assert fetch(client, origin.url("/a")) == fetch(client, origin.url("/a")) == b"payload"
    assert len(caplog.records) == 1
    assert str(netrc) in caplog.text
    assert "s3cret" not in caplog.text
    assert "pass-word" not in caplog.text


def test_a_header_cannot_smuggle(client: HttpClient, origin: HostileOrigin) -> None:
    """A header with a line break is refused, and its value is not shown."""
    with pytest.raises(Permanent) as caught:
        fetch(client, origin.url("/a"), ("Authorization", "x\r\nX-Evil: s3cret"))
    assert caught.value.code == "bad_header"
    assert "s3cret" not in str(caught.value)
    assert origin.requests == []


@pytest.mark.parametrize("url", ["ftp://host/x", "http://", "http://[::1/x", "http://host:99999/", "http://a b/", "x"])
def test_other_urls_are_refused(client: HttpClient, url: str) -> None:
    """What is not an http(s) URL with a host is permanent."""
    with pytest.raises(Permanent) as caught:
        fetch(client, url)
    assert caught.value.code == "bad_url"


def test_fetch_has_a_limit(client: HttpClient, origin: HostileOrigin) -> None:
    """A body of exactly the limit is read, one byte more is `too_large`."""
    origin.put("/a", b"12345")
    target = HttpTarget(origin.url("/a"))
    assert client.fetch(target, 5, Cancellation()).body == b"12345"
    with pytest.raises(Permanent) as caught:
        client.fetch(target, 4, Cancellation())
    assert caught.value.code == "too_large"


def test_fetch_tells_where_it_ended(client: HttpClient, origin: HostileOrigin) -> None:
    """The URL after redirects is told, and the response's headers."""
    origin.put("/dir/", b"index", content_type="text/html")
    origin.script("/dir", Redirect("/dir/"))
    response = client.fetch(HttpTarget(origin.url("/dir")), 100, Cancellation())
    assert response.url == origin.url("/dir/")
    assert response.headers.get_content_type() == "text/html"


def test_head(client: HttpClient, origin: HostileOrigin) -> None:
    """HEAD tells size and validators, keeps its connection, and errors as GET does."""
    modified = "Fri, 20 Nov 2026 10:00:00 GMT"
    target = HttpTarget(origin.put("/a", b"12345", etag='"v1"', last_modified=modified))
    for _ in range(2):
        head = client.head(target, Cancellation())
        assert (head.size, head.etag, head.last_modified) == (5, '"v1"', modified)
    assert {seen.connection for seen in origin.requests} == {1}
    with pytest.raises(Permanent) as caught:
        client.head(HttpTarget(origin.url("/missing")), Cancellation())
    assert caught.value.code == "not_found"
    origin.script("/a", Status(503, {"Retry-After": "3"}))
    with pytest.raises(Transient) as again:
        client.head(target, Cancellation())
    assert (again.value.code, again.value.retry_after_s) == ("http_503", 3)


@pytest.mark.parametrize("status", [403, 405, 501])
def test_head_refused_is_asked_by_a_range(client: HttpClient, origin: HostileOrigin, status: int) -> None:
    """Where HEAD is refused, as for URLs signed for GET, one byte's range tells the same."""
    url = origin.put("/a", b"12345", etag='"v1"')
    origin.script("/a", Status(status))
    head = client.head(HttpTarget(url), Cancellation())
    assert (head.size, head.etag) == (5, '"v1"')
    assert [seen.method for seen in origin.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:s3cret@host:8443/a/b?sig=s3cret#s3cret", "https://host:8443/a/b"),
        ("http://s3cret@[::1]:80/x", "http://[::1]:80/x"),
        ("http://a:s3@cret@host/x", "http://host/x"),
        ("/a/b?s3cret", "/a/b"),
        ("http://[s3cret", "<a URL that cannot be read>"),
        ("", ""),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    """What is displayed of a URL has no user information, query or fragment, however it is written."""
    assert display_url(url) == shown
