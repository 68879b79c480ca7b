"""Watch the folders of the root with inotify: who deletes a part of it by hand is noticed at once, and nothing is asked
of an idle disk. The root's files are seen through other mounts (hostPath): an event is of the inode.

Law: notes what may have changed; compares and repairs nothing. A folder without a watch (the kernel or the limit of
watches gives none) is looked at periodically by the reader of this. Our own changes are events too, except that leases
and the bell that we try ourselves are left out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import NamedTuple

from cached.contract.digest import Digest, is_hex
from cached.contract.layout import TEMPORARY_PREFIX, Layout
from cached.contract.program.limits import explain_no_inotify
from cached.node import inotify
from cached.node.inotify import Inotify, InotifyEvent

_log = logging.getLogger(__name__)

_SELF = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF
_GONE = _SELF | inotify.IN_DELETE | inotify.IN_MOVED_FROM
_OTHER = _GONE | inotify.IN_CREATE | inotify.IN_MOVED_TO
_USE = inotify.IN_OPEN | inotify.IN_CLOSE
_LEASE = "lease"
_HEARTBEAT = "daemon.json"


class _Kind(IntEnum):
    """What a watched folder is."""

    TREE = auto()  # one that always exists
    SNAPSHOTS = auto()
    MODELS = auto()
    MODEL = auto()  # of one name
    STATUS = auto()  # of one name
    STATUSES = auto()
    RECORDS = auto()  # `.holdfast` of one snapshot
    FILES = auto()  # the top of one snapshot
    BLOBS = auto()  # of one prefix


_MASKS = {
    _Kind.TREE: _GONE | inotify.IN_ATTRIB,
    _Kind.SNAPSHOTS: _OTHER | inotify.IN_OPEN,
    _Kind.MODELS: _OTHER,
    _Kind.MODEL: _OTHER,
    _Kind.STATUS: _GONE,
    _Kind.STATUSES: _SELF | inotify.IN_DELETE,  # each heartbeat is a rename here; a folder that is moved tells itself
    _Kind.RECORDS: _OTHER | _USE,
    _Kind.FILES: _OTHER | inotify.IN_MODIFY,
    _Kind.BLOBS: inotify.IN_MODIFY | _SELF,
}

_OPTIONAL = frozenset({_Kind.RECORDS, _Kind.FILES, _Kind.BLOBS})  # polled one by one


class _Place(NamedTuple):
    """A folder: its own name in the tree, `digest` of a snapshot, `segment` of a name's folder or of blobs."""

    kind: _Kind
    segment: str = ""
    digest: Digest | None = None

    def find_path(self, parents: Mapping[_Kind, str]) -> str:
        """Return the path of the folder; `parents`: those of `_list_parents`."""
        parent = parents[self.kind]
        if self.digest is not None:
            path = f"{parent}/{self.digest.hex}"
            return path if self.kind is _Kind.FILES else f"{path}/.holdfast"
        return f"{parent}/{self.segment}" if self.segment else parent


def _list_parents(layout: Layout) -> dict[_Kind, str]:
    """Return the folder that has those of each kind, as text: a path as an object costs as much as a watch."""
    public = layout.public
    parents = {
        _Kind.TREE: layout.root,
        _Kind.SNAPSHOTS: public.snapshots,
        _Kind.MODELS: public.models,
        _Kind.MODEL: public.models,
        _Kind.STATUS: public.status,
        _Kind.STATUSES: public.status,
        _Kind.RECORDS: public.snapshots,
        _Kind.FILES: public.snapshots,
        _Kind.BLOBS: layout.blobs,
    }
    return {kind: os.fspath(parent) for kind, parent in parents.items()}


@dataclass(frozen=True, slots=True)
class Followed:
    """What is watched beside the tree itself: these snapshots, and the folders of these names and statuses."""

    digests: frozenset[Digest]
    models: frozenset[str]
    statuses: frozenset[str]

    def subtract(self, other: Followed | None) -> Followed:
        """Return what `other` does not have."""
        if other is None:
            return self
        return Followed(self.digests - other.digests, self.models - other.models, self.statuses - other.statuses)


