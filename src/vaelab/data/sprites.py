"""Sprites: one shape on a black ground, drawn from six independent factors, in the manner of dSprites.

    factor     values
    shape      triangle, ellipse, heart
    color      vermilion, yellow, green, blue, pink (Okabe & Ito's palette for all kinds of color vision)
    scale      4: circumscribed radius 4.5, 6, 7.5, 9 pixels
    rotation   7: -45 to 45 degrees in steps of 15, counterclockwise
    x, y       8 each: center at 9, 11, ..., 23 pixels from the left, from the top

Every combination is there once: 26,880 pictures of 3 x 32 x 32, in the order of counting with y as the last digit. No
rotation in this range carries a shape into itself (in dSprites a square looks the same four times a turn), so no two
pictures are equal: a picture determines its factors.

How one is drawn. A pixel has 8 x 8 points, at odd multiples of 1/16 pixel. Its coverage is how many of them lie in the
shape, edges included, and a channel is the color's value times coverage / 64, rounded. All of that is integer
arithmetic: cosines and sines are rounded to multiples of 2^-14 first. So every machine draws the same bytes.
"""

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from vaelab.config import DataConfig
from vaelab.data.division import divide_randomly
from vaelab.data.prepare import Examples
from vaelab.data.spec import Factor

SIDE = 32
SHAPES = ("triangle", "ellipse", "heart")
COLORS = {
    "vermilion": (213, 94, 0),
    "yellow": (240, 228, 66),
    "green": (0, 158, 115),
    "blue": (0, 114, 178),
    "pink": (204, 121, 167),
}
RADII = (9, 12, 15, 18)  # half pixels
ROTATIONS = (-45, -30, -15, 0, 15, 30, 45)  # degrees
CENTERS = (9, 11, 13, 15, 17, 19, 21, 23)  # pixels
FACTORS = (
    Factor("shape", len(SHAPES), ordered=False),
    Factor("color", len(COLORS), ordered=False),
    Factor("scale", len(RADII)),
    Factor("rotation", len(ROTATIONS)),
    Factor("x", len(CENTERS)),
    Factor("y", len(CENTERS)),
)

_POINTS = 8  # to a pixel's side
_ONE = 1 << 14  # what cosine 1 is
_REACH = 9  # pixels from the center to the edge of a stamp: the largest radius
_Ints = NDArray[np.int64]


def load_sprites(config: DataConfig) -> Examples:
    """All 26,880 sprites as uint8 `[26880, 3, 32, 32]`, 256 levels, divided at random; labels are the shapes."""
    factors = grid(FACTORS)
    return Examples(
        raw=torch.from_numpy(draw(factors)),
        levels=256,
        division=divide_randomly(len(factors), config),
        labels=torch.from_numpy(factors[:, 0].copy()),
        label_names=SHAPES,
        factors=torch.from_numpy(factors),
        factor_specs=FACTORS,
    )


def grid(factors: tuple[Factor, ...]) -> _Ints:
    """Every combination of values once, `[N, F]` int64; the last factor counts fastest."""
    sizes = [factor.size for factor in factors]
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1).astype(np.int64)


def draw(factors: _Ints) -> NDArray[np.uint8]:
    """Pictures `[N, 3, 32, 32]` of sprites with these factor values `[N, 6]`."""
    pictures = np.zeros((len(factors), 3, SIDE, SIDE), np.uint8)
    looks, look = np.unique(factors[:, :4], axis=0, return_inverse=True)
    stamps = np.stack([_stamp(*one) for one in looks.tolist()])
    for x, y in np.unique(factors[:, 4:], axis=0).tolist():
        here = np.flatnonzero((factors[:, 4] == x) & (factors[:, 5] == y))
        left, top = CENTERS[x] - _REACH, CENTERS[y] - _REACH
        pictures[here, :, top : top + 2 * _REACH, left : left + 2 * _REACH] = stamps[look[here]]
    return pictures


def _stamp(shape: int, color: int, scale: int, rotation: int) -> NDArray[np.uint8]:
    """A sprite without its place, `[3, 18, 18]`. All centers are corners of pixels, so it serves for each."""
    covered = _coverage(SHAPES[shape], RADII[scale], ROTATIONS[rotation])
    channels = np.array(tuple(COLORS.values())[color])[:, None, None]
    return ((covered * channels + _POINTS**2 // 2) // _POINTS**2).astype(np.uint8)


@cache
def _coverage(shape: str, radius: int, degrees: int) -> _Ints:
    """How many of the points of each of the `[18, 18]` pixels around the center lie in the shape: 0 to 64.

    A point's coordinates u and v along the shape's own axes are integers in units of 2^-14 / 16 pixel; `unit` is the
    radius (given in half pixels) in these units.
    """
    points = np.arange(-_REACH * _POINTS, _REACH * _POINTS) * 2 + 1
    right, up = points[None, :], -points[:, None]
    # A heart is made along the sides of a square that stands on its corner.
    angle = math.radians(degrees + (45 if shape == "heart" else 0))
    cosine, sine = round(_ONE * math.cos(angle)), round(_ONE * math.sin(angle))
    u, v = cosine * right + sine * up, cosine * up - sine * right
    unit = radius * _POINTS * _ONE
    if shape == "triangle":  # corners (0, 1), (-0.6, -0.8) and (0.6, -0.8)
        inside = (5 * v >= -4 * unit) & (3 * np.abs(u) <= unit - v)
    elif shape == "ellipse":  # semi-axes 1 and 0.6
        inside = 9 * u**2 + 25 * v**2 <= 9 * unit**2
    else:  # a square of side 10/9, and a disc on each of the two upper sides; the center is at 5/8 of both axes
        u, v = 72 * u + 50 * unit, 72 * v + 50 * unit
        side, half = 80 * unit, 40 * unit
        inside = (u >= 0) & (u <= side) & (v >= 0) & (v <= side)
        inside |= (u - half) ** 2 + (v - side) ** 2 <= half**2
        inside |= (u - side) ** 2 + (v - half) ** 2 <= half**2
    return inside.reshape(2 * _REACH, _POINTS, 2 * _REACH, _POINTS).sum(axis=(1, 3))
