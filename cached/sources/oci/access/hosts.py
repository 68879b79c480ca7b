"""Where a registry's requests go: the registry itself, or mirrors before it, from containerd's `hosts.toml`.

Law: reads one small file and sends no request. A setting that is not supported is refused by name: a mirror used
otherwise than its file says is worse than none. Format: containerd, "Registry Configuration", of which `server` and,
for each `[host."URL"]`, `capabilities` and `override_path` are supported. A registry on this machine (localhost, 127/8,
::1) is asked over plain HTTP, as Docker and containerd do; every other one over https unless its file says `http://`.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached.contract.errors import Permanent
from cached.transport.urls import Address

VARIABLE = "HOLDFAST_REGISTRY_HOSTS_DIR"
_FILE = "hosts.toml"
_MAX_BYTES = 256 * 1024
_SERVERS = {"docker.io": "registry-1.docker.io"}
_TOP_KEYS = frozenset({"server", "host", "capabilities", "override_path"})
_HOST_KEYS = frozenset({"capabilities", "override_path"})
_CAPABILITIES = frozenset({"pull", "resolve", "push"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of a registry's API: `base` ends before `/<repository>/…`. `namespace`: the registry that a mirror
    stands for, None for the registry itself. `resolves`: whether it is trusted to say what a tag names."""

    base: str
    namespace: str | None = None
    pulls: bool = True
    resolves: bool = True

    def url(self, path: str) -> str:
        """Return the URL of `path`, `<repository>/manifests/…` say."""
        query = "" if self.namespace is None else f"?ns={self.namespace}"
        return f"{self.base}/{path}{query}"


def is_this_machine(host: str) -> bool:
    """Return whether a registry's `host[:port]` is on this machine."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def origin_endpoint(host: str) -> Endpoint:
    """Return the registry itself, as without any configuration."""
    scheme = "http" if is_this_machine(host) else "https"
    return Endpoint(f"{scheme}://{_SERVERS.get(host, host)}/v2")


def find_endpoints(host: str) -> tuple[Endpoint, ...]:
    """Return the endpoints to ask, in order; the registry itself is the last. Raises `Permanent` (`bad_hosts`)."""
    path = _find_file(host)
    return (origin_endpoint(host),) if path is None else _read(path, host)


def _find_file(host: str) -> Path | None:
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    base = Path(folder)
    if not base.is_dir():
        raise _refuse(f"{VARIABLE}: expected a folder with a folder for each registry, found none at {folder}")
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    names = (f"{name}_{port}_", host) if name and port else (host,)
    return next((base / each / _FILE for each in (*names, "_default") if (base / each / _FILE).is_file()), None)


def _read(path: Path, host: str) -> tuple[Endpoint, ...]:
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise _refuse(f"{path}: expected at most {_MAX_BYTES} bytes, found {len(data)}")
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise _refuse(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _refuse(f"{path}: expected TOML: {error}") from error
    _check_keys(path, "", document, _TOP_KEYS)
    return tuple(_endpoints(path, host, document))


def _endpoints(path: Path, host: str, document: Mapping[str, Any]) -> Iterator[Endpoint]:
    listed = document.get("host", {})
    if not isinstance(listed, dict) or not all(isinstance(each, dict) for each in listed.values()):
        raise _refuse(f'{path}: expected tables [host."https://…"], found something else')
    for url, settings in listed.items():
        _check_keys(path, f"host.{url!r}.", settings, _HOST_KEYS)
        yield _endpoint(path, url, settings, host)
    origin = origin_endpoint(host)
    server = document.get("server")
    if server is None:
        yield origin
        return
    settings = {name: document[name] for name in _HOST_KEYS if name in document}
    found = _endpoint(path, server, settings, host)
    is_origin = Address.parse(found.base).origin == Address.parse(origin.base).origin or path.parent.name != "_default"
    yield Endpoint(found.base, None if is_origin else host, found.pulls, found.resolves)


def _endpoint(path: Path, url: object, settings: Mapping[str, Any], host: str) -> Endpoint:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")) or "?" in url or "@" in url:
        raise _refuse(f"{path}: expected a server as https://host[:port] without credentials, found another value")
    Address.parse(url)
    override = settings.get("override_path", False)
    capabilities = settings.get("capabilities", sorted(_CAPABILITIES))
    if not isinstance(override, bool):
        raise _refuse(f"{path}: override_path: expected true or false")
    if not isinstance(capabilities, list) or not set(map(str, capabilities)) <= _CAPABILITIES:
        raise _refuse(f"{path}: capabilities: expected some of {', '.join(sorted(_CAPABILITIES))}")
    base = url.rstrip("/") if override else f"{url.rstrip('/').removesuffix('/v2')}/v2"
    return Endpoint(base, host, "pull" in capabilities, "resolve" in capabilities)


def _check_keys(path: Path, where: str, found: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        supported = ", ".join(sorted(known))
        raise _refuse(f"{path}: {where}{unknown[0][:100]}: not supported here ({supported} are)")


def _refuse(problem: str) -> Permanent:
    return Permanent(
        "bad_hosts",
        problem,
        f"correct the file, or give {VARIABLE} a folder of its own; authorities of certificates come from "
        "SSL_CERT_FILE, credentials from Docker's config.json",
    )
