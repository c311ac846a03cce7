"""Checks of how a foreign loss weighs reconstruction against KL, and of what its reconstruction term is a density."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from vaelab.diagnosis.findings import Finding, Illness, Severity
from vaelab.diagnosis.foreign.check_loss import term_call
from vaelab.diagnosis.foreign.loss_formulas import STRETCHED
from vaelab.diagnosis.foreign.loss_means import Mean, factor, means, multiplied, summed, to_sum
from vaelab.diagnosis.foreign.loss_terms import LossTerms
from vaelab.diagnosis.foreign.patient import Patient
from vaelab.diagnosis.foreign.source_lines import change, leave, line_of, text_of
from vaelab.diagnosis.foreign.tracing import Call

FAR_BETA, LOST_BETA = 3.0, 10.0
NARROW = 1e-2  # σ over a pixel's own standard deviation below which the KL counts next to nothing

ILLNESSES = (
    Illness(
        "effective-beta",
        "a β hidden in sums and means",
        f"error above {LOST_BETA:g} or where it changes with the batch size, warning beyond a factor of "
        f"{FAR_BETA:g}, info beyond 1 %; for a squared error, warning if σ is below {NARROW:.0%} of a pixel's "
        "standard deviation, and if it is averaged as for squared-error-without-scale; for an absolute error, error "
        f"above {LOST_BETA:g}, else warning; for a σ that the loss learns, β is by what ln σ counts, error without it",
    ),
    Illness(
        "squared-error-without-scale",
        "a squared error whose σ nobody chose",
        f"σ² exceeds {FAR_BETA:g} times the mean variance of a pixel, which a decoder without latents reaches. "
        "Error if it exceeds every eigenvalue of the data's covariance, for every linear VAE collapses; warning "
        "if a linear VAE would leave latents unused; else info",
    ),
    Illness(
        "likelihood-misfit",
        "binary cross-entropy on data that are not 0 or 1",
        "error for data outside of [0, 1], or that a Bernoulli distribution refuses; info for grey levels, for "
        "training works and only the number is no likelihood",
    ),
)


def scales(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """What β, or σ, do its sums, means and factors make?"""
    if loss.is_vector or not loss.repeats or loss.distance is None or not loss.ratio > 0:
        return
    if loss.scale_weight is not None:
        yield from _learned(p, loss, loss.scale_weight)
    elif "squared" in loss.distance:
        yield from _squared(p, loss)
    elif "absolute" in loss.distance:
        yield from _absolute(p, loss)
    else:
        yield from _beta(p, loss)


@dataclass
class _Cause:
    """What makes the ratio of the weights: in words, whether means do, and those that must become sums.

    Attributes:
        left: the ratio that sums would leave.
        count: what the mean over pixels is multiplied by, and where, if that is not their number.
    """

    words: str
    averaged: bool
    means: list[Mean]
    left: float
    count: tuple[float, Call | None] | None = None


def _explained(p: Patient, loss: LossTerms, natural: float = 1.0) -> _Cause:
    """Why the ratio of the weights is not `natural`, a number above 0."""
    count = multiplied(loss)
    if count[0] not in (1, p.pixels) and math.isclose(loss.ratio * count[0], p.pixels, rel_tol=1e-3):
        told = f"the mean over the {p.pixels} pixels is multiplied by {count[0]:g}"
        return _Cause(told, False, [], loss.ratio, count)
    by_batch = loss.batch[1] - loss.batch[0]
    rest = loss.ratio / p.batch**by_batch
    over_pixels, over_latents, left = next(
        ((a, b, f) for f in (1, 2, 0.5) for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))
         if math.isclose(rest, p.pixels**a / p.latents**b * f, rel_tol=1e-3) and _may_average(loss, b)),
        _as_written(p, loss, rest, natural),
    )  # fmt: skip
    batch = f"the batch of {p.batch}"
    first = [*([f"the {p.pixels:,} pixels"] if over_pixels else []), *([batch] if by_batch > 0.5 else [])]
    second = [*([f"the {p.latents} latents"] if over_latents else []), *([batch] if by_batch < -0.5 else [])]
    if not first and not second:
        every = means(loss, (p.batch, p.pixels, p.latents))
        if some := to_sum(_but_over_examples(p, every), loss.ratio, natural) or to_sum(every, loss.ratio, natural):
            names = ["the KL" if one.of_kl else "the reconstruction term" for one in some]
            over = [f"{name} is averaged over {one.number:g} numbers" for name, one in zip(names, some, strict=True)]
            return _Cause(" and ".join(over), True, some, natural)
        return _Cause(f"a factor of {loss.ratio:.3g} between the two terms", False, [], loss.ratio)
    told = [f"the {name} is averaged over {' and '.join(over)}" if over else f"the {name} is summed"
            for name, over in (("reconstruction term", first), ("KL", second))]  # fmt: skip
    words = ", ".join(told) + ("" if left == 1 else f", and there is a factor of {left:.3g}")
    return _Cause(words, True, _to_sum(p, loss, left), left)


def _may_average(loss: LossTerms, over_latents: int) -> bool:
    """Whether the KL's weight changes with the number of latents as such a mean would; True where that is not known."""
    return loss.latents is None or math.isclose(loss.latents, -over_latents, abs_tol=0.05)


