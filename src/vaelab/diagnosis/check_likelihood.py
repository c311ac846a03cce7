"""Whether p(x|z) suits the data, and how much the rate counts beside it."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab import recipes
from vaelab.diagnosis import drawings
from vaelab.diagnosis.case import EXAMPLES, Case, few
from vaelab.diagnosis.findings import Finding, Illness, Plot
from vaelab.diagnosis.rate_weight import FAR_BETA, NAMED_BETA, mean_log_prob, rate_weight
from vaelab.errors import InputError
from vaelab.likelihoods import Bernoulli, ContinuousBernoulli, LocScaleDistribution
from vaelab.words import rounded

FLOOR, SURE, SURE_NATS = 0.1, 1e-3, 10.0
LOGIT_RANGE = 0.1  # logits that lie within [0, 1] and are not all alike

ILLNESSES = (
    Illness(
        "effective-beta",
        "a rate that does not count once",
        f"warning: off 1 by more than a factor of {FAR_BETA:g} where the scale of the likelihood is fixed or a "
        f"warm-up did not end, of {NAMED_BETA:g} where objective.beta alone names it; info otherwise, if "
        "objective.beta is not 1. With a fixed σ it is β times how much stronger an error would count under the σ "
        "that fits: of a Gaussian β σ² over the mean squared error",
    ),
    Illness(
        "likelihood-misfit",
        "a likelihood of other data",
        "error: density 0, values outside of the support, or a binary likelihood on values between 0 and 1; "
        "warning: a density on data of two values, or fewer than a quarter of the levels in use",
    ),
    Illness(
        "scale-at-floor",
        "learned scales on their floor",
        f"warning: {FLOOR:.0%} of them or more, under a density, or over a floor that is wider than half a level; "
        "info otherwise",
    ),
    Illness(
        "saturated-outputs",
        "values that are certain and wrong",
        f"warning: more than {SURE:.1%} of the binary values that vary have a probability below exp(−{SURE_NATS:g})",
    ),
    Illness(
        "double-sigmoid",
        "logits that went through a sigmoid",
        f"error: all logits between 0 and 1, over {LOGIT_RANGE:g} apart",
    ),
)


# -- how much the rate counts --------------------------------------------------------------------------------------


def effective_beta(case: Case) -> Iterator[Finding]:
    """β in the open, or hidden in a scale or a warm-up."""
    if not case.model.has_density:
        return
    weight, plot = rate_weight(case), None
    times, hidden = weight.times, weight.hidden
    if weight.scales is not None:
        x, likelihood = case.decoded
        assert isinstance(likelihood, LocScaleDistribution)
        plot = _scales(likelihood, x, *weight.scales)
    if not weight.is_far and case.beta == 1:
        return
    yield Finding(
        "effective-beta",
        "warning" if weight.is_far else "info",
        " ".join(
            [
                *hidden,
                f"The rate counts {times:.3g} times as much as in the ELBO{' of a scale that fits' * bool(plot)}.",
            ]
        ),
        weight.evidence | {"beta": times},
        "a scale that nobody fitted is a β in disguise"
        if plot
        else "objective.warmup is longer than the training"
        if hidden
        else "objective.beta, which weighs the rate",
        case.again(*weight.changes),
        plot,
    )


def _scales(likelihood: LocScaleDistribution, x: Tensor, fixed: float, fits: float) -> Plot:
    low, high = sorted((math.log(fixed), math.log(fits)))
    scales = np.exp(np.linspace(low - 0.7, high + 0.7, 40)).tolist()
    values = [mean_log_prob(likelihood, x, scale) for scale in scales]
    marks = {f"fixed: {fixed:.3g}": fixed, f"fits: {fits:.3g}": fits}
    titles = ("E[log p(x|z)]", "scale", "nats per example")
    caption = "How probable examples are under other scales, all else as it is."
    return drawings.line((scales, values), "effective-beta", titles, caption, marks)


# -- whether it is a likelihood of these data ----------------------------------------------------------------------


def misfit(case: Case) -> Iterator[Finding]:
    """Data that the likelihood is not made for."""
    x, likelihood = case.decoded
    if not likelihood.mean.isfinite().all():
        return  # the outputs are no numbers, whatever the data
    low, high = float(x.min()), float(x.max())
    evidence: dict[str, Any] = {"least": low, "most": high}

    def found(severity: Any, message: str, cause: str, remedy: str) -> Finding:
        plot = drawings.histogram(x, "likelihood-misfit", ("The data", "value"), "How often each value occurs.")
        return Finding("likelihood-misfit", severity, message, evidence, cause, remedy, plot)

    if isinstance(likelihood, Bernoulli):
        if between := float(((x != 0) & (x != 1)).float().mean()):
            evidence["share"] = between
            told = (
                f"{between:.0%} of the values are neither 0 nor 1, and the likelihood is binary: its numbers are no "
                "log-likelihood."
            )
            levels = case.dataset.spec.kind != "real" or (low >= 0 and high <= 1)
            changes = ("data.values=auto", "data.binarize=dynamic") if levels else ()
            yield found(
                "error", told, "grey levels under a Bernoulli likelihood", case.again(*changes, "likelihood.name=auto")
            )
        return
    if outside := _outside(case, x):
        evidence["share"] = outside
        told = f"{outside:.1%} of the examples lie outside of the likelihood's support: their density is 0."
        cause = "data that reach further than those the likelihood is made for"
        yield found("error", told, cause, case.again("likelihood.name=auto"))
    elif (used := _levels_used(case)) is not None:
        evidence |= {"levels": case.dataset.spec.levels, "used": used}
        told = (
            f"Only the lowest {used} of {case.dataset.spec.levels} levels occur, so all values of x lie between 0 and "
            f"{high:.2g}, where the networks hardly tell them apart."
        )
        yield found("warning", told, "numbers of few levels taken for grey levels", case.again(f"data.levels={used}"))
    elif not case.model.likelihood.discrete and len(x.unique()) == 2:
        told = (
            f"The data have two values only, {low:g} and {high:g}, and the likelihood is a density: it can be made as "
            "high as one likes."
        )
        binary = ("data.values=auto",) if case.run.config.data.values == "real" else ("data.binarize=threshold",)
        cause = "binary data taken for real numbers"
        yield found("warning", told, cause, case.again(*binary, "likelihood.name=auto"))


def _levels_used(case: Case) -> int | None:
    """How many levels the training examples have, from 0 on; None where that is a quarter of all or more."""
    levels = case.dataset.spec.levels
    if case.dataset.spec.kind != "levels" or levels is None:
        return None
    x, _ = few(case.training_examples(EXAMPLES), EXAMPLES)
    used = round(float(x.max()) * (levels - 1)) + 1
    return used if 4 * used < levels else None


def _outside(case: Case, x: Tensor) -> float:
    """The share of examples that have density 0, or that the likelihood refuses."""
    with torch.no_grad():
        outside = ~case.decoded[1].log_prob(x).isfinite()
    for at, one in enumerate(x.flatten(1)):
        try:
            case.model.likelihood.check(float(one.min()), float(one.max()))
        except InputError:
            outside[at] = True
    return float(outside.float().mean())


def floor(case: Case) -> Iterator[Finding]:
    """Learned scales that their floor holds up."""
    share = case.evaluation.scale_at_floor
    if not share:
        return
    held = float(getattr(case.model.likelihood, "scale_floor", 0.0))
    levels = case.dataset.spec.levels
    # A probability has a largest value, and comes near it on any floor that is narrow beside a level.
    harmless = case.model.likelihood.discrete and levels is not None and held <= 0.5 / (levels - 1)
    told, cause = "The data could be told more exactly than it allows.", "values that the decoder knows exactly"
    if not case.model.likelihood.discrete:
        told = (
            "Where values never vary, the log-likelihood says more about likelihood.scale_floor than about the model."
        )
        cause = "values that never vary, or that the decoder knows exactly; a density has no largest value there"
    elif harmless:
        told = "Their values are as good as certain."
    yield Finding(
        "scale-at-floor",
        "warning" if share >= FLOOR and not harmless else "info",
        f"{share:.{2 if share < 0.01 else 0}%} of the learned scales rest on their floor, {held:g}. {told}",
        {"share": share, "floor": held},
        cause,
        "Nothing to do: a probability cannot exceed 1." if harmless else _off_the_floor(case, held),
        _learned_scales(case, held),
    )


def _learned_scales(case: Case, held: float) -> Plot | None:
    """Where the scales are; None where there is one for all."""
    scale = getattr(case.decoded[1], "scale", None)
    if scale is None or scale.numel() < 2:
        return None
    titles, caption = ("Learned scales", "log₁₀ scale"), "The scales that the model has learned, and their floor."
    return drawings.histogram(scale.log10(), "scale-at-floor", titles, caption, {"floor": math.log10(held)})


def _off_the_floor(case: Case, held: float) -> str:
    """Back to the default floor; probabilities in place of a density; one scale for all values; or a lower floor."""
    likelihood = case.run.config.likelihood
    named = () if _is_named(case) else (f"likelihood.name={case.run.config.name('likelihood')}",)
    default = type(likelihood).model_fields["scale_floor"].default
    if held > default:
        return case.again(*named, f"likelihood.scale_floor={default:g}")
    if case.run.config.data.values == "real" and case.dataset.levels is not None:
        return case.again("data.values=auto", "likelihood.name=auto")
    if getattr(likelihood, "scale_shape", "one") != "one":
        return case.again(*named, "likelihood.scale_shape=one")
    return case.again(*named, f"likelihood.scale_floor={held / 10:g}")


def _is_named(case: Case) -> bool:
    """Whether the command or its recipe chooses the likelihood. Keys of an automatic one are refused."""
    if "likelihood.name=" in case.run.about["command"]:
        return True
    try:
        recipe = recipes.load(case.run.config.recipe).tables.get("likelihood", {})
    except InputError:  # a file of somebody's own that is there no more
        return False
    return recipe.get("name", "auto") != "auto"


# -- logits --------------------------------------------------------------------------------------------------------


def binary_outputs(case: Case) -> Iterator[Finding]:
    """Sigmoids that are taken twice, or that are saturated."""
    x, likelihood = case.decoded
    if not isinstance(likelihood, Bernoulli | ContinuousBernoulli):
        return
    logits = likelihood.logits
    low, high = float(logits.min()), float(logits.max())
    if low >= 0 and high <= 1 and high - low > LOGIT_RANGE:
        yield Finding(
            "double-sigmoid",
            "error",
            f"All logits lie between {low:.2f} and {high:.2f}, so that probabilities lie between "
            f"{1 / (1 + math.exp(-low)):.2f} and {1 / (1 + math.exp(-high)):.2f}.",
            {"least": low, "most": high},
            "a sigmoid at the end of the decoder: the likelihood takes logits",
            "Take the sigmoid out of the decoder, and train again: " + case.again(),
            _logits(logits, "double-sigmoid"),
        )
    elif isinstance(likelihood, Bernoulli):
        yield from _saturated(case, x.flatten(1), logits.flatten(1))


def _saturated(case: Case, x: Tensor, logits: Tensor) -> Iterator[Finding]:
    varying = x.amin(0) != x.amax(0)
    cost = -torch.nn.functional.logsigmoid((2 * x - 1) * logits)[:, varying]
    wrong = cost > SURE_NATS
    share = float(wrong.float().mean()) if cost.numel() else 0.0
    if share <= SURE:
        return
    nats = float(cost[wrong].sum() / len(x))
    yield Finding(
        "saturated-outputs",
        "warning",
        f"{share:.2%} of the values that vary are wrong with certainty: the model gives them a probability below "
        f"exp(−{SURE_NATS:g}) = {math.exp(-SURE_NATS):.0e}. They cost {rounded(nats)} nats per example.",
        {"share": share, "nats": nats, "largest_logit": float(logits.abs().max())},
        "a decoder so sure of itself that its sigmoids are saturated: over-fitting, or too high a learning rate",
        case.again("training.weight_decay=0.01", case.slower(3)),
        _logits(logits, "saturated-outputs"),
    )


def _logits(logits: Tensor, name: str) -> Plot:
    return drawings.histogram(logits, name, ("Decoder outputs", "logit"), "How often the decoder gives each logit.")
