"""`evaluate`: the numbers of a run on one split, each with its error bar."""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from vaelab.data import Split
from vaelab.errors import InputError
from vaelab.evaluation.annealed import (
    AnnealedEstimate,
    Annealing,
    annealed_importance_sampling,
    bracket,
    check_annealing,
    examples_at_once,
)
from vaelab.evaluation.estimates import GROUP, Batch, batches, chunks_of_terms, estimate, joined
from vaelab.evaluation.gaps import Fit, check_gaps
from vaelab.evaluation.gaps import gaps as measure_gaps
from vaelab.evaluation.latents import active
from vaelab.evaluation.pareto import FEWEST, highest_k
from vaelab.evaluation.quadrature import check_quadrature, in_float64, quadrature
from vaelab.evaluation.result import AVERAGES, GAPS, Evaluation, Method
from vaelab.evaluation.surgery import check_split, rate_split
from vaelab.model import Model
from vaelab.noise import generator
from vaelab.parallel import in_order
from vaelab.runs import Run, load

DRAWS = 64
UNTRUSTED = 0.2  # share of examples with a tail too heavy, above which log_px comes with a warning
FLOAT32 = 2**-23  # relative rounding of the densities
APART = 1.0  # nats between the bounds by annealing, above which they come with a warning
NEAR = 0.5  # nats below ln N from which on the mutual information says more of N than of the model
GRID_ERROR = 1e-4  # nats that a finer grid may still change log p(x); far below what the examples leave open
MODEL_SAMPLES = 100  # at most, for the bounds from both sides by annealing


