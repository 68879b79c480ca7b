"""The choice of a source by the scheme of its URI.

Law: the only module that knows every source, and it imports one only when needed: a node that reads from S3 never loads
huggingface_hub. An import may take half a second: call this from a thread where that matters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cached.contract.errors import Permanent
from cached.sources.base import Source

if TYPE_CHECKING:
    from cached.transport.client import HttpClient

SUPPORTED = "s3://, hf://, https://, http://, file:// or an absolute path"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_source(uri: str, client: HttpClient) -> Source:
    """Return the source that `uri` names, without contacting it. `client` reads manifests, indexes and a Hub's answers;
    its stall timeout applies to every source.

    Raises `Permanent`: `unknown_scheme`, or an error of the source itself. The URI may carry credentials, so messages
    quote its scheme only.
    """
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else ""
    if scheme == "s3":
        from cached.sources.s3.source import S3Source

        return S3Source(uri, client.settings.stall_window_s)
    if scheme == "hf":
        from cached.sources.huggingface.source import HuggingFaceSource

        return HuggingFaceSource(uri, client)
    if scheme in ("http", "https"):
        from cached.sources.http.source import WebSource

        return WebSource(uri, client)
    if scheme == "file" or uri.startswith("/"):
        from cached.sources.local.source import LocalSource

        return LocalSource(uri)
    found = f"the scheme {scheme!r}" if scheme else "none of these"
    raise Permanent(
        "unknown_scheme", f"expected a source as {SUPPORTED}, found {found}", "correct the source in the catalog"
    )
