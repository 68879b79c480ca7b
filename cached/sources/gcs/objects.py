"""The objects of a bucket: their attributes, as the JSON API lists them.

Law: a listing is read whole, page by page, each checked. Format: the resource "Objects" of the JSON API, where numbers
are strings, crc32c and md5Hash base64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cached.contract.errors import Permanent
from cached.core.listing import Algorithm, Checksum
from cached.sources.gcs.address import GcsAddress
from cached.sources.objects import ObjectPages, StoredObject, bad_listing
from cached.transport.service.requests import Service

_ATTRIBUTES = "name,size,generation,md5Hash,crc32c,contentEncoding"
OBJECT_FIELDS = _ATTRIBUTES
_PAGE_FIELDS = f"nextPageToken,items({_ATTRIBUTES})"
_PAGE_SIZE = 5_000  # the service sends what it likes, at most 1,000 today
_SUMS = ((Algorithm.CRC32C, "crc32c"), (Algorithm.MD5, "md5Hash"))


def list_objects(service: Service, address: GcsAddress, prefix: str) -> dict[str, StoredObject]:
    """Return the objects under `prefix`, by key. Raises as `Service.get_json`, `Transient` (`bad_response`), and
    `Permanent` (`too_many_files`)."""
    where = address.uri(prefix)
    pages = ObjectPages(where, prefix)
    token = ""
    while True:
        page = service.get_json(address.list_url(prefix, _PAGE_FIELDS, token, _PAGE_SIZE))
        if not isinstance(page, dict):
            raise bad_listing(where, "JSON of another form")
        token = page.get("nextPageToken", "")
        if not isinstance(token, str):
            raise bad_listing(where, "a nextPageToken that is no text")
        if not pages.add_page(_objects(page.get("items", []), where), token):
            return pages.objects


def _objects(items: Any, where: str) -> Iterator[StoredObject]:
    if not isinstance(items, list):
        raise bad_listing(where, "items that are no list")
    for item in items:
        yield read_object(item, where)


def read_object(item: Any, where: str) -> StoredObject:
    """Return an object from its resource. Raises `Transient` (`bad_response`) if it is none."""
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str):
        raise bad_listing(where, "an object without a name")
    size, generation = str(item.get("size", "")), str(item.get("generation", ""))
    if not (size.isascii() and size.isdecimal() and generation.isascii() and generation.isdecimal()):
        raise bad_listing(where, f"{name[:200]!r} without its size or its generation")
    try:
        sums = tuple(Checksum.from_base64(kind, item[field]) for kind, field in _SUMS if field in item)
    except (ValueError, TypeError) as error:
        raise bad_listing(where, f"{name[:200]!r} with a sum that is none") from error
    encoding = str(item.get("contentEncoding", ""))
    problem = _packed(f"{where}: {name[:200]!r}") if "gzip" in encoding.lower() else None
    return StoredObject(name, int(size[:30]), generation, sums, problem)


def _packed(what: str) -> Permanent:
    return Permanent(
        "encoded",
        f"{what} is stored compressed (Content-Encoding gzip): the service unpacks it on the way, without a size or "
        "ranges",
        "store it as it is: `gcloud storage cp` without --gzip-local-all and -Z, or publish with `holdfast publish`",
    )
