"""A prior that is fitted after training, to the aggregate posterior q(z) = E_x[q(z|x)] of the training data.

While it trains, the model is pulled towards N(0, I). It never gets there, so draws from N(0, I) fall where the decoder
has seen nothing. A second density model, of z alone, knows where the codes are: the second stage of Dai & Wipf 2019
(arXiv:1903.05789) and the ex-post density estimation of Ghosh et al. 2020 (arXiv:1903.12436).
"""

import math
import warnings
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaelab.config import PositiveInt, register
from vaelab.errors import VaelabError
from vaelab.latents import LatentSpec
from vaelab.posteriors import PosteriorDistribution
from vaelab.priors.base import Prior
from vaelab.priors.flow import FlowPrior
from vaelab.priors.normal import StandardNormal

HELD_OUT = 0.1
"""Share of the draws that choose among fits."""
MINIMUM = 20
"""Fewer draws leave nothing to choose with."""
RIDGES = (1e-4, 1e-2, 1.0)
"""Added to every variance of a standardized mixture, so that no component narrows down to a point or a plane."""
UPDATES, BATCH, RATE, CHECK_EVERY = 400, 256, 3e-3, 50
"""How the flow is fitted: Adam with a cosine schedule from RATE to 0."""


@register("prior", "aggregate")
class AggregatePrior(Prior):
    """N(0, I) while the model trains; then fitted to `draws` draws of the aggregate posterior.

    `kind` is "mixture", of at most `components` Gaussians with full covariances, or "flow", a spline flow. Draws are
    standardized first, number by number: with u = (z − shift) / scale, log p(z) = log p(u) − Σ_d log scale_d.
    """

    def __init__(
        self,
        latents: LatentSpec | int,
        *,
        kind: Literal["mixture", "flow"] = "mixture",
        components: PositiveInt = 10,
        draws: Annotated[int, Field(strict=True, ge=MINIMUM)] = 10_000,
    ) -> None:
        super().__init__(latents)
        self.draws = draws
        self.normal = StandardNormal(latents)
        self.density = FullMixture(latents, components) if kind == "mixture" else FittedFlow(latents)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("shift", torch.zeros(self.latent_dim))
        self.register_buffer("scale", torch.ones(self.latent_dim))
        self.fitted: Tensor
        self.shift: Tensor
        self.scale: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        if not self.fitted:
            return self.normal.log_prob(z)
        return self.density.log_prob((z - self.shift) / self.scale) - self.scale.log().sum()

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        if not self.fitted:
            return self.normal.sample(num_samples, generator)
        return self.shift + self.scale * self.density.sample(num_samples, generator)

    def kl(self, posterior: PosteriorDistribution) -> Tensor | None:
        """That to N(0, I), until the prior is fitted."""
        return None if self.fitted else self.normal.kl(posterior)

    @torch.no_grad()
    def fit(self, z: Tensor, generator: torch.Generator) -> None:
        """Fit to draws z [n, D]. One tenth chooses among fits to the rest.

        Raises:
            VaelabError: fewer than 20 different draws are finite.
        """
        # Where q(z|x) is a point, the same draw comes up again and again. No copy of it may be held out.
        z = z[z.isfinite().all(-1)].unique(dim=0).double()
        if len(z) < MINIMUM:
            raise VaelabError(
                f"prior.name=aggregate: {len(z)} different finite draws of z are too few to fit a density to (at least "
                f"{MINIMUM}); give more examples, or use prior.name=normal"
            )
        self.shift.copy_(z.mean(0))
        self.scale.copy_(_spread(z))
        u = (z - self.shift) / self.scale
        u = u[torch.randperm(len(u), generator=generator, device=generator.device).to(u.device)]
        held_out = round(HELD_OUT * len(u))
        self.density.choose(u[held_out:], u[:held_out], generator)
        self.fitted.fill_(True)

    @property
    def fit_draws(self) -> int:
        return self.draws


