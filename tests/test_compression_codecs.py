"""Codecs: what `pop` returns is what was pushed, and a symbol costs −log2 of its probability.

The probabilities come from elsewhere: scipy, a plain sum, or the likelihood that was quantized, in float64.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from vaelab.compression import logistic, pixels
from vaelab.compression.codecs import (
    Bisected,
    Bits,
    Categorical,
    Codec,
    Frequencies,
    Message,
    Uniform,
    pseudo_random_words,
)
from vaelab.compression.integers import OUTPUT_BITS, to_integers
from vaelab.compression.latents import FAMILIES, GRID_BITS, LARGEST, SCALE_STEPS, gaussian_prior, shapes
from vaelab.data.spec import DataSpec
from vaelab.likelihoods import Likelihood
from vaelab.likelihoods.bernoulli import BernoulliLikelihood
from vaelab.likelihoods.categorical import CategoricalLikelihood
from vaelab.likelihoods.counts import BetaBinomialLikelihood
from vaelab.likelihoods.discretized import DiscretizedLogisticLikelihood
from vaelab.likelihoods.mixture import DiscretizedLogisticMixtureLikelihood
from vaelab.noise import generator

FEW = 4
"""Bits by which a whole message may differ: its ends are rounded to words."""


def random_message(words: int = 8) -> Message:
    return Message(pseudo_random_words(99, words) | np.uint32(1))


def cost(codec: Codec, symbols: NDArray[Any]) -> float:
    """Bits by which a message grows; what was pushed comes back, and so does the message."""
    message = random_message()
    before, words = message.bits, message.words()
    codec.push(message, symbols.astype(np.int32))
    grown = message.bits - before
    np.testing.assert_array_equal(codec.pop(message), symbols)
    np.testing.assert_array_equal(message.words(), words)
    return grown


def near(bits: float, rel: float = 1e-3) -> Any:
    return pytest.approx(bits, rel=rel, abs=FEW)


def collection(*weights: list[float]) -> Frequencies:
    """Distributions of these weights, by place."""
    return Frequencies(lambda numbers: [np.array(weights[number], float) for number in numbers])


def summed(weights: NDArray[Any]) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """F of Σ weights [L, n]."""
    below = np.pad(weights.astype(float).cumsum(0), ((1, 0), (0, 0)))
    return lambda level: below[level, np.arange(len(level))]


# -- messages ------------------------------------------------------------------------------------------------------


def test_pseudo_random_words_are_those_of_splitmix64() -> None:
    """The first outputs from 0 are published with the algorithm; the others come from Python's own integers."""
    assert [hex(word) for word in pseudo_random_words(0, 3)] == ["0xe220a839", "0x6e789e6a", "0x6c45d18"]
    mask = 2**64 - 1

    def word(place: int) -> int:
        z = place * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return (z ^ z >> 31) >> 32

    assert pseudo_random_words(7, 5).tolist() == [word((7 << 32) + place) for place in range(1, 6)]


@given(words=st.integers(1, 9), count=st.integers(0, 12), number=st.integers(1, 2**31))
def test_scrambling_twice_is_as_never_and_leaves_all_but_the_topmost_words(words: int, count: int, number: int) -> None:
    message = random_message(words)
    before = message.words()
    message.scramble(number, count)
    once = message.words()
    message.scramble(number, count)
    np.testing.assert_array_equal(message.words(), before)
    first, last = max(0, words - 1 - count), words - 1
    assert once[last] == before[last]
    np.testing.assert_array_equal(once[:first], before[:first])
    np.testing.assert_array_equal(once[first:last] ^ before[first:last], pseudo_random_words(number, last - first))


def test_a_message_counts_its_bits() -> None:
    """All below its highest 1, which tells where it ends."""
    assert Message(np.array([5, 1], np.uint32)).bits == 32
    assert Message(np.array([5, 6, 7], np.uint32)).bits == 64 + 2


# -- plain codecs --------------------------------------------------------------------------------------------------


@given(size=st.integers(2, 5000), data=st.data())
def test_uniform(size: int, data: st.DataObject) -> None:
    symbols = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=50)), np.int32)
    assert cost(Uniform(size, len(symbols)), symbols) == near(len(symbols) * math.log2(size))


