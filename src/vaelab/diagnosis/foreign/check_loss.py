"""Checks of a foreign loss: whether it works, and what its reconstruction term is."""

import linecache
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign.check_ranges import double_sigmoid
from vaelab.diagnosis.foreign.loss_formulas import SHRUNK, STRETCHED
from vaelab.diagnosis.foreign.loss_terms import LossTerms
from vaelab.diagnosis.foreign.paths import after, takes
from vaelab.diagnosis.foreign.patient import EDGE, Failure, Patient
from vaelab.diagnosis.foreign.source_lines import change, file_of, leave, line_of, line_with, told_at
from vaelab.diagnosis.foreign.tracing import Call

WITH_LOGITS = "use F.binary_cross_entropy_with_logits, or end the decoder with a sigmoid"

ILLNESSES = (
    Illness("loss-fails", "a loss that raises an error", "error"),
    Illness("vector-loss", "a loss that is not one number", "error: it has other axes than the examples"),
    Illness(
        "broadcast",
        "shapes that torch stretches silently",
        "error: the loss changes when both have one shape, or does not change with the order of the examples",
    ),
    Illness(
        "undefined-loss",
        "a logarithm of 0",
        "warning: not finite where a reconstruction is exactly the pixel, 0 or 1",
    ),
    Illness(
        "logits-as-probabilities",
        "binary cross-entropy of outputs without a sigmoid",
        "error: the loss wants [0, 1], the output goes beyond",
    ),
    Illness(
        "reconstruction-term",
        "a reconstruction term that is none",
        "error: wrong sign, no effect, no part of x in it, arguments exchanged, half of the cross-entropy, or the root "
        "of a sum of squares",
    ),
    Illness(
        "unrecognized-loss",
        "terms that are not known here",
        "info: nothing is said of what could not be recognized",
    ),
    Illness("no-loss", "no loss was given", "info: scales and KL were not examined"),
)


def missing(p: Patient) -> Iterator[Finding]:
    """No loss was given: only what the file of the model shows."""
    file = file_of(type(p.subject.model))
    text = [] if "site-packages" in file else linecache.getlines(file)
    lines = [n for n, line in enumerate(text, 1) if re.search("cross_entropy_with_logits|BCEWithLogits", line)]
    if lines and p.bounds == (0.0, 1.0):
        line = f"{Path(file).name}:{lines[0]}"
        yield double_sigmoid(
            p,
            f"The outputs lie between 0 and 1, and {line} takes a cross-entropy with logits, which applies another "
            "sigmoid.",
            {"loss_line": line},
            line,
        )
    yield Finding(
        "no-loss",
        "info",
        "Sums and means, the KL and the likelihood were not examined, for no loss was given.",
        remedy="Give --loss FILE.py:NAME, a function loss(reconstruction, x, mean, log_variance).",
    )


def failed(p: Patient, failure: Failure) -> Finding:
    """The loss raised an error."""
    evidence = {"error": failure.error, "line": line_of(failure.call)}
    if p.beyond_unit and "between 0 and 1" in failure.error:
        message = f"The loss wants outputs between 0 and 1, but they are {_span(p)}. It raises {failure.error}."
        return _logits(p, message, evidence, failure.call)
    if "within the support" in failure.error:
        return Finding(
            "likelihood-misfit",
            "error",
            f"The data are no values of the distribution in the loss. It raises {failure.error}",
            evidence,
            "a Bernoulli distribution takes 0 and 1 only, and the data have grey levels",
            "Examine it with binary data, data.binarize=threshold; or take a distribution of grey levels.",
        )
    return Finding(
        "loss-fails",
        "error",
        f"loss(reconstruction, x, mean, log_variance) raises {failure.error}",
        evidence,
        "other arguments, shapes or ranges than the model gives",
        change(failure.call, leave, "give --loss a function of these four, in this order"),
    )


