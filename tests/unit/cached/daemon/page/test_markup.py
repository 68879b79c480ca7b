"""Texts as HTML."""

from __future__ import annotations

import html

import pytest

from cached.daemon.page import markup


@pytest.mark.parametrize(
    "evil",
    [
        "<b>",
        '" onload="x',
        "' x='",
        "&amp;",
        "</script><script>",
        "a\x00b",
        "a\nb",
        "\x1b[2J",
        "\u202eabc",
        "\ud800",
        "\U000e0041",
    ],
)
def test_a_text_is_only_text(evil: str) -> None:
    """What a text is made of is neither markup nor unseen."""
    made = markup.text(evil)
    assert not set("<>\"'") & set(made)
    shown = html.unescape(made)
    assert shown.isprintable()
    assert shown.encode("utf-8")
    if evil.isprintable():
        assert shown == evil


def test_a_long_text_is_cut() -> None:
    """One text cannot make the page large, also where each of its characters becomes six."""
    assert len(markup.text('"' * 100_000)) < 7_000
    assert markup.text("x" * 2000).endswith("x…")
    assert markup.text("ü" * 900) == "ü" * 900


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("http://user:hunter2@host/path: answered 503", "http://host/path: answered 503"),
        ("https://hunter2@host/p and s3://a:hunter2@b/c", "https://host/p and s3://b/c"),
        ("https://h/p?X-Amz-Signature=hunter2&a=b answered", "https://h/p answered"),
        ("(see https://h/p#hunter2)", "(see https://h/p)"),
        ("no URL? yes, a@b", "no URL? yes, a@b"),
        ("run `holdfast publish`", "run <code>holdfast publish</code>"),
    ],
)
def test_credentials_of_a_uri_are_not_shown(said: str, shown: str) -> None:
    """User information, query and fragment of URIs are left out of messages; the rest stays."""
    assert markup.message(said) == shown
    assert markup.text(said) == shown.replace("<code>", "`").replace("</code>", "`")


def test_code_in_a_message_is_escaped_too() -> None:
    """What stands between backticks is a text like all others."""
    assert markup.message("`<b>`") == "<code>&lt;b&gt;</code>"


def test_an_age_is_filled_in_for_a_reader_without_a_script() -> None:
    """The same element has no text in events and the age in the page; an odd time does no harm."""
    element = markup.age("2026-11-30T11:00:00Z")
    assert element == '<time datetime="2026-11-30T11:00:00Z"></time>'
    filled = markup.fill_ages(element + markup.age("<b>"), 1_796_036_400 + 125.9)
    assert filled.startswith('<time datetime="2026-11-30T11:00:00Z">2m</time>')
    assert "<b>" not in filled


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (86399, "23h"),
        (86400 * 400, "400d"),
    ],
)
def test_ages_are_coarse(seconds: float, said: str) -> None:
    """An age has one unit."""
    assert markup.format_age(seconds) == said
