"""S3 locations: `s3://bucket/prefix/?endpoint_url=…&region=…&profile=…`, and more parameters:

| parameter | meaning |
| --- | --- |
| `endpoint_url` | a server other than AWS: `http(s)://host`; else `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, profile |
| `region` | the bucket's region; else `AWS_DEFAULT_REGION`, the profile |
| `addressing_style` | `path`, `virtual` or `auto` (default): where the bucket's name goes |
| `anonymous` | `true`: requests are not signed, for public buckets |
| `profile` | a profile of the shared AWS configuration files; else `AWS_PROFILE` |
| `request_payer` | `requester`: the requester agrees to pay, as requester-pays buckets require |
| `sse` | `AES256`, `aws:kms` or `aws:kms:dsse`: the encryption of published objects, as some policies require |
| `kms_key_id` | the KMS key of `sse=aws:kms`; else the bucket's, or the account's own |

Law: pure. No parameter takes a key or a token, and a location with one is refused without being quoted: credentials
come from botocore's own chain only. Keys are literal, as on the AWS command line: no percent-encoding before the `?`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cached.contract.errors import Permanent
from cached.sources.location import as_prefix, check_endpoint, parse_parameters, show_endpoint

_PARAMETERS = (
    *("endpoint_url", "region", "addressing_style", "anonymous", "profile"),
    *("request_payer", "sse", "kms_key_id"),
)
_SSE = ("AES256", "aws:kms", "aws:kms:dsse")
_STYLES = ("auto", "path", "virtual")


@dataclass(frozen=True, slots=True)
class S3Address:
    """A bucket, a key (as written, perhaps empty), and the settings of the client."""

    bucket: str
    key: str
    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: str | None = None
    anonymous: bool = False
    profile: str | None = None
    request_payer: str | None = None
    sse: str | None = None
    kms_key_id: str | None = None

    @classmethod
    def parse(cls, uri: str) -> S3Address:
        """Parse a location. Raises `Permanent` (`bad_source`), which names the part and never its value."""
        location, _, query = uri.partition("?")
        scheme, separator, rest = location.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme.lower() != "s3" or not separator or not bucket:
            raise _refuse("expected s3://bucket/prefix/, found no bucket")
        if "@" in bucket or ":" in bucket:
            raise _refuse("expected a bucket's name after s3://, found credentials, a port or an ARN")
        given = parse_parameters(query, _PARAMETERS, {}, _refuse)
        if given.get("addressing_style", "auto") not in _STYLES:
            raise _refuse(f"addressing_style: expected one of {', '.join(_STYLES)}")
        if "endpoint_url" in given:
            check_endpoint(given["endpoint_url"], "endpoint_url", "http(s)://host[:port]", _refuse)
        _check_policies(given)
        return cls(bucket, key, anonymous=given.pop("anonymous", "false") == "true", **given)

    @property
    def prefix(self) -> str:
        """The key as a folder: empty, or with a slash at its end."""
        return as_prefix(self.key)

    @property
    def display(self) -> str:
        """The location for messages: server, bucket and key."""
        return self.uri(self.key) + show_endpoint(self.endpoint_url)

    @property
    def request_parameters(self) -> dict[str, str]:
        """The botocore parameters of every request for the bucket's objects."""
        return {"RequestPayer": self.request_payer} if self.request_payer else {}

    @property
    def upload_parameters(self) -> dict[str, str]:
        """The botocore parameters of a request that creates an object."""
        given = {"ServerSideEncryption": self.sse, "SSEKMSKeyId": self.kms_key_id}
        return self.request_parameters | {name: value for name, value in given.items() if value}

    def uri(self, key: str) -> str:
        """Return the plain URI of another key in the bucket, for messages."""
        return f"s3://{self.bucket}/{key}"


def _check_policies(given: dict[str, str]) -> None:
    payer, sse, anonymous = given.get("request_payer"), given.get("sse"), given.get("anonymous", "false")
    if anonymous not in ("true", "false"):
        raise _refuse("anonymous: expected true or false")
    if payer not in (None, "requester"):
        raise _refuse("request_payer: expected requester")
    if payer and anonymous == "true":
        raise _refuse("request_payer and anonymous: an anonymous request has no payer")
    if sse is not None and sse not in _SSE:
        raise _refuse(f"sse: expected one of {', '.join(_SSE)}")
    if "kms_key_id" in given and (sse is None or not sse.startswith("aws:kms")):
        raise _refuse("kms_key_id: expected with sse=aws:kms")


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"S3 location: {message}",
        "write it as s3://bucket/prefix/?endpoint_url=…; credentials belong in the environment, a profile or IRSA",
    )
