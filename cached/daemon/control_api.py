"""The control socket: `pull`, `gc`, `pin` and `unpin` over HTTP/1.1 with JSON bodies.

Law: a Unix socket under `private/`, mode 0600: file permissions are the access control. Errors are
`{"error": {code, message, remedy, permanent}}`.
"""

from __future__ import annotations

import asyncio
import json
import select
import time
from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cached.contract.digest import Digest
from cached.contract.errors import Permanent, Transient
from cached.contract.program.options import DEADLINE_HEADER
from cached.contract.reference import ModelRef
from cached.daemon.read_api import answer_errors, make_status_handler

# Raises once the client has disconnected or its deadline has passed: the command then stops.
Check = Callable[[], None]

_LOOK_S = 1.0
_called_off: set[asyncio.Future[web.StreamResponse]] = set()  # the loop keeps only weak references to tasks


class Commands(Protocol):
    """The commands of the control socket."""

    async def pull(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> dict[str, Any]:
        """Want a version; `refresh`: resolve its source again. Return `{"pull": id, "state", "digest", "error"}`."""

    def get_pull(self, id_: str) -> dict[str, Any] | None:
        """Return the current answer of the pull with this id; None for an unknown id."""

    async def gc(self, check: Check) -> list[dict[str, Any]]:
        """Evict the versions without want or lease and return them; `check` is called before each step."""

    async def plan_gc(self) -> list[dict[str, Any]]:
        """Return what `gc` would evict now."""

    async def pin(self, ref: ModelRef, check: Check) -> None:
        """Pin a version; raises where neither the inventory nor the catalog has it."""

    async def unpin(self, ref: ModelRef, check: Check) -> tuple[bool, bool]:
        """Unpin a version; return whether the catalog still pins it, and whether it was pinned."""

    def status(self) -> dict[str, Any]: ...

    def disk_error(self) -> Transient | None:
        """Return the error while the root's disk does not answer; None while it does."""


def make_control_app(commands: Commands) -> web.Application:
    """Return the application of the control socket."""
    app = web.Application(middlewares=[answer_errors, _answering(commands)])

    async def pull(request: web.Request) -> web.Response:
        body = await _body(request)
        digest = body.get("digest")
        pin = None if digest is None else Digest.parse(_text(body, "digest"))
        _check_of(request)()
        return web.json_response(await commands.pull(_ref(body), pin, refresh=_flag(body, "refresh")))

    async def pulled(request: web.Request) -> web.Response:
        answer = commands.get_pull(request.match_info["id"])
        if answer is None:
            raise Permanent(
                "unknown_pull", "expected the id of a pull of the last ten minutes, found none", "pull again"
            )
        return web.json_response(answer)

    async def gc(request: web.Request) -> web.Response:
        body = await _body(request)
        dry_run = _flag(body, "dry_run")
        check = _check_of(request)
        check()
        gone = await (commands.plan_gc() if dry_run else commands.gc(check))
        return web.json_response({"versions": gone, "bytes": sum(each["bytes"] for each in gone)})

    async def pin(request: web.Request) -> web.Response:
        await commands.pin(_ref(await _body(request)), _check_of(request))
        return web.json_response({"pinned": True})

    async def unpin(request: web.Request) -> web.Response:
        pinned, was_pinned = await commands.unpin(_ref(await _body(request)), _check_of(request))
        return web.json_response({"pinned": pinned, "was_pinned": was_pinned})

    for name, handler in (("pull", pull), ("gc", gc), ("pin", pin), ("unpin", unpin)):
        app.router.add_post(f"/v1/{name}", handler)
    app.router.add_get("/v1/pull/{id}", pulled)
    app.router.add_get("/v1/status", make_status_handler(commands.status))
    return app


def _answering(commands: Commands) -> Middleware:
    """Answer a command with an error while the root's disk hangs; cancel the command, which ends after its current
    step."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST":
            return await handler(request)
        work = asyncio.ensure_future(handler(request))
        try:
            while not work.done():
                if (trouble := commands.disk_error()) is not None:
                    raise trouble
                await asyncio.wait([work], timeout=_LOOK_S)
            return work.result()
        finally:
            work.cancel()
            _called_off.add(work)
            work.add_done_callback(_forget)

    return answer


def _forget(work: asyncio.Future[web.StreamResponse]) -> None:
    _called_off.discard(work)
    if not work.cancelled():
        work.exception()  # the client has this error, or the disk's


def _check_of(request: web.Request) -> Check:
    """Return a check that raises `Transient` (`client_gone`) once the client of `request` waits no longer.

    It asks the kernel: asyncio reports a closed connection only after it has read all earlier bytes.
    """
    text = request.headers.get(DEADLINE_HEADER)
    try:
        deadline = float("inf") if text is None else float(text)
    except ValueError as error:
        raise _bad(f"expected `{DEADLINE_HEADER}` as seconds, found {text!r}") from error

    def check() -> None:
        transport = request.transport
        if transport is None or transport.is_closing() or time.monotonic() > deadline or _is_hung_up(transport):
            raise Transient("client_gone", f"{request.path}: the client waits no longer", "send the command again")

    return check


def _is_hung_up(transport: asyncio.Transport) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)  # POLLHUP is reported in any case
    return any(event & select.POLLHUP for _, event in poll.poll(0))


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise _bad(f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _bad(f"expected a JSON object, found {type(body).__name__}")
    return body


def _ref(body: dict[str, Any]) -> ModelRef:
    return ModelRef(_text(body, "model"), _text(body, "version"))


def _flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise _bad(f"expected `{key}` as true or false, found {value!r}")
    return value


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise _bad(f"expected `{key}` as text, found {value!r}")
    return value


def _bad(message: str) -> Permanent:
    return Permanent("bad_request", message, "see `holdfast pull --help`")
