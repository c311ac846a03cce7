"""dSprites and 3D Shapes: small files of the same layout, downloads from a local server; no pickle is ever read."""

import hashlib
import io
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_data_named import Server, names

from vaelab.config import DataConfig
from vaelab.data import DataSpec, Factor, Split, load, shapes
from vaelab.errors import InputError, VaelabError

SIZES = (3, 2, 4, 2, 2)
PLACES = np.array(list(product(range(1), *map(range, SIZES))))  # dSprites' first factor, color, has one value
PICTURES = np.random.default_rng(0).integers(0, 2, (len(PLACES), 9, 9), dtype=np.uint8)  # 81 pixels fill no whole bytes


class Pickled:
    """An object that leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled").absolute(),)


def npz(**arrays: Any) -> bytes:
    """A file in the layout of dSprites: with pickled metadata, compressed."""
    buffer = io.BytesIO()
    held = {"metadata": np.array(Pickled(), dtype=object), "imgs": PICTURES, "latents_classes": PLACES} | arrays
    np.savez_compressed(buffer, **{name: values for name, values in held.items() if values is not None})
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, no mirrors, and pictures read seven at a time."""
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr(shapes, "DSPRITES_MIRRORS", ())
    monkeypatch.setattr(shapes, "_AT_ONCE", 7)
    return tmp_path / "sets"


def put_dsprites(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file where dSprites is looked for, with its sum in place of dSprites'."""
    monkeypatch.setattr(shapes, "DSPRITES_MD5", hashlib.md5(content).hexdigest())
    path = folder / "dsprites" / shapes.DSPRITES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def matches(part: Split, pictures: np.ndarray, sizes: tuple[int, ...]) -> list[int]:
    """Hold each picture [1 or 3, H, W] to the one that its factors name; their places."""
    assert part.factors is not None and part.labels is not None
    places = np.ravel_multi_index(tuple(part.factors.numpy().T), sizes)
    np.testing.assert_array_equal(part.read().numpy(), pictures[places])
    return places.tolist()


# -- dSprites ------------------------------------------------------------------------------------------------------


def test_dsprites_is_read_and_nothing_is_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dsprites(folder, npz(), monkeypatch)
    data = load(DataConfig(source="dsprites"))
    assert data.spec == DataSpec((1, 9, 9), "binary", 2) and data.spec.classes == 3
    assert data.label_names == ("square", "ellipse", "heart")
    found = [place for part in data.splits.values() for place in matches(part, PICTURES[:, None], SIZES)]
    assert sorted(found) == list(range(96)) and found != list(range(96))
    for part in data.splits.values():
        assert part.streams and part.labels is not None and part.factors is not None
        assert torch.equal(part.labels, part.factors[:, 0])
        assert torch.equal(part.batch(), part.read().float())
    assert not Path("unpickled").exists()
    with pytest.raises(ValueError, match="allow_pickle"):  # the file does hold a pickle
        np.load(folder / "dsprites" / shapes.DSPRITES, allow_pickle=False)["metadata"]


def test_dsprites_has_five_factors() -> None:
    known = {"shape": 3, "scale": 6, "rotation": 40, "x": 32, "y": 32}  # as its name tells
    assert {one.name: one.size for one in shapes.DSPRITES_FACTORS} == known
    assert [one.name for one in shapes.DSPRITES_FACTORS if not one.ordered] == ["shape"]
    known = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}
    assert {one.name: one.size for one in shapes.SHAPES_FACTORS} == known


def test_dsprites_is_downloaded_once(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    good = npz()
    monkeypatch.setattr(shapes, "DSPRITES_MD5", hashlib.md5(good).hexdigest())
    server.files = {"/bad": good[:-1] + bytes([good[-1] ^ 1]), "/good": good}
    monkeypatch.setattr(shapes, "DSPRITES_MIRRORS", (f"{server.url}/dead", f"{server.url}/bad"))
    with pytest.raises(VaelabError) as failure:
        load(DataConfig(source="dsprites"))
    message = str(failure.value)
    assert "404" in message and "not dSprites, by its MD5" in message and "\n" not in message
    assert not folder.exists()
    monkeypatch.setattr(shapes, "DSPRITES_MIRRORS", (f"{server.url}/bad", f"{server.url}/good"))
    fingerprints = {load(DataConfig(source="dsprites")).fingerprint for _ in range(2)}
    assert len(fingerprints) == 1 and server.asked.count("/good") == 1
    assert names(folder / "dsprites") == [shapes.DSPRITES]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"imgs": None}, "imgs.npy"),
        ({"latents_classes": None}, "latents_classes.npy"),
        ({"imgs": PICTURES.astype(np.int64)}, r"imgs is int64 \[96, 9, 9\]"),
        ({"imgs": PICTURES.reshape(96, 81)}, r"imgs is uint8 \[96, 81\]"),
        ({"imgs": np.asfortranarray(PICTURES)}, "imgs is uint8"),
        ({"imgs": np.array([Pickled()])}, "imgs is object"),
        ({"latents_classes": np.array([Pickled()])}, "Object arrays cannot be loaded"),
    ],
)
def test_another_file_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arrays: dict[str, Any], complaint: str
) -> None:
    path = put_dsprites(folder, npz(**arrays), monkeypatch)
    with pytest.raises(InputError, match=complaint) as refusal:
        load(DataConfig(source="dsprites"))
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not Path("unpickled").exists()


