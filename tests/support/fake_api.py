"""An API server in a thread, over real sockets: list, watch, patch and events as Kubernetes documents them, and faults.

Use from synchronous and asynchronous tests alike:

    with FakeApi() as api:
        api.create("/api/v1/nodes", {"metadata": {"name": "node1"}})
        ... connect to api.url, or give api.cluster() to a KubeClient ...

What it does not do: validate schemas, admit, garbage-collect, apply (server-side apply), or authorise; use `refuse`.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from cached.kube.cluster import ApiServer
from tests.support.certificates import Certificates
from tests.support.kube_shapes import (
    answer_json,
    key_of,
    kind_name,
    line,
    patched,
    resource_of,
    selected,
    shown,
    validate,
)
from tests.support.kube_store import ApiError, Key, Kind, Match, Object, Store, merge, told

START_WITHIN_S = 100.0


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass
class Fault:
    """What happens to the next requests of this method whose path matches: `act` is an answer, or "drop" or "hang"."""

    method: str
    path: re.Pattern[str]
    act: web.Response | str
    times: float


@dataclass(eq=False)
class Watcher:
    """One watch under way. `order`: what its server does next besides sending changes."""

    query: Mapping[str, str]
    order: list[str] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class FakeApi:
    """One cluster's API. `tokens` None: every client is let in; `gone_as`: how a watch learns that its version is
    too old, as an HTTP `status` or as an ERROR `event`."""

    def __init__(self, certificates: Certificates | None = None, tokens: set[str] | None = None) -> None:
        self.certificates = certificates
        self.tokens = tokens
        self.gone_as = "event"
        self.expire_pages = False  # whether every continue token is too old by the time it is used
        self.store = Store()
        self.asked: list[Asked] = []
        self.watchers: list[Watcher] = []
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fake API server", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._dropped: asyncio.Event
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_WITHIN_S), "the fake API server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_WITHIN_S)
        assert not self._thread.is_alive(), "the fake API server did not stop"

    @property
    def url(self) -> str:
        return f"{'https' if self.certificates else 'http'}://127.0.0.1:{self._port}"

    def cluster(self) -> ApiServer:
        """How to reach it; with the first of the tokens that are let in."""
        authority = self.certificates.authority if self.certificates else None
        return ApiServer(self.url, authority=authority, token=next(iter(self.tokens or ()), None))

    # --- objects, from the test's side -----------------------------------------------------------------------------

    def create(self, path: str, body: Object) -> Object:
        """Make an object in the collection at `path`, such as `/api/v1/namespaces/default/pods`."""
        kind, namespace, _ = resource_of(path)
        with self._changing():
            return self.store.create(kind, namespace, body)

    def get(self, path: str) -> Object:
        with self._lock:
            return self.store.get(key_of(path))

    def all(self, path: str) -> list[Object]:
        """Every object of a collection."""
        kind, namespace, _ = resource_of(path)
        with self._lock:
            return self.store.list(kind, namespace, lambda _: True, 0, "").items

    def patch(self, path: str, change: Object) -> Object:
        """Merge `change` into an object."""
        with self._changing():
            key = key_of(path)
            return self.store.update(key, merge(self.store.get(key), change))

    def delete(self, path: str) -> Object:
        with self._changing():
            return self.store.delete(key_of(path))

    def compact(self) -> None:
        """Forget the history: an old version, or an old continue token, gets 410."""
        with self._lock:
            self.store.compact()

    # --- faults ----------------------------------------------------------------------------------------------------

    def refuse(
        self, method: str, path: str, code: int, *, times: float = 1, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the next `times` requests whose path matches the expression `path` with a Status of this code."""
        reason = {401: "Unauthorized", 403: "Forbidden", 410: "Expired", 429: "TooManyRequests"}.get(code, "Failure")
        body = json.dumps(ApiError(code, reason, f"scripted: {code} {reason}").status).encode()
        answer = web.Response(status=code, body=body, headers=headers, content_type="application/json")
        self._fault(method, path, answer, times)

    def garble(self, method: str, path: str, body: bytes, *, times: float = 1) -> None:
        """Answer the next requests 200 with `body`, as a captive portal or a wrong address does."""
        self._fault(method, path, web.Response(body=body), times)

    def answer(self, method: str, path: str, document: Mapping[str, Any]) -> None:
        """Answer the next request whose path matches the expression `path` with this document."""
        body = json.dumps(document).encode()
        self._fault(method, path, web.Response(status=201, body=body, content_type="application/json"), 1)

    def drop(self, method: str, path: str, *, times: float = 1) -> None:
        """Close the connection of the next requests instead of answering."""
        self._fault(method, path, "drop", times)

    def hang(self, method: str, path: str, *, times: float = 1) -> None:
        """Never answer the next requests."""
        self._fault(method, path, "hang", times)

    def drop_hanging(self) -> None:
        """Close the connections of the requests that hang."""
        self._loop.call_soon_threadsafe(self._drop_hanging)

    def _drop_hanging(self) -> None:
        self._dropped.set()
        self._dropped = asyncio.Event()

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()

    def order_watchers(self, order: str) -> None:
        """Tell every watch under way: `bookmark`, `end` (as on timeout), `drop`, `mute` (say nothing any more), `error
        CODE`, `garbage`."""
        with self._changing():
            for watcher in self.watchers:
                watcher.order.append(order)

    def _fault(self, method: str, path: str, act: web.Response | str, times: float) -> None:
        with self._lock:
            self._faults.append(Fault(method, re.compile(path), act, times))

    def _take_fault(self, request: web.Request) -> web.Response | str | None:
        with self._lock:
            for fault in self._faults:
                if fault.method == request.method and fault.path.search(request.path) and fault.times > 0:
                    fault.times -= 1
                    return fault.act
        return None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock, and wake the watchers afterwards."""
        with self._lock:
            yield
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for watcher in self.watchers:
            watcher.wake.set()

    # --- the server's side -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._dropped = asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=4 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        context = self.certificates.server_context() if self.certificates else None
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self._port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        with self._lock:
            self.asked.append(Asked(request.method, request.path, dict(request.query), dict(request.headers), body))
        fault = self._take_fault(request)
        if fault == "drop":
            _abort(request)
        if fault == "hang":
            await self._dropped.wait()
            _abort(request)
        if isinstance(fault, web.Response):  # one response can be sent once
            return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        try:
            self._authenticate(request)
            if request.method == "GET" and request.query.get("watch") in ("true", "1"):
                return await self._watch(request)
            with self._changing():
                code, answer = self._answer(request, body)
            return answer_json(code, shown(answer, request))
        except ApiError as error:
            return answer_json(error.code, error.status)

    def _authenticate(self, request: web.Request) -> None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and bearer not in self.tokens:
            raise ApiError(401, "Unauthorized", "Unauthorized")

    def _answer(self, request: web.Request, body: Any) -> tuple[int, Object]:
        kind, namespace, name = resource_of(request.path)
        key = Key(kind, namespace, name)
        if not name:
            if request.method == "GET":
                return 200, self._list(request, kind, namespace)
            if request.method == "POST":
                validate(kind, namespace, body)
                return 201, self.store.create(kind, namespace, body)
        elif request.method == "GET":
            return 200, self.store.get(key)
        elif request.method == "PUT":
            return 200, self.store.update(key, body)
        elif request.method == "DELETE":
            return 200, self.store.delete(key)
        elif request.method == "PATCH":
            return 200, self.store.update(key, patched(request.content_type, self.store.get(key), body))
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _list(self, request: web.Request, kind: Kind, namespace: str) -> Object:
        query = request.query
        match = selected(request, kind)
        version, token = query.get("resourceVersion", ""), query.get("continue", "")
        if token and version:
            raise ApiError(400, "BadRequest", "specifying resource version is not allowed when using continue")
        if version not in ("", "0") and int(version) > self.store.version:
            raise ApiError(504, "Timeout", "Too large resource version")
        if token and self.expire_pages:
            self.store.compact()
        # From the watch cache everything comes at once, whatever the limit.
        limit = 0 if version == "0" else int(query.get("limit", "0"))
        page = self.store.list(kind, namespace, match, limit, token)
        metadata: Object = {"resourceVersion": str(page.version)}
        if page.more:
            metadata["continue"] = page.more
        return {
            "kind": f"{kind_name(kind)}List",
            "apiVersion": kind.group_version,
            "metadata": metadata,
            "items": page.items,
        }

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        kind, namespace, _ = resource_of(request.path)
        match = selected(request, kind)
        version = request.query.get("resourceVersion", "")
        with self._lock:
            cursor = self.store.version if version in ("", "0") else int(version)
            gone = cursor < self.store.compacted
            first = self.store.list(kind, namespace, match, 0, "").items if version in ("", "0") else []
            if gone and self.gone_as == "status":
                raise ApiError(410, "Expired", f"too old resource version: {cursor} ({self.store.compacted})")
            watcher = Watcher(request.query)
            if gone:
                watcher.order.append("error 410")
            self.watchers.append(watcher)
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            for each in first:
                await response.write(line(request, kind, {"type": "ADDED", "object": each}))
            where = _Where(kind, namespace, match, cursor)
            try:
                async with asyncio.timeout(float(request.query.get("timeoutSeconds", "1800"))):
                    await self._follow(request, response, watcher, where)
            except TimeoutError:
                await self._bookmark(request, response, where)
            return response
        finally:
            with self._lock:
                self.watchers.remove(watcher)

    async def _follow(
        self, request: web.Request, response: web.StreamResponse, watcher: Watcher, where: _Where
    ) -> None:
        """Send changes and do as ordered until there is an end."""
        while True:
            watcher.wake.clear()
            with self._lock:
                changes = [each for each in self.store.history if each.version > where.version]
                where.version = self.store.version
                orders, watcher.order = watcher.order, []
            for change in changes:
                if change.kind == where.kind:
                    event = told(change, where.match)
                    if event is not None:
                        await response.write(line(request, where.kind, event))
            for order in orders:
                if order == "bookmark":
                    await self._bookmark(request, response, where)
                elif order == "end":
                    return
                elif order == "mute":
                    await self._stop.wait()
                elif order == "garbage":
                    await response.write(b'{"type": "ADDED", "obj\n')
                elif order == "drop":
                    _abort(request)
                else:
                    code = int(order.removeprefix("error "))
                    status = ApiError(code, "Expired" if code == 410 else "InternalError", f"scripted: {code}").status
                    await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                    return
            await watcher.wake.wait()

    async def _bookmark(self, request: web.Request, response: web.StreamResponse, where: _Where) -> None:
        if request.query.get("allowWatchBookmarks") in ("true", "1"):
            metadata = {"resourceVersion": str(where.version), "creationTimestamp": None}
            bookmark = {"type": "BOOKMARK", "object": {"metadata": metadata, "spec": {"containers": None}}}
            await response.write(line(request, where.kind, bookmark))


@dataclass
class _Where:
    """What a watch selects and how far it is."""

    kind: Kind
    namespace: str
    select: Match
    version: int

    @property
    def match(self) -> Callable[[Object], bool]:
        return lambda each: self.namespace in ("", each["metadata"].get("namespace", "")) and self.select(each)


def _abort(request: web.Request) -> None:
    """End the connection without a word."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError
