"""Arrays in `.npy` and `.npz` files: vectors, grey and colour pictures, with or without labels."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.division import divide_randomly
from vaelab.data.prepare import Examples
from vaelab.data.stream import Files, Rows, Storing, should_stream
from vaelab.errors import InputError

_MOST_LEVELS = 65_536


def load_array(path: Path, config: DataConfig) -> Examples:
    """The examples in an array file, in its order.

    Shapes: `[N, D]` vectors; `[N, H, W]` grey pictures; rank 4 pictures of 1 or 3 channels, which come either
    directly after N or last. Values: booleans, and integers that are all 0 or 1, are binary; uint8 has 256 levels;
    other integers have maximum + 1 levels; floats are real. In an `.npz` the examples are the array `x` or `X`, or
    the only one beside the labels `y` (integers, one an example). Nothing is ever unpickled.

    An `.npy` that would take too much memory (`data.stream`) is mapped, and read example by example (`Mapped`). No
    pass is made over it: integers wider than 8 bits need `data.levels`, uint8 has 256 levels whatever it holds, and a
    value that is no data is found when it is read.

    Raises:
        InputError: a file that holds no such array, or values that are no data (NaN, negative levels, …).
    """
    if should_stream(config, path.stat().st_size) and (values := _mapped(path, config)) is not None:
        storing, levels = stored_as(values.dtype, values.shape, config, str(path))
        raw = Mapped(path, values, storing)
        return Examples(raw, levels, divide_randomly(len(raw), config))
    values, labels = _read(path)
    raw, levels = to_memory(values, str(path))
    return Examples(
        raw=raw,
        levels=levels,
        division=divide_randomly(len(raw), config),
        labels=None if labels is None else _as_labels(labels, len(raw), path),
    )


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The array of examples and that of labels."""
    with reading(path), path.open("rb") as file:
        file_format(file.read(6))
        file.seek(0)
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            return opened, None
        values = opened[choose_examples(opened.files, path)]
        return np.asarray(values), opened["y"] if "y" in opened.files else None
    raise AssertionError


def _mapped(path: Path, config: DataConfig) -> NDArray[Any] | None:
    """The array of an `.npy`, left in its file; None where it cannot stay there and need not."""
    with reading(path):
        with path.open("rb") as file:
            packed = file_format(file.read(6)) == "npz"
        # Not a private writable map: of a large file the system may refuse it, as if it took memory.
        values = None if packed else np.load(path, mmap_mode="r", allow_pickle=False)
    if values is not None and values.flags.c_contiguous:
        return values
    if config.stream is True:
        if packed:
            raise InputError(f"data.stream=true: {path} is an .npz, which cannot be streamed; save its x as .npy")
        raise InputError(
            f"data.stream=true: {path} is in Fortran order, with each example scattered over the file; save "
            "numpy.ascontiguousarray(x)"
        )
    return None


