"""Fetch a model from Google Cloud Storage and Azure Blob Storage, as their emulators serve them on loopback, with
Holdfast and with the vendors' own clients, in turns.

Law: every row reads the same bytes from the same server, in the same round, without a manifest. The clients' files are
left to the kernel, so a `sync` is counted; Holdfast's are verified and durable. `--python` names the interpreter that
has google-cloud-storage and azure-storage-blob.

Run `python -m bench.stores --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import Workplace, bench_main, in_turn, size_argument, workplace
from bench.http_setup import ask
from bench.machine import require_space
from bench.measure import Usage, cpu_seconds, failed, peak_memory, run_program, stop, tail, wait_until
from bench.origins import Corpus, free_port, loopback_environment, random_corpus, tool
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef
from cached.sources.azure.access import WRITE, sign_container
from cached.sources.azure.address import AzureAddress

_REF = ModelRef("bench", "v1")
_BUCKET = "bench-models"
_SPARE_BYTES = 1024**3
_BLOCK_BYTES = 32 * 1024 * 1024
_SMALL_BYTES = 1024
# Azurite's well-known account, https://learn.microsoft.com/azure/storage/common/storage-use-azurite
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_RATE_TARGET = 1.5

_GCS_CLIENT = """
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
client = storage.Client(project="bench", credentials=AnonymousCredentials())
bucket = client.bucket("{bucket}")
"""
_GCS_FETCH = """
from google.cloud.storage import transfer_manager
names = [blob.name for blob in bucket.list_blobs(prefix="m/")]
results = transfer_manager.download_many_to_path(bucket, names, destination_directory="{folder}", max_workers={workers})
for result in results:
    if isinstance(result, Exception):
        raise result
"""
_AZURE_CLIENT = """
from azure.storage.blob import ContainerClient
client = ContainerClient("{endpoint}", "{bucket}", credential="{key}", api_version="2024-11-04")
"""
_AZURE_FETCH = """
import os
from concurrent.futures import ThreadPoolExecutor
def fetch(name):
    path = os.path.join("{folder}", os.path.basename(name))
    with open(path, "wb") as file:
        client.download_blob(name, max_concurrency={workers}).readinto(file)
with ThreadPoolExecutor({files}) as pool:
    list(pool.map(fetch, [blob.name for blob in client.list_blobs(name_starts_with="m/")]))
"""


@dataclass(frozen=True, slots=True)
class Store:
    """A running emulator. `source`: the URI of the bucket's root; `environment`: what Holdfast needs; `upload` stores a
    file under a key; `client`: the vendor's client in Python; `fetch`: what it does then; `listing`: an expression that
    lists below `many/`."""

    name: str
    source: str
    environment: Mapping[str, str]
    upload: Callable[[str, Path], None]
    client: str
    fetch: str
    listing: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.stores", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=4, help="files in the model (default 4)")
    parser.add_argument("--size", type=size_argument, default="512MiB", help="size of each (default 512MiB)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row runs (default 3)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter with the vendors' clients")
    parser.add_argument("--only", choices=("gs", "az"), help="one of the stores")
    parser.add_argument("--work", type=Path, help="keep the origin's files in this folder for the next run")
    options = parser.parse_args(argv)
    with workplace(options.work) as place:
        require_space(place.folder, options.files * options.size * 3 + _SPARE_BYTES)
        corpus = random_corpus(place.origin, options.files, options.size)
        for name, serve in (("gs", google), ("az", azure)):
            if options.only in (None, name):
                with serve(place, options.files) as store:
                    _measure(store, corpus, place, options)
    return 0


def _measure(store: Store, corpus: Corpus, place: Workplace, options: argparse.Namespace) -> None:
    for entry in corpus.manifest.files:
        store.upload(f"m/{entry.path}", corpus.folder / entry.path)
    holdfast, vendor = f"holdfast ({store.name})", f"{store.name}'s own client + sync"
    rows = {
        holdfast: partial(_holdfast, store, corpus, place),
        vendor: partial(_client, store, options.python, corpus, place),
    }
    samples = []
    for round_ in range(1, options.rounds + 1):
        for name in in_turn(list(rows), round_):
            usage = _run(rows[name], place)
            samples.append(report.Sample(name, round_, corpus.size, usage.wall_s, usage.cpu_s, usage.peak_bytes))
            shown = f"{usage.wall_s:.2f} s, {samples[-1].rate / 1e9:.2f} GB/s, {samples[-1].cpu_s_per_gb:.2f} CPU s/GB"
            print(f"round {round_}: {name}: {shown}", flush=True)
    rate = report.ratio(samples, holdfast, vendor)
    targets = [report.Target(f"{holdfast}, rate against its own client", rate or 0.0, _RATE_TARGET, True, " x")]
    table = report.table(report.figures(samples, list(rows), [vendor]), [vendor])
    print(f"\n{store.name}, {format_size(corpus.size)}:\n\n{table}\n\n{report.bullets(targets)}\n")


def _run(row: Callable[[Path], Usage], place: Workplace) -> Usage:
    place.destination.mkdir()
    try:
        return row(place.destination)
    finally:
        shutil.rmtree(place.destination)
        os.sync()  # else the removal's writes would slow the next row


def _holdfast(store: Store, corpus: Corpus, place: Workplace, folder: Path) -> Usage:
    """Measure an idle daemon from the pull until the version's symlink names the verified, durable snapshot."""
    catalog, digest = place.scratch / "catalog.yaml", corpus.manifest.digest
    write_catalog(catalog, [CatalogEntry(_REF, f"{store.source}m/", digest)])
    with daemon(folder, catalog, {**loopback_environment(), **store.environment}) as running:
        running.wait_ready()
        started, cpu_before_s = time.monotonic(), cpu_seconds(running.pid)
        running.pull(_REF)
        running.wait_published(_REF, digest, corpus.timeout_s)
        wall_s = time.monotonic() - started
        return Usage(wall_s, cpu_seconds(running.pid) - cpu_before_s, peak_memory(running.pid))


