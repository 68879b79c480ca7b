"""Everything we parse that another program may have written: it is read, or refused by an error of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract import annotations as pod_annotations
from cached.contract import reference
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.golden import Golden
from cached.contract.layout import PublicLayout
from cached.contract.manifest import Manifest
from cached.contract.program import options, units
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedRecord
from cached.contract.status import DaemonStatus, ModelStatus
from cached.core.catalog import EMPTY_CATALOG, parse_catalog
from cached.sources.huggingface.address import HubAddress
from cached.sources.s3.address import S3Address
from cached.transport.urls import Address, next_hop
from sidecar.injector.pod.delivery import Mode
from sidecar.injector.pod.patch import ClusterDefaults
from sidecar.injector.webhook import Reviewer
from tests.support.pods import SETTINGS
from tests.system.fuzz.mutations import HOSTILE, spoiled, spoiled_bytes

SHA = "ab" * 32
MANIFEST = {
    "files": [
        {"path": "config.json", "sha256": SHA, "size": 2},
        {"path": "weights/model-00001-of-00002.safetensors", "sha256": SHA, "size": 5_000_000_000},
    ],
    "schema": "holdfast.dev/manifest/v1",
}
STATUS = {
    **{"model": "acme/m", "version": "1", "state": "fetching", "digest": f"sha256:{SHA}", "pinned": True, "eta_s": 1.5},
    **{"source": "s3://b/p/", "bytes_total": 5, "bytes_done": 2, "rate_bytes_per_s": 1.0, "error": None},
    **{"since": "2026-11-20T18:00:00Z", "updated": "2026-11-20T18:00:00Z"},
}
TROUBLE = {**STATUS, "error": {"code": "no_space", "message": "m", "remedy": "r", "permanent": False}}
HEARTBEAT = {"node": "n", "version": "0.1.0", "pid": 1, "started": STATUS["since"], "updated": STATUS["since"]}
RECORD = {"files": {"config.json": {"ino": 1, "size": 2, "mtime_ns": 3, "verified_at": STATUS["since"]}}}
GOLDEN = {
    **{"schema": "holdfast.dev/golden/v1", "model": "m", "recorded_at": STATUS["since"], "environment": {}},
    "cases": [
        {
            **{"name": "a", "path": "/v1/embeddings", "request": {"input": "x"}, "expected": {"data": [1.0]}},
            "tolerance": {"absolute": 0.1, "relative": 0},
        }
    ],
}


@given(spoiled(MANIFEST))
def test_a_manifest_names_only_files_inside_its_snapshot(data: bytes) -> None:
    """Bytes are a manifest, or refused; the paths of one stay inside the folder they are joined to."""
    try:
        manifest = Manifest.parse(data)
    except HoldfastError:
        return
    assert manifest.canonical() == data
    for file in manifest.files:
        assert not PurePosixPath(file.path).is_absolute()
        assert os.path.normpath(os.path.join("/snapshot", file.path)) == f"/snapshot/{file.path}"
        assert "\x00" not in file.path


PARSERS: tuple[tuple[Callable[[bytes], object], tuple[Any, ...]], ...] = (
    (ModelStatus.parse, (STATUS, TROUBLE)),
    (DaemonStatus.parse, (HEARTBEAT,)),
    (VerifiedRecord.parse, (RECORD,)),
    (Golden.parse, (GOLDEN,)),
)


@pytest.mark.parametrize(("parse", "samples"), PARSERS, ids=lambda value: getattr(value, "__qualname__", ""))
@given(data=st.data())
def test_json_of_ours_is_read_or_refused(
    parse: Callable[[bytes], object], samples: tuple[Any, ...], data: st.DataObject
) -> None:
    """A status, a heartbeat, a record or golden predictions that a person spoiled is an error of ours, nothing else."""
    try:
        parse(data.draw(spoiled(*samples)))
    except HoldfastError as error:
        assert error.message and error.remedy


CATALOG = """\
defaults: {source: "s3://acme/{name}/{version}/"}
models:
  llama-3.1-8b:
    include: ["*.safetensors"]
    versions: {"1": {source: "hf://a/b@0e9e39f249a1", digest: "sha256:SHA"}, "2": null}
    prefetch: {versions: ["1"], nodeSelector: {gpu: h100}}
    pin: true
  other: {versions: ["3"]}
