"""Web pages and error documents with status 200 in place of a file.

Law: pure. A portal, a proxy or an expired session answers with its own page and status 200; without a promised digest
the daemon would publish that page as weights. The content type alone does not decide, as some servers call every
unknown file `text/html`; the beginning of the body does, with the type, or with a name whose format never begins so.
"""

from __future__ import annotations

import re

from cached.contract.errors import Transient
from cached.transport.target import Expected

LOOKED_AT_BYTES = 4096
HTML = "a web page (HTML)"
SIGN_IN = (
    "a proxy, a portal or a login stands in between: give the source its credentials (a netrc file, or its token), "
    "or let this node pass (NO_PROXY)"
)
_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_XML_TYPES = frozenset({"application/xml", "text/xml"})
_HTML_NAMES = (".html", ".htm", ".xhtml", ".shtml")
_XML_NAMES = (".xml", ".svg")  # may be any XML document, but no web page
# Formats that never begin with `<`: a body that does is not the file, whatever its content type.
_NEVER_MARKUP = (
    *(".safetensors", ".bin", ".gguf", ".ggml", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".npz", ".npy"),
    *(".pb", ".tflite", ".model", ".tiktoken", ".json", ".jsonl", ".ot", ".pkl", ".zip", ".tar", ".gz", ".zst"),
    ".parquet",
)
_BEFORE = rb"(?>\xef\xbb\xbf)?(?>\s+|<!--.*?-->|<\?.*?\?>)*+"
_HTML = re.compile(_BEFORE + rb"<(?:!doctype\s+html|html|head|body|title|script|meta)\b", re.IGNORECASE | re.DOTALL)
# The error document of S3, Google Cloud Storage and Azure.
_ERROR = re.compile(_BEFORE + rb"<Error>\s*<Code>([A-Za-z]{1,64})</Code>", re.DOTALL)
_XML = re.compile(rb"\s*+<\?xml\s")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def page_in(beginning: bytes) -> str | None:
    """Return what the body is, in words for a message, if it is a web page or a store's error document, else None."""
    text = beginning[:LOOKED_AT_BYTES]
    if text.startswith(_UTF16):
        text = text.decode("utf-16", "replace").encode()
    error = _ERROR.match(text)
    if error is not None:
        return f"an error document in XML, {error[1].decode('ascii')}"
    return HTML if _HTML.match(text) else None


def page_instead(expected: Expected, content_type: str, beginning: bytes) -> str | None:
    """Return what came in place of the expected file, in words for a message; None if it may be the file itself."""
    name = expected.name.lower()
    if name.endswith(_HTML_NAMES):
        return None
    found = page_in(beginning)
    if name.endswith(_XML_NAMES):
        return found if found == HTML and content_type in _HTML_TYPES else None
    if name.endswith(_NEVER_MARKUP):
        return found or ("an XML document" if _XML.match(beginning) else None)
    return found if content_type in _HTML_TYPES | _XML_TYPES else None


def is_page_type(expected: Expected, content_type: str) -> bool:
    """Return whether a content type (with or without parameters) is a page's, and the expected file is no page."""
    is_html = content_type.partition(";")[0].strip().lower() in _HTML_TYPES
    return is_html and not expected.name.lower().endswith(_HTML_NAMES)


def page_error(expected: str, where: str, found: str) -> Transient:
    """Return the error for a page in place of `expected`. `where`: the answering address, without credentials."""
    return Transient("bad_response", f"{where}: expected {expected}, found {found}", SIGN_IN)
