"""A receiver of traces over OTLP/HTTP, as a process of its own, on the messages of opentelemetry-proto.

Law: takes what the specification asks of a receiver (POST /v1/traces, protobuf, gzip or not), and writes each span as a
line of JSON into a file, with the headers of its request, their names in lower case.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 100.0

Span = dict[str, Any]


class Receiver:
    """A running receiver; `url` goes into OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __init__(self, url: str, file: Path) -> None:
        self.url = url
        self._file = file

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a program that sends here, soon after each span."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100", **more}

    def spans(self) -> list[Span]:
        """What has come, in the order in which the spans began."""
        found = [json.loads(line) for line in self._file.read_text().splitlines()] if self._file.exists() else []
        return sorted(found, key=lambda span: (span["start"], span["end"]))

    def wait(self, name: str, enough: Callable[[list[Span]], bool] = bool) -> list[Span]:
        """Wait until there are enough spans of this name; returns these."""
        deadline = time.monotonic() + PATIENCE_S
        while not enough(found := [span for span in self.spans() if span["name"] == name]):
            assert time.monotonic() < deadline, f"no span {name!r}: {self.spans()}"
            time.sleep(0.02)
        return found


@contextlib.contextmanager
def receiver(folder: Path) -> Iterator[Receiver]:
    """A receiver that writes into `folder`, until the end of the block."""
    file = folder / "spans"
    command = [sys.executable, "-m", "tests.support.otlp", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            yield Receiver(process.stdout.readline().strip(), file)
        finally:
            process.terminate()


def _serve(file: Path) -> None:
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
            lines = list(_lines(service.ExportTraceServiceRequest.FromString(body), headers))
            with file.open("a") as written:
                written.write("".join(f"{line}\n" for line in lines))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(service.ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


def _lines(request: Any, headers: dict[str, str]) -> Iterator[str]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield json.dumps(
                    {
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "name": span.name,
                        "start": span.start_time_unix_nano / 1e9,
                        "end": span.end_time_unix_nano / 1e9,
                        "failed": span.status.code == 2,
                        "attributes": _values(span.attributes),
                        "resource": _values(resource.resource.attributes),
                        "headers": headers,
                    }
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
