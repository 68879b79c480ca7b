"""Make `docs/reference/options.md` from the parsers of `holdfast`'s commands.

Law: the page has no fact that `holdfast COMMAND --help` does not have. Run `python -m tools.options_page`
(`make generated`).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from cached.cli import COMMANDS, SURVEY
from cached.completion import get_parser
from cached.contract.program.options import OptionParser
from tools.markdown import make_table

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "options.md"
_VARIABLE = re.compile(r" \[(HOLDFAST_\w+)\]$")
_DEFAULT = re.compile(r"; default (.+)$")

_HEAD = """# Options

Made from the commands' own parsers by `make generated`; a test compares the two. Every option also reads the
environment variable beside it; the command line wins, and a bad value in either ends the command with 2 before anything
starts. Sizes are written as `512MiB` or `2TB`, rates as `200MiB/s`, durations as `90s`, `15m`, `6h` or `7d`.
"""


def main() -> int:
    """Write the page; return the exit code."""
    for page, text in make_pages().items():
        page.write_text(text)
    return 0


def make_pages() -> dict[Path, str]:
    """Return the text of each page."""
    commands = [(name, target, text) for name, (target, text) in COMMANDS.items()]
    place = 1 + next(number for number, (name, _, _) in enumerate(commands) if name == "inspect")
    commands.insert(place, ("inspect URI", SURVEY, "show what a source has, before anything is fetched"))
    text = "".join(_describe(name, get_parser(target), text) for name, target, text in commands)
    return {_PAGE: _HEAD + text}


def _describe(name: str, parser: OptionParser, text: str) -> str:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    given = " ".join(_value(action) or action.dest for action in actions if not action.option_strings)
    options = [action for action in actions if action.option_strings]
    title = name.partition(" ")[0]
    usage = " ".join(f"holdfast {title} {given}".split())
    lines = f"\n## {name}\n\n`{usage}`{' with options' if options else ''}: {text}.\n"
    if parser.epilog:
        lines += f"\n{parser.epilog[0].upper()}{parser.epilog[1:]}.\n"
    if not options:
        return lines
    return f"{lines}\n{make_table(['option', 'default', 'meaning', 'variable'], map(_row, options))}"


def _row(action: argparse.Action) -> list[str]:
    text = action.help or ""
    variable = _VARIABLE.search(text)
    text = _VARIABLE.sub("", text)
    default = _DEFAULT.search(text)
    option = f"`{' '.join([action.option_strings[-1], _value(action)]).rstrip()}`"
    shown = "required" if action.required else "" if default is None else default[1]
    return [option, shown, _DEFAULT.sub("", text), "" if variable is None else f"`{variable[1]}`"]


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    value = str(action.metavar or action.dest.upper())
    return f"[{value}]" if action.nargs == "?" else value


if __name__ == "__main__":
    sys.exit(main())
