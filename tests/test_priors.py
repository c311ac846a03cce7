"""Every prior is the distribution that it says it is: its density has mass 1, and its draws follow it."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from exact import grid
from scipy.stats import chi2
from torch import Tensor, nn
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, MixtureSameFamily, Normal
from torch.nn import functional as F

from vaelab.config import build, names, part, section
from vaelab.errors import InputError
from vaelab.latents import LatentSpec
from vaelab.networks import Encoder
from vaelab.posteriors import Categorical, DiagonalGaussian
from vaelab.posteriors.product import Product
from vaelab.priors import (
    AggregatePrior,
    AutoregressivePrior,
    CategoricalPrior,
    FlowPrior,
    MixturePrior,
    Prior,
    ProductPrior,
    StandardNormal,
    VampPrior,
)

KEYS: dict[str, list[dict[str, Any]]] = {
    "flow": [{"family": "spline", "hidden": [16]}, {"family": "affine", "hidden": [16]}],
    "aggregate": [{"kind": "mixture", "components": 3}, {"kind": "flow"}],
    "categorical": [{"learned": False}, {"learned": True}],
    "autoregressive": [{"width": 8, "heads": 2}],
    "mixture": [{"components": 3}],
    "vamp": [{"components": 4}],
}
"""Keys to test with, of those that have any."""
ALL = [{"name": name, **keys} for name in names("prior") if name != "auto" for keys in KEYS.get(name, [{}])]
REAL = [keys for keys in ALL if part("prior", keys["name"]).build.holds == "real"]
DISCRETE = [keys for keys in ALL if part("prior", keys["name"]).build.holds == "categorical"]
PLANE, GRID = LatentSpec(real=2), LatentSpec(categorical=3, categories=4)


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well a flow fits is no matter here; test_priors_aggregate.py asks that."""
    monkeypatch.setattr("vaelab.priors.aggregate.UPDATES", 50)
    monkeypatch.setattr("vaelab.priors.aggregate.BATCH", 64)


def named(keys: dict[str, Any]) -> str:
    return "-".join(str(value) for value in keys.values() if isinstance(value, str | bool))


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder() -> Encoder:
    return Encoder(nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh()), (2, 3), 5)


def made(keys: dict[str, Any], latents: LatentSpec, seed: int = 0) -> Prior:
    """A prior in float64, away from where it starts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior: Prior = build("prior", section("prior", keys), latents, encoder().double()).double()
    shift = 0.15 if keys["name"] == "flow" else 0.5  # a flow's weights multiply each other
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += shift * torch.randn(parameter.shape, dtype=torch.float64, generator=noise(seed))
    if prior.fit_draws:
        prior.fit(two_clusters(1000, seed)[:, : latents.width], noise(seed))
    return prior


def two_clusters(number: int, seed: int = 0) -> Tensor:
    """A bent and a round cluster in the plane, [number, 2]."""
    first, second = torch.randn(2, number, 2, dtype=torch.float64, generator=noise(seed)).unbind()
    bent = torch.stack((first[:, 0], 0.5 * first[:, 1] + 0.5 * first[:, 0] ** 2 - 1), dim=-1)
    return torch.cat((bent[: number // 2], 0.5 * second[number // 2 :] + torch.tensor([1.5, -1.5])))


def every_category(latents: LatentSpec) -> Tensor:
    """All values of z, [C ** G, G * C]."""
    index = torch.tensor(list(itertools.product(range(latents.categories), repeat=latents.categorical)))
    return F.one_hot(index, latents.categories).flatten(1).double()


def assert_frequencies(counts: Tensor, probabilities: Tensor) -> None:
    """Pearson's χ² over cells [M] that are expected at least five times; the others together are one cell."""
    number = counts.sum()
    common = probabilities * number >= 5
    observed = torch.cat((counts[common], (number - counts[common].sum())[None])).double()
    expected = torch.cat((probabilities[common], (1 - probabilities[common].sum())[None])) * number
    kept = expected > 1e-3 * number / len(expected)
    assert observed[~kept].sum() < 5
    statistic = float(((observed - expected).square() / expected)[kept].sum())
    assert chi2.sf(statistic, int(kept.sum()) - 1) > 1e-3, statistic


