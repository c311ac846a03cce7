"""What every registered likelihood promises, held to independent sums, integrals and draws."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

from vaelab import config
from vaelab.data.spec import DataSpec, Kind
from vaelab.errors import InputError
from vaelab.likelihoods import Likelihood, LikelihoodDistribution
from vaelab.likelihoods.base import suitable
from vaelab.networks import Family

pytestmark = pytest.mark.usefixtures("without_reports")

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bernoulli", {}),
    ("continuous-bernoulli", {}),
    ("gaussian", {}),
    ("gaussian", {"scale": 0.3}),
    ("gaussian", {"scale": "optimal"}),
    ("gaussian", {"scale_shape": "pixel"}),
    ("laplace", {"scale_shape": "dimension"}),
    ("laplace", {"scale_shape": "pixel"}),
    ("student-t", {"scale_shape": "pixel"}),
    ("student-t", {"degrees_of_freedom": 2.5, "scale": 0.7}),
    ("categorical", {}),
    ("discretized-logistic", {}),
    ("discretized-logistic", {"scale_shape": "one"}),
    ("discretized-logistic-mixture", {"components": 3}),
    ("discretized-logistic-mixture", {"components": 1}),
    ("beta-binomial", {}),
    ("poisson", {}),
    ("negative-binomial", {}),
]
UNBOUNDED = ("poisson", "negative-binomial")  # every integer >= 0
KEYS = {f"{name}-{'-'.join(map(str, keys.values()))}".strip("-"): (name, keys) for name, keys in CASES}
LEVELS: dict[Kind, int | None] = {"binary": 2, "levels": 7, "real": None}


def constructor(name: str) -> type[Likelihood]:
    made: Any = config.part("likelihood", name).build
    return made


def make(case: str, shape: tuple[int, ...], kind: Kind, levels: int | None = None) -> Likelihood:
    name, keys = KEYS[case]
    spec = DataSpec(shape, kind, levels or LEVELS[kind])
    return config.build("likelihood", config.section("likelihood", {"name": name, **keys}), spec)


def kinds(case: str) -> tuple[Kind, ...]:
    return constructor(KEYS[case][0]).kinds


EVERY = [(case, kind) for case in KEYS for kind in kinds(case)]
DISCRETE = [(case, kind) for case, kind in EVERY if kind != "real"]
CONTINUOUS = [case for case, kind in EVERY if kind == "real"]
SIZES = [(case, kind, levels) for case, kind in EVERY for levels in ((2, 256, 65536) if kind == "levels" else (2,))]
every = pytest.mark.parametrize(("case", "kind"), EVERY)
discrete = pytest.mark.parametrize(("case", "kind"), DISCRETE)
continuous = pytest.mark.parametrize("case", CONTINUOUS)


def outputs_for(likelihood: Likelihood, *batch: int, spread: float = 1.5, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*batch, *likelihood.output_shape, dtype=torch.float64, generator=noise)


def support(case: str, levels: int, shape: tuple[int, ...]) -> Tensor:
    """Every x there is, [S, *shape]; of an endless support, so much that what is left cannot matter."""
    count = 6000 if KEYS[case][0] in UNBOUNDED else levels
    one = torch.arange(count, dtype=torch.float64) / (levels - 1)
    return torch.cartesian_prod(*[one] * math.prod(shape)).view(-1, *shape)


def test_every_registered_likelihood_is_here() -> None:
    assert {name for name, _ in KEYS.values()} | {"auto"} == set(config.names("likelihood"))


# -- normalized ----------------------------------------------------------------------------------------------------


@discrete
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_probabilities_sum_to_one(case: str, kind: Kind, spread: float) -> None:
    likelihood = make(case, (1,), kind).double()
    assert likelihood.discrete
    distribution = likelihood(outputs_for(likelihood, 20, spread=spread))
    x = support(case, LEVELS[kind] or 0, (1,))
    log_prob = distribution.log_prob(x[:, None])
    assert log_prob.shape == (len(x), 20)
    assert torch.all(log_prob <= 1e-9)
    # Γ is exact to 4e-10. At 5,999 counts the widest of these negative binomials has less than 1e-9 left.
    assert log_prob.logsumexp(0).detach().numpy() == pytest.approx(np.zeros(20), abs=5e-9)


@pytest.mark.parametrize(("case", "kind"), [both for both in DISCRETE if both[0] not in UNBOUNDED])
@pytest.mark.parametrize("shape", [(2,), (2, 1, 1), (3, 1, 1), (1, 1, 3), (4, 1, 1)])
def test_joint_probabilities_sum_to_one(case: str, kind: Kind, shape: tuple[int, ...]) -> None:
    likelihood = make(case, shape, kind, 2 if kind == "binary" else 4).double()
    distribution = likelihood(outputs_for(likelihood, 5))
    log_prob = distribution.log_prob(support(case, 2 if kind == "binary" else 4, shape)[:, None])
    assert log_prob.logsumexp(0).detach().numpy() == pytest.approx(np.zeros(5), abs=5e-9)


def density(x: float, distribution: LikelihoodDistribution, which: int) -> float:
    return distribution.log_prob(torch.tensor([x], dtype=torch.float64))[which].exp().item()


def weighted(x: float, distribution: LikelihoodDistribution, which: int) -> float:
    return x * density(x, distribution, which)


@continuous
def test_densities_integrate_to_one_and_have_their_mean(case: str) -> None:
    likelihood = make(case, (1,), "real").double().eval()
    assert not likelihood.discrete
    with torch.no_grad():
        distribution = likelihood(outputs_for(likelihood, 4))
        for which, mean in enumerate(distribution.mean[:, 0].tolist()):
            ends = (0.0, 1.0) if case == "continuous-bernoulli" else (-math.inf, math.inf)
            pieces = [(ends[0], mean), (mean, ends[1])]  # Laplace has a kink at its mean
            total = sum(scipy.integrate.quad(density, *p, args=(distribution, which))[0] for p in pieces)
            first = sum(scipy.integrate.quad(weighted, *p, args=(distribution, which))[0] for p in pieces)
            assert total == pytest.approx(1, abs=1e-7)
            assert first == pytest.approx(mean, abs=1e-4 if "student" in case else 1e-6)


# -- draws ---------------------------------------------------------------------------------------------------------


@discrete
def test_draws_have_their_probabilities_and_their_mean(case: str, kind: Kind) -> None:
    """Chi-square on the frequencies of whole examples of three channels, and the mean by an exact sum."""
    levels = LEVELS[kind] or 0
    single = KEYS[case][0] in UNBOUNDED
    shape = (1,) if single else (3, 1, 1) if levels == 2 else (2, 1, 1)
    likelihood = make(case, shape, kind).double()
    one = outputs_for(likelihood, spread=1.0, seed=1)
    draws = 20_000
    with torch.no_grad():
        sample = likelihood(one.expand(draws, *one.shape)).sample(torch.Generator().manual_seed(0)) * (levels - 1)
        assert torch.equal(sample, sample.round()), "draws are levels"
        x = support(case, levels, shape)
        probabilities = likelihood(one).log_prob(x).exp().numpy()
        mean = likelihood(one).mean.flatten().numpy()
    width = round(len(x) ** (1 / math.prod(shape)))
    code = (sample.flatten(1) * width ** torch.arange(math.prod(shape) - 1, -1, -1)).sum(1).long().numpy()
    found, expected = np.bincount(code, minlength=len(x)).astype(float), probabilities * draws
    common = expected >= 5
    found, expected = (np.append(a[common], a[~common].sum()) for a in (found, expected))
    used = expected > 1e-6
    assert found[~used].sum() == 0
    assert scipy.stats.chisquare(found[used], expected[used] * draws / expected[used].sum()).pvalue > 1e-3
    exact = (probabilities[:, None] * x.flatten(1).numpy()).sum(0)
    exactly = slice(0, 1) if "mixture" in case else slice(None)  # of its later channels, see the mixture's own test
    assert mean[exactly] == pytest.approx(exact[exactly], abs=1e-8)


@continuous
def test_draws_have_their_density(case: str) -> None:
    likelihood = make(case, (1,), "real").double().eval()
    one = outputs_for(likelihood, spread=1.0, seed=2)
    with torch.no_grad():
        sample = likelihood(one.expand(20_000, *one.shape)).sample(torch.Generator().manual_seed(0))[:, 0].numpy()
        distribution = likelihood(one)
        # The CDF by summing the density over a fine grid that holds every draw.
        pad = 0.0 if case == "continuous-bernoulli" else 1.0
        grid = np.sinh(np.linspace(np.arcsinh(sample.min() - pad), np.arcsinh(sample.max() + pad), 200_001))
        values = distribution.log_prob(torch.from_numpy(grid)[:, None]).exp().numpy()
    cdf = scipy.integrate.cumulative_trapezoid(values, grid, initial=0)
    assert scipy.stats.kstest(sample, lambda x: np.interp(x, grid, cdf)).pvalue > 1e-3


@every
def test_a_draw_can_be_replayed(case: str, kind: Kind) -> None:
    likelihood = make(case, (1, 4, 4), kind)
    distribution = likelihood(outputs_for(likelihood, 3).float())
    with torch.no_grad():
        first, again, other = (distribution.sample(torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (3, 1, 4, 4) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)


# -- shapes and gradients ------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3), (3, 2, 2)])
def test_draws_examples_and_dimensions_are_told_apart(case: str, kind: Kind, shape: tuple[int, ...]) -> None:
    """log p(x_b | z_kb) of a batch is what each pair has alone, and independent sites add up."""
    likelihood = make(case, shape, kind).double().eval()
    outputs = outputs_for(likelihood, 3, 2)
    x = likelihood(outputs[0]).sample(torch.Generator().manual_seed(0))
    assert x.shape == (2, *shape)
    together = likelihood(outputs).log_prob(x)
    assert likelihood(outputs).mean.shape == (3, 2, *shape)
    assert together.shape == (3, 2)
    for k in range(3):
        for b in range(2):
            alone = likelihood(outputs[k, b]).log_prob(x[b]).item()
            assert together[k, b].item() == pytest.approx(alone, rel=1e-10)
    last = make(case, (*shape[:-1], 1), kind).double().eval()
    last.load_state_dict(
        {k: v[..., :1] if v.shape[-1:] == shape[-1:] else v for k, v in likelihood.state_dict().items()}
    )
    if "dimension" not in case:
        sites = sum(last(outputs[..., i : i + 1]).log_prob(x[..., i : i + 1]) for i in range(shape[-1]))
        assert together.detach().numpy() == pytest.approx(sites.detach().numpy(), rel=1e-10)


@every
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_finite_differences(case: str, kind: Kind, training: bool) -> None:
    likelihood = make(case, (2, 1, 2), kind).double().train(training)
    outputs = outputs_for(likelihood, 2, spread=1.0).requires_grad_()
    x = likelihood(outputs).sample(torch.Generator().manual_seed(0)).detach()
    if kind == "real":
        x = x * 0.98 + 0.01  # away from the ends of [0, 1]
    own = list(likelihood.parameters())
    for parameter in own:
        parameter.data.uniform_(-0.3, 0.3)
    assert torch.autograd.gradcheck(lambda o, *_: likelihood(o).log_prob(x), (outputs, *own))
    if KEYS[case][0] == "continuous-bernoulli":  # on both sides of the Taylor series' end, and at its center
        near = torch.tensor([-0.6, -0.4, 0.0, 1e-3, 0.45, 0.55], dtype=torch.float64).view(-1, 1, 1, 1, 1)
        around = (near * torch.ones(1, *likelihood.output_shape, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(lambda o: likelihood(o).log_prob(x[0]), around)


@pytest.mark.parametrize(("case", "kind", "levels"), [one for one in SIZES if one[0] != "categorical" or one[2] < 999])
def test_extreme_outputs_have_finite_log_prob_and_gradients_in_float32(case: str, kind: Kind, levels: int) -> None:
    """±50 in every combination over the parameters, at the least, a middle and the greatest value."""
    likelihood = make(case, (1,), kind, levels if kind == "levels" else None)
    signs = torch.tensor([-50.0, 0.0, 50.0])
    rows = likelihood.output_shape[0]
    if rows <= 6:
        outputs = torch.cartesian_prod(*[signs] * rows).view(-1, rows, 1)
    else:
        outputs = signs[torch.randint(3, (500, rows, 1), generator=torch.Generator().manual_seed(0))]
    outputs.requires_grad_()
    for value in (0.0, round((levels - 1) * 0.4) / (levels - 1), 1.0):
        log_prob = likelihood(outputs).log_prob(torch.full((1,), value))
        assert log_prob.isfinite().all()
        gradients = torch.autograd.grad(log_prob.sum(), [outputs, *likelihood.parameters()], allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        assert likelihood(outputs).mean.isfinite().all()
        assert not likelihood(outputs).sample(torch.Generator().manual_seed(0)).isnan().any()


@pytest.mark.parametrize("case", ["beta-binomial", "negative-binomial", "poisson"])
@pytest.mark.parametrize("levels", [1024, 4096, pytest.param(65536, marks=pytest.mark.slow)])
def test_probabilities_of_many_levels_sum_to_one_in_float32(case: str, levels: int) -> None:
    likelihood = make(case, (1,), "levels", levels)
    support = torch.arange(40 * levels if case != "beta-binomial" else levels)[:, None] / (levels - 1)
    center = torch.linspace(-2, 2, 5) if case == "beta-binomial" else (torch.linspace(0.01, 0.5, 5) * levels).log()
    for second in torch.linspace(-3, 25, 8 if levels < 65536 else 3):
        outputs = torch.stack((center, second.expand(5)), 1)[:, : likelihood.output_shape[0], None]
        log_p = likelihood(outputs).log_prob(support[:, None])
        assert log_p.dtype == torch.float32
        assert log_p.double().exp().sum(0).numpy() == pytest.approx(np.ones(5), abs=2e-3), float(second)


@pytest.mark.parametrize(("case", "kind", "levels"), [one for one in SIZES if one[2] < 999])
def test_float32_is_near_float64(case: str, kind: Kind, levels: int) -> None:
    likelihood = make(case, (40,), kind, levels if kind == "levels" else None).eval()
    outputs = outputs_for(likelihood, 50, spread=3.0)
    x = likelihood.double()(outputs).sample(torch.Generator().manual_seed(0))
    exact = likelihood(outputs).log_prob(x)
    found = likelihood.float()(outputs.float()).log_prob(x.float())
    # In units of the rounding of 40 numbers of this size each.
    assert ((found - exact).abs() / (40 + exact.abs())).max().item() < 1e-5


# -- at the data ---------------------------------------------------------------------------------------------------


STARTS = {
    "varied": ([0.2, 0.5, 0.8, 0.3], [0.04, 0.15, 0.05, 0.07]),
    "one value in places": ([0.0, 0.5, 1.0, 0.3], [0.0, 0.0, 0.0, 0.1]),
    "all zero": ([0.0] * 4, [0.0] * 4),
}


@every
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("shape", [(4,), (1, 2, 2), (2, 1, 2)])
def test_the_mean_starts_at_the_data(case: str, kind: Kind, start: str, shape: tuple[int, ...]) -> None:
    mean, std = (torch.tensor(values).view(shape) for values in STARTS[start])
    levels = 2 if kind == "binary" else 256
    if kind == "binary":
        std = (mean * (1 - mean)).sqrt()
    likelihood = make(case, shape, kind, levels if kind != "real" else None)
    outputs = likelihood.initialize(mean, std)
    assert outputs.shape == likelihood.output_shape and outputs.isfinite().all()
    distribution = likelihood(outputs[None])
    found = distribution.mean[0].detach()
    if "logistic" in case:  # exact but for tails that end at the least and the greatest level
        assert found.numpy() == pytest.approx(mean.numpy(), abs=0.07 if kind == "binary" or "one" in case else 0.01)
    else:  # exact but for what keeps values possible that were never seen
        inside = (mean > 0.05) & (mean < 0.95)
        assert found.numpy() == pytest.approx(mean.numpy(), abs=0.0101)
        assert found[inside].numpy() == pytest.approx(mean[inside].numpy(), rel=2e-5)
    x = mean if kind == "real" else (mean * (levels - 1)).round() / (levels - 1)
    log_prob = distribution.log_prob(x[None])
    assert log_prob.isfinite().all()
    floor = likelihood.fraction_at_floor(distribution)
    assert floor is None or floor.item() == (1.0 if start == "all zero" and case == "gaussian-optimal" else 0.0)


def moments(distribution: LikelihoodDistribution, levels: int) -> tuple[float, float]:
    x = torch.arange(levels, dtype=torch.float64)[:, None] / (levels - 1)
    p = distribution.log_prob(x).double().exp()
    mean = (p * x[:, 0]).sum() / p.sum()
    return mean.item(), (p * (x[:, 0] - mean) ** 2).sum().sqrt().item()


WIDE = [(0.5, 0.1), (0.3, 0.2), (0.13, 0.3), (0.5, 0.45)]


@pytest.mark.parametrize(
    ("case", "mean", "std"),
    [(case, *both) for case in ("categorical", "beta-binomial") for both in WIDE]
    + [("discretized-logistic-mixture-3", 0.5, 0.1), ("discretized-logistic-mixture-1", 0.5, 0.05)],
)
def test_the_spread_starts_at_the_data(case: str, mean: float, std: float) -> None:
    """Even the spread of pictures that are black or white, where the family has it."""
    likelihood = make(case, (1,), "levels", 256)
    found = moments(likelihood(likelihood.initialize(torch.tensor([mean]), torch.tensor([std])).double()), 256)
    assert found == pytest.approx((mean, std), rel=2e-3)


@pytest.mark.parametrize("family", ["linear", "mlp", "conv", "resnet"])
@pytest.mark.parametrize("case", ["discretized-logistic-mixture-3", "categorical", "beta-binomial"])
def test_every_network_can_make_the_outputs(family: str, case: str) -> None:
    likelihood = make(case, (3, 5, 6), "levels")
    network: Family = config.build("network", config.section("network", {"name": family}))
    decoder = network.decoder(2, likelihood.output_shape)
    with torch.no_grad():
        decoder.bias.copy_(likelihood.initialize(torch.full((3, 5, 6), 0.4), torch.full((3, 5, 6), 0.2)))
        outputs = decoder(torch.zeros(4, 2))
        assert outputs.shape == (4, *likelihood.output_shape)
        assert likelihood(outputs).sample().shape == (4, 3, 5, 6)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", KEYS)
@pytest.mark.parametrize("kind", ["binary", "levels", "real"])
def test_a_refusal_names_every_likelihood_that_would_do(case: str, kind: Kind) -> None:
    suiting = {name for name in config.names("likelihood") if name != "auto" and kind in constructor(name).kinds}
    words = suitable(kind).replace(" or ", ", ").split(", ")
    assert set(words) == suiting and len(words) == len(suiting)
    if kind in kinds(case):
        make(case, (2,), kind)
        return
    with pytest.raises(InputError, match=f"likelihood.name={suitable(kind)}") as refused:
        make(case, (2,), kind)
    assert "\n" not in str(refused.value)


@every
def test_only_a_narrower_support_refuses_data(case: str, kind: Kind) -> None:
    likelihood = make(case, (2,), kind)
    likelihood.check(0.0, torch.tensor(1.0))
    for low, high in ((-0.25, 1.0), (0.0, 1.5)):
        if case == "continuous-bernoulli":
            with pytest.raises(InputError, match=r"-?[\d.]+ to [\d.]+; .* gaussian") as refused:
                likelihood.check(torch.tensor(low), high)
            assert f"from {low:.6g} to {high:.6g}" in str(refused.value)
        elif kind == "real":
            likelihood.check(low, high)
