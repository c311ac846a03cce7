"""What an ELBO loses, and where: gaps of inference (Cremer, Li & Duvenaud 2018, arXiv:1801.03558).

    log p(x) − ELBO  =  approximation gap  +  amortization gap
    approximation gap = log p(x) − ELBO(q*)      no Gaussian fits the true posterior better than q*
    amortization gap  = ELBO(q*) − ELBO(q)       the encoder does not find q*

q* is q(z|x) with parameters that are optimized for this one x.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaelab.errors import InputError
from vaelab.evaluation.estimates import estimate
from vaelab.evaluation.quadrature import quadrature
from vaelab.model import VAE, Model
from vaelab.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    FullGaussianPosterior,
    GaussianPosterior,
    Posterior,
    PosteriorDistribution,
)

DRAWS = 256
LEARNING_RATE = 0.1  # in standard deviations of the encoder's q


@dataclass(frozen=True)
class Fit:
    """How q* is found: Adam from the encoder's q, its rate falling to 0 along a cosine.

    Attributes:
        steps: of Adam.
        num_samples: draws of z for the gradient at each step.
        importance_samples: K, draws from q* for log p(x), where z has more than two numbers.

    Raises:
        InputError: a number below 1.
    """

    steps: int = 300
    num_samples: int = 8
    importance_samples: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "num_samples", "importance_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class Gaps:
    """For each example, [B] float64, in nats.

    Attributes:
        elbo: of the encoder's q.
        optimized_elbo: of q*.
        log_px: by quadrature where z has one or two numbers; else by importance sampling from q*, a lower bound in
            expectation, so that the approximation gap is rather too small than too large.
    """

    elbo: Tensor
    optimized_elbo: Tensor
    log_px: Tensor

    @property
    def amortization(self) -> Tensor:
        """ELBO(q*) − ELBO(q)."""
        return self.optimized_elbo - self.elbo

    @property
    def approximation(self) -> Tensor:
        """Log p(x) − ELBO(q*)."""
        return self.log_px - self.optimized_elbo


def check_gaps(model: Model) -> None:
    """Raise an InputError unless q(z|x) is a Gaussian that an encoder gives."""
    if not (isinstance(model, VAE) and isinstance(model.posterior, GaussianPosterior | FullGaussianPosterior)):
        raise InputError(
            "the gaps are those of a Gaussian q(z|x): posterior.name=gaussian or full-gaussian with model.name=vae"
        )


class _Given(Posterior):
    """q(z|x) that looks at no features: a Gaussian for each of the B examples of one batch.

    Its mean is moved, and its scales multiplied, from those that it is given: at the start all parameters are 0.
    """

    provides = frozenset({"density", "reparameterized", "stochastic"})

    def __init__(self, start: DiagonalGaussian | FullGaussian) -> None:
        super().__init__()
        self.start = start.detached()
        self.shift = nn.Parameter(torch.zeros_like(start.loc))
        self.log_factor = nn.Parameter(torch.zeros_like(start.loc))
        self.below: nn.Parameter | None = None
        if isinstance(start, FullGaussian):
            size = start.loc.shape[-1]
            self.below = nn.Parameter(start.loc.new_zeros(len(start.loc), size * (size - 1) // 2))

    def forward(self, features: Tensor) -> PosteriorDistribution:
        start = self.start
        loc = start.loc + start.stddev * self.shift
        if isinstance(start, DiagonalGaussian):
            return DiagonalGaussian(loc, start.scale * self.log_factor.exp())
        assert self.below is not None
        size = loc.shape[-1]
        rows, columns = torch.tril_indices(size, size, -1, device=loc.device)
        factor = self.log_factor.exp().diag_embed()
        factor[..., rows, columns] = self.below
        return FullGaussian(loc, start.scale_tril @ factor)


def gaps(model: Model, x: Tensor, how: Fit, noise: torch.Generator, y: Tensor | None = None) -> Gaps:
    """The gaps of each example x [B, *event], labels y [B]: find q*, then estimate with draws that q* has not seen.

    The weights of the model stay as they are. Both ELBOs are of 256 draws each, q*'s of K where that is more.

    Raises:
        InputError: q(z|x) is no Gaussian.
    """
    check_gaps(model)
    assert isinstance(model, VAE)
    with torch.no_grad():
        start = model.encode(x, y=y)
    assert isinstance(start, DiagonalGaussian | FullGaussian)
    given = _Given(start)
    best = VAE(nn.Identity(), model.decoder, given, model.prior, model.likelihood, model.labels)
    best.train(model.training)
    optimizer = torch.optim.Adam(given.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    for _ in range(how.steps):
        with torch.enable_grad():
            terms = best.terms(x, how.num_samples, noise, y=y)
            # Only through z: where q* is p(z|x), this gradient is 0 for every draw (Roeder, Wu & Duvenaud 2017).
            log_qz_x = terms.posterior.detached().log_prob(terms.z)
            loss = -(terms.log_px_z + terms.log_pz - log_qz_x).mean(0).sum()  # a sum: each example has its own q*
            gradients = torch.autograd.grad(loss, list(given.parameters()))
        for parameter, gradient in zip(given.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    found = estimate(model, x, 1, DRAWS, noise, y)
    exact = quadrature(model, x, y).log_px if model.latents.real <= 2 else None
    samples = 1 if exact is not None else how.importance_samples
    optimized = estimate(best, x, samples, max(DRAWS, samples), noise, y)
    log_px = optimized.log_px if exact is None else exact
    assert found.elbo is not None and optimized.elbo is not None and log_px is not None
    return Gaps(found.elbo, optimized.elbo, log_px)
