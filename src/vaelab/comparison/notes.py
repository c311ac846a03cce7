"""What a reader of a comparison must know, as sentences."""

from collections.abc import Sequence

import numpy as np

from vaelab.comparison.groups import Group, means_of
from vaelab.comparison.measure import Protocol, epochs_left
from vaelab.comparison.settings import Setting
from vaelab.diagnosis.check_curves import fall_of
from vaelab.evaluation.likelihood import are_too_few, more_draws

REASONS = (
    "they were measured on different examples",
    "some are probabilities and some densities",
    "some are of x and some of x given its label",
)
"""Why two settings are not of one kind, for each place of `Setting.kind`."""


def notes_on(settings: Sequence[Setting], groups: Sequence[Group], how: Protocol) -> list[str]:
    """Warnings, the gravest first; none where all is as it should be."""
    found = [_not_finite(settings), _not_alike(settings), _collapsed(settings), _stopped(settings), _falling(settings)]
    found += [_few_draws(settings, how), _only_a_bound(settings), _one_seed(settings), *map(_other_seeds, groups)]
    return [note for note in found if note]


def _not_finite(settings: Sequence[Setting]) -> str:
    lost = [one.letter for one in settings if not np.isfinite(means_of(one)["distortion"].mean)]
    return f"Not finite: {', '.join(lost)}. Training has diverged there." if lost else ""


def _not_alike(settings: Sequence[Setting]) -> str:
    kinds = {setting.kind for setting in settings}
    if len(kinds) < 2:
        return ""
    reasons = [text for place, text in enumerate(REASONS) if len({kind[place] for kind in kinds}) > 1]
    return (
        f"Not all numbers can be compared: {', and '.join(reasons)}. So nothing is subtracted between the "
        f"{len(kinds)} groups."
    )


def _stopped(settings: Sequence[Setting]) -> str:
    runs = [one.run for setting in settings for one in setting.runs]
    cut = [
        f"{run} ({len(run.metrics())} of {len(run.metrics()) + left} epochs)"
        for run in runs
        if (left := epochs_left(run))
    ]
    return f"Not trained to the end: {', '.join(cut)}. What was kept so far was measured." if cut else ""


def _collapsed(settings: Sequence[Setting]) -> str:
    runs = [one.run for setting in settings for one in setting.runs if one.evaluation.active_units == 0]
    if not runs:
        return ""
    why = runs[0].command("doctor")
    return (
        f"No latent is active: {', '.join(map(str, runs))}. The decoder makes the same of every example there; "
        f"`{why}` tells why."
    )


def _falling(settings: Sequence[Setting]) -> str:
    runs = [one.run for setting in settings for one in setting.runs]
    early = [run for run in runs if (lines := run.metrics()) and not epochs_left(run) and fall_of(lines).goes_on]
    if not early:
        return ""
    how_many = early[0].command("doctor")
    return (
        f"Still improving at the end of training: {', '.join(map(str, early))}. With more epochs the order may be "
        f"another; `{how_many}` tells how many."
    )


def _few_draws(settings: Sequence[Setting], how: Protocol) -> str:
    few = [one.letter for one in settings if any(run.evaluation.warning is not None for run in one.runs)]
    if not few:
        return ""
    k = how.importance_samples
    return (
        f"{are_too_few(k)} for many of the examples ({', '.join(few)}): log p(x) is rather too low there, and not by "
        f"the same for all. Use --importance-samples {more_draws(k)}."
    )


def _only_a_bound(settings: Sequence[Setting]) -> str:
    fixed = [one.letter for one in settings if "log_px" in one.runs[0].columns and not one.runs[0].stochastic]
    if not fixed:
        return ""
    return (
        f"log p(x) of {', '.join(fixed)} is at least what it says: the encoder gives each example one z, so it is "
        "the ELBO, and more draws add nothing. Against others it is rather better than it looks."
    )


def _one_seed(settings: Sequence[Setting]) -> str:
    alone = [setting.letter for setting in settings if len(setting.runs) == 1]
    if not alone:
        return ""
    which = "" if len(alone) == len(settings) else f" ({', '.join(alone)})"
    return f"One seed only{which}: the error is over examples, and says nothing of how another seed would do."


def _other_seeds(group: Group) -> str:
    base, *others = group.settings
    some = [one.letter for one in others if one.seeds.keys() != base.seeds.keys()]
    if not some:
        return ""
    return (
        f"{', '.join(some)}: not the seeds of {base.letter}. The difference to it is over the seeds that both "
        "have; where there are none, runs are paired in their order."
    )
