"""What the commands share: running a model in parts, words for captions, files."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vaelab import pictures
from vaelab.data import DataSpec, Split, prefetch
from vaelab.errors import InputError
from vaelab.evaluation.estimates import OUTPUT_NUMBERS
from vaelab.files import replacing
from vaelab.model import Model
from vaelab.posteriors import PosteriorDistribution
from vaelab.runs import Run

RunPath = str | os.PathLike[str] | Run
Out = str | os.PathLike[str] | None
Made = TypeVar("Made")

EXAMPLES = 500  # encoded at once


# -- running a model -----------------------------------------------------------------------------------------------


def show(model: Model, z: Tensor, draw: bool, noise: torch.Generator, y: Tensor | None = None) -> Tensor:
    """Decode z [..., D] -> x [..., *event], the mean of p(x|z) or a draw from it, in parts of bounded memory.

    Labels y [...] belong to the z of a conditional model.
    """
    at_once = max(1, OUTPUT_NUMBERS // math.prod(model.likelihood.output_shape))
    points = z.flatten(0, -2).split(at_once)
    labels = [None] * len(points) if y is None else y.expand(z.shape[:-1]).flatten().split(at_once)
    parts = [model.show(part, draw=draw, generator=noise, y=at) for part, at in zip(points, labels, strict=True)]
    return torch.cat(parts).unflatten(0, z.shape[:-1])


def posteriors(model: Model, examples: Split, index: Tensor | None = None) -> Iterator[PosteriorDistribution]:
    """q(z|x) of the examples at `index` (all of them by default), batch by batch."""
    rows = (torch.arange(len(examples)) if index is None else index).split(EXAMPLES)
    for at, raw in zip(rows, prefetch(examples, rows), strict=True):
        yield model.encode(examples.convert(raw), y=examples.labels_at(at))


def labels_for(model: Model, examples: Split, index: Tensor | slice) -> Tensor | None:
    """Labels of the examples at `index`, for a conditional model; None for any other."""
    return None if model.labels is None else examples.labels_at(index)


# -- words ---------------------------------------------------------------------------------------------------------


def shown(draw: bool) -> str:
    """What a picture shows of p(x|z)."""
    return "draw from p(x|z)" if draw else "mean of p(x|z)"


def describe(spec: DataSpec) -> str:
    """What an example is, for an error message."""
    values = {"binary": "binary", "levels": f"{spec.levels} levels", "real": "real values"}[spec.kind]
    shape = "×".join(map(str, spec.shape))
    return f"{shape} pictures, {values}" if spec.is_picture else f"vectors of {shape} dimensions, {values}"


def check_least(name: str, value: int, least: int) -> None:
    """Refuse an argument that is too small."""
    if value < least:
        raise InputError(f"{name}={value}: must be at least {least}")


# -- files ---------------------------------------------------------------------------------------------------------


def output_file(run: Run, out: Out) -> Path | None:
    """The file to write, checked before any work is done."""
    if out is None:
        return None
    file = pictures.output_path(out, ".png", ".gif", ".npz")
    if file.suffix.lower() == ".gif" and not run.spec.is_picture:
        raise InputError(
            f"{file}: only pictures are animated, and {run} makes {describe(run.spec)}; write .npz or .png"
        )
    return file


def write(
    file: Path | None,
    made: Made,
    spec: DataSpec,
    draw: bool,
    sheet: Callable[[Made], Image.Image],
    frames: Callable[[Made], list[Image.Image]],
    seconds: float,
) -> Made:
    """Write what the file's ending asks for, and return `made`.

    Args:
        file: checked by `output_file`; None writes nothing.
        made: a dataclass of tensors; `x` and `original` are examples on the model's scale.
        spec: of the examples.
        draw: whether `x` are draws from p(x|z), and not its means.
        sheet, frames: make the pictures.
        seconds: a frame.
    """
    if file is None:
        return made
    match file.suffix.lower():
        case ".png":
            pictures.save(sheet(made), file)
        case ".gif":
            pictures.animation(frames(made), file, seconds)
        case _:
            arrays = numpy_fields(made)
            arrays["x"] = _on_own_scale(arrays["x"], spec, integers=draw)
            if "original" in arrays:
                arrays["original"] = _on_own_scale(arrays["original"], spec, integers=True)
            write_arrays(file, arrays)
    return made


def numpy_fields(made: object) -> dict[str, NDArray[Any]]:
    """The fields of a dataclass of tensors, those that are None left out."""
    return {name: value.numpy() for name, value in vars(made).items() if value is not None}


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz, whole or not at all."""
    with replacing(file) as temporary, temporary.open("wb") as opened:
        np.savez_compressed(opened, **arrays)


def _on_own_scale(x: NDArray[np.float32], spec: DataSpec, integers: bool) -> NDArray[Any]:
    if spec.levels is None:
        return x
    levels = x * np.float32(spec.levels - 1)
    return levels.round().astype(np.uint8 if spec.levels <= 256 else np.int32) if integers else levels
