"""Locations in a registry: `oci://registry[:port]/repository[:tag][@sha256:…][?platform=os/architecture[/variant]]`,
to publish also with several platforms, separated by commas.

Law: pure. Without a tag and a digest the tag is `latest`, as for every client of registries; a digest decides where
both are given. A location with credentials is refused without being quoted: they belong in Docker's configuration.
Grammar: the OCI Distribution Specification, "Pulling manifests".
"""

from __future__ import annotations

import platform as machine
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from cached.contract.errors import Permanent

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLATFORM = re.compile(r"([a-z0-9]+)/([a-z0-9_]+)(?:/([a-z0-9.]+))?")
_PLATFORM_PARAMETER = "platform"
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class OciPlatform:
    """The platform of an image, in Go's names."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> OciPlatform:
        """Parse `os/architecture[/variant]`. Raises `Permanent` (`bad_source`)."""
        match = _PLATFORM.fullmatch(text)
        if match is None:
            raise _refuse(f"platform: expected os/architecture as linux/arm64, found {text[:100]!r}")
        return cls(match[1], match[2], match[3] or "")

    @classmethod
    def of_this_machine(cls) -> OciPlatform:
        """Return Linux on this machine's processor."""
        found = machine.machine()
        return cls("linux", _MACHINES.get(found, found))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class OciAddress:
    """A repository of a registry, and the reference in it. `host`: as written, with its port; `digest`: `sha256:…`,
    None without one; `platforms`: as given, none: this machine's."""

    host: str
    repository: str
    tag: str
    digest: str | None = None
    platforms: tuple[OciPlatform, ...] = ()

    @classmethod
    def parse(cls, uri: str) -> OciAddress:
        """Parse a location. Raises `Permanent` (`bad_source`), which never quotes what may be a password."""
        location, _, query = uri.partition("?")
        scheme, separator, rest = location.partition("://")
        host, _, path = rest.partition("/")
        if scheme.lower() != "oci" or not separator or not host:
            raise _refuse("expected oci://registry/repository:tag, found no registry")
        if "@" in host:
            raise _refuse("expected a registry after oci://, found credentials before it")
        if not _HOST.fullmatch(host):
            raise _refuse("expected a registry as registry.example.com or host:5000 after oci://, found none")
        name, _, digest = path.partition("@")
        repository, colon, tag = name.partition(":")
        if not _REPOSITORY.fullmatch(repository):
            raise _refuse(
                f"expected a repository in lower case as team/model after {host}/, found {repository[:200]!r}"
            )
        if colon and not _TAG.fullmatch(tag):
            raise _refuse(f"expected a tag of letters, digits and `._-` after {repository}:, found {tag[:200]!r}")
        if "@" in path and not _DIGEST.fullmatch(digest):
            raise _refuse(f"expected a digest as sha256: and 64 lower-case hex digits, found {digest[:200]!r}")
        if host in _HUB:
            host = "docker.io"
            repository = repository if "/" in repository else f"library/{repository}"
        return cls(host.lower(), repository, tag or ("" if digest else "latest"), digest or None, _platforms(query))

    @property
    def platform(self) -> OciPlatform | None:
        """The platform to read; None: this machine's. Raises `Permanent` (`bad_source`) for several."""
        if len(self.platforms) > 1:
            raise _refuse("platform: a version is read for one platform, found several")
        return self.platforms[0] if self.platforms else None

    @property
    def reference(self) -> str:
        """The digest, or the tag without one."""
        return self.digest or self.tag

    @property
    def display(self) -> str:
        """The location for messages."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        query = f"?{_PLATFORM_PARAMETER}={','.join(map(str, self.platforms))}" if self.platforms else ""
        return f"oci://{self.host}/{self.repository}{tag}{digest}{query}"


def _platforms(query: str) -> tuple[OciPlatform, ...]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise _refuse("expected parameters as ?name=value") from error
    unknown = sorted({name for name, _ in pairs} - {_PLATFORM_PARAMETER})
    if unknown:
        raise _refuse(f"expected the parameter {_PLATFORM_PARAMETER}, found {', '.join(unknown)[:200]}")
    if len(pairs) > 1:
        raise _refuse("a parameter is given twice")
    found = tuple(map(OciPlatform.parse, pairs[0][1].split(","))) if pairs else ()
    if len(set(found)) != len(found):
        raise _refuse("platform: one is given twice")
    return found


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"OCI location: {message}",
        "write it as oci://registry/repository:tag or oci://registry/repository@sha256:…; credentials belong in "
        "Docker's config.json (`docker login`), never in the location",
    )
