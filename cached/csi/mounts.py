"""Mount snapshots read-only at a volume's target, and find out from the kernel what is mounted.

Law: blocking. A volume is put together at a private place first and appears at its target by one system call, whole and
read-only: a bind that is made read-only afterwards would stay writable on the host, since the kernel propagates mounts
and not their later flags (Documentation/filesystems/sharedsubtree.rst). Nothing but our own mounts is unmounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import HoldfastError, InvalidReference, Permanent, Transient
from cached.contract.layout import Layout, PublicLayout
from cached.contract.reference import ModelRef, name_from_path_segment

SOURCE = "weights.holdfast.dev"  # of the tmpfs of a tree, in /proc/self/mountinfo

_MOUNTS = Path("/proc/self/mountinfo")
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_FLAGS = _RDONLY | _NOSUID | _NODEV | _NOEXEC
_OPTIONS = frozenset({"ro", "nosuid", "nodev", "noexec"})
_DETACH, _NOFOLLOW = 2, 8
_TREE_OPTIONS = "size=1m,mode=0755"  # symlinks and folders; tmpfs counts pages
_TARGET = re.compile(r"/[^/]+/volumes/kubernetes\.io~csi/[^/]+/mount(?=/|$)")
_TARGET_DEPTH = 4  # folders between a target and the folder of pods
_DELETED = "//deleted"
_HEX_DIGITS = 64
_FOLDER_MODE = 0o755
_PRIVILEGED_REMEDY = "run the daemon as root, in a container with `privileged: true`, as the overlay `csi` does"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo, proc(5): the mount point, the device as `8:1`, the mounted folder within its
    file system, the mount's options and source, and whether mounts in it propagate."""

    point: str
    device: str
    root: str
    options: frozenset[str]
    source: str
    is_shared: bool


@dataclass(frozen=True, slots=True)
class VolumeContent:
    """What a volume shows: the snapshot itself, or a tree with the names of `models`. `digests`: all its snapshots."""

    digests: frozenset[Digest]
    models: Mapping[ModelRef, Digest] | None

    @classmethod
    def of_snapshot(cls, digest: Digest) -> VolumeContent:
        return cls(frozenset({digest}), None)

    @classmethod
    def of_tree(cls, models: Mapping[ModelRef, Digest]) -> VolumeContent:
        return cls(frozenset(models.values()), dict(models))


