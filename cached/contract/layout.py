"""The paths under the root: layout version 1, section 3 of the design.

Law: names only, no access to the disk. A pod sees `PublicLayout` only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef

LAYOUT_VERSION = "1\n"
DEFAULT_ROOT = Path("/var/lib/holdfast")
DEFAULT_MOUNT = Path("/holdfast")
TEMPORARY_PREFIX = ".tmp-"


@dataclass(frozen=True, slots=True)
class SnapshotLayout:
    """One snapshot: a tree of hard links to blobs, and its records under `.holdfast/`."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path.joinpath(".holdfast", "manifest.json")

    @property
    def verified(self) -> Path:
        return self.path.joinpath(".holdfast", "verified.json")

    @property
    def lease(self) -> Path:
        return self.path.joinpath(".holdfast", "lease")


@dataclass(frozen=True, slots=True)
class PublicLayout:
    """The folder that pods mount read-only."""

    path: Path

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def status(self) -> Path:
        return self.path / "status"

    @property
    def daemon_status(self) -> Path:
        return self.status / "daemon.json"

    def snapshot(self, digest: Digest) -> SnapshotLayout:
        return SnapshotLayout(self.path.joinpath("snapshots", digest.hex))

    def model_link(self, ref: ModelRef) -> Path:
        return self.path.joinpath("models", ref.path_segment, ref.version)

    def model_status(self, ref: ModelRef) -> Path:
        return self.path.joinpath("status", ref.path_segment, f"{ref.version}.json")

    def link_target(self, digest: Digest) -> str:
        """Return the relative target of a model's symlink: the folders of all models lie as deep."""
        return f"../../snapshots/{digest.hex}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole root, as the daemon sees it."""

    root: Path
    public: PublicLayout = field(init=False, repr=False, compare=False)  # made once: a path costs as much as a stat

    def __post_init__(self) -> None:
        object.__setattr__(self, "public", PublicLayout(self.root / "public"))

    @property
    def version(self) -> Path:
        return self.root / "VERSION"

    @property
    def private(self) -> Path:
        return self.root / "private"

    @property
    def ingest(self) -> Path:
        return self.root.joinpath("private", "ingest")

    @property
    def blobs(self) -> Path:
        return self.private / "blobs"

    @property
    def quarantine(self) -> Path:
        return self.private / "quarantine"

    @property
    def trash(self) -> Path:
        return self.private / "trash"

    @property
    def socket(self) -> Path:
        return self.private / "daemon.sock"

    @property
    def fetched(self) -> Path:
        """The fetch records of published names."""
        return self.private / "fetched"

    def fetch_record(self, ref: ModelRef) -> Path:
        return self.root.joinpath("private", "fetched", ref.path_segment, f"{ref.version}.json")

    @property
    def kept(self) -> Path:
        """The records of snapshots that are kept for pods after their name moved."""
        return self.private / "kept"

    def kept_record(self, digest: Digest) -> Path:
        return self.kept / f"{digest.hex}.json"

    @property
    def pins(self) -> Path:
        """The references that `holdfast pin` keeps, as a JSON list."""
        return self.private / "pins.json"

    @property
    def start_index(self) -> Path:
        """What the last start or end found here, for a start after which nothing changed."""
        return self.private / "start-index"

    @property
    def digests(self) -> Path:
        """The computed digests of objects whose source gives none, as JSON lines."""
        return self.private / "digests.jsonl"

    @property
    def hashed(self) -> Path:
        """The blobs that no snapshot links, as they were when they were hashed, as JSON lines."""
        return self.private / "hashed.jsonl"

    @property
    def chains(self) -> Path:
        """The chaining values of blobs."""
        return self.private / "chains"

    def chain(self, sha256: str) -> Path:
        return self.chains / sha256

    def blob(self, sha256: str) -> Path:
        return self.root.joinpath("private", "blobs", sha256[:2], sha256)


def ingest_id(identity: str, key: str, version: str) -> str:
    """Return the id of a partial blob of unknown sha256: a hash of its source's identity, its key and its version."""
    parts = ("holdfast-ingest", identity, key, version)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()
