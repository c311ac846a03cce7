"""Numbers as they stand in sentences."""

import math


def rounded(value: float, error: float | None = None) -> str:
    """−1,234.57: to two digits of its error, or to two decimals, with a true minus sign."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not finite"
    decimals = min(6, max(0, 1 - math.floor(math.log10(error)))) if error and math.isfinite(error) else 2
    return f"{value:,.{decimals}f}".replace("-", "−")


def count(number: int, noun: str) -> str:
    """For example 1 epoch, 1,400 epochs."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
