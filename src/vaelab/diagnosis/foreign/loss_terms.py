"""What a foreign loss is made of.

A VAE's loss is  w_r Σ ℓ(r, x) + w_k Σ KL(m, s)  with some ℓ, some KL and some weights; `loss_probe` finds which.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vaelab.diagnosis.foreign.loss_probe import Kl, Probe
from vaelab.diagnosis.foreign.model_file import as_script, items
from vaelab.diagnosis.foreign.tracing import Tracer

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


@dataclass
class LossTerms:
    """A loss, taken apart.

    Attributes:
        distance: which of `DISTANCES` ℓ is; None if none.
        weight: w_r, what one pixel of one example counts.
        kl: what it makes of mean and log-variance.
        batch: exponents of the number of examples in both weights: (−1, 0) if ℓ is averaged over the batch and the KL
            summed.
        latents: the same exponent of the number of latents, in the KL's weight; None where it could not be asked.
        tracer: the calls of torch in a call with real examples.
        broadcasts: whether reconstructions meet other examples than their own: "shapes" where those are mixed up
            without an error, "order" where the loss does not change with the order of the examples; else empty.
        ungraded: which of `reconstruction`, `mean`, `log-variance` it depends on without a gradient.
        undefined: whether it is no finite number where a reconstruction is exactly 0 or 1.
        shape: of what it returns, [] if that is one number.
        repeats: whether it gives the same number for the same arguments.
        ignores: which of `reconstruction` and `x` make no difference to it.
        is_root: whether its reconstruction term is the root of a sum of squares over all pixels and examples.
        function: the loss itself.
        arguments: reconstruction, x, mean and s, as the tracer saw them.
        scale_weight: what ln σ counts in one pixel of one example, where the loss learns the scale σ of its errors.
    """

    distance: str | None
    weight: float
    kl: Kl
    batch: tuple[float, float]
    latents: float | None
    tracer: Tracer
    broadcasts: str
    ungraded: list[str]
    undefined: bool
    scale_weight: float | None
    shape: list[int]
    repeats: bool
    ignores: list[str]
    is_root: bool
    function: Loss
    arguments: tuple[Tensor, ...]

    @property
    def by_name(self) -> dict[str, Tensor]:
        """The arguments that a gradient must reach, by the names in `ungraded`."""
        return dict(
            zip(("reconstruction", "mean", "log-variance"), (self.arguments[0], *self.arguments[2:]), strict=True)
        )

    @property
    def ratio(self) -> float:
        """w_k / w_r: the effective β where ℓ is −log p(x|z)."""
        return self.kl.weight / self.weight if self.weight else math.nan

    @property
    def is_vector(self) -> bool:
        """Whether it is more than one number, and not one for each example, which training may still average."""
        return self.shape not in ([], [1], [len(self.arguments[0])])

    @property
    def varies(self) -> bool:
        """Whether that ratio changes with the number of examples in a batch."""
        return abs(self.batch[1] - self.batch[0]) > 0.01


TOTALS = ("loss", "total", "total_loss", "loss_total", "objective", "nelbo", "neg_elbo", "negative_elbo")


def total_of(value: Any) -> Callable[[Any], Any]:
    """How to get the loss itself out of what a loss returned.

    It is the value itself; the entry of a telling name; the entry that is the sum of the others; or the first.
    """
    if isinstance(value, Tensor) or not (parts := items(value, [])):
        return lambda value: value
    names = [name for name, _ in parts]
    place = next((names.index(name) for name in TOTALS if name in names), None)
    if place is None:
        numbers = [
            float(one.detach()) if isinstance(one, Tensor) and one.numel() == 1 else math.nan for _, one in parts
        ]
        whole = sum(numbers)
        away = [abs(2 * one - whole) if len(numbers) > 2 else math.inf for one in numbers]
        place = away.index(min(away)) if min(away) < 1e-6 * abs(whole) else 0
    return lambda value: items(value, [])[place][1]


def scalar(value: Any) -> Tensor:
    """One number out of a loss: itself, or the mean over the examples."""
    if not isinstance(value, Tensor):
        raise TypeError(f"returned {type(value).__name__}, not a tensor: nothing can be trained with it")
    return value.sum() if value.ndim == 0 else value.mean()


def take_apart(loss: Loss, reconstruction: Tensor, x: Tensor, mean: Tensor, spread: Tensor) -> LossTerms:
    """Call the loss until it is known.

    Args:
        reconstruction, x, mean, spread: what it is called with in training, in the model's own shapes.
    """
    arguments = tuple(one.detach() for one in (reconstruction, x, mean, spread))
    values = list(arguments)
    with as_script(), Tracer() as tracer:
        value = loss(*values)
    with as_script(), contextlib.suppress(Exception):  # somebody's code may not take double precision
        value = loss(*(one.double() for one in values))
        values = [one.double() for one in values]
    total = total_of(value)

    def called(*arguments: Tensor) -> Tensor:
        with as_script():
            return scalar(total(loss(*arguments)))

    called(*values)
    shape = list(total(value).shape)
    probe = Probe(called, *values)
    distance, weight = probe.distance()
    is_root = False
    if distance and not probe.adds_up(distance, weight):
        distance, weight, is_root = None, 0.0, probe.is_root()
    kl = probe.kl()
    return LossTerms(
        distance,
        weight,
        kl,
        batch=probe.halved().exponents(weight, kl.weight, distance) if distance else (0, 0),
        latents=probe.exponent_of_latents(kl.weight),
        tracer=tracer,
        broadcasts=probe.broadcasts(),
        ungraded=probe.ungraded(),
        undefined=probe.undefined(),
        scale_weight=probe.scale_weight([*loss.parameters()] if isinstance(loss, nn.Module) else [], distance or ""),
        shape=shape,
        repeats=float(called(*values).detach()) == float(called(*values).detach()),
        ignores=probe.ignores(),
        is_root=is_root,
        function=loss,
        arguments=arguments,
    )
