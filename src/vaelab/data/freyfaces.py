"""Frey faces: 1,965 frames of a video of one face, 28 x 20 grey pixels (B. Frey, S. Roweis)."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaelab.config import DataConfig
from vaelab.data.division import divide_in_blocks
from vaelab.data.download import data_folder, fetch
from vaelab.data.prepare import Examples
from vaelab.errors import InputError

# SHA-256 of the 1965 * 28 * 20 bytes: picture after picture, each row by row.
SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"
MIRRORS = (
    "https://cs.nyu.edu/~roweis/data/frey_rawface.mat",
    "http://www.cs.nyu.edu/~roweis/data/frey_rawface.mat",
)


def file() -> Path:
    """Where the array is looked for."""
    return data_folder() / "freyfaces" / "frey_faces.npy"


def is_present() -> bool:
    """Whether the array is there."""
    return file().is_file()


def load_freyfaces(config: DataConfig) -> Examples:
    """Frey faces as uint8 `[1965, 1, 28, 20]`, divided 1,565 / 200 / 200 in the order of time.

    The frames are a video, and neighbours in time are near copies. A random division would hold out pictures whose
    near copies are trained on, so the split is by contiguous blocks: training, then validation, then test. Numbers
    published for random divisions are lower (better) for that reason, and not comparable.

    Raises:
        InputError: the file is damaged or another one, or a division that leaves nothing to train on.
        VaelabError: the file is missing and cannot be downloaded.
    """
    path = file()
    content = path.read_bytes() if path.is_file() else fetch(MIRRORS, path, _npy_from_mat)
    try:
        faces = _checked(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: {reason}; delete it, and the next run downloads it anew") from None
    return Examples(
        raw=torch.from_numpy(faces).unsqueeze(1),
        levels=256,
        division=divide_in_blocks(len(faces), config, validation=200, test=200),
    )


def _checked(faces: NDArray[Any]) -> NDArray[np.uint8]:
    faces = np.ascontiguousarray(faces)
    if faces.dtype != np.uint8 or faces.shape != (1965, 28, 20):
        raise ValueError(f"holds {faces.dtype} {list(faces.shape)}, not the Frey faces' uint8 [1965, 28, 20]")
    if hashlib.sha256(faces.data).hexdigest() != SHA256:
        raise ValueError("not the Frey faces, by its SHA-256")
    return faces


def _npy_from_mat(content: bytes) -> bytes:
    """The original Matlab file as a `.npy` file.

    Its matrix `ff` is 560 x 1965: a column is a picture, its 560 numbers row by row (28 rows of 20). Matlab stores
    columns one after another, so the transpose is picture after picture in plain row-major order.
    """
    from scipy.io import loadmat

    try:
        matrix = np.asarray(loadmat(io.BytesIO(content), variable_names=["ff"])["ff"])
    except Exception:  # noqa: BLE001 scipy raises many types on a file that is none of Matlab's
        raise ValueError("not a Matlab file with a matrix ff") from None
    if matrix.shape != (560, 1965):
        raise ValueError(f"ff is {list(matrix.shape)}, not [560, 1965]")
    buffer = io.BytesIO()
    np.save(buffer, _checked(matrix.T.reshape(1965, 28, 20)))
    return buffer.getvalue()
