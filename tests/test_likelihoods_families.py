"""Each family of likelihoods against an independent formula, and what is its own."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.likelihoods import (
    BatchOptimalGaussian,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    ContinuousBernoulliLikelihood,
    DiscretizedLogistic,
    DiscretizedLogisticLikelihood,
    DiscretizedLogisticMixture,
    DiscretizedLogisticMixtureLikelihood,
    Gaussian,
    GaussianLikelihood,
    Laplace,
    NegativeBinomial,
    NegativeBinomialLikelihood,
    Poisson,
    StudentT,
    StudentTLikelihood,
)
from vaelab.likelihoods.discretized import bin_mean
from vaelab.likelihoods.special import log_gamma_draw, log_gamma_step, log_rising

REAL = DataSpec((1, 2, 2), "real", None)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


# -- the functions around gamma --------------------------------------------------------------------------------------


def test_log_rising_is_a_difference_of_log_gamma_and_survives_float32() -> None:
    count = torch.tensor([0.0, 1.0, 2.0, 7.0, 255.0, 65535.0], dtype=torch.float64)[:, None]
    a = torch.logspace(-25, 7, 65, dtype=torch.float64)
    k, shape = count.numpy(), a.numpy()
    exact = scipy.special.gammaln(k + shape) - scipy.special.gammaln(shape) - scipy.special.gammaln(k + 1)
    small = shape < 1e-9  # there the difference loses a: Gamma(k + a) / (Gamma(a) k!) = a / k (1 + O(a ln k))
    limit = np.where(k == 0, 0.0, np.log(shape) - np.log(np.maximum(k, 1)))
    exact = np.where(small, limit, exact)
    found = log_rising(count, a.log()).numpy()
    assert found == pytest.approx(exact, abs=2e-9, rel=1e-8)
    single = log_rising(count.float(), a.log().float()).double().numpy()
    # The logarithm itself is rounded to 4e-7 there, and k of them are added.
    assert np.abs(single - found).max(1) == pytest.approx(np.zeros(6), abs=4e-3 * 65535 / 255)
    assert np.abs(single - found).max(1)[:5].max() < 4e-3
    naive = torch.lgamma(count + a) - torch.lgamma(a) - torch.lgamma(count + 1)
    naive32 = [torch.lgamma(v.float()) for v in (count + a, a.expand(6, -1), count + 1)]
    assert (naive32[0] - naive32[1] - naive32[2] - naive).abs()[4].max() > 1  # what it is for


def test_log_gamma_step() -> None:
    a = torch.logspace(-3, 3, 61, dtype=torch.float64)
    exact = scipy.special.gammaln(a.numpy() + 0.5) - scipy.special.gammaln(a.numpy())
    assert log_gamma_step(a).numpy() == pytest.approx(exact, abs=2e-9)
    assert log_gamma_step(a.float()).double().numpy() == pytest.approx(exact, abs=2e-6)
    huge = torch.tensor([1e6, 1e12, 1e20])  # -> 0.5 log a
    assert log_gamma_step(huge).numpy() == pytest.approx(0.5 * np.log(huge.numpy()), rel=1e-6)


@pytest.mark.parametrize("a", [0.02, 0.5, 3.0])
def test_log_gamma_draws(a: float) -> None:
    draws = log_gamma_draw(torch.full((20_000,), a, dtype=torch.float64), torch.Generator().manual_seed(0)).numpy()
    assert scipy.stats.kstest(draws, scipy.stats.loggamma(a).cdf).pvalue > 1e-3


# -- against scipy and torch.distributions ---------------------------------------------------------------------------


def test_continuous_bernoulli_agrees_with_torch_and_with_its_integral() -> None:
    logits = column(-60, -20, -3, -0.8, -0.501, -0.499, -0.1, -1e-6, 0, 1e-4, 0.3, 0.5, 2, 9, 40)
    x = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None, None]
    found = ContinuousBernoulli(logits, 1)
    # The integral of exp(eta x) over [0, 1], by Gauss-Legendre.
    nodes, weights = np.polynomial.legendre.leggauss(120)
    nodes, weights = (nodes + 1) / 2, weights / 2
    values = np.exp((nodes - (logits.numpy() > 0)) * logits.numpy()) * weights
    area = np.log(values.sum(1, keepdims=True)) + np.maximum(logits.numpy(), 0)
    exact = (x.numpy() * logits.numpy() - area)[..., 0]
    assert found.log_prob(x).numpy() == pytest.approx(exact, abs=1e-11)
    assert found.mean.numpy() == pytest.approx(
        (values * nodes).sum(1, keepdims=True) / np.exp(area - np.maximum(logits.numpy(), 0)), abs=1e-11
    )
    middle = slice(2, 14)  # torch's own series is rough near 1/2, and its probabilities are clamped at the ends
    torchs = torch.distributions.ContinuousBernoulli(logits=logits[middle], lims=(0.48, 0.52)).log_prob(x)[..., 0]
    assert found.log_prob(x)[:, middle].numpy() == pytest.approx(torchs.numpy(), abs=1e-5)


def test_continuous_bernoulli_is_smooth_at_one_half_in_float32() -> None:
    """Log normalizer and its gradient, which is minus the mean, against float64."""
    sizes = torch.logspace(-8, 1.7, 500, dtype=torch.float64)
    logits = torch.cat((-sizes, torch.zeros(1, dtype=torch.float64), sizes))[:, None]
    single = logits.float().requires_grad_()
    normalizer = ContinuousBernoulli(single, 1).log_prob(torch.zeros(1))
    (gradient,) = torch.autograd.grad(normalizer.sum(), single)
    exact = ContinuousBernoulli(logits, 1)
    assert normalizer.detach().numpy() == pytest.approx(exact.log_prob(column(0)[0]).numpy(), rel=3e-7, abs=3e-7)
    assert gradient.numpy() == pytest.approx(-exact.mean.numpy(), abs=5e-7)
    assert ContinuousBernoulli(logits.float(), 1).mean.numpy() == pytest.approx(exact.mean.numpy(), abs=5e-7)
    assert torch.all(ContinuousBernoulli(logits.sort(0).values, 1).mean.diff(dim=0) > 0)


def test_laplace_and_student_t_agree_with_scipy() -> None:
    x, loc, scale = column(-40, -1.3, 0.2, 7), column(0.3)[0], column(0.7)[0]
    found = Laplace(loc, scale, 1).log_prob(x)
    assert found.numpy() == pytest.approx(scipy.stats.laplace.logpdf(x.numpy()[:, 0], 0.3, 0.7), rel=1e-12)
    for degrees in (0.1, 1.0, 2.5, 30.0, 1e4):
        t = StudentT(loc, scale, column(degrees)[0, 0], 1)
        exact = scipy.stats.t.logpdf(x.numpy()[:, 0], degrees, 0.3, 0.7)
        assert t.log_prob(x).numpy() == pytest.approx(exact, abs=1e-8)


def test_student_t_of_many_degrees_of_freedom_is_normal_in_float32() -> None:
    x = torch.tensor([[-2.0], [0.1], [3.0]])
    normal = Gaussian(torch.zeros(1), torch.ones(1), 1).log_prob(x)
    for degrees in (1e7, 1e15):
        t = StudentT(torch.zeros(1), torch.ones(1), torch.tensor(degrees), 1)
        assert t.log_prob(x).numpy() == pytest.approx(normal.numpy(), abs=4e-6)


def test_learned_degrees_of_freedom_are_those_of_the_data() -> None:
    """Maximum likelihood on draws of t with 4 degrees: scipy's own fit."""
    draws = scipy.stats.t.rvs(4.0, 1.0, 0.5, size=4000, random_state=0)
    likelihood = StudentTLikelihood(DataSpec((1,), "real", None)).double()
    outputs = likelihood.initialize(torch.tensor([draws.mean()]), torch.tensor([draws.std()])).requires_grad_()
    optimizer = torch.optim.LBFGS([outputs, *likelihood.parameters()], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -likelihood(outputs).log_prob(torch.from_numpy(draws)[:, None]).mean()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    found = likelihood(outputs)
    degrees, loc, scale = scipy.stats.t.fit(draws)
    assert found.degrees_of_freedom.item() == pytest.approx(degrees, rel=1e-2)
    assert (found.loc.item(), found.scale.item()) == pytest.approx((loc, scale), rel=1e-2)


@pytest.mark.parametrize("levels", [2, 5, 256, 65536])
def test_counts_agree_with_scipy(levels: int) -> None:
    n = levels - 1
    count = np.unique(np.linspace(0, n, 9).round())
    x = torch.from_numpy(count)[:, None] / n
    for logit, log_size in itertools.product((-3.0, 0.0, 2.0), (-4.0, 0.5, 3.0, 7.0)):
        found = BetaBinomial(column(logit)[0], column(log_size)[0], levels, 1)
        share = scipy.special.expit(logit)
        alpha, beta = share * math.exp(log_size), (1 - share) * math.exp(log_size)
        exact = scipy.stats.betabinom.logpmf(count, n, alpha, beta)
        assert found.log_prob(x).numpy() == pytest.approx(exact, abs=3e-8, rel=1e-8)
    for log_mean, log_size in itertools.product((-2.0, 1.0, 5.0), (-4.0, 0.5, 3.0, 7.0)):
        r, m = math.exp(log_size), math.exp(log_mean)
        found = NegativeBinomial(column(log_mean)[0], column(log_size)[0], levels, 1)
        exact = scipy.stats.nbinom.logpmf(count, r, r / (r + m))
        assert found.log_prob(x).numpy() == pytest.approx(exact, abs=3e-8, rel=1e-8)
        rate = Poisson(column(log_mean)[0], levels, 1)
        assert rate.log_prob(x).numpy() == pytest.approx(scipy.stats.poisson.logpmf(count, m), abs=1e-8, rel=1e-8)


def test_an_unbounded_dispersion_ends_near_poisson() -> None:
    """Variance m + m^2 / r at the bound: within 0.1 % of Poisson's at m = L - 1, the most that data can have."""
    likelihood = NegativeBinomialLikelihood(DataSpec((1,), "levels", 256))
    found = likelihood(torch.tensor([[math.log(255.0)], [50.0]]))
    assert 1 + 255 / found.log_dispersion.exp().item() == pytest.approx(1.001, abs=1e-6)
    assert likelihood(torch.tensor([[0.0], [2.0]])).log_dispersion.item() == pytest.approx(2.0, abs=1e-4)


def test_categorical_agrees_with_torch() -> None:
    logits = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0, 5, 2, 3])
    found = Categorical(logits, 1).log_prob(level / 5)
    assert found.numpy() == pytest.approx(
        torch.distributions.Categorical(logits=logits).log_prob(level).sum(-1).numpy()
    )


