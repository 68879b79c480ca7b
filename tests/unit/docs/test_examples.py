"""The examples of the pages: what a reader copies is accepted by the program that it is for."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cached.cli import COMMANDS, SURVEY
from cached.completion import get_parser
from cached.core.catalog import EMPTY_CATALOG, parse_catalog

ROOT = Path(__file__).resolve().parents[3]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "manifests").rglob("*.md")]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_END = re.compile(r"[|;&#<>()]")  # of one command in a line of a shell
_DIGEST = f"sha256:{'0' * 64}"


def _list_code(page: Path) -> Iterator[str]:
    """Yield the code of a page, a line or a span each; lines that end with a backslash are joined."""
    text = page.read_text()
    for _, block in _BLOCK.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from _SPAN.findall(_BLOCK.sub("", text))


def _list_commands(program: str) -> list[tuple[str, str]]:
    """Return the arguments of each call of a program in a page, with the page's name."""
    call = re.compile(rf"(?<![\w/.-]){program} (.+)")
    found: dict[tuple[str, str], None] = {}
    for page in PAGES:
        for line in _list_code(page):
            for match in call.finditer(line.partition("#")[0]):
                found[page.name, _END.split(match[1])[0].strip()] = None
    return list(found)


@cache
def _list_options(command: str) -> frozenset[str]:
    targets = [COMMANDS[command][0], *([SURVEY] if command == "inspect" else [])]
    return frozenset(option for target in targets for option in get_parser(target)._option_string_actions)


def test_every_option_of_an_example_exists() -> None:
    """A call of `holdfast` in a page has a command and options that this release has."""
    calls = [
        (page, words)
        for page, line in _list_commands("holdfast")
        if (words := line.split())[:1] and words[0] in COMMANDS
    ]
    assert len(calls) > 100
    lost = [
        (page, " ".join(words), option)
        for page, words in calls
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(words[1:]))
        if option not in _list_options(words[0])
    ]
    assert lost == []


def _list_catalogs() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for kind, block in _BLOCK.findall(page.read_text()):
            if kind == "yaml" and re.match(r"(?:#.*\n|defaults:.*\n)*models:", block):
                yield page.name, block


@pytest.mark.parametrize(("page", "block"), list(_list_catalogs()))
def test_every_catalog_of_an_example_is_accepted(page: str, block: str) -> None:
    """A catalog in a page is parsed without a refused entry; a digest that is cut short stands for any."""
    update = parse_catalog(re.sub(r"sha256:[0-9a-f]*…", _DIGEST, block), EMPTY_CATALOG)
    assert not update.rejected, page


_CALLS = [
    (page, line)
    for page, line in _list_commands("kubectl")
    if "…" not in line and "$" not in line and len(line.split()) > 1 and not re.match(r"(apply|delete) -[kf]", line)
]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize(("page", "line"), _CALLS)
def test_kubectl_takes_every_example(tmp_path: Path, page: str, line: str) -> None:
    """A call of `kubectl` in a page is one that kubectl would send to a cluster: here there is none to connect to."""
    connection = ("--server=http://127.0.0.1:9", f"--cache-dir={tmp_path}", "--kubeconfig=/dev/null")
    done = subprocess.run(["kubectl", *connection, *shlex.split(line)], capture_output=True, text=True, timeout=100)
    assert "connection refused" in done.stderr or "was refused" in done.stderr, f"{page}: {line}: {done.stderr}"


def test_every_folder_that_kubectl_applies_is_there() -> None:
    """`kubectl apply -k` and `delete -k` in a page name a folder of this repository, or the reader's own."""
    folders = {
        match[1] for _, line in _list_commands("kubectl") if (match := re.match(r"(?:apply|delete) -k (\S+)", line))
    }
    assert folders
    assert [each for each in folders if not (ROOT / each).is_dir() and each != "manifests/overlays/mine"] == []
