"""How numbers read in reports: thousands separated, percent with a unit, a dash for what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

MISSING = "-"


def finite(value: Any) -> float | None:
    """The value as a float when it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def count(value: Any) -> str:
    """Whole number with thousands separators.

    Examples:
        >>> count(77322), count(None)
        ('77,322', '-')
    """
    known = finite(value)
    return MISSING if known is None else f"{round(known):,}"


def percent(share: Any, digits: int = 2) -> str:
    """Share as percent. Something never reads as nothing, and almost all never reads as all.

    Examples:
        >>> percent(0.05), percent(0.00001), percent(0.99999), percent(1), percent(float("nan"))
        ('5.00 %', '0.001 %', '99.999 %', '100.00 %', '-')
    """
    known = finite(share)
    if known is None:
        return MISSING
    if 0 < known < 1:
        while digits < 8 and float(f"{100 * known:.{digits}f}") in (0.0, 100.0):
            digits += 1
    return f"{100 * known:.{digits}f} %"


def number(value: Any, digits: int = 4) -> str:
    """Up to ``digits`` significant digits; whole numbers stay whole.

    Examples:
        >>> number(0.123456), number(1234567), number(2.0), number(None)
        ('0.1235', '1,234,567', '2', '-')
    """
    known = finite(value)
    if known is None:
        return MISSING
    return f"{int(known):,}" if known == int(known) and abs(known) < 1e15 else f"{known:.{digits}g}"


def seconds(value: Any) -> str:
    """Duration in seconds, or in minutes when it is long.

    Examples:
        >>> seconds(0.25), seconds(61.2), seconds(754)
        ('0.25 s', '61.2 s', '12 min 34 s')
    """
    known = finite(value)
    if known is None:
        return MISSING
    if known >= 120:
        return f"{round(known) // 60} min {round(known) % 60} s"
    return f"{known:.2f} s" if known < 10 else f"{known:.1f} s"


def size(value: Any) -> str:
    """Bytes in kB or MB (powers of ten).

    Examples:
        >>> size(512), size(311016), size(44_000_000)
        ('512 B', '311.0 kB', '44.0 MB')
    """
    known = finite(value)
    if known is None:
        return MISSING
    for unit, below in (("B", 1e3), ("kB", 1e6), ("MB", 1e9)):
        if known < below:
            return f"{known:.0f} B" if unit == "B" else f"{known / below * 1e3:.1f} {unit}"
    return f"{known / 1e9:.1f} GB"


def dims(shape: Any) -> str:
    """Shape as ``16x1x3x3``; a scalar reads ``scalar``."""
    return "x".join(str(d) for d in shape) if isinstance(shape, Iterable) and list(shape) else "scalar"


def shorten(text: str, most: int) -> str:
    """At most ``most`` characters; the middle goes, because names of layers differ at both ends.

    Examples:
        >>> shorten("layer1.block0.conv2.weight", 15)
        'layer1...weight'
    """
    if len(text) <= most:
        return text
    if most <= 5:
        return text[:most]
    left = (most - 3) // 2
    return text[:left] + "..." + text[len(text) - (most - 3 - left) :]


def printable(text: str) -> str:
    """The text without line breaks, terminal codes or anything else that is not printed."""
    return "".join(c if c.isprintable() else "?" for c in text)


def clean(value: Any) -> str:
    """Any value as text that is safe inside HTML and inside quoted attributes."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)
