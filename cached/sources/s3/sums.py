"""The sums that S3 keeps of an object, as a listing may promise them.

Law: pure. A sum counts only where S3 says that it is of the whole object (`FULL_OBJECT`): that of a multipart upload is
one of the sums of its parts, at some servers without any mark. An ETag is no sum.
Format: "Checking object integrity in Amazon S3", user guide; `x-amz-checksum-…` of HeadObject.
"""

from __future__ import annotations

import base64
import re
from importlib.util import find_spec
from typing import Any

from cached.core.listing import Algorithm, Checksum

FULL_OBJECT = "FULL_OBJECT"
_FIELDS = {
    Algorithm.CRC32C: "ChecksumCRC32C",
    Algorithm.CRC64NVME: "ChecksumCRC64NVME",
    Algorithm.CRC32: "ChecksumCRC32",
    Algorithm.SHA1: "ChecksumSHA1",
}
_PARTS = re.compile(r'-[0-9]+"?$')


def find_sums(found: dict[str, Any]) -> tuple[str | None, tuple[Checksum, ...]]:
    """Return the sha256 in hex and the weaker sums in the result of a HeadObject with `ChecksumMode`: those of the
    whole object that this program can compute. A CRC64NVME needs the package awscrt."""
    if found.get("ChecksumType") != FULL_OBJECT:
        return None, ()
    sums = []
    for algorithm, name in _FIELDS.items():
        if name in found and (algorithm is not Algorithm.CRC64NVME or find_spec("awscrt") is not None):
            try:
                sums.append(Checksum.from_base64(algorithm, str(found[name])))
            except ValueError:  # a sum of parts (`…-2`), or another server's: no promise
                continue
    return _find_sha256(found), tuple(sums)


def _find_sha256(found: dict[str, Any]) -> str | None:
    if _PARTS.search(str(found.get("ETag", ""))):
        return None
    try:
        digest = base64.b64decode(str(found.get("ChecksumSHA256", "")), validate=True)
    except ValueError:
        return None
    return digest.hex() if len(digest) == 32 else None
