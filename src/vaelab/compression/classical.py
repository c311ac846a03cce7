"""What established codecs make of the same examples, for comparison: PNG, WebP, JPEG XL, and compressors of bytes.

Each example is coded alone (`per image`), or all as one (`solid`). Sizes are those of whole files, headers included.
Where an order of the values is a matter of taste, all are tried, and the smallest counts. So no codec is beaten by the
way that its input was written.
"""

import bz2
import io
import lzma
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaelab.errors import InputError

Array = NDArray[np.integer[Any]]
Said = Callable[[str], None]
MOST_PIXELS = 89_478_485  # of one picture: Pillow warns of larger ones when it reads them
LONGEST_WEBP = 16_383  # pixels of a side, by the format


@dataclass(frozen=True)
class Classical:
    """What one codec made of the examples.

    Attributes:
        codec: its name and its setting: "PNG", "WebP", "JPEG XL e9", "brotli -11", "xz -9e", "bz2 -9", "zstd -19",
            "zlib -9".
        how: "per image" or "solid".
        bytes: the size of all examples, compressed; None where the codec is not installed or cannot take them.
        seconds: to compress them with one thread, in the order of values that won; None where `bytes` is.
        note: which order of values won, that the size is an estimate, or why there is none.
    """

    codec: str
    how: str
    bytes: int | None
    seconds: float | None
    note: str


def classical(
    examples: Array, levels: int, *, limit_per_image: int | None = None, said: Said | None = None
) -> list[Classical]:
    """Compress examples with every codec, each alone and all as one, without loss.

    Codecs of bytes take an example's values one after the other: a byte each for up to 256 levels, else two or four,
    little-endian. Binary values are also packed, eight a byte, each example from a byte of its own. Colors are taken
    channel by channel (`planar`), and also pixel by pixel (`interleaved`). All examples as one are these in a row.

    Codecs of pictures take values as they are, with one bit a pixel for binary PNG, and 16 for more than 256 levels.
    All examples as one are tiles of a picture, row by row, as nearly square as possible. What is left over is 0.

    The first file of every codec is decoded again: in `per image` an example, in `solid` all of them.

    Args:
        examples: pictures `[N, C, H, W]` with C = 1 or 3, or anything else `[N, ...]`, which no codec of pictures can
            take. Values are 0 … levels − 1.
        levels: how many values there are.
        limit_per_image: code this many alone at most, evenly spaced, and scale size and time up to all.
        said: is told what comes next.

    Returns:
        For each codec "per image", then "solid". Codecs that are not installed are listed, too; codecs of pictures
        only if the examples are pictures.

    Raises:
        InputError: no examples, values that are no levels, or a limit below 1.
        AssertionError: a codec did not give back what it was given.
    """
    if examples.size == 0 or examples.min() < 0 or examples.max() >= levels:
        raise InputError(f"classical codecs take at least one example, with values from 0 to {levels - 1}")
    if limit_per_image is not None and limit_per_image < 1:
        raise InputError(f"limit_per_image={limit_per_image}: must be at least 1")
    values = examples.astype(np.min_scalar_type(levels - 1).newbyteorder("<"))
    forms = {False: _streams(values, levels), True: _pictures(values, levels)}
    found: list[Classical] = []
    for codec in CODECS:
        for how in ("per image", "solid") if forms[codec.of_pictures] else ():
            if said is not None:
                said(f"{codec.name}, {how}")
            found.append(_smallest(codec, how, forms[codec.of_pictures], limit_per_image))
    return found


