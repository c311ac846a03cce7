"""The VAE: five parts, and the terms that they give for a batch.

    x ── encoder ──> posterior ──> z, log q(z|x), KL
    z ── decoder ──> likelihood ──> log p(x|z)
    z ── prior ──> log p(z)

Everything that trains, evaluates or examines a model works on `Terms`, so no density is derived twice.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vaelab.errors import InputError
from vaelab.likelihoods import Likelihood, LikelihoodDistribution
from vaelab.posteriors import Posterior, PosteriorDistribution
from vaelab.priors import Prior


@dataclass
class Terms:
    """K draws of z for each of B examples; everything in nats.

    Attributes:
        x: the examples, [B, *event].
        z: the draws, [K, B, D].
        log_px_z: log p(x|z), [K, B].
        log_pz: log p(z), [K, B].
        log_qz_x: log q(z|x), [K, B]; None where the posterior has no density.
        kl: KL(q(z|x) ‖ p(z)) in closed form, latent by latent, [B, D]; None where there is no closed form.
        posterior, prior, likelihood: the distributions themselves.
        penalties: named terms that are no densities; reported apart, never inside the ELBO.
    """

    x: Tensor
    z: Tensor
    log_px_z: Tensor
    log_pz: Tensor
    log_qz_x: Tensor | None
    kl: Tensor | None
    posterior: PosteriorDistribution
    prior: Prior
    likelihood: LikelihoodDistribution
    penalties: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def distortion(self) -> Tensor:
        """−E_q[log p(x|z)], [B], averaged over the K draws."""
        return -self.log_px_z.mean(0)

    @property
    def rate(self) -> Tensor | None:
        """KL(q(z|x) ‖ p(z)), [B]: in closed form where there is one, for its variance is far smaller."""
        if self.kl is not None:
            return self.kl.sum(-1)
        return None if self.log_qz_x is None else (self.log_qz_x - self.log_pz).mean(0)

    @property
    def log_weights(self) -> Tensor | None:
        """Log w = log p(x|z) + log p(z) − log q(z|x), [K, B]; E_q[w] = p(x). None where q has no density."""
        return None if self.log_qz_x is None else self.log_px_z + self.log_pz - self.log_qz_x


class VAE(nn.Module):
    """encoder × posterior × prior × decoder × likelihood.

    Args:
        encoder: [B, *event] -> features [B, F].
        decoder: z [N, D] -> [N, *likelihood.output_shape].
        posterior: features -> q(z|x).
        prior: p(z).
        likelihood: decoder outputs -> p(x|z).
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, posterior: Posterior, prior: Prior, likelihood: Likelihood
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = posterior
        self.prior = prior
        self.likelihood = likelihood

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions D."""
        return self.prior.latent_dim

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example: (C, H, W), or (D,)."""
        return self.likelihood.event_shape

    def terms(
        self,
        x: Tensor,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
        network_dtype: torch.dtype | None = None,
    ) -> Terms:
        """All terms of the ELBO for x [B, *event], with `num_samples` (K) draws of z an example.

        Args:
            network_dtype: run the two networks in this precision (autocast); densities stay in float32.
        """
        posterior = self.encode(x, network_dtype)
        z, log_qz_x = posterior.rsample_with_log_prob(num_samples, generator)
        likelihood = self.decode(z, network_dtype)
        return Terms(
            x=x,
            z=z,
            log_px_z=likelihood.log_prob(x),
            log_pz=self.prior.log_prob(z),
            log_qz_x=log_qz_x,
            kl=self.prior.kl(posterior),
            posterior=posterior,
            prior=self.prior,
            likelihood=likelihood,
        )

    def encode(self, x: Tensor, network_dtype: torch.dtype | None = None) -> PosteriorDistribution:
        """q(z|x) for x [B, *event] on the model's scale."""
        self._check(x, "x", self.event_shape)
        if x.ndim != len(self.event_shape) + 1:
            raise InputError(f"x has shape {list(x.shape)}; the model wants one batch axis before {self.event_shape}")
        with _autocast(x, network_dtype):
            features = self.encoder(x)
        return self.posterior(_at_least_single(features))

    def decode(self, z: Tensor, network_dtype: torch.dtype | None = None) -> LikelihoodDistribution:
        """p(x|z) for z [..., D]; the leading dimensions are kept."""
        self._check(z, "z", (self.latent_dim,))
        with _autocast(z, network_dtype):
            outputs = self.decoder(z.flatten(0, -2))
        return self.likelihood(_at_least_single(outputs).unflatten(0, z.shape[:-1]))

    def sample(self, num_samples: int = 16, *, draw: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """New examples [num_samples, *event] from z ~ p(z): the mean of p(x|z), or with `draw` a draw from it."""
        return self.show(self.prior.sample(num_samples, generator), draw=draw, generator=generator)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, *, draw: bool = False, latent: str = "mean", generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode and decode x [B, *event].

        Args:
            draw: a draw from p(x|z) instead of its mean.
            latent: "mean" of q(z|x), or "sample" from it.
        """
        posterior = self.encode(x)
        if latent not in ("mean", "sample"):
            raise InputError(f'latent={latent}: must be "mean" or "sample"')
        z = posterior.mean if latent == "mean" else posterior.rsample_with_log_prob(1, generator)[0][0]
        return self.show(z, draw=draw, generator=generator)

    @torch.no_grad()
    def show(self, z: Tensor, *, draw: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """What z [..., D] looks like: the mean of p(x|z), or with `draw` a draw from it."""
        likelihood = self.decode(z)
        return likelihood.sample(generator) if draw else likelihood.mean

    def _check(self, values: Tensor, name: str, event: tuple[int, ...]) -> None:
        wanted = f"[B, {', '.join(map(str, event))}]"
        if not values.is_floating_point():
            raise InputError(
                f"{name} is {values.dtype}, not floating point; Split.batch puts data on the model's scale"
            )
        if values.ndim < len(event) + 1:
            raise InputError(f"{name} has shape {list(values.shape)}, {values.ndim} axes; the model wants {wanted}")
        for axis in range(1, len(event) + 1):
            if values.shape[-axis] != event[-axis]:
                raise InputError(
                    f"{name} has {values.shape[-axis]} on axis {values.ndim - axis} of {list(values.shape)}; "
                    f"the model wants {event[-axis]} there ({wanted})"
                )


def _at_least_single(values: Tensor) -> Tensor:
    """Half-precision network outputs as float32: densities are never computed in less."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _autocast(like: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(like.device.type, dtype)
