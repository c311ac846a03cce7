"""A description that is damaged or forged writes nothing wrong, nothing elsewhere, and takes no memory."""

import base64
import copy
import json
import random
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaelab.compression.cargo import Cargo, count_examples, examples_of, of_array, read, write
from vaelab.data import DataSpec
from vaelab.errors import CorruptFile

RNG = np.random.default_rng(0)
GREY = DataSpec((1, 5, 4), "levels", 256)
COLOR = DataSpec((3, 5, 4), "levels", 256)


def npz(folder: Path) -> tuple[Cargo, DataSpec]:
    np.savez(folder / "x.npz", x=RNG.integers(0, 256, (3, 6, 9)).astype(">i2"), y=[True, False, True])
    return read(folder / "x.npz", GREY, tile=True), GREY


def array(folder: Path) -> tuple[Cargo, DataSpec]:
    return of_array(RNG.integers(0, 2, (4, 3, 5, 4)).astype("u1"), COLOR), COLOR


def tiled_folder(folder: Path) -> tuple[Cargo, DataSpec]:
    for name, shape in {"a.png": (5, 4), "b/c.png": (6, 9), "b/d.png": (2, 1)}.items():
        put(folder / "in" / name, RNG.integers(0, 256, shape))
    put(folder / "in/e.png", RNG.integers(0, 256, (7, 7, 3)))
    return read(folder / "in", COLOR, tile=True), COLOR


def binary_folder(folder: Path) -> tuple[Cargo, DataSpec]:
    for name in ("a.png", "b.png", "c/d.png"):
        put(folder / "in" / name, RNG.integers(0, 2, (5, 4)) * 255)
    spec = DataSpec((1, 5, 4), "binary", 2)
    return read(folder / "in", spec), spec


def put(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype("u1")).save(path)


MAKERS = (npz, array, tiled_folder, binary_folder)


# -- random damage -------------------------------------------------------------------------------------------------

VALUES = (
    *(None, True, False, 0, 1, 2, 3, 5, 255, -1, 2**31, 2**63, 10**40, 0.5, 1e300, "", "a", "1", "L", "RGB"),
    *("../a.png", "/a.png", "a.png", "|u1", "<f8", ">i2", "|b1", "O", "NHW", "NCHW", "NHWC", "npy", "npz", "array"),
    *("folder", [], {}, [1], [5, 4], [1, 5, 4], {"a": 1}, "\0", "\ud800", "AAAA", [[1, 1]]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has others in it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in inside for found in ((*path, key), *places(part, (*path, key)))]


def damaged(description: dict[str, Any], draw: random.Random) -> Any:
    """The same with one or two changes."""
    if draw.random() < 0.3:
        text = list(json.dumps(description))
        at = draw.randrange(len(text))
        text[at] = draw.choice('0123456789-.,:"[]{}abelnrstux/\\')
        try:
            return json.loads("".join(text))
        except ValueError:
            return None
    changed = copy.deepcopy(description)
    for _ in range(draw.choice((1, 1, 2))):
        *path, key = draw.choice(places(changed))
        holder: Any = changed
        for step in path:
            holder = holder[step]
        value = holder[key]
        match draw.randrange(5):
            case 0:
                del holder[key]
            case 1 if type(value) is int:
                holder[key] = value + draw.choice((-2, -1, 1, 2, 7))
            case 2 if isinstance(value, str) and value:
                at = draw.randrange(len(value))
                holder[key] = value[:at] + draw.choice("aA1./\\ \0é") + value[at + 1 :]
            case 3 if isinstance(value, list):
                draw.shuffle(value)
            case _:
                holder[key] = copy.deepcopy(draw.choice(VALUES))
    return changed


@pytest.mark.parametrize("make", MAKERS)
def test_random_damage_is_told_or_harms_nothing(make: Callable[[Path], tuple[Cargo, DataSpec]], tmp_path: Path) -> None:
    """Whatever is written gives the same examples when it is read again."""
    cargo, spec = make(tmp_path)
    draw = random.Random(0)
    outcomes = [outcome(cargo, damaged(cargo.description, draw), spec, tmp_path) for _ in range(400)]
    assert outcomes.count("refused") > 100 and outcomes.count("same") >= 5, outcomes


def outcome(cargo: Cargo, description: Any, spec: DataSpec, folder: Path) -> str:
    if description is None:
        return "no JSON"
    if description == cargo.description:
        return "no change"
    told = isinstance(description, dict) and description.get("file")
    ending = f".{told}" if told in ("npy", "npz") else ""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name) / f"out{ending}"
        try:
            write(cargo.examples, description, out)
        except CorruptFile as error:
            message = str(error)
            assert "\n" not in message and message.isprintable() and len(message) < 1500, message
            assert not list(Path(name).iterdir())
            assert not isinstance(description, dict) or _refused_alike(description, len(cargo.examples))
            return "refused"
        back = read(out, spec, tile=description["tiled"])
        found = back.examples
        if description["form"] == "folder":  # the names may have another order now
            here = [back.description["names"].index(name) for name in description["names"]]
            found = back.examples[examples_of(back.description, here)]
        assert np.array_equal(found, cargo.examples)
        return "same"


