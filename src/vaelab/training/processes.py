"""The processes that train one model together: a single one, unless torchrun or `accelerate launch` started more.

Every process holds a copy of the model and takes its share of each batch; `accelerate` (torch's
DistributedDataParallel) averages the gradients. The first process decides and writes; the others follow.
"""

import atexit
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vaelab.errors import InputError, VaelabError, process_rank

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """This process among all.

    Attributes:
        count: how many there are.
        rank: which one this is, from 0.
        device: where this one computes; of several, each has the one that accelerate gives it.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = process_rank()
        self.device = self.accelerator.device if self.count > 1 else torch.device("cpu")

    def use(self, device: str) -> None:
        """Compute on `training.device`.

        Raises:
            InputError: it is not there.
        """
        if self.count == 1:
            self.device = _single_device(device)
        elif device not in ("auto", self.device.type):
            raise InputError(
                f"training.device={device}: of several processes each gets its own ({self.device.type}); leave it out, "
                "or start them with `accelerate launch --cpu`"
            )

    @cached_property
    def accelerator(self) -> "Accelerator":
        """What joins the processes. Its mixed precision is off: it would cast the densities, too."""
        from accelerate import Accelerator

        for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
                raise InputError(f"accelerate is set up for {name}; run `accelerate config` and choose multi-GPU")
        try:
            accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available(), dynamo_backend="no")
        except ValueError as error:
            raise InputError(
                f"WORLD_SIZE={self.count} announces several processes, but they cannot meet ({error}); start them with "
                "torchrun, or unset it"
            ) from None
        atexit.register(_disconnect)
        return accelerator

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes at each backward pass."""
        return self.accelerator.prepare_model(module) if self.count > 1 else module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[object]:
        """Backward passes in here add to the gradients of this process alone (gradient accumulation)."""
        return self.accelerator.no_sync(module) if self.count > 1 else nullcontext()

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.count == 1:
            return values
        # MPS has no float64, but no several processes either.
        total = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.device), "sum")
        assert isinstance(total, Tensor)
        return total.tolist()

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """What `make` gives in the first process, in every process. If it fails there, it fails everywhere."""
        if self.count == 1:
            return make()
        content, failure = b"", None
        if self.is_first:
            try:
                content = make()
            except (OSError, VaelabError) as error:
                content, failure = str(error).encode(), error
        size, code = map(int, self.sum([len(content), getattr(failure, "exit_code", 1) if failure else 0]))
        content = self._send(content, 0, size)
        if failure is not None:
            raise failure
        if code:
            raise Followed(content.decode(), code)
        return content

    def first_word(self, word: str) -> str:
        """The first text that is not empty, in the order of the processes; empty if all are."""
        if self.count == 1:
            return word
        sizes = self.sum([float(len(word.encode())) * (rank == self.rank) for rank in range(self.count)])
        source = next((rank for rank, size in enumerate(sizes) if size), None)
        return "" if source is None else self._send(word.encode(), source, int(sizes[source])).decode()

    def _send(self, content: bytes, source: int, size: int) -> bytes:
        """`size` bytes from process `source` to all."""
        from accelerate.utils import broadcast

        buffer = torch.zeros(size, dtype=torch.uint8, device=self.device)
        if self.rank == source and size:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        received: Any = broadcast(buffer, from_process=source)
        return received.cpu().numpy().tobytes()

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


def _disconnect() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Followed(VaelabError):
    """An error of the first process, which ends the others too."""

    met_by_all = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Deserted(Followed):
    """Another process ended in the middle of an exchange; it says itself why."""


def deserted(error: RuntimeError) -> bool:
    """Whether this is how torch tells that another process is gone."""
    return isinstance(error, torch.distributed.DistError) or "closed by peer" in str(error) or "gloo" in str(error)


def _single_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise InputError(f"training.device={name}: not to be had here; use auto or cpu") from None
    return device
