"""The loaders' benchmark: real runs in processes of their own, and the arithmetic of its tables."""

from __future__ import annotations

import importlib
import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import ceiling, checkpoints, load, loaders, sweep
from bench.checkpoints import Checkpoint
from bench.load_report import Run, State, targets, text
from bench.loaders import INSTANTTENSOR, OURS
from bench.loading import Job, Timing, Watched, watch
from cached.contract.errors import Permanent
from server.weights.cuda.accelerator import Accelerator
from server.weights.settings import LoaderSettings
from tests.support.fake_cuda import FakeRuntime, fake_accelerator

GB = 10**9
VARIABLES = ("FASTSAFETENSORS_ODIRECT", "RUNAI_STREAMER_FS_STRATEGY")


@pytest.fixture
def small(tmp_path: Path) -> Checkpoint:
    return checkpoints.synthetic(tmp_path, 4 << 20)


def run(row: str, wall_s: float, state: State = State.WARM, cached: float = 1.0, device: int = GB) -> Run:
    return Run.of(row, state, 1, GB, cached, Watched(Timing(wall_s, 1.0), 1, device, None))


def job(row: str, checkpoint: Checkpoint, timeout_s: float = 60) -> Job:
    return Job(row, checkpoint.files, checkpoint.size, checkpoint.files[-1], "cpu", True, True, timeout_s)


def nothing_free() -> int:
    return 0


def test_a_run_prints_a_table_and_keeps_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on the CPU has a row for ours and one for its ceiling, and every sample is in the JSON."""
    kept = tmp_path / "samples.json"
    argv = ["--size=4MiB", "--device=cpu", "--rounds=1", "--states=warm", f"--only={OURS}", f"--json={kept}"]
    assert load.main(argv) == 0
    assert f"| {OURS}" in capsys.readouterr().out
    found = json.loads(kept.read_text())["checkpoints"][0]["runs"]
    assert {entry["sample"]["row"] for entry in found} == {OURS, ceiling.HOST}
    assert not any(entry["sample"]["wall_s"] <= 0 for entry in found)


def test_a_load_is_timed_after_its_pages_were_prepared(small: Checkpoint, tmp_path: Path) -> None:
    """`prepare` runs once, and what the loader gave is hashed."""
    prepared: list[str] = []
    found = watch(job(OURS, small), tmp_path / "log", lambda: prepared.append("once"), nothing_free)
    assert prepared == ["once"]
    assert found.fingerprint == checkpoints.fingerprint_of_files(small.files)
    assert found.timing.load_s > 0
    assert found.timing.touch_s > 0


def test_a_loader_that_fails_is_named_with_its_error(small: Checkpoint, tmp_path: Path) -> None:
    """The process's own last words reach the error."""
    broken = small.files[0]
    broken.write_bytes(b"\0" * 64)
    with pytest.raises(Permanent, match=f"{OURS} ended(?s:.*){broken.name}"):
        watch(job(OURS, small), tmp_path / "log", lambda: None, nothing_free)


def test_the_ceilings_read_every_byte(small: Checkpoint, tmp_path: Path) -> None:
    """Both ceilings that need no GPU give a rate for the files."""
    assert ceiling.read_and_sum(small.files) > 0
    try:
        name, rate = ceiling.direct_reads(small.files, tmp_path)
    except Permanent as error:
        pytest.skip(error.message)
    assert name in (ceiling.FIO, ceiling.DIRECT)
    assert rate > 0


def test_a_row_that_was_not_cold_counts_for_no_target() -> None:
    """Where pages could not be dropped the row says so, and no target is met with it."""
    runs = [run(OURS, 1, State.COLD, cached=0.5), run("instanttensor", 2, State.COLD, cached=0.0)]
    assert [target.what for target in targets(runs, "cuda:0") if "cold" in target.what] == []
    assert "holdfast, round 1: not cold, 50.0% of its pages were cached" in text(runs, "cuda:0", [])


