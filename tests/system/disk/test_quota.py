"""A quota that many fetches reach at once."""

from __future__ import annotations

import contextlib

from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from tests.support.daemon import DaemonProcess
from tests.system.disk.conftest import MIB, Place, Start, check_public, error_of, told, wait_error_told

REFS = [ModelRef("m", f"v{number}") for number in range(8)]


def held_bytes(daemon: DaemonProcess) -> int:
    """What committed blobs take on the disk; one that is evicted since takes nothing."""
    held = 0
    for path in daemon.layout.blobs.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            held += path.stat().st_blocks * 512
    return held


def test_fetches_at_once_stay_within_the_quota(on_ext4: Start, place: Place) -> None:
    """Eight versions where three fit: at no moment is more held, reserved and dying than the quota, on the disk either;
    three arrive, the others say why not, and go on as soon as those are wanted no more."""
    quota = 7 * MIB
    versions = {ref.version: place(ref.version, 2 * MIB) for ref in REFS}
    with on_ext4(64 * MIB, "--quota", "7MiB", "--max-bandwidth", "24MiB/s") as daemon:
        daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": list(versions)}}})
        daemon.start()

        def ready() -> list[ModelRef]:
            disk = daemon.document()["disk"]
            assert disk["used"] + disk["reserved"] <= quota, disk
            assert held_bytes(daemon) <= quota + 64 * 1024
            return [ref for ref in REFS if told(daemon, ref).get("state") == "ready"]

        daemon.wait(lambda: len(ready()) == 3, "three of them")
        first = ready()
        for ref in REFS:
            if ref not in first:
                error = wait_error_told(daemon, ref, "no_space")
                assert error["permanent"] is False
                assert "7.0 MiB" in error["message"]
        left = [ref.version for ref in REFS if ref not in first][:3]
        daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": left}}})
        daemon.wait(lambda: [ref.version for ref in ready()] == left, "those that are wanted now")
        check_public(daemon)


def test_who_cannot_fit_goes_on_when_a_lease_ends(on_ext4: Start, place: Place) -> None:
    """What does not fit beside versions in use says so, and arrives when one of them is given back."""
    with on_ext4(64 * MIB, "--quota", "5MiB") as daemon:
        daemon.write_catalog({"m": {"versions": {ref.version: place(ref.version, 2 * MIB) for ref in REFS[:3]}}})
        daemon.start()
        held = []
        for ref in REFS[:2]:
            daemon.pull(str(ref))
            daemon.wait_ready(ref)
            one = lease.take_shared(daemon.path(ref) / ".holdfast" / "lease")
            assert one is not None
            held.append(one)
        daemon.pull(str(REFS[2]))
        daemon.wait(lambda: error_of(daemon, REFS[2]).get("code") == "no_space", "no_space")
        held[0].close()
        daemon.wait_ready(REFS[2])
        assert not daemon.path(REFS[0]).exists()
        assert daemon.path(REFS[1]).exists()
        held[1].close()
