"""Sizes are those of the codecs' own functions, called by hand; every file gives its values back."""

import bz2
import io
import json
import lzma
import signal
import sys
import zlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import brotli
import imagecodecs
import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray
from PIL import Image

from vaelab import data as datasets
from vaelab.compression import classical as module
from vaelab.compression.classical import CODECS, Classical, Codec, classical
from vaelab.config import DataConfig
from vaelab.data import mnist
from vaelab.errors import InputError
from vaelab.runs import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import lossless

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "brotli -11": lambda content: brotli.compress(content, quality=11, lgwin=24),
    "xz -9e": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
    "bz2 -9": bz2.compress,
    "zstd -19": lambda content: zstandard.ZstdCompressor(level=19).compress(content),
    "zlib -9": lambda content: zlib.compress(content, 9),
}
PICTURES = ("PNG", "WebP", "JPEG XL e9")
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WebP": {"lossless": True, "quality": 100, "method": 6},
}


def levels_of(shape: tuple[int, ...], levels: int, seed: int = 0) -> NDArray[np.int64]:
    """Smooth values with noise, so that codecs find something but not all."""
    noise = np.random.default_rng(seed)
    walk = noise.integers(-3, 4, shape).cumsum(-1).cumsum(-2 if len(shape) > 2 else -1)
    return np.abs(walk * max(1, levels // 100)) % levels


def digits(n: int = 50) -> NDArray[np.uint8]:
    """[n, 1, 8, 8], 17 levels."""
    return datasets.load(DataConfig(source="digits", validation=0, test=0))["train"].head(n).read().numpy()


GREY, BINARY = digits(), digits() > 8
RGB, RGB2, DEEP = levels_of((9, 3, 6, 5), 256), levels_of((9, 3, 6, 5), 2), levels_of((9, 1, 6, 5), 1000)
TALL = levels_of((8, 1, 12, 3), 256)  # six columns: 18 x 24
VECTORS, LONG = levels_of((30, 12), 256), levels_of((30, 12), 70_000)


def sizes(found: list[Classical]) -> dict[tuple[str, str], int | None]:
    return {(one.codec, one.how): one.bytes for one in found}


def only(found: list[Classical], codec: str, how: str) -> Classical:
    (one,) = (one for one in found if (one.codec, one.how) == (codec, how))
    return one


def saved(picture: Image.Image, codec: str) -> int:
    """Size of a picture's file."""
    if codec == "JPEG XL e9":
        values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
        values = values // 255 if picture.mode == "1" else values
        return len(imagecodecs.jpegxl_encode(values, lossless=True, effort=9))
    file = io.BytesIO()
    if codec == "WebP" and picture.mode == "1":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint8))
    picture.save(file, codec, **LOSSLESS[codec])
    return len(file.getvalue())


