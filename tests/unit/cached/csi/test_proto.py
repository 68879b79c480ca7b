"""The generated modules of CSI's messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]
PROTO = Path("cached/csi/proto")


@pytest.mark.parametrize("name", ["csi", "registration"])
def test_a_generated_module_is_made_of_its_proto_file(tmp_path: Path, name: str) -> None:
    """What is committed is what protoc makes of the `.proto` file today, to the byte."""
    made = ("--python_out", str(tmp_path), "--pyi_out", str(tmp_path))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *made, str(PROTO / f"{name}.proto")]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    for module in (f"{name}_pb2.py", f"{name}_pb2.pyi"):
        fresh, committed = tmp_path / PROTO / module, REPOSITORY / PROTO / module
        assert fresh.read_bytes() == committed.read_bytes(), f"{committed}: make it anew with `make proto`"


def test_grpc_is_loaded_with_csi_only() -> None:
    """A daemon without `--csi` imports neither gRPC nor protobuf, and not this package."""
    names = "[n for n in sys.modules if n.startswith(('grpc', 'google.protobuf', 'cached.csi'))]"
    code = f"import sys, cached.daemon.main; print({names})"
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"
