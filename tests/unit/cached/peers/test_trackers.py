"""The trackers of one node: bounded, whatever is announced."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.peers.members import Leads, rank_members
from cached.peers.messages import Announce, BadMessage, PieceDigest, Reason, decode_reply, encode_reply
from cached.peers.pieces import PIECE_BYTES, PieceMap
from cached.peers.tracker import LEASE_S, SURVEY_S
from cached.peers.trackers import MAX_VERSIONS, TooMany, Trackers

BLOBS = (("a" * 64, 3 * PIECE_BYTES),)
PIECES = PieceMap(BLOBS)
ANNOUNCE = Announce(PIECES.key, 3, "", 0, 7, blobs=BLOBS)


def test_a_version_is_dealt_after_its_survey() -> None:
    """The first announce begins a version; its pieces are dealt once other nodes had time to say that they have it."""
    trackers = Trackers(random.Random(1))
    assert not trackers.announce("10.0.0.1:1", ANNOUNCE, 0.0).grants
    seed = replace(ANNOUNCE, have=7, want=0)
    trackers.announce("10.0.0.2:1", seed, SURVEY_S / 2)
    assert not trackers.announce("10.0.0.1:1", ANNOUNCE, SURVEY_S).grants
    asked = Trackers(random.Random(1))
    asked.announce("10.0.0.1:1", ANNOUNCE, 0.0)
    asked.end_survey(PIECES.key)
    assert asked.announce("10.0.0.1:1", ANNOUNCE, 0.1).grants
    other = Trackers(random.Random(1))
    other.announce("10.0.0.1:1", ANNOUNCE, 0.0)
    assert other.announce("10.0.0.1:1", ANNOUNCE, SURVEY_S).grants


def test_a_flood_of_one_node_is_refused_and_others_are_heard() -> None:
    """A node that announces without a pause is refused; it is heard again later, and others all the time."""
    trackers = Trackers(random.Random(1))
    with pytest.raises(TooMany):
        for n in range(1000):
            trackers.announce("10.0.0.1:1", ANNOUNCE, n / 1000)
    trackers.announce("10.0.0.2:1", ANNOUNCE, 1.0)
    trackers.announce("10.0.0.1:1", ANNOUNCE, 2.0)


def test_a_node_that_announces_as_agreed_is_never_refused() -> None:
    """Ten announces a second, the most that a node sends, go on for ever."""
    trackers = Trackers(random.Random(1))
    for n in range(3000):
        trackers.announce("10.0.0.1:1", ANNOUNCE, n / 10)


def test_versions_are_bounded_and_forgotten() -> None:
    """Past the limit of versions no other is begun; when no node announces them they are forgotten."""
    trackers = Trackers(random.Random(1))
    for n in range(MAX_VERSIONS):
        trackers.announce(f"10.0.{n % 250}.1:{1 + n}", replace(ANNOUNCE, version=f"{n:064x}", blobs=()), 0.0)
    one_more = replace(ANNOUNCE, version="f" * 64, blobs=())
    with pytest.raises(TooMany):
        trackers.announce("10.9.0.1:1", one_more, 0.0)
    trackers.announce("10.9.0.1:1", one_more, LEASE_S + 6)
    assert len(trackers) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"blobs": (("b" * 64, 3 * PIECE_BYTES),)},
        {"blobs": (("a" * 64, 2 * PIECE_BYTES),)},
        {"blobs": (("a" * 64, 1), ("a" * 64, 2))},
        {"pieces": 4},
    ],
)
def test_an_announce_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    """Blobs that are not those of the version, or another number of pieces, are a `BadMessage` and begin nothing."""
    trackers = Trackers(random.Random(1))
    with pytest.raises(BadMessage):
        trackers.announce("10.0.0.1:1", replace(ANNOUNCE, **change), 0.0)  # type: ignore[arg-type]
    assert len(trackers) == 0


def test_nodes_that_count_otherwise_do_not_disturb() -> None:
    """A node that claims another number of pieces is refused; the others go on."""
    trackers = Trackers(random.Random(1))
    trackers.announce("10.0.0.1:1", ANNOUNCE, 0.0)
    with pytest.raises(BadMessage, match="3 pieces"):
        trackers.announce("10.0.0.2:1", replace(ANNOUNCE, pieces=9, blobs=()), 0.1)
    assert trackers.announce("10.0.0.1:1", ANNOUNCE, SURVEY_S).grants


def test_a_host_is_few_nodes() -> None:
    """One host that says another port with each announce is refused soon, and takes no other node's place."""
    trackers = Trackers(random.Random(1))
    with pytest.raises(TooMany):
        for port in range(1, 10_000):
            trackers.announce(f"10.0.0.1:{port}", ANNOUNCE, port / 1000)
    trackers.announce("10.0.0.2:1", ANNOUNCE, 0.1)
    trackers.announce("10.0.0.1:9402", ANNOUNCE, 60.0)


