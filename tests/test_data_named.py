"""MNIST and Frey faces: the official pixels, their divisions, the IDX format, and downloads from a local server."""

import gzip
import hashlib
import io
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from vaelab.config import DataConfig
from vaelab.data import DataSpec, download, freyfaces, load, mnist
from vaelab.errors import InputError, VaelabError

needs_mnist = pytest.mark.skipif(not mnist.is_present(), reason=f"MNIST is not in {mnist.folder()}; see VAELAB_DATA")
needs_freyfaces = pytest.mark.skipif(not freyfaces.is_present(), reason=f"{freyfaces.file()} is missing")


def config(**keys: object) -> DataConfig:
    return DataConfig.model_validate({"source": "mnist"} | keys)


def test_data_folder_is_the_variable_or_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAELAB_DATA", "~/sets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mnist.folder() == tmp_path / "sets" / "mnist"
    monkeypatch.delenv("VAELAB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "vaelab" in freyfaces.file().parts and freyfaces.file().parts[-2:] == ("freyfaces", "frey_faces.npy")


# -- the official pixels -------------------------------------------------------------------------------------------


@needs_mnist
def test_mnist_is_the_official_one() -> None:
    data = load(config())
    assert data.spec == DataSpec((1, 28, 28), "levels", 256)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 55_000,
        "validation": 5_000,
        "test": 10_000,
    }
    labels = {name: split.labels for name, split in data.splits.items()}
    official = torch.cat([labels["train"], labels["validation"]])  # type: ignore[list-item]
    # how often each digit occurs in the official files, as published with the data
    assert official.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert labels["test"].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # type: ignore[union-attr]
    assert official[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    # the mean 0.1307 and standard deviation 0.3081 that everybody normalizes the 60,000 with
    levels = torch.cat([data["train"].raw, data["validation"].raw])
    counts = levels.flatten().bincount(minlength=256).double()
    mean = (counts * torch.arange(256)).sum() / counts.sum() / 255
    square = (counts * (torch.arange(256) / 255) ** 2).sum() / counts.sum()
    assert mean.item() == pytest.approx(0.1307, abs=5e-5)
    assert (square - mean**2).sqrt().item() == pytest.approx(0.3081, abs=5e-5)
    # the bytes of the file, in its order: 16 bytes of header before them
    content = b"".join(data[name].raw.numpy().tobytes() for name in ("train", "validation"))
    header = struct.pack(">IIII", 2051, 60_000, 28, 28)
    assert hashlib.sha256(header + content).hexdigest() == mnist.FILES["train-images-idx3-ubyte"]
    test = struct.pack(">IIII", 2051, 10_000, 28, 28) + data["test"].raw.numpy().tobytes()
    assert hashlib.sha256(test).hexdigest() == mnist.FILES["t10k-images-idx3-ubyte"]


@needs_freyfaces
def test_freyfaces_are_divided_in_time() -> None:
    data = load(DataConfig(source="freyfaces"))
    assert data.spec == DataSpec((1, 28, 20), "levels", 256)
    parts = [data[name].raw for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1565, 200, 200]
    frames = torch.cat(parts)
    assert hashlib.sha256(frames.numpy().tobytes()).hexdigest() == freyfaces.SHA256
    # a video: a frame is much nearer to its neighbour than to a frame far away
    x = frames.double()
    near, far = (x[1:] - x[:-1]).square().mean(), (x[983:] - x[:-983]).square().mean()
    assert near < far / 3
    assert len(load(DataConfig(source="freyfaces", validation=0, test=0))["train"]) == 1965


# -- divisions of MNIST, on a stand-in of the same size ------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def stand_in() -> dict[str, bytes]:
    """IDX files of MNIST's sizes. Picture i of all 70,000 holds i in its first three pixels, and i mod 10 as label."""
    number = np.arange(70_000)
    images = np.zeros((70_000, 28, 28), np.uint8)
    for place, shift in enumerate((0, 8, 16)):
        images[:, 0, place] = number >> shift & 255
    labels = number % 10
    return {
        "train-images-idx3-ubyte": idx(images[:60_000]),
        "train-labels-idx1-ubyte": idx(labels[:60_000]),
        "t10k-images-idx3-ubyte": idx(images[60_000:]),
        "t10k-labels-idx1-ubyte": idx(labels[60_000:]),
    }


@pytest.fixture
def folder(stand_in: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and the stand-in's sums in place of MNIST's."""
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    monkeypatch.setattr(mnist, "FILES", {name: hashlib.sha256(c).hexdigest() for name, c in stand_in.items()})
    monkeypatch.setattr(mnist, "MIRRORS", ())
    return tmp_path / "mnist"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_mnist_divisions(folder: Path, stand_in: dict[str, bytes]) -> None:
    compressed = {f"{name}.gz": gzip.compress(content, 1) for name, content in stand_in.items() if "labels" in name}
    put(folder, compressed | {name: content for name, content in stand_in.items() if "images" in name})
    cases = {
        (None, None): {"train": range(55_000), "validation": range(55_000, 60_000), "test": range(60_000, 70_000)},
        (0, None): {"train": range(60_000), "test": range(60_000, 70_000)},
        (None, 0): {
            "train": [*range(55_000), *range(60_000, 70_000)],
            "validation": range(55_000, 60_000),
        },
        (0.5, None): {"train": range(30_000), "validation": range(30_000, 60_000), "test": range(60_000, 70_000)},
        (0, 0): {"train": range(70_000)},
    }
    for (validation, test), expected in cases.items():
        splits = load(config(validation=validation, test=test)).splits
        assert list(splits) == list(expected)
        for name, rows in expected.items():
            first = splits[name].raw[:, 0, 0, :3].int()
            numbers = first[:, 0] + 256 * first[:, 1] + 65_536 * first[:, 2]
            assert numbers.tolist() == list(rows)
            assert torch.equal(splits[name].labels, numbers.long() % 10)


def test_mnist_has_its_own_test_set(folder: Path, stand_in: dict[str, bytes]) -> None:
    put(folder, stand_in)
    with pytest.raises(InputError, match=r"data\.test=0\.2: mnist has its own test set"):
        load(config(test=0.2))
    with pytest.raises(InputError, match="leave no training example"):
        load(config(validation=0.999999))


# -- the IDX format ------------------------------------------------------------------------------------------------


def test_idx_is_read_as_the_format_says() -> None:
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])
    assert mnist.parse_idx(content, "x").tolist() == [[10, 20, 30], [40, 50, 255]]
    large = mnist.parse_idx(bytes([0, 0, 8, 1, 0, 0, 1, 4]) + bytes(260), "x")
    assert large.shape == (260,)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "two zero bytes"),
        (b"\x1f\x8b\x08\x00", "two zero bytes"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "type 0x0d"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 1]), "truncated IDX header"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), "announces 3 values .* 2 follow"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), "announces 1 values .* 2 follow"),
        (bytes([0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255, 1]), "announces 18446744065119617025 values"),
    ],
)
def test_bad_idx_is_refused(content: bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=f"the-file: .*{complaint}"):
        mnist.parse_idx(content, "the-file")


def test_wrong_file_of_mnist_is_named(folder: Path, stand_in: dict[str, bytes]) -> None:
    images = "t10k-images-idx3-ubyte"
    flipped = bytearray(stand_in[images])
    flipped[-1] ^= 1
    for name, content in {
        images: bytes(flipped),
        f"{images}.gz": gzip.compress(bytes(flipped), 1),
        f"{images}.gz ": gzip.compress(stand_in[images], 1)[:-9],  # truncated
    }.items():
        (folder / images).unlink(missing_ok=True)
        put(folder, {n: c for n, c in stand_in.items() if n != images} | {name.strip(): content})
        with pytest.raises(InputError) as refusal:
            load(config())
        assert str(folder / name.strip()) in str(refusal.value) and "\n" not in str(refusal.value)
        (folder / name.strip()).unlink()


# -- downloads -----------------------------------------------------------------------------------------------------


class Server:
    """A server on this machine. `files` maps a path to its content; anything else is 404."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.encoding: str | None = None
        self.short = False  # announce more than is sent
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + 10 * outer.short))
                if outer.encoding:
                    self.send_header("Content-Encoding", outer.encoding)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_mnist_is_downloaded_once(
    folder: Path, stand_in: dict[str, bytes], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first mirror is dead, the second has one corrupt file, the third is right."""
    good = {name: gzip.compress(content, 1) for name, content in stand_in.items()}
    labels = "t10k-labels-idx1-ubyte"
    server.files = {f"/good/{name}.gz": content for name, content in good.items()}
    server.files |= {f"/second/{name}.gz": content for name, content in good.items()}
    server.files[f"/second/{labels}.gz"] = gzip.compress(stand_in[labels][:-1] + b"\x01")
    monkeypatch.setattr(mnist, "MIRRORS", tuple(f"{server.url}/{m}/" for m in ("dead", "second", "good")))
    data = load(config())
    assert server.asked.count(f"/good/{labels}.gz") == 1
    assert sum(path.startswith("/good/") for path in server.asked) == 1  # the other three came from the second
    assert names(folder) == sorted(stand_in)
    assert all((folder / name).read_bytes() == content for name, content in stand_in.items())
    before = len(server.asked)
    assert load(config()).fingerprint == data.fingerprint
    assert len(server.asked) == before


def test_all_mirrors_bad_is_one_line_and_leaves_nothing(
    folder: Path, stand_in: dict[str, bytes], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {"/b/train-images-idx3-ubyte.gz": b"<html>moved</html>"}
    server.files["/c/train-images-idx3-ubyte.gz"] = gzip.compress(stand_in["train-images-idx3-ubyte"], 1)[:5000]
    mirrors = (f"{server.url}/a/", f"{server.url}/b/", f"{server.url}/c/", "http://127.0.0.1:9/")
    monkeypatch.setattr(mnist, "MIRRORS", mirrors)
    with pytest.raises(VaelabError) as failure:
        load(config())
    message = str(failure.value)
    assert failure.value.exit_code == 1 and "\n" not in message
    assert all(f"{mirror}train-images-idx3-ubyte.gz" in message for mirror in mirrors)
    assert "404" in message and "SHA-256" in message and "gzip" in message and str(folder) in message
    assert not folder.exists() or not names(folder)


def test_mirror_that_decompresses_on_the_way(
    folder: Path, stand_in: dict[str, bytes], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers mark a .gz file as compressed in transit, and the client then undoes it."""
    server.files = {f"/{name}.gz": gzip.compress(content, 1) for name, content in stand_in.items()}
    server.encoding = "gzip"
    monkeypatch.setattr(mnist, "MIRRORS", (f"{server.url}/",))
    assert len(load(config())["train"]) == 55_000


def test_interrupted_transfer_goes_to_the_next_mirror(server: Server, tmp_path: Path) -> None:
    server.files = {"/a": b"12345"}
    server.short = True
    with pytest.raises(VaelabError, match=r"/a .*put it into"):
        download.fetch([f"{server.url}/a"], tmp_path / "a", lambda content: content)
    assert names(tmp_path) == []


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(VaelabError, match="No space left on device") as failure:
        download.write_whole(tmp_path / "a", b"new")
    assert not isinstance(failure.value, InputError)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def matlab(frames: np.ndarray, name: str = "ff") -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, {name: frames.reshape(len(frames), -1).T})
    return buffer.getvalue()


