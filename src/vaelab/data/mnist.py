"""MNIST: 70,000 handwritten digits of 28 x 28 grey pixels (LeCun, Cortes & Burges)."""

import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vaelab.config import DataConfig
from vaelab.data.division import Division, check_training, part_size
from vaelab.data.download import data_folder, fetch
from vaelab.data.prepare import Examples
from vaelab.errors import InputError

# SHA-256 of the decompressed content, which is the same whoever compressed it.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
)
_TEST = 10_000  # size of the official test set
_VALIDATION = 5_000  # taken from the end of the official training file


def folder() -> Path:
    """Where the four files are looked for."""
    return data_folder() / "mnist"


def is_present() -> bool:
    """Whether all four files are there, compressed or not."""
    return all(_find(name) is not None for name in FILES)


def load_mnist(config: DataConfig) -> Examples:
    """MNIST as uint8 `[70000, 1, 28, 28]`, divided 55,000 / 5,000 / 10,000.

    The test set is MNIST's own: its 10,000 test pictures. `data.test=0` gives them to training; another fraction
    is refused. Validation is the end of the official training file of 60,000: its last 5,000 pictures,
    `data.validation * 60000` of them where that is set, none where it is 0. All else is for training.

    Raises:
        InputError: a file of the folder is damaged or another one, or a division that MNIST does not have.
        VaelabError: a file is missing and cannot be downloaded.
    """
    content = {name: _content(name) for name in FILES}
    arrays = {name: parse_idx(content[name], name) for name in FILES}
    images = np.concatenate([arrays["train-images-idx3-ubyte"], arrays["t10k-images-idx3-ubyte"]])
    labels = np.concatenate([arrays["train-labels-idx1-ubyte"], arrays["t10k-labels-idx1-ubyte"]])
    return Examples(
        raw=torch.from_numpy(images).unsqueeze(1),
        levels=256,
        division=_divide(len(images), config),
        labels=torch.from_numpy(labels.astype(np.int64)),
        label_names=tuple("0123456789"),
    )


def _divide(n: int, config: DataConfig) -> Division:
    official = n - _TEST
    if config.test:
        raise InputError(
            f"data.test={config.test}: mnist has its own test set of 10,000; leave data.test out, or set it to 0"
        )
    n_validation = part_size(config, "validation", official, _VALIDATION)
    end = official - n_validation
    if config.test is None:
        check_training(n, _TEST + n_validation, config)
        division: Division = {"train": slice(0, end), "validation": slice(end, official), "test": slice(official, n)}
    else:
        train = torch.cat([torch.arange(end), torch.arange(official, n)])
        division = {"train": train, "validation": slice(end, official)}
    if not n_validation:
        del division["validation"]
    return division


def _find(name: str) -> Path | None:
    """The file `name`, or its compressed form."""
    candidates = (folder() / name, folder() / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _content(name: str) -> bytes:
    """The decompressed content of one of the four files, checked; downloaded if it is missing."""
    path = _find(name)
    if path is None:
        urls = [f"{mirror}{name}.gz" for mirror in MIRRORS]
        return fetch(urls, folder() / name, lambda download: _checked(download, name))
    try:
        return _checked(path.read_bytes(), name)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; delete it, and the next run downloads it anew") from None


def _checked(content: bytes, name: str) -> bytes:
    """Decompress where needed, and compare with the official sum. Raises ValueError where it is another file."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = zlib.decompress(content, wbits=31)  # 31: the gzip format, checksum included
        except zlib.error:
            raise ValueError("damaged or truncated gzip file") from None
    if hashlib.sha256(content).hexdigest() != FILES[name]:
        raise ValueError(f"not MNIST's {name}, by its SHA-256")
    return content


def parse_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, as a read-only view of `content`.

    The format: two zero bytes, a type byte (8 = unsigned byte), the number of axes, each axis as a big-endian
    32-bit integer, then the values with the last axis fastest.

    Raises:
        InputError: another type, a header that is cut short, or more or fewer values than the header says.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise InputError(f"{name}: not an IDX file; it must begin with two zero bytes")
    if content[2] != 8:
        raise InputError(f"{name}: IDX type 0x{content[2]:02x}; only unsigned bytes (0x08) are supported")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InputError(f"{name}: truncated IDX header")
    shape = tuple(int(axis) for axis in np.frombuffer(content[4:start], ">u4"))
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"{name}: IDX header announces {math.prod(shape)} values {list(shape)}, but {len(content) - start} follow"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
