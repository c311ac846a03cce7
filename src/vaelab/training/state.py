"""What training holds between two steps, and how it is written to `checkpoint/` and read back.

checkpoint/step-00001234.safetensors     weights, optimizer moments, best weights, frames
checkpoint/latest.json                   names that file; replaced last, so a reader sees old or new, never half
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vaelab.errors import InputError
from vaelab.files import write_text
from vaelab.model import VAE
from vaelab.objectives import Objective
from vaelab.runs import write_tensors

Sums = dict[str, Tensor]


@dataclass
class Counters:
    """The numbers of a checkpoint. `epoch` epochs are complete, and `batch` batches of the next one."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    frame_stride: int = 1
    seconds: float = 0.0


@dataclass
class State:
    """Everything that changes while training."""

    model: VAE
    objective: Objective
    optimizer: torch.optim.Adam
    counters: Counters = field(default_factory=Counters)
    sums: Sums = field(default_factory=dict[str, Tensor])
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    frames: list[Tensor] = field(default_factory=list[Tensor])

    def keep_best(self) -> None:
        """Remember the present weights as the best."""
        self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write a checkpoint; the previous one stays until this one is whole."""
        folder.mkdir(exist_ok=True)
        file = folder / f"step-{self.counters.step:08d}.safetensors"
        write_tensors(file, self._tensors())
        sums = {name: float(value) for name, value in self.sums.items()}
        record = {"file": file.name, "counters": asdict(self.counters), "sums": sums}
        write_text(folder / "latest.json", json.dumps(record, indent=1))
        for old in folder.glob("step-*.safetensors"):
            if old != file:
                old.unlink()

    def restore(self, folder: Path) -> None:
        """Continue where a checkpoint left off.

        Raises:
            InputError: the checkpoint is damaged, or belongs to another model.
        """
        try:
            record = json.loads((folder / "latest.json").read_text())
            tensors = load_file(folder / record["file"])
            self.counters = Counters(**record["counters"])
            self.model.load_state_dict(_under("model.", tensors))
            self.best = _under("best.", tensors)
            device = next(self.model.parameters()).device
            self.sums = {name: torch.tensor(value, device=device) for name, value in record["sums"].items()}
            self.frames = list(tensors["frames"]) if "frames" in tensors else []
            self._restore_optimizer(_under("optimizer.", tensors))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{folder}: damaged checkpoint, or one of another model ({reason})") from None

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
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


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
