"""The control socket: `pull`, `gc`, `pin`, `unpin`, `verify`, `import` and `explain` over HTTP/1.1 with JSON bodies.

Law: a Unix socket under `private/`, mode 0600: file permissions are the access control. Errors are
`{"error": {code, message, remedy, permanent}}`. A command is answered after the status files tell what it did.
"""

from __future__ import annotations

import asyncio
import json
import select
import time
from functools import partial
from typing import Any

from cached.contract.archive.import_stream import PROTOCOL
from cached.contract.digest import Digest
from cached.contract.errors import Permanent, Transient
from cached.contract.program.options import DEADLINE_HEADER
from cached.contract.reference import ModelRef
from cached.daemon.api.explain import Explanations
from cached.daemon.api.read_api import make_status_handler
from cached.daemon.http.messages import Answer, Handler, HttpRequest, Upgrade, WholeResponse, make_json, make_router
from cached.daemon.imports import Imports
from cached.daemon.service import Check, DaemonService

_CHECK_S = 1.0
_cancelled: set[asyncio.Future[Answer]] = set()  # the loop keeps only weak references to tasks


class ControlApi:
    """The endpoints of the control socket: each reads its request and calls the service."""

    def __init__(self, service: DaemonService, imports: Imports, explanations: Explanations) -> None:
        self._service = service
        self._imports = imports
        self._explanations = explanations

    def make_handler(self) -> Handler:
        """Return the handler of the control socket."""
        return make_router(
            {
                ("POST", "/v1/pull"): self._command(self._pull),
                ("POST", "/v1/gc"): self._command(self._gc),
                ("POST", "/v1/pin"): self._command(self._pin),
                ("POST", "/v1/unpin"): self._command(self._unpin),
                ("POST", "/v1/verify"): self._command(self._verify),
                ("POST", "/v1/import"): self._begin_import,
                ("POST", "/v1/files"): self._list_files,
                ("POST", "/v1/explain"): self._explain,  # also while the disk hangs: that may be the answer
                ("GET", "/v1/pull/*"): _answer_while_disk_hangs(self._service, self._get_pull),
                ("GET", "/v1/status"): make_status_handler(self._service.make_status),
                ("GET", "/v1/waiting"): self._list_waiting,
            }
        )

    def _command(self, handler: Handler) -> Handler:
        return _answer_while_disk_hangs(self._service, _answer_once_told(self._service, handler))

    async def _pull(self, request: HttpRequest) -> WholeResponse:
        body = _body(request)
        digest = body.get("digest")
        pin = None if digest is None else Digest.parse(_text(body, "digest"))
        _make_check(request)()
        return make_json(await self._service.pull(_ref(body), pin, refresh=_flag(body, "refresh")))

    async def _get_pull(self, request: HttpRequest) -> WholeResponse:
        answer = self._service.get_pull(request.segment)
        if answer is None:
            raise Permanent(
                "unknown_pull", "expected the id of a pull of the last ten minutes, found none", "pull again"
            )
        if answer["digest"] is not None or answer["error"] is not None:
            await self._service.write_statuses()
        return make_json(answer)

    async def _gc(self, request: HttpRequest) -> WholeResponse:
        body = _body(request)
        dry_run = _flag(body, "dry_run")
        check = _make_check(request)
        check()
        gone = await (self._service.plan_gc() if dry_run else self._service.gc(check))
        stay = {"staying": self._service.list_staying()} if dry_run else {}
        return make_json({"versions": gone, "bytes": sum(each["bytes"] for each in gone), **stay})

    async def _pin(self, request: HttpRequest) -> WholeResponse:
        await self._service.pin(_ref(_body(request)), _make_check(request))
        return make_json({"pinned": True})

    async def _unpin(self, request: HttpRequest) -> WholeResponse:
        pinned, was_pinned = await self._service.unpin(_ref(_body(request)), _make_check(request))
        return make_json({"pinned": pinned, "was_pinned": was_pinned})

    async def _verify(self, request: HttpRequest) -> WholeResponse:
        ref = _ref(_body(request))
        _make_check(request)()
        return make_json(await self._service.verify(ref))

    async def _list_files(self, request: HttpRequest) -> WholeResponse:
        return make_json(self._service.list_files(_ref(_body(request))))

    async def _explain(self, request: HttpRequest) -> WholeResponse:
        body = _body(request)
        if "pod" in body:
            return make_json(await self._explanations.explain_pod(_text(body, "pod")))
        return make_json(await self._explanations.explain_version(_ref(body)))

    async def _list_waiting(self, _request: HttpRequest) -> WholeResponse:
        return make_json({"pods": self._service.list_waiting(), "disk": self._service.describe_disk()})

    async def _begin_import(self, request: HttpRequest) -> Upgrade:
        body = _body(request)
        ref, replace = _ref(body), _flag(body, "replace")
        if request.headers.get("upgrade", "").lower() != PROTOCOL:
            raise _bad(f"expected `Upgrade: {PROTOCOL}`, found {request.headers.get('upgrade')!r}")
        if (trouble := self._service.find_disk_error()) is not None:
            raise trouble
        self._imports.require_room()
        return Upgrade(PROTOCOL, partial(self._imports.receive, ref, replace=replace))


def _answer_once_told(service: DaemonService, command: Handler) -> Handler:
    """Answer a command, also with its error, after the status files tell what it did: who asked may read them next."""

    async def answer(request: HttpRequest) -> Answer:
        try:
            return await command(request)
        finally:
            await service.write_statuses()

    return answer


def _answer_while_disk_hangs(service: DaemonService, command: Handler) -> Handler:
    """Answer a command with an error while the root's disk hangs; cancel the command, which ends after its current
    step."""

    async def answer(request: HttpRequest) -> Answer:
        work = asyncio.ensure_future(command(request))
        try:
            while not work.done():
                if (trouble := service.find_disk_error()) is not None:
                    raise trouble
                await asyncio.wait([work], timeout=_CHECK_S)
            return work.result()
        finally:
            work.cancel()
            _cancelled.add(work)
            work.add_done_callback(_forget)

    return answer


def _forget(work: asyncio.Future[Answer]) -> None:
    _cancelled.discard(work)
    if not work.cancelled():
        work.exception()  # the client has this error, or the disk's


def _make_check(request: HttpRequest) -> Check:
    """Return a check that raises `Transient` (`client_gone`) once the client of `request` waits no longer.

    It asks the kernel: asyncio reports a closed connection only after it has read all earlier bytes.
    """
    text = request.headers.get(DEADLINE_HEADER.lower())
    try:
        deadline = float("inf") if text is None else float(text)
    except ValueError as error:
        raise _bad(f"expected `{DEADLINE_HEADER}` as seconds, found {text!r}") from error

    def check() -> None:
        transport = request.transport
        if transport.is_closing() or time.monotonic() > deadline or _is_hung_up(transport):
            raise Transient("client_gone", f"{request.path}: the client waits no longer", "send the command again")

    return check


def _is_hung_up(transport: asyncio.Transport) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)  # POLLHUP is reported in any case
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _body(request: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
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
