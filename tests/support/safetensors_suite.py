"""Run the safetensors package's own tests against this repository's readers: `make test-safetensors`.

Law: takes the tests from a checkout, or an unpacked source distribution, whose path is given; changes nothing there and
downloads nothing. Tests of frameworks that are not installed, or that this loader does not serve, are left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_TESTS = Path("bindings/python/tests")
# jax, MLX, Paddle and TensorFlow: `docs/models.md` says why.
_OTHERS = ("test_flax_comparison.py", "test_mlx_comparison.py", "test_paddle_comparison.py", "test_tf_comparison.py")


def main() -> int:
    """Run the tests; return pytest's exit status."""
    parser = argparse.ArgumentParser(prog="make test-safetensors", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of safetensors, or its unpacked source distribution")
    parser.add_argument("--own", action="store_true", help="run them against the package's own readers, to compare")
    options, arguments = parser.parse_known_args()
    tests = options.checkout / _TESTS
    if not tests.is_dir():
        parser.error(f"expected a checkout of safetensors with {_TESTS}, found none at {options.checkout}")
    with tempfile.TemporaryDirectory(prefix="safetensors-tests-") as folder:
        shutil.copytree(tests, Path(folder) / "tests")
        (Path(folder) / "tests/data").mkdir(exist_ok=True)  # they write there
        (Path(folder) / "pytest.ini").write_text("[pytest]\n")
        plugin = [] if options.own else ["-p", "tests.support.safetensors_names"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-ra", *plugin, *arguments]
            + [f"--ignore=tests/{name}" for name in _OTHERS]
            + ["tests"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
