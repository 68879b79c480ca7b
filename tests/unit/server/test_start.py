"""The start of a server, as a process: what it imports, and in which order; what a failed step says."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.serving import eventually, failing, running
from tests.unit.server.test_app import modules, named_llama

# Notes which of transformers' sources are opened, and tells that and the imported modules on SIGUSR1.
SPY = """
import json, os, signal, sys
opened = set()
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "/transformers/models/" in arguments[0]:
        opened.add(arguments[0].partition("/transformers/models/")[2].partition("/")[0])
sys.addaudithook(note)
def tell(*_):
    text = json.dumps({{"modules": sorted(sys.modules), "opened": sorted(opened)}})
    with open({told!r} + ".part", "w") as file:
        file.write(text)
    os.replace({told!r} + ".part", {told!r})
signal.signal(signal.SIGUSR1, tell)
"""
# Only what decorates, checks types or trains; a served model runs none of it.
HEAVY = {"torch._dynamo.utils", "torch._inductor", "torch.distributed.tensor", "sympy", "scipy", "peft"}
BLOCKING_TORCH = """
import pathlib, time
while not pathlib.Path({gate!r}).exists():
    time.sleep(0.02)
raise ModuleNotFoundError("No module named 'torch'", name="torch")
"""


def _told(model: Path, folder: Path) -> dict[str, set[str]]:
    """What a server of `model` has imported and opened when it is ready."""
    told = folder / "told"
    path = modules(folder / "code", sitecustomize=SPY.format(told=str(told)))
    arguments = ("--model-path", str(model), "--device", "cpu")
    with running(folder / "log", *arguments, python_path=path) as server:
        server.process.send_signal(signal.SIGUSR1)
        eventually(told.exists, "the modules are told")
    found: dict[str, list[str]] = json.loads(told.read_text())
    return {name: set(values) for name, values in found.items()}


def test_a_server_of_embeddings_imports_what_its_model_needs(minilm: Path, tmp_path: Path) -> None:
    """Neither other kinds of models nor libraries that it does not run are imported, nor other models' sources read."""
    found = _told(minilm, tmp_path)
    others = HEAVY | {"server.engine.generation.generator", "server.engine.classifier", "server.engine.lora"}
    assert not others & found["modules"], sorted(others & found["modules"])
    assert "transformers.models.bert.modeling_bert" in found["modules"]
    assert len(found["opened"]) < 30  # of the folders of some 500 models


def test_a_server_of_text_imports_what_its_model_needs(llama: Path, tmp_path: Path) -> None:
    """A server that generates text leaves out the same libraries, and other kinds of models."""
    found = _told(llama, tmp_path)
    others = HEAVY | {"server.engine.encoder", "server.engine.classifier"}
    assert not others & found["modules"], sorted(others & found["modules"])


def test_probes_are_answered_before_the_libraries_are_imported(tmp_path: Path) -> None:
    """While torch is being imported the server listens, is alive, and says that it is not ready; a failed import then
    ends it with the package's name."""
    gate = tmp_path / "gate"
    path = modules(tmp_path / "code", torch=BLOCKING_TORCH.format(gate=str(gate)))
    with running(tmp_path / "log", "--model-path", str(named_llama(tmp_path)), ready=False, python_path=path) as server:
        eventually(lambda: server.get("/readyz") == (503, "loading: device\n"), "the import has begun")
        assert server.get("/healthz")[0] == 200
        gate.touch()
        eventually(lambda: server.process.poll() is not None, "the end")
        assert server.process.returncode == 1
        assert "the package torch is missing (pip install 'holdfast[transformers]'" in server.log.read_text()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("tokenizer", "the tokenizer cannot be read: "),
        ("cut weights", "model.safetensors"),
    ],
)
def test_a_step_that_fails_ends_the_start_with_its_reason(
    minilm: Path, tmp_path: Path, damage: str, reason: str
) -> None:
    """Whatever runs beside the imports: a missing file and corrupt weights end the server with 1 and their reason."""
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder, symlinks=False)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    if damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
    done = failing("--model-path", str(folder), "--device", "cpu")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("holdfast serve: ")
    assert str(folder) in last
    assert reason in last
