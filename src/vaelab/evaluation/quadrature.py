"""log p(x) without random numbers: an integral over one or two real latents, or a sum over all categories.

It is computed in float64, so what is left is the error of the grid, which is stated.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab.errors import InputError
from vaelab.evaluation import estimates
from vaelab.model import Model
from vaelab.noise import generator

MOST_COMBINATIONS = 1 << 16
DROPPED = 45.0  # nats below the highest point of the grid: what lies there is a share of e^-45 of the integral
FIRST_POINTS = {1: 1024, 2: 64}  # an axis of the grid that is laid first; by dimensions
POINTS = {1: 256, 2: 32}  # an axis of the following ones
MOST_POINTS = {1: 1 << 16, 2: 512}
AT_ONCE = 8  # examples, each with a grid of its own: 512² points of two numbers for 8 are 32 MiB
ROUNDS = 60
ROUNDING = 1e-9  # of float64 sums, relative to log p(x)

LogJoint = Callable[[Tensor, Tensor], Tensor]
"""(z [M, b, D], positions in the batch [b]) -> log p(x, z) [M, b]."""


@dataclass(frozen=True)
class Exact:
    """log p(x) of each example in nats, [B] float64, and how far off it may be, [B] in nats."""

    log_px: Tensor
    error: Tensor


def in_float64(model: Model) -> Model:
    """The model in float64, in evaluation mode: itself, or a copy."""
    if all(parameter.dtype == torch.float64 for parameter in model.parameters()):
        return model.eval()
    return copy.deepcopy(model).double().eval()


def check_quadrature(model: Model) -> None:
    """Raise an InputError where z has more than two real numbers, or too many combinations of categories."""
    latents, categorical = model.latents, model.prior.latents
    if latents.holds == "real" and latents.real <= 2:
        return
    advice = "use --method importance" + (" or annealed" if latents.holds == "real" else "")
    if latents.holds == "categorical":
        if categorical.categorical * math.log2(categorical.categories) <= math.log2(MOST_COMBINATIONS):
            return
        count = f"{categorical.categories}^{categorical.categorical} combinations"
        raise InputError(f"quadrature sums over at most {MOST_COMBINATIONS:,} combinations of categories, and z has "
                         f"{count}; {advice}")  # fmt: skip
    also = " and categories beside them" if latents.holds == "joint" else ""
    raise InputError(f"quadrature integrates over at most two real latents, and z has {latents.real}{also}; {advice}")


@torch.no_grad()
def quadrature(model: Model, x: Tensor, y: Tensor | None = None, *, tolerance: float = 1e-6) -> Exact:
    """Log p(x) = log ∫ p(x|z) p(z) dz for z of one or two real numbers; log Σ_z p(x, z) for a few categories.

    For each example the grid shrinks to where log p(x, z) is less than 45 nats below its highest point, and grows
    where it touches its own edge. Then its points are doubled along each axis, until log p(x) changes by less than
    `tolerance`, or an axis has 65,536 (one latent) or 512 points (two). The midpoint rule converges faster than any
    power of the spacing, where decoder and prior are smooth and nothing is cut off at the edges. A mode that falls
    between the points of the first grid is missed: one a fiftieth as wide as the prior is found.

    Args:
        x: examples, [B, *event], and y: their labels, [B], if the model is conditional.
        tolerance: in nats.

    Returns:
        log p(x), and as its error the last change by doubling, which is more than what is left, with the rounding of
        float64. A sum is exact but for rounding.

    Raises:
        InputError: z has other latents.
    """
    check_quadrature(model)
    model, x = in_float64(model), x.double()
    if model.latents.holds == "categorical":
        log_px = _sum(model, x, y)
        return Exact(log_px, ROUNDING * (1 + log_px.abs()))
    outputs = math.prod(model.likelihood.output_shape)

    def integral(x: Tensor, y: Tensor | None) -> Exact:
        def log_joint(z: Tensor, at: Tensor) -> Tensor:
            here, labels = x[at], None if y is None else y[at]
            rows = max(1, estimates.OUTPUT_NUMBERS // (2 * len(at) * outputs))
            return torch.cat(
                [model.prior.log_prob(p) + model.decode(p, y=labels).log_prob(here) for p in z.split(rows)]
            )

        return _double(log_joint, *_shrink(log_joint, *_first_box(model, x, y)), tolerance)

    # A grid holds its points for every example at once.
    few = [integral(x[at], None if y is None else y[at]) for at in torch.arange(len(x)).split(AT_ONCE)]
    return Exact(torch.cat([one.log_px for one in few]), torch.cat([one.error for one in few]))


def _first_box(model: Model, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Corners [B, D]: twice as wide as draws from the prior reach, and wherever the encoder sees the example."""
    draws = model.prior.sample(1000, generator("quadrature", device=x.device))
    low, high = draws.amin(0), draws.amax(0)
    margin = (high - low) / 2
    posterior = model.encode(x, y=y)
    reach = 8 * (margin / 8 if posterior.stddev is None else posterior.stddev)
    return torch.minimum(low - margin, posterior.mean - reach), torch.maximum(high + margin, posterior.mean + reach)


