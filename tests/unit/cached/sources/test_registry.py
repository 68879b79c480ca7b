"""Which source a location opens."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cached.contract.archive.import_stream import IMPORTED
from cached.contract.errors import Permanent
from cached.sources.registry import find_kind, open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

NO_CLIENT = HttpClient(HttpSettings())
NO_CLIENT.close()  # opening contacts no service


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("s3://bucket/m/v1/", "s3"),
        ("S3://bucket/m/v1/", "s3"),
        ("hf://acme/model@main", "hf"),
        ("http://127.0.0.1/m/", "http"),
        ("https://example.com/m/", "http"),
        ("oci://ghcr.io/acme/model:v1", "oci"),
        ("git+https://github.com/acme/model@v1", "git"),
        ("git+http://127.0.0.1:3000/acme/model", "git"),
        ("ms://Qwen/Qwen3-8B@v1.0", "ms"),
        ("wandb://acme/models/tiny:v0", "wandb"),
        ("sagemaker:ranker/3", "sagemaker"),
        ("dvc+https://host/org/repo@main#models/m", "dvc"),
        ("dvc+file:///repo#models/m", "dvc"),
        ("file:///models/m", "file"),
        ("/models/m", "file"),
    ],
)
def test_the_scheme_decides(uri: str, kind: str) -> None:
    """Each supported scheme opens its source; an absolute path is a local one."""
    assert open_source(uri, NO_CLIENT).kind == kind


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://bucket/m/", "gs://bucket/m/", "az://account/container/m/", "hf://acme/model@main", "https://host/m/"),
        *("http://host/m/", "oci://ghcr.io/acme/model:v1", "git+https://host/acme/model", "git+http://host/acme/model"),
        *("ms://acme/model", "models:/m/3?tracking_uri=http://host", "runs:/r/m?tracking_uri=http://host"),
        *("wandb://acme/models/tiny:v0", "sagemaker:ranker/3", "dvc+https://host/org/repo@main#m"),
        *("dvc+http://host/org/repo@main#m", "dvc+file:///repo#m", "file:///models/m"),
    ],
)
def test_a_displayed_source_has_the_kind_that_metrics_name(uri: str) -> None:
    """What a status shows of a source leads to its kind again."""
    source = open_source(uri, NO_CLIENT)
    assert find_kind(source.display) == source.kind


def test_what_is_no_source_has_no_kind() -> None:
    """An imported archive has the kind that metrics count it by; a text that names no source has none."""
    assert [find_kind(text) for text in (IMPORTED, "", "models/m")] == ["import", "", ""]


@pytest.mark.parametrize("uri", ["ftp://user:sesame@host/m", "models/m", "", "://x"])
def test_an_unknown_scheme_names_the_supported_ones(uri: str) -> None:
    """Anything else is refused with the list of what is supported, and without quoting the location's credentials."""
    with pytest.raises(Permanent) as caught:
        open_source(uri, NO_CLIENT)
    assert caught.value.code == "unknown_scheme"
    assert all(scheme in str(caught.value) for scheme in ("s3://", "hf://", "https://", "file://"))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "right"),
    [
        ("huggingface://acme/model", "hf://"),
        ("HuggingFace://acme/model", "hf://"),
        ("s3a://bucket/m/", "s3://"),
        ("gcs://bucket/m/", "gs://"),
        ("wasbs://container@account.blob.core.windows.net/m/", "az://"),
        ("s3n://bucket/m/", "s3://"),
        ("pvc://claim/m", "file://"),
        ("docker://ghcr.io/acme/model:v1", "oci://"),
        ("git+ssh://git@github.com/acme/model", "git+https://"),
        ("git://github.com/acme/model", "git+https://"),
        ("git@github.com:acme/model.git", "git+https://"),
        ("github:acme/model", "git+https://"),
        ("modelscope://Qwen/Qwen3-8B", "ms://"),
        ("mlflow://tiny/3", "models:/"),
        ("model:/tiny/3", "models:/"),
        ("wandb-artifact://acme/models/tiny:v0", "wandb://"),
        ("dvc://host/org/repo", "dvc+https://"),
        ("arn:aws:sagemaker:us-east-1:123456789012:model-package-group/ranker", "sagemaker:"),
        ("run:/60c805344c51/model", "runs:/"),
        ("oras://ghcr.io/acme/model:v1", "oci://"),
        ("azure://account/container/m/", "az://"),
        ("hugginface://acme/model", "hf://"),
        ("htps://models.example.com/m/", "https://"),
        ("modles:/tiny/3", "models:/"),
        ("git+htps://github.com/acme/model", "git+https://"),
        ("sagmaker:ranker", "sagemaker:"),
    ],
)
def test_a_scheme_of_another_tool_or_a_misspelled_one_names_ours(uri: str, right: str) -> None:
    """What other tools call a source, or what is nearly one of ours, is refused with the scheme that it has here."""
    with pytest.raises(Permanent) as caught:
        open_source(uri, NO_CLIENT)
    assert caught.value.code == "unknown_scheme"
    assert f"write it as {right}…" in caught.value.remedy


@pytest.mark.parametrize(
    "scheme",
    [
        "ftp",
        "sftp",
        "hdfs",
        "webhdfs",
        "dbfs",
        "nfs",
        "smb",
        "oss",
        "cos",
        "obs",
        "swift",
        "kaggle",
        "ngc",
        "rsync",
        "scp",
    ],
)
def test_a_scheme_of_something_else_names_none_of_ours(scheme: str) -> None:
    """A place that is not read here is not taken for a misspelled one."""
    with pytest.raises(Permanent) as caught:
        open_source(f"{scheme}://host/m", NO_CLIENT)
    assert "write it as" not in caught.value.remedy


@pytest.mark.parametrize("uri", ["s3:/bucket/m", "hf:acme/model", "https:example.com/m"])
def test_a_scheme_without_its_slashes_is_told(uri: str) -> None:
    """A location that lacks `//` is refused with the form of that scheme, and not read as a path."""
    with pytest.raises(Permanent, match="without `//`") as caught:
        open_source(uri, NO_CLIENT)
    assert caught.value.code == "bad_source"


def test_a_daemon_loads_no_source_at_its_start() -> None:
    """The daemon's memory and start do not grow with the sources that there are: no source, library of one, checksum
    library, resolver or plugin is imported before a version needs it."""
    program = (
        "import sys\n"
        "import cached.daemon.main\n"
        "kept = {'cached.sources.base', 'cached.sources.registry'}\n"
        "ours = {name for name in sys.modules if name.startswith('cached.sources.')} - kept\n"
        "libraries = {'botocore', 'aiobotocore', 'huggingface_hub', 'google_crc32c', 'awscrt'} & set(sys.modules)\n"
        "sys.exit(str(sorted(ours | libraries)) if ours | libraries else 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_only_the_source_that_is_asked_for_is_imported() -> None:
    """Opening a local source imports neither the AWS nor the Hub library."""
    program = (
        "import sys\n"
        "from cached.sources.registry import find_kind, open_source\n"
        "open_source('/models/m', None)\n"
        "sys.exit(any(name in sys.modules for name in ('botocore', 'aiobotocore', 'huggingface_hub', 'aiohttp')))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