class Mounter:
    """Mounts snapshots of the root at `layout`, at real paths. `staging`: a folder for mounts in the making."""

    def __init__(self, layout: Layout, staging: Path) -> None:
        self._layout = layout
        self._public = layout.public
        self._staging = staging

    def prepare(self) -> None:
        """Make the staging folder, and remove what a killed daemon left in it. Raises `Permanent`."""
        with _errors(f"preparing {self._staging}"):
            self._staging.mkdir(parents=True, exist_ok=True)
            within = os.path.realpath(self._staging) + os.sep
            for entry in reversed(read_mounts()):
                if entry.point.startswith(within):
                    _umount(Path(entry.point))
            for left in self._staging.iterdir():
                left.rmdir()

    def mount(self, content: VolumeContent, target: Path) -> None:
        """Mount `content` at `target`, whose parent exists. Raises `HoldfastError`, with nothing mounted."""
        with _errors(f"mounting {target}"), self._staged() as stage:
            if content.models is None:
                (digest,) = content.digests
                self._bind_snapshot(digest, stage)
            else:
                self._build_tree(content.models, stage)
            made = _make_folder(target)
            try:
                _mount(stage, target, _BIND | _REC)
            except BaseException:
                if made:
                    target.rmdir()
                raise

    def unmount(self, target: Path) -> None:
        """Unmount what is mounted at `target`, with everything in it, and remove the folder; either may be gone
        already. Raises `Permanent` (`foreign_mount`) for a mount of another program."""
        with _errors(f"unmounting {target}"):
            here = self._locate()
            for entry in reversed([each for each in read_mounts() if each.point == os.fspath(target)]):
                if not here.has(entry):
                    raise Permanent(
                        "foreign_mount",
                        f"{target}: expected a mount of this driver, found one of {entry.source}",
                        "unmount it by hand; this driver leaves the mounts of other programs alone",
                    )
                _umount(target)
            with contextlib.suppress(FileNotFoundError):
                target.rmdir()

    def is_mounted(self, content: VolumeContent, target: Path) -> bool:
        """Return whether `target` shows `content` now. Raises `HoldfastError`."""
        found = self.find_volumes(target.parents[_TARGET_DEPTH]).get(os.fspath(target))
        return found is not None and found.content == content and found.is_whole

    def find_volumes(self, pods: Path) -> dict[str, FoundVolume]:
        """Return the volumes of this root in the kubelet's folder of pods, by their target's real path. What the
        kubelet mounts of them elsewhere, as for a `subPath`, is its own. Raises `HoldfastError`."""
        with _errors(f"reading {_MOUNTS}"):
            here, above = self._locate(), os.path.realpath(pods)
            entries = [each for each in read_mounts() if here.has(each) and find_target(each.point, above) is not None]
            binds: defaultdict[str, list[MountEntry]] = defaultdict(list)
            tops: dict[str, MountEntry] = {}
            for entry in entries:
                target = find_target(entry.point, above)
                assert target is not None
                if entry.point == target:
                    tops[target] = entry
                else:
                    binds[target].append(entry)
            return {
                target: _found_tree(top, binds[target]) if top.source == SOURCE else _found_snapshot(top)
                for target, top in tops.items()
            }

    def shows_old_snapshot(self, content: VolumeContent, target: Path) -> bool:
        """Return whether a volume shows the folder of a snapshot that was withdrawn, and another one is here since."""
        with contextlib.suppress(OSError):
            for digest in content.digests:
                place = target if content.models is None else PublicLayout(target).snapshot(digest).path
                if not os.path.samestat(os.stat(place), os.stat(self._public.snapshot(digest).path)):
                    return True
        return False

    def _build_tree(self, models: Mapping[ModelRef, Digest], stage: Path) -> None:
        _mount(Path(SOURCE), stage, _NOSUID | _NODEV | _NOEXEC, kind="tmpfs", data=_TREE_OPTIONS)
        _mount(stage, stage, _PRIVATE)
        tree = PublicLayout(stage)
        for folder in (tree.snapshots, tree.models):
            folder.mkdir()
        for digest in sorted(set(models.values())):
            place = tree.snapshot(digest).path
            place.mkdir()
            self._bind_snapshot(digest, place)
        for ref, digest in models.items():
            link = tree.model_link(ref)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(tree.link_target(digest))
        _mount(stage, stage, _REMOUNT | _FLAGS, data=_TREE_OPTIONS)  # the file system itself
        _mount(stage, stage, _REMOUNT | _BIND | _FLAGS)  # and this mount of it

    def _bind_snapshot(self, digest: Digest, place: Path) -> None:
        _mount(self._public.snapshot(digest).path, place, _BIND)
        _mount(place, place, _PRIVATE)
        _mount(place, place, _REMOUNT | _BIND | _FLAGS)

    @contextlib.contextmanager
    def _staged(self) -> Iterator[Path]:
        stage = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            yield stage
        finally:
            _umount(stage)
            stage.rmdir()

    def _locate(self) -> _Location:
        """Return where the root is within its file system, as mountinfo writes it."""
        place, found = os.path.realpath(self._layout.root), find_mount(self._layout.root)
        if found is None:
            raise Permanent("no_proc", f"{_MOUNTS}: it names no mount of {place}", "mount proc at /proc")
        return _Location(found.device, os.path.normpath(os.path.join(found.root, os.path.relpath(place, found.point))))


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """A mounted volume. `is_whole`: every mount of it is read-only, as it should be, and no snapshot is missing."""

    content: VolumeContent
    is_whole: bool


@dataclass(frozen=True, slots=True)
class _Location:
    device: str
    root: str

    def has(self, entry: MountEntry) -> bool:
        """Return whether a mount is one of this driver: of a folder of the root, or the tmpfs of a tree."""
        if entry.source == SOURCE:
            return True
        return entry.device == self.device and entry.root.startswith(self.root.rstrip("/") + os.sep)


