"""The demo's small parts: its folder, its keys, its doors, its numbers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.demo import daemon_client
from cached.demo.app import main
from cached.demo.report import cosine
from cached.demo.workspace import Keys, Stage, model_folder, plain_environment

EXPOSITION = """\
# HELP holdfast_fetch_bytes_total Bytes received from sources.
# TYPE holdfast_fetch_bytes_total counter
holdfast_fetch_bytes_total{source="s3"} 9.1e+07
holdfast_fetch_bytes_total{source="http"} 5.0
holdfast_fetch_bytes_created{source="s3"} 1.7e+09
"""


def test_a_metric_is_summed_over_its_labels() -> None:
    """Samples of one name add up; other names and comments do not count."""
    assert daemon_client.metric(EXPOSITION, "holdfast_fetch_bytes_total") == 91_000_005


def test_a_metric_can_be_picked_by_label() -> None:
    """Only the samples with the label count."""
    assert daemon_client.metric(EXPOSITION, "holdfast_fetch_bytes_total", 'source="http"') == 5


def test_a_metric_that_is_not_there_is_zero() -> None:
    """A counter nobody touched has no sample: that is zero."""
    assert daemon_client.metric(EXPOSITION, "holdfast_evictions_total") == 0


def test_a_taken_port_is_not_handed_out() -> None:
    """Where the preferred port is taken, another one is found."""
    with socket.socket() as taken:
        taken.bind((daemon_client.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert daemon_client.free_address(port)[1] != port


def test_a_closed_door_does_not_answer() -> None:
    """A port nobody listens on is a plain False."""
    assert not daemon_client.answers(daemon_client.free_address(0), "/readyz")


def test_cosine_of_equal_and_of_orthogonal_vectors() -> None:
    """Equal vectors give 1, orthogonal ones 0, whatever their length."""
    assert cosine([3.0, 4.0], [6.0, 8.0]) == pytest.approx(1)
    assert cosine([1.0, 0.0], [0.0, 2.0]) == pytest.approx(0)


def test_the_model_is_there_without_importing_it() -> None:
    """The model package's folder has weights, tokenizer and configuration."""
    names = {path.name for path in model_folder().iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= names


def test_keys_differ_from_run_to_run_and_do_not_show() -> None:
    """Each run makes keys of its own, which never appear in a repr."""
    one, other = Keys(), Keys()
    assert one.secret != other.secret
    assert one.secret not in repr(one)


def test_only_the_s3_processes_get_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and server get neither keys nor anything that would steer them elsewhere."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody's own")
    monkeypatch.setenv("HOLDFAST_ROOT", "/elsewhere")
    environment = plain_environment()
    assert not [name for name in environment if name.startswith(("AWS_", "HOLDFAST_", "RCLONE_"))]


def test_the_catalog_is_pinned(tmp_path: Path) -> None:
    """The demo's catalog names the digest that was published."""
    Stage(tmp_path).write_catalog("sha256:" + "0" * 64)
    assert "sha256:" + "0" * 64 in (tmp_path / "catalog.yaml").read_text()


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds something is neither used nor touched."""
    (tmp_path / "precious").write_text("mine")
    assert main(["--exit", "--root", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_missing_model_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the demo's extra, the error names it."""
    monkeypatch.setattr("cached.demo.workspace.MODEL_PACKAGE", "no_such_package_at_all")
    with pytest.raises(Permanent) as raised:
        model_folder()
    assert "holdfast[demo]" in raised.value.remedy