# -- the logistic in bins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 64, 65, 256, 4097, 65536])
def test_the_mean_of_many_levels_is_the_whole_sum(levels: int) -> None:
    scale = torch.logspace(-7, 20, 28, dtype=torch.float64)[:, None]
    loc = torch.tensor([-3.0, -0.01, 0.0, 1e-4, 0.3123, 0.5, 0.98, 1.0, 1.02, 5.0], dtype=torch.float64)
    edges = (torch.arange(1, levels, dtype=torch.float64) - 0.5) / (levels - 1)
    whole = torch.stack([torch.sigmoid((value - edges) / s).mean() for s in scale[:, 0] for value in loc]).view(28, 10)
    found = bin_mean(loc, scale, levels)
    assert found.numpy() == pytest.approx(whole.numpy(), abs=1e-12 if levels <= 65 else 2e-7 / levels)
    assert bin_mean(loc.float(), scale.float(), levels).numpy() == pytest.approx(whole.numpy(), abs=2e-6)


LOGISTIC = scipy.stats.logistic


def mixture_by_hand(outputs: np.ndarray, level: tuple[int, ...], components: int, levels: int) -> float:
    """P(pixel) by the paper's formulae, in plain numbers: outputs [M (1 + 2 C + C (C - 1) / 2)]."""
    C, M = len(level), components
    weights = np.exp(outputs[:M]) / np.exp(outputs[:M]).sum()
    loc, log_scale = (outputs[M + i * M * C : M + (i + 1) * M * C].reshape(M, C) for i in (0, 1))
    pairs = outputs[M + 2 * M * C :].reshape(M, -1)
    total = 0.0
    for m in range(M):
        p, pair = weights[m], 0
        for c in range(C):
            center = loc[m, c]
            for j in range(c):
                center += pairs[m, pair] * (level[j] / (levels - 1) - 0.5)
                pair += 1
            scale = math.hypot(math.exp(log_scale[m, c]), 1e-3)
            above = LOGISTIC.cdf((level[c] + 0.5) / (levels - 1), center, scale) if level[c] < levels - 1 else 1.0
            below = LOGISTIC.cdf((level[c] - 0.5) / (levels - 1), center, scale) if level[c] > 0 else 0.0
            p *= above - below
        total += p
    return total


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_mixture_agrees_with_the_paper(channels: int) -> None:
    likelihood = DiscretizedLogisticMixtureLikelihood(DataSpec((channels, 1, 2), "levels", 5), components=2)
    noise = torch.Generator().manual_seed(channels)
    outputs = torch.randn(likelihood.output_shape, dtype=torch.float64, generator=noise)
    level = torch.randint(5, (40, channels, 1, 2), generator=noise)
    exact = [
        sum(
            math.log(mixture_by_hand(outputs[:, 0, 0, site].numpy(), tuple(pixel[:, 0, site].tolist()), 2, 5))
            for site in (0, 1)
        )
        for pixel in level
    ]
    assert likelihood(outputs).log_prob(level / 4).numpy() == pytest.approx(np.array(exact), rel=1e-7)


