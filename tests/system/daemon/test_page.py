"""The page of a daemon: what it tells of a real node, to whom, and what it costs a node without readers."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import (
    PATIENCE_S,
    REPOSITORY,
    DaemonProcess,
    bare_environment,
    daemon_command,
    daemon_process,
    model,
    publish_files,
)

ONE, SLOW, GONE = ModelRef("acme/one", "v1"), ModelRef("slow", "v1"), ModelRef("gone", "v1")
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that holds one version, fetches another at a low rate, and cannot fetch a third."""
    tmp_path = tmp_path_factory.mktemp("page")
    publish_files(tmp_path / "one", {"a.bin": b"1" * 3_000_000})
    publish_files(tmp_path / "slow", {"a.bin": bytes(60_000_000)})
    with daemon_process(tmp_path, "--max-bandwidth", "1MB/s") as made:
        made.write_catalog(
            {
                "acme/one": model(f"file://{tmp_path}/one"),
                "slow": model(f"file://{tmp_path}/slow"),
                "gone": model(f"http://user:hunter2@127.0.0.1:9/{EVIL}/?token=hunter2"),
                EVIL: model("file:///nowhere"),
            }
        )
        made.start()
        made.pull(str(ONE))
        made.wait_ready(ONE)
        made.pull(str(GONE))
        made.pull(str(SLOW))
        made.wait(lambda: (made.status(SLOW) or {}).get("rate_bytes_per_s") is not None, "a rate")
        made.wait(lambda: bool(made.error(GONE)), "an error")
        yield made


@contextlib.contextmanager
def _followed(daemon: DaemonProcess, position: str = "") -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the changes that the page's stream tells."""
    connection = http.client.HTTPConnection(*daemon.address, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/page/events", headers={"Last-Event-ID": position})
        answer = connection.getresponse()
        assert answer.status == 200
        yield ({**json.loads(line[6:]), "id": id_} for id_, line in _events(answer))


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, bytes]]:
    id_ = ""
    while line := answer.readline():
        if line.startswith(b"id: "):
            id_ = line[4:].strip().decode()
        elif line.startswith(b"data: {"):
            yield id_, line


def test_the_page_of_a_node_that_works(daemon: DaemonProcess) -> None:
    """The page has each version with its state, the progress of a fetch moves in its events and nothing else is told
    with it, an error has its remedy, and names and URIs of others are text without credentials."""
    status, page = daemon.get("/")
    assert status == 200
    for words in ("acme/one@<b>v1</b>", "2.9 MiB", ">fetching<", "<progress", "/s", "http://127.0.0.1:9/"):
        assert words in page, words
    assert "The catalog, line" in page  # the entry whose name is no name
    assert EVIL not in page
    assert "&lt;img src=x" in page
    assert "hunter2" not in page
    assert daemon.wait_error(GONE)["remedy"]
    with _followed(daemon) as changes:
        first = next(changes)
        assert len(first["order"]) == 3
        one = next(key for key, row in first["rows"].items() if "acme/one@" in row)
        rows: dict[str, str] = {}
        while not any("<progress" in row for row in rows.values()):
            rows = next(changes)["rows"]
            assert one not in rows
    assert "hunter2" not in json.dumps(first)


def test_a_page_that_stays_open_over_a_restart(daemon: DaemonProcess) -> None:
    """A stop does not wait for an open page; the page's next connection gets all that the new daemon has to tell."""
    with _followed(daemon) as changes:
        position = next(changes)["id"]
        assert daemon.stop() == 0
        list(changes)
    daemon.start()
    with _followed(daemon, position) as changes:
        change = next(changes)
    assert "head" in change["sections"]
    assert any("acme/one@" in row for row in change["rows"].values())


@pytest.mark.parametrize(("options", "variables"), [(("--page", "off"), {}), ((), {"HOLDFAST_PAGE": "off"})])
def test_the_page_can_be_switched_off(tmp_path: Path, options: tuple[str, ...], variables: dict[str, str]) -> None:
    """With `--page off` there is no page and no stream; what programs read stays."""
    with daemon_process(tmp_path, *options, environment=variables) as daemon:
        daemon.write_catalog({})
        daemon.start()
        for path in ("/", "/page/events"):
            for method in ("GET", "HEAD", "POST"):
                assert daemon.request(method, path)[0] == 404
        assert daemon.get("/v1/status")[0] == daemon.get("/metrics")[0] == 200


def test_another_value_of_the_option_is_a_usage_error(tmp_path: Path) -> None:
    """`--page` is on or off."""
    command = [*daemon_command(tmp_path, tmp_path / "catalog.yaml"), "--page", "maybe"]
    result = subprocess.run(command, env=bare_environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 2
    assert "--page" in result.stderr


def test_a_daemon_without_visitors_loads_no_page() -> None:
    """All that a daemon imports at its start is without the page's modules."""
    code = "import sys, cached.daemon.main; print([name for name in sys.modules if 'daemon.page' in name])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
