"""How close samples come to real examples: distances between two samples, and `sample_quality` of a run."""

from vaelab.evaluation.quality.features import FeatureSpace
from vaelab.evaluation.quality.frechet import frechet_bias, frechet_distance
from vaelab.evaluation.quality.mmd import gaussian_mmd, median_width, polynomial_mmd
from vaelab.evaluation.quality.neighbors import Neighbors, expected_coverage, neighbor_scores
from vaelab.evaluation.quality.record import QualityScore, SampleQuality
from vaelab.evaluation.quality.summary import sample_quality
from vaelab.evaluation.quality.two_sample import TwoSampleTest, two_sample_test

__all__ = [
    "FeatureSpace",
    "Neighbors",
    "QualityScore",
    "SampleQuality",
    "TwoSampleTest",
    "expected_coverage",
    "frechet_bias",
    "frechet_distance",
    "gaussian_mmd",
    "median_width",
    "neighbor_scores",
    "polynomial_mmd",
    "sample_quality",
    "two_sample_test",
]