def _as_written(p: Patient, loss: LossTerms, rest: float, natural: float) -> tuple[int, int, float]:
    """Whether the loss has a mean over pixels, and one over latents; and the factor that is left beside them.

    Neither, where sums would leave a factor that is farther from what is natural.
    """
    found = {(one.of_kl, one.number) for one in means(loss, (p.batch, p.pixels, p.latents))}
    over_pixels = int(not found.isdisjoint({(False, p.pixels), (False, p.pixels * p.batch)}))
    over_latents = int(not found.isdisjoint({(True, p.latents), (True, p.latents * p.batch)}))
    left = rest / p.pixels**over_pixels * p.latents**over_latents
    farther = abs(math.log(left / natural)) > abs(math.log(rest / natural))
    return (0, 0, rest) if farther else (over_pixels, over_latents, left)


def _to_sum(p: Patient, loss: LossTerms, left: float) -> list[Mean]:
    """The means that must become sums; or else those that must become sums but over the examples.

    Args:
        left: the ratio of the weights that is left without means.
    """
    found = means(loss, (p.batch, p.pixels, p.latents))
    return to_sum(found, loss.ratio, left) or to_sum(_but_over_examples(p, found), loss.ratio, left)


def _but_over_examples(p: Patient, found: list[Mean]) -> list[Mean]:
    return [replace(one, number=one.number / p.batch, keep_batch=True) for one in found if one.number > p.batch]


def _sum_remedy(cause: _Cause) -> str:
    return summed(cause.means) or (
        "Sum over pixels and over latents (reduction='sum'); divide both terms by the number of examples, or none"
    )


