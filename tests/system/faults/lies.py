"""Listings that are well formed and name what no version may hold, or that never end.

Law: values only, as in `tests.system.faults.cases`.
"""

from __future__ import annotations

import json

from tests.support.origin_faults import Content, EachTime, Headers, Stall, Status
from tests.support.stages import content, hub_entry, hub_page, s3_entry, s3_page, web_index
from tests.system.faults.cases import Case, Outcome, Right, Tried, Wrong

_BAD_NAMES = {
    "dots": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "inner-dots": "a/../../b",
    "nul": "a\0b",
    "newline": "a\nb",
    "backslash": "a\\b",
    "reserved-folded": ".HOLDFAST/manifest.json",
    "long": "x" * 300,
}


def lying_listings() -> list[Case]:
    """Listings that are well formed and name what no version may hold."""
    return [*_lying_manifests(), *_lying_indexes(), *_lying_buckets(), *_lying_trees()]


def _case(name: str, outcome: Outcome, body: bytes, source: str, **headers: str) -> Case:
    return Case(f"lie-{name}", outcome, (), Content(body, headers), "listing", False, (source,))


def _manifest(*files: object, **more: object) -> bytes:
    document = {"files": files, "schema": "holdfast.dev/manifest/v1", **more}
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _lying_manifests() -> list[Case]:
    def file(path: object, size: object = 1) -> dict[str, object]:
        return {"path": path, "sha256": "ab" * 32, "size": size}

    bodies = {name: _manifest(file(path)) for name, path in _BAD_NAMES.items()}
    bodies |= {
        "duplicates": _manifest(file("a"), file("a")),
        "folded": _manifest(file("A"), file("a")),
        "folder-and-file": _manifest(file("a"), file("a/b")),
        "size-negative": _manifest(file("a", -1)),
        "size-text": _manifest(file("a", "1")),
        "size-fraction": _manifest(file("a", 1.5)),
        "size-huge": _manifest(file("a", 2**80)),
        "no-files": _manifest(),
        "not-a-list": b'{"files":{},"schema":"holdfast.dev/manifest/v1"}',
        "more-keys": _manifest(file("a"), zeal=1),
        "reserved-own": _manifest(file(".holdfast/lease")),
        "empty": b"",
        "page": b"<html><body>Log in!</body></html>",
        "deeply-nested": b"[" * 200_000,
        "a-number": b"9" * 5000,
        "spaced": b" " + _manifest(file("a")),
    }
    return [
        Case(
            f"lie-manifest-{name}",
            Wrong("bad_response", "a web page (HTML)")
            if name == "page"
            else Wrong("invalid_manifest", "holdfast.json"),
            (),
            Content(body),
            "manifest",
            False,
            ("http", "s3"),
        )
        for name, body in bodies.items()
    ]


def _lying_indexes() -> list[Case]:
    html = {"Content-Type": "text/html"}

    def index(name: str, outcome: Outcome, *links: str) -> Case:
        return _case(
            f"index-{name}", outcome, web_index("".join(f'<a href="{link}">x</a>' for link in links)), "http", **html
        )

    good = content("lying indexes")
    return [
        index("dots", Wrong("bad_name"), "%2e%2e%2fpasswd"),
        index("nul", Wrong("bad_name"), "a%00b"),
        index("numbers", Wrong("not_found"), "&#" + "9" * 5000 + ";"),
        index("elsewhere", Wrong("not_found"), "/etc/passwd", "../up", "http://127.0.0.1:1/x", "//evil/x", "?C=N"),
        index("folded", Wrong("bad_name"), "MODEL.BIN", "model.bin"),
        index("reserved", Wrong("bad_name"), ".HOLDFAST/lease"),
        index("itself", Wrong("not_found"), "./", "#top"),
        index("missing", Wrong("not_found"), "no-such-file"),
        _case("index-unclosed", Wrong("not_found"), web_index("<a " * 2_000_000), "http", **html),
        _case("index-json-types", Wrong("not_found"), b'[{"name":7}]', "http", **{"Content-Type": "application/json"}),
        _case("index-huge", Wrong("too_large"), web_index("x" * (17 << 20)) + good, "http", **html),
    ]


