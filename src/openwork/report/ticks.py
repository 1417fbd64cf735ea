"""Nice numbers for axes, linear and logarithmic."""

from __future__ import annotations

import math

from openwork.errors import OpenworkError


def nice_step(span: float, count: int = 5) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that cuts ``span`` into at most ``count`` pieces."""
    if not (math.isfinite(span) and span > 0 and count >= 1):
        raise OpenworkError(f"nice_step needs a finite span above 0 and a count of at least 1, got {span} and {count}")
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if factor * power >= rough * (1 - 1e-9):
            return factor * power
    return 10.0 * power


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers at equal distances that cover ``low`` to ``high``, both included.

    Examples:
        >>> nice_ticks(0, 97)
        [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise OpenworkError(f"nice_ticks needs finite low <= high, got {low} and {high}")
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    step = nice_step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Powers of ten (with 2 and 5 between them on short axes) that cover ``low`` to ``high``.

    Examples:
        >>> log_ticks(0.02, 1.0)
        [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    """
    if not (math.isfinite(low) and math.isfinite(high) and 0 < low <= high):
        raise OpenworkError(f"log_ticks needs finite 0 < low <= high, got {low} and {high}")
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first <= 2:
        fine = [float(f"{m}e{e}") for e in range(first, max(last, first + 1) + 1) for m in (1, 2, 5)]
        begin = max(i for i, t in enumerate(fine) if t <= low * (1 + 1e-9))
        end = min(i for i, t in enumerate(fine) if t >= high * (1 - 1e-9))
        return fine[begin : max(end, begin + 1) + 1]
    stride = -(-(last - first) // count)
    return [float(f"1e{e}") for e in range(first, last + stride, stride)]


def tick_label(value: float, step: float, unit: str = "") -> str:
    """Short text of a tick: as many decimals as the step needs, k and M for large numbers.

    Examples:
        >>> tick_label(0.25, 0.05), tick_label(40_000, 20_000), tick_label(0.05, 0.01, "%"), tick_label(1e-6, 1e-6)
        ('0.25', '40k', '5%', '1e-06')
    """
    if unit == "%":
        value, step = 100 * value, 100 * step
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit and step >= limit / 1e3:
            return f"{value / limit:.4g}{letter}{unit}"
    if value and max(abs(value), step) < 1e-3:
        return f"{value:.2g}{unit}"
    decimals = next((d for d in range(8) if abs(round(step, d) - step) < 1e-6 * step), 8)
    return f"{value:.{decimals}f}{unit}"
