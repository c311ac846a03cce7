"""Objectives that weigh the total correlation KL(q(z) ‖ Π_g q(z_g)) of the aggregate posterior q(z) = E_x[q(z|x)]."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vaelab.config import NonNegativeFloat, PositiveFloat, PositiveInt, register
from vaelab.model import Model, Terms
from vaelab.objectives.base import Loss, Objective, negative_elbo
from vaelab.posteriors import PosteriorDistribution

Sampling = Literal["stratified", "weighted"]
PAIRS_AT_ONCE = 2**24
"""How many numbers a table of draws against posteriors may hold at once: 64 MiB in float32."""


@register("objective", "beta-tcvae")
class BetaTCVAE(Objective):
    """distortion + α I + β TC + γ D: Chen et al. 2018 (arXiv:1802.04942), eq. 4, with the sign of a loss.

    The mean rate over N = `examples` training examples is the sum of three parts (eq. 2; Hoffman & Johnson 2016):

    - I = E[log q(z|x) − log q(z)], the mutual information of x and z, at most log N;
    - TC = E[log q(z) − Σ_g log q(z_g)], the total correlation of the G latents;
    - D = E[Σ_g log q(z_g) − log p(z)], the dimension-wise KL. Where the prior is not a product over latents this is
      KL(Π_g q(z_g) ‖ p(z)) with the mean taken over q(z) in place of Π_g q(z_g).

    All means are over the draws z of the batch. q(z) and q(z_g), means over all N examples, are estimated from the B
    posteriors of the batch, q̂(z_i) = Σ_j w_ij q(z_i|x_j):

    stratified  w_ii = 1/N and w_ij = (N − 1) / (N (B − 1)) for j ≠ i. q̂ is unbiased for q, and exact for B = N. This is
                the paper's stratified estimate averaged over which of the others takes its odd weight.
    weighted    w_ij = 1/B. The paper's minibatch-weighted estimate but for a constant without gradient; it takes
                x_i, which z_i was drawn from, for as likely as all others, and so sets I far too low (at most log B).

    log q̂ of an unbiased q̂ is too low on average, so I and TC are not unbiased. A table of B × B × D numbers is held.
    """

    needs = frozenset({"density", "reparameterized", "log-prob", "marginals"})

    def __init__(
        self,
        model: Model,
        examples: int,
        *,
        alpha: NonNegativeFloat = 1.0,
        beta: NonNegativeFloat = 6.0,
        gamma: NonNegativeFloat = 1.0,
        sampling: Sampling = "stratified",
    ) -> None:
        super().__init__()
        self.examples = examples
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.sampling: Sampling = sampling

    def loss(self, terms: Terms) -> Loss:
        assert terms.log_qz_x is not None
        log_weights = mixture_log_weights(terms.z, self.examples, self.sampling)
        log_qz, log_qz_product = log_aggregate(terms.posterior, terms.z, log_weights)
        parts = {
            "mutual_information": (terms.log_qz_x - log_qz).mean(),
            "total_correlation": (log_qz - log_qz_product).mean(),
            "dimension_wise_kl": (log_qz_product - terms.log_pz).mean(),
        }
        weighed = [w * part for w, part in zip((self.alpha, self.beta, self.gamma), parts.values(), strict=True)]
        return Loss(torch.stack([terms.distortion.mean(), *weighed]).sum(), parts)


def mixture_log_weights(z: Tensor, examples: int, sampling: Sampling) -> Tensor:
    """The logarithms of w_ij, [B, B]: how much posterior j counts in q̂ at the draws of example i, z [K, B, D].

    Each row of w sums to 1.
    """
    batch = z.shape[1]
    if sampling == "weighted" or batch == 1:
        return z.new_full((batch, batch), -math.log(batch))
    own = torch.eye(batch, dtype=torch.bool, device=z.device)
    others = z.new_full((), (examples - 1) / (examples * (batch - 1)))
    return torch.where(own, z.new_full((), 1 / examples), others).log()


def log_aggregate(posterior: PosteriorDistribution, z: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate log q̂(z) and Σ_g log q̂(z_g), [K, B] each, for z [K, B, D] and `log_weights` [B, B]."""
    joint: list[Tensor] = []
    product: list[Tensor] = []
    rows = max(1, PAIRS_AT_ONCE // (z.numel()))
    for part, weights in zip(z.split(rows, dim=1), log_weights.split(rows), strict=True):
        under_all = part[..., None, :]  # [K, rows, 1, D]: each draw beside the B posteriors
        joint.append((posterior.log_prob(under_all) + weights).logsumexp(-1))
        # The weights enter once a mixture: each q̂(z_g) is a mixture of its own, and q̂(z) is one, not G.
        by_latent = (posterior.marginal_log_prob(under_all) + weights[..., None]).logsumexp(-2)
        product.append(by_latent.sum(-1))
    return torch.cat(joint, 1), torch.cat(product, 1)


@register("objective", "factor")
class FactorVAE(Objective):
    """−ELBO + γ TC, the total correlation told by a critic: Kim & Mnih 2018 (arXiv:1802.05983), eq. 2 and algorithm 2.

    The critic sees z and gives two logits: that z was drawn from q(z), or from Π_g q(z_g). Draws of the latter are made
    by permuting each latent by itself across the batch. At its optimum the difference of the logits is the log density
    ratio, so its mean over draws from q(z) is TC (eq. 3).

    The two losses cannot mix: the model's goes through the critic with fixed weights, the critic's own starts from
    draws that pass no gradient on. Unlike algorithm 2, both use the same batch, and all K draws of each example.

    The critic has `critic_depth` hidden layers of `critic_width` units and learns at `critic_learning_rate` times
    `training.learning_rate`. The paper has 6 layers of 1,000, which cost more than a small VAE does.
    """

    def __init__(
        self,
        model: Model,
        *,
        gamma: NonNegativeFloat = 10.0,
        critic_width: PositiveInt = 256,
        critic_depth: PositiveInt = 4,
        critic_learning_rate: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.learning_rate_share = critic_learning_rate
        widths = torch.tensor(model.latents.widths)
        self.register_buffer("latent_of", torch.arange(len(widths)).repeat_interleave(widths), persistent=False)
        self.latent_of: Tensor  # which latent each number of z belongs to, [D]
        layers: list[nn.Module] = []
        for inputs in (len(self.latent_of), *[critic_width] * (critic_depth - 1)):
            layers += [nn.Linear(inputs, critic_width), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*layers, nn.Linear(critic_width, 2))

    def loss(self, terms: Terms) -> Loss:
        z = terms.z.flatten(0, 1)
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        logits: Tensor = functional_call(self.critic, fixed, (z,))
        total_correlation = (logits[:, 0] - logits[:, 1]).mean()
        value = negative_elbo(terms) + self.gamma * total_correlation
        wanted = torch.is_grad_enabled() or terms.noise is not None
        critic = self._critic_loss(z.detach(), terms.noise) if wanted else None
        return Loss(value, {"total_correlation": total_correlation}, critic)

    def _critic_loss(self, z: Tensor, noise: torch.Generator | None) -> Tensor:
        """Cross-entropy of telling z [n, D] from its permutation; log 2 for a critic that cannot."""
        both = torch.cat([z, permuted(z, self.latent_of, noise)])
        truth = torch.arange(2, device=z.device).repeat_interleave(len(z))
        return F.cross_entropy(self.critic(both), truth)


def permuted(z: Tensor, latent_of: Tensor, noise: torch.Generator | None) -> Tensor:
    """Permute each latent of z [n, D], whole and by itself, across the n draws (Kim & Mnih 2018, algorithm 1)."""
    count = int(latent_of[-1]) + 1
    orders = torch.rand(len(z), count, device=z.device, generator=noise).argsort(0)  # a permutation a column
    return z.gather(0, orders[:, latent_of])
