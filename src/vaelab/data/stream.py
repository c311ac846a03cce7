"""Examples that stay where they are: read by position when they are needed, in bounded memory."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.errors import InputError, VaelabError

LARGE = 1 << 30  # bytes; with data.stream=auto, more than that stay on disk
WORKERS = min(4, os.cpu_count() or 1)
_SAMPLE = 64  # examples that stand for all of a stream


def should_stream(config: DataConfig, size: int) -> bool:
    """Whether stored examples of `size` bytes are streamed, as `data.stream` says."""
    return size > LARGE if config.stream == "auto" else config.stream


def spread(n: int) -> Tensor:
    """At most 64 of n positions, first and last among them, evenly spread: int64."""
    most = min(n, _SAMPLE)
    return torch.arange(most) * (n - 1) // max(1, most - 1)


class Rows(ABC):
    """N stored examples that stay where they are: in a file, in a folder.

    `read` and `name` may be called by many threads at once. Reading is NumPy's work throughout, and it lets other
    threads run meanwhile: PyTorch's own operations would start a team of threads in each thread that calls them.

    Attributes:
        shape: `(N, *event)`.
        dtype: of the stored values: uint8, int16 or int32 for levels, float32 for real ones.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def read(self, index: Tensor) -> Tensor:
        """The examples at int64 positions `[B]`: `[B, *event]` on the CPU, in memory of their own.

        Raises:
            InputError: an example that is no data.
            VaelabError: a file that vanished or was replaced.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error message calls an example: "row 17 of /data/x.npy", "cats/3.png"."""

    def place(self, index: Tensor) -> Tensor:
        """Positions in the source, whatever was selected from it since."""
        return index

    def sample(self) -> Iterator[bytes]:
        """A bounded part of the content that stands for all of it in a fingerprint: at most 64 examples."""
        yield self.read(spread(len(self))).numpy().tobytes()

    def select(self, index: slice | Tensor) -> "Rows":
        """Some of these examples, in the order of `index`; nothing is read."""
        return _Selection(self, torch.arange(len(self))[index])

    def __len__(self) -> int:
        return self.shape[0]


class _Selection(Rows):
    """The examples of `rows` at `positions`."""

    def __init__(self, rows: Rows, positions: Tensor) -> None:
        self.rows, self.positions = rows, positions
        self.shape, self.dtype = (len(positions), *rows.shape[1:]), rows.dtype

    def read(self, index: Tensor) -> Tensor:
        return self.rows.read(self.positions[index])

    def name(self, index: int) -> str:
        return self.rows.name(int(self.positions[index]))

    def place(self, index: Tensor) -> Tensor:
        return self.rows.place(self.positions[index])

    def select(self, index: slice | Tensor) -> Rows:
        return _Selection(self.rows, self.positions[index])


# -- values that change as they are read ---------------------------------------------------------------------------


class _Changed(Rows):
    """The examples of `rows`, each changed as it is read."""

    def __init__(self, rows: Rows, dtype: torch.dtype) -> None:
        self.rows = rows
        self.shape, self.dtype = rows.shape, dtype

    @abstractmethod
    def change(self, values: NDArray[Any], index: Tensor) -> NDArray[Any]:
        """From the values `[B, *event]` of `rows` at `index` to those of this."""

    def read(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.change(self.rows.read(index).numpy(), index))

    def name(self, index: int) -> str:
        return self.rows.name(index)

    def place(self, index: Tensor) -> Tensor:
        return self.rows.place(index)


class Thresholded(_Changed):
    """1 where a value is above `middle`, else 0."""

    def __init__(self, rows: Rows, middle: float) -> None:
        super().__init__(rows, torch.uint8)
        self.middle = middle

    def change(self, values: NDArray[Any], index: Tensor) -> NDArray[Any]:
        return (values > self.middle).astype(np.uint8)