# -- densities of real numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", REAL, ids=named)
def test_the_density_has_mass_one_and_draws_follow_it(keys: dict[str, Any]) -> None:
    edge, per_cell, cells = 9.0, 8, 30
    prior = made(keys, PLANE)
    points, area = grid(2, edge - edge / (cells * per_cell), cells * per_cell)  # midpoints
    with torch.no_grad():
        mass = torch.cat([prior.log_prob(some) for some in points.split(40_000)]).exp() * area
        z = prior.sample(20_000, noise())
    assert mass.sum().item() == pytest.approx(1, abs=2e-3)
    place = ((z + edge) * cells / (2 * edge)).floor().long()
    inside = ((place >= 0) & (place < cells)).all(-1)
    counts = (place[inside] @ torch.tensor([cells, 1])).bincount(minlength=cells**2)
    cell_mass = mass.view(cells, per_cell, cells, per_cell).sum((1, 3)).flatten()
    outside = torch.tensor([len(z) - int(inside.sum())])
    counts, cell_mass = torch.cat((counts, outside)), torch.cat((cell_mass, (1 - cell_mass.sum())[None].clamp(min=0)))
    assert_frequencies(counts, cell_mass)


@pytest.mark.parametrize("keys", REAL, ids=named)
@pytest.mark.parametrize("size", [1, 5])
def test_other_numbers_of_latents(keys: dict[str, Any], size: int) -> None:
    """One latent by quadrature; of five, E_p[N(z; m, s²) / p(z)] = 1 for a Gaussian within p's own bulk."""
    latents = LatentSpec(real=size)
    if keys["name"] == "aggregate":
        prior = build("prior", section("prior", keys), latents).double()
        prior.fit(torch.randn(2000, size, dtype=torch.float64, generator=noise()) ** 3 / 3, noise())
    else:
        prior = made(keys, latents)
    with torch.no_grad():
        if size == 1:
            z, length = grid(1, 40.0, 80_001)
            assert (prior.log_prob(z).exp().sum() * length).item() == pytest.approx(1, abs=1e-3)
            return
        z = prior.sample(20_000, noise())
        bulk = Normal(z.median(0).values, 0.3)
        ratio = (bulk.log_prob(z).sum(-1) - prior.log_prob(z)).exp()
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.1
    assert (ratio.mean() - 1).abs() < 4 * error


@pytest.mark.parametrize("keys", ALL, ids=named)
def test_gradients_shapes_replay_and_round_trip(keys: dict[str, Any]) -> None:
    latents = PLANE if keys in REAL else GRID
    prior = made(keys, latents)
    z = prior.sample(6, noise(1))
    assert z.shape == (6, latents.width)
    assert z.dtype == torch.float64
    assert torch.equal(z, prior.sample(6, noise(1)))
    assert not torch.equal(z, prior.sample(6, noise(2)))
    assert prior.log_prob(z.view(2, 3, -1)).detach() == pytest.approx(prior.log_prob(z).view(2, 3).detach(), abs=1e-12)
    inside = (z.detach() + 0.01).requires_grad_()  # relaxed, where z is one-hot
    assert torch.autograd.gradcheck(prior.log_prob, inside)

    other = made(keys, latents, seed=1)
    assert not torch.allclose(other.log_prob(z), prior.log_prob(z)) or not list(prior.state_dict())
    other.load_state_dict(prior.state_dict())
    if isinstance(prior, VampPrior):
        other.encoder.load_state_dict(prior.encoder.state_dict())
    assert torch.equal(other.log_prob(z), prior.log_prob(z))
    assert torch.equal(other.sample(5, noise()), prior.sample(5, noise()))


