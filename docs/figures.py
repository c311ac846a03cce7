"""Draws the pictures of README.md into docs/images/, each for a light and for a dark page.

    python docs/figures.py --run RUN --map RUN

The second run has two latents, so that all of its latent space can be shown. Without these options, two runs on MNIST
are trained first, as for the pictures in the repository: `vaelab train vae --data mnist data.binarize=dynamic
--epochs 20`, and the same with `model.latent_dim=2`. The same runs give the same files, to the byte.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from torch import Tensor
from torch.nn import functional as F

import vaelab

IMAGES = Path(__file__).parent / "images"
ROWS, COLUMNS = 6, 10
MAP_EXAMPLES = 800


@dataclass(frozen=True)
class Theme:
    """The colors of a page. Data colors are those of Okabe & Ito 2008, which color-blind readers can tell apart."""

    name: str
    ink: str
    faint: str
    encoder: str
    decoder: str
    prior: str

    def style(self) -> dict[Any, Any]:
        """Matplotlib's settings: the ground stays transparent, so the page shows through."""
        ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(ink, self.ink),
            "font.size": 11,
            "mathtext.fontset": "dejavusans",
            "svg.hashsalt": "vaelab",
            "savefig.transparent": True,
        }


LIGHT = Theme("light", ink="#1f2328", faint="#8c959f", encoder="#0072b2", decoder="#b34700", prior="#00795c")
DARK = Theme("dark", ink="#e6edf3", faint="#7d8590", encoder="#56b4e9", decoder="#f0914f", prior="#2fbf98")


# -- the architecture ----------------------------------------------------------------------------------------------


def architecture(original: Tensor, mean: Tensor, theme: Theme) -> Figure:
    """From x through the encoder to z, and from z through the decoder to p(x|z); and where the two terms arise.

    Args:
        original, mean: an example and the mean of p(x|z) at its latents, [C, H, W].
    """
    figure = Figure(figsize=(9.4, 3.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 94), ylim=(0, 39), aspect="equal", frame_on=False, xticks=[], yticks=[])
    middle = 23.0

    picture(axes, original, (3, middle - 5), 10)
    axes.text(8, middle + 6.2, "$x$", ha="center", va="bottom", fontsize=14)
    picture(axes, mean, (81, middle - 5), 10)
    axes.text(86, middle + 6.2, "$p(x|z)$", ha="center", va="bottom", fontsize=14)

    funnel(axes, 17.6, 29.2, middle, (8, 4.5), theme.encoder, "encoder")
    funnel(axes, 65.2, 76.8, middle, (4.5, 8), theme.decoder, "decoder")
    box(axes, (37.5, middle + 3.2), (5.5, 4.6), theme.encoder, r"$\mu$")
    box(axes, (37.5, middle - 3.2), (5.5, 4.6), theme.encoder, r"$\sigma$")
    axes.text(37.5, middle + 7.2, "$q(z|x)$", ha="center", va="bottom", fontsize=14, color=theme.encoder)
    axes.add_patch(
        FancyBboxPatch((42.8, 6.6), 20.4, 21.2, boxstyle="round,pad=0,rounding_size=1", facecolor="none",
                       edgecolor=theme.faint, linestyle=":", linewidth=1.2)
    )  # fmt: skip
    axes.text(43.8, 14.8, "latent space", ha="left", va="center", fontsize=10, color=theme.faint)
    box(axes, (53, middle), (14, 5.4), theme.ink, r"$z = \mu + \sigma \cdot \varepsilon$")
    axes.text(53, middle + 10.2, r"noise $\varepsilon \sim N(0, I)$", ha="center", va="bottom", fontsize=10.5)

    for start, end in (((13.6, middle), (17.1, middle)), ((60.3, middle), (64.7, middle))):
        arrow(axes, start, end, theme.ink)
    arrow(axes, (77.3, middle), (80.5, middle), theme.ink)
    for offset in (3.2, -3.2):
        arrow(axes, (29.8, middle + 0.35 * offset), (34.5, middle + offset), theme.ink)
        arrow(axes, (40.5, middle + offset), (45.8, middle + 0.3 * offset), theme.ink)
    arrow(axes, (53, middle + 9.8), (53, middle + 3.1), theme.ink)

    box(axes, (53, 10.3), (18.4, 5), theme.prior, "prior $p(z) = N(0, I)$")
    arrow(axes, (62.6, 11.6), (70, 16.6), theme.prior, dashed=True)
    axes.text(68, 11.2, "to generate: draw $z$\nfrom the prior", ha="left", va="center", fontsize=10)
    arrow(axes, (38.2, middle - 5.8), (43.5, 11.8), theme.faint, both=True)
    term(axes, (37.2, 11.4), "KL term", r"$KL(q(z|x) \,\|\, p(z))$", theme.prior, beside=False)

    axes.plot((8, 8, 86, 86), (middle - 5.8, 4.3, 4.3, middle - 5.8), color=theme.faint, linewidth=1.3)
    term(axes, (48.5, 2.4), "reconstruction term", r"$E_q[\log p(x|z)]$", theme.decoder, beside=True)
    return figure


