"""The doctor and somebody else's VAE: each well-known mistake is named with its line, a correct model left alone.

The models (`foreign_models.py`) are written in the styles of tutorials. A mistake is one replacement in the text of a
model that is well; the doctor must name it, and nothing else.
"""

import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from foreign_models import WELL
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import vaelab
from vaelab import cli
from vaelab.config import DataConfig
from vaelab.data import Dataset, load
from vaelab.diagnosis import Diagnosis, foreign
from vaelab.diagnosis.foreign import examination
from vaelab.diagnosis.foreign.loss_formulas import EXCHANGED, REVERSED
from vaelab.diagnosis.foreign.loss_terms import take_apart
from vaelab.errors import InputError

Examine = Callable[..., Diagnosis]
Changes = tuple[tuple[str, str], ...]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Write a model of `WELL` with some of its text replaced: the options of the doctor that name it."""

    def written(style: str, *changes: tuple[str, str], seed: int = 0) -> dict[str, str]:
        text, model, loss = WELL[style]
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        text = f"import torch\ntorch.manual_seed({seed})\n" + text
        file = tmp_path / f"{style.replace('-', '_')}_{abs(hash(text))}.py"
        file.write_text(text, encoding="utf-8")
        return {"model": f"{file}:{model}", "loss": f"{file}:{loss}"}

    return written


@functools.cache
def digits(binarize: str) -> Dataset:
    return load(DataConfig(source="digits", binarize=binarize))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def examine(write: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Write it, and examine it on digits of two levels. They are read once."""

    def load_once(keys: DataConfig) -> Dataset:
        return digits(keys.binarize)

    monkeypatch.setattr(vaelab.data, "load", load_once)

    def examined(style: str, *changes: tuple[str, str], loss: bool = True, seed: int = 0, **keys: Any) -> Diagnosis:
        names = write(style, *changes, seed=seed)
        overrides = {"data.binarize": "threshold", **keys}
        return vaelab.doctor(
            data="digits", overrides=overrides, model=names["model"], loss=names["loss"] if loss else None
        )

    return examined


def names(found: Diagnosis) -> list[str]:
    return sorted(finding.name for finding in found.alarms)


def text_at(tmp_path: Path, place: str) -> str:
    """The line of a file that `file.py:23` names."""
    name, _, line = place.rpartition(":")
    return (tmp_path / name).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip()


# -- models that are well ------------------------------------------------------------------------------------------


