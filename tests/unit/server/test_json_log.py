"""`--log-format json`: what a server writes, all of it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.events import one_with, read_events
from tests.support.serving import REPOSITORY, START_WITHIN_S, Published, environment, eventually

_SECRET = "the words of a person"
_CODE = """
import logging, sys, warnings
from aiohttp import web
print("user code prints")
warnings.warn("user code warns")
def factory(path, device):
    async def fail(request):
        raise ValueError("a bug\\nin two lines")
    application = web.Application()
    application.router.add_get("/fail", fail)
    return application
"""


def _served(log: Path, python_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "server", "--listen", "127.0.0.1:0", "--device", "cpu", *arguments]
    with log.open("w") as both:
        return subprocess.Popen(
            [*command, "--log-format", "json"],
            stdout=both,
            stderr=both,
            env=environment(python_path),
            cwd=REPOSITORY,
        )


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    def says(words: str) -> bool:
        assert process.poll() is None, log.read_text()
        return words in log.read_text()

    eventually(lambda: says("ready after"), "ready")
    found = re.search(r"listening on (http://[^\"]+)", log.read_text())
    assert found is not None
    return found[1]


def test_a_server_writes_events(published_llama: Published, tmp_path: Path) -> None:
    """Every line of a server that loads a model and answers is an event; the request's is about its model and has no
    text of it."""
    log = tmp_path / "log"
    process = _served(log, REPOSITORY, "--model-path", str(published_llama.link))
    try:
        body = json.dumps({"prompt": _SECRET, "max_tokens": 2}).encode()
        request = urllib.request.Request(
            f"{_url(process, log)}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert answer.status == 200
        process.terminate()
        assert process.wait(START_WITHIN_S) == 0
    finally:
        process.kill()
    events = read_events(log.read_text())
    assert {event["program"] for event in events} == {"server"}
    assert one_with(events, "POST /v1/completions 200")["model"]
    assert _SECRET not in log.read_text()


def test_user_code_writes_events(tmp_path: Path) -> None:
    """What user code prints, warns of and fails with is events; a traceback is one."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_app.py").write_text(_CODE)
    log = tmp_path / "log"
    process = _served(log, tmp_path / "code", "--model-path", str(tmp_path), "--app", "own_app:factory")
    try:
        url = _url(process, log)
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/fail", timeout=120)
        process.terminate()
        assert process.wait(START_WITHIN_S) == 0
    finally:
        process.kill()
    events = read_events(log.read_text())
    assert one_with(events, "user code prints")["logger"] == "stdout"
    assert one_with(events, "user code warns")["level"] == "warning"
    (failed,) = [event for event in events if "a bug" in event.get("error", "")]
    assert failed["level"] == "error"
