from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from tests.support.serving import (
    REPOSITORY,
    Published,
    ServerProcess,
    environment,
    eventually,
    failing,
    running,
)

BLOCKING_APP = """
import time
from pathlib import Path
from aiohttp import web

def factory(model_path, device):
    while not Path({gate!r}).exists():
        time.sleep(0.01)
    application = web.Application()

    async def everything(request):
        return web.Response(text=f"{{request.path}} {{model_path.name}} {{device}}")

    application.router.add_get("/{{tail:.*}}", everything)
    return application
"""

SLOW_APP = """
import asyncio
from pathlib import Path
from aiohttp import web

async def factory(model_path, device):
    application = web.Application()

    async def slow(request):
        Path({begun!r}).touch()
        while not Path({gate!r}).exists():
            await asyncio.sleep(0.01)
        return web.Response(text="done")

    application.router.add_get("/slow", slow)
    return application
"""


@contextmanager
def streaming(server: ServerProcess, max_tokens: int) -> Iterator[socket.socket]:
    """A completion stream whose first bytes have arrived."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    body = json.dumps({"prompt": "x", "max_tokens": max_tokens, "stream": True, "seed": 2, "temperature": 1}).encode()
    with socket.create_connection((address.hostname, address.port or 0), timeout=120) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(1).startswith(b"H")
        yield connection


def rest(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def _answer(connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer


def modules(folder: Path, **sources: str) -> Path:
    """A folder of modules for PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def missing(name: str) -> str:
    """The source of a module that behaves as one that is not installed."""
    return f"raise ModuleNotFoundError('No module named {name}', name={name!r})"


def test_sigterm_finishes_what_is_in_flight(published_llama: Published, tmp_path: Path) -> None:
    """After SIGTERM /readyz says 503 at once, a running stream ends whole, and the exit code is 0."""
    with running(tmp_path / "log", "--model-path", str(published_llama.link), "--device", "cpu") as server:
        with streaming(server, 250) as connection:
            server.process.terminate()
            eventually(lambda: server.get("/readyz")[0] == 503, "not ready")
            assert server.get("/healthz")[0] == 200
            assert server.get("/v1/models")[0] == 503
            assert rest(connection).rstrip(b"\r\n0").endswith(b"data: [DONE]")
        assert server.process.wait(120) == 0


