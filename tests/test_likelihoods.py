"""Likelihoods are normalized, agree with independent formulae, and sample what they say (oracle 5)."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.likelihoods import (
    Bernoulli,
    BernoulliLikelihood,
    DiscretizedLogistic,
    DiscretizedLogisticLikelihood,
    Gaussian,
    GaussianLikelihood,
    Likelihood,
)


def levels_of(number: int) -> Tensor:
    """Every level on the model's scale, [L, 1]."""
    return torch.arange(number, dtype=torch.float64)[:, None] / (number - 1)


@given(
    loc=st.floats(-0.5, 1.5),
    log10_scale=st.floats(-4, 2),
    number=st.sampled_from([2, 3, 17, 256]),
)
def test_discretized_logistic_sums_to_one(loc: float, log10_scale: float, number: int) -> None:
    distribution = DiscretizedLogistic(
        torch.tensor([loc], dtype=torch.float64),
        torch.tensor([10**log10_scale], dtype=torch.float64),
        number,
        event_ndim=1,
    )
    log_prob = distribution.log_prob(levels_of(number))
    assert torch.all(log_prob <= 0)
    assert log_prob.logsumexp(0).item() == pytest.approx(0, abs=1e-9)


@given(loc=st.floats(-0.5, 1.5), log10_scale=st.floats(-1.5, 1))
def test_discretized_logistic_is_a_difference_of_cdfs(loc: float, log10_scale: float) -> None:
    number, scale = 17, 10**log10_scale
    edges = np.concatenate([[-np.inf], (np.arange(1, number) - 0.5) / (number - 1), [np.inf]])
    exact = np.diff(scipy.stats.logistic.cdf(edges, loc, scale))
    found = DiscretizedLogistic(
        torch.tensor([loc], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64), number, event_ndim=1
    )
    assert found.log_prob(levels_of(number)).exp().numpy() == pytest.approx(exact, abs=1e-12)
    expected_mean = (exact * np.arange(number)).sum() / (number - 1)
    assert found.mean.item() == pytest.approx(expected_mean, abs=1e-9)


def test_level_254_is_not_an_edge() -> None:
    """An edge threshold such as x > 0.999 on a coarser scale gives level 254 the whole upper tail (mass 1.55)."""
    distribution = DiscretizedLogistic(torch.tensor([0.996]), torch.tensor([0.004]), 256, event_ndim=1)
    bright = levels_of(256)[254].float()
    exact = scipy.stats.logistic.cdf(254.5 / 255, 0.996, 0.004) - scipy.stats.logistic.cdf(253.5 / 255, 0.996, 0.004)
    assert distribution.log_prob(bright).exp().item() == pytest.approx(exact, rel=1e-3)


@given(loc=st.floats(-3, 4), log10_scale=st.floats(-3, 2), level=st.integers(0, 255))
def test_discretized_logistic_has_finite_gradients_in_float32(loc: float, log10_scale: float, level: int) -> None:
    where = torch.tensor([loc], requires_grad=True)
    scale = torch.tensor([10**log10_scale], requires_grad=True)
    DiscretizedLogistic(where, scale, 256, event_ndim=1).log_prob(torch.tensor([level / 255])).sum().backward()
    assert where.grad is not None and where.grad.isfinite().all()
    assert scale.grad is not None and scale.grad.isfinite().all()


@given(logit=st.floats(-30, 30))
def test_bernoulli_agrees_with_scipy_and_sums_to_one(logit: float) -> None:
    distribution = Bernoulli(torch.tensor([logit], dtype=torch.float64), event_ndim=1)
    log_prob = distribution.log_prob(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert log_prob.numpy() == pytest.approx(np.array([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)]), abs=1e-12)
    assert log_prob.logsumexp(0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [1, 61, 64, 67, 784])
