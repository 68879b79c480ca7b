"""Connections: TLS, proxies, what cannot be reached, and cancelling what blocks."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.connection.connect import Connector
from cached.transport.connection.settings import HttpSettings
from cached.transport.credentials import basic
from cached.transport.target import HttpTarget
from cached.transport.urls import Origin
from tests.support.certificates import Certificates, make_certificates
from tests.support.fetching import eventually
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Extra, Redirect, ResetAfter, Stall, Truncate
from tests.support.reading import HASTY, MakeClient, error_of, get, read_all
from tests.unit.cached.transport.proxy import ForwardProxy

DATA = random.Random(4).randbytes(200_000)


@pytest.fixture
def trusted(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))


@pytest.fixture
def tls_origin(certificates: Certificates) -> Iterator[HostileOrigin]:
    with HostileOrigin(tls=certificates.server_context()) as origin:
        origin.put("/model.bin", DATA)
        yield origin


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("trusted")
def test_tls_ranges_on_one_connection(make_client: MakeClient, tls_origin: HostileOrigin) -> None:
    """Ranges over TLS are the object's bytes, and their connection is kept."""
    client = make_client(HttpSettings())
    url = tls_origin.url("/model.bin")
    assert get(client, url, 7, 100_000) == DATA[7:100_007]
    assert get(client, url) == DATA
    assert [seen.connection for seen in tls_origin.requests] == [1, 1]


@pytest.mark.usefixtures("trusted")
def test_tls_is_as_strict_about_bodies(make_client: MakeClient, tls_origin: HostileOrigin) -> None:
    """Resets, short and long bodies and silence are told apart over TLS as they are without."""
    client = make_client(HASTY)
    url = tls_origin.url("/model.bin")
    tls_origin.script("/model.bin", Truncate(10), Extra(), Stall(20_000), ResetAfter(70_000))
    assert [error_of(client, url).code for _ in range(4)] == ["bad_response", "bad_response", "stalled", "reset"]
    assert get(client, url) == DATA


def test_an_unknown_authority_is_refused(client: HttpClient, tls_origin: HostileOrigin) -> None:
    """A certificate that no authority vouches for ends it for good, and the message names the host and what to do."""
    error = error_of(client, tls_origin.url("/model.bin?secret"))
    assert isinstance(error, Permanent)
    assert error.code == "tls_verification"
    assert "localhost" in error.message
    assert "SSL_CERT_FILE" in error.remedy
    assert "secret" not in str(error)
    assert tls_origin.requests == []


