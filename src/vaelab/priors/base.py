"""What every prior is."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from vaelab.config import build, register, section
from vaelab.errors import InputError
from vaelab.latents import Holds, LatentSpec
from vaelab.posteriors.base import PosteriorDistribution

FOLLOWS: dict[Holds, str] = {"real": "normal", "categorical": "categorical"}
"""The prior that follows from what the latents are."""


class Prior(nn.Module, ABC):
    """A distribution of z, [D].

    Args:
        latents: what z is; a number D stands for D real numbers.

    Attributes:
        holds: the kind of latents that it is a distribution of.
    """

    holds: ClassVar[Holds] = "real"

    def __init__(self, latents: LatentSpec | int) -> None:
        super().__init__()
        self.latents = LatentSpec(real=latents) if isinstance(latents, int) else latents
        if self.latents.holds != self.holds:
            raise InputError(f"{type(self).__name__} is over {self.holds} latents, not {self.latents.holds} ones")
        # Draws must follow the model to its device and precision, and a prior without parameters has no other mark.
        self.register_buffer("origin", torch.zeros(()), persistent=False)
        self.origin: Tensor

    @property
    def latent_dim(self) -> int:
        """D, the numbers of z."""
        return self.latents.width

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: [..., D] -> [...]."""

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of z, [num_samples, D]."""

    def kl(self, posterior: PosteriorDistribution) -> Tensor | None:
        """KL(q(z|x) ‖ p(z)) in closed form, in nats, latent by latent [B, G]; None where there is no closed form."""
        return None

    def start(self, x: Tensor) -> None:
        """Start at the data: training examples [n, *event], as the encoder sees them. Most priors look at none."""

    @property
    def start_examples(self) -> int:
        """How many training examples `start` wants."""
        return 0

    def fit(self, z: Tensor, generator: torch.Generator) -> None:
        """After training: fit to draws of the aggregate posterior, z [n, D]. Most priors are fitted by then."""

    @property
    def fit_draws(self) -> int:
        """How many draws of the aggregate posterior `fit` wants."""
        return 0


@register("prior", "auto")
def follow_latents(latents: LatentSpec, encoder: nn.Module) -> Prior:
    """The prior that follows from the latents, with its default keys."""
    return build("prior", section("prior", {"name": FOLLOWS[latents.holds]}), latents, encoder)
