"""The small figures beside findings: inline SVG that takes its colors from the page (`vaelab.plots`)."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from vaelab import plots
from vaelab.diagnosis.case import Case
from vaelab.diagnosis.findings import Plot

BINS = 60
HEIGHT = 210
TICKS = 6  # on a logarithmic axis, at most


def _plot(name: str, caption: str, paint: Callable[[Axes], None], height: float = HEIGHT) -> Plot:
    """A figure whose ids are those of a finding's name."""
    return Plot(plots.draw(f"finding-{name}", height, paint), caption)


def curves(case: Case, metric: str, name: str) -> Plot | None:
    """The learning curves of a metric; None where an epoch has no finite value of it, or there is one epoch only.

    Args:
        name: of the finding.
    """
    best, lines = case.best, case.lines
    parts = [part for part in plots.SPLITS if lines and lines[-1][part]]
    values = {part: [line[part].get(metric, math.nan) for line in lines] for part in parts}
    if len(lines) < 2 or not all(math.isfinite(value) for series in values.values() for value in series):
        return None
    chosen = best["epoch"] if best and best["validation"] else None

    def paint(axes: Axes) -> None:
        epochs = [line["epoch"] for line in lines]
        for part, color, style in zip(plots.SPLITS, (plots.SERIES[1], plots.SERIES[0]), ("--", "-"), strict=True):
            if part in parts:
                axes.plot(epochs, values[part], color=color, linestyle=style, linewidth=1.8, label=plots.SPLITS[part])
        plots.focus(axes, [line[part][metric] for line in plots.late(lines) for part in parts])
        if chosen:
            axes.axvline(chosen, color=plots.INK, linestyle=":", linewidth=1.5, label=f"best: epoch {chosen}")
        axes.set(xlabel="epoch", ylabel="nats per example", title=metric.capitalize())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="best")

    marked = f" The dotted line marks epoch {chosen}, whose weights were kept." if chosen else ""
    return _plot(name, f"The {metric}, epoch by epoch.{marked}", paint)


def kl(kl: Tensor | None, active: Tensor, name: str) -> Plot | None:
    """The KL of each latent [D]; None where it is not known latent by latent."""
    if kl is None or len(kl) != len(active):
        return None
    caption = "What each latent says about an example: its mean KL from the prior. Hatched bars are latents not in use."
    return Plot(plots.kl_bars(kl, active, f"finding-{name}"), caption)


def scatter(z: Tensor, prior: Tensor, name: str) -> Plot:
    """Draws of the aggregate posterior and of the prior, [n, D], in the two directions in which all vary most."""
    both = torch.cat([prior, z]).cpu()
    plain = both.shape[1] <= 2
    points = both if plain else plots.principal_components(both)[0]
    points = torch.cat([points, torch.zeros_like(points)], 1)[:, :2]  # a single latent lies on a line

    def paint(axes: Axes) -> None:
        for rows, color, marker, told in (
            (points[: len(prior)], plots.SERIES[1], "^", "prior"),
            (points[len(prior) :], plots.SERIES[0], "o", "examples"),
        ):
            axes.scatter(*rows.double().numpy().T, color=color, marker=marker, s=9, linewidths=0, alpha=0.6, label=told)
        first, second = ("latent 0", "latent 1") if plain else ("principal component 1", "principal component 2")
        axes.set(xlabel=first, ylabel=second, title="Draws of z")
        axes.legend(loc="best", markerscale=2)

    caption = "Draws of z from the posteriors of examples, and from the prior. Where they lie apart, there are holes."
    return _plot(name, caption, paint, 250)


def histogram(
    values: Tensor, name: str, titles: tuple[str, str], caption: str, marks: Mapping[str, float] | None = None
) -> Plot:
    """How often values occur, on a logarithmic scale, and upright lines at some of them.

    Args:
        values: any shape; those that are not finite are left out.
        titles: of the figure, and of its horizontal axis.
        marks: places by name.
    """
    flat = values.detach().flatten().double().cpu()
    finite = flat[flat.isfinite()].numpy()

    def paint(axes: Axes) -> None:
        axes.hist(finite, bins=BINS, color=plots.SERIES[0])
        axes.set_yscale("log", nonpositive="clip")
        _count_axis(axes, float(np.histogram(finite, bins=BINS)[0].max()))
        _mark(axes, marks or {})
        axes.set(xlabel=titles[1], ylabel="count", title=titles[0])

    return _plot(name, caption, paint)


def line(
    points: tuple[Sequence[float], Sequence[float]],
    name: str,
    titles: tuple[str, str, str],
    caption: str,
    marks: Mapping[str, float] | None = None,
) -> Plot:
    """A curve over a logarithmic axis, and upright lines at some places.

    Args:
        points: x and y.
        titles: of the figure, and of both axes.
        marks: places by name.
    """
    x, y = points

    def paint(axes: Axes) -> None:
        axes.plot(x, y, color=plots.SERIES[0], linewidth=1.8, marker="o" if len(x) < 10 else "")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(round_numbers(min(x), max(x))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        _mark(axes, marks or {})
        axes.set(title=titles[0], xlabel=titles[1], ylabel=titles[2])

    return _plot(name, caption, paint)


def ranks(counts: Tensor, name: str, titles: tuple[str, str, str], caption: str) -> Plot:
    """Counts [n] from the largest to the smallest, as steps.

    Args:
        titles: of the figure, and of both axes.
    """
    heights = counts.sort(descending=True).values.double().cpu().numpy()

    def paint(axes: Axes) -> None:
        axes.stairs(heights, [0.5 + rank for rank in range(len(heights) + 1)], fill=True, color=plots.SERIES[0])
        axes.set(title=titles[0], xlabel=titles[1], ylabel=titles[2])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return _plot(name, caption, paint)


def _mark(axes: Axes, marks: Mapping[str, float]) -> None:
    for (told, place), style in zip(marks.items(), (":", "--"), strict=False):
        axes.axvline(place, color=plots.INK, linestyle=style, linewidth=1.5, label=told)
    if marks:
        axes.legend(loc="best")


def _count_axis(axes: Axes, most: float) -> None:
    """Powers of ten, written out."""
    axes.set_ylim(0.7, 2 * max(most, 1.0))
    axes.yaxis.set_major_locator(FixedLocator(round_numbers(1, max(most, 10.0), steps=(1,))))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,g}" if 1e-3 <= value < 1e6 else f"{value:.0e}"


def round_numbers(low: float, high: float, steps: Sequence[int] = (1, 2, 5)) -> list[float]:
    """Numbers `steps` · 10ⁿ from `low` to `high`, for a logarithmic axis: about six at most."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    if len(found) > TICKS and len(steps) > 1:
        return round_numbers(low, high, (1,))
    return found[:: -(-len(found) // TICKS)] if len(found) > TICKS else found
