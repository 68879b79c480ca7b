"""What every test shares: one Hypothesis profile, without deadlines (a loaded machine is no failure), one thread of
torch's a process, Ctrl-C, the order of the files, real S3 servers and a real registry."""

import gc
import os
import signal
import threading
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.support.fake_azure import FakeAzure, fake_azure
from tests.support.fake_gcs import FakeGcs, fake_gcs
from tests.support.object_stores import (
    AzuriteStore,
    FakeAzureStore,
    FakeGcsStore,
    GcsEmulatorStore,
    azurite,
    gcs_emulator,
)
from tests.support.registry import RunningRegistry, docker_registry
from tests.support.s3 import S3Server, moto_server, rclone_server

settings.register_profile("holdfast", deadline=None, print_blob=True)
settings.load_profile("holdfast")

# Before torch is imported, here and in what the tests start. Its threads wait for each other by spinning: with several
# test processes on two cores they took four times as long, and most of the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# In the background the tests ignore SIGINT, and so would every program that they start and interrupt.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after the choice by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the files, put long files first and then those of many tests: what is begun last ends last,
    and one worker would end alone."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    long = {item.path for item in items if item.get_closest_marker("long") is not None}
    items.sort(key=lambda item: (item.path not in long, -tests[item.path], str(item.path)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collections of garbage: nothing goes of thousands of tests and their modules, and Python
    would look through all of them again and again, for a third of the time. Later collections leave them out."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def fake_gcs_server() -> Iterator[FakeGcs]:
    with fake_gcs() as server:
        yield server


@pytest.fixture(scope="module")
def fake_azure_server() -> Iterator[FakeAzure]:
    with fake_azure(private=True) as server:
        yield server


@pytest.fixture(scope="module")
def gcs_emulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gcs_emulator(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.fixture(scope="module")
def azurite_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with azurite(tmp_path_factory.mktemp("azurite")) as url:
        yield url


@pytest.fixture
def gcs_store(fake_gcs_server: FakeGcs) -> FakeGcsStore:
    return FakeGcsStore(fake_gcs_server)


@pytest.fixture
def azure_store(fake_azure_server: FakeAzure) -> FakeAzureStore:
    return FakeAzureStore(fake_azure_server)


@pytest.fixture
def gcs_emulator_store(gcs_emulator_url: str) -> GcsEmulatorStore:
    return GcsEmulatorStore(gcs_emulator_url)


@pytest.fixture
def azurite_store(azurite_url: str) -> AzuriteStore:
    return AzuriteStore(azurite_url)
