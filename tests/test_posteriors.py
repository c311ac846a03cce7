"""Every registered posterior against exact answers; what a posterior claims to provide decides what it is held to."""

import copy
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import grid
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaelab.config import build, names, section
from vaelab.errors import InputError
from vaelab.noise import generator
from vaelab.posteriors import Categorical, FlowDistribution, FullGaussian, PlanarFlow, Posterior, PosteriorDistribution
from vaelab.priors import StandardNormal

FEATURES = 3
SMALL: dict[str, dict[str, Any]] = {
    "gumbel-softmax": {"categories": 3},
    "planar": {"steps": 4},
    "iaf": {"hidden": [16, 16], "context": 2},
    "spline": {"hidden": [16, 16], "context": 2},
}


def fresh(name: str, latent_dim: int = 2, **keys: Any) -> Posterior:
    """A posterior as training finds it, in float64."""
    torch.manual_seed(0)
    config = section("posterior", {"name": name, **SMALL.get(name, {}), **keys})
    return build("posterior", config, FEATURES, latent_dim).double()


def trained(name: str, latent_dim: int = 2, spread: float = 0.3, **keys: Any) -> Posterior:
    """The same with all its weights moved, so that nothing is the identity."""
    posterior = fresh(name, latent_dim, **keys)
    for parameter in posterior.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    return posterior


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, FEATURES, dtype=torch.float64, generator=generator(1))


def registered() -> dict[str, Posterior]:
    """Every distribution of z; quantizers, which the same key chooses, have tests of their own."""
    made = {name: fresh(name) for name in names("posterior")}
    return {name: one for name, one in made.items() if not one.by_place}


def those(*capabilities: str, holds: str | None = None) -> list[str]:
    """Names of the posteriors that provide all of these."""
    return [
        name
        for name, one in registered().items()
        if set(capabilities) <= one.provides and holds in (None, one.latents.holds)
    ]


ALL = those()
REAL_DENSITY = those("density", holds="real")
LOG_PROB = those("log-prob")
FLOWS = [name for name in ALL if isinstance(fresh(name)(features()), FlowDistribution)]


def one_hots(latents: int, categories: int) -> Tensor:
    """Every value of z, [categories ** latents, latents · categories]."""
    chosen = torch.tensor(list(product(range(categories), repeat=latents)))
    return nn.functional.one_hot(chosen, categories).flatten(1).double()


def within_errors(draws: Tensor, expected: Tensor, errors: float = 5.0) -> None:
    """The mean of draws [K, ...] is as expected, to so many standard errors; an error is 1e-9 at least."""
    error = draws.std(0) / math.sqrt(len(draws)) + 1e-9
    assert ((draws.mean(0) - expected).abs() / error).max() < errors