def _refused_alike(description: dict[str, Any], n: int) -> bool:
    """The other functions refuse the same, or answer."""
    try:
        if count_examples(description) == n:
            examples_of(description, [0])
    except CorruptFile:
        pass
    return True


# -- forgeries -----------------------------------------------------------------------------------------------------


def refused(cargo: Cargo, folder: Path, **changes: Any) -> str:
    """The refusal of a description with other fields, for which little memory may be taken."""
    out = folder / ("out.npy" if cargo.description["form"] == "array" else "out")
    if cargo.description.get("file") == "npz":
        out = folder / "out.npz"
    before = sorted(folder.rglob("*"))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile) as caught:
            write(cargo.examples, cargo.description | changes, out)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert sorted(folder.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/a.png", "../a.png", "b/../../a.png", "..", ".", "", "./a.png", "b/./a.png", "b//a.png", "b/", "/"),
        *(
            "..\\a.png",
            "b\\a.png",
            "\\\\server\\share\\a.png",
            "C:a.png",
            "c:/a.png",
            "C:\\a.png",
            "//server/share/a.png",
        ),
        *("a\0.png", "a\n.png", "\x1b[2J.png", "\x7f.png", "\ud800.png", "~/a.pn", "a.jpg", "a.PNG", ".png", ".a.png"),
        *(".ssh/a.png", "a" * 252 + ".png", "é" * 126 + ".png", "a/" * 63 + "a/a.png", "b/" * 2_000_000 + "a.png"),
        *(("d" * 200 + "/") * 30 + "a.png", 7, None, ["a.png"]),
    ],
)
def test_names_cannot_leave_the_folder(name: Any, tmp_path: Path) -> None:
    cargo, _ = binary_folder(tmp_path)
    refused(cargo, tmp_path, names=["a.png", "b.png", name])


