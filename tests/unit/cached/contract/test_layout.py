"""The layout: the paths of section 3 of the design, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.digest import Digest
from cached.contract.layout import Layout, PublicLayout, ingest_id
from cached.contract.reference import ModelRef

REF = ModelRef("acme/Llama-3.1-8B", "v1")
DIGEST = Digest("ab" * 32)
ROOT = Path("/var/lib/holdfast")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (Layout(ROOT).version, "VERSION"),
        (Layout(ROOT).private, "private"),
        (Layout(ROOT).ingest, "private/ingest"),
        (Layout(ROOT).blob("cd" * 32), f"private/blobs/cd/{'cd' * 32}"),
        (Layout(ROOT).quarantine, "private/quarantine"),
        (Layout(ROOT).trash, "private/trash"),
        (Layout(ROOT).socket, "private/daemon.sock"),
        (Layout(ROOT).pins, "private/pins.json"),
        (Layout(ROOT).public.path, "public"),
        (Layout(ROOT).public.snapshot(DIGEST).path, f"public/snapshots/{'ab' * 32}"),
        (Layout(ROOT).public.snapshot(DIGEST).manifest, f"public/snapshots/{'ab' * 32}/.holdfast/manifest.json"),
        (Layout(ROOT).public.snapshot(DIGEST).verified, f"public/snapshots/{'ab' * 32}/.holdfast/verified.json"),
        (Layout(ROOT).public.snapshot(DIGEST).lease, f"public/snapshots/{'ab' * 32}/.holdfast/lease"),
        (Layout(ROOT).public.model_link(REF), "public/models/acme--Llama-3.1-8B/v1"),
        (Layout(ROOT).public.model_status(REF), "public/status/acme--Llama-3.1-8B/v1.json"),
        (Layout(ROOT).public.daemon_status, "public/status/daemon.json"),
    ],
)
def test_paths_of_the_design(path: Path, expected: str) -> None:
    """Every path is where other programs look for it."""
    assert path == ROOT / expected


def test_the_link_stays_inside_what_a_pod_mounts(tmp_path: Path) -> None:
    """A model's link is relative and leads to its snapshot, also where `public` is mounted elsewhere."""
    node, pod = Layout(tmp_path / "node").public, PublicLayout(tmp_path / "holdfast")
    node.snapshot(DIGEST).path.mkdir(parents=True)
    node.model_link(REF).parent.mkdir(parents=True)
    node.model_link(REF).symlink_to(node.link_target(DIGEST))
    node.path.rename(pod.path)
    assert pod.model_link(REF).resolve() == pod.snapshot(DIGEST).path
    assert not node.link_target(DIGEST).startswith("/")


def test_no_model_lies_where_the_heartbeat_does() -> None:
    """No model's status folder is the daemon's own status file."""
    public = Layout(ROOT).public
    assert all(
        public.model_status(ModelRef(name, "v1")).parent != public.daemon_status for name in ("daemon", "daemon.json.x")
    )


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_ingest_ids_tell_objects_apart(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Another source, path or validator gives another partial blob, and the name is always 64 hexadecimal digits."""
    if any("\0" in text for text in one + other):
        return  # no URI, path or validator has one
    assert (ingest_id(*one) == ingest_id(*other)) is (one == other)
    assert len(Digest(ingest_id(*one)).hex) == 64