def test_nodes_that_know_other_members_meet_at_one_tracker() -> None:
    """A tracker that hears that nodes follow one before it names that one, deals nothing to who has not asked there,
    and deals again to who comes back because it does not answer. What is said of a later one changes nothing."""
    first, second, third = rank_members(PIECES.key, [f"10.0.0.{n}:1" for n in range(1, 4)])
    trackers = Trackers(random.Random(1))
    trackers.announce("10.0.9.1:1", ANNOUNCE, 0.0)
    trackers.end_survey(PIECES.key)
    for named in (second, third, first, second):
        trackers.announce("10.0.9.2:1", replace(ANNOUNCE, tracker=named), 0.1)
    told = trackers.announce("10.0.9.3:1", ANNOUNCE, 0.2)
    assert (told.tracker, told.grants) == (first, ())
    again = trackers.announce("10.0.9.3:1", replace(ANNOUNCE, log=told.log), 0.3)
    assert again.grants
    assert trackers.announce("10.0.9.3:1", replace(ANNOUNCE, log=told.log), 60.0).tracker == ""


SETS = st.integers(0, 7)
NODES = st.sampled_from([f"10.0.0.{n}:9402" for n in range(1, 5)])
ANNOUNCES = st.builds(
    lambda have, want, **more: replace(ANNOUNCE, have=have, want=want & ~have, **more),
    have=SETS,
    want=SETS,
    zone=st.sampled_from(["", "a", "b"]),
    working=st.lists(st.integers(0, 2), max_size=4).map(tuple),
    failed=st.lists(st.integers(0, 2), max_size=2).map(tuple),
    blames=st.lists(st.tuples(NODES | st.just("10.9.9.9:1"), st.sampled_from(Reason)), max_size=4).map(tuple),
    digests=st.lists(st.builds(PieceDigest, st.integers(0, 2), st.sampled_from(["a" * 64, "b" * 64]))).map(tuple),
    log=st.sampled_from(["", "ab"]),
    since=st.integers(0, 9),
    neighbours=st.integers(0, 32),
    pieces=st.sampled_from([3, 3, 3, 4]),
    tracker=st.just("") | st.just("") | NODES,
)


@given(st.lists(st.tuples(NODES, ANNOUNCES, st.floats(0.0, 3.0)), max_size=40), st.randoms(use_true_random=False))
def test_whatever_nodes_say_the_answer_is_within_bounds(
    said: list[tuple[str, Announce, float]], rng: random.Random
) -> None:
    """Whatever nodes announce, and in whatever order, each is answered or refused: it is dealt only what it wants, and
    is named only nodes that announced the version, never itself."""
    trackers, now, heard = Trackers(rng), 0.0, set[str]()
    for address, message, later in said:
        now += later
        try:
            reply = trackers.announce(address, message, now)
        except (TooMany, BadMessage):
            continue
        heard |= set() if message.tracker else {address}
        assert decode_reply(encode_reply(reply), 3) == reply
        dealt = (*reply.grants, *(piece for piece, _ in reply.imports))
        assert all(message.want >> piece & 1 for piece in dealt)
        assert len(set(dealt)) == len(dealt)
        assert set(reply.neighbours) | {holder for _, holder in reply.imports} <= heard - {address}
        assert len(reply.neighbours) <= message.neighbours
        assert len({each.piece for each in reply.digests}) == len(reply.digests)


def test_the_trackers_follow_members_and_names() -> None:
    """The trackers to ask are those of the members now, with the one that others named while it answers."""
    version = PIECES.key
    known, others = (tuple(f"10.0.{net}.{n}:1" for n in range(1, 9)) for net in (0, 1))
    strangers = (f"10.9.0.{n}:1" for n in range(99))
    first = next(each for each in strangers if rank_members(version, [*known, *others, each])[0] == each)
    leads = Leads(version)
    for members in (known, others, known, ()):
        assert leads.list_trackers(members) == tuple(rank_members(version, members)[:3])
    leads.hear(first, 0.0)
    assert leads.list_trackers(known) == (first, *rank_members(version, known)[:2])
    assert leads.list_trackers(others) == (first, *rank_members(version, others)[:2])
    leads.lose(first, 1.0)
    assert leads.list_trackers(others) == tuple(rank_members(version, others)[:3])
