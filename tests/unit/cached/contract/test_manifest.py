"""Manifests: one content has one digest, and nothing that could hurt a file system gets through."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tracemalloc
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cached.contract.digest import Digest
from cached.contract.errors import InvalidManifest
from cached.contract.manifest import (
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    SCHEMA,
    FileEntry,
    Manifest,
    check_path,
    check_tree,
)

SHA = hashlib.sha256(b"").hexdigest()
OTHER = hashlib.sha256(b"x").hexdigest()

# Written by hand from section 2 of the design; the digest is what `sha256sum` says of these bytes.
VECTOR = (
    '{"files":[{"path":"a\\"b.txt","sha256":"' + SHA + '","size":0},'
    '{"path":"model.safetensors","sha256":"' + OTHER + '","size":1},'
    '{"path":"é/模型.bin","sha256":"' + OTHER + '","size":1}],"schema":"holdfast.dev/manifest/v1"}'
).encode()
VECTOR_DIGEST = "sha256:5c678c51fc98288bddb7bbd965ba043bb8b5ae41e500d9756714c159c2e0062f"


def document(*files: dict[str, Any], **more: Any) -> bytes:
    """Canonical JSON of a manifest that need not be one."""
    whole = {"files": list(files), "schema": SCHEMA, **more}
    return json.dumps(whole, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


def entry(path: Any = "a", sha256: Any = SHA, size: Any = 0, **more: Any) -> dict[str, Any]:
    return {"path": path, "sha256": sha256, "size": size, **more}


def manifest(*paths: str) -> Manifest:
    return Manifest.build(FileEntry(path, SHA, 0) for path in paths)


def test_fixed_vector() -> None:
    """The canonical bytes and their digest are those of the design, for all time."""
    built = Manifest.build(
        [FileEntry("é/模型.bin", OTHER, 1), FileEntry("model.safetensors", OTHER, 1), FileEntry('a"b.txt', SHA, 0)]
    )
    assert built.canonical() == VECTOR
    assert str(built.digest) == VECTOR_DIGEST
    assert Manifest.parse(VECTOR) == built


def test_sums() -> None:
    """Bytes are counted once a file, blobs once a content."""
    parsed = Manifest.parse(VECTOR)
    assert parsed.total_bytes == 2
    assert parsed.blob_sizes() == {SHA: 0, OTHER: 1}


BAD_PATHS = [
    ("", "relative"),
    ("/etc/passwd", "relative"),
    ("//a", "relative"),
    ("../a", "'..'"),
    ("a/../b", "'..'"),
    ("a/..", "'..'"),
    ("..", "'..'"),
    (".", "'.'"),
    ("./a", "'.'"),
    ("a/./b", "'.'"),
    ("a//b", "''"),
    ("a/", "''"),
    ("a\\b", "backslash"),
    ("C:\\a", "backslash"),
    ("a\x00b", "U+0000"),
    ("a\nb", "U+000A"),
    ("a\tb", "U+0009"),
    ("a\x1b[31m", "U+001B"),
    ("a\x7f", "U+007F"),
    ("a\x85", "U+0085"),
    ("a\u202eb", "U+202E"),
    ("a\u200bb", "U+200B"),
    ("\ufeffa", "U+FEFF"),
    ("a\u2028b", "U+2028"),
    ("a\ud800b", "U+D800"),
    ("e\u0301", "form C"),
    ("\u212b", "form C"),
    ("x" * 256, "255"),
    ("é" * 128, "255"),
    ("/".join(["x" * 200] * 6), "1024"),
    (".holdfast", "reserved"),
    (".holdfast/manifest.json", "reserved"),
    (".Holdfast/x", "reserved"),
    (".holdfa\u017ft/x", "reserved"),
]


@pytest.mark.parametrize(("path", "says"), BAD_PATHS)
def test_bad_paths(path: str, says: str) -> None:
    """A path that is not plainly one file below the snapshot is refused, in a manifest and before."""
    with pytest.raises(InvalidManifest) as caught:
        check_path(path)
    assert says in caught.value.message
    with pytest.raises(InvalidManifest):
        Manifest.parse(document(entry(path)))


@pytest.mark.parametrize("path", [None, 1, True, ["a"], {"a": "b"}, b"a"])
def test_paths_that_are_no_text(path: object) -> None:
    """A path that is no text is refused."""
    with pytest.raises(InvalidManifest, match="as text"):
        check_path(path)


@pytest.mark.parametrize(
    "path",
    [".env", "a/.b", "a..b", "...", "a b", " ", "x" * 255, "sub/.holdfast/x", ".holdfast2", "holdfast", "é", "模型/😀"],
)
def test_good_paths(path: str) -> None:
    """Dot-files, spaces, and any script are legal."""
    assert Manifest.parse(manifest(path).canonical()).files[0].path == path


@pytest.mark.parametrize("size", [-1, MAX_FILE_BYTES + 1, 10**30, True, False, 1.0, 1e3, "1", None, [1]])
def test_bad_sizes(size: object) -> None:
    """A size is a whole number of bytes that every JSON reader keeps exact: no float, no boolean, no text."""
    with pytest.raises(InvalidManifest):
        FileEntry("a", SHA, size)  # type: ignore[arg-type]  # what a listing may give
    with pytest.raises(InvalidManifest):
        Manifest.parse(document(entry(size=size)))


def test_a_size_of_more_digits_than_python_writes() -> None:
    """A size so large that it cannot even be shown is refused like any other."""
    with pytest.raises(InvalidManifest, match="bits"):
        FileEntry("a", SHA, 10**5000)


def test_numbers_that_json_reads_and_nobody_means() -> None:
    """Sizes written as 1.0, 1e0, -0, NaN, Infinity, or with thousands of digits are refused."""
    for size in (b"1.0", b"1e0", b"-0", b"NaN", b"Infinity", b"9" * 4000, b"9" * 5000):
        with pytest.raises(InvalidManifest):
            Manifest.parse(document(entry()).replace(b'"size":0', b'"size":' + size))


def test_the_sum_of_sizes_is_bounded() -> None:
    """Files that are legal one by one are refused where their sum is not."""
    files = [FileEntry(path, SHA, MAX_FILE_BYTES) for path in "ab"]
    with pytest.raises(InvalidManifest, match="add up"):
        Manifest.build(files)


@pytest.mark.parametrize(
    "sha256",
    ["", "a" * 63, "a" * 65, SHA.upper(), f"sha256:{SHA}", "g" * 64, None, 1, pytest.param("a" * 10**6, id="long")],
)
def test_bad_sha256(sha256: object) -> None:
    """A sha256 is 64 lower-case hexadecimal digits; a refusal is short."""
    with pytest.raises(InvalidManifest) as caught:
        Manifest.parse(document(entry(sha256=sha256)))
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (("a", "a"), "expected each path once"),
        (("A", "a"), "same path"),
        (("x/A", "X/a"), "same path"),
        (("straße", "STRASSE"), "same path"),
        (("ﬁle", "file"), "same path"),
        (("a", "a/b"), "a file and also the folder"),
        (("A", "a/b/c"), "a file and also the folder"),
        (("a/b", "a/b/c/d"), "a file and also the folder"),
    ],
)
def test_clashes(paths: tuple[str, ...], says: str) -> None:
    """Two paths that are one, or a file and a folder of the same name, are refused, also after case folding."""
    with pytest.raises(InvalidManifest, match=says):
        manifest(*paths)


def test_neighbours_do_not_clash() -> None:
    """A name that only begins like another is no clash."""
    assert len(manifest("a", "a.b", "ab/c", "a-b").files) == 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{",
        b"{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf" + VECTOR,
        VECTOR.decode().encode("utf-16"),
        pytest.param(b"[" * 100_000, id="deep list"),
        pytest.param(b'{"a":' * 100_000, id="deep object"),
        document(),
        document(entry(), schema="holdfast.dev/manifest/v2"),
        document(entry(), schema=None),
        document(entry(), schema=["holdfast.dev/manifest/v1"]),
        document(entry(), extra=1),
        document(entry(mode=0o644)),
        document({"path": "a", "size": 0}),
        document("a"),  # type: ignore[arg-type]  # a file that is no object
        json.dumps({"files": {"a": entry()}, "schema": SCHEMA}, separators=(",", ":")).encode(),
        json.dumps({"schema": SCHEMA}).encode(),
    ],
)
def test_not_a_manifest(data: bytes) -> None:
    """Anything but an object of this schema with a list of files is refused."""
    with pytest.raises(InvalidManifest) as caught:
        Manifest.parse(data)
    assert caught.value.code == "invalid_manifest"


@pytest.mark.parametrize(
    "data",
    [
        VECTOR + b"\n",
        b" " + VECTOR,
        VECTOR.replace(b":", b": ", 1),
        VECTOR.replace("é".encode(), b"\\u00e9"),
        VECTOR.replace(b"model", b"m\\u006fdel"),
        VECTOR.replace(b"/", b"\\/"),
        json.dumps({"schema": SCHEMA, "files": [entry()]}, separators=(",", ":")).encode(),
        document({"size": 0, "sha256": SHA, "path": "a"})
        .replace(b'"path":"a",', b"")
        .replace(b'"size":0', b'"size":0,"path":"a"'),
    ],
)
def test_other_bytes_of_the_same_manifest(data: bytes) -> None:
    """The same files in other bytes would have another digest, and are refused."""
    json.loads(data)
    with pytest.raises(InvalidManifest, match="canonical"):
        Manifest.parse(data)


def test_files_out_of_order() -> None:
    """Files are sorted by code point, not by length, case or locale."""
    with pytest.raises(InvalidManifest, match="sorted"):
        Manifest.parse(document(entry("b"), entry("a")))
    in_order = ["B", "a/z", "a0", "c", "é", "\uffee", "😀"]
    assert [f.path for f in manifest(*reversed(in_order)).files] == in_order


@pytest.mark.parametrize(
    "data",
    [
        document(entry()).replace(b'"size":0', b'"size":0,"size":0'),
        document(entry()).replace(b'{"files"', b'{"files":[],"files"'),
        document(entry()).replace(b'"path":"a"', b'"path":"b","path":"a"'),
    ],
)
def test_duplicate_keys(data: bytes) -> None:
    """A JSON object with the same key twice, which readers take differently, is refused."""
    with pytest.raises(InvalidManifest, match="twice"):
        Manifest.parse(data)


def _legal(path: str) -> bool:
    try:
        check_path(path)
    except InvalidManifest:
        return False
    return True


def _together(paths: list[str]) -> bool:
    try:
        check_tree(paths)
    except InvalidManifest:
        return False
    return True


segments = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"]), min_size=1, max_size=8)
legal_paths = (
    st.lists(segments, min_size=1, max_size=3)
    .map("/".join)
    .map(lambda path: unicodedata.normalize("NFC", path))
    .filter(_legal)
)
trees = st.lists(legal_paths, min_size=1, max_size=8).filter(_together)
contents = st.binary(max_size=4)


@given(trees, st.data())
def test_round_trip(paths: list[str], data: st.DataObject) -> None:
    """What is built reads back, whatever the order it was built in, and its digest is of its bytes."""
    files = []
    for path in paths:
        content = data.draw(contents)
        files.append(FileEntry(path, hashlib.sha256(content).hexdigest(), len(content)))
    built = Manifest.build(files)
    assert Manifest.parse(built.canonical()) == built
    assert Manifest.build(reversed(files)).digest == built.digest == Digest.of(built.canonical())


@given(trees, st.data())
def test_one_other_byte_is_refused_or_another_manifest(paths: list[str], data: st.DataObject) -> None:
    """No change of one byte leaves the manifest what it was."""
    built = manifest(*paths)
    mutable = bytearray(built.canonical())
    at = data.draw(st.integers(0, len(mutable) - 1))
    mutable[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != mutable[at]))
    with contextlib.suppress(InvalidManifest):
        assert Manifest.parse(bytes(mutable)) != built


@settings(max_examples=200)
@given(st.text())
def test_a_legal_path_stays_below_its_folder(path: str) -> None:
    """Whatever text passes is relative, goes nowhere up, and can be a file's name on Linux."""
    if not _legal(path):
        return
    for segment in path.split("/"):
        assert segment not in ("", ".", "..")
        assert "\0" not in segment
        assert len(segment.encode()) <= 255


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.one_of(
        st.binary(),
        values.map(lambda value: json.dumps(value).encode()),
        values.map(lambda value: json.dumps({"files": [value], "schema": SCHEMA}).encode()),
        st.tuples(values, values, values).map(lambda v: document(entry(*v))),
    )
)
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    """No bytes give anything but a manifest of exactly these bytes or `InvalidManifest`."""
    try:
        parsed = Manifest.parse(data)
    except InvalidManifest:
        return
    assert parsed.canonical() == data


def test_a_hostile_manifest_costs_no_more_than_an_honest_one() -> None:
    """JSON that is long and no list of files is refused before it is parsed: its items would take gigabytes."""
    bomb = b'{"files":[' + b"[]," * (MAX_MANIFEST_BYTES // 3 - 100) + b'[]],"schema":"holdfast.dev/manifest/v1"}'
    assert len(bomb) <= MAX_MANIFEST_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(InvalidManifest, match="list of files"):
            Manifest.parse(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_long_manifest_is_read() -> None:
    """Many files, with quotes and other scripts in their names, are read as they were written."""
    files = [FileEntry(f'd{n}/"ü" {n}.bin', "ab" * 32, n) for n in range(2000)]
    manifest = Manifest.build(files)
    assert len(manifest.canonical()) > 128 * 1024
    assert Manifest.parse(manifest.canonical()) == manifest
