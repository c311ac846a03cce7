"""How the losses and the rate went over the epochs, by the lines of metrics.jsonl."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vaelab.diagnosis.case import Case
from vaelab.diagnosis.check_training import USUAL_RATE, has_diverged
from vaelab.diagnosis.drawings import curves
from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.rate_weight import in_warmup
from vaelab.runs import compared, out_of_patience
from vaelab.words import rounded

OVERFIT_EPOCHS = 0.8  # over-fitting is worth a word if the best epoch is among the first 80 %, and the last is worse
OVERFIT_NATS, OVERFIT_SHARE = 0.1, 0.001  # by 0.1 nats and by a thousandth of the loss
GAP, LOST = 0.25, 0.2  # of what the validation loss fell: the gap to training, and what is lost after the best epoch
GRAVE_GAP = 0.05  # of the validation loss: a smaller gap is worth a word, and no alarm
LATE, STEPS = 0.02, 300  # share of the fall in the last tenth of the epochs; updates
CRAWL = 0.05  # share of the fall in the second half of the epochs, at a rate far below the usual one
RISE, RISE_NATS, RISE_EPOCHS = 0.03, 0.1, 5  # of the rate over the last tenth of at least 5 epochs

ILLNESSES = (
    Illness(
        "over-fitting",
        "loss of validation above that of training, or rising",
        f"warning: the gap at the kept epoch is more than {GAP:.0%} (and {GRAVE_GAP:.0%} of the validation loss), or "
        f"the later rise more than {LOST:.0%}, of what the validation loss fell in all; info for a gap that is a "
        f"smaller part of the loss, or a smaller rise, of {OVERFIT_NATS:g} nats and a thousandth of the loss at least, "
        "because the best weights are kept. A rise counts where the best epoch is among the first "
        f"{OVERFIT_EPOCHS:.0%}; a gap, where the validation loss no longer falls",
    ),
    Illness(
        "unstable",
        "both losses rising",
        f"warning: the validation loss ends above its minimum, by {OVERFIT_NATS:g} nats and a thousandth at least, "
        f"that minimum is among the first {OVERFIT_EPOCHS:.0%} of the epochs, and the training loss rose as well: its "
        "median over a tenth of the epochs",
    ),
    Illness(
        "under-training",
        "a loss that is still falling",
        f"warning: the best loss fell by more than {LATE:.0%} of its whole fall, and a thousandth of the loss, in "
        f"the last tenth of the epochs; or by more than {CRAWL:.0%} in their second half, at a learning rate below a "
        f"tenth of the usual {USUAL_RATE:g}; or there were fewer than {STEPS} updates, and no rise as in over-fitting",
    ),
    Illness(
        "rising-kl",
        "a rate that rises at the end",
        f"warning: by more than {RISE:.0%} and {RISE_NATS:g} nats over the last tenth of at least {RISE_EPOCHS} epochs",
    ),
)


def over_fitting(case: Case) -> Iterator[Finding]:
    """A validation loss that lies above the training loss, or rises."""
    best, epochs = case.best, len(case.lines)
    if not best or not best["validation"] or epochs < 2 or in_warmup(case):  # the training loss has a smaller β then
        return
    last, kept = case.lines[-1], best["validation"]["loss"]
    fall = case.lines[0]["validation"]["loss"] - kept
    gap, lost = kept - best["train"]["loss"], last["validation"]["loss"] - kept
    late = _has_turned(case)
    wide = (
        fall > 0 and gap > max(GAP * fall, _least(kept)) and not (fall_of(case.lines).goes_on or hardly_trained(case))
    )
    if not late and not wide:
        return
    evidence = {"best_epoch": best["epoch"], "epochs": epochs, "gap": gap, "rise": lost, "fall": fall}
    told = (
        f"The validation loss was lowest after epoch {best['epoch']} of {epochs}, and {rounded(lost)} nats higher at "
        f"the end. The weights of epoch {best['epoch']} were kept."
    )
    training_rise = _rise([line["train"]["loss"] for line in case.lines], best["epoch"])
    if late and training_rise > 0:
        yield Finding(
            "unstable",
            "warning",
            f"{told} The training loss rose too: training is unstable.",
            evidence | {"training_rise": training_rise},
            "too high a learning rate",
            case.again(case.slower(3)),
            curves(case, "loss", "unstable"),
        )
    else:
        yield _over_fitted(
            case,
            f"{told} The training loss went on falling: over-fitting. " if late else "",
            evidence,
            wide and gap > GRAVE_GAP * abs(kept),
        )


def _least(loss: float) -> float:
    """Nats below which a difference between two losses is not worth a word."""
    return max(OVERFIT_NATS, OVERFIT_SHARE * abs(loss))


def _has_turned(case: Case) -> bool:
    """Whether the validation loss passed its lowest point a while ago, and ends higher."""
    best, epochs = case.best, len(case.lines)
    if not best or not best["validation"]:
        return False
    kept = best["validation"]["loss"]
    return best["epoch"] < OVERFIT_EPOCHS * epochs and case.lines[-1]["validation"]["loss"] - kept > _least(kept)


def _rise(losses: Sequence[float], epoch: int) -> float:
    """By how much a loss rose from an epoch (counted from 1) to the end: medians over a tenth of the epochs.

    A single epoch of few updates is far off by chance.
    """
    width = max(1, len(losses) // 10)
    start = max(0, epoch - 1 - width // 2)
    return statistics.median(losses[-width:]) - statistics.median(losses[start : start + width])


def _over_fitted(case: Case, told: str, evidence: dict[str, Any], wide: bool) -> Finding:
    gap, fall, lost = evidence["gap"], evidence["fall"], evidence["rise"]
    grave = wide or lost > LOST * fall
    return Finding(
        "over-fitting",
        "warning" if grave else "info",
        f"{told}At epoch {evidence['best_epoch']}, of the kept weights, validation examples cost {rounded(gap)} nats "
        f"more than training examples; the validation loss has fallen by {rounded(fall)} in all.",
        evidence,
        "more capacity or more epochs than so many training examples can bear",
        _against_over_fitting(case),
        curves(case, "loss", "over-fitting"),
    )


def _against_over_fitting(case: Case) -> str:
    """Weights that are averaged over the updates.

    Measured on digits: the validation ELBO of `sigma-vae` rose from 35.5 to 37.3; that of 150 pictures with an update
    an epoch fell from 17.4 to 16.9. A network of half the width lost 6.5, and weight decay gained 0.1 and lost 1.2.
    """
    if case.run.config.training.ema_decay > 0:
        return "Nothing to do: the weights of the best epoch were kept. More training examples would help."
    return case.again("training.ema_decay=0.99")


class Fall(NamedTuple):
    """How the best loss fell: in all, late (in the last `epochs`), and to what."""

    whole: float
    late: float
    epochs: int
    lowest: float

    @property
    def share(self) -> float:
        """The late part of the whole."""
        return self.late / self.whole if self.whole > 0 else 0.0

    @property
    def goes_on(self) -> bool:
        """Whether the late part is notable."""
        return self.share > LATE and self.late > OVERFIT_SHARE * abs(self.lowest)


def fall_of(lines: list[dict[str, Any]], tail: int | None = None) -> Fall:
    """How the loss of a run fell. Late are the last `tail` epochs, a tenth of them where it is not given."""
    losses = [line[compared(lines)]["loss"] for line in lines]
    tail, lowest = tail or max(1, len(losses) // 10), min(losses)
    before = min(losses[:-tail], default=math.inf)
    return Fall(losses[0] - lowest, max(0.0, before - lowest) if math.isfinite(before) else 0.0, tail, lowest)


def hardly_trained(case: Case) -> bool:
    """Whether there were so few updates that nothing else can be said of the training."""
    return bool(case.lines) and case.lines[-1]["step"] < STEPS and not _has_turned(case)


def longer(case: Case) -> str:
    """The command that trains on, or longer: three times as many epochs, and 1,500 updates at least.

    At a learning rate far below the usual one, with the usual one.
    """
    patience = case.run.config.training.patience
    impatient = out_of_patience(case.lines, patience)
    if len(case.lines) < case.planned and not impatient:
        return case.resume
    changes = [f"training.learning_rate={USUAL_RATE:g}"] if _is_slow(case) else []
    changes += [f"training.patience={3 * (patience or 0)}"] if impatient else []
    return case.again("--epochs", str(more_epochs(case)), *changes)


def more_epochs(case: Case) -> int:
    """Three times as many, and 1,500 updates at least."""
    epochs, steps = len(case.lines), case.lines[-1]["step"]
    return max(10, 3 * epochs, -(-1500 * epochs // max(1, steps)))


def _is_slow(case: Case) -> bool:
    return case.run.config.training.learning_rate < USUAL_RATE / 10


def _crawl(case: Case) -> Fall | None:
    """How the loss fell in the second half, where that is notable and the learning rate is low.

    A schedule that ends near zero makes every loss level at the end: the last tenth does not tell.
    """
    if not _is_slow(case) or len(case.lines) < 4:
        return None
    fall = fall_of(case.lines, len(case.lines) // 2)
    return fall if fall.goes_on and fall.share > CRAWL else None


def under_training(case: Case) -> Iterator[Finding]:
    """A loss that still falls when training ends, or that a low learning rate kept high."""
    lines = case.lines
    if not lines or has_diverged(case):
        return
    fall = fall_of(case.lines)
    crawl = None if fall.goes_on else _crawl(case)
    fall = crawl or fall
    if not (fall.goes_on or hardly_trained(case)):
        return
    steps = lines[-1]["step"]
    still = (
        f"In the last {f'{fall.epochs} epochs' if fall.epochs > 1 else 'epoch'} of {len(lines)} the loss fell by "
        f"{rounded(fall.late)} nats, {fall.share:.0%} of its whole fall: "
        + ("training was slow, and is not done." if crawl else "it is still improving.")
    )
    yield Finding(
        "under-training",
        "warning",
        still if fall.goes_on else f"The weights were updated {steps} times only.",
        {"fall_at_the_end": fall.late, "fall": fall.whole, "share": fall.share, "steps": steps, "epochs": len(lines)},
        "too low a learning rate, or too few epochs" if _is_slow(case) else "too few epochs",
        longer(case),
        curves(case, "loss", "under-training"),
    )


def rising_kl(case: Case) -> Iterator[Finding]:
    """A rate that rises when training ends."""
    rates = [line[compared(case.lines)].get("rate") for line in case.lines]
    if len(rates) < RISE_EPOCHS or any(rate is None for rate in rates):
        return
    tail = max(1, len(rates) // 10)
    before, end = rates[-1 - tail], rates[-1]
    if not (end - before > RISE * abs(before) and end - before > RISE_NATS):
        return
    best = case.best
    by_heart = best is not None and best["epoch"] < OVERFIT_EPOCHS * len(rates)
    yield Finding(
        "rising-kl",
        "warning",
        f"The rate rose from {rounded(before)} to {rounded(end)} nats over the last "
        f"{f'{tail} epochs' if tail > 1 else 'epoch'} of {len(rates)}.",
        {"before": before, "end": end, "rise": end - before, "epochs": tail},
        "the encoder learns training examples by heart: the validation loss no longer falls"
        if by_heart
        else "latents are still coming into use, or a schedule (capacity, warm-up) is not over",
        _against_over_fitting(case) if by_heart else longer(case),
        curves(case, "rate", "rising-kl"),
    )
