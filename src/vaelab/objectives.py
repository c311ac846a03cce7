"""Terms -> Loss. What training minimizes.

`Loss.value` is minimized. `Loss.metrics` are means over the batch, in nats per example, and always carry
`distortion`, and where the posterior has a density `rate` and `elbo`, of the model itself, whatever is minimized; so
runs with different objectives can be compared. The mean over the batch is taken here and only here.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaelab.config import NonNegativeFloat, NonNegativeInt, PositiveInt, register
from vaelab.model import VAE, Terms


@dataclass
class Loss:
    """A scalar to minimize, and scalar metrics (detached)."""

    value: Tensor
    metrics: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Maps `Terms` to `Loss`.

    Attributes:
        num_samples: how many draws of z an example it wants (K).
        needs_density: whether it needs log q(z|x).
        step: how many updates training has made. None outside training: every warm-up counts as complete then, so
            that the numbers of all epochs can be compared.
    """

    num_samples: int = 1
    needs_density: bool = True
    step: int | None = None

    @abstractmethod
    def forward(self, terms: Terms) -> Loss:
        """The loss of a batch."""


class Forward(nn.Module):
    """Examples -> loss: model and objective as one module, for that is what several processes share."""

    def __init__(self, model: VAE, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, noise: torch.Generator, network_dtype: torch.dtype | None) -> Loss:
        """The loss of x [B, *event]; the networks compute in `network_dtype`, everything else in float32."""
        return self.objective(self.model.terms(x, self.objective.num_samples, noise, network_dtype))


def metrics(terms: Terms) -> dict[str, Tensor]:
    """Batch means of elbo, rate and distortion, in nats per example; the first two only where q has a density."""
    distortion = terms.distortion.detach().mean()
    if (rates := terms.rate) is None:
        return {"distortion": distortion}
    rate = rates.detach().mean()
    return {"elbo": -(rate + distortion), "rate": rate, "distortion": distortion}


@register("objective", "elbo")
class ELBO(Objective):
    """−(E_q[log p(x|z)] − β KL(q(z|x) ‖ p(z))): Kingma & Welling 2013, eq. 3 (β = 1); Higgins et al. 2017, eq. 4.

    For β > 1 it is still a lower bound of log p(x), a looser one; for β < 1 it is no bound. The KL is in closed
    form where there is one.

    Over the first `warmup` updates the weight rises from 0 to β in a straight line (KL warm-up: Sønderby et al. 2016,
    arXiv:1602.02282, section 2.3).
    """

    def __init__(
        self, *, beta: NonNegativeFloat = 1.0, warmup: NonNegativeInt = 0, num_samples: PositiveInt = 1
    ) -> None:
        super().__init__()
        self.beta = beta
        self.warmup = warmup
        self.num_samples = num_samples

    def forward(self, terms: Terms) -> Loss:
        rate = terms.rate
        assert rate is not None
        warm = 1.0 if self.step is None or self.step >= self.warmup else self.step / self.warmup
        loss = (terms.distortion + warm * self.beta * rate).mean()
        return Loss(loss, {"loss": loss.detach(), **metrics(terms)})


@register("objective", "iwae")
class IWAE(Objective):
    """−L_K, L_K = E[log (1/K) Σ_k w_k], w_k = p(x, z_k) / q(z_k|x): Burda et al. 2016 (arXiv:1509.00519), eq. 8.

    L_1 is the ELBO, L_K ≤ L_{K+1} ≤ log p(x). The gradient is autograd's, through the bound itself.
    """

    def __init__(self, *, num_samples: PositiveInt = 5) -> None:
        super().__init__()
        self.num_samples = num_samples

    def forward(self, terms: Terms) -> Loss:
        log_weights = terms.log_weights
        assert log_weights is not None
        bound = (log_weights.logsumexp(0) - math.log(log_weights.shape[0])).mean()
        return Loss(-bound, {"loss": -bound.detach(), "bound": bound.detach(), **metrics(terms)})


@register("objective", "distortion")
class Distortion(Objective):
    """−E_q[log p(x|z)] alone: what an autoencoder minimizes. No bound of log p(x)."""

    needs_density = False

    def forward(self, terms: Terms) -> Loss:
        loss = terms.distortion.mean()
        return Loss(loss, {"loss": loss.detach(), **metrics(terms)})
