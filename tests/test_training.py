"""Training: what a run leaves behind, that it can be stopped and resumed to the bit, and what it never does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vaelab
from vaelab.config import TrainingConfig
from vaelab.data import load as load_data
from vaelab.errors import InputError, VaelabError
from vaelab.runs import Run
from vaelab.training import Interrupted, loop
from vaelab.training.interrupt import StopRequest
from vaelab.training.schedule import learning_rate

SMALL = {"data.binarize": "dynamic", "network.hidden": [16], "model.latent_dim": 3}


def train(out: Path, **more: Any) -> Run:
    keys = {"epochs": 4, "overrides": SMALL, **more}
    return vaelab.train("vae", data="digits", out=out, progress=False, **keys)


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


@pytest.mark.parametrize("stop_at", [5, 11, 25])
def test_a_stopped_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    """Stopped inside the first epoch, between two, and inside the third. The best weights are not where it resumes."""
    whole = train(tmp_path / "whole")
    step, calls = loop._step, 0  # pyright: ignore[reportPrivateUsage]

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(Interrupted, match="--resume --out"):
        train(tmp_path / "stopped")
    monkeypatch.setattr(loop, "_step", step)
    assert vaelab.evaluate(tmp_path / "stopped", 2).n == 180  # usable as it stands
    resumed = vaelab.train(out=tmp_path / "stopped", resume=True, progress=False)
    for file in ("model.safetensors",):
        expected, found = load_file(whole.path / file), load_file(resumed.path / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    for line, other in zip(whole.metrics(), resumed.metrics(), strict=True):
        assert line["validation"] == other["validation"]
        assert line["train"] == pytest.approx(other["train"], rel=1e-6)


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


def test_ctrl_c_ends_with_130_and_a_usable_run(tmp_path: Path) -> None:
    words = ["train", "--data", "digits", "--epochs", "100000", "--out", "run", "network.hidden=16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vaelab", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    assert process.stderr is not None
    first = process.stderr.readline()  # the first line of progress: training is under way
    assert first.startswith("epoch 1/100000"), first
    assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("vaelab: stopped; run is complete as it stands")
    assert vaelab.evaluate(tmp_path / "run", 2).elbo is not None
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_second_interrupt_does_not_wait() -> None:
    request = StopRequest()
    request(signal.SIGINT, None)
    assert request.requested
    with pytest.raises(KeyboardInterrupt):
        request(signal.SIGINT, None)


def test_a_full_disk_is_exit_code_1_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A limit on file size stands for the disk: config.toml fits, the weights do not."""
    command = f"ulimit -f 64; exec {sys.executable} -m vaelab train --data digits --epochs 1 --out run"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("vaelab: ")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_schedule() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(step, 104, config) for step in (0, 3, 4, 54, 103)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.5 * (1 - 0.99951)], abs=1e-4)
    constant = TrainingConfig(learning_rate=1.0, schedule="constant")
    assert [learning_rate(step, 10, constant) for step in (0, 9)] == [1.0, 1.0]


def test_gradients_are_clipped_to_a_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.Adam.step

    def watching(self: torch.optim.Adam, *arguments: Any) -> Any:
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack(gradients).norm().item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watching)
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


def test_the_test_split_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing every test example by ones changes nothing that training writes but the picture of the data set."""
    whole = train(tmp_path / "whole", epochs=2)
    load = loop.datasets.load

    def spoiled(*arguments: Any) -> Any:
        dataset = load(*arguments)
        dataset.splits["test"].raw.fill_(1)
        return dataset

    monkeypatch.setattr(loop.datasets, "load", spoiled)
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
    loop.start_at_data(model, dataset["train"])
    levels = dataset["train"].raw.double().mean(0) / 16
    found = model.decoder.bias.sigmoid().detach().double()[0]  # type: ignore[operator,union-attr,index]
    inside = (levels > 0.02) & (levels < 0.98)
    # Bernoulli draws of 1,437 pictures: a standard error of at most 0.0132.
    assert (found - levels)[inside].abs().max().item() < 5 * 0.0132


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run.joinpath("checkpoint", "latest.json").write_text("{"), "damaged"),
        (lambda run: next(run.joinpath("checkpoint").glob("*.safetensors")).write_bytes(b"x" * 99), "damaged"),
        (lambda run: next(run.joinpath("checkpoint").glob("*.safetensors")).unlink(), "damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    train(tmp_path / "run", epochs=1)
    change(tmp_path / "run")
    with pytest.raises(InputError, match=says) as caught:
        vaelab.train(out=tmp_path / "run", resume=True, progress=False)
    assert "\n" not in str(caught.value)


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    whole, died = train(tmp_path / "whole", epochs=2), train(tmp_path / "died", epochs=2)
    for path in sorted(died.path.rglob("*"), reverse=True):
        if path.name not in ("config.toml", "checkpoint"):
            path.unlink()
    (died.path / "checkpoint").rmdir()
    vaelab.train(out=died, resume=True, progress=False)
    expected, found = (load_file(run.path / "model.safetensors") for run in (whole, died))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_lost_metrics_are_noticed(tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=2)
    (run.path / "metrics.jsonl").write_text('{"epoch": 1, "st')
    with pytest.raises(InputError, match="metrics.jsonl: damaged"):
        vaelab.train(out=run, resume=True, progress=False)
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="fewer lines than the checkpoint has epochs"):
        vaelab.train(out=run, resume=True, progress=False)


def test_divergence_in_the_first_epoch_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VaelabError, match=r"diverged in its first epoch; lower training\.learning_rate") as caught:
        train(tmp_path / "run", overrides={**SMALL, "training.learning_rate": 1e6})
    assert caught.value.exit_code == 1
    assert not (tmp_path / "run").exists()


def test_divergence_later_keeps_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", epochs=2, overrides={**SMALL, "training.schedule": "constant"})
    step, calls = loop._step, 0  # pyright: ignore[reportPrivateUsage]

    def breaking(state: Any, x: torch.Tensor, *more: Any) -> Any:
        nonlocal calls
        calls += 1
        return step(state, x * float("nan") if calls == 30 else x, *more)

    monkeypatch.setattr(loop, "_step", breaking)
    with pytest.raises(VaelabError, match="diverged in epoch 3; .* keeps the weights of epoch 2"):
        train(tmp_path / "run", epochs=4, overrides={**SMALL, "training.schedule": "constant"})
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert Run.open(tmp_path / "run").metrics()[-1]["validation"] == whole.metrics()[-1]["validation"]


def test_resume_takes_nothing_but_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume needs the run folder"):
        vaelab.train(resume=True)
    with pytest.raises(InputError, match="give --out RUN and nothing else"):
        vaelab.train("vae", out=tmp_path / "run", resume=True, epochs=3)
