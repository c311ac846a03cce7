"""Whether importance weights can be trusted: the tail of the largest of them, fitted by a Pareto distribution."""

import math

import torch
from torch import Tensor

FEWEST = 25
"""Draws below which there is no tail to fit."""
CERTAIN = 0.7
"""k̂ above which no practical number of draws suffices (Vehtari et al. 2024)."""


EQUAL = 0.95
"""Share of K that an effective sample size must exceed for the weights to count as equal."""


class LargestWeights:
    """The largest of K log-weights of each example; fed chunk by chunk with [k, B], and never holding many more.

    The tail is that of Pareto-smoothed importance sampling: the largest min(K/5, 3 √K) weights (Vehtari, Simpson,
    Gelman, Yao & Gabry 2024, arXiv:1507.02646), and the one below as the threshold.

    Args:
        num_samples: K.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.tail = math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))
        self._held: list[Tensor] = []

    def add(self, log_weights: Tensor) -> None:
        """Look at some more log-weights, [k, B]."""
        if self.num_samples < FEWEST:
            return
        self._held.append(log_weights)
        if sum(map(len, self._held)) > 4 * self.tail + 1024:
            self._held = [self._largest()]

    def _largest(self) -> Tensor:
        held = torch.cat(self._held)
        return held.topk(min(len(held), self.tail + 1), dim=0).values

    @property
    def pareto_k(self) -> Tensor:
        """k̂ of each example, [B] float64: the weights have 1/k finite moments. NaN for fewer than 25 draws."""
        if self.num_samples < FEWEST:
            return torch.tensor(math.nan, dtype=torch.float64)
        return pareto_shape(self._largest().double())

    def trusted(self, effective_sample_size: Tensor) -> Tensor:
        """Whether log of the mean weight is near its limit, [B] bool: k̂ ≤ min(0.7, 1 − 1 / log₁₀ K).

        A stable mean takes about 10^(1 / (1 − k)) draws (the same paper). Where the effective sample size, [B], is
        nearly K the weights are nearly equal, and the mean is exact whatever its tail. Fewer than 25 draws have no tail
        to fit: they are trusted if that size is nearer to K than to 1; so one draw never is.
        """
        if self.num_samples < FEWEST:
            return effective_sample_size > (self.num_samples + 1) / 2
        return (self.pareto_k <= highest_k(self.num_samples)) | (effective_sample_size > EQUAL * self.num_samples)


def highest_k(num_samples: int) -> float:
    """The k̂ up to which K draws suffice: min(0.7, 1 − 1 / log₁₀ K)."""
    return min(CERTAIN, 1 - 1 / math.log10(num_samples))


def pareto_shape(largest: Tensor) -> Tensor:
    """The shape k of a generalized Pareto distribution, fitted to the M weights above a threshold: [B].

    Zhang & Stephens 2009 (Technometrics 51, 316-325): the mean of θ, shape over scale, over its profile likelihood.
    Then drawn towards ½ as if by ten more weights (Vehtari et al. 2024). Weights that are all the same have
    no tail, and k = 0.

    Args:
        largest: logarithms of the M + 1 largest weights, in descending order, [M + 1, B] float64.
    """
    scaled = (largest - largest[0]).exp()
    excess = (scaled[:-1] - scaled[-1]).flip(0)  # ascending
    count = len(excess)
    flat = excess[-1] <= 1e-12
    excess = torch.where(flat, torch.ones_like(excess), excess)
    quartile = excess[int(count / 4 + 0.5) - 1].clamp(min=torch.finfo(torch.float64).tiny)
    candidates = 30 + int(math.sqrt(count))
    rank = torch.arange(1, candidates + 1, dtype=torch.float64, device=excess.device)[:, None]
    theta = 1 / excess[-1] + (1 - (candidates / (rank - 0.5)).sqrt()) / (3 * quartile)
    shape = torch.stack([torch.log1p(-one * excess).mean(0) for one in theta])
    profile = count * ((-theta / shape).log() - shape - 1)
    theta_hat = (profile.softmax(0) * theta).sum(0)
    k = torch.log1p(-theta_hat * excess).mean(0)
    return torch.where(flat, 0, (count * k + 5) / (count + 10))
