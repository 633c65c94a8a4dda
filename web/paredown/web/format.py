"""How figures are written, the same on every page. An absent figure is an en dash."""

from datetime import UTC, datetime

from paredown.contracts.gate import Unit
from paredown.contracts.report import Spread

ABSENT = "–"


def size(size_bytes: float | None) -> str:
    """Decimal units, three digits: `269 MB`."""
    if size_bytes is None:
        return ABSENT
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1000
    return f"{_three_digits(value)} TB"


def percent(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{_three_digits(100 * fraction)} %"


def change(fraction: float | None) -> str:
    """A relative change with its sign: `+14.6 %`."""
    if fraction is None:
        return ABSENT
    sign = "+" if fraction >= 0 else "−"
    return f"{sign}{_three_digits(abs(100 * fraction))} %"


def perplexity(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.2f}".replace(",", " ") if value < 1e6 else f"{value:.2e}"


def speed(tokens_per_second: float | None, spread: Spread | None = None) -> str:
    """With the middle half of the repeats, where that is known: `48.2 tokens/s (47.9–49.0)`."""
    if tokens_per_second is None:
        return ABSENT
    about = f" ({_three_digits(spread.low)}–{_three_digits(spread.high)})" if spread else ""
    return f"{_three_digits(tokens_per_second)} tokens/s{about}"


def money(amount: float | None, currency: str | None) -> str:
    if amount is None:
        return ABSENT
    digits = f"{amount:,.2f}".replace(",", " ") if amount >= 0.1 or amount == 0 else f"{amount:.2g}"
    if "e" in digits:
        digits = f"{amount:.6f}"
    return f"{digits} {currency or ''}".strip()


def joules(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g} J"


def nats(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g} nats"


def limited(value: float, unit: Unit, currency: str | None) -> str:
    """A figure that a budget limits."""
    match unit:
        case "bytes":
            return size(value)
        case "money":
            return money(value, currency)
        case "nats":
            return nats(value)
        case "times":
            return f"{value:.2f} ×"
        case "change":
            return change(value)
    return percent(value)


def limit(value: float, unit: Unit, currency: str | None) -> str:
    """A limit of a budget: the same, without a sign before a rise."""
    return limited(value, "share" if unit == "change" else unit, currency)


def signed_money(amount: float | None, currency: str | None) -> str:
    """What is saved; a loss has a minus."""
    sign = "−" if amount is not None and amount < 0 else ""
    return sign + money(None if amount is None else abs(amount), currency)


def signed_size(size_bytes: float) -> str:
    return ("−" if size_bytes < 0 else "") + size(abs(size_bytes))


def count(value: float | None) -> str:
    """Parameters and tokens: `135 M`."""
    if value is None:
        return ABSENT
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{_three_digits(value / limit)} {unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Two units at most: `1 min 40 s`."""
    if seconds is None:
        return ABSENT
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def milliseconds(value: float | None) -> str:
    return ABSENT if value is None else f"{_three_digits(value)} ms"


def seconds(value: float | None) -> str:
    """A time that may be shorter than a second: `84.2 ms`."""
    return milliseconds(1000 * value) if value is not None and value < 1 else duration(value)


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    if moment is None:
        return ABSENT
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 5:
        return "just now"
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    return f"{seconds // 86400:.0f} d ago"


def moment(value: datetime | None) -> str:
    """A point in time in UTC: `2026-11-22 01:04:09 UTC`."""
    return ABSENT if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"
