"""What the latents of a model are good for: telling labels, beside as many principal components of the data."""

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vaelab.data import Split, prefetch
from vaelab.errors import InputError
from vaelab.evaluation.latents import latents
from vaelab.evaluation.real_numbers import real
from vaelab.runs import Run, load

LIMIT = 10_000
C = 1.0
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeAccuracy:
    """Share of the test examples whose label is told right, by a probe on the latents and by the same one on PCA.

    Attributes:
        latents, pca: the shares, with standard errors over the test examples.
        difference: latents - pca. Both are tested on the same examples, so its error is of the paired differences, and
            smaller than those of the two would suggest.
    """

    latents: float
    latents_stderr: float
    pca: float
    pca_stderr: float
    difference: float
    difference_stderr: float


@dataclass(frozen=True)
class Downstream:
    """What `downstream` measures.

    Attributes:
        train, test: how many examples.
        classes: how many labels there are among them.
        latents: numbers of z.
        pca: principal components: as many, or fewer where the data do not have that many.
        linear: of logistic regression on standardized features.
        neighbor: of the label of the nearest training example (Euclidean).
        chance: share of the most frequent training label among the test examples: what a constant answer gets.
        C: inverse strength of the penalty ½ |w|² / C of logistic regression, beside summed log-losses.
        split: what was tested, where it is a run's.
    """

    train: int
    test: int
    classes: int
    latents: int
    pca: int
    linear: ProbeAccuracy
    neighbor: ProbeAccuracy
    chance: float
    C: float
    split: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of `vaelab downstream --json`, flat: `linear_latents`, `linear_latents_stderr`, ..."""
        made = asdict(self)
        for name in ("linear", "neighbor"):
            made |= {f"{name}_{key}": value for key, value in made.pop(name).items()}
        return made

    def __str__(self) -> str:
        where = f"{self.split}: " if self.split else ""
        lines = [
            f"{where}{self.test} examples, {self.classes} labels; fitted on {self.train} training examples",
            f"accuracy{'':14}{f'{self.latents} latents':<18}{f'PCA, {self.pca}':<18}difference",
        ]
        for name, one in (("logistic regression", self.linear), ("nearest neighbor", self.neighbor)):
            cells = (
                f"{one.latents:.3f} ± {one.latents_stderr:.3f}",
                f"{one.pca:.3f} ± {one.pca_stderr:.3f}",
                f"{one.difference:+.3f} ± {one.difference_stderr:.3f}",
            )
            lines.append(f"  {name:<20}" + "".join(f"{cell:<18}" for cell in cells).rstrip())
        return "\n".join([*lines, f"  {'constant answer':<20}{self.chance:.3f}"])


@dataclass(frozen=True, eq=False)
class Labeled:
    """Examples in three ways: codes [N, D], the data themselves [N, P], labels [N]."""

    codes: ArrayLike
    data: ArrayLike
    labels: ArrayLike


def downstream(train: Labeled, test: Labeled, *, c: float = C) -> Downstream:
    """How well labels are told from codes, and from as many principal components of the data.

    Everything is fitted on `train` and tested on `test`. PCA is that of the training data, centered and not scaled.
    Two probes:

    - Logistic regression (scikit-learn's, solver lbfgs, at most 1,000 steps), each feature brought to mean 0 and
      standard deviation 1 on the training examples.
    - The label of the nearest training example by Euclidean distance, features as they are.

    Args:
        train, test: codes [N, D], data [N, P] and integer labels [N].
        c: scikit-learn's C.

    Raises:
        InputError: one label only, arrays that do not fit, or codes that are not finite.
    """
    from sklearn.decomposition import PCA

    (z, x, y), (z_test, x_test, y_test) = _checked(train, "train"), _checked(test, "test")
    if len(np.unique(y)) < 2:
        raise InputError("the training examples have one label; there is nothing to tell")
    components = min(z.shape[1], x.shape[1], len(x) - 1)
    pca: Any = PCA(components, svd_solver="covariance_eigh" if x.shape[1] <= len(x) else "full").fit(x)
    features = {"latents": (z, z_test), "pca": (pca.transform(x), pca.transform(x_test))}
    linear = {name: _linear(a, y, b, c) == y_test for name, (a, b) in features.items()}
    nearest = {name: _nearest(a, y, b) == y_test for name, (a, b) in features.items()}
    values, counts = np.unique(y, return_counts=True)
    return Downstream(
        train=len(z),
        test=len(z_test),
        classes=len(np.union1d(y, y_test)),
        latents=z.shape[1],
        pca=components,
        linear=_accuracy(linear["latents"], linear["pca"]),
        neighbor=_accuracy(nearest["latents"], nearest["pca"]),
        chance=float((y_test == values[counts.argmax()]).mean()),
        C=c,
    )


def _checked(part: Labeled, name: str) -> tuple[_Array, _Array, NDArray[np.int64]]:
    z, x = real(part.codes, f"{name}: codes"), real(part.data, f"{name}: data")
    y = np.asarray(part.labels)
    if y.dtype.kind not in "biu":
        raise InputError(f"{name}: labels are {y.dtype}; number them 0, 1, ...")
    if z.ndim != 2 or x.ndim != 2 or y.ndim != 1 or not len(z) == len(x) == len(y) > 1:
        shapes = f"codes {list(z.shape)}, data {list(x.shape)}, labels {list(y.shape)}"
        raise InputError(f"{name}: {shapes}; they must be [N, D], [N, P] and [N], N at least 2")
    if not (np.isfinite(z).all() and np.isfinite(x).all()):
        raise InputError(f"{name}: codes or data hold NaN or infinite values; leave those examples out")
    return z, x, y.astype(np.int64)


def _linear(x: _Array, y: NDArray[np.int64], x_test: _Array, c: float) -> NDArray[np.int64]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(x, y).predict(x_test)


def _nearest(x: _Array, y: NDArray[np.int64], x_test: _Array) -> NDArray[np.int64]:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(1).fit(x, y).predict(x_test)


def _accuracy(latents: NDArray[np.bool_], pca: NDArray[np.bool_]) -> ProbeAccuracy:
    difference = latents.astype(np.float64) - pca
    means = [float(right.mean()) for right in (latents, pca, difference)]
    errors = [float(right.std(ddof=1) / math.sqrt(len(right))) for right in (latents, pca, difference)]
    return ProbeAccuracy(means[0], errors[0], means[1], errors[1], means[2], errors[2])


def downstream_of(
    run: str | os.PathLike[str] | Run, *, split: str = "test", limit: int = LIMIT, c: float = C
) -> Downstream:
    """How well labels are told from the latents (posterior means) of a run, beside PCA with as many dimensions.

    Args:
        run: a run folder.
        split: what to test on: "test" or "validation". Probes and PCA are fitted on "train".
        limit: at most so many training examples, the first ones, and as many to test.
        c: scikit-learn's C of logistic regression.

    Raises:
        InputError: data without labels, a conditional model (its encoder is told the label), or no such run or split.
    """
    if limit < 2:
        raise InputError(f"limit={limit}: must be at least 2")
    if not (math.isfinite(c) and c > 0):
        raise InputError(f"C={c}: must be a number above 0")
    if split == "train":
        raise InputError("split=train: the probes are fitted on it; test on validation or test")
    run = Run.open(run)
    dataset = run.data()
    if dataset["train"].labels is None:
        raise InputError(f"{run.config.data.source}: has no labels, so there is nothing to tell from the latents")
    model = load(run)
    if model.labels is not None:
        raise InputError(f"{run}: its encoder is told the label, so what tells labels from its latents proves nothing")

    def labeled(name: str) -> Labeled:
        examples = dataset[name].fixed(run.config.data.seed).head(limit).usable()
        assert examples.labels is not None
        return Labeled(latents(model, examples)[0], _values(examples), examples.labels)

    found = downstream(labeled("train"), labeled(split), c=c)
    return replace(found, split=split)


def _values(examples: Split) -> torch.Tensor:
    """What a model sees of the examples, [N, P]."""
    rows = torch.arange(len(examples)).split(1000)
    return torch.cat([examples.convert(raw).flatten(1).cpu() for raw in prefetch(examples, rows)])
