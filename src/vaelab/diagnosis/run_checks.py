"""The examination of a run: each check looks at a case and yields what it finds."""

from collections.abc import Callable, Iterator

from vaelab.diagnosis import check_curves, check_latents, check_likelihood, check_scale, check_training
from vaelab.diagnosis.case import Case
from vaelab.diagnosis.findings import Finding, ordered

ILLNESSES = (
    *check_training.ILLNESSES,
    *check_curves.ILLNESSES,
    *check_latents.ILLNESSES,
    *check_likelihood.ILLNESSES,
    *check_scale.ILLNESSES,
)
"""What is looked for in a run."""

Check = Callable[[Case], Iterator[Finding]]

_ALWAYS: tuple[Check, ...] = (check_training.training_end, check_training.skipped_updates)
_OF_NUMBERS: tuple[Check, ...] = (
    check_training.no_validation,
    check_scale.unscaled,
    check_curves.over_fitting,
    check_curves.under_training,
    check_curves.rising_kl,
    check_latents.collapse,
    check_likelihood.effective_beta,
    check_likelihood.misfit,
    check_likelihood.floor,
    check_likelihood.binary_outputs,
    check_latents.dead_codes,
    check_latents.importance_sampling,
)
_OF_LATENTS: tuple[Check, ...] = (check_latents.holes, check_latents.dimension)


def examine(case: Case) -> list[Finding]:
    """All findings on a run, the gravest first."""
    found = [finding for check in _ALWAYS for finding in check(case)]
    if check_training.is_finite(case):
        found += [finding for check in _OF_NUMBERS for finding in check(case)]
        if not check_training.has_diverged(case):  # what the latents are then, the next training tells
            found += [finding for check in _OF_LATENTS for finding in check(case)]
    else:  # of what is no number, nothing can be said but why
        found += list(check_likelihood.misfit(case)) or list(check_training.not_finite(case))
    return ordered(found)
