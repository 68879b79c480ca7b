"""Helm's own library, in a process of its own: what it does to signals and threads concerns no test.

Law: one request at a time, a line of JSON each way. Where the library has no build for this machine, `why_not` says so.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.kustomize import Json
from tests.support.manifests import MANIFESTS

CHART = MANIFESTS / "chart"
RELEASE = "holdfast"
_PACKAGE = "helm_python"


class HelmRefusal(Exception):
    """Helm's library refused; its words."""


def why_not() -> str | None:
    """Why Helm's library cannot be used; None where it can."""
    return (
        None if importlib.util.find_spec(_PACKAGE) else "no build of Helm's library (helm-python-sdk) for this machine"
    )


class Helm:
    """The chart as Helm sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def render(self, values: Json | None = None, *, namespace: str = "holdfast") -> list[Json]:
        """The objects that an install with these values would make. Raises `HelmRefusal`."""
        made: dict[str, str] = self._ask("render", values=values or {}, namespace=namespace)
        texts = [text for name, text in made.items() if not name.endswith(".txt")]
        return [found for text in texts for found in yaml.load_all(text, yaml.CSafeLoader) if found]

    def notes(self, values: Json | None = None) -> str:
        """What an install with these values tells a person."""
        made: dict[str, str] = self._ask("render", values=values or {}, namespace="holdfast")
        return next(text for name, text in made.items() if name.endswith("NOTES.txt"))

    def lint(self, values: Json | None = None) -> list[Json]:
        """What `helm lint --strict` finds: `{"severity", "path", "error"}`."""
        found: list[Json] = self._ask("lint", values=values or {})["messages"]
        return found

    def release(self, action: str, **options: Any) -> Any:
        """Act on the release in the cluster of KUBECONFIG: install, upgrade, rollback, uninstall, list, history."""
        return self._ask("release", action=action, options=options)

    def _ask(self, what: str, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"what": what, **request}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "refusal" in answer:
            raise HelmRefusal(answer["refusal"])
        return answer["made"]


@contextmanager
def running_helm() -> Iterator[Helm]:
    """Helm's library, until the end of the block."""
    command = [sys.executable, "-m", "tests.support.helm"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            yield Helm(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _answer(request: Json) -> Any:
    import helm_python

    match request.pop("what"):
        case "render":
            with helm_python.Chart.load(CHART) as chart:
                return chart.render(request["values"], name=RELEASE, namespace=request["namespace"])
        case "lint":
            return helm_python.lint(CHART, request["values"], strict=True, namespace="holdfast")
        case "release":
            options = request["options"]
            with helm_python.Config(namespace=options.pop("within", "holdfast")) as config:
                action = getattr(config, request["action"])
                match request["action"]:
                    case "install" | "upgrade":
                        return action(CHART, RELEASE, options.pop("values"), **options)
                    case "list":
                        return action(**options)
                    case _:
                        return action(RELEASE, **options)
    raise AssertionError(request)


def _serve() -> None:
    import helm_python

    for line in sys.stdin:
        try:
            answer = {"made": _answer(json.loads(line))}
        except helm_python.HelmError as error:
            answer = {"refusal": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
