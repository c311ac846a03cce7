"""The report's figures, as inline SVG, and its pictures, as data URIs.

A figure takes its colors from the page around it: matplotlib draws in marker colors, and these are replaced by
`currentColor` and by the page's custom properties `--series-0`, `--series-1`, .... So one drawing serves light and
dark. Text stays text, in the page's own font. Nothing here touches matplotlib's global state for longer than a call.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

WIDTH = 346.0  # units of the drawing: on a phone about one pixel each, so text is as large as it says
INK = "#010203"
SERIES = tuple(f"#0a0b0{digit}" for digit in range(7))
_COLORS = {INK: "currentColor", **{color: f"var(--series-{index})" for index, color in enumerate(SERIES)}}
MARKERS = "osD^vP"  # one less than colors: 42 pairs before one comes again
MAX_LABELS = 20
MAX_BARS = 60
PRIOR_SHARE = 0.95
SPLITS = {"train": "training", "validation": "validation"}  # how the two are called in words
TILE = 64  # pixels of a picture in an animation, at most

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vaelab",
    "text.usetex": False,
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "hatch.color": INK,
    "hatch.linewidth": 0.8,
}
_NAME: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 14, "fontweight": "bold", "parse_math": False}


def curve(
    lines: Sequence[Mapping[str, Any]], metric: str, title: str, best_epoch: int | None, unit: str = "nats per example"
) -> Markup:
    """One metric over the epochs, for training and (where there is any) validation data.

    Args:
        lines: those of metrics.jsonl.
        metric: "elbo", "rate", "distortion", ...
        best_epoch: the epoch to mark, if one was chosen by validation.
    """

    def paint(axes: Axes) -> None:
        epochs = [line["epoch"] for line in lines]
        marker = "o" if len(epochs) == 1 else ""
        for (part, name), color, style in zip(SPLITS.items(), (SERIES[1], SERIES[0]), ("--", "-"), strict=True):
            if all(line[part] for line in lines):
                values = [line[part][metric] for line in lines]
                axes.plot(epochs, values, color=color, linestyle=style, marker=marker, linewidth=1.8, label=name)
        focus(axes, [line[part][metric] for line in late(lines) for part in SPLITS if line[part]])
        if best_epoch:
            axes.axvline(best_epoch, color=INK, linestyle=":", linewidth=1.5, label=f"best: epoch {best_epoch}")
        axes.set(xlabel="epoch", ylabel=unit, title=title)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="best")

    return draw(f"curve-{metric}", 250, paint)


def late(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """All epochs but the first tenth."""
    return lines[len(lines) // 10 :]


def focus(axes: Axes, values: Sequence[float]) -> None:
    """Show these values, and let others run out: the fall of the first epochs would flatten all that follows."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and max(finite) > min(finite):
        margin = 0.08 * (max(finite) - min(finite))
        axes.set_ylim(min(finite) - margin, max(finite) + margin)


def kl_bars(kl: Tensor, active: Tensor, name: str = "kl") -> Markup:
    """Mean KL(q(z_j|x) ‖ p(z_j)) of each latent j, largest first, in nats; inactive latents are hatched.

    Args:
        kl: [D] in nats.
        active: [D] bool.
        name: what its ids begin with; no two figures of a page have the same.
    """
    order = kl.argsort(descending=True, stable=True)[:MAX_BARS]

    def paint(axes: Axes) -> None:
        places = np.arange(1, len(order) + 1)
        heights, filled = kl[order].double().numpy(), active[order].numpy()
        solid: dict[str, Any] = {"color": SERIES[0]}
        hollow: dict[str, Any] = {"facecolor": "none", "edgecolor": INK, "hatch": "////", "linewidth": 0.8}
        for name, chosen, total, look in (
            ("active", filled, int(active.sum()), solid),
            ("inactive", ~filled, int((~active).sum()), hollow),
        ):
            if chosen.any():
                axes.bar(places[chosen], heights[chosen], label=f"{name} ({total})", **look)
        margin = 0.7 + max(0, 6 - len(order)) / 4  # or a single bar would fill the figure
        axes.set(ylabel="mean KL (nats per example)", xlim=(1 - margin, len(order) + margin))
        axes.grid(visible=False, axis="x")
        if len(order) <= 24:
            axes.set_xticks(places, [str(int(latent)) for latent in order])
            axes.tick_params(axis="x", labelsize=11 if len(order) <= 14 else 8.5, length=0)
            axes.set_xlabel("latent (counted from 0), largest KL first")
        else:
            axes.set_xlabel("rank of the latent by its KL")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)

    return draw(name, 250, paint)


