"""What goes into compression comes back bit for bit, and what could not is refused by name."""

import itertools
import json
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from vaelab.compression.cargo import Cargo, check_out, count_examples, examples_of, of_array, read, write
from vaelab.compression.description import DTYPES
from vaelab.data import DataSpec, freyfaces
from vaelab.errors import InputError

RNG = np.random.default_rng(0)
GREY = DataSpec((1, 5, 4), "levels", 256)
COLOR = DataSpec((3, 5, 4), "levels", 256)
BINARY = DataSpec((1, 5, 4), "binary", 2)
INTEGERS = sorted(dtype for dtype in DTYPES if dtype[1] != "f")


def levels_of(shape: tuple[int, ...], levels: int = 256) -> NDArray[np.int64]:
    return RNG.integers(0, levels, shape)


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """To the bit, in shape and in type with its byte order."""
    if left.dtype == bool:  # Pillow's truth is 255
        left = left.view("u1") > 0
    return left.dtype.str == right.dtype.str and left.shape == right.shape and left.tobytes() == right.tobytes()


def there_and_back(source: object, spec: DataSpec, out: Path, **keys: Any) -> Cargo:
    cargo = read(str(source), spec, **keys)
    told = json.loads(json.dumps(cargo.description))  # as it comes out of a file
    assert count_examples(told) == len(cargo.examples)
    assert cargo.examples.shape[1:] == spec.shape and cargo.examples.flags.c_contiguous
    assert cargo.examples.dtype == (np.uint8 if (spec.levels or 0) <= 256 else np.uint16)
    write(cargo.examples, told, out)
    assert not [left for left in out.parent.iterdir() if left.name.startswith(".")]
    return cargo


def refusal(source: object, spec: DataSpec, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(str(source), spec, **keys)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    return message


def has(message: str, *parts: str) -> bool:
    return all(part in message for part in parts)


# -- arrays --------------------------------------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn) -> tuple[NDArray[Any], DataSpec, bool, str]:
    """An array of any kind that a model codes, the model, whether it is cut into tiles, and its axes."""
    levels = draw(st.sampled_from([2, 17, 256, 300, 65_536]))
    kind = "binary" if levels == 2 else "levels"
    n = draw(st.integers(0, 4))
    dtype = np.dtype(draw(st.sampled_from(sorted(DTYPES))))
    most = {"b": 2, "f": 2049 if dtype.itemsize == 2 else levels}.get(dtype.kind) or min(
        levels, int(np.iinfo(dtype).max) + 1
    )
    axes = draw(st.sampled_from(["ND", "NHW", "NCHW", "NHWC"]))
    tile = axes != "ND" and draw(st.booleans())
    height, width = draw(st.integers(4, 8)), draw(st.integers(4, 8))
    event: tuple[int, ...] = (height, width)
    if tile:
        event = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    channels = draw(st.sampled_from([1, 3])) if "C" in axes else 1
    shape = {
        "ND": (n, height),
        "NHW": (n, height, width),
        "NCHW": (n, channels, height, width),
        "NHWC": (n, height, width, channels),
    }[axes]
    model = 3 if channels == 3 else draw(st.sampled_from([1, 3]))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, min(levels, most), shape).astype(dtype)
    spec = DataSpec((height,) if axes == "ND" else (model, *event), kind, levels)
    return values, spec, tile, axes


