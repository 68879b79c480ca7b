"""The benchmark of a server's start: real starts, and the arithmetic of its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import llama, start


def test_a_run_times_a_real_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first round counts nothing; a start listens before it is ready, and its stages are told."""
    pytest.importorskip("transformers")
    model = llama.write(tmp_path / "model", llama.SHAPES["tiny"], "float32", "cpu")
    kept = tmp_path / "samples.json"
    assert start.main([f"--model={model}", "--rounds=1", f"--json={kept}"]) == 0
    assert "| model, this checkout" in capsys.readouterr().out
    (found,) = json.loads(kept.read_text())["starts"]
    assert (found["row"], found["round"]) == ("this checkout", 1)
    assert 0 < found["listening_s"] <= found["ready_s"]
    assert found["cpu_s"] > 0
    assert {"device", "import", "load", "warm_up"} <= found["stages"].keys()


def test_a_ratio_is_of_starts_in_one_round() -> None:
    """Ratios pair the starts of a round, and the median over the rounds is shown."""
    times = {("this checkout", 1): 1.0, ("beside", 1): 2.0, ("this checkout", 2): 9.0, ("beside", 2): 10.0}
    starts = [start.Start("m", row, round_, 0.1, ready, 1.0, 0, {}) for (row, round_), ready in times.items()]
    now = [one for one in starts if one.row == "this checkout"]
    beside = [one for one in starts if one.row == "beside"]
    assert start._ratio(now, beside) == pytest.approx((0.5 + 0.9) / 2)
    assert start._ratio(now, []) is None
    assert "0.70 x, target ≤ 0.75 x: met" in start._report(starts)
    assert "target" not in start._report(now)
