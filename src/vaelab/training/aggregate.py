"""After training: a prior that is fitted to the aggregate posterior, q(z) = E_x[q(z|x)] over the training data."""

import torch
from torch import Tensor

from vaelab.data import Split, prefetch
from vaelab.model import Model
from vaelab.noise import generator

EXAMPLES_AT_ONCE = 500


@torch.no_grad()
def draws(model: Model, split: Split, number: int, noise: torch.Generator) -> Tensor:
    """`number` draws from the aggregate posterior, [number, D]: z ~ q(z|x), the examples x in turn, in random order."""
    model.eval()
    order = torch.randperm(len(split), generator=generator("aggregate"))
    rows = order.repeat(-(-number // len(order)))[:number].split(EXAMPLES_AT_ONCE)
    found: list[Tensor] = []
    for at, raw in zip(rows, prefetch(split, rows), strict=True):
        x, y = split.examples(raw, at, noise)
        found.append(model.encode(x, y=y).sample_with_log_prob(1, noise)[0][0])
    return torch.cat(found)


def fit_prior(model: Model, split: Split, seed: int) -> None:
    """Fit the model's prior to as many draws as it wants."""
    noise = generator(seed, "aggregate", device=split.device)
    model.prior.fit(draws(model, split, model.prior.fit_draws, noise), noise)
