"""A folder of pictures of any size and color mode, brought to one size and one number of channels."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from vaelab.config import DataConfig
from vaelab.data.decoding import LEVELS, Content, Encoded, load_pictures
from vaelab.data.division import divide_randomly
from vaelab.data.prepare import Examples
from vaelab.errors import InputError

SUFFIXES = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")


def load_folder(folder: Path, config: DataConfig) -> Examples:
    """All pictures under a folder as uint8 `[N, C, H, W]`, 256 levels, in the order of their sorted paths.

    The rule: a picture is turned upright by its EXIF orientation, its palette is expanded, 16-bit grey is scaled
    to 8 bits, transparency is laid over white, and of an animation the first frame counts. With `data.size=S` or
    `[H, W]` it is scaled (bicubic, antialiased) until it just covers that size, and what juts out is cut off
    evenly. Then, if red = green = blue in every pixel of every picture, there is 1 channel; otherwise 3, RGB.

    Without `data.size` all pictures must have one size of at most 256 pixels a side. Hidden files are ignored.
    Where every picture lies in a direct subfolder, the sorted names of those are the labels. Every file is decoded
    completely here, so a damaged one is found before anything starts; but pictures that would take too much memory
    (`data.stream`) are decoded when they are read (`vaelab.data.decoding.Pictures`).

    Raises:
        InputError: no pictures, damaged pictures, or several sizes.
    """
    paths = find_pictures(folder)
    division = divide_randomly(len(paths), config)  # before the pictures are read: it may refuse
    raw = load_pictures(PictureFiles(folder, paths), config)
    parts = [path.relative_to(folder).parts for path in paths]
    if any(len(part) != 2 for part in parts):
        return Examples(raw, LEVELS, division)
    names = sorted({part[0] for part in parts})
    number = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([number[part[0]] for part in parts])
    return Examples(raw, LEVELS, division, labels, tuple(names))


def find_pictures(folder: Path) -> list[Path]:
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
    for path in found:
        if path.exists() and not path.is_file():  # to read a pipe would wait for ever
            raise InputError(f"{path}: is no regular file; take it out of the folder")
    if not found:
        raise InputError(f"{folder}: no pictures in this folder; looked for {', '.join(SUFFIXES)}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


class PictureFiles(Encoded):
    """Picture files under a folder."""

    files = True

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.where, self.folder, self.paths = str(folder), folder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def contents(self, index: list[int]) -> list[Content]:
        return [self.paths[i] for i in index]

    def name(self, index: int) -> str:
        return self.paths[index].relative_to(self.folder).as_posix()

    def full_name(self, index: int) -> str:
        return str(self.paths[index])

    def listing(self) -> Iterator[bytes]:
        for i, path in enumerate(self.paths):
            yield f"{self.name(i)} {path.stat().st_size}\n".encode()
