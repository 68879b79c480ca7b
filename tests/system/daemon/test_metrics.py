"""The metrics: every one of the table, with its labels, and no more of those than there are versions."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cached.contract.digest import Digest
from cached.contract.metrics import daemon as table
from cached.contract.metrics.metric import Metric, MetricKind, Per
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, write_files
from tests.support.promtool import find_differences, list_complaints, needs_promtool

V1 = ModelRef("acme/tiny", "v1")
FILES = {"a.bin": bytes(300_000), "b.json": b"{}"}
# What this daemon has no samples of: no cluster, no volumes, no pool, nothing under way, no pod refused.
SILENT = {
    *(metric.name for metric in (*table.CLUSTER, *table.CSI, *table.POOL)),
    *("holdfast_model_pods_waiting", "holdfast_model_waiting_since_timestamp_seconds", "holdfast_pods_refused"),
    *("holdfast_model_fetched_bytes", "holdfast_model_expected_bytes"),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that holds one version, has failed at another, and was asked for one that is not listed."""
    folder = tmp_path_factory.mktemp("running")
    write_files(folder / "source", FILES)
    with daemon_process(folder / "daemon") as daemon:
        daemon.write_catalog(
            {
                "acme/tiny": prefetched(f"file://{folder}/source"),
                "missing": prefetched(f"file://{folder}/nowhere", digest=Digest.of(b"")),
            }
        )
        daemon.start()
        daemon.wait_ready(V1)
        daemon.wait_state(ModelRef("missing", "v1"), "failed")
        daemon.pull("no-such-model@v1")
        daemon.pull("acme/tiny@no-such-version")
        yield daemon


@pytest.fixture(scope="module")
def page(running: DaemonProcess) -> str:
    return running.get("/metrics")[1]


@pytest.mark.parametrize("metric", table.ALL, ids=lambda metric: metric.name)
def test_a_metric_is_as_the_table_says(page: str, metric: Metric) -> None:
    """The metric is there under its name, with its type, its help, exactly its labels, and no more series than its
    bound."""
    families = {family.name: family for family in text_string_to_metric_families(page)}
    family = families.get(metric.name.removesuffix("_total") if metric.kind is MetricKind.COUNTER else metric.name)
    samples = [] if family is None else [s for s in family.samples if s.name in (metric.name, f"{metric.name}_bucket")]
    assert bool(samples) is (metric.name not in SILENT)
    if family is not None:
        assert family.type == ("gauge" if metric.kind is MetricKind.INFO else metric.kind.value)
        assert family.documentation == metric.help
        labels = {*metric.labels, "le"} if metric.kind is MetricKind.HISTOGRAM else set(metric.labels)
        optional = {"reason"} if metric is table.MODEL_STATE else set()  # of an error that is not there
        assert all(labels - optional <= set(sample.labels) <= labels for sample in samples)
        assert len(family.samples) <= metric.series * (
            1 if metric.per is Per.PROGRAM else 2
        )  # two versions, one source


def test_the_table_has_every_metric(page: str) -> None:
    """The page has no metric that the table does not have, but the standard ones of the process and of Python."""
    assert find_differences(page, table.ALL) == set()
    assert "process_resident_memory_bytes " in page and "process_open_fds " in page


@pytest.mark.parametrize("path", ["/metrics", "/v1/status"])
def test_a_page_is_compressed_for_those_who_take_it(running: DaemonProcess, path: str) -> None:
    """A client that takes gzip, as Prometheus says it does, gets the same page in fewer bytes; any other gets text."""
    with contextlib.closing(http.client.HTTPConnection(*running.address)) as connection:
        found = {}
        for asked in ("gzip", "gzip;q=0", "identity"):
            connection.request("GET", path, headers={"Accept-Encoding": asked})
            answer = connection.getresponse()
            assert answer.getheader("Vary") == "Accept-Encoding"
            found[asked] = answer.getheader("Content-Encoding"), answer.read()
    assert [encoding for encoding, _ in found.values()] == ["gzip", None, None]
    text = gzip.decompress(found["gzip"][1])
    assert len(text.splitlines()) == len(found["identity"][1].splitlines())
    assert len(found["gzip"][1]) < len(text) / 2


@needs_promtool
def test_promtool_has_nothing_to_say(page: str) -> None:
    """`promtool check metrics` accepts the page without a complaint."""
    assert list_complaints(page) == []


def test_figures_are_those_of_the_disk(running: DaemonProcess) -> None:
    """What is held, fetched and built says the number that it is."""
    size = sum(map(len, FILES.values()))
    tiny = {"model": "acme/tiny", "version": "v1"}
    assert running.metric("holdfast_store_bytes", state="committed") == size
    assert running.metric("holdfast_model_bytes", **tiny) == size
    assert running.metric("holdfast_model_ready", **tiny) == 1
    assert running.metric("holdfast_fetch_bytes_total", source="file") == size
    assert running.metric("holdfast_fetch_seconds_count", source="file") == len(FILES)
    assert running.metric("holdfast_fetch_errors_total", source="file", reason="not_found") == 1
    assert running.metric("holdfast_build_info", version=version("holdfast")) == 1
    assert running.metric("holdfast_fetch_in_progress") == 0
    assert running.metric("holdfast_model_exclusive_bytes", **tiny) == size
    assert running.metric("holdfast_model_shared_bytes", **tiny) == 0
    assert running.metric("holdfast_model_info", **tiny, digest=running.digest(V1).hex[:12]) == 1
    assert running.metric("holdfast_model_state", **tiny, state="ready") == 1
    assert running.metric("holdfast_model_state", model="missing", state="failed", reason="not_found") == 1
    assert running.metric("holdfast_catalog_models") == 2
    assert running.metric("holdfast_source_resolved_timestamp_seconds", source="file") > time.time() - 600
    assert running.metric("holdfast_fetches") == 0


def test_labels_are_bounded(running: DaemonProcess) -> None:
    """A name that only a pull made up appears in no metric, however it is asked for."""
    assert running.metric("holdfast_model_ready", model="missing", version="v1") == 0
    assert "no-such" not in running.get("/metrics")[1]


def test_the_status_document_is_as_the_design_says(running: DaemonProcess) -> None:
    """GET /v1/status has daemon, disk and models with their keys, on both listeners alike."""
    document = running.document()
    assert document.keys() == {"daemon", "disk", "models"}
    assert document["disk"].keys() == {"capacity", "used", "reserved", "free", "error"}
    by_name = {(item["model"], item["version"]): item for item in document["models"]}
    assert by_name["acme/tiny", "v1"]["leased"] is False
    assert by_name["acme/tiny", "v1"]["last_used"].endswith("Z")
    assert by_name["missing", "v1"]["last_used"] is None
    assert by_name["missing", "v1"]["error"]["code"] == "not_found"
    assert {item["model"] for item in running.control.status()["models"]} == {item[0] for item in by_name}


def test_nothing_is_written_where_nothing_changes(running: DaemonProcess, tmp_path: Path) -> None:
    """A daemon with nothing to do rewrites no status file."""
    path = running.layout.public.model_status(V1)
    before, beat = path.stat().st_ino, running.document()["daemon"]["updated"]
    running.wait(lambda: running.document()["daemon"]["updated"] > beat, "a heartbeat")
    assert path.stat().st_ino == before
