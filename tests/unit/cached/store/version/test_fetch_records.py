"""Fetch records: what each published name was fetched for, as the disk keeps it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cached.contract.digest import Digest
from cached.store.version.fetch_records import FetchRecord, ManifestFrom

RECORD = FetchRecord(Digest("a" * 64), "r", "s3://a/b", None, "2026-11-20T18:00:00Z", {"0" * 64: "1" * 64})


def test_a_record_is_read_as_it_was_written() -> None:
    """Who told what the version is survives the disk."""
    for found in (RECORD, replace(RECORD, files={}, manifest_from=ManifestFrom.PEERS)):
        assert FetchRecord.parse(found.encode()) == found


def test_a_record_of_an_older_release_is_its_sources() -> None:
    """A record that does not say who told what the version is was written when only sources did; nonsense is no
    record."""
    document = json.loads(RECORD.encode())
    assert FetchRecord.parse(json.dumps(document | {"manifest_from": "source"}).encode()) == RECORD
    with pytest.raises(ValueError, match="nobody"):
        FetchRecord.parse(json.dumps(document | {"manifest_from": "nobody"}).encode())
    del document["manifest_from"]
    assert FetchRecord.parse(json.dumps(document).encode()) == RECORD
