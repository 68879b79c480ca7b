"""The parsing of a source's `holdfast.json`, with its address in errors. Law: pure."""

from __future__ import annotations

from cached.contract.errors import InvalidManifest
from cached.contract.manifest import MANIFEST_NAME, Manifest
from cached.transport.pages import page_error, page_in


def read_manifest(data: bytes, where: str) -> Manifest:
    """Parse the bytes of `holdfast.json` from `where` (an address without credentials). Raises `Transient`
    (`bad_response`) for a web page, `InvalidManifest` for anything else that is no manifest."""
    page = page_in(data)
    if page is not None:
        raise page_error(MANIFEST_NAME, where, page)
    try:
        return Manifest.parse(data)
    except InvalidManifest as error:
        raise InvalidManifest(f"{where}: {error.message}", error.remedy) from error