@pytest.mark.parametrize("keys", ALL, ids=named)
def test_float32_is_close_to_float64(keys: dict[str, Any]) -> None:
    prior = made(keys, PLANE if keys in REAL else GRID)
    with torch.no_grad():
        z = prior.sample(2000, noise())
        exact = prior.log_prob(z)
        if isinstance(prior, VampPrior):
            prior.encoder.float()
        prior.float()
        assert (prior.log_prob(z.float()) - exact).abs().max() < 2e-3
        drawn = prior.sample(20_000, noise())
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()


# -- mixtures ------------------------------------------------------------------------------------------------------


def test_mixture_is_torchs() -> None:
    prior = made({"name": "mixture", "components": 7}, LatentSpec(real=5))
    assert isinstance(prior, MixturePrior)
    components = Independent(Normal(prior.loc, prior.log_scale.exp()), 1)
    exact = MixtureSameFamily(TorchCategorical(logits=prior.logits), components)
    z = 3 * torch.randn(50, 5, dtype=torch.float64, generator=noise())
    assert torch.allclose(prior.log_prob(z), exact.log_prob(z), atol=1e-10)
    ours = torch.autograd.grad(prior.log_prob(z).sum(), list(prior.parameters()))
    theirs = torch.autograd.grad(exact.log_prob(z).sum(), list(prior.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_components_are_joint_densities() -> None:
    """Two components at (3, 3) and (−3, −3): (3, −3) is 72 nats away from both, not in the middle of a grid of four."""
    prior = MixturePrior(2, components=2)
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[3.0, 3.0], [-3.0, -3.0]]))
        prior.log_scale.fill_(math.log(0.5))
    exact = -0.5 * 12**2 - math.log(2 * math.pi) - 2 * math.log(0.5)
    assert prior.log_prob(torch.tensor([3.0, -3.0])).item() == pytest.approx(exact, abs=1e-4)


def test_narrow_components_far_from_zero_are_exact_in_float32() -> None:
    """|μ/σ|² = 160,000: expanded in float32, log p would be off by a tenth of a nat and more."""
    torch.manual_seed(0)
    prior = MixturePrior(20, components=50)
    with torch.no_grad():
        prior.loc.mul_(4)
        prior.log_scale.fill_(math.log(0.01))
        z = prior.sample(1000, noise())
        difference = (z[:, None].double() - prior.loc.double()) / 0.01
        scale = float(prior.log_scale[0, 0].double())
        joint = -0.5 * difference.square().sum(-1) - 20 * (scale + 0.5 * math.log(2 * math.pi))
        exact = joint.logsumexp(-1) - math.log(50)
        assert (prior.log_prob(z) - exact).abs().max() < 1e-3


def test_mixture_starts_apart_and_wide_and_draws_carry_gradients() -> None:
    prior = MixturePrior(3, components=200)
    assert prior.loc.std().item() == pytest.approx(1, abs=0.15)
    assert prior.log_scale.abs().max() == 0
    loc, scale = torch.autograd.grad(prior.sample(400, noise()).sum(), [prior.loc, prior.log_scale])
    assert loc.sum().item() == pytest.approx(1200)
    assert scale.abs().sum() > 0


# -- VampPrior -----------------------------------------------------------------------------------------------------


def test_vamp_is_the_average_of_the_heads_gaussians() -> None:
    prior = made({"name": "vamp", "components": 6}, LatentSpec(real=3))
    assert isinstance(prior, VampPrior)
    z = torch.randn(4, 5, 3, dtype=torch.float64, generator=noise())
    densities = []
    for pseudo_input in prior.pseudo_inputs:
        loc, log_variance = prior.head.head(prior.encoder(pseudo_input[None]))[0].chunk(2)
        densities.append(Normal(loc, (0.5 * log_variance).exp()).log_prob(z).sum(-1).exp())
    assert torch.allclose(prior.log_prob(z), torch.stack(densities).mean(0).log(), atol=1e-10)


