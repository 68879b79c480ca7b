"""Requests for known content through this node's Dragonfly: what it is asked, and when the origin is asked instead."""

from __future__ import annotations

import hashlib
import logging
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from cached.contract.errors import HoldfastError, Transient
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.credentials import basic
from cached.transport.origin_proxy import OriginProxy, OriginProxySettings, parse_origin_proxy
from cached.transport.target import HttpTarget, Part
from cached.transport.urls import Origin
from tests.support.certificates import Certificates
from tests.support.clocks import ManualClock
from tests.support.dragonfly import Cluster, serve_dfdaemon
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Redirect, Status
from tests.support.reading import read_all

DATA = random.Random(8).randbytes(100_000)
CONTENT = hashlib.sha256(DATA).hexdigest()
TOKEN = "Bearer secret-token"
Connect = Callable[..., HttpClient]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def dfdaemon(cluster: Cluster) -> Iterator[str]:
    with serve_dfdaemon(cluster) as url:
        yield url


@pytest.fixture
def connect(dfdaemon: str) -> Iterator[Connect]:
    """Make clients that ask dfdaemon, or another address."""
    made: list[HttpClient] = []

    def make(url: str = dfdaemon, *, with_credentials: bool = False) -> HttpClient:
        settings = OriginProxySettings(parse_origin_proxy(f"dragonfly={url}"), with_credentials)
        made.append(HttpClient(HttpSettings(header_timeout_s=5.0, stall_window_s=5.0), settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


def ask(
    client: HttpClient, target: HttpTarget | str, offset: int = 0, length: int | None = None, content: str = CONTENT
) -> bytes:
    """A range of known content, as a download asks for it."""
    target = HttpTarget(target) if isinstance(target, str) else target
    return read_all(client.get(target, offset, length, Cancellation(), content))


def test_a_range_comes_through_dragonfly(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """A range of known content is asked of dfdaemon, with the headers that its documentation names; the origin is asked
    once, by dfdaemon, whatever the number of ranges."""
    client, url = connect(), origin.put("/m/a.bin", DATA)
    assert ask(client, url, 0, 1000) == DATA[:1000]
    assert ask(client, url, 1000, 99_000) == DATA[1000:]
    assert [(seen.method, seen.path) for seen in cluster.requests] == [("GET", "/m/a.bin")] * 2
    headers = cluster.requests[1].headers
    assert headers["range"] == "bytes=1000-99999"
    assert headers["x-dragonfly-registry"] == origin.url("")
    assert headers["x-dragonfly-use-p2p"] == "true"
    assert headers["x-dragonfly-prefetch"] == "true"
    assert headers["x-dragonfly-application"] == "holdfast"
    assert headers["x-dragonfly-content-for-calculating-task-id"] == f"sha256:{CONTENT}"
    assert len(origin.requests) == 1


def test_https_needs_no_tunnel(
    connect: Connect, cluster: Cluster, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An https origin is named to dfdaemon in a header: no CONNECT, which dfdaemon would answer with a certificate of
    its own."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    with HostileOrigin(tls=certificates.server_context()) as origin:
        url = origin.put("/a.bin", DATA)
        assert ask(connect(), url) == DATA
        assert cluster.fetched == [url]
        assert [seen.method for seen in cluster.requests] == ["GET"]


def test_signed_urls_are_one_task(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """Two nodes' signed URLs of one file are one task, whatever signs them: its name is the content."""
    url = origin.put("/a.bin", DATA)
    assert ask(connect(), f"{url}?sig=1") == ask(connect(), f"{url}?sig=2") == DATA
    assert cluster.fetched == [f"{url}?sig=1"]
    assert len(cluster.requests) == 2


def test_a_part_of_an_object_is_of_the_objects_task(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """A file inside a larger object is asked for by the object's URL: the file's sha256 names no task."""
    url = origin.put("/layer.tar", DATA)
    inside = hashlib.sha256(DATA[500:900]).hexdigest()
    assert ask(connect(), HttpTarget(url, part=Part(500, 400)), 0, 400, inside) == DATA[500:900]
    assert "x-dragonfly-content-for-calculating-task-id" not in cluster.requests[0].headers


def test_unknown_content_goes_directly(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """A listing, a POST, and a file of unknown sha256 are never asked of dfdaemon: what it has may be old."""
    client, url = connect(), origin.put("/a.json", b"{}")
    assert client.fetch(HttpTarget(url), 100, Cancellation()).body == b"{}"
    assert read_all(client.get(HttpTarget(url), 0, None, Cancellation())) == b"{}"
    assert client.head(HttpTarget(url), Cancellation()).size == 2
    assert not cluster.requests


def test_headers_with_credentials_stay_here(
    connect: Connect,
    cluster: Cluster,
    origin: HostileOrigin,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A token in a header, a user in the URL and one from the netrc file go to the origin alone, which is said once."""
    caplog.set_level(logging.INFO)
    netrc = tmp_path_factory.mktemp("netrc") / "netrc"
    netrc.write_text("machine localhost login me password secret-password\n")
    url = origin.put("/a.bin", DATA)
    client = connect()
    assert ask(client, HttpTarget(url, (("Authorization", TOKEN),))) == DATA
    assert ask(client, url.replace("http://", "http://me:secret-password@")) == DATA
    monkeypatch.setenv("NETRC", str(netrc))
    assert ask(connect(), url) == DATA
    assert not cluster.requests
    assert [seen.headers["authorization"] for seen in origin.requests][1:] == [basic("me", "secret-password")] * 2
    said = [record.getMessage() for record in caplog.records if "credentials" in record.getMessage()]
    assert len(said) == 2  # once for each client
    assert "secret" not in caplog.text


def test_credentials_go_along_where_they_may(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """With `--origin-proxy-credentials on` dfdaemon gets the headers of the origin, and passes them on."""
    url = origin.put("/a.bin", DATA)
    assert ask(connect(with_credentials=True), HttpTarget(url, (("Authorization", TOKEN),))) == DATA
    assert cluster.requests[0].headers["authorization"] == TOKEN
    assert origin.requests[0].headers["authorization"] == TOKEN


def test_where_a_redirect_leads_needs_no_credentials(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """A hub that redirects is asked directly with its token; the signed address that it names is asked of dfdaemon,
    with no token."""
    with HostileOrigin(host="127.0.0.1") as store:
        signed = store.put("/blob", DATA) + "?Signature=x"
        origin.always("/resolve", Redirect(signed))
        target = HttpTarget(origin.url("/resolve"), (("Authorization", TOKEN),))
        assert ask(connect(), target, 10, 10) == DATA[10:20]
        assert [seen.path for seen in cluster.requests] == ["/blob?Signature=x"]
        assert "authorization" not in cluster.requests[0].headers
        assert [seen.headers["authorization"] for seen in origin.requests] == [TOKEN]


def test_a_redirect_leads_dragonfly_nowhere_inside(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """An address that a redirect must not lead to is not asked of dfdaemon either."""
    with HostileOrigin(host="127.0.0.1") as store:
        target = HttpTarget(store.put("/a.bin", DATA), chosen_by="http://192.0.2.1/x")
        with pytest.raises(HoldfastError) as caught:
            ask(connect(), target)
        assert caught.value.code == "insecure_redirect"
        assert not cluster.requests


def test_no_proxy_counts_for_dragonfly_too(
    connect: Connect, cluster: Cluster, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An origin that NO_PROXY names is asked directly; HTTP_PROXY is never used for dfdaemon itself."""
    url = origin.put("/a.bin", DATA)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(connect(), url) == DATA
    assert len(cluster.requests) == 1
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert ask(connect(), url) == DATA
    assert len(cluster.requests) == 1


def test_a_dragonfly_that_is_down_costs_nothing(
    connect: Connect, origin: HostileOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing listens at dfdaemon's address, each range comes from the origin, and the log says so once."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = connect(f"http://127.0.0.1:{unused.getsockname()[1]}")
        url = origin.put("/a.bin", DATA)
        assert [ask(client, url, at, 1000) for at in (0, 1000, 2000)] == [
            DATA[at : at + 1000] for at in (0, 1000, 2000)
        ]
    assert len([record for record in caplog.records if "Dragonfly" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    "refusal", [(500, "dfdaemon"), (502, ""), (429, "proxy"), (401, "proxy"), (404, ""), (307, "")]
)
def test_a_dragonfly_that_refuses_is_left(
    connect: Connect,
    cluster: Cluster,
    origin: HostileOrigin,
    caplog: pytest.LogCaptureFixture,
    refusal: tuple[int, str],
) -> None:
    """Whatever dfdaemon answers for itself, or something else at its address: the origin is asked, and dfdaemon is left
    for a while, which is said once with what it answered."""
    cluster.refusal = refusal
    client, url = connect(), origin.put("/a.bin", DATA)
    assert ask(client, url) == ask(client, url) == DATA
    assert len(cluster.requests) == 1
    said = [record.getMessage() for record in caplog.records if "Dragonfly" in record.getMessage()]
    assert len(said) == 1
    assert str(refusal[0]) in said[0]


def test_the_origins_own_error_is_the_origins(
    connect: Connect, cluster: Cluster, origin: HostileOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    """An origin that refuses dfdaemon is asked itself, and what it says is told; dfdaemon is not blamed."""
    with pytest.raises(HoldfastError) as caught:
        ask(connect(), origin.url("/none"))
    assert caught.value.code == "not_found"
    assert len(origin.requests) == 2
    assert not caplog.records


def test_a_busy_origin_is_not_asked_twice(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """An origin that said that it is busy, through dfdaemon, is left in peace for as long as it asked."""
    origin.put("/a.bin", DATA)
    origin.always("/a.bin", Status(429, {"Retry-After": "7"}))
    with pytest.raises(Transient) as caught:
        ask(connect(), origin.url("/a.bin"))
    assert caught.value.retry_after_s == 7
    assert len(origin.requests) == 1


def test_a_body_that_breaks_leads_to_the_origin(
    connect: Connect, cluster: Cluster, origin: HostileOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that ends early is an error that names Dragonfly; the next try asks the origin."""
    cluster.truncates = True
    client, url = connect(), origin.put("/a.bin", DATA)
    with pytest.raises(Transient, match="through Dragonfly"):
        ask(client, url)
    assert ask(client, url) == DATA
    assert len(cluster.requests) == 1


def test_a_wrong_range_is_not_taken(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """An answer that is not the range is dropped, and the origin asked."""
    url = origin.put("/a.bin", DATA)
    client = connect()
    assert ask(client, url, 0, 100) == DATA[:100]
    next(iter(cluster.tasks.values())).data = DATA[:50]  # 206 with fewer bytes than were asked for
    assert ask(client, url, 0, 100) == DATA[:100]
    assert origin.requests[-1].headers["range"] == "bytes=0-99"


def test_distrusted_content_comes_from_the_origin(connect: Connect, cluster: Cluster, origin: HostileOrigin) -> None:
    """Content of which Dragonfly sent other bytes is asked of the origin alone; other content is not."""
    client, url = connect(), origin.put("/a.bin", DATA)
    client.distrust(CONTENT, "a.bin")
    assert ask(client, url) == DATA
    assert not cluster.requests
    assert ask(client, url, content="0" * 64) == DATA
    assert len(cluster.requests) == 1


def test_dragonfly_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """After a pause one request tries; the others wait for how it ends, and its success ends the failure."""
    clock = ManualClock()
    caplog.set_level(logging.INFO)
    proxy = OriginProxy(OriginProxySettings(Origin("http", "127.0.0.1", 4001)), clock)
    origin = Origin("https", "models.example", 443)
    proxy.record_failure("refused")
    assert not proxy.takes(origin, CONTENT, ())
    clock.now_s += 31
    assert [proxy.takes(origin, CONTENT, ()) for _ in range(2)] == [True, False]
    proxy.record_failure("refused")
    clock.now_s += 31
    assert proxy.takes(origin, CONTENT, ())
    proxy.record_success()
    assert [proxy.takes(origin, CONTENT, ()) for _ in range(2)] == [True, True]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://127.0.0.1:4001", "expected dragonfly=http://HOST:PORT"),
        ("kraken=http://127.0.0.1:4001", "found 'kraken'"),
        ("dragonfly=https://127.0.0.1:4001", "https://127.0.0.1:4001/"),
        ("dragonfly=http://127.0.0.1:4001/proxy", "/proxy"),
        ("dragonfly=127.0.0.1:4001", "another address"),
        ("dragonfly=http://me:hidden@127.0.0.1:4001", "expected no user"),
        ("dragonfly=", "another address"),
    ],
)
def test_an_address_that_is_none_is_refused(text: str, says: str) -> None:
    """What is no plain http address of dfdaemon is refused with what was expected, and shows no password."""
    with pytest.raises(ValueError, match="expected") as caught:
        parse_origin_proxy(text)
    assert says in str(caught.value)
    assert "hidden" not in str(caught.value)
