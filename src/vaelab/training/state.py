"""What training holds between two steps, and how it is written to `checkpoint/` and read back.

checkpoint/step-00001234.safetensors     weights, their running average, optimizer moments, best weights, frames
checkpoint/latest.json                   names that file, and holds all numbers; replaced last, so a reader sees the
                                         old checkpoint or the new one, never half of one

There is no random state to keep. Every draw of step s, in process r, is a function of (seed, s, r), every permutation
one of (seed, epoch), and the learning rate one of the step.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from vaelab.errors import InputError
from vaelab.files import write_text
from vaelab.model import Model
from vaelab.objectives import Objective
from vaelab.runs import write_tensors


@dataclass
class Counters:
    """The numbers of a checkpoint. `epoch` epochs are complete, and `batch` batches of the next one.

    Attributes:
        step: updates so far; those that were skipped count.
        sums, counted: of the running epoch: each metric summed over `counted` updates of all processes.
        best_epoch, best_loss, since_best: the kept weights, and the epochs since then.
        reductions, since_reduction: of the `plateau` schedule.
        skipped, skipped_in_a_row, first_skipped: non-finite updates that were left out, and what the first one was.
        seconds: spent in training steps.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict[str, float])
    counted: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    since_best: int = 0
    reductions: int = 0
    since_reduction: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    first_skipped: str | None = None
    frame_stride: int = 1
    seconds: float = 0.0


@dataclass
class State:
    """Everything that changes while training.

    Attributes:
        average: the exponential moving average of the weights, if one is kept.
        scaler: loss scaling under float16; switched off otherwise.
        best: the weights that are kept, by name.
        frames: pictures of the report's animation.
        threads, precision: in use.
    """

    model: Model
    objective: Objective
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    precision: str
    threads: int
    counters: Counters = field(default_factory=Counters)
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    frames: list[Tensor] = field(default_factory=list[Tensor])

    @property
    def evaluated(self) -> Model:
        """The model that is validated and kept: the average, if there is one."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def keep_best(self) -> None:
        """Remember the present weights as the best."""
        self.best = {name: value.detach().clone() for name, value in self.evaluated.state_dict().items()}

    def save(self, folder: Path, processes: int) -> None:
        """Write the checkpoint of so many processes; the previous one stays until this one is whole."""
        folder.mkdir(exist_ok=True)
        file = folder / f"step-{self.counters.step:08d}.safetensors"
        write_tensors(file, self._tensors())
        record = {
            "file": file.name,
            "precision": self.precision,
            "threads": self.threads,
            "processes": processes,
            "counters": asdict(self.counters),
            "scaler": self.scaler.state_dict(),
        }
        write_text(folder / "latest.json", json.dumps(record, indent=1))
        for old in folder.glob("step-*.safetensors"):
            if old != file:
                old.unlink()

    def restore(self, record: dict[str, Any], content: bytes) -> None:
        """Continue where a checkpoint left off: the parsed `latest.json`, and the content of the file it names."""
        tensors = load(content)
        self.precision, self.threads = record["precision"], record["threads"]
        self.counters = Counters(**record["counters"])
        self.scaler.load_state_dict(record["scaler"])
        self.model.load_state_dict(_under("model.", tensors))
        self.objective.load_state_dict(_under("objective.", tensors))
        if self.average is not None:
            self.average.load_state_dict(_under("average.", tensors))
        device = next(self.model.parameters()).device
        self.best = {name: value.to(device) for name, value in _under("best.", tensors).items()}
        self.frames = list(tensors["frames"]) if "frames" in tensors else []
        self._restore_optimizer(_under("optimizer.", tensors))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        if self.frames:
            tensors["frames"] = torch.stack(self.frames)
        return tensors

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def read_checkpoint(folder: Path) -> tuple[bytes, bytes]:
    """The content of `latest.json` and of the file that it names; empty if there is no checkpoint.

    Raises:
        InputError: the checkpoint is damaged.
    """
    if not (folder / "latest.json").exists():
        return b"", b""
    try:
        text = (folder / "latest.json").read_bytes()
        return text, (folder / json.loads(text)["file"]).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from None


def restore(state: State, folder: Path, text: bytes, content: bytes) -> int:
    """`State.restore`, with what can go wrong as one line. Returns how many processes made the checkpoint.

    Raises:
        InputError: the checkpoint is damaged, or belongs to another model or an older version.
    """
    try:
        record = json.loads(text)
        state.restore(record, content)
        return int(record["processes"])
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise damaged(folder, error) from None


def damaged(folder: Path, error: Exception) -> InputError:
    """The message for a checkpoint that cannot be read."""
    return InputError(f"{folder}: damaged checkpoint, or one of another model ({str(error).splitlines()[0]})")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