def first(values: NDArray[Any], axes: str, channels: int) -> NDArray[Any]:
    """The pictures [N, C, h, w] with the model's channels, the way that numpy is read aloud."""
    if axes == "NHW":
        values = np.stack([values], 1)
    elif axes == "NHWC":
        values = np.moveaxis(values, 3, 1)
    return np.concatenate([values] * (channels // values.shape[1]), axis=1)


@given(arrays(), st.data())
@settings(max_examples=100)
def test_arrays_come_back_to_the_bit(drawn: tuple[NDArray[Any], DataSpec, bool, str], data: st.DataObject) -> None:
    values, spec, tile, axes = drawn
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", np.asfortranarray(values) if data.draw(st.booleans()) else values)
        cargo = there_and_back(folder / "x.npy", spec, folder / "back.npy", tile=tile)
        assert same(np.load(folder / "back.npy"), values)
        assert (folder / "back.npy").read_bytes() == _npy(values)

        if axes == "ND":
            assert np.array_equal(cargo.examples, values)
            per_picture = 1
        else:
            pictures = first(values, axes, spec.shape[0])
            expected, per_picture = tiles_by_hand(pictures, spec.shape[1], spec.shape[2])
            assert np.array_equal(cargo.examples, expected)

        only = data.draw(st.permutations(range(len(values))))[: data.draw(st.integers(0, len(values)))]
        needed = examples_of(cargo.description, only)
        assert needed == [i * per_picture + k for i in only for k in range(per_picture)]
        write(cargo.examples[needed], cargo.description, folder / "some.npy", only)
        assert same(np.load(folder / "some.npy"), values[list(only)])


def _npy(values: NDArray[Any]) -> bytes:
    with tempfile.TemporaryFile() as file:
        np.save(file, np.ascontiguousarray(values))
        file.seek(0)
        return file.read()


def tiles_by_hand(pictures: NDArray[Any], height: int, width: int) -> tuple[NDArray[Any], int]:
    """[N · tiles, C, H, W], with the nearest pixel of the picture beyond its edge."""
    found: list[NDArray[Any]] = []
    tops, lefts = range(0, pictures.shape[2], height), range(0, pictures.shape[3], width)
    for picture in pictures:
        for top, left in itertools.product(tops, lefts):
            rows = [min(top + y, picture.shape[1] - 1) for y in range(height)]
            columns = [min(left + x, picture.shape[2] - 1) for x in range(width)]
            found.append(picture[np.ix_(range(len(picture)), rows, columns)])
    return np.array(found).reshape(-1, pictures.shape[1], height, width), len(tops) * len(lefts)


@pytest.mark.parametrize("dtype", [*INTEGERS, "<f4", ">f8"])
def test_labels_come_back_with_their_examples(dtype: str, tmp_path: Path) -> None:
    values = levels_of((6, 5, 4)).astype("u1")
    labels = np.array([1, 0, 1, 1, 0, 0]).astype(dtype)
    if dtype[1] == "f":
        labels[2] = np.nan
    np.savez(tmp_path / "data.npz", **{"any name": values, "y": labels})
    cargo = there_and_back(tmp_path / "data.npz", GREY, tmp_path / "back.npz")
    with np.load(tmp_path / "back.npz") as back:
        assert sorted(back.files) == ["any name", "y"]
        assert same(back["any name"], values) and same(back["y"], labels)
    write(cargo.examples[[4, 2]], cargo.description, tmp_path / "some.npz", [4, 2])
    with np.load(tmp_path / "some.npz") as back:
        assert same(back["any name"], values[[4, 2]]) and same(back["y"], labels[[4, 2]])


@pytest.mark.parametrize("name", ["file", "x", "X", "allow_pickle"])
def test_an_array_alone_in_an_npz(name: str, tmp_path: Path) -> None:
    values = levels_of((3, 5, 4)).astype(">i2")
    np.save(tmp_path / "x.npy", values)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:  # numpy.savez has arguments of some such names
        archive.write(tmp_path / "x.npy", f"{name}.npy")
    there_and_back(tmp_path / "data.npz", GREY, tmp_path / "back.npz")
    with np.load(tmp_path / "back.npz") as back:
        assert back.files == [name] and same(back[name], values)


def test_other_arrays_of_an_npz_are_not_lost(tmp_path: Path) -> None:
    values = levels_of((3, 5, 4)).astype("u1")
    np.savez(tmp_path / "data.npz", x=values, y=[1, 2, 3], weights=[1], mask=[2])
    assert has(refusal(tmp_path / "data.npz", GREY), "data.npz: holds weights, mask beside x", "save x and y alone")
    np.savez(tmp_path / "data.npz", x=values, y=[1, 2])
    assert has(refusal(tmp_path / "data.npz", GREY), "data.npz: labels y are int64 [2]", "[3] numbers")
    np.savez(tmp_path / "data.npz", x=values, y=["a", "b", "c"])
    assert has(refusal(tmp_path / "data.npz", GREY), "labels y are <U1 [3]")
    np.savez(tmp_path / "data.npz", a=values, b=values)
    assert has(refusal(tmp_path / "data.npz", GREY), "which array holds the examples? It has a, b")


def saved(folder: Path, values: Any) -> Path:
    np.save(folder / "x.npy", np.asarray(values))
    return folder / "x.npy"


def test_values_that_are_no_levels_of_the_model(tmp_path: Path) -> None:
    values = levels_of((3, 5, 4), 16)
    values[2, 0, 0] = 16
    digits = DataSpec((1, 5, 4), "levels", 16)
    message = refusal(saved(tmp_path, values), digits)
    assert has(message, "levels above 15", "in 1 of 3 rows, first in row 2", "train a model on such examples")
    message = refusal(saved(tmp_path, values), BINARY)
    assert has(message, "more than 0 and 1", "data.binarize=none", "make an array of 0 and 1 yourself")
    values[1, 3, 3] = -1
    assert has(refusal(saved(tmp_path, values), GREY), "negative", "first in row 1", "levels count from 0")
    for value in (0.5, np.nan, np.inf, -0.0):
        real = np.zeros((3, 5, 4))
        real[1, 2, 3] = value
        assert has(refusal(saved(tmp_path, real), GREY), "not whole", "first in row 1", "save its levels as integers")
    real[1, 2, 3] = -2
    assert has(refusal(saved(tmp_path, real), GREY), "negative", "first in row 1")
    for dtype in ("complex64", "U1", "m8[s]", "longdouble"):
        assert has(refusal(saved(tmp_path, np.zeros((3, 5, 4), dtype)), GREY), "x.npy", "save integers")
    assert has(refusal(saved(tmp_path, np.full((3, 5, 4), 2**63, "u8")), GREY), "levels above 255", "3 of 3 rows")
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    assert has(refusal(tmp_path / "x.npy", GREY), "Object arrays cannot be loaded")


def test_shapes_that_are_not_the_models(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, levels_of((3, 6, 4))), GREY)
    assert has(message, "x.npy: shape [3, 6, 4]", "1×5×4 pictures, 256 levels", "--tile")
    message = refusal(saved(tmp_path, levels_of((3, 20))), GREY)
    assert has(message, "shape [3, 20]", "reshape it to [3, 1, 5, 4]") and "--tile" not in message
    message = refusal(saved(tmp_path, levels_of((3, 5, 4))), DataSpec((20,), "levels", 256))
    assert has(message, "shape [3, 5, 4]", "vectors of 20 dimensions", "reshape it to [3, 20]")
    message = refusal(saved(tmp_path, levels_of((3, 21))), GREY, tile=True)
    assert has(message, "shape [3, 21]", "train a model on such examples") and "--tile" not in message
    for shape in ((3, 5, 4, 3), (3, 3, 5, 4), (2, 5), (4,), (), (1, 1, 1, 5, 4)):
        assert has(refusal(saved(tmp_path, np.zeros(shape, "u1")), GREY), str(list(shape)), "1×5×4 pictures")
    for shape in ((3, 0, 4), (0, 5, 0)):
        assert has(refusal(saved(tmp_path, np.zeros(shape, "u1")), GREY, tile=True), str(list(shape)))
    vectors = DataSpec((20,), "levels", 256)
    assert has(refusal(saved(tmp_path, levels_of((3, 20))), vectors, tile=True), "--tile", "only pictures have tiles")


def test_a_model_of_real_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path, levels_of((3, 5, 4)))
    assert has(refusal(path, DataSpec((1, 5, 4), "real", None)), "codes real numbers", "train one on integers")


