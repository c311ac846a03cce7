"""What the chapters of the course import: whether to be quick, and `quote` for the numbers that their prose tells.

A chapter is a Python file of cells (course/NN_name.py). Its text never holds a measured number, but a name in double
braces. The number comes from course/results, where a run of the chapter has put it, and every later run is held to it.
"""

import math
import os
from dataclasses import dataclass

from vaelab.errors import InputError

FAST = os.environ.get("FAST", "0") not in ("", "0")
"""Whether to train less and draw less: true where the environment has FAST=1. The tests run the chapters so."""


@dataclass(frozen=True)
class Quote:
    """A number that the text tells, and how far another machine's may lie from it: abs + rel · |value|."""

    value: float
    rel: float
    abs: float

    def allows(self, other: float) -> bool:
        """Whether another run's number is the same, within the tolerance."""
        return abs(other - self.value) <= self.abs + self.rel * abs(self.value)


quoted: dict[str, Quote] = {}
"""What the chapter that is running has quoted so far."""


def quote(name: str, value: float, *, rel: float = 0.0, abs: float = 0.0) -> float:  # noqa: A002 - as in pytest.approx
    """Note a number for the text, which tells it as `{{name}}` or `{{name:.2f}}`, and give it back.

    Args:
        name: a Python identifier, once in a chapter.
        value: anything that `float` takes; finite.
        rel, abs: tolerances, of which one at least is above 0: what another processor's rounding may change.

    Raises:
        InputError: the name is taken or no identifier, the number not finite, or there is no tolerance.
    """
    if not name.isidentifier() or name in quoted:
        raise InputError(f"quote({name!r}): " + ("is quoted twice" if name in quoted else "is no identifier"))
    if not math.isfinite(value) or max(rel, abs) <= 0:
        raise InputError(f"quote({name!r}): needs a finite number and a tolerance, rel or abs, above 0")
    quoted[name] = Quote(float(value), rel, abs)
    return quoted[name].value
