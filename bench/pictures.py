"""Take the README's pictures of the daemon's page and of its commands, from a real daemon with versions in several
states.

Law: writes `page-light.png`, `page-dark.png` and `terminal.svg` of `docs/pictures` and nothing else; what they show is
made by `tests.support.page_scene`, and the terminal is a real one. Needs Debian's chromium and a sans-serif font, as
fonts-noto-core. The page's pictures have 256 colours, the most frequent ones of the screen and those farthest from
them: half of the bytes, and no difference to the eye.

Run `python -m bench.pictures` in the repository's root.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from bench.harness import bench_main, workplace
from bench.measure import failed
from cached.contract.program.units import format_size
from tests.support import chromium
from tests.support.page_scene import MIB, NODE, Scene, page_scene

_Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
_Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int32]]

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
_WIDTH, _HEIGHT = 1160, 1460
_FREQUENT, _FAR = 176, 80  # colours
_LARGEST = 150_000  # bytes of a picture
_MOVING_S = 3.0  # until the rate of the fetch is a steady one


def main(argv: Sequence[str] | None = None) -> int:
    """Take the pictures; return the exit code."""
    argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__.partition("\n")[0]).parse_args(argv)
    if chromium.PROGRAM is None:
        raise failed("chromium is not installed", "install it (Debian: apt-get install chromium fonts-noto-core)")
    PICTURES.mkdir(exist_ok=True)
    with workplace(None) as place, page_scene(place.folder / "scene") as scene:
        scene.fill()
        scene.set_rate(2 * MIB)
        for path in (*asyncio.run(_take(scene, place.folder)), _take_terminal(scene)):
            print(f"{path}: {format_size(path.stat().st_size)}")
            if path.stat().st_size > _LARGEST:
                raise failed(f"{path} is larger than {_LARGEST} bytes", "make _HEIGHT smaller")
    return 0


async def _take(scene: Scene, folder: Path) -> list[Path]:
    paths = []
    async with chromium.open_tab(folder) as tab:
        await tab.resize(_WIDTH, _HEIGHT)
        await tab.open(scene.url)
        await tab.wait("document.getElementById('live').className.includes('live')")
        await asyncio.sleep(_MOVING_S)
        for scheme in ("light", "dark"):
            await tab.prefer(scheme)
            paths.append(PICTURES / f"page-{scheme}.png")
            await tab.take_picture(paths[-1])
        await tab.open("about:blank#")  # without the page's policy
        for path in paths:
            encoded = base64.b64encode(path.read_bytes()).decode()
            pixels = str(await tab.run(_DECODE.replace("PICTURE", encoded)))
            path.write_bytes(_encode_png(np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(_HEIGHT, _WIDTH, 4)))
    return paths


def _take_terminal(scene: Scene) -> Path:
    """Run commands of people in a terminal, and draw what they print."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for words in _COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), "holdfast ", " ".join(words)))
        console.print(Text.from_ansi(_run_in_terminal(words, scene.daemon.layout.root)))
    path = PICTURES / "terminal.svg"
    drawn = console.export_svg(title=NODE, theme=MONOKAI, code_format=_SVG, unique_id="terminal")
    path.write_text(f"{drawn}\n")
    return path


def _run_in_terminal(words: Sequence[str], root: Path) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, _COLUMNS, 0, 0))
    command = [sys.executable, "-m", "cached.cli", *words, "--root", str(root)]
    bare = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    environment = {**bare, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while piece := os.read(ours, 65536):
                said += piece
        os.close(ours)
        process.wait()
    return said.decode().replace("\r\n", "\n").rstrip()


_COLUMNS = 118
_COMMANDS = (
    ("ls",),
    ("why", "search/llama-next-0"),
    ("why", "audio/transcribe-5c4b-tt8xn"),
    ("gc", "--dry-run"),
)
# As rich's own, without the address of a font.
_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>"""


_DECODE = """(async () => {
  const picture = await createImageBitmap(await (await fetch("data:image/png;base64,PICTURE")).blob());
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const reader = new FileReader();
  const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
  await new Promise((done) => { reader.onload = done; reader.readAsDataURL(new Blob([pixels])); });
  return reader.result.split(",")[1];
})()"""


def _encode_png(pixels: _Bytes) -> bytes:
    """Return a PNG of RGBA pixels with few colours; others become the nearest of these.
    https://www.w3.org/TR/png-3/"""
    height, width, _ = pixels.shape
    colours, places, counts = np.unique(pixels[..., :3].reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    chosen = list(np.argsort(-counts)[:_FREQUENT])
    distances = np.stack([_measure(colours, colours[at]) for at in chosen])
    for _ in range(_FAR):
        chosen.append(distances.min(axis=0).argmax())
        distances = np.vstack([distances, _measure(colours, colours[chosen[-1]])])
    palette = colours[chosen]
    rows = distances.argmin(axis=0).astype(np.uint8)[places.reshape(height, width)]
    lines = np.zeros((height, width + 1), np.uint8)  # each with its filter, none, in front
    lines[:, 1:] = rows
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", head),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _measure(colours: _Bytes, one: _Bytes) -> _Numbers:
    """Return the square of the distance of each colour from one."""
    distances: _Numbers = ((colours.astype(np.int32) - one.astype(np.int32)) ** 2).sum(axis=1, dtype=np.int32)
    return distances


if __name__ == "__main__":
    sys.exit(bench_main(main))
