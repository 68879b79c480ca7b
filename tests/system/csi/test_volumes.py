"""Volumes from a kubelet's call to its pod: what is mounted, what a pod sees, and what each call answers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from cached.csi.proto import csi_pb2 as csi
from tests.support.daemon import bare_environment, model
from tests.support.kubelet import Kubelet, Pod, Refused, capability
from tests.system.csi.conftest import FILES, Node

POD, OTHER = Pod("uid-1"), Pod("uid-2", "other")
LLAMA = {"model": "llama", "version": "v1"}
LLAMA_REF = ModelRef("llama", "v1")
NOWHERE = "http://127.0.0.1:9/{name}/{version}/"
READ_ONLY = {"ro", "nosuid", "nodev", "noexec"}


def refusal(kubelet: Kubelet, attributes: dict[str, str], pod: Pod = POD, **changes: Any) -> Refused:
    """How the driver refuses to publish a volume; nothing is mounted then."""
    before = kubelet.mounts()
    with pytest.raises(Refused) as refused:
        kubelet.publish(pod, attributes, **changes)
    assert kubelet.mounts() == before
    return refused.value


HOLD = """
import sys
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import SnapshotLayout
from cached.contract.snapshot.lease import is_held
from server.lifecycle.snapshot import hold_verified
from pathlib import Path
try:
    held = hold_verified(Path(sys.argv[1]), Digest.parse(sys.argv[2])).snapshot
except HoldfastError as error:
    sys.exit(error.code)
print(held.digest, is_held(SnapshotLayout(held.path).lease))
"""


def in_pod(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where a pod's container would, with the volumes mounted."""
    command = ("nsenter", "-t", str(node.kubelet.holder), "-m", "--", sys.executable, *arguments)
    return subprocess.run(command, env=bare_environment(), capture_output=True, text=True, check=False)


def test_a_volume_is_the_snapshot_and_nothing_else(held: Node) -> None:
    """The volume of one model has its files at its root, read-only in the host's namespace too, and nothing else."""
    held.kubelet.publish(POD, LLAMA)
    target = held.kubelet.target(POD)
    assert held.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}
    assert held.kubelet.mounts()[str(target)] >= READ_ONLY
    assert list(held.kubelet.mounts()) == [str(target)]
    with pytest.raises(OSError, match="Read-only"):
        (held.kubelet.on_host(target) / "new").write_bytes(b"")


def test_a_volume_of_models_is_a_tree_of_theirs(held: Node) -> None:
    """The volume of `models` has the layout of a node's public folder, with the pod's own versions and no others, and
    every mount of it is read-only in the host's namespace."""
    held.kubelet.publish(POD, {"models": "base=llama@v1,adapter=lora@v1"})
    target = held.kubelet.target(POD)
    tree = PublicLayout(held.kubelet.on_host(target))
    for name in ("llama", "lora"):
        link = tree.model_link(ModelRef(name, "v1"))
        assert (link / "name.txt").read_bytes() == name.encode()
        assert not os.path.isabs(os.readlink(link))
    assert sorted(os.listdir(tree.models)) == ["llama", "lora"]
    assert len(os.listdir(tree.snapshots)) == 2
    assert sorted(os.listdir(tree.path)) == ["models", "snapshots"]
    mounts = held.kubelet.mounts()
    assert len(mounts) == 3
    assert all(options >= READ_ONLY for options in mounts.values())
    with pytest.raises(OSError, match="Read-only"):
        (tree.models / "new").mkdir()


def test_the_gate_and_the_server_take_both_forms(held: Node) -> None:
    """A gate opens over the tree of a volume, and the server's check before it loads takes both forms: with a lease,
    with the digest as the pod pins it, and not with another one."""
    digest = held.daemon.digest(LLAMA_REF)
    held.kubelet.publish(POD, LLAMA)
    held.kubelet.publish(OTHER, {"models": "llama@v1", "digest": str(digest)})
    tree, snapshot = held.kubelet.target(OTHER), held.kubelet.target(POD)
    gate = ("-m", "cached.cli", "gate", "--once", "--timeout", "300", "--termination-log", "/dev/null")
    opened = in_pod(held, *gate, "--root", str(tree), "--model", "llama", "--version", "v1", "--digest", str(digest))
    assert opened.returncode == 0, opened.stderr
    for folder in (snapshot, tree / "models" / "llama" / "v1"):
        taken = in_pod(held, "-c", HOLD, str(folder), str(digest))
        assert taken.stdout == f"{digest} True\n", taken.stderr
        assert "digest_mismatch" in in_pod(held, "-c", HOLD, str(folder), f"sha256:{'0' * 64}").stderr


