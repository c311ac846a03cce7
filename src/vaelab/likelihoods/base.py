"""What every likelihood is: a distribution of x, and the module that makes it from decoder outputs."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from vaelab import config as parts
from vaelab.config import build, register, section
from vaelab.data.spec import DataSpec, Kind
from vaelab.errors import InputError

LOG_2PI = math.log(2 * math.pi)


def sum_event(values: Tensor, event_ndim: int) -> Tensor:
    """Sum over the last `event_ndim` dimensions."""
    return values.flatten(-event_ndim).sum(-1)


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform noise inside the open interval (0, 1), so that its logit is finite."""
    noise = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return noise.clamp_(torch.finfo(like.dtype).tiny, 1 - torch.finfo(like.dtype).eps / 2)


def to_levels(x: Tensor, levels: int) -> Tensor:
    """From the model's scale back to the integers 0 … levels − 1 (as floating point)."""
    return (x * (levels - 1)).round()


class LikelihoodDistribution(ABC):
    """A normalized distribution of x, given z. Batch dimensions lead, event dimensions come last."""

    event_ndim: int

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x|z) in nats, [...]; x is [..., *event] and broadcasts over leading dimensions."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x|z], [..., *event]."""

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of x for every z, [..., *event]."""


FOLLOWS: dict[Kind, str] = {"binary": "bernoulli", "levels": "discretized-logistic", "real": "gaussian"}
REMEDIES: dict[Kind, str] = {
    "binary": "data.values=real for a density",
    "levels": "data.binarize=dynamic for Bernoulli, or data.values=real for a density",
    "real": "",
}
"""What else can be done where a likelihood does not suit a kind of data, apart from choosing one that does."""


def suitable(kind: Kind) -> str:
    """The likelihoods that are normalized on this kind of data, as words: `gaussian, laplace or student-t`."""
    names = [
        name for name in parts.names("likelihood") if kind in getattr(parts.part("likelihood", name).build, "kinds", ())
    ]
    names.sort(key=lambda name: name != FOLLOWS[kind])  # the default first, the rest as registered
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


class Likelihood(nn.Module, ABC):
    """Turns decoder outputs [..., *output_shape] into a distribution of x.

    Attributes:
        kinds: the kinds of data on which it is normalized.
        discrete: whether log p is that of a probability, so that bits per dimension mean something.
        output_shape: what the decoder must return for one z: `(parameters, *event)`.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    discrete: ClassVar[bool]
    output_shape: tuple[int, ...]

    def __init__(self, data: DataSpec, parameters: int) -> None:
        super().__init__()
        if data.kind not in self.kinds:
            ways = filter(None, (f"use likelihood.name={suitable(data.kind)}", REMEDIES[data.kind]))
            known = parts.names("likelihood")
            name = next((one for one in known if parts.part("likelihood", one).build is type(self)), None)
            who = f"likelihood.name={name}" if name else type(self).__name__
            raise InputError(f"{who} is not normalized on {data.kind} data: {'; or '.join(ways)}")
        self.event_shape = data.shape
        self.event_ndim = len(data.shape)
        self.output_shape = (parameters, *data.shape)

    @property
    def quick_parameters(self) -> list[nn.Parameter]:
        """Those that training moves ten times as fast as all others."""
        return []

    @abstractmethod
    def forward(self, outputs: Tensor) -> LikelihoodDistribution:
        """The distribution that these decoder outputs [..., *output_shape] stand for."""

    @abstractmethod
    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        """Start at the data: set own parameters, and return the outputs [*output_shape] that fit best.

        Args:
            mean, std: of the training data, [*event], on the model's scale.
        """

    def check(self, low: Tensor | float, high: Tensor | float) -> None:
        """Refuse data that reach from `low` to `high` if the support is narrower than that.

        Raises:
            InputError: some values have density 0.
        """

    def fraction_at_floor(self, distribution: LikelihoodDistribution) -> Tensor | None:
        """Share of scales that their floor holds up, a scalar tensor; None where no scale is learned."""
        return None

    def unbind(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """[..., P, *event] -> P tensors [..., *event]."""
        axis = -self.event_ndim - 1
        # A view back and forth, where unbind would copy the gradient.
        return (outputs.squeeze(axis),) if outputs.shape[axis] == 1 else outputs.unbind(axis)


@register("likelihood", "auto")
def follow_data(data: DataSpec) -> Likelihood:
    """The likelihood that follows from the kind of data, with its default keys."""
    return build("likelihood", section("likelihood", {"name": FOLLOWS[data.kind]}), data)