Groups = list[tuple[str, Tensor]]  # the name of a label, and which examples have it [N] bool


def latent_map(means: Tensor, groups: Groups, prior: bool) -> Markup:
    """Where the posterior puts the examples: one latent as rows of points, two as they are, more through PCA.

    Args:
        means: posterior means [N, D], all finite.
        groups: from `label_groups`; empty to show all examples alike.
        prior: also show where 95 % of a standard normal prior lies.
    """
    groups = groups or [("", torch.ones(len(means), dtype=torch.bool))]
    if means.shape[1] == 1:
        return draw("latents", 330 if len(groups) > 1 else 200, lambda axes: _strip(axes, means[:, 0], groups, prior))

    def paint(axes: Axes) -> None:
        points, origin, axis_labels = means, torch.zeros(2), ("latent 0", "latent 1")
        if means.shape[1] > 2:
            points, shares, origin = principal_components(means)
            percents = [f"{100 * float(share):.0f} % of variance" for share in shares]
            axis_labels = tuple(f"principal component {n} ({text})" for n, text in zip((1, 2), percents, strict=True))
        for (_, mask), look in zip(groups, _looks(len(means)), strict=False):
            axes.scatter(*points[mask].double().numpy().T, **look)
        medians = np.stack([points[mask].double().median(0).values.numpy() for _, mask in groups])
        least = 0.06 * float((points.max(0).values - points.min(0).values).max())
        for (group, _), place in zip(groups, push_apart(medians, least), strict=True):
            axes.text(float(place[0]), float(place[1]), group, **_NAME)
        if prior:
            radius = math.sqrt(-2 * math.log(1 - PRIOR_SHARE))
            axes.add_patch(Circle((float(origin[0]), float(origin[1])), radius, fill=False, color=INK, linestyle="--"))
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
        axes.set_aspect("equal", "datalim")

    return draw("latents", 340, paint)


def _strip(axes: Axes, values: Tensor, groups: Groups, prior: bool) -> None:
    """One row of points a label, spread over the row's height so that they do not hide each other."""
    for row, ((_, mask), look) in enumerate(zip(groups, _looks(len(values)), strict=False)):
        points = values[mask].double().numpy()
        spread = np.modf(np.arange(len(points)) * 0.618034)[0] - 0.5  # golden ratio: even, and the same every time
        axes.scatter(points, row + 0.7 * spread, **look)
    if prior:
        edge = math.sqrt(2) * float(torch.special.erfinv(torch.tensor(PRIOR_SHARE, dtype=torch.float64)))
        axes.vlines([-edge, edge], -0.5, len(groups) - 0.5, color=INK, linestyle="--")
    axes.set(xlabel="posterior mean of latent 0", ylim=(len(groups) - 0.4, -0.6))
    axes.set_yticks(range(len(groups)), [group for group, _ in groups], parse_math=False)
    axes.set_ylabel("label" if groups[0][0] else "")
    axes.grid(visible=False, axis="y")


def _looks(number: int) -> Iterator[dict[str, Any]]:
    """Color and shape of one label after another, all pairs different; smaller dots where there are more of them."""
    size = min(25.0, max(9.0, 8_000 / number))
    for index in range(MAX_LABELS):
        color, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        yield {"color": color, "marker": marker, "s": size, "linewidths": 0, "alpha": 0.75}


