"""The service of Weights & Biases: its GraphQL API, and the files of artifacts.

Law: the key goes to the server that it is for, as Basic with the user `api`: `WANDB_API_KEY` to `WANDB_BASE_URL` (or
the public service), a netrc file's to its host. Every answer is checked; the manifest's own address is followed as a
redirect is. Shapes: the operations and the storage policy of the client `wandb` 0.31.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.unique_keys import unique_keys
from cached.sources.oauth import quoted
from cached.sources.signed_urls import lifetime_s
from cached.sources.wandb.address import WandbAddress
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.credentials import basic
from cached.transport.service.requests import Service
from cached.transport.service.tokens import FixedHeaders
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import Address, display_url, next_hop

_FIELDS = """
{ id state versionIndex artifactSequence { name project { name entityName } } currentManifest { file { directUrl } } }
"""
_BY_NAME = (
    "query Artifact($entity: String!, $project: String!, $name: String!) "
    "{ project(name: $project, entityName: $entity) { artifact(name: $name) " + _FIELDS + "} }"
)
_BY_ID = "query Artifact($id: ID!) { artifact(id: $id) " + _FIELDS + "}"
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024
_SIGN_IN = "set WANDB_API_KEY for the server of WANDB_BASE_URL, or put the key into a netrc file (NETRC)"


@dataclass(frozen=True, slots=True)
class WandbArtifact:
    """A committed artifact: its `manifest_url`, and the names by which the service stores its files."""

    version: int
    manifest_url: str
    entity: str
    project: str
    collection: str


class WandbService:
    """The requests of a location. Thread-safe; contacts no server before the first request."""

    def __init__(self, address: WandbAddress, client: HttpClient) -> None:
        self._address = address
        self._client = client
        self.base_url = address.base_url
        self.headers: Headers = _credentials(address, client)
        self._fixed = FixedHeaders([address.base_url] if self.headers else (), self.headers)

    def by_name(self, cancellation: Cancellation) -> WandbArtifact:
        """Return the artifact that the location names. Raises `Permanent` (`not_found`), `Transient` (`not_ready`)."""
        address = self._address
        names = {"entity": address.entity, "project": address.project}
        given = names | {"name": f"{address.artifact}:{address.alias}"}
        project = self._query(_BY_NAME, given, cancellation).get("project")
        found = project.get("artifact") if isinstance(project, dict) else None
        if found is None:
            what = "project" if project is None else "artifact"
            raise self._absent(f"there is no such {what}, or this key may not see it")
        read = self._artifact(found)
        # Its files are asked for by the names that lead to it, also by a link in a registry.
        return WandbArtifact(read.version, read.manifest_url, address.entity, address.project, address.artifact)

    def by_id(self, artifact_id: str, cancellation: Cancellation) -> WandbArtifact:
        """Return the artifact with an id, which another one refers to. Raises as `by_name`."""
        found = self._query(_BY_ID, {"id": artifact_id}, cancellation).get("artifact")
        if found is None:
            raise self._absent("it refers to an artifact that is not there, or that this key may not see")
        return self._artifact(found)

    def manifest(self, artifact: WandbArtifact, cancellation: Cancellation) -> Any:
        """Return the JSON of an artifact's manifest. Raises `Transient` (`bad_response`) for anything else."""
        hop = next_hop(Address.parse(f"{self.base_url}/graphql"), artifact.manifest_url)
        target = HttpTarget(hop.url, chosen_by=self.base_url)  # signed: a store refuses a key beside that
        response = self._client.fetch(target, _MAX_MANIFEST_BYTES, cancellation)
        try:
            return json.loads(response.body, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            found = f"{len(response.body)} bytes that are none ({error})"
            raise self.bad_answer(f"the JSON of a manifest at {display_url(response.url)}", found) from error

    def locate(self, resource: str, cancellation: Cancellation) -> HttpTarget:
        """Return the address of a file's bytes: where the service redirects to, or its own. Raises as `Service.get`."""
        url = f"{self.base_url}{resource}"
        service = self._service(cancellation)
        response = service.peek(url)
        redirect = response.redirect_url
        if redirect is not None:
            return HttpTarget(redirect, chosen_by=self.base_url, lifetime_s=lifetime_s(redirect, time.time()))
        if response.status not in (200, 206, 416):  # an empty file has no first byte
            raise service.error_of(url, response)
        return HttpTarget(url, self._fixed.headers_for(url, cancellation))

    def bad_answer(self, expected: str, found: object) -> Transient:
        """Return the error of an answer without what it must have."""
        return Transient(
            "bad_response",
            f"{self._address.display}: expected {expected}, found {str(found)[:200]}",
            "check that WANDB_BASE_URL is the address of the service's API",
        )

    def _query(self, query: str, variables: dict[str, str], cancellation: Cancellation) -> dict[str, Any]:
        service = self._service(cancellation)
        found = service.post_json(f"{self.base_url}/graphql", {"query": query, "variables": variables})
        if not isinstance(found, dict):
            raise self.bad_answer("a GraphQL answer", type(found).__name__)
        errors = found.get("errors")
        if errors:
            said = quoted(" ".join(str(each.get("message", "")) for each in errors if isinstance(each, dict))[:1000])
            raise self._refused(said)
        data = found.get("data")
        if not isinstance(data, dict):
            raise self.bad_answer("the data of a GraphQL answer", type(data).__name__)
        return data

    def _refused(self, said: str) -> HoldfastError:
        shown = f"{self._address.display}: the service answered: {said}"
        words = said.lower()
        if "not logged in" in words or "api key" in words:
            return Permanent("unauthorized", shown, _SIGN_IN)
        if "permission" in words or "denied" in words or "forbidden" in words:
            return Permanent("forbidden", shown, "give the owner of this key access to the project")
        if "not found" in words or "could not find" in words or "does not exist" in words:
            return Permanent("not_found", shown, "check entity, project, artifact and alias")
        return Transient("bad_response", shown, "it is tried again; if it goes on, look at the service's status")

    def _artifact(self, found: Any) -> WandbArtifact:
        if not isinstance(found, dict):
            raise self.bad_answer("an artifact", type(found).__name__)
        state = found.get("state", "COMMITTED")
        if state == "DELETED":
            raise self._absent("it was deleted")
        if state != "COMMITTED":
            shown = f"{self._address.display}: expected a committed artifact, found {str(state)[:40]}"
            raise Transient("not_ready", shown, "it is asked for again until its run has logged it")
        sequence = found.get("artifactSequence") or {}
        project = sequence.get("project") or {} if isinstance(sequence, dict) else {}
        manifest = found.get("currentManifest") or {}
        url = (manifest.get("file") or {}).get("directUrl") if isinstance(manifest, dict) else None
        version = found.get("versionIndex")
        if not isinstance(url, str) or not isinstance(version, int) or not isinstance(project, dict):
            raise self.bad_answer("an artifact with a version and a manifest", "another form")
        names = (project.get("entityName"), project.get("name"), sequence.get("name"))
        return WandbArtifact(version, url, *(str(name or "") for name in names))

    def _absent(self, found: str) -> Permanent:
        return Permanent(
            "not_found", f"{self._address.display}: {found}", f"check entity, project, artifact and alias; {_SIGN_IN}"
        )

    def _service(self, cancellation: Cancellation) -> Service:
        return Service(self._client, cancellation, self._address.display, self._fixed, self._explain)

    def _explain(self, response: Response) -> HoldfastError | None:
        shown = f"{self._address.display}: {display_url(response.url)} answered {response.status}"
        if response.status == 401:
            return Permanent("unauthorized", shown, _SIGN_IN)
        if response.status == 403:
            return Permanent("forbidden", shown, "give the owner of this key access to the project")
        return None


def file_resource(layout: str, region: str, artifact: WandbArtifact, birth: str, digest_hex: str, name: str) -> str:
    """Return the path of a file at the service, by its digest, for the layout of the manifest's storage policy."""
    if layout == "V1":
        return f"/artifacts/{quote(artifact.entity, safe='')}/{digest_hex}"
    parts = (region, artifact.entity, artifact.project, artifact.collection, birth, digest_hex, name)
    return "/artifactsV2/" + "/".join(quote(part, safe="") for part in parts)


def _credentials(address: WandbAddress, client: HttpClient) -> Headers:
    key = os.environ.get("WANDB_API_KEY", "").strip() if address.is_environments else ""
    if not key:
        given = client.credentials(address.base_url)  # of a netrc file, whose user name does not matter
        if given is None or not given.startswith("Basic "):
            return ()
        try:
            key = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ()
    return (("Authorization", basic("api", key)),)