def test_a_server_that_stops_works_on_for_a_while(tmp_path: Path) -> None:
    """While it lingers, /readyz is 503, work on a kept connection and on a new one is done, and each answer says that
    its connection closes; then new work is refused, which is logged, and what is in flight ends."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    path = modules(tmp_path / "code", slow_app=SLOW_APP.format(begun=str(begun), gate=str(gate)))
    arguments = ("--model-path", str(tmp_path), "--app", "slow_app:factory", "--device", "cpu", "--drain-linger", "10")
    with running(tmp_path / "log", *arguments, python_path=path) as server:
        address = urlsplit(server.url)
        with contextlib.ExitStack() as stack:
            kept, slow, new = (http.client.HTTPConnection(address.netloc, timeout=120) for _ in range(3))
            for connection in (kept, slow, new):
                stack.callback(connection.close)
            slow.request("GET", "/slow")
            eventually(begun.exists, "the slow request is in the handler")
            assert _answer(kept, "/none").getheader("Connection") is None
            server.process.terminate()
            eventually(lambda: server.get("/readyz") == (503, "draining: the server is stopping\n"), "not ready")
            for connection in (kept, new):
                answer = _answer(connection, "/none")
                assert (answer.status, answer.getheader("Connection")) == (404, "close")
            eventually(lambda: server.get("/none")[0] == 503, "the end of the lingering time")
            refused = server.metric('holdfast_server_refused_total{reason="draining"}')
            gate.touch()
            answer = slow.getresponse()
            assert (answer.status, answer.read(), answer.getheader("Connection")) == (200, b"done", "close")
        assert server.process.wait(120) == 0
        log = server.log.read_text()
        assert refused >= 1 and f"{refused:.0f} requests were refused while stopping" in log
        assert "GET /none 503" in log


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)], ids=["quiet", "Ctrl-C", "twice"]
)
def test_a_server_without_clients_stops_at_once(tmp_path: Path, signals: tuple[signal.Signals, ...]) -> None:
    """A server does not linger where no client was there lately, nor after Ctrl-C, nor at a second signal."""
    path = modules(tmp_path / "code", slow_app=SLOW_APP.format(begun=tmp_path / "begun", gate=tmp_path / "gate"))
    arguments = ("--model-path", str(tmp_path), "--app", "slow_app:factory", "--device", "cpu", "--drain-linger", "900")
    with running(tmp_path / "log", *arguments, python_path=path) as server:
        assert signals == (signal.SIGTERM,) or server.get("/none")[0] == 404
        server.process.send_signal(signals[0])
        for number in signals[1:]:
            eventually(lambda: server.get("/readyz")[0] == 503, "not ready")
            server.process.send_signal(number)
        assert server.process.wait(120) == 0


def test_idle_connections_do_not_silence_the_probes(tmp_path: Path) -> None:
    """With 300 open files and 400 idle connections /readyz answers, a request in work goes on, and the log stays quiet;
    so it does where something else takes the descriptors, which is logged once, with the remedy."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    path = modules(tmp_path / "code", slow_app=SLOW_APP.format(begun=str(begun), gate=str(gate)))
    arguments = ("--model-path", str(tmp_path), "--app", "slow_app:factory", "--device", "cpu")
    few = ("prlimit", "--nofile=200:300")
    with running(tmp_path / "log", *arguments, python_path=path, under=few) as server, contextlib.ExitStack() as stack:
        address = urlsplit(server.url)
        slow = http.client.HTTPConnection(address.netloc, timeout=120)
        stack.callback(slow.close)
        slow.request("GET", "/slow")
        eventually(begun.exists, "the slow request is in the handler")

        def connect(number: int) -> None:
            for _ in range(number):
                stack.enter_context(socket.create_connection((str(address.hostname), address.port or 0), timeout=120))

        connect(400)
        for _ in range(20):
            assert server.get("/readyz")[0] == 200
        assert server.metric('holdfast_server_connections_closed_total{limit="number"}') > 200
        assert len(server.log.read_text().splitlines()) <= 10
        held = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (held - 20, held - 20))
        connect(50)
        for _ in range(5):
            assert server.get("/readyz")[0] == 200
        log = server.log.read_text()
        assert len(log.splitlines()) <= 12 and log.count("raise the limit of open files") == 1
        gate.touch()
        assert slow.getresponse().status == 200


