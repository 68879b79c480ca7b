"""The injector's options, from the command line and the environment.

Law: values only; every mistake is a usage error (exit 2) that names the option.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cached.contract.layout import DEFAULT_ROOT, Layout
from cached.contract.program.options import OptionParser, parse_address, whole_number
from sidecar.injector.cluster.api import ACCOUNT
from sidecar.injector.cluster.pool_key import PoolSecret
from sidecar.injector.https.certificate_store import CertificateObjects
from sidecar.injector.pod.delivery import Mode
from sidecar.injector.pod.gate_container import GateMode, GateResources, GateSettings

_LISTEN = "0.0.0.0:8443"  # the API server comes from outside the pod
_METRICS = "0.0.0.0:8444"  # and so do the kubelet and Prometheus
_OBJECT_NAME = "holdfast-injector"
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGT]i?)?")
_DEADLINE = "21600"  # six hours
_user = whole_number(1, 2**31 - 1, "a user's number")
_deadline = whole_number(1, 2**31 - 1 - 3600, "whole seconds")  # a probe's failureThreshold is an int32


@dataclass(frozen=True, slots=True)
class InjectorOptions:
    """The options of one injector. `certificate`: a folder with `tls.crt` and `tls.key`, or the objects of our own;
    `pool_secret`: where to make the daemons' key, None: nowhere."""

    gate: GateSettings
    mode: Mode
    catalog: Path | None
    listen: tuple[str, int]
    metrics_listen: tuple[str, int]
    certificate: Path | CertificateObjects
    pool_secret: PoolSecret | None
    drain_s: float
    log_level: str


def parse(arguments: Sequence[str]) -> InjectorOptions:
    """Parse the options; exits with 2 where they are invalid."""
    parser = OptionParser(
        prog="holdfast inject",
        description="Answer the API server's reviews of annotated pods: add the gate, the volume, mounts, variables.",
    )
    _gate_options(parser)
    _server_options(parser)
    given = parser.parse_args(list(arguments))
    certificate = given.cert_dir or _place(parser, given)
    return InjectorOptions(
        gate=_gate(given),
        mode=Mode(given.mode),
        catalog=given.catalog,
        listen=given.listen,
        metrics_listen=given.metrics_listen,
        certificate=certificate,
        pool_secret=_pool_secret(parser, given, certificate),
        drain_s=given.drain,
        log_level=given.log_level,
    )


def _gate_options(parser: OptionParser) -> None:
    parser.option("--gate-image", required=True, metavar="IMAGE", help="the image that gates run")
    pull = "whether the node pulls that image"
    parser.option("--gate-pull-policy", choices=("Always", "IfNotPresent", "Never"), default="IfNotPresent", help=pull)
    mode = "native: a sidecar with a lease; init: a plain init container, for clusters before 1.29"
    parser.option("--gate-mode", choices=[mode.value for mode in GateMode], default="native", help=mode)
    parser.option("--gate-user", type=_user, default="65532", metavar="UID", help="user and group")
    parser.option("--gate-cpu", type=_quantity, default="10m", metavar="CPU", help="CPU request")
    cpu = "CPU limit where all containers of the pod have one"
    parser.option("--gate-cpu-limit", type=_quantity, default="500m", metavar="CPU", help=cpu)
    parser.option("--gate-memory", type=_quantity, default="64Mi", metavar="SIZE", help="memory request")
    memory = "memory limit"
    parser.option("--gate-memory-limit", type=_quantity, default="256Mi", metavar="SIZE", help=memory)
    address = "the address that gates listen on, `::` where pods have IPv6 alone"
    parser.option("--gate-listen-host", choices=("0.0.0.0", "::"), default="0.0.0.0", help=address)  # noqa: S104
    deadline = "seconds until a gate gives up and is started again"
    parser.option("--startup-deadline", type=_deadline, default=_DEADLINE, metavar="S", help=deadline)
    root = "the daemon's root on the nodes"
    parser.option("--host-root", type=_absolute, default=str(DEFAULT_ROOT), metavar="DIR", help=root)
    recursive = "mounts' recursiveReadOnly; API servers before 1.30 ignore it"
    choices = ("IfPossible", "Enabled", "Disabled")
    parser.option("--recursive-read-only", choices=choices, default="IfPossible", help=recursive)


