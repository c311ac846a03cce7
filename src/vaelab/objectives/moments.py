"""Objectives that ask for the first two moments of the aggregate posterior q(z) = E_x[q(z|x)]."""

from typing import Literal

from torch import Tensor

from vaelab.config import NonNegativeFloat, register
from vaelab.model import Terms
from vaelab.objectives.base import Loss, Objective, negative_elbo
from vaelab.posteriors import PosteriorDistribution


@register("objective", "dip")
class DIP(Objective):
    """−ELBO + λ_od Σ_{i≠j} C_ij² + λ_d Σ_i (C_ii − 1)²: DIP-VAE, Kumar et al. 2018 (arXiv:1711.00848), eq. 6 and 7.

    Kind 1 takes C = Cov_x[μ(x)], the covariance of the posterior means μ(x) = E_q[z|x] over the batch. Kind 2 takes
    that of the aggregate posterior itself, C = E_x[Cov_q[z|x]] + Cov_x[μ(x)].

    λ_od is `lambda_offdiagonal`, λ_d `lambda_diagonal`. Left out, λ_d follows the paper: 10 λ_od for kind 1, λ_od for
    kind 2. A batch's covariance has the divisor B.
    """

    needs = frozenset({"density", "moments"})

    def __init__(
        self,
        *,
        kind: Literal[1, 2] = 2,
        lambda_offdiagonal: NonNegativeFloat = 10.0,
        lambda_diagonal: NonNegativeFloat | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.lambda_offdiagonal = lambda_offdiagonal
        ratio = 10 if kind == 1 else 1
        self.lambda_diagonal = ratio * lambda_offdiagonal if lambda_diagonal is None else lambda_diagonal

    def loss(self, terms: Terms) -> Loss:
        covariance = self._covariance(terms.posterior)
        variances = covariance.diagonal()
        offdiagonal = (covariance - variances.diag_embed()).square().sum()
        diagonal = (variances - 1).square().sum()
        penalty = self.lambda_offdiagonal * offdiagonal + self.lambda_diagonal * diagonal
        return Loss(negative_elbo(terms) + penalty, {"offdiagonal": offdiagonal, "diagonal": diagonal})

    def _covariance(self, posterior: PosteriorDistribution) -> Tensor:
        """C, [D, D]."""
        centered = posterior.mean - posterior.mean.mean(0)
        of_means = centered.T @ centered / len(centered)
        return of_means if self.kind == 1 else of_means + posterior.covariance.mean(0)
