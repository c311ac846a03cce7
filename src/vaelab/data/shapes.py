"""dSprites and 3D Shapes: pictures of every combination of known factors, from files that are downloaded once.

Both are looked for in the folder of the named data sets (`$VAELAB_DATA`), as `dsprites/` and `3dshapes/`.
"""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.arrays import Mapped, stored_as
from vaelab.data.division import divide_randomly
from vaelab.data.download import data_folder, fetch
from vaelab.data.prepare import Examples
from vaelab.data.spec import Factor
from vaelab.data.sprites import grid
from vaelab.data.stream import Rows
from vaelab.errors import InputError, VaelabError
from vaelab.files import replacing

_AT_ONCE = 4096  # pictures unpacked at once

# -- dSprites ------------------------------------------------------------------------------------------------------

DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
DSPRITES_MD5 = "7da33b31b13a06f4b04a70402ce90c2e"
DSPRITES_MIRRORS = (
    f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{DSPRITES}",
    f"https://raw.githubusercontent.com/google-deepmind/dsprites-dataset/master/{DSPRITES}",
)
DSPRITES_FACTORS = (
    Factor("shape", 3, ordered=False),
    Factor("scale", 6),
    Factor("rotation", 40),
    Factor("x", 32),
    Factor("y", 32),
)


def dsprites_file() -> Path:
    """Where dSprites is looked for."""
    return data_folder() / "dsprites" / DSPRITES


def load_dsprites(config: DataConfig) -> Examples:
    """The dSprites (Matthey et al. 2017): 737,280 binary pictures `[1, 64, 64]`, divided at random; labels: shape.

    Eight pixels are kept in a byte, so all take 0.38 GB of memory; a batch is unpacked when it is read. Its color
    takes one value, and is left out of the factors. A square looks the same four times a turn, and an ellipse twice:
    rotation cannot be told from such pictures alone.

    Raises:
        InputError: the file is damaged or another one.
        VaelabError: it is missing and cannot be downloaded.
    """
    path = dsprites_file()
    content = path.read_bytes() if path.is_file() else fetch(DSPRITES_MIRRORS, path, _checked_dsprites)
    try:
        with zipfile.ZipFile(io.BytesIO(_checked_dsprites(content))) as arrays:
            with arrays.open("imgs.npy") as file:
                pictures = Packed(*_packed(file))
            with arrays.open("latents_classes.npy") as file:
                classes = np.lib.format.read_array(file, allow_pickle=False)  # of color first, which never varies
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: {_line(error)}; delete it, and the next run downloads it anew") from None
    factors = torch.from_numpy(classes[:, 1:].astype(np.int64))
    return Examples(
        raw=pictures,
        levels=2,
        division=divide_randomly(len(pictures), config),
        labels=factors[:, 0].clone(),
        label_names=("square", "ellipse", "heart"),
        factors=factors,
        factor_specs=DSPRITES_FACTORS,
    )


def _checked_dsprites(content: bytes) -> bytes:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != DSPRITES_MD5:
        raise ValueError("not dSprites, by its MD5")
    return content


