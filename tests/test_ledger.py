"""The ledger: no fetch begins that cannot end, and every byte is in one account."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cached.contract.errors import Permanent, Transient
from cached.ledger import DiskSpace, Ledger, NoSpace, Reservation


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


def test_what_was_not_committed_comes_back() -> None:
    """Leaving the block gives back all that was not committed, an exception or not."""
    ledger = Ledger(100, Disk(1000))
    with pytest.raises(RuntimeError), ledger.reserve(80) as space:
        space.commit(30)
        assert (space.size, ledger.use().reserved, ledger.use().free) == (50, 50, 20)
        raise RuntimeError
    use = ledger.use()
    assert (use.used, use.reserved, use.free) == (30, 0, 70)


def test_reservations_add_up() -> None:
    """What one fetch has set aside, no other one gets; a refusal takes nothing."""
    ledger = Ledger(100, Disk(1000))
    with ledger.reserve(60), ledger.reserve(40):
        with pytest.raises(NoSpace):
            ledger.reserve(1)
        assert ledger.use().reserved == 100
    with ledger.reserve(100):
        pass


@pytest.mark.parametrize(
    ("quota", "disk", "limit", "size"),
    [(100, 1000, "quota", "100 B"), (None, 50, "file system", "50 B"), (60, 50, "file system", "50 B")],
)
def test_too_large_is_permanent_and_names_both_sizes(quota: int | None, disk: int, limit: str, size: str) -> None:
    """What can never fit is refused for good, with what is needed and what there is."""
    ledger = Ledger(quota, Disk(disk))
    with pytest.raises(Permanent) as caught:
        ledger.reserve(101)
    assert caught.value.code == "too_large"
    for part in ("101 B", limit, size):
        assert part in caught.value.message
    assert limit in caught.value.remedy


def test_no_space_is_transient() -> None:
    """What would fit once others are gone is refused for now, and says how much was needed."""
    ledger = Ledger(100, Disk(1000))
    ledger.set_held(committed=70, dying=20)
    with pytest.raises(Transient) as caught:
        ledger.reserve(50)
    assert isinstance(caught.value, NoSpace)
    assert (caught.value.code, caught.value.needed_bytes) == ("no_space", 50)
    for part in ("50 B", "70 B", "20 B", "10 B"):
        assert part in caught.value.message


def test_trash_counts_until_it_is_gone() -> None:
    """Bytes moved to trash free nothing before they are deleted."""
    ledger = Ledger(100, Disk(1000))
    ledger.set_held(committed=100, dying=0)
    ledger.moved_to_trash(60)
    assert (ledger.use().used, ledger.use().dying, ledger.use().free) == (40, 60, 0)
    ledger.trash_deleted(60)
    assert (ledger.use().dying, ledger.use().free) == (0, 60)


def test_others_on_the_file_system_count() -> None:
    """What others took of the file system cannot be reserved, though the quota would allow it."""
    ledger = Ledger(100, Disk(200, others=170))
    with ledger.reserve(30):
        pass
    with pytest.raises(NoSpace):
        ledger.reserve(31)
    use = ledger.use()
    assert (use.capacity, use.budget, use.free) == (100, 30, 30)


def test_allocated_bytes_are_not_counted_twice() -> None:
    """A file that the disk has given already lessens both the disk's free bytes and what is still to be taken."""
    disk = Disk(100)
    ledger = Ledger(None, disk)
    with ledger.reserve(60) as space:
        disk.ours = 60
        space.allocated(60)
        assert ledger.use().free == 40
        with ledger.reserve(40):
            assert ledger.use().free == 0
        space.commit(60)
        assert ledger.use().free == 40


def test_bytes_not_yet_allocated_are_kept_from_others() -> None:
    """What is reserved and not written is not given to another fetch, though the disk still shows it free."""
    ledger = Ledger(None, Disk(100))
    with ledger.reserve(60), pytest.raises(NoSpace):
        ledger.reserve(41)


def test_a_partial_blob_is_resumed_without_new_space() -> None:
    """A partial blob that nobody fetches is dying; whoever resumes it needs only the rest, even on a full disk."""
    disk = Disk(100)
    ledger = Ledger(100, disk)
    with ledger.reserve(90) as space:
        disk.ours = 70
        space.allocated(70)
        space.leave(70)
    assert (ledger.use().dying, ledger.use().free) == (70, 30)
    with pytest.raises(NoSpace):
        ledger.reserve(90)
    with ledger.reserve(90, resumed=70) as space:
        assert (ledger.use().dying, ledger.use().reserved, ledger.use().free) == (0, 90, 10)
        space.commit(90)
    assert ledger.use().used == 90


