"""Held-out numbers with error bars."""

from vaelab.evaluation.annealed import (
    AnnealedEstimate,
    Annealing,
    Bracket,
    annealed_importance_sampling,
    bracket,
)
from vaelab.evaluation.curve import RatePoint, rate_distortion
from vaelab.evaluation.disentanglement import (
    DCI,
    Disentanglement,
    DisentanglementScore,
    beta_vae_score,
    dci,
    disentanglement_of,
    disentanglement_scores,
    factor_vae_score,
    irs,
    mig,
    modularity,
    mutual_information,
    sap,
)
from vaelab.evaluation.downstream import Downstream, Labeled, ProbeAccuracy, downstream, downstream_of
from vaelab.evaluation.gaps import Fit, Gaps, gaps
from vaelab.evaluation.latents import active, latents
from vaelab.evaluation.likelihood import evaluate, importance_weighted_bounds
from vaelab.evaluation.pareto import pareto_shape
from vaelab.evaluation.quadrature import Exact, quadrature
from vaelab.evaluation.quality import (
    FeatureSpace,
    Neighbors,
    QualityScore,
    SampleQuality,
    TwoSampleTest,
    expected_coverage,
    frechet_bias,
    frechet_distance,
    gaussian_mmd,
    median_width,
    neighbor_scores,
    polynomial_mmd,
    sample_quality,
    two_sample_test,
)
from vaelab.evaluation.result import Evaluation
from vaelab.evaluation.surgery import RateSplit, rate_split

__all__ = [
    "DCI",
    "AnnealedEstimate",
    "Annealing",
    "Bracket",
    "Disentanglement",
    "DisentanglementScore",
    "Downstream",
    "Evaluation",
    "Exact",
    "FeatureSpace",
    "Fit",
    "Gaps",
    "Labeled",
    "Neighbors",
    "ProbeAccuracy",
    "QualityScore",
    "RatePoint",
    "RateSplit",
    "SampleQuality",
    "TwoSampleTest",
    "active",
    "annealed_importance_sampling",
    "beta_vae_score",
    "bracket",
    "dci",
    "disentanglement_of",
    "disentanglement_scores",
    "downstream",
    "downstream_of",
    "evaluate",
    "expected_coverage",
    "factor_vae_score",
    "frechet_bias",
    "frechet_distance",
    "gaps",
    "gaussian_mmd",
    "importance_weighted_bounds",
    "irs",
    "latents",
    "median_width",
    "mig",
    "modularity",
    "mutual_information",
    "neighbor_scores",
    "pareto_shape",
    "polynomial_mmd",
    "quadrature",
    "rate_distortion",
    "rate_split",
    "sample_quality",
    "sap",
    "two_sample_test",
]