def test_vamp_trains_the_models_encoder_but_does_not_own_it() -> None:
    model = nn.ModuleDict({"encoder": (network := encoder()), "prior": VampPrior(2, network, components=4)})
    prior = model["prior"]
    assert {name.partition(".")[0] for name in prior.state_dict()} == {"pseudo_inputs", "head"}
    assert len(list(model.parameters())) == 2 + 1 + 2
    prior.log_prob(torch.randn(8, 2)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())

    copied = copy.deepcopy(model)
    assert copied["prior"].encoder is copied["encoder"]
    assert copied["prior"].encoder is not network
    z = torch.randn(3, 2)
    before = copied["prior"].log_prob(z).detach()
    with torch.no_grad():
        network.layers[1].weight.add_(1)
    assert torch.equal(copied["prior"].log_prob(z), before)
    assert not torch.allclose(prior.log_prob(z), before)
    with torch.no_grad():
        copied["encoder"].layers[1].weight.add_(1)
    assert torch.equal(copied["prior"].log_prob(z), prior.log_prob(z))


def test_vamp_starts_at_training_examples() -> None:
    prior = VampPrior(2, encoder(), components=5)
    assert prior.start_examples == 5
    x = torch.randn(7, 2, 3, generator=noise())
    prior.start(x)
    assert torch.equal(prior.pseudo_inputs, x[:5])
    prior.start(x[:3])
    assert torch.equal(prior.pseudo_inputs, x[[0, 1, 2, 0, 1]])


# -- flow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["spline", "affine"])
@pytest.mark.parametrize("size", [1, 6])
def test_flow_starts_as_the_standard_normal(family: Any, size: int) -> None:
    prior, normal = FlowPrior(size, family=family), StandardNormal(size)
    z = 3 * torch.randn(100, size, generator=noise())
    assert torch.allclose(prior.log_prob(z), normal.log_prob(z), atol=1e-4)
    assert torch.allclose(prior.sample(100, noise()), normal.sample(100, noise()), atol=1e-4)


@pytest.mark.parametrize("family", ["spline", "affine"])
def test_flow_has_the_jacobians_determinant(family: str) -> None:
    prior = made({"name": "flow", "family": family, "hidden": [16], "steps": 3}, LatentSpec(real=4))
    noise_of = prior.base.sample(5, noise())
    z = prior.sample(5, noise())

    def generate(one: Tensor) -> Tensor:
        for step in reversed(prior._maps()):
            one = step.inv(one)
        return one

    for e, one in zip(noise_of, z, strict=True):
        jacobian = torch.autograd.functional.jacobian(generate, e)
        exact = prior.base.log_prob(e) - torch.linalg.slogdet(jacobian).logabsdet
        assert torch.allclose(prior.log_prob(one), exact, atol=1e-6)


# -- one-hot latents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", DISCRETE, ids=named)
def test_probabilities_of_all_categories_sum_to_one_and_draws_follow_them(keys: dict[str, Any]) -> None:
    prior, every = made(keys, GRID), every_category(GRID)
    probabilities = prior.log_prob(every).exp().detach()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    z = prior.sample(20_000, noise()).detach()
    blocks = z.unflatten(-1, (3, 4))
    assert torch.equal(blocks.sum(-1), torch.ones(20_000, 3, dtype=torch.float64))
    place = blocks.argmax(-1) @ torch.tensor([16, 4, 1])
    assert torch.equal(every[place], z)
    assert_frequencies(place.bincount(minlength=64), probabilities)


@pytest.mark.parametrize("keys", [keys for keys in DISCRETE if keys.get("learned", True)], ids=named)
def test_learned_probabilities_differ(keys: dict[str, Any]) -> None:
    probabilities = made(keys, GRID).log_prob(every_category(GRID)).exp()
    assert probabilities.max() > 2 / 64