def test_accounts_that_do_not_add_up_are_refused() -> None:
    """Nobody commits, allocates or trashes more than there is, nor uses what was given back."""
    ledger = Ledger(100, Disk(1000))
    with ledger.reserve(10) as space:
        for act in (space.commit, space.leave, space.allocated):
            for size in (11, -1):
                with pytest.raises(ValueError, match="bytes"):
                    act(size)
        space.allocated(10)
        with pytest.raises(ValueError, match="allocated"):
            space.allocated(1)
    for act in (space.commit, space.leave, space.allocated):
        with pytest.raises(ValueError, match="given back"):
            act(0)
    for size in (1, -1):
        with pytest.raises(ValueError, match="account"):
            ledger.moved_to_trash(size)
    for size, resumed in ((-1, 0), (1, 2), (1, -1)):
        with pytest.raises(ValueError, match="resumed"):
            ledger.reserve(size, resumed)
    use = ledger.use()
    assert (use.used, use.reserved, use.dying, use.free) == (0, 0, 0, 100)


def test_a_partial_blob_may_take_more_than_was_said() -> None:
    """Partial blobs are measured in blocks: deleting or resuming more than was said to die leaves nothing dying."""
    disk = Disk(1000)
    ledger = Ledger(100, disk)
    with ledger.reserve(5) as space:
        space.leave(5)
    ledger.trash_deleted(64)
    assert ledger.use().dying == 0
    with ledger.reserve(5) as space:
        space.leave(5)
    with ledger.reserve(64, resumed=64):
        assert (ledger.use().dying, ledger.use().reserved, ledger.use().free) == (0, 64, 36)


def test_threads_share_one_budget() -> None:
    """However many threads reserve at once, no more than the budget is handed out, and all of it comes back."""
    ledger = Ledger(100, Disk(1000))
    with ExitStack() as kept, ThreadPoolExecutor(8) as pool:

        def reserve(_number: int) -> int:
            try:
                kept.enter_context(ledger.reserve(7))
            except NoSpace:
                return 0
            return 7

        assert sum(pool.map(reserve, range(64))) == 98
        assert ledger.use().reserved == 98
    assert ledger.use().reserved == 0


sizes = st.integers(0, 120)


class LedgerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, what is held stays within quota and disk, and what is reserved is there."""

    @initialize(quota=st.none() | st.integers(0, 150), capacity=st.integers(1, 200), data=st.data())
    def start(self, quota: int | None, capacity: int, data: st.DataObject) -> None:
        self.quota = quota
        self.disk = Disk(capacity, data.draw(st.integers(0, capacity)))
        self.limit = min(quota if quota is not None else capacity, capacity)
        committed = data.draw(st.integers(0, min(self.limit, self.disk.free)))
        self.disk.ours = committed
        self.ledger = Ledger(quota, self.disk)
        self.ledger.set_held(committed, 0)
        self.open: list[tuple[Reservation, int]] = []  # with the bytes it has on disk

    @rule(size=sizes, data=st.data())
    def reserve(self, size: int, data: st.DataObject) -> None:
        before = self.ledger.use()
        resumed = data.draw(st.integers(0, min(size, before.dying)))
        try:
            self.open.append((self.ledger.reserve(size, resumed), resumed))
        except NoSpace as error:
            assert size <= self.limit
            assert size - resumed > before.free
            assert error.needed_bytes == size - resumed
            assert self.ledger.use() == before
        except Permanent:
            assert size > self.limit
            assert self.ledger.use() == before

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.open) - 1))
        space, on_disk = self.open[at]
        size = data.draw(st.integers(0, space.size - on_disk))
        assert self.disk.free >= size, "what was reserved must be there"
        self.disk.ours += size
        space.allocated(size)
        self.open[at] = (space, on_disk + size)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), leave=st.booleans())
    def finish_a_blob(self, data: st.DataObject, leave: bool) -> None:
        at = data.draw(st.integers(0, len(self.open) - 1))
        space, on_disk = self.open[at]
        size = data.draw(st.integers(0, on_disk))
        (space.leave if leave else space.commit)(size)
        self.open[at] = (space, on_disk - size)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        space, on_disk = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.disk.ours -= on_disk
        with space:
            pass

    @rule(data=st.data())
    def trash(self, data: st.DataObject) -> None:
        self.ledger.moved_to_trash(data.draw(st.integers(0, self.ledger.use().used)))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, self.ledger.use().dying))
        self.disk.ours -= size
        self.ledger.trash_deleted(size)

    @rule(data=st.data())
    def others_delete(self, data: st.DataObject) -> None:
        self.disk.others -= data.draw(st.integers(0, self.disk.others))

    @invariant()
    def within_the_budget(self) -> None:
        use = self.ledger.use()
        assert use.capacity == self.limit
        assert use.used + use.reserved + use.dying <= use.budget <= use.capacity
        assert use.free == use.budget - use.used - use.reserved - use.dying
        assert use.reserved == sum(space.size for space, _ in self.open)
        assert use.used + use.dying + sum(on_disk for _, on_disk in self.open) == self.disk.ours
        assert self.disk.free >= use.reserved - sum(on_disk for _, on_disk in self.open)


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
