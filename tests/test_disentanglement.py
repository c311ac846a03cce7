"""Disentanglement: each metric against another implementation of its paper, and on codes whose score is known."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LinearRegression

import vaelab
from vaelab import cli
from vaelab.errors import InputError
from vaelab.evaluation.disentanglement import (
    beta_vae_score,
    dci,
    disentanglement_of,
    disentanglement_scores,
    factor_vae_score,
    irs,
    mig,
    modularity,
    mutual_information,
    sap,
)
from vaelab.evaluation.disentanglement.importance import _scores
from vaelab.evaluation.disentanglement.summary import METRICS, one_code_a_latent
from vaelab.latents import LatentSpec
from vaelab.runs import Run

pytestmark = pytest.mark.usefixtures("without_reports")

Codes = NDArray[np.float64]
Factors = NDArray[np.int64]


def grid(*sizes: int, times: int = 1) -> Factors:
    """Every combination of factor values, equally often: factors that are exactly independent."""
    return np.array(list(product(*map(range, sizes))) * times)


@pytest.fixture(scope="module")
def mixed() -> tuple[Codes, Factors]:
    """Codes that tell something of three factors, none of them purely, and two that tell nothing."""
    noise = np.random.default_rng(0)
    v = np.stack([noise.integers(0, size, 1200) for size in (3, 4, 6)], axis=1)
    shape, size, place = v.T
    codes = [
        np.array([0.0, 2.0, -1.0])[shape] + 0.4 * noise.normal(size=1200),
        size + 0.5 * place + 0.5 * noise.normal(size=1200),
        np.exp(0.4 * place) + 0.3 * noise.normal(size=1200),
        noise.normal(size=1200),
        np.full(1200, 0.1),
    ]
    return np.stack(codes, axis=1), v


# -- other implementations -----------------------------------------------------------------------------------------


def bins_by_hand(column: Codes, bins: int) -> list[int]:
    low, width = min(column), (max(column) - min(column)) / bins or 1
    return [min(int((value - low) / width), bins - 1) for value in column]


def information_by_counting(a: list[int], b: list[int]) -> float:
    """Σ p(a, b) ln p(a, b) / p(a) p(b), pair by pair."""
    n, left, right = len(a), Counter(a), Counter(b)
    pairs = Counter(zip(a, b, strict=True))
    return sum(c / n * math.log(c * n / (left[i] * right[j])) for (i, j), c in pairs.items())


def informations(z: Codes, v: Factors, bins: int) -> list[list[float]]:
    return [[information_by_counting(bins_by_hand(c, bins), f.tolist()) for f in v.T] for c in z.T]


def mig_by_hand(z: Codes, v: Factors, bins: int) -> float:
    gaps: list[float] = []
    for f, column in enumerate(v.T):
        told = sorted((row[f] for row in informations(z, v, bins)), reverse=True)
        gaps.append((told[0] - told[1]) / information_by_counting(column.tolist(), column.tolist()))
    return sum(gaps) / len(gaps)


def modularity_by_hand(z: Codes, v: Factors, bins: int) -> float:
    """Ridgeway & Mozer's deviation from a template with one factor, latent by latent."""
    scores: list[float] = []
    for row in informations(z, v, bins):
        template = [told if told == max(row) else 0 for told in row]
        squares = sum((told - ideal) ** 2 for told, ideal in zip(row, template, strict=True))
        scores.append(1 - squares / (max(row) ** 2 * (len(row) - 1)))
    return sum(scores) / len(scores)


def sap_by_hand(z: Codes, v: Factors, unordered: tuple[int, ...], bins: int) -> float:
    gaps: list[float] = []
    for f, values in enumerate(v.T):
        scores: list[float] = []
        for column in z.T:
            if f not in unordered:
                scores.append(LinearRegression().fit(column[:, None], values).score(column[:, None], values))
                continue
            at = np.array(bins_by_hand(column, bins))
            right = dict.fromkeys(set(values.tolist()), 0.0)
            for one in set(at.tolist()):  # each bin stands for one value
                shares = {value: ((at == one) & (values == value)).sum() / (values == value).sum() for value in right}
                best = max(shares, key=lambda value: shares[value])
                right[best] += shares[best]
            chance = 1 / len(right)
            scores.append((sum(right.values()) / len(right) - chance) / (1 - chance))
        second, first = sorted(scores)[-2:]
        gaps.append(first - second)
    return sum(gaps) / len(gaps)


