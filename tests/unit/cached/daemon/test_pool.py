"""The options `--peers…`, and what a daemon does with them."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.daemon.config import parse_config
from cached.daemon.metrics import DaemonMetrics
from cached.daemon.pool import PoolOptions, open_pool
from cached.fetch.pool.membership import Place


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def options_of(*more: str) -> PoolOptions:
    return parse_config(["--catalog", "/c.yaml", *more]).pool


def test_peers_are_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option there is no pool; a variable of the environment is the option too."""
    assert options_of().peers is None
    assert options_of("--peers", "off").peers is None
    monkeypatch.setenv("HOLDFAST_PEERS", "dns:peers:9402")
    monkeypatch.setenv("HOLDFAST_PEER_UPLOAD", "1MiB/s")
    assert options_of().peers == (Place("peers", 9402),)
    assert options_of().upload == 1 << 20


@pytest.mark.parametrize(
    "wrong",
    [
        ("--peers", "on"),
        ("--peers", "dns:peers"),
        ("--peer-listen", "127.0.0.1:0"),
        ("--peer-upload", "0"),
        ("--peer-zone", "a b"),
        ("--peer-zone", "a" * 64),
    ],
)
def test_a_wrong_option_is_a_usage_error(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A bad value ends with 2 before anything starts, and says what is expected."""
    with pytest.raises(SystemExit, match="2"):
        options_of(*wrong)
    assert "expected" in capsys.readouterr().err


def test_without_a_key_there_are_no_peers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon without a key file opens no port, and its log says once why."""
    port = free_port()
    options = options_of("--peers", "127.0.0.1:1", "--peer-listen", f"127.0.0.1:{port}")
    with caplog.at_level(logging.WARNING), open_pool(options, Layout(tmp_path), DaemonMetrics().add_peers) as pool:
        assert pool is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert len([record for record in caplog.records if "--peer-key-file" in record.getMessage()]) == 1


def test_a_bad_key_ends_the_start(tmp_path: Path) -> None:
    """A key file that is missing is an error, not a daemon without peers: its neighbours would not know."""
    options = options_of("--peers", "127.0.0.1:1", "--peer-key-file", str(tmp_path / "none"))
    with (
        pytest.raises(Permanent, match="none") as caught,
        open_pool(options, Layout(tmp_path), DaemonMetrics().add_peers),
    ):
        pass
    assert caught.value.code == "no_pool_key"


def test_a_lone_node_fetches_as_without_peers(tmp_path: Path) -> None:
    """A node that knows no other member joins no swarm; the metrics say how many others it knows."""
    (tmp_path / "key").write_text("k" * 40)
    port = free_port()
    options = options_of(
        *("--peers", f"127.0.0.1:{port}", "--peer-listen", f"127.0.0.1:{port}", "--peer-key-file", f"{tmp_path}/key")
    )
    metrics = DaemonMetrics()
    with open_pool(options, Layout(tmp_path), metrics.add_peers) as pool:
        assert pool is not None
        assert pool.join({"a" * 64: 5}, ()) is None
        assert b'holdfast_peers{state="known"} 0.0' in metrics.render()
    assert b"holdfast_peers" not in DaemonMetrics().render()
