"""Columns of Arrow tables that are mapped into memory: encoded pictures, and arrays of numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.arrays import channels_first, stored_as, to_memory
from vaelab.data.decoding import Content, Encoded
from vaelab.data.stream import Files, Rows, Storing, should_stream
from vaelab.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset as Table

_AT_ONCE = 1024  # rows that are read into memory together


class Column:
    """One column of a table, read by position; many threads may do so at once.

    Args:
        table: the splits of a source, one after the other.
        name: of the column.
        source: what error messages call the table.
        sizes: name and length of each split.
    """

    def __init__(self, table: "Table", name: str, source: str, sizes: dict[str, int]) -> None:
        self.source, self.sizes = source, sizes
        if getattr(table, "_indices", None) is not None:  # rows in another order than in the file
            table = table.flatten_indices()
        # Not by the table's own indexing: that takes 0.3 ms a row.
        chunks: list[Any] = [chunk for chunk in table.data.column(name).chunks if len(chunk)]
        self._chunks = [getattr(chunk, "storage", chunk) for chunk in chunks]
        self._starts = np.cumsum([0, *map(len, chunks)])
        self._files = Files(file["filename"] for file in table.cache_files)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, index: list[int]) -> Any:
        """Rows as an Arrow array, of its storage where that is another type.

        Raises:
            VaelabError: a file of the table vanished or was replaced.
            InputError: a row without a value.
        """
        import pyarrow

        self._files.check()
        rows = np.asarray(index)
        chunk = np.searchsorted(self._starts, rows, "right") - 1
        order = np.argsort(chunk, kind="stable")
        parts: list[Any] = []
        for number in np.unique(chunk):
            here = rows[order][chunk[order] == number] - self._starts[number]
            parts.append(self._chunks[number].take(pyarrow.array(here)))
        values: Any = pyarrow.concat_arrays(parts).take(pyarrow.array(np.argsort(order)))
        self._refuse(~values.is_valid().to_numpy(zero_copy_only=False), index, "no value")
        return values

    def arrays(self, index: list[int], event: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Rows of arrays or nested lists as `[B, *event]`.

        Raises:
            InputError: a row of another shape than `event` (than the first row, if that is None), or with gaps.
        """
        import pyarrow.compute

        compute: Any = pyarrow.compute  # made at run time, so unknown to a type checker
        values = self.take(index)
        shape = [len(index)]
        while hasattr(values, "flatten"):  # lists of any kind
            lengths: Any = compute.list_value_length(values).to_numpy(zero_copy_only=False)
            wanted = max(lengths, default=0) if event is None else event[len(shape) - 1]
            self._refuse(lengths != wanted, index, "another shape than the first row")
            values = values.flatten()
            shape.append(int(wanted))
        self._refuse(~values.is_valid().to_numpy(zero_copy_only=False), index, "gaps")
        return values.to_numpy(zero_copy_only=False).reshape(shape)

    def name(self, index: int) -> str:
        """For example "row 17 of validation in hf:owner/name"."""
        for split, size in self.sizes.items():
            if index < size:
                return f"row {index} of {split} in {self.source}"
            index -= size
        raise IndexError(index)

    def _refuse(self, bad: NDArray[np.bool_], index: list[int], what: str) -> None:
        if bad.any():
            row = int(bad.argmax()) * len(index) // len(bad)
            raise InputError(f"{self.name(index[row])}: has {what}; mend or remove it")


class Images(Encoded):
    """A column of encoded pictures: their bytes, or the paths of files."""

    files = False

    def __init__(self, column: Column) -> None:
        self.column, self.where = column, column.source

    def __len__(self) -> int:
        return len(self.column)

    def contents(self, index: list[int]) -> list[Content]:
        rows: list[dict[str, Any]] = self.column.take(index).to_pylist()
        return [Path(row["path"] or "") if row["bytes"] is None else row["bytes"] for row in rows]

    def name(self, index: int) -> str:
        return self.column.name(index)


def load_arrays(column: Column, config: DataConfig) -> tuple[Tensor | Rows, int | None]:
    """The examples of a column of arrays, in memory or streamed, and their number of levels.

    Raises:
        InputError: values that are no data, or rows of several shapes.
    """
    first = column.arrays([0])
    event = first.shape[1:]
    if should_stream(config, len(column) * first.nbytes):
        storing, levels = stored_as(first.dtype, (len(column), *event), config, column.source)
        return _Arrays(column, event, storing), levels
    every = range(len(column))
    parts = [column.arrays(list(every[start : start + _AT_ONCE]), event) for start in every[::_AT_ONCE]]
    return to_memory(np.concatenate(parts), column.source)


class _Arrays(Rows):
    """The examples of a column of arrays, read when they are needed."""

    def __init__(self, column: Column, event: tuple[int, ...], storing: Storing) -> None:
        self.column, self.event, self.storing = column, event, storing
        self.shape = (len(column), *channels_first(np.empty((0, *event))).shape[1:])
        self.dtype = storing.dtype

    def read(self, index: Tensor) -> Tensor:
        values = channels_first(self.column.arrays(index.tolist(), self.event))
        return torch.from_numpy(self.storing(values, index, self.name))

    def name(self, index: int) -> str:
        return self.column.name(index)
