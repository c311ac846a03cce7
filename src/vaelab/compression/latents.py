"""Latents on a grid, and codecs of q(z|x) and p(z) on it.

z is cut to multiples of δ = 2⁻⁷. A cell has probability F(its end) − F(its start) under q and under p. Both are about
density · δ, and −log₂ of the two are paid and given back: δ cancels. So a finer grid costs no more, it only borrows
more bits for a while.

A distribution of location μ and scale σ is a shape, one of 109 by σ (16 to a factor of e), around the cell of μ. What
this rounding costs is below 0.001 nats a latent. Shapes end 6 σ from μ; those of priors reach over the whole grid, for
what was drawn from a posterior must be coded under any prior.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from vaelab.compression.codecs import Categorical, Codec, Frequencies, Message, Symbols
from vaelab.compression.integers import ACTIVATION_BITS, OUTPUT_BITS, Step, run

GRID_BITS = 7
LARGEST = 32 << GRID_BITS
"""Cells are −4096 … 4096: z from −32 to 32."""
SCALE_STEPS = 16  # of ln σ, in one unit
LOWEST, HIGHEST = -88, 20  # of these steps: σ from 0.0041 to 3.5
NARROW = 6  # scales at which the shape of a posterior ends
FREQUENCY_BITS = 24

Below = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Standardized distance -> probability below."""


