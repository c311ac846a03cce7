"""Objectives that hold the aggregate posterior q(z) = E_x[q(z|x)] to the prior by a distance between draws."""

from abc import ABC
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vaelab.config import NonNegativeFloat, PositiveFloat, register
from vaelab.errors import InputError
from vaelab.latents import LatentSpec
from vaelab.model import Terms
from vaelab.objectives.base import Loss, Objective

Kernel = Literal["imq", "rbf"]
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class MeanDiscrepancy(Objective, ABC):
    """What objectives with the maximum mean discrepancy between q(z) and p(z) have in common.

    MMD² = E[k(z, z')] + E[k(y, y')] − 2 E[k(z, y)] for independent z, z' ~ q(z) and y, y' ~ p(z) is 0 if and only if
    the two are the same (Gretton et al. 2012). With r = ‖z − y‖², the kernels are

    imq  k = Σ_s C s / (C s + r), s in 0.1, 0.2, 0.5, 1, 2, 5, 10: inverse multiquadratics. Tolstikhin et al. 2018 write
         the one with s = 1; the sum over scales is what their experiments ran with, so that both close and distant
         draws are felt. k ≤ 7.
    rbf  k = exp(−r / C). k ≤ 1.

    C = 2 G · `bandwidth` for G latents. For the standard normal prior 2 G is the mean of r between two of its draws,
    the value of C in Tolstikhin et al. 2018, section 4.

    The estimate is the unbiased one (U-statistic): each mean over pairs leaves out pairs of a draw with itself. So it
    is 0 on average where q(z) = p(z), and often negative there. With K draws an example it is the mean of the K
    estimates, all with the same draws from the prior: draws of one example are not independent draws of q(z). A batch
    of one example has no pairs, and no penalty.

    Relaxed draws of categorical latents are rounded to the one-hot draws that they relax, for no relaxed point is ever
    drawn from the prior; the gradient passes as if they were not (straight-through).
    """

    def __init__(self, kernel: Kernel, bandwidth: float) -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.bandwidth = bandwidth

    def discrepancy(self, terms: Terms) -> Tensor:
        """MMD² between the batch's draws and as many from the prior: a scalar."""
        latents = terms.prior.latents
        prior_draws = terms.prior.sample(terms.z.shape[1], terms.noise)
        width = 2 * latents.count * self.bandwidth
        return mmd_squared(rounded(terms.z, latents), prior_draws, self.kernel, width).mean()


def mmd_squared(z: Tensor, y: Tensor, kernel: Kernel, width: float) -> Tensor:
    """The unbiased estimate of MMD² from draws z [..., n, D] and y [n, D] -> [...]; 0 for n = 1. `width` is C above."""
    n = z.shape[-2]
    if n < 2:
        return 0 * z.sum((-2, -1))

    def between(a: Tensor, b: Tensor) -> Tensor:
        # Distances from differences: by matrix products those of close points would be lost to rounding.
        squared = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        return kernel_values(squared, kernel, width)

    def within(a: Tensor) -> Tensor:
        values = between(a, a)
        return (values.sum((-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))

    return within(z) + within(y) - 2 * between(z, y.expand_as(z)).mean((-2, -1))


def kernel_values(squared: Tensor, kernel: Kernel, width: float) -> Tensor:
    """K at squared distances r, of any shape. `width` is C of `MeanDiscrepancy`."""
    if kernel == "rbf":
        return (-squared / width).exp()
    return torch.stack([width * scale / (width * scale + squared) for scale in SCALES]).sum(0)


def rounded(z: Tensor, latents: LatentSpec) -> Tensor:
    """Round every one-hot block of z [..., D] to its largest entry; the gradient is that of z itself.

    The largest entry of a relaxed draw by the Gumbel trick is an exact draw.
    """
    if not latents.categorical:
        return z
    real, blocks = z.split((latents.real, latents.width - latents.real), -1)
    blocks = blocks.unflatten(-1, (latents.categorical, latents.categories))
    one_hot = F.one_hot(blocks.argmax(-1), latents.categories).to(z.dtype)
    return torch.cat([real, (one_hot + (blocks - blocks.detach())).flatten(-2)], -1)


@register("objective", "info")
class InfoVAE(MeanDiscrepancy):
    """distortion + (1 − α) rate + (α + λ − 1) MMD²(q(z), p(z)): Zhao et al. 2017 (arXiv:1706.02262), with MMD², a loss.

    α rewards mutual information between x and z: 0 leaves the rate as it is in the ELBO, 1 takes it away (MMD-VAE; then
    q(z|x) needs no density). λ, here `lambda_mmd`, holds q(z) to the prior. α = 0 and λ = 1 is the ELBO. Kernels: see
    `MeanDiscrepancy`.

    Raises:
        InputError: α + λ < 1, which would push q(z) away from the prior.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, Field(le=1, allow_inf_nan=False)] = 0.0,
        lambda_mmd: NonNegativeFloat = 1_000.0,
        kernel: Kernel = "rbf",
        bandwidth: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(kernel, bandwidth)
        if alpha + lambda_mmd < 1:
            raise InputError(
                f"objective.alpha={alpha:g} and objective.lambda_mmd={lambda_mmd:g}: their sum must be at least 1, for "
                "below that q(z) is pushed away from the prior"
            )
        self.alpha = alpha
        self.lambda_mmd = lambda_mmd
        if alpha == 1:
            self.needs = frozenset({"reparameterized"})

    def loss(self, terms: Terms) -> Loss:
        mmd = self.discrepancy(terms)
        if self.alpha == 1:
            value = terms.distortion.mean()
        else:
            rate = terms.rate
            assert rate is not None
            value = (terms.distortion + (1 - self.alpha) * rate).mean()
        return Loss(value + (self.alpha + self.lambda_mmd - 1) * mmd, {"mmd_squared": mmd})


@register("objective", "wae-mmd")
class WAEMMD(MeanDiscrepancy):
    """distortion + λ MMD²(q(z), p(z)), λ = `lambda_mmd`: Tolstikhin et al. 2018 (arXiv:1711.01558), algorithm 2.

    The Wasserstein autoencoder, for posteriors with and without density. The paper's distortion is the squared error,
    with λ = 10 for MNIST and 100 for CelebA; a Gaussian likelihood of scale σ has that divided by 2σ², so the same
    λ there is λ / 2σ² here. Kernels: see `MeanDiscrepancy`.
    """

    needs = frozenset({"reparameterized"})

    def __init__(
        self,
        *,
        lambda_mmd: NonNegativeFloat = 100.0,
        kernel: Kernel = "imq",
        bandwidth: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(kernel, bandwidth)
        self.lambda_mmd = lambda_mmd

    def loss(self, terms: Terms) -> Loss:
        mmd = self.discrepancy(terms)
        return Loss(terms.distortion.mean() + self.lambda_mmd * mmd, {"mmd_squared": mmd})
