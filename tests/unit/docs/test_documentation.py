"""The pages that promise: what they name is there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tools import contract_pages, metrics_page, options_page

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(page.name for page in (ROOT / "docs").glob("*.md"))

# `tests/a/test_b.py`, `tests/a/test_b.py::test_c`; `test_b.py::test_c`, of the one file of this name; `…::test_c`, of
# the file that the page named last; `test_c`, of any file.
_NAMED = re.compile(r"`(?:(tests/[\w/]+\.py|test_\w+\.py|…(?=::)|(?=::)))?(?:(?:::)?(test_\w+))?`")


@cache
def _functions(file: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))


def _files(name: str) -> list[Path]:
    return [ROOT / name] if "/" in name else list((ROOT / "tests").rglob(name))


def _missing(text: str) -> list[str]:
    """The names in a page that lead to no test, or to more than one."""
    missing, last = [], list[Path]()
    for match in _NAMED.finditer(text):
        file, test = match.groups()
        if file is None and test is None:
            continue
        if file is None:
            found = list((ROOT / "tests").rglob("test_*.py"))
            good = any(test in _functions(each) for each in found)
        else:
            last = _files(file) if file and file != "…" else last
            good = len(last) == 1 and last[0].is_file() and (test is None or test in _functions(last[0]))
        if not good:
            missing.append(match.group())
    return missing


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    """A promise names the test that shows it, and that test exists under its name."""
    assert _missing((ROOT / "docs" / page).read_text()) == []


def test_a_name_of_no_test_is_noticed() -> None:
    """The check reads every form in which the pages name tests."""
    here = "tests/unit/docs/test_documentation.py"
    good = f"`{here}`, `{here}::test_a_name_of_no_test_is_noticed`, `…::test_every_test_that_a_page_names_is_there`"
    assert _missing(good) == []
    assert _missing("`test_documentation.py::test_a_name_of_no_test_is_noticed`") == []
    wrong = ["`tests/test_gone.py`", "`test_gone.py::test_it`", "`…::test_it`", "`::test_it`", "`test_that_is_nowhere`"]
    assert _missing(" ".join(wrong)) == wrong


@pytest.mark.parametrize("maker", [options_page, contract_pages, metrics_page])
def test_the_reference_is_what_the_code_says(maker: Any) -> None:
    """A page of docs/reference is the one that `make generated` would write now."""
    for page, text in maker.make_pages().items():
        assert page.read_text() == text, f"{page.name} is out of date: run make generated"


_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)).lower().replace(" ", "-")
        for text in headings
    }


@pytest.mark.parametrize("page", [*map(str, ROOT.glob("*.md")), *map(str, (ROOT / "docs").rglob("*.md"))])
def test_every_link_leads_somewhere(page: str) -> None:
    """A link between the pages names a file or folder that is there, and a heading that it has."""
    lost = []
    for link in _LINK.findall(Path(page).read_text()):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        target = (Path(page).parent / name).resolve() if name else Path(page)
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            lost.append(link)
    assert lost == []


_OPENED = re.compile(r"`([\w/]+(?:\.py|/))`")


def _wrong_paths(text: str) -> list[str]:
    """The paths in the page of the architecture that lead nowhere: in a room's table from its folder, in a walk from
    any folder."""
    files = [
        f"/{path.relative_to(ROOT)}" for top in ("cached", "sidecar", "server") for path in (ROOT / top).rglob("*.py")
    ]
    wrong, room = [], ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = re.fullmatch(r"### `([\w/]+/)`", line)
            room = "" if heading is None else heading[1]
        if room and line.startswith("| "):
            for cell in line.split(" | ")[1:]:
                wrong += [f"{room}{name}" for name in _OPENED.findall(cell) if not (ROOT / room / name).exists()]
        elif re.match(r"\d+\. |   ", line):
            names = [name for name in _OPENED.findall(line) if name.endswith(".py")]
            wrong += [name for name in names if not any(file.endswith(f"/{name}") for file in files)]
    return wrong


def test_the_architecture_leads_to_files() -> None:
    """Every file that the tables and the walks of docs/architecture.md name is there."""
    text = (ROOT / "docs/architecture.md").read_text()
    assert _wrong_paths(text) == []
    assert _wrong_paths(
        "### `cached/store/`\n| gone | `gone.py`, `disk/root.py` |\n## Walk\n1. `no.py`, `blobs.py`"
    ) == [
        "cached/store/gone.py",
        "no.py",
    ]


def test_the_architecture_names_every_room() -> None:
    """Each folder of modules at the first level has its table, so that a reader misses no room."""
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = {
        path.parent.relative_to(ROOT)
        for top in ("cached", "sidecar", "server")
        for path in (ROOT / top).glob("*/__init__.py")
    }
    assert [str(room) for room in sorted(rooms) if f"### `{room}/`" not in text] == []