@pytest.mark.parametrize("learned", [False, True])
def test_categorical_kl_is_the_sum_over_categories(learned: bool) -> None:
    prior = made({"name": "categorical", "learned": learned}, GRID)
    posterior = Categorical(torch.randn(5, 3, 4, dtype=torch.float64, generator=noise()).log_softmax(-1))
    kl = prior.kl(posterior)
    assert kl is not None
    every = every_category(GRID)
    log_q, log_p = posterior.log_prob(every[:, None]), prior.log_prob(every)[:, None]
    whole = (log_q.exp() * (log_q - log_p)).sum(0)
    assert torch.allclose(kl.sum(-1), whole, atol=1e-12)
    single = CategoricalPrior(LatentSpec(categorical=1, categories=4)).double()
    assert torch.equal(single.log_prob(torch.eye(4, dtype=torch.float64)), -math.log(4) * torch.ones(4).double())
    if not learned:
        entropy = -(posterior.logits.exp() * posterior.logits).sum(-1)
        assert torch.allclose(kl, math.log(4) - entropy, atol=1e-12)
    assert prior.kl(DiagonalGaussian(torch.zeros(5, 12), torch.ones(5, 12))) is None


def test_categorical_log_prob_is_linear_between_one_hots() -> None:
    prior = made({"name": "categorical", "learned": True}, GRID)
    a, b = every_category(GRID)[[5, 50]]
    mixed = 0.3 * prior.log_prob(a) + 0.7 * prior.log_prob(b)
    assert torch.allclose(prior.log_prob(0.3 * a + 0.7 * b), mixed, atol=1e-12)


def test_autoregressive_starts_uniform_and_takes_any_grid() -> None:
    prior = AutoregressivePrior(LatentSpec(categorical=6, categories=5))
    z = prior.sample(10, noise())
    assert prior.log_prob(z).detach() == pytest.approx(torch.full((10,), -6 * math.log(5)), abs=1e-5)
    with pytest.raises(InputError, match=r"prior.width=10.*multiple of prior.heads=4"):
        AutoregressivePrior(LatentSpec(categorical=6, categories=5), width=10)


def test_autoregressive_looks_at_earlier_latents_alone() -> None:
    latents = LatentSpec(categorical=6, categories=5)
    prior = made({"name": "autoregressive", "width": 8, "heads": 2}, latents)
    assert isinstance(prior, AutoregressivePrior)
    blocks = torch.rand(6, 5, dtype=torch.float64, generator=noise()).softmax(-1)
    jacobian = torch.autograd.functional.jacobian(lambda one: prior.logits(one[None])[0], blocks)
    influence = jacobian.abs().amax((1, 3))  # of latent j (column) on latent i (row)
    assert torch.equal(influence > 0, torch.ones(6, 6).tril(-1).bool())


def test_autoregressive_draws_from_its_own_conditionals() -> None:
    """Each step of drawing, which remembers the steps before it, has the logits of the whole pass."""
    latents = LatentSpec(categorical=5, categories=4)
    prior = made({"name": "autoregressive", "width": 8, "heads": 2, "layers": 3}, latents)
    seen: list[Tensor] = []
    handle = prior.last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    z = prior.sample(7, noise())
    handle.remove()
    assert torch.allclose(torch.stack(seen, dim=1), prior.logits(z.unflatten(-1, (5, 4))), atol=1e-12)


def test_autoregressive_learns_what_depends_on_what() -> None:
    """z_1 = z_0 and z_2 = z_0 + z_1 mod 3: only log 3 nats are left, of 3 log 3 that independent latents need."""
    torch.manual_seed(0)
    latents = LatentSpec(categorical=3, categories=3)
    prior = AutoregressivePrior(latents, width=16, layers=1, heads=2)
    first = torch.arange(3)
    z = F.one_hot(torch.stack((first, first, 2 * first % 3), dim=1), 3).flatten(1).float()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (-prior.log_prob(z).mean()).backward()
        optimizer.step()
    assert -prior.log_prob(z).mean().item() == pytest.approx(math.log(3), abs=0.02)


