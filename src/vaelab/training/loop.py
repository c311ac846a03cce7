"""Training: from a recipe to a run folder. One update is `_step`; read it first.

A run is a function of its configuration and its data. The permutation of an epoch comes from (seed, epoch), the
noise of a step from (seed, step): so a run that was stopped goes on exactly where it was.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from vaelab.config import TrainingConfig
from vaelab.data import prefetch
from vaelab.errors import InputError, VaelabError
from vaelab.files import write_text
from vaelab.objectives import Loss
from vaelab.runs import Run, write_tensors
from vaelab.training.aggregate import fit_prior
from vaelab.training.interrupt import Interrupted, StopRequest, stop_request
from vaelab.training.job import Job, begin, resume, settle_speed, unchanged
from vaelab.training.processes import Deserted, Followed, deserted
from vaelab.training.progress import Reporter
from vaelab.training.replay import explain
from vaelab.training.schedule import learning_rate
from vaelab.training.threads import Threads, flush_denormals
from vaelab.training.trackers import Trackers
from vaelab.training.validation import close_epoch

LOOK_EVERY = 20  # updates between two readings of what the device has counted


@flush_denormals()
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
        data: a name, a folder of pictures, an .npy or .npz file, or hf:owner/name. Default: the recipe's, else digits.
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
        VaelabError: training diverged, or the data or the disk failed; the last checkpoint is whole.
    """
    source = None if data is None else os.fspath(data)
    shorthands = {"data.source": source, "training.epochs": epochs, "training.seed": seed}
    chosen = {**(overrides or {}), **{key: value for key, value in shorthands.items() if value is not None}}
    if resume and (recipe or chosen):
        raise InputError("--resume takes everything from the run folder; give --out RUN and nothing else")
    run, job = _resume(out) if resume else begin(recipe or "vae", chosen, out)
    try:
        completed = _train(run, job, progress)
    except Diverged:
        nothing = not (resume or job.state.best or (run.path / "checkpoint").exists())
        if job.processes.is_first and nothing:  # nothing was learned: leave nothing
            shutil.rmtree(run.path)
        raise
    except Followed:
        raise
    except (OSError, VaelabError) as error:
        found = (run.path / "checkpoint" / "latest.json").exists()
        more = f"; `vaelab train --resume --out {run}` goes on from the last checkpoint" if found else ""
        raise Broken(f"{error}{more}", error) from None
    except RuntimeError as error:
        if job.processes.count == 1 or not deserted(error):
            raise
        raise Deserted(str(error), 1) from None
    if not completed:
        raise Interrupted(f"stopped; {run} is complete as it stands, and `vaelab train --resume --out {run}` goes on")
    return run


_resume = resume  # the keyword of `train` hides it there


class Diverged(VaelabError):
    """The loss is no longer a finite number (exit code 1)."""

    met_by_all = True


class Broken(VaelabError):
    """Training ended in the middle, for a reason outside of it: the disk, the data."""

    def __init__(self, message: str, cause: Exception) -> None:
        super().__init__(message)
        self.exit_code = getattr(cause, "exit_code", 1)


# -- the loop ------------------------------------------------------------------------------------------------------


def _train(run: Run, job: Job, progress: bool) -> bool:
    """Train and publish. Returns whether the end was reached."""
    config = run.config.training
    numbers = settle_speed(job, config)
    device = job.processes.device
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        with Threads(numbers, job.state.threads) as threads:
            trackers = Trackers(run, job.state.counters.step) if job.processes.is_first else None
            try:
                completed = _fit(run, job, threads, trackers, progress and job.processes.is_first)
            except BaseException:
                if trackers:
                    trackers.close()
                raise
        if job.processes.is_first and completed:
            _fit_prior(run, job)
        if job.processes.is_first:
            from vaelab.report import publish  # draws pictures: imported late, for training itself needs none of it

            publish(run, job.dataset, job.state.frames)
            if trackers:
                trackers.finish(run, job.state.counters.step)
        job.processes.wait()
    return completed