@contextmanager
def reading(path: Path) -> Generator[None]:
    """One line for whatever a damaged file raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 zipfile, zlib and numpy raise many types on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable array file ({reason})") from None


def file_format(start: bytes) -> str:
    """`npy` or `npz`, by how a file begins."""
    if start == b"\x93NUMPY":
        return "npy"
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        return "npz"
    raise ValueError("neither the .npy nor the .npz format; use numpy.save or numpy.savez")


def choose_examples(names: list[str], path: Path) -> str:
    """Which array of an `.npz` holds the examples."""
    for candidates in ([n for n in names if n in ("x", "X")], [n for n in names if n != "y"]):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            break
    raise InputError(f"{path}: which array holds the examples? It has {', '.join(names) or 'none'}; save them as x")


# -- examples in memory --------------------------------------------------------------------------------------------


def to_memory(values: NDArray[Any], where: str) -> tuple[Tensor, int | None]:
    """Examples `[N, *event]` as they are stored, and the number of levels; None if they are real.

    Raises:
        InputError: no array of examples, or values that are no data.
    """
    check_examples(values.dtype, values.shape, where)
    values = channels_first(values)
    return _as_real(values, where) if values.dtype.kind == "f" else _as_levels(values, where)


def check_examples(dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> None:
    """Refuse an array whose type or shape is not one of examples."""
    if dtype.kind not in "biuf":
        raise InputError(f"{where}: dtype {dtype} is no data type of examples; save integers or floats")
    if len(shape) not in (2, 3, 4):
        raise InputError(
            f"{where}: shape {list(shape)} has {len(shape)} axes; vectors are [N, D], pictures [N, H, W] or "
            "[N, C, H, W]"
        )
    if 0 in shape:
        raise InputError(f"{where}: empty, its shape is {list(shape)}; there must be at least one example")
    if len(shape) == 4 and (shape[1] in (1, 3)) == (shape[3] in (1, 3)):
        raise InputError(
            f"{where}: shape {list(shape)}: {'either' if shape[1] in (1, 3) else 'neither'} axis 1 or axis 3 could be "
            "the 1 or 3 channels; transpose to [N, C, H, W] with C = 1 or 3 and W another number"
        )


def channels_first(values: NDArray[Any]) -> NDArray[Any]:
    """`[N, D]` or `[N, C, H, W]`, a view."""
    if values.ndim == 3:
        return values[:, None]
    return values.transpose(0, 3, 1, 2) if values.ndim == 4 and values.shape[1] not in (1, 3) else values


def _as_real(values: NDArray[Any], where: str) -> tuple[Tensor, None]:
    """float32, all finite."""
    refuse_rows(~np.isfinite(values), where, "NaN or infinite values", "remove or fill them")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, np.float32)
    refuse_rows(~np.isfinite(single), where, "values beyond float32 (3.4e38)", "rescale them")
    return torch.from_numpy(single), None


def _as_levels(values: NDArray[Any], where: str) -> tuple[Tensor, int]:
    """The smallest of uint8, int16 and int32 that holds the values, and the number of levels."""
    highest = int(values.max())
    if values.dtype.kind == "i":
        refuse_rows(values < 0, where, "negative integers", "levels count from 0; save floats if these are no levels")
    if highest >= _MOST_LEVELS:
        raise InputError(f"{where}: integers up to {highest}, above {_MOST_LEVELS} levels; save them as floats")
    kind = np.uint8 if highest < 256 else np.int16 if highest < 32_768 else np.int32
    levels = 2 if highest <= 1 else 256 if values.dtype == np.uint8 else highest + 1
    return torch.from_numpy(np.ascontiguousarray(values, kind)), levels


def refuse_rows(bad: NDArray[np.bool_], where: str, what: str, remedy: str) -> None:
    """Refuse values, naming the first example that holds one and how many examples do."""
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    if len(rows):
        raise InputError(f"{where}: {what} in {len(rows)} of {len(bad)} rows, first in row {rows[0]}; {remedy}")


def _as_labels(labels: NDArray[Any], n: int, path: Path) -> Tensor:
    """`[N]` int64."""
    if labels.dtype.kind not in "biu":
        raise InputError(f"{path}: labels y are {labels.dtype}; they must be integers")
    if labels.ndim != 1:
        raise InputError(f"{path}: labels y have shape {list(labels.shape)}; they must be [N], one label an example")
    if len(labels) != n:
        raise InputError(f"{path}: {len(labels)} labels y for {n} examples; there must be one an example")
    return torch.from_numpy(labels.astype(np.int64))


# -- examples on disk ----------------------------------------------------------------------------------------------


def stored_as(
    dtype: np.dtype[Any], shape: tuple[int, ...], config: DataConfig, where: str
) -> tuple[Storing, int | None]:
    """How the examples of a stream are stored, and the number of levels; None if they are real.

    Raises:
        InputError: no array of examples, or integers whose levels would have to be counted.
    """
    check_examples(dtype, shape, where)
    if dtype.kind == "f":
        probabilities = None if config.binarize == "none" else (0, 1)
        remedy = f"data.binarize={config.binarize} needs numbers scaled to [0, 1]"
        return Storing(torch.float32, probabilities, remedy), None
    levels = config.levels or {"bool": 2, "uint8": 256}.get(dtype.name)
    if levels is None:
        raise InputError(
            f"{where}: {dtype} in a stream, whose levels are not counted; give data.levels=N, or read all into memory "
            "with data.stream=false"
        )
    kept = torch.uint8 if levels <= 256 else torch.int16 if levels <= 32_768 else torch.int32
    fits = dtype.itemsize == 1 and dtype.kind in "bu" and levels >= (256 if dtype.kind == "u" else 2)
    return Storing(kept, None if fits else (0, levels - 1), f"those are the levels of data.levels={levels}"), levels


class Mapped(Rows):
    """The examples of an `.npy` file, mapped into memory: the system reads and drops its pages as it sees fit.

    Args:
        path: of the file.
        values: `[N, ...]` in C order, as `numpy.load` maps it.
        storing: how its numbers become stored values.
    """

    def __init__(self, path: Path, values: NDArray[Any], storing: Storing) -> None:
        self.path, self.storing, self._files = path, storing, Files([path])
        self._dtype, self._event = values.dtype, values.shape[1:]
        # As bytes: numpy.take would first copy all of an array that is not aligned in its file.
        self._bytes = np.asarray(values).reshape(len(values), -1).view(np.uint8)
        self.shape = (len(values), *channels_first(np.empty((0, *self._event))).shape[1:])
        self.dtype = storing.dtype

    def read(self, index: Tensor) -> Tensor:
        self._files.check()
        values = np.take(self._bytes, index.numpy(), axis=0).view(self._dtype).reshape(-1, *self._event)
        return torch.from_numpy(self.storing(channels_first(values), index, self.name))

    def name(self, index: int) -> str:
        return f"row {index} of {self.path}"
