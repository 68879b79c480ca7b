"""What a power cut would leave: a record of all that was made durable, and the trees that may come back from it.

Law: a strict disk. The bytes, size, mode and times of a file are durable as they were at the last fsync or fdatasync
of that file; the entries of a folder as at the last fsync of that folder; nothing else is. `strict` gives back exactly
that. `renamed` is the opposite that a journalling file system may show: every name of that moment is there, and bytes
that were never synced are not. `mixed` takes for every folder one or the other, by the seed; but a durable file whose
rename was not synced keeps a name, the old one, the new one or both: no file system loses it between two folders.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord

Variant = Literal["strict", "renamed", "mixed"]
_open, _write = os.open, os.write
_LOG = "journal"


class Journal:
    """The writing side, inside the daemon's process. A file is known by its inode and how often that was given out."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._lives: Counter[int] = Counter()
        self._kept = 0
        root.mkdir(exist_ok=True)  # that of an empty root is the administrator's
        folder.mkdir()
        self._log = _open(folder / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        found = [self.look(os.fspath(root))]
        found += [self.look(os.path.join(at, name)) for at, dirs, files in os.walk(root) for name in (*dirs, *files)]
        self._append({"step": "start", "synced": [each for each in found if each], "names": self._names()})

    def look(self, path: str) -> dict[str, Any] | None:
        """A file with a copy of its bytes, or a folder with its entries, as it is now; None for anything else."""
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode):
            return {"id": self._id(found), "entries": self._entries(path)}
        if not stat.S_ISREG(found.st_mode):
            return None
        self._kept += 1
        shutil.copyfile(path, self._folder / str(self._kept))
        mode = stat.S_IMODE(found.st_mode)
        return {"id": self._id(found), "copy": self._kept, "mode": mode, "mtime_ns": found.st_mtime_ns}

    def synced(self, step: str, kept: dict[str, Any]) -> None:
        """`kept` is durable from here on."""
        self._append({"step": step, "synced": [kept], "names": self._names()})

    def born(self, path: str) -> None:
        """A new file has this inode: it is not the one that had it before."""
        self._lives[os.lstat(path).st_ino] += 1

    def _names(self) -> dict[str, dict[str, Any]]:
        return {
            os.path.relpath(at, self._root): {"id": self._id(os.lstat(at)), "entries": self._entries(at)}
            for at, _dirs, _files in os.walk(self._root)
        }

    def _entries(self, path: str) -> dict[str, dict[str, Any]]:
        entries = {}
        for entry in os.scandir(path):
            found = entry.stat(follow_symlinks=False)
            made: dict[str, Any] = {"id": self._id(found), "mode": stat.S_IMODE(found.st_mode)}
            if stat.S_ISDIR(found.st_mode):
                made["kind"] = "folder"
            elif stat.S_ISLNK(found.st_mode):
                made |= {"kind": "symlink", "target": os.readlink(entry.path)}
            elif stat.S_ISREG(found.st_mode):
                made["kind"] = "file"
            else:
                continue  # the socket: a start removes one that was left
            entries[entry.name] = made
        return entries

    def _id(self, found: os.stat_result) -> str:
        return f"{found.st_ino}.{self._lives[found.st_ino]}"

    def _append(self, event: dict[str, Any]) -> None:
        _write(self._log, json.dumps(event).encode() + b"\n")


@dataclass(slots=True)
class _Durable:
    """What is durable at one moment."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, event: dict[str, Any]) -> None:
        for kept in event["synced"]:
            (self.folders if "entries" in kept else self.files)[kept["id"]] = kept


class Recording:
    """The reading side: a run's journal, and the trees that power cuts at its syncs leave."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        lines = (folder / _LOG).read_bytes().splitlines()
        self._events = [json.loads(line) for line in lines]

    @property
    def steps(self) -> list[str]:
        """The syncs in order, `start` first: power may be cut right after each."""
        return [event["step"] for event in self._events]

    def restore(self, upto: int, variant: Variant, target: Path, seed: int = 0) -> Mapping[int, list[int]]:
        """Make the tree that comes back when power is cut right before sync `upto` + 1 returns.

        Returns the inodes that its files have, by those that they had.
        """
        durable = _Durable()
        for event in self._events[: upto + 1]:
            durable.add(event)
        # What changed since, and was not synced, is in the names that the next event saw.
        names = self._events[min(upto + 1, len(self._events) - 1)]["names"]
        now = {folder["id"]: folder for folder in names.values()}
        chance = random.Random(seed)

        def choose(id_: str) -> dict[str, Any]:
            kept, seen = durable.folders.get(id_, {"entries": {}}), now.get(id_)
            old: dict[str, Any] = kept["entries"]
            current: dict[str, Any] = old if seen is None else seen["entries"]
            if variant == "mixed":
                return chance.choice((old, current))
            return old if variant == "strict" else current

        chosen: dict[str, dict[str, Any]] = {}
        _choose_all(names["."]["id"], choose, chosen)
        if variant == "mixed":
            _keep_renamed(chosen, durable, now)
        tree = _Tree(self._folder, durable, chosen)
        target.mkdir()
        tree.fill(names["."]["id"], target)
        _follow_inodes(target, tree.inodes)
        return tree.inodes