def dci_by_hand(z: Codes, v: Factors, tested: NDArray[np.int64], seed: int) -> tuple[float, float, float]:
    """Some examples tested, the others fitted; R transposed, entropies of scipy."""
    fitted = np.array(sorted(set(range(len(z))) - set(tested.tolist())))
    rows: list[Codes] = []
    right: list[float] = []
    for column in v.T:
        model = GradientBoostingClassifier(random_state=seed).fit(z[fitted], column[fitted])
        rows.append(model.feature_importances_)
        right.append(model.score(z[tested], column[tested]))
    importance = np.array(rows) + 1e-12  # [F, D]
    completeness = np.mean([1 - entropy(row, base=z.shape[1]) for row in importance])
    weights = importance.sum(0) / importance.sum()
    each = np.array([1 - entropy(column, base=v.shape[1]) for column in importance.T])
    return float((weights * each).sum()), float(completeness), float(np.mean(right))


def beta_vae_by_hand(z: Codes, v: Factors, points: int, seed: int) -> float:
    """Pair by pair; the linear classifier is fitted by gradient descent."""
    noise = np.random.default_rng(seed)
    x, y = np.empty((2 * points, z.shape[1])), np.empty(2 * points, int)
    members = {(f, a): np.flatnonzero(v[:, f] == a) for f in range(v.shape[1]) for a in set(v[:, f].tolist())}
    for point in range(2 * points):
        y[point] = noise.integers(v.shape[1])
        first = noise.integers(len(z), size=64)
        second = [noise.choice(members[y[point], v[i, y[point]]]) for i in first]
        x[point] = np.abs(z[first] - z[second]).mean(0)
    kept = x.std(0) > 0
    x = np.hstack([(x[:, kept] - x[:points, kept].mean(0)) / x[:points, kept].std(0), np.ones((len(x), 1))])
    w = np.zeros((x.shape[1], v.shape[1]))
    for _ in range(2000):
        p = np.exp(x[:points] @ w)
        p = p / p.sum(1, keepdims=True) - np.eye(v.shape[1])[y[:points]]
        w -= (x[:points].T @ p + np.vstack([w[:-1], 0 * w[-1:]])) / points
    return float(((x[points:] @ w).argmax(1) == y[points:]).mean())


def factor_vae_by_hand(z: Codes, v: Factors, points: int, seed: int) -> float:
    noise = np.random.default_rng(seed)
    z = z[:, np.ptp(z, axis=0) > 0]
    votes: list[tuple[int, int]] = []
    for _ in range(2 * points):
        f = int(noise.integers(v.shape[1]))
        value = noise.choice(np.unique(v[:, f]))
        rows = noise.choice(np.flatnonzero(v[:, f] == value), 64)
        votes.append((int(np.argmin(z[rows].var(0) / z.var(0))), f))
    elected = {d: Counter(f for one, f in votes[:points] if one == d).most_common(1) for d, _ in votes}
    return sum(bool(elected[d]) and elected[d][0][0] == f for d, f in votes[points:]) / points


def irs_by_hand(z: Codes, v: Factors, quantile: float) -> float:
    def stray(column: Codes) -> float:
        far = sorted(abs(value - sum(column) / len(column)) for value in column)
        place = quantile * (len(far) - 1)
        below = math.floor(place)
        return far[below] + (place - below) * (far[min(below + 1, len(far) - 1)] - far[below])

    scores: list[float] = []
    weights: list[float] = []
    for column in z.T:
        if (whole := stray(column)) <= 1e-9:
            continue
        still = [np.mean([stray(column[v[:, f] == a]) for a in set(v[:, f].tolist())]) for f in range(v.shape[1])]
        scores.append(max(0, 1 - min(still) / whole))
        weights.append(whole)
    return float(np.dot(scores, weights) / np.sum(weights))