def test_a_wrong_name_is_refused(make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trusted certificate of another host is no good."""
    other = make_certificates(tmp_path, host="elsewhere.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(other.authority))
    with HostileOrigin(tls=other.server_context()) as origin:
        assert error_of(make_client(HttpSettings()), origin.url("/x")).code == "tls_verification"


@pytest.mark.usefixtures("trusted")
def test_tls_to_plain_redirects_are_refused(
    make_client: MakeClient, tls_origin: HostileOrigin, origin: HostileOrigin
) -> None:
    """A redirect may lead from http to https, never back."""
    client = make_client(HttpSettings())
    tls_origin.script("/down", Redirect(origin.put("/plain", b"x")))
    assert error_of(client, tls_origin.url("/down")).code == "insecure_redirect"
    origin.script("/up", Redirect(tls_origin.url("/model.bin")))
    assert get(client, origin.url("/up")) == DATA


def test_tls_to_a_plain_server_is_a_connect_error(client: HttpClient, origin: HostileOrigin) -> None:
    """A server that does not speak TLS is `connect`, worth another attempt."""
    error = error_of(client, origin.url("/x").replace("http:", "https:"))
    assert isinstance(error, Transient)
    assert error.code == "connect"


# --- what cannot be reached ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_refused_connection(client: HttpClient, host: str) -> None:
    """A port on which nothing listens is `connect`, and the message names host and port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = error_of(client, f"http://{host}:{port}/x")
    assert isinstance(error, Transient)
    assert error.code == "connect"
    assert f"{host}:{port}" in error.message


def test_an_unknown_name(client: HttpClient) -> None:
    """A name without an address is `connect`."""
    assert error_of(client, "http://no-such-host.invalid/x").code == "connect"


def test_ipv6(client: HttpClient) -> None:
    """An address in brackets is connected to, and the Host header keeps the brackets."""
    with contextlib.closing(socket.socket(socket.AF_INET6)) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        url = f"http://[::1]:{listener.getsockname()[1]}/x"
        heads: list[bytes] = []

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                heads.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nv6")

        server = threading.Thread(target=answer)
        server.start()
        assert get(client, url) == b"v6"
        server.join()
    assert f"Host: {url[7:-2]}".encode() in heads[0]


# --- proxies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_http_goes_through_the_proxy(
    make_client: MakeClient, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A plain request is sent to the proxy in absolute form, with credentials that the origin never sees."""
    origin.put("/model.bin", DATA)
    with ForwardProxy(requires=basic("us@er", "s3cret")) as proxy:
        monkeypatch.setenv(variable, f"http://us%40er:s3cret@127.0.0.1:{proxy.port}")
        assert get(make_client(HttpSettings()), origin.url("/model.bin?q=1"), 5, 10) == DATA[5:15]
        assert proxy.requests[0].path == origin.url("/model.bin?q=1")
    assert origin.requests[0].path == "/model.bin?q=1"
    assert "s3cret" not in str(origin.requests)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY"])
def test_https_goes_through_a_tunnel(
    make_client: MakeClient, tls_origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A TLS request runs end to end through CONNECT, and its connection is kept."""
    with ForwardProxy(requires=basic("user", "s3cret")) as proxy:
        monkeypatch.setenv(variable, f"user:s3cret@127.0.0.1:{proxy.port}")  # the scheme may be left out
        client = make_client(HttpSettings())
        url = tls_origin.url("/model.bin")
        assert get(client, url, 5, 100_000) == DATA[5:100_005]
        assert get(client, url, 6, 10) == DATA[6:16]
        assert [(seen.method, seen.path) for seen in proxy.requests] == [("CONNECT", f"localhost:{tls_origin.port}")]
        client.close()
    assert "proxy-authorization" not in tls_origin.requests[0].headers


@pytest.mark.usefixtures("trusted")
def test_a_proxy_that_wants_credentials(
    make_client: MakeClient, tls_origin: HostileOrigin, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """407 is permanent, for requests and for tunnels, and shows no password."""
    with ForwardProxy(requires="other") as proxy:
        for variable in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, f"http://user:s3cret@127.0.0.1:{proxy.port}")
        client = make_client(HttpSettings())
        for url in (origin.url("/x"), tls_origin.url("/x")):
            error = error_of(client, url)
            assert isinstance(error, Permanent)
            assert error.code == "proxy_unauthorized"
            assert "s3cret" not in str(error)


@pytest.mark.parametrize("exempt", ["localhost", "*", "example.com,.localhost,localhost"])
def test_no_proxy_names(
    make_client: MakeClient, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, exempt: str
) -> None:
    """Hosts that NO_PROXY names are reached directly."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert get(make_client(HttpSettings()), origin.put("/a", b"direct")) == b"direct"


def test_no_proxy_networks(make_client: MakeClient, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses in a network that NO_PROXY names are reached directly, others are not."""
    origin.put("/a", b"direct")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8, 127.0.0.0/8")
    client = make_client(HttpSettings())
    assert get(client, f"http://127.0.0.1:{origin.port}/a") == b"direct"
    assert error_of(client, origin.url("/a")).code == "connect"


def test_an_https_proxy_is_refused(
    make_client: MakeClient, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is itself reached by TLS is refused by name, not ignored."""
    monkeypatch.setenv("http_proxy", "https://user:s3cret@127.0.0.1:1")
    error = error_of(make_client(HttpSettings()), origin.url("/a"))
    assert error.code == "bad_proxy"
    assert "s3cret" not in str(error)


# --- cancelling ----------------------------------------------------------------------------------------------------


def _cancelled_by_another_thread(
    cancellation: Cancellation, blocked: Callable[[], object], is_asked: Callable[[], bool] = lambda: True
) -> None:
    """Run `blocked`, cancel it once it waits for the server, which is asked by then, and see that it ends as
    cancelled."""
    outcome: list[Exception] = []

    def run() -> None:
        try:
            blocked()
        except (Cancelled, HoldfastError, OSError) as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.05)
    eventually(is_asked)
    assert thread.is_alive()
    cancellation.cancel()
    thread.join(120)
    assert not thread.is_alive()
    assert [type(error) for error in outcome] == [Cancelled]


@pytest.mark.parametrize("sent", [None, 0, 5000])
def test_cancelling_wakes_a_blocked_receive(client: HttpClient, origin: HostileOrigin, sent: int | None) -> None:
    """A thread that waits for a head or a body comes back as `Cancelled` when another one cancels."""
    url = origin.put("/model.bin", DATA)
    origin.script("/model.bin", Stall(sent))
    cancellation = Cancellation()
    read = partial(client.get, HttpTarget(url), 0, None, cancellation)
    _cancelled_by_another_thread(cancellation, lambda: read_all(read()), lambda: len(origin.requests) == 1)
    assert get(client, url) == DATA


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("sent", [None, 5000])
def test_cancelling_wakes_tls(make_client: MakeClient, tls_origin: HostileOrigin, sent: int | None) -> None:
    """The same over TLS."""
    client, cancellation = make_client(HttpSettings()), Cancellation()
    tls_origin.script("/model.bin", Stall(sent))
    target = HttpTarget(tls_origin.url("/model.bin"))
    read = partial(client.get, target, 0, None, cancellation)
    _cancelled_by_another_thread(cancellation, lambda: read_all(read()), lambda: len(tls_origin.requests) == 1)


def test_cancelling_wakes_a_handshake(client: HttpClient) -> None:
    """A server that accepts and says nothing does not hold a cancelled handshake."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target, cancellation = HttpTarget(f"https://127.0.0.1:{silent.getsockname()[1]}/"), Cancellation()
        _cancelled_by_another_thread(cancellation, lambda: client.get(target, 0, None, cancellation))


def test_what_is_cancelled_already_does_not_start(client: HttpClient, origin: HostileOrigin) -> None:
    """After `cancel` nothing is asked, and an open body gives no more bytes."""
    url, cancellation = origin.put("/model.bin", DATA), Cancellation()
    body = client.get(HttpTarget(url), 0, None, cancellation)
    cancellation.cancel()
    cancellation.cancel()
    assert cancellation.cancelled
    with pytest.raises(Cancelled), body:
        body.readinto(memoryview(bytearray(10)))
    with pytest.raises(Cancelled):
        client.head(HttpTarget(url), cancellation)
    assert len(origin.requests) == 1


def test_a_closed_client_keeps_no_connection(origin: HostileOrigin) -> None:
    """A body that outlives its client closes its own connection."""
    client = HttpClient(HttpSettings())
    url = origin.put("/model.bin", DATA)
    body = client.get(HttpTarget(url), 0, None, Cancellation())
    client.close()
    assert read_all(body) == DATA
    assert get(client, url, 0, 5) == DATA[:5]
    assert [seen.connection for seen in origin.requests] == [1, 2]


def test_a_silent_name_server_is_an_unreachable_host(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer costs no longer than a connection may take, and a cancellation ends the wait;
    the C library would wait on."""
    over = threading.Event()

    def silent(*_arguments: object, **_options: object) -> list[object]:
        over.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        error = error_of(make_client(HttpSettings(connect_timeout_s=0.2)), "http://weights.example.com/m")
        assert (error.code, error.permanent) == ("connect", False)
        assert "weights.example.com" in error.message
        cancellation, client = Cancellation(), make_client(HttpSettings(connect_timeout_s=60.0))
        threading.Timer(0.1, cancellation.cancel).start()
        with pytest.raises(Cancelled):
            client.fetch(HttpTarget("http://weights.example.com/m"), 10, cancellation)
    finally:
        over.set()


def test_a_metadata_service_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node has its own metadata service: a proxy would answer for its node, so it is no way there."""
    monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
    connector = Connector(HttpSettings())
    assert connector.proxy_of(Origin("http", "weights.example.com", 80)) is not None
    for host in ("169.254.169.254", "metadata.google.internal"):
        assert connector.proxy_of(Origin("http", host, 80)) is None
