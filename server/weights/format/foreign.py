"""Tell what lies under the name of a weight file or an index that is none: a pointer, a page, another format.

Law: looks at the first bytes only. Each kind is found in the public bug reports of loaders: a clone without Git LFS, a
download of a login page, a pickle that was renamed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cached.contract.loadable.first_bytes import LFS_POINTER, LOOKED_AT_BYTES, XML, is_xml, page_in, pointer_in

HEAD_BYTES = LOOKED_AT_BYTES


class Foreign(NamedTuple):
    """What a file is instead, and what to do."""

    kind: str
    remedy: str


_LFS_SIZE = re.compile(rb"^size (\d{1,20})$", re.MULTILINE)
_JSON = re.compile(rb'[{\[]\s*["{\[\]}]')
_CONVERT = "convert the model to safetensors (transformers' `save_pretrained`): other formats are not read"
_DOWNLOAD = "download the file again, with the credentials that the source wants, then publish it again"
_MAGICS = (
    (b"PK\3\4", Foreign("a zip archive, as torch.save writes it", _CONVERT)),
    (b"\x80\2", Foreign("a pickle, as torch.save writes it", _CONVERT)),
    (b"\x80\3", Foreign("a pickle", _CONVERT)),
    (b"\x80\4", Foreign("a pickle", _CONVERT)),
    (b"\x80\5", Foreign("a pickle", _CONVERT)),
    (b"GGUF", Foreign("a GGUF file, as llama.cpp reads it", _CONVERT)),
    (b"\x89HDF\r\n\x1a\n", Foreign("an HDF5 file, as Keras writes it", _CONVERT)),
    (b"\x1f\x8b", Foreign("a gzip file", "unpack it, then publish the model again")),
    (b"\x28\xb5\x2f\xfd", Foreign("a zstd file", "unpack it, then publish the model again")),
)


def identify(head: bytes) -> Foreign | None:
    """Return what a file that begins with `head` is instead of weights, None where nothing is recognised."""
    if head[8:9] == b"{":  # a header of safetensors, damaged in another way
        return None
    if _JSON.match(_text(head)):
        return Foreign("JSON text, such as a server's error message", _DOWNLOAD)
    return identify_stand_in(head) or next((found for magic, found in _MAGICS if head.startswith(magic)), None)


def identify_stand_in(head: bytes) -> Foreign | None:
    """Return what stands in place of any file that should begin otherwise: a pointer, a page, nothing but zeros."""
    pointer = pointer_in(head, len(head))
    if pointer == LFS_POINTER:
        size = _LFS_SIZE.search(head)
        stands_for = f" that stands for a file of {int(size[1])} bytes" if size else ""
        return Foreign(
            f"a Git LFS pointer{stands_for}",
            "run `git lfs pull` in the clone that it came from, or download the model again, then publish it again",
        )
    if pointer is not None:
        return Foreign(
            "a git-annex pointer", "run `git annex get` in the clone that it came from, then publish the model again"
        )
    page = page_in(head) or (XML if is_xml(head) else None)
    if page is None and _text(head).startswith(b"<"):  # neither weights nor JSON begin so
        page = "markup"
    if page is not None:
        return Foreign(f"{page}, such as a login or an error page", _DOWNLOAD)
    if head and not head.strip(b"\0"):
        return Foreign("nothing but zero bytes, as an interrupted copy leaves them", _DOWNLOAD)
    return None


def _text(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()
