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

STEPS = 8  # of ln α and ln β, in one unit
CELLS = 256  # from e⁻²⁴ to e⁸
LOWEST, HIGHEST = -24, -24 + (CELLS - 1) / STEPS
LEAST = -8  # of the larger one
MADE_AT_ONCE = 1024
LOG2_BITS = 16  # of log2 p


@dataclass
class BetaBinomialPixels(Pixels):
    """A grid of ln α and ln β, 8 steps a unit.

    log₂ P(k) = rising[α, k] + rising[β, n − k] + constant, with n = L − 1 and rising[α, k] = log₂ Γ(k + α) / (Γ(α) k!)
    at 2⁻¹⁶. So the distribution of each of the 65,536 pairs comes from one small table, by sums and by looking up
    powers of two; it is made when a pair is first met.

    Attributes:
        log_sigmoid: ln σ(x) at activations x, at 2⁻¹⁶.
        log_concentration: ln(α + β) by the decoder's second output, at 2⁻¹⁶.
        rising: [grid, L].
        power: 2ˣ for x = 0, 2⁻¹⁶, …, at 2⁻²⁴.
    """

    log_sigmoid: Tensor
    log_concentration: Tensor
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
        return (log_value * (STEPS / 2.0**OUTPUT_BITS)).round().sub_(LOWEST * STEPS).clamp_(0, CELLS - 1)

    def weights(self, keys: list[int]) -> Iterator[NDArray[np.float64]]:
        """Of levels 0, 1, …, up to a factor."""
        rising, power = self.rising.numpy(), self.power.numpy()
        for start in range(0, len(keys), MADE_AT_ONCE):
            alpha, beta = np.divmod(keys[start : start + MADE_AT_ONCE], CELLS)
            log2_p = rising[alpha] + rising[beta, ::-1]
            log2_p = (log2_p - log2_p.max(1, keepdims=True)).astype(np.int64)
            whole, part = log2_p >> LOG2_BITS, log2_p & ((1 << LOG2_BITS) - 1)
            yield from np.rint(np.ldexp(power[part], np.maximum(whole, -60).astype(np.int32)))


def beta_binomial(likelihood: BetaBinomialLikelihood) -> BetaBinomialPixels:
    """Tables of the grid."""
    x = activations().numpy()
    cells = np.exp(LOWEST + np.arange(CELLS) / STEPS)[:, None]
    counts = np.arange(likelihood.levels)
    rising = (gammaln(counts + cells) - gammaln(cells) - gammaln(counts + 1)) / math.log(2)
    most = math.log(bound_of(likelihood.levels))
    return BetaBinomialPixels(
        log_sigmoid=whole(-np.logaddexp(0, -x) * 2**OUTPUT_BITS),
        log_concentration=whole(-np.logaddexp(-x, -most) * 2**OUTPUT_BITS),
        rising=whole(rising * 2**LOG2_BITS),
        power=whole(np.exp2(np.arange(1 << LOG2_BITS) / (1 << LOG2_BITS)) * 2**24),
    )
