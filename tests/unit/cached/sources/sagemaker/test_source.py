"""Model packages of SageMaker, at moto: which version is read, from where in S3, and what answers mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import botocore.loaders
import botocore.session
import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.front import front_of
from cached.conformance.place import Refused
from cached.conformance.pulling import puller_in
from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import Listing
from cached.sources.registry import open_source
from cached.sources.sagemaker import registry
from cached.transport.client import HttpClient
from tests.support.clients import lone_client
from tests.support.places import SESSION_TOKEN, Moto
from tests.support.s3 import REGION, S3Server
from tests.support.silent_names import each_proxy, set_service, silent_name

_LOADER = botocore.loaders.create_loader()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    monkeypatch.setattr("botocore.session.create_loader", lambda _paths: _LOADER)  # reads each model once
    with lone_client(monkeypatch, tmp_path, "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL") as client:
        yield client


class Group:
    """A model package group of the test's own, and a bucket."""

    def __init__(self, api: Any, s3: Any) -> None:
        self.api, self.s3 = api, s3
        self.name = f"group-{uuid4().hex[:12]}"
        self.bucket = f"models-{uuid4().hex[:12]}"
        self.s3.create_bucket(Bucket=self.bucket)
        self.api.create_model_package_group(ModelPackageGroupName=self.name)

    def add(self, *containers: dict[str, Any], approval: str = "Approved") -> str:
        """Register a version; return its ARN."""
        made = self.api.create_model_package(
            ModelPackageGroupName=self.name,
            ModelApprovalStatus=approval,
            InferenceSpecification={
                "Containers": [{"Image": "image", **each} for each in containers],
                "SupportedContentTypes": ["*/*"],
                "SupportedResponseMIMETypes": ["*/*"],
            },
        )
        return str(made["ModelPackageArn"])

    def prefix(self, prefix: str, files: dict[str, bytes]) -> dict[str, Any]:
        """Store files under a prefix; return the container that has them."""
        for path, data in files.items():
            self.s3.put_object(Bucket=self.bucket, Key=f"{prefix}/{path}", Body=data)
        return in_s3(f"s3://{self.bucket}/{prefix}/")


def in_s3(uri: str, kind: str = "S3Prefix", **more: Any) -> dict[str, Any]:
    return {"ModelDataSource": {"S3DataSource": {"S3Uri": uri, "S3DataType": kind, "CompressionType": "None", **more}}}


@pytest.fixture(scope="module")
def clients(moto: S3Server) -> tuple[Any, Any]:
    """Clients of SageMaker and of S3, to arrange what the code under test reads."""
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    session = botocore.session.Session()
    return session.create_client("sagemaker", region_name=REGION, endpoint_url=moto.url, **keys), moto.client()


