"""What the tests of the Hub's source share: a small model, and how to read what the source says."""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cached.contract.errors import HoldfastError
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import Source
from cached.sources.huggingface.source import HuggingFaceSource
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from tests.support.choosing import chosen

WEIGHTS = bytes(range(256)) * 4096
CONFIG = b'{"hidden_size": 8}\n'
TOKEN = "hf_fakeTokenThatIsGood"
NAME = "acme/model"
URI = f"hf://{NAME}@main"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def hub_source(uri: str) -> HuggingFaceSource:
    """A source with a client of its own, which keeps no connection open."""
    client = HttpClient(HttpSettings())
    client.close()
    return HuggingFaceSource(uri, client)


def read(target: HttpTarget, asked: str | None = None) -> tuple[int, bytes]:
    """Read a target as the byte path does: these headers, this URL, no redirect."""
    parts = urlsplit(target.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=100)
    try:
        headers = dict(target.headers) | ({"Range": asked} if asked else {})
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def by_path(listing: Listing) -> dict[str, RemoteFile]:
    return {file.path: file for file in listing.files}


async def refusal(source: Source, file: RemoteFile | None = None) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await (source.locate(file) if file else chosen(source))
    return caught.value
