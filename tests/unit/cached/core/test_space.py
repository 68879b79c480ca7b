"""The ledger: no fetch begins that cannot end, and every byte is in one account."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cached.contract.errors import Permanent, Transient
from cached.core.blob_table import BlobTable
from cached.core.space import DiskSpace, Ledger, NoSpace, OnDisk, Reservation, SpaceUse


class Disk:
    """A file system that others use too."""

    def __init__(self, capacity: int, others: int = 0) -> None:
        self.capacity = capacity
        self.others = others
        self.ours = 0

    @property
    def free(self) -> int:
        return self.capacity - self.others - self.ours

    def __call__(self) -> DiskSpace:
        return DiskSpace(self.capacity, self.free)


def _sha(name: str) -> str:
    """Return the sha256 that a test calls by a name."""
    return hashlib.sha256(name.encode()).hexdigest()


def _found(blobs: Mapping[str, int], partials: Mapping[str, int], quarantined: Mapping[str, int]) -> OnDisk:
    return OnDisk(BlobTable({_sha(name): size for name, size in blobs.items()}), partials, quarantined)


def _one(ledger: Ledger, size: int, id_: str = "one") -> Reservation:
    return ledger.reserve({id_: size})[id_]


def _held(ledger: Ledger, size: int, id_: str = "one") -> closing[Reservation]:
    """The same, released at the end of the `with` block."""
    return closing(_one(ledger, size, id_))


def _accounts(use: SpaceUse) -> tuple[int, int, int]:
    return use.used, use.reserved, use.dying


def test_what_was_not_committed_comes_back() -> None:
    """Leaving the block gives back all that is set aside, an exception or not."""
    ledger = Ledger(100, Disk(1000))
    with pytest.raises(RuntimeError), _held(ledger, 80) as space:
        assert (space.size, ledger.compute_use().reserved, ledger.compute_use().free) == (80, 80, 20)
        raise RuntimeError
    assert (_accounts(ledger.compute_use()), ledger.compute_use().free, space.size) == ((0, 0, 0), 100, 0)


def test_saying_the_same_twice_changes_nothing() -> None:
    """Whatever is said of a content, only the last word about it counts, however often it is said."""
    ledger = Ledger(100, Disk(1000))
    for _ in range(2):
        ledger.count_blob(_sha("a"), 30)
        ledger.count_partial("p", 20)
        ledger.count_quarantined("q", 10)
    assert _accounts(ledger.compute_use()) == (30, 0, 30)
    assert ledger.quarantined_bytes == 10
    for _ in range(2):
        ledger.count_blob(_sha("a"), 5)
        ledger.count_partial("p", 0)
        ledger.count_quarantined("q", 0)
    assert _accounts(ledger.compute_use()) == (5, 0, 0)
    assert ledger.quarantined_bytes == 0
    space = _one(ledger, 40)
    for _ in range(2):
        space.finish(7, _sha("b"), 33)
        space.close()
    assert _accounts(ledger.compute_use()) == (38, 0, 7)


def test_reservations_add_up() -> None:
    """What one fetch has set aside, no other one gets; a refusal takes nothing."""
    ledger = Ledger(100, Disk(1000))
    with _held(ledger, 60), _held(ledger, 40, "two"):
        with pytest.raises(NoSpace):
            _one(ledger, 1, "three")
        assert ledger.compute_use().reserved == 100
    with _held(ledger, 100):
        pass


def test_many_are_reserved_at_once_or_none() -> None:
    """Space for many blobs is set aside for all of them or for none, as one sum."""
    ledger = Ledger(100, Disk(1000))
    ledger.count_blob(_sha("a"), 40)
    with pytest.raises(NoSpace) as caught:
        ledger.reserve({"x": 30, "y": 31})
    assert caught.value.needed_bytes == 61
    with pytest.raises(Permanent):
        ledger.reserve({"x": 30, "y": 71})
    assert ledger.compute_use().reserved == 0
    both = ledger.reserve({"x": 30, "y": 30})
    assert [(id_, space.id, space.size) for id_, space in both.items()] == [("x", "x", 30), ("y", "y", 30)]
    both["x"].close()
    assert ledger.compute_use().reserved == 30


@pytest.mark.parametrize(
    ("quota", "disk", "limit", "size"),
    [(100, 1000, "quota", "100 B"), (None, 50, "file system", "50 B"), (60, 50, "file system", "50 B")],
)
def test_too_large_is_permanent_and_names_both_sizes(quota: int | None, disk: int, limit: str, size: str) -> None:
    """What can never fit is refused for good, with what is needed and what there is."""
    ledger = Ledger(quota, Disk(disk))
    with pytest.raises(Permanent) as caught:
        _one(ledger, 101)
    assert caught.value.code == "too_large"
    for part in ("101 B", limit, size):
        assert part in caught.value.message
    assert limit in caught.value.remedy


def test_no_space_is_transient() -> None:
    """What would fit once others are gone is refused for now, and says how much was needed."""
    ledger = Ledger(100, Disk(1000))
    ledger.count_all(_found({"a": 70}, {"p": 15}, {"q": 5}))
    with pytest.raises(Transient) as caught:
        _one(ledger, 50)
    assert isinstance(caught.value, NoSpace)
    assert (caught.value.code, caught.value.needed_bytes) == ("no_space", 50)
    for part in ("50 B", "70 B", "20 B", "10 B"):
        assert part in caught.value.message


def test_others_on_the_file_system_count() -> None:
    """What others took of the file system cannot be reserved, though the quota would allow it."""
    ledger = Ledger(100, Disk(200, others=170))
    with _held(ledger, 30):
        pass
    with pytest.raises(NoSpace):
        _one(ledger, 31)
    use = ledger.compute_use()
    assert (use.capacity, use.budget, use.free) == (100, 30, 30)


def test_allocated_bytes_are_not_counted_twice() -> None:
    """A file that the disk has given already lessens both the disk's free bytes and what is still to be taken."""
    disk = Disk(100)
    ledger = Ledger(None, disk)
    with _held(ledger, 60) as space:
        disk.ours = 60
        ledger.count_partial("one", 60)
        assert ledger.compute_use().free == 40
        with _held(ledger, 40, "two"):
            assert ledger.compute_use().free == 0
        space.finish(0, _sha("a"), 60)
        assert ledger.compute_use().free == 40


