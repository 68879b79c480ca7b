"""Downloads whose credentials end in the middle: renewed once for all connections, with no byte fetched twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.fetch.blob import SEGMENT_BYTES
from cached.fetch.resolving.addresses import Addresses
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget, Target
from tests.support.fetching import DEADLINE_S, MIB, Engine, check_committed, noise, open_engine, spec_of
from tests.support.token_server import TokenServer, token_server

NOT = Cancellation()


def pull(engine: Engine, server: TokenServer, files: int) -> None:
    """Fetch all files of the server, each with an address of its own and one token for all, as a source gives them."""
    tokens = server.tokens(engine.client)
    downloads = []
    for number in range(files):
        path, data = f"/{number}", noise()[number:]
        server.files[path] = data
        target = HttpTarget(server.url + path)
        downloads.append(
            (
                data,
                engine.launch(
                    spec_of(data, name=path),
                    lambda target=target: tokens.authorize(target, NOT),  # type: ignore[misc]
                ),
            )
        )
    for data, download in downloads:
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))


@pytest.mark.parametrize("connections", [1, 4])
def test_a_token_that_ends_after_every_request(tmp_path: Path, connections: int) -> None:
    """Each token is good for two requests, and the service does not say so: every range arrives once, and the
    connections that are refused together ask for one token."""
    with token_server(uses=2) as server, open_engine(tmp_path / "root", connections) as engine:
        pull(engine, server, 2)
        assert all(server.sent[path] == len(data) for path, data in server.files.items())
        assert server.at_once == 1
        assert len(server.issued) <= server.statuses[401] + 1
        assert set(engine.counts.failures) == {"unauthorized"}


def test_tokens_that_end_sooner_than_they_say(tmp_path: Path) -> None:
    """A service that promises 900 s and ends a token after one: the pull, held back to last for several tokens,
    completes with no byte twice beyond one segment a connection."""
    with (
        token_server(seconds=1.0, says=900.0) as server,
        open_engine(tmp_path / "root", 4, bandwidth=60 * MIB) as engine,
    ):
        pull(engine, server, 3)
        assert len(server.issued) > 1
        twice = sum(server.sent.values()) - sum(map(len, server.files.values()))
        assert twice <= 4 * SEGMENT_BYTES


def test_tokens_with_a_stated_end_are_renewed_before_it(tmp_path: Path) -> None:
    """Where the service tells when a token ends, another is asked for before that, and no request is refused."""
    with token_server(says=0.5) as server, open_engine(tmp_path / "root", 4, bandwidth=100 * MIB) as engine:
        pull(engine, server, 3)
        assert len(server.issued) > 1
        assert (server.statuses[401], engine.counts.failures) == (0, [])


def test_access_that_is_withdrawn_is_permanent(tmp_path: Path) -> None:
    """A server that accepts no token any more ends the download with `unauthorized`, after few requests."""
    with token_server() as server, open_engine(tmp_path / "root", 2) as engine:
        server.withdrawn = True
        with pytest.raises(HoldfastError, match="401") as caught:
            pull(engine, server, 1)
        assert (caught.value.code, caught.value.permanent) == ("unauthorized", True)
        assert server.statuses[401] <= 6  # three in a row, perhaps on both connections


class Shared:
    """An issuer's token as several files see it, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.issued_at = 100.0
        self.refused: list[object] = []

    def refuse(self, headers: object) -> bool:
        self.refused.append(headers)
        return True

    def locate(self, _cancellation: Cancellation) -> Target:
        headers = (("Authorization", f"Bearer {self.issued_at}"),)
        return HttpTarget("http://host/f", headers, issued_at=self.issued_at, issuer=self)


def test_a_forbidden_token_of_another_file_is_not_final() -> None:
    """A first address may have a token that another file got earlier: it may have ended; 403 to one that was issued for
    this address is final. The issuer hears of each."""
    shared = Shared()
    addresses = Addresses(shared.locate, lambda: shared.now)
    shared.now += 1.0
    old = addresses.current(NOT)
    assert addresses.mark_refused(old, "forbidden")
    shared.issued_at = shared.now
    fresh = addresses.current(NOT)
    assert fresh is not old
    assert not addresses.mark_refused(fresh, "forbidden")
    assert len(shared.refused) == 2


def test_a_token_may_end_on_its_way() -> None:
    """A fresh token that is refused with 401 may have ended before the request arrived: the third in a row is final,
    and one that is accepted begins the count anew."""
    shared = Shared()
    addresses = Addresses(shared.locate, lambda: shared.now)
    answers = [addresses.mark_refused(addresses.current(NOT), "unauthorized") for _ in range(2)]
    addresses.mark_accepted(addresses.current(NOT))
    answers += [addresses.mark_refused(addresses.current(NOT), "unauthorized") for _ in range(3)]
    assert answers == [True, True, True, True, False]


def test_old_tokens_without_end_are_refused_at_last() -> None:
    """An issuer that gives the same old token again and again is asked three times, not for ever."""
    shared = Shared()
    addresses = Addresses(shared.locate, lambda: shared.now)
    shared.now += 100.0
    answers = [addresses.mark_refused(addresses.current(NOT), "unauthorized") for _ in range(3)]
    assert answers == [True, True, False]


def test_other_errors_leave_the_address(tmp_path: Path) -> None:
    """Only a refusal drops an address: not a missing object, nor a server that is away."""
    shared = Shared()
    addresses = Addresses(shared.locate, lambda: shared.now)
    first = addresses.current(NOT)
    assert not any(addresses.mark_refused(first, code) for code in ("not_found", "http_503", "reset"))
    assert addresses.current(NOT) is first and shared.refused == []
