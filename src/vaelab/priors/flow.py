"""A normalizing flow as prior."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from zuko.transforms import MonotonicRQSTransform

from vaelab.config import PositiveInt, register
from vaelab.latents import LatentSpec
from vaelab.networks import Stages
from vaelab.posteriors.flows import transforms
from vaelab.priors.base import Prior
from vaelab.priors.normal import StandardNormal

BINS = 8
FAMILIES: dict[str, dict[str, Any]] = {
    "affine": {},
    "spline": {"univariate": partial(MonotonicRQSTransform, bound=5.0), "shapes": ((BINS,), (BINS,), (BINS - 1,))},
}


@register("prior", "flow")
class FlowPrior(Prior):
    """log p(z) = log N(f(z); 0, I) + log|det ∂f/∂z|: a masked autoregressive flow.

    Papamakarios et al. 2017, arXiv:1705.07057, whose f is the "affine" one.
    f is `steps` maps. Each sends z_j through a function whose numbers a masked network with layers of `hidden` units
    computes from z_<j, and every other one takes the latents in reverse. `family` says which function: "spline", a
    rational-quadratic one with 8 pieces on [−5, 5] that leaves what lies outside unchanged (Durkan et al. 2019,
    arXiv:1906.04032), or "affine". A density costs one pass; a draw inverts f, which takes D passes a step.
    Starts as N(0, I).
    """

    def __init__(
        self,
        latents: LatentSpec | int,
        *,
        family: Literal["spline", "affine"] = "spline",
        steps: PositiveInt = 2,
        hidden: Stages = (128, 128),
    ) -> None:
        super().__init__(latents)
        self.base = StandardNormal(latents)
        # One number of context, always 1, for zuko has no network for a single latent that is given nothing.
        self.maps = nn.ModuleList(transforms(self.latent_dim, 1, steps, hidden, **FAMILIES[family]))

    def log_prob(self, z: Tensor) -> Tensor:
        log_det = z.new_zeros(z.shape[:-1])
        for one in self._maps():
            z, log_det_of_one = one.call_and_ladj(z)
            log_det = log_det + log_det_of_one
        return self.base.log_prob(z) + log_det

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        z = self.base.sample(num_samples, generator)
        for one in reversed(self._maps()):
            z = one.inv(z)
        return z

    def _maps(self) -> list[Any]:
        return [one(self.origin.new_ones(1)) for one in self.maps]
