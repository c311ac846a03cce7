"""The linear VAE against probabilistic PCA, which is its exact answer (oracles 1 and 2)."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import PCA, digits_16, linear_vae
from sklearn.decomposition import PCA as SklearnPCA

import vaelab
from vaelab.data import Split
from vaelab.evaluation.latents import active
from vaelab.evaluation.likelihood import evaluate_model
from vaelab.noise import generator
from vaelab.objectives import ELBO

pytestmark = pytest.mark.usefixtures("without_reports")

DIGITS = digits_16()
EXACT = PCA.of(DIGITS)
LOG_LIKELIHOODS = {2: 0.0057, 5: 8.9076, 10: 17.4519, 20: 27.2773}


@pytest.mark.parametrize(("q", "published"), LOG_LIKELIHOODS.items())
def test_the_closed_form_is_scikit_learns(q: int, published: float) -> None:
    assert EXACT.log_likelihood(q) == pytest.approx(published, abs=5e-5)
    assert EXACT.log_likelihood(q) == pytest.approx(SklearnPCA(q).fit(DIGITS).score(DIGITS), abs=2e-2)


@pytest.mark.parametrize("q", [2, 10])
def test_the_elbo_at_the_optimum_is_the_log_likelihood(q: int) -> None:
    """The posterior is exact there, so log w is log p(x) for every draw."""
    model = linear_vae(EXACT, q, EXACT.noise_variance(q))
    terms = model.terms(torch.as_tensor(DIGITS), num_samples=3, generator=generator(0))
    log_weights = terms.log_weights
    assert log_weights is not None
    assert log_weights.mean().item() == pytest.approx(EXACT.log_likelihood(q), abs=1e-10)
    assert (log_weights[0] - log_weights[1]).abs().max().item() < 1e-9


def test_evaluate_reports_it_without_monte_carlo_error() -> None:
    q = 10
    model = linear_vae(EXACT, q, EXACT.noise_variance(q)).float()
    found = evaluate_model(model, Split(torch.as_tensor(DIGITS).float()), 10, split="train")
    for value, monte_carlo in ((found.elbo, found.elbo_monte_carlo), (found.log_px, found.log_px_monte_carlo)):
        assert value == pytest.approx(EXACT.log_likelihood(q), abs=1e-4)
        assert monte_carlo == pytest.approx(0, abs=1e-5)
    assert found.elbo == pytest.approx(-(found.rate + found.distortion), abs=1e-9)
    assert found.bits_per_dim is None  # a density has no bits per dimension
    per_example = SklearnPCA(q).fit(DIGITS).score_samples(DIGITS)
    assert found.elbo_stderr == pytest.approx(per_example.std(ddof=1) / math.sqrt(len(DIGITS)), rel=5e-3)


def test_a_rotation_leaves_the_gap_that_theory_gives() -> None:
    """A diagonal posterior cannot follow a rotated W: gap = ½ (Σ ln M_jj − ln |M|), M = WᵀW + σ²I."""
    q = 5
    variance = EXACT.noise_variance(q)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(q, q)))[0]
    model = linear_vae(EXACT, q, variance, rotation)
    matrix = rotation.T @ np.diag(EXACT.eigenvalues[:q]) @ rotation
    gap = 0.5 * (np.log(np.diag(matrix)).sum() - np.linalg.slogdet(matrix)[1])
    assert gap > 0.1
    terms = model.terms(torch.as_tensor(DIGITS), num_samples=100, generator=generator(0))
    log_weights = terms.log_weights
    assert log_weights is not None
    draws = log_weights.mean(1)  # over all the data, so only the draws are random
    standard_error = draws.std().item() / math.sqrt(len(draws))
    assert standard_error < 0.005
    assert draws.mean().item() == pytest.approx(EXACT.log_likelihood(q) - gap, abs=4 * standard_error)


def test_rate_and_distortion_are_reverse_water_filling() -> None:
    """At σ² = 0.02: 21.676 nats, E‖x − x̂‖² = 0.79202, 30 active latents."""
    level, q, spectrum = 0.02, 40, EXACT.eigenvalues
    rate = 0.5 * np.log(spectrum / level, where=spectrum > level, out=np.zeros_like(spectrum)).sum()
    distortion = np.minimum(spectrum, level).sum()
    assert rate == pytest.approx(21.676, abs=5e-4)
    assert distortion == pytest.approx(0.79202, abs=5e-6)
    model = linear_vae(EXACT, q, level)
    terms = model.terms(torch.as_tensor(DIGITS), num_samples=100, generator=generator(0))
    assert terms.rate is not None
    assert terms.rate.mean().item() == pytest.approx(rate, abs=1e-9)
    squared = (model.decode(terms.z).mean - terms.x).square().sum(-1)
    assert squared.mean().item() == pytest.approx(distortion, abs=2e-3)
    # Latent i is active where λ_i > σ². Its posterior mean varies by 1 − σ²/λ_i, and `active` asks for 0.01.
    means = model.encode(terms.x).mean.detach()
    assert int((means.var(0) > 1e-9).sum()) == int((spectrum > level).sum()) == 30
    assert int(active(means).sum()) == int((1 - level / spectrum[:q] > 0.01).sum()) == 29


@pytest.mark.parametrize("beta", [0.5, 2.0, 4.0])
def test_beta_times_the_decoder_variance_is_the_water_level(beta: float) -> None:
    """With decoder variance v, the β-ELBO is least bad at the water level β v: any step away from there costs."""
    level, q = 0.08, 10
    x = torch.as_tensor(DIGITS)
    objective = ELBO(beta=beta)

    def loss(weights: float, variance: float) -> float:
        model = linear_vae(EXACT, q, level)
        model.likelihood.fixed_scale = math.sqrt(level / beta)  # type: ignore[assignment]
        with torch.no_grad():
            model.decoder.layers.weight *= weights  # type: ignore[union-attr]
            model.posterior.head.bias[q:] += variance  # type: ignore[union-attr,index]
            return float(objective(model.terms(x, 50, generator(0))).value)

    best = loss(1.0, 0.0)
    assert all(loss(*step) > best + 1e-3 for step in [(0.95, 0.0), (1.05, 0.0), (1.0, 0.2), (1.0, -0.2)])


def test_a_short_training_reaches_pca(tmp_path: Path) -> None:
    """Two latents and a tenth of the recipe's steps: within 0.1 nat of 0.0057, and not above it."""
    run = vaelab.train(
        "linear-vae", epochs=150, out=tmp_path / "run", overrides={"model.latent_dim": 2}, progress=False
    )
    found = vaelab.evaluate(run, 20, split="train")
    assert found.n == 1797
    assert -0.1 < found.elbo - LOG_LIKELIHOODS[2] < 0.01
    assert found.elbo <= found.log_px + 1e-6


@pytest.mark.slow
def test_the_recipe_reaches_pca_to_a_fiftieth_of_a_nat(tmp_path: Path) -> None:
    found = vaelab.evaluate(vaelab.train("linear-vae", out=tmp_path / "run", progress=False), split="train")
    assert -0.02 < found.elbo - LOG_LIKELIHOODS[10] < 0.005
    assert -0.02 < found.log_px - LOG_LIKELIHOODS[10] < 0.005
    assert found.elbo_monte_carlo < 0.005
