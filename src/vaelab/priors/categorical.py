"""Priors over one-hot latents."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.config import PositiveInt, register
from vaelab.errors import InputError
from vaelab.latents import LatentSpec
from vaelab.posteriors import Categorical, PosteriorDistribution
from vaelab.priors.base import Prior


@register("prior", "categorical")
class CategoricalPrior(Prior):
    """Independent categories: each equally likely, or with `learned`, as likely as training makes it.

    log p(z) = Σ_g Σ_c z_gc log p_gc, which carries on linearly to relaxed points.
    """

    holds = "categorical"

    def __init__(self, latents: LatentSpec, *, learned: bool = False) -> None:
        super().__init__(latents)
        logits = torch.zeros(latents.categorical, latents.categories)
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)
        self.logits: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        return z @ self._log_p().flatten()

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        index = torch.multinomial(self._log_p().exp(), num_samples, replacement=True, generator=generator).T
        return F.one_hot(index, self.latents.categories).flatten(1).to(self.origin.dtype)

    def kl(self, posterior: PosteriorDistribution) -> Tensor | None:
        """Σ_c q_c (log q_c − log p_c), [B, G]."""
        if not isinstance(posterior, Categorical):
            return None
        return (posterior.logits.exp() * (posterior.logits - self._log_p())).sum(-1)

    def _log_p(self) -> Tensor:
        return self.logits.log_softmax(-1)


@register("prior", "autoregressive")
class AutoregressivePrior(Prior):
    """p(z) = Π_i p(z_i|z_<i): a causal transformer reads the categories in turn.

    Van den Oord et al. 2017 (arXiv:1711.00937, section 3.3) put a learned prior of this kind over a grid of codes;
    their network is a PixelCNN. `width` numbers stand for a latent, `layers` blocks mix them, with `heads` heads of
    attention (Vaswani et al. 2017, arXiv:1706.03762). Starts with all categories equally likely. A relaxed latent
    enters as the mixture of its categories. A density costs one pass, draws G short ones.
    """

    holds = "categorical"

    def __init__(
        self, latents: LatentSpec, *, width: PositiveInt = 64, layers: PositiveInt = 2, heads: PositiveInt = 4
    ) -> None:
        super().__init__(latents)
        if width % heads:
            raise InputError(f"prior.width={width}: must be a multiple of prior.heads={heads}")
        self.first = nn.Parameter(torch.zeros(width))  # what the first latent is told
        self.categories = nn.Parameter(torch.randn(latents.categories, width))
        self.positions = nn.Parameter(0.1 * torch.randn(latents.categorical, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, latents.categories))
        for parameter in self.last[1].parameters():
            nn.init.zeros_(parameter)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, [..., D] -> [...]; the largest thing made is as large as z."""
        blocks = z.reshape(-1, self.latents.categorical, self.latents.categories)
        logits = self.logits(blocks)
        # Σ_c z_c log p_c, where log p_c = logit_c − log Σ exp logit
        found = (blocks * logits).sum(-1) - blocks.sum(-1) * logits.logsumexp(-1)
        return found.sum(-1).view(z.shape[:-1])

    def logits(self, blocks: Tensor) -> Tensor:
        """Scores of the categories of each latent, given the latents before it: [N, G, C] -> [N, G, C]."""
        told = blocks[:, :-1] @ self.categories
        hidden = torch.cat((self.first.expand(len(blocks), 1, -1), told), dim=1) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(hidden)

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        pasts: list[list[Tensor]] = [[] for _ in self.blocks]
        told, chosen = self.first.expand(num_samples, -1), list[Tensor]()
        for position in self.positions:
            hidden = (told + position)[:, None]
            for block, past in zip(self.blocks, pasts, strict=True):
                hidden = block(hidden, past)
            probabilities = self.last(hidden[:, 0]).softmax(-1)
            chosen.append(torch.multinomial(probabilities, 1, generator=generator)[:, 0])
            told = self.categories[chosen[-1]]
        one_hot = F.one_hot(torch.stack(chosen, dim=1), self.latents.categories)
        return one_hot.flatten(1).to(self.origin.dtype)


class Block(nn.Module):
    """Causal self-attention, then a small network at each position; both added to what came in: [N, G, W]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_attention = nn.Linear(width, 3 * width)
        self.from_attention = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor, past: list[Tensor] | None = None) -> Tensor:
        """All positions at once; or with `past`, which grows, the one position that comes after it."""
        parts = self.to_attention(self.norm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [N, heads, G, W / heads] each
        if past is not None:
            if past:
                key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
            past[:] = key, value
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        hidden = hidden + self.from_attention(attended.transpose(1, 2).flatten(2))
        return hidden + self.network(hidden)
