"""The choice of a source by the scheme of its URI.

Law: the only module that knows every source, and it imports one only when needed: a node that reads from S3 never loads
huggingface_hub. An import may take half a second: call this from a thread where that matters. A plugin (an entry point
of the group `holdfast.sources`) adds a scheme, and replaces none of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cached.contract.archive.import_stream import IMPORT_KIND, IMPORTED
from cached.contract.errors import Permanent
from cached.sources.base import Opener, Source

if TYPE_CHECKING:
    from cached.transport.client import HttpClient

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_SCP = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:(?!//)")  # as `git clone` takes it over ssh
_MIN_SIMILAR = 4  # letters
_MAX_RESOLVERS = 4  # one that ends in another, which ends in a source: more is a circle


def _s3(uri: str, client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.s3.source import S3Source

    return S3Source(uri, client.settings.stall_window_s)


def _gs(uri: str, client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.gcs.source import GcsSource

    return GcsSource(uri, client)


def _az(uri: str, client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.azure.source import AzureSource

    return AzureSource(uri, client)


def _hf(uri: str, client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.huggingface.source import HuggingFaceSource

    return HuggingFaceSource(uri, client)


def _http(uri: str, client: HttpClient, _opener: Opener, chosen_by: str | None = None) -> Source:
    from cached.sources.http.source import WebSource

    return WebSource(uri, client, chosen_by)


def _oci(uri: str, client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.oci.source import OciSource

    return OciSource(uri, client)


def _git(uri: str, client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.git.source import GitSource

    return GitSource(uri, client)


def _ms(uri: str, client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.modelscope.source import ModelScopeSource

    return ModelScopeSource(uri, client)


def _mlflow(uri: str, client: HttpClient, opener: Opener) -> Source:
    from cached.sources.mlflow.source import mlflow_source

    return mlflow_source(uri, client, opener)


def _wandb(uri: str, client: HttpClient, opener: Opener) -> Source:
    from cached.sources.wandb.source import wandb_source

    return wandb_source(uri, client, opener)


def _dvc(uri: str, client: HttpClient, opener: Opener) -> Source:
    from cached.sources.dvc.source import DvcSource

    return DvcSource(uri, client, opener)


def _sagemaker(uri: str, client: HttpClient, opener: Opener) -> Source:
    from cached.sources.sagemaker.source import sagemaker_source

    return sagemaker_source(uri, client, opener)


def _file(uri: str, _client: HttpClient, _opener: Opener) -> Source:
    from cached.sources.local.source import LocalSource

    return LocalSource(uri)


# Scheme and the form of its URIs, for messages; a scheme without `//` ends in `:` there.
_BUILT_IN: dict[str, tuple[str, Callable[[str, HttpClient, Opener], Source]]] = {
    "s3": ("s3://", _s3),
    "gs": ("gs://", _gs),
    "az": ("az://", _az),
    "hf": ("hf://", _hf),
    "oci": ("oci://", _oci),
    "git+https": ("git+https://", _git),
    "git+http": ("git+http://", _git),
    "ms": ("ms://", _ms),
    "models": ("models:/", _mlflow),
    "runs": ("runs:/", _mlflow),
    "wandb": ("wandb://", _wandb),
    "dvc+https": ("dvc+https://", _dvc),
    "dvc+http": ("dvc+http://", _dvc),
    "dvc+file": ("dvc+file://", _dvc),
    "sagemaker": ("sagemaker:", _sagemaker),
    "https": ("https://", _http),
    "http": ("http://", _http),
    "file": ("file://", _file),
}
# The kinds whose URIs have other schemes than their names.
_KINDS = {
    "https": "http",
    **dict.fromkeys(("git+https", "git+http"), "git"),
    **dict.fromkeys(("models", "runs"), "mlflow"),
    **dict.fromkeys(("dvc+https", "dvc+http", "dvc+file"), "dvc"),
}
# What people write, from other tools, and the scheme that they mean.
_MEANT = {
    **dict.fromkeys(("gcs", "gstorage"), "gs"),
    **dict.fromkeys(("azure", "azblob", "wasb", "wasbs", "abfs", "abfss", "adl", "adls", "blob"), "az"),
    **dict.fromkeys(("docker", "registry", "ocidir", "image", "modelpack", "oras"), "oci"),
    **dict.fromkeys(("huggingface", "hub", "hfhub"), "hf"),
    **dict.fromkeys(("s3a", "s3n", "minio", "r2"), "s3"),
    **dict.fromkeys(("mlflow", "model", "mlflow-models", "mlflow-artifacts"), "models"),
    **dict.fromkeys(("run", "mlflow-runs"), "runs"),
    **dict.fromkeys(("modelscope", "msc"), "ms"),
    **dict.fromkeys(("git", "git+ssh", "git+git", "git+file", "ssh", "lfs", "git-lfs"), "git+https"),
    **dict.fromkeys(("github", "gitlab", "bitbucket", "gitea", "codeberg", "gh"), "git+https"),
    **dict.fromkeys(("pvc", "local", "path", "hostpath"), "file"),
    **dict.fromkeys(("dvc", "dvc+git", "dvc+ssh", "git+dvc"), "dvc+https"),
    **dict.fromkeys(("sm", "model-package", "aws-sagemaker", "arn"), "sagemaker"),
    **dict.fromkeys(("wb", "wandb-artifact", "weave", "wandb-registry"), "wandb"),
    **dict.fromkeys(("htttps", "htttp", "webdav", "davs"), "https"),
}


def find_kind(source: str) -> str:
    """Return the kind (`Source.kind`) of a source by its URI, as metrics name it; `import` for an imported archive,
    empty for what is neither."""
    if source == IMPORTED:
        return IMPORT_KIND
    match = _SCHEME.match(source)
    scheme = match[1].lower() if match else ""
    return _KINDS.get(scheme, scheme)


def supported() -> str:
    """Return the forms of URIs that are supported, for messages."""
    return ", ".join(form for form, _ in _BUILT_IN.values()) + " or an absolute path"


def is_scheme(name: str) -> bool:
    """Return whether `name` is the scheme of a source, and so no part of a folder's name."""
    return name.lower() in _BUILT_IN