def _server_options(parser: OptionParser) -> None:
    mode = (
        "how pods get their weights that do not say it: behind a gate, in a CSI volume, or auto: in a volume where a "
        "node has registered the driver"
    )
    parser.option("--mode", choices=[mode.value for mode in Mode], default="gate", help=mode)
    parser.option("--catalog", type=Path, metavar="FILE", help="the daemons' catalog, whose pins pods get; watched")
    listen = "answer reviews here, on /mutate"
    parser.option("--listen", type=parse_address, default=_LISTEN, metavar="HOST:PORT", help=listen)
    metrics = "answer /healthz, /readyz and /metrics here, without TLS"
    parser.option("--metrics-listen", type=parse_address, default=_METRICS, metavar="HOST:PORT", help=metrics)
    folder = "take tls.crt and tls.key from here (cert-manager's, mounted; watched), and write nothing in the cluster"
    parser.option("--cert-dir", type=Path, metavar="DIR", help=folder)
    kept = "otherwise, keep a CA and a certificate in this Secret"
    parser.option("--cert-secret", default=f"{_OBJECT_NAME}-tls", metavar="NAME", help=kept)
    webhook = "and the CA in this MutatingWebhookConfiguration"
    parser.option("--webhook-name", default=_OBJECT_NAME, metavar="NAME", help=webhook)
    service = "of this Service"
    parser.option("--service-name", default=_OBJECT_NAME, metavar="NAME", help=service)
    home = "where Secret and Service are"
    parser.option("--namespace", otherwise="the pod's own", metavar="NAME", help=home)
    pool = "make the key of the daemons' pool in this Secret, if it is empty"
    parser.option("--peer-secret", otherwise="make none", metavar="NAME", help=pool)
    drain = "seconds to go on answering after SIGTERM"
    parser.option("--drain", type=_seconds, default="5", metavar="S", help=drain)
    parser.option("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="how much to log")
    parser.log_format()


def _gate(given: argparse.Namespace) -> GateSettings:
    return GateSettings(
        image=given.gate_image,
        pull_policy=given.gate_pull_policy,
        mode=GateMode(given.gate_mode),
        user=given.gate_user,
        resources=GateResources(given.gate_cpu, given.gate_cpu_limit, given.gate_memory, given.gate_memory_limit),
        deadline_s=given.startup_deadline,
        host_public=str(Layout(given.host_root).public.path),
        recursive_read_only=given.recursive_read_only,
        listen_host=given.gate_listen_host,
        log_format=given.log_format,
    )


def _place(parser: OptionParser, given: argparse.Namespace) -> CertificateObjects:
    namespace: str | None = given.namespace
    if namespace is None:
        path = ACCOUNT / "namespace"
        try:
            namespace = path.read_text().strip()
        except OSError as error:
            parser.error(f"expected --namespace or --cert-dir, found neither, and {path}: {error.strerror}")
    return CertificateObjects(namespace, given.cert_secret, given.webhook_name, given.service_name)


def _pool_secret(
    parser: OptionParser, given: argparse.Namespace, certificate: Path | CertificateObjects
) -> PoolSecret | None:
    if given.peer_secret is None:
        return None
    if isinstance(certificate, Path):
        parser.error(
            "--peer-secret with --cert-dir, with which the injector writes nothing in the cluster: leave one out, "
            "and make the Secret yourself (`openssl rand -hex 32`)"
        )
    return PoolSecret(certificate.namespace, given.peer_secret)


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"expected a Kubernetes quantity such as 500m or 64Mi, found {text!r}")
    return text


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"expected an absolute path without `..`, found {text!r}")
    return path


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise ValueError(f"expected seconds from 0 to 3600, found {text!r}")
    return value