def test_unpublishing_leaves_nothing(held: Node) -> None:
    """After unpublish neither mounts nor the target's folder are left, in both forms; a second call, and one for a
    volume that was never here, succeed."""
    held.kubelet.publish(POD, LLAMA)
    held.kubelet.publish(OTHER, {"models": "llama@v1"})
    for pod in (POD, OTHER, POD, Pod("never")):
        held.kubelet.unpublish(pod)
        assert not held.kubelet.on_host(held.kubelet.target(pod)).exists()
    assert held.kubelet.mounts() == {}


def test_publishing_again_changes_nothing(node: Node) -> None:
    """The same call for a mounted volume succeeds without another mount, also after the version's name moved; a call
    with other attributes is ALREADY_EXISTS."""
    node.hold("llama", "lora")
    node.kubelet.publish(POD, LLAMA)
    before = node.kubelet.mounts()
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.mounts() == before
    assert refusal(node.kubelet, {"model": "lora", "version": "v1"}).code == "ALREADY_EXISTS"
    assert refusal(node.kubelet, {"models": "llama@v1"}).code == "ALREADY_EXISTS"
    assert node.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}
    node.publish("llama", {"changed.bin": b"new"})
    node.daemon.control.pull(LLAMA_REF, None, refresh=True)
    node.daemon.wait(lambda: "changed.bin" in node.daemon.files(LLAMA_REF), "the name's new content")
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}
    node.kubelet.publish(OTHER, LLAMA)
    assert node.kubelet.files(OTHER) == {"changed.bin": b"new"}


def test_a_volume_waits_for_its_version(node: Node) -> None:
    """A version that was never fetched is fetched for its volume, with the priority of a waiting pod, and the volume
    is mounted once it is here."""
    node.daemon.write_catalog({"llama": node.entry("llama")})
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}
    assert node.daemon.metric("holdfast_gate_wait_seconds_count") == 1
    assert node.daemon.metric("holdfast_requests_total", result="miss") == 1


def test_a_call_that_ends_too_soon_loses_nothing(node: Node) -> None:
    """A caller that waits for less than the version needs hears why before it gives up (UNAVAILABLE, so that it asks
    again); the version stays wanted, and a later call mounts it."""
    node.daemon.write_catalog({"llama": model(NOWHERE)})
    refused = refusal(node.kubelet, LLAMA, timeout_s=5)
    assert refused.code == "UNAVAILABLE"
    assert "llama@v1: " in refused.message
    assert node.daemon.metric("holdfast_pods_waiting") == 1
    assert node.daemon.metric("holdfast_csi_publishes_total", result="unavailable") == 1
    assert node.daemon.wait_error(LLAMA_REF)["message"] in refusal(node.kubelet, LLAMA, timeout_s=5).message
    node.daemon.write_catalog({"llama": node.entry("llama")})
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}
    assert node.daemon.metric("holdfast_pods_waiting") == 0


def test_a_check_goes_on_between_calls(node: Node) -> None:
    """A check that takes longer than any call is not begun anew by each: calls that are all too short for it end with
    a mounted volume."""
    node.publish("big", {"big.bin": bytes(128 << 20)})
    node.daemon.write_catalog({"big": model(f"file://{node.source}/big")})
    node.daemon.pull("big@v1")
    node.daemon.wait_ready(ModelRef("big", "v1"))

    def is_published() -> bool:
        try:
            node.kubelet.publish(POD, {"model": "big", "version": "v1", "verify": "full"}, timeout_s=0.05)
        except Refused as refused:
            assert not refused.is_final, refused
            return False
        return True

    assert not is_published()
    node.daemon.wait(is_published, "a volume in the end")
    assert list(node.kubelet.mounts()) == [str(node.kubelet.target(POD))]


def test_unpublishing_ends_a_wait(node: Node) -> None:
    """A volume that is unpublished while it waits ends its call with ABORTED, and wants nothing any more; until then a
    second call for it is ABORTED too."""
    node.daemon.write_catalog({"llama": model(NOWHERE)})
    ends: list[str] = []

    def wait() -> None:
        ends.append(refusal(node.kubelet, LLAMA).code)

    waiting = threading.Thread(target=wait)
    waiting.start()
    node.daemon.wait(lambda: node.daemon.metric("holdfast_pods_waiting") == 1, "a volume that waits")
    assert refusal(node.kubelet, LLAMA).code == "ABORTED"
    node.kubelet.unpublish(POD)
    waiting.join()
    assert ends == ["ABORTED"]
    node.daemon.wait(lambda: node.daemon.state(LLAMA_REF) is None, "no want")
    assert node.daemon.metric("holdfast_pods_waiting") == 0