def test_a_mixture_of_one_is_the_discretized_logistic() -> None:
    spec = DataSpec((7,), "levels", 256)
    mixture, single = DiscretizedLogisticMixtureLikelihood(spec, components=1), DiscretizedLogisticLikelihood(spec)
    outputs = torch.randn(3, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weightless = torch.cat((torch.ones(3, 1, 7).double(), outputs), 1)
    x = torch.randint(256, (3, 7), generator=torch.Generator().manual_seed(1)) / 255
    one, other = mixture(weightless), single(outputs)
    assert one.log_prob(x).numpy() == pytest.approx(other.log_prob(x).numpy(), rel=1e-12)
    assert one.mean.numpy() == pytest.approx(other.mean.numpy(), rel=1e-12)


@pytest.mark.parametrize("level", [0, 1, 253, 254, 255])
def test_levels_beside_the_edge_have_their_own_mass(level: int) -> None:
    """Not that of the tail beyond (mass 1.55 on bright pixels where level 254 counts as the edge)."""
    loc = level / 255
    mixture = DiscretizedLogisticMixture(
        torch.zeros(2, 1, 1), torch.full((2, 1, 1), loc), torch.full((2, 1, 1), 0.004), torch.zeros(2, 0, 1), 256, 1
    )
    ends = (-np.inf if level == 0 else (level - 0.5) / 255, np.inf if level == 255 else (level + 0.5) / 255)
    exact = LOGISTIC.cdf(ends[1], loc, 0.004) - LOGISTIC.cdf(ends[0], loc, 0.004)
    assert mixture.log_prob(torch.tensor([level / 255])).exp().item() == pytest.approx(exact, rel=1e-3)
    mass = mixture.log_prob((torch.arange(256) / 255)[:, None]).exp().sum().item()
    assert mass == pytest.approx(1, abs=1e-4)


def test_the_mean_of_a_later_channel_is_that_at_the_means_of_the_earlier() -> None:
    """Exact away from the ends of the range (sum over all 33 x 33 pairs); off by what is cut where they are near."""

    def means(loc: float) -> tuple[Tensor, Tensor]:
        mixture = DiscretizedLogisticMixture(
            column(0.3, -0.5)[:, :, None, None],
            torch.tensor([[0.4, loc], [0.5, loc]]).double()[..., None, None],
            torch.full((2, 2, 1, 1), 0.02).double(),
            torch.tensor([0.8, -0.6]).double().view(2, 1, 1, 1),
            33,
            3,
        )
        one = torch.arange(33).double() / 32
        pairs = torch.cartesian_prod(one, one)
        p = mixture.log_prob(pairs.view(-1, 2, 1, 1)).exp()
        return mixture.mean.flatten(), (p[:, None] * pairs).sum(0)

    said, exact = means(0.5)
    assert said.numpy() == pytest.approx(exact.numpy(), abs=1e-4)
    said, exact = means(0.05)
    assert said[0].item() == pytest.approx(exact[0].item(), abs=1e-9)
    assert 1e-3 < (said[1] - exact[1]).abs().item() < 0.05


@pytest.mark.parametrize("components", [2, 5, 10])
def test_components_start_apart_and_together_have_the_spread_of_the_data(components: int) -> None:
    likelihood = DiscretizedLogisticMixtureLikelihood(DataSpec((3, 1, 1), "levels", 256), components=components)
    mean, std = torch.full((3, 1, 1), 0.5), torch.tensor([0.05, 0.1, 0.15]).view(3, 1, 1)
    start = likelihood(likelihood.initialize(mean, std))
    gaps = start.loc[:, :, 0, 0].diff(dim=0) / std[:, 0, 0]
    assert gaps.min().item() > 1 / components and torch.all((start.loc - mean).abs() <= std * 1.0001)
    spread = start.loc.var(0, correction=0) + (start.scale.square() * math.pi**2 / 3).mean(0)
    assert spread.sqrt().numpy() == pytest.approx(std.numpy(), rel=1e-2)
    assert torch.all(start.coupling == 0) and torch.all(start.logits == 0)


def test_a_fixed_scale_needs_its_shape() -> None:
    with pytest.raises(InputError, match=r"likelihood.scale_shape=one, or likelihood.scale=learned"):
        DiscretizedLogisticLikelihood(DataSpec((2,), "levels", 256), scale=0.1)
    with pytest.raises(InputError, match=r"scale=optimal is one for all"):
        GaussianLikelihood(REAL, scale="optimal", scale_shape="pixel")


# -- sigma in closed form --------------------------------------------------------------------------------------------


def optimal(**keys: float) -> GaussianLikelihood:
    return GaussianLikelihood(REAL, scale="optimal", **keys).double()  # type: ignore[arg-type]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=noise)
    return x, torch.randn(3, 5, 1, 1, 2, 2, dtype=torch.float64, generator=noise)


def test_optimal_sigma_maximizes_the_likelihood_of_the_batch() -> None:
    """K = 3 draws for each of 5 examples share one sigma; its root mean squared error is best."""
    x, outputs = batch()
    found = optimal()(outputs).log_prob(x)
    assert found.shape == (3, 5)
    loc = outputs[:, :, 0]
    scales = torch.linspace(0.2, 4, 3801, dtype=torch.float64)
    means = torch.stack([Gaussian(loc, scale, 3).log_prob(x).mean() for scale in scales])
    assert found.mean().item() >= means.max().item()
    assert found.mean().item() == pytest.approx(means.max().item(), abs=1e-6)
    mse = (x - loc).square().mean()
    assert scales[means.argmax()].item() == pytest.approx(mse.sqrt().item(), abs=1e-3)
    assert found.mean().item() == pytest.approx(-2 * (mse.log() + 1 + math.log(2 * math.pi)).item(), rel=1e-12)
    each = Gaussian(loc, mse.sqrt(), 3).log_prob(x)
    assert found.numpy() == pytest.approx(each.numpy(), rel=1e-12)


def test_the_gradient_of_optimal_sigma_is_that_of_the_log_of_the_error() -> None:
    x, outputs = batch()
    outputs.requires_grad_()
    loss = -optimal()(outputs).log_prob(x).mean()
    (found,) = torch.autograd.grad(loss, outputs)
    (expected,) = torch.autograd.grad(2 * (x - outputs[:, :, 0]).square().mean().log(), outputs)  # D / 2 = 2
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-10)
    # Of one example's log p the gradient is another with a sigma that does not move: it flows through sigma, too.
    single = torch.autograd.grad(optimal()(outputs).log_prob(x)[0, 0], outputs)[0]
    assert single[1].abs().max() > 1e-3


