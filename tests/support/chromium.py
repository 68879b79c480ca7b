"""Debian's chromium without a window, driven over the DevTools protocol.

Law: one browser process with a profile of its own, ended with the `with` block; it reaches loopback only. Positions and
sizes are CSS pixels. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium")
_PATIENCE_S = 100.0
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
    *("--remote-debugging-port=0", "--hide-scrollbars", "--disable-background-networking", "--disable-extensions"),
    *("--disable-component-update", "--disable-sync", "--no-proxy-server", "--lang=en-GB"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


class Tab:
    """One tab. `errors`: what its console said of errors and warnings, and exceptions that were not caught. `requests`:
    the addresses that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        self.requests: list[str] = []

    async def listen(self) -> None:
        """Take answers and events until the socket ends."""
        async for message in self._socket:
            document = json.loads(message.data)
            if "id" in document:
                self._answers.pop(document["id"]).set_result(document)
            else:
                self._note(document["method"], document["params"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; returns its result."""
        self._numbers += 1
        answer = self._answers[self._numbers] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": self._numbers, "method": method, "params": parameters}))
        document = await asyncio.wait_for(answer, _PATIENCE_S)
        assert "error" not in document, (method, document)
        result: dict[str, Any] = document["result"]
        return result

    async def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def run(self, script: str) -> Any:
        """Return the value of an expression, or of the promise that it gives."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not await self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"never: {condition}\n{self.errors}\n{await self.text()}"
            await asyncio.sleep(0.05)

    async def text(self) -> str:
        """Return what the page shows as text."""
        return str(await self.run("document.body.innerText"))

    async def resize(self, width: int, height: int, *, scale: float = 1) -> None:
        """Give the page another size; below 600 it is a phone's."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    async def prefer(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def press(self, key: str, code: int) -> None:
        """Press a key, as `Tab` with its code 9."""
        for kind in ("rawKeyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    async def take_picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of what is in view, or of the whole page."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(event["exceptionDetails"]))
            case "Log.entryAdded" if event["entry"]["level"] in ("error", "warning"):
                self.errors.append(event["entry"]["text"])
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(event["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(event["request"]["url"])


@asynccontextmanager
async def open_tab(folder: Path) -> AsyncIterator[Tab]:
    """Start a browser with its profile in `folder`; yield its tab."""
    assert PROGRAM is not None
    profile = folder / "chromium"
    process = await asyncio.create_subprocess_exec(
        PROGRAM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = await _find_port(profile / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                try:
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await tab.call(f"{domain}.enable")
                    yield tab
                finally:
                    listening.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _find_port(path: Path, process: asyncio.subprocess.Process) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        assert process.returncode is None, f"chromium ended with {process.returncode}"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            return int(path.read_text().splitlines()[0])
        assert time.monotonic() < deadline, "chromium opened no port"
        await asyncio.sleep(0.05)
