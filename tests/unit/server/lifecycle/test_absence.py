"""What a server says of weights that are not on its node."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from server.lifecycle.absence import explain_absence
from tests.support.snapshots import make_public, write_heartbeat, write_status

REF = ModelRef.parse("acme/tiny@v1")


@pytest.fixture
def public(tmp_path: Path) -> PublicLayout:
    found = make_public(tmp_path / "public")
    write_heartbeat(found)
    return found


def explained(public: PublicLayout) -> str:
    return explain_absence(public.model_link(REF)).text


def test_it_says_what_is_missing_where_and_that_nothing_fetches_it(public: PublicLayout) -> None:
    """A version without a want is named with its place, and the ways to have it fetched."""
    text = explained(public)
    assert text.startswith(f"acme/tiny@v1, which is not on this node ({public.model_link(REF)} leads nowhere): nothing")
    for way in ("`prefetch`", "holdfast.dev/models", "`holdfast pull acme/tiny@v1`"):
        assert way in text


def test_it_tells_the_progress_of_a_fetch(public: PublicLayout) -> None:
    """While the daemon fetches, its state and progress are told; more bytes are nothing new to know."""
    write_status(public, REF, State.FETCHING, done=(25, 100))
    first = explain_absence(public.model_link(REF))
    assert "the daemon fetches it: fetching, 25 B of 100 B (25 %)" in first.text
    write_status(public, REF, State.FETCHING, done=(50, 100))
    second = explain_absence(public.model_link(REF))
    assert "(50 %)" in second.text and second.kind == first.kind


def test_it_tells_why_a_fetch_fails(public: PublicLayout) -> None:
    """A failure has its reason and remedy; one that is retried is told beside the progress."""
    write_status(public, REF, State.FAILED, StatusError("not_found", "no such object", "publish it", True))
    assert explained(public).endswith("its fetch failed: no such object (publish it)")
    write_status(public, REF, State.QUEUED, StatusError("reset", "connection reset", "", False))
    assert explained(public).endswith("the daemon fetches it: queued; tried again after an error: connection reset")


@pytest.mark.parametrize("age_s", [None, 600])
def test_it_tells_that_no_daemon_is_there(public: PublicLayout, age_s: int | None) -> None:
    """Without a fresh heartbeat no status is believed: nothing fetches, and what to check is said."""
    write_status(public, REF, State.FETCHING, done=(25, 100))
    public.daemon_status.unlink() if age_s is None else write_heartbeat(public, age_s)
    assert "no daemon fetches it" in explained(public) and "check" in explained(public)


def test_a_plain_folder_is_fetched_by_nobody(tmp_path: Path) -> None:
    """A path that is no version's name is told as it is."""
    assert explain_absence(tmp_path / "none").text.startswith(f"{tmp_path / 'none'}, which is not there")


def test_a_volume_never_gets_what_it_has_not(tmp_path: Path) -> None:
    """In the tree of a CSI volume, which has names and no status, no daemon is looked for: it says what that is."""
    (tmp_path / "models").mkdir()
    (tmp_path / "snapshots").mkdir()
    text = explained(PublicLayout(tmp_path))
    assert text.startswith("acme/tiny@v1, which is not in this pod's volume")
    assert "holdfast.dev/mode: gate" in text
