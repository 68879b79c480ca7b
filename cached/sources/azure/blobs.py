"""The blobs of a container, as the service lists them.

Law: a listing is read whole, page by page, each checked; XML with a document type is refused, as only that can define
entities. Format: learn.microsoft.com, "List Blobs".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import Algorithm, Checksum
from cached.sources.azure.access import VERSION, AzureAccess
from cached.sources.azure.address import AzureAddress
from cached.sources.objects import ObjectPages, StoredObject, bad_listing
from cached.transport.connection.cancel import Cancellation

_PAGE_SIZE = 1_000  # of 5,000 at most: a blob's metadata may have 8 KiB
_NO_CODINGS = frozenset({"", "identity", "utf-8", "utf8", "binary", "none"})  # as for answers: mistakes of an upload


def list_blobs(
    access: AzureAccess, address: AzureAddress, prefix: str, cancellation: Cancellation
) -> dict[str, StoredObject]:
    """Return the blobs under `prefix`, by name, without the markers of folders. Raises as `Service.get`, `Transient`
    (`bad_response`), and `Permanent` (`too_many_files`)."""
    where = address.uri(prefix)
    service = access.service(cancellation)
    pages = ObjectPages(where, prefix)
    marker = ""
    while True:
        url = access.signed(address.list_url(prefix, marker, _PAGE_SIZE), cancellation)
        root = _parse(service.get(url, VERSION).body, where)
        marker = root.findtext("NextMarker") or ""
        if not pages.add_page(_blobs(root, where), marker):
            return pages.objects


def find_blob(access: AzureAccess, address: AzureAddress, key: str, cancellation: Cancellation) -> StoredObject | None:
    """Return the blob with exactly this name, the first of a listing; None without one. Raises as `list_blobs`."""
    url = access.signed(address.list_url(key, "", 1), cancellation)
    where = address.uri(key)
    root = _parse(access.service(cancellation).get(url, VERSION).body, where)
    return next((each for each in _blobs(root, where) if each.key == key), None)


class _NoDocumentType(TreeBuilder):
    def doctype(self, *_declared: Any) -> None:
        """Refuse it."""
        raise ParseError("a document type")


def parse_xml(data: bytes, where: str) -> Element:
    """Return the root of an answer's XML. Raises `Transient` (`bad_response`)."""
    try:
        parser = XMLParser(target=_NoDocumentType())  # noqa: S314 - no entity can be defined without a document type
        parser.feed(data)
        root: Element = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise bad_listing(where, "something that is no XML, or cut") from error
    return root


def _parse(data: bytes, where: str) -> Element:
    root = parse_xml(data, where)
    if root.tag != "EnumerationResults" or root.find("Blobs") is None:
        raise bad_listing(where, f"XML of another form ({root.tag[:40]})")
    return root


def _blobs(root: Element, where: str) -> Iterator[StoredObject]:
    for element in root.iterfind("Blobs/Blob"):
        name, properties = element.find("Name"), element.find("Properties")
        if name is None or not name.text or properties is None:
            raise bad_listing(where, "a blob without a name or its properties")
        key = unquote(name.text) if name.get("Encoded", "").lower() == "true" else name.text
        if not _is_folder(element):
            yield _read_blob(key, properties, where)


def _is_folder(element: Element) -> bool:
    """Return whether a blob is the marker of a folder, in an account with a hierarchical namespace or without."""
    metadata = element.find("Metadata")
    marks = [] if metadata is None else [each.text for each in metadata if each.tag.lower() == "hdi_isfolder"]
    return "true" in ((mark or "").lower() for mark in marks) or (
        element.findtext("Properties/ResourceType", "").lower() == "directory"
    )


def _read_blob(key: str, properties: Element, where: str) -> StoredObject:
    size, etag = properties.findtext("Content-Length", ""), properties.findtext("Etag", "")
    if not (size.isascii() and size.isdecimal()) or not etag:
        raise bad_listing(where, f"{key[:200]!r} without its size or its ETag")
    md5 = properties.findtext("Content-MD5") or ""
    try:
        sums = (Checksum.from_base64(Algorithm.MD5, md5),) if md5 else ()
    except ValueError as error:
        raise bad_listing(where, f"{key[:200]!r} with a Content-MD5 that is none") from error
    return StoredObject(key, int(size[:30]), _quoted(etag), sums, _problem(key, properties, where))


def _quoted(etag: str) -> str:
    return etag if etag.startswith('"') else f'"{etag}"'


def _problem(key: str, properties: Element, where: str) -> HoldfastError | None:
    """Return why a blob cannot be read as it is stored, else None."""
    coding = properties.findtext("Content-Encoding") or ""
    if coding.strip().lower() not in _NO_CODINGS:
        return Permanent(
            "encoded",
            f"{where}: {key[:200]!r} is stored with Content-Encoding {coding[:40]!r}, so its bytes are not the file's",
            "upload it without an encoding, or publish it with `holdfast publish`",
        )
    if (properties.findtext("AccessTier") or "").lower() == "archive":
        return Permanent(
            "archived",
            f"{where}: {key[:200]!r} is in the archive tier and cannot be read before it is rehydrated",
            "rehydrate it (`az storage blob set-tier --tier Hot`), then pull again",
        )
    return None