def _lying_buckets() -> list[Case]:
    def bucket(name: str, outcome: Outcome, *entries: tuple[object, object]) -> Case:
        page = s3_page("".join(s3_entry(key, size) for key, size in entries))
        return _case(f"bucket-{name}", outcome, page, "s3", **{"Content-Type": "application/xml"})

    named = {name: path for name, path in _BAD_NAMES.items() if name not in ("nul",)}
    return [
        *(bucket(name, Wrong("bad_name"), (f"m/{path}", 1)) for name, path in named.items() if name != "newline"),
        bucket("outside", Wrong("bad_response"), ("other/secret", 1)),
        bucket("duplicates", Wrong("bad_name"), ("m/a", 1), ("m/a", 1)),
        bucket("folded", Wrong("bad_name"), ("m/a", 1), ("m/A", 1)),
        bucket("folder-and-file", Wrong("bad_name"), ("m/a", 1), ("m/a/b", 1)),
        bucket("size-negative", Wrong("bad_response"), ("m/a", -1)),
        bucket("size-text", Wrong("bad_response"), ("m/a", "many")),
        bucket("size-fraction", Wrong("bad_response"), ("m/a", "1.5")),
        bucket("size-huge", Wrong("bad_response"), ("m/a", 2**80)),
        bucket("size-of-a-petabyte", Wrong("too_large", counted=False), ("m/a", 2**50)),
        bucket("half-published", Tried("publishing"), ("m/a", 1), ("m/.holdfast/publishing", 0)),
        _case("bucket-no-key", Wrong("bad_response"), s3_page("<Contents><Size>1</Size></Contents>"), "s3"),
        _case("bucket-no-size", Wrong("bad_response"), s3_page("<Contents><Key>m/a</Key></Contents>"), "s3"),
        _case("bucket-entity", Wrong("bad_response"), b'<!DOCTYPE x [<!ENTITY a "b">]><x>&b;</x>', "s3"),
        _case("bucket-same-token", Wrong("bad_response"), s3_page(s3_entry("m/a", 1), "again"), "s3"),
        _case("bucket-huge", Wrong("bad_response"), s3_page("x" * (9 << 20)), "s3"),
        Case(
            "lie-bucket-endless",
            Wrong("too_many_files"),
            (),
            EachTime(lambda n: Content(s3_page("".join(s3_entry(f"m/{n}-{k}", 1) for k in range(5000)), f"t{n}"))),
            "listing",
            False,
            ("s3",),
        ),
    ]


def _lying_trees() -> list[Case]:
    def tree(name: str, outcome: Outcome, *entries: object) -> Case:
        return _case(f"tree-{name}", outcome, hub_page(*entries), "hf", **{"Content-Type": "application/json"})

    return [
        *(tree(name, Wrong("bad_name"), hub_entry(path)) for name, path in _BAD_NAMES.items()),
        tree("duplicates", Wrong("bad_name"), hub_entry("a"), hub_entry("a")),
        tree("folded", Wrong("bad_name"), hub_entry("a"), hub_entry("A")),
        tree("size-negative", Wrong("bad_response"), hub_entry("a", -1)),
        tree("size-text", Wrong("bad_response"), hub_entry("a", "1")),
        tree("size-none", Wrong("bad_response"), hub_entry("a", None)),
        tree("size-of-a-petabyte", Wrong("too_large", counted=False), hub_entry("a", 2**50)),
        tree("no-path", Wrong("bad_response"), {"type": "file"}),
        tree("no-object", Wrong("bad_response"), 7),
        tree("bad-lfs", Wrong("bad_response"), hub_entry("a", lfs=["x"])),
        tree("reserved", Wrong("not_found"), hub_entry(".holdfast/lease")),
        _case("tree-no-list", Wrong("bad_response"), b'{"error":"x"}', "hf"),
        _case("tree-huge", Wrong("too_large"), b"[" + b" " * (17 << 20) + b"]", "hf"),
        _case("tree-elsewhere", Wrong("bad_response"), hub_page(), "hf", Link='<https://evil.example/x>; rel="next"'),
        Case(
            "lie-tree-endless",
            Wrong("too_many_files"),
            (),
            EachTime(
                lambda n: Content(
                    hub_page(*(hub_entry(f"{n}-{k}") for k in range(2000))), {"Link": f'<?cursor={n}>; rel="next"'}
                )
            ),
            "listing",
            False,
            ("hf",),
        ),
        Case("lie-revision-odd", Wrong("bad_response"), (), Content(b'{"sha":["x"]}'), "revision", True, ("hf",)),
        Case("lie-revision-list", Wrong("bad_response"), (), Content(b"[]"), "revision", True, ("hf",)),
        Case("locate-silence", Right("stalled"), (Stall(None),), None, "locate", True, ("hf",)),
        Case("locate-503", Right("http_503"), (Status(503, {"Retry-After": "1"}),), None, "locate", True, ("hf",)),
        Case("locate-no-commit", Right(), (), Headers({"X-Repo-Commit": None}), "locate", True, ("hf",)),
        Case(
            "locate-other-size",
            Right("source_changed"),
            (Headers({"X-Linked-Size": "9"}),),
            None,
            "locate",
            True,
            ("hf",),
        ),
        Case(
            "locate-refused",
            Right("connect"),
            (Headers({"Location": "https://127.0.0.1:1/x"}),),
            None,
            "locate",
            True,
            ("hf",),
        ),
        Case(
            "locate-insecure",
            Wrong("insecure_redirect"),
            (),
            Headers({"Location": "http://127.0.0.1:1/x"}),
            "locate",
            True,
            ("hf",),
        ),
        Case(
            "locate-gone",
            Wrong("not_found"),
            (),
            Status(404, {"X-Error-Code": "EntryNotFound"}),
            "locate",
            True,
            ("hf",),
        ),
        Case("locate-no-such-commit", Right(), (), Status(404), "locate", True, ("hf",)),
    ]
