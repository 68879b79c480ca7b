"""The listeners of daemon and gate under load: crowds, the silent, those who read nothing, and requests without end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.daemon.api import listeners
from cached.daemon.api.read_api import RenderedPage
from cached.daemon.http import connection
from cached.daemon.http.messages import HttpRequest, WholeResponse, make_router
from cached.daemon.http.server import MOST_CONNECTIONS
from cached.node.threads import Blocking
from cached.store.disk.root import Root
from cached.store.start import recovery
from tests.support.daemon import DaemonProcess, connect_control, prefetched, publish_files
from tests.support.gates import Gates
from tests.support.origin import HostileOrigin
from tests.support.processes import memory
from tests.support.snapshots import make_public
from tests.support.stores import fill_root

REF = ModelRef("m", "v1")
_MIB = 1 << 20
_PROBES = 16  # connections that a gate answers at a time


pytestmark = pytest.mark.long


def test_two_hundred_clients_do_not_stop_a_fetch(daemon: DaemonProcess, origin: HostileOrigin, source: Path) -> None:
    """While two hundred clients ask at both listeners, a version arrives, each is answered, and memory is bounded."""
    fill_root(daemon.layout, versions=100, files=2)
    data = random.Random(1).randbytes(12_000_000)
    manifest = publish_files(source, {"shard.bin": data})
    origin.put("/m/shard.bin", data, etag='"1"')
    origin.put("/m/holdfast.json", manifest.canonical())
    daemon.write_catalog({})
    daemon.start("--max-bandwidth", "8MiB/s")
    before = memory(daemon.pid)["Anonymous"]
    over = threading.Event()
    with ThreadPoolExecutor(200) as connection_limits:
        asking = [connection_limits.submit(_ask_until, daemon, over, number % 2 == 0) for number in range(200)]
        daemon.write_catalog({REF.name: prefetched(origin.url("/m/"))})
        daemon.wait_ready(REF)
        over.set()
        answers = [each.result() for each in asking]
    assert min(answers) >= 1
    assert daemon.samples("holdfast_fetch_errors_total") == {}
    assert memory(daemon.pid)["Anonymous"] - before < 160 * _MIB  # the buffers of the fetch are a part of that


def _ask_until(daemon: DaemonProcess, over: threading.Event, tcp: bool) -> int:
    """Ask again and again, by a connection each; returns how often there was an answer."""
    answers = 0
    while not over.is_set() or not answers:
        if tcp:
            for path in ("/v1/status", "/metrics", "/healthz", "/"):
                assert daemon.get(path)[0] == 200
        else:
            assert daemon.control.status()["models"]
        answers += 1
    return answers


def test_clients_that_say_nothing_are_bounded(daemon: DaemonProcess) -> None:
    """However many connections with half a request a listener has, new ones are answered; the oldest go."""
    daemon.write_catalog({})
    daemon.start()
    with contextlib.ExitStack() as stack:
        for connect in (_to_port, _to_socket):
            silent = []
            for number in range(MOST_CONNECTIONS + 150):
                silent.append(stack.enter_context(connect(daemon)))
                silent[-1].sendall(b"" if number % 2 else b"GET /v1/status HTTP/1.1\r\n")
            assert daemon.get("/healthz")[0] == 200
            assert daemon.control.status()["daemon"]["node"] == "node-a"
            daemon.wait(lambda: _is_over(silent[0]), "the end of the oldest connection")  # noqa: B023 - called at once
            assert not _is_over(silent[-1])
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < 2 * MOST_CONNECTIONS + 100


@pytest.mark.slow
def test_a_silent_client_is_hung_up_on(daemon: DaemonProcess) -> None:
    """A client that says nothing, half a request, or nothing after its first one is hung up on after a while."""
    daemon.write_catalog({})
    daemon.start()
    for said in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        with _to_port(daemon) as client:
            client.sendall(said)
            while client.recv(4096):
                pass


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"POST /v1/pull HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000, (b"413",)),
        (b"POST /v1/pull HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f4240\r\n" * 1, (b"",)),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (b"400", b"414")),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", (b"400", b"431")),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000_000, (b"400", b"431")),
        (random.Random(2).randbytes(200_000), (b"400",)),
        (random.Random(3).randbytes(200_000).replace(b"\n", b""), (b"431",)),
    ],
    ids=["body", "endless", "path", "headers", "header", "noise", "a line of noise"],
)
def test_what_is_too_much_is_refused(daemon: DaemonProcess, sent: bytes, answers: tuple[bytes, ...]) -> None:
    """A request that is too large, or is none, is refused or cut off by both listeners; the next one is answered."""
    daemon.write_catalog({})
    daemon.start()
    before = memory(daemon.pid)["Anonymous"]
    for connect in (_to_port, _to_socket):
        with connect(daemon) as client:
            first = _say(client, sent)
        assert any(code in first for code in answers) or first == b"" or b"405" in first or b"404" in first, first[:200]
        assert daemon.get("/healthz")[0] == 200
        assert daemon.control.status()["daemon"]["node"] == "node-a"
    assert memory(daemon.pid)["Anonymous"] - before < 24 * _MIB
    assert "Traceback" not in daemon.log()


async def test_a_client_that_reads_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that the client does not take is given up after a while, and its connection with it."""
    monkeypatch.setattr(connection, "ANSWER_S", 0.2)
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    reads, control, blocking = make_router({}), make_router({("GET", "/much"): _answer_much}), Blocking(1)
    root = Root(layout)
    async with listeners.open_listeners(("127.0.0.1", 0), layout, root, blocking, reads, control, MOST_CONNECTIONS):
        reader, writer = await asyncio.open_unix_connection(layout.socket, limit=1000)
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(15)
        await asyncio.sleep(0.5)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(64 * _MIB)
        writer.close()
    blocking.close()
    root.close()


