"""What every metric takes: codes [N, D] and factors [N, F], as arrays."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaelab.errors import InputError
from vaelab.evaluation.real_numbers import real

Codes = NDArray[np.float64]
"""[N, D]: D latents of N examples."""
Factors = NDArray[np.int64]
"""[N, F]: the values of F factors of the same examples, counted from 0."""

ROUNDING = 1e-6
"""Spread over size, below which a latent is constant: some float32 rounding errors."""


def check_seed(seed: int) -> None:
    """Raise an InputError for what numpy and scikit-learn take as no seed."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: must be from 0 to {2**32 - 1}")


def checked(codes: ArrayLike, factors: ArrayLike) -> tuple[Codes, Factors]:
    """Codes [N, D] as float64, and factors [N, F] as int64. A latent that is constant but for rounding is 0 in all.

    Raises:
        InputError: shapes that do not fit, fewer than two factors, codes that are no finite real numbers, factors that
            are no integers, or a factor of which these examples have one value.
    """
    z, raw = real(codes, "codes"), np.asarray(factors)
    if z.ndim != 2 or raw.ndim != 2 or len(z) != len(raw) or not z.size:
        raise InputError(f"codes {list(z.shape)} and factors {list(raw.shape)}: they must be [N, D] and [N, F]")
    if raw.shape[1] < 2:
        raise InputError("one factor: there is nothing to disentangle; give two or more")
    if raw.dtype.kind not in "biu":
        raise InputError(f"factors are {raw.dtype}; number their values 0, 1, ...")
    if not np.isfinite(z).all():
        raise InputError("codes hold NaN or infinite values; leave those examples out")
    v = raw.astype(np.int64)
    if v.min() < 0:
        raise InputError(f"factors go down to {v.min()}; number their values 0, 1, ...")
    alone = np.flatnonzero(v.min(0) == v.max(0))
    if len(alone):
        raise InputError(f"factor {alone[0]} has one value in these examples; take more examples, or leave it out")
    return np.where(np.ptp(z, axis=0) > ROUNDING * np.abs(z).max(0), z, 0), v


def varying(codes: Codes) -> NDArray[np.bool_]:
    """Which latents vary, of codes [N, D] that were checked: [D]."""
    return codes.var(axis=0) > 0


def lead(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the best latent leads the second best, for each factor: scores [D, F] -> [F]."""
    if len(scores) == 1:
        return scores[0]
    best = np.sort(scores, axis=0)
    return best[-1] - best[-2]


class Cells:
    """The examples of each value of a factor; its values are counted by their place among those that occur.

    Args:
        values: of one factor, [N].

    Attributes:
        places: of each example's own value, [N].
    """

    def __init__(self, values: NDArray[np.int64]) -> None:
        _, self.places, self._sizes = np.unique(values, return_inverse=True, return_counts=True)
        self._order = np.argsort(self.places, kind="stable")
        self._first = self._sizes.cumsum() - self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def examples(self, place: int) -> NDArray[np.int64]:
        """All examples with one value."""
        return self._order[self._first[place] :][: self._sizes[place]]

    def draw(self, places: NDArray[np.int64], noise: np.random.Generator) -> NDArray[np.int64]:
        """For each entry an example with that value; with replacement."""
        return self._order[self._first[places] + noise.integers(self._sizes[places])]
