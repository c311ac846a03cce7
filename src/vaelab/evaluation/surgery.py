"""The mean rate taken apart: mutual information, total correlation, and what each latent alone costs.

    mean KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ Π_g q(z_g)) + Σ_g KL(q(z_g) ‖ p(z_g))

Hoffman & Johnson 2016 (ELBO surgery); Chen, Li, Grosse & Duvenaud 2018 (arXiv:1802.04942), eq. 2. q(z) is the aggregate
posterior of the given examples, the mean of their N posteriors: all N of them, no minibatch's estimate.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaelab.data import Split
from vaelab.errors import InputError
from vaelab.evaluation.estimates import batches
from vaelab.model import Model
from vaelab.posteriors import Categorical, PosteriorDistribution
from vaelab.posteriors.gaussian import LocationScale
from vaelab.priors import CategoricalPrior, Prior, StandardNormal
from vaelab.priors.product import ProductPrior

PAIRS_AT_ONCE = 1 << 21
"""Numbers in a table of draws against posteriors, at most: 8 MiB in float32."""
BLOCK = 500  # examples whose posteriors are one distribution


@dataclass(frozen=True)
class RateSplit:
    """The parts of the mean rate of N examples, in nats; `*_monte_carlo` is what the draws leave open of each.

    Attributes:
        n: N.
        rate: mean KL(q(z|x) ‖ p(z)): the sum of mutual information, total correlation and dimension-wise KL.
        mutual_information: I_q(x; z) between z and which example it came from. At most ln N.
        total_correlation: KL(q(z) ‖ Π_g q(z_g)).
        dimension_wise_kl: Σ_g KL(q(z_g) ‖ p(z_g)). Where the prior is no product over latents, E_q[Σ_g log q(z_g) −
            log p(z)].
        aggregate_kl: KL(q(z) ‖ p(z)), total correlation and dimension-wise KL together: how far the aggregate posterior
            is from the prior. What samples from the prior suffer from.
        latent_kl: KL(q(z_g) ‖ p(z_g)) of each latent; None where the prior is no product over latents.
    """

    n: int
    rate: float
    mutual_information: float
    mutual_information_monte_carlo: float
    total_correlation: float
    total_correlation_monte_carlo: float
    dimension_wise_kl: float
    dimension_wise_kl_monte_carlo: float
    aggregate_kl: float
    aggregate_kl_monte_carlo: float
    latent_kl: list[float] | None


def check_split(model: Model) -> None:
    """Raise an InputError unless q(z|x) and its marginals can be evaluated at any z."""
    if not {"log-prob", "marginals", "density"} <= model.provides:
        raise InputError(
            "the split of the rate needs log q(z|x) of every latent at any z, which this model's posterior does not "
            "give; posterior.name=gaussian, full-gaussian, laplace and gumbel-softmax do, with model.name=vae or joint"
        )


@torch.no_grad()
def rate_split(model: Model, examples: Split, *, draws: int = 4, seed: int = 0) -> RateSplit:
    """Split the mean rate of these examples exactly, but for the draws of z.

    The densities q(z) and q(z_g) are exact: each of the N · S draws (S = `draws`) is scored under all N posteriors, in
    tables of at most 8 MiB. That takes N² · S · D densities: about a minute for N = 10,000, S = 4 and D = 20.

    The expectations over z are means over draws, the same draws for all parts. So r = log q(z|x) − log p(z) is the sum
    of the parts draw by draw. Where the KL has a closed form, r − KL is noise whose mean is known to be 0, and each
    part is freed of its share: c (r − KL) with c = Cov(part, r) / Var(r), within examples. These c add up to 1, so the
    parts add up to the closed form. Where there is none they add up to the mean of r, which is then `rate`.

    Args:
        draws: of z for each example, at least 2.

    Raises:
        InputError: q(z|x) has no density at any z, or no marginals.
    """
    check_split(model)
    if draws < 2:
        raise InputError(f"draws={draws}: must be at least 2, for their spread to be seen")
    model.eval()
    posteriors: list[PosteriorDistribution] = []
    drawn: list[Tensor] = []
    for x, y, noise in batches(examples, seed, BLOCK):
        posteriors.append(model.encode(x, y=y))
        drawn.append(posteriors[-1].sample_with_log_prob(draws, noise)[0])
    n = sum(z.shape[1] for z in drawn)
    if not n:
        raise InputError("every example holds NaN or infinite values; there is no rate to split")
    sums = _Sums()
    for posterior, z in zip(posteriors, drawn, strict=True):
        log_q = posterior.log_prob(z).double()
        kl = model.prior.kl(posterior)
        log_qz, log_qz_g = _aggregate(posteriors, z, n)
        log_pz = model.prior.log_prob(z).double()
        log_pz_g = prior_marginals(model.prior, z)
        product = log_qz_g.sum(-1)
        # So that the latents' parts sum to the dimension-wise KL: log p(z) is their sum where there is one.
        log_pz = log_pz if log_pz_g is None else log_pz_g.sum(-1)
        parts = [log_q - log_qz, log_qz - product, product - log_pz, log_qz - log_pz]
        if log_pz_g is not None:
            parts += list((log_qz_g - log_pz_g).unbind(-1))
        sums.add(torch.stack(parts), log_q - log_pz, None if kl is None else kl.double().sum(-1))
    return sums.result(n, len(drawn[0]))


def _aggregate(posteriors: list[PosteriorDistribution], z: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Log q(z) [S, B] and log q(z_g) [S, B, G] under the mean of all n posteriors, z [S, B, D], float64."""
    joint: list[Tensor] = []
    marginal: list[Tensor] = []
    widest = max(len(one.mean) for one in posteriors)
    rows = max(1, PAIRS_AT_ONCE // (z.shape[0] * z.shape[2] * widest))
    for part in z.split(rows, dim=1):
        under_all = part[..., None, :]  # [S, rows, 1, D]: each draw beside every posterior
        blocks = [_block(posterior, under_all) for posterior in posteriors]
        joint.append(torch.stack([one for one, _ in blocks]).logsumexp(0) - math.log(n))
        marginal.append(torch.stack([each for _, each in blocks]).logsumexp(0) - math.log(n))
    return torch.cat(joint, 1), torch.cat(marginal, 1)


def _block(posterior: PosteriorDistribution, under_all: Tensor) -> tuple[Tensor, Tensor]:
    """Log Σ_b q_b(z) [S, rows] and log Σ_b q_b(z_g) [S, rows, G] over one block of posteriors."""
    each = posterior.marginal_log_prob(under_all)
    is_product = isinstance(posterior, LocationScale | Categorical)
    whole = each.sum(-1) if is_product else posterior.log_prob(under_all)
    return whole.double().logsumexp(-1), each.logsumexp(-2).double()


def prior_marginals(prior: Prior, z: Tensor) -> Tensor | None:
    """Log p(z_g) of each latent, [..., D] -> [..., G] float64; None where p(z) is no product over latents."""
    if isinstance(prior, StandardNormal):
        return -0.5 * (z.double().square() + math.log(2 * math.pi))
    if isinstance(prior, CategoricalPrior):
        log_p = prior.logits.double().log_softmax(-1)
        return (z.double().unflatten(-1, log_p.shape) * log_p).sum(-1)
    if isinstance(prior, ProductPrior):
        real, categorical = z.split([prior.real.latent_dim, prior.categorical.latent_dim], dim=-1)
        first, second = prior_marginals(prior.real, real), prior_marginals(prior.categorical, categorical)
        return None if first is None or second is None else torch.cat((first, second), dim=-1)
    return None


class _Sums:
    """Sums over examples: means over draws of the parts and of r − KL, and their variances within examples."""

    def __init__(self) -> None:
        self.totals: list[list[Tensor]] = []
        self.has_kl = False

    def add(self, parts: Tensor, ratio: Tensor, kl: Tensor | None) -> None:
        """Parts [P, S, B], log q(z|x) − log p(z) [S, B], and KL [B] if it has a closed form."""
        self.has_kl = kl is not None
        centered, own = parts - parts.mean(1, keepdim=True), ratio - ratio.mean(0)
        known = ratio.mean(0) if kl is None else kl
        scale = len(ratio) - 1
        self.totals.append(
            [
                parts.mean(1).sum(-1),
                centered.square().sum((1, 2)) / scale,
                (centered * own).sum((1, 2)) / scale,
                own.square().sum() / scale,
                (ratio.mean(0) - known).sum(),
                known.sum(),
            ]
        )

    def result(self, n: int, draws: int) -> RateSplit:
        mean, variance, covariance, ratio_variance, noise, rate = (
            torch.stack(column).sum(0) for column in zip(*self.totals, strict=True)
        )
        share = covariance / ratio_variance.clamp(min=torch.finfo(torch.float64).tiny) * self.has_kl
        values = ((mean - share * noise) / n).tolist()
        left = (variance - 2 * share * covariance + share.square() * ratio_variance).clamp(min=0)
        errors = ((left / draws).sqrt() / n).tolist()
        return RateSplit(
            n=n,
            rate=float(rate) / n,
            mutual_information=values[0],
            mutual_information_monte_carlo=errors[0],
            total_correlation=values[1],
            total_correlation_monte_carlo=errors[1],
            dimension_wise_kl=values[2],
            dimension_wise_kl_monte_carlo=errors[2],
            aggregate_kl=values[3],
            aggregate_kl_monte_carlo=errors[3],
            latent_kl=values[4:] or None,
        )
