"""One evaluator for every contestant: the ELBO of the network 784-H-D on binary pictures, from the weights alone."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

Weights = list[tuple[Tensor, Tensor]]
"""(W [out, in], b [out]) of four layers: x → hidden, hidden → (μ, log σ²), z → hidden, hidden → logits."""


@torch.no_grad()
def elbo(weights: Weights, x: Tensor, draws: int = 4, seed: int = 0) -> float:
    """Mean ELBO in nats per example of binary pictures x [N, pixels], in float32.

    ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) (Kingma & Welling 2013, eq. 3): the KL in closed form, the expectation
    by `draws` draws of z, which are the same numbers for every model of the same latent size.
    """
    noise = torch.Generator().manual_seed(seed)
    first, head, widen, last = weights
    total = 0.0
    for part in x.split(1_000):
        mean, log_variance = F.linear(F.gelu(F.linear(part, *first)), *head).chunk(2, dim=1)
        rate = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        epsilon = torch.randn((draws, *mean.shape), generator=noise)
        logits = F.linear(F.gelu(F.linear(mean + (0.5 * log_variance).exp() * epsilon, *widen)), *last)
        # log p(x|z) = Σ x l − log(1 + exp(l)) over pixels with logits l.
        log_px_z = (part * logits - F.softplus(logits)).sum(-1)
        total += float((log_px_z.mean(0) - rate).double().sum())
    return total / len(x)


def run_weights(run: Path) -> Weights:
    """The weights that a run of `vaelab train` kept, with one hidden layer (names: docs/run-folder.md)."""
    named = load_file(run / "model.safetensors")
    return [
        (named["encoder.layers.1.weight"], named["encoder.layers.1.bias"]),
        (named["posterior.head.weight"], named["posterior.head.bias"]),
        (named["decoder.layers.0.weight"], named["decoder.layers.0.bias"]),
        (named["decoder.layers.2.weight"], named["decoder.bias"].flatten()),
    ]
