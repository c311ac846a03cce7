"""Two samples as tensors, and all pairs of them a block at a time."""

from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vaelab.errors import InputError
from vaelab.evaluation.real_numbers import real

Rows = ArrayLike | Tensor
"""[N, D]: N examples of D features."""
PAIRS_AT_ONCE = 2_000_000  # distances in memory: 16 MB


def pair(x: Rows, y: Rows, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two samples [N, D] and [M, D] as float64 on the CPU.

    Raises:
        InputError: no real numbers, shapes that do not fit, fewer than `least` rows, or values that are not finite.
    """
    one, other = (torch.from_numpy(real(rows, "a sample")) for rows in (x, y))
    shapes = f"{list(one.shape)} and {list(other.shape)}"
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or not one.shape[1]:
        raise InputError(f"samples {shapes}: they must be [N, D] and [M, D]")
    if min(len(one), len(other)) < least:
        raise InputError(f"samples {shapes}: give at least {least} examples of each")
    if not (one.isfinite().all() and other.isfinite().all()):
        raise InputError("a sample holds NaN or infinite values; leave those examples out")
    return one, other


def blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of x [N, D], some at a time, so that their pairs with y [M, D] fit into memory."""
    size = max(1, PAIRS_AT_ONCE // len(y))
    for start in range(0, len(x), size):
        at = slice(start, start + size)
        yield at, x[at]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances [N, M] of float64 rows, by a matrix product: 20 times as fast as from differences.

    One of the rows is subtracted from all, so that little is lost to rounding far from the origin. On a grid that
    float64 holds exactly (binary data, say) nothing is lost: there ties are ties.
    """
    return torch.cdist(x - y[0], y - y[0], compute_mode="use_mm_for_euclid_dist")