def find_target(path: str, pods: str) -> str | None:
    """Return the target of the CSI volume that `path` is, or is in, where the kubelet has them:
    `<pods>/<uid>/volumes/kubernetes.io~csi/<name>/mount`; None elsewhere. Both are real paths."""
    found = re.match(_TARGET, path.removeprefix(pods)) if path.startswith(pods + os.sep) else None
    return None if found is None else pods + found[0]


def read_mounts() -> list[MountEntry]:
    """Return the mounts of this process's namespace, later ones above earlier ones. Raises OSError."""
    return [_parse_entry(line) for line in _MOUNTS.read_text(errors="surrogateescape").splitlines()]


def find_mount(path: Path) -> MountEntry | None:
    """Return the mount that `path` is on, None if /proc names none. Raises OSError."""
    place, found = os.path.realpath(path), None
    for entry in read_mounts():
        if place == entry.point or place.startswith(entry.point.rstrip("/") + os.sep):
            found = entry if found is None or len(entry.point) >= len(found.point) else found
    return found


def _parse_entry(line: str) -> MountEntry:
    fields = line.split(" ")
    end = fields.index("-")
    return MountEntry(
        point=_unescape(fields[4]),
        device=fields[2],
        root=_unescape(fields[3]),
        options=frozenset(fields[5].split(",")),
        source=_unescape(fields[end + 2]),
        is_shared=any(each.startswith("shared:") for each in fields[6:end]),
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _found_snapshot(entry: MountEntry) -> FoundVolume:
    digest = _digest_of(entry)
    content = VolumeContent(frozenset() if digest is None else frozenset({digest}), None)
    return FoundVolume(content, is_whole=digest is not None and entry.options >= _OPTIONS)


def _found_tree(tree: MountEntry, binds: Iterable[MountEntry]) -> FoundVolume:
    names = _read_names(PublicLayout(Path(tree.point)))
    present = {digest for each in binds if each.options >= _OPTIONS and (digest := _digest_of(each)) is not None}
    content = VolumeContent(frozenset(names.values()) | present, names)
    whole = tree.options >= _OPTIONS and bool(names) and present == set(names.values())
    return FoundVolume(content, is_whole=whole)


def _digest_of(entry: MountEntry) -> Digest | None:
    """Return the digest of a mounted snapshot, also of one that was moved to the trash since."""
    name = os.path.basename(entry.root.removesuffix(_DELETED))[:_HEX_DIGITS]
    return Digest(name) if is_hex(name) else None


def _read_names(tree: PublicLayout) -> dict[ModelRef, Digest]:
    found: dict[ModelRef, Digest] = {}
    for folder in _folders(tree.models):
        for link in _folders(folder):
            with contextlib.suppress(InvalidReference, OSError):
                ref = ModelRef(name_from_path_segment(folder.name), link.name)
                found[ref] = Digest(Path(os.readlink(link)).name)
    return found


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _make_folder(path: Path) -> bool:
    try:
        path.mkdir(_FOLDER_MODE)
    except FileExistsError:
        return False
    return True


def _mount(source: Path, target: Path, flags: int, *, kind: str | None = None, data: str | None = None) -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind and kind.encode(), flags, data and data.encode())
    if _libc.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(target))


def _umount(target: Path) -> None:
    """Detach the topmost mount at `target` with everything in it; without one do nothing."""
    if _libc.umount2(os.fsencode(target), _DETACH | _NOFOLLOW) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # no mount point, or gone
            raise OSError(number, os.strerror(number), os.fspath(target))


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except HoldfastError:
        raise
    except PermissionError as error:
        raise Permanent("not_privileged", f"{what}: {error.strerror}: {error.filename}", _PRIVILEGED_REMEDY) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Transient(
            "mount_failed",
            f"{what}: {where}{error.strerror or error}",
            "it is tried again; if it lasts, look at the node's kernel log and its limit of mounts (fs.mount-max)",
        ) from error
