"""Data sets by `hf:`: folders on disk, without network. What `datasets` stores comes out as the same array would."""

import json
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vaelab
from vaelab.config import DataConfig
from vaelab.data import Dataset, DataSpec, Rows, load, prefetch, settled, sources, stream
from vaelab.errors import InputError, VaelabError
from vaelab.generation import encode

pytestmark = pytest.mark.usefixtures("without_reports")

hf: Any = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)
NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, and a cache of its own."""
    import huggingface_hub.constants

    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hf.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")
    hf.disable_progress_bars()
    yield
    hf.enable_progress_bars()


def read(source: object, **keys: object) -> Dataset:
    return load(DataConfig.model_validate({"source": f"hf:{source}"} | keys))


def refusal(source: object, error: type[VaelabError] = InputError, **keys: object) -> str:
    with pytest.raises(error) as caught:
        read(source, **keys)
    assert type(caught.value) is error and "\n" not in str(caught.value)
    return str(caught.value)


def pictures(n: int, height: int = 6, width: int = 5, color: bool = True) -> np.ndarray:
    return RNG.integers(0, 256, (n, height, width, 3) if color else (n, height, width), dtype=np.uint8)


def table(values: np.ndarray, labels: list[int] | None = None, **columns: list[Any]) -> Any:
    """A table of pictures, of class labels if there are any, and of other columns."""
    features: dict[str, Any] = {"image": hf.Image()}
    content: dict[str, Any] = {"image": [Image.fromarray(value) for value in values]}
    if labels is not None:
        features["label"], content["label"] = hf.ClassLabel(names=NAMES), labels
    made = hf.Dataset.from_dict(content, features=hf.Features(features))
    for name, column in columns.items():
        made = made.add_column(name, column)
    return made


def arrays(column: list[Any] | np.ndarray, kind: Any, **columns: list[Any]) -> Any:
    made = hf.Dataset.from_dict({"v": list(column)}, features=hf.Features({"v": kind}))
    for name, other in columns.items():
        made = made.add_column(name, other)
    return made


def check_same(source: object, expected: np.ndarray, **keys: object) -> tuple[Dataset, Dataset]:
    """Streamed and in memory, all examples in the order of the source are `expected` [N, *event]."""
    found = tuple(read(source, stream=on, validation=0, test=0, **keys) for on in (True, False))
    for data, streams in zip(found, (True, False), strict=True):
        assert data["train"].streams == streams
        raw = data["train"].read()
        np.testing.assert_array_equal(raw.numpy(), expected)
        index = torch.tensor([len(expected) - 1, 0, 2, 2])
        assert torch.equal(data["train"].read(index), raw[index])
        assert torch.equal(torch.cat(list(prefetch(data["train"], torch.arange(len(raw)).split(4)))), raw)
    assert found[0].spec == found[1].spec and found[0].levels == found[1].levels
    return found


# -- what x is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dataset", "dict", "parquet"])
def test_pictures_and_classes(form: str, tmp_path: Path) -> None:
    values, labels = pictures(40), RNG.integers(0, 3, 40).tolist()
    made = table(values, labels, caption=["words"] * 40)
    folder = tmp_path / "set"
    if form == "dataset":
        made.save_to_disk(folder, num_shards=3)
    elif form == "dict":
        hf.DatasetDict({"train": made}).save_to_disk(folder)
    else:
        made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    for data in check_same(folder, values.transpose(0, 3, 1, 2)):
        assert data.spec == DataSpec((3, 6, 5), "levels", 256) and data.label_names == tuple(NAMES)
        assert data["train"].labels is not None and data["train"].labels.tolist() == labels
    resized = [read(folder, stream=on, size=4) for on in (True, False)]
    for name in ("train", "validation", "test"):
        assert torch.equal(resized[0][name].read(), resized[1][name].read())
        assert resized[0][name].raw.shape[1:] == (3, 4, 4)
        a, b = resized[0][name].labels, resized[1][name].labels
        assert a is not None and b is not None and torch.equal(a, b)


def test_grey_pictures_and_files_beside_the_table(tmp_path: Path) -> None:
    """Pictures may be stored as paths; those of one channel stay so."""
    values = pictures(8, color=False)
    paths: list[str] = []
    for i, value in enumerate(values):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(value).convert("RGB").save(paths[-1])
    features = hf.Features({"image": hf.Image()})
    hf.Dataset.from_dict({"image": paths}, features=features).save_to_disk(tmp_path / "set")
    stored = hf.load_from_disk(str(tmp_path / "set")).cast_column("image", hf.Image(decode=False))[0]["image"]
    assert stored["bytes"] is not None or Path(stored["path"]).is_file()
    assert check_same(tmp_path / "set", values[:, None])[0].spec.shape == (1, 6, 5)


@pytest.mark.parametrize(
    ("kind", "shape", "event"),
    [
        (lambda: hf.List(hf.Value("uint8")), (9, 7), (7,)),
        (lambda: hf.List(hf.Value("uint8"), length=7), (9, 7), (7,)),
        (lambda: hf.LargeList(hf.Value("uint8")), (9, 7), (7,)),
        (lambda: hf.List(hf.List(hf.Value("uint8"))), (9, 7, 4), (1, 7, 4)),
        (lambda: hf.Array2D((7, 4), "uint8"), (9, 7, 4), (1, 7, 4)),
        (lambda: hf.Array3D((3, 7, 4), "uint8"), (9, 3, 7, 4), (3, 7, 4)),
        (lambda: hf.Array3D((7, 4, 3), "uint8"), (9, 7, 4, 3), (3, 7, 4)),
    ],
    ids=["list", "fixed", "large", "nested", "2d", "3d", "channels-last"],
)
def test_arrays_of_every_kind(kind: Any, shape: tuple[int, ...], event: tuple[int, ...], tmp_path: Path) -> None:
    values = RNG.integers(0, 256, shape, dtype=np.uint8)
    arrays(values, kind()).save_to_disk(tmp_path / "set", num_shards=2)
    expected = np.moveaxis(values, -1, 1) if shape[1:] == (7, 4, 3) else values
    for data in check_same(tmp_path / "set", expected.reshape(9, *event)):
        assert data.spec == DataSpec(event, "levels", 256) and data["train"].labels is None


def test_types_follow_the_rule_of_npy_files(tmp_path: Path) -> None:
    real = RNG.normal(size=(9, 4))
    for dtype in ("float16", "float32", "float64"):
        arrays(real.astype(dtype), hf.List(hf.Value(dtype))).save_to_disk(tmp_path / dtype)
        data = check_same(tmp_path / dtype, real.astype(dtype).astype(np.float32))
        assert data[0].spec == DataSpec((4,), "real", None)
    wide = RNG.integers(0, 900, (9, 4))
    arrays(wide, hf.List(hf.Value("int64")), y=list(range(9))).save_to_disk(tmp_path / "wide")
    data = check_same(tmp_path / "wide", wide, levels=900)
    labels = data[0]["train"].labels
    assert labels is not None and labels.tolist() == list(range(9)) and data[0].label_names is None
    assert read(tmp_path / "wide").levels == wide.max() + 1
    message = refusal(tmp_path / "wide", stream=True)
    assert "int64 in a stream" in message and "data.levels=N" in message
    bits = RNG.random((9, 4)) < 0.5
    arrays(bits, hf.List(hf.Value("bool"))).save_to_disk(tmp_path / "bits")
    assert check_same(tmp_path / "bits", bits)[0].spec == DataSpec((4,), "binary", 2)


def test_auto_streams_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGE", 10_000)
    arrays(RNG.integers(0, 256, (100, 100), dtype=np.uint8), hf.List(hf.Value("uint8"))).save_to_disk(tmp_path / "a")
    arrays(RNG.integers(0, 256, (101, 100), dtype=np.uint8), hf.List(hf.Value("uint8"))).save_to_disk(tmp_path / "b")
    table(pictures(40, 10, 8)).save_to_disk(tmp_path / "c")
    table(pictures(40, 10, 9)).save_to_disk(tmp_path / "d")
    assert [read(tmp_path / name)["train"].streams for name in "abcd"] == [False, True, False, True]


# -- splits and labels ---------------------------------------------------------------------------------------------


def levels_of(data: Dataset, name: str) -> list[int]:
    """Each example of these tests is one level, its number in the source."""
    return data[name].read().flatten(1)[:, 0].tolist()


def numbered(**sizes: int) -> Any:
    """Splits of 1-by-2 arrays that are numbered on from split to split."""
    start, made = 0, {}
    for name, size in sizes.items():
        column = [[number, 1000] for number in range(start, start + size)]
        made[name] = arrays(column, hf.List(hf.Value("int16")))
        start += size
    return hf.DatasetDict(made)


@pytest.mark.parametrize("streams", [True, False])
def test_own_splits_are_kept(streams: bool, tmp_path: Path) -> None:
    numbered(train=50, dev=10, test=20, unlabeled=5).save_to_disk(tmp_path / "set")
    keys: dict[str, Any] = {"levels": 1001, "stream": streams}
    data = read(tmp_path / "set", **keys)
    assert {name: levels_of(data, name) for name in data.splits} == {
        "train": list(range(50)),
        "validation": list(range(50, 60)),
        "test": list(range(60, 80)),
    }
    assert levels_of(read(tmp_path / "set", test=0, **keys), "train") == [*range(50), *range(60, 80)]
    assert list(read(tmp_path / "set", test=0, **keys).splits) == ["train", "validation"]
    assert levels_of(read(tmp_path / "set", test=0, validation=0, **keys), "train") == list(range(80))
    message = refusal(tmp_path / "set", validation=0.2, **keys)
    assert "data.validation=0.2" in message and "has its own 10 validation examples" in message


@pytest.mark.parametrize("streams", [True, False])
def test_missing_splits_are_divided_off_training(streams: bool, tmp_path: Path) -> None:
    numbered(train=50, test=20).save_to_disk(tmp_path / "set")
    keys: dict[str, Any] = {"levels": 1001, "stream": streams}
    data = read(tmp_path / "set", **keys)
    assert levels_of(data, "test") == list(range(50, 70))
    train, validation = levels_of(data, "train"), levels_of(data, "validation")
    assert len(validation) == 5 and sorted(train + validation) == list(range(50)) and train != sorted(train)
    assert len(read(tmp_path / "set", validation=0.2, **keys)["validation"]) == 10
    assert levels_of(read(tmp_path / "set", validation=0.2, seed=1, **keys), "validation") != validation
    undivided = read(tmp_path / "set", validation=0, **keys)
    assert levels_of(undivided, "train") == list(range(50)) and list(undivided.splits) == ["train", "test"]
    more = read(tmp_path / "set", test=0, **keys)  # its test examples are trained on, after the others
    assert levels_of(more, "train") == [*train, *range(50, 70)] and levels_of(more, "validation") == validation


def test_one_split_of_any_name_is_divided_like_a_file(tmp_path: Path) -> None:
    numbered(everything=50).save_to_disk(tmp_path / "set")
    data = read(tmp_path / "set", levels=1001)
    np.save(tmp_path / "x.npy", np.array([[number, 1000] for number in range(50)], np.int16))
    same = load(DataConfig(source=str(tmp_path / "x.npy"), levels=1001))
    assert {name: levels_of(data, name) for name in data.splits} == {n: levels_of(same, n) for n in same.splits}
    numbered(first=5, second=5).save_to_disk(tmp_path / "two")
    assert "none of its splits is called train; it has first, second" in refusal(tmp_path / "two")
    numbered(train=5, val=5, dev=5).save_to_disk(tmp_path / "three")
    assert "which of its splits is validation? It has val, dev" in refusal(tmp_path / "three")


def test_rows_are_named_by_their_split(tmp_path: Path) -> None:
    numbered(train=50, test=20).save_to_disk(tmp_path / "set")
    data = read(tmp_path / "set", levels=1001, stream=True)
    assert data["test"].describe(3) == f"row 3 of test in hf:{tmp_path / 'set'}"
    place = levels_of(data, "train")[7]
    assert data["train"].describe(7) == f"row {place} of train in hf:{tmp_path / 'set'}"


def test_which_column_is_the_label(tmp_path: Path) -> None:
    values = pictures(6)
    classes = hf.ClassLabel(names=NAMES)
    for number, (made, labels, names) in enumerate(
        [
            (table(values, y=[5, 4, 3, 2, 1, 0]), [5, 4, 3, 2, 1, 0], None),
            (table(values, kind=[0, 1, 2, 0, 1, 2]).cast_column("kind", classes), [0, 1, 2, 0, 1, 2], tuple(NAMES)),
            (table(values, [2] * 6, kind=[0] * 6).cast_column("kind", classes), [2] * 6, tuple(NAMES)),
            (table(values, age=[3] * 6), None, None),  # integers of another name
            (table(values, label=["a"] * 6), None, None),
            (table(values, a=[0] * 6, b=[0] * 6).cast_column("a", classes).cast_column("b", classes), None, None),
            (table(values, y=[1, None, 2, 0, 1, 2]), None, None),  # a gap
            (table(values, [-1, 0, 1, 2, 1, 0]), [-1, 0, 1, 2, 1, 0], None),  # −1 is no class
        ]
    ):
        made.save_to_disk(tmp_path / str(number))
        data = read(tmp_path / str(number), validation=0, test=0)
        found = data["train"].labels
        assert (None if found is None else found.tolist(), data.label_names) == (labels, names), number


# -- errors --------------------------------------------------------------------------------------------------------


def test_columns_that_leave_x_open(tmp_path: Path) -> None:
    values = pictures(6)
    two = table(values).add_column("mask", [None] * 6).cast_column("mask", hf.Image())
    two.save_to_disk(tmp_path / "two")
    message = refusal(tmp_path / "two")
    assert "which column holds the examples? It has image, mask" in message and "select_columns" in message
    hf.Dataset.from_dict({"a": [[1, 2]], "b": [[3, 4]], "c": ["x"]}).save_to_disk(tmp_path / "lists")
    assert "It has a, b;" in refusal(tmp_path / "lists")
    hf.Dataset.from_dict({"text": ["x"], "label": [1]}).save_to_disk(tmp_path / "text")
    assert "no column of pictures or of arrays of numbers; it has text, label" in refusal(tmp_path / "text")
    table(values).select(range(0)).save_to_disk(tmp_path / "empty")
    assert "empty" in refusal(tmp_path / "empty")


def test_rows_that_are_no_examples(tmp_path: Path) -> None:
    for name, column, part in (
        ("ragged", [[1, 2], [3, 4], [5]], "row 2 of train in .*: has another shape"),
        ("gap", [[1, 2], [3, None], [5, 6]], "row 1 of train in .*: has gaps"),
        ("none", [[1, 2], None, [5, 6]], "row 1 of train in .*: has no value"),
        ("nested", [[[1, 2], [3, 4]], [[1, 2], [3]], [[1, 2], [3, 4]]], "row 1 of train in .*: has another shape"),
    ):
        hf.Dataset.from_dict({"v": column}).save_to_disk(tmp_path / name)
        with pytest.raises(InputError, match=part):
            read(tmp_path / name, stream=False)
        with pytest.raises(InputError, match=part):  # a stream of three rows is read for its fingerprint
            read(tmp_path / name, stream=True, levels=9)
    column = [[i, 1] for i in range(200)]
    column[102] = [1, 2, 3]
    hf.Dataset.from_dict({"v": column}).save_to_disk(tmp_path / "later")
    split = read(tmp_path / "later", stream=True, levels=200, validation=0, test=0)["train"]
    with pytest.raises(InputError, match="^row 102 of train in .*: has another shape than the first row"):
        split.read(torch.arange(90, 110))
    message = refusal(tmp_path / "gap", size=8)
    assert "data.size=8: only pictures are resized" in message


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    stored = [{"bytes": encoded(value), "path": None} for value in pictures(200)]
    stored[101]["bytes"] = stored[101]["bytes"][:60]
    features = hf.Features({"image": hf.Image()})
    hf.Dataset.from_dict({"image": stored}, features=features).save_to_disk(tmp_path / "set")
    name = f"row 101 of train in hf:{tmp_path / 'set'}"
    message = refusal(tmp_path / "set")
    assert message.startswith(f"{name}: cannot be decoded") and "1 of 200 pictures" in message
    split = read(tmp_path / "set", stream=True, validation=0, test=0)["train"]
    assert split.read(torch.arange(100)).shape == (100, 3, 6, 5)
    with pytest.raises(InputError, match=f"^{name}: cannot be decoded"):
        split.read(torch.arange(100, 110))
    stored[101]["bytes"] = encoded(pictures(1, 7)[0])
    hf.Dataset.from_dict({"image": stored}, features=features).save_to_disk(tmp_path / "sizes")
    split = read(tmp_path / "sizes", stream=True, validation=0, test=0)["train"]
    with pytest.raises(InputError, match="pictures of several sizes.*row 101.*is 5 x 7.*data.size=64"):
        split.read(torch.arange(100, 110))


def encoded(value: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(value).save(buffer, "png")
    return buffer.getvalue()


def test_a_table_that_is_cut_is_one_line_and_no_crash(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (3_000, 1_000), dtype=np.uint8)
    arrays(values, hf.List(hf.Value("uint8"), length=1_000)).save_to_disk(tmp_path / "set")
    split = read(tmp_path / "set", stream=True)["train"]
    split.read(torch.tensor([0]))
    (file,) = (tmp_path / "set").glob("*.arrow")
    with file.open("r+b") as opened:
        opened.truncate(10_000)
    with pytest.raises(VaelabError, match=f"{file}: was replaced or cut"):
        split.read(torch.arange(2_000, 2_100))


def test_sources_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal("owner/name", VaelabError)
    assert message.startswith("hf:owner/name: the Hugging Face Hub cannot be reached") and "hf:./folder" in message
    for source in (tmp_path / "none", "./none", "~/no-such-folder"):
        assert refusal(source) == f"hf:{source}: no such folder"
    (tmp_path / "text").mkdir()
    assert f"hf:{tmp_path / 'text'}: cannot be read as a data set" in refusal(tmp_path / "text")
    (tmp_path / "text" / "a.txt").write_text("words")
    assert "its format is text; only parquet, arrow, imagefolder, csv, json are read" in refusal(tmp_path / "text")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_bytes(b"PAR1 no parquet")
    assert f"hf:{tmp_path / 'bad'}: cannot be read as a data set" in refusal(tmp_path / "bad")

    def gone(name: str) -> None:
        raise hf.exceptions.DatasetNotFoundError(name)

    monkeypatch.setattr(hf, "load_dataset_builder", gone)
    assert "no such data set on the Hub, or it is private or gated" in refusal("owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("owner/name", VaelabError) == (
        'hf:owner/name: needs the library datasets; pip install "vaelab[hub]"'
    )


def test_no_code_of_a_data_set_is_executed(tmp_path: Path) -> None:
    """A folder with a loading script, with data beside it and without, is refused."""
    folder = tmp_path / "scripted"
    table(pictures(6)).to_parquet(folder / "train.parquet")
    fired = tmp_path / "fired"
    script = f"import pathlib\npathlib.Path({str(fired)!r}).touch()\n"
    (folder / "scripted.py").write_text(script)
    assert "scripts are no longer supported" in refusal(folder)
    (folder / "train.parquet").unlink()
    assert "cannot be read as a data set" in refusal(folder)
    assert not fired.exists()


# -- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_on_a_data_set_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is named relative to where training begins, and found again from elsewhere."""
    values, labels = pictures(60, 12, 11, color=False), (list(range(3)) * 20)
    table(values, labels).save_to_disk(tmp_path / "set")
    config = DataConfig(source="hf:./set")
    assert settled(config, load(config)).source == f"hf:{tmp_path / 'set'}"
    assert settled(DataConfig(), load(DataConfig())).source == "digits"
    keys: dict[str, object] = {"data.stream": True, "network.hidden": [16], "data.size": 8}
    run = vaelab.train("vae", data="hf:./set", epochs=2, out=tmp_path / "run", progress=False, overrides=keys)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    held_out = run.data()["test"]
    assert held_out.streams
    found = encode(tmp_path / "run", data=f"hf:{tmp_path / 'set'}")
    assert found.labels is not None and found.labels.tolist() == labels
    x = read(tmp_path / "set", size=8, validation=0, test=0)["train"].batch()
    assert x.shape == (60, 1, 8, 8)
    torch.testing.assert_close(found.mean, vaelab.load(tmp_path / "run").encode(x).mean)
    assert isinstance(held_out.raw, Rows) and isinstance(held_out.labels, Tensor)
    places = held_out.raw.place(torch.arange(6))
    assert held_out.labels.tolist() == [labels[place] for place in places]
    assert json.dumps(vaelab.evaluate(tmp_path / "run", 5).to_dict())


def test_fingerprint_of_a_table(tmp_path: Path) -> None:
    values = pictures(20)
    table(values, [0] * 20).save_to_disk(tmp_path / "a")
    table(values, [0] * 20).save_to_disk(tmp_path / "same", num_shards=4)
    table(values, [0] * 19 + [1]).save_to_disk(tmp_path / "labels")
    other = values.copy()
    other[7, 0, 0, 0] += 1
    table(other, [0] * 20).save_to_disk(tmp_path / "content")
    prints = {name: read(tmp_path / name, stream=True).fingerprint for name in ("a", "same", "labels", "content")}
    assert prints.pop("same") == prints["a"] and len(set(prints.values())) == 3


def test_the_listing_names_the_hub() -> None:
    listed = {name: (what, status) for name, what, status in sources()}
    assert listed["hf:OWNER/NAME"][1] == listed["hf:FOLDER"][1] == "yours"
