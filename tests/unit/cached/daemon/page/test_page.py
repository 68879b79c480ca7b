"""The page and its events, over real connections."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any

import pytest

from cached.contract.errors import Transient
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from cached.core.space import SpaceUse
from cached.daemon.http.messages import HttpRequest, StreamedResponse, make_router
from cached.daemon.http.server import HttpServer
from cached.daemon.page.facts import DiskFacts, Facts, SourceFacts
from cached.daemon.page.page import NodePage
from cached.node.status_files import RecentError
from tests.unit.cached.daemon.page.facts import (
    GIB,
    SINCE,
    ToldFacts,
    make_facts,
    make_hostile_facts,
    make_status,
    make_version,
)

_TAGS = """html head meta title link style body a header h1 h2 h3 small p span noscript main div dl dt dd section svg
    rect ul li b code table thead tr th tbody td label input footer script details summary time br progress"""
_ATTRIBUTES = """lang charset name content rel href data-position data-now class id role hidden type autocomplete
    spellcheck aria-labelledby aria-label aria-hidden tabindex scope viewbox width height x rx data-l data-key datetime
    max value"""


class _Reader(HTMLParser):
    """The tags, attributes and texts of a page, as a browser takes them apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.values: list[str] = []
        self.texts: list[str] = []
        self.inside: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.values += [value or "" for _, value in attrs]
        self.inside.append(tag)

    def handle_data(self, data: str) -> None:
        if self.inside[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


class _Reading:
    """A page that is served, and its facts."""

    def __init__(self, facts: ToldFacts, server: HttpServer, address: tuple[str, int]) -> None:
        self.facts = facts
        self.server = server
        self._address = address

    async def ask(self, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self._send(path, method, headers)
        status, found = _parse_head(await reader.readuntil(b"\r\n\r\n"))
        body = await reader.read()
        writer.close()
        return status, found, body

    async def read(self) -> str:
        """Return the page."""
        return (await self.ask())[2].decode()

    @asynccontextmanager
    async def follow(self, after: str = "", **headers: str) -> AsyncIterator[_Events]:
        """Yield the events after a position."""
        reader, writer = await self._send(f"/page/events?after={after}", "GET", headers)
        try:
            yield _Events(reader, *_parse_head(await reader.readuntil(b"\r\n\r\n")))
        finally:
            writer.close()

    async def _send(
        self, path: str, method: str, headers: dict[str, str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address, limit=2**24)
        fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n".encode())
        return reader, writer


class _Events:
    """The events of one connection."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> None:
        self._reader = reader
        self._left = ""
        self.status = status
        self.headers = headers

    async def take(self) -> dict[str, str]:
        """Return the fields of the next event that has any but `retry`."""
        async with asyncio.timeout(100):
            while True:
                while "\n\n" not in self._left:
                    size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
                    assert size, "the stream ended"
                    self._left += (await self._reader.readexactly(size)).decode()
                    await self._reader.readexactly(2)
                event, _, self._left = self._left.partition("\n\n")
                fields = dict(line.split(": ", 1) for line in event.splitlines())
                if fields.keys() - {"retry"}:
                    return fields

    async def take_change(self) -> dict[str, Any]:
        """Return the document of the next change."""
        document: dict[str, Any] = json.loads((await self.take())["data"])
        return document


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    line, *fields = head.decode().strip().split("\r\n")
    return int(line.split()[1]), {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}


@asynccontextmanager
async def _reading(facts: Facts, most_readers: int = 8) -> AsyncIterator[_Reading]:
    told = ToldFacts(facts)
    page = NodePage(told, facts.daemon.node, most_readers)
    server = HttpServer(make_router({("GET", "/"): page.show, ("GET", "/page/events"): page.follow}), 64)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield _Reading(told, server, listener.sockets[0].getsockname())
    finally:
        listener.close()
        await server.close()


def _find_position(page: str) -> str:
    found = re.search(r'data-position="([0-9a-f.-]+)"', page)
    assert found is not None
    return found[1]


# --- what it says --------------------------------------------------------------------------------------------------


async def test_the_page_tells_what_the_node_does() -> None:
    """Versions with their states, progress, sizes, users and leases; who waits and why; the disk; sources; errors with
    remedies: all of it is in the page as it is sent, without a script."""
    fetching = make_status(
        version="v2", state=State.FETCHING, held=None, bytes_done=GIB // 4, rate_bytes_per_s=2.0**28, eta_s=3.0
    )
    error = StatusError("not_found", "acme/llama@v3: no such folder", "look for typing errors", permanent=True)
    failed = make_status(version="v3", state=State.FAILED, held=None, error=error)
    over = StatusError("http_503", "acme/llama@v1: answered 503", "wait a little", permanent=False)
    facts = make_facts(
        make_version(leased=True, users=("team/pod-1",)),
        make_version(fetching, size=None, waiting=(("team/pod-2", SINCE), ("team/pod-3", None)), pulls=2),
        make_version(failed, size=None, last_used=None),
        disk_error=Transient("disk", "the disk has not answered for 30 s", "check the kernel log"),
        sources=(SourceFacts("s3", 2, 3 * GIB, 5 * GIB, 7),),
        disk=DiskFacts(
            SpaceUse(100 * GIB, 30 * GIB, 5 * GIB, 3 * GIB, 50 * GIB, 88 * GIB),
            (((ModelRef("acme/llama", "v1"), ModelRef("b", "1")), 20 * GIB),),
            8 * GIB,
            2 * GIB,
            GIB,
        ),
        recent_errors=(RecentError(ModelRef("acme/llama", "v1"), over, 1.0, 4),),
    )
    async with _reading(facts) as page:
        said = _Reader(await page.read()).text
    for words in (
        "node-a Ready Holdfast 0.1.0",
        "Versions ready 1 of 3, 1 failed",
        "Being fetched 1 256.0 MiB/s",
        "Pods waiting 2 the longest for",
        "Versions leased 1 1 pod may read here",
        "Disk free 50.0 GiB of 100.0 GiB, 50 % full",
        "The disk disk , is tried again the disk has not answered for 30 s check the kernel log",
        "acme/llama@v3 not_found , for",
        "no such folder look for typing errors",
        "acme/llama@ v2 team/pod-2 for",
        "team/pod-3 2 holdfast pull",
        "fetching, 25 %, 256.0 MiB/s, 3s left",
        "acme/llama@v1 = b@1 20.0 GiB",
        "Shared by several versions 8.0 GiB",
        "Of no version yet, or any more 2.0 GiB",
        "Being fetched 5.0 GiB",
        "Quarantine 1.0 GiB",
        "To be deleted 2.0 GiB",
        "Other programs 12.0 GiB",
        "Free 50.0 GiB",
        "S3 3.0 GiB 2 versions 5.0 GiB 7 failed tries",
        "Earlier errors (1)",
        "acme/llama@v1, 4 times http_503",
        "team/pod-1 lease held in use",
    ):
        assert words in said, (words, said)


async def test_an_empty_node_has_a_page() -> None:
    """A node without versions says so, and has no empty lists of problems or of who waits."""
    async with _reading(make_facts()) as page:
        said = _Reader(await page.read()).text
    assert "No version is wanted or held here yet." in said
    assert "Waiting" not in said.replace("Pods waiting", "")
    assert "Problems 0 nothing to mend" in said


@pytest.mark.parametrize(
    "evil",
    [
        '"><script>alert(1)</script>',
        "'><img src=x onerror=alert(1)>",
        "</title></style></script><svg onload=alert(1)>",
        '<time datetime="2026-01-01T00:00:00Z"></time>',
        "http://user:hunter2@host/p?X-Amz-Signature=hunter2 <b>",
        "\u202e<b>\x00\ud800\n\ndata: x",
    ],
)
async def test_what_others_name_is_text(evil: str) -> None:
    """Names, versions, namespaces, pods, errors and sources are text, in the page and in events, whatever they are."""
    async with _reading(make_hostile_facts(evil)) as page:
        whole = await page.read()
        async with page.follow() as events:
            change = await events.take_change()
    fragments = "".join((*change["sections"].values(), *change["rows"].values()))
    for html in (whole, fragments):
        found = _Reader(html)
        assert not found.tags - set(_TAGS.split())
        assert not found.attributes - set(_ATTRIBUTES.split())
        assert "img" not in found.tags
        assert html.count("<script") == (html is whole)
        assert all(text.isprintable() for text in found.texts)
        assert "hunter2" not in html
    assert change["title"].endswith(": Holdfast")


# --- how it is sent ------------------------------------------------------------------------------------------------


async def test_the_policy_allows_this_page_and_nothing_else() -> None:
    """The policy names the hash of the style and of the script that are in the page, and no other place; no element has
    a style or a handler of its own; the page asks no other for anything."""
    async with _reading(make_facts(make_version())) as page:
        status, headers, body = await page.ask()
    text = body.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert policy.pop(name) == f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert policy == {**nothing, "connect-src": "'self'", "img-src": "data:"}
    assert not re.findall(r"<[^>]*\s(?:style|on\w+)=", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL))
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert headers["cache-control"] == "no-store"
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5, *;q=0", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("identity", False),
        ("", False),
        ("x-gzip-ish", False),
    ],
)
async def test_the_page_is_compressed_where_that_is_accepted(accepted: str, is_packed: bool) -> None:
    """gzip is sent to whom accepts it, and the same page to every other client."""
    async with _reading(make_facts(make_version())) as page:
        _, headers, body = await page.ask(Accept_Encoding=accepted)
    assert headers.get("content-encoding") == ("gzip" if is_packed else None)
    assert headers["vary"] == "Accept-Encoding"
    assert int(headers["content-length"]) == len(body)
    assert (gzip.decompress(body) if is_packed else body).startswith(b"<!doctype html>")


async def test_500_versions_are_few_bytes() -> None:
    """A page of 500 versions with users and long names takes at most 60 kB over the wire."""
    versions = [
        make_version(
            make_status(
                f"team-{number % 25}/some-model-{number // 5}",
                f"2026-11-{number % 28:02d}",
                held=f"sha256:{hashlib.sha256(b'%d' % number).hexdigest()}",
                source=f"s3://weights/team-{number % 25}/some-model-{number // 5}/",
            ),
            users=(f"team-{number % 25}/server-{hashlib.md5(b'%d' % number).hexdigest()[:5]}",)
            if number % 5 == 0
            else (),
        )
        for number in range(500)
    ]
    async with _reading(make_facts(*versions)) as page:
        _, _, body = await page.ask(Accept_Encoding="gzip")
    assert len(body) <= 60_000


async def test_methods_of_the_page() -> None:
    """HEAD is answered like GET without a body; others are refused, and name what there is."""
    async with _reading(make_facts()) as page:
        for path in ("/", "/page/events"):
            status, headers, body = await page.ask(path, "HEAD")
            assert (status, body) == (200, b"")
            assert headers["content-type"].startswith("text/html" if path == "/" else "text/event-stream")
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                status, headers, _ = await page.ask(path, method)
                assert (status, headers["allow"]) == (405, "GET, HEAD")


# --- how it lives --------------------------------------------------------------------------------------------------


async def test_a_reader_of_the_newest_page_gets_what_changes_and_nothing_else() -> None:
    """Events go on from the page that was sent: nothing comes for what it has, and one row for a version that moves."""
    still, moving = make_version(), make_status(version="v2", state=State.FETCHING, held=None, bytes_done=0)
    async with _reading(make_facts(still, make_version(moving, size=None))) as page:
        position = _find_position(await page.read())
        async with page.follow(position) as events:
            assert (events.status, events.headers["content-type"]) == (200, "text/event-stream")
            moved = make_version(
                make_status(version="v2", state=State.FETCHING, held=None, bytes_done=GIB // 2), size=None
            )
            page.facts.facts = make_facts(still, moved)
            fields = await events.take()
            change = json.loads(fields["data"])
            (row,) = change["rows"].values()
            assert "50 %" in row
            assert "order" not in change
            assert "disk" not in change["sections"]
            page.facts.facts = make_facts(still)
            change = await events.take_change()
            assert (change["rows"], len(change["order"])) == ({}, 1)
        # A reader that missed it gets it now, by the header of a browser that connects again too.
        for after, header in ((fields["id"], {}), ("", {"Last-Event-ID": fields["id"]})):
            async with page.follow(after, **header) as events:
                assert (await events.take_change())["order"] == change["order"]


async def test_a_slow_reader_misses_nothing() -> None:
    """What changes while a reader has not taken an event is in the next one, whether that was the first or a later
    one."""
    told = ToldFacts(make_facts())
    page = NodePage(told, "node-a", 8)
    headers = {"accept-encoding": "identity"}
    request = HttpRequest("GET", "/", headers, b"", asyncio.Transport())
    stream = await page.follow(request)
    assert isinstance(stream, StreamedResponse)
    seen = ""
    for version in ("v1", "v2", "v3"):
        seen += (await anext(stream.pieces)).decode()
        told.facts = make_facts(make_version(make_status(version=version)))
        await page.show(request)  # others have the page rendered in between
        told.facts = make_facts(*told.facts.versions, rejected=((version, 1, "never"),))
    seen += (await anext(stream.pieces)).decode()
    await stream.pieces.aclose()
    assert all(f"<b>{version}</b>" in seen for version in ("v1", "v2", "v3"))


async def test_changes_within_a_second_are_one_event() -> None:
    """Readers are told at most once a second, of all that changed, and from one rendering for all of them."""
    async with _reading(make_facts()) as page, page.follow() as first, page.follow() as second:
        await first.take()
        await second.take()
        collected = page.facts.collected
        for number in range(50):
            page.facts.facts = make_facts(make_version(make_status(version=f"v{number}")))
            await asyncio.sleep(0)
        change = await first.take_change()
        assert change == await second.take_change()
        assert "v49" in "".join(change["rows"].values())
        assert page.facts.collected == collected + 1


@pytest.mark.parametrize("after", ["", "nonsense", "00000000.00000000-3", "<b>", "0" * 5000])
async def test_a_position_of_no_use_gets_everything_or_a_reload(after: str) -> None:
    """A reader of another daemon's page gets all; one whose page has another script is told to load it again."""
    async with _reading(make_facts(make_version())) as page, page.follow(after) as events:
        fields = await events.take()
        if after.startswith("00000000.0"):
            assert fields["event"] == "reload"
        else:
            assert len(json.loads(fields["data"])["order"]) == 1


async def test_a_daemon_that_started_anew_tells_all() -> None:
    """A page that was open over a restart gets everything of the new daemon, whatever revision it had."""
    async with _reading(make_facts(make_version())) as page:
        position = _find_position(await page.read())
    async with _reading(make_facts(make_version())) as page, page.follow(position) as events:
        change = await events.take_change()
        assert set(change["sections"]) >= {"head", "tiles", "disk", "sources", "problems", "waiting"}
        assert len(change["rows"]) == 1


async def test_past_the_limit_of_pages_the_next_gets_503() -> None:
    """A bounded number of pages is kept current; the next one hears it, is served the page itself, and gets the place
    of one that goes."""
    async with _reading(make_facts(), most_readers=2) as page:
        async with page.follow() as first:
            await first.take()
            async with page.follow() as second:
                await second.take()
                status, headers, body = await page.ask("/page/events")
                assert (status, headers["retry-after"]) == (503, "10")
                assert b"2 pages are open" in body
                assert (await page.ask())[0] == 200
            await _until_followed(page)
        assert (await page.ask("/page/events", "HEAD"))[0] == 200


async def _until_followed(page: _Reading) -> None:
    async with asyncio.timeout(100):
        while True:
            async with page.follow() as events:
                if events.status == 200:
                    return
            await asyncio.sleep(0.01)


async def test_a_stop_ends_open_pages_in_good_order() -> None:
    """The end of the server ends each stream with the end of its body."""
    async with _reading(make_facts()) as page, page.follow() as events:
        await events.take()
        await page.server.close()
        with pytest.raises(AssertionError, match="the stream ended"):
            await events.take()


async def test_a_page_without_news_hears_that_the_daemon_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that are silent would be closed by what stands in between: a beat comes, with the daemon's time."""
    monkeypatch.setattr("cached.daemon.page.page._BEAT_S", 0.0)
    async with _reading(make_facts()) as page, page.follow(_find_position(await page.read())) as events:
        fields = await events.take()
        assert fields["event"] == "beat"
        assert float(fields["data"]) > 1.7e9
        assert page.facts.collected == 1
