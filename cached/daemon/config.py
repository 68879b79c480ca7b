"""The daemon's options, from the command line and `HOLDFAST_…` variables.

Law: reads arguments and the environment, nothing else; a bad value is a usage error before anything starts.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cached.contract.layout import DEFAULT_ROOT
from cached.contract.program.options import OptionParser, parse_address, whole_number
from cached.contract.program.units import parse_duration, parse_rate, parse_size
from cached.daemon.pool import ZONE_LABEL, PoolOptions, TlsOptions
from cached.fetch.pool.membership import parse_peers
from cached.fetch.workers import DEFAULT_CONNECTIONS, POOL_CONNECTIONS
from cached.peers.messages import is_zone
from cached.peers.serving.tls_files import TlsPaths
from cached.transport.origin_proxy import OriginProxySettings, parse_origin_proxy_option

T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's options. Sizes in bytes, rates in bytes a second, times in seconds."""

    root: Path
    catalog: Path
    listen: tuple[str, int]
    kube: str
    node: str
    quota: int | None
    high_watermark: float
    low_watermark: float
    connections: int
    connections_per_origin: int
    max_bandwidth: int | None
    scrub_rate: int
    scrub_period_s: float
    fs_verity: str
    stall_timeout_s: float
    resolve_interval_s: float | None
    csi: Path | None
    csi_registration: Path | None
    kubelet_dir: Path
    page: str
    log_level: str
    tracing: str
    pool: PoolOptions
    origin_proxy: OriginProxySettings | None


