"""Folders of pictures as examples, and back: every pixel, as PNG files in the same subfolders.

What comes back of a picture are its pixels, its name with the ending .png, and how it is to be turned (EXIF). Other
metadata (color profiles, dates, places) are left out. A palette is expanded to grey or RGB. The pixels of a JPEG are
those that it decodes to.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from vaelab.compression.description import FolderDescription, check_names, contradiction, describe, fault_of
from vaelab.compression.tiles import Levels, cut, stitch
from vaelab.data.decoding import Content, check_pixels, each
from vaelab.data.folder import PictureFiles, find_pictures
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError

WHITE = 255
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # whose depth `_fault` knows how to tell
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 0x0102  # tags of EXIF and TIFF
_TO_RGB = "save it as RGB or grey, 8 bits a channel"


@dataclass(frozen=True, eq=False)
class _Picture:
    """The pixels [C, h, w] of a file, C = 1 or 3, and what else comes back."""

    pixels: NDArray[np.uint8]
    mode: str
    orientation: int


# -- reading -------------------------------------------------------------------------------------------------------


def read_folder(folder: Path, spec: DataSpec, tile: bool) -> tuple[Levels, FolderDescription]:
    """All pictures of a folder, in the order of their sorted paths.

    Raises:
        InputError: no pictures, or one that could not come back as it is, or that the model does not code.
    """
    if len(spec.shape) != 3 or spec.shape[0] not in (1, 3):
        raise InputError(f"{folder}: holds pictures, and the model codes examples of shape {list(spec.shape)}")
    files = PictureFiles(folder, find_pictures(folder))
    names = _names(files)
    dtype = np.dtype(np.uint8 if (spec.levels or 0) <= WHITE + 1 else np.uint16)
    examples: list[Levels] = []
    modes: list[str] = []
    orientations: list[int] = []
    sizes: list[list[int]] = []
    with closing(each(files, _read, "reading pictures")) as stream:
        for i, picture in stream:
            if isinstance(picture, str):
                raise InputError(f"{files.full_name(i)}: {picture}")
            levels = _levels(picture, spec, files.full_name(i)).astype(dtype)
            height, width = levels.shape[1:]
            if not tile and (height, width) != spec.shape[1:]:
                raise InputError(_other_size(files.full_name(i), (height, width), spec))
            examples.append(cut(levels[None], (spec.shape[1], spec.shape[2])))
            modes.append(picture.mode)
            orientations.append(picture.orientation)
            sizes.append([height, width])
    description = describe(
        FolderDescription,
        str(folder),
        event=list(spec.shape),
        tiled=tile,
        names=names,
        modes=modes,
        orientations=orientations,
        sizes=sizes if tile else None,
        binary=spec.kind == "binary",
        note="",
    )
    return np.ascontiguousarray(np.concatenate(examples)), description


def _names(files: PictureFiles) -> list[str]:
    """What the files are called when they come back."""
    names: list[str] = []
    sources: dict[str, str] = {}
    for i in range(len(files)):
        own = files.name(i)
        if fault := fault_of(own):
            raise InputError(f"{files.where}: the name {own!r} {fault}; rename it")
        name = str(PurePosixPath(own).with_suffix(".png"))
        if name in sources:
            raise InputError(f"{files.where}: {sources[name]} and {own} would both come back as {name}; rename one")
        sources[name] = own
        names.append(name)
    try:
        check_names(names)
    except ValueError as error:
        raise InputError(f"{files.where}: {error}; rename it") from None
    return names


def _other_size(name: str, size: tuple[int, int], spec: DataSpec) -> str:
    height, width = spec.shape[1:]
    return (
        f"{name}: is {size[0]} × {size[1]} pixels (height × width), and the model codes {height} × {width}; cut it "
        f"into tiles with --tile, or train a model on such pictures (data.size={size[0]},{size[1]})"
    )


def _read(content: Content) -> _Picture | str:
    """A file's picture, or why it could not come back."""
    assert isinstance(content, Path)
    with Image.open(content, formats=_FORMATS) as opened:
        check_pixels(opened)
        if fault := _fault(opened):
            return fault
        opened.load()
        mode, has_checksums = opened.mode, opened.format == "PNG"
        found: Any = opened.getexif().get(_ORIENTATION)
        values = np.asarray(opened.convert("RGB" if mode in ("P", "RGB") else "L"))
    if has_checksums:  # which decoding skips
        with Image.open(content, formats=_FORMATS) as opened:
            opened.verify()
    pixels = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if mode == "P":
        mode, pixels = ("L", pixels[:1]) if _is_grey(pixels) else ("RGB", pixels)
    return _Picture(pixels, mode, int(found) if found in range(1, 9) else 1)