def test_bits() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.001, 0.999, 20_000)
    symbols = rng.binomial(1, p)
    expected = -stats.bernoulli.logpmf(symbols, p).sum() / math.log(2)
    assert cost(Bits(p), symbols) == near(expected)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1e-12, 0.3, 1 - 1e-12, 1.0]), st.integers(0, 1)), max_size=30))
def test_bits_that_are_impossible_come_back(both: list[tuple[float, int]]) -> None:
    p, symbols = np.array([p for p, _ in both]), np.array([bit for _, bit in both], np.int32)
    assert cost(Bits(p), symbols) <= 24 * len(symbols) + FEW


WEIGHTS = ([3.0, 1.0, 0.0, 4.0], [1.0] * 300, [1e6, 1.0])


def test_categorical() -> None:
    rng = np.random.default_rng(1)
    which = rng.integers(0, 3, 20_000).astype(np.uint16)
    chances = [np.array(weights) / sum(weights) for weights in WEIGHTS]
    symbols = np.array([rng.choice(len(chances[one]), p=chances[one]) for one in which])
    expected = -sum(math.log2(chances[one][symbol]) for one, symbol in zip(which, symbols, strict=True))
    assert cost(Categorical(collection(*WEIGHTS), which), symbols) == near(expected)


@given(st.data())
def test_categorical_symbols_come_back_in_their_order_even_the_impossible(data: st.DataObject) -> None:
    which = np.array(data.draw(st.lists(st.integers(0, 2), max_size=30)), np.uint8)
    symbols = np.array([data.draw(st.integers(0, len(WEIGHTS[one]) - 1)) for one in which], np.int32)
    assert cost(Categorical(collection(*WEIGHTS), which), symbols) <= 24 * len(symbols) + FEW


def test_each_distribution_is_made_once() -> None:
    asked: list[int] = []

    def weights(numbers: list[int]) -> list[NDArray[np.float64]]:
        asked.extend(numbers)
        return [np.ones(2 + number) for number in numbers]

    models = Frequencies(weights)
    models.of([3, 1])
    models.of([1, 2, 3])
    assert asked == [3, 1, 2]


@pytest.mark.parametrize("levels", [1, 2, 3, 6, 200, 256])
def test_bisected(levels: int) -> None:
    rng = np.random.default_rng(levels)
    weights = rng.integers(1, 1000, (levels, 5000))
    chances = weights / weights.sum(0)
    symbols = (rng.random(5000) > chances.cumsum(0)[:-1]).sum(0)
    expected = -np.log2(chances[symbols, np.arange(5000)]).sum()
    assert cost(Bisected(summed(weights), levels, 5000), symbols) == near(expected)


@given(st.integers(1, 9), st.integers(0, 6), st.data())
def test_bisected_symbols_come_back_even_the_impossible(levels: int, n: int, data: st.DataObject) -> None:
    """Whole stretches of levels, or all of them, may have weight 0."""
    column = st.lists(st.sampled_from([0, 0, 1, 2**40]), min_size=levels, max_size=levels)
    weights = np.array([data.draw(column) for _ in range(n)], float).reshape(n, levels).T
    symbols = np.array([data.draw(st.integers(0, levels - 1)) for _ in range(n)], np.int32)
    assert cost(Bisected(summed(weights), levels, n), symbols) <= n * (24 * 4) + FEW


def test_where_a_cumulative_distribution_tells_nothing_all_levels_are_equally_likely() -> None:
    symbols = np.random.default_rng(0).integers(0, 8, 1000)
    assert cost(Bisected(lambda level: np.zeros(len(level)), 8, 1000), symbols) == near(3 * 1000)


def test_popping_from_random_bits_draws_from_the_distribution() -> None:
    weights = np.array([1, 2, 4, 0, 9])
    message = random_message(20_000)
    n = 60_000
    drawn = [
        Categorical(collection([float(one) for one in weights]), np.zeros(n, np.uint8)).pop(message),
        Bisected(summed(np.tile(weights[:, None], (1, n))), 5, n).pop(message),
    ]
    assert message.bits > 1000
    for symbols in drawn:
        counts = np.bincount(symbols, minlength=5)
        assert counts[3] <= 1
        assert stats.chisquare(counts[weights > 0], n * weights[weights > 0] / weights.sum(), sum_check=False)[1] > 0.01


