"""Nothing is lost: runs that are stopped, killed or robbed of their disk go on where they were, to the bit."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vaelab
from vaelab.errors import InputError, VaelabError
from vaelab.runs import Run
from vaelab.training import loop, state
from vaelab.training.interrupt import StopRequest

pytestmark = pytest.mark.usefixtures("without_reports")

SMALL = {"data.binarize": "dynamic", "network.hidden": [16], "model.latent_dim": 3, "training.threads": 1}
EVERYTHING = {
    "training.ema_decay": 0.9,
    "training.gradient_accumulation": 2,
    "training.schedule": "plateau",
    "training.decay_epochs": 1,
    "training.warmup_steps": 7,
    "training.patience": 3,
    "training.gradient_clip": 1.0,
    "training.weight_decay": 0.01,
    "objective.warmup": 20,
}


Stop = Callable[[int], AbstractContextManager[None]]


def train(out: Path, **more: Any) -> Run:
    keys = {"epochs": 4, "overrides": SMALL, **more}
    return vaelab.train("vae", data="digits", out=out, progress=False, **keys)


def assert_same_weights(one: Path, other: Path) -> None:
    expected, found = (load_file(path / "model.safetensors") for path in (one, other))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("stop_at", [5, 11, 25])
@pytest.mark.parametrize("more", [{}, EVERYTHING, {"training.precision": "float16"}], ids=["plain", "all", "float16"])
def test_a_stopped_run_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: Stop, stop_at: int, more: dict[str, Any]
) -> None:
    """Stopped inside the first epoch, between two, and inside the third. The best weights are not where it resumes."""
    overrides = {**SMALL, **more}
    eager = partial(torch.amp.GradScaler, init_scale=1024.0, growth_interval=4)  # a scale that changes all the time
    monkeypatch.setattr(torch.amp, "GradScaler", eager)
    whole = train(tmp_path / "whole", overrides=overrides)
    with stopped_at(stop_at):
        train(tmp_path / "stopped", overrides=overrides)
    assert vaelab.evaluate(tmp_path / "stopped", 2).n == 180  # usable as it stands
    resumed = vaelab.train(out=tmp_path / "stopped", resume=True, progress=False)
    assert_same_weights(whole.path, resumed.path)
    records = [json.loads((run.path / "checkpoint" / "latest.json").read_text()) for run in (whole, resumed)]
    for record in records:
        record["counters"].pop("seconds")
    assert records[0] == records[1]
    for line, other in zip(whole.metrics(), resumed.metrics(), strict=True):
        assert line["validation"] == other["validation"]
        assert line["train"] == pytest.approx(other["train"], rel=1e-12)


def without(path: Path, text: str, other: str) -> None:
    assert text in path.read_text()
    path.write_text(path.read_text().replace(text, other))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run.joinpath("checkpoint", "latest.json").write_text("{"), "damaged"),
        (lambda run: next(run.joinpath("checkpoint").glob("*.safetensors")).write_bytes(b"x" * 99), "damaged"),
        (lambda run: next(run.joinpath("checkpoint").glob("*.safetensors")).unlink(), "damaged"),
        (lambda run: without(run / "checkpoint" / "latest.json", '"processes"', '"process"'), "damaged"),
        (
            lambda run: without(run / "config.toml", "[about.examples]", "[about.example]"),
            "does not say how many",
        ),
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
    whole = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(whole[: -len(whole) // 3])
    with pytest.raises(InputError, match=r"metrics.jsonl: damaged \(line 2 is no epoch\); restore it, or train"):
        vaelab.train(out=run, resume=True, progress=False)
    (run.path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match="metrics.jsonl: damaged"):
        vaelab.train(out=run, resume=True, progress=False)
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="fewer lines than the checkpoint has epochs"):
        vaelab.train(out=run, resume=True, progress=False)


def test_resume_takes_nothing_but_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume needs the run folder"):
        vaelab.train(resume=True)
    with pytest.raises(InputError, match="give --out RUN and nothing else"):
        vaelab.train("vae", out=tmp_path / "run", resume=True, epochs=3)


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


def kill_and_resume(folder: Path, words: list[str], kills: int, delays: tuple[float, float], seed: int) -> int:
    """Train in `folder`/killed, killed without warning again and again, then resumed to the end; how often."""
    run = folder / "killed"
    drawn = random.Random(seed)
    done = 0
    for _ in range(kills):
        resuming = (run / "config.toml").exists()
        command = ["--resume", "--out", "killed"] if resuming else [*words, "--out", "killed"]
        process = subprocess.Popen(
            [sys.executable, "-m", "vaelab", "train", *command], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not (run / "config.toml").exists():
            time.sleep(0.01)
        time.sleep(drawn.uniform(*delays))
        process.kill()
        _, errors = process.communicate()
        if process.returncode != -signal.SIGKILL:  # the end came first
            assert process.returncode == 0, errors
            break
        done += 1
        assert Run.open(run).metrics() is not None
        if (run / "model.safetensors").exists():
            vaelab.load(run)
    vaelab.train(out=run, resume=True, progress=False)
    return done


@pytest.mark.slow
def test_killed_runs_end_with_the_same_weights(tmp_path: Path) -> None:
    words = ["--data", "digits", "--epochs", "60", "training.checkpoint_seconds=0", "network.hidden=16"]
    words += ["training.threads=1", "training.precision=float32", "data.binarize=dynamic", "training.ema_decay=0.9"]
    whole = [sys.executable, "-m", "vaelab", "train", *words, "--out", "whole"]
    subprocess.run(whole, cwd=tmp_path, check=True, capture_output=True)
    assert kill_and_resume(tmp_path, words, 3, (1.0, 4.0), seed=0) >= 1
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_twenty_kills_on_mnist(tmp_path: Path) -> None:
    words = ["--data", "mnist", "--epochs", "5", "training.checkpoint_seconds=0.2", "data.binarize=dynamic"]
    words += ["training.threads=1", "training.precision=float32"]
    whole = [sys.executable, "-m", "vaelab", "train", *words, "--out", "whole"]
    subprocess.run(whole, cwd=tmp_path, check=True, capture_output=True)
    kills = 0
    for seed in range(10):
        kills += kill_and_resume(tmp_path, words, 20 - kills, (1.0, 8.0), seed)
        assert_same_weights(tmp_path / "whole", tmp_path / "killed")
        if kills == 20:
            break
        (tmp_path / "killed").rename(tmp_path / f"killed-{seed}")
    assert kills == 20


def test_a_resumed_run_that_diverges_keeps_its_folder_and_loses_its_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tmp_path / "run", epochs=1)
    for path in (run.path / "checkpoint").iterdir():
        path.unlink()
    (run.path / "checkpoint").rmdir()
    (run.path / "notes.txt").write_text("mine")
    (run.path / ".model.safetensors.77.tmp").write_text("half")
    step = loop._step  # pyright: ignore[reportPrivateUsage]

    def breaking(one: Any, *more: Any) -> None:
        with torch.no_grad():
            one.state.model.decoder.bias.fill_(float("nan"))
        step(one, *more)

    monkeypatch.setattr(loop, "_step", breaking)
    with pytest.raises(VaelabError, match="diverged in its first epoch"):
        vaelab.train(out=run.path, resume=True, progress=False)
    assert (run.path / "notes.txt").read_text() == "mine"
    assert not list(run.path.rglob("*.tmp"))


def test_what_is_written_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content before name, name before the old file goes: else a power cut can lose both."""
    events: list[str] = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def syncing(file: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{file}').readlink().name}")
        fsync(file)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(f"name {to.name}"), replace(self, to))[1])
    monkeypatch.setattr(Path, "unlink", lambda self, **k: (events.append(f"drop {self.name}"), unlink(self, **k))[1])
    train(tmp_path / "run", epochs=1, overrides={**SMALL, "training.checkpoint_seconds": 0.0})
    events = [event for event in events if not event.endswith(".tmp") or event.startswith("sync")]
    second = events.index("name step-00000002.safetensors")
    assert events[second - 1].startswith("sync .step-00000002.safetensors")
    assert events[second + 1] == "sync checkpoint"
    rest = [event for event in events[second + 2 :] if "latest" in event or event.startswith("drop step")]
    assert [event.split(".json")[0] for event in rest[:3]] == [
        "sync .latest", "name latest", "drop step-00000001.safetensors"
    ]  # fmt: skip


