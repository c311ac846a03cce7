"""Arrays in .npy and .npz files: shapes, dtypes, levels and labels come through unchanged."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vaelab.config import DataConfig
from vaelab.data import Dataset, DataSpec, load


def save(folder: Path, values: np.ndarray) -> str:
    np.save(folder / "x.npy", values)
    return str(folder / "x.npy")


def whole(source: str, **keys: object) -> Dataset:
    return load(DataConfig.model_validate({"source": source, "validation": 0, "test": 0} | keys))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """A shape as saved, the event shape as read, and whether channels are last in the file."""
    n, height, width = draw(st.tuples(st.integers(1, 6), st.integers(1, 7), st.sampled_from([2, 4, 5, 28])))
    channels = draw(st.sampled_from([1, 3]))
    rows = height if height not in (1, 3) else height + 1  # channels last: axis 1 must not look like channels
    return draw(
        st.sampled_from(
            [
                ((n, width), (width,), False),
                ((n, height, width), (1, height, width), False),
                ((n, channels, height, width), (channels, height, width), False),
                ((n, rows, width, channels), (channels, rows, width), True),
            ]
        )
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_integer_arrays_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape, event, channels_last = data.draw(shapes())
    dtype = data.draw(st.sampled_from(["bool", "u1", "i1", "<i2", ">i2", "<u2", ">u2", "i4", ">u4", "i8", "u8"]))
    top = data.draw(st.sampled_from([1, 16, 127, 255, 256, 32_767, 32_768, 65_535]))
    top = min(top, 1 if dtype == "bool" else int(np.iinfo(dtype).max))
    elements = st.booleans() if dtype == "bool" else st.integers(0, top)
    order = data.draw(st.sampled_from(["C", "F"]))
    values = np.asarray(data.draw(hnp.arrays(dtype, shape, elements=elements)), order=order)
    loaded = whole(save(tmp_path_factory.mktemp("a"), values))

    highest = int(values.max())
    levels = 2 if highest <= 1 else 256 if dtype == "u1" else highest + 1
    assert loaded.spec == DataSpec(event, "binary" if levels == 2 else "levels", levels)
    split = loaded["train"]
    assert split.raw.dtype == (torch.uint8 if highest < 256 else torch.int16 if highest < 32_768 else torch.int32)
    expected = np.moveaxis(values, -1, 1) if channels_last else values
    expected = expected.reshape(len(values), *event).astype(np.int64)
    np.testing.assert_array_equal(split.raw.numpy(), expected)
    batch = split.batch(torch.arange(len(values)))
    np.testing.assert_array_equal(batch.numpy(), expected.astype(np.float32) / np.float32(levels - 1))
    np.testing.assert_array_equal((batch.double() * (levels - 1)).round().numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_float_arrays_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape, event, channels_last = data.draw(shapes())
    dtype = data.draw(st.sampled_from(["<f2", "<f4", ">f4", "<f8", ">f8"]))
    width = np.dtype(dtype).itemsize * 8
    bound = 60_000.0 if width == 16 else 2.0**100
    elements = st.floats(-bound, bound, width=width)  # type: ignore[arg-type]
    values = data.draw(hnp.arrays(dtype, shape, elements=elements))
    loaded = whole(save(tmp_path_factory.mktemp("a"), values))
    assert loaded.spec == DataSpec(event, "real", None)
    expected = np.moveaxis(values, -1, 1) if channels_last else values
    np.testing.assert_array_equal(loaded["train"].batch().numpy(), expected.reshape(-1, *event).astype(np.float32))


def test_which_axis_holds_the_channels(tmp_path: Path) -> None:
    for shape, event in [
        ((5, 3, 8, 9), (3, 8, 9)),
        ((5, 8, 9, 3), (3, 8, 9)),
        ((5, 1, 3, 9), (1, 3, 9)),  # height 3 is no channel axis
        ((5, 8, 3, 1), (1, 8, 3)),
        ((3, 3, 9), (1, 3, 9)),  # rank 3 is always grey
        ((3, 3), (3,)),
    ]:
        values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        loaded = whole(save(tmp_path, values))
        assert loaded.spec.shape == event
        pixel = loaded["train"].batch()[1].flatten()[-1].item()
        assert pixel == values[1].max()  # the last of the second example, wherever the channels are


def test_uint8_pictures_keep_256_levels_and_dark_integers_do_not(tmp_path: Path) -> None:
    assert whole(save(tmp_path, np.array([[0, 5]], np.uint8))).spec.levels == 256
    assert whole(save(tmp_path, np.array([[0, 5]], np.int64))).spec.levels == 6
    assert whole(save(tmp_path, np.array([[0, 1]], np.uint8))).spec.kind == "binary"
    assert whole(save(tmp_path, np.array([[0, 1]], np.uint8)), levels=256).spec == DataSpec((2,), "levels", 256)
    assert whole(save(tmp_path, np.array([[0, 0]], np.int64))).spec.kind == "binary"
    assert whole(save(tmp_path, np.array([[0.0, 1.0]]))).spec.kind == "real"


def test_values_real_on_integers(tmp_path: Path) -> None:
    loaded = whole(save(tmp_path, np.array([[0, 51, 255]], np.uint8)), values="real")
    assert loaded.spec == DataSpec((3,), "real", None)
    np.testing.assert_allclose(loaded["train"].batch().numpy(), [[0, 0.2, 1]], rtol=1e-7)
    binary = whole(save(tmp_path, np.array([[True, False]])), values="real")
    assert binary.spec == DataSpec((2,), "real", None) and binary["train"].batch().tolist() == [[1.0, 0.0]]


def test_npz_examples_and_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    y = np.arange(30, dtype=np.int16) % 7 - 1
    for arrays in ({"x": x, "y": y}, {"X": x, "y": y, "names": np.arange(3)}, {"features": x, "y": y}):
        np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
        split = whole(str(tmp_path / "d.npz"))["train"]
        assert split.labels is not None and split.labels.dtype == torch.int64
        assert split.labels.tolist() == y.tolist()
        np.testing.assert_array_equal(split.raw.numpy(), x.astype(np.float32))
    np.savez_compressed(tmp_path / "d.npz", data=x)
    assert whole(str(tmp_path / "d.npz"))["train"].labels is None


def test_labels_follow_the_random_division(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(40.0)[:, None], y=np.arange(40))
    data = load(DataConfig(source=str(tmp_path / "d.npz"), validation=0.25, test=0.25))
    seen: list[int] = []
    for split in data.splits.values():
        assert split.labels is not None and split.raw[:, 0].tolist() == split.labels.tolist()
        seen += split.labels.tolist()
    assert sorted(seen) == list(range(40)) and seen != list(range(40))


def test_format_counts_and_not_the_name(tmp_path: Path) -> None:
    """A .npz that was saved under the name .npy is read for what it is, and so is the reverse."""
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, x=np.ones((2, 3)), y=np.array([4, 5]))
    labels = whole(str(tmp_path / "a.npy"))["train"].labels
    assert labels is not None and labels.tolist() == [4, 5]
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, np.full((2, 3), 7.0))
    assert whole(str(tmp_path / "b.npz"))["train"].batch().tolist() == [[7.0] * 3] * 2
