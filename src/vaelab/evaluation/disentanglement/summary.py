"""All metrics of disentanglement at once: each number with its error, and with what codes that know nothing get."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vaelab.errors import InputError
from vaelab.evaluation.disentanglement.codes import Codes, Factors, check_seed, checked
from vaelab.evaluation.disentanglement.importance import FOLDS, Regressor, dci
from vaelab.evaluation.disentanglement.information import BINS, mig, modularity, mutual_information, sap
from vaelab.evaluation.disentanglement.intervention import QUANTILE, beta_vae_score, factor_vae_score, irs
from vaelab.evaluation.latents import active, latents
from vaelab.model import Model
from vaelab.noise import seed_of
from vaelab.quantized import Quantized
from vaelab.runs import Run, load

REPLICATES = 20
LIMIT = 2000
METRICS = (
    "mig",
    "dci_disentanglement",
    "dci_completeness",
    "dci_informativeness",
    "sap",
    "beta_vae",
    "factor_vae",
    "modularity",
    "irs",
)
_Measure = Callable[[Codes, Factors, int], float]
_SHOWN = 12  # latents in the table of a terminal


@dataclass(frozen=True)
class DisentanglementScore:
    """A metric's value.

    Attributes:
        value: from 0 to 1; higher is more disentangled.
        stderr: its standard error; None where it was not asked for.
        chance: the value for the same codes, shuffled among the examples: they know nothing then.
        how: its regressor, bins and seed, as far as it has them.
    """

    value: float
    stderr: float | None
    chance: float
    how: str


@dataclass(frozen=True, eq=False)
class Disentanglement:
    """What `disentanglement_scores` measures.

    Attributes:
        n: examples.
        factors: their names.
        scores: by name, those of `METRICS`.
        mutual_information: [D, F], over the factor's entropy: how much of factor f latent d tells, from 0 to 1.
        importance: [D, F], the importances of DCI.
        active: [D], the latents that FactorVAE and modularity look at.
        bins, regressor, seed: of the metrics.
        split: of the run, where there is one.
    """

    n: int
    factors: tuple[str, ...]
    scores: dict[str, DisentanglementScore]
    mutual_information: NDArray[np.float64]
    importance: NDArray[np.float64]
    active: NDArray[np.bool_]
    bins: int
    regressor: Regressor
    seed: int
    split: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of `vaelab disentanglement --json`."""
        made: dict[str, Any] = {"split": self.split, "n": self.n, "factors": list(self.factors)}
        made |= {"latents": len(self.active), "active_units": int(self.active.sum())}
        for name, score in self.scores.items():
            made |= {name: score.value, f"{name}_stderr": score.stderr, f"{name}_chance": score.chance}
            made[f"{name}_how"] = score.how
        made |= {"bins": self.bins, "regressor": self.regressor, "seed": self.seed}
        made["mutual_information"] = self.mutual_information.tolist()
        return made | {"importance": self.importance.tolist()}

    def __str__(self) -> str:
        where = f"{self.split}: " if self.split else ""
        lines = [
            f"{where}{self.n} examples, {len(self.factors)} factors, {len(self.active)} latents, "
            f"{self.active.sum()} of them active",
            f"  {'':<20}{'score':>8}{'':10}{'chance':>8}",
        ]
        for name, score in self.scores.items():
            error = "" if score.stderr is None else f" ± {score.stderr:.3f}"
            lines.append(f"  {name:<20}{score.value:8.3f}{error:<10}{score.chance:8.3f}  {score.how}")
        lines.append("share of a factor that a latent tells (mutual information / entropy)")
        lines.append(f"{'':6}" + "".join(f"{name:>12}" for name in self.factors))
        most = np.argsort(-self.mutual_information.max(1), kind="stable")[:_SHOWN]
        for latent in np.sort(most):
            shares = "".join(f"{share:12.3f}" for share in self.mutual_information[latent])
            lines.append(f"  z{latent:<3}{shares}")
        if len(most) < len(self.importance):
            lines.append(f"  (the {len(most)} latents of {len(self.importance)} that tell most of a factor)")
        return "\n".join(lines)


