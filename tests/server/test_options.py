from __future__ import annotations

from pathlib import Path

import pytest

from server.options import parse


def test_defaults_serve_on_every_address_of_the_pod() -> None:
    """With the model's folder alone everything else has a value."""
    settings = parse(["--model-path", "/m"])
    assert settings.model_path == Path("/m")
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert (settings.device, settings.dtype, settings.drain_timeout_s) == ("auto", "auto", 30.0)
    assert settings.limits.body_bytes == 4 * 1024 * 1024


def test_a_reference_names_the_symlink_under_the_root() -> None:
    """`--model`, `--version` and `--root` give the daemon's path, `/` written `--`."""
    settings = parse(["--model", "acme/tiny", "--version", "v1", "--root", "/holdfast"])
    assert settings.model_path == Path("/holdfast/models/acme--tiny/v1")


def test_the_environment_gives_the_path_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOLDFAST_MODEL_PATH is the default; either way of naming a model on the command line beats it."""
    monkeypatch.setenv("HOLDFAST_MODEL_PATH", "/from/environment")
    monkeypatch.setenv("HOLDFAST_DEVICE", "cpu")
    monkeypatch.setenv("HOLDFAST_VERSION", "v2")
    assert parse([]).model_path == Path("/from/environment")
    assert parse([]).device == "cpu"
    assert parse(["--model-path=/given"]).model_path == Path("/given")
    assert parse(["--model", "m", "--root", "/r"]).model_path == Path("/r/models/m/v2")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--model", "m"],
        ["--model", "a--b", "--version", "v"],
        ["--model-path", "/m", "--model", "m", "--version", "v"],
        ["--model-path", "/m", "--device", "gpu"],
        ["--model-path", "/m", "--device", "cuda:"],
        ["--model-path", "/m", "--dtype", "int8"],
        ["--model-path", "/m", "--listen", "8080"],
        ["--model-path", "/m", "--app", "module"],
        ["--model-path", "/m", "--app", "module:a b"],
        ["--model-path", "/m", "--queue-limit", "0"],
        ["--model-path", "/m", "--drain-timeout", "-1"],
        ["--model-path", "/m", "--drain-timeout", "nan"],
        ["--model-path", "/m", "--body-limit", "much"],
        ["--model-p", "/m"],
    ],
)
def test_wrong_options_are_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant exits with 2 and says what was expected."""
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err or argv[0] in ("--model", "--model-path", "--model-p")
