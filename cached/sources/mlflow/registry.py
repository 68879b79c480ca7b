"""From what a location names to the address of its artifacts: aliases, versions, logged models, runs.

Law: asks the server only; each thing once. A version that is not ready is an error, never its files so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cached.contract.errors import Permanent, Transient
from cached.sources.mlflow.address import (
    LatestVersion,
    LoggedModel,
    ModelAlias,
    ModelVersion,
    RunArtifacts,
    Subject,
    parse_subject,
)
from cached.sources.mlflow.server import MlflowServer, bad_answer, error_code
from cached.sources.oauth import quoted
from cached.transport.client import Response
from cached.transport.service.requests import Service

_MAX_HOPS = 4  # a version's source is a run or a logged model, and these have an address
_MAX_PAGES = 100
_READY = frozenset({"READY", "LOGGED_MODEL_READY"})
_FAILED = frozenset({"FAILED_REGISTRATION", "LOGGED_MODEL_UPLOAD_FAILED"})


@dataclass(frozen=True, slots=True)
class FoundArtifacts:
    """The address of a folder, or of a file, of artifacts as MLflow has it (`s3://…`, `mlflow-artifacts:/…`), and the
    `revision` that a moving name led to."""

    uri: str
    revision: str | None


class MlflowRegistry:
    """The questions of one resolve. `subject`: the location, for messages."""

    def __init__(self, service: Service, server: MlflowServer, subject: str) -> None:
        self._service = service
        self._server = server
        self._subject = subject

    def find(self, named: Subject, folder: str) -> FoundArtifacts:
        """Return where the artifacts of `named` are. Raises as `Service.get_json`, `Permanent` (`not_found`,
        `circular_source`), `Transient` (`not_ready`)."""
        revision = None
        for _ in range(_MAX_HOPS):
            match named:
                case ModelAlias() | LatestVersion():
                    named = self._version_of(named)
                    revision = named.version
                    uri = self._download_uri(named)
                case ModelVersion(name, version):
                    found = self._get(self._server.registry_url("model-versions/get", name=name, version=version))
                    self._check_ready(_part(found, "model_version", self._subject), f"version {version}")
                    uri = self._download_uri(named)
                case LoggedModel(model_id):
                    uri = self._logged_model(model_id)
                case RunArtifacts(run_id, path):
                    uri = self._run(run_id, path)
            uri = f"{uri.rstrip('/')}/{folder}" if folder else uri
            if not uri.startswith(("models:/", "runs:/")):
                return FoundArtifacts(uri, revision)
            named, folder = parse_subject(uri)
        raise Permanent(
            "circular_source",
            f"{self._subject}: expected a place of files, found one location after {_MAX_HOPS} others that lead to it",
            "correct the source of the version in MLflow",
        )

    def _version_of(self, named: ModelAlias | LatestVersion) -> ModelVersion:
        if isinstance(named, ModelAlias):
            url = self._server.registry_url("registered-models/alias", name=named.name, alias=named.alias)
            found = _part(self._get(url), "model_version", self._subject)
        else:
            stages = {"stages": named.stage} if named.stage is not None else {}
            url = self._server.registry_url("registered-models/get-latest-versions", name=named.name, **stages)
            versions = self._get(url).get("model_versions", [])
            if not isinstance(versions, list) or not all(isinstance(each, dict) for each in versions):
                raise bad_answer(self._subject, "a list of versions", versions)
            if not versions:
                stage = "" if named.stage is None else f" in the stage {named.stage[:100]!r}"
                raise Permanent(
                    "not_found",
                    f"{self._subject}: expected a version of {named.name[:200]!r}{stage}, found none",
                    f"write a version's number, or an alias as models:/{named.name[:200]}@champion",
                )
            found = max(versions, key=lambda each: _number(each, self._subject))
        version = str(_number(found, self._subject))
        self._check_ready(found, f"version {version}")
        return ModelVersion(named.name, version)

    def _download_uri(self, named: ModelVersion) -> str:
        url = self._server.registry_url("model-versions/get-download-uri", name=named.name, version=named.version)
        return _text(self._get(url), "artifact_uri", self._subject)

    def _logged_model(self, model_id: str) -> str:
        url = self._server.tracking_url(f"logged-models/{quote(model_id, safe='')}")
        info = _part(_part(self._get(url), "model", self._subject), "info", self._subject)
        self._check_ready(info, f"logged model {model_id}")
        return _text(info, "artifact_uri", self._subject)

    def _run(self, run_id: str, path: str) -> str:
        url = self._server.tracking_url("runs/get", run_id=run_id)
        info = _part(_part(self._get(url), "run", self._subject), "info", self._subject)
        artifacts = _text(info, "artifact_uri", self._subject)
        if not path:
            return artifacts
        model, _, rest = path.partition("/")
        logged = self._model_of_run(run_id, _text(info, "experiment_id", self._subject), model)
        if logged is not None:
            return f"models:/{logged}/{rest}" if rest else f"models:/{logged}"
        return f"{artifacts.rstrip('/')}/{path}"

    def _model_of_run(self, run_id: str, experiment_id: str, name: str) -> str | None:
        """Return the id of the model that a run logged as `name`: MLflow 3 keeps its files apart from the run's, and
        `runs:/` still leads to them. None without one, and for a server that has no such models."""
        if "'" in name:
            return None
        token = ""
        for _ in range(_MAX_PAGES):
            query = {"experiment_ids": [experiment_id], "filter": f"name = '{name}'"}
            url = self._server.tracking_url("logged-models/search")
            try:
                found = self._service.post_json(url, query | ({"page_token": token} if token else {}))
            except Permanent as error:
                if error.code not in ("not_found", "http_405"):
                    raise
                return None
            models = found.get("models", []) if isinstance(found, dict) else None
            if not isinstance(models, list):
                raise bad_answer(self._subject, "a list of logged models", found)
            for model in models:
                info = _part(model, "info", self._subject)
                if info.get("source_run_id") == run_id:
                    return _text(info, "model_id", self._subject)
            token = found.get("next_page_token", "")
            if not isinstance(token, str) or not token:
                return None
        raise bad_answer(self._subject, f"at most {_MAX_PAGES} pages of logged models", "more")

    def _check_ready(self, found: Mapping[str, Any], what: str) -> None:
        status = found.get("status", "READY")  # an older server has none
        if status in _READY:
            return
        shown = f"{self._subject}: expected {what} with the status READY, found {str(status)[:60]}"
        if status in _FAILED:
            raise Permanent("not_found", shown, "register it again, or name another version")
        reason = found.get("status_message")
        shown += f" ({quoted(str(reason)[:1000])})" if reason else ""
        raise Transient("not_ready", shown, "it is asked for again until it is ready")

    def _get(self, url: str) -> dict[str, Any]:
        found = self._service.get_json(url)
        if not isinstance(found, dict):
            raise bad_answer(self._subject, "a JSON object", type(found).__name__)
        return found


def is_absent(response: Response) -> bool:
    """Return whether a 404 says that there is no such artifact, and not that there is no such method."""
    return response.status == 404 and error_code(response) == "RESOURCE_DOES_NOT_EXIST"


def _part(found: Any, name: str, subject: str) -> dict[str, Any]:
    part = found.get(name) if isinstance(found, dict) else None
    if not isinstance(part, dict):
        raise bad_answer(subject, f"an object {name!r}", type(part).__name__)
    return part


def _text(found: Mapping[str, Any], name: str, subject: str) -> str:
    text = found.get(name)
    if not isinstance(text, str) or not text or not text.isprintable():
        raise bad_answer(subject, f"a text {name!r}", text)
    return text


def _number(found: Mapping[str, Any], subject: str) -> int:
    text = str(found.get("version", ""))
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise bad_answer(subject, "the number of a version", text)
    return int(text)