def _choose_all(id_: str, choose: Callable[[str], dict[str, Any]], chosen: dict[str, dict[str, Any]]) -> None:
    """Choose the entries of a folder and of those below it."""
    chosen[id_] = dict(choose(id_))
    for entry in chosen[id_].values():
        if entry["kind"] == "folder" and entry["id"] not in chosen:
            _choose_all(entry["id"], choose, chosen)


def _keep_renamed(chosen: dict[str, dict[str, Any]], durable: _Durable, now: Mapping[str, dict[str, Any]]) -> None:
    """Give each file that has a name now, and none of those chosen, its durable name back."""
    named = {entry["id"] for folder in now.values() for entry in folder["entries"].values()}
    lost = named - {entry["id"] for entries in chosen.values() for entry in entries.values()}
    for id_, entries in chosen.items():
        for name, entry in durable.folders.get(id_, {"entries": {}})["entries"].items():
            if entry["kind"] == "file" and entry["id"] in lost:
                entries.setdefault(name, entry)


class _Tree:
    """A tree on its way back. `chosen`: the entries of each folder."""

    def __init__(self, copies: Path, durable: _Durable, chosen: Mapping[str, dict[str, Any]]) -> None:
        self._copies = copies
        self._durable = durable
        self._chosen = chosen
        self._made: dict[str, Path] = {}
        self.inodes: dict[int, list[int]] = {}  # those that the files had -> those that they have

    def fill(self, id_: str, folder: Path) -> None:
        for name, entry in self._chosen[id_].items():
            path = folder / name
            if entry["kind"] == "folder":
                if entry["id"] in self._made:
                    continue  # a rename of which both names came back: for a folder no file system does that
                self._made[entry["id"]] = path
                path.mkdir()
                self.fill(entry["id"], path)
                path.chmod(entry["mode"])
            elif entry["kind"] == "symlink":
                path.symlink_to(entry["target"])
                self._remember(entry["id"], path)
            elif entry["id"] in self._made:
                os.link(self._made[entry["id"]], path)
            else:
                self._made[entry["id"]] = path
                self._file(entry["id"], path)

    def _file(self, id_: str, path: Path) -> None:
        kept = self._durable.files.get(id_)
        if kept is None:
            path.touch(0o600)
        else:
            shutil.copyfile(self._copies / str(kept["copy"]), path)
            path.chmod(kept["mode"])
            os.utime(path, ns=(kept["mtime_ns"], kept["mtime_ns"]))
        self._remember(id_, path)

    def _remember(self, id_: str, path: Path) -> None:
        self.inodes.setdefault(int(id_.partition(".")[0]), []).append(path.lstat().st_ino)


def _follow_inodes(root: Path, inodes: dict[int, list[int]]) -> None:
    """A disk keeps inode numbers, a copy does not: let the records that tell them tell those of the copy."""
    for path in root.glob("public/snapshots/*/.holdfast/verified.json"):
        data = path.read_bytes()
        if not data:
            continue
        record = VerifiedRecord.parse(data).files
        moved = {}
        for name, entry in record.items():
            here = path.parent.parent / name
            number = here.stat().st_ino if here.exists() else 0
            same = number in inodes.get(entry.ino, [])
            moved[name] = VerifiedFile(number if same else 0, entry.size, entry.mtime_ns, entry.verified_at)
        replace_bytes(path, VerifiedRecord(moved).encode())


def renew_inodes(root: Path) -> None:
    """The same for a tree that was copied whole."""
    for path in root.glob("public/snapshots/*/.holdfast/verified.json"):
        record = VerifiedRecord.parse(path.read_bytes()).files
        found = {name: (path.parent.parent / name).stat().st_ino for name in record}
        moved = {n: VerifiedFile(found[n], e.size, e.mtime_ns, e.verified_at) for n, e in record.items()}
        replace_bytes(path, VerifiedRecord(moved).encode())


def replace_bytes(path: Path, data: bytes) -> None:
    """Change a read-only file in place, keeping its mode."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(mode)
