"""Bearer tokens: who asks for one, how long it is used, and which hosts see it."""

from __future__ import annotations

import threading

import pytest

from cached.contract.errors import Permanent, Transient
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.requests import Service
from cached.transport.service.tokens import BearerTokens, FixedHeaders, Token
from cached.transport.target import HttpTarget
from tests.support.clocks import ManualClock
from tests.support.token_server import token_server

URL = "https://registry.example.com/v2/m/blobs/1"
NOT = Cancellation()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Issuer:
    """Issues `t0`, `t1`, …; each lives `lifetime_s`."""

    def __init__(self, lifetime_s: float | None) -> None:
        self.lifetime_s = lifetime_s
        self.calls = 0
        self.error: Transient | Permanent | None = None

    def __call__(self, _cancellation: Cancellation) -> Token:
        if self.error is not None:
            raise self.error
        self.calls += 1
        return Token(f"t{self.calls - 1}", self.lifetime_s)


def test_a_token_goes_to_its_own_origins_only() -> None:
    """Another scheme, host or port gets no header, and no token is asked for on its account."""
    issue = Issuer(300.0)
    tokens = BearerTokens([URL, "https://auth.example.com"], issue)
    for other in ("http://registry.example.com/", "https://registry.example.com:8443/", "https://cdn.example.com/x"):
        assert tokens.headers_for(other, NOT) == ()
        assert tokens.authorize(HttpTarget(other), NOT) == HttpTarget(other)
    assert issue.calls == 0
    assert tokens.headers_for(URL, NOT) == (("Authorization", "Bearer t0"),)
    assert tokens.headers_for("https://auth.example.com/y", NOT) == (("Authorization", "Bearer t0"),)
    basic = BearerTokens([URL], lambda _cancellation: Token("dTpw", 60.0, "Basic"))
    assert basic.headers_for(URL, NOT) == (("Authorization", "Basic dTpw"),)
    fixed = FixedHeaders([URL], (("PRIVATE-TOKEN", "s3cret"),))
    assert fixed.headers_for("https://cdn.example.com/x", NOT) == ()
    assert fixed.headers_for(URL, NOT) == (("PRIVATE-TOKEN", "s3cret"),)
    assert not fixed.refuse(fixed.headers_for(URL, NOT))


def test_a_token_is_used_until_four_fifths_of_its_life(clock: ManualClock) -> None:
    """It is renewed before it ends, and a target carries what is left of it and when it was issued."""
    issue = Issuer(100.0)
    tokens = BearerTokens([URL], issue, clock)
    began = clock()
    clock.now_s += 79.0
    tokens.headers_for(URL, NOT)  # the first is issued here
    clock.now_s += 79.0
    target = tokens.authorize(HttpTarget(URL, (("Accept", "x"),)), NOT)
    assert target.headers == (("Accept", "x"), ("Authorization", "Bearer t0"))
    assert target.lifetime_s == pytest.approx(21.0)
    assert target.issued_at == began + 79.0
    clock.now_s += 2.0
    assert tokens.headers_for(URL, NOT) == (("Authorization", "Bearer t1"),)


def test_a_token_at_hand_needs_no_wait(clock: ManualClock) -> None:
    """An address with a token that is still good is made at once; where one must be asked for, nothing is."""
    issue = Issuer(100.0)
    tokens, target = BearerTokens([URL], issue, clock), HttpTarget(URL)
    assert tokens.authorize_now(target) is None and issue.calls == 0
    waited = tokens.authorize(target, NOT)
    assert tokens.authorize_now(target) == waited
    clock.now_s += 80.0
    assert tokens.authorize_now(target) is None and issue.calls == 1
    elsewhere = HttpTarget("https://cdn.example.com/x")
    assert tokens.authorize_now(elsewhere) is elsewhere


def test_a_refused_token_is_dropped_once(clock: ManualClock) -> None:
    """A late refusal of an earlier token does not cost the later one; headers of others are not ours."""
    issue = Issuer(None)
    tokens = BearerTokens([URL], issue, clock)
    first = tokens.headers_for(URL, NOT)
    clock.now_s += 1e6
    assert tokens.headers_for(URL, NOT) == first  # without a stated end it is used until it is refused
    assert tokens.refuse(first)
    second = tokens.headers_for(URL, NOT)
    assert tokens.refuse(first)
    assert tokens.headers_for(URL, NOT) == second != first
    assert not tokens.refuse((("X-Other", "t1"),))
    assert issue.calls == 2


def test_an_issuer_that_is_away_for_a_moment(clock: ManualClock) -> None:
    """A token that is still valid is used on where no other can be had now; a dead one is not, nor after a final no."""
    issue = Issuer(100.0)
    tokens = BearerTokens([URL], issue, clock)
    tokens.headers_for(URL, NOT)
    issue.error = Transient("connect", "away", "")
    clock.now_s += 90.0
    assert tokens.headers_for(URL, NOT) == (("Authorization", "Bearer t0"),)
    clock.now_s += 10.0
    with pytest.raises(Transient, match="away"):
        tokens.headers_for(URL, NOT)


def test_many_who_need_a_token_ask_once(client: HttpClient) -> None:
    """Threads that find the token gone at the same moment send one request for another."""
    with token_server() as server:
        tokens = server.tokens(client)
        found: list[str] = []
        together = threading.Barrier(8)

        def use() -> None:
            for _ in range(5):
                together.wait()
                headers = tokens.headers_for(server.url, NOT)
                together.wait()
                tokens.refuse(headers)
                found.append(headers[0][1])

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(server.issued), server.at_once, len(set(found))) == (5, 1, 5)


def test_who_waited_for_a_failed_issue_hears_its_error() -> None:
    """Eight threads and an issuer that fails after a while: they do not ask one after the other."""
    calls, together, never = list[int](), threading.Barrier(8), threading.Event()

    def issue(_cancellation: Cancellation) -> Token:
        calls.append(1)
        never.wait(0.3)  # long enough for the others to come
        raise Transient("connect", "unreachable", "")

    tokens, errors = BearerTokens([URL], issue), list[str]()

    def use() -> None:
        together.wait()
        try:
            tokens.headers_for(URL, NOT)
        except Transient as error:
            errors.append(error.message)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == ["unreachable"] * 8
    assert len(calls) < 8


def test_a_listing_whose_token_ends_in_the_middle_goes_on(client: HttpClient) -> None:
    """A token that is good for three requests ends between two pages: the page is asked for again with a fresh one."""
    with token_server(uses=3) as server:
        for page in range(10):
            server.pages[f"/list?page={page}"] = (b'{"items": [%d]}' % page, "application/json")
        service = Service(client, NOT, "a test", server.tokens(client))
        items = [service.get_json(f"{server.url}/list?page={page}")["items"][0] for page in range(10)]
        assert items == list(range(10))
        assert (len(server.issued), server.statuses[401]) == (4, 3)


def test_a_lasting_401_is_heard_after_one_fresh_token(client: HttpClient) -> None:
    """A service that refuses a fresh token too is permanent: one more token, one more request."""
    with token_server(uses=0) as server:
        service = Service(client, NOT, "gs://b/m", server.tokens(client))
        with pytest.raises(Permanent, match="gs://b/m: ") as caught:
            service.get_json(f"{server.url}/list")
        assert caught.value.code == "unauthorized"
        assert (len(server.issued), server.statuses[401]) == (2, 2)
        assert "token-" not in str(caught.value) + repr(caught.value.__cause__)
