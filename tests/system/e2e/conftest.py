"""One Holdfast and one S3 server for all of these tests, in the cluster of KUBECONFIG; skipped where there is none.

The images must be on the nodes: those of the laptop overlay, or HOLDFAST_E2E_DAEMON_IMAGE and HOLDFAST_E2E_GATE_IMAGE.
They evict what no pod uses from every node, and so refuse to run where a node holds versions, unless E2E_EVICT=yes.
What was measured on the way is printed at the end, and asserted nowhere.
"""

from __future__ import annotations

import os
import statistics
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import installation
from tests.support.cluster import why_not
from tests.support.installation import Catalog, Holdfast, Origin

_HERE = Path(__file__).parent
_FIGURES = pytest.StashKey[dict[str, list[float]]]()


@dataclass(frozen=True, slots=True)
class Models:
    """The run's own models, so that a node that ran these tests before is cold for them."""

    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def __getitem__(self, name: str) -> str:
        return f"{installation.OWN}{self.run}-{name}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("e2e")
            item.add_marker(pytest.mark.timeout(400))
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash[_FIGURES]
    if figures:
        terminalreporter.section("measured in the cluster")
    for what, values in figures.items():
        ordered = sorted(values)
        middle = statistics.median(ordered)
        spread = (
            f"{middle * 1000:.0f} ms median ({ordered[0] * 1000:.0f}-{ordered[-1] * 1000:.0f}, {len(ordered)} times)"
        )
        terminalreporter.write_line(f"{what}: {spread}")


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, list[float]]:
    """Seconds, by what they measure."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture(scope="session")
def models() -> Models:
    return Models()


@pytest.fixture(scope="session")
def namespace(models: Models) -> Iterator[str]:
    with installation.namespace(f"holdfast-e2e-{models.run}") as name:
        yield name


@pytest.fixture(scope="session")
def origin(namespace: str) -> Iterator[Origin]:
    with installation.origin(namespace) as server:
        yield server


@pytest.fixture(scope="session")
def spared(namespace: str) -> None:
    """Nothing is installed on nodes that hold versions: these tests evict."""
    refusal = installation.refusal(installation.versions_on_nodes(namespace), os.environ.get("E2E_EVICT"))
    if refusal is not None:
        pytest.exit(refusal, returncode=1)


@pytest.fixture(scope="session")
def listed(models: Models, namespace: str) -> Catalog:
    names = ("csi", "first", "helm", "kept", "rolling", "served", "warm")
    return Catalog(tuple(models[name] for name in names), models["wrong"], models["private"], namespace)


@pytest.fixture(scope="session")
def holdfast(
    spared: None, origin: Origin, listed: Catalog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Holdfast]:
    folder = installation.overlay(tmp_path_factory.mktemp("overlay"), origin, listed)
    with installation.installed(folder) as here:
        yield here
