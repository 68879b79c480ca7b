"""Command-line options with a default from the environment variable `HOLDFAST_…`.

Law: standard library only, no work at import. The command line takes precedence; a bad value in either is a usage error
(exit 2) that names its origin.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cached.contract.errors import HoldfastError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
# The deadline of a request to the control socket, on the machine's monotonic clock.
DEADLINE_HEADER = "Holdfast-Deadline"
LOG_FORMAT, LOG_TEXT, LOG_JSON = "--log-format", "text", "json"


class OptionParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose `option` and `switch` also read the environment."""

    def option(
        self,
        name: str,
        *,
        type: Callable[[str], Any] = str,
        default: str | None = None,
        otherwise: str | None = None,
        help: str,
        **more: Any,
    ) -> None:
        """Add `--name VALUE`, by default the value of `HOLDFAST_NAME`. `type` converts the text, that of `default` too,
        and raises ValueError or `HoldfastError` with a message for a person. `otherwise`: in words, the meaning of no
        value."""
        variable = _variable(name)
        convert = _converter(type)
        value = None if default is None else convert(default)
        text = os.environ.get(variable)
        if text is not None and text != "":
            try:
                value = convert(text)
            except argparse.ArgumentTypeError as error:
                self.error(f"environment variable {variable}: {error}")
            choices = more.get("choices")
            if choices is not None and value not in choices:
                self.error(f"environment variable {variable}: expected one of {', '.join(choices)}, found {text!r}")
            more.pop("required", None)
        shown = default if otherwise is None else otherwise
        meaning = help if shown is None else f"{help}; default {shown}"
        self.add_argument(name, type=convert, default=value, help=f"{meaning} [{variable}]", **more)

    def switch(self, name: str, *, help: str) -> None:
        """Add `--name`, also enabled by `HOLDFAST_NAME=1` (or true, yes, on)."""
        variable = _variable(name)
        text = os.environ.get(variable, "").lower()
        if text not in ("", "0", "false", "no", "off", "1", "true", "yes", "on"):
            self.error(f"environment variable {variable}: expected 1 or 0, found {text!r}")
        on = text in ("1", "true", "yes", "on")
        self.add_argument(name, action="store_true", default=on, help=f"{help} [{variable}]")

    def log_format(self) -> None:
        """Add `--log-format`, which `find_log_format` has read before."""
        text = "text: lines for a person; json: one event a line, of all that this process writes"
        self.option(LOG_FORMAT, choices=(LOG_TEXT, LOG_JSON), default=LOG_TEXT, help=text)

    def tracing(self) -> None:
        """Add `--tracing`, for `tracing.open_tracer`."""
        text = "otlp: send a trace of each pod's cold start, as the OTEL_… variables say; off: send nothing"
        self.option("--tracing", choices=("off", "otlp"), default="off", help=text)

    def error(self, message: str) -> NoReturn:
        from cached.contract.program import events  # imports more than a good command line needs

        if events.report_usage(message):
            self.exit(EXIT_USAGE)
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def find_log_format(arguments: Sequence[str]) -> str:
    """Return the format of the log that these arguments and the environment ask for, before they are parsed: a mistake
    in them goes into the log too."""
    found = os.environ.get(_variable(LOG_FORMAT)) or LOG_TEXT
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if len(name) > len("--log-") and LOG_FORMAT.startswith(name):  # argparse takes what is unambiguous
            found = value if equals else next(iter(arguments[index + 1 :]), "")
    return found


def parse_address(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT` (IPv6 hosts in brackets, port 0 for any free one). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"expected HOST:PORT such as 0.0.0.0:9400, found {text!r}")
    return host.strip("[]"), int(port)


def whole_number(low: int, high: int, noun: str = "a number") -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`; it raises ValueError with a message that names `noun`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"expected {noun} from {low} to {high}, found {text!r}")
        return int(text)

    return parse


def _variable(name: str) -> str:
    return "HOLDFAST_" + name.lstrip("-").replace("-", "_").upper()


def _converter(type_: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return type_(text)
        except (ValueError, HoldfastError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
