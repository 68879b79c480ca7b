"""One daemon, one catalog with a version for each fault, all at once; each fault is then looked at by its own test."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cached.contract.reference import ModelRef
from tests.support.certificates import Certificates, make_certificates
from tests.support.daemon import DaemonProcess, daemon_process, model
from tests.support.stages import Staged, Stages, open_stages
from tests.system.faults.cases import Case, Tried, bytes_cases, listing_cases
from tests.system.faults.lies import lying_listings

STALL_S = "1.5"
CASES = [(case, source) for case in (*bytes_cases(), *listing_cases(), *lying_listings()) for source in case.sources]

WITHIN_S = 600.0  # a busy machine takes several times as long as a quiet one


@dataclass(frozen=True)
class Weather:
    """The daemon in the middle of it, and what was put up for it."""

    daemon: DaemonProcess
    stages: Stages
    staged: dict[str, Staged]
    expected: Counter[tuple[str, str]]


def _let_blow(daemon: DaemonProcess) -> None:
    """Wait until every case has come to its end, or long enough: each test then says what is wrong with its own."""
    waiting = set(CASES_BY_REF)
    deadline = time.monotonic() + WITHIN_S
    while waiting and time.monotonic() < deadline and daemon.code() is None:
        waiting = {ref for ref in waiting if not _is_over(daemon, ref)}
        time.sleep(0.1)


def _is_over(daemon: DaemonProcess, ref: ModelRef) -> bool:
    if isinstance(CASES_BY_REF[ref], Tried):
        return bool(daemon.error(ref))
    return daemon.state(ref) in ("ready", "failed")


def name_of(case: Case, source: str) -> str:
    return f"{source}-{case.name}"


CASES_BY_REF = {ModelRef(name_of(case, source), "v1"): case.of(source) for case, source in CASES}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Weather]:
    """Every case under way in one daemon, until each has come to its end."""
    folder = tmp_path_factory.mktemp("weather")
    options = ("--scrub-rate", "0", "--stall-timeout", STALL_S, "--connections", "64", "--quota", "4GiB")
    with open_stages(folder, certificates) as stages:
        staged, expected = {}, Counter[tuple[str, str]]()
        for case, source in CASES:
            name = name_of(case, source)
            staged[name] = each = stages.stage(source, name, sealed=case.sealed)
            each.places[case.place].script(*case.faults)
            if case.forever is not None:
                each.places[case.place].always(case.forever)
            outcome = case.of(source)
            if outcome.reason is not None and getattr(outcome, "counted", True):
                expected[source, outcome.reason] += 1
        with daemon_process(folder / "node", *options, environment=stages.environment) as daemon:
            daemon.write_catalog({name: model(each.uri) for name, each in staged.items()})
            daemon.start()
            for name in staged:
                daemon.pull(f"{name}@v1")
            _let_blow(daemon)
            yield Weather(daemon, stages, staged, expected)
