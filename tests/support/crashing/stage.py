"""One root, one origin, one daemon: where a scenario is played, up to a crash and beyond.

Law: every stage has a folder and an origin of its own; what was fetched is read off the origin, not off the daemon.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cached.contract.errors import HoldfastError
from cached.contract.layout import ingest_id
from cached.contract.manifest import MANIFEST_NAME
from cached.contract.reference import ModelRef
from cached.sources.base import identity_of
from tests.support.crashing.checks import settled, visible
from tests.support.crashing.journal import renew_inodes
from tests.support.crashing.points import Plan
from tests.support.crashing.warm import Died, WarmDaemon, WarmParent
from tests.support.filling import manifest_of
from tests.support.origin import HostileOrigin

Files = Mapping[str, bytes]


@dataclass(slots=True)
class Stage:
    """What a scenario works with. `spoiled`: inodes that it damaged itself; `held`: what the origin has, by path."""

    daemon: WarmDaemon
    origin: HostileOrigin
    spoiled: set[int] = field(default_factory=set)
    held: dict[str, bytes] = field(default_factory=dict)

    def serve(self, folder: str, files: Files) -> str:
        """Put a published version at the origin; returns its URL."""
        manifest = manifest_of(files)
        self._put(folder, files)
        self.origin.put(f"/{folder}/{MANIFEST_NAME}", manifest.canonical(), etag='"m"')
        return self.origin.url(f"/{folder}/")

    def serve_unlisted(self, folder: str, files: Files) -> str:
        """Put plain files behind a directory index at the origin: nothing tells their sha256; returns the URL."""
        links = "".join(f'<a href="{path}">{path}</a>' for path in files)
        page = f"<html><title>Index of /{folder}</title>{links}</html>".encode()
        self.origin.put(f"/{folder}/", page, content_type="text/html")
        self._put(folder, files)
        return self.origin.url(f"/{folder}/")

    def _put(self, folder: str, files: Files) -> None:
        for path, data in files.items():
            self.held[f"/{folder}/{path}"] = data
            self.origin.put(f"/{folder}/{path}", data, etag=_etag(data))


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """A piece of a daemon's life. `serve` fills the origin; `before` makes the root it finds, with daemons of its own;
    `catalog` is the one in force at the end; `act` is the life itself; `wanted` is what must be there
    in the end, once `done` holds. `spoil` damages the root as only a disk or another program could. `again`: places
    where its steps mean something else than those of the scenarios before it."""

    name: str
    wanted: Mapping[ModelRef, Files]
    serve: Callable[[Stage], None]
    catalog: Callable[[Stage], Mapping[str, Any]]
    act: Callable[[Stage], None]
    before: Callable[[Stage], None] | None = None
    spoil: Callable[[Stage], None] | None = None
    done: Callable[[Stage], bool] = lambda on: True
    options: tuple[str, ...] = ("--scrub-rate", "0", "--connections", "2")
    again: tuple[str, ...] = ()


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:16]}"'


@contextmanager
def stage(scenario: Scenario, folder: Path, parent: WarmParent, template: Path | None) -> Iterator[Stage]:
    """A stage whose root is a copy of `template`."""
    with bare_stage(scenario, folder, parent) as made:
        if template is not None:
            copy_root(template, made.daemon.layout.root)
        if scenario.spoil is not None:
            scenario.spoil(made)
        yield made


@contextmanager
def bare_stage(scenario: Scenario, folder: Path, parent: WarmParent) -> Iterator[Stage]:
    """A stage whose root is for the caller to make."""
    with HostileOrigin(host="127.0.0.1") as origin:
        made = Stage(WarmDaemon(folder, parent, *scenario.options), origin)
        scenario.serve(made)
        try:
            yield made
        finally:
            made.daemon.end()


def copy_root(template: Path, root: Path) -> None:
    """Copy a root with its hard links; `root` may be there, as an empty folder."""
    root.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=never", f"{template}/.", root], check=True)
    renew_inodes(root)


def make_template(scenario: Scenario, folder: Path, parent: WarmParent) -> Path | None:
    """The root that a scenario begins with; None where that is none at all."""
    if scenario.before is None:
        return None
    with bare_stage(scenario, folder, parent) as made:
        scenario.before(made)
    return made.daemon.layout.root


def play(scenario: Scenario, on: Stage, plan: Plan) -> bool:
    """Live the scenario under a plan; tells whether the daemon died of it. Afterwards nothing runs."""
    on.daemon.plan = plan
    try:
        scenario.act(on)
    except (Died, AssertionError, OSError, http.client.HTTPException, HoldfastError, ValueError):
        if not on.daemon.died():
            raise
    finally:
        on.daemon.plan = None
    died = on.daemon.code() == -9
    on.daemon.end()
    return died


@dataclass(frozen=True, slots=True)
class Kept:
    """What a crash left that need not be fetched again: whole blobs by sha256, and durable ranges by partial blob."""

    blobs: frozenset[str] = frozenset()
    ranges: Mapping[str, list[list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, on: Stage) -> Kept:
        layout = on.daemon.layout
        blobs = frozenset(path.name for path in layout.blobs.glob("*/*") if path.stat().st_ino not in on.spoiled)
        states = {path.parent.name: json.loads(path.read_bytes()) for path in layout.ingest.glob("*/state.json")}
        return cls(blobs, {id_: state["done"] for id_, state in states.items()})


def check_fetched(on: Stage, kept: Kept, since: int) -> None:
    """Nothing that was kept came again: no byte of a committed blob, no byte that was recorded as durable."""
    for seen in on.origin.requests[since:]:
        data = on.held.get(seen.path)
        if seen.method != "GET" or data is None:
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        assert sha256 not in kept.blobs, f"{seen.path} was committed and is fetched again"
        place = on.origin.url(f"/{seen.path.split('/')[1]}/")
        unlisted = ingest_id(identity_of("http", place, ""), on.origin.url(seen.path), _etag(data))
        done = kept.ranges.get(sha256) or kept.ranges.get(unlisted) or []
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("range", "bytes=0-"))
        start, end = (int(match[1]), int(match[2]) + 1) if match else (0, len(data))
        overlap = [each for each in done if start < each[1] and each[0] < end]
        assert not overlap, f"{seen.path}: bytes {start} to {end} are fetched again, of which {overlap} were recorded"


def restart(scenario: Scenario, on: Stage) -> None:
    """Start a daemon that nothing happens to, and wait until all that is wanted is there."""
    on.daemon.write_catalog(scenario.catalog(on))
    on.daemon.start()
    on.daemon.wait(lambda: scenario.done(on), "what this scenario is about")
    # By its own word first: the files may still be those of the life that was ended.
    on.daemon.wait(lambda: scenario.wanted.keys() <= _settled_now(on), "all that is wanted")
    on.daemon.wait_ready(*scenario.wanted)


def _settled_now(on: Stage) -> set[ModelRef]:
    told = on.daemon.document()["models"]
    return {ModelRef(each["model"], each["version"]) for each in told if each["state"] in ("ready", "failed")}


def survive(scenario: Scenario, on: Stage, kept: Kept | None = None) -> None:
    """What must hold after any crash: before anything runs, and after the next daemon has done its work."""
    visible(on.daemon.layout, on.spoiled)
    kept, since = kept or Kept.of(on), len(on.origin.requests)
    restart(scenario, on)
    check_fetched(on, kept, since)
    settled(on.daemon, scenario.wanted)
    on.daemon.kill()
    visible(on.daemon.layout)