def _beta(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    beta = loss.ratio
    if abs(beta - 1) < 0.01:
        return
    cause, call = _explained(p, loss), p.kl_call
    if not cause.averaged and math.isclose(beta, 2, rel_tol=1e-3) and not _has_a_half(loss):
        yield Finding(
            "kl-formula",
            "warning",
            "The KL is twice what it should be.",
            {"weight": beta, "line": line_of(call)},
            "the factor ½ of the KL is missing",
            change(call, leave, f"write  {p.right_kl(loss.kl.reading or 'log-variance', call)}"),
        )
        return
    far = not 1 / FAR_BETA < beta < FAR_BETA
    if loss.kl.reading is None and not far:  # what is wrong with the KL is told already
        return
    severity: Severity = "error" if loss.varies or beta >= LOST_BETA else "warning" if far else "info"
    effect = ": the latents fall silent, and all pictures look alike" if beta > FAR_BETA else ""
    effect = ": z strays from the prior, and samples look worse than reconstructions" if beta < 1 / FAR_BETA else effect
    weighed = cause.means[0].call if cause.means else None if cause.averaged else factor(loss)
    weighed = cause.count[1] if cause.count else weighed
    unless = "the factor before the KL to 1, unless it is meant so (a β-VAE)"
    changing = f" at a batch of {p.batch}, and changes with the batch size" if loss.varies else ""
    yield Finding(
        "effective-beta",
        severity,
        f"The loss is  reconstruction term + β · KL  with β = {beta:,.4g}{changing}. A VAE has β = 1.",
        {"beta": beta, "pixels": p.pixels, "latents": p.latents, "batch": p.batch,
         "changes_with_batch": loss.varies, "line": line_of(weighed)},
        cause.words + effect,
        _sum_remedy(cause) if cause.averaged
        else change(weighed, leave, f"multiply by {p.pixels} in place of {cause.count[0]:g}") if cause.count
        else change(weighed, leave, f"set {unless}") if weighed else f"Set {unless}.",
    )  # fmt: skip


def _has_a_half(loss: LossTerms) -> bool:
    """Whether a line of the loss halves something or names a factor."""
    lines = {text_of(call) for call in loss.tracer.calls}
    return any(
        re.search(r"0?\.5\b|/\s*2|\bbeta|weight|kl_divergence|\b2(\.0?)?\s*\*", line, re.IGNORECASE) for line in lines
    )


def _learned(p: Patient, loss: LossTerms, weight: float) -> Iterator[Finding]:
    """A scale that is learned makes up for any weight of the errors, so ln σ beside them tells what they count."""
    loss = replace(loss, weight=weight)
    if loss.ratio > 0 and (_explained(p, loss).averaged or abs(loss.ratio - 1) < 0.01):
        yield from _beta(p, loss)
        return
    call, density = term_call(loss), "(error²/(2σ²) + ln σ) is summed over all pixels of all examples"
    if loss.ratio > 0:
        message = f"ln σ counts {weight:.3g} for each pixel, and the KL {loss.kl.weight:.3g}: β = {loss.ratio:.3g}. A "
        message += "VAE has β = 1; whatever weighs the errors themselves makes no difference to a σ that is learned."
    else:
        message = "The loss learns the scale σ of its errors, and nothing keeps σ small: training makes it as large as "
        message += "it can, until the errors no longer count."
    yield Finding(
        "effective-beta",
        "warning" if 1 / LOST_BETA < loss.ratio < LOST_BETA else "error",
        message,
        {"weight_of_log_sigma": weight, "beta": loss.ratio, "line": line_of(call)},
        "−log p(x|z) has a ln σ for every pixel of every example; here it is missing, has another factor or sign, or "
        "the KL has a factor",
        change(call, leave, f"write it so that {density}, and the KL beside it has no factor"),
    )


def _squared(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Σ w_r (r − x)² + w_k KL is −ELBO of a Gaussian with σ² = w_k / (2 w_r), up to a constant."""
    variance = loss.ratio / 2
    centered = (p.data.double() - p.data.double().mean(0)) * (2 if loss.distance == STRETCHED else 1)
    eigenvalues = torch.linalg.svdvals(centered).square() / len(centered)
    per_pixel = float(eigenvalues.sum()) / p.pixels
    times = variance / per_pixel if per_pixel else math.inf
    if NARROW**2 < times <= FAR_BETA and not loss.varies:
        return
    directions = min(p.latents, p.pixels)
    above = min(directions, int((eigenvalues > variance).sum()))
    wide = times > 1
    cause = _explained(p, loss, 2 * per_pixel or 1.0)
    severity: Severity = "warning" if not wide or above < directions else "info"
    if loss.varies or not above:
        severity = "error"
    effect = (
        f"A linear VAE would use {above or 'none'} of its {directions} latents."
        if wide
        else "The KL counts next to nothing."
    )
    yield Finding(
        "effective-beta" if loss.varies or cause.averaged or not wide else "squared-error-without-scale",
        severity,
        _stands_for("squared", f"Gaussian with standard deviation σ = {math.sqrt(variance):.3g}", loss)
        + f"but pixels vary by {math.sqrt(per_pixel):.3g} (their standard deviation). "
        + (f"The KL counts {times:,.3g} times too much, or more. " if wide else "")
        + effect,
        {"sigma": math.sqrt(variance), "pixel_stddev": math.sqrt(per_pixel), "beta_at_least": times,
         "directions_above": above, "largest_eigenvalue": float(eigenvalues[0]), "changes_with_batch": loss.varies,
         "batch": p.batch, "line": _first_line(loss, cause)},
        cause.words if cause.averaged or not wide
        else "the squared error is not divided by 2σ², or is averaged over pixels",
        _sum_remedy(cause)
        if cause.averaged and NARROW**2 * per_pixel < cause.left / 2 < FAR_BETA * per_pixel
        else _scale_remedy("squared error by 2σ²", f"σ = {math.sqrt(per_pixel) / 3:.2g}", cause),
    )  # fmt: skip


def _absolute(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Σ w_r |r − x| + w_k KL is −ELBO of a Laplace distribution with scale b = w_k / w_r, up to a constant."""
    own = float((p.data - p.data.median(0).values).abs().mean())
    times = loss.ratio / own if own else math.inf
    if times <= FAR_BETA and not loss.varies:
        return
    cause = _explained(p, loss, own or 1.0)
    yield Finding(
        "effective-beta",
        "error" if loss.varies or times > LOST_BETA else "warning",
        _stands_for("absolute", f"Laplace distribution with scale b = {loss.ratio:.3g}", loss)
        + f"but pixels are {own:.3g} off their median on average. The KL counts {times:,.3g} times too much, or more.",
        {"scale": loss.ratio, "mean_absolute_deviation": own, "beta_at_least": times,
         "changes_with_batch": loss.varies, "line": _first_line(loss, cause)},
        cause.words if cause.averaged else "the absolute error is not divided by b, or is averaged over pixels",
        _sum_remedy(cause)
        if cause.averaged and cause.left < FAR_BETA * own
        else _scale_remedy("absolute error by b", f"b = {own / 3:.2g}", cause),
    )  # fmt: skip


def _stands_for(kind: str, distribution: str, loss: LossTerms) -> str:
    changing = " (and another one at another batch size)" if loss.varies else ""
    return f"Weighed like this, the {kind} error stands for a {distribution}{changing}, "


def _first_line(loss: LossTerms, cause: _Cause) -> str:
    return line_of(cause.means[0].call if cause.means else term_call(loss))


def _scale_remedy(what: str, first: str, cause: _Cause) -> str:
    first = f"the {what}: learned, or to begin with a third of what pixels vary by, {first}."
    return f"{_sum_remedy(cause)}\nand divide {first}" if cause.averaged else f"Divide {first}"


def likelihood(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Are the data of the kind that a binary cross-entropy is for?"""
    if loss.distance is None or "cross-entropy" not in loss.distance:
        return
    least, most = float(p.data.min()), float(p.data.max())
    between = float(((p.data > 0) & (p.data < 1)).float().mean())
    evidence = {"least": least, "most": most, "share_between": between, "line": line_of(term_call(loss))}
    if least < 0 or most > 1:
        yield Finding(
            "likelihood-misfit",
            "error",
            f"Binary cross-entropy is of values from 0 to 1, and the data reach from {least:.3g} to {most:.3g}.",
            evidence,
            "standardized data, or pixels from 0 to 255",
            "Scale the data to [0, 1], or take a Gaussian with a learned σ.",
        )
    elif between > 0.01:
        yield Finding(
            "likelihood-misfit",
            "info",
            f"{between:.0%} of the values lie between 0 and 1. Binary cross-entropy is a fair loss for them, but no "
            "log-likelihood: a constant is missing that depends on the output.",
            evidence,
            "a likelihood of 0 and 1 on grey levels: training works, the number cannot be compared",
            "Do not quote the loss as −log p(x); binarize the data (data.binarize=threshold), or take a likelihood of "
            "grey levels.",
        )
