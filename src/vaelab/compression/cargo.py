"""From an input to integer examples of a model's shape, and from those back to the input, bit for bit.

| Input | Comes back as |
|---|---|
| an `.npy` | an `.npy`: values, dtype (byte order too), shape and order of axes, in C order |
| an `.npz` of examples, and labels `y` | an `.npz` of both |
| a folder of pictures | a folder of PNG files: see `vaelab.compression.picture_files` |
| a named source, `hf:...` | an `.npy` of its levels, without labels |
"""

import errno
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelab import data as datasets
from vaelab import pictures
from vaelab.compression.description import (
    AXES,
    DTYPES,
    ArrayDescription,
    Description,
    FolderDescription,
    Labels,
    contradiction,
    describe,
    fits,
    parse,
)
from vaelab.compression.picture_files import check_new, read_folder, write_folder
from vaelab.compression.tiles import Levels, cut, stitch
from vaelab.config import DataConfig
from vaelab.data.arrays import choose_examples, file_format, reading, refuse_rows
from vaelab.data.hub import PREFIX
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.files import replacing
from vaelab.generation.common import describe as describe_spec

_WHOLE = "save its levels as integers, 0 and up"


@dataclass(frozen=True, eq=False)
class Cargo:
    """An input as a model codes it.

    Attributes:
        examples: `[N, *event]`, event being `(C, H, W)` or `(D,)`: integers 0 … levels − 1. uint8 up to 256 levels.
        description: all that `write` needs beside them, as JSON has it: see `vaelab.compression.description`.
    """

    examples: Levels
    description: dict[str, Any]


# -- reading -------------------------------------------------------------------------------------------------------


def read(source: str | os.PathLike[str], spec: DataSpec, *, tile: bool = False) -> Cargo:
    """Read all that `--data` accepts, undivided and in its order.

    Grey pictures serve a model of color pictures. Floats are levels where all are whole numbers.

    Args:
        source: a name, `hf:...`, a folder of pictures, an `.npy` or an `.npz`.
        spec: what the model codes.
        tile: cut pictures of any size into tiles of the model's.

    Raises:
        InputError: an input that cannot be read, that the model does not code, or that could not come back as it is.
        VaelabError: a download fails.
    """
    _check_model(spec, tile)
    name = os.fspath(source)
    path = Path(name).expanduser()
    if not name.startswith(PREFIX) and datasets.takes_size(name):
        levels, description = read_folder(path, spec, tile)
        return Cargo(levels, description.model_dump(mode="json"))
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        return _read_array(path, spec, tile)
    # All in memory: the examples are needed there anyway.
    dataset = datasets.load(DataConfig(source=name, validation=0, test=0, stream=False))
    if dataset.levels is None:
        raise InputError(f"{name}: holds real numbers, and the model codes {describe_spec(spec)}; {_WHOLE}")
    note = "The levels of a named source, in its order; its labels are no part of it."
    return _of_array(dataset["train"].read().numpy(), spec, name, tile, note=note)


def of_array(
    values: NDArray[Any], spec: DataSpec, *, where: str = "examples", tile: bool = False, note: str = ""
) -> Cargo:
    """Take an array of levels that is in memory; it comes back as an `.npy`.

    Args:
        values: `[N, D]`, `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]`; N may be 0.
        spec: what the model codes.
        where: what error messages call it.
        tile: cut pictures of any size into tiles of the model's.
        note: what to tell whoever gets it back.

    Raises:
        InputError: values that the model does not code.
    """
    _check_model(spec, tile)
    return _of_array(values, spec, where, tile, note=note)