def evaluate(
    run: "str | os.PathLike[str] | Run",
    importance_samples: int = 100,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    *,
    method: Method = "importance",
    annealing: Annealing | None = None,
    split_rate: bool = False,
    gaps: bool = False,
) -> Evaluation:
    """Held-out numbers of a run's best weights, always in float32 or better.

    Args:
        importance_samples: K, draws of z an example for log_px. Memory does not grow with K. Annealing and quadrature
            have no use for them.
        split: "test", "validation" or "train".
        limit: only the first `limit` examples.
        seed: of the draws of z.
        method: how log p(x) is estimated: `importance` sampling from q(z|x), for every model with a density; `annealed`
            importance sampling, for real latents; or `quadrature`, for at most two real latents, or few categories.
            The latter two do not depend on q(z|x), and refuse autoencoders, whose prior means nothing.
        annealing: chains, temperatures and schedule, if the method is `annealed`. It also bounds log p(x) from both
            sides on samples of the model: as many as there are examples, but 100 at most.
        split_rate: take the rate apart: mutual information, total correlation, dimension-wise KL.
        gaps: fit q(z|x) to each example by itself, for the approximation and the amortization gap. Their log_px
            is by quadrature for one or two latents, else by max(K, 1000) importance samples from the fitted q.

    Raises:
        InputError: no such run or split, the run's data have changed, or the model is not one for what is asked.
    """
    for name, value in (("importance_samples", importance_samples), ("limit", limit)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
    if method not in get_args(Method):
        raise InputError(f"method={method}: must be importance, annealed or quadrature")
    if annealing is not None and method != "annealed":
        raise InputError(f"chains and temperatures are those of annealing, and method={method}; use --method annealed")
    run = Run.open(run)
    model = load(run)
    if method != "importance" and not model.has_density:
        raise InputError(f"{run}: an autoencoder, whose prior has no part in training, so its log p(x) means nothing; "
                         "leave --method out")  # fmt: skip
    checks = {check_annealing: method == "annealed", check_quadrature: method == "quadrature"}
    for check, wanted in (checks | {check_split: split_rate, check_gaps: gaps}).items():
        if wanted:
            check(model)
    examples = examples_of(run, split)
    if limit is not None:
        examples = examples.head(limit)
    found = evaluate_model(model, examples, importance_samples if method == "importance" else 1, split=split, seed=seed)
    if method == "annealed":
        found = _annealed(found, model, examples, annealing or Annealing(), seed)
    elif method == "quadrature":
        found = _integrated(found, model, examples, seed)
    parts = asdict(rate_split(model, examples, seed=seed)) if split_rate else None
    return replace(
        found,
        warning=" ".join(one for one in (found.warning, _at_its_bound(parts)) if one) or None,
        rate_split=parts,
        gaps=_gaps(model, examples, importance_samples, seed) if gaps else None,
    )


def examples_of(run: Run, split: str) -> Split:
    """One split of the data that a run was trained on, any dynamic binarization drawn once from a fixed seed.

    Raises:
        InputError: the split does not exist, or the data are not those of the run.
    """
    return run.data()[split].fixed(run.config.data.seed)


@torch.no_grad()
def evaluate_model(model: Model, examples: Split, importance_samples: int, *, split: str, seed: int = 0) -> Evaluation:
    """The same for a model in memory."""
    return evaluate_each(model, examples, importance_samples, split=split, seed=seed)[0]


@torch.no_grad()
def evaluate_each(
    model: Model, examples: Split, importance_samples: int, *, split: str, seed: int = 0
) -> tuple[Evaluation, dict[str, Tensor]]:
    """The averages, and what they are averages of: the columns of `PerExample`, [N], for all examples."""
    model.eval()
    measured = partial(_measured, model, importance_samples)
    each = in_order if examples.device.type == "cpu" else map
    columns = joined(each(measured, batches(examples, seed)), len(examples))
    if not columns:
        raise InputError(f"{split}: every example holds NaN or infinite values; there is nothing to evaluate")
    latents = columns["latents"]
    numbers: dict[str, Any] = {}
    for name in AVERAGES:
        no_number: dict[str, Any] = dict.fromkeys((name, f"{name}_stderr", f"{name}_monte_carlo"))
        known = name in columns
        numbers |= _averages(name, columns[name], columns[f"{name}_variance"]) if known else no_number
    sizes = columns.get("effective_sample_size")
    draws_differ = "stochastic" in model.provides
    untrusted = 1 - float(columns["trusted"].double().mean()) if draws_differ and "trusted" in columns else None
    rates = {name.removeprefix(GROUP): float(of.mean()) for name, of in columns.items() if name.startswith(GROUP)}
    averages = Evaluation(
        split=split,
        n=len(latents),
        **numbers,
        importance_samples=importance_samples,
        effective_sample_size=None if sizes is None or not draws_differ else float(sizes.mean()),
        bits_per_dim=_bits_per_dim(model, numbers["log_px"]),
        active_units=None if sizes is None or len(latents) == 1 else int(active(latents, model.latents).sum()),
        latent_dim=model.latents.count,
        scale_at_floor=float(columns["at_floor"].mean()) if "at_floor" in columns else None,
        rates=rates or None,
        log_px_method="importance" if draws_differ or sizes is None else "elbo",
        untrusted=untrusted,
        warning=_warning(model, untrusted, importance_samples),
    )
    return averages, columns


@torch.no_grad()  # which holds for one thread
def _measured(model: Model, importance_samples: int, batch: Batch) -> dict[str, Tensor]:
    """The numbers of every example; its posterior mean, `latents` [B, D]; the share of its scales at their floor."""
    x, y, noise = batch
    columns = estimate(model, x, importance_samples, max(importance_samples, DRAWS), noise, y).columns()
    mean = model.encode(x, y=y).mean
    floor = model.likelihood.fraction_at_floor(model.decode(mean, y=y))
    return columns | {"latents": mean} | ({} if floor is None else {"at_floor": floor.double().expand(len(x))})


@torch.no_grad()
def importance_weighted_bounds(model: Model, examples: Split, num_samples: Sequence[int], seed: int = 0) -> Tensor:
    """L_k for several k, example by example, from the same draws: differences have little noise.

    The largest k, K, is drawn once. For a smaller k the K draws fall into K // k groups, and L_k is the groups' mean.

    Burda et al. 2016 (arXiv:1509.00519), eq. 8.

    Args:
        num_samples: each k.
        seed: of the draws of z.

    Returns:
        [len(num_samples), N] float64, in nats.

    Raises:
        InputError: the posterior has no density, a k is below 1, or there is no k, or no usable example.
    """
    if not num_samples or min(num_samples) < 1:
        raise InputError(f"num_samples={list(num_samples)}: give numbers of draws, each at least 1")
    model.eval()
    most = max(num_samples)
    columns: list[Tensor] = []
    for x, y, noise in batches(examples, seed):
        found = [terms.log_weights for terms in chunks_of_terms(model, x, most, noise, y)]
        if any(log_weights is None for log_weights in found):
            raise InputError("the posterior has no density, so there are no importance weights")
        log_weights = torch.cat([weights for weights in found if weights is not None]).double()
        columns.append(torch.stack([_bound(log_weights, k) for k in num_samples]))
    if not columns:
        raise InputError("every example holds NaN or infinite values; there is nothing to evaluate")
    return torch.cat(columns, dim=1)


def _bound(log_weights: Tensor, k: int) -> Tensor:
    groups = log_weights[: log_weights.shape[0] // k * k].unflatten(0, (-1, k))
    return (groups.logsumexp(1) - math.log(k)).mean(0)


def _averages(name: str, values: Tensor, variances: Tensor) -> dict[str, Any]:
    """Mean of values [N], standard error over examples (which contains the draws' part), and the draws' part alone.

    The latter comes from the Monte Carlo variance of each value, [N].
    """
    left = variances.sum() / len(values) ** 2
    if name == "log_px":
        left = left + (variances.mean() / 2).square() + (FLOAT32 * values.abs().mean()).square()
    return _mean_and_error(name, values) | {f"{name}_monte_carlo": None if left.isnan() else float(left.sqrt())}


def _mean_and_error(name: str, values: Tensor) -> dict[str, float | None]:
    """The mean of one number an example, [N], and its standard error over examples."""
    n = len(values)
    return {name: float(values.mean()), f"{name}_stderr": float(values.std() / math.sqrt(n)) if n > 1 else None}


def more_draws(importance_samples: int) -> int:
    """The K to try where so many draws are too few: ten times as many, and enough for a tail to be fitted."""
    return max(100, 10 * importance_samples)


def are_too_few(importance_samples: int) -> str:
    """The beginning of a sentence."""
    return f"{importance_samples} importance {'sample is' if importance_samples == 1 else 'samples are'} too few"


def _warning(model: Model, untrusted: float | None, importance_samples: int) -> str | None:
    """One sentence where log_px is not to be trusted."""
    if untrusted is None or untrusted <= UNTRUSTED:
        return None
    measured = f" (Pareto k above {highest_k(importance_samples):.2f})" if importance_samples >= FEWEST else ""
    return (
        f"warning: {are_too_few(importance_samples)} for {untrusted:.0%} of the examples{measured}, "
        f"so log_px is rather too low; use --importance-samples {more_draws(importance_samples)}{_other_method(model)}"
    )


def _other_method(model: Model) -> str:
    """The best way to log p(x) of this model that needs no importance weights, as words of the warning."""
    for method, check in (("quadrature", check_quadrature), ("annealed", check_annealing)):
        with suppress(InputError):
            check(model)
            return f" or --method {method}"
    return ""


@torch.no_grad()
def _annealed(found: Evaluation, model: Model, examples: Split, how: Annealing, seed: int) -> Evaluation:
    """The same with log p(x) by annealing, and bounds from both sides on samples of the model."""
    parts: list[AnnealedEstimate] = []
    labels: list[Tensor] = []
    for x, y, noise in batches(examples, seed, examples_at_once(model, how)):
        parts.append(annealed_importance_sampling(model, x, how, noise, y))
        labels += [] if y is None else [y]
    log_px = torch.cat([one.log_px for one in parts])
    number = min(len(log_px), MODEL_SAMPLES)
    y = None if model.labels is None else torch.cat(labels)[:number]
    bounds = bracket(model, number, how, generator(seed, "bracket", device=examples.device), y)
    sides = {"lower": bounds.lower, "upper": bounds.upper, "width": bounds.upper - bounds.lower}
    told: dict[str, Any] = {"n": number, "chains": how.chains, "temperatures": how.temperatures}
    for name, values in sides.items():
        told |= _mean_and_error(name, values)
    return replace(
        _without_weights(found, "annealed", _annealing_warning(how, told)),
        **_averages("log_px", log_px, torch.cat([one.variance for one in parts])),
        bits_per_dim=_bits_per_dim(model, float(log_px.mean())),
        effective_sample_size=float(torch.cat([one.effective_sample_size for one in parts]).mean()),
        annealed=told | {"acceptance": float(torch.cat([one.acceptance for one in parts]).mean())},
    )


def _integrated(found: Evaluation, model: Model, examples: Split, seed: int) -> Evaluation:
    """The same with log p(x) by quadrature."""
    exact = in_float64(model)
    parts = [quadrature(exact, x, y, tolerance=GRID_ERROR) for x, y, _ in batches(examples, seed)]
    log_px: Any = _mean_and_error("log_px", torch.cat([one.log_px for one in parts]))
    return replace(
        _without_weights(found, "quadrature"),
        **log_px,
        log_px_monte_carlo=float(torch.cat([one.error for one in parts]).mean()),
        bits_per_dim=_bits_per_dim(model, log_px["log_px"]),
        effective_sample_size=None,
    )


def _annealing_warning(how: Annealing, told: dict[str, Any]) -> str | None:
    """One sentence where the bounds on samples of the model are so far apart that log_px is not to be trusted."""
    width, error = told["width"], told["width_stderr"] or 0.0
    if width <= max(APART, 3 * error):
        return None
    return (
        f"warning: the bounds from both sides are {width:.3g} nats apart on samples of the model, so log_px may be as "
        f"much too low; use --temperatures {10 * how.temperatures}"
    )


def _at_its_bound(parts: dict[str, Any] | None) -> str | None:
    """One sentence where the examples are too few for the mutual information."""
    if parts is None:
        return None
    most = math.log(parts["n"])
    if parts["mutual_information"] < most - NEAR:
        return None
    return (
        f"warning: the mutual information of {parts['n']:,} examples is at most ln {parts['n']:,} = {most:.2f} nats, "
        "and is near it: of more examples it is larger, and total correlation and dimension-wise KL are smaller"
    )


def _without_weights(found: Evaluation, method: Method, warning: str | None = None) -> Evaluation:
    """The same without what tells of importance weights."""
    return replace(found, importance_samples=0, log_px_method=method, untrusted=None, warning=warning)


def _gaps(model: Model, examples: Split, importance_samples: int, seed: int) -> dict[str, Any]:
    """Averages of what inference loses."""
    how = Fit(importance_samples=max(importance_samples, Fit.importance_samples))
    parts = [measure_gaps(model, x, how, noise, y) for x, y, noise in batches(examples, seed)]
    averages: dict[str, Any] = {}
    for name in GAPS:
        averages |= _mean_and_error(name, torch.cat([getattr(part, name) for part in parts]))
    return averages


def _bits_per_dim(model: Model, log_px: float | None) -> float | None:
    if log_px is None or not model.likelihood.discrete:
        return None
    return -log_px / (math.log(2) * math.prod(model.event_shape))
