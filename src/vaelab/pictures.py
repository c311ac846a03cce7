"""Contact sheets, heat maps and animations of examples. It knows of tensors and files, not of models.

Pictures are tensors [..., C, H, W] with values in [0, 1]; C = 1 is grey, C = 3 is RGB. The ground of a sheet is a
light neutral grey with dark text: it stays readable on a light and on a dark page, and a sheet of grey pictures needs
no colors at all.
"""

import io
import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vaelab.errors import InputError
from vaelab.files import check_writable, replacing

GROUND = 235
INK = 32
TILE = 64  # pixels: smaller pictures are enlarged until their longer side has at least as many
GAP = 4
MARGIN = 12
TEXT = 14
LINE = 20  # height of a line of text
LARGEST_TILE = 256  # where there are few pictures
LEAST_WIDTH = 340  # of a sheet with a caption, so that the caption does not become a column of words
PALETTE_PIXELS = 200_000  # decide on the colors of an animation; all of its pixels would take many seconds
MOST_PIXELS = 100_000_000  # of one sheet; many programs refuse to open larger ones


# -- values --------------------------------------------------------------------------------------------------------


def to_uint8(values: Tensor) -> NDArray[np.uint8]:
    """[..., C, H, W] on [0, 1] -> the same shape on 0 … 255, clamped and rounded."""
    return (values.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def clamp(values: Tensor, caption: str | None = None) -> tuple[Tensor, str | None]:
    """Values clamped to [0, 1], and the caption with a sentence on how many that changed visibly, if any."""
    tolerance = 0.5 / 255  # less does not change a picture of 256 levels
    share = ((values < -tolerance) | (values > 1 + tolerance)).double().mean().item()
    if share:
        amount = f"{100 * share:.1f}" if share >= 0.0005 else "Fewer than 0.1"
        note = f"{amount} % of the values lie outside [0, 1] and are clamped."
        caption = note if caption is None else f"{caption}. {note}"
    return values.clamp(0, 1), caption


# -- sheets --------------------------------------------------------------------------------------------------------


def grid(
    images: Tensor,
    columns: int | None = None,
    scale: int | None = None,
    caption: str | None = None,
    *,
    row_labels: Sequence[str] = (),
    labels: Sequence[str] = (),
    group: int = 1,
) -> Image.Image:
    r"""A contact sheet.

    Args:
        images: [N, C, H, W], C = 1 or 3. Values outside [0, 1] are clamped, and the caption says so.
        columns: pictures a row; about as many as rows unless told.
        scale: each pixel becomes `scale` × `scale`; by default as much as brings a picture to 64 pixels,
            and more where there are few columns.
        caption: text below; it wraps, and "\n" breaks a line.
        row_labels: text left of the first rows.
        labels: text above the first pictures. A row whose pictures have none leaves no space for it: so `columns`
            labels are headings of columns, and N labels name every picture.
        group: rows that belong together; the gap between groups is wider.

    Returns:
        A picture of mode "L" for grey, "RGB" for color. Without labels, the picture in row i and column j begins at
        pixel `MARGIN + j * (W * scale + GAP)` from the left and `MARGIN + i * (H * scale + GAP)` from the top
        (`group` = 1).

    Raises:
        InputError: no pictures, a wrong number of channels, or a sheet of over 100 million pixels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(f"pictures of shape {list(images.shape)} cannot be drawn; they must be [N, 1 or 3, H, W]")
    images, caption = clamp(images, caption)
    number, _, height, width = images.shape
    columns = columns or _columns(number)
    scale = scale or _scale(height, width, columns)
    cell = max([width * scale, *map(_length, labels)])
    left = MARGIN + max([0, *(_length(text) + 2 * GAP for text in row_labels)])
    headed = [any(labels[first : first + columns]) for first in range(0, number, columns)]
    tops, bottom = _tops(headed, height * scale, group)
    size = (left + columns * (cell + GAP) - GAP + MARGIN, bottom + MARGIN)
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"{number} pictures make a sheet of {size[0]} x {size[1]} pixels; show fewer, or write .npz")

    sheet = _blank("L" if images.shape[1] == 1 else "RGB", size)
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(_tiles(images, scale)):
        row, column = divmod(index, columns)
        x = left + column * (cell + GAP)
        sheet.paste(tile, (x + (cell - tile.width) // 2, tops[row]))
        if index < len(labels):
            _write(draw, (x + cell / 2, tops[row] - LINE / 2), labels[index], "mm")
    for top, text in zip(tops, row_labels, strict=False):
        _write(draw, (left - 2 * GAP, top + height * scale / 2), text, "rm")
    return _with_caption(sheet, caption)


def _tiles(images: Tensor, scale: int) -> Iterator[Image.Image]:
    """[N, C, H, W] -> N pictures, each pixel a square of `scale` × `scale`."""
    for picture in to_uint8(images).transpose(0, 2, 3, 1):
        enlarged = picture.repeat(scale, 0).repeat(scale, 1)
        yield Image.fromarray(enlarged[..., 0] if enlarged.shape[-1] == 1 else enlarged)


def _tops(headed: list[bool], height: int, group: int) -> tuple[list[int], int]:
    """Where each row of pictures begins, and where the last one ends, in pixels from the top."""
    tops: list[int] = []
    end = MARGIN - GAP
    for row, has_labels in enumerate(headed):
        between_groups = 2 * GAP if group > 1 and row and row % group == 0 else 0
        tops.append(end + GAP + between_groups + (LINE if has_labels else 0))
        end = tops[-1] + height
    return tops, end


def pairs(
    original: Tensor, reconstruction: Tensor, columns: int | None = None, caption: str | None = None
) -> Image.Image:
    """Originals above their reconstructions: a sheet for pictures [N, C, H, W], a heat map for vectors [N, D].

    Args:
        original, reconstruction: of one shape.
        columns: pairs a row of the sheet; at most 8 unless told.
        caption: text below.
    """
    both = torch.stack((original, reconstruction))
    if original.ndim != 4:
        return heatmap(both.flatten(0, 1), caption, row_labels=("original", "reconstruction"))
    number = len(original)
    columns = columns or next((c for c in range(min(number, 8), 4, -1) if number % c == 0), min(number, 8))
    rows = -(-number // columns)
    padded = both.new_full((2, rows * columns, *original.shape[1:]), GROUND / 255)  # invisible on the ground
    padded[:, :number] = both
    interleaved = padded.unflatten(1, (rows, columns)).transpose(0, 1).flatten(0, 2)
    return grid(interleaved, columns, caption=caption, row_labels=("original", "reconstruction") * rows, group=2)


def heatmap(rows: Tensor, caption: str | None = None, *, row_labels: Sequence[str] = ()) -> Image.Image:
    """Vectors as a heat map: an example a row, a dimension a column.

    Colors span the middle 98 % of the values, so that one outlier does not hide the others. Where there are values of
    both signs, white is zero.

    Args:
        rows: [N, ...], real values; flattened to [N, D].
        caption: text below.
        row_labels: names of equal blocks of consecutive rows; N is a multiple of their number.
    """
    values = rows.detach().flatten(1).float().cpu().numpy()
    low, high = np.quantile(values, (0.01, 0.99))
    signed = low < 0 < high
    if signed:
        low, high = -max(-low, high), max(-low, high)
    if low == high:
        low, high = low - 0.5, high + 0.5
    size = (7.6, min(8.0, 1.6 + 0.09 * len(values)))
    layout = ConstrainedLayoutEngine(w_pad=MARGIN / 100, h_pad=MARGIN / 100)  # in inches
    figure = Figure(size, dpi=100, facecolor=f"#{3 * f'{GROUND:02x}'}", layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = axes.imshow(
        values, cmap="RdBu_r" if signed else "viridis", vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    axes.set_xlabel("dimension")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if row_labels:
        block = len(values) // len(row_labels)
        axes.set_yticks([block * (index + 0.5) - 0.5 for index in range(len(row_labels))], row_labels)
        axes.hlines([block * index - 0.5 for index in range(1, len(row_labels))], -0.5, values.shape[1] - 0.5, "black")
    else:
        axes.set_ylabel("example")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    beyond = (values.min() < low, values.max() > high)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    figure.colorbar(shown, ax=axes, extend=extend, label="value, in the units of the data", pad=0.02)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return _with_caption(Image.open(file).convert("RGB"), caption)


def _scale(height: int, width: int, columns: int) -> int:
    """As much as brings a picture to the size of a tile; more where that leaves a sheet narrow, up to a limit."""
    side = max(height, width)
    filling = -(-(LEAST_WIDTH - 2 * MARGIN) // (columns * width))
    return max(1, -(-TILE // side), min(filling, LARGEST_TILE // side))


def _columns(number: int) -> int:
    """From as many columns as rows to twice as many, so that the last row is full if it can be."""
    root = math.isqrt(number - 1) + 1
    return next((columns for columns in range(root, 2 * root + 1) if number % columns == 0), root)


# -- text ----------------------------------------------------------------------------------------------------------


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has no minus sign and no Greek."""
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), TEXT)