@pytest.mark.parametrize("bins", [5, 20])
def test_metrics_of_information_agree_with_counting(mixed: tuple[Codes, Factors], bins: int) -> None:
    z, v = mixed
    information, entropies = mutual_information(z, v, bins)
    np.testing.assert_allclose(information, informations(z, v, bins), atol=1e-9)
    np.testing.assert_allclose(entropies, [entropy(np.bincount(column)) for column in v.T], atol=1e-9)
    assert mig(z, v, bins) == pytest.approx(mig_by_hand(z, v, bins), abs=1e-9)
    assert modularity(z, v, bins) == pytest.approx(modularity_by_hand(z[:, :4], v, bins), abs=1e-9)
    assert sap(z, v, bins=bins) == pytest.approx(sap_by_hand(z, v, (), bins), abs=1e-9)
    assert sap(z, v, (0,), bins) == pytest.approx(sap_by_hand(z, v, (0,), bins), abs=1e-9)
    assert sap(z, v, (0,), bins) > sap(z, v, bins=bins) + 0.1  # a regression onto numbers of shapes tells less


def test_numbers_of_values_do_not_matter_to_information(mixed: tuple[Codes, Factors]) -> None:
    z, v = mixed
    other = v * np.array([1, 10**9, 7]) + 5  # as many values, counted with gaps
    assert mig(z, other) == pytest.approx(mig(z, v), abs=1e-12)
    assert sap(z * -3 + 100, other, (0,)) == pytest.approx(sap(z, v, (0,)), abs=1e-9)


def two_factors(number: int) -> tuple[Codes, Factors]:
    noise = np.random.default_rng(6)
    v = np.stack([noise.integers(0, size, number) for size in (2, 3)], axis=1)
    return v @ np.array([[1, 0, 0.5], [0, 1, 0.4]]) + 0.5 * noise.normal(size=(number, 3)), v


def test_dci_agrees_fold_by_fold() -> None:
    z, v = two_factors(240)
    found = dci(z, v, seed=7)
    folds = np.random.default_rng(7).permutation(240).reshape(3, 80)
    scores = np.array([dci_by_hand(z, v, tested, 7) for tested in folds])
    values = (found.disentanglement, found.completeness, found.informativeness)
    assert values == pytest.approx(scores.mean(0), abs=1e-9)
    jackknife = np.sqrt(2 / 3 * ((scores - scores.mean(0)) ** 2).sum(0))
    assert (found.disentanglement_stderr, found.completeness_stderr) == pytest.approx(jackknife[:2], abs=1e-9)
    assert found.informativeness_stderr < math.sqrt(0.25 / 240)  # of 240 examples, two factors averaged
    np.testing.assert_allclose(found.importance.sum(0), 1)
    single = dci(z, v, seed=7, folds=1)
    assert single.completeness == pytest.approx(scores[0, 1], abs=1e-9) and single.completeness_stderr is None


@pytest.mark.slow
def test_dci_agrees_with_another_division() -> None:
    z, v = two_factors(6000)
    found = dci(z, v)
    disentanglement, completeness, informativeness = dci_by_hand(z, v, np.arange(2000), 7)  # as many are fitted
    assert 0.1 < found.disentanglement < 0.9
    assert found.disentanglement == pytest.approx(disentanglement, abs=0.02)
    assert found.completeness == pytest.approx(completeness, abs=0.02)
    assert found.informativeness == pytest.approx(informativeness, abs=4 * math.sqrt(2) * found.informativeness_stderr)


def test_scores_of_importances_are_those_of_the_paper() -> None:
    # H(1/2, 1/2) / ln 2 = 1: the first latent tells of both factors alike, so it is worth nothing; the second of one.
    disentanglement, completeness = _scores(np.array([[0.5, 0.5], [0.0, 0.5], [0.5, 0.0]]))
    assert disentanglement == pytest.approx(0.5)
    assert completeness == pytest.approx(1 - math.log(2) / math.log(3))
    assert _scores(np.eye(3)) == pytest.approx((1, 1))
    assert _scores(np.full((4, 3), 0.25)) == pytest.approx((0, 0))


