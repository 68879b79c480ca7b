"""When a signed URL ends."""

from __future__ import annotations

import pytest

from cached.sources.signed_urls import lifetime_s

NOW = 1_795_000_000.0  # 2026-11-18T11:06:40Z


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("X-Amz-Date=20261118T110640Z&X-Amz-Expires=3600&X-Amz-Signature=0", 3600.0),
        ("x-goog-date=20261118T110610Z&x-goog-expires=60", 30.0),
        ("Expires=1795000060&Signature=0&Key-Pair-Id=K", 60.0),
        ("se=2026-11-18T11%3A07%3A40Z&sig=0", 60.0),
        ("Expires=1794999999", 0.0),
        ("X-Amz-Date=20261118T110640Z&X-Amz-Expires=3600&Expires=1795000060", 60.0),
        ("", None),
        ("Expires=0", None),
        ("Expires=never&X-Amz-Expires=3600", None),
        ("X-Amz-Date=yesterday&X-Amz-Expires=3600", None),
        ("X-Amz-Date=20261118T110640Z&X-Amz-Expires=soon", None),
        ("se=2026-11-18", None),
    ],
)
def test_the_end_of_a_signed_url(query: str, expected: float | None) -> None:
    """Each store's own parameters say when; the earliest end counts, and what is no time says nothing."""
    assert lifetime_s(f"https://cdn.example/file?{query}", NOW) == expected