def picture(axes: Axes, values: Tensor, corner: tuple[float, float], side: float) -> None:
    """Show [C, H, W] with its lower left corner at a place."""
    x, y = corner
    extent = (x, x + side, y, y + side)
    axes.imshow(as_image(values), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest", zorder=2)


def funnel(
    axes: Axes, left: float, right: float, middle: float, halves: tuple[float, float], color: str, text: str
) -> None:
    """A network: as wide at either side as its tensors are."""
    (a, b), y = halves, middle
    corners = [(left, y - a), (left, y + a), (right, y + b), (right, y - b)]
    axes.add_patch(Polygon(corners, closed=True, facecolor=(color, 0.16), edgecolor=color, linewidth=1.6))
    axes.text((left + right) / 2, y, text, ha="center", va="center", fontweight="bold")


def box(axes: Axes, center: tuple[float, float], size: tuple[float, float], color: str, text: str) -> None:
    """A rounded box with text in it."""
    (x, y), (width, height) = center, size
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=1"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=(color, 0.10), edgecolor=color, linewidth=1.4)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=12)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    *,
    dashed: bool = False,
    both: bool = False,
) -> None:
    """A straight arrow between two places."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="<|-|>" if both else "-|>",
            mutation_scale=10,
            color=color,
            linewidth=1.3,
            linestyle="--" if dashed else "-",
            shrinkA=0,
            shrinkB=0,
        )
    )


def term(axes: Axes, place: tuple[float, float], name: str, formula: str, color: str, *, beside: bool) -> None:
    """A term of the ELBO: its name, and its formula beside or below."""
    x, y = place
    axes.text(x, y, name, ha="right", va="center", color=color, fontweight="bold")
    if beside:
        axes.text(x + 1.5, y, formula, ha="left", va="center", color=color)
    else:
        axes.text(x, y - 3, formula, ha="right", va="center", color=color)


def as_image(values: Tensor) -> Any:
    """[C, H, W] as matplotlib wants it: [H, W] grey or [H, W, 3]."""
    values = values.clamp(0, 1)
    return (values[0] if len(values) == 1 else values.permute(1, 2, 0)).numpy()


# -- the opening picture -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What the opening picture shows.

    Attributes:
        pairs: a row of originals, below it their reconstructions, and so on, [ROWS * COLUMNS, C, H, W].
        samples: [ROWS * COLUMNS, C, H, W].
        latents, labels: posterior means of held-out examples of the other run [N, 2], and their labels [N].
        names: the ten labels: digits.
    """

    pairs: Tensor
    samples: Tensor
    latents: Tensor
    labels: Tensor
    names: Sequence[str]


