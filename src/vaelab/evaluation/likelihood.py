"""`evaluate`: the numbers of a run on one split, each with its error bar."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vaelab.data import Split
from vaelab.errors import InputError
from vaelab.evaluation.estimates import PerExample, batches, chunks_of_terms, estimate
from vaelab.evaluation.latents import active
from vaelab.model import Model
from vaelab.runs import Run, load

DRAWS = 64


@dataclass(frozen=True)
class Evaluation:
    """Averages over `n` examples, in nats an example; None where a number has no meaning for the model.

    Attributes:
        elbo: −(rate + distortion), a lower bound of log p(x).
        rate: KL(q(z|x) ‖ p(z)).
        distortion: −E_q[log p(x|z)].
        log_px: importance-sampled log p(x): in expectation a lower bound, tighter than the ELBO.
        *_stderr: standard error over examples and Monte Carlo draws together.
        *_monte_carlo: the part of it that is due to the draws, and falls with their number; None if it is unknown.
            That of log_px is a lower limit: on MNIST with K = 500 and an effective sample size of 17, log_px varies
            over seeds by twice as much.
        importance_samples: K, draws an example for log_px.
        effective_sample_size: mean over examples of 1 / Σ w̃², between 1 and K.
        bits_per_dim: −log_px / (D ln 2); None where data are no discrete levels.
        active_units: latents with Var_x(E_q[z]) > 0.01 (Burda et al. 2016, section 5.2).
        scale_at_floor: share of learned scales that their floor holds up; None where none is learned.
        rates: the rate of each group of latents (layers of a hierarchy, real and categorical latents); None where there
            is one group.
    """

    split: str
    n: int
    elbo: float | None
    elbo_stderr: float | None
    elbo_monte_carlo: float | None
    rate: float | None
    rate_stderr: float | None
    rate_monte_carlo: float | None
    distortion: float
    distortion_stderr: float | None
    distortion_monte_carlo: float | None
    log_px: float | None
    log_px_stderr: float | None
    log_px_monte_carlo: float | None
    importance_samples: int
    effective_sample_size: float | None
    bits_per_dim: float | None
    active_units: int | None
    latent_dim: int
    scale_at_floor: float | None
    rates: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of `vaelab evaluate --json`; a number that is not finite is None, for JSON has no other word."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    def __str__(self) -> str:
        lines = [f"{self.split}: {self.n} examples, {self.importance_samples} importance samples; nats per example"]
        for name in ("elbo", "rate", "distortion", "log_px"):
            value, error = getattr(self, name), getattr(self, f"{name}_stderr")
            error_bar = "" if error is None else f" ± {error:.3f}"
            lines.append(f"  {name:<22}" + ("-" if value is None else f"{value:10.3f}{error_bar}"))
        for name, rate in (self.rates or {}).items():
            lines.append(f"  {'rate of ' + name:<22}{rate:10.3f}")
        for name in ("effective_sample_size", "bits_per_dim", "active_units", "latent_dim"):
            value = getattr(self, name)
            if value is not None:
                lines.append(f"  {name:<22}{value:10.4g}")
        if self.scale_at_floor:
            lines.append(
                f"  {self.scale_at_floor:.1%} of the learned scales rest on their floor (likelihood.scale_floor)"
            )
        return "\n".join(lines)


def evaluate(
    run: "str | os.PathLike[str] | Run",
    importance_samples: int = 100,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Held-out numbers of a run's best weights, always in float32.

    Args:
        importance_samples: K, draws of z an example for log_px. Memory does not grow with K.
        split: "test", "validation" or "train".
        limit: only the first `limit` examples.
        seed: of the draws of z.

    Raises:
        InputError: no such run or split, or the run's data have changed.
    """
    if importance_samples < 1:
        raise InputError(f"importance_samples={importance_samples}: must be at least 1")
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: must be at least 1")
    run = Run.open(run)
    model = load(run)
    examples = examples_of(run, split)
    if limit is not None:
        examples = examples.head(limit)
    return evaluate_model(model, examples, importance_samples, split=split, seed=seed)


