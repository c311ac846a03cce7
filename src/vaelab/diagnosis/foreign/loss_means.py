"""Where a foreign loss takes means, and where it has a factor: the calls in its two terms, with what they divide by."""

import itertools
import math
import re
from dataclasses import dataclass

from vaelab.diagnosis.foreign.loss_terms import LossTerms
from vaelab.diagnosis.foreign.paths import after, takes
from vaelab.diagnosis.foreign.source_lines import line_of, text_of, told_at
from vaelab.diagnosis.foreign.tracing import Call, tensors_in

_LOSSES = {"binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss",
           "gaussian_nll_loss"}  # fmt: skip
_DIVISIONS = {"div", "div_", "__truediv__", "true_divide", "divide"}
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "multiply"}


@dataclass
class Mean:
    """A call that takes a mean: by what number it divides, and whether it is in the KL.

    Attributes:
        keep_batch: whether the mean over the examples must stay.
    """

    call: Call
    number: float
    of_kl: bool
    keep_batch: bool = False


def _terms(loss: LossTerms) -> tuple[list[Call], list[Call]]:
    """The calls of the reconstruction term, and of the KL; those that both go through are in neither."""
    calls, (reconstruction, _, mean, spread) = loss.tracer.calls, loss.arguments
    first, second = after(calls, [reconstruction]), after(calls, [mean, spread])
    return (
        [call for call in calls if takes(call, first) and not takes(call, second)],
        [call for call in calls if takes(call, second) and not takes(call, first)],
    )


def means(loss: LossTerms, counts: tuple[int, ...]) -> list[Mean]:
    """All means in the two terms.

    Args:
        counts: of examples, pixels and latents: a division by one of these, or by a product, is a mean too.
    """
    return [
        Mean(call, number, of_kl)
        for of_kl, calls in zip((False, True), _terms(loss), strict=True)
        for call in calls
        if (number := _divides_by(call, counts)) > 1
    ]


def _divides_by(call: Call, counts: tuple[int, ...]) -> float:
    """1 if it is no mean."""
    given, got = call.inputs[:1], list(tensors_in([call.output]))
    if call.name in _DIVISIONS and len(call.args) > 1 and isinstance(call.args[1], int | float):
        several = {math.prod(some) for size in (1, 2) for some in itertools.combinations(counts, size)}
        return float(call.args[1]) if call.args[1] in several else 1.0
    averages = call.name == "mean" or (call.name in _LOSSES and call.kwargs.get("reduction", "mean") == "mean")
    return given[0].numel() / got[0].numel() if averages and given and len(got) == 1 and got[0].numel() else 1.0


def to_sum(found: list[Mean], ratio: float, wanted: float) -> list[Mean]:
    """The fewest means that must become sums for the ratio of the weights, KL over reconstruction, to be as wanted."""
    for size in range(1, len(found) + 1):
        for some in itertools.combinations(found, size):
            new = ratio * math.prod(one.number if one.of_kl else 1 / one.number for one in some)
            if math.isclose(new, wanted, rel_tol=1e-3):
                return list(some)
    return []


def summed(found: list[Mean]) -> str:
    """What to write in place of these means, line by line."""
    told: dict[str, None] = {}
    for mean in found:
        place, text = line_of(mean.call), text_of(mean.call)
        here = [one for one in found if line_of(one.call) == place]
        divides = any(one.call.name in _DIVISIONS for one in here)
        keep = any(one.keep_batch for one in here)
        new = "" if divides or keep or text.count("mean") != len(here) else _sum(text)
        if new and new != text:
            told[f"{place}: write  {new}"] = None
            continue
        what = f"take out the division by {mean.number:g}" if divides else "take the sum in place of the mean"
        over = "latents" if mean.of_kl else "pixels"
        what = f"sum over the {over}, and take the mean over the examples alone" if keep else what
        told[told_at(place, what, text) if place else what] = None
    return "\nand ".join(told)


def _sum(text: str) -> str:
    text = re.sub(r"reduction\s*=\s*(['\"])mean\1", r"reduction=\1sum\1", text)
    return re.sub(r"(?<=\.)mean\(", "sum(", text)


def multiplied(loss: LossTerms) -> tuple[float, Call | None]:
    """By what number the reconstruction term is multiplied in all, and where first."""
    found = [
        (float(one), call)
        for call in _terms(loss)[0]
        if call.name in _PRODUCTS
        for one in call.args
        if isinstance(one, int | float)
    ]
    return math.prod(number for number, _ in found), found[0][1] if found else None


def factor(loss: LossTerms) -> Call | None:
    """The one call that gives a term its weight: it multiplies by the ratio of the weights, or divides by that."""
    found: list[Call] = []
    if any(math.isclose(loss.ratio, one, rel_tol=1e-3) for one in (0.5, 2)):  # these stand in every KL
        return None
    for of_kl, calls in zip((False, True), _terms(loss), strict=True):
        ratio = loss.ratio if of_kl else 1 / loss.ratio
        for call in calls:
            wanted = ratio if call.name in _PRODUCTS else 1 / ratio if call.name in _DIVISIONS else math.nan
            numbers = [float(one) for one in call.args if isinstance(one, int | float)]
            numbers += [float(one.detach()) for one in call.inputs if one.ndim == 0]
            if any(math.isclose(one, wanted, rel_tol=1e-3) for one in numbers):
                found.append(call)
    return found[0] if len({line_of(call) for call in found}) == 1 else None
