"""Held-out numbers with error bars."""

from vaelab.evaluation.latents import active, latents
from vaelab.evaluation.likelihood import Evaluation, evaluate, importance_weighted_bounds

__all__ = ["Evaluation", "active", "evaluate", "importance_weighted_bounds", "latents"]