def test_names_that_meet(tmp_path: Path) -> None:
    cargo, _ = binary_folder(tmp_path)
    assert "two pictures are called 'a.png'" in refused(cargo, tmp_path, names=["a.png", "b.png", "a.png"])
    assert "'a.png' is a picture and a folder" in refused(cargo, tmp_path, names=["a.png", "b.png", "a.png/c/d.png"])
    write(cargo.examples, cargo.description | {"names": ["~.png", "c..d.png", "12:3.png"]}, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["12:3.png", "c..d.png", "~.png"]


def test_claims_of_much_data_take_no_memory(tmp_path: Path) -> None:
    in_folder, _ = tiled_folder(tmp_path / "folder")
    for sizes in (
        [[2**24, 2**24]] * 4,
        [[5, 4], [6, 9], [2, 1], [10**30, 1]],
        [[5, 4]] * 4,
        [[0, 4]] * 4,
        [[5, 4]],
        [],
    ):
        refused(in_folder, tmp_path, sizes=sizes)
    in_array, _ = array(tmp_path)
    for shape in ([2**40, 3, 5, 4], [4, 3, 2**24, 2**24], [10**30, 3, 5, 4], [4, 60], [0, 3, 5, 4], [-4, 3, 5, 4], [4]):
        refused(in_array, tmp_path, shape=shape)
    empty = of_array(np.zeros((0, 50, 40), "u1"), GREY, tile=True)
    refused(empty, tmp_path, shape=[0, 2**62, 2**62])
    write(empty.examples, empty.description | {"shape": [0, 2**24, 2**24]}, tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (0, 2**24, 2**24)


def test_labels_that_are_none(tmp_path: Path) -> None:
    cargo, _ = npz(tmp_path)

    def labels(content: bytes, dtype: str = "|b1") -> str:
        return refused(cargo, tmp_path, labels={"dtype": dtype, "data": base64.b64encode(content).decode()})

    bomb = zlib.compress(bytes(5 * 10**7))
    assert "labels are not those of 3 examples" in labels(bomb)
    for content in (b"", b"\0", zlib.compress(b"\1\0"), zlib.compress(b"\1\0\1\0"), zlib.compress(b"\1\0\1")[:-1]):
        assert "labels are not those of 3 examples" in labels(content)
    assert "labels are not those of 3 examples" in labels(zlib.compress(b"\1\0\1") + b"\0")
    assert "neither true nor false" in labels(zlib.compress(b"\1\0\2"))
    assert "labels" in labels(zlib.compress(bytes(24)), "|O8")
    refused(cargo, tmp_path, labels={"dtype": "|b1", "data": "not base64!"})
    refused(cargo, tmp_path, labels={"dtype": "|b1", "data": "é"})


def test_types_that_do_not_hold_the_levels(tmp_path: Path) -> None:
    cargo = of_array(np.full((2, 5, 4), 200, "u1"), GREY)
    for dtype in ("|b1", "|i1"):
        assert f"its type {dtype} does not hold its levels" in refused(cargo, tmp_path, dtype=dtype)
    for dtype in ("|O8", "O", "<U4", "<c8", "<M8[s]", "u1", "=u2", "float64", "<f16", "i4,i4", "", "{'names':[]}"):
        assert "another type than numbers" in refused(cargo, tmp_path, dtype=dtype)
    wide = of_array(np.full((2, 5, 4), 2049, "u2"), DataSpec((1, 5, 4), "levels", 65_536))
    assert "does not hold its levels" in refused(wide, tmp_path, dtype="<f2")


def test_colors_that_are_called_grey(tmp_path: Path) -> None:
    cargo, _ = array(tmp_path)
    assert "pictures in color are grey" in refused(cargo, tmp_path, shape=[4, 5, 4], axes="NHW")
    assert "pictures in color are grey" in refused(cargo, tmp_path, shape=[4, 1, 5, 4])


def test_pictures_that_contradict_their_examples(tmp_path: Path) -> None:
    """The last of three is at fault, and the first two are not left behind."""
    cargo, _ = binary_folder(tmp_path)
    (tmp_path / "color").mkdir()
    for i in range(3):
        put(tmp_path / f"color/{i}.png", RNG.integers(0, 256, (5, 4, 3)) if i == 2 else RNG.integers(0, 256, (5, 4)))
    color = read(tmp_path / "color", COLOR)
    assert "'2.png' is in color" in refused(color, tmp_path, modes=["L", "L", "L"])
    assert "'0.png' has grey levels" in refused(color, tmp_path, modes=["1", "L", "RGB"])
    assert "'0.png' has levels that no picture has" in refused(color, tmp_path, binary=True)
    refused(color, tmp_path, modes=["L", "L", "P"])
    refused(color, tmp_path, orientations=[1, 1, 9])
    refused(color, tmp_path, orientations=[1, 1])
    refused(color, tmp_path, tiled=True)
    refused(color, tmp_path, sizes=[[5, 4]] * 3)
    refused(color, tmp_path, event=[1, 5, 4])
    refused(color, tmp_path, note="a\nb")
    refused(color, tmp_path, more=1)
    refused(Cargo(color.examples[:2], color.description), tmp_path)
    refused(Cargo(color.examples.astype("u2") + 300, color.description), tmp_path)
    tiles, _ = tiled_folder(tmp_path / "tiles")
    assert "its tiles do not end" in refused(tiles, tmp_path, sizes=[[5, 4], [6, 9], [2, 1], [7, 6]])
    for nothing in ({}, {"form": "array"}, {"form": "tar"}, [], None, 3):
        with pytest.raises(CorruptFile):
            write(cargo.examples, nothing, tmp_path / "out")  # pyright: ignore[reportArgumentType]


def test_names_of_arrays(tmp_path: Path) -> None:
    cargo, _ = npz(tmp_path)
    for name in ("../x", "/x", "y", "", None, "a\\b", "C:x", "\0"):
        refused(cargo, tmp_path, name=name)
