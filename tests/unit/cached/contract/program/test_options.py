"""Options: the command line wins over the environment, and both are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.program.options import EXIT_USAGE, OptionParser, parse_address
from cached.contract.program.units import parse_size


def parser() -> OptionParser:
    made = OptionParser(prog="holdfast test")
    made.option("--quota", type=parse_size, default="7", help="bytes")
    made.option("--scrub-rate", default="none", help="rate")
    made.option("--kube", choices=("auto", "off"), default="auto", help="cluster")
    made.option("--catalog", type=Path, required=True, help="file")
    made.switch("--once", help="once")
    return made


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUOTA", "SCRUB_RATE", "KUBE", "CATALOG", "ONCE"):
        monkeypatch.delenv(f"HOLDFAST_{name}", raising=False)


def test_defaults() -> None:
    """What neither the command line nor the environment gives is the default."""
    given = parser().parse_args(["--catalog", "c"])
    assert (given.quota, given.scrub_rate, given.kube, given.once) == (7, "none", "auto", False)


def test_the_environment_gives_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option also reads HOLDFAST_ and its name, a required one too, converted like the command line's."""
    monkeypatch.setenv("HOLDFAST_QUOTA", "1KiB")
    monkeypatch.setenv("HOLDFAST_SCRUB_RATE", "x")
    monkeypatch.setenv("HOLDFAST_CATALOG", "/c")
    monkeypatch.setenv("HOLDFAST_ONCE", "1")
    given = parser().parse_args([])
    assert (given.quota, given.scrub_rate, given.catalog, given.once) == (1024, "x", Path("/c"), True)


def test_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option on the command line beats the environment's."""
    monkeypatch.setenv("HOLDFAST_QUOTA", "1KiB")
    assert parser().parse_args(["--catalog", "c", "--quota", "2KiB"]).quota == 2048


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set and empty, as templates leave them, counts as not set."""
    monkeypatch.setenv("HOLDFAST_QUOTA", "")
    monkeypatch.setenv("HOLDFAST_ONCE", "")
    given = parser().parse_args(["--catalog", "c"])
    assert (given.quota, given.once) == (7, False)


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ([], {}, "--catalog"),
        (["--catalog", "c", "--quota", "much"], {}, "expected a size"),
        (["--catalog", "c", "--kube", "on"], {}, "--kube"),
        (["--catalog", "c", "--unknown"], {}, "--unknown"),
        (["--catalog", "c"], {"HOLDFAST_QUOTA": "much"}, "HOLDFAST_QUOTA: expected a size"),
        (["--catalog", "c"], {"HOLDFAST_KUBE": "on"}, "HOLDFAST_KUBE: expected one of auto, off"),
        (["--catalog", "c"], {"HOLDFAST_ONCE": "maybe"}, "HOLDFAST_ONCE: expected 1 or 0"),
    ],
)
def test_usage_errors(
    arguments: list[str],
    environment: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad value exits 2 and says where it came from and what was expected."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(arguments)
    assert caught.value.code == EXIT_USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "OFF"])
def test_a_switch_can_be_off(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch that the environment turns off stays off, and the command line turns it on."""
    monkeypatch.setenv("HOLDFAST_ONCE", text)
    assert parser().parse_args(["--catalog", "c"]).once is False
    assert parser().parse_args(["--catalog", "c", "--once"]).once is True


def test_help_names_the_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """Help shows for every option the variable that gives it too."""
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    said = capsys.readouterr().out
    for name in ("HOLDFAST_QUOTA", "HOLDFAST_SCRUB_RATE", "HOLDFAST_KUBE", "HOLDFAST_CATALOG", "HOLDFAST_ONCE"):
        assert f"[{name}]" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.0.0.0:9400", ("0.0.0.0", 9400)), ("localhost:0", ("localhost", 0)), ("[::1]:65535", ("::1", 65535))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    """An address is a host and a port, an IPv6 host in brackets."""
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "9400", "host", "host:", "host:x", "host:65536", "host:-1", "host:٣", "[::1]"])
def test_not_an_address(text: str) -> None:
    """A text that is no address is a ValueError that shows one."""
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


def test_the_help_says_each_default(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` has the default of every option as it would be typed, or in words where no value is the default, and the
    variable."""
    made = OptionParser(prog="holdfast test")
    made.option("--rate", type=parse_size, default="16MiB", metavar="SIZE", help="how fast")
    made.option("--most", type=parse_size, otherwise="no limit", metavar="SIZE", help="how much")
    assert vars(made.parse_args([])) == {"rate": 16 << 20, "most": None}
    with pytest.raises(SystemExit):
        made.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--rate SIZE how fast; default 16MiB [HOLDFAST_RATE]" in said
    assert "--most SIZE how much; default no limit [HOLDFAST_MOST]" in said
