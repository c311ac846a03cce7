"""KL, ELBO and the importance-weighted bound against exact answers (oracles 3 and 4)."""

import math
from itertools import pairwise

import pytest
import torch
from exact import grid, quadrature
from torch import Tensor, nn

from vaelab.composition import compose
from vaelab.config import resolve
from vaelab.data.spec import DataSpec
from vaelab.model import VAE, Terms
from vaelab.noise import generator
from vaelab.objectives import ELBO, IWAE, Distortion
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal


def small_vae(latent_dim: int, seed: int = 0, spread: float = 3.0) -> tuple[VAE, Tensor]:
    """A VAE on six binary pixels whose decoder is steep, so that posterior and bound differ well; and 8 examples."""
    torch.manual_seed(seed)
    config = resolve("test", {}, {"model.latent_dim": latent_dim, "network.hidden": [8], "network.activation": "tanh"})
    model = compose(config, DataSpec((6,), "binary", 2)).double()
    for parameter in model.decoder.parameters():
        parameter.data *= spread
    return model, (torch.rand(8, 6) < 0.5).double()


def test_kl_agrees_with_torch_and_with_monte_carlo() -> None:
    loc, scale = torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1
    posterior, prior = DiagonalGaussian(loc, scale), StandardNormal(3).double()
    kl = prior.kl(posterior)
    assert kl is not None
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(loc, scale), torch.distributions.Normal(0.0, torch.ones(3).double())
    )
    assert kl.numpy() == pytest.approx(exact.numpy(), rel=1e-12)
    z, log_q = posterior.rsample_with_log_prob(100_000, generator(0))
    ratio = log_q - prior.log_prob(z)
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert torch.all((ratio.mean(0) - kl.sum(-1)).abs() < 4 * error)
    assert error.max() < 0.02


def test_the_log_density_of_a_draw_is_the_log_density_there() -> None:
    posterior = DiagonalGaussian(torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.1)
    z, log_q = posterior.rsample_with_log_prob(6, generator(1))
    exact = torch.distributions.Normal(posterior.loc, posterior.scale).log_prob(z).sum(-1)
    assert log_q.numpy() == pytest.approx(exact.numpy(), abs=1e-10)
    assert posterior.log_prob(z).numpy() == pytest.approx(exact.numpy(), abs=1e-10)


@pytest.mark.parametrize("dims", [1, 2])
def test_prior_and_posterior_densities_integrate_to_one(dims: int) -> None:
    z, cell = grid(dims, edge=10, points=401)
    posterior = DiagonalGaussian(
        torch.tensor([[0.5, -1.0]])[:, :dims].double(), torch.tensor([[0.3, 1.2]])[:, :dims].double()
    )
    for log_density in (StandardNormal(dims).log_prob(z), posterior.log_prob(z[:, None])[:, 0]):
        assert (log_density.exp().sum() * cell).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dims", [1, 2])
def test_the_gap_below_log_px_is_the_divergence_from_the_true_posterior(dims: int) -> None:
    """log p(x) − ELBO = KL(q(z|x) ‖ p(z|x)), example by example; both sides by quadrature but for the ELBO."""
    model, x = small_vae(dims)
    log_px, divergence = quadrature(model, x)
    terms = model.terms(x, num_samples=20_000, generator=generator(0))
    assert terms.rate is not None and terms.log_weights is not None
    elbo = -(terms.rate + terms.distortion)
    error = terms.log_px_z.std(0) / math.sqrt(20_000)
    assert divergence.min() > 0.01
    assert torch.all((log_px - elbo - divergence).abs() < 5 * error)
    assert torch.all(terms.log_weights.mean(0) < log_px)


def test_importance_weighted_bounds_rise_to_log_px() -> None:
    model, x = small_vae(2)
    log_px, _ = quadrature(model, x)
    weights = model.terms(x, num_samples=64_000, generator=generator(0)).log_weights
    assert weights is not None
    bounds: list[float] = []
    for k in (1, 4, 16, 64, 4000):
        groups = weights.unflatten(0, (-1, k))
        bounds.append((groups.logsumexp(1) - math.log(k)).mean().item())
    assert all(lower < upper for lower, upper in pairwise(bounds))
    assert log_px.mean().item() - 0.01 < bounds[-1] < log_px.mean().item() + 0.005
    assert log_px.mean().item() - bounds[0] > 0.1


def test_elbo_is_beta_times_the_rate_and_the_batch_mean_once() -> None:
    model, x = small_vae(2)
    terms = model.terms(x, 3, generator(0))
    mean, log_variance = model.posterior.head(model.encoder(x)).chunk(2, -1)  # type: ignore[operator]
    rate = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(-1)
    distortion = -terms.log_px_z.mean(0)
    for beta in (0.0, 1.0, 4.0):
        by_hand = sum((distortion[i] + beta * rate[i]).item() for i in range(8)) / 8
        loss = ELBO(beta=beta, num_samples=3)(terms)
        assert loss.value.item() == pytest.approx(by_hand, rel=1e-12)
        assert loss.metrics["elbo"].item() == pytest.approx(-(rate.mean() + distortion.mean()).item(), rel=1e-12)
    assert Distortion()(terms).value.item() == pytest.approx(distortion.mean().item(), rel=1e-12)


def test_iwae_is_log_mean_exp_over_draws_and_its_gradient_is_the_normalized_weights() -> None:
    log_weights = torch.randn(5, 8).double().mul(4).requires_grad_()
    loss = IWAE(num_samples=5)(_only_weights(log_weights))
    expected = -(log_weights.exp().mean(0).log()).mean()
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.value.backward()
    assert log_weights.grad is not None
    assert log_weights.grad.numpy() == pytest.approx(-log_weights.softmax(0).detach().numpy() / 8, rel=1e-10)


def test_iwae_with_one_sample_is_the_elbo_of_that_sample() -> None:
    model, x = small_vae(2)
    terms = model.terms(x, 1, generator(0))
    assert terms.log_weights is not None
    assert IWAE(num_samples=1)(terms).value.item() == pytest.approx(-terms.log_weights.mean().item(), rel=1e-12)


def test_the_iwae_gradient_is_that_of_the_bound() -> None:
    """Against central differences with the same noise, in float64."""
    model, x = small_vae(1)
    objective = IWAE(num_samples=4)
    weight = next(model.parameters())

    def loss() -> Tensor:
        return objective(model.terms(x, 4, generator(0))).value

    (found,) = torch.autograd.grad(loss(), weight)
    for index in [(0, 0), (3, 2), (7, 5)]:
        step = 1e-5
        with torch.no_grad():
            weight[index] += step
            upper = loss()
            weight[index] -= 2 * step
            lower = loss()
            weight[index] += step
        assert found[index].item() == pytest.approx((upper - lower).item() / (2 * step), rel=1e-5, abs=1e-8)


def _only_weights(log_weights: Tensor) -> Terms:
    zeros = torch.zeros_like(log_weights)
    nothing = nn.Module()
    return Terms(
        x=zeros,
        z=zeros,
        log_px_z=log_weights,
        log_pz=zeros,
        log_qz_x=zeros,
        kl=None,
        posterior=nothing,  # type: ignore[arg-type]
        prior=nothing,  # type: ignore[arg-type]
        likelihood=nothing,  # type: ignore[arg-type]
    )
