"""Means of numbers that were measured for every seed and every example, with errors that count both."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEAST_TAIL = 1e-200  # probabilities below count as 0


class CrossedMean(NamedTuple):
    """A mean over seeds and examples.

    Attributes:
        mean, stderr: the mean, and its standard error; None for a single example.
        seed_share: how much of the error's square is due to seeds; the rest is due to examples.
        seeds, examples: how many.
    """

    mean: float
    stderr: float | None
    seed_share: float = 0.0
    seeds: int = 1
    examples: int = 1

    def quantile(self, tail: float) -> float:
        """How many standard errors off the true mean is passed with probability `tail`, on one side.

        Student's t of seeds − 1 and of examples − 1 degrees of freedom, weighted by their shares of the error (Cochran
        & Cox 1957, section 4.14). With few seeds this is rather too far than too near: of differences that are chance
        alone, at most about as many as promised pass it. Satterthwaite's degrees of freedom let up to 13 % pass 5 %.
        """
        of_seeds = -float(stdtrit(self.seeds - 1, tail)) if self.seed_share else 0.0
        return self.seed_share * of_seeds - (1 - self.seed_share) * float(stdtrit(self.examples - 1, tail))

    @property
    def p_value(self) -> float | None:
        """Two-sided probability of a mean at least as far from 0, if the true one is 0; None without an error."""
        from scipy.optimize import brentq  # half a second to import

        if self.stderr is None or not math.isfinite(self.stderr):
            return None
        if self.stderr == 0 or self.quantile(LEAST_TAIL) < (distance := abs(self.mean) / self.stderr):
            return 1.0 if self.mean == 0 else 0.0

        def missing(log_tail: float) -> float:
            return self.quantile(math.exp(log_tail)) - distance

        log_tail: Any = brentq(missing, math.log(LEAST_TAIL), math.log(0.5), xtol=1e-10)
        return 2 * math.exp(log_tail)

    @property
    def half_width(self) -> float | None:
        """Of the interval around the mean that holds the true one in 95 of 100 cases."""
        return None if self.stderr is None else self.stderr * self.quantile(0.025)


def crossed_mean(values: NDArray[np.float64]) -> CrossedMean:
    """The mean of v [S, N], of S seeds and the same N examples each, and its standard error.

    v[s, i] = μ + a_s + b_i + e_si with independent a, b, e of mean 0: what a seed does to all examples, what an example
    does in all seeds, and the rest. The mean has variance σ_a²/S + σ_b²/N + σ_e²/(S N). The variance over seed means
    has expectation σ_a² + σ_e²/N, that over example means σ_b² + σ_e²/S. Divided by S and by N, the two together
    count the rest twice, so once σ_e²/(S N) is subtracted; σ_e² is the mean square of what is left when both kinds of
    means are taken away. Neither of the two parts alone exceeds the variance in expectation, so the result is never
    less than the larger. With one seed the error is over examples alone, and says nothing of other seeds.

    For the difference of two models, v is the difference example by example: what makes an example hard for both
    cancels, and the error is that of the difference.
    """
    seeds, examples = values.shape
    mean = float(values.mean())
    if examples < 2:
        return CrossedMean(mean, None, 0.0, seeds, examples)
    by_seed, by_example = values.mean(1), values.mean(0)
    of_examples = float(by_example.var(ddof=1)) / examples
    if seeds == 1:
        return CrossedMean(mean, math.sqrt(of_examples), 0.0, seeds, examples)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    rest = values - by_seed[:, None] - by_example + mean
    of_rest = float(np.square(rest).sum()) / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    variance = max(of_seeds + of_examples - of_rest, of_seeds, of_examples)
    share = of_seeds / total if (total := of_seeds + of_examples) else 0.0
    return CrossedMean(mean, math.sqrt(variance), share, seeds, examples)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that a false alarm among them is no more probable than in one.

    Holm 1979: the smallest of m is multiplied by m, the next by m − 1, and so on, never below the one before.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = adjusted[index] = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
    return adjusted
