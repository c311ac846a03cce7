"""The page of a comparison: one HTML file without network, from `templates/compare.html.j2`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaelab import __version__, pictures, plots
from vaelab.comparison import figures, tables
from vaelab.comparison.groups import Group
from vaelab.comparison.measure import Measured
from vaelab.comparison.settings import Setting
from vaelab.report import render, stem

if TYPE_CHECKING:
    from vaelab.comparison.compare import Comparison

DASHES = ("none", "6 3", "1.5 2.5", "7 2.5 1.5 2.5")  # the line styles of `figures.STYLES`, for SVG
CURVES = {
    "elbo": "the lower bound of log p(x). Higher is better.",
    "rate": "what the latents say about an example.",
    "distortion": "what is still open once the latents are known. Lower is better.",
}


def render_page(comparison: "Comparison") -> str:
    """The whole page."""
    numbers = {setting.letter: number for number, setting in enumerate(comparison.settings)}
    return render("compare.html.j2", _facts(comparison, numbers))


def _facts(comparison: "Comparison", numbers: dict[str, int]) -> dict[str, Any]:
    how, settings = comparison.protocol, comparison.settings
    sizes = {one.runs[0].evaluation.n for one in settings}
    sources = list(dict.fromkeys(stem(run.run.config.data.source) for one in settings for run in one.runs))
    return {
        "title": f"{len(settings)} settings on {' and '.join(sources)}"
        if len(settings) > 1
        else f"{settings[0].label}",
        "runs": sum(len(one.runs) for one in settings),
        "settings": len(settings),
        "split": plots.SPLITS.get(how.split, how.split),
        "n": next(iter(sizes)) if len(sizes) == 1 else None,
        "importance_samples": how.importance_samples,
        "notes": comparison.notes,
        "failed": comparison.failed,
        "keys": tables.keys_table(comparison),
        "key_names": comparison.differing,
        "numbers": tables.numbers_table(comparison),
        "marks": {key: (number % len(plots.SERIES), DASHES[number % len(DASHES)]) for key, number in numbers.items()},
        "groups": [_group(group, place, numbers) for place, group in enumerate(comparison.groups)],
        "made": [
            (one.letter, str(run.seed), str(run.run), run.run.about["command"]) for one in settings for run in one.runs
        ],
        "vaelab": __version__,
    }


def _group(group: Group, place: int, numbers: dict[str, int]) -> dict[str, Any]:
    settings = [(numbers[one.letter], one) for one in group.settings]
    curves = [
        {"metric": metric, "title": tables.TITLES[metric], "says": says, "drawing": drawing}
        for metric, says in CURVES.items()
        if (drawing := figures.curves(settings, metric, f"curve-{metric}-{place}"))
    ]
    return {
        "title": group.title,
        "letters": [one.letter for one in group.settings],
        "without_density": [one.letter for one in group.settings if "elbo" not in one.runs[0].columns],
        "baseline": group.settings[0],
        "metric": tables.TITLES[figures.shown_metric(group)],
        "verdict": tables.verdict(group) if len(group.settings) > 1 else None,
        "table": tables.differences_table(group),
        "figure": figures.differences(group, numbers, f"differences-{place}"),
        "told": figures.told(group.differences, figures.shown_metric(group)),
        "plane": figures.plane(settings, f"plane-{place}"),
        "curves": curves,
        "curve_split": plots.SPLITS[figures.curve_split(group.settings)],
        "seeds": max(len(one.runs) for one in group.settings),
        "is_picture": group.settings[0].runs[0].run.spec.is_picture,
        **_pictures(group.settings),
    }


def _pictures(settings: Sequence[Setting]) -> dict[str, Any]:
    """Sheets with a row a setting (its first seed): the same examples and what comes back, and samples."""
    firsts = [one.runs[0] for one in settings]
    letters = [one.letter for one in settings]
    number = min(len(run.samples) for run in firsts)
    original = firsts[0].original[:number]

    def column(part: Callable[[Measured], Tensor]) -> list[Tensor]:
        return [part(run)[:number] for run in firsts]

    reconstructions = _sheet([original, *column(lambda run: run.reconstruction)], ["x", *letters])
    samples = _sheet(column(lambda run: run.samples), letters)
    return {
        "reconstructions": reconstructions,
        "samples": samples,
    }


def _sheet(rows: list[Tensor], names: list[str]) -> str:
    values = torch.cat(rows)
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        return plots.data_uri(pictures.heatmap(values, row_labels=names))
    return plots.data_uri(pictures.grid(values, columns=len(rows[0]), row_labels=names))
