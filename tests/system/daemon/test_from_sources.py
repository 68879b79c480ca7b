"""Versions from the places that they come from, whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, publish_files, write_files
from tests.support.fake_hub import FakeHub, Reply, Request
from tests.support.nginx import nginx
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Headers, Status

V1 = ModelRef("tiny", "v1")
FILES = {
    "config.json": b"{}",
    "model.safetensors": random.Random(2).randbytes(2_500_000),
    "nested/folder/empty.txt": b"",
    "pytorch_model.bin": b"the same weights again",
    "ümlaut file.json": b"[1]",
}
CHOSEN = {path: data for path, data in FILES.items() if path != "pytorch_model.bin"}


def _fetched(daemon: DaemonProcess, uri: str, **filters: list[str]) -> dict[str, bytes]:
    daemon.write_catalog({"tiny": {**prefetched(uri), **filters}})
    daemon.start()
    daemon.wait_ready(V1)
    return daemon.files(V1)


def test_a_folder_with_a_manifest_comes_as_it_lists(daemon: DaemonProcess, source: Path) -> None:
    """A published folder is taken exactly as its manifest lists it: no built-in filter applies."""
    manifest = publish_files(source, FILES)
    (source / "not-listed.bin").write_bytes(b"stray")
    assert _fetched(daemon, f"file://{source}") == FILES
    assert daemon.digest(V1) == manifest.digest


def test_a_plain_folder_comes_without_clutter(daemon: DaemonProcess, source: Path) -> None:
    """A plain folder comes whole, less what no server reads."""
    write_files(source, FILES)
    assert _fetched(daemon, f"file://{source}") == CHOSEN


def test_an_entrys_own_filters_always_apply(daemon: DaemonProcess, source: Path) -> None:
    """`include` and `exclude` of the catalog choose, from a manifest too, and so give another digest."""
    manifest = publish_files(source, FILES)
    found = _fetched(daemon, f"file://{source}", include=["*.json", "*.bin"], exclude=["config*"])
    assert found == {path: FILES[path] for path in ("pytorch_model.bin", "ümlaut file.json")}
    chosen = Manifest.build(entry for entry in manifest.files if entry.path in found)
    assert daemon.digest(V1) == chosen.digest != manifest.digest


def test_filters_that_leave_nothing_are_an_error(daemon: DaemonProcess, source: Path) -> None:
    """Filters that match no file fail the version, telling what there was."""
    write_files(source, FILES)
    daemon.write_catalog({"tiny": {**prefetched(f"file://{source}"), "include": ["*.gguf"]}})
    daemon.start()
    error = daemon.wait_state(V1, "failed")["error"]
    assert error["code"] == "nothing_selected"
    assert "config.json" in error["message"]


@pytest.mark.parametrize("published", [True, False])
def test_a_web_server_is_a_source(daemon: DaemonProcess, source: Path, tmp_path: Path, published: bool) -> None:
    """From nginx a version comes whole, by its manifest or by the server's index of the folder."""
    (publish_files if published else write_files)(source / "models" / "tiny", FILES)
    with nginx(tmp_path / "nginx", source, "autoindex on;") as url:
        assert _fetched(daemon, f"{url}/models/tiny/") == (FILES if published else CHOSEN)
    assert daemon.metric("holdfast_fetch_bytes_total", source="http") == sum(
        len(data) for data in (FILES if published else CHOSEN).values()
    )


def test_bytes_that_are_not_what_the_manifest_says_are_never_published(
    daemon: DaemonProcess, origin: HostileOrigin
) -> None:
    """Wrong bytes are fetched once more and then fail the version, counted; the name does not appear."""
    promised = FileEntry("a.bin", "ab" * 32, 9)
    origin.put("/tiny/holdfast.json", Manifest.build([promised]).canonical())
    origin.put("/tiny/a.bin", b"different")
    daemon.write_catalog({"tiny": prefetched(origin.url("/tiny/"))})
    daemon.start()
    error = daemon.wait_state(V1, "failed")["error"]
    assert error["code"] == "digest_mismatch"
    assert promised.sha256 in error["message"]
    assert daemon.metric("holdfast_verify_failures_total", where="fetch") == 2
    assert not daemon.path(V1).exists()
    assert not [path for path in daemon.layout.blobs.rglob("*") if path.is_file()]


def test_a_mirror_with_less_than_a_hub_is_a_source(tmp_path: Path) -> None:
    """A mirror without the tree API, that names no commit and streams whole files whatever the range, gives every byte;
    what the daemon was told is an address as huggingface_hub writes it."""

    class Mirror(FakeHub):
        def answer(self, request: Request) -> Reply:
            reply = super().answer(request)
            if "/tree/" in request.path:
                return Reply(404, {"Content-Type": "text/plain"}, b"404 page not found")
            headers = {name: value for name, value in reply.headers.items() if name != "X-Repo-Commit"}
            file = reply.file
            if reply.status == 302:
                file = self._blobs[reply.headers["X-Linked-Etag"].strip('"')].disk
                headers = {}
            return Reply(200 if file else reply.status, headers, file.read_bytes() if file else reply.body)

    write_files(tmp_path / "hub", CHOSEN)
    with Mirror() as hub:
        hub.add("acme/tiny", tmp_path / "hub")
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        with daemon_process(tmp_path, environment=environment) as daemon:
            assert _fetched(daemon, "hf://models/acme/tiny@main/") == CHOSEN


