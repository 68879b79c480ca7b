"""What one node asks whom for, whom it leaves, and what it announces. Time is the test's own."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cached.peers.bits import all_bits, set_of
from cached.peers.messages import PieceDigest, Reason, Reply, decode_announce, encode_announce
from cached.peers.neighbours import NEIGHBOURS, Load
from cached.peers.swarm import ALONE_S, ANNOUNCE_S, PATIENCE_S, SOON_S, PieceRequest, Swarm

COUNT = 64
ALL = all_bits(COUNT)
P = [f"10.0.0.{n}:9402" for n in range(40)]
FULL_RATE = 3e9


def make_swarm(have: int = 0) -> Swarm:
    return Swarm("e" * 64, COUNT, "z", have, 0.0, random.Random(2))


def answer(swarm: Swarm, now: float = 0.0, **fields: object) -> None:
    """Let a tracker answer with the digests of all pieces and these fields."""
    digests = tuple(PieceDigest(n, f"{n:064x}") for n in range(COUNT))
    reply = Reply((), (), (), digests, "ab", COUNT, True)
    known = {name: getattr(reply, name) for name in reply.__slots__}
    swarm.take_reply(Reply(**(known | fields)), now)


def test_the_origin_is_asked_for_granted_pieces_only() -> None:
    """Without a grant nothing is asked of the origin; a granted piece is asked once."""
    swarm = make_swarm()
    assert swarm.next_request(ALL, 0.0) is None
    answer(swarm, grants=(7, 9))
    assert swarm.next_request(ALL, 0.0) == PieceRequest(7, None)
    assert swarm.next_request(set_of([7]), 0.0) is None
    assert swarm.next_request(ALL, 0.0) == PieceRequest(9, None)
    assert swarm.next_request(ALL, 0.0) is None


def test_a_piece_is_asked_of_one_place_at_a_time() -> None:
    """Several neighbours that have one piece are asked for it once; after a failure another one is."""
    swarm = make_swarm()
    answer(swarm, neighbours=(P[1], P[2]))
    for peer in P[1:3]:
        swarm.heard(peer, 1, Load(), 0.0)
    first = swarm.next_request(ALL, 0.0)
    assert first is not None
    assert first.piece == 0
    assert swarm.next_request(ALL, 0.0) is None
    swarm.failed(first, Reason.GONE, 0.0)
    second = swarm.next_request(ALL, 0.0)
    assert second is not None
    assert {first.peer, second.peer} == set(P[1:3])


def test_a_peer_is_asked_only_for_what_can_be_checked() -> None:
    """A piece whose digest no node has told is not asked of a peer."""
    swarm = make_swarm()
    answer(swarm, neighbours=(P[1],), digests=(PieceDigest(5, "5" * 64),), since=1)
    swarm.heard(P[1], ALL, Load(), 0.0)
    assert swarm.next_request(ALL, 0.0) == PieceRequest(5, P[1])
    assert swarm.next_request(ALL, 0.0) is None
    assert swarm.digest_of(5) == "5" * 64
    assert swarm.digest_of(6) is None


def test_the_least_busy_neighbour_is_asked() -> None:
    """Of several neighbours the one is asked at which the fewest requests are served and wait."""
    swarm = make_swarm()
    answer(swarm, neighbours=tuple(P[1:5]))
    for n, peer in enumerate(P[1:5]):
        swarm.heard(peer, ALL, Load(9 - n, n // 2), 0.0)
    request = swarm.next_request(ALL, 0.0)
    assert request is not None
    assert request.peer == P[4]


def test_an_import_is_asked_of_its_holder() -> None:
    """A piece that is to cross into the zone is asked of the node that was named, though it is no neighbour."""
    swarm = make_swarm()
    answer(swarm, imports=((3, P[30]),))
    assert swarm.next_request(ALL, 0.0) == PieceRequest(3, P[30])


def receive(swarm: Swarm, peer: str, rate: float, load: Load, times: int = 1) -> None:
    for _ in range(times):
        swarm.heard(peer, ALL, load, 0.0)
        missing = ALL & ~swarm.have
        request = swarm.next_request(missing, 0.0)
        assert request is not None
        swarm.received(PieceRequest(request.piece, peer), rate, load, 0.0)


def left_by(swarm: Swarm) -> dict[str, Reason]:
    return dict(swarm.make_announce(ALL, 0.0).blames)


def test_a_slow_peer_is_left_and_reported_once() -> None:
    """A peer at a tenth of the others' rate is asked no more and reported; one that only serves many at once is not."""
    swarm = make_swarm()
    answer(swarm, neighbours=(P[1], P[2], P[3]))
    receive(swarm, P[1], FULL_RATE, Load(1), times=10)
    receive(swarm, P[2], FULL_RATE / 8, Load(8))
    receive(swarm, P[3], FULL_RATE / 10, Load(1))
    assert left_by(swarm) == {P[3]: Reason.SLOW}
    assert left_by(swarm) == {}
    for _ in range(20):
        request = swarm.next_request(ALL, 0.0)
        if request is not None:
            assert request.peer != P[3]
            swarm.received(request, FULL_RATE, Load(), 0.0)


