"""Data sets of the Hugging Face Hub, and data set folders on disk: `hf:owner/name`, `hf:./folder`.

They are read by the library `datasets` (the extra `hub`), which maps its Arrow files into memory. Only formats that
hold plain data are opened; no code of a data set is executed, and nothing is unpickled.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.decoding import LEVELS, load_pictures
from vaelab.data.division import divide_given
from vaelab.data.prepare import Examples
from vaelab.data.tables import Column, Images, load_arrays
from vaelab.errors import InputError, VaelabError

if TYPE_CHECKING:
    from datasets import Dataset as Table
    from datasets import DatasetDict

PREFIX = "hf:"
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_FORMATS = ("parquet", "arrow", "imagefolder", "csv", "json")
_LABELS = ("label", "labels", "y")


def load_hub(source: str, config: DataConfig) -> Examples:
    """The examples of `hf:owner/name` (downloaded into the cache of `datasets`) or `hf:./folder` (offline).

    A folder is what `save_to_disk` of a `Dataset` or `DatasetDict` writes, or holds parquet files.

    - x is the column of pictures, or, where there is none, the only column of arrays or lists of numbers. Pictures
      follow the rule of folders, arrays that of `.npy` files.
    - Labels are the column `label`, `labels` or `y` if it holds classes or integers, else the only column of classes.
    - The source's own `train`, `validation` (or `valid`, `val`, `dev`) and `test` are taken; other splits are left
      out. A missing one is divided off training at random, a tenth of it unless `data.validation` or `data.test` says
      another fraction. `data.test=0` gives the source's own test examples to training; so does `data.validation=0`.
      A single split of any name is training.

    Raises:
        InputError: no such data set, or columns that leave open what x is, or values that are no data.
        VaelabError: `datasets` is not installed, or the Hub cannot be reached.
    """
    parts = _parts(source, _open(source))
    table = _join(source, parts)
    sizes = {name: len(part) for name, part in parts.items()}
    division = divide_given(sizes, config)
    name, is_picture = _choose_x(source, table)
    column = Column(table, name, source, sizes)
    labels, label_names = _labels(table)
    if is_picture:
        raw, levels = load_pictures(Images(column), config), LEVELS
    elif config.size is not None:
        raise InputError(f"data.size={config.size}: only pictures are resized; leave it out for {source}")
    else:
        raw, levels = load_arrays(column, config)
    return Examples(raw, levels, division, labels, label_names)


def absolute(source: str) -> str:
    """The source by an absolute path, if it is `hf:` and a folder."""
    folder = _folder(source) if source.startswith(PREFIX) else None
    return source if folder is None else f"{PREFIX}{folder.resolve()}"


def status() -> str:
    """Whether `datasets` is there, for a listing."""
    return "yours" if find_spec("datasets") else 'pip install "vaelab[hub]"'


# -- opening -------------------------------------------------------------------------------------------------------


def _folder(source: str) -> Path | None:
    """The folder that a source names; None if it is a name on the Hub."""
    name = source.removeprefix(PREFIX)
    path = Path(name).expanduser()
    return path if path.is_dir() or path.is_absolute() or name.startswith((".", "~")) else None


def _open(source: str) -> "Table | DatasetDict":
    try:
        import datasets
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise VaelabError(f'{source}: needs the library datasets; pip install "vaelab[hub]"') from None
    folder = _folder(source)
    if folder is not None and not folder.is_dir():
        raise InputError(f"{source}: no such folder")
    with _failures(source, DatasetNotFoundError), _quiet():
        if folder is not None and any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            opened: Any = datasets.load_from_disk(str(folder))
        else:
            name = source.removeprefix(PREFIX) if folder is None else str(folder)
            builder = datasets.load_dataset_builder(name)
            if type(builder).__module__ not in [f"datasets.packaged_modules.{known}.{known}" for known in _FORMATS]:
                found = type(builder).__module__.split(".")[-1]
                raise InputError(f"{source}: its format is {found}; only {', '.join(_FORMATS)} are read")
            builder.download_and_prepare()
            opened = builder.as_dataset()
    return opened


@contextmanager
def _failures(source: str, not_found: type[Exception]) -> Generator[None]:
    """One line for whatever `datasets` raises."""
    try:
        yield
    except InputError:
        raise
    except not_found:
        raise InputError(f"{source}: no such data set on the Hub, or it is private or gated") from None
    except ConnectionError:
        raise VaelabError(
            f"{source}: the Hugging Face Hub cannot be reached; try later, or copy a data set folder here and use "
            "hf:./folder"
        ) from None
    except Exception as error:  # noqa: BLE001 the library raises what its many readers raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, OSError) and error.errno is not None:
            raise VaelabError(f"{source}: cannot be read ({reason})") from None
        raise InputError(f"{source}: cannot be read as a data set ({reason})") from None


@contextmanager
def _quiet() -> Generator[None]:
    """Without the remarks of the libraries on retries and defaults; their progress bars stay."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# -- splits --------------------------------------------------------------------------------------------------------