def disentanglement_scores(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    unordered: Sequence[int] = (),
    active: ArrayLike | None = None,
    bins: int = BINS,
    regressor: Regressor = "boosting",
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Disentanglement:
    """Every metric of how codes relate to known factors.

    Standard errors are the spread over `replicates` bootstrap samples of the examples, for BetaVAE and FactorVAE with
    other draws each; those of DCI are by its folds (`dci`), for a fit takes long. Its chance is that of one fold.

    Args:
        codes: [N, D], one number for each latent: posterior means, say.
        factors: integers [N, F], at least two factors, each with at least two values.
        names: of the factors.
        unordered: columns of `factors` whose values have no order, for SAP.
        active: [D], the latents that the encoder uses. FactorVAE leaves out the others, as Kim & Mnih do: which factor
            their noise follows says nothing. So does modularity. Default: those that vary at all.
        bins: for MIG, modularity and SAP.
        regressor: of DCI.
        replicates: for standard errors, 2 or more; 0 leaves them out, those of DCI too.
        seed: of all draws.

    Raises:
        InputError: what these arrays hold are no codes and factors, one replicate, or a seed below 0 or of
            more than 32 bits.
    """
    z, v = checked(codes, factors)
    check_seed(seed)
    used = np.ptp(z, axis=0) > 0 if active is None else np.asarray(active, np.bool_)
    if used.shape != z.shape[1:]:
        raise InputError(f"active is {list(used.shape)} for {z.shape[1]} latents; give one value each")
    if replicates < 0 or replicates == 1:
        raise InputError(f"replicates={replicates}: must be 0, or at least 2 to tell a spread")
    if names is not None and len(names) != v.shape[1]:
        raise InputError(f"{len(names)} names for {v.shape[1]} factors; give one each")
    unordered = [int(column) for column in unordered]
    measures: dict[str, _Measure] = {
        "mig": lambda z, v, _: mig(z, v, bins),
        "sap": lambda z, v, _: sap(z, v, unordered, bins),
        "beta_vae": lambda z, v, seed: beta_vae_score(z, v, seed=seed),
        "factor_vae": lambda z, v, seed: factor_vae_score(z * used, v, seed=seed),
        "modularity": lambda z, v, _: modularity(z * used, v, bins),
        "irs": lambda z, v, _: irs(z, v),
    }
    noise = np.random.default_rng(seed_of(seed, "disentanglement"))
    shuffled = z[noise.permutation(len(z))]
    samples = [_resampled(v, noise) for _ in range(replicates)]
    folds = FOLDS if replicates else 1
    how = _how(bins, regressor, folds, seed, unordered)
    scores = {name: _score(measure, z, v, shuffled, samples, seed, how[name]) for name, measure in measures.items()}
    fitted = dci(z, v, regressor=regressor, folds=folds, seed=seed)
    chance = dci(shuffled, v, regressor=regressor, folds=1, seed=seed)
    for name in ("disentanglement", "completeness", "informativeness"):
        error = getattr(fitted, f"{name}_stderr") if replicates else None
        scores[f"dci_{name}"] = DisentanglementScore(getattr(fitted, name), error, getattr(chance, name), how["dci"])
    information, entropies = mutual_information(z, v, bins)
    return Disentanglement(
        n=len(z),
        factors=tuple(names or (f"factor {number}" for number in range(v.shape[1]))),
        scores={name: scores[name] for name in METRICS},
        mutual_information=information / entropies,
        importance=fitted.importance,
        active=used,
        bins=bins,
        regressor=regressor,
        seed=seed,
    )


def _score(
    measure: _Measure, z: Codes, v: Factors, shuffled: Codes, samples: list[NDArray[np.int64]], seed: int, how: str
) -> DisentanglementScore:
    """One metric, on all examples, on bootstrap samples of them with other draws each, and on shuffled codes."""
    again = [measure(z[rows], v[rows], seed + number) for number, rows in enumerate(samples, 1)]
    error = float(np.std(again, ddof=1)) if again else None
    return DisentanglementScore(measure(z, v, seed), error, measure(shuffled, v, seed), how)


def _how(bins: int, regressor: Regressor, folds: int, seed: int, unordered: Sequence[int]) -> dict[str, str]:
    """How each metric is computed, in a few words."""
    return {
        "mig": f"{bins} bins",
        "dci": f"{regressor}, {folds} fold{'s' * (folds > 1)}, seed {seed}",
        "sap": f"R²; unordered: {bins} bins" if unordered else "R²",
        "beta_vae": f"logistic regression, seed {seed}",
        "factor_vae": f"majority vote, seed {seed}",
        "modularity": f"{bins} bins",
        "irs": f"quantile {QUANTILE}",
    }


def _resampled(v: Factors, noise: np.random.Generator) -> NDArray[np.int64]:
    """A bootstrap sample of the examples, in which every factor still varies."""
    while True:
        rows = noise.integers(len(v), size=len(v))
        if (v[rows].min(0) < v[rows].max(0)).all():
            return rows


def disentanglement_of(
    run: str | os.PathLike[str] | Run,
    *,
    split: str = "test",
    limit: int = LIMIT,
    regressor: Regressor = "boosting",
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Disentanglement:
    """How the latents of a run relate to the known factors of its data (`sprites`, `dsprites`, `3dshapes`).

    Codes are posterior means; of a categorical latent, the number of its most probable category. Active are those of
    `vaelab.evaluation.active`; all of them where the latents have no scale of their own (autoencoders, quantized
    models).

    Args:
        run: a run folder.
        split: "test", "validation" or "train".
        limit: only the first so many examples. Time grows with them.
        regressor, replicates, seed: as `disentanglement_scores`.

    Raises:
        InputError: the run's data have no known factors, or there is no such run or split.
    """
    if limit < 1:
        raise InputError(f"limit={limit}: must be at least 1")
    run = Run.open(run)
    dataset = run.data()
    examples = dataset[split].fixed(run.config.data.seed).head(limit)
    if examples.factors is None or dataset.factor_specs is None:
        source = run.config.data.source
        raise InputError(f"{source}: its factors are not known; sprites, dsprites and 3dshapes have factors")
    model = load(run)
    means, _ = latents(model, examples)
    scaled = model.has_density and not isinstance(model, Quantized)
    found = disentanglement_scores(
        one_code_a_latent(means, model),
        examples.factors,
        names=[factor.name for factor in dataset.factor_specs],
        unordered=[number for number, factor in enumerate(dataset.factor_specs) if not factor.ordered],
        active=active(means, model.latents) if scaled else None,
        regressor=regressor,
        replicates=replicates,
        seed=seed,
    )
    return replace(found, split=split)


def one_code_a_latent(means: Tensor, model: Model) -> Tensor:
    """Posterior means [N, width] as codes [N, D] float64, a column for each latent of a categorical block.

    Real latents stay as they are, and so do the numbers of a quantized model's codes. A categorical latent becomes the
    number of its most probable category.
    """
    if isinstance(model, Quantized):
        return means.double()
    blocks = means.double().split(model.latents.widths, dim=1)
    return torch.cat([one if one.shape[1] == 1 else one.argmax(1, keepdim=True).double() for one in blocks], dim=1)