def test_freyfaces_come_from_the_matlab_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), dtype=np.uint8)
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    monkeypatch.setattr(freyfaces, "SHA256", hashlib.sha256(frames.tobytes()).hexdigest())
    monkeypatch.setattr(freyfaces, "MIRRORS", tuple(f"{server.url}/{i}" for i in range(5)))
    flipped = frames.copy()
    flipped[-1, -1, -1] ^= 1
    server.files = {
        "/0": b"not Matlab",
        "/1": matlab(frames, "gg"),
        "/2": matlab(frames[:-1]),
        "/3": matlab(flipped),
    }
    with pytest.raises(VaelabError) as failure:
        load(DataConfig(source="freyfaces"))
    assert all(f"{server.url}/{i}" in str(failure.value) for i in range(5)) and "\n" not in str(failure.value)
    assert not (tmp_path / "freyfaces").exists()
    server.files["/4"] = matlab(frames)
    for _ in range(2):  # downloaded, then from the disk
        data = load(DataConfig(source="freyfaces"))
        np.testing.assert_array_equal(data["train"].raw[:, 0].numpy(), frames[:1565])
        np.testing.assert_array_equal(data["test"].raw[:, 0].numpy(), frames[-200:])
    assert names(tmp_path / "freyfaces") == ["frey_faces.npy"]
    assert server.asked.count("/4") == 2  # once in vain


def test_wrong_freyfaces_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    path = tmp_path / "freyfaces" / "frey_faces.npy"
    path.parent.mkdir()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((1965, 28, 20), np.uint8))
    other = io.BytesIO()
    np.save(other, np.zeros((1965, 560)))
    for content, complaint in [
        (buffer.getvalue(), "by its SHA-256"),
        (buffer.getvalue()[:-1], "frey_faces.npy: "),
        (other.getvalue(), r"float64 \[1965, 560\]"),
        (b"", "frey_faces.npy: "),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=complaint) as refusal:
            load(DataConfig(source="freyfaces"))
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
