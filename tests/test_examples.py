"""Each script of examples/ runs as it is told to, in an empty folder, and makes what it promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import vaelab
from vaelab.pictures import GAP, MARGIN
from vaelab.runs import Run

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, *words: str) -> str:
    """Run a script in the current folder; returns what it printed."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *words], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tile(file: Path, row: int, column: int, side: int, scale: int) -> np.ndarray:
    """One picture [side, side, ...] of a sheet, at its own size."""
    step = side * scale + GAP
    with Image.open(file) as sheet:
        left, top = MARGIN + column * step, MARGIN + row * step
        pixels = np.asarray(sheet)[top : top + side * scale, left : left + side * scale]
    return pixels[::scale, ::scale]


@pytest.mark.parametrize("file", sorted(EXAMPLES.iterdir()), ids=lambda file: file.name)
def test_examples_are_short_and_say_how_to_run_them(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert f"    python examples/{file.name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_there_are_three_examples() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {"own_pictures.py", "compare.py", "latent_walk.py"}


@pytest.mark.slow
def test_own_pictures_makes_a_folder_trains_and_writes_pictures(tmp_path: Path) -> None:
    run_example("own_pictures.py", "--epochs", "1")
    digits = load_digits()
    files = sorted((tmp_path / "pictures").rglob("*.png"), key=lambda file: file.name)
    assert [int(file.parent.name) for file in files] == digits.target.tolist()
    with Image.open(files[5]) as picture:
        assert np.abs(np.asarray(picture) / 255 - digits.images[5] / 16).max() <= 1 / 255
    run = Run.open(tmp_path / "runs" / "conv-vae-pictures-1")
    assert run.spec.shape == (1, 16, 16) and run.label_names == tuple("0123456789")
    samples = vaelab.sample(run, 64).x
    for index in (0, 63):
        shown = tile(tmp_path / "samples.png", *divmod(index, 8), side=16, scale=4)
        assert np.abs(shown - 255 * samples[index, 0].numpy()).max() <= 0.51
    with Image.open(tmp_path / "reconstructions.png") as sheet:
        assert sheet.mode == "L"


@pytest.mark.slow
def test_own_pictures_takes_color_pictures_of_any_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for number, (height, width) in enumerate(noise.integers(12, 40, (40, 2))):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = 200  # all red
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{number}.png")
    run_example("own_pictures.py", "mine", "--size", "8", "--epochs", "1")
    run = Run.open(tmp_path / "runs" / "conv-vae-mine-1")
    assert run.spec.shape == (3, 8, 8)
    red, green, blue = tile(tmp_path / "samples.png", 0, 0, side=8, scale=8).mean((0, 1))
    assert abs(red - 200) < 10 and green < 10 and blue < 10


@pytest.mark.slow
def test_compare_prints_the_held_out_numbers_of_four_runs(tmp_path: Path) -> None:
    printed = run_example("compare.py", "--epochs", "1")
    rows = re.findall(r"^(\w+) +(\d+) +(-\d+\.\d\d) ± (\d+\.\d\d) +(\d+)$", printed, re.MULTILINE)
    assert len(rows) == len(printed.splitlines()) - 1 == 4
    assert {(name, latents) for name, latents, *_ in rows} == {(n, d) for n in ("mlp", "conv") for d in ("2", "16")}
    for name, latents, elbo, error, active in rows:
        run = Run.open(tmp_path / "compare" / f"{name}-{latents}")
        assert (run.config.network.model_dump()["name"], run.config.model.latent_dim) == (name, int(latents))
        found = vaelab.evaluate(run)
        assert (elbo, error) == (f"{found.elbo:.2f}", f"{found.elbo_stderr:.2f}")
        assert int(active) == found.active_units and found.split == "test"


@pytest.mark.slow
def test_latent_walk_visits_a_held_out_example_of_every_digit(tmp_path: Path) -> None:
    assert "60 frames" in run_example("latent_walk.py", "--epochs", "5")
    run = Run.open(tmp_path / "runs" / "vae-digits-1")
    found = vaelab.encode(run, split="test")
    assert found.labels is not None
    first = [int((found.labels == digit).nonzero()[0]) for digit in range(10)]
    stops = vaelab.load(run).show(found.mean[first])[:, 0]  # [10, 8, 8]
    with Image.open(tmp_path / "walk.gif") as walk:
        assert (walk.n_frames, walk.size) == (60, (160, 160))
        for digit, stop in enumerate(stops):
            walk.seek(6 * digit)
            shown = torch.from_numpy(np.asarray(walk.convert("L"))[10::20, 10::20].astype(np.float32))
            assert (shown - 255 * stop).abs().max() <= 0.51
        walk.seek(3)  # between two stops lies something else
        between = torch.from_numpy(np.asarray(walk.convert("L"))[10::20, 10::20].astype(np.float32))
        assert min((between - 255 * stop).abs().max() for stop in stops) > 5
