"""Streams: what is read from disk is what would be in memory, in order, once, ahead, in bounded memory."""

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vaelab
from vaelab.config import DataConfig
from vaelab.data import Dataset, DataSpec, Rows, Split, load, prefetch, stream
from vaelab.data.arrays import Mapped
from vaelab.data.stream import split_mix
from vaelab.errors import InputError, VaelabError
from vaelab.evaluation.likelihood import evaluate_model
from vaelab.generation import encode, reconstruct

pytestmark = pytest.mark.usefixtures("without_reports")

RNG = np.random.default_rng(0)


def both(source: object, **keys: object) -> tuple[Dataset, Dataset]:
    """The same data on disk and in memory."""
    configs = [DataConfig.model_validate({"source": str(source), "stream": on} | keys) for on in (True, False)]
    on_disk, in_memory = map(load, configs)
    assert all(split.streams for split in on_disk.splits.values())
    assert not any(split.streams for split in in_memory.splits.values())
    return on_disk, in_memory


def check_equal(on_disk: Dataset, in_memory: Dataset, same_draws: bool = True) -> None:
    """Every split, batch by batch, from the same generator."""
    assert on_disk.spec == in_memory.spec and on_disk.levels == in_memory.levels
    assert on_disk.label_names == in_memory.label_names
    assert list(on_disk.splits) == list(in_memory.splits)
    for name, expected in in_memory.splits.items():
        found = on_disk[name]
        assert found.raw.shape == expected.raw.shape and found.raw.dtype == expected.raw.dtype
        assert (found.labels is None) == (expected.labels is None)
        if found.labels is not None and expected.labels is not None:
            assert torch.equal(found.labels, expected.labels)
        if not same_draws and not expected.dynamic:
            continue
        order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(1))
        a, b = (torch.Generator().manual_seed(2) for _ in range(2))
        for index in order.split(7):
            assert torch.equal(found.batch(index, a), expected.batch(index, b))
            assert torch.equal(found.convert(found.read(index), a), expected.batch(index, b))
        assert torch.equal(found.batch(slice(2, 5), a), expected.batch(slice(2, 5), b))
        assert torch.equal(found.head(4).batch(None, a), expected.batch(slice(4), b))