def laplace_below(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a Laplace distribution with standard deviation 1."""
    half = 0.5 * np.exp(-np.sqrt(2) * np.abs(x))
    return np.where(x < 0, half, 1 - half)


FAMILIES: dict[str, Below] = {"gaussian": ndtr, "laplace": laplace_below}


@dataclass
class Shapes:
    """Distributions around 0 on the grid, by scale.

    Attributes:
        weights: of all cells of all shapes, one after the other; whole numbers.
        halves: each shape reaches from −half to half.
        first: the scale step of the first shape.
    """

    weights: Tensor
    halves: Tensor
    first: int

    def __post_init__(self) -> None:
        self.reach = self.halves.numpy().astype(np.int32)
        self.ends = np.cumsum(2 * self.reach + 1)
        self.models = Frequencies(self._weights)

    def _weights(self, chosen: list[int]) -> Iterator[NDArray[np.float64]]:
        for shape in chosen:
            end = self.ends[shape]
            yield self.weights[end - 2 * self.reach[shape] - 1 : end].numpy()

    def codec(self, center: Tensor, step: Tensor) -> Codec:
        """Of cells [n] around centers [n], at scale steps [n]. Narrow shapes stay on the grid."""
        which = (step.flatten().numpy() - self.first).clip(0, len(self.reach) - 1).astype(np.uint8)
        reach = self.reach[which]
        room = np.where(reach < LARGEST, LARGEST - reach, LARGEST)
        return Placed(
            Categorical(self.models, which), center.flatten().numpy().clip(-room, room).astype(np.int32) - reach
        )

    def centered(self, n: int) -> Codec:
        """Of n cells around 0, under the first shape."""
        origin = torch.zeros(n)
        return self.codec(origin, origin + self.first)


class Placed(Codec):
    """Symbols that are counted from another place each: `first` [n]."""

    def __init__(self, codec: Codec, first: Symbols) -> None:
        self.codec, self.first = codec, first

    def push(self, message: Message, symbols: Symbols) -> None:
        self.codec.push(message, symbols - self.first)

    def pop(self, message: Message) -> Symbols:
        return self.codec.pop(message) + self.first


def shapes(family: Below, lowest: int, highest: int, half: int | None = None) -> Shapes:
    """Shapes of scale steps `lowest` … `highest`, as far as NARROW scales or as `half` cells."""
    weights: list[NDArray[np.float64]] = []
    for step in range(lowest, highest + 1):
        scale = np.exp(step / SCALE_STEPS) * 2**GRID_BITS
        reach = half or int(np.ceil(NARROW * scale))
        edges = np.arange(-reach, reach + 2) - 0.5
        # By symmetry from the left half, where a difference of two small numbers loses nothing.
        left = np.diff(family(-np.abs(edges) / scale))
        middle = 1 - 2 * family(np.array([-0.5 / scale]))
        mass = np.concatenate((left[:reach], middle, left[:reach][::-1]))
        weights.append(np.rint(mass * 2**FREQUENCY_BITS))
    halves = torch.tensor([len(one) // 2 for one in weights])
    return Shapes(torch.from_numpy(np.concatenate(weights)), halves, lowest)


def gaussian_prior(lowest: int = 0, highest: int = 0) -> Shapes:
    """N(0, 1), or N(any, σ²) for scale steps: over the whole grid from wherever its center is."""
    return shapes(ndtr, lowest, highest, LARGEST if lowest == highest else 2 * LARGEST)


def cells(outputs: Tensor) -> Tensor:
    """Locations at 2⁻¹⁶ as cells."""
    return (outputs * 2.0 ** (GRID_BITS - OUTPUT_BITS)).round()


def scale_steps(log_variance: Tensor) -> Tensor:
    """Log-variances at 2⁻¹⁶ as scale steps: ln σ is half of them."""
    return (log_variance * (SCALE_STEPS / 2.0 ** (OUTPUT_BITS + 1))).round()


def as_activations(z: Tensor) -> Tensor:
    """Cells as activations, which are finer."""
    return z * 2.0 ** (ACTIVATION_BITS - GRID_BITS)


class Latents(ABC):
    """q(z|x) and p(z), quantized. x is [B, *event] as activations, z is cells [B, D] in float64."""

    @property
    @abstractmethod
    def size(self) -> int:
        """D."""

    @abstractmethod
    def pop_posterior(self, message: Message, x: Tensor) -> Tensor:
        """Draw z from q(z|x) with the message's bits."""

    @abstractmethod
    def push_posterior(self, message: Message, x: Tensor, z: Tensor) -> None:
        """Give these bits back."""

    @abstractmethod
    def push_prior(self, message: Message, z: Tensor) -> None:
        """Code z under p(z)."""

    @abstractmethod
    def pop_prior(self, message: Message, examples: int) -> Tensor:
        """Decode z."""

    @abstractmethod
    def state(self, z: Tensor) -> Tensor:
        """What the decoder takes, as activations [B, W]."""


@dataclass
class FlatLatents(Latents):
    """One layer of D latents under N(0, 1), with independent posteriors.

    Attributes:
        encoder: x -> location [B, D], then log-variance [B, D], at 2⁻¹⁶.
        posterior: shapes of q.
        prior: the shape of p.
        dim: D.
    """

    encoder: tuple[Step, ...]
    posterior: Shapes
    prior: Shapes
    dim: int

    @property
    def size(self) -> int:
        return self.dim

    def pop_posterior(self, message: Message, x: Tensor) -> Tensor:
        return as_cells(self._posterior(x).pop(message), self.size)

    def push_posterior(self, message: Message, x: Tensor, z: Tensor) -> None:
        self._posterior(x).push(message, as_symbols(z))

    def push_prior(self, message: Message, z: Tensor) -> None:
        self._prior(len(z)).push(message, as_symbols(z))

    def pop_prior(self, message: Message, examples: int) -> Tensor:
        return as_cells(self._prior(examples).pop(message), self.size)

    def state(self, z: Tensor) -> Tensor:
        return as_activations(z)

    def _posterior(self, x: Tensor) -> Codec:
        loc, log_variance = run(self.encoder, x).chunk(2, dim=-1)
        return self.posterior.codec(cells(loc), scale_steps(log_variance))

    def _prior(self, examples: int) -> Codec:
        return self.prior.centered(examples * self.size)


def as_symbols(z: Tensor) -> Symbols:
    """Cells [B, D] as symbols [B · D]."""
    return z.flatten().numpy().astype(np.int32)


def as_cells(symbols: Symbols, size: int) -> Tensor:
    """And back."""
    return torch.from_numpy(symbols.astype(np.float64)).view(-1, size)
