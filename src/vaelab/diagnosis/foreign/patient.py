"""What is known of a foreign model before it is judged: the checks read it, and add nothing."""

import inspect
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vaelab.diagnosis.foreign.loss_terms import LossTerms
from vaelab.diagnosis.foreign.model_file import Output, Subject
from vaelab.diagnosis.foreign.paths import last_step
from vaelab.diagnosis.foreign.reading import Reading
from vaelab.diagnosis.foreign.source_lines import assigned, file_of, line_of, line_with, text_of
from vaelab.diagnosis.foreign.tracing import Call, Tracer

EDGE = 1e-3  # what an output may exceed a range by
RIGHT_KL = {
    "log-variance": "kl = -0.5 * torch.sum(1 + {s} - {m}**2 - {s}.exp())",
    "log-standard-deviation": "kl = -0.5 * torch.sum(1 + 2 * {s} - {m}**2 - (2 * {s}).exp())",
    "standard-deviation": "kl = torch.sum(({s}**2 + {m}**2 - 1) / 2 - torch.log({s}))",
    "variance": "kl = 0.5 * torch.sum({s} + {m}**2 - 1 - torch.log({s}))",
    "softplus": "std = F.softplus({s}); kl = torch.sum((std**2 + {m}**2 - 1) / 2 - torch.log(std))",
    "doubled log-variance": "kl = -0.5 * torch.sum(1 + {s} / 2 - {m}**2 - ({s} / 2).exp())",
    "log-precision": "kl = 0.5 * torch.sum((-{s}).exp() + {m}**2 - 1 + {s})",
}
"""The KL in code, of a mean m and a third output s, by what s is."""
USUAL_NAMES = {
    "log-variance": "log_variance",
    "log-standard-deviation": "log_std",
    "standard-deviation": "std",
    "variance": "variance",
    "softplus": "s",
    "doubled log-variance": "s",
    "log-precision": "log_precision",
}
"""Of s, where the loss has no names for its arguments."""


_AXIS = re.compile(r"(dim|axis)\s*=|sum\(\s*[(\[]?-?[12]\s*[,)\]]|,\s*[(\[]?-?1[)\]]?\s*\)")
_SHARE = re.compile(r"mean|/\s*[\w.]*(size|shape|len|batch|\bB\b|\bN\b)", re.IGNORECASE)


def _is_total(text: str) -> bool:
    """Whether a line sums over latents and examples alike: what divides by the batch comes after it."""
    return "sum(" in text and not _AXIS.search(text) and not _SHARE.search(text)


def _is_per_example(text: str) -> bool:
    """Whether a line sums over the latents alone: the mean over the examples comes after it."""
    return bool("sum(" in text and _AXIS.search(text)) and not _SHARE.search(text)


@dataclass
class Failure:
    """An error that a loss raised: what it says, and where."""

    error: str
    call: Call | None


