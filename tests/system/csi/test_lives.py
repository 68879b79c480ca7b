"""Volumes, and what ends around them: daemons, kubelets, mounts, pods, and other versions' need of space."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.layout import SnapshotLayout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.lease import is_held
from cached.csi.proto import registration_pb2 as registration
from tests.support.bitrot import flip
from tests.support.daemon import daemon_process, model
from tests.support.joined import PODS, Joined, joined
from tests.support.kube_shapes import make_pod
from tests.support.kubelet import DRIVER, Kubelet, Pod, Refused
from tests.system.csi.conftest import FILES, Node, running_node

POD, OTHER = Pod("uid-1"), Pod("uid-2", "other")
LLAMA = {"model": "llama", "version": "v1"}
LLAMA_FILES = {**FILES, "name.txt": b"llama"}
REF = ModelRef("llama", "v1")
LABEL = f"{DRIVER}/csi"


pytestmark = pytest.mark.long


@pytest.fixture
def cluster(kubelet: Kubelet, tmp_path: Path) -> Iterator[Joined]:
    with joined(tmp_path, *kubelet.options, under=kubelet.container) as made:
        made.catalog(a=made.entry("a"))
        made.daemon.start()
        yield made


# --- the daemon ----------------------------------------------------------------------------------------------------


def test_a_daemon_killed_after_publish_goes_on(node: Node) -> None:
    """Pods keep their volumes while the daemon is dead; the next one has their leases again before it evicts anything,
    knows them as published, and gives everything back when they are unpublished."""
    node.hold("llama", "lora")
    node.kubelet.publish(POD, LLAMA)
    node.kubelet.publish(OTHER, {"models": "base=llama@v1,adapter=lora@v1"})
    before = node.kubelet.mounts()
    node.daemon.kill()
    assert node.kubelet.files(POD) == LLAMA_FILES
    node.daemon.start()
    assert node.daemon.control.gc(dry_run=False).versions == ()
    assert node.daemon.metric("holdfast_csi_volumes") == 2
    node.kubelet.publish(POD, LLAMA)
    node.kubelet.publish(OTHER, {"models": "base=llama@v1,adapter=lora@v1"})
    with pytest.raises(Refused, match="ALREADY_EXISTS"):
        node.kubelet.publish(OTHER, {"models": "base=llama@v1"})
    assert node.kubelet.mounts() == before
    node.kubelet.unpublish(POD)
    node.kubelet.unpublish(OTHER)
    assert node.kubelet.mounts() == {}
    assert len(node.daemon.control.gc(dry_run=False).versions) == 2


def test_a_daemon_killed_during_publish_leaves_nothing_half(node: Node) -> None:
    """A daemon that is killed while volumes are published leaves each whole or absent; the kubelet's next calls bring
    all of them."""
    node.hold("llama", "lora")
    tree = {"models": "base=llama@v1,adapter=lora@v1"}
    pods = [Pod(f"uid-{number}") for number in range(12)]

    def publish(pod: Pod) -> None:
        for attempt in range(200):
            try:
                node.kubelet.publish(pod, tree, timeout_s=20)
            except Refused as refused:
                assert not refused.is_final, refused
                assert attempt < 199
                restarted.wait(0.1)
            else:
                return

    restarted = threading.Event()
    threads = [threading.Thread(target=publish, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    node.daemon.wait(lambda: len(node.kubelet.mounts()) >= 3, "the first volume")
    node.daemon.kill()
    mounts = node.kubelet.mounts()
    targets = [point for point in mounts if point.endswith("/mount")]
    assert len(mounts) == 3 * len(targets)
    assert all(options >= {"ro", "nosuid", "nodev", "noexec"} for options in mounts.values())
    node.daemon.start()
    for thread in threads:
        thread.join()
    for pod in pods:
        files = node.kubelet.files(pod)
        assert sum(path.endswith("model.safetensors") for path in files) == 2
        node.kubelet.unpublish(pod)
    assert node.kubelet.mounts() == {}


def test_a_daemon_killed_before_it_mounts_is_asked_again(node: Node) -> None:
    """A daemon that is killed while a volume waits mounts it when the kubelet asks the next one."""
    node.daemon.write_catalog({"llama": model("http://127.0.0.1:9/x/")})
    with pytest.raises(Refused, match="UNAVAILABLE"):
        node.kubelet.publish(POD, LLAMA, timeout_s=5)
    node.daemon.kill()
    with pytest.raises(Refused, match="UNAVAILABLE"):
        node.kubelet.publish(POD, LLAMA, timeout_s=5)
    node.daemon.write_catalog({"llama": node.entry("llama")})
    node.daemon.start()
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.files(POD) == LLAMA_FILES


def test_a_volume_may_be_unpublished_after_a_restart_only(node: Node) -> None:
    """What is unmounted while no daemon runs, as by a reboot, is no volume of the next daemon: nothing holds its
    version, and the kubelet's calls mount it again or succeed."""
    node.hold("llama")
    node.kubelet.publish(POD, LLAMA)
    node.kubelet.publish(OTHER, LLAMA)
    node.daemon.kill()
    node.kubelet.unmount_all()
    node.daemon.start()
    assert node.daemon.metric("holdfast_csi_volumes") == 0
    node.kubelet.unpublish(OTHER)
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.files(POD) == LLAMA_FILES
    node.kubelet.unpublish(POD)
    assert len(node.daemon.control.gc(dry_run=False).versions) == 1