def look(run: vaelab.Run, map_run: vaelab.Run) -> Shown:
    """Pictures of one run, and the latents of the other.

    Raises:
        InputError: the second run has not two latents, or its data have no labels.
    """
    found = vaelab.reconstruct(run, ROWS * COLUMNS // 2)
    pairs = torch.stack((found.original.unflatten(0, (-1, COLUMNS)), found.x.unflatten(0, (-1, COLUMNS))), dim=1)
    encoding = vaelab.encode(map_run, split="test")
    if encoding.mean.shape[1] != 2 or encoding.labels is None or map_run.label_names is None:
        raise vaelab.InputError(f"{map_run}: the map needs a run with model.latent_dim=2 on data with labels")
    return Shown(
        pairs=pairs.flatten(0, 2),
        samples=vaelab.sample(run, ROWS * COLUMNS).x,
        latents=encoding.mean[:MAP_EXAMPLES],
        labels=encoding.labels[:MAP_EXAMPLES],
        names=map_run.label_names,
    )


def hero(shown: Shown, theme: Theme) -> Figure:
    """Reconstructions, samples and the map of latents, beside each other."""
    figure = Figure(figsize=(9.4, 3.4))
    bottom, height = 0.02, 0.89
    for left, pictures, title in (
        (0.0, shown.pairs, "Test digits, reconstructions below"),
        (0.348, shown.samples, "Samples: new digits"),
    ):
        axes = figure.add_axes((left, bottom, 0.332, height))
        axes.imshow(as_image(tiled(pictures)), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set(frame_on=False, xticks=[], yticks=[])
        axes.set_title(title, loc="left", fontsize=10.5)
    axes = figure.add_axes((0.7, bottom, 0.3, height))
    for label, (name, color) in enumerate(zip(shown.names, mpl.color_sequences["petroff10"], strict=True)):
        points = shown.latents[shown.labels == label].double()
        axes.scatter(*points.T.numpy(), marker=f"${name}$", s=26, color=mixed(color, theme.ink), linewidths=0)
    (left, low), (right, high) = shown.latents.quantile(torch.tensor([0.01, 0.99]), dim=0).tolist()
    axes.set(xlim=(left, right), ylim=(low, high), xticks=[], yticks=[])
    axes.spines[:].set_color(theme.faint)
    axes.set_title("Latent space of two dimensions", loc="left", fontsize=10.5)
    return figure


def tiled(pictures: Tensor, gap: int = 1) -> Tensor:
    """[ROWS * COLUMNS, C, H, W] -> one picture [C, h, w], with dark lines between."""
    cells = F.pad(pictures.clamp(0, 1), (0, gap, 0, gap), value=0.25).unflatten(0, (ROWS, COLUMNS))
    whole = cells.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return whole[:, :-gap, :-gap]


def mixed(color: Any, ink: Any, share: float = 0.25) -> Any:
    """A color moved toward the ink, so that it stands out from the page."""
    return (1 - share) * np.array(to_rgb(color)) + share * np.array(to_rgb(ink))


# -- files ---------------------------------------------------------------------------------------------------------


def train_on_mnist(overrides: dict[str, Any]) -> vaelab.Run:
    """The run that the pictures in the repository are of."""
    return vaelab.train("vae", data="mnist", epochs=20, overrides={"data.binarize": "dynamic", **overrides})


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description="Draw the pictures of README.md.")
    parser.add_argument("--run", help="a run on pictures; without it, one is trained on MNIST")
    parser.add_argument("--map", help="a run with two latents; without it, one is trained on MNIST")
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder for the pictures")
    given = parser.parse_args()
    run = vaelab.Run.open(given.run or train_on_mnist({}))
    shown = look(run, vaelab.Run.open(given.map or train_on_mnist({"model.latent_dim": 2})))
    given.out.mkdir(parents=True, exist_ok=True)
    for theme in (LIGHT, DARK):
        with mpl.rc_context(theme.style()):
            drawn = architecture(shown.pairs[4], shown.pairs[COLUMNS + 4], theme)
            drawn.savefig(given.out / f"architecture-{theme.name}.svg", metadata={"Date": None})
            hero(shown, theme).savefig(given.out / f"hero-{theme.name}.png", dpi=130, metadata={"Software": None})
    for file in sorted(given.out.iterdir()):
        print(f"{file}  {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
