"""log p(x) by integration, and by importance sampling: the exact answer, within the stated errors."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import linear_gaussian, linear_log_px
from exact import quadrature as on_a_grid
from torch import Tensor
from torch.nn import functional as F

import vaelab
from vaelab.composition import compose, settle
from vaelab.config import resolve
from vaelab.data import DataSpec, Split
from vaelab.errors import InputError
from vaelab.evaluation import Exact, evaluate, quadrature
from vaelab.evaluation.likelihood import evaluate_model, examples_of
from vaelab.noise import generator
from vaelab.runs import Run

SPEC = DataSpec((6,), "binary", 2, classes=3)


def made(**keys: Any) -> Any:
    """A small model in float64 with random weights."""
    torch.manual_seed(0)
    small = {"network.hidden": [6], "network.activation": "tanh", "likelihood.name": "bernoulli"}
    model = compose(settle(resolve("test", {}, {**small, **keys}), SPEC), SPEC).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def binary(number: int) -> Tensor:
    return (torch.rand(number, 6, generator=generator(number, "x")) < 0.5).double()


@pytest.mark.parametrize("latents", [1, 2])
def test_the_integral_of_a_linear_gaussian_model_is_exact(latents: int) -> None:
    """100 models: within two stated errors of the exact value in at least 90, and the errors are small."""
    within = 0
    for seed in range(100):
        model = linear_gaussian(latents, seed=seed, noise_variance=0.05 + 0.01 * seed)
        x = model.sample(1, draw=True, generator=generator(seed, "x"))
        found = quadrature(model, x)
        assert float(found.error.max()) < 1e-6
        within += int((np.abs(found.log_px.numpy() - linear_log_px(model, x)) <= 2 * found.error.numpy()).all())
    assert within >= 90


@pytest.mark.parametrize("scale", [1e-3, 0.3])
def test_a_narrow_posterior_far_from_the_prior_is_found(scale: float) -> None:
    """Up to 3,000 times as narrow as the prior, and 7 standard deviations out."""
    model = linear_gaussian(1, noise_variance=scale**2)
    z = torch.tensor([[0.0], [3.0], [-7.0]], dtype=torch.float64)
    x = model.show(z) + 0.3 * scale
    assert quadrature(model, x).log_px.numpy() == pytest.approx(linear_log_px(model, x), abs=1e-6)


def test_importance_sampling_errs_by_as_much_as_it_says() -> None:
    """The encoder's scales are 1.2 times the best ones; 100 seeds."""
    model = linear_gaussian(2, width=1.2)
    x = model.sample(40, draw=True, generator=generator(0, "x"))
    exact = linear_log_px(model, x).mean()
    model, examples = model.float(), Split(x.float())
    scores: list[float] = []
    for seed in range(100):
        found = evaluate_model(model, examples, 50, split="test", seed=seed)
        assert found.log_px is not None and found.log_px_monte_carlo is not None and found.warning is None
        scores.append((found.log_px - exact) / found.log_px_monte_carlo)
    assert sum(abs(score) <= 2 for score in scores) >= 90
    assert 0.7 < np.std(scores) < 1.3, "an error that is stated too large would be no better"


def test_importance_sampling_from_the_exact_posterior_has_rounding_errors_only() -> None:
    model = linear_gaussian(1)  # one latent: a diagonal Gaussian is exact
    x = model.sample(40, draw=True, generator=generator(0, "x"))
    exact = linear_log_px(model, x).mean()
    within = 0
    for seed in range(100):
        found = evaluate_model(model.float(), Split(x.float()), 50, split="test", seed=seed)
        assert found.log_px is not None and found.log_px_monte_carlo is not None
        assert found.log_px_monte_carlo < 1e-5
        within += abs(found.log_px - exact) <= 2 * found.log_px_monte_carlo
    assert within >= 90


@torch.no_grad()
def test_the_sum_over_categories_is_complete() -> None:
    keys = {"posterior.name": "gumbel-softmax", "model.latent_dim": 3, "posterior.categories": 4}
    model = made(**keys)
    x = binary(5)
    log_joint: list[Tensor] = []
    for chosen in itertools.product(range(4), repeat=3):
        z = F.one_hot(torch.tensor(chosen), 4).flatten().double()
        log_joint.append(model.prior.log_prob(z) + model.decode(z.expand(5, -1)).log_prob(x))
    assert quadrature(model, x).log_px.numpy() == pytest.approx(torch.stack(log_joint).logsumexp(0).numpy(), abs=1e-9)