def _client(store: Store, python: str, corpus: Corpus, place: Workplace, folder: Path) -> Usage:
    """Measure the vendor's client, and fsync(2) of each of its files."""
    log, environment = place.scratch / "client.log", {**loopback_environment(), **store.environment}
    program = (store.client + store.fetch).replace("{folder}", str(folder))
    fetched = run_program([python, "-c", program], environment, log, corpus.timeout_s)
    files = [path for path in folder.rglob("*") if path.is_file()]
    if sum(path.stat().st_size for path in files) < corpus.size:
        raise failed(f"{store.name}'s client: expected {corpus.size} bytes in {folder}, found fewer")
    return fetched.then(run_program(["sync", *map(str, files)], environment, log, corpus.timeout_s))


@contextmanager
def google(place: Workplace, _files: int) -> Iterator[Store]:
    program, port = os.environ.get("HOLDFAST_TEST_FAKE_GCS_SERVER") or tool("fake-gcs-server"), free_port()
    if program is None:
        raise failed("fake-gcs-server is not on PATH", "install it, or name it in HOLDFAST_TEST_FAKE_GCS_SERVER")
    argv = [program, "-backend", "filesystem", "-filesystem-root", str(place.scratch / "gcs"), "-scheme", "http"]
    argv += ["-host", "127.0.0.1", "-port", str(port), "-log-level", "error"]
    with _serving(argv, port, place.scratch / "gcs.log"):
        host = f"127.0.0.1:{port}"
        ask(host, "POST", "/storage/v1/b?project=p", json.dumps({"name": _BUCKET}).encode()).expect(200)

        def upload(key: str, path: Path) -> None:
            at = f"/upload/storage/v1/b/{_BUCKET}/o?uploadType=media&name={quote(key, safe='')}"
            ask(host, "POST", at, path).expect(200)

        client = _GCS_CLIENT.format(bucket=_BUCKET)
        fetch = _GCS_FETCH.replace("{workers}", str(max(4, os.cpu_count() or 1)))
        listing = "bucket.list_blobs(prefix='many/')"
        environment = {"STORAGE_EMULATOR_HOST": f"http://{host}"}
        yield Store("google-cloud-storage", f"gs://{_BUCKET}/", environment, upload, client, fetch, listing)


@contextmanager
def azure(place: Workplace, files: int) -> Iterator[Store]:
    program, port = os.environ.get("HOLDFAST_TEST_AZURITE") or tool("azurite-blob"), free_port()
    if program is None:
        raise failed("azurite-blob is not on PATH", "install it, or name it in HOLDFAST_TEST_AZURITE")
    folder = place.scratch / "azurite"
    folder.mkdir()
    argv = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    with _serving([*argv, "--skipApiVersionCheck", "--disableTelemetry"], port, place.scratch / "azurite.log"):
        host, endpoint = f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/{_ACCOUNT}"
        client = _AZURE_CLIENT.format(endpoint=endpoint, bucket=_BUCKET, key=_KEY)
        sas = sign_container(AzureAddress(_ACCOUNT, _BUCKET, "", endpoint), _KEY, WRITE, time.time())
        environment = {"AZURE_STORAGE_BLOB_ENDPOINT": endpoint, "AZURE_STORAGE_KEY": _KEY}
        _create(host)

        def upload(key: str, path: Path) -> None:
            at = f"/{_ACCOUNT}/{_BUCKET}/{quote(key)}?{sas}"
            if path.stat().st_size <= _SMALL_BYTES:
                ask(host, "PUT", at, path, {"x-ms-blob-type": "BlockBlob"}).expect(201)
                return
            blocks: list[str] = []
            with path.open("rb") as file:
                while data := file.read(_BLOCK_BYTES):
                    blocks.append(base64.b64encode(b"%08d" % len(blocks)).decode())
                    ask(host, "PUT", f"{at}&comp=block&blockid={quote(blocks[-1], safe='')}", data).expect(201)
            listed = "".join(f"<Latest>{block}</Latest>" for block in blocks)
            ask(host, "PUT", f"{at}&comp=blocklist", f"<BlockList>{listed}</BlockList>".encode()).expect(201)

        fetch = _AZURE_FETCH.replace("{workers}", "4").replace("{files}", str(files))
        listing = "client.list_blobs(name_starts_with='many/')"
        name = f"az://{_ACCOUNT}/{_BUCKET}/"
        yield Store("azure-storage-blob", name, environment, upload, client, fetch, listing)


def _create(host: str) -> None:
    """Create the container: by a signature for the account, as one for a container cannot."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2024-11-04"}
    text = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    text += f"/{_ACCOUNT}/{_ACCOUNT}/{_BUCKET}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(_KEY), text.encode(), sha256).digest()).decode()
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{signature}"
    ask(host, "PUT", f"/{_ACCOUNT}/{_BUCKET}?restype=container", b"", headers).expect(201)


@contextmanager
def _serving(argv: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)

    def listening() -> bool | None:
        if process.poll() is not None:
            raise failed(f"{argv[0]} ended with {process.returncode}: {tail(log)}")
        try:
            ask(f"127.0.0.1:{port}", "GET", "/")
        except OSError:
            return None
        return True

    try:
        wait_until(listening, f"answer from {argv[0]}", 60, 0.05)
        yield
    finally:
        stop(process)


if __name__ == "__main__":
    sys.exit(bench_main(main))
