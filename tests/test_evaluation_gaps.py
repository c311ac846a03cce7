"""Approximation and amortization gap, held to the linear-Gaussian model, where both have closed forms."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import linear_gaussian, linear_log_px, linear_parts, linear_posterior
from test_evaluation_quadrature import binary, made
from torch import Tensor

import vaelab
from vaelab.composition import compose
from vaelab.config import resolve
from vaelab.data import DataSpec
from vaelab.errors import InputError
from vaelab.evaluation import Fit, evaluate, gaps
from vaelab.model import VAE
from vaelab.noise import generator
from vaelab.runs import Run


def best_gap(model: VAE) -> float:
    """½ (Σ ln M_jj − ln|M|), M = WᵀW + σ² I: what the best diagonal Gaussian loses."""
    weights, _, variance = linear_parts(model)
    precision = weights.T @ weights + variance * np.eye(weights.shape[1])
    return 0.5 * float(np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])


def divergence(model: VAE, x: Tensor) -> np.ndarray[Any, Any]:
    """KL(q(z|x) ‖ p(z|x)) of the model's own encoder, [B], both Gaussian."""
    mean, covariance = linear_posterior(model, x)
    with torch.no_grad():
        posterior = model.encode(x)
    own, precision = posterior.covariance.numpy(), np.linalg.inv(covariance)
    offset = posterior.mean.numpy() - mean
    squares = np.einsum("bi,ij,bj->b", offset, precision, offset)
    traces = np.einsum("ij,bji->b", precision, own)
    return 0.5 * (traces + squares - mean.shape[1] + np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(own)[1])


@pytest.mark.parametrize("latents", [2, 3])
def test_the_best_encoder_has_the_known_approximation_gap_and_no_other(latents: int) -> None:
    """With three latents, log p(x) is by importance sampling."""
    model = linear_gaussian(latents, seed={2: 5, 3: 0}[latents])
    x = model.sample(12, draw=True, generator=generator(0, "x"))
    found = gaps(model, x, Fit(steps=100), generator(0))
    assert best_gap(model) > 0.04, "the gap must be visible for this test to say anything"
    assert found.log_px.numpy() == pytest.approx(linear_log_px(model, x), abs=1e-5 if latents == 2 else 0.1)
    assert float(found.approximation.mean()) == pytest.approx(best_gap(model), abs=0.012)
    assert float(found.amortization.mean()) == pytest.approx(0, abs=0.012)
    assert torch.equal(found.approximation + found.amortization, found.log_px - found.elbo)


def test_a_shifted_encoder_has_a_known_amortization_gap() -> None:
    """Its mean is moved by up to three standard deviations, its scales are halved."""
    model = linear_gaussian(2, seed=5, width=0.5)
    with torch.no_grad():
        model.posterior.head.bias[:2] += torch.tensor([0.3, -0.6])  # pyright: ignore[reportIndexIssue, reportOperatorIssue]
    x = model.sample(12, draw=True, generator=generator(0, "x"))
    found = gaps(model, x, Fit(), generator(0))
    lost = divergence(model, x)
    assert lost.min() > best_gap(model) + 0.5
    assert found.elbo.numpy() == pytest.approx(linear_log_px(model, x) - lost, abs=0.4)
    assert float(found.amortization.mean()) == pytest.approx(lost.mean() - best_gap(model), abs=0.1)
    assert float(found.approximation.mean()) == pytest.approx(best_gap(model), abs=0.012)


def test_a_full_gaussian_reaches_the_posterior_from_an_untrained_encoder() -> None:
    diagonal = linear_gaussian(2)
    keys = {"posterior.name": "full-gaussian", "model.latent_dim": 2, "network.name": "linear"}
    keys |= {"likelihood.name": "gaussian", "likelihood.scale": math.sqrt(0.3)}
    torch.manual_seed(0)
    model = compose(resolve("exact", {}, keys), DataSpec((5,), "real", None)).double()
    parts = {name: value for name, value in diagonal.state_dict().items() if not name.startswith("posterior.")}
    model.load_state_dict(parts, strict=False)
    x = model.sample(8, draw=True, generator=generator(0, "x"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gaps(model, x, Fit(), generator(0))
    assert found.approximation.numpy() == pytest.approx(0, abs=0.01)
    assert found.optimized_elbo.numpy() == pytest.approx(linear_log_px(diagonal, x), abs=0.01)
    assert float((found.amortization - torch.from_numpy(divergence(model, x))).mean()) == pytest.approx(0, abs=2)
    assert float(found.amortization.min()) > 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_example_has_a_fit_of_its_own() -> None:
    """Others in the batch change nothing but the noise."""
    model = linear_gaussian(1, width=0.3)
    x = model.sample(6, draw=True, generator=generator(0, "x"))
    alone = torch.cat([gaps(model, one[None], Fit(), generator(0)).optimized_elbo for one in x[:3]])
    together = gaps(model, x, Fit(), generator(0)).optimized_elbo[:3]
    assert alone.numpy() == pytest.approx(together.numpy(), abs=0.01)
    assert alone.numpy() == pytest.approx(linear_log_px(model, x[:3]), abs=0.01)  # one latent: no approximation gap


def test_a_conditional_model_is_fitted_given_its_labels() -> None:
    model = made(**{"model.latent_dim": 1, "model.conditional": True})
    x, y = binary(4), torch.tensor([0, 2, 1, 0])
    found = gaps(model, x, Fit(steps=60), generator(0), y)
    assert (found.approximation > -0.01).all() and (found.amortization > -0.01).all()
    assert float((found.amortization + found.approximation).mean()) > 0.01


@pytest.mark.parametrize(
    "keys",
    [
        {"posterior.name": "laplace"},
        {"posterior.name": "deterministic"},
        {"posterior.name": "gumbel-softmax"},
        {"model.name": "joint"},
        {"model.name": "hierarchical", "model.latent_dims": [2, 2], "model.hidden": 4},
        {"model.name": "quantized", "posterior.name": "vq"},
    ],
)
def test_other_posteriors_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        gaps(made(**keys), binary(2), Fit(), generator(0))
    says = "the gaps are those of a Gaussian q(z|x): posterior.name=gaussian or full-gaussian with model.name=vae"
    assert str(caught.value) == says


@pytest.mark.parametrize("name", ["steps", "num_samples", "importance_samples"])
def test_settings_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=0: must be at least 1"):
        Fit(**{name: 0})


def test_evaluate_finds_the_gaps_of_a_run(digits_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaelab.evaluation.likelihood, "Fit", lambda **more: Fit(steps=40, **more))
    monkeypatch.setattr(vaelab.evaluation.likelihood.Fit, "importance_samples", 1000, raising=False)
    found = evaluate(digits_run, 10, limit=4, gaps=True)
    told = found.gaps
    assert told is not None and found.elbo is not None
    assert told["amortization"] == pytest.approx(told["optimized_elbo"] - told["elbo"])
    assert told["approximation"] == pytest.approx(told["log_px"] - told["optimized_elbo"])
    assert told["log_px"] == pytest.approx(evaluate(digits_run, limit=4, method="quadrature").log_px, abs=1e-4)
    assert told["elbo"] == pytest.approx(found.elbo, abs=1)
    assert told["amortization"] > 0 and told["amortization_stderr"] > 0
    json.dumps(found.to_dict(), allow_nan=False)
    assert "approximation gap" in str(found) and max(map(len, str(found).splitlines())) <= 80
