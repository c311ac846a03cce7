"""Likelihoods whose probabilities are differences of a cumulative distribution: categorical, discretized logistics."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab.compression.codecs import Bisected, Codec, Cumulative, Message, Symbols
from vaelab.compression.integers import ACTIVATION_BITS, OUTPUT_BITS, activations, limit, look_up, rescale
from vaelab.compression.pixels import Pixels
from vaelab.errors import InputError
from vaelab.likelihoods.categorical import CategoricalLikelihood
from vaelab.likelihoods.discretized import DiscretizedLogisticLikelihood
from vaelab.likelihoods.mixture import DiscretizedLogisticMixtureLikelihood
from vaelab.likelihoods.scales import floored

Whole = NDArray[np.float64]
"""Whole numbers in float64."""

WEIGHT_BITS = 18  # of a mixture's weights, and of a category's
MASS_BITS = 30  # of the logistic function
STEP_BITS, STEP_RANGE = 12, 16  # it is known at multiples of 2⁻¹² from −16 to 16
PLACE_BITS = 24  # of locations and levels
INVERSE_BITS = 8  # of 1 / scale
MOST_COMPONENTS = 32  # so that 2¹⁸ · 2³⁰ · M stays under 2⁵³


def softmax_weights(exp: Whole, logits: Whole) -> Whole:
    """Weights of categories [M, n], in multiples of 2⁻¹⁸ of the largest.

    Args:
        exp: exp(−x) at activations x = 0, 2⁻¹⁰, …, in multiples of 2⁻¹⁸.
        logits: activations, [M, n].
    """
    below = np.minimum(logits.max(0) - logits, len(exp) - 1)
    return exp[below.astype(np.int32)]


@dataclass
class CategoricalPixels(Pixels):
    """A weight for each of L levels."""

    exp: Tensor

    def codec(self, outputs: Tensor) -> Codec:
        logits = rescale(outputs, OUTPUT_BITS, ACTIVATION_BITS).movedim(1, 0).flatten(1).numpy()
        below = np.pad(softmax_weights(self.exp.numpy(), logits).cumsum(0), ((1, 0), (0, 0)))

        def cumulative(level: NDArray[np.int64]) -> Whole:
            return np.take_along_axis(below, level[None], 0)[0]

        return Bisected(cumulative, *logits.shape)


@dataclass
class LogisticPixels(Pixels):
    """A mixture of M discretized logistics at every site, channel after channel.

    F(l) = Σ_m weight_m · σ((edge_l − loc_m) / scale_m), 0 below level 0 and 1 above the last: the end bins are open.
    The weights of a channel are those of the components *given the channels before it*, weight · p_m(x_1) · …: so the
    product over the channels is the mixture's joint probability (`vaelab.likelihoods.mixture`).

    Attributes:
        exp: exp(−x) at activations x ≥ 0, in multiples of 2⁻¹⁸.
        sigmoid: the logistic function at multiples of 2⁻¹², in multiples of 2⁻³⁰.
        inverse_scale: 1 / scale at 2⁻⁸: by the decoder's log-scale at activations; or [dims], where no decoder says it.
        predicted: whether the decoder says it.
        components: M.
        channels: C of a picture whose channels share their components, else 1.
        levels: L.
    """

    exp: Tensor
    sigmoid: Tensor
    inverse_scale: Tensor
    predicted: bool
    components: int
    channels: int
    levels: int

    def codec(self, outputs: Tensor) -> Codec:
        m, c = self.components, self.channels
        rows = [m * c, m * c if self.predicted else 0, m * c * (c - 1) // 2]
        weighted = outputs.shape[1] - sum(rows)  # M, or 0 where there is nothing to choose between
        logits, loc, log_scale, coupling = (
            part.movedim(1, 0).flatten(1) for part in outputs.flatten(2).split([weighted, *rows], 1)
        )
        if self.predicted:
            inverse = look_up(self.inverse_scale, rescale(log_scale, OUTPUT_BITS, ACTIVATION_BITS))
        else:
            inverse = self.inverse_scale.repeat(len(outputs))
        weights = np.ones((1, loc.shape[1]))
        if m > 1:
            weights = softmax_weights(self.exp.numpy(), rescale(logits, OUTPUT_BITS, ACTIVATION_BITS).numpy())
        by_channel = (part.numpy().reshape(m, -1, loc.shape[1]) for part in (loc, inverse, coupling))
        return _Channels(self, len(outputs), weights, *by_channel)

    def edges(self, level: NDArray[np.int64]) -> Whole:
        """The lower edge of levels, at 2⁻²⁴."""
        return np.rint((2 * level - 1) * (2.0 ** (PLACE_BITS - 1) / (self.levels - 1)))


class _Channels(Codec):
    """Of B examples: symbols [B · C · sites]. Arrays are [M, C, n] with n = B · sites; weights are [M, n]."""

    def __init__(
        self, pixels: LogisticPixels, examples: int, weights: Whole, loc: Whole, inverse: Whole, coupling: Whole
    ) -> None:
        self.pixels, self.examples = pixels, examples
        self.weights, self.loc, self.inverse, self.coupling = weights, loc, inverse, coupling

    def push(self, message: Message, symbols: Symbols) -> None:
        by_channel = (
            symbols.reshape(self.examples, self.pixels.channels, -1).swapaxes(0, 1).reshape(self.pixels.channels, -1)
        )
        codecs, weights = [], self.weights
        for channel, level in enumerate(by_channel):
            cumulative = self._cumulative(channel, by_channel[:channel])
            codecs.append(self._bisected(weights, cumulative))
            weights = self._given(weights, cumulative, level)
        for codec, level in zip(reversed(codecs), by_channel[::-1], strict=True):
            codec.push(message, level)

    def pop(self, message: Message) -> Symbols:
        by_channel, weights = np.empty((0, self.loc.shape[-1]), np.int32), self.weights
        for channel in range(self.pixels.channels):
            cumulative = self._cumulative(channel, by_channel)
            level = self._bisected(weights, cumulative).pop(message)
            weights = self._given(weights, cumulative, level)
            by_channel = np.concatenate((by_channel, level[None]))
        return by_channel.reshape(len(by_channel), self.examples, -1).swapaxes(0, 1).flatten()

    def _cumulative(self, channel: int, earlier: Symbols) -> Cumulative:
        """Levels [n] -> F of each component, [M, n], in multiples of 2⁻³⁰, given the levels of earlier channels."""
        pixels, top = self.pixels, self.pixels.levels - 1
        loc = self.loc[:, channel] * 2.0 ** (PLACE_BITS - OUTPUT_BITS)
        first = channel * (channel - 1) // 2
        for other, level in enumerate(earlier):
            factor = self.coupling[:, first + other] * 2.0 ** (PLACE_BITS - OUTPUT_BITS)
            loc = loc + np.rint(factor * (2 * level - top) / (2 * top))
        sigmoid, inverse = pixels.sigmoid.numpy(), self.inverse[:, channel]
        top_step = STEP_RANGE << STEP_BITS

        def cumulative(level: NDArray[np.int64]) -> Whole:
            steps = np.rint((pixels.edges(level) - loc) * inverse * 2.0 ** (STEP_BITS - PLACE_BITS - INVERSE_BITS))
            inside = sigmoid[(steps.clip(-top_step, top_step) + top_step).astype(np.int32)]
            return np.where(level <= 0, 0, np.where(level > top, 2.0**MASS_BITS, inside))

        return cumulative

    def _bisected(self, weights: Whole, cumulative: Cumulative) -> Bisected:
        return Bisected(lambda level: (weights * cumulative(level)).sum(0), self.pixels.levels, weights.shape[1])

    def _given(self, weights: Whole, cumulative: Cumulative, level: Symbols) -> Whole:
        """Weights of the components once a channel's level is known, in multiples of 2⁻¹⁸ of the largest."""
        if self.pixels.channels == 1:
            return weights
        at = level.astype(np.int64)
        joint = weights * (cumulative(at + 1) - cumulative(at))
        largest = joint.max(0)
        return np.where(largest > 0, np.rint(joint * 2.0**WEIGHT_BITS / np.where(largest > 0, largest, 1)), weights)


