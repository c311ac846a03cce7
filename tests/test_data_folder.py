"""Folders of pictures: every format and colour mode comes out as the stated rule says, to the pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.config import DataConfig
from vaelab.data import Dataset, DataSpec, load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 10), dtype=np.uint8)
GREY_20 = RNG.integers(0, 256, (20, 20), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def whole(folder: Path, **keys: object) -> Dataset:
    return load(DataConfig.model_validate({"source": str(folder), "validation": 0, "test": 0} | keys))


def pixels(folder: Path, **keys: object) -> np.ndarray:
    """All pictures of a folder as [N, C, H, W] levels."""
    return whole(folder, **keys)["train"].raw.numpy()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "ppm", "PNG"])
def test_lossless_color_is_exact(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path)[0], COLOR.transpose(2, 0, 1))
    assert whole(tmp_path).spec == DataSpec((3, 12, 10), "levels", 256)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "pgm"])
def test_lossless_grey_is_exact(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path)[0, 0], GREY)
    assert whole(tmp_path).spec == DataSpec((1, 12, 10), "levels", 256)


def test_webp_and_jpeg(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(pixels(tmp_path)[0], COLOR.transpose(2, 0, 1))
    (tmp_path / "a.webp").unlink()
    ramp = np.add.outer(np.arange(12), np.arange(10)).astype(np.uint8) * 10
    for suffix in ("jpg", "jpeg"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}", quality=100)
    # at quality 100 the coefficients are rounded to integers: no pixel is off by more than two levels
    assert np.abs(pixels(tmp_path).astype(int) - ramp).max() <= 2


def test_grey_stored_as_color_is_one_channel(tmp_path: Path) -> None:
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "a.png")
    Image.fromarray(GREY).convert("P").save(tmp_path / "b.png")
    Image.fromarray(GREY).convert("CMYK").save(tmp_path / "c.tif")
    loaded = pixels(tmp_path)
    assert loaded.shape == (3, 1, 12, 10)
    for picture in loaded:
        np.testing.assert_array_equal(picture[0], GREY)


@pytest.mark.parametrize("order", ["acb", "bca"])
def test_one_color_picture_makes_all_rgb(order: str, tmp_path: Path) -> None:
    """Whether the colour picture comes first, in the middle or last."""
    Image.fromarray(GREY).save(tmp_path / f"{order[0]}.png")
    Image.fromarray(COLOR).save(tmp_path / f"{order[1]}.png")
    Image.fromarray(GREY).save(tmp_path / f"{order[2]}.png")
    loaded = pixels(tmp_path)
    assert loaded.shape == (3, 3, 12, 10)
    place = sorted(order).index(order[1])
    np.testing.assert_array_equal(loaded[place], COLOR.transpose(2, 0, 1))
    for i in {0, 1, 2} - {place}:
        np.testing.assert_array_equal(loaded[i], np.stack([GREY] * 3))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.full((12, 10, 1), 51, np.uint8)  # a fifth
    alpha[0], alpha[1] = 0, 255
    Image.fromarray(np.concatenate([COLOR, alpha], -1), "RGBA").save(tmp_path / "a.png")
    expected = 255 + (COLOR.astype(float) - 255) * (alpha / 255)
    loaded = pixels(tmp_path)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(loaded[0], 255)
    np.testing.assert_array_equal(loaded[1], COLOR[1])
    assert np.abs(loaded - expected).max() <= 1  # rounding


def test_transparency_of_grey_and_palette(tmp_path: Path) -> None:
    Image.fromarray(np.stack([GREY, np.zeros_like(GREY)], -1), "LA").save(tmp_path / "a.png")
    palette = Image.new("P", (10, 12))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((3, 2), 1)
    palette.save(tmp_path / "b.png", transparency=0)
    first, second = pixels(tmp_path)
    np.testing.assert_array_equal(first, 255)
    expected = np.full((12, 10, 3), 255)
    expected[2, 3] = (0, 0, 255)
    np.testing.assert_array_equal(second.transpose(1, 2, 0), expected)


def test_palette_and_bilevel_are_expanded(tmp_path: Path) -> None:
    palette = Image.new("P", (10, 12))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((9, 0), 1)
    palette.save(tmp_path / "a.gif")
    loaded = pixels(tmp_path)[0]
    assert loaded[:, 0, 9].tolist() == [200, 100, 50] and loaded[:, 5, 5].tolist() == [10, 20, 30]
    (tmp_path / "a.gif").unlink()
    Image.fromarray(GREY > 99).save(tmp_path / "b.png")
    np.testing.assert_array_equal(pixels(tmp_path)[0, 0], (GREY > 99) * 255)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled(suffix: str, tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257], [32768, 65278, 65406, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path)[0, 0], [[0, 0, 1, 1], [128, 254, 254, 255]])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(COLOR).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path)[0].transpose(1, 2, 0), np.rot90(COLOR, -1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(tmp_path)[0, 0], GREY)


def test_size_covers_then_crops_the_center(tmp_path: Path) -> None:
    wide = np.full((20, 60), 10, np.uint8)
    wide[:, 20:40] = GREY_20
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T).save(tmp_path / "tall.png")
    Image.fromarray(np.full((55, 45), 77, np.uint8)).save(tmp_path / "z.png")
    tall, wide_read, _ = pixels(tmp_path, size=20)[:, 0]
    np.testing.assert_array_equal(wide_read, GREY_20)  # height fits already: nothing is scaled
    np.testing.assert_array_equal(tall, GREY_20.T)
    assert (pixels(tmp_path, size=20)[2] == 77).all()
    assert whole(tmp_path, size=(16, 24)).spec.shape == (1, 16, 24)  # height, width


def test_scaling_is_antialiased(tmp_path: Path) -> None:
    """Stripes one pixel wide become even grey; taking every fourth pixel would give black or white."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    inside = pixels(tmp_path, size=16)[0, 0, :, 2:-2].astype(int)
    assert np.abs(inside - 127.5).max() <= 1


