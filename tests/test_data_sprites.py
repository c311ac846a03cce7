"""Sprites: the bytes of every picture, drawn again another way; factors that are independent; labels and training."""

import hashlib
import json
import math
import sys
from itertools import product

import numpy as np
import pytest
import torch

import vaelab
from vaelab import cli
from vaelab.config import DataConfig
from vaelab.data import DataSpec, load
from vaelab.data.sprites import FACTORS, draw, grid
from vaelab.errors import InputError

pytestmark = pytest.mark.usefixtures("without_reports")

SHA256 = "91a4adcbd1fee9e16166e95c4d55f93f50f64c27e0722b899cb547e51c6c7630"
SIZES = (3, 5, 4, 7, 8, 8)


@pytest.fixture(scope="module")
def everything() -> tuple[np.ndarray, np.ndarray]:
    factors = grid(FACTORS)
    return factors, draw(factors)


# -- the pictures --------------------------------------------------------------------------------------------------


def inside(shape: str, u: float, v: float) -> bool:
    """Whether a point lies in a shape of radius 1, upright; u to the right, v up."""
    if shape == "triangle":
        corners = [(0.0, 1.0), (-0.6, -0.8), (0.6, -0.8)]
        sides = []
        for (a, b), (c, d) in zip(corners, corners[1:] + corners[:1], strict=True):
            sides.append((c - a) * (v - b) - (d - b) * (u - a) >= -1e-12)
        return all(sides)
    if shape == "ellipse":
        return u**2 + (v / 0.6) ** 2 <= 1 + 1e-12
    # A square that stands on its corner, and discs over its two upper sides.
    side = 10 / 9
    root = math.sqrt(0.5)
    a, b = (u + v) * root + 5 / 8 * side, (v - u) * root + 5 / 8 * side
    square = -1e-12 <= a <= side + 1e-12 and -1e-12 <= b <= side + 1e-12
    discs = [(a - p) ** 2 + (b - q) ** 2 <= (side / 2) ** 2 + 1e-12 for p, q in ((side / 2, side), (side, side / 2))]
    return square or any(discs)


def picture(shape: str, color: tuple[int, int, int], radius: float, degrees: float, x: int, y: int) -> np.ndarray:
    """One sprite in floating-point numbers, point by point: [3, 32, 32]."""
    covered = np.zeros((32, 32))
    turn = math.radians(degrees)
    for row, column in product(range(32), repeat=2):
        for i, j in product(range(8), repeat=2):
            right, up = column + (j + 0.5) / 8 - x, y - (row + (i + 0.5) / 8)
            if abs(right) > radius + 1 or abs(up) > radius + 1:
                continue
            # The shape is turned counterclockwise, so the point is turned back.
            u = (math.cos(turn) * right + math.sin(turn) * up) / radius
            v = (math.cos(turn) * up - math.sin(turn) * right) / radius
            covered[row, column] += inside(shape, u, v)
    return np.stack([np.floor(covered / 64 * channel + 0.5) for channel in color])


def test_every_byte_is_the_documented_one(everything: tuple[np.ndarray, np.ndarray]) -> None:
    assert everything[1].shape == (26_880, 3, 32, 32) and everything[1].dtype == np.uint8
    assert hashlib.sha256(everything[1].tobytes()).hexdigest() == SHA256


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ((0, 0, 3, 6, 4, 1), ("triangle", (213, 94, 0), 9, 45, 17, 11)),
        ((0, 2, 0, 1, 0, 7), ("triangle", (0, 158, 115), 4.5, -30, 9, 23)),
        ((1, 1, 2, 4, 7, 0), ("ellipse", (240, 228, 66), 7.5, 15, 23, 9)),
        ((1, 3, 1, 3, 2, 5), ("ellipse", (0, 114, 178), 6, 0, 13, 19)),
        ((2, 4, 3, 2, 3, 3), ("heart", (204, 121, 167), 9, -15, 15, 15)),
        ((2, 0, 0, 5, 6, 2), ("heart", (213, 94, 0), 4.5, 30, 21, 13)),
    ],
)
def test_a_sprite_is_its_shape_point_by_point(
    values: tuple[int, ...], drawn: tuple[str, tuple[int, int, int], float, float, int, int]
) -> None:
    found = draw(np.array([values]))[0].astype(int)
    difference = np.abs(found - picture(*drawn))
    # Cosines of the drawing are rounded to 2^-14, so a point of 64 on an edge may fall to the other side.
    assert difference.max() <= math.ceil(255 / 64) and (difference > 0).sum() <= 12
    assert found.any()


