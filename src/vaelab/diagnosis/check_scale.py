"""Whether the values of the data are of a size that networks learn from."""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from vaelab.diagnosis.case import EXAMPLES, Case, few
from vaelab.diagnosis.findings import Finding, Illness

SMALL, LARGE = 0.01, 30.0  # standard deviations between which values are left alone

ILLNESSES = (
    Illness(
        "unscaled-data",
        "values far from 1",
        "warning: real values whose standard deviation (half of what lies between their quantiles 0.16 and 0.84, the "
        f"median of the columns) is below {SMALL:g} or above {LARGE:g}",
    ),
)


def scale_of(case: Case) -> float | None:
    """The standard deviation of real-valued data, the median of the columns, if it is far from 1; else None."""
    if case.dataset.spec.levels is not None:
        return None
    x = few(case.training_examples(EXAMPLES), EXAMPLES)[0].flatten(1).double().sort(0).values
    spread = (x[int(0.84 * len(x))] - x[int(0.16 * len(x))]) / 2  # a few values far out change nothing
    spread = spread[spread > 0]
    middle = float(spread.median()) if len(spread) else 1.0
    return None if SMALL <= middle <= LARGE else middle


def scaled(case: Case, spread: float) -> str:
    """How to train on values near 1: as commands where the data are an array of their own."""
    factor = 10.0 ** round(math.log10(spread))
    source = case.run.config.data.source
    if not source.endswith(".npy"):
        return f"Divide the values by {factor:g}, and train again: {case.again()}"
    new = str(Path(source).with_name(f"{Path(source).stem}-scaled.npy"))
    code = f"import sys, numpy as np; np.save(sys.argv[2], np.load(sys.argv[1]) / {factor:g})"
    return f"{shlex.join(['python', '-c', code, source, new])}\n{case.again('--data', new)}"


def unscaled(case: Case) -> Iterator[Finding]:
    """Do the values vary by something near 1?"""
    spread = scale_of(case)
    if spread is None:
        return
    held = getattr(case.model.likelihood, "scale_floor", 0.0)
    floor = f" The σ of the likelihood cannot be below {held:g} (likelihood.scale_floor)." if held > spread / 10 else ""
    yield Finding(
        "unscaled-data",
        "warning",
        f"The values vary by {spread:.2g} (their standard deviation). Weights are drawn for values near 1: what is far "
        f"smaller is not seen, what is far larger makes training diverge.{floor}",
        {"standard_deviation": spread},
        "units of measurement: an array is taken as it is",
        scaled(case, spread),
    )
