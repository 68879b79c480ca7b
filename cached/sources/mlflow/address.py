"""Locations in an MLflow server:

| location | names |
| --- | --- |
| `models:/name/3[/folder]` | a version of a registered model |
| `models:/name@alias[/folder]` | the version that has the alias |
| `models:/name/latest[/folder]`, `models:/name/Production` | the newest version, of a stage |
| `models:/m-…[/folder]` | a logged model |
| `runs:/run-id/folder` | artifacts of a run |

each with these parameters:

| parameter | meaning |
| --- | --- |
| `tracking_uri` | the server, `http(s)://host[:port][/path]`; else `MLFLOW_TRACKING_URI` |
| `file_root` | a folder of this node; artifacts in the server's own file system may lie below it |

Law: pure. Names are literal, as for MLflow: no percent-encoding before the `?`. No parameter takes a token, and a
location with one is refused without being quoted. Grammar: MLflow's `ModelsArtifactRepository`, `_parse_model_uri`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cached.contract.errors import Permanent
from cached.sources.location import check_endpoint, parse_parameters

_PARAMETERS = ("file_root", "tracking_uri")
_LOGGED = re.compile(r"m-[0-9a-f]{32}")
_LATEST = "latest"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A numbered version of a registered model."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """The version of a registered model that has an alias."""

    name: str
    alias: str


@dataclass(frozen=True, slots=True)
class LatestVersion:
    """The newest version of a registered model; `stage`: of those in it, None: of all."""

    name: str
    stage: str | None


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """A logged model (`m-…`)."""

    model_id: str


@dataclass(frozen=True, slots=True)
class RunArtifacts:
    """A folder, or a file, among the artifacts of a run; `path` may be empty."""

    run_id: str
    path: str


Subject = ModelVersion | ModelAlias | LatestVersion | LoggedModel | RunArtifacts


@dataclass(frozen=True, slots=True)
class MlflowAddress:
    """What is named, the `folder` in it (empty: all of it), and where it is asked for. `location`: as written, without
    parameters."""

    location: str
    subject: Subject
    folder: str = ""
    tracking_uri: str | None = None
    file_root: str | None = None

    @classmethod
    def parse(cls, uri: str) -> MlflowAddress:
        """Parse a location. Raises `Permanent` (`bad_source`), which never quotes a parameter's value."""
        location, _, query = uri.partition("?")
        subject, folder = parse_subject(location)
        given = parse_parameters(query, _PARAMETERS, {}, _refuse)
        if "file_root" in given and not given["file_root"].startswith("/"):
            raise _refuse("file_root: expected an absolute path")
        if "tracking_uri" in given:
            check_endpoint(given["tracking_uri"], "tracking_uri", "http(s)://host[:port][/path]", _refuse)
        return cls(location.rstrip("/"), subject, folder, **given)

    @property
    def display(self) -> str:
        """The location for messages, with the server where it names one."""
        return self.location + (f"?tracking_uri={self.tracking_uri}" if self.tracking_uri else "")


def parse_subject(location: str) -> tuple[Subject, str]:
    """Parse `models:/…` or `runs:/…` without parameters; return what it names and the folder in it. Raises `Permanent`
    (`bad_source`)."""
    scheme, _, rest = location.partition(":")
    if scheme.lower() not in ("models", "runs") or not rest.startswith("/"):
        raise _refuse("expected models:/name/3, models:/name@alias or runs:/run-id/folder")
    if rest.startswith("//"):
        raise _refuse(f"expected one slash as in {scheme}:/name, found two: a host belongs in tracking_uri")
    parts = rest[1:].rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise _refuse("expected names between the slashes, found none, `.` or `..`")
    if scheme.lower() == "runs":
        return RunArtifacts(parts[0], "/".join(parts[1:])), ""
    subject, used = _model(parts)
    return subject, "/".join(parts[used:])


def _model(parts: list[str]) -> tuple[Subject, int]:
    """Return the model that the parts of a path name, and how many of them do."""
    first = parts[0]
    if "@" in first:
        name, _, alias = first.rpartition("@")
        if not name or not alias:
            raise _refuse("expected a model and an alias as in models:/name@champion")
        return ModelAlias(name, alias), 1
    if _LOGGED.fullmatch(first) or (len(parts) == 1 and first.startswith("m-")):
        return LoggedModel(first), 1
    if len(parts) == 1:
        raise _refuse(
            f"expected a version or an alias of {first[:200]!r}, as models:/name/3 or models:/name@champion, found none"
        )
    if parts[1].isdecimal() and parts[1].isascii():
        return ModelVersion(first, parts[1]), 2
    return LatestVersion(first, None if parts[1].lower() == _LATEST else parts[1]), 2


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"MLflow location: {message}",
        "write it as models:/name/3, models:/name@alias, models:/m-… or runs:/run-id/folder, with "
        "?tracking_uri=https://… where MLFLOW_TRACKING_URI names no server; credentials belong in the environment or a "
        "netrc file",
    )
