"""The gRPC services: CSI's Identity and Node, and the kubelet's Registration.

Law: translates between messages and the volumes, and decides nothing. Every error has a gRPC status by its code, and a
message that says what to do: the kubelet writes it into the pod's Event `FailedMount`.
https://github.com/container-storage-interface/spec/blob/v1.11.0/spec.md#error-scheme
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import inf
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from cached.contract.errors import HoldfastError
from cached.contract.release import VERSION
from cached.csi import volumes as codes
from cached.csi.metrics import CsiMetrics
from cached.csi.proto import csi_pb2 as csi
from cached.csi.proto import registration_pb2 as registration
from cached.csi.request import DRIVER, INVALID, Access, check_target, parse_request
from cached.csi.volumes import Volumes

_log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_STATUSES = {
    INVALID: Status.INVALID_ARGUMENT,
    codes.EXISTS: Status.ALREADY_EXISTS,
    codes.BUSY: Status.ABORTED,
    codes.ENDED: Status.ABORTED,
    codes.FORBIDDEN: Status.PERMISSION_DENIED,
    "unknown_model": Status.NOT_FOUND,
}
_WAITING_SHARE = 5 / 6  # of the time that the caller waits: it is to hear why, not that nothing came
_LONGEST_MESSAGE = 1500  # an Event's message is cut at 1024, and the kubelet writes some of its own before


class IdentityService:
    """Who the driver is, and whether it works. `find_trouble` returns why not."""

    def __init__(self, find_trouble: Callable[[], str | None]) -> None:
        self._find_trouble = find_trouble

    async def _get_info(self, _request: csi.GetPluginInfoRequest) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=DRIVER, vendor_version=VERSION)

    async def _get_capabilities(self, _request: csi.GetPluginCapabilitiesRequest) -> csi.GetPluginCapabilitiesResponse:
        return csi.GetPluginCapabilitiesResponse()

    async def _probe(self, _request: csi.ProbeRequest) -> csi.ProbeResponse:
        return csi.ProbeResponse(ready=BoolValue(value=self._find_trouble() is None))

    def __mapping__(self) -> dict[str, Handler]:
        return {
            "/csi.v1.Identity/GetPluginInfo": _handler(self._get_info, csi.GetPluginInfoRequest),
            "/csi.v1.Identity/GetPluginCapabilities": _handler(
                self._get_capabilities, csi.GetPluginCapabilitiesRequest
            ),
            "/csi.v1.Identity/Probe": _handler(self._probe, csi.ProbeRequest),
        }


class NodeService:
    """The volumes of the node. `pods`: the kubelet's folder of pods."""

    def __init__(self, volumes: Volumes, node: str, pods: Path, metrics: CsiMetrics) -> None:
        self._volumes = volumes
        self._node = node
        self._pods = pods
        self._metrics = metrics

    async def _publish(self, request: csi.NodePublishVolumeRequest, left_s: float) -> csi.NodePublishVolumeResponse:
        capability = request.volume_capability
        access = Access(
            kind=capability.WhichOneof("access_type"),
            mode=_mode_name(capability.access_mode.mode),
            fs_type=capability.mount.fs_type,
            mount_flags=capability.mount.mount_flags,
        )
        try:
            wanted = await asyncio.to_thread(
                parse_request,
                request.volume_id,
                request.target_path,
                request.volume_context,
                access,
                request.secrets,
                self._pods,
            )
            await self._volumes.publish(wanted, _WAITING_SHARE * left_s)
        except HoldfastError as error:
            self._metrics.count_publish(_status_of(error).name.lower())
            _log.info("%s: not published: %s", request.target_path[:300], error)
            raise
        self._metrics.count_publish("ok")
        return csi.NodePublishVolumeResponse()

    async def _unpublish(self, request: csi.NodeUnpublishVolumeRequest) -> csi.NodeUnpublishVolumeResponse:
        target = await asyncio.to_thread(check_target, request.volume_id, request.target_path, self._pods)
        await self._volumes.unpublish(target)
        return csi.NodeUnpublishVolumeResponse()

    async def _get_capabilities(self, _request: csi.NodeGetCapabilitiesRequest) -> csi.NodeGetCapabilitiesResponse:
        return csi.NodeGetCapabilitiesResponse()

    async def _get_info(self, _request: csi.NodeGetInfoRequest) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(node_id=self._node)

    def __mapping__(self) -> dict[str, Handler]:
        return {
            "/csi.v1.Node/NodePublishVolume": _timed_handler(self._publish, csi.NodePublishVolumeRequest),
            "/csi.v1.Node/NodeUnpublishVolume": _handler(self._unpublish, csi.NodeUnpublishVolumeRequest),
            "/csi.v1.Node/NodeGetCapabilities": _handler(self._get_capabilities, csi.NodeGetCapabilitiesRequest),
            "/csi.v1.Node/NodeGetInfo": _handler(self._get_info, csi.NodeGetInfoRequest),
        }


class RegistrationService:
    """What the kubelet asks a plugin that it finds in its registry. `registered` is called with its verdict: None, or
    why it refused."""

    def __init__(self, endpoint: Path, registered: Callable[[str | None], Awaitable[None]]) -> None:
        self._endpoint = endpoint
        self._registered = registered

    async def _get_info(self, _request: registration.InfoRequest) -> registration.PluginInfo:
        return registration.PluginInfo(
            type="CSIPlugin", name=DRIVER, endpoint=str(self._endpoint), supported_versions=["1.0.0"]
        )

    async def _notify(self, request: registration.RegistrationStatus) -> registration.RegistrationStatusResponse:
        await self._registered(None if request.plugin_registered else request.error or "no reason given")
        return registration.RegistrationStatusResponse()

    def __mapping__(self) -> dict[str, Handler]:
        return {
            "/pluginregistration.Registration/GetInfo": _handler(self._get_info, registration.InfoRequest),
            "/pluginregistration.Registration/NotifyRegistrationStatus": _handler(
                self._notify, registration.RegistrationStatus
            ),
        }


def _handler(answer: Callable[[Request], Awaitable[Response]], request_type: type[Request]) -> Handler:
    """Return grpclib's handler of a method with one request and one response."""
    return _timed_handler(lambda request, _left_s: answer(request), request_type)


def _timed_handler(answer: Callable[[Request, float], Awaitable[Response]], request_type: type[Request]) -> Handler:
    """Do the same for a method that is told how many seconds its caller waits; `inf` where it does not say."""

    async def handle(stream: Stream[Request, Response]) -> None:
        request = await stream.recv_message()
        assert request is not None, "a call of one request has one"
        try:
            response = await answer(request, inf if stream.deadline is None else stream.deadline.time_remaining())
        except HoldfastError as error:
            raise GRPCError(_status_of(error), str(error)[:_LONGEST_MESSAGE]) from error
        await stream.send_message(response)

    return Handler(handle, Cardinality.UNARY_UNARY, request_type, Message)


def _status_of(error: HoldfastError) -> Status:
    return _STATUSES.get(error.code, Status.FAILED_PRECONDITION if error.permanent else Status.UNAVAILABLE)


def _mode_name(mode: int) -> str:
    try:
        return csi.VolumeCapability.AccessMode.Mode.Name(mode)
    except ValueError:
        return str(mode)
