"""The VAE: five parts, and the terms that they give for a batch.

    x ── encoder ──> posterior ──> z, log q(z|x), KL
    z ── decoder ──> likelihood ──> log p(x|z)
    z ── prior ──> log p(z)

Everything that trains, evaluates or examines a model works on `Terms`, so no density is derived twice. `Model` is what
every class of model has in common; `VAE` is the one for which each part is a free choice.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vaelab.errors import InputError
from vaelab.labels import Labels
from vaelab.latents import LatentSpec
from vaelab.likelihoods import Likelihood, LikelihoodDistribution
from vaelab.posteriors import Capability, Posterior, PosteriorDistribution
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
        kl: KL(q(z|x) ‖ p(z)) in closed form, latent by latent, [B, G]; None where there is no closed form. Of a
            hierarchy: layer by layer, each in closed form given the layers above, averaged over their K draws.
        posterior, prior, likelihood: the distributions themselves.
        groups: columns of `kl` that belong together, by name.
        penalties: named terms that are no densities, [B] each, already weighed; reported apart, never in the ELBO.
        metrics: named scalars that the model tells of itself.
        noise: where the draws came from; objectives that need more randomness go on from there.
        kl_is_exact: whether `kl` is free of noise.
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
    groups: dict[str, slice] = field(default_factory=dict[str, slice])
    penalties: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    metrics: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    noise: torch.Generator | None = None
    kl_is_exact: bool = True

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


def rates_by_group(terms: Terms) -> dict[str, Tensor]:
    """The rate of each group of latents, [B], where there are several and their KL is known apart."""
    if terms.kl is None or len(terms.groups) < 2:
        return {}
    return {name: terms.kl[:, part].sum(-1) for name, part in terms.groups.items()}


class Model(nn.Module, ABC):
    """What training, evaluation and generation know of a model.

    Attributes:
        encoder, decoder: the networks.
        likelihood: decoder outputs -> p(x|z).
        prior: p(z), or that of the topmost latents.
        provides: what its q(z|x) can do, for objectives that ask for more than draws.
        labels: how labels enter; None where the model is not conditional. A conditional model wants `y`, int64 [B],
            beside every x, and models p(x|y). Other models ignore it.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood
    prior: Prior
    provides: frozenset[Capability]
    labels: Labels | None
    latents: LatentSpec

    @property
    def latent_dim(self) -> int:
        """How many numbers z has, D."""
        return self.latents.width

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example: (C, H, W), or (D,)."""
        return self.likelihood.event_shape

    @property
    def has_density(self) -> bool:
        """Whether q(z|x) has a density, so that there is an ELBO."""
        return "density" in self.provides

    @abstractmethod
    def terms(
        self,
        x: Tensor,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
        network_dtype: torch.dtype | None = None,
        *,
        y: Tensor | None = None,
        relaxed: bool = False,
        posterior: PosteriorDistribution | None = None,
    ) -> Terms:
        """All terms of the ELBO for x [B, *event], with `num_samples` (K) draws of z an example.

        Args:
            network_dtype: run the networks in this precision (autocast); densities stay in float32.
            y: labels [B], for a conditional model.
            relaxed: draw categorical latents relaxed, so that gradients flow through them. Without it they are true
                draws, and the bound is one.
            posterior: what `encode` gave for this x and y, where that is known already: the encoder does not run again.
        """

    @abstractmethod
    def encode(
        self, x: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None
    ) -> PosteriorDistribution:
        """q(z|x) for x [B, *event] on the model's scale."""

    @abstractmethod
    def decode(
        self, z: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None
    ) -> LikelihoodDistribution:
        """p(x|z) for z [..., B, D]; the leading dimensions are kept."""

    @property
    def choices(self) -> Tensor:
        """What a categorical latent can be: the rows of [n, width]."""
        return torch.eye(self.latents.categories, device=self.prior.origin.device)

    def sample_latents(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from p(z), [num_samples, D]."""
        return self.prior.sample(num_samples, generator)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int = 16,
        *,
        draw: bool = False,
        generator: torch.Generator | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """New examples [num_samples, *event] from z ~ p(z): the mean of p(x|z), or with `draw` a draw from it.

        A conditional model takes labels y [num_samples]; without them they are drawn as often as in the training data.
        """
        z = self.sample_latents(num_samples, generator)
        if self.labels is not None and y is None:
            y = self.labels.sample(num_samples, generator)
        return self.show(z, draw=draw, generator=generator, y=y)

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        *,
        draw: bool = False,
        latent: str = "mean",
        generator: torch.Generator | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Encode and decode x [B, *event].

        Args:
            draw: a draw from p(x|z) instead of its mean.
            latent: "mean" of q(z|x), or "sample" from it.
        """
        posterior = self.encode(x, y=y)
        if latent not in ("mean", "sample"):
            raise InputError(f'latent={latent}: must be "mean" or "sample"')
        z = posterior.mean if latent == "mean" else posterior.sample_with_log_prob(1, generator)[0][0]
        return self.show(z, draw=draw, generator=generator, y=y)

    @torch.no_grad()
    def show(
        self, z: Tensor, *, draw: bool = False, generator: torch.Generator | None = None, y: Tensor | None = None
    ) -> Tensor:
        """What z [..., B, D] looks like: the mean of p(x|z), or with `draw` a draw from it."""
        likelihood = self.decode(z, y=y)
        return likelihood.sample(generator) if draw else likelihood.mean

    def _check_x(self, x: Tensor) -> None:
        """Raise an InputError unless x is one batch of examples."""
        check(x, "x", self.event_shape)
        if x.ndim != len(self.event_shape) + 1:
            raise InputError(f"x has shape {list(x.shape)}; the model wants one batch axis before {self.event_shape}")
        own = next(self.parameters(), x).dtype
        if x.dtype != own:
            raise InputError(f"x is {x.dtype}, and the model {own}; give x.to({own}), or take model.to({x.dtype})")

    def _features(self, x: Tensor, y: Tensor | None, network_dtype: torch.dtype | None) -> Tensor:
        """What the encoder makes of x [B, *event] (and labels), [B, F]."""
        self._check_x(x)
        if self.labels is not None:
            x = self.labels.join_input(x, y)
        with autocast(x, network_dtype):
            features = self.encoder(x)
        return at_least_single(features)

    def _likelihood(self, inputs: Tensor, network_dtype: torch.dtype | None) -> LikelihoodDistribution:
        """p(x|z) from what the decoder takes, [..., B, W]."""
        with autocast(inputs, network_dtype):
            outputs = self.decoder(inputs.flatten(0, -2))
        return self.likelihood(at_least_single(outputs).unflatten(0, inputs.shape[:-1]))

    def _with_labels(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Z [..., B, D], and beside it the labels of a conditional model."""
        return z if self.labels is None else self.labels.join_latents(z, y)


class VAE(Model):
    """encoder × posterior × prior × decoder × likelihood.

    Args:
        encoder: [B, *event] -> features [B, F].
        decoder: z [N, D] -> [N, *likelihood.output_shape].
        posterior: features -> q(z|x).
        prior: p(z).
        likelihood: decoder outputs -> p(x|z).
        labels: how labels enter encoder and decoder, which are made for `labels.input_shape` and D + the number of
            classes then; None for a model without labels.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        posterior: Posterior,
        prior: Prior,
        likelihood: Likelihood,
        labels: Labels | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = posterior
        self.prior = prior
        self.likelihood = likelihood
        self.labels = labels
        self.provides = posterior.provides
        self.latents = prior.latents

    def terms(
        self,
        x: Tensor,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
        network_dtype: torch.dtype | None = None,
        *,
        y: Tensor | None = None,
        relaxed: bool = False,
        posterior: PosteriorDistribution | None = None,
    ) -> Terms:
        posterior = posterior or self.encode(x, network_dtype, y=y)
        draw = posterior.rsample_with_log_prob if relaxed else posterior.sample_with_log_prob
        z, log_qz_x = draw(num_samples, generator)
        likelihood = self.decode(z, network_dtype, y=y)
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
            groups=self.latents.groups,
            noise=generator,
        )

    def encode(
        self, x: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None
    ) -> PosteriorDistribution:
        return self.posterior(self._features(x, y, network_dtype))

    def decode(
        self, z: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None
    ) -> LikelihoodDistribution:
        check(z, "z", (self.latent_dim,))
        return self._likelihood(self._with_labels(z, y), network_dtype)


def check(values: Tensor, name: str, event: tuple[int, ...]) -> None:
    """Raise an InputError unless `values` are floating point, [..., *event]."""
    wanted = f"[B, {', '.join(map(str, event))}]"
    if not values.is_floating_point():
        raise InputError(f"{name} is {values.dtype}, not floating point; Split.batch puts data on the model's scale")
    if values.ndim < len(event) + 1:
        raise InputError(f"{name} has shape {list(values.shape)}, {values.ndim} axes; the model wants {wanted}")
    for axis in range(1, len(event) + 1):
        if values.shape[-axis] != event[-axis]:
            raise InputError(
                f"{name} has {values.shape[-axis]} on axis {values.ndim - axis} of {list(values.shape)}; "
                f"the model wants {event[-axis]} there ({wanted})"
            )


def at_least_single(values: Tensor) -> Tensor:
    """Half-precision network outputs as float32: densities are never computed in less."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def autocast(like: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """The networks' precision."""
    return nullcontext() if dtype is None else torch.autocast(like.device.type, dtype)