def _fault(opened: Image.Image) -> str | None:
    """Why a picture could not come back as it is; None if it can."""
    if getattr(opened, "n_frames", 1) > 1:
        return "holds several pictures, an animation say; save each as a file of its own"
    if opened.has_transparency_data:
        return f"has transparent pixels, which the model does not code; {_TO_RGB}"
    if opened.mode[0] in "IF" or _is_deep(opened):
        return "has more than 8 bits a channel; scale it to 8, or save an .npy and train a model of its levels"
    if opened.mode not in ("1", "L", "P", "RGB"):
        return f"has the color mode {opened.mode}; {_TO_RGB}"
    return None


def _is_deep(opened: Image.Image) -> bool:
    """Whether Pillow would cut more than 8 bits a channel down to 8."""
    if isinstance(opened, TiffImageFile):
        bits = opened.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    if opened.format not in ("PNG", "PPM"):
        return False
    for _, _, _, found in getattr(opened, "tile", []):
        for part in found if isinstance(found, tuple) else (found,):
            # The mode as it is in the file, such as "RGB;16B", or the highest value of a PPM.
            if (isinstance(part, str) and ";16" in part) or (isinstance(part, int) and part > WHITE):
                return True
    return False


def _is_grey(pixels: Levels) -> bool:
    return bool((pixels == pixels[:1]).all())


def _levels(picture: _Picture, spec: DataSpec, name: str) -> NDArray[np.uint8]:
    """The pixels as levels [C, h, w] in the model's number of channels."""
    pixels = picture.pixels
    if spec.shape[0] == 1 and not _is_grey(pixels):
        raise InputError(f"{name}: is in color, and the model codes grey pictures; train one on pictures in color")
    if spec.kind == "binary":
        if not np.isin(pixels, (0, WHITE)).all():
            raise InputError(
                f"{name}: has levels of grey or color, and the model codes black (0) and white ({WHITE}) alone; "
                "compress with a model of levels (data.binarize=none), or make it black and white yourself"
            )
        pixels = pixels // WHITE
    elif pixels.max() >= (spec.levels or 0):
        raise InputError(
            f"{name}: has level {pixels.max()}, and the model codes 0 … {(spec.levels or 0) - 1}; train one on pictures"
        )
    return np.repeat(pixels[:1], 3, axis=0) if len(pixels) < spec.shape[0] else pixels[: spec.shape[0]]


# -- writing -------------------------------------------------------------------------------------------------------


def check_new(folder: Path) -> None:
    """Refuse a folder that is taken, before any work is done.

    Raises:
        InputError: it is not empty, is no folder, or there is none to put it in.
    """
    if folder.is_dir():
        if any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; name a new folder for the pictures")
    elif folder.exists():
        raise InputError(f"{folder}: is a file, and pictures come back as a folder; name a new one")
    elif not folder.parent.is_dir():
        raise InputError(f"{folder}: there is no folder {folder.parent}; make it first")


def write_folder(examples: Levels, description: FolderDescription, out: Path, only: Sequence[int] | None) -> None:
    """Write the pictures at the positions `only` (all by default), whose examples these are; all or none.

    Raises:
        InputError: two names that are one to the file system.
        CorruptFile: examples that are not those of such a folder.
    """
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        start = 0
        for position in range(description.pictures) if only is None else only:
            stop = start + len(description.tiles(position))
            picture, exif = _restore(examples[start:stop], description, position)
            file = temporary / description.names[position]
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("xb") as opened:
                    picture.save(opened, format="PNG", exif=exif)
            except (FileExistsError, NotADirectoryError):
                raise InputError(
                    f"{out}: this file system takes {description.names[position]!r} and another picture's name for "
                    "one; write to one that tells them apart"
                ) from None
            start = stop
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _restore(tiles: Levels, description: FolderDescription, position: int) -> tuple[Image.Image, Image.Exif]:
    """One picture, and its EXIF."""
    name, mode = repr(description.names[position]), description.modes[position]
    pixels = stitch(tiles, 1, *description.size(position))[0]
    if pixels.max() > (1 if description.binary else WHITE):
        raise contradiction(f"{name} has levels that no picture has")
    pixels = pixels.astype(np.uint8) * (WHITE if description.binary else 1)
    exif = Image.Exif()
    if description.orientations[position] != 1:
        exif[_ORIENTATION] = description.orientations[position]
    if mode == "RGB":
        pixels = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
        return Image.fromarray(np.ascontiguousarray(pixels)), exif
    if not _is_grey(pixels):
        raise contradiction(f"{name} is in color, and it says that it is grey")
    if mode == "1" and not np.isin(pixels, (0, WHITE)).all():
        raise contradiction(f"{name} has grey levels, and it says that it has none")
    return Image.fromarray(pixels[0] > 0 if mode == "1" else np.ascontiguousarray(pixels[0])), exif
