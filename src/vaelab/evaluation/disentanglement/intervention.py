"""Metrics that hold one factor still: BetaVAE, FactorVAE and IRS.

A factor is held still by drawing from those examples that share its value: with replacement, so any data with known
factors will do. Where the factors of the examples are not independent, holding one still moves others, and the scores
mean less.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaelab.errors import InputError
from vaelab.evaluation.disentanglement.codes import Cells, check_seed, checked, varying

POINTS = 2000
EXAMPLES = 64
QUANTILE = 0.99
_AT_ONCE = 1 << 21  # numbers of codes drawn at once
_Matrix = NDArray[np.float64]


def beta_vae_score(codes: ArrayLike, factors: ArrayLike, *, points: int = POINTS, seed: int = 0) -> float:
    """The BetaVAE metric (Higgins et al. 2017, section 3): accuracy, from 1 / F by chance to 1.

    A point: a factor f drawn at random, then 64 pairs of examples that share f's value; the mean over the pairs of
    |z_1 - z_2| [D]. A linear classifier tells f from it: scikit-learn's LogisticRegression as it is (C = 1, lbfgs), of
    the points divided by their standard deviations, fitted on `points` points and tested on as many others.

    Args:
        codes: [N, D].
        factors: integers [N, F].
        points: to fit, and to test.
        seed: of all draws.

    Raises:
        InputError: what these arrays hold are no codes and factors, fewer than 10 points a factor, or a seed
            below 0 or of more than 32 bits.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    z, v = checked(codes, factors)
    _check_points(points, v.shape[1])
    check_seed(seed)
    noise = np.random.default_rng(seed)
    held = noise.integers(v.shape[1], size=2 * points)
    x = np.empty((2 * points, z.shape[1]))
    for factor, at in _by_factor(held, z.shape[1]):
        cells = Cells(v[:, factor])
        first = noise.integers(len(z), size=(len(at), EXAMPLES))
        second = cells.draw(cells.places[first], noise)
        x[at] = np.abs(z[first] - z[second]).mean(1)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(x[:points], held[:points])
    return float(classifier.score(x[points:], held[points:]))


def factor_vae_score(codes: ArrayLike, factors: ArrayLike, *, points: int = POINTS, seed: int = 0) -> float:
    """The FactorVAE metric (Kim & Mnih 2018, section 4): accuracy, from about 1 / F by chance to 1.

    A point: a factor and one of its values, drawn at random, then 64 examples with that value; the latent whose
    variance among them, over its variance among all examples, is least. A majority vote tells the factor from the
    latent: counted on `points` points, tested on as many others. Constant latents have no part.

    Args and Raises: as `beta_vae_score`.
    """
    z, v = checked(codes, factors)
    _check_points(points, v.shape[1])
    check_seed(seed)
    kept = varying(z)
    if not kept.any():
        return 1 / v.shape[1]
    z = z[:, kept] / z[:, kept].std(0)
    noise = np.random.default_rng(seed)
    held = noise.integers(v.shape[1], size=2 * points)
    stillest = np.empty(2 * points, np.int64)
    for factor, at in _by_factor(held, z.shape[1]):
        cells = Cells(v[:, factor])
        value = noise.integers(len(cells), size=(len(at), 1)).repeat(EXAMPLES, axis=1)
        stillest[at] = z[cells.draw(value, noise)].var(1).argmin(1)
    votes = np.zeros((z.shape[1], v.shape[1]))
    np.add.at(votes, (stillest[:points], held[:points]), 1)
    return float((votes.argmax(1)[stillest[points:]] == held[points:]).mean())


def _check_points(points: int, factors: int) -> None:
    if points < 10 * factors:
        raise InputError(f"points={points}: must be at least 10 a factor, {10 * factors}")


def _by_factor(held: NDArray[np.int64], latents: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Each factor with the points at which it is held still, few enough at a time to bound memory."""
    at_once = max(1, _AT_ONCE // (EXAMPLES * latents))
    found: list[tuple[int, NDArray[np.int64]]] = []
    for factor in range(int(held.max()) + 1):
        at = np.flatnonzero(held == factor)
        found += [(factor, at[start : start + at_once]) for start in range(0, len(at), at_once)]
    return found


def irs(codes: ArrayLike, factors: ArrayLike, quantile: float = QUANTILE) -> float:
    """Interventional robustness score (Suter et al. 2019, section 4), from 0 to 1.

    For latent d and factor f: 1 - (how far z_d strays while f is held still) / (how far it strays at all). How far: the
    0.99 quantile of the distance from the mean, in place of the maximum, which one outlier decides; while f is held
    still, averaged over f's values. Each latent scores with its best factor, and counts by how far it strays at all.
    Quantiles of few examples are low, so noise scores a little above 0, and no latent scores less than 0.

    Args:
        codes: [N, D].
        factors: integers [N, F].
        quantile: 1 is the maximum.

    Raises:
        InputError: what these arrays hold are no codes and factors, or no quantile.
    """
    z, v = checked(codes, factors)
    if not 0 < quantile <= 1:
        raise InputError(f"quantile={quantile}: must be above 0 and at most 1")
    at_all = _stray(z, quantile)
    if not (at_all > 0).any():
        return 0.0
    still = np.empty((v.shape[1], z.shape[1]))
    for factor in range(v.shape[1]):
        cells = Cells(v[:, factor])
        still[factor] = np.mean([_stray(z[cells.examples(value)], quantile) for value in range(len(cells))], axis=0)
    scores = (1 - still / np.where(at_all > 0, at_all, 1)).max(0).clip(min=0)
    return float(np.average(scores, weights=at_all))


def _stray(z: _Matrix, quantile: float) -> _Matrix:
    return np.quantile(np.abs(z - z.mean(0)), quantile, axis=0)
