"""A server's own words in our messages: what they may show, and what never."""

from __future__ import annotations

import pytest

from cached.sources.oauth import quoted


@pytest.mark.parametrize(
    "said",
    [
        "no, your header was Bearer s3same",
        "you sent Basic s3same=",
        "Host: a\r\nAuthorization: Bearer s3same\r\nCookie: m_session_id=s3same",
        '{"authorization": "token s3same"}',
        "{'X-Api-Key': 's3same', 'PRIVATE-TOKEN': 's3same'}",
        "password=s3same; secret: s3same",
        "GET /x?signature=s3same",
        "x" * 65 + "s3same",
    ],
)
def test_a_server_that_repeats_the_request_shows_no_secret(said: str) -> None:
    """What stands where a header or a setting has a credential is left out, whatever its length."""
    assert "s3same" not in quoted(said)


@pytest.mark.parametrize(
    "said",
    [
        "The token expired: sign in again",
        "invalid_token: the access token is invalid",
        "API key: expired",
        "No such key: models/m.bin is not there",
        "Run 'abc' not found",
    ],
)
def test_an_error_stays_one_that_can_be_read(said: str) -> None:
    """The words of an error stay, also those that name a token or a key."""
    assert quoted(said) == said


@pytest.mark.parametrize("said", ["a-" * 500_000, "token" * 200_000, "session" * 150_000 + ":", "basic " * 200_000])
def test_a_long_answer_is_short_at_once(said: str) -> None:
    """Only the beginning of an answer is looked at."""
    assert len(quoted(said)) <= 300
