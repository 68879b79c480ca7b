"""Azure Blob Storage as its documentation describes it, for what no emulator does, or where none is installed: pages,
conditions, blocks and their checksums, signatures, Entra ID and the machine's metadata service, names that XML cannot
hold, and faults.

Law: real sockets on 127.0.0.1, in this process. Sources: learn.microsoft.com/rest/api/storageservices (List Blobs, Get
Blob, Put Blob, Put Block, Put Block List, Create a service SAS, Specifying conditional headers).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.support.fake_store import FakeStore, StoreHandler
from tests.support.http_server import serve_http

ACCOUNT = "holdfasttest"
KEY = base64.b64encode(b"a key of the tests, which opens nothing").decode()
_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass
class FakeBlob:
    data: bytes
    etag: str
    md5: str = ""
    encoding: str = ""
    tier: str = "Hot"
    metadata: dict[str, str] = field(default_factory=dict)
    modified: str = field(default_factory=lambda: formatdate(usegmt=True))


def md5_of(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@dataclass(kw_only=True)
class FakeAzure(FakeStore):
    """The account, and what it saw. `private`: whether a request needs a token or a signature."""

    token_prefix = "eyJ0"
    containers: dict[str, dict[str, FakeBlob]] = field(default_factory=dict)
    blocks: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    page_size: int = 5_000
    _etags: Iterator[int] = field(default_factory=lambda: itertools.count(0x8DE2F00000001))

    @property
    def endpoint(self) -> str:
        return f"{self.url}/{ACCOUNT}"

    def put(self, container: str, name: str, data: bytes, **more: Any) -> FakeBlob:
        with self.lock:
            found = FakeBlob(self.alter(data), f'"0x{next(self._etags):X}"', **more)
            self.containers.setdefault(container, {})[name] = found
            return found


@contextmanager
def fake_azure(**settings: Any) -> Iterator[FakeAzure]:
    """Serve until the end of the block."""
    state = FakeAzure(**settings)

    class Handler(_Handler):
        azure = store = state

    with serve_http(Handler) as address:
        state.url = f"http://{address}"
        yield state


class _Handler(StoreHandler):
    azure: FakeAzure

    def _decide(self) -> None:
        """Set the answer."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        azure = self.azure
        with azure.lock:
            azure.requests.append((self.command, self.path))
        failure = azure.fail(self.command, self.path)
        if failure is not None:
            self._answer(failure[0], failure[1])
        elif parts.path == "/metadata/identity/oauth2/token":
            self._metadata()
        elif parts.path.endswith("/oauth2/v2.0/token"):
            self._token()
        elif "x-ms-version" not in self.headers:
            self._error(400, "MissingRequiredHeader")
        else:
            with azure.lock:
                self._blob_service(parts.path)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = StoreHandler.serve_request

    def _metadata(self) -> None:
        if self.headers.get("Metadata") != "true":
            self._answer(
                400, b'{"error":"bad_request_102","error_description":"Required metadata header not specified"}'
            )
        elif not self.azure.has_identity:
            self._answer(400, b'{"error":"invalid_request","error_description":"Identity not found"}')
        else:
            document = {"access_token": self.azure.issue(), "expires_in": "86399", "token_type": "Bearer"}
            self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _token(self) -> None:
        form = {name: values[0] for name, values in parse_qs(self.body.decode()).items()}
        self.azure.forms.append(form)
        if form.get("client_assertion") == "refused":
            said = {
                "error": "invalid_client",
                "error_description": "AADSTS700213: No matching federated identity record",
            }
            self._answer(400, json.dumps(said).encode())
            return
        document = {"access_token": self.azure.issue(), "expires_in": 3599, "token_type": "Bearer"}
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _authorized(self, container: str) -> bool:
        if not self.azure.private:
            return True
        if "sig" in self.query:
            if self._signature_is_right(container):
                return True
            self._error(403, "AuthenticationFailed", "Server failed to authenticate the request.")
            return False
        authorization = self.headers.get("Authorization", "")
        if not authorization:
            self._error(409, "PublicAccessNotPermitted", "Public access is not permitted on this storage account.")
            return False
        if not self.azure.accepts(authorization):
            self._error(401, "InvalidAuthenticationInfo", "Server failed to authenticate the request.")
            return False
        return True

    def _signature_is_right(self, container: str) -> bool:
        given = self.query
        resource = f"/blob/{ACCOUNT}/{container}"
        names = (
            "sp",
            "st",
            "se",
            "",
            "si",
            "sip",
            "spr",
            "sv",
            "sr",
            "",
            "ses",
            "rscc",
            "rscd",
            "rsce",
            "rscl",
            "rsct",
        )
        signed = "\n".join(resource if number == 3 else given.get(name, "") for number, name in enumerate(names))
        found = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
        return base64.b64encode(found).decode() == given["sig"]

    def _blob_service(self, path: str) -> None:
        _, account, container, *rest = (*path.split("/", 3), "")
        name = unquote(rest[0])
        if account != ACCOUNT or container not in self.azure.containers:
            self._error(404, "ContainerNotFound", "The specified container does not exist.")
        elif not self._authorized(container):
            return
        elif self.query.get("comp") == "list":
            self._list(container)
        elif self.command == "GET" and self.query.get("comp") == "blocklist":
            self._list_blocks(container, name)
        elif self.command == "PUT" and self.query.get("comp") == "block":
            self._put_block(container, name)
        elif self.command == "PUT" and self.query.get("comp") == "blocklist":
            self._put_block_list(container, name)
        elif self.command == "PUT":
            self._put(container, name)
        elif self.command == "DELETE":
            self._delete(container, name)
        else:
            self._get(container, name)

    def _list(self, container: str) -> None:
        prefix, start = self.query.get("prefix", ""), base64.b64decode(self.query.get("marker", "")).decode()
        names = sorted(n for n in self.azure.containers[container] if n.startswith(prefix) and n > start)
        size = min(self.azure.page_size, int(self.query.get("maxresults", 5_000)))
        blobs = "".join(_listed(name, self.azure.containers[container][name]) for name in names[:size])
        marker = base64.b64encode(names[size - 1].encode()).decode() if len(names) > size else ""
        page = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{container}"><Blobs>{blobs}'
        page += f"</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
        self._answer(200, b"\xef\xbb\xbf" + page.encode(), {"Content-Type": "application/xml"})

    def _holds(self, container: str, name: str) -> bool:
        """Whether the request's conditions hold; answers as the service does if not."""
        found = self.azure.containers[container].get(name)
        match, none_match = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        if match is not None and (found is None or match != found.etag):
            self._error(412, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
            return False
        if none_match == "*" and found is not None and self.command == "PUT":
            self._error(409, "BlobAlreadyExists", "The specified blob already exists.")
            return False
        if none_match is not None and found is not None and none_match == found.etag:
            self._answer(304, b"")
            return False
        return True

    def _get(self, container: str, name: str) -> None:
        found = self.azure.containers[container].get(name)
        if found is None:
            self._error(404, "BlobNotFound", "The specified blob does not exist.")
            return
        if not self._holds(container, name):
            return
        data, total = found.data, len(found.data)
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match and int(match[1]) >= total:
            self._error(416, "InvalidRange", "The range specified is invalid for the current size of the resource.")
            return
        start, end = (int(match[1]), min(int(match[2] or total), total - 1)) if match else (0, total - 1)
        headers = {"ETag": found.etag, "Last-Modified": found.modified, "x-ms-blob-type": "BlockBlob"}
        headers |= {"Content-Range": f"bytes {start}-{end}/{total}"} if match else {}
        headers |= {"x-ms-blob-content-md5" if match else "Content-MD5": found.md5} if found.md5 else {}
        headers |= {"Content-Encoding": found.encoding} if found.encoding else {}
        headers |= {f"x-ms-meta-{name}": value for name, value in found.metadata.items()}
        self._answer(206 if match else 200, data[start : end + 1], headers)

    def _put(self, container: str, name: str) -> None:
        assert self.headers["x-ms-blob-type"] == "BlockBlob"
        if not self._holds(container, name) or not self._arrived():
            return
        found = self.azure.put(container, name, self.body, md5=md5_of(self.body), metadata=self._metadata_given())
        self._answer(201, b"", {"ETag": found.etag, "Content-MD5": md5_of(found.data)})

    def _put_block(self, container: str, name: str) -> None:
        if self._arrived():
            self.azure.blocks.setdefault((container, name), {})[self.query["blockid"]] = self.azure.alter(self.body)
            self._answer(201, b"", {"Content-MD5": md5_of(self.azure.alter(self.body))})

    def _list_blocks(self, container: str, name: str) -> None:
        blocks = self.azure.blocks.get((container, name))
        if blocks is None and name not in self.azure.containers[container]:
            self._error(404, "BlobNotFound", "The specified blob does not exist.")
            return
        listed = "".join(
            f"<Block><Name>{each}</Name><Size>{len((blocks or {})[each])}</Size></Block>" for each in blocks or ()
        )
        body = f"<BlockList><UncommittedBlocks>{listed}</UncommittedBlocks></BlockList>"
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _put_block_list(self, container: str, name: str) -> None:
        if not self._holds(container, name):
            return
        blocks = self.azure.blocks.pop((container, name), {})
        try:
            data = b"".join(blocks[each.text or ""] for each in ElementTree.fromstring(self.body))
        except KeyError:
            self._error(400, "InvalidBlockList", "The specified block list is invalid.")
            return
        md5 = self.headers.get("x-ms-blob-content-md5", "")
        alter, self.azure.alter = self.azure.alter, bytes
        found = self.azure.put(container, name, data, md5=md5, metadata=self._metadata_given())
        self.azure.alter = alter
        self._answer(201, b"", {"ETag": found.etag})

    def _delete(self, container: str, name: str) -> None:
        if not self._holds(container, name):
            return
        if self.azure.containers[container].pop(name, None) is None:
            self._error(404, "BlobNotFound", "The specified blob does not exist.")
        else:
            self._answer(202, b"")

    def _arrived(self) -> bool:
        """Whether the bytes are those that the request's own checksum promises; answers 400 if not."""
        promised = self.headers.get("Content-MD5")
        if promised is None or promised == md5_of(self.azure.alter(self.body)):
            return True
        self._error(400, "Md5Mismatch", "The MD5 value specified in the request did not match the value calculated.")
        return False

    def _metadata_given(self) -> dict[str, str]:
        return {
            n.lower().removeprefix("x-ms-meta-"): v
            for n, v in self.headers.items()
            if n.lower().startswith("x-ms-meta-")
        }

    def _error(self, status: int, code: str, message: str = "") -> None:
        body = '<?xml version="1.0" encoding="utf-8"?>'
        body += f"<Error><Code>{code}</Code><Message>{message}\nRequestId:1</Message></Error>"
        self._answer(status, body.encode(), {"x-ms-error-code": code, "Content-Type": "application/xml"})


def _listed(name: str, blob: FakeBlob) -> str:
    is_encoded = _NOT_XML.search(name) is not None
    shown = f'<Name Encoded="true">{quote(name)}</Name>' if is_encoded else f"<Name>{escape(name)}</Name>"
    metadata = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in blob.metadata.items())
    return (
        f"<Blob>{shown}<Properties><Etag>{blob.etag.strip(chr(34))}</Etag>"
        f"<Content-Length>{len(blob.data)}</Content-Length><Content-Encoding>{blob.encoding}</Content-Encoding>"
        f"<Content-MD5>{blob.md5}</Content-MD5><BlobType>BlockBlob</BlobType><AccessTier>{blob.tier}</AccessTier>"
        f"</Properties><Metadata>{metadata}</Metadata></Blob>"
    )