@pytest.fixture
def group(client: HttpClient, moto: S3Server, clients: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Group:
    for name, value in {**moto.environment, "AWS_ENDPOINT_URL_SAGEMAKER": moto.url}.items():
        monkeypatch.setenv(name, value)
    return Group(*clients)


async def resolve(uri: str, client: HttpClient) -> Listing:
    source = open_source(uri, client)
    try:
        return await source.resolve()
    finally:
        await source.aclose()


async def error_of(uri: str, client: HttpClient) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await resolve(uri, client)
    assert caught.value.remedy
    return caught.value


async def test_the_newest_approved_version(group: Group, client: HttpClient) -> None:
    """A group is its newest approved version, whatever came after; a number and an ARN name one, which is told."""
    arns = [group.add(group.prefix(f"v{number}", {"w.bin": b"%d" % number})) for number in (1, 2)]
    group.add(group.prefix("v3", {"w.bin": b"3"}), approval="PendingManualApproval")
    group.add(group.prefix("v4", {"w.bin": b"4"}), approval="Rejected")
    of_group = arns[0].replace(":model-package/", ":model-package-group/").rpartition("/")[0]
    for uri, version in (
        (f"sagemaker:{group.name}", "2"),
        (f"sagemaker:{of_group}", "2"),
        (f"sagemaker:{group.name}/1", "1"),
        (f"sagemaker:{arns[0]}", "1"),
        (f"sagemaker:{group.name}?region={REGION}", "2"),
    ):
        listing = await resolve(uri, client)
        assert listing.revision == version
        assert [file.key for file in listing.files] == [f"v{version}/w.bin"]
    assert (await error_of(f"sagemaker:{group.name}/3", client)).code == "not_ready"
    assert (await error_of(f"sagemaker:{group.name}/4", client)).code == "not_approved"


async def test_forms_of_model_data(group: Group, client: HttpClient) -> None:
    """A prefix has its objects; an object, or a `model.tar.gz`, is the only file, if it still is the registered one."""
    group.prefix("m", {"a/w.bin": b"1", "model.tar.gz": b"archive"})
    group.prefix("o", {"a b%.bin": b"2"})
    etag = group.s3.head_object(Bucket=group.bucket, Key="m/model.tar.gz")["ETag"]
    tar = f"s3://{group.bucket}/m/model.tar.gz"
    for container, paths in (
        (in_s3(f"s3://{group.bucket}/m"), ["a/w.bin", "model.tar.gz"]),
        (in_s3(tar, "S3Object", ETag=etag), ["model.tar.gz"]),
        ({"ModelDataUrl": tar}, ["model.tar.gz"]),
        ({"ModelDataUrl": f"https://{group.bucket}.s3.us-east-1.amazonaws.com/m/a/w.bin"}, ["w.bin"]),
        ({"ModelDataUrl": f"https://s3.us-east-1.amazonaws.com/{group.bucket}/m/a/w.bin"}, ["w.bin"]),
        ({"ModelDataUrl": f"https://{group.bucket}.s3.us-east-1.amazonaws.com/o/a%20b%25.bin"}, ["a b%.bin"]),
    ):
        group.add(container)
        listing = await resolve(f"sagemaker:{group.name}", client)
        assert [file.path for file in listing.files] == paths
        assert not any(file.problem for file in listing.files)
    group.add(in_s3(tar, "S3Object", ETag='"0123"'))
    (file,) = (await resolve(f"sagemaker:{group.name}", client)).files
    assert file.problem is not None and file.problem.code == "source_changed"


async def test_an_inference_pipeline_names_its_container(group: Group, client: HttpClient) -> None:
    """Of several containers with model data the location names one."""
    group.add(group.prefix("one", {"w": b"1"}), {}, group.prefix("two", {"w": b"2"}))
    assert "?container=0" in (await error_of(f"sagemaker:{group.name}", client)).remedy
    listing = await resolve(f"sagemaker:{group.name}?container=2", client)
    assert [file.key for file in listing.files] == ["two/w"]
    for container in (1, 9):
        assert (await error_of(f"sagemaker:{group.name}?container={container}", client)).code == "not_found"


@pytest.mark.parametrize(
    ("container", "code"),
    [
        ({}, "not_found"),
        ({"ModelDataUrl": "https://host/m.tar.gz"}, "unknown_store"),
        ({"ModelDataUrl": "s3://bucket/m?endpoint_url=https://thief.example"}, "bad_address"),
        ({"ModelDataUrl": "s3://bucket/../m"}, "bad_address"),
        ({"ModelDataUrl": "file:///etc/passwd"}, "forbidden_file"),
        (in_s3("s3://bucket/m/", ManifestS3Uri="s3://bucket/manifest.json"), "unknown_store"),
    ],
)
async def test_what_a_package_may_not_choose(
    container: dict[str, Any], code: str, group: Group, client: HttpClient
) -> None:
    """Model data is in S3, and its address has nothing but bucket and key."""
    group.add(container)
    assert (await error_of(f"sagemaker:{group.name}", client)).code == code


async def test_what_is_not_there(group: Group, client: HttpClient) -> None:
    """A group that is unknown or has no approved version, and a version that it has not, are told."""
    for uri in ("sagemaker:unknown-group", f"sagemaker:{group.name}", f"sagemaker:{group.name}/7"):
        error = await error_of(uri, client)
        assert (error.code, error.permanent) == ("not_found", True)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"<!doctype html><title>Sign in</title>", 200, "bad_response"),
        (b'{"ModelPackageSummaryList": [', 200, "bad_response"),
        (b'{"ModelPackageSummaryList": [{}]}', 200, "bad_response"),
        (b'{"ModelPackageSummaryList": ["x"]}', 200, "bad_response"),
        (b"[]", 200, "bad_response"),
        (b"null", 200, "bad_response"),
        (b"[" * 100_000, 200, "bad_response"),
        (b" " * (8 * 1024 * 1024) + b"{}", 200, "bad_response"),
        (b'["no"]', 400, "bad_response"),
        (b'{"__type": "UnrecognizedClientException", "message": "no"}', 400, "unauthorized"),
        (b'{"__type": "AccessDeniedException", "message": "no"}', 400, "forbidden"),
        (b'{"__type": "ThrottlingException", "message": "slow"}', 400, "http_400"),
        (b"", 503, "http_503"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bad_answers(
    body: bytes, status: int, code: str, group: Group, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page, cut, strange or endless JSON and a refusal are told for what they are."""
    with front_of("http://127.0.0.1:9") as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", front.url)
        front.answer(status, body, {"Content-Type": "application/x-amz-json-1.1"}, times=None)
        assert (await error_of(f"sagemaker:{group.name}", client)).code == code


async def test_a_service_that_cannot_be_reached(
    group: Group, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection is tried again; no region, and no credentials, are told."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:9")
    assert (await error_of(f"sagemaker:{group.name}", client)).code == "connect"
    monkeypatch.delenv("AWS_ENDPOINT_URL_SAGEMAKER")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert (await error_of(f"sagemaker:{group.name}", client)).code == "bad_source"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert (await error_of(f"sagemaker:{group.name}?region={REGION}", client)).code == "unauthorized"
    assert (await error_of(f"sagemaker:{group.name}?profile=gone&region={REGION}", client)).code == "unauthorized"


@each_proxy
async def test_a_silent_name_server_is_told_as_an_unreachable_service(
    client: HttpClient, moto: S3Server, monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str]
) -> None:
    """A name that is never resolved is told after two waits, which are bounded: in 10 s, whatever the C library
    does."""
    assert 2 * (registry._CONNECT_S + 1) <= 10
    set_service(monkeypatch, moto.environment, "AWS_ENDPOINT_URL_SAGEMAKER", proxies)
    monkeypatch.setattr(registry, "_CONNECT_S", 0.05)
    with silent_name("api.invalid", monkeypatch) as lookups:
        error = await error_of("sagemaker:group", client)
    assert not error.permanent and error.code == "connect" and error.remedy
    assert 1 <= lookups.asked <= 2 and not lookups.waited_out


@pytest.mark.parametrize(
    "uri",
    [
        "sagemaker://group",
        "sagemaker:",
        "sagemaker:/group",
        "sagemaker:group/latest",
        "sagemaker:my_group",
        "sagemaker:arn:aws:s3:::bucket",
        "sagemaker:group?key=sesame",
        "sagemaker:group?container=sesame",
        "sagemaker:group?container=00001",
    ],
)
def test_locations_that_are_none(uri: str, client: HttpClient) -> None:
    """A location that is no model package's is refused with the right form, and without quoting what may be secret."""
    with pytest.raises(Permanent) as caught:
        open_source(uri, client)
    assert caught.value.code == "bad_source" and "sagemaker:group/3" in caught.value.remedy
    assert "sesame" not in str(caught.value)


@pytest.mark.slow  # the same source at the same server has them in the ordinary suite, as the place `moto`
@pytest.mark.parametrize("case", CASES)
async def test_conforms(
    case: str, group: Group, client: HttpClient, tmp_path: Path, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package over a prefix keeps each promise of `cached/conformance/cases.py`."""
    with ExitStack() as stack, puller_in(tmp_path / "root") as puller:
        front = stack.enter_context(front_of(moto.url))
        front.rewrite = lambda path: f"{path}&max-keys=5" if "list-type=2" in path else path
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", front.url)
        monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
        place = Moto(client, group.s3, front)
        group.add(in_s3(place.uri))
        group.add(in_s3(place.gone))
        place.uri, place.gone = f"sagemaker:{group.name}/1", f"sagemaker:{group.name}/2"
        try:
            await run_case(case, place, puller)
        except Refused as refused:
            pytest.skip(str(refused))
