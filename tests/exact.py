"""Independent exact answers: probabilistic PCA in closed form, and log p(x) by quadrature."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from vaelab.composition import compose
from vaelab.config import resolve
from vaelab.data.spec import DataSpec
from vaelab.model import VAE
from vaelab.posteriors import DiagonalGaussian

Array = NDArray[np.float64]


def digits_16() -> Array:
    """scikit-learn's digits / 16, [1797, 64]."""
    return np.asarray(load_digits().data, dtype=np.float64) / 16


@dataclass
class PCA:
    """Eigen-decomposition of the data's covariance (divisor N), largest eigenvalue first."""

    mean: Array
    eigenvalues: Array
    eigenvectors: Array

    @classmethod
    def of(cls, x: Array) -> "PCA":
        values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
        return cls(x.mean(0), values[::-1].clip(min=0), vectors[:, ::-1])

    def noise_variance(self, q: int) -> float:
        """Tipping & Bishop 1999, eq. 8: the mean of the discarded eigenvalues."""
        return float(self.eigenvalues[q:].mean())

    def log_likelihood(self, q: int) -> float:
        """Tipping & Bishop 1999, eq. 4 at the maximum, per example, in nats."""
        dims, variance = len(self.eigenvalues), self.noise_variance(q)
        kept = np.log(self.eigenvalues[:q]).sum()
        return -0.5 * (dims * math.log(2 * math.pi) + kept + (dims - q) * math.log(variance) + dims)


def linear_vae(
    pca: PCA, q: int, noise_variance: float, rotation: Array | None = None, encoder_variance: Array | None = None
) -> VAE:
    """The linear VAE with probabilistic PCA's best weights for this noise variance, in float64.

    W = U_q (Λ_q − σ² I)^½ R; the encoder is the exact posterior's mean and the diagonal of its precision.
    """
    config = resolve(
        "exact",
        {},
        {
            "model.latent_dim": q,
            "network.name": "linear",
            "likelihood.name": "gaussian",
            "likelihood.scale": math.sqrt(noise_variance),
        },
    )
    dims = len(pca.mean)
    model = compose(config, DataSpec((dims,), "real", None)).double()
    weights = pca.eigenvectors[:, :q] * np.sqrt((pca.eigenvalues[:q] - noise_variance).clip(min=0))
    if rotation is not None:
        weights = weights @ rotation
    precision = weights.T @ weights + noise_variance * np.eye(q)
    to_mean = np.linalg.solve(precision, weights.T)
    variance = noise_variance / np.diag(precision) if encoder_variance is None else encoder_variance
    head_weight = np.concatenate([to_mean, np.zeros_like(to_mean)])
    head_bias = np.concatenate([-to_mean @ pca.mean, np.log(variance)])
    state = {
        "posterior.head.weight": head_weight,
        "posterior.head.bias": head_bias,
        "decoder.layers.weight": weights,
        "decoder.bias": pca.mean[None],
    }
    model.load_state_dict({name: torch.as_tensor(value.copy()) for name, value in state.items()})
    return model


def grid(dims: int, edge: float = 6.0, points: int = 121) -> tuple[Tensor, float]:
    """Points [points ** dims, dims] of a square grid and the volume of one cell."""
    axis = torch.linspace(-edge, edge, points, dtype=torch.float64)
    mesh = torch.meshgrid(*[axis] * dims, indexing="ij")
    return torch.stack([one.flatten() for one in mesh], dim=-1), float(axis[1] - axis[0]) ** dims


@torch.no_grad()
def quadrature(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x), and KL(q(z|x) ‖ p(z|x)), [B] each, by a grid over a latent of one or two dimensions."""
    z, cell = grid(model.latent_dim)
    log_px_z = torch.cat([model.decode(part[:, None]).log_prob(x) for part in z.split(1024)])
    log_joint = model.prior.log_prob(z)[:, None] + log_px_z
    log_px = log_joint.logsumexp(0) + math.log(cell)
    posterior = model.encode(x)
    assert isinstance(posterior, DiagonalGaussian)
    log_q = posterior.log_prob(z[:, None])
    divergence = (log_q.exp() * (log_q - (log_joint - log_px))).sum(0) * cell
    return log_px, divergence
