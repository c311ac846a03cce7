"""Several processes train one model: the gradients of one, one writer, weighted validation, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from two_processes import backward, job_of

import vaelab
from vaelab.errors import VaelabError
from vaelab.noise import generator
from vaelab.objectives import Forward
from vaelab.runs import Run
from vaelab.training.processes import Processes
from vaelab.training.validation import measure

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SMALL = ["network.hidden=16", "model.latent_dim=3", "data.binarize=dynamic", "training.precision=float32"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}


def launch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *words]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """The same examples and the same noise in one process, float64: each share counts half."""
    done = launch(str(Path(__file__).parent / "two_processes.py"), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"gradients-{rank}.safetensors") for rank in (0, 1))
    processes: Any = Processes()
    one = job_of(processes)
    for rank in (0, 1):
        processes.count, processes.rank = 2, rank
        backward(one, Forward(one.state.model, one.state.objective), weight=0.5)
    assert len(first) > 5
    for name, parameter in one.state.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
        assert first[name].numpy() == pytest.approx(parameter.grad.numpy(), rel=1e-6, abs=1e-12)
        assert torch.equal(first[name], second[name])


def test_each_process_has_its_own_share_and_its_own_noise() -> None:
    processes: Any = Processes()
    one = job_of(processes)
    config = vaelab.config.TrainingConfig(batch_size=24)
    (whole,) = {tuple(share.tolist()) for share in one.shares(config)[:1]}
    shares, noises = [], []
    for rank in (0, 1, 2):
        processes.count, processes.rank = 3, rank
        shares.append(one.shares(config)[0].tolist())
        noises.append(torch.randn(5, generator=one.noise(0, 7, 0)).tolist())
    assert sorted(row for share in shares for row in share) == sorted(whole)
    assert [len(share) for share in shares] == [8, 8, 8]
    assert noises[0] != noises[1] != noises[2] != noises[0]
    processes.count, processes.rank = 1, 0
    assert torch.randn(5, generator=one.noise(0, 7, 1)).tolist() not in noises  # another part of the batch


def test_validation_is_weighted_by_the_number_of_examples(digits_run: Run) -> None:
    """Shares of 3, 2 and 2 examples: the mean over all examples, not the mean of the shares' means."""
    model = vaelab.load(digits_run)
    objective = job_of(Processes()).state.objective
    split = digits_run.data()["validation"].head(7)
    totals: list[list[float]] = []
    losses: list[float] = []
    for rank in range(3):
        share: Any = SimpleNamespace(
            rank=rank, count=3, sum=lambda values: totals.append(values) or values, first_word=str
        )
        measure(model, objective, split, 0, share)
        rows = torch.arange(rank, 7, 3)
        noise = generator(0, "validation", *([rank] if rank else []))
        terms = model.terms(split.batch(rows), 1, noise)
        losses += (terms.distortion + terms.rate).tolist()
    whole = [sum(column) for column in zip(*totals, strict=True)]
    summed: Any = SimpleNamespace(rank=1, count=3, sum=lambda _: whole, first_word=str)
    found = measure(model, objective, split, 0, summed)["loss"]
    assert len(losses) == 7
    assert found == pytest.approx(sum(losses) / 7, rel=1e-6)
    means = [sum(part) / len(part) for part in (losses[:3], losses[3:5], losses[5:])]
    assert found != pytest.approx(sum(means) / 3, abs=1e-3)


@pytest.mark.slow
def test_a_run_of_two_processes(tmp_path: Path) -> None:
    """Its numbers are those of one process within 0.3 nat; one process writes and tells."""
    words = ["-m", "vaelab", "train", "--data", "digits", "--epochs", "40", *SMALL, "--out"]
    done = launch(*words, "two", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)  # one object, so one process told
    assert facts["epochs"] == 40
    alone = subprocess.run([sys.executable, *words, "one"], cwd=tmp_path, capture_output=True, check=True)
    assert alone.returncode == 0
    elbos = [vaelab.evaluate(tmp_path / name, 10).elbo for name in ("one", "two")]
    assert elbos[0] is not None and elbos[1] == pytest.approx(elbos[0], abs=0.3)
    steps = [[line["step"] for line in Run.open(tmp_path / name).metrics()] for name in ("one", "two")]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_with_the_same_weights(tmp_path: Path) -> None:
    words = ["--data", "digits", "--epochs", "12", "training.checkpoint_seconds=0", "training.ema_decay=0.9", *SMALL]
    assert launch("-m", "vaelab", "train", *words, "--out", "whole", cwd=tmp_path).returncode == 0
    command = [*TORCHRUN, "-m", "vaelab", "train", *words, "--out", "killed"]
    latest = tmp_path / "killed" / "checkpoint" / "latest.json"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = json.loads(latest.read_text())["counters"]["step"]
    assert 0 < step < 132
    done = launch("-m", "vaelab", "train", "--resume", "--out", "killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_more_processes_than_validation_examples(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    words = ["--data", "x.npy", "data.validation=0.02", "data.test=0", "training.batch_size=8", "network.hidden=8"]
    done = launch("-m", "vaelab", "train", *words, "--epochs", "2", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(np.isfinite(line["validation"]["elbo"]) for line in Run.open(tmp_path / "run").metrics())


@pytest.mark.slow
def test_a_failure_of_one_process_is_one_line(tmp_path: Path) -> None:
    """The disk is full for the first process; the other one only sees it go."""
    command = " ".join([*TORCHRUN, "-m vaelab train --data digits --out run network.hidden=16"])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 60; exec {command}"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    told = [line for line in done.stderr.splitlines() if "vaelab" in line and line.startswith("vaelab")]
    assert any("File too large" in line for line in told), done.stderr
    assert "[rank" not in done.stderr


@pytest.mark.slow
def test_resuming_with_another_number_of_processes_says_so(tmp_path: Path) -> None:
    words = ["--data", "digits", "--epochs", "2", *SMALL, "--out", "run"]
    assert launch("-m", "vaelab", "train", *words, cwd=tmp_path).returncode == 0
    command = [sys.executable, "-m", "vaelab", "train", "--resume", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "vaelab: begun with 2 processes, resumed with 1: shares and noise differ" in done.stderr


@pytest.mark.slow
def test_an_environment_of_several_processes_that_are_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vaelab", "train", "--data", "digits", "--epochs", "1", *SMALL, "--out", "run"]
    alone = {**ENVIRONMENT, "RANK": "1"}
    subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, check=True)
    assert (tmp_path / "run" / "report.html").is_file()
    done = subprocess.run(
        [*command, "2"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vaelab: WORLD_SIZE=2 announces several processes, but they cannot meet")


@pytest.mark.slow
def test_wrong_input_is_told_once(tmp_path: Path) -> None:
    done = launch("-m", "vaelab", "train", "--data", "digits", "modle.latent_dim=3", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("unknown key modle.latent_dim") == 1
    assert "[rank" not in done.stderr.replace("[rank0]:", "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_shares_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    done = launch("-m", "vaelab", "train", "--data", "digits", "training.batch_size=127", cwd=tmp_path)
    assert "batch_size=127: 2 processes x training.gradient_accumulation=1 take equal shares" in done.stderr
    assert "such as 128" in done.stderr


def test_accelerate_set_up_for_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(VaelabError, match="set up for DEEPSPEED"):
        _ = Processes().accelerator