def test_a_gpu_run_is_held_against_every_target() -> None:
    """Rate, share of the ceiling, the rival, and memory above the weights are judged."""
    limit = Run.of_ceiling(ceiling.PINNED, State.WARM, 1, GB, 1.0, 50 * GB)
    found = targets([run(OURS, 1 / 49, device=GB + (4 << 20)), run("instanttensor", 1 / 48), limit], "cuda:0")
    assert len(found) == 4
    assert all(target.met for target in found)
    missed = targets([run(OURS, 1 / 47, device=GB * 2), run("instanttensor", 1 / 48), limit], "cuda:0")
    assert [target.met for target in missed] == [False, False, False, False]


class Peers:
    """Packages of other loaders that note how they were called."""

    def __init__(self) -> None:
        self.called: list[dict[str, object]] = []

    def package(self, name: str) -> SimpleNamespace:
        def note(paths: list[str], **keywords: object) -> None:
            self.called.append({name: os.environ.get(name) for name in VARIABLES} | keywords)

        def opened(paths: list[str], **keywords: object) -> nullcontext[SimpleNamespace]:
            note(paths, **keywords)
            return nullcontext(SimpleNamespace(keys=list, tensors=list))

        def streamer() -> nullcontext[SimpleNamespace]:
            return nullcontext(SimpleNamespace(stream_files=note, get_tensors=list))

        policy = SimpleNamespace(BUFFERED="buffered")
        return SimpleNamespace(
            safe_open=opened, fastsafe_open=opened, BackendPolicy=policy, SafetensorsStreamer=streamer
        )


def test_cached_files_are_read_through_the_cache_by_every_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders that go past the page cache on their own are told where it holds the files, and only there."""
    peers = Peers()
    monkeypatch.setattr(importlib, "import_module", peers.package)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    for cached in (False, True):
        for loader in ("fastsafetensors", "runai streamer", INSTANTTENSOR):
            loaders.BY_NAME[loader].load([], "cuda:0", cached)
    assert [call["FASTSAFETENSORS_ODIRECT"] for call in peers.called[::3]] == [None, "0"]
    assert [call["RUNAI_STREAMER_FS_STRATEGY"] for call in peers.called[1::3]] == [None, "sync_buffered"]
    assert [call["backend"] for call in peers.called[2::3]] == [None, "buffered"]
    assert {call["device"] for call in peers.called} == {"cuda:0"}


def test_a_gpu_without_a_number_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device cuda` is given to the loaders as `cuda:0`: two of them refuse it without a number."""
    asked: list[str] = []

    def measure(plan: load.Plan, *_: object) -> tuple[list[Run], list[str]]:
        asked.append(plan.device)
        return [], []

    monkeypatch.setattr(load, "_measure", measure)
    monkeypatch.setattr(load, "_describe_device", lambda device: device)
    assert load.main(["--size=1MiB", "--device=cuda"]) == 0
    assert set(asked) == {"cuda:0"}


def test_no_time_left_ends_a_run_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    """A budget that is spent stops the run before the next row, and the report says what did not run."""
    assert load.main(["--size=1MiB", "--device=cpu", "--states=warm", "--budget-s=0"]) == 0
    assert "out of time in round 1" in capsys.readouterr().out


def test_a_sweep_tries_each_axis_and_returns_what_was_fastest(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every candidate is loaded with, more slots than threads always, and the best is one of them."""
    monkeypatch.setenv("HOLDFAST_LOADER_SLOT_SIZE", "64KiB")
    runtime = FakeRuntime()
    tried: list[LoaderSettings] = []

    def make(settings: LoaderSettings) -> Accelerator:
        tried.append(settings)
        return fake_accelerator(runtime, settings)

    axes = (("threads", (2, 20)), ("streams", (1,)))
    rows, best = sweep.search(small.files, State.WARM, axes, make, lambda: 60)
    assert best in tried
    assert all(settings.slots > settings.threads for settings in tried)
    assert {row[1] for row in rows} == {"threads", "streams"}
    assert runtime.violations == []


def test_a_sweep_without_a_gpu_is_refused() -> None:
    """The CPU maps the files: there is nothing to set."""
    with pytest.raises(Permanent, match="nothing to set on cpu"):
        sweep.sweep([], "cpu", [State.WARM], lambda: 60)
