"""Normalizing flows: a diagonal Gaussian's draws, moved by invertible maps that the features steer.

If z = f(ε), then log q(z) = log N(ε; 0, I) − log|det ∂f/∂ε| (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 5).
Drawing goes through f alone, so a draw and its density cost one pass. All flows start as the identity: the posterior
is the diagonal Gaussian then, and so is its rate.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from vaelab.config import PositiveInt, register
from vaelab.latents import LatentSpec
from vaelab.likelihoods import LOG_2PI
from vaelab.networks import Stages
from vaelab.posteriors.base import Posterior, PosteriorDistribution
from vaelab.posteriors.gaussian import location_and_scale

MOMENT_PAIRS = 32
"""Mean and standard deviation are taken over twice as many draws."""


@dataclass
class FlowDistribution(PosteriorDistribution):
    """z = f(ε), ε ~ N(0, I).

    Attributes:
        loc, scale: the Gaussian that f starts from, [B, D].
    """

    loc: Tensor
    scale: Tensor

    @abstractmethod
    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """ε [K, B, D] -> z [K, B, D], and log|det ∂z/∂ε| [K, B]."""

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        shape = (num_samples, *self.loc.shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        z, log_det = self.transform(noise)
        return z, standard_normal_log_prob(noise) - log_det

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over 64 draws, from noise that is the same for every example and every call.

        The noise is 32 pairs ε and −ε, scaled to variance 1. So both are exact where f is linear, number by number.
        """
        pairs = torch.randn(
            MOMENT_PAIRS, 1, self.loc.shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        noise = torch.cat((pairs, -pairs)) / pairs.square().mean(0).sqrt()
        # A few draws at a time: a spline's knots take some hundred numbers a latent and draw.
        parts = noise.to(self.loc).split(8)
        z = torch.cat([self.transform(part.expand(-1, *self.loc.shape))[0] for part in parts])
        return z.mean(0), z.std(0, correction=0)

    @property
    def mean(self) -> Tensor:
        """E[z|x], [B, D], which has no closed form: the mean of 64 draws from fixed noise."""
        return self._moments[0]

    @property
    def stddev(self) -> Tensor:
        """Standard deviations [B, D] over the draws that give `mean`."""
        return self._moments[1]


@dataclass
class PlanarFlow(FlowDistribution):
    """T maps z ← z + û tanh(wᵀz + b), Rezende & Mohamed 2015, eq. 10–13, in each example's own parameters.

    Attributes:
        weight, direction, bias: w and u [B, T, D], b [B, T].
    """

    weight: Tensor
    direction: Tensor
    bias: Tensor

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        # Appendix A.1: the map can be inverted if ûᵀw > −1, so the part of u along w is replaced by one that obeys:
        # ûᵀw = softplus(uᵀw + log(e − 1)) − 1. The paper has no log(e − 1); with it u = 0 gives the identity.
        along = (self.direction * self.weight).sum(-1)
        slope = F.softplus(along + math.log(math.e - 1))  # 1 + ûᵀw
        norm = self.weight.square().sum(-1).clamp(min=torch.finfo(along.dtype).tiny)
        direction = self.direction + ((slope - 1 - along) / norm)[..., None] * self.weight
        z = self.loc + self.scale * noise
        log_det = self.scale.log().sum(-1).expand(noise.shape[:-1])
        for w, u, b, s in zip(
            self.weight.unbind(1), direction.unbind(1), self.bias.unbind(1), slope.unbind(1), strict=True
        ):
            bend = ((z * w).sum(-1) + b).tanh()
            z = z + u * bend[..., None]
            # 1 + tanh' ûᵀw, written as a sum of two numbers that are not negative, so that nothing cancels.
            log_det = log_det + (bend.square() + (1 - bend.square()) * s).log()
        return z, log_det


class Steps(nn.Module):
    """zuko's transforms one after another, between noise and z.

    Args:
        transforms: context [B, context] -> a map of [..., B, D].
        scale_first: whether loc and scale are applied before these maps, or after them.
    """

    def __init__(self, transforms: Sequence[nn.Module], *, scale_first: bool) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        self.scale_first = scale_first

    def forward(
        self, values: Tensor, loc: Tensor, scale: Tensor, context: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """ε -> z, or with `inverse` z -> ε; and the log-determinant of that map, [..., B]."""
        log_det = (-scale.log() if inverse else scale.log()).sum(-1)
        maps: list[Any] = [transform(context) for transform in self.transforms]
        if inverse:
            maps = [one.inv for one in reversed(maps)]
        if self.scale_first != inverse:
            values = move(values, loc, scale, inverse)
        for one in maps:
            values, log_det_of_one = one.call_and_ladj(values)
            log_det = log_det + log_det_of_one
        if self.scale_first == inverse:
            values = move(values, loc, scale, inverse)
        return values, log_det


def move(values: Tensor, loc: Tensor, scale: Tensor, inverse: bool) -> Tensor:
    """Loc + scale · values, or back."""
    return (values - loc) / scale if inverse else loc + scale * values


@dataclass
class SteppedFlow(FlowDistribution):
    """A flow through networks that all examples share.

    Attributes:
        context: what the networks see of each example, [B, context].
        steps: the networks.
        frozen: whether their weights pass no gradient on.
    """

    context: Tensor
    steps: Steps
    frozen: bool = False

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(noise, inverse=False)

    def log_prob(self, z: Tensor) -> Tensor:
        noise, log_det = self._run(z, inverse=True)
        return standard_normal_log_prob(noise) + log_det

    def detached(self) -> "SteppedFlow":
        return replace(
            self, loc=self.loc.detach(), scale=self.scale.detach(), context=self.context.detach(), frozen=True
        )

    def _run(self, values: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        weights = {name: weight.detach() for name, weight in self.steps.named_parameters()} if self.frozen else {}
        inputs = (values, self.loc, self.scale, self.context)
        return functional_call(self.steps, weights, inputs, {"inverse": inverse})


def standard_normal_log_prob(noise: Tensor) -> Tensor:
    """Log N(ε; 0, I) in nats, [..., D] -> [...]."""
    return -0.5 * (noise.square() + LOG_2PI).sum(-1)


@register("posterior", "planar")
class PlanarPosterior(Posterior):
    """`steps` planar maps, each with w, u and b linear in the features (Rezende & Mohamed 2015).

    A map bends space along one direction, so that many are needed: the paper takes up to 80. Their inverse has no
    closed form, hence log q is known of its own draws alone.
    """

    provides = frozenset({"density", "reparameterized", "stochastic"})

    def __init__(self, num_features: int, latent_dim: int, *, steps: PositiveInt = 16) -> None:
        super().__init__()
        self.latents = LatentSpec(real=latent_dim)
        self.head = nn.Linear(num_features, 2 * latent_dim)
        self.maps = nn.Linear(num_features, steps * (2 * latent_dim + 1))
        weight, bias = (p.data.unflatten(0, (steps, 2 * latent_dim + 1)) for p in self.maps.parameters())
        nn.init.normal_(bias[:, :latent_dim], std=latent_dim**-0.5)  # w of length 1, for z of length √D
        for parameter in (weight, bias):
            parameter[:, latent_dim:-1] = 0  # u = 0: each map starts as the identity

    def forward(self, features: Tensor) -> PlanarFlow:
        size = self.latents.real
        loc, scale = location_and_scale(self.head(features))
        weight, direction, bias = self.maps(features).unflatten(-1, (-1, 2 * size + 1)).split((size, size, 1), dim=-1)
        return PlanarFlow(loc, scale, weight, direction, bias.squeeze(-1))


class SteppedPosterior(Posterior):
    """What the flows through zuko's networks share.

    Args:
        context: how many numbers, linear in the features, the networks see of each example.
    """

    provides = frozenset({"density", "reparameterized", "stochastic", "log-prob"})

    def __init__(self, num_features: int, latent_dim: int, context: int, flow: Steps) -> None:
        super().__init__()
        self.latents = LatentSpec(real=latent_dim)
        self.head = nn.Linear(num_features, 2 * latent_dim)
        self.context = nn.Linear(num_features, context)
        self.flow = flow

    def forward(self, features: Tensor) -> SteppedFlow:
        loc, scale = location_and_scale(self.head(features))
        return SteppedFlow(loc, scale, self.context(features), self.flow)


def transforms(latent_dim: int, context: int, steps: int, hidden: Sequence[int], **options: Any) -> Sequence[nn.Module]:
    """`steps` masked autoregressive maps that start as the identity; every other one takes the latents in reverse."""
    order: Any = torch.arange(latent_dim)  # zuko's LongTensor is no type of a tensor
    made: list[Any] = [
        MaskedAutoregressiveTransform(
            latent_dim,
            context,
            order=order.flip(0) if step % 2 else order,
            hidden_features=hidden,
            activation=nn.ELU,
            **options,
        )
        for step in range(steps)
    ]
    for one in made:
        *_, last = one.hyper.children()
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        # zuko keeps the order for its repr alone, as integers, which the moving average of the weights would round.
        one.register_buffer("order", None)
    return made


@register("posterior", "iaf")
class InverseAutoregressivePosterior(SteppedPosterior):
    """Inverse autoregressive flow (Kingma et al. 2016, arXiv:1606.04934, eq. 10).

    `steps` maps z_j ← z_j · exp(a_j) + m_j, where masked networks with layers of `hidden` units give a_j and m_j from
    z_<j and `context` numbers of the example. A map scales by 0.1 to 10: more, and errors of float32 grow with each
    latent when it is inverted. Log q at another z takes D passes a step, one a latent, and one for the determinant.
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        *,
        steps: PositiveInt = 2,
        hidden: Stages = (128, 128),
        context: PositiveInt = 32,
    ) -> None:
        univariate = partial(MonotonicAffineTransform, slope=0.1)
        maps = transforms(latent_dim, context, steps, hidden, univariate=univariate)
        super().__init__(num_features, latent_dim, context, Steps(maps, scale_first=True))


@register("posterior", "spline")
class SplinePosterior(SteppedPosterior):
    """Neural spline flow (Durkan et al. 2019, arXiv:1906.04032): coupling maps of rational-quadratic splines.

    Each of `steps` maps sends the first half of the latents through splines that depend on the example, then the
    second half through splines that depend on the first half as well. A spline has `bins` pieces on [−5, 5], slopes
    from 0.01 to 100 where they meet, and passes what lies outside unchanged. The maps act on the noise, and the
    Gaussian's location and scale come after them: so the box holds all but 6 in 10⁷ of the noise, wherever z lies.
    Log q at another z takes two passes a step, and one for the determinant.
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        *,
        steps: PositiveInt = 2,
        bins: Annotated[int, Field(strict=True, ge=2)] = 8,
        hidden: Stages = (128, 128),
        context: PositiveInt = 32,
    ) -> None:
        univariate = partial(MonotonicRQSTransform, bound=5.0, slope=0.01)
        shapes = ((bins,), (bins,), (bins - 1,))
        maps = transforms(latent_dim, context, steps, hidden, passes=2, univariate=univariate, shapes=shapes)
        super().__init__(num_features, latent_dim, context, Steps(maps, scale_first=False))
