"""The members of the pool, from the addresses that `--peers` names: `dns:NAME:PORT` or `HOST:PORT,…`.

Law: names are looked up every 30 s, sooner while no other member is known; the last answer is kept while there is none.
A name with addresses of both families stands for nodes that have two each: one family counts. Works without the
Kubernetes API.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from cached.contract.program import limits
from cached.peers.members import MAX_MEMBERS, format_address, parse_address

_log = logging.getLogger(__name__)

LOOKUP_S = 30.0
_FIRST_S, _END_S = 2.0, 1.0  # a name server that is silent holds getaddrinfo(3) for up to a minute
_OWN_S = 600.0  # between two looks at this machine's own addresses, while the members are the same
ALONE_S = 3.0  # at a first start the name service learns of the pods one by one
Resolver = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class MemberAddress:
    """A host, or a name that stands for many, and their port."""

    host: str
    port: int


def parse_peers(text: str) -> tuple[MemberAddress, ...] | None:
    """Parse the value of `--peers`; None for `off`. Raises ValueError."""
    if text == "off":
        return None
    places = [text.removeprefix("dns:")] if text.startswith("dns:") else text.split(",")
    return tuple(map(_parse_place, places))


def _parse_place(text: str) -> MemberAddress:
    host, _, port = text.strip().rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or any(each.isspace() or each in "/,[]@" for each in host) or not port.isascii() or not port.isdigit():
        raise ValueError(f"expected dns:NAME:PORT, HOST:PORT,… or off, found {text!r}")
    if not 0 < int(port) < 65536:
        raise ValueError(f"expected a port from 1 to 65535, found {port}")
    return MemberAddress(host, int(port))


def look_up(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, as `IP:PORT`. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [format_address(_choose_form(str(each[4][0])), port) for each in found]


def _choose_form(address: str) -> str:
    """Return the one text of an address: that of IPv4 also where it is written as `::ffff:A.B.C.D`."""
    found = ipaddress.ip_address(address)
    return str(getattr(found, "ipv4_mapped", None) or found)


class Membership:
    """The members now. Thread-safe; `start` begins the look-ups."""

    def __init__(
        self,
        places: Sequence[MemberAddress],
        own_port: int,
        resolve: Resolver = look_up,
        lookup_s: float = LOOKUP_S,
        alone_s: float = ALONE_S,
    ) -> None:
        self._lookup_s, self._alone_s = lookup_s, alone_s
        self._places = places
        self._addresses = frozenset(place for place in places if _is_address(place.host))
        self._own_port = own_port
        self._resolve = resolve
        self._answers: dict[MemberAddress, frozenset[str]] = {}  # the last of each place
        self._found: dict[MemberAddress, tuple[frozenset[str], frozenset[str]]] = {}  # with what is no host's address
        self._all: tuple[str, ...] = ()
        self._others: tuple[str, ...] = ()
        self._own_at = float("-inf")  # when this machine's addresses were looked at
        self._ending, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="pool members", daemon=True)
        self._failing = False

    def start(self) -> None:
        """Look the members up, and again every 30 s; wait for the first answer, 2 s at most. Raises `Transient`
        (`no_thread`)."""
        limits.start_thread(self._thread, "looking the pool's members up")
        self._looked.wait(_FIRST_S)

    def close(self) -> None:
        """End the look-ups. A name server that is silent keeps one for a while: nothing waits for that."""
        self._ending.set()
        self._thread.join(_END_S)

    def list_all(self) -> tuple[str, ...]:
        """Return all members, this node among them where its address is known."""
        return self._all

    def list_others(self) -> tuple[str, ...]:
        """Return all members but this node."""
        return self._others

    def _run(self) -> None:
        self._look()
        self._looked.set()
        while not self._ending.wait(self._lookup_s if self.list_others() else self._alone_s):
            self._look()

    def _look(self) -> None:
        answers, failure = dict(self._answers), None
        for place in self._places:
            if place in answers and place in self._addresses:
                continue  # it stands for itself
            try:
                answers[place] = self._find_hosts(place)
            except OSError as error:
                failure = f"{place.host}: {error.strerror or error}"
            except ValueError as error:  # no host's address, or a name that cannot be one, as `a..b`
                failure = f"{place.host}: {error}"
        now = time.monotonic()
        if (
            answers != self._answers or now >= self._own_at + _OWN_S
        ):  # else a thousand addresses cost a node its idleness
            self._answers, self._own_at = answers, now
            self._take_members({address for found in answers.values() for address in _choose_family(found)})
        if (failure is not None) is not self._failing:
            self._failing = failure is not None
            _log.log(logging.WARNING if failure else logging.INFO, "members of the pool: %s", failure or "found again")

    def _find_hosts(self, place: MemberAddress) -> frozenset[str]:
        """Return the addresses of a place that are a host's. Raises OSError, or ValueError where there are none."""
        found = frozenset(self._resolve(place.host, place.port))
        known = self._found.get(place)
        if known is None or known[0] != found:
            known = self._found[place] = found, frozenset(filter(_is_hosts, found))
        if not known[1]:
            raise ValueError("no address of a host in the answer")
        return known[1]

    def _take_members(self, addresses: set[str]) -> None:
        """Take the members, and find this node among them."""
        own = {address for address in addresses if parse_address(address)[1] == self._own_port and _is_here(address)}
        self._all = tuple(sorted(addresses))[:MAX_MEMBERS]
        self._others = tuple(address for address in self._all if address not in own)


def _choose_family(addresses: Collection[str]) -> list[str]:
    """Return those of the family that has more, of IPv4 if both have as many: all nodes choose the same."""
    six = [address for address in addresses if address.startswith("[")]
    four = [address for address in addresses if not address.startswith("[")]
    return six if len(six) > len(four) else four


def _is_hosts(address: str) -> bool:
    """Return whether an address may be that of a member: not `0.0.0.0` or `::`, by which a node reaches itself."""
    try:
        host = ipaddress.ip_address(parse_address(address)[0])
    except ValueError:
        return False
    return not (host.is_unspecified or host.is_multicast)


def _is_address(host: str) -> bool:
    """Return whether a host is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_here(address: str) -> bool:
    """Return whether an address is one of this machine, or of its network namespace: then it is its own way there."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0]) == host
    return False