# -- tables --------------------------------------------------------------------------------------------------------


def categorical(_: CategoricalLikelihood) -> CategoricalPixels:
    """Quantized."""
    return CategoricalPixels(_exp())


def discretized_logistic(likelihood: DiscretizedLogisticLikelihood) -> LogisticPixels:
    """Quantized: one component, and each dimension of its own."""
    predicted = likelihood.output_shape[0] == 2
    if predicted:
        inverse = _inverse_by_log_scale(likelihood.scale_floor)
    else:
        _, scale = likelihood.loc_scale(torch.zeros(likelihood.output_shape, dtype=torch.float64))
        inverse = (2.0**INVERSE_BITS / scale.detach().double()).round().expand(likelihood.event_shape).flatten()
    return LogisticPixels(_exp(), _sigmoid(), inverse.clone(), predicted, 1, 1, likelihood.levels)


def logistic_mixture(likelihood: DiscretizedLogisticMixtureLikelihood) -> LogisticPixels:
    """Quantized.

    Raises:
        InputError: so many components that sums would not be exact.
    """
    if likelihood.components > MOST_COMPONENTS:
        raise InputError(
            f"likelihood.components={likelihood.components}: compression sums at most {MOST_COMPONENTS} exactly; train "
            f"with likelihood.components={MOST_COMPONENTS} or fewer"
        )
    inverse = _inverse_by_log_scale(likelihood.scale_floor)
    channels = likelihood.rows[1]
    return LogisticPixels(_exp(), _sigmoid(), inverse, True, likelihood.components, channels, likelihood.levels)


def _exp() -> Tensor:
    x = torch.arange(limit(ACTIVATION_BITS) + 1, dtype=torch.float64) / 2**ACTIVATION_BITS
    return (2.0**WEIGHT_BITS * (-x).exp()).round()


def _sigmoid() -> Tensor:
    top = STEP_RANGE << STEP_BITS
    return (2.0**MASS_BITS * (torch.arange(-top, top + 1, dtype=torch.float64) / 2**STEP_BITS).sigmoid()).round()


def _inverse_by_log_scale(floor: float) -> Tensor:
    return (2.0**INVERSE_BITS / floored(activations(), floor)).round()