def open_source(uri: str, client: HttpClient, resolvers: int = 0, chosen_by: str | None = None) -> Source:
    """Return the source that `uri` names, without contacting it. `client` reads manifests, indexes and a service's
    answers; its stall timeout applies to every source. `resolvers`: how many resolvers led to this URI; `chosen_by`: as
    for `Opener`.

    Raises `Permanent`: `unknown_scheme`, `circular_source`, `bad_plugin`, or an error of the source itself. The URI may
    carry credentials, so messages quote its scheme only.
    """
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else "file" if uri.startswith("/") else "ssh" if _SCP.match(uri) else ""
    if resolvers > _MAX_RESOLVERS:
        raise Permanent(
            "circular_source",
            f"expected a place of files, found one {scheme}: location after {resolvers} others that lead to it",
            "correct the registry or the artifact that refers to itself",
        )
    opener = partial(open_source, client=client, resolvers=resolvers + 1)
    if scheme in _BUILT_IN:
        form, make = _BUILT_IN[scheme]
        if match is not None and form.endswith("//") and match[2] is None:
            raise Permanent("bad_source", f"expected {form}…, found {scheme}: without `//`", f"write it as {form}…")
        return make(uri, client, opener) if make is not _http else _http(uri, client, opener, chosen_by)
    from cached.sources import plugins

    return plugins.find(scheme, uri, client, opener) or _refuse(scheme)


def _find_similar(scheme: str) -> str:
    """Return the scheme that a misspelled one is meant to be, empty if none is near. Of short ones any may be meant."""
    from difflib import get_close_matches

    known = [name for name in (*_BUILT_IN, *_MEANT) if len(name) >= _MIN_SIMILAR]
    near = get_close_matches(scheme, known, n=1, cutoff=0.8) if len(scheme) >= _MIN_SIMILAR else []
    return _MEANT.get(near[0], near[0]) if near else ""


def _refuse(scheme: str) -> Source:
    """Raise the error of an unknown scheme, which names the right one where that is known."""
    found = f"the scheme {scheme!r}" if scheme else "none of these"
    meant = _BUILT_IN.get(_MEANT.get(scheme) or _find_similar(scheme))
    if meant is not None:
        problem = f"expected a source as {meant[0]}…, found {found} ({supported()} are supported)"
        raise Permanent("unknown_scheme", problem, f"write it as {meant[0]}…; docs/sources.md has an example")
    raise Permanent(
        "unknown_scheme",
        f"expected a source as {supported()}, found {found}",
        "correct the source in the catalog, or install the plugin that reads it",
    )
