"""Training: what a run leaves behind, that it can be stopped and resumed to the bit, and what it never does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vaelab
from vaelab.data import load as load_data
from vaelab.errors import VaelabError
from vaelab.likelihoods import Gaussian
from vaelab.runs import Run
from vaelab.training import job, loop

pytestmark = pytest.mark.usefixtures("without_reports")

SMALL = {"data.binarize": "dynamic", "network.hidden": [16], "model.latent_dim": 3}


def train(out: Path, **more: Any) -> Run:
    keys = {"epochs": 4, "overrides": SMALL, **more}
    return vaelab.train("vae", data="digits", out=out, progress=False, **keys)


@pytest.mark.usefixtures("with_reports")
def test_a_run_folder_holds_everything(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    assert {path.name for path in run.path.iterdir()} == {
        "config.toml",
        "model.safetensors",
        "checkpoint",
        "metrics.jsonl",
        "numbers.json",
        "report.html",
        "samples.png",
        "reconstructions.png",
        "README.md",
    }
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines] == [11, 22, 33, 44]
    for line in lines:
        for part in ("train", "validation"):
            assert line[part]["elbo"] == pytest.approx(-(line[part]["rate"] + line[part]["distortion"]), abs=1e-3)
    assert lines[-1]["validation"]["elbo"] > lines[0]["validation"]["elbo"]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    first, again, other = (
        load_file(train(tmp_path / name, seed=seed, epochs=2).path / "model.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path / "run", epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_resuming_takes_the_last_weights_and_the_kept_ones_are_the_best(tmp_path: Path) -> None:
    few = {"data.validation": 0.45, "data.test": 0.45, "data.binarize": "threshold", "training.learning_rate": 0.02}
    run = train(tmp_path / "run", epochs=150, overrides={**few, "training.schedule": "constant"})
    best = run.best()
    assert best is not None and best["epoch"] < 150, "180 training examples should be over-fitted by then"
    record = json.loads((run.path / "checkpoint" / "latest.json").read_text())
    tensors = load_file(run.path / "checkpoint" / record["file"])
    kept = load_file(run.path / "model.safetensors")
    name = "posterior.head.weight"
    assert torch.equal(kept[name], tensors[f"best.{name}"])
    assert not torch.equal(kept[name], tensors[f"model.{name}"])
    assert record["counters"]["best_epoch"] == best["epoch"]


def test_without_validation_data_the_last_weights_are_kept(tmp_path: Path) -> None:
    run = train(tmp_path / "run", overrides={**SMALL, "data.validation": 0.0})
    assert all(line["validation"] is None for line in run.metrics())
    record = json.loads((run.path / "checkpoint" / "latest.json").read_text())
    tensors = load_file(run.path / "checkpoint" / record["file"])
    kept = load_file(run.path / "model.safetensors")
    assert all(torch.equal(kept[name], tensors[f"model.{name}"]) for name in kept)


def test_a_learned_scale_reaches_the_errors(tmp_path: Path) -> None:
    """x = W z + 0.3 ε. σ begins at the data's spread, 1.3; with the steps of all other weights it ends at 0.6."""
    noise = np.random.default_rng(0)
    z, w = noise.standard_normal((1000, 2)), noise.standard_normal((2, 10))
    np.save(tmp_path / "x.npy", (z @ w + 0.3 * noise.standard_normal((1000, 10))).astype(np.float32))
    keys = {"network.hidden": [32], "model.latent_dim": 2, "training.learning_rate": 2e-3}
    run = vaelab.train("vae", data=tmp_path / "x.npy", epochs=60, overrides=keys, out=tmp_path / "run", progress=False)
    model, x = vaelab.load(run), run.data()["validation"].batch()
    with torch.no_grad():
        likelihood = model.decode(model.encode(x).mean)
    assert isinstance(likelihood, Gaussian)
    error = float((x - likelihood.mean).square().mean().sqrt())
    assert float(likelihood.scale) == pytest.approx(error, rel=0.25) and error < 0.45


def test_gradients_are_clipped_to_a_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watching(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack(gradients).norm().item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watching)
    train(tmp_path / "free", epochs=1)
    assert min(norms) > 0.1
    norms.clear()
    train(tmp_path / "clipped", epochs=1, overrides={**SMALL, "training.gradient_clip": 0.1})
    assert norms == pytest.approx([0.1] * 11, rel=1e-3)


