"""A daemon process that has joined a fake cluster as `node1`.

Law: acts through the API's objects, and reads what the cluster was told from them.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cached.contract.digest import Digest
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from tests.support.certificates import make_certificates
from tests.support.daemon import DaemonProcess, daemon_process, publish_files
from tests.support.fake_api import Asked, FakeApi
from tests.support.kube_shapes import make_pod

NODE = "/api/v1/nodes/node1"
PODS = "/api/v1/namespaces/default/pods"
EVENTS = "/api/v1/namespaces/default/events"
EVERY = float("inf")


class Joined:
    """The daemon, its cluster, and a folder to fetch from."""

    def __init__(self, api: FakeApi, daemon: DaemonProcess, folder: Path) -> None:
        self.api = api
        self.daemon = daemon
        self.source = folder / "source"
        self._kubeconfig = kubeconfig_of(folder)
        self.source.mkdir()
        self.know_api_as(api.url)

    def know_api_as(self, server: str) -> None:
        """Tell the daemon, for its next start, where the API is."""
        cluster = {"server": server, "certificate-authority": "authority.pem"}
        self._kubeconfig.write_text(json.dumps(_kubeconfig(cluster)))

    def entry(self, name: str, size: int = 100_000, digest: Digest | None = None) -> dict[str, Any]:
        """Publish a version of `size` bytes of its own at the source; returns its entry in the catalog."""
        self.publish(name, size)
        return {"source": f"file://{self.source}/{name}", **({"digest": str(digest)} if digest else {})}

    def publish(self, name: str, size: int = 100_000) -> Manifest:
        """Put the same version at the source; returns its manifest."""
        return publish_files(self.source / name, {"a.bin": random.Random(name).randbytes(size)})

    def catalog(self, **versions: Mapping[str, Any]) -> None:
        """Replace the catalog by one of the model `m` with these versions."""
        self.daemon.write_catalog({"m": {"versions": versions}})

    # --- the cluster -----------------------------------------------------------------------------------------------

    def pod(self, name: str, version: str, node: str = "node1", **more: str) -> str:
        """Make a pod that wants `m@version`, with more annotations (`_` for `-`); returns its uid."""
        asked = {"model": "m", "version": version, **more}
        annotations = {f"holdfast.dev/{key.replace('_', '-')}": value for key, value in asked.items()}
        made = self.api.create(PODS, make_pod(name, node, annotations))
        return str(made["metadata"]["uid"])

    def end(self, name: str) -> None:
        """Remove a pod."""
        self.api.delete(f"{PODS}/{name}")

    def events(self, uid: str) -> list[tuple[str, str, str]]:
        """What a pod was told, in order: type, reason, message."""
        told = [each for each in self.api.all(EVENTS) if each["involvedObject"]["uid"] == uid]
        told.sort(key=lambda each: int(each["metadata"]["resourceVersion"]))
        return [(each["type"], each["reason"], each["message"]) for each in told]

    def times(self, uid: str, reason: str) -> int:
        """How often a pod was told this, counted up or anew."""
        return sum(
            each["count"]
            for each in self.api.all(EVENTS)
            if (each["involvedObject"]["uid"], each["reason"]) == (uid, reason)
        )

    def reasons(self, uid: str) -> list[str]:
        """The reasons of a pod's events, in order."""
        return [reason for _, reason, _ in self.events(uid)]

    def wait_told(self, uid: str, reason: str) -> str:
        """Wait until a pod was told this; returns the message."""
        self.daemon.wait(lambda: reason in self.reasons(uid), f"{reason}; found {self.events(uid)}")
        return next(message for _, found, message in self.events(uid) if found == reason)

    def labels(self) -> dict[str, str]:
        """The node's labels."""
        return dict(self.api.get(NODE)["metadata"].get("labels") or {})

    def is_labelled(self, digest: Digest) -> bool:
        return self.labels().get(label(digest)) == "ready"

    def summary(self) -> str | None:
        found: str | None = (self.api.get(NODE)["metadata"].get("annotations") or {}).get("holdfast.dev/summary")
        return found

    def lose_api(self) -> None:
        """From now on the API closes every connection without an answer."""
        for method in ("GET", "PATCH", "POST"):
            self.api.drop(method, "", times=EVERY)
        self.api.order_watchers("drop")


class Noted(list[Asked]):
    """What an API is asked, with whether `path` was there when each request came in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.was_there: list[bool] = []

    def append(self, asked: Asked) -> None:
        self.was_there.append(self._path.exists())
        super().append(asked)

    def labelling(self, name: str, value: str | None) -> list[bool]:
        """Whether it was there at each patch that gives this label this value (None: removes it)."""
        return [
            there
            for asked, there in zip(list(self), self.was_there, strict=False)
            if asked.method == "PATCH"
            and asked.path == NODE
            and asked.body["metadata"].get("labels", {}).get(name, 0) == value
        ]


def label(digest: Digest) -> str:
    """The node label of a snapshot."""
    return f"weights.holdfast.dev/{digest.hex[:40]}"


def ref(version: str) -> ModelRef:
    """A version of the model that the pods here ask for."""
    return ModelRef("m", version)


@contextlib.contextmanager
def joined(folder: Path, *options: str, under: Sequence[str] = ()) -> Iterator[Joined]:
    """A cluster with `node1`, and a daemon to start on it, with the command `under`."""
    with FakeApi(make_certificates(folder), {"secret"}) as api:
        api.create("/api/v1/nodes", {"metadata": {"name": "node1", "labels": {"gpu": "h100"}}})
        environment = {"KUBECONFIG": str(kubeconfig_of(folder))}
        options = ("--kube", "auto", "--node", "node1", "--scrub-rate", "0", *options)
        with daemon_process(folder / "daemon", *options, environment=environment, under=under) as daemon:
            yield Joined(api, daemon, folder)


def kubeconfig_of(folder: Path) -> Path:
    """Where the daemon finds its cluster."""
    return folder / "kubeconfig"


def _kubeconfig(cluster: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "fake", "user": "daemon"}}],
        "clusters": [{"name": "fake", "cluster": cluster}],
        "users": [{"name": "daemon", "user": {"token": "secret"}}],
    }
