"""What a tracker deals, to whom, and when again. Time is the test's own."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cached.peers.bits import all_bits, set_of
from cached.peers.messages import Announce, PieceDigest, Reason, Reply
from cached.peers.tracker import LEASE_S, SETTLE_S, Tracker

KEY = "d" * 64


class Pool:
    """Some nodes of one version and their tracker; each node says what the test sets in `have`."""

    def __init__(self, pieces: int, *, opens_at: float = 0.0) -> None:
        self.pieces = pieces
        self.tracker = Tracker(pieces, "ab", opens_at, random.Random(5))
        self.have: dict[str, int] = {}
        self.working: dict[str, tuple[int, ...]] = {}
        self.dealt: Counter[int] = Counter()

    def say(self, node: int, now: float, zone: str = "", **more: object) -> Reply:
        address = f"10.0.0.{node}:9402"
        have = self.have.setdefault(address, 0)
        message = Announce(KEY, self.pieces, zone, have, all_bits(self.pieces) & ~have, self.working.get(address, ()))
        fields = {name: getattr(message, name) for name in message.__slots__}
        reply = self.tracker.announce(address, Announce(**(fields | more)), now)
        imported = tuple(piece for piece, _ in reply.imports)
        self.working[address] = (*self.working.get(address, ()), *reply.grants, *imported)
        self.dealt.update(reply.grants)
        return reply

    def finish(self, node: int) -> None:
        address = f"10.0.0.{node}:9402"
        self.have[address] = self.have.get(address, 0) | set_of(self.working.get(address, ()))
        self.working[address] = ()


def test_each_piece_is_dealt_once_and_evenly() -> None:
    """With all nodes alive, each piece is fetched from the origin by one node, and no node fetches many more than
    another."""
    pool = Pool(400)
    got: Counter[int] = Counter()
    for second in range(60):
        for node in range(40):
            got[node] += len(pool.say(node, second + node / 40).grants)
            pool.finish(node)
    assert pool.dealt == Counter(range(400))
    assert max(got.values()) <= 2 * 400 / 40


def test_the_first_to_ask_do_not_get_all() -> None:
    """A node that asks at once again gets no second share while others have none."""
    pool = Pool(4000)
    for node in range(100):
        pool.say(node, node / 100)
    for _ in range(5):
        pool.finish(0)
        pool.say(0, 1.0)
    assert len(pool.working["10.0.0.0:9402"]) <= 1


def test_what_a_dead_node_had_is_dealt_again() -> None:
    """A piece that only a dead node held or fetched is dealt to another after its lease, and no other piece is."""
    pool = Pool(8)
    for node in (1, 2):
        while pool.dealt.total() < 4 * node:
            pool.say(node, 0.0)
            pool.finish(node)
    lost = pool.have["10.0.0.1:9402"]
    seconds = [float(n) for n in range(1, int(LEASE_S) + 3)]
    for now in seconds:
        pool.say(2, now)
        if now <= LEASE_S:
            assert pool.dealt == Counter(range(8))
    pool.finish(2)
    pool.say(2, seconds[-1] + 1)
    assert set_of(piece for piece, times in pool.dealt.items() if times == 2) == lost


def count_at_once(pool: Pool, second_a_piece: float) -> int:
    """Return how many grants stand at once in the end, of an origin whose pieces come one after another so quickly."""
    now, began = 0.0, 0.0
    for _ in range(120):
        for node in range(40):
            pool.say(node, now)
        standing = [(node, piece) for node in range(40) for piece in pool.working[f"10.0.0.{node}:9402"]]
        if not standing:
            break
        node, piece = standing[0]
        address = f"10.0.0.{node}:9402"
        began = now = began + second_a_piece
        pool.have[address] |= 1 << piece
        pool.working[address] = tuple(each for each in pool.working[address] if each != piece)
    return len(standing)


def grant_all(pool: Pool, now: float) -> int:
    return sum(len(pool.say(node, now).grants) for node in range(40))


def test_an_origin_is_asked_for_more_at_once_while_that_helps() -> None:
    """The pool begins with 16 pieces at once: an origin that sends them no quicker when it is asked for more has no
    more than 32, one that does has 128."""
    assert grant_all(Pool(1000), 0.0) == 16
    assert count_at_once(Pool(1000), 0.2) <= 32
    pool, found = Pool(4000), []
    for second in range(20):  # each piece takes a second, however many there are
        found.append(grant_all(pool, float(second)))
        for node in range(40):
            pool.finish(node)
    assert found[0] * 2 == found[1]  # each round is as long as its pieces take
    assert max(found) == 128


def test_a_large_version_begins_with_more_at_once() -> None:
    """Of a version of many pieces a sixty-fourth is asked for at once, 64 pieces at most, and these have their time."""
    pool = Pool(4000)
    assert grant_all(pool, 0.0) == 62
    for second in range(400):  # none came in two minutes: of sixteen that would be long
        assert grant_all(pool, float(second)) == 0
    assert grant_all(Pool(40_000), 0.0) == 64


def test_a_node_is_told_that_others_fetch() -> None:
    """While a node fetches a piece from the origin all are told so, and no more once it came, or is overdue."""
    pool = Pool(1)
    granted = pool.say(1, 0.0)
    assert granted.grants == (0,)
    assert pool.say(2, 0.1).under_way
    for second in range(1, 200):
        waiting = pool.say(2, float(second), want=0).under_way
        pool.say(1, float(second), want=0)
    assert not waiting
    pool.finish(1)
    pool.say(1, 200.0)
    assert not pool.say(2, 200.1).under_way


def test_a_failed_grant_goes_to_another() -> None:
    """A node that cannot fetch from the origin gives its pieces back, and is given none for a while."""
    pool = Pool(1)
    assert pool.say(1, 0.0).grants == (0,)
    assert pool.say(2, 0.1).grants == ()
    pool.working["10.0.0.1:9402"] = ()
    assert pool.say(1, 1.0, failed=(0,)).grants == ()
    assert pool.say(2, 1.1).grants == (0,)


def test_slow_grants_hold_up_no_other_piece_and_are_dealt_again_last() -> None:
    """A node whose grants, as many as the pool may have at once, take far longer than usual does not keep another
    from being dealt the rest; only when that has come are they dealt once more."""
    pool = Pool(200)
    slow = pool.say(1, 0.0).grants
    assert slow
    for second in range(1, 500):
        pool.say(1, float(second), want=0)
        pool.say(2, float(second))
        pool.finish(2)
        twice = {piece for piece, times in pool.dealt.items() if times > 1}
        if pool.have["10.0.0.2:9402"].bit_count() < 200 - len(slow):
            assert not twice
    assert twice == set(slow)


def test_a_stuck_grant_is_dealt_to_one_more_node() -> None:
    """A grant that takes far longer than usual is dealt once more, though its node lives."""
    pool = Pool(1)
    pool.say(1, 0.0)
    for now in range(1, 200):
        pool.say(1, float(now))
        pool.say(2, now + 0.5)
        pool.say(3, now + 0.6)
    assert pool.dealt[0] in (2, 3)


def test_a_restarted_node_is_dealt_what_it_lost() -> None:
    """A node that comes back without its grants (it restarted) or its pieces does not keep them from others."""
    pool = Pool(4)
    for _ in range(4):
        pool.say(1, 0.0)
        pool.finish(1)
    assert pool.dealt == Counter(range(4))
    pool.have["10.0.0.1:9402"] = 0
    for now in range(1, 9):
        pool.say(1, float(now))
        pool.say(2, now + 0.5)
        pool.finish(1)
        pool.finish(2)
    assert pool.dealt == Counter(dict.fromkeys(range(4), 2))


def test_each_zone_imports_each_piece_once() -> None:
    """Of four zones, each piece crosses into the three that did not fetch it, once, from a node that has it."""
    pool = Pool(60)
    crossed: Counter[tuple[str, int]] = Counter()
    for second in range(120):
        for node in range(40):
            zone = f"z{node % 4}"
            for piece, holder in pool.say(node, second + node / 40, zone).imports:
                crossed[zone, piece] += 1
                assert pool.have[holder] >> piece & 1
                assert int(holder.split(":")[0].split(".")[3]) % 4 != node % 4
            pool.finish(node)
    assert pool.dealt == Counter(range(60))
    assert set(crossed.values()) == {1}
    assert len(crossed) == 3 * 60


def test_neighbours_are_live_and_of_the_zone() -> None:
    """A node is told others of its own zone, as many as it asks for, and never a dead one or itself."""
    pool = Pool(9)
    for node in range(40):
        pool.say(node, 0.0, f"z{node % 2}")
    for node in range(20):
        pool.say(node, LEASE_S, f"z{node % 2}")
    found = pool.say(1, LEASE_S + 1, "z1", neighbours=5).neighbours
    assert len(set(found)) == 5
    assert set(found) <= {f"10.0.0.{node}:9402" for node in range(3, 20, 2)}


def test_one_blame_is_a_claim_and_two_are_believed() -> None:
    """A node that two others left as slow is no neighbour and is dealt nothing for a while; one cannot do that."""
    pool = Pool(64)
    for node in range(1, 9):
        pool.say(node, 0.0)
    blame = (("10.0.0.1:9402", Reason.SLOW),)
    pool.say(2, 1.0, blames=blame)
    assert any("10.0.0.1:9402" in pool.say(node, 1.1, neighbours=16).neighbours for node in range(2, 9))
    pool.say(3, 1.2, blames=blame)
    pool.finish(1)
    assert not pool.say(1, 1.3).grants
    for node in range(2, 9):
        assert "10.0.0.1:9402" not in pool.say(node, 2.0, neighbours=16).neighbours
    for now in range(3, 60):
        for node in range(1, 9):
            pool.say(node, float(now))
            pool.finish(node)
    assert "10.0.0.1:9402" in pool.say(2, 60.0, neighbours=16).neighbours


def test_a_liar_that_two_found_is_out_for_good() -> None:
    """What a node holds counts no more after two others got wrong bytes from it."""
    pool = Pool(2)
    pool.have["10.0.0.1:9402"] = 3
    for node in range(1, 9):
        assert not pool.say(node, 0.0).grants
    for node in (2, 3):
        pool.say(node, 1.0, blames=(("10.0.0.1:9402", Reason.WRONG),))
    pool.say(4, 2.0)
    for node in (4, 5):
        pool.say(node, 100.0)
    pool.say(1, 101.0)
    assert "10.0.0.1:9402" not in pool.say(4, 102.0, neighbours=16).neighbours
    assert set(pool.dealt) == {0, 1}


def test_blames_cannot_condemn_the_pool() -> None:
    """Where most nodes are blamed, most stay: two liars cannot starve the others."""
    pool = Pool(640)
    blames = tuple((f"10.0.0.{node}:9402", Reason.SLOW) for node in range(3, 21))
    for node in range(1, 21):
        pool.say(node, 0.0)
    for node in (1, 2):
        pool.say(node, 1.0, blames=blames)
    told = {peer for node in range(1, 21) for peer in pool.say(node, 2.0, neighbours=32).neighbours}
    assert len(told) >= 15


def test_nothing_is_dealt_before_the_survey_ends() -> None:
    """Until the members were asked, or had the time to answer, the origin is not asked; what a seed then has is not
    fetched at all."""
    pool = Pool(3, opens_at=1.0)
    assert not pool.say(1, 0.0).grants
    pool.have["10.0.0.2:9402"] = all_bits(3)
    pool.say(2, 0.9)
    assert not pool.say(1, 1.1).grants
    other = Pool(3, opens_at=5.0)
    assert not other.say(1, 0.0).grants
    other.tracker.end_survey()
    assert other.say(1, 0.1).grants


def test_a_tracker_that_takes_over_waits_for_the_others() -> None:
    """Nodes that followed another tracker say what they have before the next one deals: nothing is fetched twice."""
    pool = Pool(4)
    assert not pool.say(1, 10.0, log="cd").grants
    pool.have["10.0.0.2:9402"] = 15
    pool.say(2, 10.5, log="cd")
    assert not pool.say(1, 10.1 + SETTLE_S).grants
    other = Pool(4)
    other.say(1, 10.0, log="cd")
    assert other.say(1, 10.1 + SETTLE_S).grants


def test_what_another_tracker_dealt_is_not_dealt_again() -> None:
    """A tracker that takes over leaves a piece to the node that fetches it already, and deals it if that node dies."""
    pool = Pool(1)
    pool.working["10.0.0.2:9402"] = (0,)
    pool.say(2, 0.0, log="cd")
    assert not pool.say(1, SETTLE_S + 0.1, log="cd").grants
    assert pool.say(1, LEASE_S + 1, log="cd").grants == (0,)


def test_digests_reach_every_node_once() -> None:
    """The first digest that is told of a piece reaches all nodes in order; one that is told later changes nothing."""
    pool = Pool(9)
    told = tuple(PieceDigest(n, f"{n}" * 64) for n in (3, 1))
    first = pool.say(1, 0.0, digests=told)
    assert (first.digests, first.since) == (told, 2)
    pool.say(2, 0.1, digests=(PieceDigest(3, "f" * 64), PieceDigest(5, "5" * 64)))
    second = pool.say(1, 0.2, log=first.log, since=first.since)
    assert second.digests == (PieceDigest(5, "5" * 64),)
    assert [each.piece for each in pool.say(3, 0.3).digests] == [3, 1, 5]


def test_another_number_of_pieces_is_refused() -> None:
    """A node that counts another number of pieces under the same key is refused, and changes nothing."""
    pool = Pool(9)
    with pytest.raises(ValueError, match="9 pieces"):
        pool.tracker.announce("10.0.0.1:9402", Announce(KEY, 8, "", 0, 1), 0.0)


def test_a_version_that_nobody_announces_is_forgotten() -> None:
    """After the lease of its last node a tracker holds nothing."""
    pool = Pool(9)
    pool.say(1, 0.0)
    pool.tracker.tidy(LEASE_S - 1)
    assert not pool.tracker.is_forgotten
    pool.tracker.tidy(LEASE_S + 1)
    assert pool.tracker.is_forgotten
