"""`holdfast completion bash|zsh`: a shell's completion of all commands and their options, by shtab.

Law: made from the commands' own parsers; a command whose libraries are not installed is completed by its name alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from cached.cli import COMMANDS
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, OptionParser

SHELLS = ("bash", "zsh")
_PATHS = {"FILE": "FILE", "DIR": "DIRECTORY", "SOCKET": "FILE"}  # what shtab completes, by the name of a value
_HOW = {
    "bash": "holdfast completion bash > /etc/bash_completion.d/holdfast",
    "zsh": "holdfast completion zsh > a folder of $fpath, as _holdfast",
}


class _Built(Exception):
    """A command has built its parser and would parse its arguments now."""

    def __init__(self, parser: OptionParser) -> None:
        super().__init__()
        self.parser = parser


def main(argv: Sequence[str]) -> int:
    """Run `holdfast completion SHELL`; return the exit code."""
    how = "; ".join(_HOW.values())
    parser = OptionParser(
        prog="holdfast completion", description="Print the completion of a shell.", epilog=f"to install it: {how}"
    )
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell")
    options = parser.parse_args(argv)
    try:
        import shtab
    except ModuleNotFoundError:
        sys.stderr.write("holdfast completion: the package shtab is missing\n  what to do: pip install shtab\n")
        return EXIT_FAILED
    sys.stdout.write(shtab.complete(_build_all(shtab), shell=options.shell))
    return EXIT_DONE


def get_parser(target: str) -> OptionParser:
    """Return the parser that the command at `module:function` builds, with the defaults of no environment. Raises
    ModuleNotFoundError where a library of the command is not installed."""
    module, _, function = target.partition(":")
    command = getattr(import_module(module), function)
    with _without_variables(), _stopping_at_arguments():
        try:
            command([])
        except _Built as built:
            return built.parser
    raise ValueError(f"{target}: expected a command that parses its arguments with an OptionParser, found none")


def _build_all(shtab: Any) -> argparse.ArgumentParser:
    """Return one parser with all commands as its subcommands."""
    whole = argparse.ArgumentParser(prog="holdfast", add_help=True)
    subcommands = whole.add_subparsers(dest="command")
    for name, (target, text) in COMMANDS.items():
        added = subcommands.add_parser(name, help=text, add_help=False)
        try:
            parser = get_parser(target)
        except ModuleNotFoundError:
            continue
        for action in parser._actions:
            kind = _PATHS.get(str(action.metavar or ""))
            if kind is not None and action.choices is None:
                action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]  # shtab reads it
            added._add_action(action)
    return whole


@contextmanager
def _without_variables() -> Iterator[None]:
    """Hide our variables of the environment: a bad value in one would end the command."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith("HOLDFAST_")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _stopping_at_arguments() -> Iterator[None]:
    """Raise `_Built` where a command would parse its arguments."""

    def stop(parser: OptionParser, *_: Any, **__: Any) -> NoReturn:
        raise _Built(parser)

    OptionParser.parse_known_args = stop  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del OptionParser.parse_known_args