def test_bytes_not_yet_allocated_are_kept_from_others() -> None:
    """What is reserved and not written is not given to another fetch, though the disk still shows it free."""
    ledger = Ledger(None, Disk(100))
    with _held(ledger, 60), pytest.raises(NoSpace):
        _one(ledger, 41, "two")


def test_a_partial_blob_is_resumed_without_new_space() -> None:
    """A partial blob without a fetch is dying; a resumed fetch needs only the rest, even on a full disk. What
    its file takes beyond the blob's size, in whole blocks, is not dying while it is resumed."""
    disk = Disk(100)
    ledger = Ledger(100, disk)
    space = _one(ledger, 90)
    disk.ours = 70
    space.finish(70, None, 0)
    assert (ledger.compute_use().dying, ledger.compute_use().free) == (70, 30)
    with pytest.raises(NoSpace):
        _one(ledger, 31, "two")
    with _held(ledger, 90) as space:
        assert (ledger.compute_use().dying, ledger.compute_use().reserved, ledger.compute_use().free) == (0, 90, 10)
        space.finish(0, _sha("a"), 90)
    assert ledger.compute_use().used == 90
    _one(ledger, 5).finish(64, None, 0)
    with _held(ledger, 5):
        assert _accounts(ledger.compute_use()) == (90, 5, 0)


def test_a_reservation_grows_while_there_is_room() -> None:
    """A blob of unknown size sets more and more aside; a refusal leaves it as it was."""
    ledger = Ledger(100, Disk(1000))
    with _held(ledger, 0) as space, _held(ledger, 30, "two"):
        space.grow(50)
        space.grow(20)
        with pytest.raises(NoSpace):
            space.grow(71)
        with pytest.raises(Permanent):
            space.grow(101)
        assert (space.size, ledger.compute_use().free) == (50, 20)