def test_a_slow_node_leaves_nobody() -> None:
    """A node whose own card is slow sees all peers alike and leaves none."""
    swarm = make_swarm()
    answer(swarm, neighbours=tuple(P[1:6]))
    for peer in P[1:6]:
        receive(swarm, peer, FULL_RATE / 10, Load(3), times=4)
    assert left_by(swarm) == {}


def test_a_lying_peer_is_left_at_once() -> None:
    """A peer whose bytes did not check is left and reported as such, and its imports are dropped."""
    swarm = make_swarm()
    answer(swarm, neighbours=(P[1],), imports=((4, P[1]),))
    request = swarm.next_request(set_of([4]), 0.0)
    assert request == PieceRequest(4, P[1])
    swarm.failed(request, Reason.WRONG, 0.0)
    swarm.heard(P[1], ALL, Load(), 0.0)
    assert swarm.next_request(ALL, 0.0) is None
    assert left_by(swarm) == {P[1]: Reason.WRONG}
    answer(swarm, neighbours=(P[1],), imports=((4, P[1]),))
    assert swarm.next_request(ALL, 0.0) is None


def test_a_busy_peer_is_not_blamed() -> None:
    """A peer that refuses because its queue is full is kept, and asked again once it says that it has something."""
    swarm = make_swarm()
    answer(swarm, neighbours=(P[1],))
    swarm.heard(P[1], ALL, Load(), 0.0)
    request = swarm.next_request(ALL, 0.0)
    assert request is not None
    swarm.failed(request, None, 0.0)
    assert left_by(swarm) == {}
    assert swarm.next_request(ALL, 0.0) is None
    assert swarm.polls(ALL, 1.0) == [P[1]]
    swarm.heard(P[1], ALL, Load(), 1.0)
    assert swarm.next_request(ALL, 1.0) is not None


def test_without_help_the_origin_is_asked() -> None:
    """After a while without a grant and without a peer that has anything, every piece may be asked of the origin; help
    ends that."""
    swarm = make_swarm()
    assert swarm.next_request(ALL, ALONE_S) is None
    request = swarm.next_request(ALL, 2 * ALONE_S)
    assert request is not None
    assert request.peer is None
    answer(swarm, 2 * ALONE_S, grants=(5,))
    assert swarm.next_request(ALL & ~(1 << 5), 2 * ALONE_S + 1) is None


def test_a_node_waits_for_what_others_fetch() -> None:
    """While the tracker says that pieces are on their way from the origin, a node does not ask it for them too, however
    slow it is; not for ever."""
    swarm = make_swarm()
    now = 0.0
    while now < 2 * ALONE_S:
        now += 1.0
        answer(swarm, now, under_way=True)
        assert swarm.next_request(ALL, now) is None
    while swarm.next_request(ALL, now) is None:
        now += 1.0
        assert now < 3 * PATIENCE_S
        answer(swarm, now, under_way=True)
    assert now >= PATIENCE_S


