"""A kubelet as far as a CSI driver sees it, in a mount namespace of its own, and daemons in containers on its node.

Law: it calls over real Unix sockets with another gRPC library than the daemon's, and real mounts propagate to it as
from a container with `mountPropagation: Bidirectional`. What it does and in which order is from the kubelet's sources
(pkg/kubelet/pluginmanager, pkg/volume/csi/csi_mounter.go). Skipped where this user may not mount.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from cached.csi.proto import csi_pb2 as csi
from cached.csi.proto import registration_pb2 as registration
from tests.support.gates import wait_for

DRIVER = "weights.holdfast.dev"
CSI_TIMEOUT_S = 120.0  # csiTimeout of the kubelet
_NOT_FINAL = frozenset(  # after these the kubelet takes the volume for perhaps mounted: csi_client.go, isFinalError
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)
T = TypeVar("T", bound=Message)


class Refused(Exception):
    """A call's error: its status, and the message that the kubelet writes into the pod's Event."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code.name
        self.message = message
        self.is_final = code not in _NOT_FINAL


@dataclass(frozen=True)
class Pod:
    """A pod, as the kubelet tells the driver of it."""

    uid: str
    name: str = "server"
    namespace: str = "default"

    def attributes(self, *, ephemeral: bool = True) -> dict[str, str]:
        prefix = "csi.storage.k8s.io"
        return {
            f"{prefix}/pod.name": self.name,
            f"{prefix}/pod.namespace": self.namespace,
            f"{prefix}/pod.uid": self.uid,
            f"{prefix}/serviceAccount.name": "default",
            f"{prefix}/ephemeral": "true" if ephemeral else "false",
        }


