"""Google Cloud Storage locations: `gs://bucket/prefix/?user_project=…`, with these parameters:

| parameter | meaning |
| --- | --- |
| `anonymous` | `true`: requests carry no credentials, for public buckets |
| `endpoint_url` | another address of the service; else `STORAGE_EMULATOR_HOST` (without credentials) |
| `user_project` | the project that pays for the requests, as requester-pays buckets require |

Law: pure. No parameter takes a key or a token, and a location with one is refused without being quoted. Keys are
literal, as for gcloud: no percent-encoding before the `?`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from cached.contract.errors import Permanent
from cached.sources.location import as_prefix, check_endpoint, parse_parameters, show_endpoint

_PARAMETERS = ("anonymous", "endpoint_url", "user_project")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_ENDPOINT = "https://storage.googleapis.com"


@dataclass(frozen=True, slots=True)
class GcsAddress:
    """A bucket, a key (as written, perhaps empty), and where and how it is asked for. `endpoint`: the service's
    address, without a slash at its end."""

    bucket: str
    key: str
    endpoint: str
    anonymous: bool = False
    user_project: str | None = None
    is_given: bool = False  # whether the location itself names the endpoint

    @classmethod
    def parse(cls, uri: str) -> GcsAddress:
        """Parse a location; the environment names an emulator. Raises `Permanent` (`bad_source`), which names the part
        and never its value."""
        location, _, query = uri.partition("?")
        scheme, separator, rest = location.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme.lower() != "gs" or not separator or not bucket:
            raise _refuse("expected gs://bucket/prefix/, found no bucket")
        if not _BUCKET.fullmatch(bucket):
            raise _refuse("expected a bucket's name after gs:// (a-z, 0-9, `-`, `_`, `.`), found something else")
        given = parse_parameters(query, _PARAMETERS, {}, _refuse)
        if given.get("anonymous", "false") not in ("true", "false"):
            raise _refuse("anonymous: expected true or false")
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        endpoint = given.get("endpoint_url") or emulator or _ENDPOINT
        named = "endpoint_url" if "endpoint_url" in given else "STORAGE_EMULATOR_HOST"
        check_endpoint(endpoint, named, "http(s)://host[:port]", _refuse)
        is_emulator = bool(emulator) and "endpoint_url" not in given
        anonymous = is_emulator or given.get("anonymous") == "true"
        return cls(bucket, key, endpoint.rstrip("/"), anonymous, given.get("user_project"), "endpoint_url" in given)

    @property
    def prefix(self) -> str:
        """The key as a folder: empty, or with a slash at its end."""
        return as_prefix(self.key)

    @property
    def display(self) -> str:
        """The location for messages: bucket, key, and the endpoint where the location names one."""
        return self.uri(self.key) + show_endpoint(self.endpoint if self.is_given else None)

    def uri(self, key: str) -> str:
        """Return the plain URI of a key in the bucket, for messages."""
        return f"gs://{self.bucket}/{key}"

    def list_url(self, prefix: str, fields: str, token: str, page_size: int) -> str:
        """Return the URL of one page of the objects under `prefix`; `token`: of the page, empty for the first."""
        page = {"pageToken": token} if token else {}
        return self._url("o", {"prefix": prefix, "maxResults": str(page_size), "fields": fields, **page})

    def object_url(self, key: str, **query: str) -> str:
        """Return the URL of an object: its attributes, or with `alt="media"` its bytes."""
        return self._url(f"o/{quote(key, safe='')}", query)

    def upload_url(self, **query: str) -> str:
        """Return the URL to which a new object is sent."""
        return self._url("o", query, "/upload")

    def _url(self, resource: str, query: dict[str, str], base: str = "") -> str:
        payer = {"userProject": self.user_project} if self.user_project else {}
        given = urlencode({**query, **payer}, quote_via=quote)
        return f"{self.endpoint}{base}/storage/v1/b/{self.bucket}/{resource}" + (f"?{given}" if given else "")


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"Google Cloud Storage location: {message}",
        "write it as gs://bucket/prefix/; credentials belong in the environment or the service account of the pod",
    )
