"""p(z): the distribution that latents are drawn from when the model generates."""

from vaelab.priors.aggregate import AggregatePrior
from vaelab.priors.base import Prior
from vaelab.priors.categorical import AutoregressivePrior, CategoricalPrior
from vaelab.priors.flow import FlowPrior
from vaelab.priors.mixture import MixturePrior, VampPrior
from vaelab.priors.normal import StandardNormal
from vaelab.priors.product import ProductPrior

__all__ = [
    "AggregatePrior",
    "AutoregressivePrior",
    "CategoricalPrior",
    "FlowPrior",
    "MixturePrior",
    "Prior",
    "ProductPrior",
    "StandardNormal",
    "VampPrior",
]
