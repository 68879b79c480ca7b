"""The arithmetic of the benchmarks: medians over rounds, ratios within rounds, targets, tables."""

from __future__ import annotations

import pytest

from bench.report import Figures, Sample, Target, bullets, document, fastest, figures, grid, ratio, table


def sample(row: str, round_: int, wall_s: float, cpu_s: float = 1.0, peak_bytes: int = 1) -> Sample:
    return Sample(row, round_, 2_000_000_000, wall_s, cpu_s, peak_bytes)


def test_rates_are_per_second_and_cpu_per_decimal_gigabyte() -> None:
    """A rate is bytes by seconds, and CPU is counted per 10^9 bytes."""
    found = sample("a", 1, wall_s=4, cpu_s=3)
    assert found.rate == 500_000_000
    assert found.cpu_s_per_gb == 1.5


def test_ratios_pair_rows_of_one_round() -> None:
    """A round that slows every row down leaves the ratio as it is."""
    samples = [sample("a", 1, 1), sample("b", 1, 2), sample("b", 2, 20), sample("a", 2, 10)]
    assert ratio(samples, "a", "b") == 2
    assert ratio(samples, "b", "a") == 0.5


def test_a_ratio_is_the_median_over_rounds() -> None:
    """One odd round does not move the ratio."""
    samples = [s for n, wall in enumerate((2, 3, 40), 1) for s in (sample("a", n, 1), sample("b", n, wall))]
    assert ratio(samples, "a", "b") == 3


def test_rounds_without_both_rows_are_left_out() -> None:
    """A ratio is made of rounds in which both rows ran, and is None where there is none."""
    samples = [sample("a", 1, 1), sample("a", 2, 1), sample("b", 2, 4)]
    assert ratio(samples, "a", "b") == 4
    assert ratio(samples[:2], "a", "b") is None
    assert ratio([], "a", "b") is None


def test_the_fastest_is_by_median_rate_among_those_named() -> None:
    """One lucky round does not make a row the fastest, and rows that were not asked about do not count."""
    samples = [sample("lucky", 1, 1), sample("lucky", 2, 9), sample("lucky", 3, 9)]
    samples += [sample("steady", n, 4) for n in (1, 2, 3)] + [sample("other", 1, 0.1)]
    assert fastest(samples, ["lucky", "steady"]) == "steady"
    assert fastest(samples, ["absent"]) is None


def test_figures_are_medians_but_the_largest_peak() -> None:
    """Wall, rate and CPU are medians over rounds; memory is the largest of all rounds."""
    samples = [sample("a", n, wall, cpu, peak) for n, (wall, cpu, peak) in enumerate([(1, 2, 7), (2, 4, 9), (4, 8, 5)])]
    (found,) = figures(samples, ["a", "absent"], ["a", "absent"])
    assert found == Figures("a", 3, 2, 1.0, 2.0, 9, {"a": 1})


def test_figures_keep_the_order_that_was_asked_for() -> None:
    """Rows that took turns still come out in one order."""
    samples = [sample("b", 1, 1), sample("a", 1, 1)]
    assert [f.row for f in figures(samples, ["a", "b"], [])] == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "bound", "at_least", "met"),
    [(1.2, 1.2, True, True), (1.19, 1.2, True, False), (0.8, 0.8, False, True), (0.81, 0.8, False, False)],
)
def test_a_target_is_met_at_its_bound(found: float, bound: float, at_least: bool, met: bool) -> None:
    """Exactly the bound is enough; anything on the wrong side of it is a miss, and says so."""
    target = Target("rate", found, bound, at_least, " x")
    assert target.met is met
    assert ("MISSED" in str(target)) is not met


def test_a_missed_target_never_reads_as_met() -> None:
    """The line names what was found, the bound and the verdict."""
    assert str(Target("CPU", 0.9, 0.8, False, " s/GB")) == "CPU: 0.90 s/GB, target ≤ 0.8 s/GB: MISSED"


def test_table_has_a_column_for_each_reference_and_a_dash_where_there_is_no_pair() -> None:
    """A row that never met the reference shows no ratio rather than a wrong one."""
    made = table([Figures("a", 1, 2, 1, 0.5, 3 * 1024 * 1024, {"b": 1.25}), Figures("c", 1, 2, 1, 0.5, 0, {})], ["b"])
    head, rule, first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in made.splitlines())
    assert head == ["row", "wall s", "GB/s", "CPU s/GB", "peak MiB", "x b"]
    assert all(cell.strip("-:") == "" for cell in rule)
    assert first == ["a", "2.00", "1.00", "0.50", "3", "1.25"]
    assert second[-1] == "-"


def test_a_grid_is_aligned() -> None:
    """Every line of a table has the same width."""
    lines = grid(["name", "n"], [["a long name", "1"], ["b", "12345"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_a_document_holds_every_sample_and_each_verdict() -> None:
    """Machines can read what the tables say, and what they were made of."""
    samples = [sample("a", 1, 1)]
    made = document(samples, figures(samples, ["a"], []), [Target("rate", 1, 2, True, "")])
    assert made["samples"][0]["wall_s"] == 1
    assert made["figures"][0]["row"] == "a"
    assert made["targets"][0]["met"] is False


def test_bullets_are_one_line_each() -> None:
    """A list in Markdown has one line an item, and none is empty."""
    assert bullets(["a", 2]) == "- a\n- 2"
