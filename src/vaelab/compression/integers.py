"""Networks in whole numbers: the same answer on every machine, to the last bit.

A decoder that is off by one bit decodes nothing: all that follows is wrong. Floating-point networks are off by a bit
when the number of threads changes, or the size of a batch, or the processor, for sums are rounded in another order.
Whole numbers are not rounded. A float64 holds every whole number up to 2⁵³. So a product of matrices of whole numbers
is exact in float64, in any order, as long as no partial sum can pass 2⁵³. `bounded` proves that for each layer.

What a number is:

    activation   a   stands for a / 2¹⁰, between −32 and 32
    weight       w   stands for w / 2¹⁴
    sum              stands for sum / 2²⁴; it is rounded (half to even) to the layer's output

Everything here is made of operations whose results IEEE 754 fixes: sums and products of whole numbers, scaling by a
power of two, rounding, comparison, looking up. Non-linearities are tables that were computed once and are kept.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab.errors import InputError

ACTIVATION_BITS = 10
WEIGHT_BITS = 14
OUTPUT_BITS = 16
"""Of what a network gives at its end, for densities ask for more than 2⁻¹⁰."""
RANGE_BITS = 5
"""Numbers reach from −2⁵ to 2⁵ and are cut there."""
EXACT, EXACT_SINGLE = 2.0**53, 2.0**24


def limit(bits: int) -> int:
    """The largest whole number that stands for a value at 2⁻ᵇⁱᵗˢ."""
    return 1 << (bits + RANGE_BITS)


def activations() -> Tensor:
    """The values that activations can have, in their order, float64: what tables are made over."""
    top = limit(ACTIVATION_BITS)
    return torch.arange(-top, top + 1, dtype=torch.float64) / 2**ACTIVATION_BITS


def to_integers(values: Tensor, bits: int) -> Tensor:
    """Real numbers as whole numbers (in float64) at 2⁻ᵇⁱᵗˢ, cut to the range."""
    return (values.double() * 2.0**bits).round().clamp(-limit(bits), limit(bits))


def rescale(values: Tensor, old_bits: int, new_bits: int) -> Tensor:
    """Whole numbers at 2⁻ᵒˡᵈ as whole numbers at 2⁻ⁿᵉʷ: multiplied by a power of two, rounded, cut."""
    return _whole(values * 2.0 ** (new_bits - old_bits), new_bits)


def rescale_(values: Tensor, old_bits: int, new_bits: int) -> Tensor:
    """`rescale` in place: new memory costs more than the arithmetic."""
    return _whole(values.mul_(2.0 ** (new_bits - old_bits)), new_bits)


def _whole(values: Tensor, bits: int) -> Tensor:
    return values.round_().clamp_(-limit(bits), limit(bits))


class Step(ABC):
    """One step of a network: whole numbers in, whole numbers out, both in float64 [N, ...]."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass
class Dense(Step):
    """x [N, F] W ᵀ + b, with W [G, F] and b [G], at 2⁻ᵇⁱᵗˢ.

    With `single` it is computed in float32, in half the time; see `of_binary`.
    """

    weight: Tensor
    bias: Tensor
    bits: int
    single: bool = False

    def __post_init__(self) -> None:
        kind = torch.float32 if self.single else torch.float64
        self.weight, self.bias = self.weight.to(kind), self.bias.to(kind)

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # it would make bfloat16 of float32
            sums = torch.addmm(self.bias, x.to(self.weight.dtype), self.weight.T)
        return rescale_(sums.double(), ACTIVATION_BITS + WEIGHT_BITS, self.bits)


@dataclass
class Convolution(Step):
    """A convolution as one product of matrices: W [O, C k k], b [O, 1]."""

    weight: Tensor
    bias: Tensor
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        sizes = [
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(x.shape[-2:], self.padding, self.kernel, self.stride, strict=True)
        ]
        columns = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        sums = self.weight @ columns + self.bias
        return rescale_(sums, ACTIVATION_BITS + WEIGHT_BITS, self.bits).unflatten(-1, sizes)


@dataclass
class TransposedConvolution(Step):
    """A transposed convolution: a product of matrices, W [O k k, C], and a sum of what overlaps; b [O, 1, 1]."""

    weight: Tensor
    bias: Tensor
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        sides = zip(x.shape[-2:], self.stride, self.padding, self.kernel, self.output_padding, strict=True)
        sizes = tuple((n - 1) * s - 2 * p + k + o for n, s, p, k, o in sides)
        sums = F.fold(self.weight @ x.flatten(2), sizes, self.kernel, padding=self.padding, stride=self.stride)
        return rescale_(sums + self.bias, ACTIVATION_BITS + WEIGHT_BITS, self.bits)


@dataclass
class Lookup(Step):
    """A non-linearity: `table[a + 2¹⁵]` is its value at activation a."""

    table: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return look_up(self.table, x)


@dataclass
class Shift(Step):
    """A number for every output is added: b [*shape] at 2⁻ᵇⁱᵗˢ."""

    bias: Tensor
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        return (x + self.bias).clamp_(-limit(self.bits), limit(self.bits))


@dataclass
class Widen(Step):
    """Activations at the precision of outputs."""

    def __call__(self, x: Tensor) -> Tensor:
        return x * 2.0 ** (OUTPUT_BITS - ACTIVATION_BITS)


@dataclass
class Shape(Step):
    """[N, ...] -> [N, *shape]."""

    shape: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


@dataclass
class Cut(Step):
    """Keeps the first rows and columns."""

    height: int
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


@dataclass
class Sum(Step):
    """What goes two ways and is added: a residual block."""

    one: tuple[Step, ...]
    other: tuple[Step, ...]

    def __call__(self, x: Tensor) -> Tensor:
        top = limit(ACTIVATION_BITS)
        return (run(self.one, x) + run(self.other, x)).clamp_(-top, top)


def run(steps: tuple[Step, ...], x: Tensor) -> Tensor:
    """One step after the other."""
    for step in steps:
        x = step(x)
    return x


def look_up(table: Tensor, x: Tensor) -> Tensor:
    """`table` at whole numbers x [...], counted from the middle of the table."""
    index = x.to(torch.int32).add_(len(table) // 2)
    return table.index_select(0, index.flatten()).view(x.shape)


def of_binary(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same network for inputs that are all 0 or 1: its first layer in float32, if that is exact.

    Such inputs are the activations 0 and 2¹⁰, so all products are multiples of 2¹⁰. With a bias that is one, too, so is
    every partial sum, and float32 holds multiples of 2¹⁰ exactly up to 2³⁴.
    """
    place = 1 if isinstance(steps[0], Shape) else 0
    first = steps[place]
    if not isinstance(first, Dense):
        return steps
    one = 2.0**ACTIVATION_BITS
    bias = (first.bias / one).round()
    if not (first.weight.abs().sum(-1) + bias.abs()).max() < EXACT_SINGLE:
        return steps
    return (*steps[:place], Dense(first.weight, bias * one, first.bits, single=True), *steps[place + 1 :])


def bounded(weight: Tensor, bias: Tensor, what: str) -> None:
    """Prove that no partial sum of |activations| · |weights| (rows of `weight`) and bias reaches 2⁵³.

    Raises:
        InputError: it could.
    """
    worst = (weight.abs().sum(-1) * limit(ACTIVATION_BITS) + bias.flatten().abs()).max()
    if not worst < EXACT:
        raise InputError(f"{what}: weights so large that a sum could pass 2^53; train with smaller ones")
