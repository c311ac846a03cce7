"""A free probability for each level."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vaelab.config import register
from vaelab.data.spec import DataSpec
from vaelab.likelihoods.base import LikelihoodDistribution, sum_event, to_levels
from vaelab.likelihoods.counts import BetaBinomial, CountLikelihood, beta_binomial_of, log_bounded


def draw_category(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index for every row of logits [..., M] -> [...]."""
    probabilities = logits.softmax(-1).flatten(0, -2)
    return torch.multinomial(probabilities, 1, generator=generator).view(logits.shape[:-1])


@dataclass
class Categorical(LikelihoodDistribution):
    """Each dimension is level l with probability softmax(logits)_l; it does not know that levels have an order.

    Attributes:
        logits: [..., *event, L].
    """

    logits: Tensor
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        level = to_levels(x, self.logits.shape[-1]).long()
        shape = torch.broadcast_shapes(level.shape, self.logits.shape[:-1])
        chosen = self.logits.expand(*shape, -1).gather(-1, level.expand(shape).unsqueeze(-1)).squeeze(-1)
        return sum_event(chosen - self.logits.logsumexp(-1), self.event_ndim)

    @property
    def mean(self) -> Tensor:
        values = torch.linspace(0, 1, self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        return self.logits.softmax(-1) @ values

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return draw_category(self.logits, generator).to(self.logits.dtype) / (self.logits.shape[-1] - 1)


@register("likelihood", "categorical")
class CategoricalLikelihood(CountLikelihood):
    """For integer levels, few of them best: L outputs a dimension, the logit of each level."""

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data, parameters=data.levels or 1)

    def forward(self, outputs: Tensor) -> Categorical:
        return Categorical(outputs.movedim(-self.event_ndim - 1, -1), self.event_ndim)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        logits, raw = beta_binomial_of(mean.flatten(), std.flatten(), self.levels)
        # The probabilities of the beta-binomial with the data's mean and spread; one dimension is one event there.
        start = BetaBinomial(logits[:, None], log_bounded(raw, self.levels)[:, None], self.levels, event_ndim=1)
        values = torch.linspace(0, 1, self.levels, dtype=mean.dtype, device=mean.device)
        return start.log_prob(values[:, None, None]).view(self.output_shape)
