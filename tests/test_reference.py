"""The single-file references and the library give the same loss and the same gradients, in float64."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor

from vaelab import data as datasets
from vaelab.composition import compose, settle
from vaelab.config import DataConfig, resolve
from vaelab.data.spec import DataSpec
from vaelab.model import VAE
from vaelab.noise import generator
from vaelab.objectives import ELBO, IWAE

FOLDER = Path(__file__).parents[1] / "reference"
FILES = sorted(FOLDER.glob("*.py"))


def reference(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mlp() -> tuple[ModuleType, torch.nn.Module, VAE, Tensor]:
    module = reference("vae")
    x = (torch.rand(6, 64, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    theirs = module.VAE(x.mean(0)).double()
    keys = {"model.latent_dim": module.LATENT_DIM, "network.hidden": [module.HIDDEN]}
    spec = DataSpec((64,), "binary", 2)
    return module, theirs, compose(settle(resolve("vae", {}, keys), spec), spec).double(), x


def conv() -> tuple[ModuleType, torch.nn.Module, VAE, Tensor]:
    module = reference("conv_vae")
    x = torch.randint(0, 17, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0)).double() / 16
    theirs = module.VAE(x.mean(0), x.std(0)).double()
    keys = {"model.latent_dim": module.LATENT_DIM, "network.name": "conv"}
    spec = DataSpec((1, 8, 8), "levels", 17)
    return module, theirs, compose(settle(resolve("conv-vae", {}, keys), spec), spec).double(), x


@pytest.mark.parametrize("make", [mlp, conv])
def test_loss_and_gradients_agree(make) -> None:  # type: ignore[no-untyped-def]
    module, theirs, ours, x = make()
    parts = [(theirs.encoder, ours.encoder), (theirs.head, ours.posterior.head), (theirs.decoder, ours.decoder.layers)]
    pairs = [(theirs.bias, ours.decoder.bias)]
    for part, other in parts:
        pairs += zip(part.parameters(), other.parameters(), strict=True)
    assert sum(one.numel() for one, _ in pairs) == sum(p.numel() for p in ours.parameters())
    noise = torch.Generator().manual_seed(1)
    for one, other in pairs:
        one.data += 0.1 * torch.randn(one.shape, generator=noise).double()
        other.data.copy_(one.data.reshape(other.shape))
    for samples, objective, loss in (
        (1, ELBO(), module.loss),
        (3, ELBO(num_samples=3), module.loss),
        (5, IWAE(num_samples=5), lambda *arguments: -module.log_px(*arguments).mean()),
    ):
        eps = torch.randn(samples, len(x), ours.latent_dim, dtype=torch.float64, generator=generator(7))
        expected = loss(theirs, x, eps)
        found = objective(ours.terms(x, samples, generator(7))).value
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)
        expected_gradients = torch.autograd.grad(expected, [one for one, _ in pairs])
        gradients = torch.autograd.grad(found, [other for _, other in pairs])
        assert sum(g.abs().sum().item() for g in gradients) > 1
        for one, other in zip(expected_gradients, gradients, strict=True):
            assert (one.reshape(other.shape) - other).abs().max().item() < 1e-6


def test_the_reference_starts_where_the_library_starts() -> None:
    """The same mean, and the same spread but for the floor that each states."""
    module = reference("conv_vae")
    train = datasets.load(DataConfig(source="digits"))["train"].batch()
    theirs = module.VAE(train.mean(0), train.std(0, correction=0))
    spec = DataSpec((1, 8, 8), "levels", 17)
    ours = compose(settle(resolve("conv-vae", {}, {}), spec), spec)
    start = ours.likelihood.initialize(train.mean(0), train.std(0, correction=0))
    spread = train.std(0, correction=0) > 0.05
    assert theirs.bias[0].detach().numpy() == pytest.approx(start[0].numpy(), abs=1e-6)
    assert theirs.bias[1][spread].detach().numpy() == pytest.approx(start[1][spread].numpy(), abs=1e-6)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_reference_fits_two_screens_and_stands_alone(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 150
    assert "vaelab" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_reference_runs(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(file), "--epochs", "3", "--out", "picture.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = {
        name: float(value)
        for name, value in re.findall(r"(ELBO|rate|distortion|log p\(x\)).*?(-?\d+\.\d+) ±", done.stdout)
    }
    assert found["ELBO"] == pytest.approx(-(found["rate"] + found["distortion"]), abs=0.02)
    assert found["ELBO"] < found["log p(x)"] < 0
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] > 800
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