def _of_array(
    values: NDArray[Any],
    spec: DataSpec,
    where: str,
    tile: bool,
    file: str = "npy",
    name: str | None = None,
    labels: Labels | None = None,
    note: str = "",
) -> Cargo:
    if values.dtype.str not in DTYPES:
        raise InputError(f"{where}: dtype {values.dtype} is no data type of levels; save integers")
    description = describe(
        ArrayDescription,
        where,
        event=list(spec.shape),
        tiled=tile,
        dtype=values.dtype.str,
        shape=list(values.shape),
        axes=_axes(values.shape, spec, where, tile),
        file=file,
        name=name,
        labels=labels,
        note=note,
    )
    _check_levels(values, spec, where)
    assert spec.levels is not None
    levels = _with_channels(values, description).astype(np.uint8 if spec.levels <= 256 else np.uint16)
    if tile:
        levels = cut(levels, (spec.shape[1], spec.shape[2]))
    if levels.shape[1] < spec.shape[0]:  # grey in a model of colors
        levels = np.repeat(levels, spec.shape[0], axis=1)
    return Cargo(np.ascontiguousarray(levels), description.model_dump(mode="json"))


def _check_model(spec: DataSpec, tile: bool) -> None:
    if spec.levels is None:
        raise InputError(
            "the model codes real numbers, which have no exact code; train one on integers (levels) or binary data"
        )
    if tile and len(spec.shape) != 3:
        raise InputError(f"--tile: the model codes {describe_spec(spec)}, and only pictures have tiles; leave it out")


def _read_array(path: Path, spec: DataSpec, tile: bool) -> Cargo:
    name = labels = None
    with reading(path), path.open("rb") as file:
        packed = file_format(file.read(6)) == "npz"
        file.seek(0)
        opened: Any = np.load(file, allow_pickle=False)
        values = opened
        if packed:
            name = choose_examples(opened.files, path)
            others = [other for other in opened.files if other not in (name, "y")]
            if others or len(opened.files) > len({*opened.files}):
                raise InputError(
                    f"{path}: holds {', '.join(others) or 'arrays of one name'} beside {name} and the labels y, which "
                    f"would be lost; save {name} and y alone"
                )
            values = np.asarray(opened[name])
            labels = _labels(opened["y"], len(values), path) if "y" in opened.files else None
    return _of_array(values, spec, str(path), tile, "npz" if packed else "npy", name, labels)


def _labels(labels: NDArray[Any], n: int, path: Path) -> Labels:
    if labels.dtype.str not in DTYPES or labels.shape != (n,):
        raise InputError(
            f"{path}: labels y are {labels.dtype} {list(labels.shape)}; they must be [{n}] numbers, one an example"
        )
    return Labels.of(labels)


def _axes(shape: tuple[int, ...], spec: DataSpec, where: str, tile: bool) -> str:
    """What the axes of an array are that the model codes."""
    for axes in AXES.get(len(shape), ()):
        if fits(axes, shape, spec.shape, tile):
            return axes
    found = f"{where}: shape {list(shape)}, and the model codes {describe_spec(spec)}"
    if len(shape) > 1 and np.prod(shape[1:], dtype=object) == spec.dims:
        raise InputError(f"{found}; reshape it to {[shape[0], *spec.shape]}")
    if len(spec.shape) == 3 and len(shape) > 2 and not tile:
        raise InputError(f"{found}; cut pictures into tiles with --tile, or train a model on such examples")
    raise InputError(f"{found}; train a model on such examples")


def _check_levels(values: NDArray[Any], spec: DataSpec, where: str) -> None:
    """Refuse values that are no levels of the model."""
    if not values.size:
        return
    highest = (spec.levels or 0) - 1
    kind = values.dtype.kind
    if kind == "f":
        # Among them the zero with a minus sign, which no integer has.
        whole = np.isfinite(values) & (values == np.rint(values)) & ~(np.signbit(values) & (values == 0))
        refuse_rows(~whole, where, "numbers that are not whole", _WHOLE)
    if kind in "if":
        refuse_rows(values < 0, where, "negative numbers", "levels count from 0")
    above = values > np.float64(highest)  # float64, as float16 and int8 do not hold each number of levels
    if spec.kind == "binary":
        remedy = "compress with a model of levels (data.binarize=none), or make an array of 0 and 1 yourself"
        refuse_rows(above, where, "more than 0 and 1, the binary values that the model codes,", remedy)
    refuse_rows(above, where, f"levels above {highest}, the model's highest,", "train a model on such examples")


