"""The demo's small parts: its folder, its keys, its addresses, its figures."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, parse_catalog
from cached.demo import processes
from cached.demo.app import CATALOG, Demo, cosine, main
from cached.demo.processes import Processes

EXPOSITION = """\
# HELP holdfast_fetch_bytes_total Bytes received from sources.
# TYPE holdfast_fetch_bytes_total counter
holdfast_fetch_bytes_total{source="s3"} 9.1e+07
holdfast_fetch_bytes_total{source="http"} 5.0
holdfast_fetch_bytes_created{source="s3"} 1.7e+09
"""


def test_a_metric_is_summed_over_its_labels() -> None:
    """Samples of one name add up; other names and comments do not count."""
    assert processes.metric(EXPOSITION, "holdfast_fetch_bytes_total") == 91_000_005


def test_a_metric_can_be_picked_by_label() -> None:
    """Only the samples with the label count."""
    assert processes.metric(EXPOSITION, "holdfast_fetch_bytes_total", 'source="http"') == 5


def test_a_metric_that_is_not_there_is_zero() -> None:
    """A counter without increments has no sample: that is zero."""
    assert processes.metric(EXPOSITION, "holdfast_evictions_total") == 0


def test_a_taken_port_is_not_handed_out() -> None:
    """Where the preferred port is taken, another one is found."""
    with socket.socket() as taken:
        taken.bind((processes.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert processes.free_address(port) != f"{processes.HOST}:{port}"


def test_a_closed_port_does_not_answer() -> None:
    """A request to a port without a listener raises `Permanent`, which a wait takes as not ready yet."""
    with pytest.raises(Permanent):
        processes.ask(processes.free_address(0), "/readyz")


def test_cosine_of_equal_and_of_orthogonal_vectors() -> None:
    """Equal vectors give 1, orthogonal ones 0, whatever their length."""
    assert cosine([3.0, 4.0], [6.0, 8.0]) == pytest.approx(1)
    assert cosine([1.0, 0.0], [0.0, 2.0]) == pytest.approx(0)


def test_the_model_is_there_without_importing_it() -> None:
    """The model package's folder has weights, tokenizer and configuration."""
    names = {path.name for path in Path(processes.model_folder()).iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= names


def test_keys_differ_from_run_to_run_and_do_not_show(tmp_path: Path) -> None:
    """Each run makes keys of its own, which never appear in a repr."""
    one, other = (Demo(tmp_path / name, Processes(tmp_path, 1.0), port=0, rate="1MiB/s") for name in ("a", "b"))
    secret = one._s3_environment["AWS_SECRET_ACCESS_KEY"]
    assert secret != other._s3_environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in repr(one)


def test_only_the_s3_processes_get_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and server get neither keys nor anything that would steer them elsewhere."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a person's own")
    monkeypatch.setenv("HOLDFAST_ROOT", "/elsewhere")
    environment = processes.plain_environment()
    assert not [name for name in environment if name.startswith(("AWS_", "HOLDFAST_", "RCLONE_"))]


def test_the_catalog_is_pinned() -> None:
    """The demo's catalog names the digest that was published."""
    digest = "sha256:" + "0" * 64
    entry = parse_catalog(CATALOG % digest, EMPTY_CATALOG).catalog.find(ModelRef("minilm", "1"))
    assert entry is not None
    assert str(entry.digest) == digest


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds something is neither used nor touched."""
    (tmp_path / "precious").write_text("mine")
    assert main(["--exit", "--root", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_missing_model_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the demo's extra, the error names it."""
    monkeypatch.setattr("cached.demo.processes.MODEL_PACKAGE", "no_such_package_at_all")
    with pytest.raises(Permanent) as raised:
        processes.model_folder()
    assert "holdfast[demo]" in raised.value.remedy
