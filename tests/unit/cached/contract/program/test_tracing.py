"""Tracing, off and as asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cached.contract.program.tracing import root_of, trace_id_of

_DAEMON = "from cached.daemon.main import main; main(['--root', '{root}', '--catalog', '{root}/none', '--kube', 'off'])"
_SERVER = "from server.app import main; main(['--model-path', '{root}/none'])"


@pytest.fixture
def mined(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH in which OpenTelemetry tells that it was imported, and is broken."""
    (tmp_path / "opentelemetry").mkdir()
    mark = f"open({str(tmp_path / 'imported')!r}, 'w').close()"
    source = f"{mark}\nraise ModuleNotFoundError('No module named opentelemetry')\n"
    (tmp_path / "opentelemetry" / "__init__.py").write_text(source)
    return tmp_path


def run(program: str, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HOLDFAST_", "OTEL_"))}
    (path / "root").write_text("")  # no folder: both end at once
    return subprocess.run(
        [sys.executable, "-c", program.format(root=path / "root")],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": f"{path}{os.pathsep}{Path.cwd()}", **variables},
        check=False,
    )


@pytest.mark.parametrize("program", [_DAEMON, _SERVER])
def test_off_is_free(program: str, mined: Path) -> None:
    """Without `--tracing` nothing of OpenTelemetry is imported, whatever its own variables say."""
    done = run(program, mined, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318", OTEL_TRACES_EXPORTER="otlp")
    assert "expected" in done.stderr or "No such" in done.stderr or "root" in done.stderr
    assert not (mined / "imported").exists()


@pytest.mark.parametrize("program", [_DAEMON, _SERVER])
def test_a_missing_package_is_told(program: str, mined: Path) -> None:
    """With `--tracing otlp` and without the extra the program ends, and says what to install."""
    done = run(program, mined, HOLDFAST_TRACING="otlp")
    assert "holdfast[tracing]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "4318")),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ("OTEL_TRACES_EXPORTER", "otlp or none", "zipkin")),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "1"}, ("OpenTelemetry's variables",)),
    ],
)
def test_variables_that_ask_for_something_else_are_told(
    variables: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    """What OpenTelemetry's variables ask for and this exporter does not do ends the program, with what to write."""
    done = run(_DAEMON, tmp_path, HOLDFAST_TRACING="otlp", **variables)
    for word in words:
        assert word in done.stderr


def test_a_pods_trace_follows_from_its_uid() -> None:
    """A uid is its trace's id; a static pod's, 32 digits without dashes, too; any other text has a hash of it; and the
    root's id follows from the trace's, so that every process knows it."""
    uid = "0b4a5f6e-1111-4222-8333-444455556666"
    assert f"{trace_id_of(uid):032x}" == uid.replace("-", "") == f"{trace_id_of(uid.replace('-', '')):032x}"
    assert 0 < trace_id_of("kube-system/etcd") < 1 << 128
    assert root_of(uid) == root_of(uid)
    assert 0 < root_of(uid).span < 1 << 64
