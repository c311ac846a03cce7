"""Sheets pixel by pixel, heat maps color by color, animations frame by frame."""

import errno
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from vaelab import pictures
from vaelab.errors import InputError
from vaelab.pictures import GAP, GROUND, INK, LINE, MARGIN, TEXT


def random_pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def box(sheet: Image.Image, level: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive) of all pixels of one level."""
    rows, columns = np.nonzero(np.asarray(sheet) == level)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def constant(levels: list[int], height: int = 8, width: int = 8) -> torch.Tensor:
    """One-colored pictures, each of its own level: where they are on a sheet can be found again."""
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 1, height, width)


def test_values_are_clamped_and_rounded_to_the_nearest_level() -> None:
    values = torch.tensor([-1.0, 0.0, 0.2 / 255, 0.6 / 255, 100.4 / 255, 1.0, 7.0])
    assert pictures.to_uint8(values).tolist() == [0, 0, 0, 1, 100, 255, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(("number", "columns", "scale"), [(5, 3, 4), (6, 3, 1), (1, 1, 7), (4, 4, 2)])
def test_every_pixel_of_a_grid(channels: int, mode: str, number: int, columns: int, scale: int) -> None:
    x = random_pictures(number, channels, 6, 5)
    sheet = pictures.grid(x, columns, scale)
    height, width, rows = 6 * scale, 5 * scale, -(-number // columns)
    wanted = np.full(
        (2 * MARGIN + rows * (height + GAP) - GAP, 2 * MARGIN + columns * (width + GAP) - GAP, channels),
        GROUND,
        np.uint8,
    )
    for i in range(number):
        top = MARGIN + i // columns * (height + GAP)
        left = MARGIN + i % columns * (width + GAP)
        for c in range(channels):
            tile = np.kron(np.rint(255 * x[i, c].numpy()), np.ones((scale, scale)))
            wanted[top : top + height, left : left + width, c] = tile
    assert sheet.mode == mode
    assert np.array_equal(np.asarray(sheet).reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("side", "number", "shown"), [(8, 64, 64), (28, 64, 84), (63, 64, 126), (64, 64, 64), (200, 64, 200)]
)
def test_pictures_are_enlarged_by_a_whole_factor_to_at_least_64_pixels(side: int, number: int, shown: int) -> None:
    sheet = pictures.grid(torch.zeros(number, 1, side, side))
    assert sheet.size == (2 * MARGIN + 8 * (shown + GAP) - GAP,) * 2


def test_few_pictures_are_enlarged_further_but_not_without_limit() -> None:
    left, top, right, bottom = box(pictures.grid(constant([1])), 1)
    assert right - left == bottom - top == 256
    left, top, right, bottom = box(pictures.grid(constant([1], height=64, width=4)), 1)
    assert (right - left, bottom - top) == (16, 256)


@pytest.mark.parametrize(
    ("number", "columns"), [(1, 1), (2, 2), (7, 3), (8, 4), (10, 5), (12, 4), (16, 4), (18, 6), (64, 8)]
)
def test_columns_fill_the_last_row_where_they_can(number: int, columns: int) -> None:
    sheet = pictures.grid(torch.zeros(number, 1, 64, 64), scale=2)
    assert sheet.width == 2 * MARGIN + columns * (128 + GAP) - GAP


def test_a_caption_leaves_the_pictures_alone_and_wraps() -> None:
    x = random_pictures(4, 1, 8, 8)
    bare = np.asarray(pictures.grid(x, 2, 30))
    heights: list[int] = []
    for words in (1, 100):
        sheet = np.asarray(pictures.grid(x, 2, 30, caption=" ".join(["word"] * words)))
        assert sheet.shape[1] == bare.shape[1]
        assert np.array_equal(sheet[: len(bare)], bare)
        text = sheet[len(bare) :]
        assert text.min() < INK + 30
        assert (text[:, :MARGIN] == GROUND).all()
        assert (text[:, -MARGIN:] == GROUND).all()
        assert (text[-4:] == GROUND).all()
        heights.append(len(text))
    lines = (heights[1] - heights[0]) / LINE + 1
    assert lines == int(lines)
    # 100 words of `word ` at TEXT pixels: each letter is between 0.3 and 0.9 of that wide.
    assert 0.3 < lines * (bare.shape[1] - 2 * MARGIN) / (500 * TEXT) < 0.9


def test_a_line_break_in_a_caption_breaks_the_line() -> None:
    x = torch.zeros(4, 1, 8, 8)
    assert pictures.grid(x, caption="a\nb").height == pictures.grid(x, caption="a b").height + LINE


def test_a_small_sheet_is_widened_for_its_caption() -> None:
    sheet = np.asarray(
        pictures.grid(torch.zeros(1, 1, 8, 8), scale=1, caption="some words that are wider than 8 pixels")
    )
    assert sheet.shape[1] == 340
    assert (sheet[:32, 2 * MARGIN :] == GROUND).all()
    word = "w" * 80
    assert pictures.grid(torch.zeros(1, 1, 8, 8), scale=1, caption=word).width > 80 * 8


def test_the_share_of_values_outside_is_stated() -> None:
    x = torch.full((1, 1, 10, 10), 0.5)
    x.view(-1)[:25] = 1.5
    x.view(-1)[25:30] = -0.2
    clamped, caption = pictures.clamp(x, "These")
    assert caption == "These. 30.0 % of the values lie outside [0, 1] and are clamped."
    assert torch.equal(clamped.view(-1), torch.tensor([1.0] * 25 + [0.0] * 5 + [0.5] * 70))
    sheet, told = pictures.grid(x, caption="These"), pictures.grid(clamped, caption=caption)
    assert np.array_equal(np.asarray(sheet), np.asarray(told))


def test_a_tiny_share_is_not_rounded_to_nothing() -> None:
    x = torch.zeros(1, 1, 100, 100)
    x[0, 0, 0, 0] = 2
    assert pictures.clamp(x)[1] == "Fewer than 0.1 % of the values lie outside [0, 1] and are clamped."


def test_rounding_errors_are_not_called_values_outside() -> None:
    assert pictures.clamp(torch.tensor([-0.001, 1.001]), "All")[1] == "All"


def test_labels_stand_above_and_leave_the_pictures_whole() -> None:
    levels = list(range(6))
    sheet = pictures.grid(constant(levels), 3, 4, labels=["a", "a wide label", "c"])
    boxes = [box(sheet, level) for level in levels]
    assert all((right - left, bottom - top) == (32, 32) for left, top, right, bottom in boxes)
    tops = [top for _, top, _, _ in boxes]
    assert tops == [MARGIN + LINE] * 3 + [MARGIN + LINE + 32 + GAP] * 3  # no space for labels that the row has not
    centers = [(left + right) / 2 for left, _, right, _ in boxes]
    assert centers[:3] == centers[3:]
    assert centers[1] - centers[0] > 80  # as wide as "a wide label"
    heading = np.asarray(sheet)[MARGIN : MARGIN + LINE]
    inked = [np.nonzero(heading[:, round(c) - 40 : round(c) + 40] < 128)[1] for c in centers[1:3]]
    for columns in inked:
        assert abs((columns.min() + columns.max()) / 2 - 40) <= 1.5  # centered above its picture


def test_row_labels_stand_left_of_their_rows() -> None:
    levels = [250, 251, 252]
    sheet = pictures.grid(constant(levels), 1, 8, row_labels=["first", "a longer one"])
    boxes = [box(sheet, level) for level in levels]
    left = boxes[0][0]
    pixels = np.asarray(sheet)
    assert left > 80
    for (_, top, _, bottom), has_label in zip(boxes, (True, True, False), strict=True):
        rows, columns = np.nonzero(pixels[top:bottom, :left] < 128)
        assert bool(len(rows)) == has_label
        if has_label:
            assert columns.max() > left - 4 * GAP  # to the right, beside the picture
            assert columns.min() >= MARGIN - 1
            assert abs(rows.mean() - 32) < 5


def test_originals_stand_above_their_reconstructions() -> None:
    original, reconstruction = list(range(10)), list(range(240, 250))
    sheet = pictures.pairs(constant(original[:9]), constant(reconstruction[:9]), columns=4)
    x0, y0, x1, _ = box(sheet, 0)
    size = x1 - x0 + GAP
    for i in range(9):
        row, column = divmod(i, 4)
        left, top = x0 + column * size, y0 + row * (2 * size + 2 * GAP)
        assert box(sheet, original[i])[:2] == (left, top)
        assert box(sheet, reconstruction[i]) == (left, top + size, left + size - GAP, top + 2 * size - GAP)
    tail = np.asarray(sheet)[y0 + 2 * (2 * size + 2 * GAP) :, x0 + size :]
    assert (tail == GROUND).all()  # the unfinished row


def test_a_heat_map_shows_signed_values_around_white() -> None:
    values = torch.zeros(10, 20)
    values[:5, :10], values[5:, 10:] = -1, 2
    pixels = np.asarray(pictures.heatmap(values))
    plot = pixels[:, : int(pixels.shape[1] * 0.8)]  # without the color bar
    colors = (255 * mpl.colormaps["RdBu_r"]([0.25, 0.5, 1.0])[:, :3]).astype(np.uint8)
    found: list[Any] = []
    for color in colors:
        rows, columns = np.nonzero((np.abs(plot.astype(int) - color) <= 1).all(-1))
        assert len(rows) > 5000
        found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    low, zero, high = found
    assert low[:2] == zero[:2]  # the upper left quarter: begins where the upper right one does in height,
    assert abs(low[2] - high[0]) <= 1  # and ends where the lower right one begins
    assert abs(low[3] - high[1]) <= 1
    assert high[2:] == zero[2:]
    assert abs((low[3] - low[1]) - (high[3] - high[1])) <= 1


def test_an_outlier_does_not_hide_the_other_values() -> None:
    values = torch.arange(400.0).view(20, 20) / 400
    tame = np.asarray(pictures.heatmap(values)).astype(int)
    values[0, 0] = 1e6
    wild = np.asarray(pictures.heatmap(values)).astype(int)
    assert tame.shape == wild.shape
    assert np.abs(tame[200:300, 100:500] - wild[200:300, 100:500]).max() <= 8


def test_a_heat_map_of_equal_values_can_be_drawn() -> None:
    assert pictures.heatmap(torch.full((3, 4), 7.0), "all the same").width == 760


def test_rows_of_a_heat_map_are_divided_into_named_blocks() -> None:
    values = torch.ones(30, 8)
    values[:, 0] = 0
    plain, named = (pictures.heatmap(values, row_labels=names).convert("L") for names in ((), ("above", "below")))
    assert np.asarray(named).shape == np.asarray(plain).shape
    columns = np.asarray(named)[:, 300]
    (lines,) = np.nonzero(columns < 40)
    assert len(lines) == pytest.approx(4, abs=2)  # frame above, frame below, and the line between
    inside = lines[(lines > lines.min() + 5) & (lines < lines.max() - 5)]
    assert inside.mean() == pytest.approx((lines.min() + lines.max()) / 2, abs=2)


# -- files ---------------------------------------------------------------------------------------------------------


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int], int]:
    with Image.open(path) as film:
        arrays, durations = [], []
        for index in range(film.n_frames):
            film.seek(index)
            durations.append(film.info["duration"])
            arrays.append(np.asarray(film.convert("RGB")))
        return arrays, durations, film.info["loop"]


def test_grey_frames_survive_an_animation_exactly(tmp_path: Path) -> None:
    levels = torch.arange(256).view(1, 1, 16, 16) / 255
    sheets = [pictures.grid(levels.roll(shift, -1), scale=2) for shift in range(5)]
    pictures.animation(sheets, tmp_path / "film.gif", 0.25)
    frames, durations, loop = frames_of(tmp_path / "film.gif")
    assert loop == 0  # endless
    assert durations == [250] * 5
    for frame, sheet in zip(frames, sheets, strict=True):
        assert np.array_equal(frame, np.asarray(sheet.convert("RGB")))


def test_frames_of_few_colors_survive_exactly_and_of_many_nearly(tmp_path: Path) -> None:
    few = (random_pictures(3, 3, 8, 8) * 3).floor() / 3
    smooth = torch.stack(torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij"))
    many = torch.stack([torch.cat((smooth, torch.full((1, 32, 32), b))) for b in (0.2, 0.5, 0.8)])
    for x, largest, typical in ((few, 0, 0), (many, 64, 11)):
        sheets = [pictures.grid(one[None], caption="colors") for one in x]
        pictures.animation(sheets, tmp_path / "film.gif", 0.1)
        frames, _, _ = frames_of(tmp_path / "film.gif")
        assert len({color for frame in frames for color in map(tuple, frame.reshape(-1, 3))}) <= 256
        for frame, sheet in zip(frames, sheets, strict=True):
            error = np.abs(frame.astype(int) - np.asarray(sheet))
            assert error.max() <= largest
            assert error.mean() <= typical


def test_frames_of_several_sizes_are_padded(tmp_path: Path) -> None:
    sheets = [pictures.grid(constant([level]), scale=4, caption=text) for level, text in ((0, "a"), (9, "a\nb\nc"))]
    pictures.animation(sheets, tmp_path / "film.gif", 0.1)
    (first, second), _, _ = frames_of(tmp_path / "film.gif")
    assert first.shape == second.shape == (sheets[1].height, sheets[1].width, 3)
    assert np.array_equal(first[: sheets[0].height, :, 0], np.asarray(sheets[0]))
    assert (first[sheets[0].height :] == GROUND).all()


def test_a_saved_sheet_is_read_back_exactly(tmp_path: Path) -> None:
    sheet = pictures.grid(random_pictures(4, 3, 8, 8), caption="four")
    pictures.save(sheet, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as read:
        assert np.array_equal(np.asarray(read), np.asarray(sheet))


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_full_disk_leaves_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    path.write_bytes(b"the last good one")

    def fill(self: Image.Image, file: Path, **_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    sheet = pictures.grid(torch.zeros(1, 1, 8, 8))
    with pytest.raises(OSError, match="No space left"):
        pictures.save(sheet, path) if ending == "png" else pictures.animation([sheet], path, 0.1)
    assert path.read_bytes() == b"the last good one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("folder", ["folder", "is a folder"]),
        ("folder.png", ["folder.png", "is a folder"]),
        ("missing/a.png", ["missing/a.png", "no folder missing"]),
        ("a.jpg", ["a.jpg", ".png, .gif or .npz"]),
        ("a", ["a:", ".png, .gif or .npz"]),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(tmp_path: Path, out: str, words: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError) as caught:
        pictures.output_path(out, ".png", ".gif", ".npz")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_endings_may_be_in_capitals() -> None:
    assert pictures.output_path("a.PNG", ".png", ".npz") == Path("a.PNG")


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (0, 1, 8, 8), (3, 8, 8), (2, 5)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be drawn"):
        pictures.grid(torch.zeros(shape))


def test_a_gigantic_sheet_is_refused_before_it_is_made() -> None:
    with pytest.raises(InputError, match=r"^30000 pictures make a sheet of .*; show fewer, or write \.npz$"):
        pictures.grid(torch.zeros(30_000, 1, 8, 8))
