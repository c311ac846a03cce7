"""Held-out numbers with error bars."""

from vaelab.evaluation.likelihood import Evaluation, evaluate, importance_weighted_bounds

__all__ = ["Evaluation", "evaluate", "importance_weighted_bounds"]
