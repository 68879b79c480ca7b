from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.serving import REPOSITORY

TEST = """
import os, unittest
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, load_model, save_file

class NamesTestCase(unittest.TestCase):
    def test_names(self):
        import safetensors.numpy, server
        assert safe_open is server.safe_open is safetensors.numpy.safe_open
        assert (load_file, load_model) == (server.load_file, server.load_model)

    def test_it_writes(self):
        with open("./tests/data/out", "w") as file:
            file.write(os.getcwd())
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.safetensors_suite", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_the_suite_of_a_checkout_sees_this_loader(tmp_path: Path) -> None:
    """The package's tests find this loader under the package's names, run in a copy, and decide the exit status."""
    tests = tmp_path / "bindings/python/tests"
    tests.mkdir(parents=True)
    (tests / "test_names.py").write_text(TEST)
    (tests / "test_flax_comparison.py").write_text("import a_package_that_is_nowhere")
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_path_without_the_suite_is_told(tmp_path: Path) -> None:
    """A folder that is no checkout is a wrong use, told with what was expected there."""
    done = run(tmp_path)
    assert done.returncode == 2
    assert "bindings/python/tests" in done.stderr