def test_evaluation_uses_the_running_sigma_and_leaves_it_alone() -> None:
    likelihood = optimal()
    likelihood.initialize(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 2.0))
    assert list(likelihood.parameters()) == []
    expected = 4.0
    for seed in range(4):
        x, outputs = batch(seed)
        distribution = likelihood(outputs)
        assert isinstance(distribution, BatchOptimalGaussian)
        assert distribution.scale.item() == pytest.approx(math.sqrt(expected))
        distribution.log_prob(x)
        expected += 0.1 * ((x - outputs[:, :, 0]).square().mean().item() - expected)
    state = {name: value.clone() for name, value in likelihood.state_dict().items()}
    assert set(state) == {"running_variance"}
    fresh = optimal().eval()
    fresh.load_state_dict(state)
    x, outputs = batch(9)
    exact = scipy.stats.norm.logpdf(x.numpy(), outputs[:, :, 0].numpy(), math.sqrt(expected)).sum((2, 3, 4))
    assert fresh(outputs).log_prob(x).numpy() == pytest.approx(exact, rel=1e-10)
    assert torch.equal(fresh.running_variance, state["running_variance"])


def test_optimal_sigma_has_a_floor_and_survives_a_batch_that_overflowed() -> None:
    likelihood = optimal(scale_floor=0.05)
    x, outputs = batch()
    perfect = x.expand(3, *x.shape)[:, :, None].clone().requires_grad_()
    log_prob = likelihood(perfect).log_prob(x)
    assert log_prob.detach().numpy() == pytest.approx(4 * scipy.stats.norm.logpdf(0, 0, 0.05))
    assert torch.autograd.grad(log_prob.sum(), perfect)[0].isfinite().all()
    before = likelihood.running_variance.clone()
    likelihood(outputs * math.inf).log_prob(x)
    assert torch.equal(likelihood.running_variance, before)
    for _ in range(200):
        likelihood(perfect).log_prob(x)
    start = likelihood.eval()(outputs)
    assert start.scale.item() == pytest.approx(0.05, rel=1e-3)
    assert likelihood.fraction_at_floor(start).item() == 1.0


