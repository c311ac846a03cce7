"""Importance-weighted bounds of log p(x), and three ways to their gradient."""

import math
from abc import ABC
from typing import Literal

import torch
from torch import Tensor

from vaelab.config import NonNegativeInt, PositiveInt, register
from vaelab.errors import InputError
from vaelab.model import Model, Terms
from vaelab.objectives.base import Loss, Objective
from vaelab.posteriors import Capability

Gradient = Literal["plain", "dreg", "stl"]


class ImportanceWeighted(Objective, ABC):
    """−(1/M) Σ_m log (1/K) Σ_k w_mk, w = p(x, z) / q(z|x): the mean of M importance-weighted bounds of K draws each.

    The value and the metric `bound` are always that bound. With w̃_k = w_k / Σ_l w_l, held fixed, its gradient is

    plain  autograd's. For q's parameters φ it is Σ_k w̃_k (d log w_k/dz_k dz_k/dφ − ∂log q(z_k|x)/∂φ).
    stl    Σ_k w̃_k d log w_k/dz_k dz_k/dφ: the last term, whose mean is 0 for K = 1, is left out (sticking the
           landing, Roeder et al. 2017, arXiv:1703.09194). For K > 1 that biases the gradient.
    dreg   Σ_k w̃_k² d log w_k/dz_k dz_k/dφ: the last term is reparameterized a second time (Tucker et al. 2019,
           arXiv:1810.04152, section 4). The mean is autograd's for every K, and the variance is smaller.

    Decoder and prior get Σ_k w̃_k ∂log w_k/∂θ from all three.

    Over the first `warmup` updates p(z)/q(z|x) enters w with a power β that rises from 0 to 1 in a straight line: for
    K = 1 that is the warm-up of the KL term. A draw's path then has the weight w̃_k (1 − β (1 − w̃_k)) under dreg, w̃_k²
    at β = 1.
    """

    def __init__(self, num_groups: int, num_samples: int, gradient: Gradient, warmup: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.num_samples = num_groups * num_samples
        self.gradient = gradient
        self.warmup = warmup
        if gradient != "plain":
            self.needs = self.needs | frozenset[Capability]({"log-prob"})

    def check(self, model: Model) -> None:
        if self.gradient != "plain" and model.latents.categorical:
            raise InputError(
                f"objective.gradient={self.gradient} counts on E_q[∂ log q(z|x)] = 0, and relaxed draws of categorical "
                "latents do not come from that q; use objective.gradient=plain"
            )

    def loss(self, terms: Terms) -> Loss:
        assert terms.log_weights is not None and terms.log_qz_x is not None
        log_weights = self._by_group(self._log_weights(terms, terms.log_qz_x))
        value = -_bound(log_weights)
        if self.gradient != "plain" and torch.is_grad_enabled():
            surrogate = self._surrogate(terms, log_weights.detach().softmax(1))
            value = value.detach() - (surrogate - surrogate.detach())  # the bound's value, the surrogate's gradient
        return Loss(value, {"bound": _bound(self._by_group(terms.log_weights))})

    def _log_weights(self, terms: Terms, log_qz_x: Tensor) -> Tensor:
        """Log w of all draws, [M K, B], with the power that p(z)/q(z|x) has by now."""
        return terms.log_px_z + self.progress(self.warmup) * (terms.log_pz - log_qz_x)

    def _by_group(self, log_weights: Tensor) -> Tensor:
        """[M K, B] -> [M, K, B]."""
        return log_weights.unflatten(0, (self.num_groups, -1))

    def _surrogate(self, terms: Terms, weights: Tensor) -> Tensor:
        """A scalar whose gradient is the estimator; its value means nothing. `weights` are w̃, [M, K, B]."""
        log_weights = self._by_group(self._log_weights(terms, terms.posterior.detached().log_prob(terms.z)))
        if self.gradient == "dreg" and terms.z.requires_grad:
            # All that depends on q's parameters does so through z: the factor beside w̃ is put in there.
            factor = 1 - self.progress(self.warmup) * (1 - weights)
            terms.z.register_hook(factor.flatten(0, 1)[..., None].mul)
        return (weights * log_weights).sum(1).mean()


def _bound(log_weights: Tensor) -> Tensor:
    """The mean over groups and examples of log (1/K) Σ_k w_k; log w is [M, K, B]."""
    return (log_weights.logsumexp(1) - math.log(log_weights.shape[1])).mean()


@register("objective", "iwae")
class IWAE(ImportanceWeighted):
    """−L_K, L_K = E[log (1/K) Σ_k w_k], w_k = p(x, z_k) / q(z_k|x): Burda et al. 2016 (arXiv:1509.00519), eq. 8.

    L_1 is the ELBO, L_K ≤ L_{K+1} ≤ log p(x); K = `num_samples`. `gradient`, `warmup`: see `ImportanceWeighted`.
    """

    def __init__(
        self, *, num_samples: PositiveInt = 5, gradient: Gradient = "plain", warmup: NonNegativeInt = 0
    ) -> None:
        super().__init__(1, num_samples, gradient, warmup)


@register("objective", "miwae")
class MIWAE(ImportanceWeighted):
    """The mean of M = `num_groups` bounds −L_K of K = `num_samples` draws each: Rainforth et al. 2018.

    arXiv:1802.04537. A larger K makes the bound tighter and the encoder's gradient noisier beside its mean; a larger M
    makes that gradient steadier. M = 1 is `iwae`, K = 1 the ELBO of M draws. It costs M·K draws an example; the paper's
    M = K = 8 is the default. `gradient`, `warmup`: see `ImportanceWeighted`.
    """

    def __init__(
        self,
        *,
        num_groups: PositiveInt = 8,
        num_samples: PositiveInt = 8,
        gradient: Gradient = "plain",
        warmup: NonNegativeInt = 0,
    ) -> None:
        super().__init__(num_groups, num_samples, gradient, warmup)
