"""Importance-weighted bounds and their gradients, against expectations by quadrature on a one-dimensional Gaussian.

p(z) = N(0, 1), p(x|z) = N(a z, ½²), q(z|x) = N(m, s²). With the noise of each draw on Gauss–Hermite nodes, the mean of
every gradient estimator is a weighted sum, exact to rounding: no Monte Carlo error stands between right and wrong.
"""

import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaelab.errors import InputError
from vaelab.latents import LatentSpec
from vaelab.model import Terms
from vaelab.noise import generator
from vaelab.objectives import IWAE, MIWAE, Objective
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal

X, A, MEAN, SCALE = 1.3, 0.8, 0.4, 0.6


def nodes(draws: int, points: int = 40) -> tuple[Tensor, Tensor]:
    """Standard normal noise [draws, points ** draws] and the weight of each column."""
    at, weight = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(points))
    weight = weight / weight.sum()
    noise = torch.cartesian_prod(*[at] * draws).reshape(-1, draws).T
    return noise, torch.cartesian_prod(*[weight] * draws).reshape(-1, draws).prod(1)


def log_normal(x: Tensor, loc: Tensor, scale: Tensor | float) -> Tensor:
    return torch.distributions.Normal(loc, scale).log_prob(x)


@dataclass
class Setting:
    """Terms whose "examples" are all the same, each with parameters of its own, so that each has its own gradient."""

    terms: Terms
    mean: Tensor
    scale: Tensor
    a: Tensor


def setting(noise: Tensor, dtype: torch.dtype = torch.float64) -> Setting:
    noise = noise.to(dtype)
    mean = torch.full((noise.shape[1], 1), MEAN, dtype=dtype, requires_grad=True)
    scale = torch.full((noise.shape[1], 1), SCALE, dtype=dtype, requires_grad=True)
    a = torch.full((noise.shape[1],), A, dtype=dtype, requires_grad=True)
    z = mean + scale * noise[..., None]
    terms = Terms(
        x=torch.full((noise.shape[1], 1), X, dtype=dtype),
        z=z,
        log_px_z=log_normal(torch.tensor(X, dtype=dtype), a * z[..., 0], 0.5),
        log_pz=StandardNormal(1).log_prob(z),
        log_qz_x=-(0.5 * noise.square() + scale[:, 0].log() + 0.5 * math.log(2 * math.pi)),
        kl=None,
        posterior=DiagonalGaussian(mean, scale),
        prior=StandardNormal(1),
        likelihood=nn.Module(),  # type: ignore[arg-type]
    )
    return Setting(terms, mean, scale, a)


def mean_gradients(objective: Objective, draws: int) -> list[float]:
    """E[∂L/∂(m, s, a)] of the bound, by the objective's own estimator."""
    noise, weight = nodes(draws)
    made = setting(noise)
    objective(made.terms).value.backward()
    found = [parameter.grad for parameter in (made.mean, made.scale, made.a)]
    return [-(weight * g.flatten()).sum().item() * noise.shape[1] for g in found if g is not None]


def exact_gradients(draws: int, beta: float = 1.0) -> list[float]:
    """Central differences of L_K, written out again with torch.distributions and summed over the nodes.

    During warm-up the weights are p(x|z) (p(z)/q(z|x))^β.
    """
    noise, weight = nodes(draws)

    def bound(mean: float, scale: float, a: float) -> float:
        z = mean + scale * noise
        log_pz = log_normal(z, torch.zeros(()).double(), 1.0)
        log_qz_x = log_normal(z, torch.tensor(mean, dtype=torch.float64), scale)
        log_w = log_normal(torch.tensor(X, dtype=torch.float64), a * z, 0.5) + beta * (log_pz - log_qz_x)
        return (weight * log_w.exp().mean(0).log()).sum().item()

    step, at = 1e-5, [MEAN, SCALE, A]
    steps = [[step * (i == j) for j in range(3)] for i in range(3)]
    moved = [[bound(*(v + sign * s for v, s in zip(at, by, strict=True))) for sign in (1, -1)] for by in steps]
    return [(upper - lower) / (2 * step) for upper, lower in moved]


@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize("gradient", ["plain", "dreg"])
def test_the_mean_gradient_is_that_of_the_bound(gradient: Any, draws: int) -> None:
    found = mean_gradients(IWAE(num_samples=draws, gradient=gradient), draws)
    assert found == pytest.approx(exact_gradients(draws), rel=1e-7, abs=1e-8)
    assert min(map(abs, found)) > 0.01