def test_layers_that_draw_for_themselves_resume_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: Stop
) -> None:
    """Dropout takes torch's own random numbers, which no generator of ours feeds."""
    from vaelab.training import job

    compose = job.compose

    def with_dropout(*arguments: Any) -> Any:
        model = compose(*arguments)
        model.encoder.layers.append(torch.nn.Dropout(0.5))
        return model

    monkeypatch.setattr(job, "compose", with_dropout)
    whole = train(tmp_path / "whole")
    with stopped_at(17):
        train(tmp_path / "stopped")
    torch.rand(100)
    vaelab.train(out=tmp_path / "stopped", resume=True, progress=False)
    assert_same_weights(whole.path, tmp_path / "stopped")


def test_the_checkpoint_says_which_precision_and_how_many_threads(tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=1)
    record = json.loads((run.path / "checkpoint" / "latest.json").read_text())
    assert (record["precision"], record["threads"]) == ("float32", 1)


@pytest.mark.parametrize("fails_at", ["step-", "latest.json", "metrics.jsonl", "model.safetensors"])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """Whichever file finds the disk full, in the third of four epochs; then the disk has room again."""
    overrides = {**SMALL, "training.checkpoint_seconds": 0.0}
    whole = train(tmp_path / "whole", overrides=overrides)
    write, replace = Path.write_bytes, os.replace
    full = True

    def writing(self: Path, content: Any) -> int:
        if full and fails_at in self.name and state_step() >= 25:
            write(self, bytes(content)[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, content)

    def state_step() -> int:
        latest = tmp_path / "run" / "checkpoint" / "latest.json"
        return json.loads(latest.read_text())["counters"]["step"] if latest.exists() else 0

    monkeypatch.setattr(Path, "write_bytes", writing)
    monkeypatch.setattr(Path, "write_text", lambda self, text, **_: writing(self, text.encode()))
    with pytest.raises(VaelabError, match="No space left on device.*--resume --out") as caught:
        train(tmp_path / "run", overrides=overrides)
    assert caught.value.exit_code == 1
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".tmp")]
    full = False
    assert replace is os.replace
    vaelab.train(out=tmp_path / "run", resume=True, progress=False)
    assert_same_weights(whole.path, tmp_path / "run")


