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

from cached.contract.errors import Permanent
from cached.sources.location import check_endpoint, parse_parameters

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
        given = parse_parameters(query, _PARAMETERS, {}, _refuse)
        theirs = os.environ.get("WANDB_BASE_URL", "").strip() or PUBLIC
        base = given.get("base_url", theirs)
        for name, url in (("WANDB_BASE_URL", theirs), ("base_url", base)):
            check_endpoint(url, name, "http(s)://host[:port]", _refuse)
        theirs, base = theirs.rstrip("/"), base.rstrip("/")
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


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"Weights & Biases location: {message}",
        "write it as wandb://entity/project/artifact:v3, with ?base_url=https://… for a server of your own; the key "
        "belongs in WANDB_API_KEY or a netrc file",
    )
