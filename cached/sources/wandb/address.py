"""Artifacts of Weights & Biases: `wandb://entity/project/artifact[:alias]`, with these parameters:

| parameter | meaning |
| --- | --- |
| `base_url` | the server, `https://host[/path]`; else `WANDB_BASE_URL`, else the public one |
| `folder` | only the files below this folder of the artifact |
| `file_root` | a folder of this node; references to local files may lie below it |

Law: pure. Without an alias it is `latest`, as for their client; an alias may have slashes. No parameter takes a key,
and a location with one is refused without being quoted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from cached.contract.errors import Permanent

_PARAMETERS = ("base_url", "file_root", "folder")
PUBLIC = "https://api.wandb.ai"


@dataclass(frozen=True, slots=True)
class WandbAddress:
    """An artifact by its names. `base_url`: the server, without a slash at its end; `is_environments`: whether it is
    the one that the environment's key is for; `folder`: empty, or with a slash at its end."""

    entity: str
    project: str
    artifact: str
    alias: str
    base_url: str
    is_environments: bool
    folder: str = ""
    file_root: str | None = None

    @classmethod
    def parse(cls, uri: str) -> WandbAddress:
        """Parse a location; the environment names the server. Raises `Permanent` (`bad_source`)."""
        location, _, query = uri.partition("?")
        scheme, separator, rest = location.partition("://")
        names, colon, alias = rest.partition(":")
        parts = names.split("/")
        if scheme.lower() != "wandb" or not separator or len(parts) != 3 or not all(parts):
            raise _refuse("expected wandb://entity/project/artifact:alias, found other parts")
        if "@" in rest.partition("/")[0]:
            raise _refuse("found credentials")
        if colon and not alias:
            raise _refuse("expected an alias or a version as v3 after the colon, found none")
        given = _parameters(query)
        theirs = _server(os.environ.get("WANDB_BASE_URL", "").strip() or PUBLIC, "WANDB_BASE_URL")
        base = _server(given["base_url"], "base_url") if "base_url" in given else theirs
        folder = given.get("folder", "").strip("/")
        if any(part in ("", ".", "..") for part in folder.split("/")) and folder:
            raise _refuse("folder: expected a path in the artifact, found `.`, `..` or nothing between slashes")
        if "file_root" in given and not given["file_root"].startswith("/"):
            raise _refuse("file_root: expected an absolute path")
        under = f"{folder}/" if folder else ""
        entity, project, artifact = parts
        return cls(entity, project, artifact, alias or "latest", base, base == theirs, under, given.get("file_root"))

    @property
    def display(self) -> str:
        """The location for messages."""
        folder = f"?folder={self.folder.rstrip('/')}" if self.folder else ""
        return f"wandb://{self.entity}/{self.project}/{self.artifact}:{self.alias}{folder}"


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=False, strict_parsing=True) if query else []
    except ValueError as error:
        raise _refuse("expected parameters as ?name=value&name=value") from error
    unknown = sorted({name for name, _ in pairs} - set(_PARAMETERS))
    if unknown:
        raise _refuse(f"expected parameters among {', '.join(_PARAMETERS)}, found {', '.join(unknown)[:200]}")
    if len(dict(pairs)) != len(pairs):
        raise _refuse("a parameter is given twice")
    return dict(pairs)


def _server(uri: str, named: str) -> str:
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise _refuse(f"{named}: not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise _refuse(f"{named}: expected http(s)://host[:port]")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise _refuse(f"{named}: found credentials, a query or a fragment in it")
    return uri.rstrip("/")


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"Weights & Biases location: {message}",
        "write it as wandb://entity/project/artifact:v3, with ?base_url=https://… for a server of your own; the key "
        "belongs in WANDB_API_KEY or a netrc file",
    )
