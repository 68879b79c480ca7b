from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.weights.format.selection import ByteRun
from server.weights.plan import ALIGNMENT, LoadPlan, Sizes, WantedTensor, make_plan
from server.weights.settings import PAGE

SIZES = st.builds(
    Sizes,
    slot_bytes=st.sampled_from([65536, 131072]),
    range_bytes=st.integers(1, 1 << 20),
    gap_bytes=st.integers(0, 70_000),
)


@st.composite
def wants(draw: st.DrawFn) -> list[WantedTensor]:
    """Whole tensors and rows of tensors, with gaps between them, in some files."""
    found = []
    for file in range(draw(st.integers(1, 3))):
        at = draw(st.integers(8, 10_000))
        for number in range(draw(st.integers(0, 12))):
            at += draw(st.sampled_from([0, 0, 0, 1, 5000, 100_000]))
            width, rows = draw(st.integers(0, 200_000)), 1
            pitch = 0
            if draw(st.booleans()):
                width, rows = draw(st.integers(1, 3000)), draw(st.integers(2, 60))
                pitch = width + draw(st.integers(1, 90_000))
            run = ByteRun(at, 0, width, rows, pitch)
            found.append(WantedTensor(f"{file}.{number}", file, width * rows, (run,) if width else ()))
            at = run.end
    return found


def replay(plan: LoadPlan, expected: dict[str, WantedTensor], chunk: int) -> None:
    """Carry the plan out on intervals: every wanted byte lands once, at its place."""
    for found in plan.ranges:
        landed: list[tuple[int, int, int, int]] = []  # target, width, file, offset in the file
        for part in found.chunks:
            spans = []
            for begin, end, slot in part.reads:
                assert slot % PAGE == begin % PAGE
                assert slot + end - begin <= chunk
                spans.append((slot - begin % PAGE, slot + end - begin, begin - slot))
            assert all(one[1] <= two[0] for one, two in pairwise(sorted(spans)))
            for copy in part.copies:
                for row in range(copy.rows):
                    at = copy.slot + row * copy.pitch
                    (shift,) = [s for low, high, s in spans if low <= at and at + copy.width <= high]
                    landed.append((copy.target + row * copy.width, copy.width, part.file, at + shift))
        flat = sorted(landed)
        assert all(one[0] + one[1] <= two[0] for one, two in pairwise(flat))
        for placed, offset in found.placements:
            assert offset % ALIGNMENT == 0
            want = expected.pop(placed.name)
            nbytes = want.nbytes
            assert placed.nbytes == nbytes
            covered = 0
            for target, width, file, source in flat:
                low, high = max(target, offset), min(target + width, offset + nbytes)
                if low >= high:
                    continue
                covered += high - low
                assert file == want.file
                (run,) = want.runs
                row, column = divmod(low - offset, run.width)
                assert column + high - low <= run.width
                assert source + low - target == run.begin + row * run.pitch + column
            assert covered == nbytes


@given(wants(), SIZES)
def test_the_device_holds_next_to_nothing_more_than_the_weights(asked: list[WantedTensor], sizes: Sizes) -> None:
    """Beyond the tensors' bytes there are less than 16 a tensor, and no range but a tensor's own is above its size."""
    plan = make_plan(asked, sizes)
    assert plan.device_bytes <= plan.nbytes + (ALIGNMENT - 1) * len(asked)
    for found in plan.ranges:
        largest = found.placements[-1].want.nbytes
        assert found.nbytes - largest < sizes.range_bytes + ALIGNMENT


@given(wants(), SIZES)
def test_no_byte_is_read_twice_or_for_nothing(asked: list[WantedTensor], sizes: Sizes) -> None:
    """Reads never overlap, and what is read in vain lies in gaps that are smaller than a read is worth."""
    plan = make_plan(asked, sizes)
    reads = sorted(
        (part.file, begin, end) for found in plan.ranges for part in found.chunks for begin, end, _ in part.reads
    )
    assert all(one[0] != two[0] or one[2] <= two[1] for one, two in pairwise(reads))
    gaps = sum(max(1, run.rows) for want in asked for run in want.runs)
    assert sum(end - begin for _, begin, end in reads) <= plan.nbytes + sizes.gap_bytes * gaps


def test_the_first_bytes_need_not_wait_for_the_last_ones_plan() -> None:
    """Chunks are worked out range by range, and counted no further than is asked."""
    tensors = [WantedTensor(str(number), 0, 1 << 20, (ByteRun(number << 20, 0, 1 << 20),)) for number in range(9)]
    plan = make_plan(tensors, Sizes(slot_bytes=65536, range_bytes=1 << 20, gap_bytes=0))
    assert plan.count_chunks(20) == 20
    assert ["chunks" in vars(found) for found in plan.ranges] == [True, True] + [False] * 7
    assert plan.count_chunks(1000) == 9 * 16
