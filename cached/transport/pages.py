"""Web pages and error documents with status 200 in place of a file.

Law: pure. A portal, a proxy or an expired session answers with its own page and status 200; without a promised digest
the daemon would publish that page as weights. The content type alone does not decide, as some servers call every
unknown file `text/html`; the beginning of the body does, with the type, or with a name whose format never begins so.
"""

from __future__ import annotations

from cached.contract.errors import Transient
from cached.contract.loadable.first_bytes import HTML, LOOKED_AT_BYTES, NEVER_MARKUP, XML, is_xml, page_in
from cached.transport.target import Expected

__all__ = ["HTML", "LOOKED_AT_BYTES", "SIGN_IN", "is_page_type", "page_error", "page_in", "page_instead"]

SIGN_IN = (
    "a proxy, a portal or a login stands in between: give the source its credentials (a netrc file, or its token), "
    "or let this node pass (NO_PROXY)"
)
_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_XML_TYPES = frozenset({"application/xml", "text/xml"})
_HTML_NAMES = (".html", ".htm", ".xhtml", ".shtml")
_XML_NAMES = (".xml", ".svg")  # may be any XML document, but no web page


def page_instead(expected: Expected, content_type: str, beginning: bytes) -> str | None:
    """Return what came in place of the expected file, in words for a message; None if it may be the file itself."""
    name = expected.name.lower()
    if name.endswith(_HTML_NAMES):
        return None
    found = page_in(beginning)
    if name.endswith(_XML_NAMES):
        return found if found == HTML and content_type in _HTML_TYPES else None
    if name.endswith(NEVER_MARKUP):
        return found or (XML if is_xml(beginning) else None)
    return found if content_type in _HTML_TYPES | _XML_TYPES else None


def is_page_type(expected: Expected, content_type: str) -> bool:
    """Return whether a content type (with or without parameters) is a page's, and the expected file is no page."""
    is_html = content_type.partition(";")[0].strip().lower() in _HTML_TYPES
    return is_html and not expected.name.lower().endswith(_HTML_NAMES)


def page_error(expected: str, where: str, found: str) -> Transient:
    """Return the error for a page in place of `expected`. `where`: the answering address, without credentials."""
    return Transient("bad_response", f"{where}: expected {expected}, found {found}", SIGN_IN)
