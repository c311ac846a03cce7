"""p(x|z): what the decoder's output says of x.

Each likelihood is a pair. A *distribution* (`Bernoulli`, `Gaussian`, `DiscretizedLogistic`, ...) is normalized over x:
its probabilities sum to 1, its densities integrate to 1. A *likelihood module* (`BernoulliLikelihood`, ...) turns
decoder outputs into that distribution; it says how many outputs it needs, where they start, and it owns the
parameters that do not depend on z.

x is on the model's scale (see `vaelab.data.DataSpec`): binary values are 0 or 1, a level l of L is l / (L − 1),
real values are as they are. `log_prob` is in nats and summed over the event dimensions.
"""

from vaelab.likelihoods.base import (
    FOLLOWS,
    LOG_2PI,
    REMEDIES,
    Likelihood,
    LikelihoodDistribution,
    follow_data,
    sum_event,
    to_levels,
    uniform,
)
from vaelab.likelihoods.bernoulli import (
    Bernoulli,
    BernoulliLikelihood,
    ContinuousBernoulli,
    ContinuousBernoulliLikelihood,
)
from vaelab.likelihoods.categorical import Categorical, CategoricalLikelihood
from vaelab.likelihoods.counts import (
    BetaBinomial,
    BetaBinomialLikelihood,
    NegativeBinomial,
    NegativeBinomialLikelihood,
    Poisson,
    PoissonLikelihood,
)
from vaelab.likelihoods.discretized import DiscretizedLogistic, DiscretizedLogisticLikelihood
from vaelab.likelihoods.mixture import DiscretizedLogisticMixture, DiscretizedLogisticMixtureLikelihood
from vaelab.likelihoods.real import (
    BatchOptimalGaussian,
    Gaussian,
    GaussianLikelihood,
    Laplace,
    LaplaceLikelihood,
    StudentT,
    StudentTLikelihood,
)
from vaelab.likelihoods.scales import Learned, LocScaleDistribution, LocScaleLikelihood, ScaleShape

__all__ = [
    "FOLLOWS",
    "LOG_2PI",
    "REMEDIES",
    "BatchOptimalGaussian",
    "Bernoulli",
    "BernoulliLikelihood",
    "BetaBinomial",
    "BetaBinomialLikelihood",
    "Categorical",
    "CategoricalLikelihood",
    "ContinuousBernoulli",
    "ContinuousBernoulliLikelihood",
    "DiscretizedLogistic",
    "DiscretizedLogisticLikelihood",
    "DiscretizedLogisticMixture",
    "DiscretizedLogisticMixtureLikelihood",
    "Gaussian",
    "GaussianLikelihood",
    "Laplace",
    "LaplaceLikelihood",
    "Learned",
    "Likelihood",
    "LikelihoodDistribution",
    "LocScaleDistribution",
    "LocScaleLikelihood",
    "NegativeBinomial",
    "NegativeBinomialLikelihood",
    "Poisson",
    "PoissonLikelihood",
    "ScaleShape",
    "StudentT",
    "StudentTLikelihood",
    "follow_data",
    "sum_event",
    "to_levels",
    "uniform",
]