def test_bfloat16_networks_train_as_well(tmp_path: Path) -> None:
    found = [
        vaelab.evaluate(train(tmp_path / p, epochs=20, overrides={**SMALL, "training.precision": p}), 2).elbo
        for p in ("float32", "bfloat16")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.1)


@pytest.mark.usefixtures("with_reports")
def test_the_test_split_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing every test example by ones changes nothing that training writes but the picture of the data set."""
    whole = train(tmp_path / "whole", epochs=2)
    load = job.datasets.load

    def spoiled(*arguments: Any) -> Any:
        dataset = load(*arguments)
        dataset.splits["test"].raw.fill_(1)
        return dataset

    monkeypatch.setattr(job.datasets, "load", spoiled)
    other = train(tmp_path / "other", epochs=2)
    for name in ("numbers.json", "metrics.jsonl", "samples.png"):
        first, second = ((run.path / name).read_bytes() for run in (whole, other))
        if name == "metrics.jsonl":
            first, second = ([json.loads(line)["validation"] for line in text.splitlines()] for text in (first, second))
        assert first == second


def test_the_start_is_the_data(tmp_path: Path) -> None:
    """Before any step, the decoder's bias alone must give the data's mean: about 200 nats on MNIST otherwise."""
    dataset = load_data(Run.open(train(tmp_path / "run", epochs=1)).config.data)
    model = vaelab.load(tmp_path / "run")
    job.start_at_data(model, dataset["train"])
    levels = dataset["train"].raw.double().mean(0) / 16
    found = model.decoder.bias.sigmoid().detach().double()[0]  # type: ignore[operator,union-attr,index]
    inside = (levels > 0.02) & (levels < 0.98)
    # Bernoulli draws of 1,437 pictures: a standard error of at most 0.0132.
    assert (found - levels)[inside].abs().max().item() < 5 * 0.0132


def test_divergence_in_the_first_epoch_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        VaelabError, match=r"diverged in its first epoch: 10 updates in a row .*; lower training\.learning_rate"
    ) as caught:
        train(tmp_path / "run", overrides={**SMALL, "training.learning_rate": 1e6})
    assert caught.value.exit_code == 1 and "set training.gradient_clip=1," in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(VaelabError, match=r"lower training\.learning_rate, lower training\.gradient_clip, or"):
        train(tmp_path / "run", overrides={**SMALL, "training.learning_rate": 1e6, "training.gradient_clip": 1})


def test_divergence_later_keeps_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", epochs=2, overrides={**SMALL, "training.schedule": "constant"})
    step, calls = loop._step, 0  # pyright: ignore[reportPrivateUsage]

    def breaking(one: Any, *more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            with torch.no_grad():
                one.state.model.decoder.bias.fill_(float("nan"))
        step(one, *more)

    monkeypatch.setattr(loop, "_step", breaking)
    with pytest.raises(VaelabError, match="diverged in epoch 3: 4 updates in a row .* keeps the weights of epoch 2"):
        train(tmp_path / "run", epochs=4, overrides={**SMALL, "training.schedule": "constant"})
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert Run.open(tmp_path / "run").metrics()[-1]["validation"] == whole.metrics()[-1]["validation"]


def test_training_takes_denormal_numbers_for_zero_and_gives_them_back(tmp_path: Path) -> None:
    def survives() -> bool:
        return torch.full((), 1e-39).mul(1.0).item() != 0

    seen: list[bool] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: seen.append(survives()))
    try:
        vaelab.train(data="digits", epochs=1, out=tmp_path / "run", progress=False)
    finally:
        hook.remove()
    assert seen and not any(seen)
    assert survives()


def test_the_critics_gradient_is_clipped_by_itself(tmp_path: Path) -> None:
    """However long the model's gradient is, a short one of the critic stays as it is."""
    keys = {"data.source": "digits", "objective.name": "factor", "network.hidden": [8], "training.gradient_clip": 1.0}
    run, made = job.begin("vae", keys, tmp_path / "run")
    model, critic = ([*part.parameters()] for part in (made.state.model, made.state.objective))
    for parameter in [*model, *critic]:
        parameter.grad = torch.full_like(parameter, 100.0 if any(parameter is one for one in model) else 1e-4)
    norm = loop._update(made, run.config.training)  # pyright: ignore[reportPrivateUsage]
    assert float(norm) > 100
    assert float(torch.nn.utils.get_total_norm([p.grad for p in model])) == pytest.approx(1, rel=1e-4)
    assert all(bool((parameter.grad == 1e-4).all()) for parameter in critic)
