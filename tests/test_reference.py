"""The single-file references and the library give the same loss and the same gradients, in float64."""

import importlib.util
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from exact import PCA, digits_16
from PIL import Image
from torch import Tensor

from vaelab import data as datasets
from vaelab import recipes
from vaelab.composition import compose, settle
from vaelab.config import DataConfig, resolve
from vaelab.data.spec import DataSpec
from vaelab.model import VAE
from vaelab.noise import generator
from vaelab.objectives import ELBO, IWAE, Forward

FOLDER = Path(__file__).parents[1] / "reference"
FILES = sorted(FOLDER.glob("*.py"))


def reference(name: str, folder: Path = FOLDER) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(samples: int, x: Tensor, latent_dim: int) -> Tensor:
    """The noise that the library draws from generator(7)."""
    return torch.randn(samples, len(x), latent_dim, dtype=torch.float64, generator=generator(7))


def mlp() -> tuple[ModuleType, torch.nn.Module, VAE, Tensor]:
    module = reference("vae")
    x = (torch.rand(6, 64, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    theirs = module.VAE(x.mean(0)).double()
    keys = {"model.latent_dim": module.LATENT_DIM, "network.hidden": [module.HIDDEN]}
    spec = DataSpec((64,), "binary", 2)
    return module, theirs, compose(settle(resolve("vae", {}, keys), spec), spec).double(), x


def iwae() -> tuple[ModuleType, torch.nn.Module, VAE, Tensor]:
    module = reference("iwae")
    x = (torch.rand(6, 64, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    theirs = module.VAE(x.mean(0)).double()
    network = {"network.hidden": [module.HIDDEN], "network.activation": "gelu"}
    spec = DataSpec((64,), "binary", 2)
    keys = {"model.latent_dim": module.LATENT_DIM, **network}
    return module, theirs, compose(settle(resolve("iwae", recipes.load("iwae").tables, keys), spec), spec).double(), x


def conv() -> tuple[ModuleType, torch.nn.Module, VAE, Tensor]:
    module = reference("conv_vae")
    x = torch.randint(0, 17, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0)).double() / 16
    theirs = module.VAE(x.mean(0), x.std(0)).double()
    keys = {"model.latent_dim": module.LATENT_DIM, "network.name": "conv"}
    spec = DataSpec((1, 8, 8), "levels", 17)
    return module, theirs, compose(settle(resolve("conv-vae", {}, keys), spec), spec).double(), x


def shared(theirs: torch.nn.Module, ours: VAE) -> list[tuple[Tensor, Tensor]]:
    """Pairs of parameters of the reference and the library, set to the same random values."""
    parts = [(theirs.encoder, ours.encoder), (theirs.head, ours.posterior.head), (theirs.decoder, ours.decoder.layers)]
    pairs = [(theirs.bias, ours.decoder.bias)]
    for part, other in parts:
        pairs += zip(part.parameters(), other.parameters(), strict=True)
    assert sum(one.numel() for one, _ in pairs) == sum(p.numel() for p in ours.parameters())
    noise = torch.Generator().manual_seed(1)
    for one, other in pairs:
        one.data += 0.1 * torch.randn(one.shape, generator=noise).double()
        other.data.copy_(one.data.reshape(other.shape))
    return pairs


@pytest.mark.parametrize("make", [mlp, conv])
def test_loss_and_gradients_agree(make) -> None:  # type: ignore[no-untyped-def]
    module, theirs, ours, x = make()
    pairs = shared(theirs, ours)
    for samples, objective, loss in (
        (1, ELBO(), module.loss),
        (3, ELBO(num_samples=3), module.loss),
        (5, IWAE(num_samples=5), lambda *arguments: -module.log_px(*arguments).mean()),
    ):
        eps = drawn(samples, x, ours.latent_dim)
        expected = loss(theirs, x, eps)
        found = objective(ours.terms(x, samples, generator(7))).value
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)
        expected_gradients = torch.autograd.grad(expected, [one for one, _ in pairs])
        gradients = torch.autograd.grad(found, [other for _, other in pairs])
        assert sum(g.abs().sum().item() for g in gradients) > 1
        for one, other in zip(expected_gradients, gradients, strict=True):
            assert (one.reshape(other.shape) - other).abs().max().item() < 1e-6


@pytest.mark.parametrize("samples", [1, 5, 20])
def test_the_importance_weighted_bound_and_its_gradient_agree(samples: int) -> None:
    """L_K against the library's; the gradient of the surrogate, Burda et al. eq. 14, against that of L_K."""
    module, theirs, ours, x = iwae()
    pairs = shared(theirs, ours)
    eps = drawn(samples, x, ours.latent_dim)
    found = IWAE(num_samples=samples)(ours.terms(x, samples, generator(7)))
    log_w, _ = module.log_weights(theirs, x, eps)
    bound, surrogate = module.bound(log_w).mean(), module.surrogate(log_w).mean()
    assert -module.loss(theirs, x, eps).item() == bound.item()
    assert bound.item() == pytest.approx(found.metrics["bound"].item(), abs=1e-6)
    gradients = torch.autograd.grad(found.value, [other for _, other in pairs])
    assert sum(g.abs().sum().item() for g in gradients) > 1
    for value in (bound, surrogate):
        expected = torch.autograd.grad(-value, [one for one, _ in pairs], retain_graph=True)
        for one, other in zip(expected, gradients, strict=True):
            assert (one.reshape(other.shape) - other).abs().max().item() < 1e-6
    # The surrogate's value is above the bound, by the divergence of the weights from equal ones.
    share = log_w.softmax(0)
    divergence = (share * (share.log() + math.log(samples))).sum(0).mean()
    assert (surrogate - bound).item() == pytest.approx(divergence.item(), abs=1e-9)
    assert samples == 1 or divergence > 0.1


def test_bounds_of_nested_groups_rise_for_every_picture() -> None:
    module = reference("iwae")
    log_w = 3 * torch.randn(500, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = [module.bounds(log_w, k) for k in module.KS]
    assert torch.allclose(values[0], log_w.mean(0))
    assert torch.allclose(values[-1].exp(), log_w.exp().mean(0))
    by_hand = torch.stack([log_w[i : i + 5].exp().mean(0).log() for i in range(0, 500, 5)]).mean(0)
    assert torch.allclose(module.bounds(log_w, 5), by_hand)
    assert all((lower < upper).all() for lower, upper in pairwise(values))


def linear(latent_dim: int, variance: float | None) -> tuple[ModuleType, torch.nn.Module, VAE, Tensor]:
    module = reference("linear_vae")
    x = torch.as_tensor(digits_16())[:6]
    theirs = module.LinearVAE(x, latent_dim, variance).double()
    if variance is not None:
        theirs.log_noise.data.fill_(math.log(variance))  # as exactly as float64 has it
    scale = {} if variance is None else {"likelihood.scale": math.sqrt(variance)}
    spec = DataSpec((64,), "real", None)
    keys = {"model.latent_dim": latent_dim, **scale}
    return (
        module,
        theirs,
        compose(settle(resolve("linear-vae", recipes.load("linear-vae").tables, keys), spec), spec).double(),
        x,
    )


@pytest.mark.parametrize("variance", [None, 0.02])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_linear_loss_and_gradients_agree(samples: int, variance: float | None) -> None:
    """The library's encoder is V x + c, with a variance that may depend on x: here c = -V mu, and it does not."""
    module, theirs, ours, x = linear(10, variance)
    noise = torch.Generator().manual_seed(1)
    leaves = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    for leaf in leaves.values():
        leaf.data += 0.1 * torch.randn(leaf.shape, generator=noise).double()
    to_mean = theirs.encoder.weight
    state = {
        "posterior.head.weight": torch.cat([to_mean, torch.zeros_like(to_mean)]),
        "posterior.head.bias": torch.cat([-to_mean @ theirs.mu, theirs.log_variance]),
        "decoder.layers.weight": theirs.decoder.weight,
        "decoder.bias": theirs.mu[None],
    }
    if variance is None:  # the library's scale has a floor
        floored = theirs.log_noise.exp() - ours.likelihood.scale_floor**2
        state["likelihood.log_scale"] = 0.5 * floored.log()[None]
    assert set(state) == {name for name, _ in ours.named_parameters()}
    forward = Forward(ours, ELBO(num_samples=samples))
    found = torch.func.functional_call(
        forward, {f"model.{name}": value for name, value in state.items()}, (x, generator(7), None)
    ).value
    expected = -module.elbo(theirs, x, drawn(samples, x, 10)).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    expected_gradients = torch.autograd.grad(expected, list(leaves.values()))
    gradients = torch.autograd.grad(found, list(leaves.values()))
    assert sum(g.abs().sum().item() for g in gradients) > 1
    for one, other in zip(expected_gradients, gradients, strict=True):
        assert (one - other).abs().max().item() < 1e-6


DIGITS = digits_16()
EXACT = PCA.of(DIGITS)


def test_the_exact_answers_of_the_linear_vae() -> None:
    """Probabilistic PCA's log-likelihood, and reverse water-filling at sigma^2 = 0.02, all over the 1797 digits."""
    module = reference("linear_vae")
    eigenvalues = module.spectrum(torch.as_tensor(DIGITS))
    for q, published in {2: 0.0057, 5: 8.9076, 10: 17.4519, 20: 27.2773}.items():
        log_px_z, kl, _ = module.exact(eigenvalues, q, EXACT.noise_variance(q))
        assert (log_px_z - kl.sum()).item() == pytest.approx(published, abs=5e-5)
        assert (log_px_z - kl.sum()).item() == pytest.approx(EXACT.log_likelihood(q), abs=1e-9)
    log_px_z, kl, squares = module.exact(eigenvalues, 40, module.LEVEL)
    assert kl.sum().item() == pytest.approx(21.676, abs=5e-4)
    assert squares.item() == pytest.approx(0.79202, abs=5e-6)
    assert int((kl > 0).sum()) == 30


@pytest.mark.parametrize(("q", "variance"), [(10, None), (40, 0.02)])
def test_the_linear_elbo_at_the_optimum_is_the_exact_answer(q: int, variance: float | None) -> None:
    """At PCA's weights: every term equals the exact one, the ELBO is log p(x) picture by picture, drawn z agree."""
    module = reference("linear_vae")
    x = torch.as_tensor(DIGITS)
    level = EXACT.noise_variance(q) if variance is None else variance
    model = module.LinearVAE(x, q, level).double()
    kept = torch.as_tensor(EXACT.eigenvalues[:q].copy()).clamp(min=level)
    weight = torch.as_tensor(EXACT.eigenvectors[:, :q].copy()) * (kept - level).sqrt()
    model.decoder.weight.data = weight
    model.encoder.weight.data = (weight / kept).T
    model.log_variance.data = (level / kept).log()
    model.log_noise.data = torch.tensor(level, dtype=torch.float64).log()
    with torch.no_grad():
        for found, expected in zip(module.terms(model, x), module.exact(module.spectrum(x), q, level), strict=True):
            assert (found.mean(0) - expected).abs().max().item() < 1e-9
        assert (module.elbo(model, x) - module.log_px(model, x)).abs().max().item() < 1e-8
        _, _, squares = module.terms(model, x, torch.randn(50, *x.shape[:1], q, generator=generator(1)).double())
        expected_squares = module.terms(model, x)[2].mean().item()
    assert squares.mean().item() == pytest.approx(expected_squares, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("q", "variance"), [(10, None), (40, 0.02)])
def test_the_linear_reference_reaches_the_exact_answer(q: int, variance: float | None) -> None:
    module = reference("linear_vae")
    x = torch.as_tensor(DIGITS).float()
    model = module.LinearVAE(x, q, variance)
    module.fit(model, x, 1500, torch.manual_seed(0))
    with torch.no_grad():
        log_px_z, kl, squares = (value.double().mean(0) for value in module.terms(model, x))
    best = module.exact(module.spectrum(x), q, variance or EXACT.noise_variance(q))
    assert -0.02 < (log_px_z - kl.sum() - best[0] + best[1].sum()).item() < 1e-4
    assert kl.sum().item() == pytest.approx(best[1].sum().item(), abs=0.05)
    assert squares.item() == pytest.approx(best[2].item(), rel=2e-3)


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


def check_vae(output: str) -> None:
    found = {
        name: float(value) for name, value in re.findall(r"(ELBO|rate|distortion|log p\(x\)).*?(-?\d+\.\d+) ±", output)
    }
    assert found["ELBO"] == pytest.approx(-(found["rate"] + found["distortion"]), abs=0.02)
    assert found["ELBO"] < found["log p(x)"] < 0


def check_iwae(output: str) -> None:
    _, *parts = output.split("trained on L_")
    for part in parts:
        bounds = [
            float(re.search(rf"  {name} +(-\d+\.\d+) ± 0\.\d+", part)[1]) for name in ("L_1", "L_5", "L_50", "L_500")
        ]  # type: ignore[index]
        assert bounds == sorted(bounds) and bounds[0] < bounds[-1]
    assert len(parts) == 2


def check_linear_vae(output: str) -> None:
    """Three epochs are far from the optimum, but no ELBO is above what PCA says, and none above its own log p(x)."""
    assert re.findall(r"^(\d+) latents", output, re.MULTILINE) == ["10", "40"]
    best, trained = (
        [float(value) for value in re.findall(rf"{name}: ELBO (-?\d+\.\d+)", output)] for name in ("PCA", "trained")
    )
    elbos, exact = (
        [float(value) for value in re.findall(rf"{name} +(-?\d+\.\d+) ±", output)]
        for name in ("ELBO", r"log p\(x\), exact")
    )
    for lower, upper in ((trained, best), (elbos, exact)):
        assert len(lower) == len(upper) == 2
        assert all(one < other for one, other in zip(lower, upper, strict=True))


def check_bits_back(output: str) -> None:
    """The ledger adds up: line by line, to the difference that is told, and to the length of the message."""
    lines = re.findall(r"^(?:\w[^-\n]*?)((?: +-?\d+\.\d\d){6})$", output, re.MULTILINE)
    rows = [[float(value) for value in line.split()] for line in lines]
    assert len(rows) == 6
    for pop, push_x, push_z, net, bound, difference in rows[:5]:
        assert pop + push_x + push_z == pytest.approx(net, abs=0.02)
        assert net - bound == pytest.approx(difference, abs=0.02)
    assert abs(rows[4][5]) < 4 * rows[5][5] < 2
    total = re.search(r"^message: (\d+) bytes, 16 of them initial; decoded", output, re.MULTILINE)
    assert total is not None and int(total[1]) == pytest.approx(180 * rows[4][3] / 8 + 16, abs=1)


CHECKS = {
    "vae": check_vae,
    "conv_vae": check_vae,
    "iwae": check_iwae,
    "linear_vae": check_linear_vae,
    "bits_back": check_bits_back,
}


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=[pytest.mark.slow] * (file.stem != "vae"), id=file.stem) for file in FILES]
)
def test_a_reference_runs(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(file), "--epochs", "3", "--out", "picture.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    CHECKS[file.stem](done.stdout)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] > 800
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", ["conv_vae", "iwae", "linear_vae"])
def test_no_epochs_are_refused_in_one_line(name: str, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--epochs", "0"])
    with pytest.raises(SystemExit) as stop:
        reference(name).main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"{name}.py: error: argument --epochs: must be at least 1, not 0"
    ]
