"""Training: from a recipe to a run folder. One step is `_step`; read it first.

A run is a function of its configuration and its data. The permutation of an epoch comes from (seed, epoch), the
noise of a step from (seed, step): so a run that was stopped goes on exactly where it was.
"""

import json
import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from vaelab import __version__, film, recipes
from vaelab import data as datasets
from vaelab.composition import compose, compose_objective, settle
from vaelab.config import Config, TrainingConfig, resolve
from vaelab.data import Dataset, Split
from vaelab.errors import InputError, VaelabError
from vaelab.files import write_text
from vaelab.model import VAE
from vaelab.noise import generator, seed_of
from vaelab.objectives import Objective
from vaelab.runs import Run, check_free, claim_name, write_tensors
from vaelab.training.interrupt import Interrupted, stop_request
from vaelab.training.progress import Reporter
from vaelab.training.schedule import learning_rate
from vaelab.training.state import State
from vaelab.training.threads import Threads

CHECKPOINT_SECONDS = 15.0
EVALUATION_ROWS = 1_000


def train(
    recipe: str | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Run:
    """Train a recipe and write its run folder.

    Args:
        recipe: a shipped recipe's name, or the path of a TOML file. Default: vae.
        data: a name, a folder of pictures, an .npy or .npz file. Default: the recipe's, else digits.
        epochs, seed: the same as `training.epochs`, `training.seed` among the overrides.
        out: the run folder. Default: runs/<recipe>-<source>-<n>.
        resume: continue the run in `out`; everything else is taken from there.
        overrides: configuration keys by dotted path, `{"model.latent_dim": 10}`.
        progress: show a progress bar on stderr.

    Returns:
        The finished run.

    Raises:
        InputError: wrong input; nothing has been written then.
        Interrupted: stopped by Ctrl-C or SIGTERM; the run folder is complete and can be resumed.
    """
    source = None if data is None else os.fspath(data)
    shorthands = {"data.source": source, "training.epochs": epochs, "training.seed": seed}
    chosen = {**(overrides or {}), **{key: value for key, value in shorthands.items() if value is not None}}
    if not resume:
        run, job = _begin(recipe or "vae", chosen, out)
    elif recipe or chosen:
        raise InputError("--resume takes everything from the run folder; give --out RUN and nothing else")
    else:
        run, job = _continue(out)
    with Threads(run.config.training.threads) as threads:
        try:
            completed = _fit(run, job, threads, progress)
        except Diverged:
            if not job.state.best:  # nothing was learned: leave nothing
                shutil.rmtree(run.path)
            raise
        from vaelab.report import publish  # draws pictures: imported late, for training itself needs none of it

        publish(run, job.dataset, job.state.frames)
    if not completed:
        raise Interrupted(f"stopped; {run} is complete as it stands, and `vaelab train --resume --out {run}` goes on")
    return run


@dataclass
class Job:
    """What one call of `train` works with."""

    dataset: Dataset
    state: State
    device: torch.device
    epochs: int
    steps_per_epoch: int


def _begin(recipe_name: str, overrides: Mapping[str, Any], out: str | os.PathLike[str] | None) -> tuple[Run, Job]:
    recipe = recipes.load(recipe_name)
    config = resolve(recipe_name, recipe.tables, overrides)
    if out is not None:
        check_free(Path(out))
    dataset = datasets.load(config.data)
    config = replace(settle(config, dataset.spec), data=datasets.settled(config.data, dataset))
    job = _job(config, dataset)
    path = Path(out) if out is not None else claim_name(recipe_name, config.data.source)
    about: dict[str, Any] = {
        "fingerprint": dataset.fingerprint,
        "examples": {name: len(split) for name, split in dataset.splits.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "vaelab": __version__,
        "torch": torch.__version__,
        "command": command(recipe_name, overrides, out),
    }
    if dataset.label_names is not None:
        about["label_names"] = list(dataset.label_names)
    return Run.create(path, config, dataset.spec, **about), job


def _continue(out: str | os.PathLike[str] | None) -> tuple[Run, Job]:
    if out is None:
        raise InputError("--resume needs the run folder: --out RUN")
    run = Run.open(out)
    job = _job(run.config, run.data())
    if (run.path / "checkpoint" / "latest.json").exists():  # else it ended before its first checkpoint: begin again
        job.state.restore(run.path / "checkpoint")
    if len(run.metrics()) < job.state.counters.epoch:
        raise InputError(f"{run}/metrics.jsonl: has fewer lines than the checkpoint has epochs; train the run again")
    return run, job


def _job(config: Config, dataset: Dataset) -> Job:
    training = config.training
    device = _device(training.device)
    examples = len(dataset["train"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(training.seed, "weights"))
        model = compose(config, dataset.spec)
    objective = compose_objective(config, model).to(device)
    start_at_data(model, dataset["train"])
    model.to(device)
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=training.learning_rate, eps=training.adam_epsilon, fused=True)
    state = State(model, objective, optimizer)
    resident = replace(dataset, splits={name: split.to(device) for name, split in dataset.splits.items()})
    return Job(resident, state, device, training.planned_epochs(examples), training.steps_per_epoch(examples))


def start_at_data(model: VAE, split: Split) -> None:
    """Start the decoder's bias and the likelihood's own parameters at the mean and spread of the training data."""
    count = 0
    total = torch.zeros(model.event_shape, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for rows in torch.arange(len(split)).split(EVALUATION_ROWS):
        x = split.batch(rows, generator("start")).double()
        count, total, squares = count + len(x), total + x.sum(0), squares + x.square().sum(0)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    outputs = model.likelihood.initialize(mean.float(), std.float())
    bias = getattr(model.decoder, "bias", None)
    if isinstance(bias, Tensor):
        with torch.no_grad():
            bias.copy_(outputs)


# -- the loop ------------------------------------------------------------------------------------------------------


def _fit(run: Run, job: Job, threads: Threads, progress: bool) -> bool:
    """Train to the end, or until asked to stop. Returns whether the end was reached."""
    state, counters = job.state, job.state.counters
    lines = run.metrics()[: counters.epoch]
    reporter = Reporter(job.epochs, counters.step, job.steps_per_epoch, progress)
    saved = time.monotonic()
    with stop_request() as stop, reporter:
        while counters.epoch < job.epochs and not stop.requested:
            began, before = time.monotonic(), counters.step
            for _ in _epoch(job, run.config.training, threads):
                reporter.step(counters.step)
                if stop.requested:
                    break
            elapsed = time.monotonic() - began
            counters.seconds += elapsed
            if counters.batch < job.steps_per_epoch:
                break
            lines.append(_close_epoch(job, run.config.training))
            if not _is_finite(lines[-1]):
                _give_up(run, job, lines[:-1])
            batch_size = min(run.config.training.batch_size, len(job.dataset["train"]))
            speed = (counters.step - before) * batch_size / elapsed
            reporter.epoch(counters.epoch, counters.step, lines[-1]["validation"] or lines[-1]["train"], speed)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(run, job, lines)
                saved = time.monotonic()
    if not state.best:
        state.keep_best()
    _save(run, job, lines)
    return counters.epoch == job.epochs


def _epoch(job: Job, config: TrainingConfig, threads: Threads) -> Iterator[None]:
    """The batches of one epoch that are still to do.

    A remainder that fills no batch is left out; the permutation differs from epoch to epoch, so all is seen.
    """
    state, counters = job.state, job.state.counters
    split = job.dataset["train"]
    order = torch.randperm(len(split), generator=generator(config.seed, "epoch", counters.epoch)).to(job.device)
    noise = torch.Generator(job.device)
    total_steps = job.epochs * job.steps_per_epoch
    batches = order.split(config.batch_size)[: job.steps_per_epoch]
    state.model.train()
    for rows in batches[counters.batch :]:
        threads.begin_step()
        noise.manual_seed(seed_of(config.seed, "step", counters.step))
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(counters.step, total_steps, config)
        metrics = _step(state, split.batch(rows, noise), noise, config)
        for name, value in metrics.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        threads.end_step()
        counters.step += 1
        counters.batch += 1
        yield


def _step(state: State, x: Tensor, noise: torch.Generator, config: TrainingConfig) -> dict[str, Tensor]:
    """One update. Nothing here waits for the device."""
    terms = state.model.terms(x, state.objective.num_samples, noise, _network_dtype(config))
    loss = state.objective(terms)
    state.optimizer.zero_grad(set_to_none=True)
    loss.value.backward()
    if config.gradient_clip < math.inf:
        torch.nn.utils.clip_grad_norm_(
            [p for g in state.optimizer.param_groups for p in g["params"]], config.gradient_clip
        )
    state.optimizer.step()
    return loss.metrics


def _close_epoch(job: Job, config: TrainingConfig) -> dict[str, Any]:
    """Validate, keep the best weights, take a frame; returns the line for metrics.jsonl."""
    state, counters = job.state, job.state.counters
    train_metrics = {name: float(value) / counters.batch for name, value in state.sums.items()}
    validation = None
    if "validation" in job.dataset.splits:
        validation = measure(state.model, state.objective, job.dataset["validation"], config.seed)
    counters.epoch += 1
    counters.batch = 0
    state.sums = {}
    # Without validation data there is nothing to choose by: the last weights are the result.
    loss = train_metrics["loss"] if validation is None else validation["loss"]
    if math.isfinite(loss) and (validation is None or loss < counters.best_loss):
        counters.best_epoch = counters.epoch
        counters.best_loss = math.inf if validation is None else loss
        state.keep_best()
    _take_frame(job)
    return {
        "epoch": counters.epoch,
        "step": counters.step,
        "seconds": round(counters.seconds, 3),
        "train": train_metrics,
        "validation": validation,
    }


@torch.no_grad()
def measure(model: VAE, objective: Objective, split: Split, seed: int) -> dict[str, float]:
    """The objective's metrics over a whole split in float32, with the same noise at every call."""
    model.eval()
    sums: dict[str, float] = {}
    noise = generator(seed, "validation", device=split.raw.device)
    at_once = max(1, EVALUATION_ROWS // objective.num_samples)
    for rows in torch.arange(len(split), device=split.raw.device).split(at_once):
        terms = model.terms(split.batch(rows, noise), objective.num_samples, noise)
        for name, value in objective(terms).metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(rows)
    return {name: value / len(split) for name, value in sums.items()}


def _take_frame(job: Job) -> None:
    """A frame of the report's animation, if examples are pictures and it is time for one."""
    state, counters = job.state, job.state.counters
    if len(state.model.event_shape) != 3 or counters.epoch % counters.frame_stride:
        return
    state.frames.append(film.frame(state.model, job.dataset.splits.get("validation", job.dataset["train"])))
    if len(state.frames) == film.MOST:  # keep every second, and take them half as often from here on
        state.frames = state.frames[1::2]
        counters.frame_stride *= 2


def _save(run: Run, job: Job, lines: list[dict[str, Any]]) -> None:
    """The checkpoint comes last: what it counts on is there, wherever this is cut off."""
    _save_results(run, job, lines)
    job.state.save(run.path / "checkpoint")


def _save_results(run: Run, job: Job, lines: list[dict[str, Any]]) -> None:
    write_text(run.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_tensors(run.path / "model.safetensors", job.state.best)


class Diverged(VaelabError):
    """The loss is no longer a finite number (exit code 1)."""


def _is_finite(line: dict[str, Any]) -> bool:
    values = [*line["train"].values(), *(line["validation"] or {}).values()]
    return all(math.isfinite(value) for value in values)


def _give_up(run: Run, job: Job, lines: list[dict[str, Any]]) -> NoReturn:
    """Keep the best weights of the finite epochs `lines`, if there are any, and say what to do."""
    remedy = "lower training.learning_rate, set training.gradient_clip=1, or scale the data to values near 1"
    if not lines:
        job.state.best = {}
        raise Diverged(f"training diverged in its first epoch; {remedy}")
    _save_results(run, job, lines)
    kept = f"{run} keeps the weights of epoch {run.best()['epoch']}"  # type: ignore[index]
    raise Diverged(f"training diverged in epoch {len(lines) + 1}; {kept}; {remedy}")


# -- small things --------------------------------------------------------------------------------------------------


def command(recipe: str, overrides: Mapping[str, Any], out: str | os.PathLike[str] | None) -> str:
    """The command line that makes this run."""
    words = ["vaelab", "train", recipe]
    options = {"data.source": "--data", "training.epochs": "--epochs", "training.seed": "--seed"}
    for key, value in overrides.items():
        text = json.dumps(value) if isinstance(value, bool | list | tuple) else str(value)
        words += [options[key], text] if key in options else [f"{key}={text}"]
    if out is not None:
        words += ["--out", os.fspath(out)]
    return shlex.join(words)


def _network_dtype(config: TrainingConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.precision == "bfloat16" else None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise InputError(f"training.device={name}: not to be had here; use auto or cpu") from None
    return device