def _packed(file: IO[bytes]) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """A `.npy` of zeros and ones `[N, H, W]`, eight pixels a byte `[N, ⌈H W / 8⌉]`, and its shape.

    It is read piece by piece: unpacked it would take 3 GB.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("imgs is of another version of the .npy format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 3 or fortran or dtype != np.uint8:
        raise ValueError(f"imgs is {dtype} {list(shape)}, not uint8 [N, H, W]")
    size = shape[1] * shape[2]
    packed = np.empty((shape[0], -(-size // 8)), np.uint8)
    for start in range(0, shape[0], _AT_ONCE):
        part = packed[start : start + _AT_ONCE]
        pixels = np.frombuffer(file.read(len(part) * size), np.uint8)
        part[:] = np.packbits(pixels.reshape(len(part), size), axis=1)
    return packed, shape


class Packed(Rows):
    """Binary pictures `[N, 1, H, W]` in memory, eight pixels a byte.

    Args:
        packed: `[N, ⌈H W / 8⌉]`, as `numpy.packbits` makes it.
        shape: N, H and W.
    """

    def __init__(self, packed: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        self._packed = packed
        self.shape, self.dtype = (shape[0], 1, *shape[1:]), torch.uint8

    def read(self, index: Tensor) -> Tensor:
        pixels = np.unpackbits(self._packed[index.numpy()], axis=1, count=self.shape[2] * self.shape[3])
        return torch.from_numpy(pixels.reshape(-1, *self.shape[1:]))

    def name(self, index: int) -> str:
        return f"picture {index} of {DSPRITES}"


# -- 3D Shapes -----------------------------------------------------------------------------------------------------

SHAPES_SHA256 = "0a0f6ed98baff276a50f3a081a7434d788da63cb135a98189b2a5b5769be1785"
SHAPES_URL = "https://storage.googleapis.com/3d-shapes/3dshapes.h5"
SHAPES_SIDE = 64
SHAPES_FACTORS = (
    Factor("floor_hue", 10),
    Factor("wall_hue", 10),
    Factor("object_hue", 10),
    Factor("scale", 8),
    Factor("shape", 4, ordered=False),
    Factor("orientation", 15),
)


def shapes_folder() -> Path:
    """Where 3D Shapes is looked for: `images.npy`, or `3dshapes.h5` to make it from."""
    return data_folder() / "3dshapes"


def shapes_status() -> str:
    """What a listing says: whether it is there, and if not, how it gets there."""
    if (shapes_folder() / "images.npy").is_file():
        return "found"
    return "needs h5py" if (shapes_folder() / "3dshapes.h5").is_file() else "get it by hand"


def load_3dshapes(config: DataConfig) -> Examples:
    """3D Shapes (Burgess & Kim 2018): 480,000 pictures `[3, 64, 64]`, 256 levels, divided at random; labels: shape.

    The pictures come in the order of counting through the factors. The first use unpacks `3dshapes.h5` (0.27 GB, not
    downloaded by itself) to `images.npy` beside it (5.9 GB), which is then read from disk. That one time takes the
    library `h5py`.

    Raises:
        InputError: a file is damaged or another one.
        VaelabError: `3dshapes.h5` or `h5py` is missing, or the disk is full.
    """
    path = shapes_folder() / "images.npy"
    if not path.is_file():
        _unpack(shapes_folder() / "3dshapes.h5", path)
    factors = grid(SHAPES_FACTORS)
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        _check_shapes(values, len(factors))
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: {_line(error)}; delete it, and the next run unpacks it anew") from None
    storing, levels = stored_as(values.dtype, values.shape, config, str(path))
    return Examples(
        raw=Mapped(path, values, storing),
        levels=levels,
        division=divide_randomly(len(values), config),
        labels=torch.from_numpy(factors[:, 4].copy()),
        factors=torch.from_numpy(factors),
        factor_specs=SHAPES_FACTORS,
    )


def _check_shapes(values: Any, number: int) -> None:
    """Refuse an array (NumPy's or h5py's) that is not the pictures."""
    wanted = (number, SHAPES_SIDE, SHAPES_SIDE, 3)
    if values.dtype != np.uint8 or values.shape != wanted:
        raise ValueError(f"holds {values.dtype} {list(values.shape)}, not uint8 {list(wanted)}")


def _unpack(source: Path, target: Path) -> None:
    """The array `images` of the HDF5 file as a `.npy`, whole or not at all."""
    if not source.is_file():
        raise VaelabError(f"3dshapes is not there; download {SHAPES_URL} (0.27 GB) to {source.parent}")
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise VaelabError(
            f"{source}: read with h5py, which is not installed; pip install h5py, or save the array images as {target}"
        ) from None
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHAPES_SHA256:
            raise InputError(f"{source}: not 3D Shapes, by its SHA-256; download it again from {SHAPES_URL}")
    opened: Any = h5py.File(source, "r")  # pyright: ignore[reportUnknownMemberType]
    try:
        with opened as arrays, replacing(target) as temporary:
            images = arrays["images"]
            _check_shapes(images, len(grid(SHAPES_FACTORS)))
            made = np.lib.format.open_memmap(temporary, "w+", np.uint8, images.shape)
            for start in range(0, len(images), _AT_ONCE):
                made[start : start + _AT_ONCE] = images[start : start + _AT_ONCE]
            made.flush()
    except OSError as error:
        raise VaelabError(f"{target}: cannot be written ({_line(error)}); it takes 5.9 GB") from None
    except (KeyError, ValueError) as error:
        raise InputError(f"{source}: {_line(error)}; download it again from {SHAPES_URL}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
