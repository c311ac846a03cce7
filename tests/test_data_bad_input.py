"""Every bad input gets one line that names the thing and the remedy."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaelab.config import DataConfig
from vaelab.data import load
from vaelab.errors import InputError


def refusal(source: object, **keys: object) -> str:
    """The one line that a source and its settings are refused with."""
    with pytest.raises(InputError) as caught:
        load(DataConfig.model_validate({"source": str(source)} | keys))
    message = str(caught.value)
    assert message and "\n" not in message and caught.value.exit_code == 2
    return message


# -- sources -------------------------------------------------------------------------------------------------------


def test_unknown_source_suggests_the_nearest() -> None:
    assert "unknown data source mnits; did you mean mnist?" in refusal("mnits")
    message = refusal("zzzz")
    assert "zzzz" in message and "digits, sprites, mnist, freyfaces" in message


def test_missing_paths(tmp_path: Path) -> None:
    for source in (tmp_path / "none", "no/such/folder", "none.npy", "none.npz"):
        assert refusal(source) == f"{source}: no such file or folder"


def test_unsupported_sources(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2\n")
    message = refusal(tmp_path / "table.csv")
    assert "table.csv" in message and ".npy" in message


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", np.linspace(-3, 2, 20).reshape(10, 2))
    np.save(tmp_path / "levels.npy", np.arange(20).reshape(10, 2))
    assert "data.size=32: only a folder" in refusal("digits", size=32)
    assert "data.size=32: only a folder" in refusal(tmp_path / "real.npy", size=32)
    assert "data.levels=16" in (message := refusal("digits", levels=16)) and "at least 17" in message
    assert "goes up to 19" in refusal(tmp_path / "levels.npy", levels=19)
    assert "data.levels=5" in (message := refusal(tmp_path / "real.npy", levels=5)) and "real.npy" in message
    for binarize in ("threshold", "static", "dynamic"):
        message = refusal("digits", values="real", binarize=binarize)
        assert "data.values=real" in message and f"data.binarize={binarize}" in message
        message = refusal(tmp_path / "real.npy", binarize=binarize)
        assert f"data.binarize={binarize}" in message and "from -3 to 2" in message and "[0, 1]" in message
    np.save(tmp_path / "high.npy", np.array([[0.0, 1.5]]))
    assert "from 0 to 1.5" in refusal(tmp_path / "high.npy", binarize="dynamic")


def test_divisions_that_leave_nothing(tmp_path: Path) -> None:
    message = refusal("digits", validation=0.6, test=0.6)
    assert "data.validation=0.6 and data.test=0.6" in message and "1797" in message
    assert "data.validation=0.0001: of 1797 examples that is none" in refusal("digits", validation=0.0001)
    assert "data.test=0.0001" in refusal("digits", test=0.0001)
    np.save(tmp_path / "one.npy", np.ones((1, 3)))
    assert "no training example of 1" in refusal(tmp_path / "one.npy", test=0.9)


# -- arrays --------------------------------------------------------------------------------------------------------


def npy(values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


def with_value(value: float, dtype: str = "float64") -> np.ndarray:
    values = np.zeros((9, 2, 2), dtype)
    values[3, 1, 0] = values[3, 1, 1] = values[7, 0, 0] = value
    return values


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (with_value(np.nan), ["NaN or infinite", "2 of 9 rows", "first in row 3"]),
        (with_value(np.inf, "float32"), ["NaN or infinite", "2 of 9 rows", "first in row 3"]),
        (with_value(-1e39), ["beyond float32", "2 of 9 rows", "first in row 3"]),
        (with_value(-1, "int16"), ["negative", "2 of 9 rows", "first in row 3"]),
        (np.float64(3.0), ["shape []", "0 axes", "[N, D]"]),
        (np.zeros(5), ["shape [5]", "1 axes"]),
        (np.zeros((2, 2, 2, 2, 2)), ["5 axes", "[N, C, H, W]"]),
        (np.zeros((0, 4)), ["empty", "[0, 4]"]),
        (np.zeros((4, 0)), ["empty", "[4, 0]"]),
        (np.zeros((3, 4, 0, 3)), ["empty", "[3, 4, 0, 3]"]),
        (np.array([["a", "b"]]), ["dtype <U1"]),
        (np.zeros((2, 2), complex), ["dtype complex128", "integers or floats"]),
        (np.zeros((2, 2), "datetime64[s]"), ["dtype datetime64[s]"]),
        (np.zeros((2, 2), [("a", "i4")]), ["dtype [('a', '<i4')]"]),
        (np.array([[65_536]]), ["65536", "above 65536 levels", "floats"]),
        (np.array([[2**64 - 1]], np.uint64), ["18446744073709551615"]),
        (np.zeros((4, 3, 8, 3)), ["[4, 3, 8, 3]", "either", "transpose"]),
        (np.zeros((4, 5, 8, 2)), ["[4, 5, 8, 2]", "neither", "transpose"]),
        (np.array([[None, 1]]), ["Object arrays cannot be loaded"]),
    ],
)
def test_bad_arrays(values: np.ndarray, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(values))
    message = refusal(path)
    assert str(path) in message
    assert [part for part in parts if part not in message] == []


class Bomb:
    """Whoever unpickles this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    good = npy(np.ones((100, 10)))
    zipped = io.BytesIO()
    np.savez_compressed(zipped, x=np.random.default_rng(0).random((100, 10)))
    damaged = bytearray(zipped.getvalue())
    damaged[len(damaged) // 2] ^= 255
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("x", "no array")
    fired = tmp_path / "fired"
    contents = {
        "truncated.npy": good[:-1],
        "header.npy": good[:20],
        "empty.npy": b"",
        "text.npy": b"1,2,3\n4,5,6\n",
        "pickle.npy": pickle.dumps(Bomb(fired)),
        "object.npy": npy([[Bomb(fired)]]),
        "truncated.npz": zipped.getvalue()[:-30],
        "damaged.npz": bytes(damaged),
        "garbage.npz": b"PK\3\4" + bytes(100),
        "text.npz": text.getvalue(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert str(tmp_path / name) in refusal(tmp_path / name), name
    assert not fired.exists()


def test_which_array_of_an_npz(tmp_path: Path) -> None:
    path, values = tmp_path / "d.npz", np.ones((4, 2))
    for arrays, named in [
        ({"train": values, "test": values}, "train, test"),
        ({"x": values, "X": values}, "x, X"),
        ({"y": np.arange(4)}, "y"),
        ({}, "none"),
    ]:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        message = refusal(path)
        assert str(path) in message and f"It has {named};" in message and "save them as x" in message


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (np.arange(5), ["5 labels", "4 examples"]),
        (np.arange(3), ["3 labels", "4 examples"]),
        (np.arange(4.0), ["float64", "integers"]),
        (np.array(list("abcd")), ["<U1", "integers"]),
        (np.eye(4, dtype=int), ["[4, 4]"]),
    ],
)
def test_bad_labels(labels: np.ndarray, parts: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((4, 2)), y=labels)
    message = refusal(tmp_path / "d.npz")
    assert [part for part in [str(tmp_path / "d.npz"), "y", *parts] if part not in message] == []


# -- folders -------------------------------------------------------------------------------------------------------


def picture(height: int = 24, width: int = 24) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    message = refusal(tmp_path)
    assert str(tmp_path) in message and "no pictures" in message and "png, jpg" in message


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
def test_truncated_pictures_are_named(suffix: str, tmp_path: Path) -> None:
    """Whatever the format and wherever it breaks off, before a training starts."""
    for i in range(5):
        picture().save(tmp_path / f"{i}.{suffix}")
    content = (tmp_path / f"0.{suffix}").read_bytes()
    for kept in (0, 3, 20, len(content) // 2, len(content) - 40):
        for i in (1, 3):
            (tmp_path / f"{i}.{suffix}").write_bytes(content[:kept])
        message = refusal(tmp_path)
        assert (
            str(tmp_path / f"1.{suffix}") in message and "2 of 5 pictures" in message and "repair or remove" in message
        )


def test_a_flipped_bit_of_a_png_never_changes_a_pixel_silently(tmp_path: Path) -> None:
    """Decoding alone would let four of these flips through; the checksums of the PNG tell."""
    pixels = np.add.outer(np.arange(40), np.arange(30)).astype(np.uint8) * 3
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    refused = 0
    for place in range(len(content)):
        for bit in (1, 8, 128):
            flipped = bytearray(content)
            flipped[place] ^= bit
            (tmp_path / "a.png").write_bytes(flipped)
            try:
                data = load(DataConfig(source=str(tmp_path)))
            except InputError as error:
                assert "a.png: cannot be decoded" in str(error)
                refused += 1
            else:
                np.testing.assert_array_equal(data["train"].raw[0, 0].numpy(), pixels)
    assert refused > 2 * len(content)


def test_other_content_under_a_pictures_name(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "real.tif")
    message = refusal(tmp_path)
    assert "gone.png: cannot be decoded (No such file" in message and "3 of 3 pictures" in message
    (tmp_path / "gone.png").unlink()
    assert "page.jpg: cannot be decoded" in refusal(tmp_path)
    (tmp_path / "page.jpg").unlink()
    assert "real.tif" in (message := refusal(tmp_path)) and "save it as .npy" in message
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "real.tif")
    assert "beyond 16 bits" in refusal(tmp_path)


def test_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(40, 40).save(tmp_path / "bomb.png")
    picture(8, 8).save(tmp_path / "fine.png")
    for limit in (1000, 500):  # Pillow warns above its limit, and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        message = refusal(tmp_path, size=8)
        assert "bomb.png" in message and "1600 pixels" in message and "1 of 2 pictures" in message


def test_several_sizes_ask_for_one(tmp_path: Path) -> None:
    picture(24, 30).save(tmp_path / "a.png")
    picture(24, 31).save(tmp_path / "b.png")
    message = refusal(tmp_path)
    assert "a.png is 30 x 24" in message and "b.png is 31 x 24" in message and "data.size=64" in message
    assert load(DataConfig(source=str(tmp_path), size=16)).spec.shape == (3, 16, 16)


def test_large_pictures_ask_for_a_size(tmp_path: Path) -> None:
    picture(20, 256).save(tmp_path / "a.png")
    assert load(DataConfig(source=str(tmp_path))).spec.shape == (3, 20, 256)
    picture(20, 257).save(tmp_path / "a.png")
    message = refusal(tmp_path)
    assert "a.png is 257 x 20 pixels, above 256" in message and "data.size=64" in message
