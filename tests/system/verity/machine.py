"""A virtual machine with a kernel of its own, to run tests in that need what this machine's kernel lacks.

Law: QEMU in software (TCG) with an initramfs made of this Python, this repository and the few programs that the tests
run; nothing of this machine is changed, and the machine's files are its memory.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.support.daemon import REPOSITORY

_PROGRAMS = ("mkfs.ext4", "tune2fs", "mount", "umount")
_DISTRIBUTIONS = (
    *("holdfast", "aiohttp", "hypothesis", "prometheus-client", "PyYAML", "watchdog"),
    *("pytest", "pytest-asyncio", "pytest-timeout"),
)
_FOLDERS = ("cached", "sidecar", "tests")
_NOT_WANTED = frozenset({"test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "site-packages"})
_EXIT = "the tests ended with "
_MEMORY = "2G"

_INIT = """#!{python} -Bu
import ctypes, os, socket, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def mount(kind, where):
    os.makedirs(where, exist_ok=True)
    assert libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None) == 0, where
for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")):
    mount(kind, where)
for module in {modules}:
    with open(module, "rb") as file:
        assert libc.syscall(313, file.fileno(), b"", 0) == 0, module  # finit_module(2)
import fcntl
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
environment = {{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}}
command = [{venv!r}, "-m", "pytest", "-p", "no:cacheprovider", "--color", "no", "--timeout", "600", *{arguments!r}]
ended = subprocess.run(command, cwd={repository!r}, env=environment, check=False)
print("{exit}" + str(ended.returncode), flush=True)
os.sync()
libc.reboot(0x01234567)
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel's image, and the modules that the tests need, in the order in which they are loaded."""

    image: Path
    modules: tuple[Path, ...]


def find_kernel(folder: Path) -> Kernel | None:
    """The newest kernel below `folder` (`/`, or an unpacked linux-image package) that has fs-verity; None: there is
    none."""
    for config in sorted((folder / "boot").glob("config-*"), reverse=True):
        version = config.name.removeprefix("config-")
        image = folder / "boot" / f"vmlinuz-{version}"
        lines = config.read_text().splitlines()
        if not {"CONFIG_FS_VERITY=y", "CONFIG_EXT4_FS=y"} <= set(lines) or not image.exists():
            continue
        loop = folder / "lib/modules" / version / "kernel/drivers/block/loop.ko"
        if "CONFIG_BLK_DEV_LOOP=y" in lines:
            return Kernel(image, ())
        if loop.exists():
            return Kernel(image, (loop,))
    return None


def run(kernel: Kernel, folder: Path, arguments: Iterable[str], timeout_s: float) -> tuple[int | None, str]:
    """Run pytest with `arguments` in a machine; returns its exit code (None: it never ended) and what it wrote."""
    archive = folder / "initramfs.cpio"
    with archive.open("wb") as file:
        for piece in _archive(kernel, list(arguments)):
            file.write(piece)
    console = "console=ttyS0 quiet panic=-1"
    options: list[str | Path] = [
        "-kernel",
        kernel.image,
        "-initrd",
        archive,
        "-append",
        console,
        "-m",
        _MEMORY,
        "-smp",
        "2",
    ]
    machine = [
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-nographic",
        "-no-reboot",
        "-nodefaults",
    ]
    try:
        ended = subprocess.run(
            [*machine, "-serial", "stdio", *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as late:
        return None, (late.stdout or b"").decode(errors="replace")
    said = ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace")
    code = re.search(rf"{_EXIT}(\d+)", said)
    return int(code[1]) if code else None, said


def _archive(kernel: Kernel, arguments: list[str]) -> Iterator[bytes]:
    """The initramfs, as cpio's `newc` format has it (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    files = {path: path for path in _files()}
    files |= {Path("/modules") / module.name: module for module in kernel.modules}
    init = _INIT.format(
        python=os.path.realpath(sys.executable),
        venv=sys.executable,
        modules=[f"/modules/{module.name}" for module in kernel.modules],
        arguments=arguments,
        repository=str(REPOSITORY),
        exit=_EXIT,
    )
    number = itertools.count(1)
    folders = {parent for path in files for parent in path.parents if parent != Path("/")} | {Path("/dev")}
    for folder in sorted(folders):
        yield _entry(next(number), folder, stat.S_IFDIR | 0o755, 0, b"")
    yield _entry(next(number), Path("/init"), stat.S_IFREG | 0o755, 0, init.encode())
    for path, source in sorted(files.items()):
        found = source.lstat()
        data = os.readlink(source).encode() if source.is_symlink() else source.read_bytes()
        yield _entry(next(number), path, found.st_mode, int(found.st_mtime), data)
    yield _entry(0, Path("/TRAILER!!!"), 0, 0, b"")


def _entry(number: int, path: Path, mode: int, mtime: int, data: bytes) -> bytes:
    name = str(path).lstrip("/").encode() + b"\0"
    fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _files() -> Iterator[Path]:
    """All that the machine has, under the names that it has here."""
    python = Path(os.path.realpath(sys.executable))
    programs = {path for name in _PROGRAMS for path in _with_links(Path(shutil.which(name) or name))}
    found = {*programs, *_with_links(Path(sys.executable)), Path(sys.prefix) / "pyvenv.cfg", python}
    found |= {path for path in _below(Path(os.__file__).parent) if "config-3" not in str(path)}
    found |= {path for path in _packages() if path.is_file()}
    for name in _FOLDERS:
        found |= set(_below(REPOSITORY / name, {"site-packages", "e2e", "soak"}))
    found |= {REPOSITORY / "pyproject.toml", *map(Path, ("/etc/mke2fs.conf", "/etc/passwd"))}
    return iter({path for path in found | _libraries(found) if path.exists()})


def _below(folder: Path, but: Iterable[str] = _NOT_WANTED) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in but]
        yield from (Path(parent, name) for name in names)


def _packages() -> Iterator[Path]:
    """The files of the distributions and of all that they need."""
    waiting, seen = list(_DISTRIBUTIONS), set()
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop(), maxsplit=1)[0].lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        if name != "holdfast":
            waiting += [wish for wish in found.requires or () if "extra ==" not in wish]
        yield from (Path(os.path.abspath(str(found.locate_file(file)))) for file in found.files or ())
    # An editable install is a .pth file or a finder next to its metadata, both among its files.


def _libraries(files: Iterable[Path]) -> set[Path]:
    """The shared libraries that these files need, with the links that lead to them."""
    needing = [path for path in files if ".so" in path.name or os.access(path, os.X_OK)]
    needing = [path for path in needing if path.is_file() and _head(path) == b"\x7fELF"]
    told = subprocess.run(["ldd", *needing], capture_output=True, text=True, check=False).stdout
    names = set(re.findall(r"(?:=> |^\s+)(/\S+) \(", told, re.MULTILINE))
    return {path for name in names for path in _with_links(Path(name))}


def _with_links(path: Path) -> Iterator[Path]:
    """A file, and every link on the way to it (its folders' included, as real paths)."""
    while path.is_symlink():
        yield path
        path = path.parent / os.readlink(path)
    yield path
    yield Path(os.path.realpath(path))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)
