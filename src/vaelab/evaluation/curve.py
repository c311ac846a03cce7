"""The rate-distortion curve of a family of runs (Alemi et al. 2018, arXiv:1711.00464)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from vaelab.errors import InputError
from vaelab.evaluation.likelihood import evaluate
from vaelab.runs import Run, load


@dataclass(frozen=True)
class RatePoint:
    """One run on the plane of rate and distortion, in nats an example, each with its standard error over examples.

    `*_monte_carlo` is the part of it that is due to draws of z. The ELBO is −(rate + distortion): runs with the same
    ELBO lie on one falling diagonal.
    """

    run: str
    n: int
    rate: float
    rate_stderr: float | None
    rate_monte_carlo: float | None
    distortion: float
    distortion_stderr: float | None
    distortion_monte_carlo: float | None
    elbo: float
    elbo_stderr: float | None


def rate_distortion(
    runs: Sequence["str | os.PathLike[str] | Run"], *, split: str = "test", limit: int | None = None, seed: int = 0
) -> list[RatePoint]:
    """Where each run of a family lies on the plane of rate and distortion; the lowest rate comes first.

    All runs are measured on the same examples, so their common spread does not blur the curve: two points differ by
    less than the standard error of either, if that is due to the examples.

    Args:
        runs: of one data set, differing in β, say.
        split, limit, seed: as for `evaluate`.

    Raises:
        InputError: no such run; a run without a rate; or runs that no plane holds together: of different data,
            probabilities beside densities, p(x) beside p(x|y).
    """
    opened = [Run.open(run) for run in runs]
    if not opened:
        raise InputError("runs: give at least one run")
    for run in opened[1:]:
        if run.about.get("fingerprint") != opened[0].about.get("fingerprint"):
            raise InputError(f"{run}: trained on other data than {opened[0]}; their distortions cannot be compared")
    kinds = [(model.likelihood.discrete, model.labels is None) for model in map(load, opened)]
    for run, (discrete, unconditional) in zip(opened, kinds, strict=True):
        if discrete != kinds[0][0]:
            raise InputError(f"{run}: of {run} and {opened[0]} one has probabilities, the other densities")
        if unconditional != kinds[0][1]:
            raise InputError(f"{run}: of {run} and {opened[0]} one is given the labels, the other is not")
    points: list[RatePoint] = []
    for run in opened:
        found = evaluate(run, 1, split, limit, seed)
        if found.rate is None or found.elbo is None:
            raise InputError(f"{run}: its posterior has no density, hence no rate; leave it out")
        points.append(
            RatePoint(
                run=str(run),
                n=found.n,
                rate=found.rate,
                rate_stderr=found.rate_stderr,
                rate_monte_carlo=found.rate_monte_carlo,
                distortion=found.distortion,
                distortion_stderr=found.distortion_stderr,
                distortion_monte_carlo=found.distortion_monte_carlo,
                elbo=found.elbo,
                elbo_stderr=found.elbo_stderr,
            )
        )
    return sorted(points, key=lambda point: point.rate)
