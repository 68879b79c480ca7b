"""Units: sizes, rates and durations as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.program.units import (
    format_count,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1048576", 1048576),
        ("10B", 10),
        ("1k", 1000),
        ("1K", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1Ki", 1024),
        ("512MiB", 512 * 1024**2),
        ("2TB", 2 * 10**12),
        ("1.5GiB", 1536 * 1024**2),
        ("1.1GB", 1_100_000_000),
        (" 3 PiB ", 3 * 1024**5),
        ("9007199254740993", 9007199254740993),
        ("0.0000001", 0),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    """A size is exact to the byte; IEC prefixes are powers of 1024, SI prefixes of 1000."""
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "B", "MiB", "-1", "+1", "1 2", "1iB", "1i", "1EB", "1mb", "1MIB", "1e9", "nan", "inf", "٣", "1,5G"),
        *("0x10", "1.", ".5", "9" * 400, "1MiB/s", "1 MiB x"),
    ],
)
def test_not_a_size(text: str) -> None:
    """A text that is no size is a ValueError that shows one."""
    with pytest.raises(ValueError, match="512MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("200MiB/s", 200 * 1024**2), ("1000", 1000), ("2.5GB/s", 2_500_000_000)]
)
def test_rates(text: str, expected: int) -> None:
    """A rate is a size a second; a bare size is one too."""
    assert parse_rate(text) == expected


@pytest.mark.parametrize("text", ["", "/s", "1/", "1MiB/m", "1MiB/s/s", "fast"])
def test_not_a_rate(text: str) -> None:
    """A text that is no rate is a ValueError."""
    with pytest.raises(ValueError, match="expected a"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (3 * 1024**4, "3.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_format_size(size: int, expected: str) -> None:
    """Bytes are shown in the largest prefix that leaves a number of at least one."""
    assert format_size(size) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (-1, "0s"), (8.4, "8s"), (59.6, "1m00s"), (185, "3m05s"), (3600, "1h00m"), (7800, "2h10m")],
)
def test_format_duration(seconds: float, expected: str) -> None:
    """Seconds are shown to what a person needs of them."""
    assert format_duration(seconds) == expected


@given(st.integers(0, 10**18 - 1))
def test_whole_bytes_are_exact(size: int) -> None:
    """A size in bytes is read to the byte, however large."""
    assert parse_size(str(size)) == size


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    """No text gives anything but a size or a ValueError."""
    try:
        assert parse_size(text) >= 0
    except ValueError as error:
        assert "expected a size" in str(error)


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("15m", 900), ("0.5h", 1800), (" 1d ", 86400)])
def test_durations(text: str, expected: float) -> None:
    """Seconds, minutes, hours and days are read."""
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "0s", "5", "-1s", "1w", "1h30m", "inf"])
def test_not_a_duration(text: str) -> None:
    """Anything else is refused with how to write one."""
    with pytest.raises(ValueError, match="90s, 15m, 6h or 1d"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [(0, ("file",), "0 files"), (1, ("file",), "1 file"), (2, ("file",), "2 files"), (2, ("try", "tries"), "2 tries")],
)
def test_a_count_takes_the_right_form(count: int, words: tuple[str, ...], said: str) -> None:
    """One thing is singular, any other number plural, with the plural that is named where an s is not enough."""
    assert format_count(count, *words) == said
