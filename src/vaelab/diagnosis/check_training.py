"""Whether training came to its end, and what it gave: updates that were skipped, numbers that are not finite."""

import math
import re
from collections.abc import Iterator

import torch

from vaelab.config import TrainingConfig
from vaelab.diagnosis.case import EXAMPLES, Case, few
from vaelab.diagnosis.drawings import curves
from vaelab.diagnosis.findings import Finding, Illness
from vaelab.runs import out_of_patience

OFTEN = 0.05  # of all updates
FAR_OFF = 1e4  # times the usual largest value of an example
USUAL_RATE: float = TrainingConfig.model_fields["learning_rate"].default

ILLNESSES = (
    Illness(
        "not-finite",
        "numbers that are not finite",
        "error: one is enough",
    ),
    Illness(
        "skipped-updates",
        "updates whose gradient was not finite",
        "warning: one is enough; info under float16 up to 10 and 1 % of all updates, which find the loss scale",
    ),
    Illness(
        "unfinished",
        "training that ended early",
        "warning: fewer epochs than planned, and training.patience is not the reason",
    ),
    Illness(
        "early-stopping",
        "training that training.patience ended",
        "info: fewer epochs than planned, the last training.patience of them without a lower validation loss",
    ),
    Illness(
        "no-validation",
        "no validation examples",
        "info: nothing tells over-fitting",
    ),
)


def training_end(case: Case) -> Iterator[Finding]:
    """Whether training took all epochs that were planned."""
    lines, best, planned = case.lines, case.best, case.planned
    patience, evidence = case.run.config.training.patience, {"epochs": len(lines), "planned": planned}
    if not lines and case.epochs_done:
        yield Finding(
            "unfinished",
            "info",
            f"metrics.jsonl has no line, though training went through {case.epochs_done} epochs: what the curves would "
            "tell is not known.",
            evidence,
            "the file was emptied or removed",
            "Nothing to do: the weights are there, and are examined.",
        )
    elif not lines:
        yield Finding(
            "unfinished",
            "warning",
            "Training stopped before its first epoch was complete. The weights are hardly trained.",
            evidence,
            "it was interrupted",
            case.resume,
        )
    elif best and len(lines) < planned and out_of_patience(lines, patience):
        yield Finding(
            "early-stopping",
            "info",
            f"Early stopping: after epoch {best['epoch']} the validation loss did not fall for {patience} epochs "
            f"(training.patience), so training ended after {len(lines)} of {planned}.",
            evidence,
            "training.patience",
            "Nothing to do: the weights of the best epoch were kept.",
        )
    elif len(lines) < planned:
        yield Finding(
            "unfinished",
            "warning",
            f"Training stopped after {len(lines)} of {planned} epochs.",
            evidence,
            "it diverged" if has_diverged(case) else "it was interrupted, or diverged",
            _tamer(case) if has_diverged(case) else case.resume,
        )


def has_diverged(case: Case) -> bool:
    """Whether training ended early, after more than a few updates that were skipped."""
    if not 0 < len(case.lines) < case.planned:
        return False
    return case.lines[-1].get("skipped", 0) > OFTEN * case.lines[-1]["step"]


def skipped_updates(case: Case) -> Iterator[Finding]:
    """Updates that were not made, for their gradient was not finite."""
    skipped = case.lines[-1].get("skipped") if case.lines else 0
    if not skipped:
        return
    steps, first = case.lines[-1]["step"], case.first_skipped
    far_off = _far_off(case, first)
    of_data = bool(far_off) or "the data are NaN" in first
    few_of_half = case.run.config.training.precision == "float16" and skipped <= 0.01 * steps + 10
    yield Finding(
        "skipped-updates",
        "info" if few_of_half else "warning",
        f"{skipped} of {steps} updates were skipped, for their gradient was not finite."
        + (f" The first: {first}." if first else "")
        + far_off,
        {"skipped": skipped, "steps": steps, "first_skipped": first},
        "values in the data that are far too large"
        if far_off
        else "NaN or infinite values in the data"
        if of_data
        else "too high a learning rate, or data far from 1",
        "Mend these examples, or leave them out of the data: an update with one of them is lost."
        if of_data
        else _tamer(case),
    )


def _far_off(case: Case, first: str) -> str:
    """A sentence on the training example that the first skipped update named, where its values are far too large."""
    named = re.search(r"training example (\d+)", first)
    if named is None:
        return ""
    train, x = case.dataset["train"], few(case.training_examples(EXAMPLES), EXAMPLES)[0].flatten(1)
    value = float(train.convert(train.read(torch.tensor([int(named[1])]))).abs().max())
    usual = float(x.abs().amax(1).median())
    return f" Values of {named[0]} reach {value:.3g}, where {usual:.3g} is usual." if value > FAR_OFF * usual else ""


def _tamer(case: Case) -> str:
    """Training with a lower learning rate, at most the usual one, and with clipped gradients."""
    rate = case.run.config.training.learning_rate
    return case.again(case.slower(max(3, rate / USUAL_RATE)), _clipped(case))


def _clipped(case: Case) -> str:
    """Gradients cut to a norm of 1, or where that was not enough to a tenth of what they were cut to."""
    clip = case.run.config.training.gradient_clip
    return f"training.gradient_clip={1 if clip > 1 else clip / 10:g}"


def not_finite(case: Case) -> Iterator[Finding]:
    """A model that gives no numbers."""
    weights = [parameter.detach().isfinite() for parameter in case.model.parameters()]
    broken = sum(int((~finite).sum()) for finite in weights)
    yield Finding(
        "not-finite",
        "error",
        "The numbers are not finite: training has diverged"
        + (f", and {broken:,} of the weights are no numbers." if broken else "."),
        {
            "distortion": case.evaluation.distortion,
            "elbo": case.evaluation.elbo,
            "weights": broken,
            "of": sum(finite.numel() for finite in weights),
        },
        "too high a learning rate, or data far from 1",
        case.again(case.slower(10), _clipped(case)),
        curves(case, "loss", "not-finite"),
    )


def is_finite(case: Case) -> bool:
    """Whether the model gives numbers."""
    e = case.evaluation
    told = [value for value in (e.distortion, e.rate, e.elbo) if value is not None]
    return all(map(math.isfinite, told)) and bool(torch.isfinite(case.means).all())


def no_validation(case: Case) -> Iterator[Finding]:
    """No examples but those that were trained on."""
    if case.split == "train":
        yield Finding(
            "no-validation",
            "info",
            "There are no validation examples. All numbers are of training examples; those of new examples are worse.",
            {"training_examples": case.total},
            "data.validation=0, or data that come without",
            case.again("data.validation=0.1"),
        )
