"""A folder of pictures of any size and colour mode, brought to one size and one number of channels."""

import os
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vaelab.config import DataConfig
from vaelab.data.division import divide_randomly
from vaelab.data.prepare import Examples
from vaelab.errors import InputError

SUFFIXES = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
_LARGEST = 256  # pixels a side that are accepted without data.size
_AT_ONCE = 64  # decoded pictures that wait in memory


def load_folder(folder: Path, config: DataConfig) -> Examples:
    """All pictures under a folder as uint8 `[N, C, H, W]`, 256 levels, in the order of their sorted paths.

    The rule: a picture is turned upright by its EXIF orientation, its palette is expanded, 16-bit grey is scaled
    to 8 bits, transparency is laid over white, and of an animation the first frame counts. With `data.size=S` or
    `[H, W]` it is scaled (bicubic, antialiased) until it just covers that size, and what juts out is cut off
    evenly. Then, if red = green = blue in every pixel of every picture, there is 1 channel; otherwise 3, RGB.

    Without `data.size` all pictures must have one size of at most 256 pixels a side. Hidden files are ignored.
    Where every picture lies in a direct subfolder, the sorted names of those are the labels. Every file is decoded
    completely here, so a damaged one is found before anything starts.

    Raises:
        InputError: no pictures, damaged pictures, or several sizes.
    """
    paths = _find(folder)
    division = divide_randomly(len(paths), config)  # before the pictures are read: it may refuse
    raw = torch.from_numpy(_decode(folder, paths, config))
    parts = [path.relative_to(folder).parts for path in paths]
    if any(len(part) != 2 for part in parts):
        return Examples(raw, 256, division)
    names = sorted({part[0] for part in parts})
    number = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([number[part[0]] for part in parts])
    return Examples(raw, 256, division, labels, tuple(names))


def _find(folder: Path) -> list[Path]:
    """The pictures under a folder, sorted; hidden files and folders left out."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}")

    found: list[Path] = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(here, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower().removeprefix(".") in SUFFIXES
        ]
    if not found:
        raise InputError(f"{folder}: no pictures in this folder; looked for {', '.join(SUFFIXES)}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _decode(folder: Path, paths: list[Path], config: DataConfig) -> NDArray[np.uint8]:
    """All pictures as one array `[N, C, H, W]`."""
    size = (config.size, config.size) if isinstance(config.size, int) else config.size
    pictures: NDArray[np.uint8] | None = None
    example = ""  # the first sound picture and its size
    with closing(_read_all(folder, paths, size)) as stream:
        for i, picture in stream:
            channels, height, width = picture.shape
            this = f"{paths[i].relative_to(folder)} is {width} x {height}"
            if pictures is None:
                if size is None and max(height, width) > _LARGEST:
                    raise InputError(
                        f"{folder}: {this} pixels, above {_LARGEST} a side; choose a size with data.size=64"
                    )
                pictures = np.zeros((len(paths), channels, height, width), np.uint8)
                example = this
            if pictures.shape[2:] != (height, width):
                raise InputError(
                    f"{folder}: pictures of several sizes ({example}, {this}); bring them to one with data.size=64"
                )
            if channels > pictures.shape[1]:
                pictures = np.repeat(pictures, 3, axis=1)  # the first colour picture after grey ones
            pictures[i] = picture
    assert pictures is not None  # there is at least one path, and the stream ends in an error if none is sound
    return pictures


def _read_all(
    folder: Path, paths: list[Path], size: tuple[int, int] | None
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Position and pixels of each sound picture in turn; at the end, InputError if there were damaged ones.

    Pictures are decoded in threads: Pillow frees the interpreter meanwhile.
    """
    from tqdm import tqdm

    def read(path: Path) -> NDArray[np.uint8] | Exception:
        try:
            return _read(path, size)
        except Exception as error:  # noqa: BLE001 Pillow's decoders raise almost any type on a damaged file
            return error

    damaged: list[tuple[Path, Exception]] = []
    Image.init()
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc="reading pictures", unit="", delay=1, disable=None) as bar,
    ):
        warnings.simplefilter("ignore")  # remarks on metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(paths), _AT_ONCE):
            part = paths[start : start + _AT_ONCE]
            for i, picture in enumerate(pool.map(read, part), start):
                bar.update()
                if isinstance(picture, Exception):
                    damaged.append((paths[i], picture))
                else:
                    yield i, picture
    if damaged:
        path, error = damaged[0]
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"{path}: cannot be decoded ({' '.join(reason.split())}); so are {len(damaged)} of {len(paths)} pictures "
            f"in {folder}: repair or remove them"
        )


def _read(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """One picture `[C, H, W]`, with C = 1 if it is grey and 3 otherwise."""
    with Image.open(path) as opened:
        opened.verify()  # the checksums of a PNG, which decoding skips; it leaves the file unusable
    with Image.open(path) as opened:
        picture = _flatten(ImageOps.exif_transpose(opened))
    if size is not None:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        return pixels[None]
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[None, ..., 0]
    return pixels.transpose(2, 0, 1)


def _flatten(picture: Image.Image) -> Image.Image:
    """8-bit grey (`L`) or `RGB`, nothing transparent."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("grey levels beyond 16 bits; save it as .npy")
        levels = np.where(levels == picture.info.get("transparency", -1), 65535, levels)
        return Image.fromarray(np.rint(levels / 257).astype(np.uint8))  # 65535 = 257 * 255
    if picture.mode == "F":
        raise ValueError("floating-point grey; save it as .npy")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture if picture.mode == "L" else picture.convert("RGB")
