"""Nodes that fetch together: what the origin sends to two of them is one copy, and a neighbour stands in for it.

An installation of its own, with a folder for each node; a plain one makes room for it, and comes back. Two nodes or
more.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import pooled
from tests.support.cluster import Json, Pod, exists, wait_for
from tests.support.pooled import CountingOrigin, Pool
from tests.system.e2e.conftest import Models

_PIECE = 32 << 20
_SIZE = 4 * _PIECE + 12345


@pytest.fixture(scope="module")
def counted(namespace: str) -> Iterator[CountingOrigin]:
    with pooled.origin(namespace) as served:
        yield served


@pytest.fixture(scope="module")
def pool(
    request: pytest.FixtureRequest,
    counted: CountingOrigin,
    models: Models,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pool]:
    """Two nodes of a pool; skipped where the cluster has one."""
    if pooled.count_nodes() < 2:
        pytest.skip("one node that takes pods: there is no other node to fetch with")
    plain = request.getfixturevalue("holdfast") if exists("namespace", "holdfast") else None
    if plain is not None:
        plain.remove()
    try:
        with pooled.pool(tmp_path_factory.mktemp("pool"), counted, (models["peers"],)) as found:
            yield found
    finally:
        if plain is not None:
            plain.apply()


def test_the_injector_makes_one_key(pool: Pool) -> None:
    """The pool's key is in the Secret that the manifests make empty, and an apply of the same manifests keeps it."""
    key = wait_for("the key", pooled.read_key)
    pool.holdfast.apply()
    assert pooled.read_key() == key


def test_two_nodes_fill_from_one_origin_fetch(
    pool: Pool, counted: CountingOrigin, models: Models, namespace: str
) -> None:
    """Pods that start together on two nodes have weights of which the origin sent each piece about once."""
    model, nodes = models["peers"], pool.nodes[:2]
    digest = counted.publish(model, "1", _SIZE)
    counted.ask("reset")
    pods = {node: Pod(namespace, f"together-{node}") for node in nodes}
    try:
        for node, pod in pods.items():
            pool.create(pod, node, model, "1", digest)
        for pod in pods.values():
            pooled.wait_main(pod)
            assert _sha256(pod) == counted.sha256(model, "1")
        sent = _weights(counted.ask("sent"))
        assert set(sent) <= {pool.address(node) for node in nodes}
        assert sum(sent.values()) <= _SIZE + _PIECE, sent  # once, and one piece granted again
        received = sum(pool.metric(node, "holdfast_fetch_bytes_total", source="peer") for node in nodes)
        assert received >= _SIZE - _PIECE
    finally:
        for pod in pods.values():
            pod.delete()


@pytest.mark.parametrize(("version", "cut"), [("2", ".safetensors"), ("3", "")])
def test_a_node_without_its_origin_starts_a_pinned_pod(
    pool: Pool, counted: CountingOrigin, models: Models, namespace: str, version: str, cut: str
) -> None:
    """A pod that pins a version which a neighbour has starts on a node to which the origin gives no weights, or nothing
    at all."""
    model, (first, other) = models["peers"], pool.nodes[:2]
    digest = counted.publish(model, version, _SIZE)
    counted.ask("reset")
    pods = [Pod(namespace, f"{name}-{version}") for name in ("has-origin", "has-none")]
    try:
        pool.create(pods[0], first, model, version, digest)
        pooled.wait_main(pods[0])
        pool.cut_off(other, counted, cut)
        pool.create(pods[1], other, model, version, digest)
        pooled.wait_main(pods[1])
        assert _sha256(pods[1]) == counted.sha256(model, version)
        assert pool.address(other) not in _weights(counted.ask("sent"))
    finally:
        for pod in pods:
            pod.delete()


def _weights(sent: list[Json]) -> dict[str, int]:
    """The bytes of weights that the origin sent, by who got them."""
    found: dict[str, int] = {}
    for each in sent:
        if each["path"].endswith(".safetensors"):
            found[each["to"]] = found.get(each["to"], 0) + each["bytes"]
    return found


def _sha256(pod: Pod) -> str:
    """Of the weights as the pod sees them."""
    command = 'sha256sum "$HOLDFAST_MODEL_PATH/model.safetensors"'
    return pod.run("main", "sh", "-c", command).stdout.split()[0]