@pytest.mark.parametrize("whole", [True, False])
def test_a_web_page_in_place_of_a_file_is_never_published(
    daemon: DaemonProcess, origin: HostileOrigin, whole: bool
) -> None:
    """A login page with status 200 is never a version's file, though no source promised its bytes; the real one is."""
    page = b"<!DOCTYPE html><title>Sign in</title>" + b"x" * (9_000_000 if not whole else 0)
    index = "<title>Index of /tiny/</title>" + "".join(f'<a href="{name}">x</a>' for name in ("a.json", "b.bin"))
    origin.put("/tiny/", index.encode(), content_type="text/html")
    origin.put("/tiny/a.json", b"{}", content_type="text/html")  # some servers call every file so
    origin.put("/tiny/b.bin", page, content_type="text/html")
    daemon.write_catalog({"tiny": prefetched(origin.url("/tiny/")), "one": prefetched(origin.url("/tiny/b.bin"))})
    daemon.start()
    for ref in (V1, ModelRef("one", "v1")):
        error = daemon.wait_state(ref, "failed")["error"]
        assert error["code"] == "bad_response"
        assert origin.url("/tiny/b.bin") in error["message"] and "a web page (HTML)" in error["message"]
        assert not daemon.path(ref).is_symlink()
    assert not [path for path in daemon.layout.ingest.glob("*/data") if page[:20] in path.read_bytes()]
    origin.put("/tiny/b.bin", b"weights", content_type="text/html")
    daemon.pull("tiny@v1")
    daemon.wait(lambda: daemon.state(V1) == "ready", "the file itself")
    assert daemon.files(V1) == {"a.json": b"{}", "b.bin": b"weights"}


def test_a_source_that_answers_nonsense_fails_its_own_version_only(
    daemon: DaemonProcess, origin: HostileOrigin, source: Path
) -> None:
    """A manifest that is none fails its version with a reason; another version arrives."""
    write_files(source, {"a.bin": b"a"})
    origin.put("/tiny/holdfast.json", b'{"files": 7}')
    origin.put("/odd/a.bin", b"a")
    origin.script("/odd/a.bin", *[Headers({"Content-Length": "-5"})] * 9)
    daemon.write_catalog(
        {
            "tiny": prefetched(origin.url("/tiny/")),
            "odd": prefetched(origin.url("/odd/a.bin")),
            "other": prefetched(f"file://{source}"),
        }
    )
    daemon.start()
    daemon.wait_ready(ModelRef("other", "v1"))
    assert daemon.wait_state(V1, "failed")["error"]["code"] == "invalid_manifest"
    daemon.wait(lambda: bool(daemon.error(ModelRef("odd", "v1"))), "an error")


def test_an_origin_that_was_down_is_asked_again(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """While an origin is down the version says so, is not failed, and is counted; once it is back it arrives."""
    origin.put("/tiny/holdfast.json", Manifest.build([FileEntry("a.bin", _SHA_OF_A, 1)]).canonical())
    origin.put("/tiny/a.bin", b"a")
    origin.script("/tiny/holdfast.json", *[Status(503)] * 2)
    origin.script("/tiny/a.bin", *[Status(500)] * 2)
    daemon.write_catalog({"tiny": prefetched(origin.url("/tiny/"))})
    daemon.start()
    daemon.wait(lambda: daemon.error(V1).get("permanent") is False, "an error that is retried")
    assert daemon.state(V1) in ("queued", "resolving", "fetching")
    daemon.wait_ready(V1)
    assert daemon.status(V1) is not None
    assert daemon.error(V1) == {}
    assert daemon.metric("holdfast_fetch_errors_total", source="http", reason="http_503") == 2
    assert daemon.metric("holdfast_fetch_errors_total", source="http", reason="http_500") == 2


def test_a_pull_does_not_wait_out_the_pause(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """Pulling a version that waits for its next try starts that try now."""
    origin.put("/tiny/a.bin", b"a")
    origin.script("/tiny/a.bin/holdfast.json", Status(503, {"Retry-After": "3000"}))
    daemon.write_catalog({"tiny": prefetched(origin.url("/tiny/a.bin"))})
    daemon.start()
    daemon.wait(lambda: daemon.error(V1).get("code") == "http_503", "the error")
    daemon.pull("tiny@v1")
    daemon.wait_ready(V1)


_SHA_OF_A = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