def examples_of(run: Run, split: str) -> Split:
    """One split of the data that a run was trained on, any dynamic binarization drawn once from a fixed seed.

    Raises:
        InputError: the split does not exist, or the data are not those of the run.
    """
    return run.data()[split].fixed(run.config.data.seed)


@torch.no_grad()
def evaluate_model(model: Model, examples: Split, importance_samples: int, *, split: str, seed: int = 0) -> Evaluation:
    """The same for a model in memory."""
    model.eval()
    draws = max(importance_samples, DRAWS)
    parts: list[PerExample] = []
    means: list[Tensor] = []
    floors: list[Tensor] = []
    for x, y, noise in batches(examples, seed):
        parts.append(estimate(model, x, importance_samples, draws, noise, y))
        posterior = model.encode(x, y=y)
        means.append(posterior.mean)
        floor = model.likelihood.fraction_at_floor(model.decode(posterior.mean, y=y))
        floors += [] if floor is None else [floor]
    if not parts:
        raise InputError(f"{split}: every example holds NaN or infinite values; there is nothing to evaluate")
    latents = torch.cat(means)
    numbers: dict[str, Any] = {}
    for name in ("elbo", "rate", "distortion", "log_px"):
        numbers |= _average(name, parts)
    sizes = [part.effective_sample_size for part in parts if part.effective_sample_size is not None]
    log_px: float | None = numbers["log_px"]
    return Evaluation(
        split=split,
        n=len(latents),
        **numbers,
        importance_samples=importance_samples,
        effective_sample_size=float(torch.cat(sizes).mean()) if sizes else None,
        bits_per_dim=_bits_per_dim(model, log_px),
        active_units=int(active(latents, model.latents).sum()) if sizes else None,
        latent_dim=model.latents.count,
        scale_at_floor=float(torch.stack(floors).mean()) if floors else None,
        rates={name: float(torch.cat([part.rates[name] for part in parts]).mean()) for name in parts[0].rates} or None,
    )


@torch.no_grad()
def importance_weighted_bounds(model: Model, examples: Split, num_samples: Sequence[int], seed: int = 0) -> Tensor:
    """L_k for several k, example by example, from the same draws: differences have little noise.

    The largest k, K, is drawn once. For a smaller k the K draws fall into K // k groups, and L_k is the groups' mean.

    Returns:
        [len(num_samples), N] float64, in nats.
    """
    model.eval()
    most = max(num_samples)
    columns: list[Tensor] = []
    for x, y, noise in batches(examples, seed):
        found = [terms.log_weights for terms in chunks_of_terms(model, x, most, noise, y)]
        if any(log_weights is None for log_weights in found):
            raise InputError("the posterior has no density, so there are no importance weights")
        log_weights = torch.cat([weights for weights in found if weights is not None]).double()
        columns.append(torch.stack([_bound(log_weights, k) for k in num_samples]))
    return torch.cat(columns, dim=1)


def _bound(log_weights: Tensor, k: int) -> Tensor:
    groups = log_weights[: log_weights.shape[0] // k * k].unflatten(0, (-1, k))
    return (groups.logsumexp(1) - math.log(k)).mean(0)


def _average(name: str, parts: list[PerExample]) -> dict[str, float | None]:
    """Mean, standard error over examples (which contains the draws' part), and the draws' part alone."""
    values = [getattr(part, name) for part in parts]
    if values[0] is None:
        return dict.fromkeys((name, f"{name}_stderr", f"{name}_monte_carlo"))
    all_values: Tensor = torch.cat(values)
    variances: Tensor = torch.cat([getattr(part, f"{name}_variance") for part in parts])
    n = len(all_values)
    return {
        name: float(all_values.mean()),
        f"{name}_stderr": float(all_values.std() / math.sqrt(n)) if n > 1 else None,
        f"{name}_monte_carlo": None if variances.isnan().any() else float(variances.sum().sqrt() / n),
    }


def _bits_per_dim(model: Model, log_px: float | None) -> float | None:
    if log_px is None or not model.likelihood.discrete:
        return None
    return -log_px / (math.log(2) * math.prod(model.event_shape))