# -- codecs of bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", BYTES)
@pytest.mark.parametrize(
    ("examples", "levels", "kind"),
    [(GREY[:4], 17, "u1"), (VECTORS[:4], 256, "u1"), (DEEP[:4], 1000, "<u2"), (LONG[:4], 70_000, "<u4")],
    ids=["grey", "vectors", "1000 levels", "70000 levels"],
)
def test_sizes_are_those_of_the_bytes_compressed_by_hand(
    examples: NDArray[Any], levels: int, kind: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CODECS", [one for one in CODECS if one.name == codec])
    alone, solid = classical(examples, levels)
    compress = BYTES[codec]
    assert (alone.codec, alone.how, solid.codec, solid.how) == (codec, "per image", codec, "solid")
    assert alone.bytes == sum(len(compress(one.astype(kind).tobytes())) for one in examples)
    assert solid.bytes == len(compress(examples.astype(kind).tobytes()))
    assert alone.seconds is not None and alone.seconds > 0 and (alone.note, solid.note) == ("", "")


def test_bz2_has_its_largest_blocks() -> None:
    (bz2_codec,) = (one for one in CODECS if one.name == "bz2 -9")
    assert bz2_codec.encode(np.zeros(9, np.uint8))[:4] == b"BZh9"  # the digit is the block size in 100,000 bytes


def packed(example: NDArray[Any]) -> bytes:
    """Eight values a byte, the first in the highest bit; zeros fill the last byte."""
    text = "".join(str(int(value)) for value in example.flatten())
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


@pytest.mark.parametrize("codec", [name for name in BYTES if name != "xz -9e"])  # which takes long by hand
def test_binary_values_take_the_smaller_of_two_packings(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CODECS", [one for one in CODECS if one.name == codec])
    compress, seen = BYTES[codec], set[str]()
    stripes = np.arange(60 * 49).reshape(60, 1, 7, 7) % 7 == 0  # bytes repeat after 7; packed, only after 49
    for examples in (BINARY, stripes):
        files = {
            "8 a byte": [packed(one) for one in examples],
            "1 a byte": [one.astype(np.uint8).tobytes() for one in examples],
        }
        alone, solid = classical(examples.astype(np.int64), 2)
        for one, ways in (
            (alone, {name: sum(map(len, map(compress, parts))) for name, parts in files.items()}),
            (solid, {name: len(compress(b"".join(parts))) for name, parts in files.items()}),
        ):
            assert one.bytes == min(ways.values()) == ways[one.note]
            seen.add(one.note)
    if codec in ("bz2 -9", "zlib -9"):
        assert seen == set(files)


def test_colors_take_the_smaller_of_two_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CODECS", [one for one in CODECS if one.name == "xz -9e"])
    seen = set[str]()
    tied = RGB[:, :1].repeat(3, axis=1) + np.array([0, 1, 2]).reshape(1, 3, 1, 1)
    for examples in (levels_of((9, 3, 16, 16), 256), np.minimum(tied, 255)):
        files = {
            "planar": examples.astype(np.uint8).tobytes(),
            "interleaved": np.stack([examples[:, 0], examples[:, 1], examples[:, 2]], -1).astype(np.uint8).tobytes(),
        }
        _, solid = classical(examples, 256)
        ways = {name: len(BYTES["xz -9e"](content)) for name, content in files.items()}
        assert solid.bytes == min(ways.values()) == ways[solid.note] < max(ways.values())
        seen.add(solid.note)
    assert seen == {"planar", "interleaved"}
    assert {one.note.count("byte") for one in classical(RGB2, 2)} == {1}  # binary colors: an order and a packing


# -- codecs of pictures --------------------------------------------------------------------------------------------


def sheet(images: list[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows, on black."""
    width, height = images[0].size
    canvas = Image.new(images[0].mode, (columns * width, -(-len(images) // columns) * height))
    for at, one in enumerate(images):
        canvas.paste(one, (at % columns * width, at // columns * height))
    return canvas


@pytest.mark.parametrize("codec", PICTURES)
@pytest.mark.parametrize(
    ("examples", "levels", "columns"),
    [(GREY, 17, 7), (BINARY, 2, 7), (RGB, 256, 3), (GREY[:1], 17, 1), (DEEP[:8], 1000, 3), (TALL, 256, 6)],
    ids=["grey", "binary", "color", "one", "deep", "tall"],
)
def test_sizes_are_those_of_the_pictures_saved_by_hand(
    examples: NDArray[Any], levels: int, columns: int, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (codec, levels) == ("WebP", 1000):
        return  # refused: see below
    monkeypatch.setattr(module, "CODECS", [one for one in CODECS if one.name == codec])
    kind = {2: bool, 1000: np.uint16}.get(levels, np.uint8)
    if examples.shape[1] == 3:
        images = [
            Image.merge("RGB", [Image.fromarray(channel) for channel in one.astype(np.uint8)]) for one in examples
        ]
    else:
        images = [Image.fromarray(one[0].astype(kind)) for one in examples]
    alone, solid = classical(examples.astype(np.int64), levels)
    assert alone.bytes == sum(saved(one, codec) for one in images)
    assert solid.bytes == saved(sheet(images, columns), codec)


@pytest.mark.parametrize(
    ("examples", "levels", "depth"),
    [(BINARY[..., :5], 2, 1), (BINARY[..., :5], 17, 8), (DEEP, 1000, 16), (RGB2, 2, 8)],
    ids=["binary", "dark", "deep", "color"],
)
def test_bits_of_a_png(examples: NDArray[Any], levels: int, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[bytes] = []
    png = CODECS[0]

    def encode(unit: NDArray[Any]) -> bytes:
        files.append(png.encode(unit))
        return files[-1]

    monkeypatch.setattr(module, "CODECS", [replace(png, encode=encode)])
    classical(examples.astype(np.int64), levels)
    # The header after the signature: length, IHDR, width, height, bit depth, color type.
    assert {file[24] for file in files} == {depth} and {file[25] for file in files} == {2 if examples is RGB2 else 0}


# -- without loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_every_file_gives_its_values_back(codec: Codec) -> None:
    """Everything that a codec is given, by the forms of the examples, comes back from its file."""
    seen = 0
    for examples, levels in (
        (GREY, 17),
        (BINARY, 2),
        (RGB, 256),
        (RGB2, 2),
        (DEEP, 1000),
        (VECTORS, 256),
        (LONG, 70_000),
    ):
        values = examples.astype(np.int64)
        units: list[NDArray[Any]] = []

        def encode(unit: NDArray[Any], units: list[NDArray[Any]] = units) -> bytes:
            units.append(unit)
            return codec.encode(unit)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CODECS", [replace(codec, encode=encode)])
            classical(values, levels)
        for unit in units:
            back = codec.decode(codec.encode(unit), unit)
            assert back.shape == unit.shape and (back == unit).all()
        seen += len(units)
        if codec.of_pictures and units:  # and they are the examples themselves
            whole = np.stack(units[:-1])
            assert (whole.reshape(len(values), *values.shape[2:], -1).transpose(0, 3, 1, 2) == values).all()
    if codec.of_pictures:
        assert seen == 2 * 51 + 2 * 10 + (0 if codec.name == "WebP" else 10)
    else:
        assert seen == 51 + 2 * 51 + 2 * 10 + 4 * 10 + 10 + 2 * 31


@pytest.mark.parametrize("how", ["per image", "solid"])
def test_a_codec_that_loses_something_is_no_result(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    xz = next(one for one in CODECS if one.name == "xz -9e")

    def decode(file: bytes, like: NDArray[Any]) -> NDArray[Any]:
        found = xz.decode(file, like).copy()
        if (found.ndim == 1) == (how == "per image"):
            found.flat[-1] ^= 1
        return found

    monkeypatch.setattr(module, "CODECS", [replace(xz, decode=decode)])
    with pytest.raises(AssertionError, match="xz -9e does not give back what it was given"):
        classical(VECTORS, 256)


# -- what there is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "package"), [("brotli -11", "brotli"), ("zstd -19", "zstandard"), ("JPEG XL e9", "imagecodecs")]
)
def test_a_codec_that_is_not_installed_is_listed(codec: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sizes(classical(GREY[:3], 17))
    monkeypatch.setitem(sys.modules, package, None)  # what makes `import` fail
    found = classical(GREY[:3], 17)
    for how in ("per image", "solid"):
        assert only(found, codec, how) == Classical(codec, how, None, None, f"pip install {package}")
        whole[codec, how] = None
    assert sizes(found) == whole


def test_all_are_listed_in_one_order_and_told() -> None:
    said: list[str] = []
    found = classical(GREY[:2], 17, said=said.append)
    names = [*PICTURES, *BYTES]
    assert [(one.codec, one.how) for one in found] == [(name, how) for name in names for how in ("per image", "solid")]
    assert said == [f"{one.codec}, {one.how}" for one in found]


@pytest.mark.parametrize("examples", [VECTORS, levels_of((4, 2, 5, 5), 256), levels_of((4, 5, 5), 256)])
def test_what_is_no_picture_has_no_codecs_of_pictures(examples: NDArray[Any]) -> None:
    assert [one.codec for one in classical(examples, 256)[::2]] == list(BYTES)


def test_what_a_codec_cannot_take_is_told() -> None:
    def notes(examples: NDArray[Any], levels: int) -> dict[str, set[str]]:
        found = classical(examples, levels, limit_per_image=1)
        return {codec: {one.note for one in found if one.codec == codec and one.bytes is None} for codec in PICTURES}

    assert notes(DEEP, 1000) == {"PNG": set(), "WebP": {"takes at most 256 levels"}, "JPEG XL e9": set()}
    color = notes(levels_of((2, 3, 4, 4), 1000), 1000)
    assert color["PNG"] == {"Pillow writes at most 256 levels of a color"} and color["JPEG XL e9"] == set()
    assert notes(DEEP, 70_000)["JPEG XL e9"] == notes(DEEP, 70_000)["PNG"] == {"takes at most 2^16 levels"}
    assert notes(levels_of((1, 1, 16_384, 1), 9), 9)["WebP"] == {"takes at most 16,383 pixels a side"}


def test_pictures_that_are_too_large_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PIXELS", 64 * 8)
    found = classical(GREY[:9], 17)
    for codec in PICTURES:
        assert only(found, codec, "solid").note == "576 pixels are too many for one picture"
        assert only(found, codec, "per image").bytes
    assert sizes(classical(GREY[:8], 17))["PNG", "solid"] is None  # 3 x 3 tiles, one of them empty
    assert sizes(classical(GREY[:6], 17))["PNG", "solid"]


# -- only some -----------------------------------------------------------------------------------------------------


def test_a_limit_scales_up_what_is_coded_alone() -> None:
    examples = VECTORS[:10].copy()
    examples[1:3] = 0  # not chosen: 0, 3, 6 and 9 are
    found = classical(examples, 256, limit_per_image=4)
    for codec, compress in BYTES.items():
        four = sum(len(compress(examples[at].astype(np.uint8).tobytes())) for at in (0, 3, 6, 9))
        one = only(found, codec, "per image")
        assert (one.bytes, one.note) == (round(four * 10 / 4), "from 4 of 10")
        assert only(found, codec, "solid").bytes == len(compress(examples.astype(np.uint8).tobytes()))
        assert only(found, codec, "solid").note == ""
    assert sizes(classical(examples, 256, limit_per_image=10)) == sizes(classical(examples, 256))


@pytest.mark.parametrize(
    ("examples", "levels", "limit"),
    [(VECTORS[:0], 256, None), (VECTORS, 200, None), (VECTORS - 1, 256, None), (VECTORS, 256, 0)],
    ids=["none", "above", "below", "limit"],
)
def test_wrong_input(examples: NDArray[Any], levels: int, limit: int | None) -> None:
    with pytest.raises(InputError):
        classical(examples, levels, limit_per_image=limit)


# -- known sizes, and the command ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not mnist.is_present(), reason="MNIST is not there")
@pytest.mark.parametrize(
    ("binarize", "rel", "known"),
    [
        (
            "none",
            0.005,
            {
                "brotli -11": 1.354,
                "xz -9e": 1.382,
                "bz2 -9": 1.415,
                "zstd -19": 1.447,
                "WebP": 1.540,
                "JPEG XL e9": 1.566,
                "PNG": 1.679,
            },
        ),
        ("dynamic", 0.02, {"JPEG XL e9": 0.225, "bz2 -9": 0.250, "zstd -19": 0.289, "PNG": 0.367}),
    ],
)
def test_bits_of_mnist(binarize: Any, rel: float, known: dict[str, float]) -> None:
    """Measured once with other code; the binarized ones with another draw."""
    dataset = datasets.load(DataConfig(source="mnist", binarize=binarize))
    examples = dataset["test"].fixed(0).read().numpy()
    found = classical(examples, dataset.spec.levels or 0, limit_per_image=1)
    bits = {one.codec: 8 * (one.bytes or 0) / examples.size for one in found if one.how == "solid"}
    assert {codec: bits[codec] for codec in known} == pytest.approx(known, rel=rel)


def test_the_benchmark_counts_bits_per_dimension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lossless.py", "--quick", "--json"])
    monkeypatch.setitem(sys.modules, "brotli", None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        lossless.main()
    assert left.value.code == 0
    result = json.loads(capsys.readouterr().out)
    test = datasets.load(DataConfig(source="digits"))["test"].head(50).read().numpy()
    assert (result["n"], result["shape"], result["levels"]) == (50, [1, 8, 8], 17)
    assert len(result["classical"]) == 2 * len(CODECS)
    (xz,) = (one for one in result["classical"] if (one["codec"], one["how"]) == ("xz -9e", "solid"))
    expected = len(BYTES["xz -9e"](test.astype(np.uint8).tobytes()))
    assert xz["bytes"] == expected and xz["bits_per_dim"] == pytest.approx(8 * expected / (50 * 64))
    lines = lossless.table(result).splitlines()
    assert ["xz", "-9e", "solid", f"{expected:,}", f"{expected / 400:.4f}"] in [line.split()[:5] for line in lines]
    assert [line.split()[0] for line in lines[-2:]] == ["brotli", "brotli"] and lines[-1].endswith("pip install brotli")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either a run folder or --data SOURCE"),
        (("RUN", "--data", "digits"), "give either a run folder or --data SOURCE"),
        (("RUN", "--binarize", "static"), "--binarize goes with --data"),
        (("--data", "digits", "--limit", "0"), "--limit 0: must be at least 1"),
        (("--data", "digits", "--split", "tests"), "no tests split"),
        (("--data", "real.npy", "--split", "train"), "real.npy: holds real values"),
    ],
)
def test_wrong_use_of_the_benchmark(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("real.npy", np.random.default_rng(0).standard_normal((40, 3)))
    monkeypatch.setattr(sys, "argv", ["lossless.py", *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        lossless.main()
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "") and message in err and err.count("\n") == 1


def test_the_benchmark_reads_a_runs_own_data(digits_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CODECS", [one for one in CODECS if one.name == "xz -9e"])
    chosen = Namespace(
        run=digits_run.path, data=None, binarize=None, split="test", limit=None, limit_per_image=1, quick=False
    )
    result = lossless.measure(chosen, Path())
    levels = datasets.load(digits_run.config.data)["test"].batch().numpy()  # binarized: 0 and 1
    assert set(np.unique(levels)) == {0, 1} and (result["n"], result["levels"]) == (len(levels), 2)
    files = (levels.astype(np.uint8).tobytes(), b"".join(map(packed, levels)))
    assert result["classical"][1]["bytes"] == min(len(BYTES["xz -9e"](file)) for file in files)
