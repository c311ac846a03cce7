"""How much the rate counts in the training of a run: its β, in the open or hidden in a scale or a warm-up."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vaelab.diagnosis.case import Case
from vaelab.likelihoods import LocScaleDistribution

FAR_BETA, NAMED_BETA = 3.0, 10.0
SCALES = 14.0  # how far the logarithm of a scale that fits may be from that of the scale that is fixed


@dataclass
class RateWeight:
    """By how much the rate counts more, or less, than in the ELBO of a scale that fits.

    Attributes:
        hidden: what hides it, in sentences.
        changes: keys with which it would count once.
        scales: the scale that is fixed, and the one that fits; None where none is fixed.
    """

    times: float
    evidence: dict[str, Any]
    hidden: list[str] = field(default_factory=list[str])
    changes: list[str] = field(default_factory=list[str])
    scales: tuple[float, float] | None = None

    @property
    def is_far(self) -> bool:
        """Whether it is far from 1: hidden, by a factor of 3; named by objective.beta alone, of 10."""
        limit = FAR_BETA if self.hidden else NAMED_BETA
        return not 1 / limit < self.times < limit


def rate_weight(case: Case) -> RateWeight:
    """β of the objective, times what a warm-up that was cut off and a scale that nobody fitted do to it."""
    found = RateWeight(case.beta, {"objective_beta": case.beta})
    found.changes += ["objective.beta=1"] if case.beta != 1 else []
    if in_warmup(case):
        steps, warmup = case.lines[-1]["step"], getattr(case.run.config.objective, "warmup", 0)
        found.times *= steps / warmup
        found.evidence |= {"steps": steps, "warmup": warmup}
        found.hidden.append(f"The warm-up of {warmup:,} updates was cut off after {steps:,}.")
        found.changes.append(f"objective.warmup={steps // 3}")
    fixed = fixed_scale(case)
    if fixed is not None:
        x, likelihood = case.decoded
        assert isinstance(likelihood, LocScaleDistribution)
        fits = fitting_scale(likelihood, x)
        found.times *= pull(replace(likelihood, scale=torch.tensor(fits)), x) / pull(likelihood, x)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]
        found.evidence |= {"scale": fixed, "fitting_scale": fits}
        found.hidden.append(f"The scale is fixed at {fixed:g}, and {fits:.3g} would fit the errors.")
        found.changes.insert(0, "likelihood.scale=learned")
        found.scales = fixed, fits
    return found


def in_warmup(case: Case) -> bool:
    """Whether training ended before its warm-up of β did."""
    return bool(case.lines) and 0 < case.lines[-1]["step"] < getattr(case.run.config.objective, "warmup", 0)


def fixed_scale(case: Case) -> float | None:
    """The scale of the likelihood that its configuration fixes; None where there is no such thing."""
    return getattr(case.model.likelihood, "fixed_scale", None)


def pull(likelihood: LocScaleDistribution, x: Tensor) -> float:
    """How strongly p(x|z) draws its location to x: the root mean square of ∂ log p(x|z) / ∂ loc.

    Of a Gaussian the gradient is the error over σ², of a Laplace density ±1/b. The rate competes with it, so weighing
    the rate β times is as good as a pull that is β times weaker.
    """
    loc = likelihood.loc.detach().double().requires_grad_()
    told: Any = replace(likelihood, loc=loc, scale=likelihood.scale.double())  # pyright: ignore[reportArgumentType]
    (gradient,) = torch.autograd.grad(told.log_prob(x.double()).sum(), loc)
    return max(float(gradient.square().mean().sqrt()), 1e-30)


def fitting_scale(likelihood: LocScaleDistribution, x: Tensor) -> float:
    """The one scale under which x [B, *event] is most probable, all else as it is."""
    from scipy.optimize import minimize_scalar  # half a second to import

    start = math.log(float(likelihood.scale))

    def cost(shift: float) -> float:
        return -mean_log_prob(likelihood, x, math.exp(start + shift))

    found: Any = minimize_scalar(cost, bounds=(-SCALES, SCALES), method="bounded", options={"xatol": 1e-6})
    return math.exp(start + float(found.x))


def mean_log_prob(likelihood: LocScaleDistribution, x: Tensor, scale: float) -> float:
    """The mean log p(x|z) with another scale."""
    loc = likelihood.loc.double()
    told: Any = replace(likelihood, loc=loc, scale=loc.new_tensor(scale))  # pyright: ignore[reportArgumentType]
    return float(told.log_prob(x.double()).mean())