def test_an_array_in_memory(tmp_path: Path) -> None:
    values = levels_of((7, 1, 5, 4), 2).astype("u1")
    cargo = of_array(values, BINARY, note="the test split")
    assert cargo.description["note"] == "the test split"
    write(cargo.examples, cargo.description, tmp_path / "x.npy")
    assert same(np.load(tmp_path / "x.npy"), values)
    with pytest.raises(InputError, match="examples: shape"):
        of_array(values[..., :2], BINARY)


# -- named sources -------------------------------------------------------------------------------------------------


def test_digits_come_in_the_order_of_the_source(tmp_path: Path) -> None:
    spec = DataSpec((1, 8, 8), "levels", 17)
    cargo = there_and_back("digits", spec, tmp_path / "digits.npy")
    expected = load_digits().images[:, None].astype("u1")  # pyright: ignore[reportAttributeAccessIssue]
    assert same(np.load(tmp_path / "digits.npy"), expected)
    assert np.array_equal(cargo.examples, expected) and "labels are no part" in cargo.description["note"]
    message = refusal("digits", DataSpec((1, 8, 8), "binary", 2))
    assert has(message, "digits: more than 0 and 1", "data.binarize=none")
    assert has(refusal("digits", GREY), "digits: shape [1797, 1, 8, 8]", "1×5×4", "--tile")
    there_and_back("digits", DataSpec((3, 5, 3), "levels", 17), tmp_path / "tiled.npy", tile=True)
    assert same(np.load(tmp_path / "tiled.npy"), expected)


