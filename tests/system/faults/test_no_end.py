"""An answer that ends with its connection, as HTTP/1.0 has it: where it was cut nothing tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, model
from tests.support.http_server import QuietServer, serve_http
from tests.support.stages import manifest_of

V1 = ModelRef("tiny", "v1")
FILE = bytes(range(256)) * 400
INDEX = (
    b'<html><title>Index of /m/</title><a href="config.json">config.json</a>\n<a href="model.bin">model.bin</a></html>'
)


@contextmanager
def _served(contents: dict[str, bytes], cut: dict[str, int]) -> Iterator[str]:
    """Serve these paths without any length, each up to its cut; yield the folder's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = contents.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.end_headers()
            if data is not None and self.command == "GET":
                self.wfile.write(data[: cut.get(self.path)])

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with serve_http(Handler, QuietServer) as address:
        yield f"http://{address}/m/"


@pytest.mark.parametrize("cut", [50_000, len(FILE)], ids=["cut", "whole"])
def test_a_file_without_a_length_is_not_published(daemon: DaemonProcess, cut: int) -> None:
    """Of a file of unknown length, sum and end, a part is not told as the whole: it fails, and says why."""
    with _served({"/m/model.bin": FILE}, {"/m/model.bin": cut}) as url:
        daemon.write_catalog({"tiny": model(f"{url}model.bin")})
        daemon.start()
        daemon.pull("tiny@v1")
        error = daemon.wait_error(V1)
        assert error["code"] == "bad_response"
        assert "no length" in error["message"]
        assert "holdfast publish" in error["remedy"]
        assert not daemon.path(V1).exists()


@pytest.mark.parametrize("cut", [INDEX.index(b"\n"), len(INDEX)], ids=["cut", "whole"])
def test_an_index_without_a_length_lists_no_version(daemon: DaemonProcess, cut: int) -> None:
    """An index that may have been cut is not taken for all of a version's files."""
    with _served({"/m/": INDEX, "/m/config.json": b"{}", "/m/model.bin": FILE}, {"/m/": cut}) as url:
        daemon.write_catalog({"tiny": model(url)})
        daemon.start()
        daemon.pull("tiny@v1")
        error = daemon.wait_error(V1)
        assert error["code"] == "bad_response"
        assert "no length" in error["message"]


def test_with_a_manifest_it_is_right(daemon: DaemonProcess) -> None:
    """What a manifest names needs no length of the server's: its own size and sha256 decide."""
    with _served({"/m/model.bin": FILE, "/m/holdfast.json": manifest_of({"model.bin": FILE})}, {}) as url:
        daemon.write_catalog({"tiny": model(url)})
        daemon.start()
        daemon.pull("tiny@v1")
        daemon.wait_ready(V1)
        assert daemon.files(V1) == {"model.bin": FILE}
