"""The gate's options: command line, environment, and mistakes."""

from __future__ import annotations

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout
from tests.support.gates import FILES, REF, Gates
from tests.support.snapshots import link_model, make_snapshot

PIN = str(Digest.of(b""))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--model", "acme/tiny"),
        ("--version", "v1"),
        ("--model", "../etc", "--version", "v1"),
        ("--model", "acme/tiny", "--version", "v1", "--models", "a@b"),
        ("--models", "a@b,a@b"),
        ("--models", "x=a@b,x=c@d"),
        ("--models", "a"),
        ("--models", "a@b,c@d", "--digest", PIN),
        ("--model", "acme/tiny", "--version", "v1", "--digest", "sha256:aa"),
        ("--model", "acme/tiny", "--version", "v1", "--verify", "some"),
        ("--model", "acme/tiny", "--version", "v1", "--timeout", "-1"),
        ("--model", "acme/tiny", "--version", "v1", "--timeout", "soon"),
        ("--model", "acme/tiny", "--version", "v1", "--threads", "0"),
        ("--model", "acme/tiny", "--version", "v1", "--listen", "nowhere"),
    ],
)
def test_a_mistake_is_a_usage_error(gates: Gates, options: tuple[str, ...]) -> None:
    """A wrong or missing option ends the gate with 2 and a message, before it waits for anything."""
    gate = gates.start_bare(*options, "--once")
    assert gate.wait() == 2
    assert "holdfast gate: " in gate.said()


def test_every_option_reads_the_environment(public: PublicLayout, gates: Gates) -> None:
    """`HOLDFAST_…` stands for an option that the command line does not give."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    environment = {
        "HOLDFAST_MODEL": REF.name,
        "HOLDFAST_VERSION": REF.version,
        "HOLDFAST_DIGEST": str(digest),
        "HOLDFAST_VERIFY": "full",
        "HOLDFAST_THREADS": "1",
        "HOLDFAST_TIMEOUT": "20",
        "HOLDFAST_ONCE": "1",
    }
    gate = gates.start_bare(environment=environment)
    assert gate.wait() == 0
    assert "hashed in" in gate.said()


def test_the_command_line_wins(public: PublicLayout, gates: Gates) -> None:
    """What the command line gives outweighs the environment."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start("--once", "--digest", str(digest), environment={"HOLDFAST_DIGEST": PIN})
    assert gate.wait() == 0


def test_a_mistake_in_the_environment_names_the_variable(gates: Gates) -> None:
    """A wrong value in the environment is a usage error that names the variable."""
    gate = gates.start("--once", environment={"HOLDFAST_TIMEOUT": "soon"})
    assert gate.wait() == 2
    assert "HOLDFAST_TIMEOUT" in gate.said()


def test_models_of_the_environment_are_read(public: PublicLayout, gates: Gates) -> None:
    """`HOLDFAST_MODELS` holds what the annotation `holdfast.dev/models` does."""
    link_model(public, REF, make_snapshot(public, FILES))
    gate = gates.start_bare("--once", environment={"HOLDFAST_MODELS": f"base={REF}"})
    assert gate.wait() == 0
