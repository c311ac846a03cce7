"""What the latents of a model are like over many examples."""

import torch
from torch import Tensor

from vaelab.data import Split, prefetch
from vaelab.latents import LatentSpec
from vaelab.model import Model

ACTIVE = 0.01
_EXAMPLES = 500


@torch.no_grad()
def latents(model: Model, examples: Split) -> tuple[Tensor, Tensor | None]:
    """Posterior means [N, D], and each latent's KL to the prior averaged over the examples [G] float64, in nats.

    The latter is None where there is no closed form.
    """
    means: list[Tensor] = []
    sums: list[Tensor] = []
    rows = torch.arange(len(examples)).split(_EXAMPLES)
    for at, raw in zip(rows, prefetch(examples, rows), strict=True):
        posterior = model.encode(examples.convert(raw), y=examples.labels_at(at))
        means.append(posterior.mean.cpu())
        if (kl := model.prior.kl(posterior)) is not None:
            sums.append(kl.double().sum(0).cpu())
    return torch.cat(means), torch.stack(sums).sum(0) / len(examples) if sums else None


def active(means: Tensor, latents: LatentSpec | None = None) -> Tensor:
    """Which latents' posterior means [N, D] vary over the examples by more than 0.01: [G] bool.

    Burda et al. 2016, section 5.2: a latent that the encoder does not use has the same mean for every example. Of a
    categorical latent, whose mean is its probabilities, the variances are added up. Without `latents` all are real.
    """
    return spread(means, latents) > ACTIVE


def spread(means: Tensor, latents: LatentSpec | None = None) -> Tensor:
    """How much each latent's posterior means [N, D] vary over the examples: [G] float64."""
    variances = means.double().var(0, correction=0)
    return variances if latents is None else torch.stack([part.sum() for part in variances.split(latents.widths)])