def test_accounts_that_make_no_sense_are_refused() -> None:
    """No caller counts less than nothing, reserves the same blob twice, or grows what was given back."""
    ledger = Ledger(100, Disk(1000))
    for count in (ledger.count_blob, ledger.count_partial, ledger.count_quarantined):
        with pytest.raises(ValueError, match="-1 bytes"):
            count("x", -1)
    with pytest.raises(ValueError, match="negative"):
        _one(ledger, -1)
    with _held(ledger, 10) as space, pytest.raises(ValueError, match="reserved already"):
        ledger.reserve({"two": 1, "one": 1})
    with pytest.raises(ValueError, match="given back"):
        space.grow(11)
    use = ledger.compute_use()
    assert (_accounts(use), use.free) == ((0, 0, 0), 100)


def test_a_recount_corrects_what_nobody_said() -> None:
    """What another program did to the disk is in the account after a recount; what was counted during it stays."""
    ledger = Ledger(None, Disk(1000))
    ledger.count_all(_found({"deleted": 10, "cut": 20, "same": 5}, {"partial": 7}, {"bad": 3}))
    with ledger.begin_recount() as correct:
        found = _found({"cut": 2, "grown": 40, "same": 5, "evicted": 11}, {"late": 9}, {"bad": 4})
        ledger.count_blob(_sha("evicted"), 0)
        ledger.count_blob(_sha("committed"), 100)
        ledger.count_partial("late", 1)
        assert correct(found) == 5
    assert _accounts(ledger.compute_use()) == (2 + 40 + 5 + 100, 0, 1 + 4)
    with ledger.begin_recount() as correct:
        assert correct(_found({"cut": 2, "grown": 40, "same": 5, "committed": 100}, {"late": 1}, {"bad": 4})) == 0


def test_a_recount_sees_what_is_reserved() -> None:
    """What a recount finds of a partial blob that is under way is part of its reservation, and of nothing else."""
    ledger = Ledger(None, Disk(1000))
    with _held(ledger, 50):
        with ledger.begin_recount() as correct:
            correct(_found({}, {"one": 30}, {}))
        assert _accounts(ledger.compute_use()) == (0, 50, 0)
        assert ledger.partial_bytes("one") == 30
    assert _accounts(ledger.compute_use()) == (0, 0, 30)


def test_a_running_fetch_is_no_change_by_hand() -> None:
    """What a fetch wrote since it counted last, and a blob that appears during one, are counted as no fault."""
    ledger = Ledger(None, Disk(1000))
    with _held(ledger, 50):
        ledger.count_blob(_sha("here"), 7)
        ledger.count_partial("one", 10)
        with ledger.begin_recount() as correct:
            assert correct(_found({"here": 7, "renamed": 20}, {"one": 30}, {})) == 0
        assert (_accounts(ledger.compute_use()), ledger.partial_bytes("one")) == ((27, 50, 0), 30)
        with ledger.begin_recount() as correct:
            assert correct(_found({"renamed": 2}, {"one": 30, "other": 5}, {})) == 3
    with ledger.begin_recount() as correct:
        assert correct(_found({"renamed": 2, "put": 1}, {"one": 3, "other": 5}, {})) == 2


def test_threads_share_one_budget() -> None:
    """However many threads reserve at once, no more than the budget is handed out, and all of it comes back."""
    ledger = Ledger(100, Disk(1000))
    with ExitStack() as kept, ThreadPoolExecutor(8) as pool:

        def reserve(number: int) -> int:
            try:
                kept.enter_context(_held(ledger, 7, str(number)))
            except NoSpace:
                return 0
            return 7

        assert sum(pool.map(reserve, range(64))) == 98
        assert ledger.compute_use().reserved == 98
    assert ledger.compute_use().reserved == 0


sizes = st.integers(0, 120)


class LedgerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, what is held stays within quota and disk, and what is reserved is there."""

    @initialize(quota=st.none() | st.integers(0, 150), capacity=st.integers(1, 200), data=st.data())
    def start(self, quota: int | None, capacity: int, data: st.DataObject) -> None:
        self.quota = quota
        self.disk = Disk(capacity, data.draw(st.integers(0, capacity)))
        self.limit = min(quota if quota is not None else capacity, capacity)
        self.blobs = {"first": data.draw(st.integers(0, min(self.limit, self.disk.free)))}
        self.partials: dict[str, int] = {}
        self.open: dict[str, Reservation] = {}
        self.names = 0
        self.ledger = Ledger(quota, self.disk)
        self.ledger.count_all(_found(self.blobs, {}, {}))
        self._settle_disk()

    def _settle_disk(self) -> None:
        self.disk.ours = sum(self.blobs.values()) + sum(self.partials.values())

    @rule(size=sizes, data=st.data())
    def reserve(self, size: int, data: st.DataObject) -> None:
        before = self.ledger.compute_use()
        resumable = sorted(id_ for id_, there in self.partials.items() if id_ not in self.open and there <= size)
        self.names += 1
        id_ = data.draw(st.sampled_from([*resumable, f"new {self.names}"]))
        resumed = self.partials.get(id_, 0)
        try:
            self.open[id_] = _one(self.ledger, size, id_)
        except NoSpace as error:
            assert size <= self.limit
            assert size - resumed > before.free
            assert error.needed_bytes == size - resumed
            assert self.ledger.compute_use() == before
        except Permanent:
            assert size > self.limit
            assert self.ledger.compute_use() == before

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.open)))
        there = self.partials.get(id_, 0)
        size = data.draw(st.integers(there, self.open[id_].size))
        assert self.disk.free >= size - there, "what was reserved must be there"
        self.partials[id_] = size
        self._settle_disk()
        self.ledger.count_partial(id_, size)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        space = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        before, size = self.ledger.compute_use(), data.draw(sizes)
        try:
            space.grow(size)
        except (NoSpace, Permanent):
            assert self.ledger.compute_use() == before
            assert size - space.size > before.free

    @precondition(lambda self: self.open)
    @rule(data=st.data(), leave=st.booleans())
    def end(self, data: st.DataObject, leave: bool) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.open)))
        space, there = self.open.pop(id_), self.partials.get(id_, 0)
        if leave:
            left = self.partials[id_] = data.draw(st.integers(0, there))
            space.finish(left, None, 0)
        else:
            self.blobs[id_] = self.partials.pop(id_, 0)
            space.finish(0, _sha(id_), self.blobs[id_])
        self._settle_disk()

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        sha256 = data.draw(st.sampled_from(sorted(self.blobs)))
        self.blobs[sha256] = 0
        self._settle_disk()
        self.ledger.count_blob(_sha(sha256), 0)

    @rule(data=st.data())
    def people_delete(self, data: st.DataObject) -> None:
        sha256 = data.draw(st.sampled_from(sorted(self.blobs)))
        self.blobs[sha256] = data.draw(st.integers(0, self.blobs[sha256]))
        self._settle_disk()
        with self.ledger.begin_recount() as correct:
            correct(_found(self.blobs, self.partials, {}))

    @rule(data=st.data())
    def others_delete(self, data: st.DataObject) -> None:
        self.disk.others -= data.draw(st.integers(0, self.disk.others))

    @invariant()
    def within_the_budget(self) -> None:
        use = self.ledger.compute_use()
        assert use.capacity == self.limit
        assert use.used + use.reserved + use.dying <= use.budget <= use.capacity
        assert use.free == use.budget - use.used - use.reserved - use.dying
        assert use.used == sum(self.blobs.values())
        assert use.reserved == sum(space.size for space in self.open.values())
        assert use.dying == sum(size for id_, size in self.partials.items() if id_ not in self.open)
        under_way = sum(size for id_, size in self.partials.items() if id_ in self.open)
        assert self.disk.free >= use.reserved - under_way


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
