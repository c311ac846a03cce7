"""Watches what a foreign model computes: each call of torch with its line, and each draw of noise, to replace it."""

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NORMAL = {"randn", "randn_like", "normal", "normal_"}
UNIFORM = {"rand", "rand_like", "uniform_"}
MOMENTS = {"normal": (0.0, 1.0), "uniform": (0.5, 12**-0.5)}
"""Mean and standard deviation of a standard draw of each kind."""
_HIDDEN = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).parents[1]) + os.sep, "<")

Script = Callable[[Tensor], Tensor]
"""A draw -> what to put in its place, as a standard draw: shape and device are those of the draw."""


@dataclass
class Call:
    """A call of torch: its name, the line of somebody's file that it came from, and what went in and came out.

    Attributes:
        inputs: the tensors among the arguments.
        breaks: whether something that has a gradient went in, and something without one came out.
        like: the variables that hold tensors where noise was drawn, with their shapes.
    """

    name: str
    file: str
    line: int
    inputs: list[Tensor]
    output: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    breaks: bool = False
    like: dict[str, torch.Size] = field(default_factory=dict[str, torch.Size])


def _breaks(name: str, inputs: list[Tensor], output: Any) -> bool:
    """`torch.normal` of tensors gives a tensor that claims to have a gradient; it is zero."""
    if not any(one.requires_grad for one in inputs):
        return False
    lost = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
    return name == "normal" or lost


@dataclass
class Draw:
    """A draw of noise.

    Attributes:
        kind: `normal` or `uniform`.
        values: what was drawn, on the standard scale: N(0, 1) or U(0, 1) if torch does what it says.
        mean, stddev: of a `torch.normal` that was given tensors; None where it was given one number for all.
    """

    call: Call
    kind: str
    values: Tensor
    mean: Tensor | None = None
    stddev: Tensor | None = None


class Tracer(TorchFunctionMode):
    """`with Tracer() as seen: model(x)`.

    Args:
        script: what to put in the place of each draw that `wanted` says yes to; None leaves them as they are.
    """

    def __init__(self, script: Script | None = None, wanted: Callable[[Tensor], bool] = lambda _: True) -> None:
        super().__init__()
        self.script, self.wanted = script, wanted
        self.calls: list[Call] = []
        self.draws: list[Draw] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        inputs = list(tensors_in([*args, *kwargs.values()]))
        frame = _frame()
        place = (frame.f_code.co_filename, frame.f_lineno) if frame else ("", 0)
        call = Call(name, *place, inputs, result, args, kwargs, _breaks(name, inputs, result))
        self.calls.append(call)
        if name in NORMAL | UNIFORM and isinstance(result, Tensor) and self.wanted(result):
            variables = frame.f_locals.items() if frame else ()
            call.like = {key: one.shape for key, one in variables if isinstance(one, Tensor)}
            call.output = result = self._drawn(call, args, kwargs)
        return result

    def _drawn(self, call: Call, args: Any, kwargs: Any) -> Tensor:
        kind, result = ("uniform" if call.name in UNIFORM else "normal"), call.output
        low, width = location_and_width(call.name, args, kwargs)
        standard = ((result - low) / width).detach()
        given = [one.detach() if isinstance(one, Tensor) and (one != one.flatten()[0]).any() else None
                 for one in (low, width)]  # fmt: skip
        if self.script is not None:
            standard = self.script(standard)
            replaced = (low + width * standard).detach()
            if call.name.endswith("_"):
                result.data.copy_(replaced)
            else:
                result = replaced.to(result.dtype)
        self.draws.append(Draw(call, kind, standard, *given))
        return result

    def first(self, *names: str, of: Tensor | None = None) -> Call | None:
        """The first call of one of these names; with `of`, the first that took that very tensor."""
        return next(
            (call for call in self.calls
             if call.name in names and (of is None or any(one is of for one in call.inputs))),
            None,
        )  # fmt: skip


def location_and_width(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """What a standard draw is shifted and stretched by."""
    if name == "normal":
        place = 0
    elif name.endswith("_"):
        place = 1
    else:
        return 0.0, 1.0
    low_name, high_name = ("from", "to") if name == "uniform_" else ("mean", "std")
    low = args[place] if len(args) > place else kwargs.get(low_name, 0.0)
    high = args[place + 1] if len(args) > place + 1 else kwargs.get(high_name, 1.0)
    return low, high - low if name == "uniform_" else high


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def raised_by(error: BaseException) -> Call | None:
    """The innermost line outside of torch and of this package that an error went through, as a call."""
    found, trace = None, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(_HIDDEN):
            found = Call("", file, trace.tb_lineno, [], None)
        trace = trace.tb_next
    return found


def _frame() -> FrameType | None:
    """The innermost frame outside of torch and of this package."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_HIDDEN):
        frame = frame.f_back
    return frame
