"""Distortion, rate, and how the one is traded for the other."""

import math
from typing import Literal

import torch
from torch import Tensor

from vaelab.config import NonNegativeFloat, NonNegativeInt, PositiveInt, register
from vaelab.errors import InputError
from vaelab.latents import LatentSpec
from vaelab.model import Model, Terms
from vaelab.objectives.base import Loss, Objective, probe


@register("objective", "elbo")
class ELBO(Objective):
    """−(E_q[log p(x|z)] − β KL(q(z|x) ‖ p(z))): Kingma & Welling 2013, eq. 3 (β = 1); Higgins et al. 2017, eq. 4.

    For β > 1 it is still a lower bound of log p(x), a looser one; for β < 1 it is no bound. The KL is in closed
    form where there is one.

    Over the first `warmup` updates the weight rises from 0 to β in a straight line (KL warm-up: Sønderby et al. 2016,
    arXiv:1602.02282, section 2.3).
    """

    needs = frozenset({"density"})

    def __init__(
        self, *, beta: NonNegativeFloat = 1.0, warmup: NonNegativeInt = 0, num_samples: PositiveInt = 1
    ) -> None:
        super().__init__()
        self.beta = beta
        self.warmup = warmup
        self.num_samples = num_samples

    def loss(self, terms: Terms) -> Loss:
        rate = terms.rate
        assert rate is not None
        if self.beta == 0:  # no gradient at all, in place of one of zero: then a prior that has to learn is refused
            return Loss(terms.distortion.mean())
        return Loss((terms.distortion + self.progress(self.warmup) * self.beta * rate).mean())


@register("objective", "annealed")
class Annealed(Objective):
    """distortion + γ |rate − C|: Burgess et al. 2018 (arXiv:1804.03599), eq. 8, with the sign of a loss.

    C is how many nats an example may carry on average; it rises in a straight line from 0 to `capacity` over the
    first `steps` updates. `rate` is the mean over the batch, so examples may carry unequal amounts. The paper takes
    γ = 1,000, C up to 25 nats and 100,000 updates; a γ that large suits long training alone.

    Joint latents have two such terms, one for the real and one for the categorical latents (Dupont 2018,
    arXiv:1804.00104, section 3; there γ = 30, and 5 nats each on MNIST). `categorical_capacity` is that of the second;
    left out, it is `capacity`. What categorical latents can carry under a uniform prior is the logarithm of the number
    of their combinations, Σ log categories, so their C never exceeds that.
    """

    needs = frozenset({"density", "reparameterized"})

    def __init__(
        self,
        *,
        capacity: NonNegativeFloat = 25.0,
        categorical_capacity: NonNegativeFloat | None = None,
        gamma: NonNegativeFloat = 30.0,
        steps: NonNegativeInt = 1_000,
    ) -> None:
        super().__init__()
        self.capacity = capacity
        self.categorical_capacity = categorical_capacity
        self.gamma = gamma
        self.steps = steps

    def check(self, model: Model) -> None:
        if model.latents.holds != "joint":
            if self.categorical_capacity is not None:
                raise InputError(
                    f"objective.categorical_capacity: the latents are all {model.latents.holds}; "
                    "set objective.capacity, or choose model.name=joint"
                )
        elif probe(model).kl is None:
            raise InputError(
                "objective.name=annealed weighs real and categorical latents apart, and their KL divergence from this "
                "prior has no closed form; use posterior.name=gaussian and prior.name=auto, or objective.name=elbo"
            )

    def loss(self, terms: Terms) -> Loss:
        value, found = terms.distortion.mean(), dict[str, Tensor]()
        for name, rate, capacity in self._parts(terms):
            now = self.progress(self.steps) * capacity
            value = value + self.gamma * (rate - now).abs()
            found[name] = torch.full_like(rate, now)
        return Loss(value, found)

    def _parts(self, terms: Terms) -> list[tuple[str, Tensor, float]]:
        """Name, mean rate and final capacity of what has a capacity of its own."""
        latents = terms.prior.latents
        if latents.holds != "joint":
            rate = terms.rate
            assert rate is not None
            most = _most_nats(latents) if latents.holds == "categorical" else math.inf
            return [("capacity", rate.mean(), min(self.capacity, most))]
        assert terms.kl is not None
        real, categorical = (terms.kl[:, terms.groups[name]].sum(-1).mean() for name in ("continuous", "categorical"))
        wanted = self.capacity if self.categorical_capacity is None else self.categorical_capacity
        return [
            ("capacity", real, self.capacity),
            ("categorical_capacity", categorical, min(wanted, _most_nats(latents))),
        ]


def _most_nats(latents: LatentSpec) -> float:
    """What the categorical latents can carry under a uniform prior."""
    return latents.categorical * math.log(latents.categories)


@register("objective", "free-bits")
class FreeBits(Objective):
    """distortion + Σ_g max(λ, E_x[KL_g]), λ = `nats`: Kingma et al. 2016 (arXiv:1606.04934), appendix C.8, a loss.

    A group g is a single latent (`by = "latent"`) or what the model names as a group: all latents of a plain VAE, a
    layer of a hierarchy, the real and the categorical part of joint latents (`by = "group"`). The KL of a hierarchy is
    known by layer only, so that there the two are the same.

    Below λ the maximum is a constant: it pays nothing to carry less than λ nats, so no pressure makes a latent that
    the decoder does not use yet collapse, and the distortion alone decides. Above λ the gradient is the ELBO's.

    E_x is the mean over the batch, as in the paper. With a maximum for every example by itself each example would get
    λ nats free, and a latent could not be silent for most examples and speak for a few.
    """

    needs = frozenset({"density"})

    def __init__(self, *, nats: NonNegativeFloat = 0.25, by: Literal["latent", "group"] = "latent") -> None:
        super().__init__()
        self.nats = nats
        self.by = by

    def check(self, model: Model) -> None:
        terms = probe(model)
        if terms.kl is not None or (self.by == "group" and len(terms.groups) <= 1):
            return
        by_group = "objective.by=group, or " if len(terms.groups) <= 1 else ""
        as_vae = "" if "reparameterized" in model.provides else "model.name=vae with "
        raise InputError(
            f"objective.by={self.by} needs the KL divergence of every {self.by} by itself, and it has no closed form "
            f"for this posterior and prior; use {by_group}{as_vae}posterior.name=gaussian with prior.name=auto"
        )

    def loss(self, terms: Terms) -> Loss:
        return Loss(terms.distortion.mean() + self._rates(terms).clamp(min=self.nats).sum())

    def _rates(self, terms: Terms) -> Tensor:
        """The batch mean of each group's KL, [groups]."""
        if terms.kl is None:  # one group: `check` has refused everything else
            rate = terms.rate
            assert rate is not None
            return rate.mean(0, keepdim=True)
        by_latent = terms.kl.mean(0)
        if self.by == "latent":
            return by_latent
        return torch.stack([by_latent[part].sum() for part in terms.groups.values()])


@register("objective", "distortion")
class Distortion(Objective):
    """−E_q[log p(x|z)] alone: what an autoencoder minimizes. No bound of log p(x)."""

    needs = frozenset()

    def loss(self, terms: Terms) -> Loss:
        return Loss(terms.distortion.mean())
