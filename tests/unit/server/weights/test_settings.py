from __future__ import annotations

import os
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from server.weights.cuda.processors import find_near, parse_cpu_list
from server.weights.settings import MIB, Io, LoaderSettings


def test_the_environment_changes_the_defaults() -> None:
    """Each variable sets its own number, and nothing set is the machine's default."""
    found = LoaderSettings.from_environment(
        {
            "HOLDFAST_LOADER_THREADS": "3",
            "HOLDFAST_LOADER_SLOTS": "9",
            "HOLDFAST_LOADER_SLOT_SIZE": "4MiB",
            "HOLDFAST_LOADER_IO": "direct",
            "LOCAL_WORLD_SIZE": "8",
        }
    )
    assert (found.threads, found.slots, found.slot_bytes, found.io, found.local_readers) == (
        3,
        9,
        4 * MIB,
        Io.DIRECT,
        8,
    )
    plain = LoaderSettings.from_environment({})
    assert plain.slots > plain.threads
    assert (plain.io, plain.local_readers) == (Io.AUTO, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOLDFAST_LOADER_THREADS", "0"),
        ("HOLDFAST_LOADER_THREADS", "many"),
        ("HOLDFAST_LOADER_SLOT_SIZE", "5000"),
        ("HOLDFAST_LOADER_SLOT_SIZE", "4 bananas"),
        ("HOLDFAST_LOADER_IO", "quickly"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_found(name: str, value: str) -> None:
    """A value that cannot be is an error that says what was expected."""
    with pytest.raises(Permanent, match="expected") as caught:
        LoaderSettings.from_environment({name: value})
    assert caught.value.code == "invalid_setting"


def test_the_kernels_lists_are_read() -> None:
    """Ranges, single numbers and nothing."""
    assert parse_cpu_list("0-2,8\n") == {0, 1, 2, 8}
    assert parse_cpu_list("\n") == frozenset()


@pytest.mark.parametrize("node", ["-1\n", "7\n", ""])
def test_a_device_of_no_node_is_near_every_processor(node: str, tmp_path: Path) -> None:
    """Where the firmware names no node, or one that is not there, nothing is ruled out."""
    everything = find_near("absent", tmp_path, tmp_path)
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0" / "numa_node").write_text(node)
    assert find_near("0000:3b:00.0", tmp_path, tmp_path) == everything


def test_a_device_is_near_its_nodes_processors(tmp_path: Path) -> None:
    """The node's list, as far as this process may use it, is what is near."""
    first = min(find_near("absent", tmp_path, tmp_path))
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "numa_node").write_text("0\n")
    (tmp_path / "node0").mkdir()
    (tmp_path / "node0" / "cpulist").write_text(f"{first},4096\n")
    assert find_near("device", tmp_path, tmp_path) == {first}


def test_ranks_of_a_node_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several readers takes its part of the processors, never fewer than two threads, and what it was told."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(48)))
    found = {n: LoaderSettings.from_environment({"LOCAL_WORLD_SIZE": str(n)}).threads for n in (1, 4, 8, 64)}
    assert found == {1: 12, 4: 12, 8: 6, 64: 2}
    assert LoaderSettings.from_environment({"LOCAL_WORLD_SIZE": "8", "HOLDFAST_LOADER_THREADS": "9"}).threads == 9
