"""What every CSI driver must do, as far as a node service without staging has to: csi-sanity's cases, in our words.

https://github.com/kubernetes-csi/csi-test/tree/master/pkg/sanity
"""

from __future__ import annotations

import re

import pytest
from google.protobuf.message import Message

from cached.csi.proto import csi_pb2 as csi
from tests.support.kubelet import DRIVER, Pod, Refused, T, capability
from tests.system.csi.conftest import Node

POD = Pod("uid-1")
LLAMA = {"model": "llama", "version": "v1"}


def ask(node: Node, method: str, request: Message, response: type[T]) -> T:
    return node.kubelet.call(node.kubelet.socket, f"csi.v1.{method}", request, response)


def code(node: Node, method: str, request: Message) -> str:
    """The status of a call that fails."""
    with pytest.raises(Refused) as refused:
        ask(node, method, request, csi.NodePublishVolumeResponse)
    return refused.value.code


def test_the_identity_service(held: Node) -> None:
    """The plugin's name is a domain name of at most 63 characters, its version is not empty, and it is ready."""
    info = ask(held, "Identity/GetPluginInfo", csi.GetPluginInfoRequest(), csi.GetPluginInfoResponse)
    assert info.name == DRIVER
    assert re.fullmatch(r"[a-zA-Z0-9]([-.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?", info.name)
    assert info.vendor_version
    ask(held, "Identity/GetPluginCapabilities", csi.GetPluginCapabilitiesRequest(), csi.GetPluginCapabilitiesResponse)
    assert ask(held, "Identity/Probe", csi.ProbeRequest(), csi.ProbeResponse).ready.value


def test_the_node_service_says_where_it_is(held: Node) -> None:
    """The node has an id, and capabilities of which none is unknown; there are none."""
    assert ask(held, "Node/NodeGetInfo", csi.NodeGetInfoRequest(), csi.NodeGetInfoResponse).node_id == "node-a"
    found = ask(held, "Node/NodeGetCapabilities", csi.NodeGetCapabilitiesRequest(), csi.NodeGetCapabilitiesResponse)
    assert found == csi.NodeGetCapabilitiesResponse()


@pytest.mark.parametrize("missing", ["volume_id", "target_path", "volume_capability"])
def test_publish_needs_its_required_fields(held: Node, missing: str) -> None:
    """Publishing without an id, a target path or a capability is INVALID_ARGUMENT."""
    request = held.kubelet.make_request(POD, LLAMA)
    request.ClearField(missing)
    assert code(held, "Node/NodePublishVolume", request) == "INVALID_ARGUMENT"


def test_publish_needs_an_access_type_and_mode(held: Node) -> None:
    """A capability without access type, or without access mode, is INVALID_ARGUMENT."""
    for field in ("mount", "access_mode"):
        request = held.kubelet.make_request(POD, LLAMA)
        request.volume_capability.ClearField(field)
        assert code(held, "Node/NodePublishVolume", request) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("missing", ["volume_id", "target_path"])
def test_unpublish_needs_its_required_fields(held: Node, missing: str) -> None:
    """Unpublishing without an id or a target path is INVALID_ARGUMENT."""
    target = str(held.kubelet.target(POD))
    request = csi.NodeUnpublishVolumeRequest(volume_id="id", target_path=target)
    request.ClearField(missing)
    assert code(held, "Node/NodeUnpublishVolume", request) == "INVALID_ARGUMENT"


def test_publish_makes_the_target_and_unpublish_removes_it(held: Node) -> None:
    """The target is there after publish, although the caller made its parent only, and gone after unpublish; each may
    come twice, and then once more from the beginning."""
    target = held.kubelet.on_host(held.kubelet.target(POD))
    for _ in range(2):
        held.kubelet.publish(POD, LLAMA)
        held.kubelet.publish(POD, LLAMA)
        assert (target / "model.safetensors").is_file()
        request = csi.NodeUnpublishVolumeRequest(volume_id="id", target_path=str(held.kubelet.target(POD)))
        for _ in range(2):
            ask(held, "Node/NodeUnpublishVolume", request, csi.NodeUnpublishVolumeResponse)
            assert not target.exists()


def test_a_volume_may_be_published_at_two_targets(held: Node) -> None:
    """One volume id at two targets is two mounts, as for one persistent volume in two pods of a node."""
    other = Pod("uid-2", "other")
    for pod in (POD, other):
        read_only = capability("MULTI_NODE_READER_ONLY")
        held.kubelet.publish(pod, LLAMA, volume_id="the-same", volume_capability=read_only)
    assert len(held.kubelet.mounts()) == 2
    held.kubelet.unpublish(POD)
    assert list(held.kubelet.mounts()) == [str(held.kubelet.target(other))]
    held.kubelet.unpublish(other)


@pytest.mark.parametrize("method", ["NodeStageVolume", "NodeUnstageVolume", "NodeGetVolumeStats", "NodeExpandVolume"])
def test_what_is_no_read_onlyis_unimplemented(held: Node, method: str) -> None:
    """A method whose capability the driver does not have is UNIMPLEMENTED."""
    assert code(held, f"Node/{method}", csi.NodeGetInfoRequest()) == "UNIMPLEMENTED"
    assert code(held, "Controller/CreateVolume", csi.NodeGetInfoRequest()) == "UNIMPLEMENTED"