@torch.no_grad()
def test_the_sum_over_codes_is_complete_and_above_the_bound_of_one_code() -> None:
    keys = {"model.name": "quantized", "model.places": 2, "posterior.name": "vq", "posterior.codes": 5}
    model = made(**keys, **{"posterior.channels": 3})
    x = binary(4)
    log_joint: list[Tensor] = []
    for chosen in itertools.product(range(5), repeat=2):
        one_hot = F.one_hot(torch.tensor(chosen), 5).flatten().double()
        z = model.posterior.codebook[list(chosen)].flatten()
        log_joint.append(model.prior.log_prob(one_hot) + model.decode(z.expand(4, -1)).log_prob(x))
    exact = torch.stack(log_joint).logsumexp(0)
    assert quadrature(model, x).log_px.numpy() == pytest.approx(exact.numpy(), abs=1e-9)
    found = evaluate_model(model.float(), Split(x.to(torch.uint8)), 1, split="test")
    assert found.log_px_method == "elbo" and found.warning is None and found.untrusted is None
    assert found.log_px == pytest.approx(found.elbo) and found.log_px < float(exact.mean())
    assert "one z each: log_px is the elbo" in str(found) and found.effective_sample_size is None


@torch.no_grad()
def test_a_conditional_model_is_integrated_given_its_label() -> None:
    model = made(**{"model.latent_dim": 1, "model.conditional": True})
    x, y = binary(3), torch.tensor([0, 2, 1])
    line = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None, None].expand(-1, 3, 1)
    log_joint = model.prior.log_prob(line) + model.decode(line, y=y).log_prob(x)
    exact = log_joint.logsumexp(0) + math.log(24 / 4000)
    assert quadrature(model, x, y).log_px.numpy() == pytest.approx(exact.numpy(), abs=1e-7)
    assert (quadrature(model, x, y.flip(0)).log_px - exact)[:1].abs().max() > 1e-3, "the label matters"


@torch.no_grad()
def test_two_layers_of_one_latent_are_integrated_together() -> None:
    model = made(**{"model.name": "hierarchical", "model.latent_dims": [1, 1], "model.hidden": 6})
    x = binary(3)
    axis = torch.linspace(-16, 16, 641, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    log_joint = model.prior.log_prob(z)[:, None] + model.decode(z[:, None]).log_prob(x)
    exact = log_joint.logsumexp(0) + 2 * math.log(32 / 640)
    assert quadrature(model, x).log_px.numpy() == pytest.approx(exact.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model.latent_dim": 3}, "at most two real latents, and z has 3; use --method importance or annealed"),
        (
            {"model.name": "hierarchical", "model.latent_dims": [1, 2], "model.hidden": 4},
            "at most two real latents, and z has 3; use --method importance or annealed",
        ),
        ({"model.name": "joint"}, "and categories beside them; use --method importance"),
        (
            {"posterior.name": "gumbel-softmax", "model.latent_dim": 9, "posterior.categories": 4},
            "at most 65,536 combinations of categories, and z has 4^9 combinations; use --method importance",
        ),
        (
            {"model.name": "quantized", "model.places": 4, "posterior.name": "vq", "posterior.codes": 64},
            "z has 64^4 combinations; use --method importance",
        ),
    ],
)
def test_other_latents_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        quadrature(made(**keys), binary(2))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_evaluate_integrates_a_run(digits_run: Run) -> None:
    found = evaluate(digits_run, limit=30, method="quadrature")
    model, examples = vaelab.load(digits_run).double(), examples_of(digits_run, "test").head(30)
    log_px, _ = on_a_grid(model, examples.batch().double())
    assert found.log_px == pytest.approx(float(log_px.mean()), abs=1e-4)
    assert found.log_px_stderr == pytest.approx(float(log_px.std()) / math.sqrt(30), rel=1e-4)
    assert found.log_px_monte_carlo is not None and found.log_px_monte_carlo < 1e-4
    assert (found.importance_samples, found.effective_sample_size, found.untrusted) == (0, None, None)
    assert found.bits_per_dim == pytest.approx(-found.log_px / (64 * math.log(2)))
    assert "log_px by quadrature" in str(found)
    by_weights = evaluate(digits_run, 200, limit=30)
    assert (found.elbo, found.rate) != (None, None) and found.rate == pytest.approx(by_weights.rate)


def test_an_autoencoder_has_a_log_px_by_its_decoder_and_prior() -> None:
    model = made(**{"posterior.name": "deterministic", "model.latent_dim": 1})
    found = quadrature(model, binary(3))
    assert isinstance(found, Exact)
    line = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        log_joint = model.prior.log_prob(line) + model.decode(line).log_prob(binary(3))
    assert found.log_px.numpy() == pytest.approx((log_joint.logsumexp(0) + math.log(24 / 4000)).numpy(), abs=1e-7)