def test_a_volume_that_a_person_unmounted_is_mounted_again(node: Node) -> None:
    """A call for a volume that others unmounted mounts it again, although the daemon knows it as published."""
    node.hold("llama")
    node.kubelet.publish(POD, LLAMA)
    node.kubelet.umount(node.kubelet.target(POD))
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.files(POD) == LLAMA_FILES


def test_what_the_kubelet_mounts_of_a_volume_is_its_own(node: Node) -> None:
    """A `subPath`, which the kubelet mounts from the volume into another folder of the pod, is no volume: neither
    counted nor unmounted by the driver, also after a restart."""
    node.hold("llama")
    node.kubelet.publish(POD, LLAMA)
    place = node.kubelet.folder / "pods" / POD.uid / "volume-subpaths" / "weights" / "server" / "0"
    node.kubelet.on_host(place).mkdir(parents=True)
    node.kubelet.bind(node.kubelet.target(POD) / "sub", place)
    node.daemon.kill()
    node.daemon.start()
    assert node.daemon.metric("holdfast_csi_volumes") == 1
    node.kubelet.unpublish(POD)
    assert list(node.kubelet.mounts()) == [str(place)]


def test_the_kubelets_folder_may_be_a_symlink(kubelet: Kubelet, tmp_path: Path) -> None:
    """Where the kubelet's folder is a symlink, as to another disk, the kubelet's paths through it are its volumes."""
    link = kubelet.folder.with_name(f"{kubelet.folder.name}-link")
    link.symlink_to(kubelet.folder.name)  # relative, to lead through `on_host` too
    try:
        through = replace(kubelet, folder=link)
        with running_node(through, tmp_path) as node:
            node.hold("llama")
            for _ in range(2):
                through.publish(POD, LLAMA)
                assert list(kubelet.mounts()) == [str(kubelet.target(POD))]
                node.daemon.kill()
                node.daemon.start()
            through.unpublish(POD)
            assert kubelet.mounts() == {}
    finally:
        link.unlink()


# --- eviction ------------------------------------------------------------------------------------------------------


def test_a_mounted_version_is_never_evicted(node: Node) -> None:
    """Neither `gc` nor a lack of space evicts what a volume shows, also after its catalog entry went away; once it is
    unpublished both may."""
    node.hold("llama")
    node.kubelet.publish(POD, LLAMA)
    node.daemon.write_catalog({})
    assert node.daemon.control.gc(dry_run=False).versions == ()
    assert node.kubelet.files(POD) == LLAMA_FILES
    node.kubelet.unpublish(POD)
    assert [each.ref for each in node.daemon.control.gc(dry_run=False).versions] == [REF]


def test_a_volume_shows_the_snapshot_that_took_its_place(node: Node) -> None:
    """A snapshot that was withdrawn because its bytes went bad, and published again, is shown by its volumes again, in
    both forms; its new folder is leased."""
    node.hold("llama")
    node.kubelet.publish(POD, LLAMA)
    node.kubelet.publish(OTHER, {"models": "llama@v1"})
    snapshot = node.daemon.path(REF).resolve()
    before = snapshot.stat().st_ino
    flip(snapshot / "model.safetensors", 1)
    node.daemon.command("/v1/verify", {"model": "llama", "version": "v1"})
    node.daemon.wait(lambda: snapshot.exists() and snapshot.stat().st_ino != before, "the snapshot made anew")
    node.daemon.wait_ready(REF)
    for pod, attributes in ((POD, LLAMA), (OTHER, {"models": "llama@v1"})):
        node.kubelet.publish(pod, attributes)
        shown = [data for path, data in node.kubelet.files(pod).items() if path.endswith("model.safetensors")]
        assert shown == [FILES["model.safetensors"]]
    assert is_held(SnapshotLayout(snapshot).lease)


# --- the kubelet ---------------------------------------------------------------------------------------------------


def test_the_driver_registers_itself(node: Node) -> None:
    """The kubelet finds the driver in its registry, with the node's name; a killed daemon's sockets are replaced by the
    next one's, and a daemon that ends removes its own."""
    assert node.kubelet.register().node_id == "node-a"
    node.daemon.wait(lambda: node.daemon.metric("holdfast_csi_registered") == 1, "the kubelet's verdict")
    node.daemon.kill()
    assert node.kubelet.registry.is_socket()
    node.daemon.start()
    node.kubelet.register()
    assert oct(node.kubelet.socket.stat().st_mode & 0o777) == "0o600"
    assert node.daemon.stop() == 0
    assert not node.kubelet.registry.exists()
    assert not node.kubelet.socket.exists()