def test_what_cannot_be_is_said_at_once(node: Node) -> None:
    """A version that the catalog lacks, a pin that the catalog contradicts, a source without it: each is refused at
    once, finally, with what was found and what to do; after the catalog is corrected the same call succeeds."""
    pin, wrong = str(node.publish("llama").digest), f"sha256:{'0' * 64}"
    node.daemon.write_catalog({"llama": node.entry("llama", digest=pin), "gone": model(f"file://{node.source}/gone")})
    unknown = refusal(node.kubelet, {"model": "lama", "version": "v1"})
    assert (unknown.code, unknown.is_final) == ("NOT_FOUND", True)
    assert "llama" in unknown.message
    pinned = refusal(node.kubelet, {**LLAMA, "digest": wrong}, OTHER)
    assert (pinned.code, pinned.is_final) == ("FAILED_PRECONDITION", True)
    assert wrong in pinned.message
    assert pin in pinned.message
    gone = Pod("uid-3")
    assert refusal(node.kubelet, {"model": "gone", "version": "v1"}, gone).code == "FAILED_PRECONDITION"
    again = refusal(node.kubelet, {"model": "lama", "version": "v1"}, timeout_s=3)
    assert (again.code, again.message) == (unknown.code, unknown.message)
    node.daemon.write_catalog({"lama": node.entry("lama"), "llama": node.entry("llama"), "gone": node.entry("moved")})
    node.kubelet.publish(POD, {"model": "lama", "version": "v1"})
    node.kubelet.publish(OTHER, {**LLAMA, "digest": pin})
    node.kubelet.publish(gone, {"model": "gone", "version": "v1"})


def test_a_call_that_repeats_a_refusal_waits_for_its_correction(node: Node) -> None:
    """The kubelet comes back to a final error ever later. So the first call has it at once, and the next one waits: it
    ends well once the error is corrected, without another call."""
    assert refusal(node.kubelet, LLAMA).code == "NOT_FOUND"
    waiting = threading.Thread(target=node.kubelet.publish, args=(POD, LLAMA))
    waiting.start()
    node.daemon.write_catalog({"llama": node.entry("llama")})
    waiting.join()
    assert node.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}
    assert node.daemon.metric("holdfast_csi_publishes_total") == 2
    assert node.daemon.metric("holdfast_csi_publishes_total", result="ok") == 1


@pytest.mark.parametrize("verify", ["record", "full"])
def test_bytes_are_checked_before_they_are_mounted(node: Node, verify: str) -> None:
    """A file that was replaced on the node's disk is not mounted: in both modes the snapshot is repaired first."""
    node.hold("llama")
    path = node.daemon.path(LLAMA_REF).resolve() / "model.safetensors"
    forged = path.with_name("forged")
    forged.write_bytes(bytes(len(FILES["model.safetensors"])))
    forged.replace(path)
    node.kubelet.publish(POD, {**LLAMA, "verify": verify})
    assert node.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}


def test_a_touched_file_is_hashed_and_mounted(node: Node) -> None:
    """A file whose time alone was changed is not refused for good: it is hashed at once, and the volume mounted."""
    node.hold("llama")
    path = node.daemon.path(LLAMA_REF).resolve() / "model.safetensors"
    os.utime(path, (0, 0))
    node.kubelet.publish(POD, LLAMA)
    assert node.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}
    assert node.daemon.metric("holdfast_csi_publishes_total", result="ok") == 1


def test_a_model_of_other_namespaces_is_refused(node: Node) -> None:
    """A model that the catalog gives to some namespaces is refused to pods of others, whether it is here or not, also
    right after a start of the daemon; nothing is fetched for them, and a corrected catalog gives it."""
    ours, theirs = Pod("uid-a", namespace="team-a"), Pod("uid-b", namespace="team-b")
    entry = node.entry("llama", namespaces=["team-a"])
    node.daemon.write_catalog({"llama": entry})
    refused = refusal(node.kubelet, LLAMA, theirs)
    assert (refused.code, refused.is_final) == ("PERMISSION_DENIED", True)
    assert "team-b" in refused.message
    assert not node.daemon.path(LLAMA_REF).exists()
    node.kubelet.publish(ours, LLAMA)
    for attributes in (LLAMA, {"models": "llama@v1"}):
        assert refusal(node.kubelet, attributes, theirs, timeout_s=3).code == "PERMISSION_DENIED"
    node.daemon.kill()
    node.daemon.launch()
    node.daemon.wait(lambda: "CSI driver" in node.daemon.log(), "the driver")
    assert refusal(node.kubelet, LLAMA, theirs).code == "PERMISSION_DENIED"
    node.daemon.write_catalog({"llama": node.entry("llama", namespaces=["team-a", "team-b"])})
    node.kubelet.publish(theirs, LLAMA)


