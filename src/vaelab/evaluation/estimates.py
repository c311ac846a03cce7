"""Estimates of ELBO, rate, distortion and log p(x), example by example, from K draws of z each.

K is cut into chunks so that memory stays bounded whatever K is: sums and log-sum-exps are carried from chunk to
chunk. Sums are in float64, networks and densities in float32.

Few examples with many draws each make a chunk, so that its numbers stay near the processor; the encoder runs once for
all chunks. With 50 examples and 8 MiB, 2 × 200 units and MNIST, one thread scores 1.4 times as many draws a second as
with 250 examples and 16 MiB.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vaelab.data import Split, prefetch
from vaelab.evaluation.pareto import LargestWeights
from vaelab.model import Model, Terms, rates_by_group
from vaelab.noise import generator
from vaelab.parallel import still_wanted

EXAMPLES = 50
GROUP = "rate of "
OUTPUT_NUMBERS = 1 << 21  # decoder outputs held at once: 8 MiB in float32
KEPT_BYTES = (32 << 20) - 8192  # just under the largest block for which glibc learns (mallopt(3), M_MMAP_THRESHOLD)


@dataclass
class PerExample:
    """One number an example, [N] float64, in nats; and the Monte Carlo variance of that number, [N].

    Where the posterior has no density only `distortion` is there. `rates` are those of several groups of latents;
    `trusted`, [N] bool, tells for which examples the importance weights can be trusted.
    """

    distortion: Tensor
    distortion_variance: Tensor
    rate: Tensor | None = None
    rate_variance: Tensor | None = None
    elbo: Tensor | None = None
    elbo_variance: Tensor | None = None
    log_px: Tensor | None = None
    log_px_variance: Tensor | None = None
    effective_sample_size: Tensor | None = None
    trusted: Tensor | None = None
    rates: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def columns(self) -> dict[str, Tensor]:
        """What is known, by name; the rate of a group of latents by `GROUP` and its name."""
        known = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return known | {GROUP + name: rate for name, rate in self.rates.items()}


def joined(batches: Iterable[dict[str, Tensor]], most: int) -> dict[str, Tensor]:
    """Tensors by name, [B, ...], of batches that all have the same names: put one after the other, at most `most` rows.

    They are copied into tensors that are there from the first batch on. A list of small tensors costs memory: each is
    cut from a large block that was freed, and what is left of the block is too short for the next batch. So 10,000
    examples kept 1 GB from use.
    """
    columns: dict[str, Tensor] = {}
    rows = 0
    for batch in batches:
        columns = columns or {name: one.new_empty((most, *one.shape[1:])) for name, one in batch.items()}
        ends = rows + len(next(iter(batch.values())))
        for name, column in columns.items():
            column[rows:ends] = batch[name]
        rows = ends
    return {name: column[:rows] for name, column in columns.items()}


class Moments:
    """Mean over the draws, and the variance of that mean, [B]; fed chunk by chunk with [k, B]."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Chan, Golub & LeVeque 1983: combine counts, means and sums of squared deviations."""
        values = values.double()
        count, mean = values.shape[0], values.mean(0)
        squares = (values - mean).square().sum(0)
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def variance_of_mean(self) -> Tensor:
        """Zero for a single draw, which says nothing of its own spread."""
        return self.squares / max(1, self.count - 1) / self.count


class ImportanceWeights:
    """log (1/K) Σ_k w_k and Σ_k w̃_k², with w̃ the normalized weights; fed chunk by chunk with log w [k, B]."""

    def __init__(self) -> None:
        self.count = 0
        self.log_sum: Tensor = torch.tensor(-math.inf)
        self.log_sum_of_squares: Tensor = torch.tensor(-math.inf)

    def add(self, log_weights: Tensor) -> None:
        log_weights = log_weights.double()
        self.log_sum = torch.logaddexp(self.log_sum, log_weights.logsumexp(0))
        self.log_sum_of_squares = torch.logaddexp(self.log_sum_of_squares, (2 * log_weights).logsumexp(0))
        self.count += log_weights.shape[0]

    @property
    def log_mean(self) -> Tensor:
        """The importance-weighted bound L_K (Burda et al. 2016, eq. 8), [B]."""
        return self.log_sum - math.log(self.count)

    @property
    def effective_sample_size(self) -> Tensor:
        """1 / Σ w̃², between 1 and K, [B]."""
        return (2 * self.log_sum - self.log_sum_of_squares).exp()

    @property
    def variance_of_log_mean(self) -> Tensor:
        """By the delta method: Var(w̄) / w̄² = (K Σ w̃² − 1) / (K − 1), [B]; NaN for a single draw, which tells nothing.

        It is at most 1, and too small where few draws carry the weight: the draws that are missing have no part in it.
        """
        if self.count == 1:
            return torch.full_like(self.log_sum, math.nan)
        spread = self.count / self.effective_sample_size - 1
        return spread.clamp(min=0) / (self.count - 1)


