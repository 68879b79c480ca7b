"""A real cluster, through kubectl: the one of KUBECONFIG.

Law: everything waits with a deadline and says what it waited for; nothing here knows how the cluster was made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import yaml

Json = dict[str, Any]
T = TypeVar("T")
WAIT_S = 120.0
_LOOK_EVERY_S = 0.1


def why_not() -> str | None:
    """Why there is no cluster to test with; None where there is one."""
    if not os.environ.get("KUBECONFIG"):
        return "no cluster: KUBECONFIG is not set"
    return "no cluster: there is no kubectl" if shutil.which("kubectl") is None else None


def kubectl(*arguments: str, body: Sequence[Json] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run kubectl with `body` (objects) on its standard input; fails with what it said."""
    text = yaml.safe_dump_all(body) if body else None
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr[-3000:]}"
    return done


def create(*objects: Json) -> None:
    """Create these objects."""
    kubectl("create", "-f", "-", body=objects)


def get(kind: str, name: str, namespace: str = "default") -> Json:
    """One object as it is now."""
    found: Json = json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json").stdout)
    return found


def select(kind: str, namespace: str, labels: str) -> list[Json]:
    """The objects with these labels, those on their way out excepted."""
    found = json.loads(kubectl("get", kind, "-n", namespace, "-l", labels, "-o", "json").stdout)
    return [item for item in found["items"] if "deletionTimestamp" not in item["metadata"]]


def exists(kind: str, name: str, namespace: str = "default") -> bool:
    """Tell whether there is such an object."""
    done = kubectl("get", kind, name, "-n", namespace, "-o", "name", check=False)
    assert done.returncode == 0 or "NotFound" in done.stderr, done.stderr
    return done.returncode == 0


def wait_for(what: str, look: Callable[[], T], within_s: float = WAIT_S) -> T:
    """Look until there is something true to see, and return it."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(_LOOK_EVERY_S)
    return found


def raw(path: str) -> str:
    """What the API server, or a pod through it, answers to GET."""
    return kubectl("get", "--raw", path).stdout


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels; 0 where there is none."""
    samples = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for found, value in samples if all(each in found for each in wanted))


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod, by name."""

    namespace: str
    name: str

    def object(self) -> Json:
        return get("pod", self.name, self.namespace)

    def run(
        self, container: str, *command: str, check: bool = True, stdin: BinaryIO | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in one of its containers."""
        whole = ["kubectl", "exec", "-n", self.namespace, self.name, "-c", container]
        whole += [*(["-i"] if stdin else []), "--", *command]
        done = subprocess.run(whole, stdin=stdin or subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{whole}: {done.stderr[-3000:]}"
        return done

    def log(self, container: str, *flags: str) -> str:
        return kubectl("logs", "-n", self.namespace, self.name, "-c", container, *flags).stdout

    def runs(self, container: str) -> bool:
        """Tell whether a container of it has started."""
        return any(s["name"] == container and "running" in s["state"] for s in statuses(self.object()))

    def wait_running(self, container: str) -> Json:
        """Wait until a container of it has started; returns the pod."""
        wait_for(f"{self.name}: {container} runs; it is {self._last()}", lambda: self.runs(container))
        return self.object()

    def wait_phase(self, phase: str) -> None:
        """Wait for a phase without looking again and again, which takes the processor from what is measured."""
        condition = f"--for=jsonpath={{.status.phase}}={phase}"
        kubectl("wait", "-n", self.namespace, f"pod/{self.name}", condition, f"--timeout={WAIT_S:g}s")

    def events(self, reason: str) -> list[str]:
        """The messages of its Events of one reason."""
        fields = f"involvedObject.name={self.name},reason={reason}"
        found = json.loads(
            kubectl("get", "events", "-n", self.namespace, "--field-selector", fields, "-o", "json").stdout
        )
        return [item["message"] for item in found["items"]]

    def delete(self) -> None:
        kubectl("delete", "pod", "-n", self.namespace, self.name, "--wait=true", "--ignore-not-found")

    def _last(self) -> str:
        return str(self.object().get("status", {}).get("phase"))


def statuses(pod: Json) -> list[Json]:
    """The statuses of a pod's containers, init containers first."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def status_of(pod: Json, container: str) -> Json:
    """One container's status."""
    return next(s for s in statuses(pod) if s["name"] == container)


def endings(pod: Json, container: str) -> list[Json]:
    """How a container ended, now and before its last restart."""
    status = status_of(pod, container)
    return [found["terminated"] for found in (status["state"], status.get("lastState", {})) if "terminated" in found]
