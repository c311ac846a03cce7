"""A small network that tells labels: for a feature space, and to tell two samples apart."""

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.noise import generator, seed_of

LEAST_SCALE = 0.1  # of the root mean square spread; a pixel that hardly ever varies is not blown up
BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2


class SmallNetwork(nn.Module):
    """Standardized inputs [N, P], hidden layers with ReLU, and a logit for each class.

    Attributes:
        shift, scale: [P], what inputs are standardized by.
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, hidden, strict=False)]
        self.hidden = nn.Sequential(*(layer for both in layers for layer in both))
        self.head = nn.Linear(widths[-1], classes)
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.shift: Tensor
        self.scale: Tensor

    def features(self, x: Tensor) -> Tensor:
        """What the last hidden layer makes of x [N, P], [N, F]."""
        return self.hidden((x - self.shift) / self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def trained(
    x: Tensor, y: Tensor, hidden: tuple[int, ...], classes: int, *, updates: int, key: tuple[int | str, ...]
) -> SmallNetwork:
    """A network that tells y [N] int64 from x [N, P], in float32 on the CPU.

    AdamW with batches of 128, a peak rate of 0.002 with cosine decay and a weight decay of 0.01; ReLU.

    Args:
        x, y: the training examples.
        hidden: widths of the hidden layers.
        classes: how many labels there are.
        updates: of the weights.
        key: of all draws: initial weights and order.
    """
    x = x.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*key, "weights"))
        network = SmallNetwork(x.shape[1], hidden, classes)
    spread = x.std(0)
    floor = LEAST_SCALE * spread.square().mean().sqrt()
    network.shift.copy_(x.mean(0))
    network.scale.copy_(spread.clamp(min=float(floor) or 1.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    with torch.enable_grad():
        for update, rows in enumerate(islice(_batches(len(x), generator(*key, "order")), updates)):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * update / updates)) / 2
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _batches(n: int, noise: torch.Generator) -> Iterator[Tensor]:
    """Rows of a batch at a time, all of them in random order again and again."""
    while True:
        yield from torch.randperm(n, generator=noise).split(BATCH)