def _grid(low: Tensor, high: Tensor, points: int) -> Tensor:
    """Midpoints of points ** D equal cells of each box [B, D]: [points ** D, B, D]."""
    share = (torch.arange(points, dtype=low.dtype, device=low.device) + 0.5) / points
    shares = torch.cartesian_prod(*[share] * low.shape[-1]).view(-1, 1, low.shape[-1])
    return low + shares * (high - low)


def _shrink(log_joint: LogJoint, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes [B, D] outside of which next to nothing of the integrals lies."""
    dims, points = low.shape[-1], FIRST_POINTS[low.shape[-1]]
    active = torch.arange(len(low), device=low.device)
    for _ in range(ROUNDS):
        old_low, old_high = low[active], high[active]
        spacing = (old_high - old_low) / points
        z = _grid(old_low, old_high, points)
        found = log_joint(z, active)
        kept = (found > found.amax(0) - DROPPED)[..., None]
        first = torch.where(kept, z, math.inf).amin(0)
        last = torch.where(kept, z, -math.inf).amax(0)
        at_low, at_high = first < old_low + spacing, last > old_high - spacing
        step = (old_high - old_low) / 2
        low[active] = torch.where(at_low, old_low - step, first - spacing)
        high[active] = torch.where(at_high, old_high + step, last + spacing)
        shrunk = (high[active] - low[active]).prod(-1) < 0.5 * (old_high - old_low).prod(-1)
        active = active[shrunk | (at_low | at_high).any(-1)]
        points = POINTS[dims]
        if not len(active):
            break
    return low, high


def _double(log_joint: LogJoint, low: Tensor, high: Tensor, tolerance: float) -> Exact:
    """Log p(x) on finer and finer grids over the boxes, until it no longer changes."""
    points, dims = POINTS[low.shape[-1]], low.shape[-1]
    active = torch.arange(len(low), device=low.device)
    log_px = torch.full((len(low),), math.nan, dtype=low.dtype, device=low.device)
    error = torch.full_like(log_px, math.inf)
    while len(active) and points <= MOST_POINTS[dims]:
        cell = ((high - low)[active] / points).log().sum(-1)
        finer = log_joint(_grid(low[active], high[active], points), active).logsumexp(0) + cell
        error[active] = (finer - log_px[active]).abs().nan_to_num(math.inf)
        log_px[active] = finer
        active = active[error[active] > tolerance]
        points *= 2
    return Exact(log_px, error + ROUNDING * (1 + log_px.abs()))


def _sum(model: Model, x: Tensor, y: Tensor | None) -> Tensor:
    """Log Σ_z p(x|z) p(z) over all combinations of categories, [B]."""
    latents = model.prior.latents
    choices = torch.arange(latents.categories, device=x.device)
    index = torch.cartesian_prod(*[choices] * latents.categorical).view(-1, latents.categorical)
    log_px = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    rows = max(1, estimates.OUTPUT_NUMBERS // (2 * len(x) * math.prod(model.likelihood.output_shape)))
    for part in index.split(rows):
        log_pz = model.prior.log_prob(F.one_hot(part, latents.categories).flatten(1).to(x.dtype))
        z = model.choices.to(x.dtype)[part].flatten(1)[:, None]
        likelihood = model.decode(z if y is None else z.expand(-1, len(x), -1), y=y)
        log_px = torch.logaddexp(log_px, (log_pz[:, None] + likelihood.log_prob(x)).logsumexp(0))
    return log_px
