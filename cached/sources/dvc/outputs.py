"""The outputs that DVC's files name: `X.dvc`, `dvc.lock`, and the listing of a folder (`….dir`).

Law: pure. An output's md5 names its place in a remote. Only DVC 3 (`hash: md5`) makes it of the file as it is, so that
it is a promise; the older one is of a text with other ends of lines. Formats: files that DVC 3.67 wrote.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from cached.contract.errors import Permanent, Transient
from cached.core.listing import Algorithm, Checksum
from cached.sources.resolving import Named

_MD5 = re.compile(r"([0-9a-f]{32})(\.dir)?")
_MAX_FILES = 200_000
_MAX_DEPTH = 32
# What PyYAML raises; the last four for a tag on a text that is none of its kind (`!!timestamp x`, `!!bool x`).
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError, AttributeError, LookupError, TypeError, OverflowError)
LOCK = "dvc.lock"
SUFFIX = ".dvc"


@dataclass(frozen=True, slots=True)
class Output:
    """An output at `path` in the repository. `is_exact`: whether `md5` is that of the bytes."""

    path: str
    md5: str
    is_folder: bool
    is_exact: bool
    size: int | None = None
    remote: str | None = None

    @property
    def place(self) -> str:
        """The path of its file, or its folder's listing, in a remote."""
        return place_of(self.md5, is_exact=self.is_exact) + (".dir" if self.is_folder else "")

    def named(self, path: str) -> Named:
        """Return the output as the file `path` of a version."""
        return Named(path, self.place, self.size, sums=sums_of(self.md5, is_exact=self.is_exact))


def place_of(md5: str, *, is_exact: bool) -> str:
    """Return the path of a file in a remote."""
    return ("files/md5/" if is_exact else "") + f"{md5[:2]}/{md5[2:]}"


def sums_of(md5: str, *, is_exact: bool) -> tuple[Checksum, ...]:
    """Return the promise that an md5 is."""
    return (Checksum(Algorithm.MD5, md5),) if is_exact else ()


def candidates(path: str) -> list[str]:
    """Return the files that may name the output `path`, or one above it: nearest first."""
    if path.endswith(SUFFIX):
        return [path]
    found = []
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        found += [f"{'/'.join(parts[:count])}{SUFFIX}", "/".join([*parts[: count - 1], LOCK])]
    return found


def read_outputs(data: bytes, name: str, where: str) -> list[Output]:
    """Return the outputs that the file `name` of a repository has. Raises `Permanent` (`bad_index`)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(yaml.parse(data, loader), name, where)
        document = yaml.load(data, loader)  # noqa: S506 - both are safe
    except _NO_YAML as error:
        raise bad_index(where, name, f"no YAML ({type(error).__name__})") from error
    folder = posixpath.dirname(name)
    if not isinstance(document, dict):
        raise bad_index(where, name, "no YAML mapping")
    if not name.endswith(LOCK):
        folder = posixpath.join(folder, str(document.get("wdir") or "."))
    return [output for each in _outs(document, name, where) if (output := _output(each, folder, name, where))]


def read_folder(data: bytes, output: Output, where: str) -> Iterator[tuple[str, str]]:
    """Return the path and the md5 of each file of a folder. Raises `Transient` (`bad_response`) for what is no listing
    of one, `Permanent` (`too_many_files`)."""
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad_listing(where, output, f"{len(data)} bytes that are not JSON") from error
    if not isinstance(entries, list):
        raise _bad_listing(where, output, "another form")
    if len(entries) > _MAX_FILES:
        problem = f"{where}: expected at most {_MAX_FILES} files in {output.path!r}, found {len(entries)}"
        raise Permanent("too_many_files", problem, "name a folder below it")
    seen = set()
    for entry in entries:
        path, md5 = (entry.get("relpath"), entry.get("md5")) if isinstance(entry, dict) else (None, None)
        match = _MD5.fullmatch(md5) if isinstance(md5, str) else None
        if not isinstance(path, str) or match is None or match[2] or path in seen:
            raise _bad_listing(where, output, f"an entry as {str(entry)[:200]}")
        seen.add(path)
        yield path, match[1]


def bad_index(where: str, name: str, found: str) -> Permanent:
    """Return the error of a file of DVC that is none."""
    return Permanent(
        "bad_index", f"{where}: expected {name} as DVC writes it, found {found}", "check it with `dvc status`"
    )


def _check_events(events: Iterator[yaml.Event], name: str, where: str) -> None:
    """Raise `Permanent` (`bad_index`) for what would grow without bound: aliases, and collections in collections, for
    which libyaml takes the square of their depth, and lets no other thread run."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise bad_index(where, name, "aliases, which DVC writes none of")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise bad_index(where, name, f"collections nested more than {_MAX_DEPTH} deep")


def _outs(document: dict[str, Any], name: str, where: str) -> Iterator[Any]:
    stages = document.get("stages") or {} if name.endswith(LOCK) else {"": document}
    for stage in stages.values() if isinstance(stages, dict) else [None]:
        outs = stage.get("outs") or [] if isinstance(stage, dict) else None
        if not isinstance(outs, list):
            raise bad_index(where, name, "outputs of another form")
        yield from outs


def _output(each: Any, folder: str, name: str, where: str) -> Output | None:
    """Return an output; None for one without an md5, as of other hashes."""
    path = each.get("path") if isinstance(each, dict) else None
    if not isinstance(path, str):
        raise bad_index(where, name, "an output without a path")
    md5, size, remote = each.get("md5"), each.get("size"), each.get("remote")
    match = _MD5.fullmatch(md5) if isinstance(md5, str) else None
    if match is None or each.get("hash", "md5") != "md5":
        return None
    size = size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 and not match[2] else None
    at = posixpath.normpath(posixpath.join(folder, path))
    is_exact = each.get("hash") == "md5"
    return Output(at, match[1], bool(match[2]), is_exact, size, remote if isinstance(remote, str) else None)


def _bad_listing(where: str, output: Output, found: str) -> Transient:
    return Transient(
        "bad_response",
        f"{where}: expected the listing of the folder {output.path!r} at {output.place}, found {found}",
        "check the remote, and push the output again",
    )
