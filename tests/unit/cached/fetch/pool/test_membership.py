"""Who is in the pool."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence

import pytest

from cached.fetch.pool.membership import MemberAddress, Membership, Resolver, look_up, parse_peers
from cached.peers.members import MAX_MEMBERS
from tests.support.fetching import eventually

HOUR_S = 3600.0


def answering(*answers: Sequence[str]) -> Resolver:
    """A name service with these answers, one after the other."""
    left = list(answers)
    return lambda _host, _port: left.pop(0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", None),
        ("dns:peers.holdfast.svc:9402", (MemberAddress("peers.holdfast.svc", 9402),)),
        (
            "10.0.0.1:1,host:2, [fd00::1]:3",
            (MemberAddress("10.0.0.1", 1), MemberAddress("host", 2), MemberAddress("fd00::1", 3)),
        ),
    ],
)
def test_members_are_named_in_two_ways(text: str, expected: tuple[MemberAddress, ...] | None) -> None:
    """A name that stands for all, or a list; `off` is neither."""
    assert parse_peers(text) == expected


NO_PLACES = ["", "on", "host", "host:", ":1", "host:0", "host:65536", "a:1,,b:2", "dns:", "http://a:1", "a b:1"]


@pytest.mark.parametrize("text", [*NO_PLACES, "a:\u0661"])
def test_what_names_no_member_is_refused(text: str) -> None:
    """Anything else is a ValueError that says what is expected."""
    with pytest.raises(ValueError, match="expected"):
        parse_peers(text)


def test_this_node_is_none_of_the_others() -> None:
    """A member whose address is this machine's, with this node's port, is this node; another port is another node."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        other = port - 1 if port > 1025 else port + 1
        membership = Membership((MemberAddress("127.0.0.1", port), MemberAddress("127.0.0.1", other)), port)
        membership.start()
        try:
            assert set(membership.list_all()) == {f"127.0.0.1:{port}", f"127.0.0.1:{other}"}
            assert membership.list_others() == (f"127.0.0.1:{other}",)
        finally:
            membership.close()


def test_the_last_answer_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """While a name is not found, the members that it stood for last stay; the log says it once."""
    answers: list[Sequence[str] | OSError] = [
        ["198.51.100.1:5", "198.51.100.2:5"],
        OSError("no name"),
        OSError("no name"),
    ]
    asked = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, OSError):
            raise answer
        return answer

    membership = Membership((MemberAddress("peers", 5),), 5, resolve, lookup_s=0.01)
    membership.start()
    try:
        eventually(lambda: len(asked) > 4)
        assert membership.list_others() == ("198.51.100.1:5", "198.51.100.2:5")
    finally:
        membership.close()
    assert len([record for record in caplog.records if "no name" in record.getMessage()]) == 1


def test_a_node_of_two_families_is_one_member() -> None:
    """Of a name with IPv4 and IPv6 addresses one family counts, the same for every node: else each would be two
    members."""
    answers = {"dual": ["[2001:db8::1]:5", "198.51.100.1:5"], "six": ["[2001:db8::1]:5", "[2001:db8::2]:5"]}
    both = answers["six"] + answers["dual"][1:]
    for answer, expected in (
        (answers["dual"], ("198.51.100.1:5",)),
        (answers["six"], ("[2001:db8::1]:5", "[2001:db8::2]:5")),
        (both, ("[2001:db8::1]:5", "[2001:db8::2]:5")),
    ):
        membership = Membership((MemberAddress("peers", 5),), 5, answering(answer))
        membership.start()
        membership.close()
        assert membership.list_all() == expected


def test_a_name_that_cannot_be_is_no_member(caplog: pytest.LogCaptureFixture) -> None:
    """A name that no name server may have is told, and the others of a list are members."""
    membership = Membership((MemberAddress("a..b", 5), MemberAddress("198.51.100.1", 5)), 5)
    membership.start()
    membership.close()
    assert membership.list_others() == ("198.51.100.1:5",)
    assert ["a..b" in record.getMessage() for record in caplog.records] == [True]


def test_an_ipv4_address_in_ipv6_is_that_address(caplog: pytest.LogCaptureFixture) -> None:
    """`::ffff:A.B.C.D`, as a name server or `--peers` may have it, is the member A.B.C.D, once, as others know it."""
    places = parse_peers("[::ffff:198.51.100.1]:5,198.51.100.1:5,[::ffff:198.51.100.2]:5")
    assert places is not None
    membership = Membership(places, 5)
    membership.start()
    membership.close()
    assert membership.list_others() == ("198.51.100.1:5", "198.51.100.2:5")
    assert not caplog.records


