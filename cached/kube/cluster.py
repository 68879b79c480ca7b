"""The API server's address and the daemon's credentials: the pod's service account, or a KUBECONFIG file.

Law: reads files and the environment; connects to nothing. Credentials never show in a repr. Files are read at each use:
the kubelet rotates tokens and the cluster's CA while the daemon runs.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cached.contract.errors import Permanent, Transient
from cached.contract.program.tls import load_identity

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Material = bytes | Path  # PEM, or the file that has it


@dataclass(frozen=True, slots=True)
class ApiServer:
    """One API server and one identity. `server`: `https://host:port`, with an optional path; `server_name`: the name in
    its certificate, if that is not the host; `authority` None: the system's authorities."""

    server: str
    server_name: str | None = None
    authority: Material | None = field(default=None, repr=False)
    verify: bool = True
    certificate: Material | None = field(default=None, repr=False)
    key: Material | None = field(default=None, repr=False)
    token: str | Path | None = field(default=None, repr=False)

    def read_token(self) -> str | None:
        """Return the current bearer token; a file is read at each call, since the kubelet replaces it before it
        expires. Raises `Transient` (`kube_no_token`)."""
        if not isinstance(self.token, Path):
            return self.token
        try:
            return self.token.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Transient(
                "kube_no_token", f"{self.token}: {error}", "mount the service account's token into the pod"
            ) from error

    def tls(self) -> ssl.SSLContext | None:
        """Return a context from the current files, None for plain HTTP; raises `Permanent` (`kube_bad_credentials`)."""
        if not self.server.startswith("https://"):
            return None
        try:
            cadata = None if self.authority is None else _read(self.authority).decode("ascii")
            context = ssl.create_default_context(cadata=cadata)
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate is not None and self.key is not None:
                load_identity(context, _read(self.certificate) + b"\n" + _read(self.key))
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise Permanent(
                "kube_bad_credentials",
                f"credentials for {self.server}: {error}",
                "check the certificates, as files or as data, in PEM",
            ) from error
        return context


def in_cluster(environment: Mapping[str, str], folder: Path = _SERVICE_ACCOUNT) -> ApiServer | None:
    """Return the cluster of this pod, None outside of one."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return None
    shown = f"[{host}]" if ":" in host else host
    return ApiServer(f"https://{shown}:{port}", authority=folder / "ca.crt", token=folder / "token")


def _read(material: Material) -> bytes:
    return material.read_bytes() if isinstance(material, Path) else material