def test_classifiers_agree_with_drawing_pair_by_pair(mixed: tuple[Codes, Factors]) -> None:
    z, v = mixed
    blurred = z + np.random.default_rng(1).normal(size=z.shape) * np.array([3, 3, 3, 0, 0])
    for score, by_hand in ((beta_vae_score, beta_vae_by_hand), (factor_vae_score, factor_vae_by_hand)):
        here = np.mean([score(blurred, v, points=1000, seed=seed) for seed in range(3)])
        there = by_hand(blurred, v, 1000, 5)
        assert 0.45 < there < 0.95, "neither chance nor certainty, so that a difference would show"
        assert here == pytest.approx(there, abs=4 * math.sqrt(there * (1 - there) * (1 / 1000 + 1 / 3000)))


@pytest.mark.parametrize("quantile", [0.9, 0.99, 1])
def test_irs_agrees_with_sorting(mixed: tuple[Codes, Factors], quantile: float) -> None:
    z, v = mixed
    assert irs(z, v, quantile) == pytest.approx(irs_by_hand(z, v, quantile), abs=1e-9)


# -- codes whose score is known ------------------------------------------------------------------------------------


def everything(z: Codes, v: Factors, unordered: tuple[int, ...] = ()) -> dict[str, float]:
    found = disentanglement_scores(z, v, unordered=unordered, regressor="forest", replicates=0)
    return {name: score.value for name, score in found.scores.items()}


def test_the_factors_themselves_score_one() -> None:
    v = grid(3, 2, 12, times=10)
    z = np.stack([np.array([3.0, -1.0, 0.5])[v[:, 0]], 1e-3 * v[:, 1], 100.0 * v[:, 2], np.zeros(len(v))], axis=1)
    found = everything(z[:, [3, 2, 0, 1]], v, unordered=(0,))
    assert found.keys() == set(METRICS)
    for name, score in found.items():
        assert score == pytest.approx(1, abs=1e-9), name
    pictures_of_many_values = grid(2, 30, times=10)  # variances 1/4 and 75
    assert factor_vae_score(pictures_of_many_values, pictures_of_many_values) == 1


def test_noise_scores_chance() -> None:
    noise = np.random.default_rng(2)
    v = np.stack([noise.integers(0, size, 2000) for size in (3, 4, 5)], axis=1)
    found = everything(noise.normal(size=(2000, 4)), v, unordered=(0,))
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness", "irs"):
        assert found[name] < 0.05, name
    for name in ("beta_vae", "factor_vae"):  # chance is 1/F; the standard error of 2000 points is 0.011
        assert found[name] == pytest.approx(1 / 3, abs=0.045), name
    assert found["dci_informativeness"] == pytest.approx(np.mean([1 / 3, 1 / 4, 1 / 5]), abs=0.04)


def test_rotated_factors_score_what_geometry_says() -> None:
    v = grid(8, 8, times=20)
    a, b = (v - 3.5).T
    for degrees in (0, 15, 30, 40):
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        z = np.stack([cosine * a + sine * b, cosine * b - sine * a], axis=1)
        assert sap(z, v) == pytest.approx(cosine**2 - sine**2, abs=1e-12)  # the two R²
        assert irs(z, v, 1) == pytest.approx(cosine / (cosine + sine), abs=1e-12)  # what stays when one is held still
        if degrees < 40:  # these two ask only which of them is stiller
            assert factor_vae_score(z, v) > 0.99 and beta_vae_score(z, v) > 0.99
    # Halfway neither latent tells more of a factor than the other does. With 15 bins no code lies on an edge.
    z = np.stack([a + b, a - b], axis=1)
    assert mig(z, v, 15) == pytest.approx(0, abs=1e-12)
    assert modularity(z, v, 15) == pytest.approx(0, abs=1e-12)
    assert sap(z, v) == pytest.approx(0, abs=1e-12)
    assert irs(z, v, 1) == pytest.approx(0.5, abs=1e-12)
    assert factor_vae_score(z, v) == pytest.approx(0.5, abs=0.045)
    assert beta_vae_score(z, v) == pytest.approx(0.5, abs=0.045)
    found = dci(z, v, folds=1, regressor="forest")
    assert found.disentanglement < 0.01 and found.completeness < 0.01
    assert found.informativeness > 0.95  # it is all there, only not apart