def test_too_few_open_files_end_the_start(tmp_path: Path) -> None:
    """Where the limit is too small a server ends with 1, the limit and the remedy, also in the termination log."""
    message = tmp_path / "message"
    message.touch()
    command = ["prlimit", "--nofile=100:100", sys.executable, "-m", "server", "--model-path", str(tmp_path)]
    done = subprocess.run(
        [*command, "--termination-log", str(message)],
        capture_output=True, text=True, env=environment(tmp_path), cwd=REPOSITORY, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the limit of open files is 100, and 144 are needed" in done.stderr
    assert "What to do: raise the limit of open files" in message.read_text()


def test_the_drain_timeout_cuts_off_what_is_left(tmp_path: Path) -> None:
    """What outlasts --drain-timeout is cut off, said in the log, and the exit code is still 0."""
    begun, gate = tmp_path / "begun", tmp_path / "never"
    path = modules(tmp_path / "code", slow_app=SLOW_APP.format(begun=str(begun), gate=str(gate)))
    arguments = (
        "--model-path",
        str(tmp_path),
        "--app",
        "slow_app:factory",
        "--device",
        "cpu",
        "--drain-timeout",
        "0.1",
    )
    with running(tmp_path / "log", *arguments, python_path=path) as server:
        address = urlsplit(server.url)
        with socket.create_connection((str(address.hostname), address.port or 0), timeout=120) as connection:
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            eventually(begun.exists, "the request is in the handler")
            assert server.stop() == 0
        assert "1 requests were cut off" in server.log.read_text()


def test_user_code_is_mounted_and_probes_stay_ours(tmp_path: Path) -> None:
    """While the factory works the server is alive and not ready; then the app answers all paths but ours.

    torch and transformers are not needed for it, and `auto` is then the CPU.
    """
    gate = tmp_path / "gate"
    path = modules(
        tmp_path / "code",
        blocking_app=BLOCKING_APP.format(gate=str(gate)),
        torch=missing("torch"),
        transformers=missing("transformers"),
    )
    model = tmp_path / "weights"
    model.mkdir()
    arguments = ("--model-path", str(model), "--app", "blocking_app:factory")
    with running(tmp_path / "log", *arguments, ready=False, python_path=path) as server:
        eventually(lambda: server.get("/readyz") == (503, "loading: app\n"), "the factory runs")
        assert server.get("/healthz") == (200, "ok\n")
        assert server.get("/anything")[0] == 503
        gate.touch()
        eventually(lambda: server.get("/readyz")[0] == 200, "ready")
        assert server.get("/anything/else") == (200, "/anything/else weights cpu")
        assert server.get("/healthz") == (200, "ok\n")
        assert "holdfast_server_ready 1.0" in server.get("/metrics")[1]
        assert server.stop() == 0


def test_sigterm_while_loading_exits_at_once(tmp_path: Path) -> None:
    """A server stopped in the middle of its start ends with 0, though the load cannot be interrupted."""
    path = modules(tmp_path / "code", blocking_app=BLOCKING_APP.format(gate=str(tmp_path / "never")))
    arguments = ("--model-path", str(tmp_path), "--app", "blocking_app:factory", "--device", "cpu")
    with running(tmp_path / "log", *arguments, ready=False, python_path=path) as server:
        eventually(lambda: server.get("/readyz") == (503, "loading: app\n"), "the factory runs")
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_thing", "no_such_thing"),
        ("factory = 3", "has no function 'factory'"),
        ("def factory(model_path, device): raise ValueError('my reason')", "ValueError: my reason"),
        ("def factory(model_path, device): return 3", "found int"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
    ],
)
def test_a_bad_factory_exits_with_its_reason(tmp_path: Path, source: str, reason: str) -> None:
    """User code that cannot be had ends the server with 1, and the reason on stderr."""
    path = modules(tmp_path / "code", bad_app=source)
    done = failing("--model-path", str(tmp_path), "--app", "bad_app:factory", "--device", "cpu", python_path=path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("holdfast serve: --app bad_app:factory: ")
    assert reason in last


def named_llama(directory: Path) -> Path:
    """A folder that says that it is a model that is served, and has no weights."""
    (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    return directory


def test_missing_packages_are_named(tmp_path: Path) -> None:
    """Without torch a model cannot be served: the exit code is 1 and the message says what to install."""
    path = modules(tmp_path / "code", torch=missing("torch"))
    done = failing("--model-path", str(named_llama(tmp_path)), python_path=path)
    assert done.returncode == 1
    assert "the package torch is missing (pip install 'holdfast[transformers]'" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_exits_with_what_to_check(tmp_path: Path) -> None:
    """`--device cuda` where there is no GPU ends with 1, the reason and what to check, whatever the model."""
    done = failing("--model-path", str(named_llama(tmp_path)), "--device", "cuda")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("holdfast serve: --device cuda: ")
    assert "torch" in last or "/dev/nvidiactl" in last


def test_no_model_exits_with_what_to_check(tmp_path: Path) -> None:
    """A path where nothing is ends with 1 before anything else happens."""
    done = failing("--model-path", str(tmp_path / "models" / "m" / "v1"))
    assert done.returncode == 1
    assert "expected a model's folder at" in done.stderr
    assert "listening" not in done.stdout


def test_an_address_in_use_exits_with_the_reason(tmp_path: Path) -> None:
    """A port that is taken ends with 1 and says which."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = failing("--model-path", str(named_llama(tmp_path)), "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
