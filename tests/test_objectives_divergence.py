"""The maximum mean discrepancy, and the two objectives that use it."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaelab.errors import InputError
from vaelab.latents import LatentSpec
from vaelab.model import Terms
from vaelab.noise import generator
from vaelab.objectives import ELBO, WAEMMD, Distortion, InfoVAE
from vaelab.objectives.divergence import mmd_squared, rounded
from vaelab.posteriors import Categorical, Deterministic, DiagonalGaussian, PosteriorDistribution
from vaelab.priors import CategoricalPrior, Prior, StandardNormal

KERNELS: Any = pytest.mark.parametrize("kernel", ["imq", "rbf"])


def terms_of(posterior: PosteriorDistribution, draws: int, prior: Prior, seed: int = 0) -> Terms:
    noise = generator(seed)
    z, log_qz_x = posterior.rsample_with_log_prob(draws, noise)
    nothing: Any = nn.Module()
    return Terms(
        x=z[0],
        z=z,
        log_px_z=-z.square().sum(-1),
        log_pz=prior.log_prob(z),
        log_qz_x=log_qz_x,
        kl=prior.kl(posterior),
        posterior=posterior,
        prior=prior,
        likelihood=nothing,
        noise=noise,
    )


def slowly(z: Tensor, y: Tensor, kernel: str, width: float) -> float:
    """MMD² pair by pair, in float64."""

    def k(a: Tensor, b: Tensor) -> float:
        distance = float(((a.double() - b.double()) ** 2).sum())
        if kernel == "rbf":
            return math.exp(-distance / width)
        return sum(width * s / (width * s + distance) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    n = len(z)
    within = [k(v[i], v[j]) for v in (z, y) for i, j in itertools.permutations(range(n), 2)]
    across = [k(a, b) for a in z for b in y]
    return sum(within) / (n * (n - 1)) - 2 * sum(across) / n**2


@KERNELS
@pytest.mark.parametrize("offset", [0.0, 100.0, 10_000.0])
def test_the_estimate_is_the_mean_over_pairs_even_in_float32_far_from_the_origin(kernel: Any, offset: float) -> None:
    noise = generator(0)
    z, y = torch.randn(40, 6, generator=noise) + offset, 1.5 * torch.randn(40, 6, generator=noise) + offset
    exact = slowly(z, y, kernel, 12.0)
    assert mmd_squared(z, y, kernel, 12.0).item() == pytest.approx(exact, abs=3e-6)
    assert abs(exact) > 0.01


@KERNELS
def test_the_gradient_is_that_of_the_estimate_and_finite_where_draws_coincide(kernel: Any) -> None:
    z, y = torch.randn(5, 2).double().requires_grad_(), torch.randn(5, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mmd_squared(a, b, kernel, 4.0), (z, y))
    same = torch.zeros(5, 2, requires_grad=True)
    mmd_squared(same, torch.ones(5, 2), kernel, 4.0).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all() and (same.grad < 0).all()  # towards the prior's draws


def test_the_mean_of_the_estimates_is_the_discrepancy_of_two_normals() -> None:
    """E exp(−‖z − y‖²/C) for normals is on paper; 0 for equal ones, where a V-statistic would be 2 (1 − E k)/n."""
    n, dims, width, noise = 8, 3, 6.0, generator(0)
    z, y = torch.randn(2, 8_000, n, dims, generator=noise)
    for shift in (0.0, 0.5):
        exact = 2 * (width / (width + 4)) ** (dims / 2) * (1 - math.exp(-dims * shift**2 / (width + 4)))
        found = mmd_squared(z + shift, y, "rbf", width)
        error = found.std().item() / math.sqrt(len(found))
        assert found.mean().item() == pytest.approx(exact, abs=4 * error)
        assert error < 0.002
        assert (found < 0).any()


@KERNELS
def test_kernels_and_bandwidth_are_what_the_documentation_says(kernel: Any) -> None:
    """C = 2 G · bandwidth; one draw from the prior an example, and the draws of one example are never paired."""
    posterior = DiagonalGaussian(torch.randn(6, 4), torch.rand(6, 4))
    terms = terms_of(posterior, 3, StandardNormal(4))
    after = torch.Generator()
    assert terms.noise is not None
    after.set_state(terms.noise.get_state())
    y = StandardNormal(4).sample(6, after)
    exact = np.mean([slowly(z, y, kernel, 8 * 0.7) for z in terms.z])
    loss = WAEMMD(lambda_mmd=5, kernel=kernel, bandwidth=0.7)(terms)
    assert loss.metrics["mmd_squared"].item() == pytest.approx(exact, abs=2e-6)
    assert loss.value.item() == pytest.approx(terms.distortion.mean().item() + 5 * exact, abs=2e-5)


def test_info_by_hand_and_between_its_neighbours() -> None:
    posterior = DiagonalGaussian(torch.randn(6, 4).double(), torch.rand(6, 4).double())

    def terms() -> Terms:
        return terms_of(posterior, 1, StandardNormal(4).double())

    found = terms()
    assert found.rate is not None
    distortion, rate = found.distortion.mean().item(), found.rate.mean().item()
    loss = InfoVAE(alpha=0.25, lambda_mmd=20)(found)
    mmd = loss.metrics["mmd_squared"].item()
    assert loss.value.item() == pytest.approx(distortion + 0.75 * rate + 19.25 * mmd)
    assert InfoVAE(alpha=0, lambda_mmd=1)(terms()).value.item() == pytest.approx(ELBO()(terms()).value.item())
    alone = InfoVAE(alpha=1, lambda_mmd=20, kernel="imq")
    assert alone.needs == {"reparameterized"} == WAEMMD.needs
    assert alone(terms()).value.item() == pytest.approx(WAEMMD(lambda_mmd=20)(terms()).value.item())
    with pytest.raises(InputError, match=r"objective\.alpha=0\.2 and objective\.lambda_mmd=0\.5: their sum"):
        InfoVAE(alpha=0.2, lambda_mmd=0.5)


def test_a_deterministic_posterior_needs_no_density() -> None:
    terms = terms_of(Deterministic(torch.randn(6, 4)), 1, StandardNormal(4))
    for objective in (WAEMMD(), InfoVAE(alpha=1)):
        loss = objective(terms)
        assert "elbo" not in loss.metrics
        assert loss.value.isfinite()


def test_a_single_example_has_no_pairs_and_no_penalty() -> None:
    terms = terms_of(DiagonalGaussian(torch.randn(1, 4), torch.rand(1, 4)), 2, StandardNormal(4))
    assert WAEMMD()(terms).value.item() == pytest.approx(Distortion()(terms).value.item())


def test_relaxed_draws_are_compared_as_the_draws_that_they_relax() -> None:
    """Else the discrepancy from a uniform prior would be far from 0 for a posterior that equals it."""
    latents = LatentSpec(real=1, categorical=2, categories=3)
    z = torch.tensor([[7.0, 0.2, 0.5, 0.3, 0.6, 0.3, 0.1]], requires_grad=True)
    found = rounded(z, latents)
    assert found.tolist() == [[7.0, 0, 1, 0, 1, 0, 0]]
    slope = torch.arange(7.0)[None]
    (found * slope).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, slope)

    prior = CategoricalPrior(LatentSpec(categorical=2, categories=3))
    uniform = Categorical(torch.full((400, 2, 3), -math.log(3)), temperature=1.0)
    mmds = [WAEMMD()(terms_of(uniform, 1, prior, seed)).metrics["mmd_squared"].item() for seed in range(30)]
    error = np.std(mmds) / math.sqrt(30)
    assert abs(np.mean(mmds)) < 4 * error < 0.01