async def test_an_end_does_not_wait_for_slow_readers(tmp_path: Path) -> None:
    """The listeners close within seconds while a client leaves its answer lying."""
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    reads, control, blocking = make_router({}), make_router({("GET", "/much"): _answer_much}), Blocking(1)
    root = Root(layout)
    async with (
        asyncio.timeout(20),
        listeners.open_listeners(("127.0.0.1", 0), layout, root, blocking, reads, control, MOST_CONNECTIONS),
    ):
        reader, writer = await asyncio.open_unix_connection(layout.socket, limit=1000)
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(15)
    root.close()
    assert not layout.socket.exists()
    writer.close()
    blocking.close()


async def test_a_page_takes_a_share_of_a_processor() -> None:
    """However many ask for a page, making it takes a tenth of one processor, however slow that is; none gets one that
    was made before the question."""
    made, work_s = [0], 0.02

    def render() -> bytes:
        made[0] += 1
        until = time.thread_time() + work_s
        while time.thread_time() < until:
            pass
        return str(made[0]).encode()

    async def ask(page: RenderedPage) -> None:
        while time.monotonic() < over_at:
            before = made[0]
            assert int(await page.get_body()) > before
            await asyncio.sleep(0)

    page = RenderedPage(render)
    began = time.monotonic()
    over_at = began + 2
    await asyncio.gather(*(ask(page) for _ in range(20)))
    assert made[0] * work_s <= 0.25 + 0.1 * (time.monotonic() - began) + 2 * work_s  # the first burst is free


def test_a_gate_is_probed_among_silent_clients(daemon: DaemonProcess, gates: Gates) -> None:
    """Clients that hold all connections a gate has for probes, and say nothing, do not keep a probe waiting."""
    make_public(daemon.layout.public.path)
    host, _, port = gates.start().address().removeprefix("http://").rpartition(":")
    for _ in range(10):
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection((host, int(port)), 120)) for _ in range(_PROBES)]
            connection = http.client.HTTPConnection(host, int(port), timeout=120)
            stack.callback(connection.close)
            connection.request("GET", "/readyz")
            assert connection.getresponse().status == 503
            if not _is_over(silent[-1]):
                return  # it was not hung up on before: a machine may take as long to answer
    pytest.fail("answered only after the silent clients were hung up on")


async def _answer_much(_request: HttpRequest) -> WholeResponse:
    return WholeResponse(bytes(64 * _MIB))


# --- clients ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _to_port(daemon: DaemonProcess) -> Iterator[socket.socket]:
    with socket.create_connection(daemon.address, timeout=120) as client:
        yield client


@contextlib.contextmanager
def _to_socket(daemon: DaemonProcess) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        connect_control(client, daemon.layout)  # without a timeout, which would not wait for room
        client.settimeout(120)
        yield client


def _is_over(client: socket.socket) -> bool:
    """Tell whether the other side hung up."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    if not poll.poll(0):
        return False
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except ConnectionError:
        return True


def _say(client: socket.socket, sent: bytes) -> bytes:
    """Send as much as is taken; returns the head of the answer, nothing where there is none within a second."""
    client.settimeout(1)
    with contextlib.suppress(OSError):
        client.sendall(sent)
    with contextlib.suppress(OSError):
        return client.recv(4096)
    return b""
