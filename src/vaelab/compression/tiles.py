"""Pictures of any size as tiles of one size, and back."""

import numpy as np
from numpy.typing import NDArray

from vaelab.compression.description import contradiction

Levels = NDArray[np.uint8 | np.uint16 | np.int32]


def cut(pictures: Levels, tile: tuple[int, int]) -> Levels:
    """Cut pictures [N, C, h, w] into tiles of H × W, row by row: [N · rows · columns, C, H, W].

    The last row and column of tiles is filled up by repeating the edge of the picture, which costs few bits.
    """
    n, channels, height, width = pictures.shape
    rows, columns = -(-height // tile[0]), -(-width // tile[1])
    missing = rows * tile[0] - height, columns * tile[1] - width
    if any(missing):
        pictures = np.pad(pictures, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
    apart = pictures.reshape(n, channels, rows, tile[0], columns, tile[1])
    return apart.transpose(0, 2, 4, 1, 3, 5).reshape(n * rows * columns, channels, *tile)


def stitch(tiles: Levels, pictures: int, height: int, width: int) -> Levels:
    """The pictures [N, C, h, w] that `cut` made tiles [N · rows · columns, C, H, W] of.

    Raises:
        CorruptFile: tiles that `cut` does not make of pictures of that size.
    """
    channels, *tile = tiles.shape[1:]
    rows, columns = -(-height // tile[0]), -(-width // tile[1])
    apart = tiles.reshape(pictures, rows, columns, channels, *tile).transpose(0, 3, 1, 4, 2, 5)
    whole = apart.reshape(pictures, channels, rows * tile[0], columns * tile[1])[:, :, :height, :width]
    if not np.array_equal(cut(whole, (tile[0], tile[1])), tiles):
        raise contradiction("its tiles do not end where its pictures do")
    return whole