def value(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Does it compare each example with its own reconstruction, and is it finite?"""
    call = term_call(loss)
    if loss.is_vector:
        yield _vector(loss)
    if loss.broadcasts:
        shapes = list(p.reconstruction.tensor.shape), list(p.subject.x.shape)
        yield (
            _all_alike(call)
            if loss.broadcasts == "order"
            else Finding(
                "broadcast",
                "error",
                f"The reconstruction is {shapes[0]}, x is {shapes[1]}. Torch stretches both to one shape without an "
                "error, and the loss compares each example with all others.",
                {"reconstruction": shapes[0], "x": shapes[1], "line": line_of(call)},
                "an axis of length 1, the channels, is in one of them and not in the other",
                change(call, leave, "write  x.view_as(reconstruction)  in place of x"),
            )
        )
    if loss.undefined and p.reaches_an_edge:
        call = loss.tracer.first("log", "logit") or call
        yield Finding(
            "undefined-loss",
            "warning",
            "The loss is infinite or not a number where a reconstruction is exactly 0 or 1. A sigmoid gives a 1 for "
            "inputs beyond 17, and training breaks there.",
            {"line": line_of(call)},
            "0 times the logarithm of 0",
            change(call, leave, "use F.binary_cross_entropy_with_logits on outputs without a sigmoid"),
        )


def _all_alike(call: Call | None) -> Finding:
    """Shapes that agree, and a loss that does not change with the order of the examples."""
    return Finding(
        "broadcast",
        "error",
        "The loss is the same when the examples are put in another order, and the reconstructions are not: no "
        "reconstruction is held to its own example.",
        {"line": line_of(call)},
        "a mean over the examples before the comparison, or a shape inside of the loss that torch stretches silently",
        change(call, leave, "compare each reconstruction with its own x, and sum after that"),
    )


def returned(loss: LossTerms) -> tuple[str, str]:
    """The last line of the loss that returns something: place and text."""
    function = type(loss.function).forward if isinstance(loss.function, nn.Module) else loss.function
    return line_with(function, "return ")


def _vector(loss: LossTerms) -> Finding:
    unreduced = [call for call in loss.tracer.calls if call.kwargs.get("reduction") == "none"]
    same = [call for call in unreduced if [*call.output.shape] == loss.shape]
    call = same[0] if len(same) == 1 else None
    where, text = returned(loss)
    return Finding(
        "vector-loss",
        "error",
        f"The loss is no single number, but a tensor of shape {loss.shape}: backward() raises an error.",
        {"shape": loss.shape, "line": line_of(call) or where},
        "one term is not summed: reduction='none', or a sum that was forgotten",
        change(call, lambda text: re.sub(r"reduction\s*=\s*(['\"])none\1", r"reduction=\1sum\1", text), "sum it")
        if call
        else told_at(where, "sum what is returned", text)
        if where
        else "Sum each term over pixels, latents and examples.",
    )


def gradient(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Does it pass gradients to all that it depends on?"""
    del p
    if loss.ungraded and loss.distance is not None:
        lost = [one for name, one in loss.by_name.items() if name in loss.ungraded]
        within, opened = line_with(loss.function, "no_grad", "inference_mode")
        names, calls = ("item", "detach", "__get__", "tolist", "__float__"), loss.tracer.calls
        of_lost = after(calls, lost)
        call = next((one for one in calls if one.name in names and takes(one, of_lost)), loss.tracer.first(*names))
        yield Finding(
            "no-gradient",
            "error",
            f"The loss depends on {' and '.join(loss.ungraded)}, but passes no gradient there: training cannot see it.",
            {"lost": loss.ungraded, "line": line_of(call) or within},
            "item, detach, .data or no_grad in the loss",
            told_at(within, "leave out no_grad", opened)
            if within and call is None
            else change(
                call, lambda text: re.sub(r"\.(detach|item)\(\)|\.data\b", "", text), "keep the tensors as they are"
            ),
        )


# -- the reconstruction term ---------------------------------------------------------------------------------------


def term_call(loss: LossTerms) -> Call | None:
    """Where the reconstruction term is computed."""
    names = ("binary_cross_entropy_with_logits", "binary_cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss", "log",
             "logsigmoid", "square", "pow", "__pow__")  # fmt: skip
    return next((call for name in names if (call := loss.tracer.first(name))), None)


def reconstruction(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Is its reconstruction term one, with the right sign and arguments?"""
    call = term_call(loss)
    if not loss.repeats:
        yield Finding(
            "unrecognized-loss",
            "info",
            "The loss gives another number each time it is called with the same arguments; it was not examined.",
            {"line": line_of(call)},
            "a counter of calls, as for a warm-up of β, or noise",
            "Give --loss the loss as it is at the end of the warm-up.",
        )
        return
    if loss.distance is None and loss.broadcasts:  # that is why
        return
    if found := _wrong_term(p, loss):
        message, cause, remedy = found
        evidence = {"term": loss.distance or "", "weight": loss.weight, "line": line_of(call)}
        yield Finding("reconstruction-term", "error", message, evidence, cause, change(call, leave, remedy))
    elif loss.distance is None:
        yield Finding(
            "unrecognized-loss",
            "info",
            "The reconstruction term is no squared or absolute error and no binary cross-entropy; its scale was not "
            "examined.",
            {"line": line_of(call)},
            remedy="Hold it to a normalized density: the integral of exp(−term) over x must be 1.",
        )


def _wrong_term(p: Patient, loss: LossTerms) -> tuple[str, str, str] | None:
    """What is wrong with the reconstruction term: message, cause and remedy."""
    if loss.distance is None:
        return _no_term(loss)
    if loss.weight < 0:
        return (
            f"The reconstruction term, a {loss.distance}, enters the loss with the weight {loss.weight:.3g}: the worse "
            "the picture, the smaller the loss.",
            "a sign too many or too few", "change the sign: the loss is −log p(x|z) + KL",
        )  # fmt: skip
    if "swapped" in loss.distance:
        return (
            f"The loss is a {loss.distance}: it takes x for the prediction and the reconstruction for the target.",
            "binary cross-entropy is not symmetric: the prediction comes first",
            "write  F.binary_cross_entropy(reconstruction, x, ...), and begin the loss's arguments with these two",
        )
    if "half" in loss.distance:
        return (
            "The loss is −x ln r alone: pixels that are 0 cost nothing, whatever the reconstruction r says.",
            "the second half of the cross-entropy is missing",
            "add  (1 - x) * torch.log(1 - reconstruction), or use F.binary_cross_entropy",
        )
    if SHRUNK in loss.distance and float(p.data.max()) <= 1:
        return (
            f"The loss is a {loss.distance}, and x reaches {float(p.data.max()):.3g} here, not 255: the pictures that "
            "are learned are all but black.",
            "pixels are scaled to [0, 1] twice: by the data, and by the loss",
            "take out the division by 255",
        )
    if loss.distance == STRETCHED and p.range_of("reconstruction")[0] >= -EDGE:
        return (
            "The loss compares the reconstruction with 2x − 1, which reaches down to −1, and the outputs are never "
            "below 0.",
            "pixels are scaled to [−1, 1] for an output that ends with a sigmoid or a ReLU",
            "compare with x itself, or end the decoder with a tanh",
        )
    return None


def _no_term(loss: LossTerms) -> tuple[str, str, str] | None:
    """The same of a term that is no known one."""
    if loss.ignores:
        names = " and ".join(loss.ignores).replace("reconstruction", "the reconstruction")
        return (
            f"The loss is the same whatever {names} may be: nothing holds the reconstruction to the data.",
            "one of the two is compared with itself, or left out",
            "compare the reconstruction with x",
        )
    if loss.is_root:
        return (
            "The reconstruction term is the root of a sum of squares over all pixels and examples. That is no "
            "−log p(x|z), and it outweighs the KL the less, the more pixels and examples there are.",
            "a root mean squared error: a measure to report, not a loss to train with",
            "leave out the root: the squared errors, summed over the pixels and divided by 2σ²",
        )
    return None


def sigmoids(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Do model and loss apply one sigmoid between them?"""
    if loss.distance is None:
        return
    low, high = p.reading.ranges.get("reconstruction", (0.0, 1.0))
    unit, call = p.bounds == (0.0, 1.0), term_call(loss)
    line = line_of(call)
    evidence: dict[str, Any] = {"output": [low, high], "loss": loss.distance, "loss_line": line}
    if "of a sigmoid" in loss.distance and ("logits" in loss.distance or unit):
        message = f"The loss is a {loss.distance}, of outputs between {low:.2g} and {high:.2g}."
        yield double_sigmoid(p, message, evidence, line)
    elif "with logits" in loss.distance and unit:
        message = (
            f"The decoder ends with a sigmoid (its outputs lie between {low:.2g} and {high:.2g}), and the loss applies "
            "another one: probabilities can only be 0.50 to 0.73, so that no pixel can be black or white."
        )
        yield double_sigmoid(p, message, evidence, line)
    elif loss.distance == "binary cross-entropy" and p.beyond_unit:
        message = f"The loss takes the outputs for probabilities, but they are {_span(p)}."
        yield _logits(p, message, evidence | {"line": line}, call)


def _span(p: Patient) -> str:
    output = p.reconstruction.tensor.detach()
    farther = " before any training, and can go farther" if p.bounds is None else ""
    return f"from {float(output.min()):.3g} to {float(output.max()):.3g}{farther}"


def _logits(p: Patient, message: str, evidence: dict[str, Any], call: Call | None) -> Finding:
    kind = {(-1.0, 1.0): "tanh", (0.0, math.inf): "ReLU"}.get(p.bounds or (0, 0), "")
    where, text = p.activation(p.reconstruction, kind.lower()) if kind else ("", "")
    at = told_at(where, f"put a sigmoid in the place of the {kind}", text)
    return Finding(
        "logits-as-probabilities",
        "error",
        message,
        evidence | ({"line": where} if where else {}),
        f"the decoder ends with {f'a {kind}' if kind else 'no activation'}, where a sigmoid is expected",
        (at if where else "End the decoder with a sigmoid.")
        if kind
        else change(
            call, lambda text: re.sub(r"binary_cross_entropy\(", "binary_cross_entropy_with_logits(", text), WITH_LOGITS
        ),
    )