def save(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


# -- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 7), (60, 5, 4), (60, 3, 5, 4), (60, 5, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", ">u2", "i8", "<f2", ">f4", "f8"])
def test_array_streams_equal_memory(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    drawn = RNG.integers(0, 2 if dtype == "?" else 256 if dtype == "u1" else 60_000, shape)
    values = RNG.normal(size=shape) if "f" in dtype else drawn
    path = save(tmp_path / "x.npy", values.astype(dtype))
    levels = {} if dtype == "?" or "f" in dtype else {"levels": 256 if dtype == "u1" else 65_536}
    for division in ({}, {"validation": 0, "test": 0}, {"validation": 0.3, "test": 0, "seed": 4}):
        check_equal(*both(path, **levels, **division))
    if levels:
        check_equal(*both(path, **levels, values="real"))
        check_equal(*both(path, **levels, binarize="threshold"))
        check_equal(*both(path, **levels, binarize="dynamic"), same_draws=False)


def test_probabilities_are_binarized_when_they_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", RNG.random((60, 9)))
    check_equal(*both(path, binarize="threshold"))
    check_equal(*both(path, binarize="dynamic"), same_draws=False)


def test_small_levels_are_kept_small(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", RNG.integers(0, 17, (40, 6)))
    for levels, dtype in ((17, torch.uint8), (256, torch.uint8), (257, torch.int16), (32_769, torch.int32)):
        raw = load(DataConfig(source=str(path), stream=True, levels=levels))["train"].raw
        assert raw.dtype == dtype and raw.read(torch.tensor([0])).dtype == dtype
    binary = save(tmp_path / "b.npy", RNG.integers(0, 2, (40, 6), dtype=np.uint8))
    check_equal(*both(binary, levels=2))
    assert load(DataConfig(source=str(binary), stream=True)).spec.levels == 256  # no pass is made to find out


def test_an_array_that_is_not_aligned_in_its_file(tmp_path: Path) -> None:
    """The format allows headers of any length; such an array has no row that starts at a multiple of 4 bytes."""
    values = RNG.normal(size=(50, 3)).astype("<f4")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (50, 3)}\n"
    assert len(header) % 4 == 3
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + values.tobytes()
    (tmp_path / "x.npy").write_bytes(content)
    check_equal(*both(tmp_path / "x.npy"))


def test_what_a_stream_gives_is_its_own_memory(tmp_path: Path) -> None:
    split = both(save(tmp_path / "x.npy", RNG.random((30, 4), dtype=np.float32)), validation=0, test=0)[0]["train"]
    before = split.batch()
    for read in (split.read, split.batch):
        read(torch.arange(10)).fill_(9)
    assert torch.equal(split.batch(), before)
    raw = split.read(torch.arange(5))
    kept = raw.clone()
    for changed in (split, Split(split.raw, scale=3), Split(split.raw, dynamic=True)):
        changed.convert(raw, torch.Generator())
        assert torch.equal(raw, kept)


def test_a_nan_is_left_for_the_batch_that_holds_it(tmp_path: Path) -> None:
    values = RNG.normal(size=(40, 2, 3)).astype(np.float64)
    values[17, 1, 2], values[4, 0, 0] = np.nan, 1e300
    config = DataConfig(source=str(save(tmp_path / "x.npy", values)), stream=True, validation=0, test=0)
    split = load(config)["train"]
    bad = [i for i in range(len(split)) if not split.batch(torch.tensor([i])).isfinite().all()]
    assert sorted(split.describe(i) for i in bad) == sorted(f"row {i} of {tmp_path / 'x.npy'}" for i in (17, 4))


def refused(error: type[VaelabError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error and "\n" not in str(caught.value)
    return str(caught.value)


def test_values_out_of_bounds_are_named_when_they_are_read(tmp_path: Path) -> None:
    levels = np.zeros((30, 2, 2), np.int16)
    levels[11, 1, 0] = 17
    real = np.full((30, 3), 0.5)
    real[12, 1] = np.nan
    negative = np.zeros((30, 3), np.int8)
    negative[13] = -1
    for values, keys, parts in (
        (levels, {"levels": 17}, ["row 11 of", "holds 17, not 0 to 16", "data.levels=17"]),
        (levels.astype(np.uint8), {"levels": 17}, ["row 11 of", "holds 17, not 0 to 16"]),
        (negative, {"levels": 2}, ["row 13 of", "holds -1, not 0 to 1"]),
        (real, {"binarize": "dynamic"}, ["row 12 of", "holds nan, not 0 to 1", "data.binarize=dynamic"]),
        (real * 3, {"binarize": "threshold"}, ["row 0 of", "holds 1.5"]),
    ):
        path = save(tmp_path / "x.npy", values)
        config = DataConfig.model_validate({"source": str(path), "stream": True, "validation": 0, "test": 0} | keys)

        def read_all(config: DataConfig = config) -> None:
            split = load(config)["train"]
            for index in torch.arange(30).split(4):
                split.read(index)

        message = refused(InputError, read_all)
        assert [part for part in [str(path), *parts] if part not in message] == []


def test_arrays_that_cannot_stream(tmp_path: Path) -> None:
    def refusal(name: str, **keys: object) -> str:
        return refused(InputError, lambda: load(DataConfig.model_validate({"source": name, "stream": True} | keys)))

    np.savez(tmp_path / "x.npz", x=np.ones((9, 2)))
    message = refusal(str(tmp_path / "x.npz"))
    assert "x.npz" in message and "cannot be streamed" in message and "save its x as .npy" in message
    np.save(tmp_path / "f.npy", np.asfortranarray(RNG.random((9, 4))))
    assert "Fortran order" in (message := refusal(str(tmp_path / "f.npy"))) and "ascontiguousarray" in message
    np.save(tmp_path / "i.npy", np.ones((9, 4), np.int32))
    message = refusal(str(tmp_path / "i.npy"))
    assert "i.npy: int32" in message and "data.levels=N" in message and "data.stream=false" in message
    assert "data.levels=5" in refusal(str(save(tmp_path / "r.npy", RNG.random((9, 4)))), levels=5)
    for name in ("digits", "mnist", "freyfaces"):
        assert f"data.stream=true: {name} is always in memory" in refusal(name)
    for values in (np.zeros((0, 4)), np.zeros((4, 0)), np.zeros(5), np.zeros((4, 5, 8, 2)), np.array([["a"]])):
        path = save(tmp_path / "bad.npy", values)
        in_memory = refused(InputError, lambda path=path: load(DataConfig(source=str(path), stream=False)))
        assert refusal(str(path)) == in_memory
    np.save(tmp_path / "o.npy", np.array([[None]]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("1,2")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "r.npy").read_bytes()[:-1])
    for name in ("o.npy", "text.npy", "cut.npy"):
        assert f"{name}: not a readable array file" in refusal(str(tmp_path / name))


def test_auto_streams_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stream.LARGE == 2**30
    monkeypatch.setattr(stream, "LARGE", 10_000)
    for name, values in {
        "small.npy": np.zeros((98, 100), np.uint8),
        "large.npy": np.zeros((101, 100), np.uint8),
        "fortran.npy": np.asfortranarray(np.zeros((101, 100), np.uint8)),
    }.items():
        split = load(DataConfig(source=str(save(tmp_path / name, values))))["train"]
        assert split.streams == (name == "large.npy")
    np.savez(tmp_path / "x.npz", x=np.zeros((101, 100), np.uint8))
    assert not load(DataConfig(source=str(tmp_path / "x.npz")))["train"].streams
    assert not load(DataConfig(source=str(tmp_path / "large.npy"), stream=False))["train"].streams
    assert not load(DataConfig(source="digits"))["train"].streams
    for i in range(10):
        Image.fromarray(RNG.integers(0, 256, (20, 20), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    keys = {"source": str(tmp_path), "validation": 0, "test": 0}
    for size, color, streams in ((31, False, False), (32, False, True), (18, True, False), (19, True, True)):
        Image.fromarray(RNG.integers(0, 256, (20, 20, 3) if color else (20, 20), dtype=np.uint8)).save(
            tmp_path / "0.png"
        )
        split = load(DataConfig.model_validate(keys | {"size": size}))["train"]
        assert split.streams == streams, (size, color)  # 10 size^2 bytes if grey, 30 size^2 if not
        assert split.raw.shape == (10, 3 if color else 1, size, size)


def test_a_file_that_changes_is_one_line_and_no_crash(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", RNG.integers(0, 256, (4_000, 64, 64), dtype=np.uint8))
    content = path.read_bytes()
    index = torch.arange(0, 3_000, 100)

    def opened() -> Split:
        return load(DataConfig(source=str(path), stream=True))["train"]

    split = opened()
    before = split.read(index)
    os.truncate(path, 100_000)
    assert f"{path}: was replaced or cut" in refused(VaelabError, lambda: split.read(index))
    with path.open("r+b") as file:
        file.write(content)
    assert torch.equal(split.read(index), before)  # it is back
    path.unlink()
    assert f"{path}: cannot be read any more (No such file" in refused(VaelabError, lambda: split.read(index))
    path.write_bytes(content)
    assert torch.equal(opened().read(index), before)
    split = opened()
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "other").replace(path)
    assert "was replaced" in refused(VaelabError, lambda: split.read(index))


# -- draws ---------------------------------------------------------------------------------------------------------


def test_split_mix_gives_the_published_numbers() -> None:
    """Seed 1234567, as in Vigna's splitmix64.c and its ports."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert split_mix(1234567, np.array([0]), 4).tolist() == [published]
    assert split_mix(1234567, np.array([1, 0]), 2).tolist() == [published[2:], published[:2]]


def test_a_static_draw_by_hand(tmp_path: Path) -> None:
    """The page on run folders says enough to draw again: whole numbers of Python, dimension by dimension."""
    values = RNG.integers(0, 256, (6, 10), dtype=np.uint8)
    config = DataConfig(source=str(save(tmp_path / "x.npy", values)), stream=True, binarize="static", seed=7)
    start = int.from_bytes(hashlib.sha256(b"7 binarization").digest()[:8], "big") >> 1

    def word(i: int) -> int:
        v = (start + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
        v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        v = (v ^ v >> 27) * 0x94D049BB133111EB % 2**64
        return v ^ v >> 31

    for split in load(config).splits.values():
        assert isinstance(split.raw, Rows)
        for row, place in zip(split.read().tolist(), split.raw.place(torch.arange(len(split))).tolist(), strict=True):
            for dimension, drawn in enumerate(row):
                u = word(3 * place + dimension // 4) >> 16 * (dimension % 4) & 0xFFFF
                u -= 0x10000 * (u >= 0x8000)
                assert drawn == (65536 * int(values[place, dimension]) / 255 - 32768.5 > u)


def test_static_draws_depend_on_the_position_in_the_source_alone(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (50, 3, 5), dtype=np.uint8)
    path = save(tmp_path / "x.npy", values)
    keys = {"source": str(path), "stream": True, "binarize": "static"}
    whole = load(DataConfig.model_validate(keys | {"validation": 0, "test": 0}))["train"].batch()
    assert set(whole.unique().tolist()) == {0, 1}
    for division in ({}, {"validation": 0.4, "test": 0.2}):
        data = load(DataConfig.model_validate(keys | division))
        dynamic = load(DataConfig.model_validate(keys | division | {"binarize": "dynamic"}))
        for name, split in data.splits.items():
            assert isinstance(split.raw, Rows)
            places = split.raw.place(torch.arange(len(split)))
            for size in (1, 4, 50):
                read = torch.cat([split.batch(index) for index in torch.arange(len(split)).split(size)])
                assert torch.equal(read, whole[places])
            if name != "train":
                assert torch.equal(dynamic[name].batch(), whole[places])
    other = load(DataConfig.model_validate(keys | {"validation": 0, "test": 0, "seed": 1}))["train"].batch()
    assert not torch.equal(other, whole)


def test_fixed_draws_each_example_by_its_position(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", RNG.integers(0, 256, (50, 8), dtype=np.uint8))
    split = load(DataConfig(source=str(path), stream=True, binarize="dynamic"))["train"]
    fixed = split.fixed(3)
    assert torch.equal(fixed.batch(), split.fixed(3).batch()) and not torch.equal(fixed.batch(), split.fixed(4).batch())
    index = torch.tensor([30, 2, 17])
    assert torch.equal(fixed.batch(index), fixed.batch()[index])
    assert torch.equal(fixed.batch(index), split.select(index).fixed(3).batch())
    assert fixed.fixed(9) is fixed and len(fixed) == len(split)


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_frequency_of_a_level(level: int, tmp_path: Path) -> None:
    """400,000 draws: 5 standard deviations; 0 and 255 are certain. Rows and neighbors are independent."""
    path = save(tmp_path / "x.npy", np.full((1_000, 400), level, np.uint8))
    config = DataConfig(source=str(path), stream=True, binarize="static", validation=0, test=0)
    drawn = load(config)["train"].batch().double()
    p, n = level / 255, drawn.numel()
    assert abs(drawn.mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / n)
    if level == 128:
        q = p * p + (1 - p) ** 2  # probability that two independent draws agree
        for a, b in ((drawn[1:], drawn[:-1]), *((drawn[:, k:], drawn[:, :-k]) for k in (1, 2, 3, 4))):
            agreement = (a == b).double().mean().item()
            assert abs(agreement - q) < 5 * math.sqrt(q * (1 - q) / a.numel())


# -- folders -------------------------------------------------------------------------------------------------------


def picture(path: Path, height: int = 12, width: int = 10, color: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3) if color else (height, width), dtype=np.uint8)).save(path)


def test_folder_streams_equal_memory(tmp_path: Path) -> None:
    for i in range(60):
        picture(tmp_path / "ab"[i % 2] / f"{i}.{('png', 'jpg', 'bmp', 'gif')[i % 4]}", color=i % 3 > 0)
    check_equal(*both(tmp_path))
    check_equal(*both(tmp_path, size=8))
    check_equal(*both(tmp_path, size=(9, 14), validation=0, test=0))
    check_equal(*both(tmp_path, binarize="threshold"))
    check_equal(*both(tmp_path, binarize="dynamic"), same_draws=False)


def test_grey_folder_streams_equal_memory(tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / f"{i}.png", color=False)
        if i % 2:
            Image.open(tmp_path / f"{i}.png").convert("RGB").save(tmp_path / f"{i}.png")
    data = both(tmp_path)
    assert data[0].spec == DataSpec((1, 12, 10), "levels", 256)
    check_equal(*data)


def test_pictures_on_their_side_count_with_the_size_they_have_upright(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 12, 10)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        shape = (10, 12, 3) if orientation > 4 else (12, 10, 3)
        for suffix in ("png", "jpg", "tif"):
            Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(
                tmp_path / f"{orientation}.{suffix}", exif=exif
            )
    check_equal(*both(tmp_path, validation=0, test=0))


def test_whether_a_large_folder_is_grey_is_told_from_64_pictures(tmp_path: Path) -> None:
    """Picture 1 of 129 is not among those: it becomes grey. Picture 2 is: then all are color."""
    for i in range(129):
        picture(tmp_path / f"{i:03}.png", 4, 4, color=i == 1)
    split = load(DataConfig(source=str(tmp_path), stream=True, validation=0, test=0))["train"]
    assert split.raw.shape == (129, 1, 4, 4)
    rgb = np.asarray(Image.open(tmp_path / "001.png")).astype(float)
    assert np.abs(split.read(torch.tensor([1]))[0, 0].numpy() - rgb @ [0.299, 0.587, 0.114]).max() <= 1
    for i in (0, 2, 128):
        np.testing.assert_array_equal(
            split.read(torch.tensor([i]))[0, 0], np.asarray(Image.open(tmp_path / f"{i:03}.png"))
        )
    picture(tmp_path / "002.png", 4, 4)
    check_equal(*both(tmp_path, validation=0, test=0))


def test_folders_that_cannot_be_opened(tmp_path: Path) -> None:
    """The same lines as in memory, from the headers alone."""
    picture(tmp_path / "a.png", 24, 30)
    picture(tmp_path / "b.png", 24, 31)

    def refusal(**keys: object) -> str:
        on, off = (
            refused(
                InputError,
                lambda on=on: load(DataConfig.model_validate({"source": str(tmp_path), "stream": on} | keys)),
            )
            for on in (True, False)
        )
        assert on == off
        return on

    assert "a.png is 30 x 24" in (message := refusal()) and "b.png is 31 x 24" in message
    picture(tmp_path / "b.png", 24, 257)
    picture(tmp_path / "a.png", 24, 257)
    assert "a.png is 257 x 24 pixels, above 256" in refusal()
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_text("<html>")
    assert "a.png: cannot be decoded" in (message := refusal()) and "2 of 2 pictures" in message
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    assert "no pictures" in refusal()


def test_a_picture_that_breaks_later_is_named(tmp_path: Path) -> None:
    for i in range(200):
        picture(tmp_path / "cats" / f"{i:03}.png")
    split = load(DataConfig(source=str(tmp_path), stream=True, validation=0, test=0))["train"]
    assert split.describe(101) == "cats/101.png"
    path = tmp_path / "cats" / "101.png"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    for opened in (split, load(DataConfig(source=str(tmp_path), stream=True, validation=0, test=0))["train"]):
        message = refused(InputError, lambda opened=opened: opened.read(torch.arange(90, 110)))
        assert message.startswith(f"{path}: cannot be decoded") and "repair or remove it" in message
    path.unlink()
    assert f"{path}: cannot be read (No such file" in refused(VaelabError, lambda: split.read(torch.tensor([101])))
    picture(path, 12, 11)
    assert "cats/101.png is 11 x 12" in refused(InputError, lambda: split.read(torch.tensor([101])))
    path.write_bytes(content)
    assert split.read(torch.tensor([101])).shape == (1, 3, 12, 10)


# -- the fingerprint -----------------------------------------------------------------------------------------------


def test_fingerprint_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.integers(0, 256, (640, 30), dtype=np.uint8)

    def of(values: np.ndarray, **keys: object) -> str:
        path = save(tmp_path / "x.npy", values)
        return load(DataConfig.model_validate({"source": str(path), "stream": True} | keys)).fingerprint

    first = of(values)
    assert of(values.copy()) == first
    changed, unseen = values.copy(), values.copy()
    changed[0, 29] += 1  # the first row is always in the sample
    unseen[5, 0] += 1  # row 5 is not: rows 0, 10, 20, ..., 639 are
    assert of(unseen) == first
    prints = [
        first,
        of(changed),
        of(values[:-1]),
        of(values.reshape(640, 5, 6)),
        of(values.view(np.int8) & 1, levels=2),
        of(values, seed=1),
        of(values, test=0.2),
        of(values, validation=0.1, test=0),
        of(values, validation=0, test=0.1),
        of(values, binarize="threshold"),
        of(values, binarize="static"),
    ]
    shuffle = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **keys: shuffle(n, **keys).flip(0))  # as another version might
    prints.append(of(values))
    assert len(set(prints)) == len(prints)


def test_fingerprint_of_a_folder_stream(tmp_path: Path) -> None:
    for i in range(200):
        picture(tmp_path / f"{i:03}.bmp")

    def now(**keys: object) -> str:
        return load(DataConfig.model_validate({"source": str(tmp_path), "stream": True} | keys)).fingerprint

    prints = [now(), now(seed=1)]
    assert now() == prints[0]
    picture(tmp_path / "000.bmp")  # in the sample
    prints.append(now())
    (tmp_path / "101.bmp").rename(tmp_path / "101b.bmp")  # only its name
    prints.append(now())
    (tmp_path / "151.bmp").write_bytes((tmp_path / "151.bmp").read_bytes() + b"\0")  # only its size
    prints.append(now())
    (tmp_path / "sub").mkdir()
    for path in tmp_path.glob("*.bmp"):
        path.rename(tmp_path / "sub" / path.name)
    prints.append(now())
    assert len(set(prints)) == len(prints)


# -- reading ahead -------------------------------------------------------------------------------------------------


class Numbers(Rows):
    """Row i holds i; `reading` is called with the positions of each batch as it is read."""

    def __init__(self, n: int, reading: Callable[[Tensor], object] = lambda index: None) -> None:
        self.shape, self.dtype, self.reading = (n, 1), torch.int32, reading

    def read(self, index: Tensor) -> Tensor:
        self.reading(index)
        return index[:, None].to(torch.int32)

    def name(self, index: int) -> str:
        return f"number {index}"


@pytest.fixture
def threads() -> Iterator[Callable[[], int]]:
    """How many reading threads there are; at the end there must be none."""

    def count() -> int:
        return sum(thread.name.startswith("vaelab-read") for thread in threading.enumerate())

    yield count
    assert count() == 0


def test_prefetch_reads_every_batch_once_and_in_order(threads: Callable[[], int]) -> None:
    order = torch.randperm(1_000, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    rows = Numbers(1_000, lambda index: seen.extend(index.tolist()))
    read = [values[:, 0].long() for values in prefetch(Split(rows), order.split(7))]
    assert [len(values) for values in read] == [7] * 142 + [6]
    assert torch.equal(torch.cat(read), order)
    assert sorted(seen) == list(range(1_000))
    view = Split(rows).select(order).select(slice(100, 900)).select(torch.arange(800).flip(0))
    assert torch.equal(torch.cat(list(prefetch(view, torch.arange(800).split(50))))[:, 0], order[100:900].flip(0))
    assert view.describe(0) == f"number {order[899]}"


def test_prefetch_reads_while_a_batch_is_used(threads: Callable[[], int]) -> None:
    """The second batch is read before anybody asks for it."""
    second = threading.Event()
    rows = Numbers(100, lambda index: second.set() if index[0] == 10 else None)
    with closing(prefetch(Split(rows), torch.arange(100).split(10))) as batches:
        next(batches)
        assert second.wait(30)
        assert threads() > 0


def test_prefetch_reads_in_parallel(threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two reads wait for each other: one thread alone would wait for ever."""
    monkeypatch.setattr(stream, "WORKERS", 2)
    meeting = threading.Barrier(2)
    rows = Numbers(80, lambda index: meeting.wait(30))
    assert len(list(prefetch(Split(rows), torch.arange(80).split(10)))) == 8


def test_prefetch_holds_a_few_batches_only(threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WORKERS", 4)
    started: list[int] = []
    asked: list[int] = []

    def batches() -> Iterator[Tensor]:
        for index in torch.arange(1_000).split(10):
            asked.append(int(index[0]))
            yield index

    rows = Numbers(1_000, lambda index: started.append(int(index[0])))
    for used, _ in enumerate(prefetch(Split(rows), batches())):
        assert len(started) <= len(asked) <= used + 5
    assert len(started) == 100


def test_an_error_comes_at_its_batch(threads: Callable[[], int]) -> None:
    def fail(index: Tensor) -> None:
        if 55 in index:
            raise InputError("number 55: damaged")

    batches = prefetch(Split(Numbers(1_000, fail)), torch.arange(1_000).split(10))
    assert [int(next(batches)[0, 0]) for _ in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(InputError, match=r"^number 55: damaged$"):
        next(batches)
    assert threads() == 0


def test_closing_ends_the_threads(threads: Callable[[], int]) -> None:
    seen: list[int] = []
    batches = prefetch(Split(Numbers(10_000, lambda index: seen.append(int(index[0])))), torch.arange(10_000).split(10))
    next(batches)
    batches.close()
    assert threads() == 0 and len(seen) <= stream.WORKERS + 1


def test_prefetch_of_memory_uses_no_thread(threads: Callable[[], int]) -> None:
    split = Split(torch.arange(100)[:, None])
    for index, values in zip(torch.arange(100).split(9), prefetch(split, torch.arange(100).split(9)), strict=True):
        assert torch.equal(values[:, 0], index) and threads() == 0


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path: Path) -> None:
    """All of a file of 400 MB is read; the process never takes 100 MB for it. In memory it would take all."""
    values = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (100_000, 1, 64, 64))
    values[::1000] = 7
    del values
    script = """
import re, sys, torch
from pathlib import Path
from vaelab.config import DataConfig
from vaelab.data import load, prefetch

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3

before = anonymous()
data = load(DataConfig(source=sys.argv[1], stream=sys.argv[2] == "True", validation=0, test=0))
most, total = anonymous(), 0
for raw in prefetch(data["train"], torch.arange(100_000).split(500)):
    total += int(raw.sum())
    most = max(most, anonymous())
print(total, most - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell how much memory a process has")
    for streams in (True, False):
        command = [sys.executable, "-c", script, str(tmp_path / "x.npy"), str(streams)]
        total, megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(total) == 100 * 4096 * 7
        assert (float(megabytes) < 100) == streams, megabytes


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_reports")
@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_a_run_on_a_stream_is_whole(binarize: str, tmp_path: Path) -> None:
    """Trained, reported, read again; its numbers are those of the same examples in memory."""
    digits = load(DataConfig(source="digits", validation=0, test=0))["train"].raw
    assert isinstance(digits, Tensor)
    path = save(tmp_path / "digits.npy", (digits[:600] * 15).numpy())
    keys: dict[str, object] = {"data.stream": True, "data.binarize": binarize, "network.hidden": [16]}
    run = vaelab.train("vae", data=path, epochs=2, out=tmp_path / "run", progress=False, overrides=keys)
    assert all((run.path / name).is_file() for name in ("report.html", "samples.png", "reconstructions.png"))
    data = run.data()
    assert all(split.streams for split in data.splits.values()) and data.fingerprint == run.about["fingerprint"]
    model = vaelab.load(run)
    held_out = data["test"]
    in_memory = Split(held_out.read().clone(), scale=held_out.scale)
    assert not in_memory.streams
    assert vaelab.evaluate(run, 10) == evaluate_model(model, in_memory, 10, split="test")
    assert torch.equal(encode(run, split="test").mean, model.encode(in_memory.batch()).mean)
    made = reconstruct(run, 5)
    assert torch.equal(made.original, in_memory.batch(made.index))
    every = encode(run)
    assert every.mean.shape[0] == 600
    places = held_out.raw.place(torch.arange(len(held_out)))  # type: ignore[union-attr]
    torch.testing.assert_close(every.mean[places], model.encode(in_memory.batch()).mean)
    training = vaelab.evaluate(run, 2, split="train", limit=100)
    assert math.isfinite(training.distortion) and training.n == 100
    changed = np.load(path)
    changed[0] += 1
    np.save(path, changed)
    with pytest.raises(InputError, match="the data have changed"):
        run.data()


def test_a_run_goes_on_when_its_file_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.npy", RNG.integers(0, 256, (300, 8, 8), dtype=np.uint8))
    keys: dict[str, object] = {
        "data.stream": True,
        "network.hidden": [16],
        "training.batch_size": 24,
        "training.checkpoint_seconds": 0,
        "training.precision": "float32",
        "training.threads": 1,
    }

    def train(name: str) -> bytes:
        run = vaelab.train("vae", data=path, epochs=4, out=tmp_path / name, progress=False, overrides=keys)
        return (run.path / "model.safetensors").read_bytes()

    expected = train("whole")
    read, reads = Mapped.read, 0

    def vanish(self: Mapped, index: Tensor) -> Tensor:
        nonlocal reads
        reads += len(index) == 24
        if reads == 25:  # in the third epoch of ten updates each
            path.rename(tmp_path / "away.npy")
        return read(self, index)

    monkeypatch.setattr(Mapped, "read", vanish)
    with pytest.raises(VaelabError, match=f"^{path}: cannot be read any more"):
        train("cut")
    monkeypatch.undo()
    (tmp_path / "away.npy").rename(path)
    run = vaelab.train(out=tmp_path / "cut", resume=True, progress=False)
    assert len(run.metrics()) == 4 and (run.path / "model.safetensors").read_bytes() == expected


@pytest.mark.slow
def test_the_memory_benchmark_runs() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "memory.py"
    done = subprocess.run([sys.executable, script, "--quick", "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["file_bytes"] == 128 + 2_000 * 64 * 64
    assert result["peak_anonymous_bytes"] > 1e8  # torch alone takes that
    assert (
        {"memory", "stream"} == result["small_images_per_second"].keys() == result["small_peak_anonymous_bytes"].keys()
    )
    speeds = [result["stream_vs_memory"], result["overlap_gain"], *result["folder_images_per_second"].values()]
    assert len(speeds) == 6 and all(0 < each["min"] <= each["median"] <= each["max"] for each in speeds)


def test_grey_streams_serve_a_run_of_color_pictures(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.npy", RNG.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
    data = load(DataConfig(source=str(grey), stream=True, validation=0, test=0))["train"]
    expanded = data.expand((3, 8, 8))
    assert expanded.raw.shape == (40, 3, 8, 8)
    index = torch.tensor([3, 39])
    assert torch.equal(expanded.batch(index), data.batch(index).expand(-1, 3, -1, -1))
