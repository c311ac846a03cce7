"""When importance weights are not to be trusted: the shape of their tail, and the warning."""

import math

import numpy as np
import pytest
import torch
from exact import linear_gaussian, linear_log_px
from scipy.stats import genpareto

from vaelab.data import Split
from vaelab.evaluation import Evaluation, pareto_shape
from vaelab.evaluation.likelihood import evaluate_model
from vaelab.evaluation.pareto import LargestWeights, highest_k
from vaelab.noise import generator


@pytest.mark.parametrize("shape", [-0.3, 0.1, 0.5, 0.7, 1.2])
def test_the_shape_is_that_of_the_distribution_and_of_scipys_fit(shape: float) -> None:
    count = 4000
    excess = np.sort(genpareto.rvs(shape, scale=2.0, size=(count, 2), random_state=1), axis=0)[::-1]
    log_weights = np.log(np.concatenate([excess, np.zeros((1, 2))]) + 5.0)
    found = pareto_shape(torch.from_numpy(log_weights.copy())).numpy()
    by_scipy = [genpareto.fit(column, floc=0)[0] for column in excess.T]
    drawn_to_half = (count * np.array(by_scipy) + 5) / (count + 10)
    assert found == pytest.approx(drawn_to_half, abs=0.02)
    assert found == pytest.approx(shape, abs=0.08)  # the maximum likelihood's error is (1 + k) / √4000: 0.011 to 0.035


def test_a_short_tail_draws_the_shape_towards_a_half() -> None:
    excess = np.sort(genpareto.rvs(1.2, size=(40, 20), random_state=2), axis=0)[::-1]
    log_weights = np.log(np.concatenate([excess, np.zeros((1, 20))]) + 5.0)
    found = float(pareto_shape(torch.from_numpy(log_weights.copy())).mean())
    by_scipy = float(np.mean([genpareto.fit(column, floc=0)[0] for column in excess.T]))
    assert found == pytest.approx((40 * by_scipy + 5) / 50, abs=0.05)
    assert abs(by_scipy - 0.5) > 0.4, "so that it is visible"


def test_the_shape_does_not_depend_on_the_unit_of_the_weights() -> None:
    log_weights = torch.randn(200, 3, dtype=torch.float64, generator=generator(0)).sort(0, descending=True).values
    assert torch.allclose(pareto_shape(log_weights), pareto_shape(log_weights - 700), atol=1e-9)


def test_equal_weights_have_no_tail() -> None:
    assert pareto_shape(torch.full((21, 2), -90.0, dtype=torch.float64)).tolist() == [0, 0]


@pytest.mark.parametrize("chunk", [1, 13, 400, 3_000])
def test_chunks_keep_the_largest_weights(chunk: int) -> None:
    log_weights = torch.randn(3_000, 3, generator=generator(1)) * 2
    largest = LargestWeights(3_000)
    for part in log_weights.split(chunk):
        largest.add(part)
    tail = math.ceil(3 * math.sqrt(3_000))
    exact = pareto_shape(log_weights.double().sort(0, descending=True).values[: tail + 1])
    assert torch.equal(largest.pareto_k, exact)
    assert sum(map(len, largest._held)) <= 4 * tail + 1024 + chunk


def test_the_highest_shape_rises_to_seven_tenths() -> None:
    """1 − 1 / log₁₀ K (Vehtari et al. 2024)."""
    assert highest_k(100) == pytest.approx(0.5)
    assert highest_k(1000) == pytest.approx(2 / 3)
    assert highest_k(5000) == highest_k(10**6) == 0.7


def evaluated(width: float, num_samples: int) -> tuple[Evaluation, float]:
    """A linear-Gaussian model whose encoder's scale is `width` times the best one, and the exact log p(x)."""
    model = linear_gaussian(1, width=width)
    x = model.sample(100, draw=True, generator=generator(0, "x"))
    exact = float(linear_log_px(model, x).mean())
    return evaluate_model(model.float(), Split(x.float()), num_samples, split="test"), exact


@pytest.mark.parametrize("num_samples", [10, 100, 2000])
def test_the_warning_is_silent_where_the_weights_are_tame(num_samples: int) -> None:
    """For Gaussians the weights' shape is 1 − width²: here below 0."""
    found, exact = evaluated(1.1, num_samples)
    assert found.warning is None and found.untrusted is not None and found.untrusted < 0.1
    assert found.log_px == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("num_samples", [100, 2000])
def test_the_warning_fires_where_the_weights_have_a_heavy_tail(num_samples: int) -> None:
    """Width 0.3: a shape of 0.91, a mean that hardly settles."""
    found, exact = evaluated(0.3, num_samples)
    assert found.untrusted is not None and found.untrusted > 0.7
    assert found.log_px is not None and found.log_px < exact - 0.05
    assert found.warning is not None
    assert f"warning: {num_samples} importance samples are too few for {found.untrusted:.0%} " in found.warning
    assert f"Pareto k above {highest_k(num_samples):.2f}" in found.warning
    assert f"use --importance-samples {10 * num_samples} or --method quadrature" in found.warning
    assert max(map(len, str(found).splitlines())) <= 80
    assert found.to_dict()["warning"] == found.warning


def test_the_shape_of_gaussian_weights_is_what_theory_says() -> None:
    """q has `width` times the scale of p(z|x), both Gaussian: P(w > t) falls like t^(−1 / k), k = 1 − width²."""
    noise = torch.randn(200_000, 4, dtype=torch.float64, generator=generator(2))
    for width, k in ((0.5, 0.75), (0.8, 0.36)):
        largest = LargestWeights(len(noise))
        largest.add(0.5 * noise.square() * (1 - width**2))
        assert float(largest.pareto_k.mean()) == pytest.approx(k, abs=0.15)  # a logarithm slows the tail down


def test_few_draws_are_judged_by_their_effective_number() -> None:
    assert evaluated(1.1, 10)[0].warning is None
    found, _ = evaluated(0.2, 10)
    assert found.warning is not None and "Pareto" not in found.warning
    one = evaluated(1.1, 1)[0]
    assert one.warning is not None and "1 importance sample is too few for 100% of the examples" in one.warning
    assert "use --importance-samples 100 " in one.warning  # with 10 there would be no tail to fit, either


def test_weights_that_are_nearly_equal_are_trusted_whatever_their_tail() -> None:
    """Of 100 weights between 1 and 1.05, whose largest ones grow as those of a heavy tail."""
    largest = LargestWeights(100)
    weights = 1 + 0.05 * (1 - torch.arange(100, dtype=torch.float64) / 100.5).pow(-0.9)[:, None] / 100
    largest.add(weights.log())
    size = weights.sum(0).square() / weights.square().sum(0)
    assert float(largest.pareto_k) > highest_k(100) and float(size) > 99
    assert largest.trusted(size).tolist() == [True] and largest.trusted(size * 0.9).tolist() == [False]


def test_few_draws_are_trusted_where_their_effective_number_is_nearer_to_all_than_to_one() -> None:
    sizes = torch.tensor([1.0, 1.49, 1.51, 2.0])
    assert LargestWeights(2).trusted(sizes).tolist() == [False, False, True, True]
    assert LargestWeights(3).trusted(sizes * 1.5).tolist() == [False, True, True, True]
    assert LargestWeights(1).trusted(torch.ones(1)).tolist() == [False]
