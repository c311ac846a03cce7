"""Annealed importance sampling: unbiased weights forward and back, an invariant move, bounds from both sides."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import linear_gaussian, linear_log_px, linear_parts, linear_posterior
from test_evaluation_quadrature import binary, made
from torch import Tensor

from vaelab.errors import InputError
from vaelab.evaluation import Annealing, annealed_importance_sampling, bracket, evaluate, quadrature
from vaelab.evaluation.annealed import _Target  # pyright: ignore[reportPrivateUsage]
from vaelab.model import VAE
from vaelab.noise import generator
from vaelab.runs import Run


@pytest.fixture(scope="module")
def model() -> VAE:
    return linear_gaussian(2, noise_variance=1.0)


def within_errors(values: Tensor, errors: float = 5) -> bool:
    """Whether the mean of independent values is 1 within so many standard errors, and these are small."""
    error = float(values.std()) / math.sqrt(len(values))
    assert error < 0.05
    return abs(float(values.mean()) - 1) < errors * error


def test_weights_have_the_mean_that_makes_them_an_estimate(model: VAE) -> None:
    """E[w] = p(x), however few the temperatures: 3,000 single chains for one x."""
    x = model.sample(1, draw=True, generator=generator(1))
    for schedule in ("sigmoid", "linear"):
        how = Annealing(chains=1, temperatures=12, leapfrog_steps=3, schedule=schedule)
        found = annealed_importance_sampling(model, x.expand(3000, -1), how, generator(2))
        assert within_errors((found.log_px - float(linear_log_px(model, x)[0])).exp())
        assert found.variance.isnan().all()


def test_both_bounds_bracket_the_exact_value(model: VAE) -> None:
    """Single chains on 2,000 samples: exp(lower − log p) and exp(log p − upper) have the mean 1, the logs lie apart."""
    found = bracket(model, 2000, Annealing(chains=1, temperatures=8, leapfrog_steps=3), generator(3))
    exact = torch.from_numpy(linear_log_px(model, found.x))
    assert within_errors((found.lower - exact).exp())
    assert within_errors((exact - found.upper).exp())
    for below in (exact - found.lower, found.upper - exact):
        error = float(below.std()) / math.sqrt(2000)
        assert float(below.mean()) > 5 * error


def test_samples_of_the_bracket_are_those_of_the_model(model: VAE) -> None:
    weights, mean, variance = linear_parts(model)
    x = bracket(model, 4000, Annealing(chains=1, temperatures=1), generator(4)).x.numpy()
    covariance = weights @ weights.T + variance * np.eye(5)
    assert np.abs(x.mean(0) - mean).max() < 5 * math.sqrt(covariance.max() / 4000)
    assert np.abs(np.cov(x.T) - covariance).max() < 5 * math.sqrt(2 / 4000) * covariance.max()


def test_the_bracket_closes_with_temperatures_and_chains(model: VAE) -> None:
    width = {
        (chains, steps): float((found.upper - found.lower).mean())
        for chains, steps in ((1, 4), (8, 4), (8, 40))
        for found in [bracket(model, 100, Annealing(chains, steps, leapfrog_steps=5), generator(5))]
    }
    assert width[1, 4] > 1.5 * width[8, 4] > 3 * width[8, 40]
    assert 0 < width[8, 40] < 0.15


def test_the_stated_variance_is_that_of_the_estimate(model: VAE) -> None:
    x = model.sample(1, draw=True, generator=generator(1))
    how = Annealing(chains=60, temperatures=25, leapfrog_steps=3)
    found = annealed_importance_sampling(model, x.expand(200, -1), how, generator(6))
    assert 0.7 < float(found.log_px.var() / found.variance.mean()) < 1.4  # known to within 10 %
    by_size = (60 / found.effective_sample_size - 1) / 59
    assert found.variance.numpy() == pytest.approx(by_size.numpy(), rel=1e-9)


def test_the_move_leaves_its_distribution_as_it_is(model: VAE) -> None:
    """From exact draws of p(z) p(x|z)^β, a Gaussian here, one move gives draws of the same; the step is a long one."""
    beta, count = 0.4, 40_000
    x = model.sample(1, draw=True, generator=generator(7))
    weights, mean, variance = linear_parts(model)
    precision = np.eye(2) + beta * weights.T @ weights / variance
    covariance = np.linalg.inv(precision)
    center = covariance @ weights.T @ (x.numpy()[0] - mean) * beta / variance
    noise = torch.randn(count, 1, 2, dtype=torch.float64, generator=generator(8))
    z = torch.from_numpy(center) + noise @ torch.from_numpy(np.linalg.cholesky(covariance).T)
    target = _Target(model, x, None)
    step = torch.tensor([1.3 * math.sqrt(np.linalg.eigvalsh(covariance)[0])])
    place, chance = target.move(target.at(z), beta, step, 3, generator(9))
    assert 0.5 < float(chance.mean()) < 0.95, "it must reject some, for this test to say anything"
    moved = place.z[:, 0].numpy()
    assert 0.5 < (np.abs(moved - z[:, 0].numpy()).max(1) > 0).mean() < 0.95
    root = np.linalg.cholesky(precision)
    white = (moved - center) @ root
    assert np.abs(white.mean(0)).max() < 5 / math.sqrt(count)
    assert np.abs(np.cov(white.T) - np.eye(2)).max() < 5 * math.sqrt(2 / count)
    assert torch.allclose(place.log_pz, model.prior.log_prob(place.z))
    assert torch.allclose(place.log_px_z, model.decode(place.z).log_prob(x))


def test_a_long_chain_ends_at_the_posterior(model: VAE) -> None:
    """Started at the prior, 60 moves at β = 1 give the mean and covariance of p(z|x)."""
    x = model.sample(1, draw=True, generator=generator(7))
    mean, covariance = linear_posterior(model, x)
    target = _Target(model, x, None)
    noise = generator(10)
    place = target.from_prior(4000, noise)
    for _ in range(60):
        place, _ = target.move(place, 1.0, torch.tensor([0.2]), 5, noise)
    z = place.z[:, 0].numpy()
    assert np.abs(z.mean(0) - mean[0]).max() < 5 * math.sqrt(covariance.max() / 4000)
    assert np.abs(np.cov(z.T) - covariance).max() < 5 * math.sqrt(2 / 4000) * covariance.max()


def test_step_sizes_bring_the_acceptance_near_its_aim(model: VAE) -> None:
    x = model.sample(20, draw=True, generator=generator(1))
    found = annealed_importance_sampling(model, x, Annealing(chains=8, temperatures=40), generator(11))
    assert 0.55 < float(found.acceptance.mean()) < 0.8


def test_betas_rise_from_0_to_1() -> None:
    for schedule in ("sigmoid", "linear"):
        betas = np.array(Annealing(temperatures=10, schedule=schedule).betas())
        assert betas[0] == 0 and betas[-1] == 1 and len(betas) == 11 and (np.diff(betas) > 0).all()
    assert Annealing(temperatures=10).betas()[1] < 0.05  # slow where p(z) p(x|z)^β changes fastest


def test_a_seed_gives_the_same_numbers(model: VAE) -> None:
    x = model.sample(3, draw=True, generator=generator(1))
    how = Annealing(chains=2, temperatures=5, leapfrog_steps=2)
    one, same, other = (annealed_importance_sampling(model, x, how, generator(seed)).log_px for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    first, second, third = (bracket(model, 3, how, generator(seed)).upper for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ({"model.name": "hierarchical", "model.latent_dims": [1, 1], "model.hidden": 6}, None),
        ({"model.latent_dim": 1, "model.conditional": True}, torch.tensor([0, 2, 1])),
        ({"model.latent_dim": 2, "posterior.name": "deterministic"}, None),
        ({"model.latent_dim": 2, "prior.name": "mixture"}, None),
    ],
)
def test_other_models_of_real_latents_agree_with_quadrature(keys: dict[str, Any], labels: Tensor | None) -> None:
    model, x = made(**keys), binary(3)
    exact = quadrature(model, x, labels).log_px
    found = annealed_importance_sampling(
        model, x, Annealing(chains=40, temperatures=15, leapfrog_steps=3), generator(12), labels
    )
    assert float(found.variance.max()) < 0.1**2
    assert ((found.log_px - exact).abs() < 5 * found.variance.sqrt()).all()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"posterior.name": "gumbel-softmax"}, "this model's are categories; use --method importance"),
        ({"model.name": "joint"}, "this model's are partly categories; use --method importance"),
        ({"model.name": "quantized", "posterior.name": "vq"}, "this model's are categories; use --method importance"),
    ],
)
def test_categories_are_refused(keys: dict[str, Any], says: str) -> None:
    model = made(**keys)
    for call in (
        lambda: annealed_importance_sampling(model, binary(2), Annealing(), generator(0)),
        lambda: bracket(model, 2, Annealing(), generator(0)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["chains", "temperatures", "leapfrog_steps"])
def test_settings_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=0: must be at least 1"):
        Annealing(**{name: 0})  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="schedule=cosine: must be sigmoid or linear"):
        Annealing(schedule="cosine")  # pyright: ignore[reportArgumentType]


def test_evaluate_anneals_a_run(digits_run: Run) -> None:
    how = Annealing(chains=8, temperatures=40, leapfrog_steps=5)
    found = evaluate(digits_run, limit=12, method="annealed", annealing=how)
    exact = evaluate(digits_run, limit=12, method="quadrature").log_px
    assert found.log_px is not None and exact is not None and found.log_px_monte_carlo is not None
    assert found.log_px_monte_carlo < 0.2
    assert abs(found.log_px - exact) < 4 * found.log_px_monte_carlo
    assert found.annealed is not None and found.annealed["n"] == 12
    assert (found.annealed["chains"], found.annealed["temperatures"]) == (8, 40)
    width = found.annealed["upper"] - found.annealed["lower"]
    assert found.annealed["width"] == pytest.approx(width) and width > -3 * found.annealed["width_stderr"]
    assert 0.5 < found.annealed["acceptance"] < 0.9
    assert found.effective_sample_size is not None and 1 < found.effective_sample_size <= 8
    assert found.bits_per_dim == pytest.approx(-found.log_px / (64 * math.log(2)))
    assert (found.log_px_method, found.importance_samples, found.warning) == ("annealed", 0, None)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "log_px by annealing" in str(found) and "on 12 samples of the model, 8 chains each" in str(found)
    assert max(map(len, str(found).splitlines())) <= 80


def test_bounds_that_are_far_apart_come_with_a_warning(digits_run: Run) -> None:
    hasty = evaluate(digits_run, limit=12, method="annealed", annealing=Annealing(chains=2, temperatures=2))
    assert hasty.annealed is not None and hasty.annealed["width"] > 1
    assert hasty.warning is not None and "use --temperatures 20" in hasty.warning
    assert f"{hasty.annealed['width']:.3g} nats apart" in str(hasty).replace("\n", " ")


def test_the_settings_of_another_method_are_refused(digits_run: Run) -> None:
    with pytest.raises(InputError, match="use --method annealed"):
        evaluate(digits_run, annealing=Annealing(chains=2))
    with pytest.raises(InputError, match="method=exact: must be importance, annealed or quadrature"):
        evaluate(digits_run, method="exact")  # pyright: ignore[reportArgumentType]
