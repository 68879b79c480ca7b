"""The source of `wandb://`.

Law: wires the parts. Own files of an artifact come from the service, references from the stores that they name.
"""

from __future__ import annotations

from functools import partial

from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import Listing, RemoteFile, WeakValidators, bad_name
from cached.sources.base import Opener, Source, identity_of, stretched
from cached.sources.resolving import Named, Referral, Resolution, ResolvedSource
from cached.sources.stores import StoreRules
from cached.sources.wandb.address import WandbAddress
from cached.sources.wandb.manifest import ArtifactFile, WandbManifest, place_of
from cached.sources.wandb.service import WandbArtifact, WandbService, file_resource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import HttpTarget

_OWN = "wandb-files:"  # read by this package itself
_MAX_HOPS = 4  # from a reference to an artifact that refers to another one


def wandb_source(uri: str, client: HttpClient, opener: Opener) -> ResolvedSource:
    """Return the source of a location, which contacts no server yet; the caller closes `client`. Raises `Permanent`
    (`bad_source`)."""
    address = WandbAddress.parse(uri)
    service = WandbService(address, client)
    own: list[RemoteFile] = []

    def find(cancellation: Cancellation) -> Resolution:
        found = _ArtifactFinder(address, service, cancellation)
        own[:] = found.own
        referrals = [Referral(_OWN)] if own else []
        for place, named in sorted(found.referred.items()):
            referrals.append(Referral(place, named=tuple(named), chosen_by=service.base_url))
        if not referrals:
            problem = f"{address.display}: expected files in the artifact, found none"
            raise Permanent("not_found", problem, "check the folder and the artifact's files")
        return Resolution(tuple(referrals), f"v{found.version}")

    def open_place(uri: str, *, chosen_by: str | None = None) -> Source:
        return OwnFiles(address, service, own) if uri == _OWN else opener(uri, chosen_by=chosen_by)

    return ResolvedSource("wandb", address.display, client, open_place, find)


class OwnFiles:
    """A `Source` over the files that an artifact has itself. Their keys are their paths at the service."""

    kind = "wandb"

    def __init__(self, address: WandbAddress, service: WandbService, files: list[RemoteFile]) -> None:
        self.display = address.display
        self._service = service
        self._files = tuple(files)
        key = dict(service.headers).get("Authorization", "")
        self._identity = identity_of(self.kind, service.base_url, stretched(key) if key else "")

    async def resolve(self) -> Listing:
        """Return the files of the manifest."""
        return Listing(self._files, self._identity)

    async def locate(self, file: RemoteFile) -> HttpTarget:
        """Return the signed address that the service gives, or its own. Raises as `Source.locate`."""
        return await call_in_thread(partial(self._service.locate, file.key))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""


class _ArtifactFinder:
    """One resolve: the `version` of the artifact, its `own` files, and the files `referred` to by their places."""

    def __init__(self, address: WandbAddress, service: WandbService, cancellation: Cancellation) -> None:
        self._address = address
        self._service = service
        self._cancellation = cancellation
        self._rules = StoreRules(address.display, address.file_root, "?file_root=/folder")
        self._others: dict[str, tuple[WandbArtifact, WandbManifest]] = {}
        self.own: list[RemoteFile] = []
        self.referred: dict[str, list[Named]] = {}
        artifact = service.by_name(cancellation)
        self.version = artifact.version
        manifest = self._read(artifact)
        for path, entry in sorted(manifest.entries.items()):
            if path.startswith(address.folder) and path != address.folder:
                self._place(path[len(address.folder) :], entry, artifact, manifest)

    def _place(self, path: str, entry: ArtifactFile, artifact: WandbArtifact, manifest: WandbManifest) -> None:
        """Add one file to those that are its own, or to those of the place that it refers to."""
        problem: HoldfastError | None = bad_name(self._address.display, path)
        try:
            entry, artifact, manifest = self._follow(entry, artifact, manifest)
            if entry.ref and problem is None:
                place, named = place_of(entry, self._rules)
                at = Named(path, named.at, named.size, validator=named.validator)
                self.referred.setdefault(place, []).append(at)
                return
        except Permanent as error:  # of this file, which may not be chosen
            problem = problem or error
        name = entry.path.rpartition("/")[2]
        key = file_resource(
            manifest.layout, manifest.region, artifact, entry.birth_artifact_id, entry.digest.hex(), name
        )
        validator = f"md5:{entry.digest.hex()}" if entry.sums else ""
        weak = None if validator else WeakValidators()
        self.own.append(
            RemoteFile(path, key, entry.size, validator, problem=problem, weak_validators=weak, sums=entry.sums)
        )

    def _follow(
        self, entry: ArtifactFile, artifact: WandbArtifact, manifest: WandbManifest
    ) -> tuple[ArtifactFile, WandbArtifact, WandbManifest]:
        """Follow references to other artifacts to the entry that has a file, or names a store."""
        path = entry.path
        for _ in range(_MAX_HOPS):
            link = entry.artifact
            if link is None:
                return entry, artifact, manifest
            artifact_id, at = link
            if artifact_id not in self._others:
                other = self._service.by_id(artifact_id, self._cancellation)
                self._others[artifact_id] = other, self._read(other)
            artifact, manifest = self._others[artifact_id]
            if at not in manifest.entries:
                problem = f"{self._address.display}: {path[:200]!r} refers to a file that the artifact there has not"
                raise Permanent("not_found", problem, "log the artifact again")
            entry = manifest.entries[at]
        problem = f"{self._address.display}: {path[:200]!r} leads to another artifact more than {_MAX_HOPS} times"
        raise Permanent("circular_source", problem, "log the artifact with the files themselves")

    def _read(self, artifact: WandbArtifact) -> WandbManifest:
        try:
            return WandbManifest.read(self._service.manifest(artifact, self._cancellation))
        except ValueError as error:
            raise self._service.bad_answer(str(error), "another form") from error