BAD_ATTRIBUTES: list[tuple[dict[str, str], str]] = [
    ({}, "model and version"),
    ({"model": "llama"}, "model alone"),
    ({"models": "llama@v1", "model": "llama"}, "exclude each other"),
    ({**LLAMA, "modle": "x", "root": "/"}, "modle, root"),
    ({**LLAMA, "verify": "never"}, "record or full"),
    ({**LLAMA, "digest": "abc"}, "sha256:"),
    ({"model": "../../etc", "version": "v1"}, "not a model name"),
    ({"models": "a=llama@v1,a=lora@v1"}, "more than once"),
    ({"models": ""}, "name@version"),
]


def test_a_request_that_is_not_understood_is_refused_by_name(held: Node) -> None:
    """Attributes, access modes, targets and options that the driver does not serve are INVALID_ARGUMENT, finally, and
    the message names what was found; no pod hears OK for something else than it wrote."""
    outside = held.kubelet.folder / "elsewhere" / "mount"
    reader = "MULTI_NODE_READER_ONLY"
    persistent = {**LLAMA, **POD.attributes(ephemeral=False)}
    cases: list[tuple[dict[str, str], dict[str, Any], str]] = [(bad, {}, said) for bad, said in BAD_ATTRIBUTES]
    cases += [
        (LLAMA, {"volume_id": ""}, "volume_id"),
        (LLAMA, {"target_path": ""}, "target_path"),
        (LLAMA, {"target_path": str(outside)}, "elsewhere"),
        (LLAMA, {"target_path": f"{held.kubelet.target(POD)}/../../../../../../etc/x"}, "target_path"),
        (LLAMA, {"target_path": "pods/x"}, "target_path"),
        (LLAMA, {"volume_capability": None}, "volume_capability"),
        (LLAMA, {"volume_capability": csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume())}, "block"),
        (LLAMA, {"volume_capability": capability("MULTI_NODE_MULTI_WRITER")}, "MULTI_NODE_MULTI_WRITER"),
        (LLAMA, {"volume_context": persistent}, "SINGLE_NODE_WRITER"),
        (LLAMA, {"volume_context": LLAMA}, "podInfoOnMount"),
        (LLAMA, {"volume_capability": capability(reader, fs_type="ext4")}, "ext4"),
        (LLAMA, {"volume_capability": capability(reader, mount_flags=["rw"])}, "rw"),
        (LLAMA, {"secrets": {"token": "hush"}}, "nodePublishSecretRef"),
    ]
    for attributes, changes, said in cases:
        refused = refusal(held.kubelet, attributes, **changes)
        assert (refused.code, refused.is_final) == ("INVALID_ARGUMENT", True), (attributes, changes)
        assert said in refused.message
        assert "hush" not in refused.message
    assert "hush" not in held.daemon.log()
    held.kubelet.publish(POD, {}, volume_context=persistent, volume_capability=capability(reader, mount_flags=["ro"]))
    assert held.kubelet.files(POD) == {**FILES, "name.txt": b"llama"}


def test_a_target_through_a_symlink_is_refused(held: Node) -> None:
    """A target whose folder leads out of the kubelet's folder of pods is refused, and nothing is mounted there."""
    pod = Pod("uid-way-out")
    way_out = held.kubelet.on_host(held.kubelet.target(pod)).parent
    way_out.parent.mkdir(parents=True, exist_ok=True)
    elsewhere = held.kubelet.folder / "elsewhere"
    elsewhere.mkdir()
    way_out.symlink_to(elsewhere)
    assert refusal(held.kubelet, LLAMA, pod).code == "INVALID_ARGUMENT"
    assert list(elsewhere.iterdir()) == []


def test_many_pods_share_a_snapshot(node: Node) -> None:
    """Twenty pods that start at the same time get a volume each; the lease ends with the last of them."""
    node.hold("llama")
    pods = [Pod(f"uid-{number}") for number in range(20)]
    threads = [threading.Thread(target=node.kubelet.publish, args=(pod, LLAMA)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(node.kubelet.files(pod) == {**FILES, "name.txt": b"llama"} for pod in pods)
    assert node.daemon.metric("holdfast_csi_volumes") == 20
    for pod in pods[1:]:
        node.kubelet.unpublish(pod)
    assert node.daemon.control.gc(dry_run=False).versions == ()
    node.kubelet.unpublish(pods[0])
    assert len(node.daemon.control.gc(dry_run=False).versions) == 1
    assert not node.daemon.path(LLAMA_REF).exists()