def _parts(source: str, opened: "Table | DatasetDict") -> "dict[str, Table]":
    """The source's own splits under the names that they have here, training first."""
    tables = opened if isinstance(opened, dict) else {"train": opened}
    found = {str(name): table for name, table in tables.items() if len(table)}
    if not found:
        raise InputError(f"{source}: empty; there must be at least one example")
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    parts: dict[str, Table] = {}
    for name, aliases in _SPLITS.items():
        named = [alias for alias in aliases if alias in found]
        if len(named) > 1:
            raise InputError(f"{source}: which of its splits is {name}? It has {', '.join(named)}")
        if named:
            parts[name] = found[named[0]]
    if "train" not in parts:
        raise InputError(f"{source}: none of its splits is called train; it has {', '.join(found)}")
    return parts


def _join(source: str, parts: "dict[str, Table]") -> "Table":
    """All splits one after the other, as one table; nothing is copied."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts["train"]
    if any(part.features != parts["train"].features for part in parts.values()):
        raise InputError(f"{source}: its splits have different columns; save them with the same ones")
    return concatenate_datasets(list(parts.values()))


# -- columns -------------------------------------------------------------------------------------------------------


def _choose_x(source: str, table: "Table") -> tuple[str, bool]:
    """The column of the examples, and whether it holds encoded pictures."""
    import datasets

    features = table.features
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    arrays = [name for name, kind in features.items() if _is_array(kind)]
    for names in (pictures, arrays):
        if len(names) > 1:
            raise InputError(
                f"{source}: which column holds the examples? It has {', '.join(names)}; keep one of them "
                "(select_columns, save_to_disk)"
            )
        if names:
            return names[0], names is pictures
    raise InputError(f"{source}: no column of pictures or of arrays of numbers; it has {', '.join(features)}")


def _is_array(kind: Any) -> bool:
    """Whether a column holds arrays or lists of numbers."""
    import datasets

    if isinstance(kind, datasets.Array2D | datasets.Array3D):
        return True
    if not isinstance(kind, datasets.List | datasets.LargeList):
        return False
    return _is_number(kind.feature, "int", "uint", "float", "bool") or _is_array(kind.feature)


def _is_number(kind: Any, *types: str) -> bool:
    import datasets

    return isinstance(kind, datasets.Value) and kind.dtype.startswith(types)


def _labels(table: "Table") -> tuple[Tensor | None, tuple[str, ...] | None]:
    """`[N]` int64, where every example has one, and the names of the classes."""
    import datasets

    classes = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    integers = [name for name, kind in table.features.items() if _is_number(kind, "int", "uint")]
    chosen = [name for name in _LABELS if name in (*classes, *integers)] or classes
    if len(chosen) != 1:
        return None, None
    rows: Any = table.select_columns(chosen).with_format("arrow")[:]
    values = rows.column(0)
    if values.null_count:
        return None, None
    labels = torch.from_numpy(values.to_numpy().astype("int64"))
    if chosen[0] in integers:
        return labels, None
    names = tuple(table.features[chosen[0]].names)
    # Some sets mark unknown classes by -1: no name is theirs.
    return labels, names if int(labels.min()) >= 0 and int(labels.max()) < len(names) else None
