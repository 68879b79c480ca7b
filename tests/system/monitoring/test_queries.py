"""Monitoring that shows nothing: each query of each panel and of the runbook over a real Prometheus, daemon, injector
and server."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from cached.contract.metrics import daemon, injector
from tests.support.dashboards import list_queries
from tests.support.http_server import serve_http
from tests.support.injectors import Injectors, make_review
from tests.support.joined import Joined, joined, ref
from tests.support.manifests import objects, one
from tests.support.pods import make_pod
from tests.support.pooling import free_ports
from tests.support.prometheus import Prometheus, Target, needs_prometheus, prometheus
from tests.support.runbook import QUESTIONS, list_expressions, list_names
from tests.support.serving import ServerProcess, running

MIB = 1024 * 1024
APP = """
from aiohttp import web

def factory(model_path, device):
    application = web.Application()

    async def answer(request):
        return web.Response(text="ok")

    application.router.add_get("/work", answer)
    return application
"""
KUBE_STATE = {"kube_pod_status_scheduled_time": 1_796_036_400, "kube_pod_status_initialized_time": 1_796_036_460}
_MISSING = "raise ModuleNotFoundError('No module named {name}', name='{name}')"
pytestmark = [pytest.mark.slow, needs_prometheus]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen a node at work: versions that came, one that is coming, one that cannot come, pods
    that have theirs, one that waits and one that is refused; reviews; a server with requests."""
    folder = tmp_path_factory.mktemp("scraped")
    with contextlib.ExitStack() as stack:
        (folder / "pool.key").write_text("k" * 40)
        here = f"127.0.0.1:{free_ports(1)[0]}"  # a pool of this node alone
        pool = ("--peers", here, "--peer-listen", here, "--peer-key-file", f"{folder}/pool.key")
        node = stack.enter_context(joined(folder, "--max-bandwidth", "1MiB/s", "--scrub-rate", "20MiB/s", *pool))
        (folder / "injector").mkdir()
        injectors = Injectors(folder / "injector")
        stack.callback(injectors.end)
        injector = injectors.start()
        server = stack.enter_context(_serve(folder))
        node.catalog(
            **{name: node.entry(name) for name in "abcd"},
            slow=node.entry("slow", 64 * MIB),
            gone={"source": f"file://{folder}/nowhere"},
        )
        node.daemon.start()
        targets = [
            Target("holdfast/holdfast-daemon", f"127.0.0.1:{node.daemon.address[1]}", {"node": "node1"}),
            Target("holdfast/holdfast-injector", injector.plain_address, {"node": "node1"}),
            Target("models/server", server.url.removeprefix("http://"), {}),
        ]
        groups = one(objects("overlays/gpu"), "PrometheusRule", "holdfast")["spec"]["groups"]
        targets.append(Target("kube-state-metrics", stack.enter_context(serve_http(_KubeState)), {}))
        seen = stack.enter_context(prometheus(folder / "prometheus", targets, groups))
        for name in "abcd":  # apart, so that counters grow between scrapes
            _work(node, name, seen)
            injector.review(make_review(make_pod()))
            server.get("/work")
            time.sleep(2.5)
        for name in ("slow", "gone", "unlisted"):
            node.pod(f"{name}-pod", name)
        seen.wait("holdfast_model_expected_bytes")
        seen.wait("holdfast_fetch_errors_total")
        seen.wait("holdfast_pods_refused")
        time.sleep(2.5)
        yield seen


@pytest.mark.parametrize(("where", "expr"), list(list_queries()), ids=lambda text: text if ": " in text else "")
def test_no_panel_is_empty(scraped: Prometheus, where: str, expr: str) -> None:
    """A query has a series with a number, with the dashboard's variables at All and its windows at five minutes."""
    filled = expr.replace("$model", ".*").replace("$node", ".*").replace("$__rate_interval", "5m")
    assert "$" not in filled, where
    assert scraped.has_numbers(filled), f"{where}: {filled}"


@pytest.mark.parametrize(("section", "expr"), list(list_expressions()))
def test_no_expression_of_the_runbook_is_wrong(scraped: Prometheus, section: str, expr: str) -> None:
    """Prometheus takes each expression of the runbook, whose series all exist; those of the questions have a number, a
    comparison at their end left out."""
    known = {metric.name for metric in (*daemon.ALL, *injector.ALL)} | {
        rule["record"] for rule in _rules() if "record" in rule
    }
    assert list_names(expr) <= known | set(KUBE_STATE), section
    filled = expr.replace('"M"', '"m"').replace('"V"', '"slow"')
    scraped.query(filled)
    if section == QUESTIONS:
        assert scraped.has_numbers(re.sub(r" (?:==|>) \d+$", "", filled)), expr


def test_the_rules_are_evaluated(scraped: Prometheus) -> None:
    """Every recording rule has a value, and the alert of a catalog without a fault does not fire."""
    for rule in _rules():
        if "record" in rule:
            assert scraped.has_numbers(rule["record"]), rule
    assert not scraped.query('ALERTS{alertname="HoldfastCatalogRejected"}')


def _rules() -> list[dict[str, Any]]:
    groups = one(objects("overlays/gpu"), "PrometheusRule", "holdfast")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


class _KubeState(BaseHTTPRequestHandler):
    """What kube-state-metrics says of a pod, by its documentation."""

    def do_GET(self) -> None:
        text = "".join(f'{name}{{namespace="default",pod="a-pod"}} {value}\n' for name, value in KUBE_STATE.items())
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


def _work(node: Joined, name: str, seen: Prometheus) -> None:
    node.pod(f"{name}-pod", name)
    node.daemon.wait_ready(ref(name))
    seen.wait(f'holdfast_model_ready{{version="{name}"}} == 1')


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[ServerProcess]:
    code, weights = folder / "code", folder / "weights"
    code.mkdir()
    weights.mkdir()
    (code / "tiny_app.py").write_text(APP)
    for name in ("torch", "transformers"):  # the app needs neither
        (code / f"{name}.py").write_text(_MISSING.format(name=name))
    options = ("--model-path", str(weights), "--app", "tiny_app:factory")
    with running(folder / "server.log", *options, python_path=code) as server:
        yield server
