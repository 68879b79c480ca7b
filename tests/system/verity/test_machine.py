"""The tests of fs-verity in a kernel that has it, whatever this machine's own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.system.verity import machine

_TIMEOUT_S = 1500.0


@pytest.mark.slow
def test_the_tests_of_sealing_pass_in_a_kernel_that_seals(tmp_path: Path) -> None:
    """Every test of `test_sealed.py` runs, none is skipped, and all pass on a real ext4 with fs-verity."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64 here (Debian: apt-get install qemu-system-x86)")
    kernel = machine.find_kernel(Path(os.environ.get("VERITY_KERNEL", "/")))
    if kernel is None:
        pytest.skip(
            "no kernel with fs-verity below VERITY_KERNEL or / (Debian: apt-get download linux-image-cloud-amd64's "
            "package, dpkg -x it into a folder, and name that in VERITY_KERNEL)"
        )
    code, said = machine.run(kernel, tmp_path, ["-v", "tests/system/verity/test_sealed.py"], _TIMEOUT_S)
    sys.stdout.write(said)
    assert code == 0, said[-6000:]
    assert " passed" in said
    assert "skipped" not in said, said[-6000:]
