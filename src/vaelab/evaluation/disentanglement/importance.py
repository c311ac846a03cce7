"""DCI: what a regressor from all latents to each factor makes of the latents (Eastwood & Williams 2018)."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaelab.errors import InputError
from vaelab.evaluation.disentanglement.codes import Codes, check_seed, checked
from vaelab.parallel import in_order

Regressor = Literal["boosting", "forest"]
FOLDS = 3
_FOREST: dict[str, Any] = {"n_estimators": 100, "max_features": None, "min_samples_leaf": 5}
_Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DCI:
    """The three scores, each from 0 to 1, and what they come from.

    Attributes:
        disentanglement: whether each latent tells of one factor only.
        completeness: whether each factor is told by one latent only.
        informativeness: how well the factors are predicted: accuracy on examples that were not fitted, averaged over
            factors. (The paper reports an error; this is higher where more is told.)
        importance: [D, F], of latent d for predicting factor f; each column adds up to 1, or to less where a
            factor, or all latents, do not vary in a fold.
        informativeness_stderr: over the examples that were tested.
        disentanglement_stderr, completeness_stderr: delete-a-group jackknife over the folds; None for one fold. With
            three folds that has two degrees of freedom: a rough figure.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: _Matrix
    informativeness_stderr: float
    disentanglement_stderr: float | None
    completeness_stderr: float | None


def dci(
    codes: ArrayLike, factors: ArrayLike, *, regressor: Regressor = "boosting", folds: int = FOLDS, seed: int = 0
) -> DCI:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018, section 2).

    With R [D, F] the importances: disentanglement is Σ_d ρ_d (1 - H(R_d / Σ_f R_df) / ln F) with ρ_d latent d's share
    of all R; completeness is the mean over factors of 1 - H(R_f / Σ_d R_df) / ln D; H is the entropy. A single latent
    is complete by this definition: 1.

    The examples are divided at random into folds. For each fold the regressor is fitted on the others and tested on it;
    the scores are means over the folds. With `folds=1`, two thirds are fitted and one third tested. The more examples
    are fitted, the less noise counts as importance: compare scores of as many examples.

    Args:
        codes: [N, D].
        factors: integers [N, F].
        regressor: `boosting`: scikit-learn's GradientBoostingClassifier as it is (100 trees a value, depth 3), with
            which Locatello et al. 2019 compare models. `forest`: RandomForestClassifier, 100 trees that see every
            latent at every split, a leaf holding 5 examples or more. Importances are their `feature_importances_`.
        folds: 1, or 3 or more.
        seed: of the division and the regressors.

    Raises:
        InputError: what these arrays hold are no codes and factors, fewer examples than 3 a fold, two folds,
            another regressor, or a seed below 0 or of more than 32 bits.
    """
    z, v = checked(codes, factors)
    check_seed(seed)
    if regressor not in get_args(Regressor):
        raise InputError(f"regressor={regressor}: must be {' or '.join(get_args(Regressor))}")
    if folds < 1 or folds == 2:
        raise InputError(f"folds={folds}: must be 1, or 3 or more")
    if len(z) < 3 * max(folds, 3):
        raise InputError(f"{len(z)} examples: too few to divide into {max(folds, 3)} folds; take more")
    order = np.random.default_rng(seed).permutation(len(z))
    parts = np.array_split(order, max(folds, 3))[:folds]
    jobs = [(part, factor) for part in parts for factor in range(v.shape[1])]

    def fit(job: tuple[NDArray[np.int64], int]) -> tuple[_Matrix, NDArray[np.bool_]]:
        held_out, factor = job
        return _fit(z, v[:, factor], held_out, regressor, seed)

    found = list(in_order(fit, jobs))
    by_fold = [found[start : start + v.shape[1]] for start in range(0, len(found), v.shape[1])]
    importances = [np.stack([importance for importance, _ in fold], axis=1) for fold in by_fold]
    right = np.concatenate([np.mean([right for _, right in fold], axis=0) for fold in by_fold])
    scores = np.array([_scores(importance) for importance in importances])
    spread = np.sqrt((folds - 1) * scores.var(axis=0))
    return DCI(
        disentanglement=float(scores[:, 0].mean()),
        completeness=float(scores[:, 1].mean()),
        informativeness=float(right.mean()),
        importance=np.mean(importances, axis=0),
        informativeness_stderr=float(right.std(ddof=1) / np.sqrt(len(right))),
        disentanglement_stderr=float(spread[0]) if folds > 1 else None,
        completeness_stderr=float(spread[1]) if folds > 1 else None,
    )


def _fit(
    z: Codes, v: NDArray[np.int64], held_out: NDArray[np.int64], regressor: Regressor, seed: int
) -> tuple[_Matrix, NDArray[np.bool_]]:
    """Importances [D] for one factor [N], and which of the examples held out it gets right."""
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

    fitted = np.setdiff1d(np.arange(len(z)), held_out)
    if (v[fitted] == v[fitted[0]]).all():
        return np.zeros(z.shape[1]), v[held_out] == v[fitted[0]]
    model: Any = (
        GradientBoostingClassifier(random_state=seed)
        if regressor == "boosting"
        else RandomForestClassifier(**_FOREST, random_state=seed)
    )
    model.fit(z[fitted], v[fitted])
    return model.feature_importances_, model.predict(z[held_out]) == v[held_out]


def _scores(importance: _Matrix) -> tuple[float, float]:
    """Disentanglement and completeness of importances [D, F]."""
    rows, columns = importance.sum(1), importance.sum(0)
    total = importance.sum()
    by_latent = 1 - _relative_entropy(importance / np.where(rows > 0, rows, 1)[:, None])
    by_factor = 1 - _relative_entropy((importance / np.where(columns > 0, columns, 1)).T)
    disentanglement = float((rows * by_latent).sum() / total) if total > 0 else 0.0
    return disentanglement, float(np.where(columns > 0, by_factor, 0).mean())


def _relative_entropy(p: _Matrix) -> _Matrix:
    """Entropy of each row over that of an even one, from 0 to 1."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(1) / np.log(max(2, p.shape[1]))
