"""p(x|z) in whole numbers: a codec of examples for what the decoder gives.

A quantized likelihood is made from the trained one by the function below it, and gives `codec(outputs)`: outputs are
whole numbers in float64 at 2⁻¹⁶, [B, *output_shape], and symbols the levels of all dimensions, [B · dims] in C order.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, gammaln
from torch import Tensor

from vaelab.compression.codecs import Bits, Categorical, Codec, Frequencies
from vaelab.compression.integers import ACTIVATION_BITS, OUTPUT_BITS, activations, look_up, rescale
from vaelab.likelihoods.bernoulli import BernoulliLikelihood
from vaelab.likelihoods.counts import BetaBinomialLikelihood, bound_of


class Pixels(ABC):
    """A likelihood, quantized."""

    @abstractmethod
    def codec(self, outputs: Tensor) -> Codec:
        """Of all dimensions of all examples, [B · dims]."""


def whole(values: NDArray[np.float64]) -> Tensor:
    """The nearest whole numbers, in float64."""
    return torch.from_numpy(np.rint(values))


@dataclass
class BernoulliPixels(Pixels):
    """P(1) by the logit.

    Attributes:
        p: at activations, multiples of 2⁻³⁰.
    """

    p: Tensor

    def codec(self, outputs: Tensor) -> Codec:
        logits = rescale(outputs, OUTPUT_BITS, ACTIVATION_BITS)
        return Bits(look_up(self.p, logits).flatten().numpy())


def bernoulli(_: BernoulliLikelihood) -> BernoulliPixels:
    """Quantized."""
    return BernoulliPixels(whole(expit(activations().numpy()) * 2**30) / 2**30)


# -- beta-binomial -------------------------------------------------------------------------------------------------

CELLS = 256
LOWEST, LEAST, HIGHEST = -24, -8, 8
"""Of ln α and ln β: the grid is from LOWEST to HIGHEST, and the larger one is never below LEAST."""
FINE = 128  # steps in one unit, of the table that finds the nearest place on the grid
FINE_STEPS: NDArray[np.float64] = LOWEST + np.arange((HIGHEST - LOWEST) * FINE + 1) / FINE
MADE_AT_ONCE = 1024
LOG2_BITS = 16  # of log2 p


@dataclass
class BetaBinomialPixels(Pixels):
    """A grid of 256 places for ln α and ln β each: see `places`.

    log₂ P(k) = rising[α, k] + rising[β, n − k] + constant, with n = L − 1 and rising[α, k] = log₂ Γ(k + α) / (Γ(α) k!)
    at 2⁻¹⁶. So the distribution of each of the 65,536 pairs comes from one small table, by sums and by looking up
    powers of two; it is made when a pair is first met.

    Attributes:
        log_sigmoid: ln σ(x) at activations x, at 2⁻¹⁶.
        log_concentration: ln(α + β) by the decoder's second output, at 2⁻¹⁶.
        nearest: the nearest place to LOWEST, LOWEST + 1/128, … HIGHEST.
        rising: [grid, L].
        power: 2ˣ for x = 0, 2⁻¹⁶, …, at 2⁻²⁴.
    """

    log_sigmoid: Tensor
    log_concentration: Tensor
    nearest: Tensor
    rising: Tensor
    power: Tensor

    def __post_init__(self) -> None:
        self.models = Frequencies(self.weights)

    def codec(self, outputs: Tensor) -> Codec:
        logits, raw = rescale(outputs, OUTPUT_BITS, ACTIVATION_BITS).unbind(1)
        concentration = look_up(self.log_concentration, raw)
        alpha = concentration + look_up(self.log_sigmoid, logits)
        beta = concentration + look_up(self.log_sigmoid, -logits)
        # Where the larger one is beyond the grid, or too small for coding to tell, both are moved: the mean stays.
        larger = torch.maximum(alpha, beta)
        move = larger.clamp(LEAST * 2.0**OUTPUT_BITS, HIGHEST * 2.0**OUTPUT_BITS) - larger
        key = self._cell(alpha + move) * CELLS + self._cell(beta + move)
        return Categorical(self.models, key.flatten().numpy().astype(np.uint16))

    def _cell(self, log_value: Tensor) -> Tensor:
        """The nearest place on the grid."""
        middle = (HIGHEST + LOWEST) // 2 * FINE
        steps = (log_value * (FINE / 2.0**OUTPUT_BITS)).round().clamp_(LOWEST * FINE, HIGHEST * FINE)
        return look_up(self.nearest, steps.sub_(middle))

    def weights(self, keys: list[int]) -> Iterator[NDArray[np.float64]]:
        """Of levels 0, 1, …, up to a factor."""
        rising, power = self.rising.numpy(), self.power.numpy()
        for start in range(0, len(keys), MADE_AT_ONCE):
            alpha, beta = np.divmod(keys[start : start + MADE_AT_ONCE], CELLS)
            log2_p = rising[alpha] + rising[beta, ::-1]
            log2_p = (log2_p - log2_p.max(1, keepdims=True)).astype(np.int64)
            whole, part = log2_p >> LOG2_BITS, log2_p & ((1 << LOG2_BITS) - 1)
            yield from np.rint(np.ldexp(power[part], np.maximum(whole, -60).astype(np.int32)))


def places(trials: int) -> NDArray[np.float64]:
    """Values of ln α, close together where a small change of it changes the distribution much: [256].

    Rounding costs half the Fisher information about ln α times the square of the error. Where α is large and β any, the
    information is at most α / (√(r + 1) + √r)², r = α / trials: of a binomial distribution's logit, blurred by the beta
    distribution's. Where both are small, it is that of a coin, at most 1/4. Below LEAST α is the smaller one, and the
    coin hardly ever falls on its side. The distance is as 1 / √information, with a constant added for the coin: it was
    chosen so that MNIST is not coded worse than with equal distances, and nothing 0.4 % worse than without rounding.
    """
    alpha = np.exp(FINE_STEPS)
    r = alpha / trials
    density = np.sqrt(np.where(FINE_STEPS < LEAST, 2, 12) + alpha / (np.sqrt(r + 1) + np.sqrt(r)) ** 2)
    way = np.concatenate(([0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return np.interp(np.linspace(0, way[-1], CELLS), way, FINE_STEPS)


def beta_binomial(likelihood: BetaBinomialLikelihood) -> BetaBinomialPixels:
    """Tables of the grid."""
    x, counts = activations().numpy(), np.arange(likelihood.levels)
    grid = places(likelihood.levels - 1)
    cells = np.exp(grid)[:, None]
    rising = (gammaln(counts + cells) - gammaln(cells) - gammaln(counts + 1)) / math.log(2)
    most = math.log(bound_of(likelihood.levels))
    return BetaBinomialPixels(
        log_sigmoid=whole(-np.logaddexp(0, -x) * 2**OUTPUT_BITS),
        log_concentration=whole(-np.logaddexp(-x, -most) * 2**OUTPUT_BITS),
        nearest=whole(np.searchsorted((grid[1:] + grid[:-1]) / 2, FINE_STEPS).astype(np.float64)),
        rising=whole(rising * 2**LOG2_BITS),
        power=whole(np.exp2(np.arange(1 << LOG2_BITS) / (1 << LOG2_BITS)) * 2**24),
    )
