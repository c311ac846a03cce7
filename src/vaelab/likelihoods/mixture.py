"""The discretized logistic mixture of PixelCNN++, with channels that follow one another."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaelab.config import PositiveFloat, PositiveInt, register
from vaelab.data.spec import DataSpec
from vaelab.likelihoods.base import Likelihood, LikelihoodDistribution, sum_event
from vaelab.likelihoods.categorical import draw_category
from vaelab.likelihoods.discretized import bin_log_prob, bin_mean, bin_sample
from vaelab.likelihoods.scales import floored, share_at_floor


def channel_axis(event_ndim: int) -> int:
    """Where the channels are in [..., M, C, *sites]; the components are on the axis before."""
    return -3 if event_ndim == 3 else -event_ndim - 1


@dataclass
class DiscretizedLogisticMixture(LikelihoodDistribution):
    """A mixture of M discretized logistics at every site: Salimans et al. 2017 (arXiv:1701.05517), section 2.1–2.2.

    A site of a picture (C, H, W) is a pixel: its C channels come from one component, one after the other. The location
    of channel c is loc_c + Σ_{j < c} coupling_cj · (x_j − ½), with the values x_j of the channels before it. (The paper
    has −1 … 1 for the values; centered at ½, a coupling changes a picture's mean little.) Any other event has one
    channel, and each of its dimensions is a site.

    Attributes:
        logits: of the component, [..., M, 1, *sites].
        loc, scale: [..., M, C, *sites].
        coupling: [..., M, C (C − 1) / 2, *sites]; in order (1, 0), (2, 0), (2, 1), ...
        levels: L.
    """

    logits: Tensor
    loc: Tensor
    scale: Tensor
    coupling: Tensor
    levels: int
    event_ndim: int

    @property
    def _channel_axis(self) -> int:
        return channel_axis(self.event_ndim)

    def log_prob(self, x: Tensor) -> Tensor:
        axis = self._channel_axis
        if self.event_ndim != 3:
            x = x.unsqueeze(axis)
        x = x.unsqueeze(axis - 1)  # [..., 1, C, *sites]
        loc = torch.cat([self._conditional_loc(c, x.narrow(axis, 0, c)) for c in range(self._channels)], axis)
        log_probs = bin_log_prob(x, loc, self.scale, self.levels).sum(axis, keepdim=True)
        joint = self.logits.log_softmax(axis - 1) + log_probs
        return sum_event(joint.logsumexp(axis - 1), -axis)

    @property
    def mean(self) -> Tensor:
        """Exactly E[x|z] for one channel. Of several, a later one's is its mean at the *means* of those before it.

        That is component by component, before the average over components. It is E[x|z] wherever a channel's mean is
        linear in its location; at the ends of the range, and where bins are wider than the scale, it is not.
        """
        axis = self._channel_axis
        means = self._channel_by_channel(lambda loc, scale: bin_mean(loc, scale, self.levels))
        return self._event((self.logits.softmax(axis - 1) * means).sum(axis - 1))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        axis = self._channel_axis
        component = draw_category(self.logits.movedim(axis - 1, -1), generator).unsqueeze(axis - 1)
        loc, scale, coupling = (  # [..., 1, C or C (C − 1) / 2, *sites]
            values.take_along_dim(component, axis - 1) for values in (self.loc, self.scale, self.coupling)
        )
        chosen = DiscretizedLogisticMixture(self.logits, loc, scale, coupling, self.levels, self.event_ndim)
        x = chosen._channel_by_channel(lambda loc, scale: bin_sample(loc, scale, self.levels, generator))
        return self._event(x.squeeze(axis - 1))

    @property
    def _channels(self) -> int:
        return self.loc.shape[self._channel_axis]

    def _conditional_loc(self, channel: int, earlier: Tensor) -> Tensor:
        """Location of a channel [..., M, 1, *sites], given those before it [..., M or 1, channel, *sites]."""
        axis = self._channel_axis
        row = self.coupling.narrow(axis, channel * (channel - 1) // 2, channel)
        return self.loc.narrow(axis, channel, 1) + (row * (earlier - 0.5)).sum(axis, keepdim=True)

    def _channel_by_channel(self, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[..., M, C, *sites]: the value that location and scale give, each channel's from those before it."""
        axis = self._channel_axis
        found = self.loc.narrow(axis, 0, 0)
        for channel in range(self._channels):
            loc = self._conditional_loc(channel, found)
            found = torch.cat((found, value(loc, self.scale.narrow(axis, channel, 1))), axis)
        return found

    def _event(self, values: Tensor) -> Tensor:
        """[..., C, *sites] -> [..., *event]."""
        return values if self.event_ndim == 3 else values.squeeze(self._channel_axis)


@register("likelihood", "discretized-logistic-mixture")
class DiscretizedLogisticMixtureLikelihood(Likelihood):
    """For integer levels: several humps a dimension, and channels that depend on each other.

    For pictures of C channels the decoder gives M · (1 + 2 C + C (C − 1) / 2) numbers a pixel, as
    (that many, 1, H, W), for the weights belong to the pixel; for others 3 M a dimension.
    """

    kinds = ("levels", "binary")
    discrete = True

    def __init__(self, data: DataSpec, *, components: PositiveInt = 5, scale_floor: PositiveFloat = 1e-3) -> None:
        is_picture = len(data.shape) == 3
        channels = data.shape[0] if is_picture else 1
        rows = (1, channels, channels, channels * (channels - 1) // 2)
        super().__init__(data, parameters=components * sum(rows))
        if is_picture:
            self.output_shape = (self.output_shape[0], 1, *data.shape[1:])
        assert data.levels is not None
        self.levels = data.levels
        self.components = components
        self.scale_floor = scale_floor
        self.rows = rows

    def forward(self, outputs: Tensor) -> DiscretizedLogisticMixture:
        if self.event_ndim == 3:
            outputs = outputs.squeeze(-3)
        axis = channel_axis(self.event_ndim)
        split = outputs.split([self.components * rows for rows in self.rows], axis)
        logits, loc, log_scale, coupling = (
            part.unflatten(axis, (self.components, rows)) for part, rows in zip(split, self.rows, strict=True)
        )
        scale = floored(log_scale, self.scale_floor)
        return DiscretizedLogisticMixture(logits, loc, scale, coupling, self.levels, self.event_ndim)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.event_ndim != 3:
            mean, std = mean.unsqueeze(0), std.unsqueeze(0)
        # Components that are all alike would stay alike: their means lie evenly over mean ± std, or closer where that
        # would take more than half of the variance. Each has the variance that is left.
        places = torch.linspace(-1, 1, self.components) if self.components > 1 else torch.zeros(1)
        places *= min(1.0, math.sqrt(0.5 / max(1e-9, places.square().mean().item())))
        narrow = math.sqrt(1 - places.square().mean().item()) * math.sqrt(3) / math.pi
        loc = mean + std * places.view(-1, *[1] * mean.ndim)  # [M, C, *sites]
        log_scale = (std * narrow).clamp(min=10 * self.scale_floor).log().expand_as(loc)
        shapes = [(self.components * rows, *mean.shape[1:]) for rows in self.rows]
        start = torch.cat(
            (mean.new_zeros(shapes[0]), loc.flatten(0, 1), log_scale.flatten(0, 1), mean.new_zeros(shapes[3]))
        )
        return start.view(self.output_shape)

    def fraction_at_floor(self, distribution: LikelihoodDistribution) -> Tensor | None:
        assert isinstance(distribution, DiscretizedLogisticMixture)
        return share_at_floor(distribution.scale, self.scale_floor)
