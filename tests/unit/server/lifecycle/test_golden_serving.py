"""Servers of versions that have golden predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cached.commands import golden as command
from cached.contract.golden import GOLDEN_NAME, Case, Environment, Golden, Tolerance
from tests.support.serving import ServerProcess, eventually, running

RECORDED_AT = "2026-11-20T18:00:00Z"
APP = """
from aiohttp import web

async def double(request):
    return web.json_response({"doubled": 2 * (await request.json())["number"]})

def make(model_path, device):
    application = web.Application()
    application.router.add_post("/double", double)
    return application
"""


@pytest.fixture
def recorded(completions_server: ServerProcess, llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama's folder with golden predictions that a running server gave."""
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    options = ["--input", "ab", "--max-tokens", "4", "--output", str(folder / GOLDEN_NAME)]
    assert command.main(["record", completions_server.url, *options]) == 0
    return folder


@pytest.fixture
def doubling(tmp_path: Path) -> Callable[[int], Path]:
    """User code that doubles, and a folder whose golden prediction says what becomes of 2."""

    def make(expected: int) -> Path:
        (tmp_path / "doubling_app.py").write_text(APP)
        folder = tmp_path / f"expects-{expected}"
        folder.mkdir()
        case = Case("two", "/double", {"number": 2}, {"doubled": expected}, Tolerance(0, 0))
        golden = Golden((case,), Environment(packages={"torch": "0.1"}), "m", RECORDED_AT)
        (folder / GOLDEN_NAME).write_bytes(golden.encode())
        return folder

    return make


def test_a_server_whose_answers_agree_is_ready_and_says_so(recorded: Path, tmp_path: Path) -> None:
    """Ready; `/v1/models` and the metrics tell that the golden predictions agree, `/environment` what it runs on."""
    with running(tmp_path / "log", "--model-path", str(recorded), "--device", "cpu") as server:
        (model,) = json.loads(server.get("/v1/models")[1])["data"]
        assert model["golden"]["agrees"] is True and model["golden"]["cases"] == 1
        assert server.metric('holdfast_server_golden_cases{model="model",result="agreed"}') == 1
        assert server.metric('holdfast_load_seconds_count{stage="total"}') >= 1
        assert server.metric('holdfast_load_bytes_total{method="mapped"}') > 0
        found = Environment.read(json.loads(server.get("/environment")[1]))
        assert found == Golden.parse((recorded / GOLDEN_NAME).read_bytes()).environment
        assert found.packages["torch"] and found.device


def test_a_server_whose_answers_differ_is_not_ready(recorded: Path, tmp_path: Path) -> None:
    """Not ready, but there to be asked why: the verdict first, the input, the difference, and of what changed since
    only what computes or is loaded. The termination log has it until another version at that name is right."""
    path, link, message = recorded / GOLDEN_NAME, tmp_path / "link" / "model", tmp_path / "message"
    link.parent.mkdir()
    link.symlink_to(recorded)
    path_bytes = path.read_bytes()
    golden = Golden.parse(path_bytes)
    golden.cases[0].expected["choices"][0]["logprobs"]["token_logprobs"][0] += 0.5
    older = replace(golden.environment, packages={**golden.environment.packages, "torch": "0.1", "pytest": "1"})
    path.write_bytes(replace(golden, environment=older).encode())
    options = ("--model-path", str(link), "--device", "cpu", "--termination-log", str(message))
    with running(tmp_path / "log", *options, ready=False) as server:
        eventually(lambda: "golden predictions differ" in server.get("/readyz")[1], "the reason")
        status, reason = server.get("/readyz")
        assert status == 503
        assert reason.startswith("model: 1 of 1 golden predictions differ: input 1: ")
        for part in ("token_logprobs[0]", "0.5", f"Since they were recorded {golden.recorded_at}: torch 0.1 -> "):
            assert part in reason
        assert "pytest" not in reason
        eventually(lambda: message.read_text() != "", "the termination log")
        assert "1 of 1 golden predictions differ" in message.read_text() and "What to do: " in message.read_text()
        assert server.get("/v1/models")[0] == 503
        assert "/v1/completions" not in server.log.read_text()  # the rehearsal is no client's
        shutil.copytree(recorded, tmp_path / "again")
        (tmp_path / "again" / GOLDEN_NAME).write_bytes(path_bytes)
        link.unlink()
        link.symlink_to(tmp_path / "again")
        eventually(lambda: server.get("/readyz")[0] == 200, "ready with what is right")
        assert message.read_text() == ""
        assert server.stop() == 0


def test_user_code_is_held_to_its_golden_predictions(doubling: Callable[[int], Path], tmp_path: Path) -> None:
    """`--app` too is not ready while its answers differ, and lets no other client in until then."""
    options = ("--app", "doubling_app:make", "--model-path", str(doubling(5)), "--device", "cpu")
    with running(tmp_path / "log", *options, ready=False, python_path=tmp_path) as server:
        eventually(lambda: "two: doubled: expected 5, found 4" in server.get("/readyz")[1], "the reason")
        assert server.get("/readyz")[1].startswith("1 of 1 golden predictions differ: two: ")
        assert "POST /double" not in server.log.read_text()
        assert server.metric('holdfast_server_requests_total{endpoint="/double",model="",status="200"}') == 0
        assert server.get("/double")[0] == 503
        assert server.metric('holdfast_server_refused_total{reason="rejected"}') == 1


def test_a_warning_is_enough_where_it_is_asked_for(doubling: Callable[[int], Path], tmp_path: Path) -> None:
    """With `--golden warn` a server whose answers differ is ready, and its log and metrics say what differs."""
    options = ("--app", "doubling_app:make", "--model-path", str(doubling(5)), "--device", "cpu", "--golden", "warn")
    with running(tmp_path / "log", *options, python_path=tmp_path) as server:
        assert "expected 5, found 4" in server.log.read_text()
        assert server.metric('holdfast_server_golden_cases{model="expects-5",result="differed"}') == 1
        assert server.metric('holdfast_server_golden_largest_difference{model="expects-5"}') == 1


def test_off_asks_nothing(doubling: Callable[[int], Path], tmp_path: Path) -> None:
    """With `--golden off` nothing is replayed."""
    options = ("--app", "doubling_app:make", "--model-path", str(doubling(5)), "--device", "cpu", "--golden", "off")
    with running(tmp_path / "log", *options, python_path=tmp_path) as server:
        assert "differ" not in server.log.read_text()
