"""Golden predictions: recorded from a running server, and replayed against one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cached.commands import golden as command
from cached.contract.errors import Permanent
from cached.contract.golden import GOLDEN_NAME, Case, Environment, Golden, Tolerance
from server.lifecycle.admission import explain, read_golden, replay, serve_privately
from tests.support.serving import ServerProcess

RECORDED_AT = "2026-11-20T18:00:00Z"


def record(server: ServerProcess, output: Path, *options: str) -> Golden:
    assert command.main(["record", server.url, "--output", str(output), *options]) == 0
    return Golden.parse(output.read_bytes())


@pytest.fixture
async def doubling() -> AsyncIterator[str]:
    """User code that doubles a number, and another that cannot be foreseen."""
    count = 0

    async def double(request: web.Request) -> web.Response:
        return web.json_response({"doubled": 2 * (await request.json())["number"], "took_s": 0.1})

    async def random(_request: web.Request) -> web.Response:
        nonlocal count
        count += 1
        return web.json_response({"value": count})

    application = web.Application()
    application.router.add_post("/double", double)
    application.router.add_post("/random", random)
    async with serve_privately(application) as url:
        yield url


def golden(*cases: Case) -> Golden:
    return Golden(cases, Environment(packages={"numpy": "1"}), "m", RECORDED_AT)


def doubled(number: int, expected: Any) -> Case:
    return Case(f"double {number}", "/double", {"number": number}, {"doubled": expected}, Tolerance(0.5, 0))


async def test_embeddings_that_were_recorded_agree(embeddings_server: ServerProcess, tmp_path: Path) -> None:
    """What a server was recorded with, the same server answers again."""
    found = record(embeddings_server, tmp_path / "g.json", "--input", "hello", "--input", "the weights are there")
    verdict = await replay(found, embeddings_server.url, "minilm", {})
    assert verdict.agrees and verdict.cases == 2 and verdict.largest < 1e-5


async def test_completions_that_were_recorded_agree(completions_server: ServerProcess, tmp_path: Path) -> None:
    """A completion is kept with its text and the logarithms of its tokens' probabilities."""
    found = record(completions_server, tmp_path / "g.json", "--input", "ab", "--max-tokens", "4")
    (choice,) = found.cases[0].expected["choices"]
    assert choice["text"] and len(choice["logprobs"]["token_logprobs"]) <= 4
    assert (await replay(found, completions_server.url, "acme/tiny", {})).agrees


async def test_a_drifted_number_is_named(embeddings_server: ServerProcess, tmp_path: Path) -> None:
    """A value beyond its tolerance is told with its input, its place, and how far it is off."""
    found = record(embeddings_server, tmp_path / "g.json", "--input", "hello")
    vector = found.cases[0].expected["data"][0]["embedding"]
    vector[7] += 0.25
    verdict = await replay(found, embeddings_server.url, "minilm", {})
    assert not verdict.agrees
    assert verdict.at == "input 1: data[0].embedding[7]" and verdict.largest == pytest.approx(0.25, rel=1e-3)


def test_chance_is_not_recorded(completions_server: ServerProcess, tmp_path: Path) -> None:
    """An answer that another chance would change is refused, and nothing is written."""
    request = {"path": "/v1/completions", "request": {"prompt": "a", "max_tokens": 20, "temperature": 2}}
    (tmp_path / "requests").write_text(json.dumps(request))
    arguments = ["record", completions_server.url, "--output", str(tmp_path / "g.json")]
    assert command.main([*arguments, "--requests", str(tmp_path / "requests")]) == 1
    assert not (tmp_path / "g.json").exists()


def test_requests_come_from_a_file(completions_server: ServerProcess, tmp_path: Path) -> None:
    """Any request of the API can be recorded; the model's name is left to the server."""
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0, "model": "acme/tiny"}
    line = {"name": "greeting", "path": "/v1/chat/completions", "request": chat}
    (tmp_path / "requests").write_text(f"\n{json.dumps(line)}\n")
    (case,) = record(completions_server, tmp_path / "g.json", "--requests", str(tmp_path / "requests")).cases
    assert case.name == "greeting" and "model" not in case.request
    assert case.expected["choices"][0]["message"]["content"]


@pytest.mark.parametrize("line", ["1", "{}", '{"path": "/x"}', "{", '{"path": "/x", "request": 3}'])
def test_a_bad_line_is_named(completions_server: ServerProcess, tmp_path: Path, line: str, capsys: Any) -> None:
    """A line that is no request is an error that names the file and the line."""
    (tmp_path / "requests").write_text(line)
    arguments = ["record", completions_server.url, "--output", str(tmp_path / "g.json")]
    assert command.main([*arguments, "--requests", str(tmp_path / "requests")]) == 1
    assert "line 1" in capsys.readouterr().err


async def test_user_code_is_replayed_too(doubling: str) -> None:
    """Any JSON over POST can be a golden prediction; what is not expected is not compared."""
    assert (await replay(golden(doubled(2, 4), doubled(3, 6)), doubling, "m", {})).agrees


async def test_each_case_that_fails_is_told(doubling: str) -> None:
    """One case that fails does not hide the next: a difference, a missing key, an answer that is an error."""
    missing = replace(doubled(1, 2), name="missing", expected={"tripled": 3})
    refused = replace(doubled(1, 2), name="refused", path="/nowhere")
    verdict = await replay(golden(doubled(2, 9), missing, refused, doubled(1, 2)), doubling, "m", {})
    assert [line.partition(":")[0] for line in verdict.failures] == ["double 2", "missing", "refused"]
    assert verdict.largest == 5 and verdict.at == "double 2: doubled"


async def test_a_mismatch_names_both_sides(doubling: str) -> None:
    """The error names the input, the largest difference, and what is another version here than when it was recorded."""
    found = golden(doubled(2, 9))
    verdict = await replay(found, doubling, "m", {})
    error = explain(found, verdict, Environment(packages={"numpy": "2"}), {"numpy"})
    assert error.code == "golden_mismatch"
    for part in ("double 2", "5", RECORDED_AT, "numpy 1 -> 2"):
        assert part in error.message


def test_a_version_without_golden_predictions_has_none(tmp_path: Path) -> None:
    """No file, no predictions; a file that is none is an error that names it."""
    assert read_golden(tmp_path) is None
    (tmp_path / GOLDEN_NAME).write_bytes(b"{}")
    with pytest.raises(Permanent, match=GOLDEN_NAME):
        read_golden(tmp_path)
