"""The page and its events: renders once for all readers, and gives each what it lacks.

Law: no task of its own: without a reader nothing runs, and each reader's stream looks once a second, all of them at
the same moments. Readers hold a position (`state.py`), no queue: a slow one gets fewer events, each with all that
changed since its last one.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import zlib
from collections.abc import AsyncGenerator
from urllib.parse import parse_qs

from cached.daemon.api.read_api import RenderedPage
from cached.daemon.http.messages import TEXT, Answer, HttpRequest, StreamedResponse, WholeResponse, accepts_gzip
from cached.daemon.page import sections
from cached.daemon.page.disk import render_disk
from cached.daemon.page.document import ASSETS, EVENT_HEADERS, PAGE_HEADERS, render_document, render_event
from cached.daemon.page.facts import Facts, FactsSource
from cached.daemon.page.rows import VersionRows
from cached.daemon.page.state import PageContent, PageState

MOST_READERS = 32  # streams at once; a browser that gets 503 asks again every 5 s
_TICK_S = 1.0
_SHARE = 20
_BEAT_S = 15.0  # of events without news: proxies and port forwards end connections that are silent
_RETRY_MS = 2000  # until a browser connects again
_HTML = "text/html; charset=utf-8"
_EVENTS = "text/event-stream"
_COMPRESSION, _GZIP = 6, zlib.MAX_WBITS | 16  # the sum asks zlib for gzip's head and end
_POSITION = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{8})-([0-9]{1,18})")


class NodePage:
    """The page of one daemon, for `most_readers` streams at once, `MOST_READERS` at most."""

    def __init__(self, facts: FactsSource, node: str, most_readers: int) -> None:
        self._facts = facts
        self._node = node
        self._most_readers = min(MOST_READERS, most_readers)
        self._readers = 0
        self._life = os.urandom(4).hex()  # revisions of an earlier daemon mean nothing here
        self._state = PageState()
        self._rows = VersionRows()
        self._seen: tuple[object, ...] | None = None
        self._resume_at = 0.0  # monotonic seconds; of facts that are collected for readers
        self._page = RenderedPage(self._render)
        self._event: tuple[tuple[int, int], bytes] = (0, 0), b""  # the last one: after which revision, up to which

    async def show(self, request: HttpRequest) -> WholeResponse:
        """Answer `GET /`."""
        await self._facts.measure()
        packed = await self._page.get_body()
        if accepts_gzip(request):
            return WholeResponse(packed, _HTML, headers=(*PAGE_HEADERS, ("Content-Encoding", "gzip")))
        return WholeResponse(zlib.decompress(packed, _GZIP), _HTML, headers=PAGE_HEADERS)

    async def follow(self, request: HttpRequest) -> Answer:
        """Answer `GET /page/events`: what changed since the reader's position, then what changes."""
        if self._readers >= self._most_readers and request.method != "HEAD":
            text = f"503: {self._readers} pages are open here, as many as the daemon serves; close one\n"
            return WholeResponse(text.encode(), TEXT, 503, headers=(*EVENT_HEADERS, ("Retry-After", "10")))
        after = parse_qs(request.query).get("after", [""])[-1]
        position = request.headers.get("last-event-id") or after
        # Counted when the connection asks for the first piece, which it does without a pause in between.
        return StreamedResponse(self._list_events(position), _EVENTS, EVENT_HEADERS)

    async def _list_events(self, position: str) -> AsyncGenerator[bytes, None]:
        self._readers += 1
        try:
            found = _POSITION.fullmatch(position)
            if found is not None and found[1] != ASSETS:
                yield b"event: reload\ndata: \n\n"
                return
            await self._update()
            known = int(found[3]) if found is not None and found[2] == self._life else -1
            revision, told_at = self._state.revision, time.monotonic()
            yield f"retry: {_RETRY_MS}\n\n".encode() + (self._make_event(known) if known != revision else b"")
            while True:
                await asyncio.sleep(_TICK_S - time.monotonic() % _TICK_S)
                await self._update()
                if revision != self._state.revision:
                    revision, event = self._state.revision, self._make_event(revision)
                elif time.monotonic() - told_at >= _BEAT_S:
                    event = f"event: beat\ndata: {time.time():.3f}\n\n".encode()
                else:
                    continue
                told_at = time.monotonic()
                yield event
        finally:
            self._readers -= 1

    def _make_event(self, revision: int) -> bytes:
        """Return the event of all that changed since `revision`; the same for all readers that have it."""
        span = revision, self._state.revision
        if self._event[0] != span:
            changes = self._state.list_changes(revision)
            self._event = span, render_event(changes, self._format_position(span[1]), time.time())
        return self._event[1]

    def _format_position(self, revision: int) -> str:
        return f"{ASSETS}.{self._life}-{revision}"

    async def _update(self) -> None:
        """Take the facts for the readers, in a twentieth of the time at most, however many versions there are."""
        await self._facts.measure()
        began = time.monotonic()
        if began >= self._resume_at:
            self._take_facts()
            self._resume_at = began + _SHARE * (time.monotonic() - began)

    def _take_facts(self) -> None:
        seen = self._facts.fingerprint()
        if seen != self._seen:
            self._seen = seen
            self._state.replace(self._make_content(self._facts.collect()))

    def _render(self) -> bytes:
        """Return the page, compressed."""
        self._take_facts()
        position = self._format_position(self._state.revision)
        page = render_document(self._node, self._state.content, position, time.time())
        packer = zlib.compressobj(_COMPRESSION, wbits=_GZIP)
        return packer.compress(page.encode()) + packer.flush()

    def _make_content(self, facts: Facts) -> PageContent:
        problems = sections.list_problems(facts)
        empty = "" if facts.versions else "<p class=soft>No version is wanted or held here yet.</p>"
        return PageContent(
            sections.render_title(facts, len(problems)),
            {
                "head": sections.render_head(facts),
                "tiles": sections.render_tiles(facts, problems),
                "problems": sections.render_problems(problems),
                "waiting": sections.render_waiting(facts.versions),
                "disk": render_disk(facts.disk),
                "sources": sections.render_sources(facts.sources),
                "earlier": sections.render_earlier(facts),
                "empty": empty,
            },
            self._rows.render(facts.versions),
        )
