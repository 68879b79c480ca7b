"""The metrics: every name of the design, with its labels, and no more of those than there are versions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, write_files

V1 = ModelRef("acme/tiny", "v1")
FILES = {"a.bin": bytes(300_000), "b.json": b"{}"}
# Name, kind, and the labels of its samples, from section 7 of the design.
DESIGN = {
    "holdfast_store_bytes": ("gauge", {"state"}),
    "holdfast_store_capacity_bytes": ("gauge", set()),
    "holdfast_model_ready": ("gauge", {"model", "version"}),
    "holdfast_model_bytes": ("gauge", {"model", "version"}),
    "holdfast_model_pinned": ("gauge", {"model", "version"}),
    "holdfast_model_trust": ("gauge", {"model", "version", "trust"}),
    "holdfast_model_last_used_timestamp_seconds": ("gauge", {"model", "version"}),
    "holdfast_fetch_bytes_total": ("counter", {"source"}),
    "holdfast_fetch_seconds": ("histogram", {"source", "le"}),
    "holdfast_fetch_errors_total": ("counter", {"source", "reason"}),
    "holdfast_fetch_in_progress": ("gauge", set()),
    "holdfast_requests_total": ("counter", {"result"}),
    "holdfast_verify_failures_total": ("counter", {"where"}),
    "holdfast_evictions_total": ("counter", {"reason"}),
    "holdfast_scrub_bytes_total": ("counter", set()),
    "holdfast_scrub_oldest_age_seconds": ("gauge", set()),
    "holdfast_gate_wait_seconds": ("histogram", {"le"}),
    "holdfast_pods_waiting": ("gauge", set()),
    "holdfast_build_info": ("gauge", {"version"}),
    "process_resident_memory_bytes": ("gauge", set()),
    "process_open_fds": ("gauge", set()),
}
SILENT = {"holdfast_verify_failures_total", "holdfast_evictions_total"}  # nothing of the kind has happened


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


@pytest.mark.parametrize("name", DESIGN)
def test_a_metric_is_as_the_design_says(running: DaemonProcess, name: str) -> None:
    """The metric is there under its name, with its type and exactly its labels."""
    kind, labels = DESIGN[name]
    families = {family.name: family for family in text_string_to_metric_families(running.get("/metrics")[1])}
    family = families[name.removesuffix("_total") if kind == "counter" else name]
    assert family.type == kind
    assert family.documentation
    samples = [sample for sample in family.samples if sample.name in (name, f"{name}_bucket")]
    assert samples or name in SILENT
    assert all(set(sample.labels) == labels for sample in samples)


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


def test_labels_are_bounded(running: DaemonProcess) -> None:
    """A name that only a pull made up appears in no metric, however it is asked for."""
    assert running.metric("holdfast_model_ready", model="missing", version="v1") == 0
    assert "no-such" not in running.get("/metrics")[1]


def test_the_status_document_is_as_the_design_says(running: DaemonProcess) -> None:
    """GET /v1/status has daemon, disk and models with their keys, on both doors alike."""
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