def odd_codes() -> dict[str, tuple[Codes, Factors]]:
    noise = np.random.default_rng(3)
    v = np.stack([noise.integers(0, size, 120) for size in (2, 3)], axis=1)
    z = v + 0.2 * noise.normal(size=v.shape)
    ulp = np.where(noise.random(120) < 0.5, 1.0, np.nextafter(1.0, 2.0))
    rare = np.stack([np.arange(120) == 0, v[:, 1]], axis=1).astype(np.int64)
    return {
        "one latent": (z[:, :1], v),
        "all constant": (np.full((120, 3), 0.1), v),
        "some constant": (np.hstack([z, np.zeros((120, 2))]), v),
        "constant but for rounding": (np.hstack([z, ulp[:, None]]), v),
        "far from zero": (z + 1e4, v),
        "a value that occurs once": (z, rare),
        "more latents than examples": (noise.normal(size=(40, 50)), v[:40]),
    }


@pytest.mark.parametrize("name", odd_codes())
def test_odd_codes_have_scores(name: str) -> None:
    z, v = odd_codes()[name]
    replicates = 2 if name in ("all constant", "a value that occurs once") else 0
    found = disentanglement_scores(z, v, regressor="forest", replicates=replicates)
    for metric, score in found.scores.items():
        assert 0 <= score.value <= 1 and 0 <= score.chance <= 1, metric
        assert score.stderr is None if not replicates else 0 <= score.stderr < 0.5, metric
    json.dumps(found.to_dict(), allow_nan=False)
    values = {metric: score.value for metric, score in found.scores.items()}
    if name == "all constant":
        nothing = ("mig", "sap", "modularity", "irs", "dci_disentanglement", "dci_completeness")
        assert {values[metric] for metric in nothing} == {0}
        assert values["beta_vae"] == pytest.approx(0.5, abs=0.045) and values["factor_vae"] == 0.5
    if name == "one latent":
        assert values["mig"] == pytest.approx(np.mean(np.divide(*mutual_information(z, v))))  # no second to lead
        assert values["dci_completeness"] == 1 and values["factor_vae"] == pytest.approx(0.5, abs=0.045)
    if name == "constant but for rounding":
        metrics: dict[str, Callable[..., float]] = {
            "modularity": modularity,
            "irs": irs,
            "factor_vae": factor_vae_score,
        }
        for metric, score in metrics.items():
            assert values[metric] == pytest.approx(score(z[:, :2], v), abs=1e-9), metric


