"""The figures of a comparison, as inline SVG. A setting has the same color, marker and line style in all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vaelab.comparison.groups import Difference, Group, means_of
from vaelab.comparison.settings import Setting
from vaelab.comparison.tables import TITLES
from vaelab.plots import INK, MARKERS, SERIES, SPLITS, draw, focus, late, push_apart

STYLES = ("-", "--", ":", "-.")


def color(number: int) -> str:
    """Of the setting with this number, in matplotlib."""
    return SERIES[number % len(SERIES)]


def look(number: int) -> dict[str, Any]:
    """Color and line style of the setting with this number: no two of 28 alike."""
    return {"color": color(number), "linestyle": STYLES[number % len(STYLES)]}


def curves(settings: Sequence[tuple[int, Setting]], metric: str, name: str) -> Markup | None:
    """One metric over the epochs, a line a run, of validation examples where all runs have some.

    Args:
        settings: with the number of each among all settings.
        metric: "elbo", "rate" or "distortion".
        name: of the figure, in the page.

    Returns:
        None where no run has it.
    """
    part = curve_split([one for _, one in settings])
    lines = [(number, one, run.run.metrics()) for number, one in settings for run in one.runs]
    lines = [(number, one, rows) for number, one, rows in lines if rows and metric in rows[-1][part]]
    if not lines:
        return None

    def paint(axes: Axes) -> None:
        labeled: set[int] = set()
        for number, one, rows in lines:
            epochs, values = [row["epoch"] for row in rows], [row[part][metric] for row in rows]
            label = one.letter if number not in labeled else None
            labeled.add(number)
            alone: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)]} if len(rows) == 1 else {}
            axes.plot(epochs, values, **look(number), **alone, linewidth=1.6, label=label)
        focus(axes, [row[part][metric] for _, _, rows in lines for row in late(rows)])
        title = TITLES[metric][0].upper() + TITLES[metric][1:]
        axes.set(xlabel="epoch", ylabel=f"{title} (nats per example)", title=f"{title}, {SPLITS[part]} examples")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if all(len(rows) == 1 for _, _, rows in lines):
            axes.set_xlim(0, 2)
        _legend(axes)

    return draw(name, 280, paint)


def curve_split(settings: Sequence[Setting]) -> str:
    """The examples that curves are of: validation, if every run has some."""
    rows = [row for one in settings for run in one.runs for row in run.run.metrics()[-1:]]
    return "validation" if rows and all(row["validation"] for row in rows) else "train"


def plane(settings: Sequence[tuple[int, Setting]], name: str) -> Markup | None:
    """Rate against distortion, with a standard error each way; dashed lines join points of the same ELBO.

    Alemi et al. 2018, figure 1: ELBO = −(rate + distortion). None where no setting has a rate.
    """
    points = [(number, one, means_of(one)) for number, one in settings]
    points = [(number, one, means) for number, one, means in points if "rate" in means]
    if not points:
        return None

    def paint(axes: Axes) -> None:
        places = np.array([[means["rate"].mean, means["distortion"].mean] for _, _, means in points])
        for (number, one, means), (rate, distortion) in zip(points, places, strict=True):
            axes.errorbar(
                rate, distortion, means["distortion"].stderr, means["rate"].stderr, color=color(number),
                label=one.letter, marker=MARKERS[number % len(MARKERS)], markersize=7, linestyle="none",
                elinewidth=1.2, capsize=2,
            )  # fmt: skip
        axes.margins(0.15)
        axes.autoscale_view()
        _same_elbo(axes)
        _names(axes, [one.letter for _, one, _ in points], places)
        axes.set(xlabel="rate (nats per example)", ylabel="distortion (nats per example)")
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return draw(name, 320, paint)


def _same_elbo(axes: Axes) -> None:
    """Some lines of rate + distortion = −ELBO across the picture, which keeps its limits."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    sums = MaxNLocator(6).tick_values(left + low, right + high)
    for total in sums:
        axes.plot([left, right], [total - left, total - right], color=INK, linestyle="--", linewidth=0.7, alpha=0.45)
        text = f"{-total:g}".replace("-", "−")
        # Beside the picture or above it: points are everywhere in it.
        if low < total - right < high:
            place, offset, align = (right, total - right), (3, 0), ("left", "center")
            text = f"ELBO {text}"
        elif left < total - high < right:
            place, offset, align = (total - high, high), (0, 3), ("center", "bottom")
        else:
            continue
        axes.annotate(text, place, offset, textcoords="offset points", ha=align[0], va=align[1], fontsize=10)
    axes.set(xlim=(left, right), ylim=(low, high))


def _names(axes: Axes, names: Sequence[str], places: Any) -> None:
    """Names beside their points, pushed apart where they would cover each other."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    size = np.array([right - left, high - low])
    apart = push_apart((places - [left, low]) / size + [0.035, 0.035], 0.05)
    for name, place in zip(names, apart, strict=True):
        x, y = place * size + [left, low]
        axes.text(float(x), float(y), name, fontsize=12, fontweight="bold", ha="center", va="center", clip_on=True)


def differences(group: Group, numbers: Mapping[str, int], name: str) -> Markup | None:
    """Each setting's difference to the baseline, as a point with an interval that has the true one in 95 of 100 cases.

    None where there is nothing to compare with.
    """
    metric = shown_metric(group)
    found = {key: these[metric] for key, these in group.differences.items() if metric in these}
    if not found:
        return None
    base = group.settings[0].letter

    def paint(axes: Axes) -> None:
        for row, (key, one) in enumerate(found.items()):
            number = numbers[key]
            axes.errorbar(
                one.mean.mean, row, xerr=one.mean.half_width, color=color(number), capsize=3, elinewidth=1.8,
                marker=MARKERS[number % len(MARKERS)], markersize=7, linestyle="none",
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1.2, linestyle="--")
        axes.set_yticks(range(len(found)), list(found), parse_math=False)
        better = "left" if metric == "distortion" else "right"
        axes.set(ylim=(len(found) - 0.5, -0.5), ylabel="setting")
        axes.set_xlabel(f"{TITLES[metric]} minus that of {base} (nats per example)\n{better} of the line is better")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(visible=False, axis="y")

    return draw(name, 95 + 24 * len(found), paint)


def shown_metric(group: Group) -> str:
    """The number whose differences are drawn: what ranks the settings, if the baseline has it."""
    return group.metric if group.settings[0] not in group.unranked else "distortion"


def told(found: Mapping[str, Mapping[str, Difference]], metric: str) -> str:
    """The differences in words, for who cannot see the figure."""
    return ", ".join(f"{key} {these[metric].mean.mean:+.2f}" for key, these in found.items() if metric in these)


def _legend(axes: Axes) -> None:
    """Below the picture, in rows: matplotlib itself would fill columns."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(7, len(labels))
    order = [index for column in range(columns) for index in range(column, len(labels), columns)]
    axes.legend(
        [handles[index] for index in order], [labels[index] for index in order], ncols=columns,
        loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=2.2, columnspacing=1.0,
    )  # fmt: skip
