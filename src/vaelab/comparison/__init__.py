"""Runs beside each other: `compare`; and a grid of settings, trained and compared: `compare_grid`."""

from vaelab.comparison.compare import Comparison, compare
from vaelab.comparison.grid import compare_grid, parse_vary
from vaelab.comparison.statistics import CrossedMean, crossed_mean, holm

__all__ = ["Comparison", "CrossedMean", "compare", "compare_grid", "crossed_mean", "holm", "parse_vary"]