# -- likelihoods ---------------------------------------------------------------------------------------------------

PICTURE, COLORS, VECTOR = (1, 5, 7), (3, 5, 7), (24,)


def likelihood_of(
    kind: type[Likelihood], shape: tuple[int, ...], levels: int = 256, **keys: Any
) -> tuple[Likelihood, Tensor]:
    """A likelihood in float64 with parameters that are not their defaults, and outputs [B, *output_shape] for it."""
    noise = generator("codec", kind.__name__, *shape, levels, *map(str, keys.values()))
    made = kind(DataSpec(shape, "binary" if kind is BernoulliLikelihood else "levels", levels), **keys).double()
    outputs = torch.randn(4 * 5 * 7 * 30 // math.prod(shape), *made.output_shape, generator=noise, dtype=torch.float64)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=noise) * 0.5 - 2.5)
    return made, outputs


def logistic_outputs(outputs: Tensor, locs: slice, log_scales: slice) -> Tensor:
    """Locations around the middle, and scales around 0.05."""
    outputs = outputs.clone()
    outputs[:, locs] = 0.5 + 0.25 * outputs[:, locs]
    outputs[:, log_scales] = -3 + 0.5 * outputs[:, log_scales]
    return outputs


def cost_and_nats(made: Likelihood, quantized: pixels.Pixels, outputs: Tensor) -> tuple[float, float]:
    """Bits that examples cost which were drawn from these distributions, and −log2 p of them in float64."""
    with torch.no_grad():
        distribution = made(outputs)
        x = distribution.sample(generator("x"))
        expected = -distribution.log_prob(x).sum().item() / math.log(2)
    levels = (x * (getattr(made, "levels", 2) - 1)).round()
    return cost(quantized.codec(to_integers(outputs, OUTPUT_BITS)), levels.flatten().numpy()), expected


def test_bernoulli_pixels() -> None:
    made, outputs = likelihood_of(BernoulliLikelihood, PICTURE, 2)
    assert isinstance(made, BernoulliLikelihood)
    bits, expected = cost_and_nats(made, pixels.bernoulli(made), 3 * outputs)
    assert bits == near(expected)


@pytest.mark.parametrize("logit", [-32.0, 32.0, -1000.0, 1000.0])
def test_bernoulli_pixels_that_are_certain_cost_nothing_and_the_contrary_no_more_than_24_bits(logit: float) -> None:
    made, _ = likelihood_of(BernoulliLikelihood, (1000,), 2)
    assert isinstance(made, BernoulliLikelihood)
    codec = pixels.bernoulli(made).codec(to_integers(torch.full((1, 1, 1000), logit), OUTPUT_BITS))
    likely = np.full(1000, int(logit > 0))
    assert cost(codec, likely) <= 1
    assert cost(codec, 1 - likely) == near(24 * 1000)


@pytest.mark.parametrize("levels", [2, 5, 256, 4096])
def test_beta_binomial_pixels(levels: int) -> None:
    """Near ln α and ln β on the grid, where the codec's distribution is the likelihood's, for any number of levels."""
    made, _ = likelihood_of(BetaBinomialLikelihood, VECTOR, levels)
    assert isinstance(made, BetaBinomialLikelihood)
    grid = torch.from_numpy(pixels.places(levels - 1))
    places = grid[grid > -3][:30]
    log_alpha, log_beta = torch.cartesian_prod(places, places)[: 35 * 24].view(35, 1, 24, 2).unbind(-1)
    raw = -(1 / (log_alpha.exp() + log_beta.exp()) - 1 / (1000.0 * (levels - 1))).log()
    outputs = torch.cat((log_alpha - log_beta, raw), 1).repeat(10, 1, 1)
    bits, expected = cost_and_nats(made, pixels.beta_binomial(made), outputs)
    assert bits == near(expected)
    successes = np.arange(levels)
    ours = made(outputs[:1]).log_prob(torch.from_numpy(successes / (levels - 1.0)).view(-1, 1).expand(-1, 24))
    theirs = stats.betabinom.logpmf(successes[:, None], levels - 1, log_alpha[0, 0].exp(), log_beta[0, 0].exp())
    np.testing.assert_allclose(ours, theirs.sum(1), rtol=1e-4)


@pytest.mark.parametrize(
    ("raw", "rel"), [(-6.0, 2e-3), (-2.0, 1e-3), (0.0, 1e-3), (2.0, 1e-3), (5.0, 3e-3), (8.0, 5e-3)]
)
def test_beta_binomial_pixels_between_the_places_of_the_grid(raw: float, rel: float) -> None:
    """The larger α and β, the closer are the places: rounding costs 0.4 % at most."""
    made, outputs = likelihood_of(BetaBinomialLikelihood, PICTURE)
    assert isinstance(made, BetaBinomialLikelihood)
    outputs[:, 1] = raw + 0.3 * outputs[:, 1]
    bits, expected = cost_and_nats(made, pixels.beta_binomial(made), outputs)
    assert bits == near(expected, rel)


@pytest.mark.parametrize(
    ("logit", "raw"), [(0.0, -30.0), (3.0, -20.0), (-2.0, -40.0), (25.0, -5.0), (-25.0, 2.0), (30.0, -30.0)]
)
def test_beta_binomial_far_below_the_grid_is_a_coin_between_the_ends(logit: float, raw: float) -> None:
    """For α + β -> 0, P(0) = β / (α + β) and P(n) = α / (α + β)."""
    made, _ = likelihood_of(BetaBinomialLikelihood, (2000,))
    assert isinstance(made, BetaBinomialLikelihood)
    outputs = torch.tensor([logit, raw]).view(1, 2, 1).expand(-1, -1, 2000)
    codec = pixels.beta_binomial(made).codec(to_integers(outputs, OUTPUT_BITS))
    top = np.random.default_rng(0).binomial(1, 1 / (1 + math.exp(-logit)), 2000)
    expected = np.logaddexp(0, np.where(top == 1, -logit, logit)).sum() / math.log(2)
    assert cost(codec, 255 * top) == near(expected, 4e-3)  # 0.3 % of the probability stay between the ends
    assert cost(codec, np.arange(2000) % 256) <= 24 * 2000 + FEW  # all others come back, too


def test_beta_binomial_far_above_the_grid_is_nearly_binomial() -> None:
    made, _ = likelihood_of(BetaBinomialLikelihood, (5000,))
    assert isinstance(made, BetaBinomialLikelihood)
    outputs = torch.tensor([0.0, 30.0]).view(1, 2, 1).expand(-1, -1, 5000)
    codec = pixels.beta_binomial(made).codec(to_integers(outputs, OUTPUT_BITS))
    levels = np.random.default_rng(0).binomial(255, 0.5, 5000)
    assert cost(codec, levels) == near(-stats.binom.logpmf(levels, 255, 0.5).sum() / math.log(2), 2e-3)


@pytest.mark.parametrize(("shape", "levels"), [(VECTOR, 2), (PICTURE, 5), (COLORS, 30)])
def test_categorical_pixels(shape: tuple[int, ...], levels: int) -> None:
    made, outputs = likelihood_of(CategoricalLikelihood, shape, levels)
    assert isinstance(made, CategoricalLikelihood)
    bits, expected = cost_and_nats(made, logistic.categorical(made), 2 * outputs)
    assert bits == near(expected)


@pytest.mark.parametrize("shape", [VECTOR, COLORS])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(
    "keys", [{"scale": 0.07}, {"scale_shape": "one"}, {"scale_shape": "dimension"}, {"scale_shape": "pixel"}], ids=str
)
def test_discretized_logistic_pixels(shape: tuple[int, ...], levels: int, keys: dict[str, Any]) -> None:
    keys = {"scale_shape": "one", "scale_floor": 0.02, **keys}
    made, outputs = likelihood_of(DiscretizedLogisticLikelihood, shape, levels, **keys)
    assert isinstance(made, DiscretizedLogisticLikelihood)
    outputs = logistic_outputs(outputs, slice(0, 1), slice(1, 2))
    bits, expected = cost_and_nats(made, logistic.discretized_logistic(made), outputs)
    assert bits == near(expected)


@pytest.mark.parametrize(
    ("shape", "levels", "components"), [(VECTOR, 256, 3), (PICTURE, 17, 2), (COLORS, 256, 1), (COLORS, 64, 3)]
)
def test_mixture_pixels(shape: tuple[int, ...], levels: int, components: int) -> None:
    """Of several channels it is the joint probability that is coded, coupling and all."""
    made, outputs = likelihood_of(DiscretizedLogisticMixtureLikelihood, shape, levels, components=components)
    assert isinstance(made, DiscretizedLogisticMixtureLikelihood)
    m, rows = components, made.rows
    locs = slice(m, m + m * rows[1])
    outputs = logistic_outputs(outputs, locs, slice(locs.stop, locs.stop + m * rows[2]))
    bits, expected = cost_and_nats(made, logistic.logistic_mixture(made), outputs)
    assert bits == near(expected)


def test_a_mixture_of_three_channels_by_hand() -> None:
    """Σ_m w_m Π_c [F_mc(upper edge) − F_mc(lower edge)], with scipy's logistic distribution and locations coupled."""
    made, outputs = likelihood_of(DiscretizedLogisticMixtureLikelihood, (3, 1, 1), 8, components=2)
    assert isinstance(made, DiscretizedLogisticMixtureLikelihood)
    outputs = logistic_outputs(outputs, slice(2, 8), slice(8, 14))
    x = made(outputs).sample(generator("x")).flatten(1).numpy()  # [B, C]
    parts = outputs.flatten(1).split([2 * rows for rows in made.rows], 1)
    logits, loc, log_scale, coupling = (part.unflatten(1, (2, -1)).numpy() for part in parts)  # [B, M, ...]
    center, before = loc.copy(), x[:, None] - 0.5
    center[..., 1] += coupling[..., 0] * before[..., 0]
    center[..., 2] += coupling[..., 1] * before[..., 0] + coupling[..., 2] * before[..., 1]
    law = stats.logistic(center, np.hypot(np.exp(log_scale), 1e-3))
    upper = np.where(x == 1, np.inf, x + 0.5 / 7)[:, None]
    lower = np.where(x == 0, -np.inf, x - 0.5 / 7)[:, None]
    joint = (law.cdf(upper) - law.cdf(lower)).prod(-1)
    weights = np.exp(logits[..., 0])
    expected = -np.log2((weights / weights.sum(1, keepdims=True) * joint).sum(1)).sum()
    codec = logistic.logistic_mixture(made).codec(to_integers(outputs, OUTPUT_BITS))
    assert cost(codec, np.rint(7 * x).flatten()) == near(expected)


@pytest.mark.parametrize("outputs", [-1e6, -30.0, 0.0, 30.0, 1e6])
@pytest.mark.parametrize("shape", [VECTOR, COLORS])
@pytest.mark.parametrize(
    "kind",
    [
        BetaBinomialLikelihood,
        CategoricalLikelihood,
        DiscretizedLogisticLikelihood,
        DiscretizedLogisticMixtureLikelihood,
    ],
)
def test_any_levels_come_back_under_any_outputs(kind: type[Likelihood], shape: tuple[int, ...], outputs: float) -> None:
    made, _ = likelihood_of(kind, shape, 7)
    quantize: dict[type[Likelihood], Callable[[Any], pixels.Pixels]] = {
        BetaBinomialLikelihood: pixels.beta_binomial,
        CategoricalLikelihood: logistic.categorical,
        DiscretizedLogisticLikelihood: logistic.discretized_logistic,
        DiscretizedLogisticMixtureLikelihood: logistic.logistic_mixture,
    }
    codec = quantize[kind](made).codec(to_integers(torch.full((2, *made.output_shape), outputs), OUTPUT_BITS))
    for levels in (
        np.zeros((2, *shape)),
        np.full((2, *shape), 6),
        np.random.default_rng(0).integers(0, 7, (2, *shape)),
    ):
        cost(codec, levels.flatten())


# -- latents -------------------------------------------------------------------------------------------------------

STANDARD: dict[str, Any] = {"gaussian": stats.norm(), "laplace": stats.laplace(scale=math.sqrt(0.5))}


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
@pytest.mark.parametrize("step", [-88, -60, -16, 0, 20])
def test_shapes_of_posteriors(family: str, step: int) -> None:
    """Cells of 2⁻⁷ under a distribution with standard deviation exp(step / 16), which ends 6 of these away."""
    rng, distribution = np.random.default_rng(step + 100), STANDARD[family]
    scale = math.exp(step / SCALE_STEPS) * 2**GRID_BITS
    center = rng.integers(-1500, 1500, 20_000)
    drawn = distribution.rvs(20_000, random_state=rng)
    offset = np.rint(scale * drawn[abs(drawn) < 5.9]).astype(int)
    upper, lower = distribution.cdf((-abs(offset) + 0.5) / scale), distribution.cdf((-abs(offset) - 0.5) / scale)
    ends = distribution.cdf(6) - distribution.cdf(-6)
    expected = -np.log2((upper - lower) / ends).sum()
    codec = shapes(FAMILIES[family], -88, 20).codec(
        torch.from_numpy(center[: len(offset)]), torch.full((len(offset),), float(step))
    )
    assert cost(codec, center[: len(offset)] + offset) == near(expected)


def test_a_posterior_at_the_end_of_the_grid_or_of_the_scales_stays_inside() -> None:
    center = torch.tensor([1e9, -1e9, LARGEST, 0.0, 3.0])
    step = torch.tensor([-88.0, 20.0, 1e6, -1e6, 0.0])
    cells = shapes(FAMILIES["gaussian"], -88, 20).codec(center, step).pop(random_message(40))
    assert abs(cells).max() <= LARGEST
    assert abs(cells[0] - LARGEST) <= 8
    assert abs(cells[3]) <= 4


def test_popping_a_posterior_draws_from_it() -> None:
    n = 20_000
    codec = shapes(FAMILIES["gaussian"], -88, 20).codec(torch.full((n,), -300.0), torch.full((n,), -8.0))
    z = codec.pop(random_message(n)) / 2**GRID_BITS
    assert stats.kstest(z, stats.norm(-300 / 128, math.exp(-0.5)).cdf)[0] < 0.015


def test_the_standard_normal_prior() -> None:
    rng = np.random.default_rng(0)
    z = np.rint(rng.standard_normal(20_000) * 2**GRID_BITS).astype(int)
    expected = -np.log2(np.diff(stats.norm.cdf((z[:, None] + [-0.5, 0.5]) / 2**GRID_BITS), axis=1)).sum()
    origin = torch.zeros(len(z))
    assert cost(gaussian_prior().codec(origin, origin), z) == near(expected)


@pytest.mark.parametrize("step", [-16, 0, 5, 16])
def test_conditional_priors_reach_over_the_whole_grid(step: int) -> None:
    rng, scale = np.random.default_rng(step + 20), math.exp(step / SCALE_STEPS) * 2**GRID_BITS
    center = np.rint(rng.uniform(-800, 800, 20_000))
    z = center + np.rint(rng.standard_normal(20_000) * scale)
    expected = -np.log2(np.diff(stats.norm.cdf((z - center)[:, None] + [-0.5, 0.5], scale=scale), axis=1)).sum()
    prior = gaussian_prior(-16, 16)
    steps = torch.full((len(z),), float(step))
    assert cost(prior.codec(torch.from_numpy(center), steps), z) == near(expected, 2e-3)
    ends = np.array([-LARGEST, LARGEST, LARGEST, -LARGEST, 0])
    centers = torch.tensor([-1e9, 1e9, -LARGEST, LARGEST, 1e5])
    assert cost(prior.codec(centers, steps[:5]), ends) <= 24 * 5 + FEW


def test_every_cell_of_the_grid_has_a_code() -> None:
    origin = torch.zeros(2 * LARGEST + 1)
    everywhere = np.arange(-LARGEST, LARGEST + 1)
    assert cost(gaussian_prior().codec(origin, origin), everywhere) <= 24 * len(everywhere) + FEW
