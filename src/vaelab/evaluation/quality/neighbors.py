"""Fidelity and diversity by nearest neighbors: precision and recall, density and coverage."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaelab.errors import InputError
from vaelab.evaluation.quality.arrays import Rows, blocks, distances, pair

PRECISION_NEIGHBORS = 3
COVERAGE_NEIGHBORS = 5


@dataclass(frozen=True)
class Neighbors:
    """How N real and M generated examples lie among each other.

    The ball of an example reaches to its k-th nearest neighbor among its own kind, that neighbor included.

    Attributes:
        precision: share of the generated examples in the ball of a real one; low where they look wrong.
        recall: share of the real examples in the ball of a generated one; low where kinds of examples are missing.
        density: in how many balls of real examples a generated one lies, on average, over k. 1 for one distribution;
            above 1 where generated examples crowd where real ones are dense.
        coverage: share of the balls of real examples with a generated one inside; `expected_coverage` for one
            distribution.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbor_scores(
    real: Rows,
    generated: Rows,
    *,
    precision_neighbors: int = PRECISION_NEIGHBORS,
    coverage_neighbors: int = COVERAGE_NEIGHBORS,
) -> Neighbors:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Distances are Euclidean. Precision and recall have no fixed value for two samples of one distribution, so look at
    that of real against real.

    Args:
        real, generated: samples [N, D] and [M, D].
        precision_neighbors: k of precision and recall; the paper's default is 3.
        coverage_neighbors: k of density and coverage; the paper's default is 5.

    Raises:
        InputError: no two samples of one number of features, or not more than k of each.
    """
    for name, k in (("precision_neighbors", precision_neighbors), ("coverage_neighbors", coverage_neighbors)):
        if k < 1:
            raise InputError(f"{name}={k}: must be at least 1")
    most = max(precision_neighbors, coverage_neighbors)
    x, y = pair(real, generated, most + 1)
    near, wide = _radii(x, precision_neighbors, coverage_neighbors)
    (of_generated,) = _radii(y, precision_neighbors)
    precise, inside = 0, 0
    recalled, covered = (torch.zeros(len(x), dtype=torch.bool) for _ in range(2))
    for at, rows in blocks(y, x):
        apart = distances(rows, x)
        precise += int((apart <= near).any(1).sum())
        within = apart <= wide
        inside += int(within.sum())
        covered |= within.any(0)
        recalled |= (apart <= of_generated[at, None]).any(0)
    return Neighbors(
        precision=precise / len(y),
        recall=float(recalled.double().mean()),
        density=inside / (coverage_neighbors * len(y)),
        coverage=float(covered.double().mean()),
    )


def expected_coverage(n: int, m: int, k: int = COVERAGE_NEIGHBORS) -> float:
    """The expectation of coverage for N real and M generated examples of one distribution without ties.

    1 − Π_{i=1..k} (N − i) / (M + N − i), Naeem et al. 2020, eq. 9: the product is the probability that the k nearest of
    all other examples are real ones.
    """
    return 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))


def _radii(x: Tensor, *ks: int) -> list[Tensor]:
    """Distance of each row of x [N, D] to its k-th nearest other row, for each k: [N] each."""
    nearest = torch.cat([distances(rows, x).topk(max(ks) + 1, largest=False).values for _, rows in blocks(x, x)])
    return [nearest[:, k] for k in ks]  # the row itself is at 0 and comes first