def _with_channels(values: NDArray[Any], description: ArrayDescription) -> NDArray[Any]:
    """`[N, D]` or `[N, C, H, W]`, a view."""
    match description.axes:
        case "NHW":
            return values[:, None]
        case "NHWC":
            return values.transpose(0, 3, 1, 2)
        case _:
            return values


# -- writing -------------------------------------------------------------------------------------------------------


def count_examples(description: dict[str, Any]) -> int:
    """How many examples a description tells of. Compare this with those that there are, before `examples_of`.

    Raises:
        CorruptFile: it is none.
    """
    return parse(description).examples


def examples_of(description: dict[str, Any], only: Sequence[int]) -> list[int]:
    """Which examples the pictures, or rows of an array, at these positions are made of.

    Raises:
        InputError: positions that are not there, or named twice.
        CorruptFile: the description is none.
    """
    parsed = parse(description)
    parsed.check_only(only)
    return [example for position in only for example in parsed.tiles(position)]


def check_out(description: dict[str, Any], out: Path) -> None:
    """See that the input can be written there, before any work is done.

    Raises:
        InputError: a taken folder, another ending than the input had, a missing parent folder.
        CorruptFile: the description is none.
    """
    _check_out(parse(description), out)


def write(examples: Levels, description: dict[str, Any], out: Path, only: Sequence[int] | None = None) -> None:
    """Give back what `read` was given, whole or not at all.

    Args:
        examples: `[N, *event]`; with `only` those of `examples_of(description, only)`, in that order.
        description: that of `Cargo`. It may be damaged or forged.
        out: an .npy or .npz, as the input was, which is replaced; for pictures a folder that is new or empty.
        only: positions of the pictures, or of the rows of an array, to write. Rows come in this order.

    Raises:
        InputError: `out` or `only` do not fit the description.
        CorruptFile: examples and description do not fit each other.
    """
    parsed = parse(description)
    if only is not None:
        parsed.check_only(only)
    _check_out(parsed, out)
    needed = parsed.examples if only is None else sum(len(parsed.tiles(position)) for position in only)
    if list(examples.shape) != [needed, *parsed.event]:
        raise contradiction(f"it should hold {[needed, *parsed.event]} examples, not {list(examples.shape)}")
    if isinstance(parsed, FolderDescription):
        write_folder(examples, parsed, out, only)
    else:
        _write_array(examples, parsed, out, only)


def _check_out(description: Description, out: Path) -> None:
    if isinstance(description, ArrayDescription):
        pictures.output_path(out, f".{description.file}")
    else:
        check_new(out)


def _write_array(examples: Levels, description: ArrayDescription, out: Path, only: Sequence[int] | None) -> None:
    values = _restore(examples, description, description.pictures if only is None else len(only))
    if description.file == "npy":
        with replacing(out) as temporary, temporary.open("wb") as file:
            try:
                np.save(file, values, allow_pickle=False)
            except OSError as error:  # numpy does not say why it could not write all
                raise error if error.errno else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        return
    arrays = {str(description.name): values}
    if description.labels is not None:
        labels = description.labels.values(description.pictures)
        arrays["y"] = labels if only is None else labels[list(only)]
    # Not numpy.savez: no array of any name may be taken for one of its arguments.
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _restore(examples: Levels, description: ArrayDescription, n: int) -> NDArray[Any]:
    """The array [n, ...] that examples were made of."""
    levels = examples
    if description.axes != "ND":
        channels, height, width = description.channels_first
        if channels < levels.shape[1]:
            if (levels != levels[:, :1]).any():
                raise contradiction("it says that pictures in color are grey")
            levels = levels[:, :1]
        if description.tiled:
            levels = stitch(levels, n, height, width)
        if description.axes == "NHW":
            levels = levels[:, 0]
        elif description.axes == "NHWC":
            levels = levels.transpose(0, 2, 3, 1)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(levels, description.dtype)
    if (values != levels).any():
        raise contradiction(f"its type {description.dtype} does not hold its levels")
    return values
