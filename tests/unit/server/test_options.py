from __future__ import annotations

from pathlib import Path

import pytest

from server.options import parse


def test_defaults_serve_on_every_address_of_the_pod() -> None:
    """With the model's folder alone everything else has a value."""
    settings = parse(["--model-path", "/m"])
    assert settings.models[0].path == Path("/m")
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert (settings.device, settings.dtype, settings.drain_timeout_s) == ("auto", "auto", 30.0)
    assert settings.limits.body_bytes == 4 * 1024 * 1024


def test_a_reference_names_the_symlink_under_the_root() -> None:
    """`--model`, `--version` and `--root` give the daemon's path, `/` written `--`."""
    settings = parse(["--model", "acme/tiny", "--version", "v1", "--root", "/holdfast"])
    assert settings.models[0].path == Path("/holdfast/models/acme--tiny/v1")


def test_the_environment_gives_the_path_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOLDFAST_MODEL_PATH is the default; either way of naming a model on the command line beats it."""
    monkeypatch.setenv("HOLDFAST_MODEL_PATH", "/from/environment")
    monkeypatch.setenv("HOLDFAST_DEVICE", "cpu")
    monkeypatch.setenv("HOLDFAST_VERSION", "v2")
    assert parse([]).models[0].path == Path("/from/environment")
    assert parse([]).device == "cpu"
    assert parse(["--model-path=/given"]).models[0].path == Path("/given")
    assert parse(["--model", "m", "--root", "/r"]).models[0].path == Path("/r/models/m/v2")


def test_several_models_are_called_by_their_aliases() -> None:
    """Without an alias a model has its name in the cache, with the version where two have that name."""
    text = "base=acme/tiny@v1,lora@v7,tiny@v1,tiny@v2"
    settings = parse(["--models", text, "--root", "/r", "--digest", f"base=sha256:{'0' * 64}"])
    assert [entry.name for entry in settings.models] == ["base", "lora", "tiny@v1", "tiny@v2"]
    assert settings.models[1].path == Path("/r/models/lora/v7")
    assert str(settings.models[0].pin) == f"sha256:{'0' * 64}"


def test_what_the_injector_says_gives_way_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several models from the environment beat the one path there, with their pins; a file to follow beats both, and
    whatever is on the command line has its own pins or none."""
    monkeypatch.setenv("HOLDFAST_MODEL_PATH", "/holdfast/models/a/v1")
    monkeypatch.setenv("HOLDFAST_DIGEST", f"sha256:{'0' * 64}")
    assert str(parse([]).models[0].pin) == f"sha256:{'0' * 64}"
    monkeypatch.setenv("HOLDFAST_MODELS", "base=a@v1,b@v1")
    monkeypatch.setenv("HOLDFAST_DIGEST", f"base=sha256:{'1' * 64}")
    assert [entry.pin is not None for entry in parse([]).models] == [True, False]
    assert parse(["--model-path", "/m"]).models[0].pin is None
    settings = parse(["--follow", "/f"])
    assert (settings.models, settings.follow) == ((), Path("/f"))


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
        ["--models", "a@v1", "--model-path", "/m"],
        ["--models", "x=a@v1,b@v1", "--served-name", "y"],
        ["--models", "b=a@v1,b@v1"],
        ["--models", "a@v1,b@v1", "--digest", f"c=sha256:{'0' * 64}"],
        ["--model-path", "/m", "--digest", "c"],
        ["--follow", "/f", "--digest", f"sha256:{'0' * 64}"],
        ["--follow", "/f", "--app", "m:f"],
        ["--model-path", "/m", "--probe-timeout", "0"],
    ],
)
def test_wrong_options_are_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant exits with 2 and says what was expected."""
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err or argv[0].startswith("--model")
