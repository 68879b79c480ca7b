"""The Distribution project's registry on loopback, and artifacts in it.

Law: a process on a free port over a folder of its own, which ends with the block.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.http_setup import ask
from bench.measure import failed
from bench.origins import free_port, running, tool

REPOSITORY = "bench/model"
_EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2}
_EMPTY_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_RAW = "application/vnd.cncf.model.weight.v1.raw"
_CONFIGURATION = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{folder}"}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: "127.0.0.1:{port}", secret: bench}}
"""


@contextmanager
def registry(scratch: Path) -> Iterator[str]:
    """Run an empty registry with its files below `scratch`; yield its `host:port`."""
    program = tool("docker-registry")
    if program is None:
        raise failed("docker-registry is not on PATH", "install Debian's docker-registry")
    port, configuration = free_port(), scratch / "registry.yml"
    configuration.write_text(_CONFIGURATION.format(folder=scratch / "registry", port=port))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}

    def listens() -> bool:
        try:
            return ask(f"127.0.0.1:{port}", "GET", "/v2/").status == 200
        except OSError:
            return False

    with running([program, "serve", str(configuration)], environment, scratch / "registry.log", listens):
        yield f"127.0.0.1:{port}"


def push_artifact(host: str, tag: str, files: Iterable[tuple[str, Path]]) -> None:
    """Store files, by their paths in the version, as a ModelPack artifact: each a raw layer, with ORAS's title."""
    layers = []
    for name, path in files:
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        _push_blob(host, digest, path)
        notes = {"org.cncf.model.filepath": name, "org.opencontainers.image.title": name}
        layers.append({"mediaType": _RAW, "digest": digest, "size": path.stat().st_size, "annotations": notes})
    _push_blob(host, _EMPTY_DIGEST, b"{}")
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": {**_EMPTY, "digest": _EMPTY_DIGEST},
        "layers": layers,
    }
    at = f"/v2/{REPOSITORY}/manifests/{tag}"
    ask(host, "PUT", at, json.dumps(document).encode(), {"Content-Type": _MANIFEST_TYPE}).expect(201)


def _push_blob(host: str, digest: str, data: bytes | Path) -> None:
    begun = ask(host, "POST", f"/v2/{REPOSITORY}/blobs/uploads/").expect(202)
    parts = urlsplit(begun.headers["Location"])
    path = f"{parts.path}?{parts.query}&digest={digest}"
    ask(host, "PUT", path, data, {"Content-Type": "application/octet-stream"}).expect(201)