def test_bernoulli_in_float32_is_near_float64_with_and_without_gradients(size: int) -> None:
    """Each row has one kind of logits; no row's underflow, infinity or NaN reaches another.

    All −0.5 to −5: a product of 64 probabilities is e⁻⁶² to e⁻³²⁰, and float32 loses digits below e⁻⁸⁷.
    """
    noise = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    signs = torch.where(noise[0] > 0, 1.0, -1.0)
    same = torch.linspace(-5, -0.5, 46)[:, None].expand(-1, size)
    beyond = torch.tensor([math.inf, -math.inf, math.nan])[:, None].expand(-1, size)
    logits = torch.cat([noise, 4 * noise, 20 * noise, torch.stack([100 * signs, 1e4 * signs]), -same, same, beyond])
    for x in (torch.ones(size), (noise[1] > 0).float(), torch.full((size,), 0.3)):  # 0.3: weighs the logit, as ever
        signed = ((2 * x.double() - 1) * logits.double()).numpy()
        exact = (np.minimum(signed, 0) - np.log1p(np.exp(-np.abs(signed)))).sum(-1)
        for wanted in (False, True):
            found = Bernoulli(logits.clone().requires_grad_(wanted), event_ndim=1).log_prob(x).detach()
            assert found.numpy() == pytest.approx(exact, rel=1e-6, abs=1.1e-7 * size, nan_ok=True)


def test_bernoulli_scores_a_single_example_without_a_batch_axis() -> None:
    logits = torch.tensor([[-200.0, 3.0], [1.0, 2.0]])
    exact = -np.logaddexp(0, -logits.double().numpy()).sum()
    assert Bernoulli(logits, event_ndim=2).log_prob(torch.ones(2, 2)).item() == pytest.approx(exact, rel=1e-6)


@given(loc=st.floats(-5, 5), scale=st.floats(0.05, 20), x=st.floats(-50, 50))
def test_gaussian_agrees_with_scipy(loc: float, scale: float, x: float) -> None:
    distribution = Gaussian(
        torch.tensor([loc], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64), event_ndim=1
    )
    found = distribution.log_prob(torch.tensor([x], dtype=torch.float64)).item()
    assert found == pytest.approx(scipy.stats.norm.logpdf(x, loc, scale), rel=1e-9, abs=1e-9)