@pytest.mark.parametrize(
    "useless",
    [["0.0.0.0:5"], ["[::]:5"], ["239.0.0.1:5"], ["nonsense"], []],
    ids=lambda found: "".join(found) or "none",
)
def test_an_answer_without_a_host_leaves_the_members(useless: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """What is no host's address, as a name server that filters answers, is no member, and would be this node itself:
    beside others it is ignored; alone it leaves the last members, and the log says so once. Later answers count."""
    answers = [["198.51.100.1:5"], useless, useless, [*useless, "198.51.100.2:5"]]
    asked = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(membership.list_others())
        return answers[min(len(asked), len(answers)) - 1]

    membership = Membership((MemberAddress("peers", 5),), 5, resolve, lookup_s=0.01)
    membership.start()
    try:
        eventually(lambda: len(asked) > 4)
        assert asked[1:4] == [("198.51.100.1:5",)] * 3
        assert membership.list_others() == ("198.51.100.2:5",)
    finally:
        membership.close()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "no address of a host" in told[0]


def test_a_name_of_countless_addresses_is_bounded() -> None:
    """Of ten thousand addresses, others at each look, so many are members as a pool may have, and the last ones."""
    asked = 0

    def resolve(host: str, port: int) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return [f"10.{asked % 2}.{number >> 8}.{number & 255}:5" for number in range(10_000)]

    membership = Membership((MemberAddress("peers", 5),), 6, resolve, lookup_s=0.01)
    membership.start()
    try:
        eventually(lambda: asked > 3)
        assert len(membership.list_all()) == len(membership.list_others()) == MAX_MEMBERS
    finally:
        membership.close()


def test_a_silent_name_server_holds_nothing_up() -> None:
    """While the name server does not answer, the node starts and ends all the same; what it answers later counts."""
    answering_now = threading.Event()

    def resolve(host: str, port: int) -> Sequence[str]:
        answering_now.wait()
        return ["198.51.100.1:5"]

    first, second = (Membership((MemberAddress("peers", 5),), 5, resolve) for _ in range(2))
    try:
        first.start()
        assert first.list_all() == ()
        second.start()
        second.close()
        assert not answering_now.is_set()
    finally:
        answering_now.set()
    eventually(lambda: first.list_all() == ("198.51.100.1:5",))
    first.close()


def test_a_lone_node_looks_again_soon() -> None:
    """While the name has no other member, it is looked up again sooner than later."""
    resolve = answering(["127.0.0.1:5"], ["127.0.0.1:5"], ["127.0.0.1:5", "198.51.100.1:5"])
    membership = Membership((MemberAddress("peers", 5),), 5, resolve, lookup_s=HOUR_S, alone_s=0.01)
    membership.start()
    try:
        eventually(lambda: membership.list_others() == ("198.51.100.1:5",))
    finally:
        membership.close()


def test_an_address_is_looked_up_once() -> None:
    """A list of addresses costs an idle node nothing: only names are looked up again."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return [f"198.51.100.{len(host)}:{port}"]

    places = [MemberAddress(host, 5) for host in ("198.51.100.1", "name")]
    membership = Membership(places, 5, resolve, lookup_s=0.01)
    membership.start()
    try:
        eventually(lambda: asked.count("name") > 3)
    finally:
        membership.close()
    assert asked.count("198.51.100.1") == 1


def test_a_member_that_comes_or_goes_is_seen() -> None:
    """The members are those of the last answer; the same addresses in another order change nothing."""
    answers = (["198.51.100.2:5", "127.0.0.1:5"], ["127.0.0.1:5", "198.51.100.2:5"], ["198.51.100.3:5"])
    left, sees = list(answers), threading.Event()

    def resolve(_host: str, _port: int) -> Sequence[str]:
        if len(left) == 1:
            sees.wait()
            return left[0]
        return left.pop(0)

    membership = Membership((MemberAddress("peers", 5),), 5, resolve, lookup_s=0.01)
    membership.start()
    try:
        eventually(lambda: len(left) == 1)
        assert membership.list_all() == ("127.0.0.1:5", "198.51.100.2:5")
        assert membership.list_others() == ("198.51.100.2:5",)
        sees.set()
        eventually(lambda: membership.list_all() == membership.list_others() == ("198.51.100.3:5",))
    finally:
        sees.set()
        membership.close()


def test_a_host_is_looked_up() -> None:
    """A name gives its addresses, with the port."""
    assert "127.0.0.1:9" in look_up("127.0.0.1", 9)