def test_neighbours_that_never_give_are_no_help_for_ever() -> None:
    """A neighbour that has every piece and is busy each time it is asked, or a tracker that names holders who give
    nothing, delays the origin by a bounded time; a piece that comes ends that."""
    swarm = make_swarm()
    now = 0.0
    while True:
        assert now < 3 * PATIENCE_S
        now += 1.0
        answer(swarm, now, neighbours=(P[1],), imports=((3, P[2]),))
        swarm.heard(P[1], ALL, Load(), now)
        requests = [swarm.next_request(ALL, now) for _ in range(3)]
        if requests[-1] is not None:
            break
        for each in requests[:2]:
            assert each is not None
            assert each.peer is not None
            swarm.failed(each, None, now)
    assert now >= PATIENCE_S
    asked = [each.peer for each in requests if each is not None]
    assert asked == [asked[0], None, None]
    assert asked[0] is not None
    assert requests[0] is not None
    swarm.received(requests[0], 1e6, Load(), now)
    following = swarm.next_request(ALL, now)
    assert following is not None
    assert following.peer is not None


NUMBERS = st.integers(0, COUNT - 1)
SETS = st.integers(0, ALL)
PEERS = st.sampled_from(P[:6])
REPLIES = st.builds(
    Reply,
    grants=st.lists(NUMBERS, max_size=5).map(tuple),
    imports=st.lists(st.tuples(NUMBERS, PEERS), max_size=5).map(tuple),
    neighbours=st.lists(PEERS, max_size=5).map(tuple),
    digests=st.lists(st.builds(PieceDigest, NUMBERS, st.just("a" * 64)), max_size=5).map(tuple),
    log=st.sampled_from(["", "ab", "cd"]),
    since=st.integers(0, 100),
    active=st.booleans(),
    under_way=st.booleans(),
)
EVENTS = st.one_of(
    st.tuples(st.just("reply"), REPLIES),
    st.tuples(st.just("heard"), PEERS, SETS, st.builds(Load, st.integers(0, 9999), st.integers(0, 9999))),
    st.tuples(st.just("ask"), SETS),
    st.tuples(st.just("received"), st.floats(0, 1e10)),
    st.tuples(st.just("failed"), st.none() | st.sampled_from(Reason)),
    st.tuples(st.just("announce"), SETS, st.booleans()),
    st.tuples(st.just("lose"), SETS),
)


@given(st.lists(EVENTS, max_size=60), st.integers(0, ALL))
def test_whatever_others_say_a_piece_is_asked_of_one_place(events: list[tuple[Any, ...]], have: int) -> None:
    """Whatever trackers and peers answer, and in whatever order: no piece is asked for that is here or on its way, a
    peer is asked only for what can be checked, and the tables stay small."""
    swarm = make_swarm(have)
    running: dict[int, PieceRequest] = {}
    for now, (kind, *about) in enumerate(events):
        if kind == "reply":
            swarm.take_reply(about[0], now)
        elif kind == "heard":
            swarm.heard(about[0], about[1], about[2], now)
        elif kind == "ask":
            request = swarm.next_request(about[0], now)
            if request is not None:
                assert about[0] >> request.piece & 1
                assert not swarm.have >> request.piece & 1
                assert request.piece not in running
                assert request.peer is None or swarm.digest_of(request.piece) is not None
                running[request.piece] = request
        elif kind == "announce":
            said = swarm.make_announce(about[0], now)
            assert decode_announce(encode_announce(said)) == said
            if about[1]:
                swarm.announce_failed(said)
        elif kind == "lose":
            swarm.lose(about[0] & ~set_of(running))
        elif running:
            request = running.pop(next(iter(running)))
            if kind == "received":
                swarm.received(request, about[0], Load(), now)
            else:
                swarm.failed(request, about[0], now)