def _spread(z: Tensor) -> Tensor:
    """Standard deviations of z [n, D] by which one can divide: a number that never changes has what rounding has."""
    smallest = 1e-6 * z.abs().amax(0)
    spread = z.std(0, correction=0).maximum(smallest)
    return spread.where(spread > 0, 1.0)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


class FullMixture(Prior):
    """At most M Gaussians with full covariances, fitted by expectation maximization (scikit-learn)."""

    def __init__(self, latents: LatentSpec | int, components: int) -> None:
        super().__init__(latents)
        size = self.latent_dim
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("loc", torch.zeros(components, size))
        self.register_buffer("scale_tril", torch.eye(size).repeat(components, 1, 1))
        self.weights: Tensor  # [M]; 0 for components that were not needed
        self.loc: Tensor  # [M, D]
        self.scale_tril: Tensor  # [M, D, D], lower triangular: covariance = L Lᵀ

    def log_prob(self, z: Tensor) -> Tensor:
        components = MultivariateNormal(self.loc, scale_tril=self.scale_tril, validate_args=False)
        return (self.weights.log() + components.log_prob(z[..., None, :])).logsumexp(-1)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        chosen = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        like = self.loc
        noise = torch.randn(like[chosen].shape, dtype=like.dtype, device=like.device, generator=generator)
        return self.loc[chosen] + (self.scale_tril[chosen] @ noise[..., None])[..., 0]

    def choose(self, train: Tensor, held_out: Tensor, generator: torch.Generator) -> None:
        """The best for `held_out`: of M, M/2, M/4, … 1 components, and then with wider ones while that helps."""
        seed, test = _seed(generator), held_out.cpu().numpy()

        def fit(components: int, ridge: float) -> tuple[float, Any]:
            found = _expectation_maximization(train, components, ridge, seed)
            return found.score(test), found

        most = min(len(self.weights), len(train))
        numbers = [most >> halvings for halvings in range(most.bit_length())]
        score, best = max((fit(number, RIDGES[0]) for number in numbers), key=lambda scored: scored[0])
        for ridge in RIDGES[1:]:
            wider_score, wider = fit(len(best.weights_), ridge)
            if wider_score <= score:
                break
            score, best = wider_score, wider
        weights, loc, covariance = map(torch.as_tensor, (best.weights_, best.means_, best.covariances_))
        used = len(weights)
        self.weights.zero_()[:used].copy_(weights)
        self.loc[:used].copy_(loc)
        self.scale_tril[:used].copy_(torch.linalg.cholesky(covariance))


def _expectation_maximization(z: Tensor, components: int, ridge: float, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the likelihood of what is held out decides
        return GaussianMixture(components, reg_covar=ridge, max_iter=200, random_state=seed).fit(z.cpu().numpy())


class FittedFlow(FlowPrior):
    """A flow whose weights are buffers: the optimizer that trains the model has nothing to do with them."""

    def __init__(self, latents: LatentSpec | int) -> None:
        super().__init__(latents)
        for module in self.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach())

    @torch.enable_grad()
    def choose(self, train: Tensor, held_out: Tensor, generator: torch.Generator) -> None:
        """The weights of 400 updates that are best for `held_out`, which is looked at every 50."""
        with torch.random.fork_rng([]):
            torch.manual_seed(_seed(generator))
            flow = FlowPrior(self.latents).to(self.origin)
        train, held_out = train.to(self.origin), held_out.to(self.origin)
        optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
        best = -math.inf
        for update in range(UPDATES + 1):
            if update % CHECK_EVERY == 0:
                with torch.no_grad():
                    score = torch.cat([flow.log_prob(part) for part in held_out.split(BATCH)]).mean().item()
                if score > best:
                    best = score
                    self.load_state_dict(flow.state_dict())
            rows = torch.randint(len(train), (BATCH,), generator=generator, device=generator.device).to(train.device)
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * RATE * (1 + math.cos(math.pi * update / UPDATES))
            optimizer.zero_grad()
            (-flow.log_prob(train[rows]).mean()).backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