@pytest.mark.parametrize("gradient", ["plain", "dreg"])
def test_during_warm_up_too(gradient: Any) -> None:
    """After 3 of 10 updates the ratio p(z)/q(z|x) has the power 0.3; the reported bound has it whole."""
    objective = IWAE(num_samples=3, gradient=gradient, warmup=10)
    objective.step = 3
    found = mean_gradients(objective, 3)
    assert found == pytest.approx(exact_gradients(3, beta=0.3), rel=1e-6)
    assert found != pytest.approx(exact_gradients(3), rel=0.1)
    terms = setting(torch.randn(3, 5, generator=generator(0)).double()).terms
    assert objective(terms).metrics["bound"].item() == -IWAE(num_samples=3)(terms).value.item()
    for step in (10, None):
        objective.step = step
        assert objective(terms).value.item() == IWAE(num_samples=3)(terms).value.item()
    objective.step = 3
    assert objective(terms).value.item() != IWAE(num_samples=3)(terms).value.item()


def test_sticking_the_landing_has_the_mean_of_the_gradient_for_one_draw_alone() -> None:
    """For K > 1 what it leaves out is no longer zero on average; the decoder's gradient is right throughout."""
    assert mean_gradients(IWAE(num_samples=1, gradient="stl"), 1) == pytest.approx(exact_gradients(1), rel=1e-7)
    for draws in (2, 3):
        *encoder, decoder = mean_gradients(IWAE(num_samples=draws, gradient="stl"), draws)
        *exact_encoder, exact_decoder = exact_gradients(draws)
        assert decoder == pytest.approx(exact_decoder, rel=1e-7)
        for one, other in zip(encoder, exact_encoder, strict=True):
            assert abs(one - other) > 0.02  # beside a quadrature error of 1e-8


def test_the_doubly_reparameterized_gradient_is_steadier() -> None:
    """At the true posterior log w is constant in z, and dreg and stl have no variance at all; plain has."""
    spread = {}
    for gradient in ("plain", "dreg", "stl"):
        noise = torch.randn(4, 1000, generator=generator(0)).double()
        precision = 1 + (A / 0.5) ** 2
        made = setting(noise)
        made.mean.data.fill_(X * A / 0.25 / precision)
        made.scale.data.fill_(precision**-0.5)
        z = made.mean + made.scale * noise[..., None]
        terms = Terms(
            **{
                **vars(made.terms),
                "z": z,
                "log_px_z": log_normal(torch.tensor(X, dtype=torch.float64), A * z[..., 0], 0.5),
                "log_pz": StandardNormal(1).log_prob(z),
                "log_qz_x": -(0.5 * noise.square() + made.scale[:, 0].log() + 0.5 * math.log(2 * math.pi)),
            }
        )
        IWAE(num_samples=4, gradient=gradient)(terms).value.backward()  # type: ignore[arg-type]
        assert made.mean.grad is not None
        spread[gradient] = made.mean.grad.std().item() * 1000
    assert spread["plain"] > 0.5
    assert spread["dreg"] < 1e-10
    assert spread["stl"] < 1e-10


@pytest.mark.parametrize("gradient", ["plain", "dreg", "stl"])
def test_value_and_bound_are_the_bound_never_the_surrogate(gradient: Any) -> None:
    noise = torch.randn(50, 20, generator=generator(0))
    made = setting(noise, torch.float32)
    log_weights = made.terms.log_weights
    assert log_weights is not None
    exact = (log_weights.detach().double().logsumexp(0) - math.log(50)).mean().item()
    objective = IWAE(num_samples=50, gradient=gradient)
    loss = objective(made.terms)
    assert loss.metrics["bound"].item() == pytest.approx(exact, abs=1e-6)
    assert loss.value.item() == pytest.approx(-exact, abs=1e-6)
    with torch.no_grad():
        assert objective(setting(noise, torch.float32).terms).value.item() == loss.value.item()


