"""Requests, responses, and the routes from one to the other. Law: no I/O."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from cached.contract.errors import HoldfastError

TEXT = "text/plain; charset=utf-8"
JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request with its whole body. `path` is decoded and without the query, `query` as it was sent; `headers` by
    lower-case name; `segment`: the last segment of the path where its route leaves that open. `transport`: its
    connection."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    transport: asyncio.Transport
    query: str = ""
    segment: str = ""


@dataclass(frozen=True, slots=True)
class WholeResponse:
    """A response with its whole body. `allow`: the methods that a path has, with status 405; further
    `headers`."""

    body: bytes
    content_type: str = TEXT
    status: int = 200
    allow: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """A response whose body has no known end: each of `pieces` is sent once the client has taken the one before, so
    that a slow client delays its own pieces and costs no memory. The end of the client or of the server closes
    `pieces`; the end of `pieces` ends the connection."""

    pieces: AsyncGenerator[bytes, None]
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The answer 101 to a request that asks for `protocol`: `work` gets the connection's socket, which blocks, and the
    connection ends with it."""

    protocol: str
    work: Callable[[socket.socket], Awaitable[None]]


Answer = WholeResponse | StreamedResponse | Upgrade
Handler = Callable[[HttpRequest], Awaitable[Answer]]
Routes = Mapping[tuple[str, str], Handler]


def make_json(document: Any, status: int = 200) -> WholeResponse:
    """Return the response with a JSON document."""
    return WholeResponse(json.dumps(document).encode(), JSON, status)


def make_refusal(status: int, allow: str = "") -> WholeResponse:
    """Return the response to a request that has no handler or is no request."""
    return WholeResponse(f"{status}: {HTTPStatus(status).phrase}\n".encode(), TEXT, status, allow)


def accepts_gzip(request: HttpRequest) -> bool:
    """Return whether `Accept-Encoding` names gzip, or anything, with a weight above 0 (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, parameter = part.partition(";")
        found = re.fullmatch(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", parameter)
        weights[name.strip()] = 1.0 if found is None else float(found[1])
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def make_router(routes: Routes) -> Handler:
    """Return the handler of all `routes`, which are by method and path; a path that ends in `/*` leaves its last
    segment open. HEAD is answered as GET; a `HoldfastError` is answered as JSON: 400 for `Permanent`, 503 for
    `Transient`."""

    async def answer(request: HttpRequest) -> Answer:
        folder, _, last = request.path.rpartition("/")
        choices = [("" if last == "*" else request.path, ""), (f"{folder}/*" if last else "", last)]
        method = "GET" if request.method == "HEAD" else request.method
        for path, segment in choices:
            methods = {known: handler for (known, at), handler in routes.items() if at == path}
            if method in methods:
                return await methods[method](replace(request, segment=segment))
            if methods:
                return make_refusal(405, ", ".join(sorted([*methods, *(["HEAD"] if "GET" in methods else [])])))
        return make_refusal(404)

    async def answer_errors(request: HttpRequest) -> Answer:
        try:
            return await answer(request)
        except HoldfastError as error:
            fields = ("code", "message", "remedy", "permanent")
            document = {field: getattr(error, field) for field in fields}
            return make_json({"error": document}, 400 if error.permanent else 503)

    return answer_errors
