"""Addresses in stores that another service names: which location of ours each is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.sources.stores import StoreRules

RULES = StoreRules("models:/m/1")


@pytest.mark.parametrize(
    ("address", "location"),
    [
        ("s3://bucket/a b/ñ#1", "s3://bucket/a b/ñ#1"),
        ("s3a://bucket/m", "s3://bucket/m"),
        ("gs://bucket/m/", "gs://bucket/m/"),
        ("wasbs://box@account.blob.core.windows.net/m/1", "az://account/box/m/1"),
        ("abfss://box@account.dfs.core.windows.net/m", "az://account/box/m"),
        ("az://account/box/m", "az://account/box/m"),
        ("https://host/m/?sig=x", "https://host/m/?sig=x"),
    ],
)
def test_each_store_has_its_location(address: str, location: str) -> None:
    """The schemes of other tools become ours, with the key as it is."""
    assert RULES.location(address) == location


def test_another_cloud_of_azure_needs_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account of a national cloud is never asked for in the public one."""
    address = "abfss://box@account.dfs.core.usgovcloudapi.net/m"
    monkeypatch.delenv("AZURE_STORAGE_BLOB_ENDPOINT", raising=False)
    with pytest.raises(Permanent, match=r"usgovcloudapi\.net"):
        RULES.location(address)
    monkeypatch.setenv("AZURE_STORAGE_BLOB_ENDPOINT", "https://{account}.blob.core.usgovcloudapi.net")
    assert RULES.location(address) == "az://account/box/m"


def test_local_files_are_those_below_the_allowed_folder(tmp_path: Path) -> None:
    """A path or a file URI counts where it really lies; without an allowed folder, and beside it, it is refused."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "ab").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a b")
    rules = StoreRules("models:/m/1", str(tmp_path / "a b"), "?file_root=/folder")
    assert rules.location(f"{tmp_path}/a b/m") == f"{tmp_path}/a b/m"
    assert rules.location(f"{tmp_path.as_uri()}/link/m%20n") == f"{tmp_path}/a b/m n"
    for address in (f"{tmp_path}/ab", f"{tmp_path}/a b/../ab", str(tmp_path), "/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(Permanent) as caught:
            rules.location(address)
        assert caught.value.code == "forbidden_file" and "?file_root=" in caught.value.remedy
        with pytest.raises(Permanent, match="none is allowed"):
            RULES.location(address)


@pytest.mark.parametrize(
    "address", ["", "bucket/m", "ftp://host/m", "hf://org/m", "models:/x/1", "s3:/bucket/m", "s3://", "file://[x/m"]
)
def test_anything_else_is_refused(address: str) -> None:
    """A scheme that is no store's, or an address without a bucket, says what is read."""
    with pytest.raises(Permanent) as caught:
        RULES.location(address)
    assert caught.value.code in ("unknown_store", "bad_address")