@pytest.mark.parametrize("gradient", ["plain", "dreg", "stl"])
def test_miwae_is_the_mean_of_the_bounds_of_its_groups(gradient: Any) -> None:
    """In value and in gradient; the groups are consecutive draws, and share no weight."""
    noise = torch.randn(6, 5, generator=generator(0)).double()
    whole = setting(noise)
    loss = MIWAE(num_groups=2, num_samples=3, gradient=gradient)(whole.terms)
    loss.value.backward()
    parts = [setting(part) for part in noise.split(3)]
    values = [IWAE(num_samples=3, gradient=gradient)(part.terms).value for part in parts]
    for value in values:
        value.backward()
    assert loss.value.item() == pytest.approx((values[0] + values[1]).item() / 2, rel=1e-12)
    for name in ("mean", "scale", "a"):
        grads = [getattr(part, name).grad for part in parts]
        assert getattr(whole, name).grad.numpy() == pytest.approx(((grads[0] + grads[1]) / 2).numpy(), rel=1e-9)


def test_miwae_holds_the_two_simpler_bounds() -> None:
    terms = setting(torch.randn(6, 5, generator=generator(0)).double()).terms
    assert terms.log_weights is not None
    one_group = MIWAE(num_groups=1, num_samples=6)
    assert one_group.num_samples == 6
    assert MIWAE(num_groups=2, num_samples=3).num_samples == 6
    assert one_group(terms).value.item() == IWAE(num_samples=6)(terms).value.item()
    single = MIWAE(num_groups=6, num_samples=1)(terms).value.item()
    assert single == pytest.approx(-terms.log_weights.mean().item(), rel=1e-12)


@pytest.mark.parametrize(("gradient", "power"), [("stl", 1), ("dreg", 2)])
def test_the_path_gradients_by_hand(gradient: Any, power: int) -> None:
    """Σ_k w̃_k^power dlog w_k/dz_k dz_k/dφ with the derivatives on paper, for one example of three draws."""
    noise = torch.tensor([[-1.0], [0.2], [0.9]]).double()
    made = setting(noise)
    IWAE(num_samples=3, gradient=gradient)(made.terms).value.backward()
    eps = noise[:, 0].numpy()
    z = MEAN + SCALE * eps
    log_w = made.terms.log_weights
    assert log_w is not None and made.mean.grad is not None and made.scale.grad is not None and made.a.grad is not None
    w = log_w[:, 0].softmax(0).detach().numpy()
    slope = A * (X - A * z) / 0.25 - z + (z - MEAN) / SCALE**2
    assert -made.mean.grad.item() == pytest.approx(float((w**power * slope).sum()), rel=1e-10)
    assert -made.scale.grad.item() == pytest.approx(float((w**power * slope * eps).sum()), rel=1e-10)
    assert -made.a.grad.item() == pytest.approx(float((w * z * (X - A * z) / 0.25).sum()), rel=1e-10)


def test_a_frozen_encoder_leaves_the_decoder_its_gradient() -> None:
    noise = torch.randn(4, 3, generator=generator(0)).double()
    grads = []
    for gradient, frozen in itertools.product(("plain", "dreg"), (False, True)):
        made = setting(noise)
        terms = made.terms
        if frozen:
            z = terms.z.detach()
            log_px_z = log_normal(torch.tensor(X, dtype=torch.float64), made.a * z[..., 0], 0.5)
            assert terms.log_qz_x is not None
            terms = Terms(**{**vars(terms), "z": z, "log_px_z": log_px_z, "log_pz": terms.log_pz.detach()})
            terms.log_qz_x = made.terms.log_qz_x.detach() if made.terms.log_qz_x is not None else None
        IWAE(num_samples=4, gradient=gradient)(terms).value.backward()  # type: ignore[arg-type]
        assert made.a.grad is not None
        grads.append(made.a.grad)
    for grad in grads[1:]:
        assert grad.numpy() == pytest.approx(grads[0].numpy(), rel=1e-10)


def test_what_the_gradients_need_of_the_posterior() -> None:
    assert IWAE().needs == {"density", "reparameterized"} == IWAE.needs
    for made in (IWAE(gradient="dreg"), MIWAE(gradient="stl")):
        assert made.needs == {"density", "reparameterized", "log-prob"}
    relaxed: Any = SimpleNamespace(latents=LatentSpec(categorical=2, categories=3))
    real: Any = SimpleNamespace(latents=LatentSpec(real=2))
    with pytest.raises(InputError, match=r"objective.gradient=dreg counts on .* use objective.gradient=plain"):
        IWAE(gradient="dreg").check(relaxed)
    IWAE(gradient="dreg").check(real)
    IWAE().check(relaxed)
