"""The completion of a shell, as that shell uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cached.cli import COMMANDS


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion for bash, made where our variables have values that no command takes."""
    path = tmp_path_factory.mktemp("completion") / "holdfast.bash"
    environment = {**os.environ, "HOLDFAST_TIMEOUT": "soon", "HOLDFAST_JSON": "perhaps"}
    command = [sys.executable, "-m", "cached", "completion", "bash"]
    path.write_bytes(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120).stdout)
    return path


def complete(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`."""
    listed = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}\n"
        "function=$(complete -p holdfast | sed 's/.*-F //; s/ .*//'); $function\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_bash_completes_commands_and_their_options(script: Path) -> None:
    """Every command is offered, and after one its own options, and the values of an option that has choices."""
    assert complete(script, "holdfast", "") >= set(COMMANDS)
    assert complete(script, "holdfast", "pu") == {"pull", "publish"}
    assert complete(script, "holdfast", "pull", "--re") == {"--refresh"}
    assert complete(script, "holdfast", "status", "--") >= {"--watch", "--json", "--root"}
    assert complete(script, "holdfast", "daemon", "--kube", "") == {"auto", "off"}
    assert complete(script, "holdfast", "completion", "") >= {"bash", "zsh"}


def test_zsh_has_one_too() -> None:
    """The script for zsh names itself as a completion of `holdfast`."""
    command = [sys.executable, "-m", "cached", "completion", "zsh"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("#compdef holdfast\n")
    assert "--refresh" in done.stdout
