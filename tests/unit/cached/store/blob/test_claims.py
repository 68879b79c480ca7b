"""Claims: nothing that a version under way goes on from is deleted, and nothing deleted is taken for here."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from cached.contract.layout import Layout
from cached.store.blob import blobs
from cached.store.version import deletion
from tests.support.filling import add_blob, deleting, no_claims

ROUNDS = 300


def test_a_claim_holds_from_begin_to_drop(layout: Layout) -> None:
    """A claimed blob and a claimed partial blob outlive every sweep until the claim is dropped or made anew."""
    sha256, claims = add_blob(layout, b"a"), no_claims(layout)
    (layout.ingest / "half").mkdir()
    claims.claim("v1", [sha256], ["half"])
    claims.claim("v2", [sha256], [])
    deletion.sweep(deleting(layout, claims))
    claims.drop("v2")
    deletion.sweep(deleting(layout, claims))
    assert blobs.has(layout, sha256)
    assert (layout.ingest / "half").exists()
    claims.claim("v1", [], [])
    claims.add_existing("over", {sha256: 1})
    deletion.sweep(deleting(layout, claims))
    assert not blobs.has(layout, sha256)
    assert not (layout.ingest / "half").exists()


def test_what_nobody_promised_is_kept_by_its_note(layout: Layout) -> None:
    """A blob whose digest was not known beforehand is kept by the note of what its partial blob became."""
    sha256, claims = add_blob(layout, b"a"), no_claims(layout)
    claims.journal.record({"half": sha256})
    claims.claim("v1", [], ["half"])
    deletion.sweep(deleting(layout, claims))
    assert blobs.has(layout, sha256)
    claims.drop("v1")
    deletion.sweep(deleting(layout, claims))
    assert not blobs.has(layout, sha256)


def test_who_looks_after_settling_sees_what_stays(layout: Layout) -> None:
    """However a claim and a deletion meet: what the claimant finds after `settle` is there for good."""
    claims, start = no_claims(layout), Barrier(2)
    kept = gone = 0

    def sweep() -> None:
        start.wait()
        deletion.sweep(deleting(layout, claims))

    def look(sha256: str) -> bool:
        start.wait()
        time.sleep(random.uniform(0, 0.003))
        claims.claim("v1", [sha256], [])
        claims.wait_for_deletion()
        return blobs.has(layout, sha256)

    with ThreadPoolExecutor(2) as pool:
        for number in range(ROUNDS):
            sha256 = add_blob(layout, b"%d" % number)
            sweeping, looking = pool.submit(sweep), pool.submit(look, sha256)
            found = looking.result()
            sweeping.result()
            assert blobs.has(layout, sha256) == found
            kept, gone = kept + found, gone + (not found)
            claims.drop("v1")
            deletion.sweep(deleting(layout, claims))
    assert kept
    assert gone
