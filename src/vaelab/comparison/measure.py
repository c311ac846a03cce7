"""What one run brings to a comparison: its numbers example by example, and pictures. Computed once, then kept."""

import errno
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab import __version__, plugins
from vaelab.data import Split
from vaelab.errors import InputError
from vaelab.evaluation.estimates import batches
from vaelab.evaluation.likelihood import Evaluation, evaluate_each, examples_of
from vaelab.generation.common import write_arrays
from vaelab.noise import generator
from vaelab.runs import Run, check_weights, load, out_of_patience

COLUMNS = ("log_px", "elbo", "rate", "distortion")
PICTURES = 10
FOLDER = "evaluations"
_PICTURE_NUMBERS = 1_000_000  # in one sheet, at most


@dataclass(frozen=True)
class Protocol:
    """How runs are measured.

    Attributes:
        split: which examples.
        importance_samples: K, draws of z an example for log p(x).
        limit: only the first so many examples; None for all.
    """

    split: str = "test"
    importance_samples: int = 100
    limit: int | None = None

    def __post_init__(self) -> None:
        for key in ("importance_samples", "limit"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"{key}={value}: must be at least 1")


@dataclass(frozen=True, eq=False)
class Measured:
    """A run and what was measured of it.

    Attributes:
        evaluation: the averages, those of `vaelab evaluate`.
        columns: `log_px`, `elbo`, `rate`, `distortion`, float64 [N] each, in nats; without those that have no meaning
            for the model.
        examples: SHA-256 over the examples as a model sees them. Runs with the same one were measured on the same.
        discrete: whether p(x|z) is a probability; else it is a density.
        conditional: whether the model is one of p(x|y).
        stochastic: whether two draws of z differ. Where they do not, log p(x) is the ELBO, whatever K is.
        original, reconstruction: some of the examples and what comes back, float32 [n, *event].
        samples: new examples, float32 [n, *event].
    """

    run: Run
    evaluation: Evaluation
    columns: dict[str, NDArray[np.float64]]
    examples: str
    discrete: bool
    conditional: bool
    stochastic: bool
    original: Tensor
    reconstruction: Tensor
    samples: Tensor

    @property
    def kind(self) -> tuple[str, bool, bool]:
        """Runs of one kind have numbers that can be compared."""
        return self.examples, self.discrete, self.conditional

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.run.config.training.seed


def measure(run: Run, how: Protocol) -> Measured:
    """Measure a run, or read what was found when that was done before.

    It is kept in `evaluations/` in the run's folder, under a name that follows from the weights, the configuration, the
    plugins, the version of vaelab and `how`. A folder that cannot be written to keeps nothing.

    Raises:
        InputError: the run is incomplete, or it has no such split. Its data have changed; of a run that was measured
            before, they are not read.
    """
    file = run.path / FOLDER / f"{_name(how)}-{_key(run, how)}.npz"
    if (found := _read(run, file)) is not None:
        return found
    made = _measure(run, how)
    _keep(made, file, _name(how))
    return made


def is_measured(run: Run, how: Protocol) -> bool:
    """Whether it was done before.

    Raises:
        InputError: the run is incomplete.
    """
    return (run.path / FOLDER / f"{_name(how)}-{_key(run, how)}.npz").is_file()


def epochs_left(run: Run) -> int:
    """How many epochs a run was stopped before its end; 0 if it has come to it, or to the end of its patience."""
    config, lines = run.config.training, run.metrics()
    if out_of_patience(lines, config.patience):
        return 0
    return max(0, config.planned_epochs(run.examples["train"]) - len(lines))


def _name(how: Protocol) -> str:
    return f"{how.split}-K{how.importance_samples}-{how.limit or 'all'}"


def _key(run: Run, how: Protocol) -> str:
    weights = run.path / "model.safetensors"
    check_weights(weights)
    digest = hashlib.sha256(f"{__version__} {asdict(how)} {plugins.used(run.config)}".encode())
    for file in (run.path / "config.toml", weights):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _measure(run: Run, how: Protocol) -> Measured:
    model = load(run)
    examples = examples_of(run, how.split)
    if how.limit is not None:
        examples = examples.head(how.limit)
    evaluation, columns = evaluate_each(model, examples, how.importance_samples, split=how.split)
    number = max(1, min(PICTURES, len(examples), _PICTURE_NUMBERS // run.spec.dims))
    index = torch.linspace(0, len(examples) - 1, number, dtype=torch.float64).round().long()
    original = examples.batch(index)
    return Measured(
        run=run,
        evaluation=evaluation,
        columns={name: columns[name].double().cpu().numpy() for name in COLUMNS if name in columns},
        examples=_digest(examples),
        discrete=model.likelihood.discrete,
        conditional=model.labels is not None,
        stochastic="stochastic" in model.provides,
        original=original.cpu(),
        reconstruction=model.reconstruct(original, y=examples.labels_at(index)).cpu(),
        samples=model.sample(number, generator=generator(0, "sample")).cpu(),
    )


def _digest(examples: Split) -> str:
    digest = hashlib.sha256()
    for x, _, _ in batches(examples, 0):
        digest.update(f"{tuple(x.shape)}".encode())
        digest.update(np.ascontiguousarray(x.cpu().numpy()).data)
    return digest.hexdigest()


# -- the file that keeps it ----------------------------------------------------------------------------------------

_PLAIN = ("examples", "discrete", "conditional", "stochastic")
_TENSORS = ("original", "reconstruction", "samples")


def _keep(made: Measured, file: Path, name: str) -> None:
    about = json.dumps({"evaluation": asdict(made.evaluation), **{key: getattr(made, key) for key in _PLAIN}})
    tensors: dict[str, Any] = {key: getattr(made, key).numpy() for key in _TENSORS}
    try:
        file.parent.mkdir(exist_ok=True)
        write_arrays(file, {"about": np.array(about), **made.columns, **tensors})
        for other in file.parent.glob(f"{name}-*.npz"):  # of earlier weights
            if other != file:
                other.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):  # ENOENT: removed meanwhile
            raise


def _read(run: Run, file: Path) -> Measured | None:
    """What a file keeps; None where there is none, or it is damaged."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            about: dict[str, Any] = json.loads(str(arrays["about"]))
            tensors: dict[str, Any] = {name: torch.from_numpy(arrays[name]) for name in _TENSORS}
            return Measured(
                run=run,
                evaluation=Evaluation(**about.pop("evaluation")),
                columns={name: arrays[name] for name in COLUMNS if name in arrays.files},
                **about,
                **tensors,
            )
    except Exception:  # noqa: BLE001 - a damaged archive raises errors of many kinds
        return None
