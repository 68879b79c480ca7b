"""The source of `sagemaker:`.

Law: wires the parts. A package names S3 only: a prefix, whose objects are the version's files, or one object, which is
its only file.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote, urlencode

from cached.contract.errors import Permanent
from cached.sources.base import Opener
from cached.sources.resolving import Named, Referral, Resolution, ResolvedSource
from cached.sources.sagemaker.address import SageMakerAddress
from cached.sources.stores import StoreRules
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.urls import display_url

# `https://bucket.s3.region.amazonaws.com/key` and `https://s3.region.amazonaws.com/bucket/key`.
_HTTPS = re.compile(r"https://(?:(.+)\.)?s3[.-](?:[a-z0-9-]+\.)?amazonaws\.com(?:\.cn)?/(.+)")


def sagemaker_source(uri: str, client: HttpClient, opener: Opener) -> ResolvedSource:
    """Return the source of a location, which contacts no server yet; the caller closes `client`. Raises `Permanent`
    (`bad_source`)."""
    address = SageMakerAddress.parse(uri)

    def find(cancellation: Cancellation) -> Resolution:
        from cached.sources.sagemaker.registry import PackageRegistry  # botocore takes a second

        registry = PackageRegistry(address)
        cancellation.check()
        found = registry.find()
        version = found.get("ModelPackageVersion")
        return Resolution((_referral(_container(found, address), address),), None if version is None else str(version))

    return ResolvedSource("sagemaker", address.location, client, opener, find)


def _container(found: dict[str, Any], address: SageMakerAddress) -> dict[str, Any]:
    containers = found.get("InferenceSpecification", {}).get("Containers", [])
    with_data = [each for each in containers if each.get("ModelDataUrl") or each.get("ModelDataSource")]
    chosen = with_data if address.container is None else containers[address.container : address.container + 1]
    if len(chosen) == 1 and chosen[0] in with_data:
        return dict(chosen[0])
    many = f"{len(containers)} containers, {len(with_data)} of them with model data"
    remedy = "name one with ?container=0" if len(with_data) > 1 else "register the package with its ModelDataSource"
    raise Permanent("not_found", f"{address.location}: expected one container with model data, found {many}", remedy)


def _referral(container: dict[str, Any], address: SageMakerAddress) -> Referral:
    """Return the place of a container's model in S3."""
    source = (container.get("ModelDataSource") or {}).get("S3DataSource")
    if source is None:
        source = {"S3Uri": container.get("ModelDataUrl"), "ETag": container.get("ModelDataETag")}
    written = str(source.get("S3Uri") or "")
    if source.get("ManifestS3Uri"):
        problem = f"{address.location}: the package's files are listed in a manifest of JumpStart, which is not read"
        raise Permanent("unknown_store", problem, "copy the model to a prefix of your own, and register that")
    web = _HTTPS.fullmatch(written)
    plain = written if web is None else unquote(f"s3://{web[1]}/{web[2]}" if web[1] else f"s3://{web[2]}")
    location = StoreRules(address.location).location(plain)
    if not location.startswith("s3://"):
        problem = f"{address.location}: expected model data in S3, found {display_url(location)[:200]}"
        raise Permanent("unknown_store", problem, "register the package with an S3Uri")
    given = {"region": address.region, "profile": address.profile}
    parameters = urlencode({name: value for name, value in given.items() if value}, quote_via=quote)
    query = f"?{parameters}" if parameters else ""
    if source.get("S3DataType") == "S3Prefix":
        return Referral(f"{location.rstrip('/')}/{query}")
    folder, _, name = location.rpartition("/")
    etag = str(source.get("ETag") or "").strip('"')
    return Referral(f"{folder}/{query}", named=(Named(name, name, validator=etag),))