# -- densities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", those("log-prob", holds="real"))
@torch.no_grad()
def test_density_integrates_to_one_and_marginals_integrate_it(name: str) -> None:
    """On a grid of 8 standard deviations each way. Its middle is the mean, where some densities have a peak."""
    posterior = trained(name)
    distribution = posterior(features(1))
    points = 301
    unit, cell = grid(2, 8.0, points)
    z = (distribution.mean + distribution.stddev * unit)[:, None]
    cell_sides = math.sqrt(cell) * distribution.stddev[0]
    density = distribution.log_prob(z).exp().view(points, points)
    assert density.sum() * cell_sides.prod() == pytest.approx(1, abs=2e-3)
    if "marginals" in posterior.provides:
        marginals = distribution.marginal_log_prob(z).exp().view(points, points, 2)
        assert torch.allclose(density.sum(1) * cell_sides[1], marginals[:, 0, 0], rtol=2e-3, atol=1e-6)
        assert torch.allclose(density.sum(0) * cell_sides[0], marginals[0, :, 1], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", those("log-prob", holds="categorical"))
@torch.no_grad()
def test_probabilities_sum_to_one_and_marginals_sum_them(name: str) -> None:
    distribution = trained(name)(features())
    z = one_hots(2, 3)[:, None].expand(-1, 3, -1)
    probability = distribution.log_prob(z).exp()
    assert torch.allclose(probability.sum(0), torch.ones(3).double())
    by_value = probability.view(3, 3, 3)
    marginals = distribution.marginal_log_prob(z).exp().view(3, 3, 3, 2)
    assert torch.allclose(by_value.sum(1), marginals[:, 0, :, 0])
    assert torch.allclose(by_value.sum(0), marginals[0, :, :, 1])


@pytest.mark.parametrize("name", REAL_DENSITY)
@torch.no_grad()
def test_draws_have_the_density_that_comes_with_them(name: str) -> None:
    """E_q[f(z) / q(z)] = ∫ f = 1 for any density f within q's reach. It needs no log-density at other points."""
    distribution = trained(name)(features())
    z, log_q = distribution.rsample_with_log_prob(100_000, generator(0))
    centre, spread = z.mean(0), z.std(0)
    for shift in (-0.7, 0.0, 0.7):
        narrow = Normal(centre + shift * spread * torch.tensor([1, -0.5]), 0.4 * spread)
        within_errors((narrow.log_prob(z).sum(-1) - log_q).exp(), torch.ones(3))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_log_determinant_of_a_flow_is_that_of_its_jacobian(name: str, latent_dim: int) -> None:
    distribution = trained(name, latent_dim)(features(1))
    for noise in 1.5 * torch.randn(5, 1, 1, latent_dim, dtype=torch.float64, generator=generator(0)):
        jacobian = torch.autograd.functional.jacobian(lambda e: distribution.transform(e)[0].flatten(), noise)
        log_det = distribution.transform(noise)[1].item()
        assert log_det == pytest.approx(jacobian.view(latent_dim, latent_dim).slogdet()[1].item(), abs=1e-9)


@pytest.mark.parametrize("name", LOG_PROB)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
@torch.no_grad()
def test_log_prob_of_own_draws_and_of_each_under_every_example(name: str, latent_dim: int) -> None:
    posterior = trained(name, latent_dim)
    distribution = posterior(features())
    for draw in (distribution.rsample_with_log_prob, distribution.sample_with_log_prob):
        z, log_q = draw(4, generator(0))
        assert log_q is not None
        assert torch.allclose(distribution.log_prob(z), log_q, atol=1e-8)
        crossed = distribution.log_prob(z[..., None, :])
        assert torch.allclose(crossed.diagonal(dim1=-2, dim2=-1), log_q, atol=1e-8)
        alone = posterior(features()[2:]).log_prob(z[1, 0][None])
        assert crossed[1, 0, 2].item() == pytest.approx(alone.item(), abs=1e-8)
        assert torch.allclose(distribution.log_prob(z[0]), log_q[0], atol=1e-8)
        if "marginals" in posterior.provides:
            marginal = distribution.marginal_log_prob(z[..., None, :])
            assert torch.allclose(marginal[1, 0, 2], posterior(features()[2:]).marginal_log_prob(z[1, 0][None])[0])


# -- KL and moments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_kl_in_closed_form_is_that_of_draws(name: str) -> None:
    posterior = trained(name, 3)
    distribution = posterior(features())
    prior = StandardNormal(posterior.latents.width).double()
    kl = prior.kl(distribution)
    assert (kl is not None) == ("moments" in posterior.provides and "density" in posterior.provides)
    if kl is not None:
        z, log_q = distribution.rsample_with_log_prob(100_000, generator(0))
        within_errors(log_q - prior.log_prob(z), kl.sum(-1))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("gaussian", lambda q: kl_divergence(Normal(q.loc, q.scale), Normal(0.0, 1.0)).sum(-1)),
        ("laplace", lambda q: kl_divergence(TorchLaplace(q.loc, q.scale), Normal(0.0, 1.0)).sum(-1)),
        (
            "full-gaussian",
            lambda q: kl_divergence(
                MultivariateNormal(q.loc, scale_tril=q.scale_tril), MultivariateNormal(torch.zeros(4), torch.eye(4))
            ),
        ),
    ],
)
@torch.no_grad()
def test_kl_is_that_of_torch(name: str, same: Callable[[Any], Tensor]) -> None:
    distribution = trained(name, 4)(features())
    kl = StandardNormal(4).kl(distribution)
    assert kl is not None and torch.allclose(kl.sum(-1), same(distribution), rtol=1e-6)