def _fit(run: Run, job: Job, threads: Threads, trackers: Trackers | None, progress: bool) -> bool:
    """Train to the end, or until asked to stop. Returns whether the end was reached."""
    state, counters, config = job.state, job.state.counters, run.config.training
    lines = run.metrics()[: counters.epoch]
    reporter = Reporter(job.epochs, counters.step, job.steps_per_epoch, progress)
    saved = time.monotonic()
    stopped = False
    with stop_request() as stop, reporter:
        while not (stopped or _is_over(job, config)):
            before, seconds = counters.step, counters.seconds
            for _ in _epoch(job, config, threads):
                reporter.step(counters.step)
                stopped, due = _look(job, config, stop, time.monotonic() - saved > config.checkpoint_seconds)
                if stopped:
                    break
                if due:
                    _save(run, job, lines, threads)
                    saved = time.monotonic()
                _check(run, job, lines)
            _count(job, config)
            _check(run, job, lines)
            if counters.batch < job.steps_per_epoch:
                break
            lines.append(close_epoch(job, config))
            if not _is_finite(lines[-1]):
                _give_up(run, job, lines[:-1])
            speed = (counters.step - before) * job.batch_size / max(1e-9, counters.seconds - seconds)
            reporter.epoch(counters.epoch, counters.step, lines[-1]["validation"] or lines[-1]["train"], speed)
            if trackers:
                trackers.line(lines[-1])
    if not state.best:
        state.keep_best()
    _save(run, job, lines, threads)
    return _is_over(job, config)


def _fit_prior(run: Run, job: Job) -> None:
    """Fit a prior that waits for the end of training, with the best weights."""
    model = job.state.evaluated
    if model.prior.fit_draws:
        model.load_state_dict(job.state.best)
        fit_prior(model, job.dataset["train"], run.config.training.seed)
        write_tensors(run.path / "model.safetensors", model.state_dict())


def _is_over(job: Job, config: TrainingConfig) -> bool:
    counters = job.state.counters
    impatient = config.patience is not None and counters.since_best >= config.patience
    return counters.epoch >= job.epochs or impatient


def _epoch(job: Job, config: TrainingConfig, threads: Threads) -> Iterator[None]:
    """The batches of one epoch that are still to do."""
    state, counters = job.state, job.state.counters
    split = job.dataset["train"]
    state.model.train()
    began = time.perf_counter()
    shares = job.shares(config)[counters.batch :]
    for rows, raw in zip(shares, prefetch(split, shares), strict=True):
        threads.begin_step()
        _step(job, rows, raw, config)
        threads.end_step()
        counters.step += 1
        counters.batch += 1
        if len(job.reports) == LOOK_EVERY:  # inside of what is timed, for it waits for the device
            _count(job, config)
        now = time.perf_counter()
        counters.seconds += now - began
        yield
        began = time.perf_counter()


def _step(job: Job, rows: Tensor, raw: Tensor, config: TrainingConfig) -> None:
    """One update from this process's share of a batch: positions and stored values. Nothing waits for the device."""
    state, counters, split = job.state, job.state.counters, job.dataset["train"]
    for group in state.optimizer.param_groups:
        rate = learning_rate(counters.step, job.steps_per_epoch, job.epochs, config, counters.reductions)
        group["lr"] = rate * group["share"]
    state.objective.step = counters.step
    state.optimizer.zero_grad(set_to_none=True)
    parts = raw.chunk(config.gradient_accumulation)
    metrics: list[Tensor] = []
    for number, (part, at) in enumerate(zip(parts, rows.chunk(len(parts)), strict=True), start=1):
        noise = job.noise(config.seed, counters.step, number - 1)
        x, y = split.convert(part, noise), job.labels(at)
        with nullcontext() if number == len(parts) else job.processes.no_sync(job.forward):
            loss: Loss = job.forward(x, noise, job.dtype, y)
            state.scaler.scale(loss.total / len(parts)).backward()
        metrics.append(torch.stack(list(loss.metrics.values())))
        job.names = list(loss.metrics)
    job.reports.append((metrics, _update(job, config)))


def _update(job: Job, config: TrainingConfig) -> Tensor:
    """Move the weights along the gradients, unless these are not finite. Returns the gradients' norm before clipping.

    The fused optimizer leaves everything as it is where its `found_inf` is 1, on the device, without telling the host.
    """
    state = job.state
    state.scaler.unscale_(state.optimizer)
    norm = get_total_norm([p.grad for p in job.parameters if p.grad is not None])
    if config.gradient_clip < math.inf:
        for part in job.parts:
            clip_grad_norm_(part, config.gradient_clip)
    if state.scaler.is_enabled():
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        state.optimizer.step()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return norm


# -- between the steps ---------------------------------------------------------------------------------------------


def _look(job: Job, config: TrainingConfig, stop: StopRequest, due: bool) -> tuple[bool, bool]:
    """Whether to stop and whether to save. Several processes must agree, so they ask each other once a second."""
    stopped = stop.requested
    if job.processes.count > 1:
        job.until_look -= 1
        if job.until_look > 0:
            return False, False
        counters = job.state.counters
        pace = counters.seconds / max(1, counters.step)
        wish, waits, paces = job.processes.sum([float(stopped), float(due), pace])
        stopped, due = wish > 0, waits > 0
        job.until_look = max(1, min(LOOK_EVERY, int(job.processes.count / max(paces, 1e-9))))
    if stopped or due:
        _count(job, config)
    return stopped, due


