"""What the catalog leaves out is no reason to refuse a version: every source, whole daemons."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, publish_files, write_files
from tests.support.fake_hub import FakeHub
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Status
from tests.support.s3 import isolated_environment, key_environment
from tests.support.stages import etag, s3_entry, s3_page, web_index

WANTED = {"model.safetensors": b"weights", "config.json": b"{}"}
INCLUDE = ["model*.safetensors", "config.json"]
EXCLUDE = ["*.png", "*.md", "*.txt", "private/", "gone.bin", "latest/", "pipe"]
# Root that reads what its user may read, as any other user does.
_WITHOUT_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
AWKWARD = {
    "case": ("README.md", "readme.md"),
    "backslash": ("assets\\plot.png",),
    "newline": ("a\nb.txt",),
    "decomposed": ("samples/cafe\u0301.png",),
}


def _judge(daemon: DaemonProcess, uris: Mapping[str, str], fails: Mapping[str, str]) -> None:
    """Each source is `ready` with the wanted files where filters leave the rest out, and fails with the code that
    `fails` has for it (`bad_name` if none; empty: it is right too) where they do not."""
    models = {}
    for name, uri in uris.items():
        models[f"{name}-all"] = prefetched(uri)
        models[f"{name}-included"] = {**prefetched(uri), "include": INCLUDE}
        models[f"{name}-excluded"] = {**prefetched(uri), "exclude": EXCLUDE}
    daemon.write_catalog(models)
    daemon.start()
    for name in uris:
        for kind in ("included", "excluded"):
            daemon.wait_ready(ModelRef(f"{name}-{kind}", "v1"))
            assert daemon.files(ModelRef(f"{name}-{kind}", "v1")) == WANTED
        whole, code = ModelRef(f"{name}-all", "v1"), fails.get(name, "bad_name")
        if code:
            error = daemon.wait_state(whole, "failed")["error"]
            assert (error["code"], error["permanent"]) == (code, True), error
        else:
            daemon.wait_ready(whole)
            assert daemon.files(whole) == WANTED


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


def test_a_hub_repository_with_odd_names(hub: FakeHub, tmp_path: Path) -> None:
    """Names that no manifest may carry fail a version of a Hub repository only where its filters choose them."""
    for name, paths in AWKWARD.items():
        write_files(tmp_path / "hub" / name, WANTED)
        for path in paths:
            (tmp_path / "hub" / name / path).parent.mkdir(exist_ok=True)
            (tmp_path / "hub" / name / path).write_bytes(b"x")
        hub.add(f"acme/{name}", tmp_path / "hub" / name)
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    with daemon_process(tmp_path, environment=environment) as daemon:
        _judge(daemon, {name: f"hf://acme/{name}" for name in AWKWARD}, {})


def test_a_bucket_with_odd_keys(origin: HostileOrigin, tmp_path: Path) -> None:
    """Keys that no manifest may carry fail a version in S3 only where its filters choose them."""
    odd = {**AWKWARD, "dots": ("../up.png",), "double": ("a//b.png",), "absolute": ("/c.png",)}
    for name, paths in odd.items():
        files = {**WANTED, **dict.fromkeys(paths, b"x")}
        entries = "".join(s3_entry(quote(f"m/{path}"), len(data), etag(data)) for path, data in files.items())
        listing = s3_page("<EncodingType>url</EncodingType>" + entries)
        origin.put(f"/{name}", listing, content_type="application/xml")
        for path, data in WANTED.items():
            origin.put(f"/{name}/m/{path}", data, etag=etag(data))
    environment = {**isolated_environment(), **key_environment(), "AWS_ENDPOINT_URL_S3": origin.url("")}
    with daemon_process(tmp_path, environment=environment) as daemon:
        _judge(daemon, {name: f"s3://{name}/m/" for name in odd}, {})


def test_an_index_with_odd_names_and_what_may_not_be_read(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """Names, files and folders of a web server's index fail a version only where its filters choose them."""
    links = {
        "case": ("README.md", "readme.md"),
        "backslash": ("a%5Cb.png",),
        "slash": ("a%2Fb.png",),
        "dots": ("%2e%2e%2fup.png",),
        "bytes": ("bad%FF.png",),
        "missing": ("missing.txt",),
        "folder": ("private/",),
        "broken": ("private/", "broken.txt"),
        "page": ("private/",),
        "odd-folder": ("private%5C/",),
    }
    for name, odd in links.items():
        page = "".join(f'<a href="{link}">x</a>' for link in (*WANTED, *odd))
        origin.put(f"/{name}/", web_index(page), content_type="text/html")
        for path, data in {**WANTED, **dict.fromkeys(odd, b"x")}.items():
            if not path.endswith("/") and path != "missing.txt":
                origin.put(f"/{name}/{path}", data, etag=etag(data))
    origin.always("/folder/private/", Status(403))
    origin.always("/broken/private/", Status(500))
    origin.always("/broken/broken.txt", Status(404))
    origin.put("/page/private/", b"<title>Hello</title>", content_type="text/html")
    uris = {name: origin.url(f"/{name}/") for name in links if name != "odd-folder"}
    codes = {"missing": "not_found", "folder": "forbidden", "broken": "not_found", "page": "bad_listing"}
    _judge(daemon, uris, codes)


def test_a_folder_as_storage_leaves_it(tmp_path: Path) -> None:
    """Links, pipes, unreadable files and odd names in a folder fail a version only where its filters choose them;
    `lost+found` fails none."""
    places = {name: tmp_path / "source" / name for name in ("lost", "dangling", "folder", "leaving", "pipe", "bytes")}
    for place in places.values():
        write_files(place, WANTED)
    write_files(places["lost"] / "lost+found", {"#123": b"x"})
    (places["dangling"] / "gone.bin").symlink_to("/nowhere/gone.bin")
    write_files(places["folder"] / "v1", {"x.txt": b"x"})
    (places["folder"] / "latest").symlink_to("v1")
    write_files(tmp_path / "elsewhere", {"x.txt": b"x"})
    (places["leaving"] / "latest").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(places["pipe"] / "pipe")
    (places["bytes"] / os.fsdecode(b"bad\xff.png")).write_bytes(b"x")
    codes = dict.fromkeys(places, "bad_file") | {"lost": "", "bytes": "bad_name"}
    with daemon_process(tmp_path) as daemon:
        _judge(daemon, {name: place.as_uri() for name, place in places.items()}, codes)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can make what its daemon may not read"
)
def test_a_folder_that_another_user_owns_parts_of(tmp_path: Path) -> None:
    """Folders that the daemon may not read fail a version only where its filters could choose something in there."""
    places = {name: tmp_path / "source" / name for name in ("lost", "private")}
    for name, place in places.items():
        write_files(place, WANTED)
        unreadable = place / {"lost": "lost+found"}.get(name, name)
        unreadable.mkdir(mode=0o700)
        os.chown(unreadable, 65532, 65532)
    with daemon_process(tmp_path, under=_WITHOUT_OVERRIDE) as daemon:
        _judge(daemon, {name: place.as_uri() for name, place in places.items()}, {"lost": "", "private": "forbidden"})


def test_a_manifest_lists_what_is_missing(daemon: DaemonProcess, source: Path) -> None:
    """A published folder that lost a file serves the versions that leave the file out."""
    publish_files(source, {**WANTED, "README.md": b"x"})
    (source / "README.md").unlink()
    _judge(daemon, {"published": source.as_uri()}, {"published": "not_found"})
