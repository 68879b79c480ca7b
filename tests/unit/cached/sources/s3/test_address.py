"""S3 locations as people write them."""

from __future__ import annotations

import pytest

from cached.contract.errors import Permanent
from cached.sources.s3.address import S3Address


def test_a_plain_location_is_bucket_and_key() -> None:
    """Without parameters everything else is left to botocore."""
    assert S3Address.parse("s3://models/a/b/") == S3Address("models", "a/b/")


@pytest.mark.parametrize(
    ("uri", "prefix"), [("s3://b/m/v1/", "m/v1/"), ("s3://b/m/v1", "m/v1/"), ("s3://b/", ""), ("s3://b", "")]
)
def test_the_prefix_is_a_folder_with_or_without_the_slash(uri: str, prefix: str) -> None:
    """The trailing slash is optional, and a bucket's root has no prefix."""
    assert S3Address.parse(uri).prefix == prefix


def test_every_parameter_is_read() -> None:
    """All documented parameters arrive, percent-decoded."""
    query = "endpoint_url=http%3A%2F%2Fs3.local:9000&region=eu-1&addressing_style=path&anonymous=true&profile=dev"
    assert S3Address.parse(f"s3://b/k?{query}") == S3Address(
        "b", "k", "http://s3.local:9000", "eu-1", "path", True, "dev"
    )
    query = "request_payer=requester&sse=aws:kms&kms_key_id=arn:aws:kms:eu-1:1:key%2Fk"
    address = S3Address.parse(f"s3://b/k?{query}")
    assert address.request_parameters == {"RequestPayer": "requester"}
    assert address.upload_parameters == {
        "RequestPayer": "requester",
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "arn:aws:kms:eu-1:1:key/k",
    }


def test_keys_are_taken_literally() -> None:
    """A key is not percent-decoded: `%20` and a space are different keys in S3."""
    assert S3Address.parse("s3://b/a%20b/c+d").key == "a%20b/c+d"


def test_display_shows_where_and_nothing_else() -> None:
    """The shown location names server, bucket and key, and parses to the same place."""
    address = S3Address.parse("s3://b/k/?endpoint_url=https://s3.local:9000&profile=dev&region=x")
    assert address.display == "s3://b/k/?endpoint_url=https://s3.local:9000"
    assert S3Address.parse(address.display).endpoint_url == "https://s3.local:9000"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///key",
        "s3://key:sesame@bucket/m",
        "s3://b/m?aws_secret_access_key=sesame",
        "s3://b/m?region=x&region=sesame",
        "s3://b/m?anonymous=sesame",
        "s3://b/m?addressing_style=sesame",
        "s3://b/m?endpoint_url=http://user:sesame@host",
        "s3://b/m?endpoint_url=http://host/?token=sesame",
        "s3://b/m?endpoint_url=ftp://sesame",
        "s3://b/m?endpoint_url=http://host:sesame",
        "s3://b/m?sesame",
        "s3://b/m?request_payer=sesame",
        "s3://b/m?request_payer=requester&anonymous=true",
        "s3://b/m?sse=sesame",
        "s3://b/m?kms_key_id=sesame",
        "s3://b/m?sse=AES256&kms_key_id=sesame",
    ],
)
def test_a_bad_location_is_refused_without_being_quoted(uri: str) -> None:
    """What is malformed, unknown or carries credentials is refused, and no value of it appears in the error."""
    with pytest.raises(Permanent) as caught:
        S3Address.parse(uri)
    assert caught.value.code == "bad_source"
    assert "sesame" not in str(caught.value)