def _length(text: str) -> int:
    return math.ceil(_font().getlength(text))


def _blank(mode: str, size: tuple[int, int]) -> Image.Image:
    """An empty sheet of mode "L" or "RGB"."""
    return Image.new(mode, size, GROUND if mode == "L" else (GROUND,) * 3)


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str) -> None:
    draw.text(at, text, INK if draw.mode == "L" else (INK,) * 3, _font(), anchor)


def _wrap(text: str, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and _length(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _with_caption(sheet: Image.Image, caption: str | None) -> Image.Image:
    """The sheet with text below; it is widened to the right where it is too narrow for that."""
    if not caption:
        return sheet
    widest = max(map(_length, caption.split()))
    width = max(sheet.width, LEAST_WIDTH, widest + 2 * MARGIN)
    lines = _wrap(caption, width - 2 * MARGIN)
    whole = _blank(sheet.mode, (width, sheet.height + len(lines) * LINE + MARGIN))
    whole.paste(sheet, (0, 0))
    draw = ImageDraw.Draw(whole)
    for index, line in enumerate(lines):
        _write(draw, (MARGIN, sheet.height + (index + 0.5) * LINE - 2), line, "lm")
    return whole


# -- files ---------------------------------------------------------------------------------------------------------


def output_path(out: str | os.PathLike[str], *endings: str) -> Path:
    """Check that a file can be written there, before any work is done.

    Args:
        out: the file to write; an existing one is replaced.
        endings: those that work, such as ".png".

    Raises:
        InputError: a folder, a missing parent folder or one that cannot be written to, or another ending.
    """
    path = Path(out)
    kind = {".html": "page", ".csv": "table"}.get(endings[0], "pictures")
    if path.suffix.lower() not in endings and not path.is_dir():
        known = " or ".join(filter(None, (", ".join(endings[:-1]), endings[-1])))
        raise InputError(f"{path}: the ending tells what to write; it must be {known}")
    check_writable(path, kind + endings[0])
    return path


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def animation(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write an endless GIF, whole or not at all.

    All frames share one palette, and colors are not dithered, so nothing flickers: the 256 greys where every frame is
    grey (mode "L"), else the 256 colors that suit the frames best.

    Args:
        frames: at least one; they may differ in size, and are then padded at the right and below.
        path: where to.
        seconds: each frame is shown as long; a GIF counts in hundredths.
    """
    width, height = max(frame.width for frame in frames), max(frame.height for frame in frames)
    mode = "L" if all(frame.mode == "L" for frame in frames) else "RGB"
    padded: list[Image.Image] = []
    for frame in frames:
        whole = _blank(mode, (width, height))
        whole.paste(frame, (0, 0))
        padded.append(whole)
    if mode == "RGB":
        strip = _with_palette(np.concatenate([np.asarray(frame) for frame in padded]))
        padded = [strip.crop((0, top, width, top + height)) for top in range(0, strip.height, height)]
    with replacing(path) as temporary:
        padded[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=padded[1:],
            duration=round(100 * seconds) * 10,
            loop=0,
            optimize=False,
        )


def _with_palette(pixels: NDArray[np.uint8]) -> Image.Image:
    """[H, W, 3] in 256 colors: exact where there are no more, else those of the median cut of a sample of pixels."""
    image = Image.fromarray(pixels)
    if image.getcolors(256):
        return image.quantize(256)
    step = -(-image.width * image.height // PALETTE_PIXELS)
    palette = Image.fromarray(pixels.reshape(1, -1, 3)[:, ::step]).quantize(256)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)