# -- both ----------------------------------------------------------------------------------------------------------


def test_product_is_both_independently() -> None:
    latents = LatentSpec(categorical=2, categories=3)
    prior = ProductPrior(
        made({"name": "mixture", "components": 3}, LatentSpec(real=1)),
        made({"name": "categorical", "learned": True}, latents),
    )
    assert prior.latents == LatentSpec(1, 2, 3)
    real, length = grid(1, 12.0, 2001)
    every = every_category(latents)
    z = torch.cat((real[:, None].expand(-1, 9, -1), every.expand(len(real), -1, -1)), dim=-1)
    density = prior.log_prob(z).exp()
    assert (density.sum() * length).item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(density.sum(1), prior.real.log_prob(real).exp(), atol=1e-12)
    assert torch.allclose(density.sum(0) * length, prior.categorical.log_prob(every).exp(), atol=1e-6)
    drawn = prior.sample(20_000, noise()).detach()
    place = drawn[:, 1:].unflatten(-1, (2, 3)).argmax(-1) @ torch.tensor([3, 1])
    below = real[:, 0] < 0
    below_mass = density[below].sum(0) * length
    masses = torch.stack((below_mass, density.sum(0) * length - below_mass)).flatten()
    counts = (place + 9 * (drawn[:, 0] >= 0)).bincount(minlength=18)
    assert_frequencies(counts, masses.detach())


def test_product_kl_is_both_side_by_side() -> None:
    latents = LatentSpec(categorical=3, categories=4)
    normal, categorical = StandardNormal(2).double(), made({"name": "categorical", "learned": True}, latents)
    gaussian = DiagonalGaussian(torch.randn(5, 2).double(), torch.rand(5, 2).double() + 0.5)
    discrete = Categorical(torch.randn(5, 3, 4).double().log_softmax(-1))
    kl = ProductPrior(normal, categorical).kl(Product((gaussian, discrete)))
    assert kl is not None
    assert torch.equal(kl[:, :2], normal.kl(gaussian))
    assert torch.equal(kl[:, 2:], categorical.kl(discrete))
    assert ProductPrior(MixturePrior(2), categorical).kl(Product((gaussian, discrete))) is None
    assert ProductPrior(normal, AutoregressivePrior(latents)).kl(Product((gaussian, discrete))) is None
    assert ProductPrior(normal, categorical).kl(gaussian) is None


def test_product_starts_and_fits_its_parts() -> None:
    latents = LatentSpec(categorical=1, categories=3)
    vamp = VampPrior(2, encoder(), components=5)
    prior = ProductPrior(vamp, CategoricalPrior(latents))
    assert (prior.start_examples, prior.fit_draws) == (5, 0)
    x = torch.randn(5, 2, 3)
    prior.start(x)
    assert torch.equal(vamp.pseudo_inputs, x)
    aggregate = AggregatePrior(2, draws=500)
    prior = ProductPrior(aggregate, CategoricalPrior(latents))
    assert (prior.start_examples, prior.fit_draws) == (0, 500)
    z = torch.cat((5 + torch.randn(500, 2, generator=noise()), F.one_hot(torch.arange(500) % 3)), dim=-1)
    prior.fit(z, noise())
    assert prior.sample(4000, noise())[:, :2].mean(0) == pytest.approx(z[:, :2].mean(0), abs=0.1)


def test_priors_refuse_latents_of_another_kind() -> None:
    for keys in ALL:
        wrong = GRID if keys in REAL else PLANE
        with pytest.raises(InputError, match="latents, not"):
            build("prior", section("prior", keys), wrong, encoder())
