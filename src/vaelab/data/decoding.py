"""Encoded pictures, from files or tables, as arrays of one size and one number of channels."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.stream import WORKERS, Rows, should_stream, spread
from vaelab.errors import InputError, VaelabError

LEVELS = 256
_LARGEST = 256  # pixels a side that are accepted without data.size
_AT_ONCE = 64  # decoded pictures that wait in memory
_HEAD = 1 << 16  # bytes of a sampled picture that go into a fingerprint
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112  # tags of TIFF and EXIF; orientations 5 ... 8 lie on their side

Content = Path | bytes
Size = tuple[int, int]  # height, width
Result = TypeVar("Result")


class Encoded(ABC):
    """N encoded pictures.

    Attributes:
        where: what holds them, for error messages.
        files: whether each is a file of its own, so that reading all headers is cheap.
    """

    where: str
    files: bool

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def contents(self, index: list[int]) -> list[Content]:
        """Each as the path of a file or the bytes of one."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The short name of one: "cats/3.png"."""

    def full_name(self, index: int) -> str:
        """The name of one with that of what holds it."""
        return self.name(index)

    def listing(self) -> Iterator[bytes]:
        """What is known of each without its content, for the fingerprint of a stream."""
        return iter(())


def load_pictures(pictures: Encoded, config: DataConfig) -> Tensor | Rows:
    """All pictures as uint8 `[N, C, H, W]`: in memory, or decoded when they are read.

    Raises:
        InputError: damaged pictures, several sizes without `data.size`, or large ones.
    """
    size = (config.size, config.size) if isinstance(config.size, int) else config.size
    if config.stream is not False:
        event = size or _first_size(pictures)
        if event is not None and should_stream(config, 3 * len(pictures) * event[0] * event[1]):
            rows = Pictures(pictures, size)
            if should_stream(config, int(np.prod(rows.shape))):
                return rows
    return torch.from_numpy(_decode_all(pictures, size))


def _first_size(pictures: Encoded) -> Size | None:
    """Height and width of the first picture that has a header; None if there is none."""
    for i in range(len(pictures)):
        try:
            return _header_size(pictures.contents([i])[0])
        except Exception:  # noqa: BLE001 whoever decodes it will say what is wrong
            continue
    return None


# -- one picture ---------------------------------------------------------------------------------------------------


def _opened(content: Content) -> Image.Image:
    return Image.open(BytesIO(content) if isinstance(content, bytes) else content)


def _read(content: Content, size: Size | None) -> NDArray[np.uint8]:
    """One picture `[C, H, W]`, with C = 1 if it is grey and 3 otherwise."""
    with _opened(content) as opened:
        check_pixels(opened)
        picture = _flatten(ImageOps.exif_transpose(opened))
        has_checksums = opened.format == "PNG"
    if has_checksums:  # which decoding skips
        with _opened(content) as opened:
            opened.verify()
    if size is not None:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        return pixels[None]
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[None, ..., 0]
    return pixels.transpose(2, 0, 1)


def check_pixels(opened: Image.Image) -> None:
    """Refuse what Pillow only warns of."""
    pixels = opened.width * opened.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{pixels} pixels, above {Image.MAX_IMAGE_PIXELS}; it may be a decompression bomb")


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


