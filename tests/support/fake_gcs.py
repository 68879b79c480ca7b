"""Google Cloud Storage as its documentation describes it, for what no emulator does: preconditions, generations that
are gone, pages, tokens, the metadata server and the token endpoints, objects stored compressed, and faults.

Law: real sockets on 127.0.0.1, in this process. Sources: cloud.google.com/storage/docs/json_api/v1 (objects: get, list,
insert, delete), …/docs/performing-resumable-uploads, …/docs/transcoding, …/docs/request-preconditions.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from tests.support.fake_store import FakeStore, StoreHandler
from tests.support.http_server import serve_http

METADATA_TOKEN = "/computeMetadata/v1/instance/service-accounts/default/token"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass
class FakeObject:
    """One generation of an object."""

    data: bytes
    generation: int
    encoding: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    has_md5: bool = True  # composed objects have none
    modified: str = field(default_factory=lambda: formatdate(usegmt=True))

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": "storage#object", "bucket": bucket, "name": name}
        found |= {"size": str(len(self.data)), "generation": str(self.generation), "metageneration": "1"}
        found["crc32c"] = crc32c(self.data)
        if self.has_md5:
            found["md5Hash"] = base64.b64encode(hashlib.md5(self.data).digest()).decode()
        if self.encoding:
            found["contentEncoding"] = self.encoding
        return found | ({"metadata": self.metadata} if self.metadata else {})


def crc32c(data: bytes) -> str:
    import google_crc32c  # here: every run of pytest imports this file, also where no package is installed

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@dataclass(kw_only=True)
class FakeGcs(FakeStore):
    """The service, and what it saw. `payer`: the project that must be named."""

    token_prefix = "ya29"
    buckets: dict[str, dict[str, FakeObject]] = field(default_factory=dict)
    page_size: int = 1_000
    payer: str | None = None
    authorizations: list[str] = field(default_factory=list)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    _generations: Iterator[int] = field(default_factory=lambda: itertools.count(1_796_000_000_000_001))

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def put(self, bucket: str, name: str, data: bytes, **more: Any) -> FakeObject:
        with self.lock:
            found = FakeObject(self.alter(data), next(self._generations), **more)
            self.buckets.setdefault(bucket, {})[name] = found
            return found


@contextmanager
def fake_gcs(**settings: Any) -> Iterator[FakeGcs]:
    """Serve until the end of the block."""
    state = FakeGcs(**settings)

    class Handler(_Handler):
        gcs = store = state

    with serve_http(Handler) as address:
        state.url = f"http://{address}"
        yield state


class _Handler(StoreHandler):
    gcs: FakeGcs

    def _decide(self) -> None:
        """Set the answer."""
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query))
        gcs = self.gcs
        with gcs.lock:
            gcs.requests.append((self.command, self.path))
            gcs.authorizations.append(self.headers.get("Authorization", ""))
        failure = gcs.fail(self.command, self.path)
        if failure is not None:
            self._answer(failure[0], failure[1])
        elif parts.path == METADATA_TOKEN:
            self._metadata()
        elif parts.path == "/v1/token":
            self._token()
        elif parts.path.endswith(":generateAccessToken"):
            self._impersonate()
        elif parts.path == "/subject":
            self._answer(200, b'{"token": "from-a-url"}')
        elif gcs.private and not gcs.accepts(self.headers.get("Authorization", "")):
            self._error(401, "Anonymous caller does not have storage.objects.get access to the bucket.")
        elif gcs.payer is not None and self.query.get("userProject") != gcs.payer:
            self._error(400, "Bucket is a requester pays bucket but no user project provided.")
        else:
            with gcs.lock:
                self._api(parts.path)

    do_GET = do_POST = do_PUT = do_DELETE = StoreHandler.serve_request

    def _metadata(self) -> None:
        if self.headers.get("Metadata-Flavor") != "Google":
            self._error(403, "Missing Metadata-Flavor:Google header.")
        elif not self.gcs.has_identity:
            page = b"<!DOCTYPE html><html><title>Error 404 (Not Found)!!1</title>"
            self._answer(404, page, {"Metadata-Flavor": "Google"})
        else:
            token = {"access_token": self.gcs.issue(), "expires_in": 3599, "token_type": "Bearer"}
            self._answer(200, json.dumps(token).encode(), {"Metadata-Flavor": "Google"})

    def _token(self) -> None:
        form = {name: values[0] for name, values in parse_qs(self.body.decode()).items()}
        self.gcs.forms.append(form)
        if form.get("subject_token") == "refused" or form.get("refresh_token") == "refused":
            self._answer(400, b'{"error":"invalid_grant","error_description":"Token has been expired or revoked."}')
        else:
            self._json({"access_token": self.gcs.issue(), "expires_in": 3600, "token_type": "Bearer"})

    def _impersonate(self) -> None:
        if not self.gcs.accepts(self.headers.get("Authorization", "")):
            self._error(401, "Request had invalid authentication credentials.")
            return
        self.gcs.forms.append({name: str(value) for name, value in json.loads(self.body).items()})
        self._json({"accessToken": self.gcs.issue(), "expireTime": "2096-01-01T00:00:00Z"})

    def _api(self, path: str) -> None:
        upload = path.startswith("/upload/")
        match = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?", path)
        if match is None:
            self._error(404, "Not Found")
            return
        bucket, name = match[1], unquote(match[2] or "")
        if bucket not in self.gcs.buckets:
            self._error(404, "The specified bucket does not exist.")
        elif upload and "upload_id" in self.query:
            self._session(bucket)
        elif upload:
            self._insert(bucket)
        elif not name:
            self._list(bucket)
        elif self.command == "DELETE":
            self._delete(bucket, name)
        else:
            self._get(bucket, name)

    def _list(self, bucket: str) -> None:
        prefix, start = self.query.get("prefix", ""), self.query.get("pageToken", "")
        names = sorted(n for n in self.gcs.buckets[bucket] if n.startswith(prefix) and n > start)
        size = min(self.gcs.page_size, int(self.query.get("maxResults", 1_000)))
        page: dict[str, Any] = {"kind": "storage#objects"}
        if names:
            page["items"] = [self.gcs.buckets[bucket][name].resource(bucket, name) for name in names[:size]]
        if len(names) > size:
            page["nextPageToken"] = names[size - 1]
        self._json(page)

    def _get(self, bucket: str, name: str) -> None:
        found = self.gcs.buckets[bucket].get(name)
        wanted = self.query.get("generation")
        if found is None or wanted not in (None, str(found.generation)):
            media = self.query.get("alt") == "media"
            message = f"No such object: {bucket}/{name}"
            self._answer(404, message.encode(), {"Content-Type": "text/html; charset=UTF-8"}) if media else self._error(
                404, message
            )
            return
        if self.query.get("alt") != "media":
            self._json(found.resource(bucket, name))
            return
        data, total = found.data, len(found.data)
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match and int(match[1]) >= total:
            self._answer(416, b"", {"Content-Range": f"bytes */{total}"})
            return
        start, end = (int(match[1]), min(int(match[2] or total), total - 1)) if match else (0, total - 1)
        headers = {"X-Goog-Generation": str(found.generation), "ETag": '"CNDA"', "Content-Type": "text/plain"}
        headers |= {"Last-Modified": found.modified}
        headers |= {"Content-Range": f"bytes {start}-{end}/{total}"} if match else {}
        self._answer(206 if match else 200, data[start : end + 1], headers)

    def _delete(self, bucket: str, name: str) -> None:
        if self._holds(bucket, name) is False:
            return
        if self.gcs.buckets[bucket].pop(name, None) is None:
            self._error(404, f"No such object: {bucket}/{name}")
        else:
            self._answer(204, b"")

    def _holds(self, bucket: str, name: str) -> bool:
        """Whether the request's precondition holds; answers 412 if not."""
        wanted = self.query.get("ifGenerationMatch")
        found = self.gcs.buckets[bucket].get(name)
        if wanted is None or wanted == ("0" if found is None else str(found.generation)):
            return True
        self._error(412, "At least one of the pre-conditions you specified did not hold.")
        return False

    def _insert(self, bucket: str) -> None:
        kind = self.query["uploadType"]
        if kind == "multipart":
            attributes, data = _parts(self.headers["Content-Type"], self.body)
            self._store(bucket, attributes, data)
            return
        attributes = json.loads(self.body or b"{}")
        if not self._holds(bucket, attributes["name"]):
            return
        number = f"session-{len(self.gcs.sessions)}"
        self.gcs.sessions[number] = {"attributes": attributes, "data": bytearray(), "query": dict(self.query)}
        self._answer(200, b"", {"Location": f"{self.gcs.url}{self.path}&upload_id={number}"})

    def _session(self, bucket: str) -> None:
        session = self.gcs.sessions.get(self.query["upload_id"])
        if session is None:
            self._error(404, "The upload session is not found.")
            return
        if self.command == "DELETE":
            del self.gcs.sessions[self.query["upload_id"]]
            self._answer(499, b"")
            return
        match = _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", ""))
        assert match is not None, self.headers
        data: bytearray = session["data"]
        if match[1] is not None:
            assert int(match[1]) == len(data), "a chunk that does not follow"
            is_last = match[3] != "*" and int(match[2]) + 1 == int(match[3])
            assert is_last or len(self.body) % (256 * 1024) == 0, "a chunk of no multiple of 256 KiB"
            data += self.body
        if match[3] != "*" and len(data) == int(match[3]):
            self.query = session["query"] | {"upload_id": self.query["upload_id"]}
            if self._store(bucket, session["attributes"], bytes(data)):
                del self.gcs.sessions[self.query["upload_id"]]
            return
        self._answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})

    def _store(self, bucket: str, attributes: dict[str, Any], data: bytes) -> bool:
        if not self._holds(bucket, attributes["name"]):
            return False
        promised = attributes.get("crc32c") or _hash_in(self.headers.get("X-Goog-Hash", ""))
        if promised is not None and promised != crc32c(self.gcs.alter(data)):
            self._error(400, "Provided CRC32C doesn't match calculated CRC32C.")
            return False
        found = self.gcs.put(bucket, attributes["name"], data, metadata=attributes.get("metadata", {}))
        self._json(found.resource(bucket, attributes["name"]))
        return True

    def _json(self, document: Any) -> None:
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json; charset=UTF-8"})

    def _error(self, status: int, message: str) -> None:
        document = {"error": {"code": status, "message": message, "errors": [{"message": message}]}}
        self._answer(status, json.dumps(document).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The attributes and the bytes of a multipart/related body."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    _, first, second, _ = body.split(b"--" + boundary)
    attributes = json.loads(first.partition(b"\r\n\r\n")[2])
    return attributes, second.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


def _hash_in(header: str) -> str | None:
    found = dict(each.strip().split("=", 1) for each in header.split(",") if "=" in each)
    return found.get("crc32c")