def test_event_dimensions_are_summed_and_batch_dimensions_kept() -> None:
    """Three samples, two examples, 4 × 5 pixels: an average over pixels would be 20 times smaller."""
    x = torch.rand(2, 1, 4, 5).double()
    loc = torch.rand(3, 2, 1, 4, 5).double()
    found = Gaussian(loc, torch.tensor(0.5).double(), event_ndim=3).log_prob(x)
    exact = scipy.stats.norm.logpdf(x.numpy()[None], loc.numpy(), 0.5).sum(axis=(2, 3, 4))
    assert found.numpy() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda n: Bernoulli(torch.full((n, 1), 0.7), 1), 2),
        (lambda n: DiscretizedLogistic(torch.full((n, 1), 0.8), torch.tensor([0.1]), 5, 1), 5),
        (lambda n: DiscretizedLogistic(torch.full((n, 1), 1.2), torch.tensor([0.3]), 17, 1), 17),
    ],
)
def test_discrete_samples_have_their_probabilities(
    make: Callable[[int], Bernoulli | DiscretizedLogistic], number: int
) -> None:
    draws = 20_000
    values = make(draws).sample(torch.Generator().manual_seed(0)).double().numpy()
    found = np.bincount((values.ravel() * (number - 1)).round().astype(int), minlength=number)
    expected = make(1).log_prob(levels_of(number).float()).double().exp().numpy() * draws
    common = expected >= 5  # the chi-square test wants at least 5 in a cell: the rest goes together
    found = np.append(found[common], found[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    expected *= draws / expected.sum()
    assert scipy.stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > 1e-4


def test_gaussian_samples_have_their_distribution() -> None:
    distribution = Gaussian(torch.full((50_000,), 1.5), torch.tensor(0.25), event_ndim=1)
    values = distribution.sample(torch.Generator().manual_seed(0)).numpy()
    assert scipy.stats.kstest(values, scipy.stats.norm(1.5, 0.25).cdf).pvalue > 1e-4


LEVELS = DataSpec((1, 2, 2), "levels", 17)
REAL = DataSpec((1, 2, 2), "real", None)
MEAN = torch.tensor([[[0.1, 0.5], [0.9, 0.0]]])
STD = torch.tensor([[[0.1, 0.2], [0.3, 0.0]]])


def test_bernoulli_starts_at_the_data_mean() -> None:
    likelihood = BernoulliLikelihood(DataSpec((1, 2, 2), "binary", 2))
    found = likelihood(likelihood.initialize(MEAN, STD)).mean
    assert found.numpy() == pytest.approx(MEAN.clamp(0.01, 0.99).numpy(), abs=1e-6)


@pytest.mark.parametrize("scale_shape", ["one", "dimension", "pixel"])
def test_gaussian_starts_at_the_data(scale_shape: str) -> None:
    likelihood = GaussianLikelihood(REAL, scale_shape=scale_shape, scale_floor=1e-3)  # type: ignore[arg-type]
    start = likelihood(likelihood.initialize(MEAN, STD))
    assert start.mean.numpy() == pytest.approx(MEAN.numpy())
    floored = STD.clamp(min=0.01)
    expected = floored.square().mean().sqrt().expand(1, 2, 2) if scale_shape == "one" else floored
    assert start.scale.expand(1, 2, 2).detach().numpy() == pytest.approx(expected.numpy(), rel=6e-3)


def test_discretized_logistic_starts_with_the_spread_of_the_data() -> None:
    likelihood = DiscretizedLogisticLikelihood(LEVELS)
    start = likelihood(likelihood.initialize(MEAN, STD))
    assert (start.scale * math.pi / math.sqrt(3)).numpy() == pytest.approx(STD.clamp(min=0.018).numpy(), rel=0.02)


def test_a_fixed_scale_is_that_scale_and_owns_no_parameter() -> None:
    likelihood = GaussianLikelihood(REAL, scale=0.25)
    distribution = likelihood(likelihood.initialize(MEAN, STD))
    assert distribution.scale.item() == 0.25
    assert list(likelihood.parameters()) == []
    assert likelihood.fraction_at_floor(distribution) is None


def test_the_scale_floor_holds_and_is_reported() -> None:
    likelihood = GaussianLikelihood(REAL, scale_shape="dimension", scale_floor=0.05)
    assert likelihood.log_scale is not None
    likelihood.log_scale.data[...] = torch.tensor([[[math.log(1.0), math.log(0.2)], [-20.0, -30.0]]])
    distribution = likelihood(torch.zeros(1, 1, 2, 2))
    assert distribution.scale.min().item() == pytest.approx(0.05)
    assert likelihood.fraction_at_floor(distribution).item() == 0.5
    distribution.log_prob(torch.zeros(1, 1, 2, 2)).sum().backward()
    assert likelihood.log_scale.grad is not None and likelihood.log_scale.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "spec", "remedy"),
    [
        (BernoulliLikelihood, LEVELS, "data.binarize"),
        (GaussianLikelihood, LEVELS, "data.values=real"),
        (BernoulliLikelihood, REAL, "likelihood.name=gaussian"),
        (DiscretizedLogisticLikelihood, REAL, "likelihood.name=gaussian"),
    ],
)
def test_a_likelihood_that_is_no_density_on_the_data_is_refused(
    make: Callable[[DataSpec], Likelihood], spec: DataSpec, remedy: str
) -> None:
    """Binary cross-entropy on grey levels, for one: its missing constant depends on the decoder's output."""
    with pytest.raises(InputError, match=remedy):
        make(spec)