def test_subfolders_are_labels_and_the_order_is_sorted(tmp_path: Path) -> None:
    values = {"b/2.png": 1, "a/10.png": 2, "b/1.png": 3, "a/9.png": 4, "c/x.png": 5}
    for name, level in values.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 2), level, np.uint8)).save(tmp_path / name)
    data = whole(tmp_path)
    assert data.label_names == ("a", "b", "c")
    labels = data["train"].labels
    assert labels is not None and labels.tolist() == [0, 0, 1, 1, 2]
    assert data["train"].raw[:, 0, 0, 0].tolist() == [2, 4, 3, 1, 5]  # a/10, a/9, b/1, b/2, c/x
    Image.fromarray(np.full((2, 2), 6, np.uint8)).save(tmp_path / "top.png")
    data = whole(tmp_path)
    assert data.label_names is None and data["train"].labels is None and len(data["train"]) == 6
    (tmp_path / "top.png").rename(tmp_path / "c" / "y.png")
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "9.png").rename(tmp_path / "a" / "deep" / "9.png")
    assert whole(tmp_path).label_names is None  # one of them lies deeper


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    for hidden in (".b.png", ".thumbnails/c.png", "__x/.d/e.png"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - GREY).save(tmp_path / hidden)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "png").write_text("no picture either")
    loaded = pixels(tmp_path)
    assert len(loaded) == 1
    np.testing.assert_array_equal(loaded[0, 0], GREY)


def test_random_division_of_a_folder(tmp_path: Path) -> None:
    for i in range(150):  # more than one portion of the reader
        Image.fromarray(np.full((2, 3), i, np.uint8)).save(tmp_path / f"{i:03}.png")
    data = load(DataConfig(source=str(tmp_path)))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 120, "validation": 15, "test": 15}
    seen = torch.cat([split.raw[:, 0, 1, 2] for split in data.splits.values()])
    assert sorted(seen.tolist()) == list(range(150)) and seen.tolist() != list(range(150))
    assert pixels(tmp_path)[:, 0, 0, 0].tolist() == list(range(150))