def test_a_picture_tells_its_factors(everything: tuple[np.ndarray, np.ndarray]) -> None:
    factors, pictures = everything
    assert len({one.tobytes() for one in pictures}) == len(pictures) == math.prod(SIZES)
    # Its place is that of its middle: the mean over the seven rotations of a point-symmetric shape.
    ellipses = pictures[factors[:, 0] == 1].astype(np.float64).sum(1)
    axis = np.arange(32) + 0.5
    x = (ellipses.sum(1) * axis).sum(1) / ellipses.sum((1, 2))
    y = (ellipses.sum(2) * axis).sum(1) / ellipses.sum((1, 2))
    places = factors[factors[:, 0] == 1]
    assert np.abs(x - (9 + 2 * places[:, 4])).max() < 0.01
    assert np.abs(y - (9 + 2 * places[:, 5])).max() < 0.01
    # What it covers grows with the square of its scale, whatever it is.
    area = (pictures.astype(np.float64) / pictures.max(axis=(2, 3), keepdims=True).clip(1)).max(1).sum((1, 2))
    for shape in range(3):
        by_scale = [area[(factors[:, 0] == shape) & (factors[:, 2] == scale)].mean() for scale in range(4)]
        assert by_scale / by_scale[-1] == pytest.approx(np.array([0.25, 4 / 9, 25 / 36, 1]), abs=0.01)


def test_factors_are_independent_and_counted_through(everything: tuple[np.ndarray, np.ndarray]) -> None:
    factors = everything[0]
    assert tuple(one.size for one in FACTORS) == SIZES
    assert [one.name for one in FACTORS] == ["shape", "color", "scale", "rotation", "x", "y"]
    assert [one.ordered for one in FACTORS] == [False, False, True, True, True, True]
    assert factors.tolist() == [list(one) for one in product(*map(range, SIZES))]


# -- as a source ---------------------------------------------------------------------------------------------------


def test_load_keeps_picture_factors_and_label_together(everything: tuple[np.ndarray, np.ndarray]) -> None:
    data = load(DataConfig(source="sprites"))
    assert data.spec == DataSpec((3, 32, 32), "levels", 256) and data.spec.classes == 3
    assert data.factor_specs == FACTORS and data.label_names == ("triangle", "ellipse", "heart")
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 21504, "validation": 2688, "test": 2688}
    places: list[int] = []
    for part in data.splits.values():
        assert part.factors is not None and part.labels is not None
        assert torch.equal(part.labels, part.factors[:, 0])
        place = np.ravel_multi_index(tuple(part.factors.numpy().T), SIZES)
        np.testing.assert_array_equal(part.raw.numpy(), everything[1][place])
        places += place.tolist()
    assert sorted(places) == list(range(26_880))  # each picture is in one split
    some = data["train"].select(torch.tensor([5, 2])).head(1)
    assert some.factors is not None and some.factors.tolist() == [data["train"].factors[5].tolist()]  # type: ignore[index]
    assert load(DataConfig(source="sprites")).fingerprint == data.fingerprint
    assert load(DataConfig(source="digits"))["test"].factors is None


def test_threshold_keeps_five_colors_apart() -> None:
    """Above the middle level: the primary and secondary colors that the five are nearest to."""
    data = load(DataConfig.model_validate({"source": "sprites", "binarize": "threshold", "validation": 0, "test": 0}))
    factors, x = data["train"].factors, data["train"].batch(slice(0, None, 37))
    assert data.spec.kind == "binary" and factors is not None
    seen = {(int(f[1]), tuple(one.amax((1, 2)).int().tolist())) for f, one in zip(factors[::37], x, strict=True)}
    assert seen == {(0, (1, 0, 0)), (1, (1, 1, 0)), (2, (0, 1, 0)), (3, (0, 0, 1)), (4, (1, 0, 1))}


def test_what_is_no_setting_of_sprites_is_refused() -> None:
    with pytest.raises(InputError, match="sprites is always in memory"):
        load(DataConfig.model_validate({"source": "sprites", "stream": True}))
    with pytest.raises(InputError, match="only a folder of pictures is resized"):
        load(DataConfig.model_validate({"source": "sprites", "size": 64}))


def test_the_listing_has_the_sets_with_factors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["vaelab", "data", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = {row["name"]: row["status"] for row in json.loads(capsys.readouterr().out)["sources"]}
    assert rows["sprites"] == "built in"
    assert rows["dsprites"] == "to download" and rows["3dshapes"] == "get it by hand"
    monkeypatch.setattr(sys, "argv", ["vaelab", "data"])
    with pytest.raises(SystemExit):
        cli.main()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_conditional_model_trains_on_shapes() -> None:
    keys = {"data.binarize": "threshold", "network.hidden": (4,), "model.latent_dim": 2, "training.batch_size": 4096}
    keys |= {"data.validation": 0.02, "data.test": 0.9, "model.conditional": True}
    run = vaelab.train("vae", data="sprites", epochs=1, overrides=keys, out="run", progress=False)
    model = vaelab.load(run)
    assert model.labels is not None
    train = run.data()["train"].labels
    assert train is not None
    assert model.labels.counts.tolist() == train.bincount().tolist()
    before, after = -3072 * math.log(2), run.metrics()[-1]["validation"]["elbo"]
    assert before < after < 0