def test_an_announce_says_what_is_held_wanted_and_granted() -> None:
    """What is received is held, what is being received is neither, and grants are named until they end."""
    swarm = make_swarm(have=1)
    answer(swarm, grants=(1, 2), imports=((3, P[3]),))
    swarm.next_request(set_of([1]), 0.0)
    said = swarm.make_announce(set_of(range(10)), 1.0)
    assert said.have == 1
    assert said.want == set_of(range(2, 10))
    assert said.working == (1, 2, 3)
    swarm.received(PieceRequest(1, None), 0.0, Load(), 1.0)
    swarm.vouch(1, "1" * 64)
    swarm.failed(PieceRequest(2, None), None, 1.0)
    said = swarm.make_announce(ALL, 2.0)
    assert said.have == 3
    assert (said.working, said.failed) == ((3,), (2,))
    assert said.digests == (PieceDigest(1, "1" * 64),)
    assert swarm.make_announce(ALL, 3.0).digests == ()


def test_news_is_announced_soon() -> None:
    """A finished grant is announced at once, but not more often than the least time allows; else once a second."""
    swarm = make_swarm()
    answer(swarm, grants=(1,))
    swarm.make_announce(ALL, 10.0)
    assert 10.0 + SOON_S < swarm.next_announce_at() <= 10.0 + 1.2 * ANNOUNCE_S
    request = swarm.next_request(ALL, 10.0)
    assert request is not None
    swarm.received(request, 0.0, Load(), 10.05)
    assert swarm.next_announce_at() == 10.0 + SOON_S


def test_another_tracker_is_told_what_the_node_vouches_for() -> None:
    """After a tracker died, the next one learns the digests again from those that fetched the pieces."""
    swarm = make_swarm()
    answer(swarm)
    swarm.vouch(7, "7" * 64)
    assert swarm.make_announce(ALL, 1.0).digests
    assert not swarm.make_announce(ALL, 2.0).digests
    answer(swarm, log="cd", digests=(), since=0)
    said = swarm.make_announce(ALL, 3.0)
    assert said.digests == (PieceDigest(7, "7" * 64),)
    assert (said.log, said.since) == ("cd", 0)


def test_what_no_tracker_heard_is_said_again() -> None:
    """Digests of an announce that no tracker answered are in the next one."""
    swarm = make_swarm()
    swarm.vouch(7, "7" * 64)
    swarm.announce_failed(swarm.make_announce(ALL, 1.0))
    assert swarm.make_announce(ALL, 2.0).digests == (PieceDigest(7, "7" * 64),)


def test_neighbours_that_give_little_are_replaced() -> None:
    """A full set of neighbours loses those that gave least with each announce, and others are asked for."""
    swarm = make_swarm()
    answer(swarm, neighbours=tuple(P[:NEIGHBOURS]))
    for peer in P[4:NEIGHBOURS]:
        receive(swarm, peer, FULL_RATE, Load())
    room = swarm.make_announce(ALL, 1.0).neighbours
    assert 0 < room <= 4
    answer(swarm, neighbours=tuple(P[30 : 30 + room]))
    assert set(swarm.polls(ALL, 99.0)) >= set(P[30 : 30 + room])


def test_a_tracker_understands_a_node_with_more_neighbours_than_it_asks_for() -> None:
    """A node that met holders beside a full set of neighbours asks for none, in a message that a tracker accepts."""
    swarm = make_swarm()
    answer(swarm, neighbours=tuple(P[:NEIGHBOURS]))
    for peer in P[NEIGHBOURS : NEIGHBOURS + 4]:
        swarm.meet(peer, ALL, 0.0)
    assert decode_announce(encode_announce(swarm.make_announce(ALL, 1.0))).neighbours == 0


def test_a_node_that_has_all_asks_for_nothing() -> None:
    """A complete node is a seed: it has no neighbours, wants nothing, and polls no node."""
    swarm = make_swarm(have=ALL)
    assert swarm.is_complete
    said = swarm.make_announce(ALL, 1.0)
    assert (said.have, said.want, said.neighbours) == (ALL, 0, 0)
    assert swarm.next_request(ALL, 99.0) is None


def test_pieces_that_turned_out_wrong_are_received_again() -> None:
    """After the file's own sha256 did not match, its pieces are no longer announced and are asked for again."""
    swarm = make_swarm(have=ALL)
    swarm.lose(6)
    assert swarm.make_announce(ALL, 1.0).have == ALL & ~6
    answer(swarm, grants=(1,))
    assert swarm.next_request(ALL, 1.0) == PieceRequest(1, None)