def _count(job: Job, config: TrainingConfig) -> None:
    """Read what the last updates have left on the device, over all processes: metrics, and which were skipped."""
    if not job.reports:
        return
    counters, scaler = job.state.counters, job.state.scaler
    metrics = torch.stack([torch.stack(parts) for parts, _ in job.reports]).double().mean(1).cpu()
    norms = torch.stack([norm for _, norm in job.reports]).double().cpu()
    job.reports.clear()
    finite = metrics.isfinite().all(1)
    updated = norms.isfinite()
    sums = [*metrics[finite].sum(0).tolist(), float(finite.sum())]
    totals = job.processes.sum([*sums, *(~finite).double().tolist()])
    broken = [number > 0 for number in totals[len(sums) :]]  # the loss itself, in some process
    for name, total in zip(job.names, totals, strict=False):
        counters.sums[name] = counters.sums.get(name, 0.0) + total
    counters.counted += round(totals[len(sums) - 1])
    # Gradients are averaged over the processes, so their norms are the same in all.
    for name, total in (("gradient_norm", norms[updated].sum()), ("updates", updated.sum())):
        counters.sums[name] = counters.sums.get(name, 0.0) + float(total)
    for back, came_through in enumerate(updated.tolist()):
        counters.skipped += not came_through
        # Under float16 a finite loss whose gradient overflows is how the loss scale is found.
        searching = scaler.is_enabled() and not broken[back] and scaler.get_scale() > 1
        if came_through or searching:
            counters.skipped_in_a_row = 0
            continue
        counters.skipped_in_a_row += 1
        job.stuck |= counters.skipped_in_a_row >= config.max_skipped
        if counters.first_skipped is None:
            step = counters.step - len(norms) + back
            counters.first_skipped = f"update {step + 1} was skipped, for {_why(job, config, step)}"
            if job.processes.is_first:
                print(f"vaelab: {counters.first_skipped}", file=sys.stderr, flush=True)


def _why(job: Job, config: TrainingConfig, step: int) -> str:
    """Replay a skipped update, each process its own share, with the present weights; say what was not finite."""
    state, split = job.state, job.dataset["train"]
    rows = job.shares(config)[step - (state.counters.step - state.counters.batch)]
    found = ""
    for number, part in enumerate(rows.chunk(config.gradient_accumulation)):
        noise = job.noise(config.seed, step, number)
        x, y = split.convert(split.read(part), noise), job.labels(part)

        def named(b: int, part: Tensor = part) -> str:
            return split.describe(int(part[b]))

        with unchanged(state.model):
            found = explain(state.model, state.objective, x, noise, job.dtype, named, y)
        if found:
            break
    return job.processes.first_word(found) or "its gradient was not finite; it was, when the update was tried again"


def _save(run: Run, job: Job, lines: list[dict[str, Any]], threads: Threads) -> None:
    """The checkpoint comes last: what it counts on is there, wherever this is cut off."""
    if not job.processes.is_first:
        return
    if job.state.best:
        _save_results(run, job, lines)
    job.state.threads = threads.chosen
    job.state.save(run.path / "checkpoint", job.processes.count)


def _save_results(run: Run, job: Job, lines: list[dict[str, Any]]) -> None:
    write_text(run.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_tensors(run.path / "model.safetensors", job.state.best)


def _is_finite(line: dict[str, Any]) -> bool:
    values = [*line["train"].values(), *(line["validation"] or {}).values()]
    return bool(line["train"]) and all(math.isfinite(value) for value in values)


def _check(run: Run, job: Job, lines: list[dict[str, Any]]) -> None:
    """End the run where no update comes through any more."""
    if job.stuck:
        _give_up(run, job, lines)


def _give_up(run: Run, job: Job, lines: list[dict[str, Any]]) -> NoReturn:
    """Keep the best weights of the finite epochs `lines`, if there are any, and say what to do."""
    counters = job.state.counters
    what = "training diverged in its first epoch" if not lines else f"training diverged in epoch {len(lines) + 1}"
    if counters.skipped_in_a_row > 1:
        what += f": {counters.skipped_in_a_row} updates in a row had no finite gradient"
    if lines:
        if job.processes.is_first:
            _save_results(run, job, lines)
        what += f"; {run} keeps the weights of epoch {counters.best_epoch}"
    clip = "set training.gradient_clip=1" if run.config.training.gradient_clip > 1 else "lower training.gradient_clip"
    raise Diverged(f"{what}; lower training.learning_rate, {clip}, or scale the data to values near 1")
