"""What a file is, by its first bytes: a pointer of Git LFS, a web page, a store's error document.

Law: pure. Names a thing only where the bytes prove it.
"""

from __future__ import annotations

import re

LOOKED_AT_BYTES = 4096
HTML = "a web page (HTML)"
XML = "an XML document"
LFS_POINTER = "a pointer of Git LFS"
# Formats that never begin with `<`: a file that does is another one.
NEVER_MARKUP = (
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
# The specification's first line, and that of its beta (2013), which git-lfs reads too.
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_ANNEX = re.compile(rb"(?:\.\./)*(?:\.git/annex/objects/|/annex/objects/)")
MAX_POINTER_BYTES = 1024  # git-lfs reads no longer pointer
_MAX_ANNEX_BYTES = 32 * 1024


def page_in(beginning: bytes) -> str | None:
    """Return what the body is, in words for a message, if it is a web page or a store's error document, else None."""
    text = beginning[:LOOKED_AT_BYTES]
    if text.startswith(_UTF16):
        text = text.decode("utf-16", "replace").encode()
    error = _ERROR.match(text)
    if error is not None:
        return f"an error document in XML, {error[1].decode('ascii')}"
    return HTML if _HTML.match(text) else None


def is_xml(beginning: bytes) -> bool:
    """Return whether the bytes begin an XML document."""
    return _XML.match(beginning) is not None


def pointer_in(beginning: bytes, size: int) -> str | None:
    """Return what a file of `size` bytes is, if it only stands for one: a pointer of Git LFS or git-annex."""
    if size <= MAX_POINTER_BYTES and beginning.startswith(_POINTERS):
        return LFS_POINTER
    if size <= _MAX_ANNEX_BYTES and _ANNEX.match(beginning):
        return "a pointer of git-annex"
    return None