def test_a_socket_that_was_removed_is_made_again(node: Node) -> None:
    """A registration socket that a person removes, after which the kubelet forgets the driver, is there again within
    seconds; until the kubelet has confirmed it anew, the driver counts as not registered."""
    node.kubelet.register()
    node.daemon.wait(lambda: node.daemon.metric("holdfast_csi_registered") == 1, "the kubelet's verdict")
    node.kubelet.registry.unlink()
    node.daemon.wait(lambda: node.daemon.metric("holdfast_csi_registered") == 0, "no registration")
    node.kubelet.register()
    node.daemon.wait(lambda: node.daemon.metric("holdfast_csi_registered") == 1, "the kubelet's verdict")
    assert node.daemon.stop() == 0
    assert not node.kubelet.registry.exists()


def test_a_living_daemon_keeps_its_socket(node: Node, tmp_path: Path) -> None:
    """A second daemon with the same socket ends with 1 and says so; the first one goes on serving."""
    options = (*node.kubelet.options, "--scrub-rate", "0")
    with daemon_process(tmp_path / "second", *options, under=node.kubelet.container) as second:
        second.write_catalog({})
        second.launch()
        assert second.end_within(120) == 1
        assert "another process listens here" in second.log()
    node.kubelet.register()


@pytest.mark.parametrize("how", ["private", "missing", "long"])
def test_a_node_on_which_volumes_cannot_work_is_refused(kubelet: Kubelet, tmp_path: Path, how: str) -> None:
    """A daemon whose mounts would not reach the kubelet, whose kubelet folder is none, or whose socket's path is too
    long ends with 1 and the remedy, instead of giving pods empty folders."""
    options, said = {
        "private": (kubelet.options, "mountPropagation: Bidirectional"),
        "missing": (("--csi", f"{kubelet.folder}/s", "--kubelet-dir", f"{tmp_path}/none"), "--kubelet-dir"),
        "long": (("--csi", f"{kubelet.folder}/{'x' * 100}", "--kubelet-dir", str(kubelet.folder)), "107 bytes"),
    }[how]
    under = kubelet.container if how != "private" else (*kubelet.container[:-1], "private")
    with daemon_process(tmp_path / "daemon", *options, under=under) as daemon:
        daemon.write_catalog({})
        daemon.launch()
        assert daemon.end_within(120) == 1
        assert said in daemon.log()


# --- the cluster ---------------------------------------------------------------------------------------------------


def test_the_node_is_labelled_while_volumes_can_be_mounted(cluster: Joined, kubelet: Kubelet) -> None:
    """The node's label says that it mounts volumes from the kubelet's confirmation to the daemon's end, and is no
    label of a snapshot; a refusal by the kubelet withdraws it."""
    assert LABEL not in cluster.labels()
    kubelet.register()
    cluster.daemon.wait(lambda: cluster.labels().get(LABEL) == "ready", "the label")
    kubelet.tell_registered(registration.RegistrationStatus(plugin_registered=False, error="no such driver"))
    cluster.daemon.wait(lambda: LABEL not in cluster.labels(), "no label")
    assert "no such driver" in cluster.daemon.log()
    kubelet.register()
    cluster.daemon.wait(lambda: cluster.labels().get(LABEL) == "ready", "the label")
    assert cluster.daemon.stop() == 0
    assert LABEL not in cluster.labels()


def test_a_pod_that_is_deleted_while_its_volume_waits(cluster: Joined, kubelet: Kubelet) -> None:
    """The call of a pod that is deleted ends with ABORTED at once, and its version is no longer wanted, annotated or
    not."""
    cluster.catalog(a={"source": "http://127.0.0.1:9/x/"})
    cluster.api.create(PODS, make_pod("daemon", "node1"))
    uid = str(cluster.api.create(PODS, make_pod("plain", "node1"))["metadata"]["uid"])
    ends: list[str] = []

    def wait() -> None:
        with pytest.raises(Refused) as refused:
            kubelet.publish(Pod(uid, "plain"), {"model": "m", "version": "a"})
        ends.append(refused.value.code)

    waiting = threading.Thread(target=wait)
    waiting.start()
    cluster.daemon.wait(lambda: cluster.daemon.metric("holdfast_pods_waiting") == 1, "a volume that waits")
    cluster.end("plain")
    waiting.join()
    assert ends == ["ABORTED"]
    cluster.daemon.wait(lambda: cluster.daemon.metric("holdfast_pods_waiting") == 0, "no pod that waits")


def test_an_annotated_pod_with_a_volume_counts_once(cluster: Joined, kubelet: Kubelet) -> None:
    """A pod that is annotated and has a volume of the same version is one pod that waits, and hears its Events once."""
    cluster.catalog(b={"source": "http://127.0.0.1:9/x/"})
    uid = cluster.pod("both", "b")
    with pytest.raises(Refused, match="UNAVAILABLE"):
        kubelet.publish(Pod(uid, "both"), {"model": "m", "version": "b"}, timeout_s=5)
    assert cluster.daemon.metric("holdfast_pods_waiting") == 1
    cluster.catalog(b=cluster.entry("b"))
    kubelet.publish(Pod(uid, "both"), {"model": "m", "version": "b"})
    cluster.wait_told(uid, "WeightsReady")
    assert cluster.times(uid, "WeightsReady") == 1