def test_a_file_that_vanishes_in_the_middle_is_one_line_and_the_run_can_go_on(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (600, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "x.npy", values)
    overrides = {**SMALL, "data.binarize": "none", "data.stream": True, "training.checkpoint_seconds": 0.0}

    def run_in(name: str, **keys: Any) -> Run:
        return vaelab.train(
            "vae", data=tmp_path / "x.npy", epochs=6, out=tmp_path / name, overrides=overrides, progress=False, **keys
        )

    whole = run_in("whole")
    step, calls = loop._step, 0  # pyright: ignore[reportPrivateUsage]

    def losing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            (tmp_path / "x.npy").rename(tmp_path / "elsewhere.npy")
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", losing)
        with pytest.raises(VaelabError, match=r"x\.npy: .*--resume --out") as caught:
            run_in("run")
    assert "\n" not in str(caught.value)
    (tmp_path / "elsewhere.npy").rename(tmp_path / "x.npy")
    vaelab.train(out=tmp_path / "run", resume=True, progress=False)
    assert_same_weights(whole.path, tmp_path / "run")


def test_the_previous_checkpoint_stays_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[set[str]] = []
    write_text = state.write_text

    def watching(path: Path, text: str) -> None:
        found.append({file.name for file in path.parent.glob("step-*")})
        write_text(path, text)
        assert json.loads(path.read_text())["file"] in {file.name for file in path.parent.iterdir()}

    monkeypatch.setattr(state, "write_text", watching)
    train(tmp_path / "run", epochs=1, overrides={**SMALL, "training.checkpoint_seconds": 0.0})
    assert [len(names) for names in found[:4]] == [1, 2, 2, 2]
