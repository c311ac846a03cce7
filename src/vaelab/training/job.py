"""What one call of `train` works with, and how it is set up: anew, or from a checkpoint."""

import json
import math
import os
import shlex
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaelab import __version__, plugins, recipes
from vaelab import data as datasets
from vaelab.composition import compose, compose_objective, settle
from vaelab.config import Config, TrainingConfig, resolve
from vaelab.data import Dataset, Split
from vaelab.errors import InputError
from vaelab.files import remove_unfinished
from vaelab.model import Model
from vaelab.noise import generator, seed_of
from vaelab.objectives import Forward
from vaelab.quantized import Quantizer
from vaelab.runs import Run, check_free, claim_name
from vaelab.training import precision
from vaelab.training.compiling import compile_networks
from vaelab.training.processes import Processes
from vaelab.training.state import State, read_checkpoint, restore
from vaelab.training.threads import candidates
from vaelab.training.trackers import check_installed

START_EXAMPLES = 10_000  # of a stream, to start the decoder at the data
EXAMPLES_AT_ONCE = 1_000
QUICK = 10.0  # times the learning rate, for the few numbers that have far to go


@dataclass
class Job:
    """What one call of `train` works with.

    Attributes:
        forward: model and objective, wrapped so that gradients are those of all processes.
        parameters: everything that the optimizer moves.
        parts: the same in lists: the model's, and those of a critic, whose gradients say nothing of the model.
        reports: of the updates since they were last read: the metrics of each part of the batch, and the gradients'
            norm. They stay on the device until then.
        names: of the metrics.
        until_look: updates until several processes next agree whether to stop or save.
        stuck: whether too many updates in a row were skipped.
    """

    dataset: Dataset
    state: State
    processes: Processes
    forward: nn.Module
    epochs: int
    steps_per_epoch: int
    batch_size: int
    parameters: list[nn.Parameter]
    parts: list[list[nn.Parameter]]
    reports: list[tuple[list[Tensor], Tensor]] = field(default_factory=list[tuple[list[Tensor], Tensor]])
    names: list[str] = field(default_factory=list[str])
    until_look: int = 1
    stuck: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """What the networks compute in; None for float32."""
        return precision.DTYPES[self.state.precision]

    def shares(self, config: TrainingConfig) -> list[Tensor]:
        """The positions that this process takes of every batch of the running epoch.

        A remainder that fills no batch is left out; the permutation differs from epoch to epoch, so all is seen.
        """
        split = self.dataset["train"]
        order = torch.randperm(len(split), generator=generator(config.seed, "epoch", self.state.counters.epoch))
        batches = order.split(self.batch_size)[: self.steps_per_epoch]
        mine = slice(self.processes.rank, None, self.processes.count)
        place = "cpu" if split.streams else split.device
        return [rows[mine].to(place) for rows in batches]

    def labels(self, rows: Tensor) -> Tensor | None:
        """Labels of the training examples at these positions, for a conditional model; None for any other."""
        return None if self.state.model.labels is None else self.dataset["train"].labels_at(rows)

    def noise(self, seed: int, step: int, part: int) -> torch.Generator:
        """The random numbers of a step's part in this process; layers that draw for themselves get them, too."""
        place = (self.processes.rank, part)
        key = seed_of(seed, "step", step, *(place if any(place) else ()))
        device = self.processes.device
        own = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        own.manual_seed(key ^ 1)
        return torch.Generator(device).manual_seed(key)


# -- anew, or from a checkpoint ------------------------------------------------------------------------------------


def begin(recipe_name: str, overrides: Mapping[str, Any], out: str | os.PathLike[str] | None) -> tuple[Run, Job]:
    """A new run: its folder with config.toml, and the job."""
    processes = Processes()
    mine: list[tuple[Run, Job]] = []

    def create() -> bytes:
        mine.append(_create(recipe_name, overrides, out, processes))
        return _packed(mine[0][0])

    run = _unpacked(processes.from_first(create))
    if not mine:  # the others read what the first has written; with its fingerprint, for all must see the same data
        mine.append((run, make_job(run.config, run.data(), processes)))
    run, job = mine[0]
    job.forward = processes.wrap(job.forward)  # now that all are here
    return run, job


def resume(out: str | os.PathLike[str] | None) -> tuple[Run, Job]:
    """The run in `out`, and its job as of the last checkpoint; as of the start if it ended before there was one."""
    if out is None:
        raise InputError("--resume needs the run folder: --out RUN")
    processes = Processes()

    def read() -> bytes:
        run = Run.open(out)
        _ = run.examples  # the report tells them: better refused now than after hours
        for folder in (run.path, run.path / "checkpoint"):
            remove_unfinished(folder)
        return _packed(run)

    run = _unpacked(processes.from_first(read))
    job = make_job(run.config, run.data(), processes)
    folder = run.path / "checkpoint"
    checkpoint = cache(lambda: read_checkpoint(folder))  # read once, and by the first process alone
    numbers = processes.from_first(lambda: checkpoint()[0])
    if numbers:
        content = processes.from_first(lambda: checkpoint()[1])
        begun_with = restore(job.state, folder, numbers, content)
        processes.from_first(lambda: _check_resumed(run, job, begun_with))
    job.forward = processes.wrap(job.forward)
    return run, job