@dataclass(slots=True)
class Changes:
    """What may have changed. `everything`: a folder of the tree, or events were lost; `names`: snapshots whose name or
    records did, `files`: those whose files did; `segments`: folders of names; `used`: snapshots whose lease was opened
    or closed; `statuses`: a status file went; `sizes`: a committed file was written to."""

    everything: bool = False
    names: set[Digest] = field(default_factory=set)
    files: set[Digest] = field(default_factory=set)
    segments: set[str] = field(default_factory=set)
    used: set[Digest] = field(default_factory=set)
    statuses: bool = False
    sizes: bool = False

    def __bool__(self) -> bool:
        return bool(self.names or self.files or self.segments or self.used) or any(
            (self.everything, self.statuses, self.sizes)
        )


class TreeWatch:
    """The watches on one root; close it. `changed` is set while there are changes, `rung` when another process opened
    the folder of snapshots, as a gate does that rings."""

    def __init__(self, layout: Layout, loop: asyncio.AbstractEventLoop) -> None:
        self._layout = layout
        self._parents = _list_parents(layout)
        self._loop = loop
        self.changed = asyncio.Event()
        self.rung = asyncio.Event()
        self._changes = Changes()
        self._places: dict[int, _Place] = {}
        self._watches: dict[_Place, int] = {}
        self._with_records: set[Digest] = set()  # snapshots with a watch on their records
        self._followed: Followed | None = None  # since then no folder came or went
        self.watches_tree = False  # whether changes of the folders of snapshots, names and statuses are noticed
        self._most = inotify.count_affordable_watches()
        self._is_told = False  # that watches are missing
        self._drops = 0  # watches that ended with their folder
        self._own = 0  # how many looks of our own at leases or at the bell run
        self._inotify = self._open()

    def _open(self) -> Inotify | None:
        try:
            opened = Inotify()
        except OSError as error:
            self._tell(error)
            return None
        self._loop.add_reader(opened.fileno(), self._read)
        return opened

    def close(self) -> None:
        """End all watches."""
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    # --- what is watched -------------------------------------------------------------------------------------------

    def list_unwatched(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those snapshots whose records and lease have no watch."""
        return set(digests) - self._with_records

    @property
    def watches_bell(self) -> bool:
        """Whether `rung` is set when the folder of snapshots is opened."""
        return _Place(_Kind.SNAPSHOTS) in self._watches

    def follow(self, wanted: Followed) -> Changes:
        """Watch these folders; return what is newly watched: it may have changed before. Blocking: call it on a thread,
        one call at a time."""
        added = Changes()
        if self._inotify is None or self._followed == wanted:
            return added
        is_complete = watches_tree = True
        drops = self._drops
        for place in _list_places(self._layout, wanted.subtract(self._followed)):
            if place in self._watches:
                continue
            try:
                is_watched = self._add(place)
            except (FileNotFoundError, NotADirectoryError):  # deleted by hand: it is put back, and watched then
                is_watched = is_complete = False
            if is_watched:
                _note_added(added, place)
            elif place.kind not in _OPTIONAL:
                watches_tree = False
        self.watches_tree = watches_tree
        is_complete = is_complete and watches_tree and drops == self._drops
        self._followed = wanted if is_complete else None
        return added

    def _add(self, place: _Place) -> bool:
        """Watch a folder; return False without a watch left. Raises FileNotFoundError or NotADirectoryError."""
        if len(self._watches) >= self._most:
            self._tell(None)
            return False
        assert self._inotify is not None
        try:
            watch = self._inotify.add(place.find_path(self._parents), _MASKS[place.kind])
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            self._tell(error)
            return False
        self._places[watch] = place
        self._watches[place] = watch
        if place.kind is _Kind.RECORDS and place.digest is not None:
            self._with_records.add(place.digest)
        return True

    def _tell(self, error: OSError | None) -> None:
        """Say once that folders have no watch. The remedy for a kernel that gives none at all is told by the watch on
        the catalog."""
        if self._is_told:
            return
        self._is_told = True
        if error is None:
            why = f"a quarter of fs.inotify.max_user_watches, {self._most}, is in use"
        else:
            why = explain_no_inotify(error) if self._watches else str(error.strerror)
        _log.warning("%s: not all folders have an inotify watch (%s): others are polled", self._layout.root, why)

    def _drop(self, place: _Place) -> None:
        """Forget a watch whose folder went: `follow` watches the next one of that name."""
        watch = self._watches.pop(place, None)
        if watch is not None:
            self._places.pop(watch, None)
            self._followed = None
            self._drops += 1
            if place.kind is _Kind.RECORDS and place.digest is not None:
                self._with_records.discard(place.digest)

    # --- what changed ----------------------------------------------------------------------------------------------

    def take(self) -> Changes:
        """Return the changes since the last call."""
        changes, self._changes = self._changes, Changes()
        self.changed.clear()
        return changes

    @contextmanager
    def ignoring_own(self) -> Iterator[None]:
        """Leave out the leases and the bell that are opened in the block: by us. On the event loop only."""
        self._read()  # by others until now
        self._own += 1
        try:
            yield
        finally:
            self._read()  # the kernel queues an event before the call returns
            self._own -= 1

    def _read(self) -> None:
        if self._inotify is None:
            return
        for event in self._inotify.read():
            if event.mask & inotify.IN_Q_OVERFLOW:
                _log.warning("%s: inotify lost events: everything is looked at", self._layout.root)
                self._changes.everything = True
            elif (place := self._places.get(event.watch)) is not None:
                self._note(place, event)
        if self._changes:
            self.changed.set()

    def _note(self, place: _Place, event: InotifyEvent) -> None:
        if event.mask & (_SELF | inotify.IN_IGNORED):
            if event.mask & inotify.IN_MOVE_SELF and self._inotify is not None:
                self._inotify.remove(event.watch)
            self._drop(place)
        if event.name.startswith(TEMPORARY_PREFIX):
            return
        self._note_changed(place, event)

    def _note_changed(self, place: _Place, event: InotifyEvent) -> None:
        changes, digest, name = self._changes, place.digest, event.name
        match place.kind:
            case _Kind.TREE:
                changes.everything |= not name or bool(event.mask & inotify.IN_ISDIR)
            case _Kind.SNAPSHOTS if event.mask & inotify.IN_OPEN:
                if not name and not self._own:
                    self.rung.set()
            case _Kind.SNAPSHOTS if is_hex(name):
                changes.names.add(Digest(name))
            case _Kind.SNAPSHOTS | _Kind.MODELS | _Kind.STATUSES if not name:
                changes.everything = True
            case _Kind.MODELS:
                changes.segments.add(name)
            case _Kind.MODEL:
                changes.segments.add(place.segment)
            case _Kind.STATUS | _Kind.STATUSES:
                changes.statuses |= name != _HEARTBEAT
            case _Kind.RECORDS if event.mask & _USE:
                if name == _LEASE and not self._own and digest is not None:
                    changes.used.add(digest)
            case _Kind.RECORDS if digest is not None:
                changes.names.add(digest)
            case _Kind.FILES if event.mask & inotify.IN_MODIFY:
                changes.sizes = True
            case _Kind.FILES if digest is not None:
                changes.files.add(digest)
            case _Kind.BLOBS:
                changes.sizes = True
            case _:
                pass


def _note_added(changes: Changes, place: _Place) -> None:
    match place.kind:
        case _Kind.RECORDS | _Kind.FILES if place.digest is not None:
            changes.names.add(place.digest)
        case _Kind.MODEL:
            changes.segments.add(place.segment)
        case _Kind.STATUS:
            changes.statuses = True
        case _:
            pass


def _list_places(layout: Layout, wanted: Followed) -> Iterator[_Place]:
    """Yield the folders, the more important ones first."""
    yield from (_Place(_Kind.TREE, name) for name in ("", "private", "public"))
    yield from (_Place(kind) for kind in (_Kind.SNAPSHOTS, _Kind.MODELS, _Kind.STATUSES))
    yield from (_Place(_Kind.MODEL, segment) for segment in wanted.models)
    yield from (_Place(_Kind.STATUS, segment) for segment in wanted.statuses)
    yield from (_Place(_Kind.RECORDS, digest=digest) for digest in wanted.digests)
    yield from (_Place(_Kind.FILES, digest=digest) for digest in wanted.digests)
    try:
        prefixes = os.listdir(layout.blobs)
    except OSError:  # missing: noticed by the watch on its parent
        return
    yield from (_Place(_Kind.BLOBS, prefix) for prefix in prefixes)