OUTPUTS = {
    # style: reconstruction, mean, log-variance, and how that is read, latents
    "classic": ("output 0", "output 1 (mu)", "output 2 (logvar)", "log-variance", 8),
    "sequential": ('output "logits"', 'output "mean"', 'output "log_var"', "log-variance", 6),
    "convolutions": ("output 2 (recon)", "output 0 (mu)", "output 1 (logvar)", "log-variance", 5),
    "listed": ("output 2", "output 3 (mu)", "output 0 (log_var)", "log-variance", 64),
    "sigma": ("output 0", "output 1 (loc)", "output 2 (sigma)", "standard-deviation", 4),
    "kept-normal": ("output 0", "output 2 (mu)", "output 3 (sigma)", "standard-deviation", 2),
    "given-parts": ('output "x_hat"', 'output "mean"', 'output "log_var"', "log-variance", 6),
    "by-hand": ("output 2 (pixels)", "output 0 (loc)", "output 1 (log_scale2)", "log-variance", 7),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("style", WELL)
def test_a_correct_model_raises_no_alarm_and_its_outputs_are_told_apart(
    style: str, seed: int, examine: Examine
) -> None:
    for with_loss in (True, False) if seed == 0 else (True,):
        found = examine(style, loss=with_loss, seed=seed)
        assert names(found) == [], str(found)
        assert "unrecognized-loss" not in found
        assert {finding.name for finding in found.findings} <= {illness.name for illness in foreign.ILLNESSES}
        evidence = found["outputs"].evidence
        keys = "reconstruction", "mean", "log_variance", "read_as", "latents"
        assert tuple(evidence[key] for key in keys) == OUTPUTS[style]


RAND = "torch.randn_like(std)", "torch.rand_like(std)"
LEFT_ALONE: dict[str, tuple[str, Changes]] = {
    "grey levels": ("classic", ()),
    "a log-stddev that the loss knows of": (
        "classic",
        (
            ("torch.exp(0.5 * logvar)", "torch.exp(logvar)"),
            ("1 + logvar - mu.pow(2) - logvar.exp()", "1 + 2 * logvar - mu.pow(2) - (2 * logvar).exp()"),
        ),
    ),
    "a softplus that the loss knows of": (
        "sigma",
        (
            ("F.softplus(self.raw(h)) + 1e-6", "self.raw(h)"),
            ("Normal(loc, sigma)", "Normal(loc, F.softplus(sigma))"),
            ("Bernoulli(logits=logits).log_prob(x.flatten(1))", "(x.flatten(1) * logits - F.softplus(logits))"),
        ),
    ),
    "heads and outputs that begin at zero": (
        "classic",
        (
            (
                "    def encode(",
                "        for layer in (self.fc21, self.fc22, self.fc4):\n"
                "            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)\n\n"
                "    def encode(",
            ),
        ),
    ),
    "a log-precision that the loss knows of": (
        "classic",
        (
            ("torch.exp(0.5 * logvar)", "torch.exp(-0.5 * logvar)"),
            ("1 + logvar - mu.pow(2) - logvar.exp()", "1 - logvar - mu.pow(2) - (-logvar).exp()"),
        ),
    ),
    "layers in a ModuleList": (
        "classic",
        (("self.fc1 = nn.Linear(64, 40)", "self.fc1 = nn.ModuleList([nn.Linear(64, 40)])"), ("fc1(x)", "fc1[0](x)")),
    ),
    "a weight that is computed": (
        "classic",
        (("self.fc1 = nn.Linear(64, 40)", "self.fc1 = nn.utils.weight_norm(nn.Linear(64, 40))"),),
    ),
    "a layer that a lambda calls": (
        "classic",
        (("self.fc1 = nn.Linear(64, 40)", "self.body = nn.Linear(64, 40)\n        self.fc1 = lambda v: self.body(v)"),),
    ),
    "a frozen layer, in a list": (
        "classic",
        (("self.fc1 = nn.Linear(64, 40)", "self.fc1 = [nn.Linear(64, 40).requires_grad_(False)]"),
         ("fc1(x)", "fc1[0](x)")),
    ),
    "a frozen layer under no_grad": (
        "classic",
        (
            ("self.fc1 = nn.Linear(64, 40)", "self.fc1 = nn.Linear(64, 40).requires_grad_(False)"),
            ("        h1 = F", "        with torch.no_grad():\n            h1 = F"),
        ),
    ),
    "lazy layers": ("classic", (("nn.Linear(64, 40)", "nn.LazyLinear(40)"),)),
    "an old way to draw": ("classic", (("torch.randn_like(std)", "std.data.new(std.size()).normal_()"),)),
    "one latent, whose mean begins far from 0": (
        "classic",
        (
            ("40, 8)", "40, 1)"),
            ("(8, 40)", "(1, 40)"),
            ("    def encode(", "        nn.init.constant_(self.fc21.bias, 30.0)\n\n    def encode("),
        ),
    ),
    "a generator of the model's own": (
        "classic",
        (
            ("        self.fc1", "        self.drawing = torch.Generator().manual_seed(0)\n        self.fc1"),
            ("torch.randn_like(std)", "torch.randn(std.shape, generator=self.drawing)"),
        ),
    ),
    "z beside a function of it": (
        "classic",
        (("nn.Linear(8, 40)", "nn.Linear(16, 40)"), ("decode(z)", "decode(torch.cat([torch.tanh(z), z], 1))")),
    ),
    "a residual that begins with a normalization": (
        "classic",
        (("decode(z)", "decode(z + torch.tanh(F.layer_norm(z, (8,))))"),),
    ),
    "dropout of nothing": ("classic", (("self.decode(z)", "self.decode(F.dropout(z, 0.0, self.training))"),)),
    "a frozen part in evaluation mode": (
        "sequential",
        (("        m, lv = ", "        self.enc[2].requires_grad_(False).eval()\n        m, lv = "),),
    ),
    "two reconstructions, of which one is cut": (
        "classic",
        (("return self.decode(z), mu, logvar", "r = self.decode(z)\n        return (r > 0.5).float(), r, mu, logvar"),),
    ),
    "two reconstructions, of which one is true or false": (
        "classic",
        (("return self.decode(z), mu, logvar", "r = self.decode(z)\n        return r > 0.5, r, mu, logvar"),),
    ),
    "three reconstructions": (
        "sequential",
        (
            (
                "return {",
                "r = self.dec(z).view(x.shape)\n        still = r.detach()\n"
                "        return {'still': still, 'p': torch.sigmoid(still), 'logits': r, ",
            ),
            ('"logits": self.dec(z).view(x.shape), ', ""),
        ),
    ),
    "probabilities before logits": (
        "sequential",
        (("return {", "r = self.dec(z).view(x.shape)\n        return {\"logits\": r, \"p\": torch.sigmoid(r), "),
         ('"logits": self.dec(z).view(x.shape), ', "")),
    ),
    "draws and their opposites": (
        "classic",
        ((RAND[0], "torch.randn(len(std) // 2, 8).repeat(2, 1) * (1 - 2 * (torch.arange(len(std)) >= len(std) // 2)"
          ".float()[:, None])"),),
    ),
    "noise on the examples": (
        "classic",
        (("mu, logvar = self.encode(x", "mu, logvar = self.encode(0.2 * torch.randn_like(x).view(-1, 64) + x"),),
    ),
    "a learned scale in the loss": (
        "listed",
        (
            ("class Loss(nn.Module):\n", "class Loss(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
             "        self.log_sigma = nn.Parameter(torch.zeros(()))\n\n"),
            ('F.binary_cross_entropy(recons, input, reduction="sum")',
             "(F.mse_loss(recons, input, reduction='sum') / self.log_sigma.exp() ** 2 / 2"
             " + input.numel() * self.log_sigma)"),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_what_is_unusual_but_right_is_left_alone(what: str, examine: Examine) -> None:
    style, changes = LEFT_ALONE[what]
    found = examine(style, *changes, **{"data.binarize": "none"})
    assert names(found) == [], str(found)
    assert "unrecognized-loss" not in found


# -- mistakes in forward -------------------------------------------------------------------------------------------

EXP = "torch.exp(0.5 * logvar)"
SICK_MODELS: dict[str, tuple[str, Changes, str, str]] = {
    # what: style, replacements, the finding, what stands in the line that it names ("" if it names none)
    "rand_like": ("classic", (RAND,), "uniform-noise", "eps = torch.rand_like(std)"),
    "rand": ("sequential", (("torch.randn(", "torch.rand("),), "uniform-noise", "z = m + (lv / 2)"),
    "uniform_": ("listed", ((".normal_()", ".uniform_()"),), "uniform-noise", "eps = torch.empty_like"),
    "centered rand": ("classic", ((RAND[0], "2 * torch.rand_like(std) - 1"),), "uniform-noise", "eps ="),
    "rand of unit variance": (
        "classic",
        ((RAND[0], "12**0.5 * (torch.rand_like(std) - 0.5)"),),
        "uniform-noise",
        "eps =",
    ),
    "small noise": ("classic", ((RAND[0], "0.1 * torch.randn_like(std)"),), "noise-scale", "eps ="),
    "small noise, drawn so": ("by-hand", (("torch.normal(0, 1,", "torch.normal(0, 0.3,"),), "noise-scale", "z ="),
    "noise that is cut off": ("classic", ((RAND[0], "torch.randn_like(std).clamp(-1, 1)"),), "noise-scale", "eps ="),
    "noise without a sign": ("classic", ((RAND[0], "torch.randn_like(std).abs()"),), "noise-scale", "eps ="),
    "a sigma that is added": ("classic", (("mu + eps * std", "mu + std + eps"),), "noise-scale", "mu + std + eps"),
    "shifted noise": ("classic", ((RAND[0], "torch.randn_like(std) + 0.5"),), "noise-scale", "eps ="),
    "one draw for all examples": ("classic", ((RAND[0], "torch.randn(8)"),), "shared-noise", "eps ="),
    "one draw for all latents": ("classic", ((RAND[0], "torch.randn(len(std), 1)"),), "shared-noise", "eps ="),
    "a seed in forward": (
        "classic",
        (("eps = ", "torch.manual_seed(0)\n        eps = "),),
        "repeated-noise",
        "torch.manual_seed(0)",
    ),
    "a generator that is made in forward": (
        "classic",
        ((RAND[0], "torch.randn(std.shape, generator=torch.Generator().manual_seed(1))"),),
        "repeated-noise",
        "eps =",
    ),
    "no noise": ("classic", (("return mu + eps * std", "return mu"),), "no-noise", "eps ="),
    "pixels that are changed": (
        "classic",
        (("mu, logvar = self.encode(", "x.mul_(0.5)\n        mu, logvar = self.encode("),),
        "changed-input",
        "x.mul_(0.5)",
    ),
    "pixels that are changed, by an operator": (
        "classic",
        (("mu, logvar = self.encode(", "x -= 0.1 * x\n        mu, logvar = self.encode("),),
        "changed-input",
        "x -= 0.1 * x",
    ),
    "a decoder of the mean": ("classic", (("self.decode(z)", "self.decode(mu)"),), "no-noise", "h3 ="),
    "a decoder of what the mean is made of": (
        "classic",
        (("self.decode(z)", "self.decode(self.fc1(x)[:, :8])"),),
        "no-noise",
        "self.decode(self.fc1(x)[:, :8])",
    ),
    "noise in eval alone": ("given-parts", (("if not self.training", "if self.training"),), "no-noise", ""),
    "nothing drawn": ("sequential", (("torch.randn(m.shape[0], m.shape[1])", "0"),), "no-noise", ""),
    "log-variance as log-stddev": ("classic", ((EXP, "torch.exp(logvar)"),), "log-variance-scale", "std ="),
    "half of the exp of the log-variance": (
        "classic",
        ((EXP, "torch.exp(logvar) * 0.5"),),
        "log-variance-scale",
        "std =",
    ),
    "log-variance as stddev": ("classic", ((EXP, "logvar"),), "log-variance-scale", "return mu + eps * std"),
    "log-variance by softplus": ("classic", ((EXP, "F.softplus(logvar)"),), "log-variance-scale", "std ="),
    "log-variance as log-stddev, in Normal": (
        "convolutions",
        (("logvar.mul(0.5).exp()", "logvar.exp()"),),
        "log-variance-scale",
        "q =",
    ),
    "variance as stddev": (
        "given-parts",
        (("torch.exp(0.5 * log_var))", "torch.exp(log_var))"),),
        "log-variance-scale",
        "z = self.reparameterize(",
    ),
    "exchanged": (
        "classic",
        (("self.reparameterize(mu, logvar)", "self.reparameterize(logvar, mu)"),),
        "swapped-outputs",
        "std =",
    ),
    "one layer for both": ("classic", (("self.fc22(h1)", "self.fc21(h1)"),), "same-output", "return"),
    "sample": ("convolutions", (("q.rsample()", "q.sample()"),), "no-gradient", "z = q.sample()"),
    "sample of Normal": ("sigma", ((".rsample()", ".sample()"),), "no-gradient", "z = Normal(loc, sigma).sample()"),
    "torch.normal": (
        "classic",
        (("return mu + eps * std", "return torch.normal(mu, std)"),),
        "no-gradient",
        "return torch.normal(mu, std)",
    ),
    "detach": (
        "classic",
        (("return self.decode(z)", "return self.decode(z.detach())"),),
        "no-gradient",
        "return self.decode(z.detach())",
    ),
    "data": ("sequential", (("self.dec(z)", "self.dec(z.data)"),), "no-gradient", "return {"),
    "log-variance detached": ("classic", ((EXP, "torch.exp(0.5 * logvar.detach())"),), "no-gradient", "std ="),
    "detach in the decoder": (
        "classic",
        (("self.fc3(z)", "self.fc3(z.detach().requires_grad_())"),),
        "no-gradient",
        "h3 = F.relu(self.fc3(z.detach()",
    ),
    "decoder under no_grad": (
        "classic",
        (("        h3 = F", "        with torch.no_grad():\n          h3 = F"),),
        "no-gradient",
        "with torch.no_grad():",
    ),
    "no sigma": ("classic", (("mu + eps * std", "mu + eps"),), "no-gradient", "return mu + eps"),
    "body under no_grad": (
        "classic",
        (("        h1 = F", "        with torch.no_grad():\n            h1 = F"),),
        "no-gradient",
        "with torch.no_grad():",
    ),
    "layers in a list": (
        "classic",
        (("self.fc1 = nn.Linear(64, 40)", "self.fc1 = [nn.Linear(64, 40)]"), ("self.fc1(x)", "self.fc1[0](x)")),
        "unregistered-layers",
        "self.fc1 = [",
    ),
    "layers in a closure": (
        "classic",
        (("self.fc1 = nn.Linear(64, 40)", "body = nn.Linear(64, 40)\n        self.fc1 = lambda v: body(v)"),),
        "unregistered-layers",
        "self.fc1 = lambda",
    ),
    "sigma on the mean": ("classic", (("mu + eps * std", "mu * std + eps"),), "noise-scale", "return mu * std + eps"),
    "log-variance as log-precision": (
        "classic",
        ((EXP, "torch.exp(-0.5 * logvar)"),),
        "log-variance-scale",
        "std =",
    ),
    "relu on the mean": (
        "classic",
        (("return self.fc21(h1),", "return F.relu(self.fc21(h1)),"),),
        "latent-range",
        "return F.relu(self.fc21(h1))",
    ),
    "relu on the log-variance": (
        "classic",
        (("self.fc22(h1)\n", "F.relu(self.fc22(h1))\n"),),
        "latent-range",
        "F.relu(self.fc22(h1))",
    ),
    "tanh on the mean": (
        "classic",
        (("return self.fc21(h1),", "return torch.tanh(self.fc21(h1)),"),),
        "latent-range",
        "",
    ),
    "sigmoid twice inside": (
        "listed",
        (("nn.Sigmoid())", "nn.Sigmoid(), nn.Sigmoid())"),),
        "double-sigmoid",
        "self.decoder =",
    ),
    "softmax": ("classic", (("torch.sigmoid(self.fc4(h3))", "F.softmax(self.fc4(h3), 1)"),), "output-range", ""),
    "relu at the end": (
        "convolutions",
        (("nn.ConvTranspose2d(8, 1, 4, 2, 1),", "nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.ReLU(),"),),
        "output-range",
        "",
    ),
    "dropout on z": (
        "classic",
        (("self.decode(z)", "self.decode(F.dropout(z, 0.2, self.training))"),),
        "altered-latent",
        "F.dropout(z, 0.2",
    ),
    "a sphere for z": ("classic", (("self.decode(z)", "self.decode(F.normalize(z))"),), "altered-latent", "normalize"),
    "tanh of z": (
        "listed",
        (("self.decoder(eps", "self.decoder((eps"), ("exp() + mu", "exp() + mu).tanh()")),
        "altered-latent",
        "tanh()",
    ),
    "batch normalization of z": (
        "sequential",
        (("nn.Linear(latent, 50), nn.ReLU()", "nn.BatchNorm1d(latent), nn.Linear(latent, 50), nn.ReLU()"),),
        "altered-latent",
        "self.dec(z)",
    ),
    "z over its length": (
        "classic",
        (("self.decode(z)", "self.decode(z / z.norm(dim=1, keepdim=True))"),),
        "altered-latent",
        "z.norm(",
    ),
    "relu of z, in place": (
        "sequential",
        (("nn.Linear(latent, 50), nn.ReLU()", "nn.ReLU(inplace=True), nn.Linear(latent, 50), nn.ReLU()"),),
        "altered-latent",
        "self.dec(z)",
    ),
    "tanh of z, whose noise is like the mean": (
        "classic",
        (("self.decode(z)", "self.decode(torch.tanh(z))"), ("randn_like(std)", "randn_like(mu)")),
        "altered-latent",
        "torch.tanh(z)",
    ),
    "eval of a part": (
        "sequential",
        (("        m, lv = ", "        self.enc.train(False)\n        m, lv = "),),
        "changed-mode",
        "self.enc.train(False)",
    ),
    "eval in forward": (
        "sequential",
        (("        m, lv = ", "        self.eval()\n        m, lv = "),),
        "changed-mode",
        "self.eval()",
    ),
    "a frozen encoder": (
        "classic",
        (
            (
                "    def encode(",
                "        for layer in (self.fc1, self.fc21, self.fc22):\n"
                "            layer.requires_grad_(False)\n\n"
                "    def encode(",
            ),
        ),
        "no-gradient",
        "layer.requires_grad_(False)",
    ),
    "encode under no_grad": (
        "classic",
        (("        mu, logvar = self", "        with torch.no_grad():\n            mu, logvar = self"),),
        "no-gradient",
        "with torch.no_grad():",
    ),
    "nan": (
        "classic",
        (("return torch.sigmoid", "return 0 * z[:, :1].abs().neg().sqrt() + torch.sigmoid"),),
        "not-finite",
        "",
    ),
}


def check(found: Diagnosis, what: str, tmp_path: Path) -> None:
    _, _, name, line = SICK_MODELS[what]
    assert names(found) == [name], str(found)
    assert all(len(row) <= 80 for row in str(found).splitlines() if "/" not in row)
    if line:
        assert line in text_at(tmp_path, found[name].evidence["line"]), str(found)


@pytest.mark.parametrize("what", SICK_MODELS)
def test_a_mistake_in_the_model_is_named_with_its_line(what: str, examine: Examine, tmp_path: Path) -> None:
    style, changes, *_ = SICK_MODELS[what]
    check(examine(style, *changes), what, tmp_path)


@pytest.mark.parametrize(
    "what", ["rand_like", "nothing drawn", "log-variance as stddev", "sample", "torch.normal", "nan"]
)
def test_a_mistake_in_the_model_is_named_without_a_loss_too(what: str, examine: Examine, tmp_path: Path) -> None:
    style, changes, *_ = SICK_MODELS[what]
    check(examine(style, *changes, loss=False), what, tmp_path)


@pytest.mark.parametrize(("name", "expected"), [("logvar", ["log-variance-scale"]), ("spread", [])])
def test_a_standard_deviation_is_no_log_variance_if_it_is_called_so(
    name: str, expected: list[str], examine: Examine
) -> None:
    changes = ("return self.decode(z), mu, logvar", f"{name} = logvar\n        return self.decode(z), mu, {name}")
    found = examine("classic", ("self.fc22(h1)\n", "F.softplus(self.fc22(h1))\n"), (EXP, "logvar"), changes, loss=False)
    assert names(found) == expected, str(found)


@pytest.mark.parametrize(("scale", "shift", "seed"), [(0.5, 0.0, 0), (1.3, 0.0, 1), (1.0, 0.2, 2), (1.05, 0.05, 3)])
def test_the_moments_of_the_noise_are_those_that_were_put_in(
    scale: float, shift: float, seed: int, examine: Examine
) -> None:
    found = examine("classic", (RAND[0], f"{scale} * torch.randn_like(std) + {shift}"), seed=seed, loss=False)
    if max(abs(scale - 1), shift) <= 0.1:
        assert names(found) == []
        return
    evidence = found["noise-scale"].evidence
    assert evidence["mean"] == pytest.approx(shift, abs=0.01)
    assert evidence["standard_deviation"] == pytest.approx(scale, rel=0.01)


def test_the_moments_of_noise_are_those_that_z_has(examine: Examine) -> None:
    """Of |ε| √(2/π) and √(1 − 2/π); of ε cut off at ±1, whose variance is 0.5161."""
    folded = examine("classic", (RAND[0], "torch.randn_like(std).abs()"))["noise-scale"].evidence
    assert folded["mean"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)
    assert folded["standard_deviation"] == pytest.approx(math.sqrt(1 - 2 / math.pi), abs=0.02)
    cut = examine("classic", (RAND[0], "torch.randn_like(std).clamp(-1, 1)"))["noise-scale"].evidence
    assert cut["standard_deviation"] == pytest.approx(math.sqrt(0.5161), abs=0.02)


@pytest.mark.parametrize(
    "normal",
    [
        "2**0.5 * torch.erfinv(2 * torch.rand_like(std).clamp(1e-6, 1 - 1e-6) - 1)",
        "(-2 * torch.rand_like(std).clamp(min=1e-7).log()).sqrt() * torch.cos(6.283185307 * torch.rand_like(std))",
    ],
)
def test_normal_noise_that_is_made_of_uniform_draws_is_well(normal: str, examine: Examine) -> None:
    assert names(examine("classic", (RAND[0], normal))) == []
    assert names(examine("classic", (RAND[0], f"1.5 * {normal}"))) == ["noise-scale"]


WRITTEN_OUT: dict[str, tuple[str, tuple[str, str], str, str]] = {
    "randn": ("classic", RAND, "uniform-noise", "write  eps = torch.randn_like(std)"),
    "half": ("classic", (EXP, "torch.exp(logvar)"), "log-variance-scale", f"write  std = {EXP}"),
    "rsample": ("convolutions", ("q.rsample()", "q.sample()"), "no-gradient", "write  z = q.rsample()"),
    "sum": ("classic", ('reduction="sum"', 'reduction="mean"'), "effective-beta", 'x.view(-1, 64), reduction="sum")'),
    "one draw": ("classic", (RAND[0], "torch.randn(8)"), "shared-noise", "write  eps = torch.randn_like(std)"),
    "centered": ("classic", (RAND[0], "2 * torch.rand_like(std) - 1"), "uniform-noise", "neither shift nor stretch it"),
    "precision": ("classic", (EXP, "torch.exp(-0.5 * logvar)"), "log-variance-scale", f"write  std = {EXP}"),
    "x in place": (
        "classic",
        ("mu, logvar = self.encode(", "x.mul_(2).sub_(1)\n        mu, logvar = self.encode("),
        "changed-input",
        "write  x = x.mul(2).sub(1)",
    ),
    "in place": (
        "classic",
        (EXP, "logvar.mul_(0.5).exp_()"),
        "log-variance-scale",
        "write  std = logvar.mul(0.5).exp()",
    ),
    "in the decoder": ("classic", ("fc3(z)", "fc3(z.detach())"), "no-gradient", "write  h3 = F.relu(self.fc3(z))"),
    "relu at the end": (
        "classic",
        ("torch.sigmoid(self.fc4(h3))", "F.relu(self.fc4(h3))"),
        "logits-as-probabilities",
        "put a sigmoid in the place of the ReLU  (there stands: return F.relu(self.fc4(h3)))",
    ),
    "sign": ("classic", ("KLD = -0.5", "KLD = 0.5"), "kl-sign", "write  KLD = -0.5 * torch.sum(1 + logvar"),
    "logits": (
        "by-hand",
        ("nn.Sigmoid()", "nn.Identity()"),
        "logits-as-probabilities",
        "use F.binary_cross_entropy_with_logits",
    ),
}


@pytest.mark.parametrize("what", WRITTEN_OUT)
def test_the_line_to_change_is_written_out(what: str, examine: Examine) -> None:
    style, change, name, remedy = WRITTEN_OUT[what]
    assert remedy in examine(style, change)[name].remedy


def test_an_end_with_a_relu_is_called_so_by_all_findings(examine: Examine) -> None:
    found = examine("classic", ("torch.sigmoid(self.fc4(h3))", "F.relu(self.fc4(h3))"))
    assert [finding.name for finding in found.alarms] == ["logits-as-probabilities", "output-range"]
    assert all("a ReLU" in finding.cause and "no activation" not in finding.cause for finding in found.alarms)


def test_a_decoder_that_is_not_given_z_is_named_with_its_line(examine: Examine, tmp_path: Path) -> None:
    found = examine("classic", ("self.fc3(z)", "self.fc3(torch.zeros_like(z))"))
    assert names(found) == ["no-noise"]
    assert {text_at(tmp_path, one.evidence["line"]) for one in found.alarms} == {
        "h3 = F.relu(self.fc3(torch.zeros_like(z)))"
    }


MEAN_KL = "-0.5 * torch.sum", "-0.5 * torch.mean"
REPAIRED: dict[str, tuple[str, Changes]] = {
    "both means": ("classic", (('reduction="sum"', 'reduction="mean"'), MEAN_KL)),
    "kl mean": ("classic", (MEAN_KL,)),
    "kl mean over latents": ("sequential", (("- 1 - lv).sum(1)", "- 1 - lv).mean(1)"),)),
    "pixel mean": ("sequential", ((".flatten(1).sum(1)", ".flatten(1).mean(1)"),)),
    "vector": ("classic", (('reduction="sum"', 'reduction="none"'),)),
    "rand": ("classic", (RAND,)),
    "one draw": ("classic", ((RAND[0], "torch.randn(8)"),)),
    "list": ("classic", (("self.fc1 = nn.Linear(64, 40)", "self.fc1 = [nn.Linear(64, 40)]"), ("fc1(x)", "fc1[0](x)"))),
    "detach": ("classic", (("self.fc3(z)", "self.fc3(z.detach())"),)),
}


@pytest.mark.parametrize("what", REPAIRED)
def test_what_is_told_to_write_repairs_the_model(what: str, examine: Examine, tmp_path: Path) -> None:
    style, changes = REPAIRED[what]
    sick = examine(style, *changes)
    assert len(sick.alarms) == 1
    more: list[tuple[str, str]] = []
    for told in sick.alarms[0].remedy.replace("\nand ", "\n").splitlines():
        place, _, new = told.partition(": write  ")
        more.append((text_at(tmp_path, place), new))
    assert names(examine(style, *changes, *more)) == []


# -- mistakes in the loss ------------------------------------------------------------------------------------------

B = examination.EXAMPLES
BCE = 'F.binary_cross_entropy(recon_x, x.view(-1, 64), reduction="sum")'
BY_HAND = "-(x.view(-1, 64) * recon_x.log() + (1 - x.view(-1, 64)) * (1 - recon_x).log()).sum()"
MEAN = 'reduction="sum"', 'reduction="mean"'
MSE = "F.binary_cross_entropy(", "F.mse_loss("
NO_SIGMOID = "torch.sigmoid(self.fc4(h3))", "self.fc4(h3)"
KL = "1 + logvar - mu.pow(2) - logvar.exp()"
SICK_LOSSES: dict[str, tuple[str, Changes, list[str], float | None]] = {
    # what: style, replacements, the findings, the effective β (of a squared error: σ) by hand
    "bce mean, kl sum": ("classic", (MEAN,), ["effective-beta"], 64 * B),
    "both means": ("classic", (MEAN, ("-0.5 * torch.sum", "-0.5 * torch.mean")), ["effective-beta"], 64 / 8),
    "pixel mean": ("sequential", ((".flatten(1).sum(1)", ".flatten(1).mean(1)"),), ["effective-beta"], 64),
    "kl mean over latents": ("sequential", (("- 1 - lv).sum(1)", "- 1 - lv).mean(1)"),), ["effective-beta"], 1 / 6),
    "kl over the batch twice": (
        "listed",
        (("recons_loss + kld_loss,", "recons_loss + kld_loss / len(mu),"),),
        ["effective-beta"],
        1 / B,
    ),
    "beta of 4": ("classic", (("return BCE + KLD", "return BCE + 4 * KLD"),), ["effective-beta"], 4),
    "beta in a class": ("by-hand", (("beta=1.0", "beta=8.0"),), ["effective-beta"], 8),
    "tiny beta": ("given-parts", (("kld_weight=1.0", "kld_weight=0.00001"),), ["effective-beta"], 0.2 * 1e-5**0.5),
    "kl sign": ("classic", (("KLD = -0.5", "KLD = 0.5"),), ["kl-sign"], None),
    "kl subtracted": ("sequential", (("(rec + kl)", "(rec - kl)"),), ["kl-sign"], None),
    "elbo in place of a loss": ("by-hand", (("-(ll - ", "(ll - "),), ["kl-sign", "reconstruction-term"], None),
    "kl without the half": ("classic", (("-0.5 * torch.sum", "-torch.sum"),), ["kl-formula"], None),
    "kl without a half": ("sequential", (("0.5 * (lv.exp() + m**2", "(0.5 * lv.exp() + m**2"),), ["kl-formula"], None),
    "kl without the square": ("classic", (("mu.pow(2)", "mu"),), ["kl-formula"], None),
    "kl with a sign inside": ("classic", (("- mu.pow(2)", "+ mu.pow(2)"),), ["kl-formula"], None),
    "kl without the log": ("sequential", (("- 1 - lv)", "- 1)"),), ["kl-formula"], None),
    "kl without the exp": ("classic", ((KL, "1 + logvar - mu.pow(2) - logvar"),), ["kl-formula"], None),
    "kl of another scale": ("sequential", (("lv.exp()", "(lv / 2).exp()"),), ["kl-formula"], None),
    "kl of sigma without halves": (
        "kept-normal",
        (("(sigma**2 / 2 + mu**2 / 2 -", "(sigma**2 + mu**2 -"),),
        ["kl-formula"],
        None,
    ),
    "kl of the wrong thing": (
        "sigma",
        (("kl_divergence(Normal(loc, sigma), Normal(0, 1))", "-0.5 * (1 + sigma - loc**2 - sigma.exp())"),),
        ["log-variance-scale"],
        None,
    ),
    "kl reversed": (
        "convolutions",
        (
            ("kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0))",
             "kl_divergence(Normal(0.0, 1.0), Normal(mu, (0.5 * logvar).exp()))"),
        ),
        ["kl-formula"],
        None,
    ),
    "kl of exchanged arguments": ("by-hand", (("p, x, m, v)", "p, x, v, m)"),), ["swapped-outputs"], None),
    "no kl": ("classic", (("return BCE + KLD", "return BCE"),), ["no-kl"], None),
    "kl detached": ("classic", (("return BCE + KLD", "return BCE + KLD.item()"),), ["no-gradient"], None),
    "sigmoid, and logits": (
        "classic",
        (("binary_cross_entropy(", "binary_cross_entropy_with_logits("),),
        ["double-sigmoid"],
        None,
    ),
    "sigmoid again in the loss": (
        "classic",
        (("binary_cross_entropy(recon_x", "binary_cross_entropy(torch.sigmoid(recon_x)"),),
        ["double-sigmoid"],
        None,
    ),
    "no sigmoid": ("classic", (NO_SIGMOID,), ["logits-as-probabilities"], None),
    "no sigmoid, a formula": (
        "classic",
        (NO_SIGMOID, (BCE, BY_HAND)),
        ["logits-as-probabilities", "undefined-loss"],
        None,
    ),
    "arguments exchanged": (
        "sequential",
        (("(logits, x, reduction", "(x, logits, reduction"),),
        ["reconstruction-term"],
        None,
    ),
    "half of the cross-entropy": (
        "classic",
        ((BCE, "-(x.view(-1, 64) * (recon_x + 1e-8).log()).sum()"),),
        ["reconstruction-term"],
        None,
    ),
    "sign of the distortion": ("sequential", (("(rec + kl)", "(kl - rec)"),), ["reconstruction-term"], None),
    "logarithm of zero": ("classic", ((BCE, BY_HAND),), ["undefined-loss"], None),
    "squared error, sum": ("classic", (MSE,), ["squared-error-without-scale"], 0.5**0.5),
    "squared error, mean": ("classic", (MSE, MEAN), ["effective-beta"], (64 * B / 2) ** 0.5),
    "squared error, pixel mean": (
        "convolutions",
        (("((recon - x) ** 2).sum() / (2 * 0.15**2)", "((recon - x) ** 2).mean() * len(x)"),),
        ["effective-beta"],
        32**0.5,
    ),
    "Gaussian of scale 1": ("given-parts", (("(x_hat, 0.2)", "(x_hat, 1.0)"),), ["squared-error-without-scale"], 1),
    "broadcast": ("convolutions", (("view(-1, 16, 2, 2))", "view(-1, 16, 2, 2)).squeeze(1)"),), ["broadcast"], None),
}  # fmt: skip


LOSS_LINES: dict[str, tuple[str, Changes, str, str]] = {
    "kl mean": ("classic", (MEAN_KL,), "effective-beta", "KLD = -0.5 * torch.mean"),
    "kl mean over latents": ("sequential", (("- 1 - lv).sum(1)", "- 1 - lv).mean(1)"),), "effective-beta", "kl ="),
    "kl over the batch twice": (
        "listed",
        (("recons_loss + kld_loss,", "recons_loss + kld_loss / len(mu),"),),
        "effective-beta",
        "kld_loss = torch.mean",
    ),
    "a factor": ("classic", (("BCE + KLD", "BCE + 0.00025 * KLD"),), "effective-beta", "return BCE + 0.00025 * KLD"),
    "a factor of the other": ("classic", (("BCE + KLD", "10 * BCE + KLD"),), "effective-beta", "return 10 * BCE"),
    "no kl": ("classic", (("BCE + KLD", "BCE"),), "no-kl", "return BCE"),
    "no reduction": ("classic", (('reduction="sum"', 'reduction="none"'),), "vector-loss", "BCE ="),
    "a sum too few": ("sequential", ((".flatten(1).sum(1)", ".flatten(1).sum(1, keepdim=True)"),
                                     ("(rec + kl).mean()", "rec + kl")), "vector-loss", "return rec + kl"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOSS_LINES)
def test_a_mistake_in_the_loss_is_named_with_its_line(what: str, examine: Examine, tmp_path: Path) -> None:
    style, changes, name, line = LOSS_LINES[what]
    found = examine(style, *changes)
    assert names(found) == [name], str(found)
    assert line in text_at(tmp_path, found[name].evidence["line"]), str(found)


@pytest.mark.parametrize("latents", [6, 32])
def test_a_mean_over_latents_is_not_taken_for_one_over_examples(latents: int, examine: Examine, tmp_path: Path) -> None:
    found = examine(
        "sequential",
        ("latent=6", f"latent={latents}"),
        ("- 1 - lv).sum(1)", "- 1 - lv).mean(0)"),
        ("(rec + kl).mean()", "rec.mean() + kl.mean()"),
    )
    assert names(found) == ["effective-beta"], str(found)
    assert text_at(tmp_path, found["effective-beta"].evidence["line"]) == "return rec.mean() + kl.mean()"


def test_model_and_loss_of_one_file_share_what_it_holds(
    examine: Examine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = ("import torch.nn as nn\n", "import torch.nn as nn\nprint('executed')\n")
    assert names(examine("classic", counted)) == []
    assert capsys.readouterr().err.count("executed") == 1
    assert names(examine("classic", counted, MEAN)) == ["effective-beta"]  # another text: it is read again


@pytest.mark.parametrize("with_loss", [True, False])
def test_a_class_of_a_notebook_is_examined_though_it_has_no_file(
    with_loss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, model, loss = WELL["classic"]
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec(text.replace("torch.randn_like", "torch.rand_like"), typed)
    found = vaelab.doctor(
        data="digits",
        overrides={"data.binarize": "threshold"},
        model=typed[model],
        loss=typed[loss] if with_loss else None,
    )
    assert names(found) == ["uniform-noise"], str(found)


def test_a_model_that_can_be_called_only_once_is_examined(examine: Examine) -> None:
    once = "assert not hasattr(self, 'called')\n        self.called = True\n        mu, logvar ="
    assert names(examine("classic", ("mu, logvar = self.encode", f"{once} self.encode"))) == []


EACH = "(-0.5 * (1 + logvar - mu.pow(2) - logvar.exp()))"


@pytest.mark.parametrize(
    "free",
    [
        f"torch.clamp({EACH}.mean(0), min=0.1).sum() * len(mu)",
        f"torch.clamp({EACH}.mean(0), min=0.5).sum() * len(mu)",
        f"torch.clamp({EACH}.sum(1).mean(), min=3) * len(mu)",
        f"(({EACH} > 0.5).float() * {EACH}).sum()",
        f"10 * ({EACH}.sum(1).mean() - 5).abs() * len(mu)",
    ],
)
def test_a_kl_that_is_flat_or_falls_where_it_is_small_is_no_mistake(free: str, examine: Examine) -> None:
    """Free bits, and a capacity (Burgess et al. 2018)."""
    found = examine("classic", ("-0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())", free))
    assert names(found) == [] and "unrecognized-loss" in found, str(found)


def test_a_factor_is_not_taken_for_means_that_would_make_the_same(examine: Examine) -> None:
    """64 pixels over 8 latents are 8, too."""
    found = examine("classic", ("return BCE + KLD", "return BCE + 8 * KLD"))["effective-beta"]
    assert found.cause.startswith("a factor of 8 between the two terms") and "8 * KLD" in found.remedy
    means = (('reduction="sum"', 'reduction="mean"'), ("torch.sum(1", "torch.mean(1"))
    found = examine("classic", *means)["effective-beta"]
    assert found.evidence["beta"] == pytest.approx(8) and "averaged over the 8 latents" in found.cause


def test_the_half_of_the_kl_is_not_taken_for_its_weight(examine: Examine) -> None:
    found = examine(
        "sequential", ("0.5 * (lv.exp()", "0.5 * (0.5 * lv.exp()"), ("m**2 - 1 - lv)", "0.5 * m**2 - lv / 2)")
    )
    assert found["effective-beta"].evidence["beta"] == pytest.approx(0.5, rel=1e-3)
    assert found["effective-beta"].evidence["line"] == ""


STRETCHED = (
    'F.binary_cross_entropy_with_logits(logits, x, reduction="none")',
    '(F.mse_loss(logits, 2 * x - 1, reduction="none") / (2 * 0.3**2))',
)
TANH = ('"logits": self.dec(z).view(x.shape)', '"logits": torch.tanh(self.dec(z)).view(x.shape)')


def test_a_tanh_and_an_error_against_stretched_pixels_are_well(examine: Examine) -> None:
    assert names(examine("sequential", STRETCHED, TANH)) == []
    averaged = (STRETCHED[0], STRETCHED[1].replace("(2 * 0.3**2)", "64"))
    assert names(examine("sequential", averaged, TANH)) == ["effective-beta"]


@pytest.mark.parametrize("cut", ["-0.01, 0.01", "-0.5, 0.0", "1.0, 2.0"])
def test_a_log_variance_that_is_cut_to_next_to_nothing_is_named(cut: str, examine: Examine, tmp_path: Path) -> None:
    found = examine(
        "classic", ("return self.fc21(h1), self.fc22(h1)", f"return self.fc21(h1), self.fc22(h1).clamp({cut})")
    )
    assert "latent-range" in names(found)
    assert f"clamp({cut})" in text_at(tmp_path, found["latent-range"].evidence["line"])
    assert names(examine("classic", ("self.fc22(h1)\n", "self.fc22(h1).clamp(-10, 10)\n"))) == []


def test_a_mean_over_the_batch_is_seen_beside_a_sigma_that_is_learned(examine: Examine) -> None:
    changes = (
        ("class Net(", "class Loss(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
         "        self.log_scale = nn.Parameter(torch.zeros(()))\n\n    def forward(self, r, x, m, lv):\n"
         "        nll = (((r - x) / self.log_scale.exp()) ** 2 / 2 + self.log_scale).flatten(1).sum(1).mean()\n"
         "        return nll - 0.5 * torch.sum(1 + lv - m**2 - lv.exp())\n\n\nclass Net("),
        ("def criterion(logits, x, m, lv):", "criterion = Loss()\n\n\ndef unused(logits, x, m, lv):"),
    )  # fmt: skip
    found = examine("sequential", *changes)
    assert names(found) == ["effective-beta"]
    assert found["effective-beta"].evidence["beta"] == pytest.approx(B, rel=1e-6)  # the loss's weight is in float32
    well = (
        "return nll - 0.5 * torch.sum(1 + lv - m**2 - lv.exp())",
        "return nll - 0.5 * (1 + lv - m**2 - lv.exp()).sum(1).mean()",
    )
    assert names(examine("sequential", *changes, well)) == []


def with_scale(made: str, density: str) -> tuple[tuple[str, str], ...]:
    """A loss that learns a scale: how it is made of a weight w, and the term of each pixel."""
    return (
        ("class Net(", "class Loss(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
         "        self.w = nn.Parameter(torch.full((), 0.3))\n\n    def forward(self, r, x, m, lv):\n"
         f"        s = {made}\n        nll = ({density}).flatten(1).sum(1)\n"
         "        return (nll + 0.5 * (lv.exp() + m**2 - 1 - lv).sum(1)).mean()\n\n\nclass Net("),
        ("def criterion(logits, x, m, lv):", "criterion = Loss()\n\n\ndef unused(logits, x, m, lv):"),
    )  # fmt: skip


@pytest.mark.parametrize("made", ["self.w.exp()", "(self.w / 2).exp()", "F.softplus(self.w)", "self.w"])
@pytest.mark.parametrize("density", ["((r - x) / s) ** 2 / 2 + s.log()", "(r - x).abs() / s + s.log()"])
def test_a_mean_over_pixels_is_seen_beside_a_scale_that_is_learned(
    made: str, density: str, examine: Examine, tmp_path: Path
) -> None:
    """Whatever the loss makes its scale of: what counts is ln σ, not the errors' own weight."""
    right = with_scale(made, density)
    assert names(examine("sequential", *right)) == []
    (sick,) = examine("sequential", *right, (".flatten(1).sum(1)", ".flatten(1).mean(1)")).alarms
    assert sick.name == "effective-beta" and sick.severity == "error"
    assert sick.evidence["beta"] == pytest.approx(64, rel=1e-5)
    assert "averaged over the 64 pixels" in sick.cause and text_at(tmp_path, sick.evidence["line"]).startswith("nll")
    told = sick.remedy.partition("write  ")[2]
    assert names(examine("sequential", *right, (".flatten(1).sum(1)", ".flatten(1).mean(1)"),
                         (text_at(tmp_path, sick.evidence["line"]), told))) == []  # fmt: skip


@pytest.mark.parametrize(
    ("density", "weight", "severity"),
    [
        ("((r - x) / s) ** 2 / 2", 0, "error"),
        ("((r - x) / s) ** 2 / 2 - s.log()", -1, "error"),
        ("((r - x) / s) ** 2 / 2 + s.log() / 50", 1 / 50, "error"),
        ("((r - x) / s) ** 2 / 2 + s.log() / 4", 1 / 4, "warning"),
        ("((r - x) / s) ** 2 * 7 + s.log()", 1, ""),  # another unit of s
    ],
)
def test_what_ln_sigma_counts_beside_a_scale_that_is_learned(
    density: str, weight: float, severity: str, examine: Examine
) -> None:
    found = examine("sequential", *with_scale("self.w.exp()", density)).alarms
    assert [one.severity for one in found] == ([severity] if severity else [])
    if severity:
        assert found[0].name == "effective-beta"
        assert found[0].evidence["weight_of_log_sigma"] * B == pytest.approx(weight, rel=1e-5, abs=1e-9)
        assert ("as large as it can" in found[0].message) == (weight <= 0)


def test_a_mean_over_latents_and_examples_is_told_where_it_stands(examine: Examine, tmp_path: Path) -> None:
    kl = "kl = 0.5 * (lv.exp() + m**2 - 1 - lv).sum(1)"
    (sick,) = examine("sequential", (kl, kl.replace("sum(1)", "mean()"))).alarms
    assert sick.evidence["beta"] == pytest.approx(1 / 6)
    assert "sum over the latents, and take the mean over the examples alone" in sick.remedy
    assert text_at(tmp_path, sick.evidence["line"]).startswith("kl = ")


def test_a_log_variance_whose_range_has_no_gradient_is_told_where_it_is_cut(examine: Examine, tmp_path: Path) -> None:
    cut = ("m, lv = self.enc(x).chunk(2, dim=1)", "m, lv = self.enc(x).chunk(2, dim=1)\n        lv = lv.clamp(4, 9)")
    found = examine("sequential", cut)["no-gradient"]
    assert "cut off at 4" in found.message and text_at(tmp_path, found.evidence["line"]) == "lv = lv.clamp(4, 9)"


def test_an_activation_is_found_behind_a_clamp(examine: Examine, tmp_path: Path) -> None:
    rectified = "m, lv = F.relu(self.enc(x)).chunk(2, dim=1)"
    found = examine("sequential", ("m, lv = self.enc(x).chunk(2, dim=1)", f"{rectified}\n        lv = lv.clamp(-9, 9)"))
    told = [one for one in found.alarms if one.name == "latent-range"]
    assert [one.evidence["output"] for one in told] == ["mean", "log-variance"]
    assert all(text_at(tmp_path, one.evidence["line"]) == rectified for one in told)


def test_one_layer_for_mean_and_log_variance_is_told_where_it_is_used(examine: Examine, tmp_path: Path) -> None:
    found = examine("classic", ("self.fc22(h1)", "self.fc21(h1)"))["same-output"]
    assert text_at(tmp_path, found.evidence["line"]) == "return self.fc21(h1), self.fc21(h1)"


SEEN_PAST_Z = {
    "x itself": (("nn.Linear(latent, 50), nn.ReLU()", "nn.Linear(latent + d, 50), nn.ReLU()"),
                 ("self.dec(z)", "self.dec(torch.cat([z, x.flatten(1)], 1))")),
    "a skip connection": (("self.dec(z)", "(self.dec(z) + 0.1 * self.enc[1](x.flatten(1)).sum(1, keepdim=True))"),),
}  # fmt: skip


@pytest.mark.parametrize("what", SEEN_PAST_Z)
@pytest.mark.parametrize("drawn", ["by hand", "as a distribution"])
def test_a_decoder_that_sees_the_example_is_named(what: str, drawn: str, examine: Examine, tmp_path: Path) -> None:
    by_hand = "m + (lv / 2).exp() * torch.randn(m.shape[0], m.shape[1])"
    draw = ((by_hand, "torch.distributions.Normal(m, (lv / 2).exp()).rsample()"),) * (drawn != "by hand")
    assert names(examine("sequential", *draw)) == []
    found = examine("sequential", *draw, *SEEN_PAST_Z[what])
    assert names(found) == ["past-latent"]
    assert "self.dec(" in text_at(tmp_path, found["past-latent"].evidence["line"])


def test_what_takes_the_examples_shape_alone_does_not_see_them(examine: Examine) -> None:
    assert names(examine("sequential", (".view(x.shape)", ".view_as(x)"))) == []


def test_examples_that_depend_on_each_other_are_named(examine: Examine, tmp_path: Path) -> None:
    rows = ("m, lv = self.enc(x).chunk(2, dim=1)", "m, lv = self.enc(x.roll(1, 0) + x).chunk(2, dim=1)")
    found = examine("sequential", rows)
    assert "mixed-examples" in names(found)
    assert text_at(tmp_path, found["mixed-examples"].evidence["line"]) == rows[1]
    own = ("nn.BatchNorm1d(50)", "nn.BatchNorm1d(50, track_running_stats=False)")  # as it was told to
    assert names(examine("sequential", own)) == []


def test_dropout_that_is_never_off_is_named(examine: Examine, tmp_path: Path) -> None:
    changed = ("m, lv = self.enc(x)", "m, lv = F.dropout(self.enc(x), 0.3)")
    found = examine("sequential", changed)
    assert names(found) == ["dropout-in-eval"]
    told = found["dropout-in-eval"].remedy
    assert "F.dropout(self.enc(x), 0.3, training=self.training)" in told
    assert names(examine("sequential", (changed[0], changed[1].replace("0.3", "0.3, training=self.training")))) == []


def test_examples_that_are_all_compared_inside_of_the_loss_are_named(examine: Examine, tmp_path: Path) -> None:
    own = 'rec = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)'
    crossed = "rec = (12.5 * (logits - x.view(len(x), -1)) ** 2).sum((1, 2))"
    found = examine("sequential", (own, crossed), ("self.dec(z).view(x.shape)", "self.dec(z).unsqueeze(1)"))
    assert names(found) == ["broadcast"] and "unrecognized-loss" not in found
    assert text_at(tmp_path, found["broadcast"].evidence["line"]) == crossed


def test_a_loss_with_a_counter_is_not_examined_and_says_so(examine: Examine) -> None:
    counter = (
        (
            "def criterion(logits, x, m, lv):\n",
            "calls = [0]\n\n\ndef criterion(logits, x, m, lv):\n    calls[0] += 1\n",
        ),
        ("(rec + kl).mean()", "(rec + min(1, calls[0] / 1e4) * kl).mean()"),
    )
    found = examine("sequential", *counter)
    assert names(found) == []
    assert "another number each time" in found["unrecognized-loss"].message


@pytest.mark.parametrize(
    ("style", "changes", "says", "told"),
    [
        ("sequential", (("logits, x, red", "logits, x / 255, red"),), "of x / 255", "take out the division by 255"),
        ("classic", (('F.binary_cross_entropy(recon_x, x.view(-1, 64), reduction="sum")',
                      "50 * F.mse_loss(recon_x, (x.view(-1, 64) - 0.5) / 0.5, reduction='sum')"),),
         "with 2x − 1", "compare with x itself"),
    ],
)  # fmt: skip
def test_targets_of_another_scale_than_the_data_are_named(
    style: str, changes: Changes, says: str, told: str, examine: Examine
) -> None:
    found = examine(style, *changes)["reconstruction-term"]
    assert says in found.message and told in found.remedy


def test_outputs_that_keep_off_0_and_1_need_no_warning(examine: Examine) -> None:
    by_hand = (
        'F.binary_cross_entropy(recon_x, x.view(-1, 64), reduction="sum")',
        "-(x.view(-1, 64) * recon_x.log() + (1 - x.view(-1, 64)) * (1 - recon_x).log()).sum()",
    )
    assert names(examine("classic", by_hand)) == ["undefined-loss"]
    kept = ("torch.sigmoid(self.fc4(h3))", "torch.sigmoid(self.fc4(h3)).clamp(1e-6, 1 - 1e-6)")
    assert names(examine("classic", by_hand, kept)) == []


def test_a_number_that_was_logged_is_not_blamed_for_a_lost_gradient(examine: Examine, tmp_path: Path) -> None:
    logged = (
        "    return (rec + kl).mean()",
        "    shown = rec.mean().item()\n    kl = kl.mean().item()\n    return rec.mean() + kl",
    )
    (sick,) = examine("sequential", logged).alarms
    assert sick.name == "no-gradient" and text_at(tmp_path, sick.evidence["line"]) == "kl = kl.mean().item()"
    assert sick.remedy.endswith("write  kl = kl.mean()")


def test_an_encoder_without_gradient_is_told_by_its_decorator(examine: Examine, tmp_path: Path) -> None:
    found = examine("classic", ("    def encode(self, x):", "    @torch.no_grad()\n    def encode(self, x):"))[
        "no-gradient"
    ]
    assert text_at(tmp_path, found.evidence["line"]) == "@torch.no_grad()"


@pytest.mark.parametrize("style", ["sequential", "classic"])  # one layer for both, and one for each
def test_noise_that_sigma_does_not_scale_is_named(style: str, examine: Examine) -> None:
    change = {
        "sequential": ("(lv / 2).exp() * torch.randn(m.shape[0], m.shape[1])", "torch.randn(m.shape[0], m.shape[1])"),
        "classic": ("mu + eps * std", "mu + eps"),
    }[style]
    (sick,) = examine(style, change).alarms
    assert sick.name == "no-gradient" and "without σ" in sick.cause


def test_a_covariance_that_is_given_a_standard_deviation_is_named(examine: Examine, tmp_path: Path) -> None:
    by_hand = "z = m + (lv / 2).exp() * torch.randn(m.shape[0], m.shape[1])"
    drawn = "z = torch.distributions.MultivariateNormal(m, torch.diag_embed({})).rsample()"
    assert names(examine("sequential", (by_hand, drawn.format("lv.exp()")))) == []
    (sick,) = examine("sequential", (by_hand, drawn.format("(lv / 2).exp()"))).alarms
    assert sick.name == "log-variance-scale" and sick.evidence["used_as"] == "doubled log-variance"
    assert text_at(tmp_path, sick.evidence["line"]).startswith("z = ")
    assert "write σ" not in sick.remedy  # it is written in that line


def test_another_number_than_that_of_the_pixels_is_told(examine: Examine) -> None:
    own = 'F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)'
    (sick,) = examine("sequential", (own, "F.binary_cross_entropy_with_logits(logits, x) * 28 * 28")).alarms
    assert sick.evidence["beta"] == pytest.approx(64 / 784)
    assert "multiplied by 784" in sick.cause and "multiply by 64 in place of 784" in sick.remedy


def test_a_softmax_of_z_may_be_meant_so(examine: Examine) -> None:
    found = examine("classic", ("self.decode(z)", "self.decode(F.softmax(z, -1))"))
    assert names(found) == [] and found["altered-latent"].evidence["step"] == "softmax"


def test_a_width_that_is_taken_for_the_number_of_pixels(examine: Examine) -> None:
    """8 is the width, the number of latents, and 64 over 8."""
    own = 'F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)'
    width = "F.binary_cross_entropy_with_logits(logits, x) * x.shape[-1]"
    (sick,) = examine("sequential", (own, width), ("latent=6", "latent=8")).alarms
    assert sick.evidence["beta"] == pytest.approx(8)
    assert "multiplied by 8" in sick.cause and "multiply by 64 in place of 8" in sick.remedy


def test_an_average_of_normal_densities_is_made_a_sum_and_its_chosen_variance_kept(examine: Examine) -> None:
    own = 'rec = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)'
    loss = "rec = F.gaussian_nll_loss(logits, x, torch.full_like(x, 0.04), full=True, reduction='mean')"
    (sick,) = examine("sequential", (own, loss)).alarms
    assert sick.name == "effective-beta" and "averaged over the 64 pixels" in sick.cause
    assert "sum over the pixels, and take the mean over the examples alone" in sick.remedy
    assert "2σ²" not in sick.remedy


@pytest.mark.parametrize(
    "wrong",
    ["kl = 0 * m.sum(1)", "kl = 0.5 * (lv.exp() + m - 1 - lv).sum(1)", "kl = 0.5 * (lv.exp() - m**2 - 1 - lv).sum(1)"],
)
def test_the_kl_that_is_told_is_reduced_as_the_reconstruction_term_is(wrong: str, examine: Examine) -> None:
    right = "kl = 0.5 * (lv.exp() + m**2 - 1 - lv).sum(1)"
    (sick,) = examine("sequential", (right, wrong)).alarms
    told = sick.remedy[sick.remedy.index("kl = ") :].splitlines()[0].partition("  (there stands")[0]
    assert told.endswith(", dim=1).mean()" if "0 *" in wrong else ", dim=1)")  # what returns takes the mean
    assert names(examine("sequential", (right, told))) == []


def test_the_kl_that_is_told_leaves_to_other_lines_what_they_do(examine: Examine) -> None:
    """A sum over all, divided by the number of examples where it is returned."""
    divided = ("return BCE + KLD", "return (BCE + KLD) / x.size(0)")
    right = "KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())"
    (sick,) = examine("classic", divided, (right, right.replace("logvar.exp()", "logvar"))).alarms
    assert sick.name == "kl-formula" and sick.message.endswith("This loss lacks 0.5 exp(s), lacks −0.5 s.")
    told = sick.remedy[sick.remedy.index("KLD = ") :].partition("  (there stands")[0]
    assert names(examine("classic", divided, (right, told))) == []


NO_TERM = {
    "the reconstruction and itself": (("recon_x, x.view(-1, 64)", "recon_x, recon_x.detach().round()"), "x may be"),
    "x and itself": ((BCE, "F.mse_loss(x, x)"), "the reconstruction and x may be"),
    "a root": ((BCE, "F.mse_loss(recon_x, x.view(-1, 64)).sqrt()"), "the root of a sum of squares"),
    "a root of a sum": ((BCE, "torch.norm(recon_x - x.view(-1, 64))"), "the root of a sum of squares"),
}


@pytest.mark.parametrize("what", NO_TERM)
def test_a_term_that_does_not_hold_the_reconstruction_to_the_data(what: str, examine: Examine) -> None:
    change, words = NO_TERM[what]
    (sick,) = examine("classic", change).alarms
    assert (sick.name, sick.severity) == ("reconstruction-term", "error") and words in sick.message


def test_a_mean_over_the_examples_before_the_comparison(examine: Examine) -> None:
    (sick,) = examine("classic", ("recon_x, x.view(-1, 64)", "recon_x.mean(0), x.view(-1, 64).mean(0)")).alarms
    assert sick.name == "broadcast" and "another order" in sick.message and "view_as" not in sick.remedy


def test_a_prior_of_another_scale_is_told_with_its_variance(examine: Examine) -> None:
    wrong = "1 + logvar - mu.pow(2) / 4 - logvar.exp() / 4"
    (sick,) = examine("classic", ("1 + logvar - mu.pow(2) - logvar.exp()", wrong)).alarms
    assert (sick.name, sick.severity) == ("kl-formula", "warning")
    assert sick.evidence["prior_variance"] == pytest.approx(4) and "N(0, 4), not from N(0, 1)" in sick.message


def test_arguments_of_a_kl_that_are_exchanged_in_its_call(examine: Examine) -> None:
    own = "KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())"
    called = "KLD = (lambda mu, logvar: -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()))(logvar, mu)"
    (sick,) = examine("classic", (own, called)).alarms
    assert sick.name == "swapped-outputs" and sick.remedy == "Exchange mean and log-variance where the KL is called."


def test_a_householder_flow_is_no_way_past_z(examine: Examine) -> None:
    """z − 2 v vᵀz / |v|², v from the example: z mirrored. Three times that is none, nor is a z that x is added to."""
    own = "z = self.reparameterize(mu, logvar)"
    turn = f"{own}\n        v = F.normalize(self.fc21(F.relu(self.fc1(x.view(-1, 64)))) + 1, dim=1)\n        z = "
    assert names(examine("classic", (own, f"{turn}z - 2 * v * (v * z).sum(1, keepdim=True)"))) == []
    assert names(examine("classic", (own, f"{turn}z - 6 * v * (v * z).sum(1, keepdim=True)"))) == ["past-latent"]
    assert names(examine("classic", (own, f"{turn}z + v"))) == ["past-latent"]


@pytest.mark.parametrize(
    ("made", "kind"), [("F.elu({})", "as ELU"), ("F.selu({})", "as ELU"), ("F.softmax({}, 1)", "a softmax")]
)
def test_an_activation_on_the_mean_is_called_what_it_is(made: str, kind: str, examine: Examine, tmp_path: Path) -> None:
    (sick,) = examine("classic", ("self.fc21(h1),", f"{made.format('self.fc21(h1)')},")).alarms
    assert sick.name == "latent-range" and kind in sick.message
    assert made.partition("(")[0] in text_at(tmp_path, sick.evidence["line"])


def test_an_activation_that_is_one_of_several_layers_has_the_line_of_its_own(examine: Examine, tmp_path: Path) -> None:
    """A sigmoid ends the decoder, and another the layers of the log-variance."""
    changes = (
        ("self.fc22 = nn.Linear(40, 8)", "self.fc22 = nn.Sequential(nn.Linear(40, 8), nn.Sigmoid())"),
        ("self.fc4 = nn.Linear(40, 64)", "self.fc4 = nn.Sequential(nn.Linear(40, 64), nn.Sigmoid())"),
        ("torch.sigmoid(self.fc4(h3))", "self.fc4(h3)"),
    )
    sick = examine("classic", *changes)
    assert text_at(tmp_path, sick["latent-range"].evidence["line"]).startswith("self.fc22 = nn.Sequential(")


def test_a_log_variance_that_is_shared_by_the_batch(examine: Examine) -> None:
    (sick,) = examine("classic", ("self.fc22(h1)", "self.fc22(h1).mean(0, keepdim=True).expand(len(x), -1)")).alarms
    assert sick.name == "mixed-examples" and sick.evidence["outputs"] == ["reconstructions", "log-variances"]


def test_a_log_standard_deviation_is_not_taken_for_a_log_variance_by_its_name(examine: Examine) -> None:
    found = examine(
        "classic",
        ("eps = torch.randn_like(std)", "eps = torch.full_like(std, 0.3)"),
        ("torch.exp(0.5 * logvar)", "torch.exp(logvar)"),
        ("return self.decode(z), mu, logvar", "log_std = logvar\n        return self.decode(z), mu, log_std"),
        ("1 + logvar - mu.pow(2) - logvar.exp()", "1 + 2 * logvar - mu.pow(2) - (2 * logvar).exp()"),
    )
    assert names(found) == ["no-noise"], str(found)


def test_a_loss_of_each_example_is_left_alone(examine: Examine) -> None:
    assert names(examine("sequential", ("(rec + kl).mean()", "rec + kl"))) == []


def test_a_sum_that_needs_a_mean_over_examples_is_told_so(examine: Examine) -> None:
    found = examine("sequential", ('reduction="none").flatten(1).sum(1)', 'reduction="mean")'))
    remedy = found["effective-beta"].remedy
    assert "sum over the pixels, and take the mean over the examples alone  (there stands: rec =" in remedy


def test_a_standard_deviation_that_is_fitted_to_the_errors_is_no_logarithm_of_zero(examine: Examine) -> None:
    error = "((x - recon) ** 2)"
    found = examine("convolutions", (
        "rec = ((recon - x) ** 2).sum() / (2 * 0.15**2)",
        f"s = {error}.mean().sqrt().log()\n    rec = ({error} / (2 * s).exp() / 2 + s).sum()",
    ))  # fmt: skip
    assert names(found) == [], str(found)


@pytest.mark.parametrize("what", SICK_LOSSES)
def test_a_mistake_in_the_loss_is_named(what: str, examine: Examine) -> None:
    style, changes, expected, number = SICK_LOSSES[what]
    found = examine(style, *changes)
    assert names(found) == sorted(expected), str(found)
    assert all(len(row) <= 80 for row in str(found).splitlines() if "/" not in row)
    if number is not None:
        evidence = found[expected[0]].evidence
        assert evidence["sigma" if "sigma" in evidence else "beta"] == pytest.approx(number, rel=1e-3)


def test_grey_levels_and_a_bernoulli_distribution_do_not_go_together(examine: Examine) -> None:
    found = examine("sigma", **{"data.binarize": "none"})
    assert names(found) == ["likelihood-misfit"], str(found)
    grey = examine("classic", **{"data.binarize": "none"})["likelihood-misfit"]
    assert grey.severity == "info"  # training works


def test_a_kl_that_is_wrong_is_told_term_by_term(examine: Examine) -> None:
    found = examine("classic", ("- mu.pow(2)", "+ mu.pow(2)"))["kl-formula"]
    assert found.evidence["terms"] == pytest.approx({"m²": -0.5, "exp(s)": 0.5, "s": -0.5}, rel=1e-6)
    assert "This loss has −0.5 m² in place of 0.5 m²." in found.message
    assert "write  KLD = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())" in found.remedy


# -- a loss, taken apart -------------------------------------------------------------------------------------------


def _gaussian(r: Tensor, x: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return 3 * kl_divergence(Normal(m, s), Normal(0, 1)).sum() - Normal(r, 0.5).log_prob(x).sum()


def _logits(r: Tensor, x: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rec = F.binary_cross_entropy_with_logits(r, x, reduction="none").mean()
    kl = kl_divergence(Normal(m, s.sqrt()), Normal(0, 1)).sum(1).mean()
    return rec, kl, rec + kl


def _reversed(r: Tensor, x: Tensor, m: Tensor, s: Tensor) -> dict[str, Tensor]:
    kl = kl_divergence(Normal(0, 1), Normal(m, (s / 2).exp()))
    return {"kl": kl.sum(), "loss": (r - x).abs().sum() + 2 * kl.sum()}


def _exchanged(r: Tensor, x: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return nn.BCELoss(reduction="sum")(r, x) + kl_divergence(Normal(s, (m / 2).exp()), Normal(0, 1)).sum()


@pytest.mark.parametrize(
    ("loss", "distance", "weight", "kl", "kl_weight"),
    [
        (_gaussian, "squared error", 1 / (2 * 0.5**2), "standard-deviation", 3),
        (_logits, "binary cross-entropy with logits", 1 / (6 * 10), "variance", 1 / 6),
        (_reversed, "absolute error", 1, REVERSED, 2),
        (_exchanged, "binary cross-entropy", 1, EXCHANGED, 1),
    ],
)
def test_a_loss_is_taken_apart(loss: Any, distance: str, weight: float, kl: str, kl_weight: float) -> None:
    r, x, m, s = torch.rand(6, 10), torch.rand(6, 10), torch.randn(6, 3), torch.rand(6, 3)
    found = take_apart(loss, r, x, m, s)
    assert (found.distance, found.kl.reading or found.kl.wrong) == (distance, kl)
    assert found.weight == pytest.approx(weight, rel=1e-6)
    assert found.kl.weight == pytest.approx(kl_weight, rel=1e-6)
    by_batch = {_logits: (-1, -1)}.get(loss, (0, 0))
    assert found.batch == by_batch and not found.varies
    assert found.ratio == pytest.approx(kl_weight / weight, rel=1e-6)


# -- what cannot be examined, and the command line -----------------------------------------------------------------

REFUSED: dict[str, tuple[Changes, str]] = {
    "several draws": ((("mu + eps * std", "mu + torch.randn(5, *std.shape) * std"),),
                      r"forward returns 5 reconstructions of each example, \[5, 38, 64\] for 38 examples; give"),
    "checkpoints": ((("self.fc1(x)", "torch.utils.checkpoint.checkpoint(self.fc1, x.requires_grad_(), "
                      "use_reentrant=True)"),), "give it use_reentrant=False"),
    "arguments": ((("def __init__(self):", "def __init__(self, width):"),), "VAE wants width; add a function without"),
    "other data": ((("64", "784"),), "does not take examples of shape \\[1, 8, 8\\]"),
    "a shape inside": ((("self.fc22 = nn.Linear(40, 8)", "self.fc22 = nn.Linear(40, 7)"),),
                       r"VAE: forward failed at classic_\w+.py:\d+ with RuntimeError: The size of tensor a"),
    "a name": ((("self.fc1(x)", "self.fc1(y)"),), r"VAE: forward failed at classic_\w+.py:\d+ with NameError"),
    "two outputs": ((("return self.decode(z), mu, logvar", "return self.decode(z), mu"),),
                    r"return \(reconstruction, mean, log-variance\)"),
    "no latents": ((("return self.decode(z), mu, logvar", "return self.decode(z)"),), "no reconstruction of shape"),
    "z alone": (
        (("return self.decode(z), mu, logvar", "return self.decode(z), z, 2 * z"),),
        "no mean and log-variance",
    ),
    "no model": ((("class VAE", "class Other"),), "has no VAE; it has Other, loss"),
    "an error": ((("class VAE", "1 / 0\n\n\nclass VAE"),), "ZeroDivisionError: division by zero; can it be imported"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_examined_is_refused_in_one_line(what: str, examine: Examine) -> None:
    changes, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as error:
        examine("classic", *changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sick", [True, False])
def test_the_command_line_prints_json_and_is_strict_if_asked(
    sick: bool, write: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = write("classic", *([RAND] if sick else []))
    words = ["doctor", "--model", options["model"], "--loss", options["loss"], "--data", "digits"]
    codes: list[Any] = []
    for more in (["--json"], ["--json", "--strict"]):
        monkeypatch.setattr(sys, "argv", ["vaelab", *words, *more])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        codes.append(exit_.value.code or 0)
    findings = json.loads(capsys.readouterr().out.splitlines()[0])["findings"]
    assert codes == [0, int(sick)]
    assert ("uniform-noise" in {finding["name"] for finding in findings}) == sick
    for finding in findings:
        assert {"name", "severity", "message", "evidence", "remedy"} <= finding.keys()
    if sick:
        assert findings[0]["evidence"]["standard_deviation"] == pytest.approx(1 / math.sqrt(12), rel=0.01)


def test_a_model_and_a_loss_of_this_process_are_examined_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 6), nn.Linear(3, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.encoder(x).chunk(2, 1)
            return self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean)), mean, log_variance

    def loss(r: Tensor, x: Tensor, m: Tensor, s: Tensor) -> Tensor:
        return ((r - x) ** 2).mean() + 0.5 * (m**2 + s.exp() - 1 - s).sum(1).mean()

    torch.manual_seed(0)
    model = Model()
    before = {key: one.clone() for key, one in model.state_dict().items()}
    found = vaelab.doctor(model=model, data="digits", loss=loss)
    assert names(found) == ["effective-beta"]
    assert found["effective-beta"].evidence["sigma"] == pytest.approx(math.sqrt(64 / 2), rel=1e-3)
    assert found["effective-beta"].severity == "error"  # σ² = D/2 exceeds every eigenvalue of data in [0, 1]
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())  # it was left as it is
