"""Annealed importance sampling: log p(x) bounded from below on any data, and from above on the model's own samples.

A chain goes from the prior p(z) to the posterior p(z|x) by way of p(z) p(x|z)^β, β from 0 to 1 (Neal 2001, Statistics
and Computing 11). At each β, Hamiltonian Monte Carlo moves z by gradients, and leaves that distribution as it is. With
β_0 = 0 and β_T = 1, the weight of a chain is w = Π_t p(x|z_{t−1})^(β_t − β_{t−1}), and E[w] = p(x). Wu, Burda,
Salakhutdinov & Grosse 2017 (arXiv:1611.04273) evaluate decoders so. It does not look at the encoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vaelab.errors import InputError
from vaelab.evaluation import estimates
from vaelab.evaluation.estimates import ImportanceWeights
from vaelab.model import Model

Schedule = Literal["sigmoid", "linear"]
ACCEPTANCE = 0.65
"""Share of proposals to accept: about the best for Hamiltonian Monte Carlo (Neal 2011, arXiv:1206.1901, section 4.4).
"""
FIRST_STEP = 0.3
JITTER = 0.2  # of the step size: a trajectory of fixed length can come round to where it began, or to its mirror image
GAIN = 0.2  # how quickly the step size follows the acceptance
STEEPNESS = 4.0  # of the sigmoid schedule, as in Wu et al. 2017


@dataclass(frozen=True)
class Annealing:
    """How to anneal.

    Attributes:
        chains: for each example; memory grows with it.
        temperatures: T, how many steps β takes from 0 to 1.
        schedule: of β. `sigmoid` goes slowly at both ends, where p(z) p(x|z)^β changes fastest.
        leapfrog_steps: gradients that one proposal takes.

    Raises:
        InputError: a number below 1, or another schedule.
    """

    chains: int = 16
    temperatures: int = 200
    schedule: Schedule = "sigmoid"
    leapfrog_steps: int = 10

    def __post_init__(self) -> None:
        for name in ("chains", "temperatures", "leapfrog_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.schedule not in ("sigmoid", "linear"):
            raise InputError(f"schedule={self.schedule}: must be sigmoid or linear")

    def betas(self) -> list[float]:
        """β_0 = 0, …, β_T = 1."""
        if self.schedule == "linear":
            return [step / self.temperatures for step in range(self.temperatures + 1)]
        ends = STEEPNESS * torch.linspace(-1, 1, self.temperatures + 1, dtype=torch.float64)
        raw = ends.sigmoid()
        return ((raw - raw[0]) / (raw[-1] - raw[0])).tolist()


@dataclass(frozen=True)
class AnnealedEstimate:
    """For each example, [B] float64.

    Attributes:
        log_px: log of the mean weight of the chains, in nats: in expectation a lower bound of log p(x).
        variance: of it, by the spread of the chains; NaN for a single chain.
        effective_sample_size: 1 / Σ w̃², between 1 and the number of chains.
        acceptance: share of proposals that were accepted.
    """

    log_px: Tensor
    variance: Tensor
    effective_sample_size: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Bracket:
    """log p(x) of the model's own samples between two bounds, [n] float64 each, in nats.

    Attributes:
        x: the samples, [n, *event].
        lower: by chains from the prior to the posterior. In expectation at most log p(x).
        upper: by chains back from the z that x was made from, which is a draw from p(z|x). In expectation at least
            log p(x). Their difference bounds what annealing leaves open.
    """

    x: Tensor
    lower: Tensor
    upper: Tensor


def check_annealing(model: Model) -> None:
    """Raise an InputError unless z is real numbers, which gradients can move."""
    if model.latents.holds != "real":
        raise InputError(
            f"annealed importance sampling moves real latents by gradients, and this model's are "
            f"{'partly categories' if model.latents.holds == 'joint' else 'categories'}; use --method importance"
        )


@torch.no_grad()
def annealed_importance_sampling(
    model: Model, x: Tensor, how: Annealing, noise: torch.Generator, y: Tensor | None = None
) -> AnnealedEstimate:
    """Estimate log p(x) from below for x [B, *event], labels y [B]; see the module's docstring.

    Step sizes are found on chains of their own: for each example and β one size that has about 65 % of proposals
    accepted. They are fixed by the time that the chains which count begin, and so depend on nothing but x. A size that
    follows the very chain it moves would not leave p(z) p(x|z)^β as it is, and the bound would be none. The search
    costs as much as the estimate.

    Raises:
        InputError: z is not real numbers.
    """
    check_annealing(model)
    target = _Target(model, x, y)
    return _forward(target, how, noise, _step_sizes(target, how, noise))


@torch.no_grad()
def bracket(model: Model, num_samples: int, how: Annealing, noise: torch.Generator, y: Tensor | None = None) -> Bracket:
    """Bidirectional Monte Carlo on samples of the model (Grosse, Ghahramani & Adams 2015, arXiv:1511.02543).

    z ~ p(z) and x ~ p(x|z) make z an exact draw from p(z|x). From there the same chain runs back to the prior, and its
    reciprocal weight has the mean 1/p(x); all chains of one x begin at that one z.

    Args:
        num_samples: n, how many x to draw.
        y: labels of these x, [n], for a conditional model.

    Raises:
        InputError: z is not real numbers.
    """
    check_annealing(model)
    samples: list[Tensor] = []
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    size = examples_at_once(model, how)
    for start in range(0, num_samples, size):
        labels = None if y is None else y[start : start + size]
        z = model.prior.sample(min(size, num_samples - start), noise)
        x = model.decode(z, y=labels).sample(noise)
        target = _Target(model, x, labels)
        steps = _step_sizes(target, how, noise)
        samples.append(x)
        lower.append(_forward(target, how, noise, steps).log_px)
        upper.append(_reverse(target, how, noise, steps, z))
    return Bracket(torch.cat(samples), torch.cat(lower), torch.cat(upper))


def examples_at_once(model: Model, how: Annealing) -> int:
    """How many examples, with all their chains, stay within the memory that evaluation takes."""
    return max(1, estimates.OUTPUT_NUMBERS // (how.chains * math.prod(model.likelihood.output_shape)))


@dataclass
class _Place:
    """Where the chains are: z [C, B, D]; log p(z) and log p(x|z) [C, B]; and their gradients [C, B, D]."""

    z: Tensor
    log_pz: Tensor
    log_px_z: Tensor
    slope_pz: Tensor
    slope_px_z: Tensor

    def slope(self, beta: float) -> Tensor:
        return self.slope_pz + beta * self.slope_px_z

    def log_density(self, beta: float) -> Tensor:
        return self.log_pz + beta * self.log_px_z

    def where(self, chosen: Tensor, other: "_Place") -> "_Place":
        """This place for the chains that are chosen, [C, B], the other one for the rest."""
        wide = chosen[..., None]
        return _Place(
            torch.where(wide, self.z, other.z),
            torch.where(chosen, self.log_pz, other.log_pz),
            torch.where(chosen, self.log_px_z, other.log_px_z),
            torch.where(wide, self.slope_pz, other.slope_pz),
            torch.where(wide, self.slope_px_z, other.slope_px_z),
        )


@dataclass
class _Target:
    """p(z) p(x|z)^β for a batch x [B, *event]."""

    model: Model
    x: Tensor
    y: Tensor | None

    def at(self, z: Tensor) -> _Place:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_pz = self.model.prior.log_prob(z)
            log_px_z = self.model.decode(z, y=self.y).log_prob(self.x)
            (slope_pz,) = torch.autograd.grad(log_pz.sum(), z)
            (slope_px_z,) = torch.autograd.grad(log_px_z.sum(), z)
        return _Place(z.detach(), log_pz.detach(), log_px_z.detach(), slope_pz, slope_px_z)

    def from_prior(self, chains: int, noise: torch.Generator) -> _Place:
        z = self.model.prior.sample(chains * len(self.x), noise)
        return self.at(z.unflatten(0, (chains, len(self.x))))

    def move(
        self, place: _Place, beta: float, step: Tensor, leapfrog_steps: int, noise: torch.Generator
    ) -> tuple[_Place, Tensor]:
        """One step of Hamiltonian Monte Carlo (Neal 2011, section 3), step sizes [B]; and its chance of acceptance.

        Each chain's step size is drawn up to a fifth above or below, whatever its z (section 3.2).
        """
        jitter = torch.rand(place.log_pz.shape, dtype=torch.float64, device=step.device, generator=noise)
        step = (step * (1 + JITTER * (2 * jitter - 1))).to(place.z.dtype)[..., None]
        momentum = torch.randn(place.z.shape, dtype=place.z.dtype, device=place.z.device, generator=noise)
        energy = place.log_density(beta) - 0.5 * momentum.square().sum(-1)
        new, moving = place, momentum
        for _ in range(leapfrog_steps):
            moving = moving + 0.5 * step * new.slope(beta)
            new = self.at(new.z + step * moving)
            moving = moving + 0.5 * step * new.slope(beta)
        change = new.log_density(beta) - 0.5 * moving.square().sum(-1) - energy
        chance = change.nan_to_num(-math.inf).clamp(max=0).exp()  # a proposal that overflowed is turned down
        uniform = torch.rand(chance.shape, dtype=chance.dtype, device=chance.device, generator=noise)
        return new.where(uniform < chance, place), chance


def _step_sizes(target: _Target, how: Annealing, noise: torch.Generator) -> list[Tensor]:
    """A step size of each example, [B], for each of the T − 1 temperatures between prior and posterior."""
    place = target.from_prior(how.chains, noise)
    size = torch.full((len(target.x),), FIRST_STEP, dtype=torch.float64, device=target.x.device)
    found: list[Tensor] = []
    for beta in how.betas()[1:-1]:
        place, chance = target.move(place, beta, size, how.leapfrog_steps, noise)
        size = size * (GAIN * (chance.double().mean(0) - ACCEPTANCE)).exp()
        found.append(size)
    return found


def _forward(target: _Target, how: Annealing, noise: torch.Generator, steps: Sequence[Tensor]) -> AnnealedEstimate:
    """From the prior up: w_t is taken before the move that leaves the distribution at β_t as it is (Neal 2001)."""
    betas = how.betas()
    place = target.from_prior(how.chains, noise)
    log_w = torch.zeros(place.log_pz.shape, dtype=torch.float64, device=place.z.device)
    accepted = torch.zeros(len(target.x), dtype=torch.float64, device=place.z.device)
    for before, beta, step in zip(betas, betas[1:-1], steps, strict=False):
        log_w += (beta - before) * place.log_px_z
        place, chance = target.move(place, beta, step, how.leapfrog_steps, noise)
        accepted += chance.double().mean(0)
    log_w += (betas[-1] - betas[-2]) * place.log_px_z
    weights = ImportanceWeights()
    weights.add(log_w)
    return AnnealedEstimate(
        weights.log_mean, weights.variance_of_log_mean, weights.effective_sample_size, accepted / max(1, len(steps))
    )


def _reverse(target: _Target, how: Annealing, noise: torch.Generator, steps: Sequence[Tensor], z: Tensor) -> Tensor:
    """From draws z [B, D] of the posterior down: −log of the mean reciprocal weight, [B].

    The forward chain read backwards: the moves are reversible, so each is its own reversal.
    """
    betas = how.betas()
    place = target.at(z.expand(how.chains, *z.shape))
    log_w = (betas[-1] - betas[-2]) * place.log_px_z.double()
    for level in range(len(steps), 0, -1):
        place, _ = target.move(place, betas[level], steps[level - 1], how.leapfrog_steps, noise)
        log_w += (betas[level] - betas[level - 1]) * place.log_px_z
    return math.log(how.chains) - (-log_w).logsumexp(0)
