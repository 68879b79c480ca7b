"""The page in a browser: what it shows there, how it moves, and who can use it.

Needs Debian's chromium. The rules of accessibility are axe-core's, an npm package: `AXE` names its axe.min.js, or it is
where `npm install --no-save axe-core` puts it in the repository.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.daemon.page.markup import format_age
from tests.support import chromium
from tests.support.chromium import Tab, open_tab
from tests.support.daemon import REPOSITORY
from tests.support.page_scene import FAILED, LLAMA, MIB, READY, SLOW, Scene, page_scene

AXE = Path(os.environ.get("AXE") or REPOSITORY / "node_modules/axe-core/axe.min.js")
EVIL = "<img src=x onerror=alert(1)>"
LIVE = "document.getElementById('live').className.includes('live')"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A node with versions in several states, on a port that it has again after a restart."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with page_scene(tmp_path_factory.mktemp("scene"), "--listen", f"127.0.0.1:{port}") as made:
        made.fill()
        made.pod("search", EVIL, READY[2])
        made.set_rate(MIB / 2)
        yield made


async def _open(tab: Tab, scene: Scene) -> None:
    await tab.open(scene.url)
    await tab.wait(LIVE)


def _row(version: str) -> str:
    """The script for the row of a version."""
    return f"[...document.querySelectorAll('#rows tr')].find((row) => row.innerText.includes('{version}'))"


async def test_the_page_shows_the_node_and_asks_the_daemon_alone(scene: Scene, tmp_path: Path) -> None:
    """Every version has its row with its state, names of others are text, no error is in the console, and no request
    goes anywhere but to the daemon."""
    async with open_tab(tmp_path) as tab:
        await _open(tab, scene)
        rows = await tab.run("[...document.querySelectorAll('#rows tr')].map((row) => row.innerText)")
        assert len(rows) == len(READY) + 3
        for ref, state in ((READY[0], "ready"), (SLOW, "fetching"), (FAILED, "failed")):
            assert state in await tab.run(f"{_row(str(ref))}.innerText"), ref
        text = await tab.text()
        assert EVIL in text
        assert await tab.run("document.querySelectorAll('img').length") == 0
        assert "publish the version there with holdfast publish" in text
        assert await tab.run("document.title") == "2 problems, gpu-node-17: Holdfast"
        # Colours and widths are in force under the page's policy.
        assert await tab.run("getComputedStyle(document.querySelector('.bar rect')).fill") != "rgb(0, 0, 0)"
        assert await tab.run("document.querySelector('.bar rect').getBoundingClientRect().width") > 5
        assert tab.errors == []
        assert all(url.startswith(scene.url) for url in tab.requests), tab.requests


async def test_the_page_moves_by_itself(scene: Scene, tmp_path: Path) -> None:
    """A fetch moves without a reload, what the reader had found stays found, ages grow and read as the server's; what a
    reader opened stays as it is."""
    async with open_tab(tmp_path) as tab:
        await _open(tab, scene)
        await tab.run("document.getElementById('query').value = 'llama'; window.mark = 1")
        await tab.run("document.getElementById('query').dispatchEvent(new Event('input'))")
        value = f"Number({_row(str(SLOW))}.querySelector('progress').value)"
        before = await tab.run(value)
        await tab.wait(f"{value} > {before}")
        assert await tab.run("window.mark") == 1
        shown = await tab.run("[...document.querySelectorAll('#rows tr')].filter((row) => !row.hidden).length")
        assert shown == 3
        assert await tab.run("document.getElementById('shown').textContent") == f"3 of {len(READY) + 3} shown"
        ages = [0, 59, 60, 3599, 3600, 86399, 86400, 400 * 86400]
        for age in ages:
            await tab.run(
                "document.body.append(Object.assign(document.createElement('time'), {className: 'probe', dateTime: "
                f"new Date(Date.now() - {age + 0.01} * 1000 + 600).toISOString()}}))"
            )
        await tab.wait("[...document.querySelectorAll('.probe')].every((each) => each.textContent)")
        told = await tab.run("[...document.querySelectorAll('.probe')].map((each) => each.textContent)")
        for age, text in zip(ages, told, strict=True):
            assert text in {format_age(age + late) for late in range(-1, 10)}, (age, text)
        assert tab.errors == []


async def test_a_fetch_that_ends_is_shown(scene: Scene, tmp_path: Path) -> None:
    """When a version arrives its row says ready, its pods do not wait any more, and a new pod appears as one."""
    async with open_tab(tmp_path) as tab:
        await _open(tab, scene)
        assert "llama-next-0" in await tab.run("document.getElementById('waiting').innerText")
        scene.set_rate(200 * MIB)
        await tab.wait(f"{_row(str(SLOW))}.innerText.includes('ready')")
        await tab.wait("!document.getElementById('waiting').innerText.includes('llama-next-0')")
        scene.pod("research", "late-comer", FAILED)
        await tab.wait("document.getElementById('waiting').innerText.includes('late-comer')")
        assert tab.errors == []


async def test_a_page_without_javascript_is_true(scene: Scene, tmp_path: Path) -> None:
    """Without scripts the page has all the same content, ages included, and says that it does not move."""
    async with open_tab(tmp_path) as tab:
        await tab.call("Emulation.setScriptExecutionDisabled", value=True)
        await tab.open(scene.url)
        text = await tab.text()
        assert "Without JavaScript this page does not move" in text
        assert f"{LLAMA}@v2" in text
        assert await tab.run(
            "[...document.querySelectorAll('time')].every((each) => /^\\d+[smhd]$/.test(each.textContent))"
        )
        assert await tab.run("document.getElementById('find').offsetParent === null")


async def test_the_page_is_used_by_keyboard(scene: Scene, tmp_path: Path) -> None:
    """The first stop leads past everything to the versions; the next ones are the search and the links."""
    async with open_tab(tmp_path) as tab:
        await _open(tab, scene)
        await tab.press("Tab", 9)
        assert await tab.run("document.activeElement.className") == "skip"
        assert await tab.run("document.activeElement.getBoundingClientRect().left") >= 0
        await tab.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13, text="\r")
        await tab.wait("location.hash === '#versions'")
        await tab.press("Tab", 9)
        assert await tab.run("document.activeElement.id") == "query"


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (npm install --no-save axe-core, or AXE=FILE)")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
async def test_the_page_breaks_no_rule_of_axe(scene: Scene, tmp_path: Path, scheme: str, width: int) -> None:
    """axe-core finds nothing wrong, light and dark, wide and on a phone; nothing is wider than the screen."""
    async with open_tab(tmp_path) as tab:
        await tab.resize(width, 900)
        await tab.prefer(scheme)
        await _open(tab, scene)
        await tab.run(AXE.read_text() + "; 0")
        broken = "result.violations.map((rule) => [rule.id, rule.nodes.map((each) => each.html)])"
        found = await tab.run(f"axe.run().then((result) => {broken})")
        assert found == []
        assert await tab.run("document.documentElement.scrollWidth") <= width


async def test_a_page_left_open_over_a_restart_goes_on(scene: Scene, tmp_path: Path) -> None:
    """While the daemon is away the page says so; when it is back the page shows what holds then, without a reload."""
    async with open_tab(tmp_path) as tab:
        await _open(tab, scene)
        await tab.run("window.mark = 1")
        assert scene.daemon.stop() == 0
        await tab.wait("document.getElementById('live').className.includes('lost')")
        assert "Not connected since" in await tab.text()
        scene.pod("research", "after-restart", FAILED)
        scene.daemon.start()
        await tab.wait(LIVE)
        await tab.wait("document.getElementById('waiting').innerText.includes('after-restart')")
        assert await tab.run("window.mark") == 1
        assert await tab.run("document.querySelectorAll('#rows tr').length") == len(READY) + 3
