"""Arrays in `.npy` and `.npz` files: vectors, grey and colour pictures, with or without labels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.division import divide_randomly
from vaelab.data.prepare import Examples
from vaelab.errors import InputError

_MOST_LEVELS = 65_536


def load_array(path: Path, config: DataConfig) -> Examples:
    """The examples in an array file, in its order.

    Shapes: `[N, D]` vectors; `[N, H, W]` grey pictures; rank 4 pictures of 1 or 3 channels, which come either
    directly after N or last. Values: booleans, and integers that are all 0 or 1, are binary; uint8 has 256 levels;
    other integers have maximum + 1 levels; floats are real. In an `.npz` the examples are the array `x` or `X`, or
    the only one beside the labels `y` (integers, one an example). Nothing is ever unpickled.

    Raises:
        InputError: a file that holds no such array, or values that are no data (NaN, negative levels, …).
    """
    values, labels = _read(path)
    values = _as_examples(values, path)
    raw, levels = _as_real(values, path) if values.dtype.kind == "f" else _as_levels(values, path)
    return Examples(
        raw=raw,
        levels=levels,
        division=divide_randomly(len(raw), config),
        labels=None if labels is None else _as_labels(labels, len(raw), path),
    )


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The array of examples and that of labels."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
            if start != b"\x93NUMPY" and start[:4] not in (b"PK\3\4", b"PK\5\6"):
                raise ValueError("neither the .npy nor the .npz format; use numpy.save or numpy.savez")
            file.seek(0)
            opened = np.load(file, allow_pickle=False)
            if isinstance(opened, np.ndarray):
                return opened, None
            values = opened[_choose(opened.files, path)]
            return np.asarray(values), opened["y"] if "y" in opened.files else None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 zipfile, zlib and numpy raise many types on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable array file ({reason})") from None


def _choose(names: list[str], path: Path) -> str:
    """Which array of an `.npz` holds the examples."""
    for candidates in ([n for n in names if n in ("x", "X")], [n for n in names if n != "y"]):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            break
    raise InputError(f"{path}: which array holds the examples? It has {', '.join(names) or 'none'}; save them as x")


def _as_examples(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """`[N, D]` or `[N, C, H, W]`, of numbers."""
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: dtype {values.dtype} is no data type of examples; save integers or floats")
    if values.ndim not in (2, 3, 4):
        raise InputError(
            f"{path}: shape {list(values.shape)} has {values.ndim} axes; vectors are [N, D], pictures [N, H, W] or "
            "[N, C, H, W]"
        )
    if 0 in values.shape:
        raise InputError(f"{path}: empty, its shape is {list(values.shape)}; there must be at least one example")
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4:
        first, last = values.shape[1] in (1, 3), values.shape[3] in (1, 3)
        if first == last:
            raise InputError(
                f"{path}: shape {list(values.shape)}: {'either' if first else 'neither'} axis 1 or axis 3 could be "
                "the 1 or 3 channels; transpose to [N, C, H, W] with C = 1 or 3 and W another number"
            )
        return values if first else values.transpose(0, 3, 1, 2)
    return values


def _as_real(values: NDArray[Any], path: Path) -> tuple[Tensor, None]:
    """float32, all finite."""
    _refuse_rows(~np.isfinite(values), path, "NaN or infinite values", "remove or fill them")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, np.float32)
    _refuse_rows(~np.isfinite(single), path, "values beyond float32 (3.4e38)", "rescale them")
    return torch.from_numpy(single), None


def _as_levels(values: NDArray[Any], path: Path) -> tuple[Tensor, int]:
    """The smallest of uint8, int16 and int32 that holds the values, and the number of levels."""
    highest = int(values.max())
    if values.dtype.kind == "i":
        _refuse_rows(values < 0, path, "negative integers", "levels count from 0; save floats if these are no levels")
    if highest >= _MOST_LEVELS:
        raise InputError(f"{path}: integers up to {highest}, above {_MOST_LEVELS} levels; save them as floats")
    kind = np.uint8 if highest < 256 else np.int16 if highest < 32_768 else np.int32
    levels = 2 if highest <= 1 else 256 if values.dtype == np.uint8 else highest + 1
    return torch.from_numpy(np.ascontiguousarray(values, kind)), levels


def _refuse_rows(bad: NDArray[np.bool_], path: Path, what: str, remedy: str) -> None:
    """Refuse values, naming the first example that holds one and how many examples do."""
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    if len(rows):
        raise InputError(f"{path}: {what} in {len(rows)} of {len(bad)} rows, first in row {rows[0]}; {remedy}")


def _as_labels(labels: NDArray[Any], n: int, path: Path) -> Tensor:
    """`[N]` int64."""
    if labels.dtype.kind not in "biu":
        raise InputError(f"{path}: labels y are {labels.dtype}; they must be integers")
    if labels.ndim != 1:
        raise InputError(f"{path}: labels y have shape {list(labels.shape)}; they must be [N], one label an example")
    if len(labels) != n:
        raise InputError(f"{path}: {len(labels)} labels y for {n} examples; there must be one an example")
    return torch.from_numpy(labels.astype(np.int64))
