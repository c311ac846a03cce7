"""Quantized models: z is a grid of P codes out of a finite codebook (VQ-VAE, finite scalar quantization).

q(z|x) puts all its mass on one grid of codes. So log q(z|x) = 0, and the bound is log p(x|z) + log p(z), with p(z) a
prior over codes: log p(x) = log Σ_z p(x|z) p(z) is never less than one term of that sum.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from vaelab.composition import Parts
from vaelab.config import Fraction, NonNegativeFloat, PositiveInt, register
from vaelab.errors import InputError
from vaelab.labels import Labels
from vaelab.latents import LatentSpec
from vaelab.likelihoods import Likelihood, LikelihoodDistribution
from vaelab.model import Model, Terms, check
from vaelab.posteriors import Posterior, PosteriorDistribution
from vaelab.priors import Prior

MOST_CODES = 65_536


@dataclass
class Codes(PosteriorDistribution):
    """All mass on one grid of codes.

    Attributes:
        index: which codes, [B, P] int64.
        vectors: the codes, [B, P, C]; their gradient goes straight through to the encoder (Bengio et al. 2013).
        penalties: named terms of the loss, [B] each.
    """

    index: Tensor
    vectors: Tensor
    penalties: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def mean(self) -> Tensor:
        return self.vectors.flatten(1)

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.mean.expand(num_samples, -1, -1)
        return z, z.new_zeros(z.shape[:2])


class Quantizer(Posterior):
    """Replaces each of P vectors of C numbers by a code.

    Attributes:
        codes: how many codes there are.
        channels: C.
    """

    provides = frozenset({"density"})
    holds = "categorical"
    by_place = True
    frozen = False  # while a batch is only tried out
    codes: int
    channels: int

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """All codes, [codes, C]."""

    @abstractmethod
    def quantize(self, features: Tensor) -> Codes:
        """Features [B, P, C] -> the codes that replace them."""

    def forward(self, features: Tensor) -> Codes:
        return self.quantize(features.unflatten(-1, (-1, self.channels)))

    def learn(self, features: Tensor, codes: Codes, generator: torch.Generator | None) -> None:
        """What a codebook takes from a batch of training beside gradients: features [B, P, C], and their codes."""


@register("posterior", "vq")
class VectorQuantizer(Quantizer):
    """The nearest of so many learned vectors: van den Oord et al. 2017 (arXiv:1711.00937).

    With f a feature and e its code, the penalties are, summed over the places of a picture,

        commitment    ‖f − sg(e)‖² times `commitment` (their eq. 3, last term)
        codebook      ‖sg(f) − e‖² (eq. 3, second term), where the codebook follows its gradient (`update = "loss"`)

    and sg stops the gradient. With `update = "ema"` each code is instead the running mean of the features that chose it
    (their appendix A.1). A code that is used less than `revive` times as often as the average one is replaced by a
    feature of the batch. It then counts as used once to twice as often as that limit, at random: so it is soon replaced
    again where no feature chooses it, and codes that began together do not all end at one update.
    """

    def __init__(
        self,
        *,
        codes: Annotated[int, Field(ge=2, le=MOST_CODES)] = 128,
        channels: PositiveInt = 16,
        update: Literal["ema", "loss"] = "ema",
        commitment: NonNegativeFloat = 0.25,
        decay: Fraction = 0.99,
        revive: Fraction = 0.02,
    ) -> None:
        super().__init__()
        self.codes, self.channels = codes, channels
        self.update, self.commitment, self.decay, self.revive = update, commitment, decay, revive
        start = torch.randn(codes, channels)
        if update == "loss":
            self.table = nn.Parameter(start)
        else:
            self.register_buffer("table", start)
            self.register_buffer("sums", torch.zeros(codes, channels))
        self.register_buffer("uses", torch.zeros(codes))
        self.table: Tensor
        self.sums: Tensor
        self.uses: Tensor  # running mean of how often a code is chosen in a batch

    @property
    def codebook(self) -> Tensor:
        return self.table

    def quantize(self, features: Tensor) -> Codes:
        with torch.no_grad():
            # ‖f − e‖² less ‖f‖², which is the same for all codes.
            distances = self.table.square().sum(-1) - 2 * features @ self.table.T
            index = distances.argmin(-1)
        chosen = F.embedding(index, self.table)
        penalties = {"commitment": self.commitment * (features - chosen.detach()).square().sum((1, 2))}
        if self.update == "loss":
            penalties["codebook"] = (features.detach() - chosen).square().sum((1, 2))
        # The difference is exactly zero, so the vectors are exactly those of the codebook.
        return Codes(index, chosen.detach() + (features - features.detach()), penalties)

    @torch.no_grad()
    def learn(self, features: Tensor, codes: Codes, generator: torch.Generator | None) -> None:
        flat, index = features.detach().flatten(0, 1), codes.index.flatten()
        finite = flat.isfinite().all().to(torch.int32)
        if dist.is_initialized():  # all go on, or none: those that went on would wait for the others
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if not finite:
            return
        counts = torch.zeros_like(self.uses).index_add_(0, index, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.table).index_add_(0, index, flat)
        picked = torch.randint(len(flat), (self.codes,), device=flat.device, generator=generator)
        fresh = flat[picked]
        patience = 1 + torch.rand(self.codes, device=flat.device, dtype=flat.dtype, generator=generator)
        if dist.is_initialized():  # several processes keep one codebook
            dist.all_reduce(counts)
            dist.all_reduce(sums)
            dist.broadcast(fresh, 0)
            dist.broadcast(patience, 0)
        begun = self.uses.any()
        self.uses.lerp_(counts, 1 - self.decay)
        average = counts.sum() / self.codes
        dead = (self.uses < self.revive * average) | ~begun  # all codes start at features of the first batch
        lease = (self.revive or 1.0) * average * patience[dead]
        if self.update == "ema":
            self.sums.lerp_(sums, 1 - self.decay)
            used = self.uses[:, None] > 1e-6  # a code that none chooses stays where it is
            self.table.copy_(torch.where(used, self.sums / self.uses[:, None], self.table))
            self.sums[dead] = fresh[dead] * lease[:, None]
        self.table[dead] = fresh[dead]
        self.uses[dead] = lease


@register("posterior", "fsq")
class FiniteScalarQuantizer(Quantizer):
    """Each of C numbers is bounded and rounded to one of a few levels: Mentzer et al. 2023 (arXiv:2309.15505).

    A code is one level of each number, so there are as many codes as the product of `levels`. Nothing is learned, no
    code dies, and there is no penalty.

    Raises:
        InputError: more than 65,536 codes.
    """

    def __init__(
        self,
        *,
        levels: Annotated[tuple[Annotated[int, Field(ge=2, le=256)], ...], Field(min_length=1)] = (8, 5, 5),
    ) -> None:
        super().__init__()
        self.codes, self.channels = math.prod(levels), len(levels)
        if self.codes > MOST_CODES:
            raise InputError(f"posterior.levels: their product is {self.codes:,}; it may be {MOST_CODES:,} at most")
        counts = torch.tensor(levels, dtype=torch.float32)  # a running average of the weights would spoil integers
        grid = torch.cartesian_prod(*[torch.arange(n) for n in levels]).reshape(-1, len(levels))
        self.register_buffer("levels", counts, persistent=False)
        self.register_buffer("table", self._scaled(grid.float(), counts), persistent=False)
        strides = [math.prod(levels[place + 1 :]) for place in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.float32), persistent=False)
        self.levels: Tensor
        self.table: Tensor
        self.strides: Tensor

    @property
    def codebook(self) -> Tensor:
        return self.table

    def quantize(self, features: Tensor) -> Codes:
        # In (−½, L − ½), so that rounding gives 0 … L − 1, each from an interval of the bounded number of length 1.
        bounded = self.levels * torch.sigmoid(features) - 0.5
        level = bounded.detach().round().clamp(min=0).minimum(self.levels - 1)
        index = (level * self.strides).sum(-1).round().long()
        return Codes(index, self._scaled(bounded + (level - bounded).detach(), self.levels))

    @staticmethod
    def _scaled(level: Tensor, levels: Tensor) -> Tensor:
        """Levels 0 … L − 1 -> numbers from −1 to 1."""
        return 2 * level / (levels - 1) - 1


class Quantized(Model):
    """Encoder, quantizer, prior over codes, decoder, likelihood; z is the codes' vectors, [..., P * C].

    Args:
        encoder: [B, *event] -> features [B, P * C].
        decoder: z [N, P * (C + number of labels)] -> [N, *likelihood.output_shape].
        posterior: the quantizer.
        prior: over P latents of so many categories as there are codes. Trained along with the rest: its gradient ends
            at the codes, which are numbers to it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        posterior: Quantizer,
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
        self.latents = LatentSpec(categorical=prior.latents.categorical, categories=posterior.channels)

    @property
    def choices(self) -> Tensor:
        return self.posterior.codebook

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
        codes = posterior or self._learned(self._features(x, y, network_dtype), generator)
        assert isinstance(codes, Codes)
        z, log_qz_x = codes.rsample_with_log_prob(num_samples, generator)
        likelihood = self.decode(z[:1], network_dtype, y=y)  # all draws are the same
        one_hot = F.one_hot(codes.index, self.posterior.codes).flatten(1).to(z.dtype)
        used = torch.zeros(self.posterior.codes, device=x.device, dtype=z.dtype)
        used = used.index_add_(0, codes.index.flatten(), torch.ones_like(codes.index.flatten(), dtype=z.dtype))
        share = used / used.sum()
        return Terms(
            x=x,
            z=z,
            log_px_z=likelihood.log_prob(x).expand(num_samples, -1),
            log_pz=self.prior.log_prob(one_hot).expand(num_samples, -1),
            log_qz_x=log_qz_x,
            kl=None,
            posterior=codes,
            prior=self.prior,
            likelihood=likelihood,
            groups=self.latents.groups,
            penalties=codes.penalties,
            metrics={"perplexity": torch.special.entr(share).sum().exp(), "codes_used": (used > 0).to(z.dtype).sum()},
            noise=generator,
        )

    def _learned(self, features: Tensor, generator: torch.Generator | None) -> Codes:
        """The codes of features [B, P * C], from which the codebook learns while the model trains."""
        codes = self.posterior(features)
        if self.training and torch.is_grad_enabled() and not self.posterior.frozen:
            self.posterior.learn(features.unflatten(-1, (-1, self.posterior.channels)), codes, generator)
        return codes

    def encode(self, x: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None) -> Codes:
        return self.posterior(self._features(x, y, network_dtype))

    def decode(
        self, z: Tensor, network_dtype: torch.dtype | None = None, *, y: Tensor | None = None
    ) -> LikelihoodDistribution:
        check(z, "z", (self.latent_dim,))
        return self._likelihood(self._with_labels(z, y), network_dtype)

    def _with_labels(self, z: Tensor, y: Tensor | None) -> Tensor:
        """The labels stand beside every place."""
        places = z.unflatten(-1, (-1, self.posterior.channels)).transpose(-2, -3)
        return super()._with_labels(places, y).transpose(-2, -3).flatten(-2)

    def sample_latents(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        one_hot = self.prior.sample(num_samples, generator)
        index = one_hot.unflatten(-1, (-1, self.posterior.codes)).argmax(-1)
        return F.embedding(index, self.posterior.codebook).flatten(1)


@register("model", "quantized")
def quantized(parts: Parts, *, places: PositiveInt | Literal["auto"] = "auto", conditional: bool = False) -> Quantized:
    """A grid of codes. `places` says how many a dense network has; a convolutional one has those of its last stage."""
    likelihood, labels, family = parts.likelihood(), parts.labels(conditional), parts.family
    posterior = parts.posterior(0, 0, by_place=True)
    assert isinstance(posterior, Quantizer)
    shape = labels.input_shape if labels else parts.spec.shape
    count = family.places(shape, None if places == "auto" else places)
    encoder = family.grid_encoder(shape, count, posterior.channels)
    channels = posterior.channels + (labels.classes if labels else 0)
    return Quantized(
        encoder=encoder,
        decoder=family.grid_decoder(shape, count, channels, likelihood.output_shape),
        posterior=posterior,
        prior=parts.prior(LatentSpec(categorical=count, categories=posterior.codes), encoder),
        likelihood=likelihood,
        labels=labels,
    )