def push_apart(places: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Places [L, 2] moved until all are at least about `least` apart, so that names written there can be read."""
    places = places + 1e-3 * least * np.stack([np.arange(len(places)), np.zeros(len(places))], 1)  # part equal ones
    for _ in range(100):
        offsets = places[:, None] - places[None]
        distances = np.linalg.norm(offsets, axis=-1) + np.eye(len(places)) * 2 * least
        missing = np.clip(least - distances, 0, None)
        if not missing.any():
            break
        places = places + 0.5 * (offsets * (missing / np.maximum(distances, 1e-12))[..., None]).sum(1)
    return places


def label_groups(labels: Tensor | None, names: Sequence[str] | None) -> Groups:
    """The examples of every label that occurs; empty without labels, or with more than can be told apart.

    Args:
        labels: [N] int64 or None.
        names: the name of label 0, 1, ..., or None.
    """
    if labels is None:
        return []
    found = labels.unique().tolist()
    if len(found) > MAX_LABELS:
        return []
    return [(_label_name(label, names), labels == label) for label in found]


def _label_name(label: int, names: Sequence[str] | None) -> str:
    name = names[label] if names and 0 <= label < len(names) else str(label)
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    return printable if len(printable) <= 16 else f"{printable[:15]}…"


def principal_components(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two directions of largest variance.

    Args:
        points: [N, D], D ≥ 2.

    Returns:
        The points along them [N, 2]; their shares of the total variance [2], zero where nothing varies; and where
        the origin of the D dimensions falls [2]. A direction's sign is such that its largest entry is positive.
    """
    centered = points.double() - points.double().mean(0)
    eigenvalues, vectors = torch.linalg.eigh(centered.T @ centered)
    axes = vectors[:, [-1, -2]]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    shares = eigenvalues[[-1, -2]].clamp(min=0) / eigenvalues.clamp(min=0).sum().clamp(min=1e-300)
    return centered @ axes, shares, -points.double().mean(0) @ axes


# -- from matplotlib to a page -------------------------------------------------------------------------------------


def draw(name: str, height: float, paint: Callable[[Axes], None]) -> Markup:
    """Paint a figure of `WIDTH` × `height` units and return it as an <svg> element whose ids begin with `name`."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # matplotlib's fonts measure text, they do not show it: missing signs are no matter
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        paint(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name)


def _inline(svg: str, name: str) -> Markup:
    """An SVG file as an element of a page: no namespaces, no style of its own, colors of the page, unique ids."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _value(_local(key), value, name) for key, value in element.attrib.items()}
        element.tail = None
        if element.tag != "text":
            element.text = None
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    _drop_unused_ids(root)
    root.set("class", "plot")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # the serializer has escaped every text


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _value(key: str, value: str, name: str) -> str:
    """An attribute's value with colors, ids and fonts of the page, and no more decimals than are seen."""
    if key == "id":
        return f"{name}-{value}"
    value = re.sub(r"(url\(#|^#)", rf"\g<1>{name}-", value)
    if key == "style":
        value = re.sub(r"font-family:[^;]*;\s*", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda found: _COLORS.get(found[0], found[0]), value)
    return re.sub(r"\s+", " ", re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)).strip()


def _drop_unused_ids(root: ElementTree.Element) -> None:
    values = " ".join(value for element in root.iter() for key, value in element.attrib.items() if key != "id")
    used = set(re.findall(r"#([\w.-]+)", values))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)


# -- pictures in a page --------------------------------------------------------------------------------------------


def to_tile(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W], the longer side 32 to 64 pixels: small pictures repeat pixels, large ones average them."""
    height, width = images.shape[-2:]
    if (enlarge := TILE // 2 // max(height, width)) > 1:
        return images.repeat_interleave(enlarge, -2).repeat_interleave(enlarge, -1)
    if (factor := TILE / max(height, width)) >= 1:
        return images
    size = [max(1, round(side * factor)) for side in (height, width)]
    return F.interpolate(images.float(), size=size, mode="area").round().to(torch.uint8)


def sprite(frames: Tensor) -> Image.Image:
    """uint8 [T, N, C, H, W] as one picture: a row a frame, N pictures beside each other, each in a thin grey frame."""
    rows = F.pad(frames, (1, 1, 1, 1), value=128).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray(rows.squeeze(-1).numpy())


def strip(title: str, frames: Tensor, columns: int) -> dict[str, Any]:
    """What a page needs to show a sprite one frame at a time, as wide as `columns` pictures: uint8 [T, N, C, H, W]."""
    image = sprite(frames)
    return {
        "title": title,
        "count": frames.shape[1],
        "moves": len(frames) > 1,
        "image": data_uri(image),
        "width": image.width,
        "height": image.height // len(frames),
        "share": 100 * frames.shape[1] / columns,
    }


def frame_epochs(frames: int, epochs: int) -> list[int]:
    """The epochs at which frames were taken: every s-th, s the largest power of two with s · frames ≤ epochs."""
    stride = 1 << ((epochs // frames).bit_length() - 1) if frames else 1
    return [stride * (index + 1) for index in range(frames)]


def data_uri(image: Image.Image) -> str:
    """A picture inside the page: `data:image/png;base64,...`."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
