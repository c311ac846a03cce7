"""The rate taken apart, against sums and integrals by brute force; and the plane of rate and distortion."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import linear_gaussian
from scipy.stats import multivariate_normal
from test_evaluation_quadrature import binary, made
from torch.nn import functional as F

import vaelab
from vaelab.data import Split
from vaelab.errors import InputError
from vaelab.evaluation import RateSplit, evaluate, rate_distortion, rate_split, surgery
from vaelab.noise import generator
from vaelab.runs import Run

pytestmark = pytest.mark.usefixtures("without_reports")

N = 30


def parts_of(found: RateSplit) -> dict[str, tuple[float, float]]:
    names = ("mutual_information", "total_correlation", "dimension_wise_kl", "aggregate_kl")
    return {name: (getattr(found, name), getattr(found, f"{name}_monte_carlo")) for name in names}


def near(found: RateSplit, exact: dict[str, float]) -> None:
    """Within 4 stated errors, which are small."""
    for name, (value, error) in parts_of(found).items():
        assert error < 0.05, name
        assert abs(value - exact[name]) < 4 * error + 1e-4, (name, value, exact[name], error)


def by_integration(means: Any, covariances: Any) -> dict[str, float]:
    """The parts for N Gaussians in two dimensions under N(0, I), by sums over a fine grid."""
    axis = np.linspace(-8, 8, 321)
    cell = (axis[1] - axis[0]) ** 2
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    each = np.stack([multivariate_normal(m, c).pdf(z) for m, c in zip(means, covariances, strict=True)])
    q, prior = each.mean(0), multivariate_normal(np.zeros(2), np.eye(2)).pdf(z)
    sides = [q.sum(1 - d) * (axis[1] - axis[0]) for d in range(2)]
    normal = np.exp(-0.5 * axis**2) / math.sqrt(2 * math.pi)

    def divergence(a: Any, b: Any, size: float) -> float:
        inside = a > 1e-300
        return float((a[inside] * np.log(a[inside] / b[inside])).sum() * size)

    return {
        "mutual_information": float(np.mean([divergence(one, q, cell) for one in each])),
        "total_correlation": divergence(q, np.outer(*sides), cell),
        "dimension_wise_kl": sum(divergence(side, normal, axis[1] - axis[0]) for side in sides),
        "aggregate_kl": divergence(q, prior, cell),
    }


@pytest.mark.parametrize("posterior", ["gaussian", "full-gaussian"])
@torch.no_grad()
def test_the_parts_are_those_of_an_integral_over_all_examples(posterior: str) -> None:
    model, x = made(**{"model.latent_dim": 2, "posterior.name": posterior}), binary(N)
    model.posterior.head.weight *= 4 if posterior == "gaussian" else 2
    model.posterior.head.bias[:2] += torch.tensor([0.8, -0.5], dtype=torch.float64)
    q = model.encode(x)
    exact = by_integration(q.mean.numpy(), q.covariance.numpy())
    assert min(exact.values()) > 0.02, "every part must be visible for this test to say anything"
    found = rate_split(model.float(), Split(x.to(torch.uint8)), draws=200)
    near(found, exact)
    rate = float(model.prior.kl(model.encode(x.float())).sum(-1).mean()) if posterior == "gaussian" else found.rate
    whole = found.mutual_information + found.total_correlation + found.dimension_wise_kl
    assert whole == pytest.approx(rate, abs=1e-4) and found.rate == pytest.approx(rate, abs=1e-4)
    assert found.aggregate_kl == pytest.approx(found.total_correlation + found.dimension_wise_kl, abs=1e-9)
    assert found.latent_kl is not None and sum(found.latent_kl) == pytest.approx(found.dimension_wise_kl, abs=1e-9)


@torch.no_grad()
def test_the_parts_of_categories_are_those_of_a_sum_over_all_of_them() -> None:
    model = made(**{"posterior.name": "gumbel-softmax", "model.latent_dim": 2, "posterior.categories": 3})
    model.posterior.head.weight.mul_(4)
    x = binary(N)
    each: list[list[float]] = []
    for chosen in itertools.product(range(3), repeat=2):
        z = F.one_hot(torch.tensor(chosen), 3).flatten().double()
        each.append(model.encode(x).log_prob(z.expand(1, N, -1))[0].exp().tolist())
    table = np.array(each).T.reshape(N, 3, 3)
    q = table.mean(0)
    sides = [q.sum(1), q.sum(0)]
    prior = np.full((3, 3), 1 / 9)
    exact = {
        "mutual_information": float((table * np.log(table / q)).sum((1, 2)).mean()),
        "total_correlation": float((q * np.log(q / np.outer(*sides))).sum()),
        "dimension_wise_kl": float(sum((side * np.log(side * 3)).sum() for side in sides)),
        "aggregate_kl": float((q * np.log(q / prior)).sum()),
    }
    found = rate_split(model.float(), Split(x.to(torch.uint8)), draws=400)
    near(found, exact)
    assert found.rate == pytest.approx(float((table * np.log(table / prior)).sum((1, 2)).mean()), abs=1e-6)
    whole = found.mutual_information + found.total_correlation + found.dimension_wise_kl
    assert whole == pytest.approx(found.rate, abs=1e-4)


def test_a_mutual_information_at_its_bound_comes_with_a_warning(digits_run: Run) -> None:
    few = evaluate(digits_run, limit=3, split_rate=True)
    assert few.rate_split is not None and few.rate_split["mutual_information"] > math.log(3) - 0.5
    assert few.warning is not None and few.warning.endswith("dimension-wise KL are smaller")
    assert "at most ln 3 = 1.10 nats" in few.warning
    many = evaluate(digits_run, split_rate=True)
    assert many.rate_split is not None and many.rate_split["mutual_information"] < math.log(180) - 0.5
    assert many.warning is None


def test_examples_that_the_latents_tell_apart_have_the_information_ln_n() -> None:
    """I_q(x; z) ≤ ln N, with equality where no two posteriors overlap."""
    model = linear_gaussian(2, noise_variance=1e-8)
    x = model.sample(50, draw=True, generator=generator(0, "x")).float()
    found = rate_split(model.float(), Split(x))
    assert found.mutual_information == pytest.approx(math.log(50), abs=1e-4)
    blurred = rate_split(linear_gaussian(2, noise_variance=3.0).float(), Split(x))
    assert 0.1 < blurred.mutual_information < math.log(50) - 1


@torch.no_grad()
def test_a_collapsed_encoder_tells_nothing() -> None:
    model = made(**{"model.latent_dim": 2})
    for parameter in model.posterior.parameters():
        parameter.zero_()
    found = rate_split(model.float(), Split(binary(N).to(torch.uint8)))
    assert [value for value, _ in parts_of(found).values()] == pytest.approx([0] * 4, abs=1e-6)


@torch.no_grad()
def test_under_a_prior_that_is_no_product_the_parts_still_add_up() -> None:
    model = made(**{"model.latent_dim": 2, "prior.name": "mixture"})
    examples = Split(binary(N).to(torch.uint8))
    found = rate_split(model.float(), examples, draws=400)
    whole = found.mutual_information + found.total_correlation + found.dimension_wise_kl
    assert whole == pytest.approx(found.rate, abs=1e-9) and found.latent_kl is None
    terms = model.terms(binary(N).float(), 5_000, generator(5))
    assert found.rate == pytest.approx(float(terms.rate.mean()), abs=0.02)


def test_the_size_of_the_tables_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_gaussian(2)
    examples = Split(model.sample(70, draw=True, generator=generator(0, "x")).float())
    whole = rate_split(model.float(), examples)
    monkeypatch.setattr(surgery, "PAIRS_AT_ONCE", 1)
    monkeypatch.setattr(surgery, "BLOCK", 70)
    assert parts_of(rate_split(model, examples)) == {
        name: pytest.approx(pair, abs=1e-6) for name, pair in parts_of(whole).items()
    }
    monkeypatch.setattr(surgery, "BLOCK", 9)  # other draws, the same q(z)
    blocks = rate_split(model, examples)
    for name, (value, error) in parts_of(blocks).items():
        assert abs(value - getattr(whole, name)) < 5 * math.hypot(error, getattr(whole, f"{name}_monte_carlo")), name


def test_the_stated_error_is_that_of_the_draws() -> None:
    model = linear_gaussian(2)
    examples = Split(model.sample(40, draw=True, generator=generator(0, "x")).float())
    found = [rate_split(model.float(), examples, seed=seed) for seed in range(60)]
    for name in ("mutual_information", "total_correlation", "dimension_wise_kl"):
        spread = np.std([getattr(one, name) for one in found], ddof=1)
        stated = math.sqrt(np.mean([getattr(one, f"{name}_monte_carlo") ** 2 for one in found]))
        assert 0.7 < spread / stated < 1.35, name


@pytest.mark.parametrize(
    "keys",
    [
        {"posterior.name": "deterministic"},
        {"posterior.name": "iaf"},
        {"model.name": "hierarchical", "model.latent_dims": [2, 2], "model.hidden": 4},
        {"model.name": "quantized", "posterior.name": "vq"},
    ],
)
def test_posteriors_without_marginals_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        rate_split(made(**keys), Split(binary(4).to(torch.uint8)))
    assert "needs log q(z|x) of every latent at any z" in str(caught.value) and "\n" not in str(caught.value)


def test_one_draw_has_no_spread() -> None:
    with pytest.raises(InputError, match="draws=1: must be at least 2"):
        rate_split(linear_gaussian(1), Split(torch.zeros(3, 5)), draws=1)


def test_evaluate_splits_the_rate_of_a_run(digits_run: Run) -> None:
    found = evaluate(digits_run, 5, split_rate=True)
    told = found.rate_split
    assert told is not None and found.rate is not None
    whole = told["mutual_information"] + told["total_correlation"] + told["dimension_wise_kl"]
    assert whole == pytest.approx(found.rate, abs=1e-4)
    assert 1 < told["mutual_information"] <= math.log(180) and told["n"] == 180
    json.dumps(found.to_dict(), allow_nan=False)
    assert "mutual_information" in str(found) and max(map(len, str(found).splitlines())) <= 80


# -- the plane of rate and distortion ------------------------------------------------------------------------------


def test_runs_of_a_family_lie_on_one_plane(digits_run: Run, tmp_path: Path) -> None:
    keys = {"data.binarize": "threshold", "model.latent_dim": 2, "network.hidden": [64], "objective.beta": 20.0}
    low = vaelab.train("vae", data="digits", epochs=1, out=tmp_path / "low", overrides=keys, progress=False)
    points = rate_distortion([digits_run, low], limit=100)
    assert [point.run for point in points] == [str(low), str(digits_run)], "the lowest rate comes first"
    for point, run in zip(points, (low, digits_run), strict=True):
        found = evaluate(run, 1, limit=100)
        assert (point.rate, point.distortion, point.elbo) == (found.rate, found.distortion, found.elbo)
        assert point.distortion_stderr == found.distortion_stderr and point.n == 100
        assert point.elbo == pytest.approx(-(point.rate + point.distortion))

    other = vaelab.train(
        "vae",
        data="digits",
        epochs=1,
        out=tmp_path / "other",
        overrides=keys | {"data.binarize": "none"},
        progress=False,
    )
    with pytest.raises(InputError, match="trained on other data than"):
        rate_distortion([digits_run, other])
    with pytest.raises(InputError, match="give at least one run"):
        rate_distortion([])


def test_a_run_without_a_rate_is_refused(digits_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = replace(evaluate(digits_run, 1, limit=3), rate=None, elbo=None)
    monkeypatch.setattr("vaelab.evaluation.curve.evaluate", lambda *_: found)
    with pytest.raises(InputError, match="its posterior has no density, hence no rate; leave it out"):
        rate_distortion([digits_run])
