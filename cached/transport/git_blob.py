"""Git blob ids, the only promise of a Hub for the content of files outside Git LFS.

Law: pure. Format: `git hash-object`, https://git-scm.com/book/en/v2/Git-Internals-Git-Objects (sha1 of `blob <size>\\0`
and the bytes). Sha1 no longer resists forgery: the id detects damage, the sha256 names the content.
"""

from __future__ import annotations

import hashlib
import re

GIT_OID = re.compile(r"[0-9a-f]{40}")  # of a blob or a commit


def git_blob_hasher(size: int) -> hashlib._Hash:
    """Return a hasher for the Git blob id (40 hex digits) of a blob of `size` bytes."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
