"""Redirects to the machine itself."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from cached.contract.errors import Permanent
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.ssrf import is_internal, is_loopback
from cached.transport.target import HttpTarget
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Redirect
from tests.support.reading import error_of, get

INWARD = [
    "127.0.0.1",
    "127.8.9.10",
    "::1",
    "169.254.169.254",
    "fe80::1%eth0",
    "0.0.0.0",
    "::",
    "::ffff:169.254.169.254",
    "fd00:ec2::254",
    "100.100.100.200",
    "224.0.0.1",
]


@pytest.mark.parametrize("host", INWARD)
def test_addresses_of_the_machine_are_inward(host: str) -> None:
    """Loopback, link-local, unspecified, multicast and the metadata services are inward, also as mapped IPv6."""
    assert is_internal(host)


@pytest.mark.parametrize("host", ["10.1.2.3", "192.168.0.1", "8.8.8.8", "fd00::1", "2001:db8::1", "localhost", "s3"])
def test_other_addresses_are_not(host: str) -> None:
    """Private networks are where object stores live; a name is judged by its addresses."""
    assert not is_internal(host)


@pytest.mark.parametrize(("host", "expected"), [("localhost", True), ("::1", True), ("127.1.2.3", True), ("a", False)])
def test_this_machine_is_known(host: str, expected: bool) -> None:
    """Loopback is known by address and by its name."""
    assert is_loopback(host) is expected


@pytest.fixture
def far_away(origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name that resolves to an address elsewhere, and is connected to the origin all the same."""
    real, real_connect = socket.getaddrinfo, socket.socket.connect

    def resolve(host: str, port: int, **more: Any) -> Any:
        if host != "models.example":
            return real(host, port, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    def connect(sock: socket.socket, address: Any) -> None:
        real_connect(sock, ("127.0.0.1", *address[1:]) if address[0] == "192.0.2.1" else address)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return f"http://models.example:{origin.port}"


@pytest.mark.parametrize(
    "inside", ["127.0.0.1:{port}", "localhost:{port}", "169.254.169.254", "[::ffff:127.0.0.1]:{port}"]
)
def test_a_redirect_from_elsewhere_to_this_machine_is_refused(
    client: HttpClient, origin: HostileOrigin, far_away: str, inside: str
) -> None:
    """What only this machine can reach is not fetched because an origin elsewhere says so; both are named."""
    origin.put("/secret", b"credentials")
    place = inside.format(port=origin.port)
    origin.script("/a", Redirect(f"http://{place}/secret"))
    error = error_of(client, f"{far_away}/a")
    assert isinstance(error, Permanent) and error.code == "insecure_redirect"
    assert "models.example" in error.message and place in error.message
    assert [seen.path for seen in origin.requests] == ["/a"]


def test_a_kept_connection_opens_no_other_way(client: HttpClient, origin: HostileOrigin, far_away: str) -> None:
    """A service of this machine that a source of its own may ask stays closed to the redirects of others."""
    origin.put("/secret", b"credentials")
    assert get(client, f"http://127.0.0.1:{origin.port}/secret") == b"credentials"
    origin.script("/a", Redirect(f"http://127.0.0.1:{origin.port}/secret"))
    assert error_of(client, f"{far_away}/a").code == "insecure_redirect"
    assert [seen.path for seen in origin.requests] == ["/secret", "/a"]


def test_a_place_that_a_source_was_led_to_is_judged_as_a_redirect(
    client: HttpClient, origin: HostileOrigin, far_away: str
) -> None:
    """Where a source has read a redirect itself, its sender counts as if it had been followed."""
    origin.put("/secret", b"credentials")
    inside = HttpTarget(f"http://127.0.0.1:{origin.port}/secret", chosen_by=f"{far_away}/a")
    with pytest.raises(Permanent) as refused:
        client.fetch(inside, 100, Cancellation())
    assert refused.value.code == "insecure_redirect"
    assert origin.requests == []


def test_several_hops_do_not_launder_a_redirect(client: HttpClient, origin: HostileOrigin, far_away: str) -> None:
    """It is the first origin that counts, however many hops lie between."""
    origin.put("/secret", b"credentials")
    origin.script("/a", Redirect("/b"))
    origin.script("/b", Redirect(f"http://127.0.0.1:{origin.port}/secret"))
    assert error_of(client, f"{far_away}/a").code == "insecure_redirect"


def test_a_redirect_on_this_machine_is_followed(client: HttpClient, origin: HostileOrigin) -> None:
    """An origin that is on this machine itself may lead to another one here."""
    origin.put("/b", b"payload")
    origin.script("/a", Redirect(f"http://127.0.0.1:{origin.port}/b"))
    assert get(client, origin.url("/a")) == b"payload"