def _header_size(content: Content) -> Size:
    """Height and width of one picture after it is turned upright, from its header alone."""
    with _opened(content) as opened:
        check_pixels(opened)
        # That of the base class: that of a PNG would decode the picture to look for more.
        on_its_side = Image.Image.getexif(opened).get(_ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = opened.size
        if isinstance(opened, TiffImageFile):  # Pillow has turned its size already, at least in some versions
            width, height = int(opened.tag_v2[_WIDTH]), int(opened.tag_v2[_HEIGHT])
        return (width, height) if on_its_side else (height, width)


def _reason(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


# -- all pictures, once --------------------------------------------------------------------------------------------


def _decode_all(pictures: Encoded, size: Size | None) -> NDArray[np.uint8]:
    """All pictures as one array `[N, C, H, W]`."""
    decoded: NDArray[np.uint8] | None = None
    one_size = _OneSize(pictures, size)
    with closing(each(pictures, lambda content: _read(content, size), "reading pictures")) as stream:
        for i, picture in stream:
            channels, height, width = picture.shape
            one_size.check(i, (height, width))
            if decoded is None:
                decoded = np.zeros((len(pictures), channels, height, width), np.uint8)
            if channels > decoded.shape[1]:
                decoded = np.repeat(decoded, 3, axis=1)  # the first color picture after grey ones
            decoded[i] = picture
    assert decoded is not None  # there is at least one, and the stream ends in an error if none is sound
    return decoded


class _OneSize:
    """All pictures have the size of the first one that is asked about; without `data.size` it may not be large."""

    def __init__(self, pictures: Encoded, wanted: Size | None) -> None:
        self.pictures, self.size, self.example = pictures, wanted, ""

    def check(self, index: int, size: Size) -> None:
        if size == self.size:
            return
        where, this = self.pictures.where, f"{self.pictures.name(index)} is {size[1]} x {size[0]}"
        if self.size is not None:
            raise InputError(
                f"{where}: pictures of several sizes ({self.example}, {this}); bring them to one with data.size=64"
            )
        if max(size) > _LARGEST:
            raise InputError(f"{where}: {this} pixels, above {_LARGEST} a side; choose a size with data.size=64")
        self.size, self.example = size, this


def each(
    pictures: Encoded, function: Callable[[Content], Result], doing: str
) -> Generator[tuple[int, Result], None, None]:
    """Position and result of each sound picture in turn; at the end, InputError if there were damaged ones.

    Pictures are decoded in threads: Pillow frees the interpreter meanwhile.
    """
    from tqdm import tqdm

    def attempt(content: Content) -> Result | Exception:
        try:
            return function(content)
        except Exception as error:  # noqa: BLE001 Pillow's decoders raise almost any type on a damaged file
            return error

    damaged: list[tuple[int, Exception]] = []
    Image.init()
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(WORKERS) as pool,
        tqdm(total=len(pictures), desc=doing, unit="", delay=1, disable=None) as bar,
    ):
        warnings.simplefilter("ignore")  # remarks on metadata
        for start in range(0, len(pictures), _AT_ONCE):
            part = pictures.contents(list(range(start, min(start + _AT_ONCE, len(pictures)))))
            for i, result in enumerate(pool.map(attempt, part), start):
                bar.update()
                if isinstance(result, Exception):
                    damaged.append((i, result))
                else:
                    yield i, result
    if damaged:
        i, error = damaged[0]
        raise InputError(
            f"{pictures.full_name(i)}: cannot be decoded ({_reason(error)}); so are {len(damaged)} of {len(pictures)} "
            f"pictures in {pictures.where}: repair or remove them"
        )


# -- pictures that are decoded when they are read ------------------------------------------------------------------


class Pictures(Rows):
    """Pictures as uint8 `[N, C, H, W]`, decoded when they are read, by the rule of `_read`.

    There is 1 channel if all of 64 pictures, evenly spread, are grey in every pixel; a color picture among the others
    then becomes grey, L = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). Otherwise there are 3 channels.

    Args:
        pictures: their encoded content.
        size: height and width to bring them to; None if all have one size.

    Raises:
        InputError: a damaged picture among those, or of several sizes where `size` is None (all files are asked).
    """

    dtype = torch.uint8

    def __init__(self, pictures: Encoded, size: Size | None) -> None:
        self.pictures, self.size = pictures, size
        self.one_size = _OneSize(pictures, size)
        Image.init()
        if size is None and pictures.files:
            with closing(each(pictures, _header_size, "reading sizes")) as headers:
                for i, found in headers:
                    self.one_size.check(i, found)
        colors = any(len(picture) == 3 for picture in self._decoded(spread(len(pictures)).tolist()))
        assert self.one_size.size is not None
        self.shape = (len(pictures), 3 if colors else 1, *self.one_size.size)

    def read(self, index: Tensor) -> Tensor:
        values = np.empty((len(index), *self.shape[1:]), np.uint8)
        for row, picture in enumerate(self._decoded(index.tolist())):
            if len(picture) > self.shape[1]:
                picture = np.asarray(Image.fromarray(picture.transpose(1, 2, 0)).convert("L"))
            values[row] = picture  # one channel serves for three
        return torch.from_numpy(values)

    def name(self, index: int) -> str:
        return self.pictures.name(index)

    def sample(self) -> Iterator[bytes]:
        yield from self.pictures.listing()
        places: list[int] = spread(len(self)).tolist()
        for i, content in zip(places, self.pictures.contents(places), strict=True):
            if isinstance(content, bytes):
                yield content[:_HEAD]
                continue
            try:
                with content.open("rb") as file:
                    yield file.read(_HEAD)
            except OSError as error:
                raise self._failure(i, error) from None

    def _decoded(self, index: list[int]) -> Iterator[NDArray[np.uint8]]:
        """Each picture `[C, H, W]`, checked."""
        for i, content in zip(index, self.pictures.contents(index), strict=True):
            try:
                picture = _read(content, self.size)
            except Exception as error:  # noqa: BLE001 Pillow's decoders raise almost any type on a damaged file
                raise self._failure(i, error) from None
            self.one_size.check(i, (picture.shape[1], picture.shape[2]))
            yield picture

    def _failure(self, index: int, error: Exception) -> VaelabError:
        name = self.pictures.full_name(index)
        if isinstance(error, OSError) and error.errno is not None:
            return VaelabError(f"{name}: cannot be read ({_reason(error)}); restore it")
        return InputError(f"{name}: cannot be decoded ({_reason(error)}); repair or remove it")