def test_a_damaged_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_dsprites(folder, npz(), monkeypatch)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="by its MD5; delete it, and the next run downloads it anew") as refusal:
        load(DataConfig(source="dsprites"))
    assert str(path) in str(refusal.value)


# -- 3D Shapes -----------------------------------------------------------------------------------------------------

SHAPES_SIZES = (2, 3, 2, 2, 4, 3)
ROOMS = np.random.default_rng(1).integers(0, 256, (288, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def rooms(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file `3dshapes.h5`, and a library h5py that reads pictures of 8 x 8 with fewer values of each factor in it."""
    factors = [Factor(one.name, size) for one, size in zip(shapes.SHAPES_FACTORS, SHAPES_SIZES, strict=True)]
    monkeypatch.setattr(shapes, "SHAPES_FACTORS", tuple(factors))
    monkeypatch.setattr(shapes, "SHAPES_SIDE", 8)
    source = folder / "3dshapes" / "3dshapes.h5"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"HDF5")
    monkeypatch.setattr(shapes, "SHAPES_SHA256", hashlib.sha256(b"HDF5").hexdigest())
    install_h5py(monkeypatch, {"images": ROOMS, "labels": np.zeros((288, 6))})
    return source


def install_h5py(monkeypatch: pytest.MonkeyPatch, holds: dict[str, Any]) -> None:
    """A stand-in for h5py whose every file holds these arrays."""

    class File(dict[str, Any]):
        def __init__(self, path: Path, mode: str) -> None:
            assert (path.read_bytes(), mode) == (b"HDF5", "r")
            super().__init__(holds)

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *_: object) -> None:
            self.clear()

    module = ModuleType("h5py")
    module.File = File  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "h5py", module)


def test_3dshapes_are_unpacked_once(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shapes.shapes_status() == "needs h5py"
    data = load(DataConfig(source="3dshapes"))
    assert shapes.shapes_status() == "found"
    assert data.spec == DataSpec((3, 8, 8), "levels", 256) and data.spec.classes == 4
    found = [
        place for part in data.splits.values() for place in matches(part, ROOMS.transpose(0, 3, 1, 2), SHAPES_SIZES)
    ]
    assert sorted(found) == list(range(288))
    assert data["test"].streams and data["test"].labels is not None and data["test"].factors is not None
    assert torch.equal(data["test"].labels, data["test"].factors[:, 4])
    assert names(rooms.parent) == ["3dshapes.h5", "images.npy"]
    np.testing.assert_array_equal(np.load(rooms.parent / "images.npy"), ROOMS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    rooms.unlink()
    assert load(DataConfig(source="3dshapes")).fingerprint == data.fingerprint  # neither is needed again


def test_what_is_missing_of_3dshapes_is_told(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(kind: type[VaelabError], *words: str) -> None:
        with pytest.raises(VaelabError) as failure:
            load(DataConfig(source="3dshapes"))
        assert type(failure.value) is kind and "\n" not in str(failure.value)
        assert all(word in str(failure.value) for word in words), failure.value
        assert "images.npy" not in names(rooms.parent) and not list(rooms.parent.glob("*.tmp*"))

    install_h5py(monkeypatch, {"labels": ROOMS})
    fails(InputError, str(rooms), "download it again")
    install_h5py(monkeypatch, {"images": ROOMS[:-1]})
    fails(InputError, "uint8 [287, 8, 8, 3], not uint8 [288, 8, 8, 3]")
    install_h5py(monkeypatch, {"images": ROOMS})
    with monkeypatch.context() as full:

        def no_space(*_: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(np.lib.format, "open_memmap", no_space)
        fails(VaelabError, "No space left on device", "5.9 GB")
    monkeypatch.setitem(sys.modules, "h5py", None)
    fails(VaelabError, "pip install h5py", "images.npy")
    install_h5py(monkeypatch, {"images": ROOMS})
    rooms.write_bytes(b"HDF4")
    fails(InputError, "not 3D Shapes, by its SHA-256")
    rooms.unlink()
    assert shapes.shapes_status() == "get it by hand"
    fails(VaelabError, "3dshapes is not there", shapes.SHAPES_URL, str(rooms.parent))


def test_a_damaged_array_is_named(rooms: Path) -> None:
    path = rooms.parent / "images.npy"
    whole = io.BytesIO()
    np.save(whole, ROOMS)
    other = io.BytesIO()
    np.save(other, ROOMS.astype(np.float32))
    pickled = io.BytesIO()
    np.save(pickled, np.array([Pickled()]), allow_pickle=True)
    for content in (b"", whole.getvalue()[:-1], other.getvalue(), pickled.getvalue()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="the next run unpacks it anew") as refusal:
            load(DataConfig(source="3dshapes"))
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not Path("unpickled").exists()
