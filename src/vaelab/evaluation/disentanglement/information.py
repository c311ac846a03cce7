"""Metrics of mutual information: MIG and modularity; and SAP, which scores each latent for each factor, too.

Codes are cut into 20 bins of equal width, from the smallest to the largest value of each latent, as Locatello et al.
2019 (appendix C) do. The mutual information is that of the counts (plug-in estimate), in nats. Of independent codes and
N examples it is about (bins - 1)(values - 1) / 2N above 0 (Miller 1955).
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaelab.errors import InputError
from vaelab.evaluation.disentanglement.codes import Codes, checked, lead, varying

BINS = 20
_Matrix = NDArray[np.float64]


def _binned(codes: Codes, bins: int) -> NDArray[np.int64]:
    """The bin of each code, [N, D]: 0 ... bins - 1."""
    if bins < 2:
        raise InputError(f"bins={bins}: must be at least 2")
    edges = [np.histogram_bin_edges(column, bins) for column in codes.T]
    places = [np.digitize(column, edge[1:-1]) for column, edge in zip(codes.T, edges, strict=True)]
    return np.stack(places, axis=1).astype(np.int64)


def _counts(binned: NDArray[np.int64], values: NDArray[np.int64], bins: int) -> _Matrix:
    """How often a bin and a value of a factor [N] met, of the values that occur: [D, bins, values]."""
    different, values = np.unique(values, return_inverse=True)
    sizes = (binned.shape[1], bins, len(different))
    place = np.ravel_multi_index((np.arange(sizes[0]), binned, values[:, None]), sizes)
    return np.bincount(place.ravel(), minlength=int(np.prod(sizes))).reshape(sizes).astype(np.float64)


def _entropy(p: _Matrix) -> _Matrix:
    """Entropy along the last axis, in nats."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def mutual_information(codes: ArrayLike, factors: ArrayLike, bins: int = BINS) -> tuple[_Matrix, _Matrix]:
    """I(z_d; v_f) of codes [N, D] in `bins` bins and factors [N, F].

    Returns:
        [D, F] in nats, and the entropy of each factor [F] in nats, which is the most it can be.

    Raises:
        InputError: what these arrays hold are no codes and factors, or fewer than two bins.
    """
    z, v = checked(codes, factors)
    binned = _binned(z, bins)
    columns: list[_Matrix] = []
    entropies: list[_Matrix] = []
    for values in v.T:
        p = _counts(binned, values, bins) / len(z)
        entropies.append(_entropy(p[0].sum(0)))
        columns.append(_entropy(p.sum(2)) + entropies[-1] - _entropy(p.reshape(len(p), -1)))
    return np.stack(columns, axis=1).clip(min=0), np.array(entropies)


def mig(codes: ArrayLike, factors: ArrayLike, bins: int = BINS) -> float:
    """Mutual information gap (Chen et al. 2018, eq. 6), from 0 to 1.

    For each factor, the mutual information with the latent that tells most of it, less that with the second; over the
    factor's entropy; averaged over factors.

    Args:
        codes: [N, D].
        factors: integers [N, F].
        bins: of equal width, for each latent.

    Raises:
        InputError: what these arrays hold are no codes and factors, or fewer than two bins.
    """
    information, entropies = mutual_information(codes, factors, bins)
    return float((lead(information) / entropies).mean())


def modularity(codes: ArrayLike, factors: ArrayLike, bins: int = BINS) -> float:
    """Modularity (Ridgeway & Mozer 2018, eq. 2), from 0 to 1: whether each latent tells of one factor only.

    1 - Σ_f I(z_d; v_f)² / ((F - 1) max_f I²), the sum over all factors but the best; averaged over the latents that
    are not constant. It does not ask whether every factor is told. Of noise it is not 0: the plug-in estimates are then
    in proportion to (values - 1), and it scores what they differ by.

    Args and Raises: as `mig`.
    """
    z, v = checked(codes, factors)
    if not (kept := varying(z)).any():
        return 0.0
    squares = mutual_information(z[:, kept], v, bins)[0] ** 2
    best = squares.max(1)
    others = (squares.sum(1) - best) / np.where(best > 0, best, 1) / (v.shape[1] - 1)
    return float(np.where(best > 0, 1 - others, 0).mean())


def sap(codes: ArrayLike, factors: ArrayLike, unordered: Collection[int] = (), bins: int = BINS) -> float:
    """Separated attribute predictability (Kumar et al. 2018, section 3), from 0 to 1.

    Each latent alone predicts each factor; a factor's score is that of the best latent less that of the second;
    averaged over factors. The predictors:

    - An ordered factor: linear regression. The score is its R², the squared correlation.
    - A factor listed in `unordered`: thresholds on the latent, at the edges of `bins` bins of equal width; each bin
      stands for the value that it holds the largest share of. The score is the accuracy averaged over the values,
      scaled so that chance is 0 and all right is 1 (unscaled, a perfect code for three shapes would score 2/3).
      Thresholds are chosen and scored on the same examples.

    Args:
        codes: [N, D].
        factors: integers [N, F].
        unordered: columns of `factors` whose values have no order.
        bins: for those.

    Raises:
        InputError: what these arrays hold are no codes and factors, `unordered` names a column that is not there, or
            fewer than two bins.
    """
    z, v = checked(codes, factors)
    columns = [int(column) for column in unordered]
    if not set(columns) <= set(range(v.shape[1])):
        raise InputError(f"unordered={columns}: columns of the factors, 0 to {v.shape[1] - 1}")
    correlations = _squared_correlations(z, v.astype(np.float64))
    if columns:
        binned = _binned(z, bins)
        for column in columns:
            correlations[:, column] = _balanced_accuracies(_counts(binned, v[:, column], bins))
    return float(lead(correlations).mean())


def _squared_correlations(z: Codes, v: _Matrix) -> _Matrix:
    z, v = z - z.mean(0), v - v.mean(0)
    below = np.outer((z**2).sum(0), (v**2).sum(0))
    return (z.T @ v) ** 2 / np.where(below > 0, below, np.inf)


def _balanced_accuracies(counts: _Matrix) -> _Matrix:
    """From how often a bin and a value met, [D, bins, C], to scores [D]."""
    shares = counts / counts[0].sum(0)  # of the examples with a value, the share in this bin
    accuracy = shares.max(2).mean(1) * shares.shape[1] / shares.shape[2]
    chance = 1 / shares.shape[2]
    return (accuracy - chance) / (1 - chance)
