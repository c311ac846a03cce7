"""The maximum mean discrepancy between two samples."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaelab.errors import InputError
from vaelab.evaluation.quality.arrays import Rows, blocks, distances, pair
from vaelab.objectives.divergence import kernel_values

MEDIAN_ROWS = 2000  # enough for the median of distances: 2 million of them


def polynomial_mmd(x: Rows, y: Rows) -> float:
    """The unbiased estimate of MMD² with the kernel k(x, y) = (x·y / D + 1)³: Bińkowski et al. 2018 (KID).

    0 on average where both samples [N, D] and [M, D] are of one distribution, and often negative there. The kernel
    compares moments up to the third, and grows with the scale of the features.

    Raises:
        InputError: no two samples of one number of features.
    """
    one, other = pair(x, y)
    return _mmd(one, other, lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3)


def gaussian_mmd(x: Rows, y: Rows, width: float) -> float:
    """The unbiased estimate of MMD² with the kernel k(x, y) = exp(−|x − y|² / width): Gretton et al. 2012, eq. 3.

    0 on average where both samples [N, D] and [M, D] are of one distribution, and often negative there; at most 2. The
    kernel is characteristic: for many enough draws no difference of two distributions escapes it.

    Args:
        x, y: samples [N, D] and [M, D].
        width: of the kernel, in squared units of the features; `median_width` gives one.

    Raises:
        InputError: no two samples of one number of features, or a width that is not positive.
    """
    if not 0 < width < float("inf"):
        raise InputError(f"width={width}: must be a number above 0")
    one, other = pair(x, y)
    return _mmd(one, other, lambda a, b: kernel_values(distances(a, b).square(), "rbf", width))


def median_width(x: Rows) -> float:
    """Twice the squared median distance between different rows of x [N, D]: Gretton et al. 2012, section 8.

    So the kernel exp(−|x − y|² / width) is a Gaussian with the median distance as its standard deviation. Of more than
    2,000 rows, the first 2,000 are taken.

    Raises:
        InputError: more than half of the distances are 0.
    """
    one, _ = pair(x, x)
    one = one[:MEDIAN_ROWS]
    apart = torch.pdist(one)
    median = float(apart.median())
    if median == 0:
        raise InputError("more than half of the distances between examples are 0; there is no width for a kernel")
    return 2 * median**2


def _mmd(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Mean k(x, x') + mean k(y, y') − 2 mean k(x, y), no row with itself: Gretton et al. 2012, eq. 3."""

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([kernel(rows, b).sum() for _, rows in blocks(a, b)]).sum()

    def within(a: Tensor) -> Tensor:
        own = torch.stack([kernel(rows, rows).diagonal().sum() for rows in a.split(500)]).sum()
        return (total(a, a) - own) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y)))
