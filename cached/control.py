"""The control socket: `pull`, `gc` and `pin` for whoever may write to the root.

Law: a Unix socket under `private/`, mode 0600: the file system decides who may speak. HTTP/1.1 with JSON bodies; errors
are `{"error": {code, message, remedy, permanent}}`.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from aiohttp import web

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.http import errors, status_handler


class Commands(Protocol):
    """What a person may tell the daemon."""

    async def pull(self, ref: ModelRef, pin: Digest | None) -> str:
        """Want a version; returns the state it is in now."""

    async def gc(self) -> list[dict[str, Any]]:
        """Evict what nobody wants or uses; returns what went."""

    async def gc_plan(self) -> list[dict[str, Any]]:
        """What `gc` would evict now."""

    async def pin(self, ref: ModelRef) -> None: ...

    async def unpin(self, ref: ModelRef) -> None: ...

    def status(self) -> dict[str, Any]: ...


def control(commands: Commands) -> web.Application:
    """The application of the control socket."""
    app = web.Application(middlewares=[errors])

    async def pull(request: web.Request) -> web.Response:
        body = await _body(request)
        digest = body.get("digest")
        pin = None if digest is None else Digest.parse(_text(body, "digest"))
        return web.json_response({"state": await commands.pull(_ref(body), pin)})

    async def gc(request: web.Request) -> web.Response:
        body = await _body(request)
        dry_run = body.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise _bad(f"expected `dry_run` as true or false, found {dry_run!r}")
        gone = await (commands.gc_plan() if dry_run else commands.gc())
        return web.json_response({"versions": gone, "bytes": sum(each["bytes"] for each in gone)})

    async def pin(request: web.Request) -> web.Response:
        await commands.pin(_ref(await _body(request)))
        return web.json_response({"pinned": True})

    async def unpin(request: web.Request) -> web.Response:
        await commands.unpin(_ref(await _body(request)))
        return web.json_response({"pinned": False})

    for name, handler in (("pull", pull), ("gc", gc), ("pin", pin), ("unpin", unpin)):
        app.router.add_post(f"/v1/{name}", handler)
    app.router.add_get("/v1/status", status_handler(commands.status))
    return app


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


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise _bad(f"expected `{key}` as text, found {value!r}")
    return value


def _bad(message: str) -> Permanent:
    return Permanent("bad_request", message, "see `holdfast pull --help`")
