"""What happens between two epochs: validate, keep the best weights, stop early, take a frame of the animation."""

import json
import math
from typing import Any

import torch

from vaelab import film
from vaelab.config import TrainingConfig
from vaelab.data import Split, prefetch
from vaelab.errors import InputError
from vaelab.model import Model
from vaelab.noise import generator
from vaelab.objectives import Objective
from vaelab.training.job import EXAMPLES_AT_ONCE, Job
from vaelab.training.processes import Processes
from vaelab.training.schedule import learning_rate
from vaelab.training.state import Counters


def close_epoch(job: Job, config: TrainingConfig) -> dict[str, Any]:
    """Validate, and keep the weights if they are the best; returns the line for metrics.jsonl."""
    state, counters = job.state, job.state.counters
    updates, norms = counters.sums.pop("updates", 0.0), counters.sums.pop("gradient_norm", 0.0)
    train = {name: total / counters.counted for name, total in counters.sums.items()} if counters.counted else {}
    rate = learning_rate(counters.step - 1, job.steps_per_epoch, job.epochs, config, counters.reductions)
    state.objective.step = None
    validation = None
    if "validation" in job.dataset.splits:
        split = job.dataset["validation"]
        validation = measure(state.evaluated, state.objective, split, config.seed, job.processes)
    counters.epoch += 1
    counters.batch = counters.counted = 0
    counters.sums = {}
    # Without validation data there is nothing to choose by: the last weights are the result.
    loss = train.get("loss", math.nan) if validation is None else validation["loss"]
    if math.isfinite(loss) and (validation is None or loss < counters.best_loss):
        counters.best_epoch = counters.epoch
        counters.best_loss = math.inf if validation is None else loss
        state.keep_best()
    _count_patience(counters, config)
    _take_frame(job)
    return {
        "epoch": counters.epoch,
        "step": counters.step,
        "seconds": round(counters.seconds, 3),
        "learning_rate": rate,
        "gradient_norm": norms / updates if updates else None,
        "skipped": counters.skipped,
        "train": train,
        "validation": validation,
    }


def _count_patience(counters: Counters, config: TrainingConfig) -> None:
    """Epochs without improvement, for early stopping and for the `plateau` schedule."""
    improved = counters.best_epoch == counters.epoch
    counters.since_best = 0 if improved else counters.since_best + 1
    counters.since_reduction = 0 if improved else counters.since_reduction + 1
    if config.schedule == "plateau" and counters.since_reduction >= config.decay_epochs:
        counters.reductions += 1
        counters.since_reduction = 0


@torch.no_grad()
def measure(model: Model, objective: Objective, split: Split, seed: int, processes: Processes) -> dict[str, float]:
    """The objective's metrics over a whole split in float32, with the same noise at every call.

    Each process takes its share of the examples. Sums and counts are added up over all, so it is the mean over the
    examples, however unequal the shares are. Examples of a stream that hold NaN are left out.
    """
    rank, count = processes.rank, processes.count
    model.eval()
    sums: dict[str, float] = {}
    noise = generator(seed, "validation", *([rank] if rank else []), device=split.device)
    at_once = max(1, EXAMPLES_AT_ONCE // objective.num_samples)
    rows = torch.arange(rank, len(split), count).split(at_once)
    used = 0
    for at, raw in zip(rows, prefetch(split, rows), strict=True):
        x, y = split.examples(raw, at, noise)
        if not len(x):
            continue
        used += len(x)
        for name, value in objective(model.terms(x, objective.num_samples, noise, y=y)).metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(x)
    # A process may have had no example, and not know the names.
    names = json.loads(processes.first_word(json.dumps(list(sums)) if sums else "") or "[]")
    totals = processes.sum([*(sums.get(name, 0.0) for name in names), float(used)])
    if not totals[-1]:
        raise InputError("every validation example holds NaN or infinite values; mend the data")
    return {name: total / totals[-1] for name, total in zip(names, totals, strict=False)}


def _take_frame(job: Job) -> None:
    """A frame of the report's animation, if examples are pictures and it is time for one."""
    state, counters = job.state, job.state.counters
    if len(state.model.event_shape) != 3 or counters.epoch % counters.frame_stride:
        return
    state.frames.append(film.frame(state.evaluated, job.dataset.splits.get("validation", job.dataset["train"])))
    if len(state.frames) == film.MOST:  # keep every second, and take them half as often from here on
        state.frames = state.frames[1::2]
        counters.frame_stride *= 2
