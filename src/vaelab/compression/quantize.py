"""From a trained model to one in whole numbers."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vaelab.compression import latents, logistic, pixels
from vaelab.compression.codecs import Codec
from vaelab.compression.integers import ACTIVATION_BITS, OUTPUT_BITS, Step, activations, of_binary, run
from vaelab.compression.ladder import LadderLatents, scale_bounds
from vaelab.compression.latents import FAMILIES, FlatLatents, Latents, gaussian_prior, shapes
from vaelab.compression.layers import steps_of
from vaelab.compression.pixels import Pixels
from vaelab.errors import InputError
from vaelab.hierarchical import Hierarchical
from vaelab.likelihoods.bernoulli import BernoulliLikelihood
from vaelab.likelihoods.categorical import CategoricalLikelihood
from vaelab.likelihoods.counts import BetaBinomialLikelihood
from vaelab.likelihoods.discretized import DiscretizedLogisticLikelihood
from vaelab.likelihoods.mixture import DiscretizedLogisticMixtureLikelihood
from vaelab.model import VAE, Model
from vaelab.posteriors.gaussian import GaussianPosterior, LaplacePosterior
from vaelab.priors.base import Prior
from vaelab.priors.normal import StandardNormal

PIXELS: dict[type[nn.Module], Callable[[Any], Pixels]] = {
    BernoulliLikelihood: pixels.bernoulli,
    BetaBinomialLikelihood: pixels.beta_binomial,
    CategoricalLikelihood: logistic.categorical,
    DiscretizedLogisticLikelihood: logistic.discretized_logistic,
    DiscretizedLogisticMixtureLikelihood: logistic.logistic_mixture,
}
POSTERIORS: dict[type[nn.Module], str] = {GaussianPosterior: "gaussian", LaplacePosterior: "laplace"}
MOST_LEVELS = 4096
THAT_WORKS = "vaelab train codec-grey --data SOURCE (codec-binary for data of 0 and 1) trains one that can"


@dataclass
class CodecModel:
    """A model in whole numbers.

    Attributes:
        latents: q(z|x) and p(z).
        decoder: state of the latents -> outputs at 2⁻¹⁶.
        pixels: outputs -> codec of x.
        shape: of one example.
        levels: how many a dimension can take.
    """

    latents: Latents
    decoder: tuple[Step, ...]
    pixels: Pixels
    shape: tuple[int, ...]
    levels: int

    def see(self, levels: Tensor) -> Tensor:
        """Levels [B, *shape] as activations."""
        return (levels.double() * (2.0**ACTIVATION_BITS / (self.levels - 1))).round_()

    def pixel_codec(self, z: Tensor) -> Codec:
        """Of all dimensions of x given z [B, D]."""
        return self.pixels.codec(run(self.decoder, self.latents.state(z)))


def quantize(model: Model) -> CodecModel:
    """A trained model in whole numbers: what it codes can be decoded on every machine.

    Raises:
        InputError: a part that has no codec; the message says which, why, and what would work.
    """
    likelihood = model.likelihood
    if model.labels is not None:
        raise InputError(f"compression: the model wants labels, which a file to be compressed has not; {THAT_WORKS}")
    if type(likelihood) not in PIXELS:
        why = "is a density, and only probabilities code" if not likelihood.discrete else "has no codec here"
        raise InputError(f"compression: {type(likelihood).__name__} {why}; {THAT_WORKS}")
    levels = getattr(likelihood, "levels", 2)
    if levels > MOST_LEVELS:
        raise InputError(
            f"compression: {levels} levels are more than {MOST_LEVELS}, which tables can hold; train on data of fewer "
            "levels"
        )
    model = deepcopy(model).cpu().eval()
    return CodecModel(
        latents=_latents(model),
        decoder=steps_of(model.decoder, "decoder", OUTPUT_BITS),
        pixels=PIXELS[type(likelihood)](model.likelihood),  # that of the copy, on the CPU
        shape=model.event_shape,
        levels=levels,
    )


def _latents(model: Model) -> Latents:
    if isinstance(model, Hierarchical):
        _check_prior(model.way_down.top)
        return _ladder(model)
    if not isinstance(model, VAE):
        raise InputError(
            f"compression: {type(model).__name__} has no latents with a density to borrow bits from; {THAT_WORKS}"
        )
    family = POSTERIORS.get(type(model.posterior))
    if family is None:
        raise InputError(
            f"compression: {type(model.posterior).__name__} has no cumulative distribution of each latent alone, which "
            f"coding takes; use posterior.name=gaussian or laplace: {THAT_WORKS}"
        )
    _check_prior(model.prior)  # after the posterior: where latents are categories, no prior would do
    head = model.posterior.head
    assert isinstance(head, nn.Linear)
    return FlatLatents(
        encoder=(*_encoder(model), *steps_of(head, "posterior.head", OUTPUT_BITS)),
        posterior=shapes(FAMILIES[family], latents.LOWEST, latents.HIGHEST),
        prior=gaussian_prior(),
        dim=model.latent_dim,
    )


def _encoder(model: Model) -> tuple[Step, ...]:
    steps = steps_of(model.encoder, "encoder", ACTIVATION_BITS)
    return of_binary(steps) if isinstance(model.likelihood, BernoulliLikelihood) else steps


def _check_prior(prior: Prior) -> None:
    if not isinstance(prior, StandardNormal):
        raise InputError(
            f"compression: {type(prior).__name__} is no product of distributions of one latent each; use "
            f"prior.name=normal: {THAT_WORKS}"
        )


def _ladder(model: Hierarchical) -> LadderLatents:
    way, points = model.way_down, activations()

    def each(modules: nn.ModuleList, name: str, bits: int) -> tuple[tuple[Step, ...], ...]:
        return tuple(steps_of(one, f"{name}.{place}", bits) for place, one in enumerate(modules))

    def layers(heads: nn.ModuleList) -> nn.ModuleList:
        return nn.ModuleList([head.get_submodule("layer") for head in heads])

    return LadderLatents(
        encoder=_encoder(model),
        climbs=each(model.climbs, "climbs", ACTIVATION_BITS),
        heads=each(layers(model.heads), "heads", OUTPUT_BITS),
        embeddings=each(way.embeddings, "prior.embeddings", ACTIVATION_BITS),
        blocks=each(way.blocks, "prior.blocks", ACTIVATION_BITS),
        prior_heads=each(layers(way.heads), "prior.heads", OUTPUT_BITS),
        sizes=tuple(way.latent_dims),
        precision=(12 * (points / 12).tanh() - 2).exp(),
        prior_precision=(-2 * points.tanh()).exp(),
        prior_step=(latents.SCALE_STEPS * points.tanh()).round(),
        bounds=scale_bounds(),
        posterior=shapes(FAMILIES["gaussian"], latents.LOWEST, latents.HIGHEST),
        top_prior=gaussian_prior(),
        prior=gaussian_prior(-latents.SCALE_STEPS, latents.SCALE_STEPS),
    )