@pytest.mark.skipif(not freyfaces.is_present(), reason="Frey faces are not there")
def test_frey_faces(tmp_path: Path) -> None:
    cargo = there_and_back("freyfaces", DataSpec((1, 28, 20), "levels", 256), tmp_path / "faces.npy")
    faces = np.load(freyfaces.file())
    assert same(np.load(tmp_path / "faces.npy"), faces[:, None])
    write(cargo.examples[[1964]], cargo.description, tmp_path / "last.npy", [1964])
    assert same(np.load(tmp_path / "last.npy"), faces[-1:, None])


def test_the_hub(tmp_path: Path) -> None:
    hf = pytest.importorskip("datasets")
    values = levels_of((6, 5, 4), 256).astype("u1")
    features = hf.Features({"x": hf.Array2D((5, 4), "uint8"), "label": hf.ClassLabel(names=["a", "b"])})
    train = hf.Dataset.from_dict({"x": list(values[:4]), "label": [0, 1, 1, 0]}, features=features)
    test = hf.Dataset.from_dict({"x": list(values[4:]), "label": [0, 1]}, features=features)
    hf.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "set")
    there_and_back(f"hf:{tmp_path / 'set'}", GREY, tmp_path / "back.npy")
    assert same(np.load(tmp_path / "back.npy"), values[:, None])


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    assert "did you mean mnist" in refusal("mnits", GREY)
    assert refusal(tmp_path / "none.npy", GREY) == f"{tmp_path / 'none.npy'}: no such file or folder"
    (tmp_path / "x.csv").write_text("1\n")
    assert has(refusal(tmp_path / "x.csv", GREY), "x.csv", ".npy")
    (tmp_path / "x.npy").write_text("1\n")
    assert has(refusal(tmp_path / "x.npy", GREY), "x.npy: not a readable array file")


# -- folders -------------------------------------------------------------------------------------------------------

PLANE = levels_of((5, 4)).astype("u1")
PIXELS = levels_of((5, 4, 3)).astype("u1")


def put(folder: Path, name: str, image: Image.Image, **keys: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **keys)
    return path