# -- all of them at once -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scores_are_repeated_by_seed_and_tell_how(mixed: tuple[Codes, Factors]) -> None:
    z, v = mixed[0][:150], mixed[1][:150]
    how: dict[str, Any] = {"unordered": (0,), "regressor": "forest", "replicates": 2, "names": ["shape", "size", "x"]}
    first, again = (disentanglement_scores(z, v, **how, seed=4) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    other = disentanglement_scores(z, v, **how, seed=5)
    assert first.scores["mig"].value == other.scores["mig"].value
    assert first.scores["mig"].stderr != other.scores["mig"].stderr
    assert first.scores["dci_completeness"].value != other.scores["dci_completeness"].value
    told = first.to_dict()
    assert (told["bins"], told["regressor"], told["seed"], told["factors"]) == (20, "forest", 4, how["names"])
    assert (told["mig_how"], told["dci_completeness_how"]) == ("20 bins", "forest, 3 folds, seed 4")
    assert told["sap_how"] == "R²; unordered: 20 bins" and told["factor_vae_how"] == "majority vote, seed 4"
    assert (told["mig"], told["sap"]) == (mig(z, v), sap(z, v, (0,)))
    assert (told["beta_vae"], told["factor_vae"]) == (beta_vae_score(z, v, seed=4), factor_vae_score(z, v, seed=4))
    assert told["dci_completeness"] == dci(z, v, regressor="forest", seed=4).completeness
    assert (told["modularity"], told["irs"]) == (modularity(z, v), irs(z, v))
    assert told["mig_chance"] < 0.05 < told["mig"]
    assert np.array(told["mutual_information"]) == pytest.approx(np.divide(*mutual_information(z, v)))


def test_latents_that_are_not_active_have_no_part_in_two_metrics(mixed: tuple[Codes, Factors]) -> None:
    v = mixed[1][:300]
    z = np.hstack([mixed[0][:300, 3:4], v * 1e-3, v[:, :1] + mixed[0][:300, 1:2]])
    used = np.array([True, False, True, False, True])
    found = disentanglement_scores(z, v, active=used, regressor="forest", replicates=0)
    whole = disentanglement_scores(z, v, regressor="forest", replicates=0)
    for name, score in (("factor_vae", factor_vae_score), ("modularity", modularity)):
        assert found.scores[name].value == score(z[:, used], v)
        assert found.scores[name].value != whole.scores[name].value
    assert found.scores["mig"].value == whole.scores["mig"].value == mig(z, v)
    assert found.to_dict()["active_units"] == 3 and whole.to_dict()["active_units"] == 5
    still = disentanglement_scores(np.hstack([z, np.full((300, 1), 7.0)]), v, regressor="forest", replicates=0)
    assert still.active.tolist() == [True] * 5 + [False]


def test_the_standard_error_is_the_spread_over_data() -> None:
    def fresh(seed: int) -> tuple[Codes, Factors]:
        noise = np.random.default_rng(seed)
        v = np.stack([noise.integers(0, size, 300) for size in (3, 4)], axis=1)
        return v @ np.array([[1, 0.3, 0], [0.2, 1, 0]]) + 0.6 * noise.normal(size=(300, 3)), v

    metrics: dict[str, Callable[..., float]] = {"mig": mig, "sap": sap, "modularity": modularity, "irs": irs}
    stated = [
        disentanglement_scores(*fresh(seed), regressor="forest", replicates=10, seed=seed).scores for seed in (0, 1)
    ]
    for name, metric in metrics.items():
        spread = np.std([metric(*fresh(seed)) for seed in range(100, 200)], ddof=1)
        mean = np.sqrt(np.mean([one[name].stderr ** 2 for one in stated]))  # of 20 replicates: known to 17 %
        assert 0.5 < mean / spread < 1.7, name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda z, v: (z, v[:, :1]), "one factor"),
        (lambda z, v: (z[:-1], v), r"codes \[11, 2\] and factors \[12, 2\]"),
        (lambda z, v: (z[:, 0], v), r"they must be \[N, D\] and \[N, F\]"),
        (lambda z, v: (np.full_like(z, np.nan), v), "NaN"),
        (lambda z, v: (z.astype(str), v), "codes: <U32 values; give real numbers"),
        (lambda z, v: ([*z[:-1], z[-1, :1]], v), "codes: rows of different lengths"),
        (lambda z, v: (z, v * 1.0), "factors are float64"),
        (lambda z, v: (z, v - 1), "go down to -1"),
        (lambda z, v: (z, v * np.array([1, 0])), "factor 1 has one value"),
    ],
)
def test_what_are_no_codes_and_factors_is_refused(change: Callable[..., Any], complaint: str) -> None:
    v = grid(3, 4)
    for metric in (mig, sap, modularity, irs, beta_vae_score, factor_vae_score, dci, disentanglement_scores):
        with pytest.raises(InputError, match=complaint):
            metric(*change(v.astype(np.float64), v))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda z, v: mig(z, v, 1), "bins=1"),
        (lambda z, v: sap(z, v, (2,)), r"unordered=\[2\]: columns of the factors, 0 to 1"),
        (lambda z, v: sap(z, v, np.array([2])), r"unordered=\[2\]: columns of the factors, 0 to 1"),
        (lambda z, v: irs(z, v, 0), "quantile=0"),
        (lambda z, v: dci(z, v, seed=-1), "seed=-1: must be from 0 to 4294967295"),
        (lambda z, v: beta_vae_score(z, v, seed=2**32), "seed=4294967296"),
        (lambda z, v: factor_vae_score(z, v, seed=-1), "seed=-1"),
        (lambda z, v: disentanglement_scores(z, v, seed=-1), "seed=-1"),
        (lambda z, v: beta_vae_score(z, v, points=19), "points=19: must be at least 10 a factor, 20"),
        (lambda z, v: factor_vae_score(z, v, points=19), "points=19"),
        (lambda z, v: dci(z, v, folds=2), "folds=2"),
        (lambda z, v: dci(z[:8], v[:8]), "8 examples: too few"),
        (lambda z, v: dci(z, v, regressor="Boosting"), "regressor=Boosting: must be boosting or forest"),
        (lambda z, v: disentanglement_scores(z, v, replicates=1), "replicates=1"),
        (lambda z, v: disentanglement_scores(z, v, names=["shape"]), "1 names for 2 factors"),
        (lambda z, v: disentanglement_scores(z, v, active=[True]), r"active is \[1\] for 2 latents"),
    ],
)
def test_wrong_settings_are_refused(call: Callable[..., Any], complaint: str) -> None:
    v = grid(3, 4)
    with pytest.raises(InputError, match=complaint):
        call(v.astype(np.float64), v)


