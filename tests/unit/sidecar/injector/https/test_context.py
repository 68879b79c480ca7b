"""A TLS server whose certificate changes while it runs, over real sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from sidecar.injector.https.context import ServingTls
from tests.support.certificates import Certificates, make_certificates


def make(folder: Path) -> Certificates:
    folder.mkdir()
    return make_certificates(folder)


def use(tls: ServingTls, certificates: Certificates) -> bool:
    return tls.set_certificate(certificates.certificate.read_bytes(), certificates.key.read_bytes())


class Echo(asyncio.Protocol):
    """One connection's server side."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@asynccontextmanager
async def listening(tls: ServingTls) -> AsyncIterator[int]:
    """A server that answers all with the same; gives its port."""

    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Client:
    """One connection that trusts one authority."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, trusted: Certificates, host: str = "localhost") -> Client:
        context = ssl.create_default_context(cafile=str(trusted.authority))
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host))

    async def echo(self) -> bytes:
        self.writer.write(b"hello\n")
        return await self.reader.readline()

    def close(self) -> None:
        self.writer.transport.abort()


async def test_new_connections_get_the_new_certificate(tmp_path: Path) -> None:
    """After a change new handshakes see it, and connections from before go on."""
    old, new = make(tmp_path / "old"), make(tmp_path / "new")
    tls = ServingTls()
    assert use(tls, old) and not use(tls, old)
    async with listening(tls) as port:
        early = await Client.connect(port, old)
        assert use(tls, new)
        late = await Client.connect(port, new)
        assert await early.echo() == await late.echo() == b"hello\n"
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client.connect(port, old)
        early.close()
        late.close()


async def test_a_client_that_names_no_server_is_served(tmp_path: Path) -> None:
    """A client that connects to an address, and so sends no name, gets the certificate too."""
    certificates = make(tmp_path / "one")
    tls = ServingTls()
    use(tls, certificates)
    async with listening(tls) as port:
        client = await Client.connect(port, certificates, "127.0.0.1")
        assert await client.echo() == b"hello\n"
        client.close()


async def test_without_a_certificate_handshakes_fail(tmp_path: Path) -> None:
    """Before the first certificate no client is served, and nothing breaks for those who come later."""
    certificates = make(tmp_path / "one")
    tls = ServingTls()
    async with listening(tls) as port:
        with pytest.raises(OSError):  # a TLS alert, or the connection is reset before it is read
            await Client.connect(port, certificates)
        use(tls, certificates)
        client = await Client.connect(port, certificates)
        assert await client.echo() == b"hello\n"
        client.close()


async def test_a_bad_pair_changes_nothing(tmp_path: Path) -> None:
    """A key of another certificate is refused, without showing it, and the pair before stays in force."""
    certificates, other = make(tmp_path / "one"), make(tmp_path / "other")
    tls = ServingTls()
    use(tls, certificates)
    expires = tls.expires
    for key in (other.key.read_bytes(), b"", b"nonsense"):
        with pytest.raises(Permanent) as caught:
            tls.set_certificate(certificates.certificate.read_bytes() + b"\n", key)
        assert caught.value.code == "invalid_certificate" and "PRIVATE" not in str(caught.value)
    async with listening(tls) as port:
        client = await Client.connect(port, certificates)
        assert await client.echo() == b"hello\n"
        client.close()
    assert tls.expires == expires