@dataclass
class Kubelet:
    """One node. `folder` is its --root-dir; `holder` the process whose mount namespace is the host's."""

    folder: Path
    holder: int
    registered: list[str] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "plugins" / DRIVER / "csi.sock"

    @property
    def registry(self) -> Path:
        return self.folder / "plugins_registry" / f"{DRIVER}-reg.sock"

    @property
    def options(self) -> tuple[str, ...]:
        """The daemon's options on this node."""
        return ("--csi", str(self.socket), "--kubelet-dir", str(self.folder))

    @property
    def container(self) -> tuple[str, ...]:
        """The command that runs a process in a container whose pods folder is Bidirectional."""
        return ("nsenter", "-t", str(self.holder), "-m", "--", "unshare", "-m", "--propagation", "unchanged")

    def on_host(self, path: Path) -> Path:
        """A path as the host's mount namespace has it."""
        return Path(f"/proc/{self.holder}/root{path}")

    def target(self, pod: Pod, volume: str = "weights") -> Path:
        return self.folder / "pods" / pod.uid / "volumes" / "kubernetes.io~csi" / volume / "mount"

    def files(self, pod: Pod, volume: str = "weights") -> dict[str, bytes]:
        """What a container of the pod would read in the volume: paths and bytes, without Holdfast's records; the
        target of each symlink."""
        root = self.on_host(self.target(pod, volume))
        found: dict[str, bytes] = {}
        for folder, _, names in os.walk(root):
            for path in (Path(folder) / name for name in names):
                if ".holdfast" not in path.parts:
                    found[str(path.relative_to(root))] = path.read_bytes()
        for link in (path for path in root.rglob("*") if path.is_symlink()):
            found[str(link.relative_to(root))] = os.fsencode(link.readlink())
        return found

    def mounts(self) -> dict[str, set[str]]:
        """The mounts of this node's volumes in the host's namespace: the options by mount point."""
        found = {}
        for line in Path(f"/proc/{self.holder}/mountinfo").read_text().splitlines():
            fields = line.split(" ")
            if fields[4].startswith(f"{self.folder}/pods/"):
                found[fields[4]] = set(fields[5].split(","))
        return found

    def unmount_all(self) -> None:
        """Unmount every volume, as a reboot does."""
        for point in sorted(self.mounts(), reverse=True):
            self._in_host("umount", "-l", point)

    def umount(self, path: Path) -> None:
        """Unmount one path in the host's namespace, as a person does."""
        self._in_host("umount", "-l", str(path))

    def bind(self, source: Path, place: Path) -> None:
        """Show one folder at another place in the host's namespace."""
        self._in_host("mount", "--bind", str(source), str(place))

    def _in_host(self, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.holder), "-m", "--", *command], check=True, capture_output=True)

    # --- registration ----------------------------------------------------------------------------------------------

    def register(self) -> csi.NodeGetInfoResponse:
        """Register the plugin that is in the registry, and return what it says of the node."""
        wait_for(self._has_plugin, "a plugin in the registry")
        info = self.call(
            self.registry,
            "pluginregistration.Registration/GetInfo",
            registration.InfoRequest(),
            registration.PluginInfo,
            1.0,
        )
        assert info.type == "CSIPlugin", info
        assert any(each.startswith("1.") for each in info.supported_versions), info
        node = self.call(
            Path(info.endpoint), "csi.v1.Node/NodeGetInfo", csi.NodeGetInfoRequest(), csi.NodeGetInfoResponse
        )
        self.tell_registered(registration.RegistrationStatus(plugin_registered=True))
        self.registered.append(info.name)
        return node

    def tell_registered(self, status: registration.RegistrationStatus) -> None:
        """Tell the plugin how its registration went."""
        self.call(
            self.registry,
            "pluginregistration.Registration/NotifyRegistrationStatus",
            status,
            registration.RegistrationStatusResponse,
            5.0,
        )

    def _has_plugin(self) -> bool:
        return self.registry.is_socket()

    # --- volumes ---------------------------------------------------------------------------------------------------

    def publish(
        self,
        pod: Pod,
        attributes: Mapping[str, str],
        volume: str = "weights",
        *,
        timeout_s: float = CSI_TIMEOUT_S,
        **changes: Any,
    ) -> None:
        """Mount an inline volume with these attributes; `changes` replace fields of the request. Raises `Refused`."""
        target = self.target(pod, volume)
        self.on_host(target.parent).mkdir(0o750, parents=True, exist_ok=True)
        request = self.make_request(pod, attributes, volume, **changes)
        try:
            self.call(self.socket, "csi.v1.Node/NodePublishVolume", request, csi.NodePublishVolumeResponse, timeout_s)
        except Refused as refused:
            if refused.is_final and str(target) not in self.mounts():
                with contextlib.suppress(FileNotFoundError):
                    self.on_host(target).rmdir()
            raise

    def make_request(
        self, pod: Pod, attributes: Mapping[str, str], volume: str = "weights", **changes: Any
    ) -> csi.NodePublishVolumeRequest:
        """The request for an inline volume."""
        fields: dict[str, Any] = {
            "volume_id": f"csi-{pod.uid}-{volume}",
            "target_path": str(self.target(pod, volume)),
            "volume_capability": capability("SINGLE_NODE_WRITER"),
            "volume_context": {**attributes, **pod.attributes()},
        }
        return csi.NodePublishVolumeRequest(**{**fields, **changes})

    def unpublish(self, pod: Pod, volume: str = "weights") -> None:
        """Unmount a volume and remove its folders, as for a pod that ends. Raises `Refused`."""
        self.unpublish_at(self.target(pod, volume))

    def unpublish_at(self, target: Path) -> None:
        """Do the same by the volume's target."""
        request = csi.NodeUnpublishVolumeRequest(volume_id=f"csi-{target.parent.name}", target_path=str(target))
        self.call(self.socket, "csi.v1.Node/NodeUnpublishVolume", request, csi.NodeUnpublishVolumeResponse)
        shutil.rmtree(self.on_host(target.parent), ignore_errors=True)

    def call(self, socket: Path, method: str, request: Message, response: type[T], timeout_s: float = 30.0) -> T:
        """Call a method; raises `Refused`."""
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            answer: Any = channel.unary_unary(
                f"/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            try:
                found: T = answer(request, timeout=timeout_s)
            except grpc.RpcError as error:
                raise Refused(error.code(), error.details() or "") from error
            return found


def capability(mode: str, **mount: Any) -> csi.VolumeCapability:
    """A capability to mount in this access mode."""
    return csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(**mount),
        access_mode=csi.VolumeCapability.AccessMode(mode=mode),
    )


@contextlib.contextmanager
def kubelet_node() -> Iterator[Kubelet]:
    """A node without pods. Its folder is a short path, since sockets are in it."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    folder = Path(tempfile.mkdtemp(prefix="hfk-"))
    pods = folder / "pods"
    for made in (pods, folder / "plugins_registry"):
        made.mkdir()
    script = f"mount -t tmpfs pods {pods} && mount --make-shared {pods} && echo ready && exec sleep infinity"
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            assert holder.stderr is not None
            pytest.skip(f"no mount namespaces here: {holder.stderr.read().decode().strip()}")
        yield Kubelet(folder, holder.pid)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        shutil.rmtree(folder, ignore_errors=True)
