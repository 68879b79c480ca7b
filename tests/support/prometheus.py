"""A real Prometheus, which scrapes each second what it is given.

Law: Debian's package; its data lie in the folder of the test. Windows of queries are those of a dashboard's panels.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus here (its package)")
_PATIENCE_S = 100.0


@dataclass(frozen=True, slots=True)
class Target:
    """One process to scrape: its job, its `HOST:PORT`, and more labels."""

    job: str
    address: str
    labels: Mapping[str, str]


class Prometheus:
    """A running Prometheus at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series of an instant query; fails where Prometheus refuses it."""
        try:
            with urllib.request.urlopen(
                f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
            ) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                pytest.fail(f"{expr}: {error.read().decode()}")
        return found

    def has_numbers(self, expr: str) -> bool:
        """Return whether a query has a series whose value is a number."""
        return any(not math.isnan(float(series["value"][1])) for series in self.query(expr))

    def wait(self, expr: str) -> None:
        """Wait until a query has a series."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.query(expr):
            assert time.monotonic() < deadline, f"never: {expr}"
            time.sleep(0.2)


@contextlib.contextmanager
def prometheus(folder: Path, targets: Sequence[Target], groups: Sequence[Mapping[str, Any]]) -> Iterator[Prometheus]:
    """A Prometheus with these groups of rules that scrapes these targets each second."""
    folder.mkdir()
    (folder / "rules.yaml").write_text(json.dumps({"groups": list(groups)}))
    jobs = [
        {"job_name": each.job, "static_configs": [{"targets": [each.address], "labels": dict(each.labels)}]}
        for each in targets
    ]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        _wait_ready(process, f"http://{address}", folder / "log")
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready"):
            return
        time.sleep(0.1)
