#!/usr/bin/env bash
# libscrc 1.8.1: of a buffer of 4 GiB or more each checksum covers its length modulo 4 GiB, from the beginning, and nothing after
# that: of 4 GiB and five bytes, the first five. Two files that differ anywhere else have the same CRC32, CRC32C (iscsi), CRC64
# (xz64) and Adler-32; of exactly 4 GiB the checksum is that of no bytes at all. Nothing is raised. Up to 4294967295 bytes its
# CRC32 is zlib's and its CRC32C that of the package crc32c, which both, as awscrt, google-crc32c and xxhash, read all of such
# a buffer. A mapped file of weights is easily that large; in pieces, each with the checksum so far as second argument, the
# result is right.
#
# Why, in the source: the length of the buffer, of 64 bits, is cast to an unsigned int of 32 for the loops in C.
#
# Seen with a buffer of zeros but for its first five bytes and, where that is said, its last:
#     4294967295 bytes: crc32 as zlib, iscsi as crc32c
#     4294967301 bytes: crc32 other than zlib, iscsi other than crc32c
#     4294967301 bytes: as of the first 5 bytes: crc32, iscsi, xz64, adler32
#     4294967301 bytes, last one changed: unchanged: crc32, iscsi, xz64, adler32
#     4294967296 bytes: as of no bytes: crc32, iscsi, xz64, adler32
#     4294967301 bytes in two pieces: crc32 as zlib, iscsi as crc32c
#
# Installs the packages into a temporary folder, and fails if a line is another. The buffers are maps of zeros, which take
# addresses and next to no memory.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check libscrc==1.8.1 crc32c==2.9.post0

cat > "$work/check.py" <<'PYTHON'
"""Print what the checksums of libscrc cover of buffers around 4 GiB."""

import mmap
import zlib

import libscrc
from crc32c import crc32c

FULL = 1 << 32
SIZE = FULL + 5
FUNCTIONS = ("crc32", "iscsi", "xz64", "adler32")


def show_beside_others(shown, data, crc32, iscsi):
    """Compare with the two packages that read the whole buffer."""
    as_zlib = "as" if crc32 == zlib.crc32(data) else "other than"
    as_crc32c = "as" if iscsi == crc32c(data) else "other than"
    print(f"{shown}: crc32 {as_zlib} zlib, iscsi {as_crc32c} crc32c")


def equal(data, other):
    names = [name for name in FUNCTIONS if getattr(libscrc, name)(data) == getattr(libscrc, name)(other)]
    return ", ".join(names) or "none"


def zeros(*changed):
    """Return a map of zeros that begins with five letters, with ones at these places."""
    found = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found[:5] = b"abcde"
    for place in changed:
        found[place] = 1
    return memoryview(found)


plain, changed = zeros(), zeros(SIZE - 1)
short = plain[: FULL - 1]
show_beside_others(f"{FULL - 1} bytes", short, libscrc.crc32(short), libscrc.iscsi(short))
show_beside_others(f"{SIZE} bytes", plain, libscrc.crc32(plain), libscrc.iscsi(plain))
print(f"{SIZE} bytes: as of the first 5 bytes: {equal(plain, b'abcde')}")
print(f"{SIZE} bytes, last one changed: unchanged: {equal(changed, plain)}")
print(f"{FULL} bytes: as of no bytes: {equal(plain[:FULL], b'')}")
half, rest = plain[: SIZE // 2], plain[SIZE // 2 :]
in_pieces = libscrc.crc32(rest, libscrc.crc32(half)), libscrc.iscsi(rest, libscrc.iscsi(half))
show_beside_others(f"{SIZE} bytes in two pieces", plain, *in_pieces)
PYTHON

expected="4294967295 bytes: crc32 as zlib, iscsi as crc32c
4294967301 bytes: crc32 other than zlib, iscsi other than crc32c
4294967301 bytes: as of the first 5 bytes: crc32, iscsi, xz64, adler32
4294967301 bytes, last one changed: unchanged: crc32, iscsi, xz64, adler32
4294967296 bytes: as of no bytes: crc32, iscsi, xz64, adler32
4294967301 bytes in two pieces: crc32 as zlib, iscsi as crc32c"
if ! found=$("$work/venv/bin/python" "$work/check.py" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(libscrc|crc32c) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
