"""Where versions come from while things go wrong: one stage a source, on servers that misbehave as a script says.

Law: every version has content of its own, so that none is helped by another's blobs, and paths of its own, so that a
fault hits one version and no other. Each stage names the requests that can be spoilt: `listing`, `bytes` and what else
its source asks.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from cached.contract.manifest import FileEntry, Manifest
from tests.support.certificates import Certificates
from tests.support.fake_hub import FakeHub
from tests.support.origin import HostileOrigin, Seen
from tests.support.origin_faults import Fault, Reply
from tests.support.s3 import isolated_environment, key_environment

HUB_TOKEN = "hf_verySecretHubToken"
WEB_USER, WEB_PASSWORD = "reader", "verySecretPassword"
WEB_QUERY = "verySecretQueryToken"
SESSION_TOKEN = "verySecretSessionToken" + "A1b2C3" * 20
SIZE = 200_000


def content(name: str, size: int = SIZE) -> bytes:
    """The bytes of version `name`."""
    return random.Random(name).randbytes(size)


@dataclass(frozen=True)
class Place:
    """A request that can be spoilt: the server that answers it, and its path there."""

    origin: HostileOrigin
    path: str

    def script(self, *faults: Fault) -> None:
        self.origin.script(self.path, *faults)

    def always(self, fault: Fault) -> None:
        self.origin.always(self.path, fault)


@dataclass(frozen=True)
class Staged:
    """A version: what goes into the catalog, the files it has, and where it can be spoilt."""

    uri: str
    files: dict[str, bytes]
    places: Mapping[str, Place]
    more: Mapping[str, object] = field(default_factory=dict)


class Front(HostileOrigin):
    """A server that passes on what another one answers, and spoils it as its script says."""

    def __init__(self, upstream: str, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self._upstream = urlsplit(upstream).netloc

    def _due(self, seen: Seen) -> tuple[Reply, memoryview]:
        status, headers, body = self._pass_on(seen.method, seen.path, dict(seen.headers))
        whole = body if status != 206 else self._pass_on("GET", seen.path, {})[2]
        return Reply(status, headers, memoryview(body)), memoryview(whole)

    def _pass_on(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._upstream, timeout=120)
        try:
            connection.request(method, path, headers={n: v for n, v in headers.items() if n != "connection"})
            answer = connection.getresponse()
            return answer.status, {n: v for n, v in answer.getheaders() if n not in ("Date", "Server")}, answer.read()
        finally:
            connection.close()


class Stages:
    """The servers of one run. `environment`: what the daemon needs to know of them."""

    def __init__(self, folder: Path, certificates: Certificates, origin: HostileOrigin, hub: FakeHub) -> None:
        self.origin = origin
        self.hub = hub
        self._folder = folder
        self._certificates = certificates
        self.hub_front = Front(hub.behind[0], tls=certificates.server_context())
        self.cdn_front = Front(hub.behind[1], tls=certificates.server_context())
        hub.stand_behind(self.hub_front.url(""), self.cdn_front.url(""))
        hub.tokens.add(HUB_TOKEN)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **isolated_environment(),
            **key_environment(),
            "AWS_SESSION_TOKEN": SESSION_TOKEN,
            "AWS_ENDPOINT_URL_S3": self.origin.url(""),
            "AWS_CA_BUNDLE": str(self._certificates.authority),
            "SSL_CERT_FILE": str(self._certificates.authority),
            "HF_ENDPOINT": self.hub_front.url(""),
            "HF_TOKEN": HUB_TOKEN,
            "HF_HOME": str(self._folder / "hf-home"),
            "HOME": str(self._folder),
        }

    def stage(self, source: str, name: str, files: Mapping[str, bytes] | None = None, *, sealed: bool = True) -> Staged:
        """Put version `name` of `files` at `source`; `sealed`: with a manifest, where the source knows no digests."""
        chosen = dict(files if files is not None else {"model.bin": content(f"{source} {name}")})
        make = {"http": self._web, "s3": self._bucket, "hf": self._repository}[source]
        return make(name, chosen, sealed)

    def _web(self, name: str, files: dict[str, bytes], sealed: bool) -> Staged:
        where = f"http://{WEB_USER}:{WEB_PASSWORD}@127.0.0.1:{self.origin.port}/{name}"
        for path, data in files.items():
            self.origin.put(f"/{name}/{path}", data, etag=etag(data))
        first = Place(self.origin, f"/{name}/{next(iter(files))}")
        manifest = Place(self.origin, f"/{name}/holdfast.json")
        if sealed:
            self.origin.put(manifest.path, manifest_of(files))
            return Staged(f"{where}/?token={WEB_QUERY}", files, {"listing": manifest, "bytes": first})
        index = "".join(f'<a href="{path}">{path}</a>' for path in files)
        self.origin.put(f"/{name}/", web_index(index), content_type="text/html")
        places = {"manifest": manifest, "listing": Place(self.origin, f"/{name}/"), "bytes": first}
        return Staged(f"{where}/?token={WEB_QUERY}", files, places)

    def _bucket(self, name: str, files: dict[str, bytes], sealed: bool) -> Staged:
        for path, data in files.items():
            self.origin.put(f"/{name}/m/{path}", data, etag=etag(data))
        self.origin.put(f"/{name}", s3_listing(files), content_type="application/xml")
        manifest, listing = Place(self.origin, f"/{name}/m/holdfast.json"), Place(self.origin, f"/{name}")
        if sealed:
            self.origin.put(manifest.path, manifest_of(files))
        places = {
            "manifest": manifest,
            "listing": manifest if sealed else listing,
            "bytes": Place(self.origin, f"/{name}/m/{next(iter(files))}"),
        }
        return Staged(f"s3://{name}/m/", files, places)

    def _repository(self, name: str, files: dict[str, bytes], sealed: bool) -> Staged:
        folder = self._folder / "repositories" / name
        for path, data in files.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        commit = self.hub.add(f"acme/{name}", folder).refs["main"]
        first = next(iter(files))
        sha256 = hashlib.sha256(files[first]).hexdigest()
        api = f"/api/models/acme/{name}"
        places = {
            "revision": Place(self.hub_front, f"{api}/revision/main"),
            "listing": Place(self.hub_front, f"{api}/tree/{commit}"),
            "locate": Place(self.hub_front, f"/acme/{name}/resolve/{commit}/{first}"),
            "bytes": Place(self.cdn_front, f"/repos/acme/{name}/{sha256}"),
        }
        return Staged(f"hf://acme/{name}@main", files, places)


@contextmanager
def open_stages(folder: Path, certificates: Certificates) -> Iterator[Stages]:
    """The servers, running."""
    with FakeHub() as hub, HostileOrigin(host="127.0.0.1") as origin:
        hub.lists_blobs = False  # so that there is a tree to ask for, page by page
        stages = Stages(folder, certificates, origin, hub)
        with stages.hub_front, stages.cdn_front:
            yield stages


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    entries = (FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items())
    return Manifest.build(entries).canonical()


def web_index(links: str) -> bytes:
    return f"<html><head><title>Index of /</title></head><body>{links}</body></html>".encode()


def s3_entry(key: object, size: object, tag: str = '"0"') -> str:
    return f"<Contents><Key>{escape(str(key))}</Key><Size>{size}</Size><ETag>{escape(tag)}</ETag></Contents>"


def s3_page(entries: str, token: str = "") -> bytes:
    """One page of ListObjectsV2; with a `token` another one follows."""
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return f"<?xml version='1.0'?><ListBucketResult>{more}{entries}</ListBucketResult>".encode()


def s3_listing(files: Mapping[str, bytes]) -> bytes:
    return s3_page("".join(s3_entry(f"m/{path}", len(data), etag(data)) for path, data in files.items()))


def hub_entry(path: object, size: object = 1, **more: object) -> dict[str, object]:
    return {"type": "file", "path": path, "size": size, "oid": "0" * 40, **more}


def hub_page(*entries: object) -> bytes:
    return json.dumps(entries).encode()