@torch.no_grad()
def test_kl_of_a_full_gaussian_goes_by_the_chain_rule() -> None:
    """Column j against E[KL(q(z_j|z_<j) ‖ N(0, 1))], with the conditional from the covariance's blocks."""
    distribution = trained("full-gaussian", 4)(features())
    kl = StandardNormal(4).kl(distribution)
    assert kl is not None
    loc, covariance = distribution.mean, distribution.covariance
    for j in range(4):
        cross = covariance[:, j, :j]
        explained = (cross * torch.linalg.solve(covariance[:, :j, :j], cross[..., None])[..., 0]).sum(-1)
        variance = covariance[:, j, j] - explained
        expected = 0.5 * (variance + loc[:, j] ** 2 + explained - 1 - variance.log())
        assert torch.allclose(kl[:, j], expected)


@pytest.mark.parametrize("name", those("stochastic"))
@torch.no_grad()
def test_moments_are_those_of_draws(name: str) -> None:
    posterior = trained(name, 3)
    distribution = posterior(features())
    z, _ = distribution.sample_with_log_prob(50_000, generator(0))
    mean, stddev = distribution.mean, distribution.stddev
    assert stddev is not None
    if isinstance(distribution, FlowDistribution):  # 64 draws stand for all
        assert ((mean - z.mean(0)) / z.std(0)).abs().max() < 0.3
        assert (stddev / z.std(0)).log().abs().max() < 0.3
        return
    within_errors(z, mean)
    within_errors((z - mean).square(), stddev.square())
    if "moments" in posterior.provides:
        offset = z - mean
        covariance = distribution.covariance
        within_errors(offset[..., :, None] * offset[..., None, :], covariance)
        assert torch.allclose(covariance.diagonal(dim1=-2, dim2=-1), stddev.square())


@torch.no_grad()
def test_a_point_has_no_covariance() -> None:
    assert not fresh("deterministic")(features()).covariance.any()


@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_moments_of_a_flow_do_not_depend_on_chance_or_company(name: str) -> None:
    posterior = trained(name, 4)
    x = features()
    torch.manual_seed(1)
    first = posterior(x)
    torch.manual_seed(2)
    alone = posterior(x[1:2])
    assert torch.allclose(first.mean[1:2], alone.mean, atol=1e-12)
    assert torch.allclose(first.stddev[1:2], alone.stddev, atol=1e-12)


# -- the start, and learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", those("density", "stochastic", holds="real"))
@pytest.mark.parametrize("latent_dim", [1, 2, 20])
@torch.no_grad()
def test_starts_with_the_moments_and_the_rate_of_the_diagonal_gaussian(name: str, latent_dim: int) -> None:
    posterior, gaussian = fresh(name, latent_dim), fresh("gaussian", latent_dim)
    for own, other in zip(posterior.head.parameters(), gaussian.head.parameters(), strict=True):
        other.copy_(own[: 2 * latent_dim])
    distribution, base = posterior(features()), gaussian(features())
    assert torch.allclose(distribution.mean, base.mean, atol=1e-12)
    assert torch.allclose(distribution.stddev, base.stddev)
    if name == "laplace":  # equal moments, less entropy: log √(πe/2) … 0.0724 nats a latent
        kl = StandardNormal(latent_dim).kl
        excess = 0.5 * (math.log(math.pi) - 1)
        assert torch.allclose(kl(distribution), kl(base) + excess)
        return
    z, log_q = distribution.rsample_with_log_prob(50, generator(0))
    same_z, same_log_q = base.rsample_with_log_prob(50, generator(0))
    assert torch.allclose(z, same_z) and torch.allclose(log_q, same_log_q)


@pytest.mark.parametrize("name", those("density", "stochastic", holds="real"))
@torch.no_grad()
def test_scales_are_log_variances(name: str) -> None:
    """A log-variance taken for a logarithm of the standard deviation gives 9 for 3 here."""
    posterior = fresh(name)
    posterior.head.weight.zero_()
    posterior.head.bias[:4] = torch.tensor([1.0, -2.0, math.log(3**2), math.log(0.5**2)])
    distribution = posterior(features())
    assert torch.allclose(distribution.mean, torch.tensor([1.0, -2.0]).double())
    assert torch.allclose(distribution.stddev, torch.tensor([3.0, 0.5]).double())


def banana(z: Tensor) -> Tensor:
    """A normalized log-density that no Gaussian has: z_2 lies about z_1² − 1."""
    return Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z[..., 0] ** 2 - 1, 0.5).log_prob(z[..., 1])