def test_the_continuous_bernoulli_starts_at_any_mean() -> None:
    likelihood = ContinuousBernoulliLikelihood(DataSpec((5,), "real", None))
    mean = torch.tensor([0.02, 0.3, 0.5, 0.77, 0.99])
    assert likelihood(likelihood.initialize(mean, mean)).mean.numpy() == pytest.approx(mean.numpy(), abs=1e-6)
    with pytest.raises(InputError, match=r"from -1.5 to 3; .*gaussian"):
        likelihood.check(-1.5, torch.tensor(3.0))


def test_discretized_logistic_of_65536_levels_has_its_spread() -> None:
    """The mean that pictures show: 65,536 levels, near the ends, against the density's own mean."""
    loc = torch.tensor([0.25, 0.9999])
    found = DiscretizedLogistic(loc, torch.tensor([0.01, 0.01]), 65536, 1).mean
    cut = 0.9999 - 0.01 * math.log1p(math.exp(-0.01))  # E[min(x, 1)] of the logistic: loc - s log(1 + exp((loc-1)/s))
    assert found.tolist() == pytest.approx([0.25, cut], abs=2e-3)


def test_the_derivative_of_log_rising_is_right_at_all_sizes() -> None:
    """k is an integer, so it is a sum: d/d ln a of log Γ(k + a) / Γ(a) = Σ_{i < k} a / (a + i)."""
    count = torch.tensor([0.0, 1.0, 2.0, 7.0, 255.0], dtype=torch.float64)[:, None]
    log_a = torch.linspace(-60, 16, 39, dtype=torch.float64)
    a = log_a.exp()
    exact = torch.stack([sum((a / (a + i) for i in range(int(k))), torch.zeros(39).double()) for k in count[:, 0]])
    for dtype, error in ((torch.float64, 1e-7), (torch.float32, 2e-6)):
        logs = log_a.to(dtype).requires_grad_()
        for k, expected in zip(count.to(dtype), exact, strict=True):
            (found,) = torch.autograd.grad(log_rising(k, logs).sum(), logs)
            assert found.numpy() == pytest.approx(expected.numpy(), rel=error, abs=error)


def test_learned_degrees_of_freedom_start_at_five_and_keep_a_mean() -> None:
    likelihood = StudentTLikelihood(DataSpec((1,), "real", None))
    assert likelihood.log_degrees is not None
    assert likelihood(torch.zeros(1, 1)).degrees_of_freedom.item() == pytest.approx(5)
    likelihood.log_degrees.data.fill_(-3.0)
    assert likelihood(torch.zeros(1, 1)).degrees_of_freedom.item() == pytest.approx(1 + math.exp(-3))