# -- of a run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sprites_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    keys = {"data.binarize": "threshold", "network.hidden": (8,), "model.latent_dim": 3, "training.batch_size": 512}
    keys |= {"data.validation": 0.02, "data.test": 0.9}
    out = tmp_path_factory.mktemp("runs") / "sprites"
    return vaelab.train("vae", data="sprites", epochs=1, overrides=keys, out=out, progress=False)


def test_a_run_is_measured_by_its_posterior_means(
    sprites_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> str:
        arguments = ["disentanglement", str(sprites_run), "--limit", "200", "--regressor", "forest", *words]
        monkeypatch.setattr(sys, "argv", ["vaelab", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0
        return capsys.readouterr().out

    examples = sprites_run.data()["test"].head(200)
    with torch.no_grad():
        z = vaelab.load(sprites_run).encode(examples.batch()).mean.double().numpy()
    assert examples.factors is not None
    v = examples.factors.numpy()
    found = disentanglement_of(sprites_run, limit=200, regressor="forest", replicates=0)
    assert (found.split, found.n, found.factors[:2]) == ("test", 200, ("shape", "color"))
    assert found.scores["mig"].value == pytest.approx(mig_by_hand(z, v, 20), abs=1e-3)
    assert found.scores["sap"].value == pytest.approx(sap_by_hand(z, v, (0, 1), 20), abs=1e-3)
    assert found.active.tolist() == (z.var(0) > 0.01).tolist()
    assert found.to_dict() == json.loads(command("--replicates", "0", "--json"))
    text = command("--replicates", "2")
    assert max(map(len, text.splitlines())) <= 80
    assert f"  mig                 {found.scores['mig'].value:8.3f} ± " in text
    assert [line.split()[0] for line in text.splitlines()[2:11]] == list(METRICS)


def test_data_without_factors_are_refused(digits_run: Run) -> None:
    with pytest.raises(InputError, match="digits: its factors are not known; sprites"):
        disentanglement_of(digits_run)
    with pytest.raises(InputError, match="limit=0"):
        disentanglement_of(digits_run, limit=0)


def test_a_categorical_latent_is_the_number_of_its_category() -> None:
    model: Any = SimpleNamespace(latents=LatentSpec(real=1, categorical=2, categories=3))
    means = torch.tensor([[0.3, 0.1, 0.7, 0.2, 0.5, 0.2, 0.3], [-1, 0.2, 0.2, 0.6, 0.1, 0.8, 0.1]])
    assert one_code_a_latent(means, model).numpy() == pytest.approx(np.array([[0.3, 1, 0], [-1, 2, 1]]))