def parse_config(arguments: Sequence[str]) -> Config:
    """Read the daemon's options; exits 2 with the reason for a bad value."""
    parser = OptionParser(prog="holdfast daemon", description="Fetch, verify, publish, evict and report on one node.")
    _add_node_options(parser)
    _add_space_and_transfer_options(parser)
    _add_integrity_options(parser)
    _add_source_options(parser)
    _add_csi_options(parser)
    parser.option("--page", choices=("on", "off"), default="on", help="off: no page for people at / of --listen")
    _add_peer_options(parser)
    _add_peer_tls(parser)
    _add_origin_proxy_options(parser)
    parser.option("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="how much to log")
    parser.log_format()
    parser.tracing()
    given = parser.parse_args(arguments)
    if not given.low_watermark <= given.high_watermark:
        low, high = given.low_watermark, given.high_watermark
        parser.error(f"--low-watermark {low} is above --high-watermark {high}: set it lower")
    if given.csi_registration is not None and given.csi is None:
        parser.error("--csi-registration without --csi: give the driver's socket too")
    if not given.peer_listen[1]:
        parser.error("--peer-listen: expected a port that other nodes know, found 0")
    if given.origin_proxy is not None and given.peers is not None:
        parser.error("--origin-proxy with --peers: both share files between nodes: expected one of them")
    if given.origin_proxy is None and given.origin_proxy_credentials == "on":
        parser.error("--origin-proxy-credentials without --origin-proxy: expected the proxy too")
    if given.origin_proxy is not None:
        given.origin_proxy = OriginProxySettings(given.origin_proxy, given.origin_proxy_credentials == "on")
    del given.origin_proxy_credentials
    tls = _parse_peer_tls(parser, given)
    given.pool = PoolOptions(
        given.peers, given.peer_listen, given.peer_key_file, given.peer_upload, given.peer_zone, tls
    )
    given.connections = given.connections or (POOL_CONNECTIONS if given.peers else DEFAULT_CONNECTIONS)
    for name in [name for name in vars(given) if name.startswith("peer")]:
        delattr(given, name)
    given.connections_per_origin = given.connections_per_origin or given.connections
    del given.log_format  # read before: `open_events`
    return Config(**vars(given))


def _add_node_options(parser: OptionParser) -> None:
    folder = "the cache's folder, on one file system"
    parser.option("--root", type=_parse_path, default=str(DEFAULT_ROOT), metavar="DIR", help=folder)
    parser.option("--catalog", type=_parse_path, required=True, metavar="FILE", help="the catalog, in YAML; watched")
    listen = "metrics and status, reads only"
    parser.option("--listen", type=parse_address, default="0.0.0.0:9400", metavar="HOST:PORT", help=listen)
    parser.option(
        "--kube",
        choices=("auto", "off"),
        default="auto",
        help="auto: the cluster that KUBECONFIG names, or that this runs in, if any",
    )
    host = socket.gethostname()
    parser.option("--node", default=host, otherwise="the host's name", metavar="NAME", help="this node's name")


def _add_space_and_transfer_options(parser: OptionParser) -> None:
    parser.option(
        "--quota",
        type=_positive(parse_size, "a size above 0 such as 2TB"),
        otherwise="the file system's",
        metavar="SIZE",
        help="the most that the cache may hold, as 2TB",
    )
    high = "evict above this share of the capacity"
    parser.option("--high-watermark", type=_parse_share, default="0.90", metavar="SHARE", help=high)
    low = "evict until below this share"
    parser.option("--low-watermark", type=_parse_share, default="0.80", metavar="SHARE", help=low)
    parser.option(
        "--connections",
        type=whole_number(1, 256),
        otherwise=f"{DEFAULT_CONNECTIONS}, with --peers {POOL_CONNECTIONS}",
        metavar="N",
        help="connections in all",
    )
    parser.option(
        "--connections-per-origin",
        type=whole_number(1, 256),
        otherwise="all of them",
        metavar="N",
        help="connections to one origin",
    )
    parser.option(
        "--max-bandwidth",
        type=_positive(parse_rate, "a rate above 0 such as 200MiB/s"),
        otherwise="no limit",
        metavar="RATE",
        help="the most to receive, as 200MiB/s",
    )


def _add_integrity_options(parser: OptionParser) -> None:
    rate = "hash what is on disk again, at most so fast; 0: never"
    parser.option("--scrub-rate", type=parse_rate, default="16MiB/s", metavar="RATE", help=rate)
    parser.option(
        "--scrub-period",
        dest="scrub_period_s",
        type=parse_duration,
        default="7d",
        metavar="DURATION",
        help="hash each file again once in that time, as 12h, spread over it, as far as the rate allows",
    )
    parser.option(
        "--fs-verity",
        choices=("auto", "off", "require"),
        default="auto",
        help="seal blobs where the kernel and the file system can; require: do not start where they cannot",
    )


def _add_source_options(parser: OptionParser) -> None:
    parser.option(
        "--stall-timeout",
        dest="stall_timeout_s",
        type=_positive(float, "seconds above 0"),
        default="30",
        metavar="S",
        help="seconds without progress that end a connection; twenty times that ends a listing",
    )
    parser.option(
        "--resolve-interval",
        dest="resolve_interval_s",
        type=_parse_interval,
        default="off",
        metavar="DURATION",
        help="look so often whether the source of an unpinned version has other content now, as 6h; off: never",
    )


def _add_csi_options(parser: OptionParser) -> None:
    parser.option(
        "--csi",
        type=_parse_path,
        metavar="SOCKET",
        help="serve volumes with weights to the kubelet, as a CSI driver, at this Unix socket; as root only",
    )
    parser.option(
        "--csi-registration",
        type=_parse_path,
        otherwise="in plugins_registry/ of --kubelet-dir",
        metavar="SOCKET",
        help="the socket at which the kubelet finds the driver",
    )
    kubelet = "the kubelet's folder (its --root-dir)"
    parser.option("--kubelet-dir", type=_parse_path, default="/var/lib/kubelet", metavar="DIR", help=kubelet)


def _add_peer_options(parser: OptionParser) -> None:
    parser.option(
        "--peers",
        type=parse_peers,
        default="off",
        metavar="WHERE",
        help="fetch with these other nodes: dns:NAME:PORT, or HOST:PORT,…",
    )
    port = "where other nodes fetch, and ask"
    parser.option("--peer-listen", type=parse_address, default="0.0.0.0:9402", metavar="HOST:PORT", help=port)
    parser.option(
        "--peer-key-file",
        type=_parse_path,
        otherwise="no peers",
        metavar="FILE",
        help="the pool's keys, one a line: the first one signs, all count",
    )
    parser.option(
        "--peer-upload",
        type=_positive(parse_rate, "a rate above 0 such as 200MiB/s"),
        otherwise="no limit",
        metavar="RATE",
        help="the most to send to other nodes, as 1GiB/s",
    )
    zone = "this node's zone: each zone imports a version once"
    label = f"that of the node's label {ZONE_LABEL}"
    parser.option("--peer-zone", type=_parse_zone, otherwise=label, metavar="ZONE", help=zone)


def _add_origin_proxy_options(parser: OptionParser) -> None:
    parser.option(
        "--origin-proxy",
        type=parse_origin_proxy_option,
        default="off",
        metavar="dragonfly=URL",
        help="ask this node's Dragonfly (dfdaemon's proxy) for files of known sha256, as dragonfly=http://127.0.0.1:4001",
    )
    parser.option(
        "--origin-proxy-credentials",
        choices=("on", "off"),
        default="off",
        help="on: Dragonfly gets requests with credentials in their headers too, which it passes on and logs",
    )


def _add_peer_tls(parser: OptionParser) -> None:
    chain = "this node's certificate chain, in PEM: other nodes are served over TLS"
    parser.option("--peer-tls-cert", type=_parse_path, otherwise="in clear", metavar="FILE", help=chain)
    parser.option("--peer-tls-key", type=_parse_path, metavar="FILE", help="the key of --peer-tls-cert")
    authorities = "the authorities that signed all nodes' certificates, in PEM"
    parser.option("--peer-tls-ca", type=_parse_path, metavar="FILE", help=authorities)
    name = "the name in every node's certificate"
    parser.option("--peer-tls-name", otherwise="that of --peers dns:NAME", metavar="NAME", help=name)


def _parse_peer_tls(parser: OptionParser, given: argparse.Namespace) -> TlsOptions | None:
    """Return how nodes speak TLS, None where no option says so; a usage error where one is missing."""
    names = ("peer_tls_cert", "peer_tls_key", "peer_tls_ca")
    paths = [getattr(given, name) for name in names]
    missing = [f"--{name.replace('_', '-')}" for name, path in zip(names, paths, strict=True) if path is None]
    if len(missing) == len(names) and given.peer_tls_name is None:
        return None
    if missing:
        parser.error(f"TLS between nodes needs {', '.join(missing)} too")
    hosts = {place.host for place in given.peers or ()}
    name = given.peer_tls_name or (hosts.pop() if len(hosts) == 1 else "")
    if given.peers is not None and not name:
        parser.error("--peer-tls-cert with a list of --peers needs --peer-tls-name, the name in every certificate")
    return TlsOptions(TlsPaths(*paths), name)


def _parse_zone(text: str) -> str:
    if not is_zone(text):
        raise ValueError(
            f"expected a zone, as a label's value: at most 63 letters, digits, '.', '_', '-', found {text!r}"
        )
    return text


def _parse_interval(text: str) -> float | None:
    return None if text == "off" else parse_duration(text)


def _parse_share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError(f"expected a share above 0 and at most 1, such as 0.90, found {text!r}")
    return value


def _positive(parse: Callable[[str], T], expected: str) -> Callable[[str], T]:
    """Return a parser of numbers above 0."""

    def parse_positive(text: str) -> T:
        value = parse(text)
        if not value > 0:
            raise ValueError(f"expected {expected}, found {text!r}")
        return value

    return parse_positive


def _parse_path(text: str) -> Path:
    return Path(os.path.abspath(text))