def _packed(run: Run) -> bytes:
    """What the first process tells the others of a run: they may not have its folder."""
    return json.dumps([str(run), (run.path / "config.toml").read_text()]).encode()


def _unpacked(content: bytes) -> Run:
    path, text = json.loads(content)
    return Run.parse(Path(path), text)


def _check_resumed(run: Run, job: Job, processes: int) -> bytes:
    if len(run.metrics()) < job.state.counters.epoch:
        raise InputError(f"{run}/metrics.jsonl: has fewer lines than the checkpoint has epochs; train the run again")
    if processes != job.processes.count:
        print(
            f"vaelab: begun with {processes} processes, resumed with {job.processes.count}: shares and noise differ, "
            "so the weights will not be those of an uninterrupted run",
            file=sys.stderr,
        )
    return b""


def _create(
    recipe_name: str, overrides: Mapping[str, Any], out: str | os.PathLike[str] | None, processes: Processes
) -> tuple[Run, Job]:
    if out is not None:
        check_free(Path(out))
    config, dataset, job = plan(recipe_name, overrides, processes)
    path = Path(out) if out is not None else claim_name(recipe_name, config.data.source)
    about: dict[str, Any] = {
        "fingerprint": dataset.fingerprint,
        "examples": {name: len(split) for name, split in dataset.splits.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "vaelab": __version__,
        "torch": torch.__version__,
        "command": command(recipe_name, overrides, out, plugins.used(config)),
    }
    if own := plugins.used(config):
        about["plugins"] = own
    if dataset.label_names is not None:
        about["label_names"] = list(dataset.label_names)
    return Run.create(path, config, dataset.spec, **about), job


def plan(recipe_name: str, overrides: Mapping[str, Any], processes: Processes) -> tuple[Config, Dataset, Job]:
    """The configuration of a run with nothing left to `auto` that follows from the data; these, and the job.

    Raises:
        InputError: settings that cannot be trained. Nothing has been written.
    """
    recipe = recipes.load(recipe_name)
    config = resolve(recipe_name, recipe.tables, overrides)
    check_installed(config.training.log_with)
    dataset = datasets.load(config.data)
    config = replace(settle(config, dataset.spec), data=datasets.settled(config.data, dataset))
    return config, dataset, make_job(config, dataset, processes)


def make_job(config: Config, dataset: Dataset, processes: Processes) -> Job:
    """The job at its first step."""
    training = config.training
    processes.use(training.device)
    device = processes.device
    if "validation" not in dataset.splits:
        if training.patience is not None:
            raise InputError(f"training.patience={training.patience}: there are no validation data to stop by")
        if training.schedule == "plateau":
            raise InputError("training.schedule=plateau: there are no validation data to follow; use another schedule")
    examples = len(dataset["train"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(training.seed, "weights"))
        model = compose(config, dataset.spec)
        objective = compose_objective(config, model, examples)
    start_at_data(model, dataset["train"])
    model.to(device)
    objective.to(device)
    average = None
    if training.ema_decay:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay), use_buffers=True)
    epochs, steps = training.planned_epochs(examples), training.steps_per_epoch(examples)
    compile_networks(model, training.compile, device, epochs * steps)
    parts = [part for part in (list(model.parameters()), list(objective.parameters())) if part]
    quick = model.likelihood.quick_parameters
    groups = [{"params": [one for one in parts[0] if all(one is not other for other in quick)], "share": 1.0}]
    if quick:
        groups.append({"params": quick, "share": QUICK})
    groups += [{"params": critic, "share": objective.learning_rate_share} for critic in parts[1:]]
    optimizer = torch.optim.AdamW(
        groups, lr=training.learning_rate, eps=training.adam_epsilon, weight_decay=training.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
    state = State(model, objective, optimizer, scaler, average, training.precision, torch.get_num_threads())
    return Job(
        dataset=replace(dataset, splits={name: split.to(device) for name, split in dataset.splits.items()}),
        state=state,
        processes=processes,
        forward=Forward(model, objective),
        epochs=epochs,
        steps_per_epoch=steps,
        batch_size=_divisible(training, examples, processes.count),
        parameters=[one for part in parts for one in part],
        parts=parts,
    )


def _divisible(training: TrainingConfig, examples: int, processes: int) -> int:
    """The examples of one update: `training.batch_size`, or all there are; equal shares for every process and part.

    Raises:
        InputError: it does not divide.
    """
    parts = processes * training.gradient_accumulation
    if examples >= training.batch_size:
        if training.batch_size % parts:
            nearest = max(parts, round(training.batch_size / parts) * parts)
            raise InputError(
                f"training.batch_size={training.batch_size}: {processes} processes x training.gradient_accumulation="
                f"{training.gradient_accumulation} take equal shares; use a multiple of {parts}, such as {nearest}"
            )
        return training.batch_size
    if examples < parts:
        raise InputError(
            f"{examples} training examples are too few for {processes} processes x training.gradient_accumulation="
            f"{training.gradient_accumulation}; lower these"
        )
    return examples // parts * parts


def settle_speed(job: Job, config: TrainingConfig) -> tuple[int, ...]:
    """Choose the precision, and the number of threads to begin with. Returns the numbers to choose from later."""
    numbers = candidates(config.threads, job.processes.device)
    if job.processes.count > 1:  # how many processes share a machine, the launcher knows: OMP_NUM_THREADS
        numbers = numbers[-1:]
    if job.state.precision == "auto":
        chosen = precision.choose(job.processes.device, numbers, lambda dtype: _rehearse(job, config, dtype))
        # Precision is the first process's choice: gradients of two precisions do not mix well.
        found = job.processes.from_first(lambda: f"{chosen[0]} {chosen[1]}".encode()).decode().split()
        job.state.precision, job.state.threads = found[0], int(found[1])
    if job.state.threads not in numbers:
        job.state.threads = numbers[-1]
    return numbers


def _rehearse(job: Job, config: TrainingConfig, dtype: torch.dtype | None) -> None:
    """One forward and backward pass on the first batch, without an update."""
    split = job.dataset["train"]
    noise = generator("rehearsal", device=job.processes.device)
    rows = torch.arange(job.batch_size // job.processes.count // config.gradient_accumulation, device=split.device)
    forward = Forward(job.state.model, job.state.objective)
    with unchanged(job.state.model):
        loss = forward(split.batch(rows, noise), noise, dtype, job.labels(rows))
        torch.autograd.grad(loss.total, job.parameters, allow_unused=True)


@contextmanager
def unchanged(model: Model) -> Generator[None]:
    """Let a batch that is only tried out leave no trace: buffers come back, and no codebook learns of it.

    A codebook may be a parameter. And where several processes keep one, not all of them may try the batch to its end.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    for quantizer in quantizers:
        quantizer.frozen = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.frozen = False
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def start_at_data(model: Model, split: Split) -> None:
    """Start the model at the training data: the decoder's bias, the likelihood's own parameters, the prior, the labels.

    Of a stream, 10,000 examples spread over it stand for all.

    Raises:
        InputError: data that the likelihood gives no probability.
    """
    rows = torch.arange(len(split))
    if split.streams and len(split) > START_EXAMPLES:
        rows = rows[:: -(-len(split) // START_EXAMPLES)]
    count = 0
    total = torch.zeros(model.event_shape, dtype=torch.float64)
    squares = torch.zeros_like(total)
    low, high = math.inf, -math.inf
    for part in rows.split(EXAMPLES_AT_ONCE):
        x = split.examples(split.read(part), part, generator("start"))[0].double()
        if len(x):
            low, high = min(low, float(x.min())), max(high, float(x.max()))
        count, total, squares = count + len(x), total + x.sum(0), squares + x.square().sum(0)
    mean = total / max(1, count)
    std = (squares / max(1, count) - mean.square()).clamp(min=0).sqrt()
    if count:
        model.likelihood.check(low, high)
    outputs = model.likelihood.initialize(mean.float(), std.float())
    bias = getattr(model.decoder, "bias", None)
    with torch.no_grad():
        if isinstance(bias, Tensor):
            bias.copy_(outputs)
        if model.labels is not None and split.labels is not None:
            model.labels.counts.copy_(split.labels.bincount(minlength=model.labels.classes))
        if model.prior.start_examples:
            _start_prior(model, split)


def _start_prior(model: Model, split: Split) -> None:
    """Give the prior training examples, as the encoder sees them, drawn without return as long as there are enough."""
    wanted = model.prior.start_examples
    noise = generator("start", "prior")
    rows = torch.cat([torch.randperm(len(split), generator=noise) for _ in range(-(-wanted // len(split)))])[:wanted]
    x, y = split.examples(split.read(rows), rows, noise)
    if len(x):
        model.prior.start(model.labels.join_input(x, y) if model.labels else x)


def command(
    recipe: str, overrides: Mapping[str, Any], out: str | os.PathLike[str] | None, plugins: Iterable[str] = ()
) -> str:
    """The command line that makes this run."""
    words = ["vaelab", "train", recipe]
    for plugin in plugins:
        words += ["--plugin", plugin]
    words += override_words(overrides)
    if out is not None:
        words += ["--out", os.fspath(out)]
    return shlex.join(words)


def override_words(overrides: Mapping[str, Any]) -> list[str]:
    """Configuration keys as words of a command line."""
    options = {"data.source": "--data", "training.epochs": "--epochs", "training.seed": "--seed"}
    words: list[str] = []
    for key, value in overrides.items():
        if value is None:  # left to the recipe
            continue
        text = value_text(value)
        words += [options[key], text] if key in options and value != "auto" else [f"{key}={text}"]
    return words


def value_text(value: Any) -> str:
    """A value as `parse_override` reads it."""
    return json.dumps(value) if isinstance(value, bool | list | tuple) else str(value)
