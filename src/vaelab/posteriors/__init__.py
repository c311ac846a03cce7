"""q(z|x): the approximate posterior.

A *posterior module* turns the encoder's features [B, F] into a distribution of z. It owns the last, linear layer,
so that any encoder serves any posterior. A *posterior distribution* returns a sample together with its
log-density, because for some families (autoregressive flows) the density of a given z costs far more.
"""

from vaelab.posteriors.base import Capability, Posterior, PosteriorDistribution
from vaelab.posteriors.categorical import Categorical, GumbelSoftmaxPosterior
from vaelab.posteriors.flows import (
    FlowDistribution,
    InverseAutoregressivePosterior,
    PlanarFlow,
    PlanarPosterior,
    SplinePosterior,
    SteppedFlow,
)
from vaelab.posteriors.gaussian import (
    Deterministic,
    DeterministicPosterior,
    DiagonalGaussian,
    FullGaussian,
    FullGaussianPosterior,
    GaussianPosterior,
    Laplace,
    LaplacePosterior,
)

__all__ = [
    "Capability",
    "Categorical",
    "Deterministic",
    "DeterministicPosterior",
    "DiagonalGaussian",
    "FlowDistribution",
    "FullGaussian",
    "FullGaussianPosterior",
    "GaussianPosterior",
    "GumbelSoftmaxPosterior",
    "InverseAutoregressivePosterior",
    "Laplace",
    "LaplacePosterior",
    "PlanarFlow",
    "PlanarPosterior",
    "Posterior",
    "PosteriorDistribution",
    "SplinePosterior",
    "SteppedFlow",
]
