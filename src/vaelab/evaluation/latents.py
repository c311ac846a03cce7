"""What the latents of a model are like over many examples."""

import torch
from torch import Tensor

from vaelab.data import Split, prefetch
from vaelab.model import VAE

ACTIVE = 0.01
_EXAMPLES = 500


@torch.no_grad()
def latents(model: VAE, examples: Split) -> tuple[Tensor, Tensor | None]:
    """Posterior means [N, D], and each latent's KL to the prior averaged over the examples [D] float64, in nats.

    The latter is None where there is no closed form.
    """
    means: list[Tensor] = []
    sums: list[Tensor] = []
    for raw in prefetch(examples, torch.arange(len(examples)).split(_EXAMPLES)):
        posterior = model.encode(examples.convert(raw))
        means.append(posterior.mean.cpu())
        if (kl := model.prior.kl(posterior)) is not None:
            sums.append(kl.double().sum(0).cpu())
    return torch.cat(means), torch.stack(sums).sum(0) / len(examples) if sums else None


def active(means: Tensor) -> Tensor:
    """Which latents' posterior means [N, D] vary over the examples by more than 0.01: [D] bool.

    Burda et al. 2016, section 5.2: a latent that the encoder does not use has the same mean for every example.
    """
    return means.double().var(0, correction=0) > ACTIVE
