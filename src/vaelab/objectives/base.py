"""What every objective is: a module from `Terms` to `Loss`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vaelab import noise
from vaelab.model import Model, Terms, rates_by_group
from vaelab.posteriors import Capability


@dataclass
class Loss:
    """A scalar to minimize, and scalar metrics (detached).

    Attributes:
        value: of the model; what validation chooses the best weights by.
        critic: of the objective's own critic, if it has one: minimized beside `value`, and never part of it.
    """

    value: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    critic: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """What the gradients are taken of."""
        return self.value if self.critic is None else self.value + self.critic


class Objective(nn.Module, ABC):
    """Maps `Terms` to `Loss`.

    Attributes:
        num_samples: how many draws of z an example it wants (K).
        needs: what it needs of q(z|x); of the class, with every key at its default.
        learning_rate_share: of `training.learning_rate`, for parameters of the objective's own (a critic).
        step: how many updates training has made. None outside training: every warm-up counts as complete then, so
            that the numbers of all epochs can be compared.
    """

    num_samples: int = 1
    needs: frozenset[Capability] = frozenset({"density", "reparameterized"})
    learning_rate_share: float = 1.0
    step: int | None = None

    def check(self, model: Model) -> None:
        """Refuse a model that this objective makes no sense for, although q(z|x) can do what it `needs`.

        Raises:
            InputError: the true reason, and what would work.
        """

    @abstractmethod
    def loss(self, terms: Terms) -> Loss:
        """What is minimized, and the metrics that this objective has beside those that all have."""

    def forward(self, terms: Terms) -> Loss:
        """The loss of a batch, the model's penalties added, with all metrics."""
        loss = self.loss(terms)
        penalties = {name: values.mean() for name, values in terms.penalties.items()}
        value = torch.stack([loss.value, *penalties.values()]).sum() if penalties else loss.value
        found = {"loss": value, **loss.metrics, **metrics(terms), **penalties, **terms.metrics}
        if loss.critic is not None:
            found["critic"] = loss.critic
        return Loss(value, {name: metric.detach() for name, metric in found.items()}, loss.critic)

    def progress(self, updates: int) -> float:
        """How much of a schedule of so many updates is over, from 0 to 1."""
        return 1.0 if self.step is None or self.step >= updates else self.step / updates


class Forward(nn.Module):
    """Examples -> loss: model and objective as one module, for that is what several processes share."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, x: Tensor, noise: torch.Generator, network_dtype: torch.dtype | None, y: Tensor | None = None
    ) -> Loss:
        """The loss of x [B, *event] with labels y [B]; the networks compute in `network_dtype`, all else in float32."""
        terms = self.model.terms(x, self.objective.num_samples, noise, network_dtype, y=y, relaxed=True)
        return self.objective(terms)


def negative_elbo(terms: Terms) -> Tensor:
    """Distortion + rate, the mean over the batch: what objectives put their penalties on."""
    rate = terms.rate
    assert rate is not None
    return (terms.distortion + rate).mean()


def probe(model: Model, num_samples: int = 1) -> Terms:
    """The terms of two blank examples, as in training: they tell what has a closed form, and what a gradient reaches.

    The model may be of any class.
    """
    was, like = model.training, next(model.parameters())
    x = torch.zeros(2, *model.event_shape, dtype=like.dtype, device=like.device)
    y = None if model.labels is None else torch.zeros(2, dtype=torch.int64, device=like.device)
    try:
        return model.eval().terms(x, num_samples, noise.generator("probe", device=like.device), y=y, relaxed=True)
    finally:
        model.train(was)


def metrics(terms: Terms) -> dict[str, Tensor]:
    """Batch means of elbo, rate and distortion, in nats per example; the first two only where q has a density.

    Where the latents form several groups, the rate of each is told, too.
    """
    distortion = terms.distortion.detach().mean()
    if (rates := terms.rate) is None:
        return {"distortion": distortion}
    rate = rates.detach().mean()
    by_group = {f"rate_{name}": rates.detach().mean() for name, rates in rates_by_group(terms).items()}
    return {"elbo": -(rate + distortion), "rate": rate, "distortion": distortion, **by_group}
