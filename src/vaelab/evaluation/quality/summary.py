"""`sample_quality`: how close the samples of a run come to real examples it has not seen."""

import os
from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from vaelab.data import Dataset, Split, prefetch
from vaelab.errors import InputError
from vaelab.evaluation.quality.features import (
    COMPONENTS,
    Features,
    FeatureSpace,
    Labeled,
    classifier,
    principal_components,
    raw,
)
from vaelab.evaluation.quality.frechet import MOST_DIMENSIONS, frechet_bias, frechet_distance
from vaelab.evaluation.quality.mmd import gaussian_mmd, median_width, polynomial_mmd
from vaelab.evaluation.quality.neighbors import expected_coverage, neighbor_scores
from vaelab.evaluation.quality.record import SOURCES, QualityScore, SampleQuality
from vaelab.evaluation.quality.two_sample import TwoSampleTest, two_sample_test
from vaelab.model import Model
from vaelab.noise import generator
from vaelab.runs import Run, load

LIMIT = 2000
LEAST = 20
HALVES = 10
SHARES = ("precision", "recall", "coverage")
FITTED_SHARE = 0.8  # of the training examples, for the feature space; real examples to compare with are the others
FITTED_NUMBERS = 50_000_000  # values of examples that a feature space is fitted on: 200 MB
_AT_ONCE = 500


def sample_quality(
    run: str | os.PathLike[str] | Run,
    *,
    features: Features = "pca",
    components: int = COMPONENTS,
    limit: int = LIMIT,
    split: str = "test",
    draw: bool | None = None,
    seed: int = 0,
) -> SampleQuality:
    """How close the samples of a run come to real examples that it has not seen.

    Four sets of N examples: held-out ones, and against them samples of the model, real ones, and reconstructions.

    - Samples are those of `vaelab.sample` with the same seed. Of a conditional model the labels come as often as in the
      training data.
    - Real examples are from the training split: their values are the floor, what a perfect model would get.
    - Reconstructions are of these real examples, through z ~ q(z|x). What they lose against the floor, the decoder and
      the latents lose; what samples lose beyond, the prior does.

    The feature space is fitted on four fifths of the training split. The real examples are from the rest, so that the
    space knows them as little as the held-out ones. All sets are drawn at random.

    A standard error is the spread of the measure over 10 random halves of both sets (delete-half jackknife). What is a
    mean over examples has that error as a whole. For MMD² near 0 it is up to √3 times too large. 10 halves tell it to
    about a quarter. No share of N examples is told better than to 1/N. The error of the two-sample test is over test
    examples.

    Args:
        run: a run folder.
        features: `raw`, `pca` or `classifier`.
        components: how many principal components, where features are `pca`.
        limit: N, where the data have as many; else as many as they have.
        split: where held-out examples are from, "test" or "validation".
        draw: take draws from p(x|z); False takes its mean. By default draws for binary data, which are 0 and 1 as real
            ones are, and for data that are no pictures; of pictures means, as people look at them.
        seed: of all draws.

    Raises:
        InputError: no such run or split, features that these data do not allow, or fewer than 20 examples of a kind.
    """
    _check(features, components, limit, split)
    run = Run.open(run)
    dataset, model = run.data(), load(run)
    draw = run.spec.kind == "binary" or not run.spec.is_picture if draw is None else draw
    drawn = _draw(dataset, features, limit, split, run.config.data.seed, seed)
    space = _space(features, components, drawn, dataset)
    sets = {"samples": _samples(run, len(drawn.held.x), draw, seed), "real": drawn.real.x}
    sets["reconstructions"] = _reconstructions(model, drawn.real, run.spec.shape, draw, seed)
    for name, x in sets.items():
        if not x.isfinite().all():
            why = run.command("doctor")
            raise InputError(f"{run}: its {name} hold NaN or infinite values; `{why}` tells why")
    held = space.transform(drawn.held.x)
    width = median_width(held)
    mapped = {name: space.transform(sets[name]) for name in SOURCES}
    scores, p_values = _scores(held, mapped, width, seed)
    from vaelab.generation.sampling import prior_words

    return SampleQuality(
        split=split,
        n=len(held),
        shown="draw" if draw else "mean",
        prior=prior_words(model),
        space=space,
        scores=scores,
        p_values=p_values,
        kernel_width=width,
        seed=seed,
        fingerprint=dataset.fingerprint,
    )