def chunks_of_terms(
    model: Model, x: Tensor, num_samples: int, noise: torch.Generator, y: Tensor | None = None
) -> Iterator[Terms]:
    """Terms for x [B, *event] and labels y [B] with `num_samples` draws an example in all, some of them at a time."""
    outputs = math.prod(model.likelihood.output_shape)
    at_once = max(1, OUTPUT_NUMBERS // (len(x) * outputs))
    posterior = model.encode(x, y=y)
    for start in range(0, num_samples, at_once):
        still_wanted()
        yield model.terms(x, min(at_once, num_samples - start), noise, y=y, posterior=posterior)


Batch = tuple[Tensor, Tensor | None, torch.Generator]
"""Examples x [B, *event], their labels y [B] if there are any, and a source of noise."""


def batches(split: Split, seed: int, size: int = EXAMPLES) -> Iterator[Batch]:
    """Batches of a split, x and labels y, each with a generator of its own; what is unusable is left out."""
    keep_freed_memory()
    rows = torch.arange(len(split)).split(size)
    for index, (at, raw) in enumerate(zip(rows, prefetch(split, rows), strict=True)):
        noise = generator(seed, "evaluate", index, device=split.device)
        x, y = split.examples(raw, at, noise)
        if len(x):
            yield x, y, noise


def keep_freed_memory() -> None:
    """Have the C library keep the memory that temporary results leave, for the next ones.

    glibc returns a block above a threshold to the system, which then clears every page of the next one: a tenth to a
    third of the time here. The threshold follows the largest block that was ever freed, up to 32 MiB. So one is freed
    that was never touched. Elsewhere this does nothing.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


@torch.no_grad()
def estimate(
    model: Model, x: Tensor, importance_samples: int, draws: int, noise: torch.Generator, y: Tensor | None = None
) -> PerExample:
    """All estimates for one batch x [B, *event], of p(x|y) where the model is conditional.

    log p(x) uses the first `importance_samples` draws; rate, distortion and ELBO use `draws` ≥ that many.

    Where the KL is known in closed form, r = log q(z|x) − log p(z) − KL has mean zero, so distortion − c r has the
    distortion's mean for any c: a control variate. The c that leaves the least spread is Cov(distortion, r) / Var(r),
    estimated over all draws of the batch. Where q is the exact posterior it is −1, and nothing of the spread is left.
    """
    weights, ratios, distortions, kl = ImportanceWeights(), Moments(), Moments(), None
    log_ws, left = Moments(), importance_samples
    largest = LargestWeights(importance_samples)
    rates: dict[str, Tensor] = {}
    for terms in chunks_of_terms(model, x, draws, noise, y):
        distortions.add(-terms.log_px_z)
        log_w = terms.log_weights
        if log_w is None or terms.log_qz_x is None:
            continue
        kl = terms.kl if terms.kl_is_exact else None
        for name, group in rates_by_group(terms).items():
            share = group.double() * (terms.z.shape[0] / draws)
            rates[name] = rates[name] + share if name in rates else share
        ratios.add(terms.log_qz_x - terms.log_pz)
        log_ws.add(log_w)
        if left > 0:
            weights.add(log_w[:left])
            largest.add(log_w[:left])
            left -= log_w.shape[0]
    if not log_ws.count:
        return PerExample(distortions.mean, distortions.variance_of_mean)
    if kl is None:
        rate, rate_variance = ratios.mean, ratios.variance_of_mean
        distortion, distortion_variance = distortions.mean, distortions.variance_of_mean
        elbo, elbo_variance = log_ws.mean, log_ws.variance_of_mean
    else:
        rate = kl.double().sum(-1)
        rate_variance = torch.zeros_like(rate)
        # log w = −(distortion + ratio), so its variance holds the covariance of the two.
        covariance = (log_ws.variance_of_mean - distortions.variance_of_mean - ratios.variance_of_mean) / 2
        c = covariance.sum() / ratios.variance_of_mean.sum().clamp(min=torch.finfo(torch.float64).tiny)
        distortion = distortions.mean - c * (ratios.mean - rate)
        distortion_variance = distortions.variance_of_mean + c * (c * ratios.variance_of_mean - 2 * covariance)
        elbo, elbo_variance = -(rate + distortion), distortion_variance.clamp(min=0)
    return PerExample(
        distortion=distortion,
        distortion_variance=distortion_variance.clamp(min=0),
        rate=rate,
        rate_variance=rate_variance,
        elbo=elbo,
        elbo_variance=elbo_variance,
        log_px=weights.log_mean,
        log_px_variance=weights.variance_of_log_mean,
        effective_sample_size=weights.effective_sample_size,
        trusted=largest.trusted(weights.effective_sample_size),
        rates=rates,
    )
