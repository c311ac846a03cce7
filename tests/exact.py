"""Independent exact answers: probabilistic PCA in closed form, and log p(x) by quadrature."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
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


def linear_gaussian(latents: int = 2, noise_variance: float = 0.3, seed: int = 0, width: float = 1.0) -> VAE:
    """A linear VAE of 5 numbers with random weights W, and its best diagonal encoder, in float64.

    Args:
        width: of the encoder's scales, relative to the best ones.
    """
    noise = np.random.default_rng(seed)
    vectors = np.linalg.qr(noise.normal(size=(5, 5)))[0]
    values = np.concatenate([noise.uniform(1, 6, latents), np.zeros(5 - latents)]) + noise_variance
    rotation = np.linalg.qr(noise.normal(size=(latents, latents)))[0]
    weights = vectors[:, :latents] * np.sqrt(values[:latents] - noise_variance) @ rotation
    best = noise_variance / np.diag(weights.T @ weights + noise_variance * np.eye(latents))
    return linear_vae(PCA(noise.normal(size=5), values, vectors), latents, noise_variance, rotation, best * width**2)


def linear_parts(model: VAE) -> tuple[Array, Array, float]:
    """W [D, q], the mean [D] and σ² of a linear VAE with a fixed scale."""
    state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    z = torch.zeros(1, model.latent_dim, dtype=model.prior.origin.dtype)
    density = float(model.decode(z).log_prob(model.decode(z).mean).detach()[0])
    dims = state["decoder.layers.weight"].shape[0]
    return state["decoder.layers.weight"], state["decoder.bias"].ravel(), math.exp(-2 * density / dims) / (2 * math.pi)


def linear_log_px(model: VAE, x: Tensor) -> Array:
    """log p(x) of a linear VAE, x [B, D]: the density of N(mean, W Wᵀ + σ² I)."""
    weights, mean, variance = linear_parts(model)
    covariance = weights @ weights.T + variance * np.eye(len(mean))
    return np.atleast_1d(multivariate_normal(mean, covariance).logpdf(x.double().numpy()))


def linear_posterior(model: VAE, x: Tensor) -> tuple[Array, Array]:
    """Mean [B, q] and covariance [q, q] of p(z|x) of a linear VAE."""
    weights, mean, variance = linear_parts(model)
    precision = weights.T @ weights + variance * np.eye(weights.shape[1])
    return (x.double().numpy() - mean) @ weights @ np.linalg.inv(precision), variance * np.linalg.inv(precision)