def oblique(z: Tensor) -> Tensor:
    """A Gaussian of correlation 0.9."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=z.dtype)
    return MultivariateNormal(torch.tensor([1.0, -1.0], dtype=z.dtype), covariance).log_prob(z)


def fitted_kl(name: str, target: Callable[[Tensor], Tensor], steps: int = 300, rate: float = 0.02) -> float:
    """KL(q ‖ target) in nats after training in float32; every loss on the way is finite."""
    posterior = fresh(name).float()
    optimizer = torch.optim.Adam(posterior.parameters(), rate)
    noise, x = generator(0), torch.ones(1, FEATURES)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        z, log_q = posterior(x).rsample_with_log_prob(256, noise)
        loss = (log_q - target(z)).mean()
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z, log_q = posterior(x).rsample_with_log_prob(20_000, noise)
        return (log_q - target(z)).mean().item()


def test_flows_learn_what_a_gaussian_cannot() -> None:
    # With variance u of z_1, the diagonal Gaussian's KL is −½ ln u + u/2 + 4 u² − ½, least where 16 u² + u = 1.
    u = (math.sqrt(65) - 1) / 32
    limit = -0.5 * math.log(u) + u / 2 + 4 * u**2 - 0.5
    assert fitted_kl("gaussian", banana) == pytest.approx(limit, abs=0.02)
    for name in FLOWS:
        assert fitted_kl(name, banana) < 0.5 * limit


def test_a_full_gaussian_learns_correlation() -> None:
    assert fitted_kl("gaussian", oblique) == pytest.approx(-0.5 * math.log(1 - 0.9**2), abs=0.02)
    assert fitted_kl("full-gaussian", oblique) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_far_from_the_start(name: str) -> None:
    posterior = trained(name, 4, spread=1.0).float()
    z, log_q = posterior(5 * features().float()).rsample_with_log_prob(8, generator(0))
    value = z.square().mean() if log_q is None else z.square().mean() + log_q.mean()
    value.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in posterior.parameters())


@pytest.mark.parametrize("name", LOG_PROB)
@torch.no_grad()
def test_single_precision_is_enough(name: str) -> None:
    keys = {"hidden": [128, 128], "context": 32} if name in FLOWS else {}
    double = trained(name, 20, spread=0.1, **keys)
    single = copy.deepcopy(double).float()
    z, log_q = single(features().float()).rsample_with_log_prob(100, generator(0))
    exact = double(features()).log_prob(z.double())
    assert exact.std() > 0.5  # there is something to get wrong
    assert (single(features().float()).log_prob(z) - exact).abs().max() < 1e-3
    assert (log_q - exact).abs().max() < 1e-3


# -- capabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_provides_what_it_claims_and_claims_what_it_provides(name: str) -> None:
    posterior = trained(name)
    distribution: PosteriorDistribution = posterior(features())
    z, log_q = distribution.rsample_with_log_prob(2, generator(0))
    assert z.shape == (2, 3, posterior.latents.width) and z.dtype == torch.float64
    claims: dict[str, Callable[[], Any]] = {
        "log-prob": lambda: (distribution.log_prob(z), distribution.detached()),
        "marginals": lambda: distribution.marginal_log_prob(z),
        "moments": lambda: distribution.covariance,
    }
    for capability, use in claims.items():
        if capability in posterior.provides:
            use()
        else:
            with pytest.raises(NotImplementedError):
                use()
    assert posterior.holds == posterior.latents.holds
    assert ("density" in posterior.provides) == (log_q is not None)
    assert ("stochastic" in posterior.provides) == (not torch.equal(z[0], z[1])) == (distribution.stddev is not None)
    assert "reparameterized" in posterior.provides
    z.pow(3).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in posterior.parameters())


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_the_generator_replays_draws_and_nothing_else_decides_them(name: str) -> None:
    posterior = trained(name)
    distribution = posterior(features())
    for draw in (distribution.rsample_with_log_prob, distribution.sample_with_log_prob):
        noise = generator(3)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first, again = draw(2, noise), draw(2, noise)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)
        replayed = draw(2, generator(3))
        assert torch.equal(replayed[0], first[0])
        assert replayed[1] is None or torch.equal(replayed[1], first[1])
        if "stochastic" in posterior.provides and posterior.latents.holds == "real":
            assert not torch.equal(again[0], first[0])


@pytest.mark.parametrize("name", LOG_PROB)
def test_detached_passes_gradient_to_z_alone(name: str) -> None:
    posterior = trained(name)
    x = features().requires_grad_()
    distribution = posterior(x)
    z = distribution.rsample_with_log_prob(2, generator(0))[0].detach().requires_grad_()
    (expected,) = torch.autograd.grad(distribution.log_prob(z).sum(), z, retain_graph=True)
    value = distribution.detached().log_prob(z)
    assert torch.allclose(value, distribution.log_prob(z))
    value.sum().backward()
    assert z.grad is not None and torch.allclose(z.grad, expected) and expected.any()
    assert x.grad is None and all(parameter.grad is None for parameter in posterior.parameters())
    assert posterior(x).log_prob(z.detach()).requires_grad  # the original still does


@pytest.mark.parametrize("name", ALL)
def test_copies_saves_and_averages(name: str, tmp_path: Path) -> None:
    posterior = trained(name, 5).float()
    # The moving average goes over buffers too, and rounds whole numbers down.
    assert all(buffer.dtype in (torch.float32, torch.bool) for buffer in posterior.buffers())

    def draw(one: nn.Module) -> Tensor:
        with torch.no_grad():
            return one(features().float()).rsample_with_log_prob(3, generator(0))[0]

    expected = draw(posterior)
    average = AveragedModel(posterior, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(5):
        average.update_parameters(posterior)
    assert torch.allclose(draw(average), expected, atol=1e-4)
    save_file(posterior.state_dict(), tmp_path / "weights.safetensors")
    other = fresh(name, 5).float()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(draw(other), expected)
    twin = copy.deepcopy(posterior)
    for parameter in posterior.parameters():
        parameter.data.zero_()
    assert torch.equal(draw(twin), expected) and not torch.equal(draw(posterior), expected)


# -- families ----------------------------------------------------------------------------------------------------


def test_true_draws_have_the_probabilities_and_relaxed_ones_come_to_them() -> None:
    logits = torch.tensor([[[0.0, 1.0, -2.0], [3.0, 0.0, 0.0]]], dtype=torch.float64).log_softmax(-1)
    distribution = Categorical(logits)
    exact, _ = distribution.sample_with_log_prob(100_000, generator(0))
    assert torch.equal(exact.unflatten(-1, (2, 3)).max(-1).values, torch.ones(100_000, 1, 2).double())
    assert torch.equal(exact.unflatten(-1, (2, 3)).sum(-1), torch.ones(100_000, 1, 2).double())
    within_errors(exact, logits.exp().flatten(-2))
    joint = (exact.view(-1, 2, 3)[:, 0, :, None] * exact.view(-1, 2, 3)[:, 1, None, :]).flatten(1)
    within_errors(joint, (logits[0, 0, :, None] + logits[0, 1, None, :]).exp().flatten())
    for temperature, distance in ((1e-4, 1e-3), (0.1, 0.1), (1.0, 0.6)):
        relaxed, _ = Categorical(logits, temperature).rsample_with_log_prob(100_000, generator(0))
        assert torch.allclose(relaxed.unflatten(-1, (2, 3)).sum(-1), torch.ones(1).double())
        assert torch.equal(relaxed.view(-1, 3).argmax(-1), exact.view(-1, 3).argmax(-1))  # the same noise
        assert (relaxed - exact).abs().mean() < distance
    assert (relaxed - exact).abs().mean() > 0.1
    uniform, _ = Categorical(logits, 1e4).rsample_with_log_prob(10, generator(0))
    assert torch.allclose(uniform, torch.full_like(uniform, 1 / 3), atol=1e-2)


def test_relaxed_draws_follow_the_concrete_density() -> None:
    """Two categories: the logit of z_1 is logistic about (log π_1 − log π_2) / τ, of scale 1 / τ (Maddison et al.)."""
    logits = torch.tensor([[[0.5, -0.5]]], dtype=torch.float64).log_softmax(-1)
    z, log_q = Categorical(logits, 0.5).rsample_with_log_prob(100_000, generator(0))
    logit = (z[..., 0] / z[..., 1]).log()
    within_errors(logit, torch.tensor([2.0]))
    within_errors((logit - 2).square(), torch.tensor([math.pi**2 / 3 / 0.25]))
    assert torch.allclose(log_q, (z * logits[0]).sum(-1))  # linear between the one-hots


def test_straight_through_has_the_value_of_one_hots_and_the_gradient_of_relaxed_draws() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator(0)).log_softmax(-1).requires_grad_()
    weights = torch.randn(12, dtype=torch.float64, generator=generator(1))
    soft, _ = Categorical(logits).rsample_with_log_prob(5, generator(2))
    hard, log_q = Categorical(logits, straight_through=True).rsample_with_log_prob(5, generator(2))
    exact, exact_log_q = Categorical(logits).sample_with_log_prob(5, generator(2))
    assert torch.equal(hard, exact) and torch.equal(log_q, exact_log_q)
    (of_hard,) = torch.autograd.grad((hard * weights).sum(), logits)
    (of_soft,) = torch.autograd.grad((soft * weights).sum(), logits)
    assert torch.allclose(of_hard, of_soft) and of_soft.any()


@pytest.mark.parametrize("along", [-60.0, -3.0, 0.0, 60.0])
def test_planar_maps_stay_invertible_whatever_their_parameters(along: float) -> None:
    """However wᵀu turns out, z moves forward along w as the noise does, and the log-determinant is right."""
    w = torch.tensor([[[2.0, -1.0]]], dtype=torch.float64)
    u = along * w / w.square().sum() + torch.tensor([0.5, 1.0], dtype=torch.float64)  # the second part: across w
    flow = PlanarFlow(torch.zeros(1, 2), torch.ones(1, 2), w, u, torch.tensor([[0.3]], dtype=torch.float64))
    line = torch.linspace(-4, 4, 2001, dtype=torch.float64)[:, None, None] * w[0] / w.norm()
    z, log_det = flow.transform(line)
    forward = (z * w[0]).sum(-1).diff(dim=0)
    assert (forward > -1e-12).all() and log_det.isfinite().all()
    slope = forward / (line * w[0]).sum(-1).diff(dim=0)
    between = (log_det[1:].exp() + log_det[:-1].exp()) / 2
    assert torch.allclose(slope, between, atol=1e-3 * between.max().item())


def test_a_step_of_the_inverse_autoregressive_flow_is_masked() -> None:
    """The Jacobian of one step is lower triangular, and that of two, of which one goes in reverse, is full."""
    for steps, triangular in ((1, True), (2, False)):
        flow = trained("iaf", 4, steps=steps)(features(1))
        noise = torch.randn(1, 1, 4, dtype=torch.float64, generator=generator(0))
        jacobian = torch.autograd.functional.jacobian(lambda e: flow.transform(e)[0].flatten(), noise).view(4, 4)  # noqa: B023
        assert (not jacobian.triu(1).any()) == triangular
        assert jacobian[*torch.tril_indices(4, 4)].abs().min() > 0


@torch.no_grad()
def test_a_spline_passes_noise_outside_its_box() -> None:
    posterior = trained("spline")
    distribution = posterior(features())
    noise = torch.tensor([5.5, -7.0], dtype=torch.float64).expand(1, 3, 2)
    z, log_det = distribution.transform(noise)
    assert torch.allclose(z, distribution.loc + distribution.scale * noise)
    assert torch.allclose(log_det, distribution.scale.log().sum(-1))
    inside = noise.sign() * 4.5
    assert not torch.allclose(distribution.transform(inside)[0], distribution.loc + distribution.scale * inside)


@torch.no_grad()
def test_a_full_gaussian_is_that_of_torch() -> None:
    distribution: FullGaussian = trained("full-gaussian", 4)(features())
    same = MultivariateNormal(distribution.loc, scale_tril=distribution.scale_tril)
    z = torch.randn(6, 3, 4, dtype=torch.float64, generator=generator(0))
    assert torch.allclose(distribution.log_prob(z), same.log_prob(z))
    assert (distribution.scale_tril.tril() == distribution.scale_tril).all()
    assert (distribution.conditional_stddev > 0).all()
    assert distribution.covariance[:, 0, 1].abs().min() > 0.01


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gumbel-softmax", "categories", 1),
        ("gumbel-softmax", "temperature", 0),
        ("planar", "steps", 0),
        ("iaf", "hidden", []),
        ("spline", "bins", 1),
    ],
)
def test_keys_that_make_no_posterior_are_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"posterior.{key}"):
        section("posterior", {"name": name, key: value})
