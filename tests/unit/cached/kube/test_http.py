"""HTTP with the API server: what is sent again, what is refused, and which connection is used again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field

import pytest

from cached.contract.errors import Transient
from cached.kube.client import Call, KubeClient
from cached.kube.cluster import ApiServer
from cached.kube.errors import Unreachable

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = Call("GET", "/api/v1/nodes/n")


@dataclass
class Server:
    """A server that answers each request of a connection with the next of `answers`, and then closes it."""

    answers: Sequence[Sequence[bytes]]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = self.answers[min(self.connections, len(self.answers) - 1)]
        self.connections += 1
        with closing(writer), suppress(asyncio.IncompleteReadError):
            for answer in answers:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
                await writer.drain()


@asynccontextmanager
async def serving(*answers: Sequence[bytes]) -> AsyncIterator[tuple[Server, KubeClient]]:
    """A server whose connections, one after the other, have these answers, and a client of it."""
    server = Server(answers)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{port}"
        async with KubeClient(ApiServer(f"{server.url}/prefix/")) as client:
            yield server, client


async def test_a_connection_is_used_again() -> None:
    """Requests that follow one another share a connection, also after an error that was read to its end."""
    refused = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
    async with serving([OK, refused, CHUNKED + b'3\r\n{"a\r\n5;x=y\r\n": 1}\r\n0\r\nTrailer: 1\r\n\r\n', OK]) as (
        server,
        client,
    ):
        assert await client.request(GET) == {"a": 1}
        with pytest.raises(Exception, match="404"):
            await client.request(GET)
        assert await client.request(GET) == {"a": 1}
        assert await client.request(GET) == {"a": 1}
    assert server.connections == 1


async def test_a_read_is_sent_again_where_an_idle_connection_ended() -> None:
    """A server that closes an idle connection costs no failed read, and no change is sent twice."""
    async with serving([OK], [OK]) as (server, client):
        for _ in range(3):
            assert await client.request(GET) == {"a": 1}
    assert len(server.requests) == 3


async def test_a_request_says_what_it_asks() -> None:
    """Path and query are encoded below the server's own path; the host and the length are right."""
    async with serving([OK]) as (server, client):
        await client.request(Call("POST", "/api/v1/odd name\r\nX: y", {"fieldSelector": "spec.nodeName=a b"}, {"é": 1}))
    request = server.requests[0].decode()
    assert request.startswith(
        "POST /prefix/api/v1/odd%20name%0D%0AX%3A%20y?fieldSelector=spec.nodeName%3Da+b HTTP/1.1\r\n"
    )
    assert f"\r\nHost: {server.url.removeprefix('http://')}\r\n" in request
    assert "\r\nContent-Length: 13\r\n" in request


async def test_a_token_with_a_line_break_is_not_sent() -> None:
    """No credential makes a header of its own."""
    async with serving([OK]) as (server, _client), KubeClient(ApiServer(server.url, token="a\r\nX: y")) as client:
        with pytest.raises(Transient, match="line break"):
            await client.request(GET)
    assert not server.requests


async def test_the_end_of_a_client_ends_its_requests() -> None:
    """A request that nothing waits for any more leaves no connection behind."""
    async with serving([b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"], [b""]) as (server, client):
        requests = [asyncio.create_task(client.request(GET)) for _ in range(2)]
        while not server.requests:
            await asyncio.sleep(0)
        late = asyncio.create_task(client.request(GET))
        await asyncio.sleep(0)  # it begins to connect
    for request in (*requests, late):
        with pytest.raises(Unreachable):
            await request


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b" OK", b""),
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b'HTTP/1.0 200 OK\r\n\r\n{"a": 1}',
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    ],
)
async def test_answers_that_http_allows(answer: bytes) -> None:
    """Interim answers are skipped, and a body may end with its connection."""
    async with serving([answer]) as (_server, client):
        assert await client.request(GET) == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "kube_unreachable"),
        (b"HTTP/1.1 200 OK\r\n", "kube_bad_answer"),
        (OK[:-1], "kube_unreachable"),
        (CHUNKED + b"8\r\n{", "kube_unreachable"),
        (CHUNKED, "kube_unreachable"),
        (CHUNKED + b'8\r\n{"a": 1}', "kube_unreachable"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "kube_bad_answer"),
        (CHUNKED + b"no\r\n{", "kube_unreachable"),
        (CHUNKED + b"-1\r\n{", "kube_unreachable"),
        (CHUNKED + b"f" * 17 + b"\r\n{", "kube_unreachable"),
        (CHUNKED + b'7\r\n{"a": 1}\r\n0\r\n\r\n', "kube_unreachable"),
        (OK.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), "kube_unreachable"),
        (OK.replace(b"\r\n\r\n", b"\r\nA: " + b"x" * 200_000 + b"\r\n\r\n"), "kube_bad_answer"),
    ],
)
async def test_a_broken_answer_is_an_error_of_ours(answer: bytes, code: str) -> None:
    """An answer that is cut, or that contradicts itself, is refused, and its connection is not used again."""
    async with serving([answer], [OK]) as (server, client):
        with pytest.raises(Transient) as refused:
            await client.request(GET)
        assert (refused.value.code, isinstance(refused.value, Unreachable)) == (code, code == "kube_unreachable")
        assert await client.request(GET) == {"a": 1}
    assert server.connections == 2