class Drawn(_Changed):
    """1 with probability value / scale, else 0: one draw an example, the same at every read and in every batch.

    It is a function of `seed` and the example's position p in its source alone. An example of D dimensions takes the
    numbers p w ... p w + w − 1, with w = ⌈D / 4⌉, of the 64-bit generator SplitMix64 (Steele, Lea & Flood 2014,
    doi:10.1145/2660193.2660195) that starts at `seed`. Each number serves four dimensions, as in `Split.batch`.
    """

    def __init__(self, rows: Rows, scale: int, seed: int) -> None:
        super().__init__(rows, torch.uint8)
        self.scale, self.seed = scale, seed

    def change(self, values: NDArray[Any], index: Tensor) -> NDArray[Any]:
        p = values.reshape(len(values), -1).astype(np.float32)
        p /= np.float32(self.scale)
        p *= 65536
        p -= np.float32(32768.5)
        words = split_mix(self.seed, self.place(index).numpy(), -(-p.shape[1] // 4))
        u = words.view("<i2")[:, : p.shape[1]]  # -32768 ... 32767
        return (p > u).view(np.uint8).reshape(values.shape)


def split_mix(seed: int, positions: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
    """Numbers position * length + j of SplitMix64 from `seed`, for j = 0 ... length − 1: `[B, length]` uint64."""
    state = (positions.astype("<u8") * np.uint64(length))[:, None] + np.arange(1, length + 1, dtype="<u8")
    state *= np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(seed % 2**64)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


class Broadcast(_Changed):
    """Examples that are repeated along axes of length 1, as `Tensor.expand` does: grey pictures as RGB."""

    def __init__(self, rows: Rows, event: tuple[int, ...]) -> None:
        super().__init__(rows, rows.dtype)
        self.shape = (rows.shape[0], *event)

    def change(self, values: NDArray[Any], index: Tensor) -> NDArray[Any]:
        return np.broadcast_to(values, (len(values), *self.shape[1:])).copy()


class Storing:
    """How the numbers of a file become stored values: checked against their bounds, then in the type to keep.

    Args:
        dtype: the type to keep.
        bounds: the lowest and the highest number allowed; None for real numbers, which are not looked at.
        remedy: the end of the error message.
    """

    def __init__(self, dtype: torch.dtype, bounds: tuple[int, int] | None, remedy: str) -> None:
        self.dtype, self.bounds, self.remedy = dtype, bounds, remedy
        self._numpy = torch.empty(0, dtype=dtype).numpy().dtype

    def __call__(self, values: NDArray[Any], index: Tensor, name: Callable[[int], str]) -> NDArray[Any]:
        """`[B, *event]`, writable, in C order. Raises InputError with the name of the first example out of bounds."""
        if self.bounds is not None and values.size:
            low, high = self.bounds
            if not (values.min() >= low and values.max() <= high):  # so that NaN is out of bounds too
                bad = ~((values >= low) & (values <= high)).reshape(len(values), -1)
                row = int(bad.any(axis=1).argmax())
                found = values.reshape(len(values), -1)[row][bad[row]][0]
                raise InputError(f"{name(int(index[row]))}: holds {found:g}, not {low} to {high}; {self.remedy}")
        with np.errstate(over="ignore"):  # beyond float32 it is infinite, and found as that
            return np.require(values, self._numpy, ["C", "W"])


class Files:
    """Files that must stay as they are while they are mapped into memory.

    A mapped file that becomes shorter would end the process at its next read (SIGBUS). So its size is compared before
    every read; what remains is a change in the very moment of a read.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._found = {os.fspath(path): self._look(path) for path in paths}

    @staticmethod
    def _look(path: str | os.PathLike[str]) -> tuple[int, int]:
        status = os.stat(path)  # noqa: PTH116 a third of the time of Path.stat
        return status.st_ino, status.st_size

    def check(self) -> None:
        """Raise a VaelabError if one of them vanished, or is another one or another size."""
        for path, found in self._found.items():
            try:
                now = self._look(path)
            except OSError as error:
                raise VaelabError(f"{path}: cannot be read any more ({error.strerror}); restore it") from None
            if now != found:
                raise VaelabError(f"{path}: was replaced or cut while it was read; restore it")
