"""The film of a training: the same examples and the same latents, seen through the model after its epochs."""

import torch
from torch import Tensor

from vaelab.data import Split
from vaelab.model import Model
from vaelab.noise import generator

EXAMPLES = 8
MOST = 40


def originals(split: Split) -> tuple[Tensor, torch.Generator]:
    """The examples that every frame reconstructs, [n, C, H, W], and the noise that its samples go on from."""
    noise = generator("frames", device=split.device)
    return split.head(EXAMPLES).batch(None, noise), noise


@torch.no_grad()
def frame(model: Model, split: Split) -> Tensor:
    """Reconstructions of the first n ≤ 8 examples, then samples at 8 fixed latents: uint8 [n + 8, C, H, W]."""
    x, noise = originals(split)
    model.eval()
    y = split.head(EXAMPLES).labels if model.labels is not None else None
    drawn = None if model.labels is None else torch.arange(EXAMPLES, device=x.device) % model.labels.classes
    pictures = torch.cat([model.reconstruct(x, y=y), model.sample(EXAMPLES, generator=noise, y=drawn)])
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