def _check(features: str, components: int, limit: int, split: str) -> None:
    if features not in get_args(Features):
        raise InputError(f"features={features}: must be raw, pca or classifier")
    for name, value, least in (("components", components, 1), ("limit", limit, LEAST)):
        if value < least:
            raise InputError(f"{name}={value}: must be at least {least}")
    if split == "train":
        raise InputError("split=train: the model has seen it; compare with validation or test")


# -- the four sets -------------------------------------------------------------------------------------------------


class _Examples(NamedTuple):
    """Values [N, P] float32 and labels [N]; without labels None."""

    x: Tensor
    y: Tensor | None


class _Drawn(NamedTuple):
    """What the feature space is fitted on, real examples, and held-out ones; of the last two N each."""

    fitted: _Examples
    real: _Examples
    held: _Examples


def _draw(dataset: Dataset, features: Features, limit: int, split: str, data_seed: int, seed: int) -> _Drawn:
    if features == "raw" and dataset.spec.dims > MOST_DIMENSIONS:
        raise InputError(
            f"features=raw: {dataset.spec.dims:,} values are too many for a covariance; use pca or classifier"
        )
    if features == "classifier" and dataset.spec.classes is None:
        raise InputError("features=classifier: these data have no labels to train it on; use pca or raw")
    train, held_out = dataset["train"].fixed(data_seed), dataset[split].fixed(data_seed)
    # The same four fifths whatever the seed: so the classifier is the same one, too.
    order = torch.randperm(len(train), generator=generator("quality"))
    fitted, others = order.tensor_split([round(FITTED_SHARE * len(train))])
    noise = generator(seed, "quality")
    others, rows = (ids[torch.randperm(len(ids), generator=noise)] for ids in (others, torch.arange(len(held_out))))
    n = min(limit, len(others), len(rows))
    if n < LEAST:
        raise InputError(
            f"{len(rows)} {split} examples, and {len(others)} training ones to compare with: give at least {LEAST} each"
        )
    fitted = fitted[: max(1, FITTED_NUMBERS // dataset.spec.dims)] if features != "raw" else fitted[:0]
    real, held = _values(train, others[:n]), _values(held_out, rows[:n])
    n = min(len(real.x), len(held.x))  # unusable examples of a stream are left out
    return _Drawn(_values(train, fitted), *(_Examples(x[:n], None if y is None else y[:n]) for x, y in (real, held)))


def _values(examples: Split, rows: Tensor) -> _Examples:
    """What a model sees of the examples at these rows; without unusable ones."""
    parts = rows.split(_AT_ONCE)
    read = [examples.examples(raw, at) for at, raw in zip(parts, prefetch(examples, parts), strict=True)]
    labels = [y for _, y in read if y is not None]
    return _Examples(torch.cat([x.flatten(1).cpu() for x, _ in read]), torch.cat(labels).cpu() if labels else None)


def _space(features: Features, components: int, drawn: _Drawn, dataset: Dataset) -> FeatureSpace:
    if features == "raw":
        return raw(dataset.spec.dims)
    if features == "pca":
        return principal_components(drawn.fitted.x, components)
    assert drawn.fitted.y is not None and drawn.held.y is not None
    return classifier(Labeled(drawn.fitted.x, drawn.fitted.y), Labeled(drawn.held.x, drawn.held.y), dataset.fingerprint)


def _samples(run: Run, n: int, draw: bool, seed: int) -> Tensor:
    from vaelab.generation import sample  # it imports evaluation itself

    return sample(run, n, draw=draw, seed=seed).x.flatten(1)


@torch.no_grad()
def _reconstructions(model: Model, examples: _Examples, shape: tuple[int, ...], draw: bool, seed: int) -> Tensor:
    """What comes back of x [N, P] through z ~ q(z|x), [N, P]."""
    from vaelab.generation.common import show

    noise, made = generator(seed, "quality", "reconstructions"), list[Tensor]()
    for rows in torch.arange(len(examples.x)).split(_AT_ONCE):
        y = None if model.labels is None or examples.y is None else examples.y[rows]
        posterior = model.encode(examples.x[rows].unflatten(1, shape), y=y)
        z, _ = posterior.sample_with_log_prob(1, noise)
        made.append(show(model, z[0], draw, noise, y).flatten(1))
    return torch.cat(made)


# -- the measures --------------------------------------------------------------------------------------------------


def _measures(real: Tensor, other: Tensor, width: float) -> dict[str, float]:
    """All measures but the two-sample test."""
    made = {
        "frechet": frechet_distance(real, other),
        "mmd_polynomial": polynomial_mmd(real, other),
        "mmd_gaussian": gaussian_mmd(real, other, width),
    }
    return made | vars(neighbor_scores(real, other))


def _scores(
    held: Tensor, others: dict[str, Tensor], width: float, seed: int
) -> tuple[dict[str, QualityScore], dict[str, float]]:
    """Every measure of each of the other sets [N, D] against the held-out one, with its error; and p-values."""
    n, noise = len(held), generator(seed, "halves")

    def half() -> Tensor:
        return torch.randperm(n, generator=noise)[: n // 2]

    whole = {source: _measures(held, x, width) for source, x in others.items()}
    halves: list[dict[str, dict[str, float]]] = []
    for _ in range(HALVES):
        part = held[half()]
        halves.append({source: _measures(part, x[half()], width) for source, x in others.items()})
    tests = {source: two_sample_test(held, x, seed=seed) for source, x in others.items()}
    expected: dict[str, float | None] = {"frechet": frechet_bias(held, n, n), "coverage": expected_coverage(n, n)}
    expected |= {"mmd_polynomial": 0.0, "mmd_gaussian": 0.0, "density": 1.0}

    def spread(of: Callable[[dict[str, dict[str, float]]], float]) -> float:
        return float(torch.tensor([of(one) for one in halves], dtype=torch.float64).std())

    def score(name: str) -> QualityScore:
        least = 1 / n if name in SHARES else 0.0  # few halves may all agree
        values = {source: whole[source][name] for source in SOURCES}
        errors = {f"{source}_stderr": max(least, spread(lambda one: one[source][name])) for source in SOURCES}  # noqa: B023
        return QualityScore(
            **values,
            **errors,
            difference=values["samples"] - values["real"],
            difference_stderr=max(least, spread(lambda one: one["samples"][name] - one["real"][name])),
            expected=expected.get(name),
        )

    scores = {name: score(name) for name in whole["real"]}
    values = {source: test.accuracy for source, test in tests.items()}
    errors = {f"{source}_stderr": test.stderr for source, test in tests.items()}
    scores["told_apart"] = QualityScore(
        **values,
        **errors,
        difference=values["samples"] - values["real"],
        difference_stderr=_error_of_difference(tests["samples"], tests["real"]),
        expected=0.5,
    )
    return scores, {source: test.p_value for source, test in tests.items()}


def _error_of_difference(one: TwoSampleTest, other: TwoSampleTest) -> float:
    """Of the difference of two accuracies: half of each is over the same held-out examples, so these are paired."""
    n = one.n // 2
    held, made = ([test.right[part].double() for test in (one, other)] for part in (slice(n), slice(n, None)))
    variance = (held[0] - held[1]).var() + made[0].var() + made[1].var()
    return max(1 / one.n, float((variance / (4 * n)).sqrt()))