# -- forms of the examples -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """Examples as a codec takes them.

    Attributes:
        each: `[N, B]` for codecs of bytes; `[N, H, W]` or `[N, H, W, 3]` for those of pictures, bool where one bit a
            pixel is enough.
        solid: all of them as one.
        note: tells this form from others of the same examples.
    """

    each: NDArray[Any]
    solid: NDArray[Any]
    note: str = ""


def _streams(values: Array, levels: int) -> list[_Form]:
    orders = {"": values}
    if _are_pictures(values) and values.shape[1] == 3:
        orders = {"planar": values, "interleaved": values.transpose(0, 2, 3, 1)}
    forms: list[_Form] = []
    for order, ordered in orders.items():
        rows = ordered.reshape(len(values), -1)
        packings = {"": rows}
        if levels <= 2:
            packings = {"8 a byte": np.packbits(rows.astype(bool), axis=1), "1 a byte": rows}
        forms += [_Form(rows, rows, ", ".join(filter(None, (order, name)))) for name, rows in packings.items()]
    return forms


def _pictures(values: Array, levels: int) -> list[_Form]:
    if not _are_pictures(values):
        return []
    each = values.transpose(0, 2, 3, 1)  # [N, H, W, C]
    if each.shape[-1] == 1:
        each = each[..., 0].astype(bool) if levels <= 2 else each[..., 0]
    return [_Form(each, _tiled(each))]


def _are_pictures(values: Array) -> bool:
    return values.ndim == 4 and values.shape[1] in (1, 3)


def _tiled(each: NDArray[Any]) -> NDArray[Any]:
    """Pictures `[N, H, W, ...]` in rows, as one picture that is nearly square."""
    n, height, width = each.shape[:3]
    columns = min(n, max(1, round(math.sqrt(n * height / width))))
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, *each.shape[1:]), each.dtype)
    sheet[:n] = each
    cells = sheet.reshape(rows, columns, *each.shape[1:]).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, *each.shape[3:])


# -- measuring -----------------------------------------------------------------------------------------------------


def _smallest(codec: "Codec", how: str, forms: Sequence[_Form], limit: int | None) -> Classical:
    """The form of which the codec makes least."""
    if codec.package and not _is_installed(codec.package):
        return Classical(codec.name, how, None, None, f"pip install {codec.package}")
    found: list[Classical] = []
    for form in forms:
        n = len(form.each)
        chosen = np.linspace(0, n - 1, min(n, limit or n)).round().astype(np.int64)
        units = [form.solid] if how == "solid" else list(form.each[chosen])
        if reason := codec.refuses(units[0]):
            return Classical(codec.name, how, None, None, reason)
        size, seconds = _measure(codec, units)
        note = form.note
        if how == "per image" and len(chosen) < n:
            size, seconds = round(size * n / len(chosen)), seconds * n / len(chosen)
            note = "; ".join(filter(None, (note, f"from {len(chosen):,} of {n:,}")))
        found.append(Classical(codec.name, how, size, seconds, note))
    return min(found, key=lambda one: one.bytes or 0)


def _is_installed(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def _measure(codec: "Codec", units: Sequence[NDArray[Any]]) -> tuple[int, float]:
    """Bytes of all units, and seconds for all; the first is decoded again."""
    began = time.perf_counter()
    coded = [codec.encode(unit) for unit in units]
    seconds = time.perf_counter() - began
    if not np.array_equal(codec.decode(coded[0], units[0]), units[0]):
        raise AssertionError(f"{codec.name} does not give back what it was given")
    return sum(map(len, coded)), seconds


# -- the codecs ----------------------------------------------------------------------------------------------------


def _anything(unit: NDArray[Any]) -> str:
    return ""


@dataclass(frozen=True)
class Codec:
    """One way to compress without loss, with one thread.

    Attributes:
        name: with its setting.
        of_pictures: whether it takes pictures, not rows of values.
        encode: values to a file.
        decode: a file to values; it may look at type and shape of what was encoded.
        refuses: why it cannot take these values; empty where it can.
        package: what it needs, by its name for pip and for `import`; empty where it is always there.
    """

    name: str
    of_pictures: bool
    encode: Callable[[NDArray[Any]], bytes]
    decode: Callable[[bytes, NDArray[Any]], NDArray[Any]]
    refuses: Callable[[NDArray[Any]], str] = _anything
    package: str = ""


def _of_bytes(
    name: str, compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes], package: str = ""
) -> Codec:
    def encode(unit: NDArray[Any]) -> bytes:
        return compress(unit.tobytes())

    def decode(file: bytes, like: NDArray[Any]) -> NDArray[Any]:
        return np.frombuffer(decompress(file), like.dtype).reshape(like.shape)

    return Codec(name, False, encode, decode, package=package)


def _xz(content: bytes) -> bytes:
    """What `xz -9e` writes. A dictionary no longer than the content spares short ones 99 % of the time."""
    size = max(4096, min(len(content), 64 * 2**20))
    preset = 9 | lzma.PRESET_EXTREME
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": size}])


def _saved(unit: NDArray[Any], kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(unit).save(file, kind, **settings)
    return file.getvalue()


def _opened(file: bytes, like: NDArray[Any]) -> NDArray[Any]:
    with Image.open(io.BytesIO(file)) as picture:
        values = np.asarray(picture)
    return values[..., 0] if values.ndim > like.ndim else values  # WebP has no grey: its three channels are equal


def _jpeg_xl(unit: NDArray[Any]) -> bytes:
    values = unit.astype(np.uint8) if unit.dtype == bool else unit
    kind = "gray" if unit.ndim == 2 else "rgb"
    return import_module("imagecodecs").jpegxl_encode(values, lossless=True, effort=9, photometric=kind, numthreads=1)


def _jpeg_xl_opened(file: bytes, like: NDArray[Any]) -> NDArray[Any]:
    return import_module("imagecodecs").jpegxl_decode(file)


def _too_large(unit: NDArray[Any]) -> str:
    if unit.dtype.itemsize > 2:
        return "takes at most 2^16 levels"
    pixels = unit.shape[0] * unit.shape[1]
    return f"{pixels:,} pixels are too many for one picture" if pixels > MOST_PIXELS else ""


def _png_refuses(unit: NDArray[Any]) -> str:
    if unit.ndim == 3 and unit.dtype.itemsize > 1:
        return "Pillow writes at most 256 levels of a color"
    return _too_large(unit)


def _webp_refuses(unit: NDArray[Any]) -> str:
    if unit.dtype.itemsize > 1:
        return "takes at most 256 levels"
    if max(unit.shape) > LONGEST_WEBP:
        return f"takes at most {LONGEST_WEBP:,} pixels a side"
    return _too_large(unit)


CODECS = (
    Codec("PNG", True, lambda unit: _saved(unit, "PNG", optimize=True), _opened, _png_refuses),
    Codec(
        "WebP",
        True,
        lambda unit: _saved(unit.astype(np.uint8), "WEBP", lossless=True, quality=100, method=6),
        _opened,
        _webp_refuses,
    ),
    Codec("JPEG XL e9", True, _jpeg_xl, _jpeg_xl_opened, _too_large, package="imagecodecs"),
    _of_bytes(
        "brotli -11",
        lambda content: import_module("brotli").compress(content, quality=11, lgwin=24),  # the program's own window
        lambda file: import_module("brotli").decompress(file),
        package="brotli",
    ),
    _of_bytes("xz -9e", _xz, lzma.decompress),
    _of_bytes("bz2 -9", bz2.compress, bz2.decompress),
    _of_bytes(
        "zstd -19",
        lambda content: import_module("zstandard").ZstdCompressor(level=19).compress(content),
        lambda file: import_module("zstandard").ZstdDecompressor().decompress(file),
        package="zstandard",
    ),
    _of_bytes("zlib -9", lambda content: zlib.compress(content, 9), zlib.decompress),
)
