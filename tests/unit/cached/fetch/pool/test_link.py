"""Requests to other nodes, by real sockets: which tracker is asked, and what counts as an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.fetch.pool.link import HttpPoolLink
from cached.fetch.pool.peer_states import PeerState
from cached.fetch.workers import PEER_HTTP
from cached.peers.access import WINDOW_S, PoolKeys
from cached.peers.members import rank_members
from cached.peers.messages import Announce, Reason, Reply, encode_reply
from cached.peers.pieces import PIECE_BYTES, PieceMap
from cached.peers.serving.contents import Contents, NoPartials
from cached.peers.serving.server import PeerServer, ServerSettings
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Content, Endless, Fault, Hangup, Raw, Redirect, Status
from tests.support.pooling import HOST, KEYS, Counted, Tracking

BLOBS = (("a" * 64, 40 * PIECE_BYTES),)
PIECES = PieceMap(BLOBS)
ANNOUNCE = Announce(PIECES.key, PIECES.count, "", 0, (1 << PIECES.count) - 1, blobs=BLOBS)


class Surveyed(Tracking):
    """A node that only keeps track; no node has the version."""

    def announce(self, address: str, message: Announce, now: float) -> Reply:
        reply = super().announce(address, message, now)
        self.end_survey(message.version)
        return reply


class Members:
    """The members that one node knows."""

    def __init__(self, members: Sequence[str]) -> None:
        self._members = tuple(members)

    def list_all(self) -> tuple[str, ...]:
        return self._members


class Network:
    """Trackers at real ports, in their order for the version, and links to them."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._servers: dict[str, PeerServer] = {}
        for _ in range(3):
            contents = Contents(Layout(folder), NoPartials())
            server = PeerServer(contents, Surveyed(), lambda: KEYS, ServerSettings(), Counted())
            host, port = server.open((HOST, 0))
            stack.callback(server.close)
            self._servers[f"{host}:{port}"] = server
        self.trackers = rank_members(PIECES.key, self._servers)

    def close(self, tracker: str) -> None:
        self._servers[tracker].close()

    def link(self, port: int, members: Sequence[str]) -> HttpPoolLink:
        """The link of a node that serves at `port` and knows these members."""
        client = self._stack.enter_context(closing(HttpClient(PEER_HTTP)))
        return HttpPoolLink(client, Members(members), lambda: KEYS, port, Cancellation())


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Three trackers."""
    with ExitStack() as stack:
        yield Network(stack, tmp_path)


def announce(link: HttpPoolLink, log: str = "") -> Reply:
    reply = link.announce(replace(ANNOUNCE, log=log))
    assert reply is not None
    return reply


def test_nodes_with_another_answer_of_the_name_server_meet(network: Network) -> None:
    """A node that does not know the first tracker is told of it by the second one, and asks it from then on; when it is
    gone, both go on with the second one, which deals."""
    first, second, _ = network.trackers
    knowing, other = network.link(1001, network.trackers), network.link(1002, network.trackers[1:])
    at_first = announce(knowing).log
    told = announce(other)
    assert (told.tracker, told.grants) == (first, ())
    met = announce(other, told.log)
    assert (met.log, met.tracker) == (at_first, "")
    network.close(first)
    left = announce(other, met.log)
    assert left.log == told.log
    assert announce(other, left.log).grants
    assert announce(knowing, at_first).log == left.log
    assert second in network.trackers


@pytest.mark.parametrize(
    "fault",
    [
        Hangup(),
        Status(401),
        Status(503),
        Redirect("/elsewhere"),
        Endless(),
        Raw(b"SSH-2.0-x\r\n"),
        Content(b"[" * 100_000),
        Content(encode_reply(Reply((40,), (), (), (), "", 0, active=True))),
        Content(encode_reply(Reply((), (), (), (), "", 0, active=True)).replace(b'"protocol":1', b'"protocol":2')),
        Content(encode_reply(Reply((), (), ("10.0.0.1:1",) * 33, (), "", 0, active=True))),
        Content(encode_reply(Reply((), ((1, "nowhere"),), (), (), "", 0, active=True))),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_an_answer_that_is_none_leads_to_the_next_tracker(network: Network, fault: Fault) -> None:
    """A tracker that hangs up, refuses, redirects, never ends, speaks another protocol, or grants and names what there
    is not, has not answered: the next one is asked, and nothing of its answer counts."""
    with HostileOrigin(host=HOST) as hostile:
        hostile.always("/v1/announces/1001", fault)
        address = f"{HOST}:{hostile.port}"
        while rank_members(PIECES.key, [address, *network.trackers])[0] != address:
            network.trackers.pop(0)
        members = [address, *network.trackers] if network.trackers else [address]
        reply = network.link(1001, members).announce(ANNOUNCE)
        assert any(seen.path == "/v1/announces/1001" for seen in hostile.requests)
        assert (reply is None) == (not network.trackers)
        assert reply is None or not reply.grants


def test_nobody_that_answers_is_no_answer(network: Network) -> None:
    """Without one tracker that answers there is no reply, and no error."""
    for tracker in network.trackers:
        network.close(tracker)
    assert network.link(1001, network.trackers).announce(ANNOUNCE) is None


def find_state(link: HttpPoolLink, peer: str) -> PeerState:
    """The state of one member, as its metric says."""
    return next(state for state in PeerState if link.states.count(state, [peer]))


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (Hangup(), PeerState.UNREACHABLE),
        (Status(401), PeerState.REFUSED),
        (Status(404), PeerState.LIVE),
        (Status(503), PeerState.LIVE),
        (Raw(b"SSH-2.0-x\r\n"), PeerState.WRONG),
        (Endless(), PeerState.WRONG),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_member_is_in_the_state_that_its_answer_shows(network: Network, fault: Fault, state: PeerState) -> None:
    """A member that answers is live, also where it has nothing or is busy; one that takes this node for a stranger,
    ends the connection or speaks no HTTP is counted apart."""
    with HostileOrigin(host=HOST) as hostile:
        hostile.always(f"/v1/versions/{PIECES.key}/pieces", fault)
        address = f"{HOST}:{hostile.port}"
        link = network.link(1001, [address])
        assert find_state(link, address) is PeerState.IDLE
        assert link.poll(address, PIECES.key, PIECES.count) is None
        assert find_state(link, address) is state


def test_a_tracker_that_is_gone_is_unreachable(network: Network) -> None:
    """A node counts a tracker that answers as live, one that does not as unreachable, and one that it does not ask as
    idle."""
    first, second, third = network.trackers
    network.close(first)
    link = network.link(1001, network.trackers)
    announce(link)
    assert [find_state(link, each) for each in (first, second)] == [PeerState.UNREACHABLE, PeerState.LIVE]
    link.announce(replace(ANNOUNCE, blames=((third, Reason.SLOW),)))
    assert find_state(link, third) is PeerState.SLOW


@pytest.mark.parametrize(("keys", "ahead_s"), [(PoolKeys([b"x" * 32]), 0.0), (KEYS, 2 * WINDOW_S)])
def test_a_node_whose_key_or_clock_differs_is_told_so(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    keys: PoolKeys,
    ahead_s: float,
) -> None:
    """The log of the node that is different says once of each member that it refuses this node, and what to compare;
    and says when that has ended."""
    with closing(HttpClient(PEER_HTTP)) as client:
        current = keys
        link = HttpPoolLink(client, Members(network.trackers), lambda: current, 1001, Cancellation())
        with monkeypatch.context() as skewed, caplog.at_level(logging.INFO):
            now = time.time
            skewed.setattr("cached.fetch.pool.link.time.time", lambda: now() + ahead_s)
            assert link.announce(ANNOUNCE) is None
            assert link.announce(ANNOUNCE) is None
        told = [record.getMessage() for record in caplog.records if "refuses this node" in record.getMessage()]
        assert len(told) == len(network.trackers)
        assert all("the same key, and clocks" in each for each in told)
        assert find_state(link, network.trackers[0]) is PeerState.REFUSED
        current = KEYS
        with caplog.at_level(logging.INFO):
            announce(link)
        assert any("works again" in record.getMessage() for record in caplog.records)
        assert find_state(link, network.trackers[0]) is PeerState.LIVE
