"""Settings whose numbers can be compared, and how they differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vaelab.comparison.measure import COLUMNS
from vaelab.comparison.settings import Setting
from vaelab.comparison.statistics import CrossedMean, crossed_mean, holm
from vaelab.report import describe

LEVEL = 0.05  # of false alarms


@dataclass(frozen=True)
class Difference:
    """A setting's number minus that of another, example by example.

    Attributes:
        mean: the difference with its error.
        p: two-sided probability of one as large by chance; None for a single example.
        p_adjusted: the same after Holm 1979, for as many differences as there are in the group.
        seeds: the seeds that both have; where there are none, how many runs were paired in the order of their seeds.
    """

    mean: CrossedMean
    p: float | None
    p_adjusted: float | None
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether chance alone would rarely make it."""
        return self.p_adjusted is not None and self.p_adjusted < LEVEL


@dataclass(frozen=True, eq=False)
class Group:
    """Settings whose numbers can be compared, measured on the same examples.

    Attributes:
        title: what they give to what: "probabilities of ...".
        settings: the first is the baseline.
        differences: of each other setting, by its letter, to the baseline; for each number that both have.
        metric: the number that ranks them: log_px if two or more have it, else distortion.
        best: the setting that is best by it.
        rivals: those that are not clearly worse than the best. Chance alone makes some setting the best, so the
            p-values behind this are adjusted for the number of all pairs (Holm 1979).
        unranked: those that have no such number, or one that is not finite.
    """

    title: str
    settings: Sequence[Setting]
    differences: Mapping[str, Mapping[str, Difference]]
    metric: str
    best: Setting
    rivals: Sequence[Setting]
    unranked: Sequence[Setting]


def means_of(setting: Setting) -> dict[str, CrossedMean]:
    """The mean of each number over seeds and examples, with its error."""
    return {
        name: crossed_mean(np.stack([run.columns[name] for run in setting.runs])) for name in setting.runs[0].columns
    }


def subtract(setting: Setting, other: Setting, columns: Sequence[str] = COLUMNS) -> dict[str, tuple[CrossedMean, int]]:
    """Each number of a setting minus that of another, seed by seed and example by example; and how many seeds."""
    seeds = sorted(setting.seeds.keys() & other.seeds.keys())
    if seeds:
        pairs = [(setting.seeds[seed], other.seeds[seed]) for seed in seeds]
    else:  # runs of different seeds are independent: any pairing will do
        pairs = list(zip(setting.runs, other.runs, strict=False))
    names = [name for name in columns if name in setting.runs[0].columns and name in other.runs[0].columns]
    return {
        name: (crossed_mean(np.stack([one.columns[name] - two.columns[name] for one, two in pairs])), len(pairs))
        for name in names
    }


def _differences(settings: Sequence[Setting]) -> dict[str, dict[str, Difference]]:
    """Of all but the baseline to it; p-values of each number adjusted over the settings."""
    baseline, *others = settings
    raw = {one.letter: subtract(one, baseline) for one in others}
    found: dict[str, dict[str, Difference]] = {key: {} for key in raw}
    for name in COLUMNS:
        these = {key: values[name] for key, values in raw.items() if name in values}
        p = {key: mean.p_value for key, (mean, _) in these.items()}
        tested = {key: value for key, value in p.items() if value is not None}
        adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
        for key, (mean, seeds) in these.items():
            found[key][name] = Difference(mean, p[key], adjusted.get(key), seeds)
    return found


def _rivals(settings: Sequence[Setting], best: Setting, metric: str) -> list[Setting]:
    """Those that are not clearly worse than the best, among all pairs of settings."""
    pairs = list(combinations(settings, 2))
    p = [subtract(one, two, [metric])[metric][0].p_value for one, two in pairs]
    tested = [pair for pair, value in zip(pairs, p, strict=True) if value is not None]
    adjusted = holm([value for value in p if value is not None])
    clear = [pair for pair, value in zip(tested, adjusted, strict=True) if value < LEVEL]
    worse = [one for pair in clear if best in pair for one in pair]
    return [one for one in settings if one is not best and one not in worse]


def groups_of(settings: Sequence[Setting]) -> list[Group]:
    """Settings of one kind together, in the order of their first; each setting is in one group."""
    by_kind: dict[object, list[Setting]] = {}
    for setting in settings:
        by_kind.setdefault(setting.kind, []).append(setting)
    return [_group(same) for same in by_kind.values()]


def _group(settings: Sequence[Setting]) -> Group:
    numbers = {setting.letter: means_of(setting) for setting in settings}
    known = sum("log_px" in one for one in numbers.values())
    metric, sign = ("log_px", 1) if known >= min(2, len(settings)) else ("distortion", -1)
    values = {key: one[metric].mean for key, one in numbers.items() if metric in one}
    measured = [one for one in settings if one.letter in values]
    ranked = [one for one in measured if math.isfinite(values[one.letter])]
    best = max(ranked or measured, key=lambda one: sign * values[one.letter])
    first = settings[0].runs[0]
    what = f"{'probabilities' if first.discrete else 'densities'} of {describe(first.run.spec)}"
    return Group(
        title=what + (", given their labels" if first.conditional else ""),
        settings=settings,
        differences=_differences(settings),
        metric=metric,
        best=best,
        rivals=_rivals(ranked, best, metric),
        unranked=[one for one in settings if one not in ranked],
    )
