"""The two versions of Git's protocol that hosts speak: what each lets a client ask for, and how.

Law: pure, but for reading on in an answer. Version 2 is asked for; a host that does not know it answers in version 0.
Format: gitprotocol-v2(5), gitprotocol-pack(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cached.contract.errors import Permanent
from cached.sources.git.pktline import ControlPacket, Packets
from cached.transport.git_blob import GIT_OID

AGENT = "agent=holdfast"
OBJECT_FORMAT = "object-format=sha1"
_PEELED = "^{}"
_SHA1 = "sha1"
# Some hosts refuse a client of version 0 that does not offer the first two, though it has nothing to acknowledge.
_WANTED = ("multi_ack", "multi_ack_detailed", "side-band-64k", "ofs-delta", "no-progress", "shallow", "filter")


@dataclass(frozen=True, slots=True)
class Ref:
    """A branch, a tag or `HEAD`: its name, the id of its object, and of the commit where that is an annotated tag."""

    name: str
    oid: str
    peeled: str | None = None

    @property
    def commit(self) -> str:
        """The id of the commit, as far as the server says."""
        return self.peeled or self.oid


class ProtocolVersion(Protocol):
    """What a host can do. `filters`: it leaves objects out that are not asked for (partial clone); `gives_any`: it
    gives any object by its id, a file too; `tells_sizes`: of objects, without their bytes; `refs`: all of them, None
    where they are asked for."""

    @property
    def filters(self) -> bool: ...

    @property
    def gives_any(self) -> bool: ...

    @property
    def tells_sizes(self) -> bool: ...

    @property
    def refs(self) -> Sequence[Ref] | None: ...

    def fetch(self, wants: Sequence[str], options: Sequence[str]) -> list[str | ControlPacket]:
        """Return the request for objects, with options as `deepen 1` and `filter …`."""

    def find_pack(self, packets: Packets) -> None:
        """Read on to the beginning of the pack. Raises as `Packets.next`."""


@dataclass(frozen=True, slots=True)
class Second:
    """Version 2."""

    capabilities: Mapping[str, str]
    gives_any = True
    refs = None

    @property
    def filters(self) -> bool:
        return "filter" in self.capabilities.get("fetch", "").split()

    @property
    def tells_sizes(self) -> bool:
        return "object-info" in self.capabilities

    def fetch(self, wants: Sequence[str], options: Sequence[str]) -> list[str | ControlPacket]:
        lines: list[str | ControlPacket] = [
            "command=fetch",
            AGENT,
            OBJECT_FORMAT,
            ControlPacket.DELIMITER,
            "no-progress",
            "ofs-delta",
        ]
        return [*lines, *options, *(f"want {oid}" for oid in wants), "done", ControlPacket.FLUSH]

    def find_pack(self, packets: Packets) -> None:
        while (line := packets.line()) != "packfile":
            if line in (ControlPacket.FLUSH, ControlPacket.END, ControlPacket.EOF):
                raise packets.bad("an answer without a pack")


@dataclass(frozen=True, slots=True)
class First:
    """Version 0 (and 1, which differs in its first line)."""

    capabilities: frozenset[str]
    refs: Sequence[Ref]
    tells_sizes = False

    @property
    def gives_any(self) -> bool:
        return bool({"allow-reachable-sha1-in-want", "allow-any-sha1-in-want"} & self.capabilities)

    @property
    def filters(self) -> bool:
        return self.gives_any and "filter" in self.capabilities  # what is left out must be had later

    def fetch(self, wants: Sequence[str], options: Sequence[str]) -> list[str | ControlPacket]:
        chosen = [name for name in _WANTED if name in self.capabilities]
        first, *others = wants
        return [
            " ".join(("want", first, *chosen, AGENT)),
            *(f"want {oid}" for oid in others),
            *options,
            ControlPacket.FLUSH,
            "done",
        ]

    def find_pack(self, packets: Packets) -> None:
        while (line := packets.line()) != "NAK":
            is_shallow = isinstance(line, str) and line.startswith(("shallow ", "unshallow "))
            if not is_shallow and line is not ControlPacket.FLUSH:
                raise packets.bad(f"{str(line)[:60]!r} before a pack")


def read_version(packets: Packets) -> ProtocolVersion:
    """Return what a host says of itself in the answer to `info/refs`. Raises `Permanent` (`unsupported`), `Transient`
    (`bad_response`)."""
    line = packets.line()
    has_service = isinstance(line, str) and line.startswith("# service=")
    if has_service:
        packets.next()  # its flush packet
        line = packets.line()
    if line == "version 2":
        return _read_second(packets)
    if line == "version 1":
        line = packets.line()
    if line is ControlPacket.FLUSH and has_service:
        return First(frozenset(), ())  # an empty repository
    if not isinstance(line, str):
        raise packets.bad("an answer without refs")
    return _read_first(line, packets)


def _read_second(packets: Packets) -> Second:
    capabilities = {}
    while isinstance(line := packets.line(), str):
        name, _, value = line.partition("=")
        capabilities[name] = value
    if line is not ControlPacket.FLUSH:
        raise packets.bad("a list of capabilities that ends too early")
    _check_format(capabilities.get("object-format", _SHA1), packets)
    return Second(capabilities)


def _read_first(line: str | ControlPacket, packets: Packets) -> First:
    """Read refs, each `<id> <name>`; the first one has the capabilities after a NUL, in an empty repository too."""
    refs: dict[str, Ref] = {}
    capabilities: frozenset[str] | None = None
    while isinstance(line, str):
        text, nul, names = line.partition("\0")
        if nul and capabilities is None:
            capabilities = frozenset(names.split())
        oid, space, name = text.partition(" ")
        if text.startswith("shallow "):
            pass
        elif not space or not name or not GIT_OID.fullmatch(oid):
            formats = [each for each in names.split() if each.startswith("object-format=")]
            _check_format(formats[0].partition("=")[2] if formats else _SHA1, packets)
            raise packets.bad(f"{line[:60]!r} in its list of refs")
        elif not name.endswith(_PEELED):
            refs[name] = Ref(name, oid)
        elif name.removesuffix(_PEELED) in refs:
            tag = refs[name.removesuffix(_PEELED)]
            refs[tag.name] = Ref(tag.name, tag.oid, oid)
        line = packets.line()
    if line is not ControlPacket.FLUSH or capabilities is None:
        raise packets.bad("a list of refs that ends too early")
    for name in ("side-band-64k", "shallow"):
        if name not in capabilities:
            raise _unsupported(packets, f"a host that takes `{name}`", "one that does not", "use a newer host of Git")
    return First(capabilities, tuple(refs.values()))


def parse_ref(line: str) -> Ref | None:
    """Parse a line of version 2's `ls-refs`: `<id> <name>[ peeled:<id>]`; None for what is none."""
    oid, _, rest = line.partition(" ")
    name, *attributes = rest.split(" ")
    peeled = next((each.removeprefix("peeled:") for each in attributes if each.startswith("peeled:")), None)
    if not GIT_OID.fullmatch(oid) or not name or (peeled is not None and not GIT_OID.fullmatch(peeled)):
        return None
    return Ref(name, oid, peeled)


def _check_format(found: str, packets: Packets) -> None:
    if found != _SHA1:
        remedy = "use a repository in Git's usual object format, or another source"
        raise _unsupported(packets, "a repository of sha1 objects", repr(found[:40]), remedy)


def _unsupported(packets: Packets, expected: str, found: str, remedy: str) -> Permanent:
    return Permanent("unsupported", f"{packets.where}: expected {expected}, found {found}", remedy)
