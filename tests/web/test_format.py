"""Figures are written alike on every page."""

from datetime import UTC, datetime, timedelta

import pytest

from paredown.web import format as fmt


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (fmt.size(0), "0 B"),
        (fmt.size(999), "999 B"),
        (fmt.size(1500), "1.50 kB"),
        (fmt.size(999_700), "1.00 MB"),
        (fmt.size(269_030_016), "269 MB"),
        (fmt.size(12_340_000_000), "12.3 GB"),
        (fmt.size(None), "–"),
        (fmt.percent(0.4196), "42.0 %"),
        (fmt.change(0.146), "+14.6 %"),
        (fmt.change(-0.02), "−2.00 %"),
        (fmt.change(None), "–"),
        (fmt.perplexity(20.634), "20.63"),
        (fmt.perplexity(12345.6), "12 345.60"),
        (fmt.perplexity(3.2e9), "3.20e+09"),
        (fmt.speed(41.23), "41.2 tokens/s"),
        (fmt.money(0.0036, "USD"), "0.0036 USD"),
        (fmt.money(0.5, "EUR"), "0.50 EUR"),
        (fmt.money(0.00001234, "USD"), "0.000012 USD"),
        (fmt.count(134_515_008), "135 M"),
        (fmt.duration(0.42), "0.4 s"),
        (fmt.duration(59.7), "1 min 0 s"),
        (fmt.duration(100), "1 min 40 s"),
        (fmt.duration(7260), "2 h 1 min"),
        (fmt.duration(180_000), "2 d 2 h"),
    ],
)
def test_figures(written, expected):
    assert written == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1, "just now"), (42, "42 s ago"), (125, "2 min ago"), (7300, "2 h ago"), (99999, "1 d ago")],
)
def test_how_long_ago(seconds, expected):
    now = datetime.now(UTC)
    assert fmt.ago(now - timedelta(seconds=seconds), now) == expected