@dataclass
class Patient:
    """A foreign model, and all that was found out about it.

    Attributes:
        found: what `--model` named: a module, or what made it.
        seen: the calls of torch in one forward pass, that of `reading.outputs`.
        data: examples on the model's scale, [N, D].
        loss: None where none was given, or it failed.
        failure: why it failed.
        arguments: the names of the loss's arguments.
    """

    found: Any
    subject: Subject
    reading: Reading
    seen: Tracer
    data: Tensor
    loss: LossTerms | None = None
    failure: Failure | None = None
    arguments: list[str] = field(default_factory=list[str])

    @property
    def pixels(self) -> int:
        return self.data.shape[1]

    @property
    def latents(self) -> int:
        return self.mean.tensor[0].numel()

    @property
    def batch(self) -> int:
        return len(self.subject.x)

    @property
    def reconstruction(self) -> Output:
        return self.reading.outputs[self.reading.reconstruction]

    @property
    def mean(self) -> Output:
        return self.reading.outputs[self.reading.mean]

    @property
    def spread(self) -> Output:
        """The log-variance, or what stands for it."""
        return self.reading.outputs[self.reading.spread]

    @property
    def is_finite(self) -> bool:
        """Whether all outputs are finite."""
        return all(bool(one.isfinite().all()) for one in self.reading.pick(self.reading.outputs))

    def range_of(self, name: str) -> tuple[float, float]:
        """Least and largest value that `reconstruction`, `mean` or `spread` took, whatever the weights."""
        return self.reading.ranges.get(name, (-math.inf, math.inf))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range of the decoder's last activation; None where it has none."""
        low, high = self.range_of("reconstruction")
        if low >= -EDGE and high <= 1 + EDGE:
            return 0.0, 1.0
        if low >= -1 - EDGE and high <= 1 + EDGE:
            return -1.0, 1.0
        return (0.0, math.inf) if low >= 0 else None

    @property
    def beyond_unit(self) -> bool:
        """Whether the reconstruction leaves [0, 1]."""
        low, high = self.reading.ranges.get("reconstruction", (0.0, 1.0))
        return low < -EDGE or high > 1 + EDGE

    @property
    def reaches_an_edge(self) -> bool:
        """Whether the reconstruction can be 0 or 1 but for rounding."""
        low, high = self.range_of("reconstruction")
        return low < EDGE**3 or high > 1 - EDGE**2 / 2

    def right_kl(self, reading: str = "log-variance", call: Call | None = None) -> str:
        """The KL in code, in the loss's own names for mean and third output.

        Args:
            call: the line that it takes the place of; what that assigns keeps its name.
        """
        m, s = self.arguments[2:4] if len(self.arguments) == 4 else ("mean", USUAL_NAMES[reading])
        kl = RIGHT_KL[reading].format(m=m, s=s)
        if (assigned := re.match(r"(\w+)\s*=[^=]", text_of(call))) and assigned[1] != "loss":
            kl = re.sub(r"\bkl =", f"{assigned[1]} =", kl)
        if self.loss is None or self.loss.batch[0] > -0.5:
            return kl
        # The reconstruction term is a mean over the examples. What this line leaves to those after it, they still do.
        divided = self.loss.batch[1] < -0.5 or not self.loss.kl.weight
        if divided and _is_total(text_of(call)):
            return kl
        return f"{kl[:-1]}, dim=1){'' if divided and _is_per_example(text_of(call)) else '.mean()'}"

    @property
    def kl_call(self) -> Call | None:
        """Where the KL is computed: the first line that speaks of one, or else that may be one."""
        if self.loss is None:
            return None
        calls = self.loss.tracer.calls
        named = (call for call in calls if re.search("kl|divergence", text_of(call), re.IGNORECASE))
        return next(named, None) or self.loss.tracer.first("exp", "pow", "square", "__pow__", "log", "sum")

    @property
    def unit(self) -> float:
        """What a KL must count in this loss: as much as the reconstruction term, if that is a cross-entropy."""
        if self.loss is None:
            return 1.0
        if "cross-entropy" in (self.loss.distance or ""):
            return abs(self.loss.weight)
        return 1 / self.batch if self.loss.batch[0] < -0.5 else 1.0

    def where_sigma_is_made(self) -> Call | None:
        """The first call that computes with the log-variance itself; or else the first that can make a σ."""
        arithmetic = ("exp", "exp_", "sqrt", "softplus", "mul", "__mul__", "__rmul__", "mul_", "div", "__truediv__",
                      "true_divide", "div_", "abs", "clamp", "normal", "diag_embed")  # fmt: skip
        of_spread = self.seen.first(*arithmetic, of=self.spread.tensor)
        return of_spread or self.seen.first("exp", "exp_", "sqrt", "softplus") or self.seen.first("mul", "normal")

    def activation(self, output: Output, *names: str) -> tuple[str, str]:
        """Where one of these activations makes an output: place and text; two blanks where that is not known.

        One that is a layer stands where the layer was made, if no other line makes one.
        """
        cuts = {"clamp", "clip"} - {*names}
        call = last_step(self.seen.calls, output.tensor, behind=cuts)
        if call is None or call.name.rstrip("_") not in names:
            return "", ""
        if call.name.rstrip("_") in text_of(call):
            return line_of(call), text_of(call)
        layer = {
            "relu": "ReLU(",
            "sigmoid": "Sigmoid(",
            "tanh": "Tanh(",
            "softplus": "Softplus(",
            "softmax": "Softmax(",
        }.get(call.name, "?")
        first, last = self.source_line(layer, first=True), self.source_line(layer)
        if last[0] and first == last:
            return last
        made = self._layer(output, cuts)
        return made if made[0] else (line_of(call), text_of(call))

    def _layer(self, output: Output, cuts: set[str]) -> tuple[str, str]:
        """Where the layer that makes an output is an attribute, or part of one: place and text, or two blanks."""
        made: list[tuple[nn.Module, Any]] = []

        def note(layer: nn.Module, _: Any, value: Any) -> None:
            made.append((layer, value))

        hook = nn.modules.module.register_module_forward_hook(note)
        seen = Tracer()
        try:
            found = self.subject.run(seen)
        finally:
            hook.remove()
        place = next(n for n, one in enumerate(self.reading.outputs) if one is output)
        call, model = last_step(seen.calls, found[place].tensor, behind=cuts), self.subject.last
        layer = next((layer for layer, value in made if call is not None and value is call.output), None)
        path = next((name for name, one in model.named_modules() if one is layer), "").split(".")
        for depth in range(len(path) - 1, -1, -1):
            owner = model.get_submodule(".".join(path[:depth]))
            if path[depth] and (line := assigned(owner, path[depth])) is not None:
                return line_of(line), text_of(line)
        return "", ""

    def source_line(self, *words: str, first: bool = False) -> tuple[str, str]:
        """The last line with one of these words in the classes of the model, or in the function that makes it.

        Args:
            first: the first line, in place of the last.

        Returns:
            Place and text; two blanks where there is none.
        """
        torch_folder = str(Path(inspect.getfile(nn.Module)).parents[2])
        kinds = {type(module): None for module in self.subject.model.modules()}
        own = [kind for kind in kinds if not file_of(kind).startswith(torch_folder)]
        found = [line_with(thing, *words, first=first) for thing in [*own, self.found]]
        found = [(where, text) for where, text in found if where]
        return found[-1 if first else 0] if found else ("", "")