def palette(colors: list[int]) -> Image.Image:
    made = Image.new("P", (4, 5))
    made.putdata((PLANE % (len(colors) // 3)).ravel().tolist())
    made.putpalette(colors)
    return made


def pixels_of(path: Path, mode: str) -> NDArray[Any]:
    with Image.open(path) as opened:
        assert opened.mode == mode
        return np.asarray(opened)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, dict[str, NDArray[Any]]]:
    """A folder of grey pictures of every kind, and what they are to come back as."""
    folder = tmp_path / "pictures"
    put(folder, "b/grey.png", Image.fromarray(PLANE))
    put(folder, "b/deep/er/lossless.webp", Image.fromarray(np.stack([PLANE] * 3, -1)), lossless=True)
    put(folder, "a.bmp", Image.fromarray(255 - PLANE))
    put(folder, "é 1.tiff", Image.fromarray(PLANE // 2))
    put(folder, "palette.GIF", palette([9, 9, 9, 200, 200, 200, 17, 17, 17]))
    put(folder, "two.levels.png", Image.fromarray(PLANE > 99))
    put(folder, "grey.jpg", Image.fromarray(PLANE))
    with Image.open(folder / "grey.jpg") as opened:
        decoded = np.asarray(opened)
    (folder / "notes.txt").write_text("left out, as always")
    (folder / ".hidden.png").write_text("left out, as always")
    return folder, {
        "b/grey.png": PLANE,
        "b/deep/er/lossless.png": np.stack([PLANE] * 3, -1),
        "a.png": 255 - PLANE,
        "é 1.png": PLANE // 2,
        "palette.png": np.array([9, 200, 17], "u1")[PLANE % 3],
        "two.levels.png": PLANE > 99,
        "grey.png": decoded,
    }


@pytest.mark.parametrize(("spec", "tile"), [(GREY, False), (COLOR, False), (DataSpec((1, 3, 7), "levels", 999), True)])
def test_a_folder_comes_back(
    spec: DataSpec, tile: bool, mixed: tuple[Path, dict[str, NDArray[Any]]], tmp_path: Path
) -> None:
    folder, expected = mixed
    cargo = there_and_back(folder, spec, tmp_path / "back", tile=tile)
    assert files_of(tmp_path / "back") == sorted(expected)
    for name, pixels in expected.items():
        mode = "1" if pixels.dtype == bool else "RGB" if pixels.ndim == 3 else "L"
        assert same(pixels_of(tmp_path / "back" / name, mode), pixels), name
    names = cargo.description["names"]
    assert names == [Path(name).with_suffix(".png").as_posix() for name in sorted(names_in(folder))]
    if not tile:
        at = names.index("a.png")
        assert np.array_equal(cargo.examples[at], np.stack([255 - PLANE] * spec.shape[0]))
    only = [names.index(name) for name in ("palette.png", "b/grey.png")]
    write(cargo.examples[examples_of(cargo.description, only)], cargo.description, tmp_path / "some", only)
    assert files_of(tmp_path / "some") == ["b/grey.png", "palette.png"]
    for name in ("b/grey.png", "palette.png"):
        assert same(pixels_of(tmp_path / "some" / name, "L"), expected[name])


def names_in(folder: Path) -> list[str]:
    return [name for name in files_of(folder) if not name.startswith(".") and not name.endswith(".txt")]


def test_color_under_a_model_of_colors(tmp_path: Path) -> None:
    put(tmp_path / "in", "color.png", Image.fromarray(PIXELS))
    put(tmp_path / "in", "palette.gif", palette([9, 0, 9, 200, 100, 0]))
    put(tmp_path / "in", "grey.pgm", Image.fromarray(PLANE))
    cargo = there_and_back(tmp_path / "in", COLOR, tmp_path / "back")
    assert same(pixels_of(tmp_path / "back/color.png", "RGB"), PIXELS)
    expected = np.array([[9, 0, 9], [200, 100, 0]], "u1")[PLANE % 2]
    assert same(pixels_of(tmp_path / "back/palette.png", "RGB"), expected)
    assert same(pixels_of(tmp_path / "back/grey.png", "L"), PLANE)
    assert np.array_equal(cargo.examples[0], PIXELS.transpose(2, 0, 1))
    assert np.array_equal(cargo.examples[1], np.stack([PLANE] * 3))
    message = refusal(tmp_path / "in", GREY)
    assert has(message, "color.png: is in color", "train one on pictures in color")


def test_black_and_white_under_a_binary_model(tmp_path: Path) -> None:
    black_and_white = (PLANE > 99).astype("u1") * 255
    put(tmp_path / "in", "L.png", Image.fromarray(black_and_white))
    put(tmp_path / "in", "RGB.png", Image.fromarray(np.stack([black_and_white] * 3, -1)))
    put(tmp_path / "in", "one.png", Image.fromarray(PLANE > 99))
    cargo = there_and_back(tmp_path / "in", BINARY, tmp_path / "back")
    assert np.array_equal(cargo.examples, np.stack([PLANE > 99] * 3)[:, None])
    assert same(pixels_of(tmp_path / "back/L.png", "L"), black_and_white)
    assert same(pixels_of(tmp_path / "back/RGB.png", "RGB"), np.stack([black_and_white] * 3, -1))
    assert same(pixels_of(tmp_path / "back/one.png", "1"), PLANE > 99)
    put(tmp_path / "in", "sub/grey.png", Image.fromarray(PLANE))
    message = refusal(tmp_path / "in", BINARY)
    assert has(message, "sub/grey.png: has levels of grey", "data.binarize=none", "make it black and white yourself")
    few = DataSpec((1, 5, 4), "levels", 17)
    assert has(refusal(tmp_path / "in", few), "L.png: has level 255", "codes 0 … 16")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pixels_stay_as_they_lie_and_say_how_to_turn_them(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path / "in", f"a.{suffix}", Image.fromarray(PIXELS), exif=exif)
    with Image.open(path) as opened:
        pixels = np.asarray(opened)
    there_and_back(tmp_path / "in", COLOR, tmp_path / "back")
    assert same(pixels_of(tmp_path / "back/a.png", "RGB"), pixels)
    with Image.open(tmp_path / "back/a.png") as opened:
        assert opened.getexif().get(0x0112, 1) == orientation


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4), st.data())
@settings(max_examples=40)
def test_tiles_of_pictures_of_any_size(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    tile = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    color = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = [rng.integers(0, 256, (*size, 3) if color else size).astype("u1") for size in sizes]
        for i, pixels in enumerate(pictures):
            put(folder / "in", f"{i}.png", Image.fromarray(pixels))
        spec = DataSpec((3 if color else 1, *tile), "levels", 256)
        cargo = there_and_back(folder / "in", spec, folder / "back", tile=True)
        planes = [np.moveaxis(p, 2, 0)[None] if color else p[None, None] for p in pictures]
        expected = [tiles_by_hand(plane, *tile)[0] for plane in planes]
        assert np.array_equal(cargo.examples, np.concatenate(expected))
        for i, pixels in enumerate(pictures):
            assert same(pixels_of(folder / f"back/{i}.png", "RGB" if color else "L"), pixels)
        starts = np.cumsum([0, *map(len, expected)])
        last = len(pictures) - 1
        assert examples_of(cargo.description, [last]) == list(range(starts[last], starts[last + 1]))


# -- folders that are refused --------------------------------------------------------------------------------------


def test_pictures_that_could_not_come_back(tmp_path: Path) -> None:
    def only(name: str, image: Image.Image, **keys: Any) -> str:
        for path in tmp_path.iterdir():
            path.unlink()
        put(tmp_path, name, image, **keys)
        message = refusal(tmp_path, COLOR)
        assert message.startswith(f"{tmp_path / name}: ")
        return message

    alpha = Image.fromarray(np.concatenate([PIXELS, PIXELS[..., :1]], -1))
    assert has(only("a.png", alpha), "transparent", "save it as RGB")
    assert has(only("a.webp", alpha), "transparent")
    assert has(only("a.png", Image.fromarray(PLANE).convert("LA")), "transparent")
    assert has(only("a.gif", palette([9, 0, 9, 1, 2, 3]), transparency=0), "transparent")
    assert has(only("a.png", Image.fromarray(PIXELS), transparency=(1, 2, 3)), "transparent")
    for suffix in ("png", "tif", "pgm"):
        assert has(only(f"a.{suffix}", Image.fromarray(PLANE.astype("u2") * 257)), "more than 8 bits", ".npy")
    assert has(only("a.tif", Image.fromarray(PLANE.astype("f4"))), "more than 8 bits")
    assert has(only("a.tif", Image.fromarray(PLANE.astype("i4"))), "more than 8 bits")
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    assert has(only("a.jpg", cmyk), "color mode CMYK", "save it as RGB")
    assert has(only("a.tif", cmyk), "color mode CMYK")
    frames = [Image.fromarray(PLANE), Image.fromarray(255 - PLANE)]
    for suffix in ("png", "gif", "webp", "tif"):
        message = only(f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert has(message, "several pictures", "save each")


def test_sixteen_bits_that_pillow_cuts_to_eight_without_a_word(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (5, 4, 3)).astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6 4 5 65535\n" + deep.tobytes())
    assert has(refusal(tmp_path, COLOR), "a.ppm: has more than 8 bits a channel")
    (tmp_path / "a.ppm").write_text("P3 4 5 1023\n" + " ".join(map(str, (deep % 1024).ravel())))
    assert has(refusal(tmp_path, COLOR), "a.ppm: has more than 8 bits a channel")
    (tmp_path / "a.ppm").unlink()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "RGB"
    assert has(refusal(tmp_path, COLOR), "a.png: has more than 8 bits a channel")


def test_a_tiff_of_sixteen_bits(tmp_path: Path) -> None:
    """RGB, by hand: a header, eight tags, and the pixels."""
    deep = RNG.integers(0, 65536, (5, 4, 3)).astype("<u2")
    tags = [(256, 3, 1, 4), (257, 3, 1, 5), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 128)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 5), (279, 4, 1, deep.nbytes)]
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    content += struct.pack("<I", 0)
    assert len(content) == 122
    (tmp_path / "a.tif").write_bytes(content + struct.pack("<3H", 16, 16, 16) + deep.tobytes())
    with Image.open(tmp_path / "a.tif") as opened:
        assert opened.mode == "RGB"
    assert has(refusal(tmp_path, COLOR), "a.tif: has more than 8 bits a channel")


def test_sizes_that_are_not_the_models(tmp_path: Path) -> None:
    put(tmp_path, "b/c.png", Image.fromarray(PLANE[:4]))
    put(tmp_path, "a.png", Image.fromarray(PLANE))
    message = refusal(tmp_path, GREY)
    assert has(message, "b/c.png: is 4 × 4 pixels", "codes 5 × 4", "--tile", "data.size=4,4")
    assert has(refusal(tmp_path, DataSpec((20,), "levels", 256)), "holds pictures", "shape [20]")


def test_names_that_could_not_come_back(tmp_path: Path) -> None:
    image = Image.fromarray(PLANE)
    for names, parts in {
        ("a.png", "a.jpg"): ("a.jpg and a.png would both come back as a.png", "rename"),
        ("s/a.bmp", "s/a.PNG"): ("s/a.PNG and s/a.bmp would both come back as s/a.png",),
        ("a.jpg", "a.png/b.png"): ("'a.png' is a picture and a folder", "rename"),
        ("a\\b.png",): ("'a\\\\b.png' has a backslash", "rename"),
        ("c:a.png",): ("'c:a.png' begins like a drive", "rename"),
        ("a\nb.png",): ("'a\\nb.png' has control characters",),
        ("a\udce9.png",): ("is not in UTF-8", "rename"),
    }.items():
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            for name in names:
                put(Path(folder), name, image)
            assert has(refusal(folder, GREY), *parts), names
    for name in ("12:30.png", "a..b.png", "ü/日本.png", "a b.png"):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            put(Path(folder) / "in", name, image)
            there_and_back(Path(folder) / "in", GREY, Path(folder) / "out")
            assert files_of(Path(folder) / "out") == [name]


def test_damaged_pictures_and_empty_folders(tmp_path: Path) -> None:
    assert has(refusal(tmp_path, GREY), "no pictures in this folder")
    path = put(tmp_path, "a.png", Image.fromarray(PLANE))
    damaged = bytearray(path.read_bytes())
    damaged[-16] ^= 1  # in the checksum of the pixels
    path.write_bytes(damaged)
    assert has(refusal(tmp_path, GREY), "a.png: cannot be decoded", "repair or remove")
    path.write_bytes(b"GIF89a")
    assert has(refusal(tmp_path, GREY), "a.png: cannot be decoded")
    Image.fromarray(PLANE).save(path, format="JPEG2000")  # whatever its ending says, Pillow would open it
    assert has(refusal(tmp_path, GREY), "a.png: cannot be decoded")


# -- where it is written -------------------------------------------------------------------------------------------


def wrong_place(cargo: Cargo, out: Path) -> str:
    messages: list[str] = []
    for attempt in (lambda: check_out(cargo.description, out), lambda: write(cargo.examples, cargo.description, out)):
        with pytest.raises(InputError) as caught:
            attempt()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    return messages[0]


def test_the_ending_is_that_of_the_input(tmp_path: Path) -> None:
    values = levels_of((2, 5, 4)).astype("u1")
    np.savez(tmp_path / "data.npz", x=values)
    npy, npz = of_array(values, GREY), read(tmp_path / "data.npz", GREY)
    assert has(wrong_place(npy, tmp_path / "x.npz"), "x.npz", "it must be .npy")
    assert has(wrong_place(npz, tmp_path / "x.npy"), "x.npy", "it must be .npz")
    assert has(wrong_place(npy, tmp_path), "is a folder")
    assert has(wrong_place(npy, tmp_path / "no/x.npy"), "no folder")
    np.save(tmp_path / "old.npy", [1])
    write(npy.examples, npy.description, tmp_path / "old.npy")
    assert same(np.load(tmp_path / "old.npy"), values)


def test_pictures_come_back_to_a_new_folder_or_an_empty_one(tmp_path: Path) -> None:
    put(tmp_path / "in", "a.png", Image.fromarray(PLANE))
    cargo = read(tmp_path / "in", GREY)
    assert has(wrong_place(cargo, tmp_path / "in"), "is not empty", "a new folder")
    (tmp_path / "file").write_text("")
    assert has(wrong_place(cargo, tmp_path / "file"), "is a file")
    assert has(wrong_place(cargo, tmp_path / "no/out"), f"no folder {tmp_path / 'no'}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write(cargo.examples, cargo.description, tmp_path / "link")
    assert files_of(tmp_path / "empty") == ["a.png"] and (tmp_path / "link").is_symlink()
    (tmp_path / "empty2").mkdir()
    write(cargo.examples, cargo.description, tmp_path / "empty2")
    assert files_of(tmp_path / "empty2") == ["a.png"]
    write(cargo.examples, cargo.description, Path("here"))  # beside the working folder's files
    assert files_of(Path("here")) == ["a.png"]


def test_positions_that_are_not_there(tmp_path: Path) -> None:
    cargo = of_array(levels_of((3, 5, 4)), GREY)
    for only, part in {(0, 3): "only 3: there are 3", (-1,): "only -1", (1, 2, 1): "only 1: is named twice"}.items():
        with pytest.raises(InputError, match=part):
            examples_of(cargo.description, only)
        with pytest.raises(InputError, match=part):
            write(cargo.examples, cargo.description, tmp_path / "x.npy", only)
    assert not list(tmp_path.iterdir())
