"""The hierarchical VAE: several stochastic layers, inferred from the top down.

    bottom-up   x ── encoder ──> d_1 ──> d_2 ── … ──> d_N        what the data say of each layer
    top-down    z_N ~ p(z_N),  h_i = f(z_N, …, z_{i+1}),  z_i ~ p(z_i | h_i),  p(x | z) from h_0

Layers are numbered from x upward, as in Sønderby et al. 2016 (arXiv:1602.02282), the ladder VAE. In z, and in all
tables, the top layer N comes first. The posterior of a layer joins what the data say, N(μ̂, σ̂²) from d_i, with what the
layers above say, p(z_i | h_i), by the product of the two Gaussians (their eq. 17-19).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vaelab.composition import Parts
from vaelab.config import PositiveInt, part, register
from vaelab.errors import InputError
from vaelab.labels import Labels
from vaelab.latents import LatentSpec
from vaelab.likelihoods import Likelihood, LikelihoodDistribution
from vaelab.model import Model, Terms, check
from vaelab.networks import Widths
from vaelab.posteriors import DiagonalGaussian, PosteriorDistribution
from vaelab.priors import Prior

Choose = Callable[[int, DiagonalGaussian | None], Tensor]
"""(layer, counted from the top; its p(z_i | z above), None at the top) -> z of that layer [..., D_i]."""
GAIN = 4.0
"""How far a latent moves h at first, whatever its layer. Latents that move it less than others never come into use."""


class Residual(nn.Sequential):
    """Two dense layers that start at 0, to be added to what goes past them."""

    def __init__(self, width_in: int, width: int) -> None:
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(width_in, width), nn.GELU(), last)


class Climb(nn.Module):
    """d_{i−1} -> d_i: a shortcut, linear where the width changes, plus a residual."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.shortcut = (
            nn.Identity() if width_in == width else _orthogonal(width_in, width, math.sqrt(width / width_in))
        )
        self.residual = Residual(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


def _orthogonal(width_in: int, width: int, gain: float) -> nn.Linear:
    """A linear map that starts with orthogonal columns of length `gain` (rows, where there are fewer of those)."""
    made = nn.Linear(width_in, width, bias=False)
    nn.init.orthogonal_(made.weight, gain)
    return made


class GaussianHead(nn.Module):
    """Features -> N(loc, scale²); starts near N(0, 1)."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2 * latent_dim)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        loc, log_variance = self.layer(features).chunk(2, dim=-1)
        return DiagonalGaussian(loc, (0.5 * log_variance).exp())


class ConditionalHead(nn.Module):
    """Features of the layers above -> p(z_i | h_i) = N(loc, scale²), scale between 1/e and e.

    The unit of z_i is arbitrary, so a bound costs little. Without one the scale falls to 0 early in training: that
    spares the decoder the noise of z_i, for the posterior is never wider than p(z_i | h_i), and the layer is lost.
    """

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2 * latent_dim)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        loc, raw = self.layer(features).chunk(2, dim=-1)
        return DiagonalGaussian(loc, raw.tanh().exp())


class EvidenceHead(nn.Module):
    """Features -> what the data say of a layer: N(μ̂, σ̂²), with μ̂ = m (1 + σ̂²).

    In the product with a prior N(0, 1) its mean is m and its variance 1 / (1 + 1/σ̂²). So m and log σ̂² are learned as
    fast as mean and log-variance of a VAE's encoder, whether the data say little of a layer or much. 1/σ̂² starts near
    0.13, so that a layer starts near its prior; with a head for μ̂ itself, the gradient of the mean would fade there.
    It stays between 8e-7 and 2e4, where the product is finite in single precision.
    """

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2 * latent_dim)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        m, log_precision = self.layer(features).chunk(2, dim=-1)
        variance = (2 - 12 * (log_precision / 12).tanh()).exp()
        return DiagonalGaussian(m * (1 + variance), variance.sqrt())


class TopDown(Prior):
    """p(z_N) p(z_{N−1}|z_N) … p(z_1|z_2, …, z_N): the prior over all layers, z [..., Σ D_i], the top layer first.

    Args:
        top: p(z_N).
        latent_dims: D_i of each layer, top first.
        hidden: width of the deterministic path.
    """

    def __init__(self, top: Prior, latent_dims: tuple[int, ...], hidden: int) -> None:
        super().__init__(sum(latent_dims))
        self.top = top
        self.latent_dims = latent_dims
        widths = [latent_dims[0], *(hidden + dim for dim in latent_dims[1:])]
        self.embeddings = nn.ModuleList([_orthogonal(dim, hidden, GAIN) for dim in latent_dims])
        self.blocks = nn.ModuleList([Residual(width, hidden) for width in widths])
        self.heads = nn.ModuleList([ConditionalHead(hidden, dim) for dim in latent_dims[1:]])

    @property
    def start_examples(self) -> int:
        return self.top.start_examples

    def start(self, x: Tensor) -> None:
        self.top.start(x)

    @property
    def fit_draws(self) -> int:
        return self.top.fit_draws

    def fit(self, z: Tensor, generator: torch.Generator) -> None:
        self.top.fit(z[:, : self.latent_dims[0]], generator)

    def descend(self, choose: Choose) -> Tensor:
        """Choose z layer by layer, from the top down; returns h_0, what the decoder sees, [..., hidden]."""
        h: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            z = choose(layer, None if h is None else self.heads[layer - 1](h))
            embedded = self.embeddings[layer](z)
            h = embedded + block(z) if h is None else h + embedded + block(torch.cat((h, z), dim=-1))
        assert h is not None
        return h

    def state(self, z: Tensor) -> Tensor:
        """h_0 for z [..., Σ D_i]."""
        parts = z.split(self.latent_dims, dim=-1)

        def choose(layer: int, _: DiagonalGaussian | None) -> Tensor:
            return parts[layer]

        return self.descend(choose)

    def log_prob(self, z: Tensor) -> Tensor:
        parts = z.split(self.latent_dims, dim=-1)
        total: list[Tensor] = []

        def choose(layer: int, conditional: DiagonalGaussian | None) -> Tensor:
            total.append(self.top.log_prob(parts[0]) if conditional is None else conditional.log_prob(parts[layer]))
            return parts[layer]

        self.descend(choose)
        return torch.stack(total).sum(0)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        parts: list[Tensor] = []

        def choose(layer: int, conditional: DiagonalGaussian | None) -> Tensor:
            if conditional is None:
                parts.append(self.top.sample(num_samples, generator))
            else:
                parts.append(conditional.rsample_with_log_prob(1, generator)[0][0])
            return parts[-1]

        self.descend(choose)
        return torch.cat(parts, dim=-1)


@dataclass
class LadderPosterior(PosteriorDistribution):
    """q(z|x) = q(z_N|x) q(z_{N−1}|z_N, x) … q(z_1|z_2, …, x).

    Attributes:
        prior: the way down.
        evidence: N(μ̂_i, σ̂_i²), what the data say of each layer, top first.
    """

    prior: TopDown
    evidence: list[DiagonalGaussian]

    @property
    def mean(self) -> Tensor:
        """Each layer's mean given the means of the layers above: E[z|x] itself has no closed form. [B, Σ D_i]."""
        return torch.cat([q.loc for q in self._along_means()], dim=-1)

    @property
    def stddev(self) -> Tensor:
        """Of each layer, given the means of the layers above, [B, Σ D_i]."""
        return torch.cat([q.scale for q in self._along_means()], dim=-1)

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        drawn = self.draw(num_samples, generator)
        return drawn.z, drawn.log_qz_x

    def log_prob(self, z: Tensor) -> Tensor:
        parts = z.split(self.prior.latent_dims, dim=-1)
        total: list[Tensor] = []

        def choose(layer: int, conditional: DiagonalGaussian | None) -> Tensor:
            total.append(self.layer(layer, conditional).log_prob(parts[layer]))
            return parts[layer]

        self.prior.descend(choose)
        return torch.stack(total).sum(0)

    def layer(self, layer: int, conditional: DiagonalGaussian | None) -> DiagonalGaussian:
        """q(z_i | z above, x): the product of what the data say and what the layers above say."""
        evidence = self.evidence[layer]
        if conditional is None:
            return evidence
        precision = evidence.scale**-2 + conditional.scale**-2
        loc = (evidence.loc * evidence.scale**-2 + conditional.loc * conditional.scale**-2) / precision
        return DiagonalGaussian(loc, precision.rsqrt())

    def draw(self, num_samples: int, generator: torch.Generator | None) -> "Drawn":
        """`num_samples` (K) draws, and everything that is known on the way down."""
        z: list[Tensor] = []
        log_q: list[Tensor] = []
        log_p: list[Tensor] = []
        kl: list[Tensor] = []

        def choose(layer: int, conditional: DiagonalGaussian | None) -> Tensor:
            q = self.layer(layer, conditional)
            if conditional is None:
                own, log_own = q.rsample_with_log_prob(num_samples, generator)
                log_p.append(self.prior.top.log_prob(own))
                closed = self.prior.top.kl(q)
                kl.append((log_own - log_p[-1]).mean(0) if closed is None else closed.sum(-1))
            else:
                own, log_own = (draw[0] for draw in q.rsample_with_log_prob(1, generator))
                log_p.append(conditional.log_prob(own))
                kl.append(_gaussian_kl(q, conditional).sum(-1).mean(0))
            z.append(own)
            log_q.append(log_own)
            return own

        h = self.prior.descend(choose)
        return Drawn(
            torch.cat(z, dim=-1), torch.stack(log_q).sum(0), torch.stack(log_p).sum(0), torch.stack(kl, dim=-1), h
        )

    def _along_means(self) -> list[DiagonalGaussian]:
        found: list[DiagonalGaussian] = []

        def choose(layer: int, conditional: DiagonalGaussian | None) -> Tensor:
            found.append(self.layer(layer, conditional))
            return found[-1].loc

        self.prior.descend(choose)
        return found


@dataclass
class Drawn:
    """K draws on the way down: z [K, B, Σ D_i], log q and log p [K, B], the KL of each layer [B, N], h_0 [K, B, H]."""

    z: Tensor
    log_qz_x: Tensor
    log_pz: Tensor
    kl: Tensor
    h: Tensor


def _gaussian_kl(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    """KL(q ‖ p) of diagonal Gaussians, [..., D]: log(σ_p/σ_q) + (σ_q² + (μ_q − μ_p)²) / (2 σ_p²) − ½."""
    ratio = (q.scale / p.scale).square()
    return 0.5 * (ratio + ((q.loc - p.loc) / p.scale).square() - 1 - ratio.log())


class Hierarchical(Model):
    """Encoder, ladder of stochastic layers, decoder, likelihood.

    Args:
        encoder: [B, *event] -> features [B, F].
        num_features: F.
        decoder: h_0 [N, hidden] (and labels) -> [N, *likelihood.output_shape].
        prior: the way down.
        likelihood: decoder outputs -> p(x|z).
        hidden: width of the deterministic paths.
        labels: how labels enter.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_features: int,
        decoder: nn.Module,
        prior: TopDown,
        likelihood: Likelihood,
        hidden: int,
        labels: Labels | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.likelihood = likelihood
        self.labels = labels
        layers = len(prior.latent_dims)
        self.climbs = nn.ModuleList([Climb(hidden if up else num_features, hidden) for up in range(layers)])
        top, *others = prior.latent_dims
        self.heads = nn.ModuleList([GaussianHead(hidden, top), *(EvidenceHead(hidden, dim) for dim in others)])
        self.provides = frozenset({"density", "reparameterized", "stochastic"})
        self.latents = LatentSpec(real=prior.latent_dim)
        self.groups = {f"layer_{layers - place}": slice(place, place + 1) for place in range(layers)}

    @property
    def way_down(self) -> TopDown:
        """The prior, by what it is."""
        assert isinstance(self.prior, TopDown)
        return self.prior

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
        assert isinstance(posterior, LadderPosterior)
        drawn = posterior.draw(num_samples, generator)
        likelihood = self._likelihood(self._with_labels(drawn.h, y), network_dtype)
        return Terms(
            x=x,
            z=drawn.z,
            log_px_z=likelihood.log_prob(x),
            log_pz=drawn.log_pz,
            log_qz_x=drawn.log_qz_x,
            kl=drawn.kl,
            posterior=posterior,
            prior=self.prior,
            likelihood=likelihood,
            groups=self.groups,
            noise=generator,
            kl_is_exact=False,
        )

    def encode(
        self, x: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None
    ) -> LadderPosterior:
        d = self._features(x, y, network_dtype)
        evidence: list[DiagonalGaussian] = []
        for climb, head in zip(self.climbs, reversed(self.heads), strict=True):
            d = climb(d)
            evidence.insert(0, head(d))
        return LadderPosterior(self.way_down, evidence)

    def decode(
        self, z: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None
    ) -> LikelihoodDistribution:
        check(z, "z", (self.latent_dim,))
        return self._likelihood(self._with_labels(self.way_down.state(z), y), network_dtype)


@register("model", "hierarchical")
def hierarchical(
    parts: Parts,
    *,
    latent_dims: Annotated[Widths, Field(min_length=1)] = (10, 20),
    hidden: PositiveInt = 256,
    conditional: bool = False,
) -> Hierarchical:
    """Stochastic layers with so many latents each, the top layer first; `prior.*` is that of the top layer.

    Raises:
        InputError: the posterior is not the diagonal Gaussian.
    """
    if (name := parts.config.name("posterior")) != "gaussian":
        other = "quantized" if getattr(part("posterior", name).build, "by_place", False) else "vae"
        raise InputError(
            f"posterior.name={name}: model.name=hierarchical multiplies two Gaussians in every layer, what the data "
            f"say and what the layers above say; use posterior.name=gaussian, or model.name={other}"
        )
    likelihood, labels = parts.likelihood(), parts.labels(conditional)
    encoder = parts.family.encoder(labels.input_shape if labels else parts.spec.shape)
    top = parts.prior(LatentSpec(real=latent_dims[0]), encoder)
    return Hierarchical(
        encoder=encoder,
        num_features=encoder.num_features,
        decoder=parts.family.decoder(hidden + (labels.classes if labels else 0), likelihood.output_shape),
        prior=TopDown(top, tuple(latent_dims), hidden),
        likelihood=likelihood,
        hidden=hidden,
        labels=labels,
    )
