"""URLs that servers name."""

from __future__ import annotations

import pytest

from cached.contract.errors import HoldfastError, Permanent
from cached.transport.urls import Address, next_hop, split_url

CURRENT = Address.parse("https://host/a/b")
BROKEN = [
    "https://[x/y",
    "//[x/y",
    "https://h:99999/",
    "https://a\u2100b/",
    "//\u0100/",
    "https://h/\u0100",
    "https://h:x/",
]


@pytest.mark.parametrize("location", BROKEN)
def test_a_redirect_to_what_is_no_url_is_an_error_of_ours(location: str) -> None:
    """Whatever a server names as the next address, it is a URL or an error that a person can act on."""
    with pytest.raises(Permanent) as caught:
        next_hop(CURRENT, location)
    assert caught.value.code in ("bad_url", "insecure_redirect") and caught.value.remedy


@pytest.mark.parametrize("location", ["../c", "/x y", "https://other/\xc3\xb1", "", "?x", "b"])
def test_a_redirect_is_followed(location: str) -> None:
    """Relative addresses, spaces and raw UTF-8 are taken."""
    assert next_hop(CURRENT, location).url.startswith("https://")


@pytest.mark.parametrize("url", BROKEN)
def test_a_split_never_raises_another_error(url: str) -> None:
    """A URL has parts, or is `bad_url`."""
    try:
        split_url(url)
    except HoldfastError as error:
        assert error.code == "bad_url"