""".replace("SHA", SHA)


@given(spoiled_bytes(CATALOG.encode(), b"models: {a: {<<: *b}}", b"? [a]\n: !!python/object:os.system {}"))
def test_a_catalog_is_read_entry_by_entry(data: bytes) -> None:
    """Whatever the ConfigMap says, it is refused, or its entries are read or rejected with a line and a reason."""
    try:
        result = parse_catalog(data.decode(errors="replace"), EMPTY_CATALOG)
    except HoldfastError as error:
        assert error.permanent
        return
    for rejection in result.rejected:
        assert rejection.line >= 0 and rejection.reason
    for name, model in result.catalog.models.items():
        ModelRef(name, "1")
        for version in model.versions.values():
            assert "\n" not in version.source


ANNOTATIONS = {
    "holdfast.dev/model": "acme/m",
    "holdfast.dev/version": "v1",
    "holdfast.dev/models": "base=llama@v3,adapter=lora@v7",
    "holdfast.dev/digest": f"sha256:{SHA}",
    "holdfast.dev/verify": "full",
    "holdfast.dev/containers": "main,other",
    "holdfast.dev/mount-path": "/holdfast",
    "holdfast.dev/affinity": "required",
    "holdfast.dev/gate": "sidecar",
    "holdfast.dev/mode": "csi",
}
VALUES = (
    st.text(max_size=60)
    | HOSTILE.filter(lambda value: isinstance(value, str))
    | st.sampled_from(sorted(ANNOTATIONS.values()))
)


@given(st.dictionaries(st.sampled_from(sorted(ANNOTATIONS)) | st.text(max_size=20), VALUES, max_size=5))
def test_annotations_lead_nowhere_but_to_models(found: dict[str, str]) -> None:
    """A pod's annotations are read or refused; what they name lies under models/, and the mount path is absolute."""
    try:
        asked = pod_annotations.parse(found)
    except HoldfastError as error:
        assert error.code == "invalid_annotations"
        return
    if asked is None:
        return
    public = PublicLayout(Path("/public"))
    for one in asked.models:
        link = os.path.normpath(public.model_link(one.ref))
        assert os.path.dirname(os.path.dirname(link)) == "/public/models"
    assert os.path.normpath(asked.mount_path) == asked.mount_path and asked.mount_path.startswith("/")


REVIEW = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "u",
        "operation": "CREATE",
        "namespace": "default",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "object": {
            "metadata": {"annotations": {"holdfast.dev/model": "m", "holdfast.dev/version": "1"}},
            "spec": {
                "containers": [{"name": "main", "volumeMounts": [{"name": "a", "mountPath": "/a"}], "env": []}],
                "initContainers": [{"name": "first"}],
                "volumes": [{"name": "a", "emptyDir": {}}],
                "affinity": {"nodeAffinity": {}},
            },
        },
    },
}


@given(spoiled(REVIEW), st.sampled_from(Mode))
def test_a_review_is_answered_or_refused(body: bytes, mode: Mode) -> None:
    """Whatever is posted to the webhook, the answer is a review, or the request is refused as none."""
    reviewer = Reviewer(ClusterDefaults(SETTINGS, mode, "0.1.0"), lambda: {"node-1"})
    try:
        answer = reviewer.review(body)
    except HoldfastError as error:
        assert error.code == "invalid_review"
        return
    response = json.loads(answer.body)["response"]
    assert response["uid"] == json.loads(body)["request"]["uid"]


def _hop(location: str) -> object:
    """A Location header, which is bytes: http.client reads them as Latin-1."""
    return next_hop(Address.parse("https://host/a"), location)


TEXTS: tuple[tuple[Callable[[str], object], tuple[str, ...]], ...] = (
    (ModelRef.parse, ("acme/llama-3.1-8b@v3",)),
    (Digest.parse, (f"sha256:{SHA}",)),
    (reference.parse_models, ("base=llama@v3,adapter=lora@v7",)),
    (units.parse_size, ("512MiB", "2TB", "1.5GiB")),
    (units.parse_rate, ("200MiB/s",)),
    (options.parse_address, ("0.0.0.0:9400", "[::1]:80")),
    (S3Address.parse, ("s3://bucket/prefix/?endpoint=http://h:1&region=r",)),
    (HubAddress.parse, ("hf://org/name@0e9e39f249a1/sub",)),
    (Address.parse, ("https://user:pass@host:8443/a/b?q=1#f",)),
    (_hop, ("//other/x", "../y", "http://[::1]/")),
)


@pytest.mark.parametrize(("parse", "samples"), TEXTS, ids=lambda value: getattr(value, "__qualname__", ""))
@given(data=st.data())
def test_a_line_of_text_is_read_or_refused(
    parse: Callable[[str], object], samples: tuple[str, ...], data: st.DataObject
) -> None:
    """References, digests, sizes, rates, addresses: read, or refused by an error that options can show."""
    spoiled_samples = spoiled_bytes(*(sample.encode() for sample in samples)).map(lambda noise: noise.decode("latin1"))
    text = data.draw(spoiled_samples if parse is _hop else st.text(max_size=80) | spoiled_samples)
    try:
        parse(text)
    except (HoldfastError, ValueError) as error:
        assert not isinstance(error, UnicodeError)
        assert str(error)
