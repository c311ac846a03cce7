"""What z is: real numbers, one-hot categories, or both."""

from dataclasses import dataclass
from typing import Literal

Holds = Literal["real", "categorical", "joint"]


@dataclass(frozen=True)
class LatentSpec:
    """The latents of a model; z is a vector of `width` numbers.

    Attributes:
        real: how many latents are real numbers. They come first in z.
        categorical: how many latents are one of several categories. Each is a one-hot block of z.
        categories: how many categories each of these has.
    """

    real: int = 0
    categorical: int = 0
    categories: int = 0

    @property
    def count(self) -> int:
        """How many latents there are."""
        return self.real + self.categorical

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers of z each latent takes."""
        return (1,) * self.real + (self.categories,) * self.categorical

    @property
    def width(self) -> int:
        """How many numbers z has."""
        return self.real + self.categorical * self.categories

    @property
    def holds(self) -> Holds:
        """Of what kind the latents are."""
        return "real" if not self.categorical else "joint" if self.real else "categorical"

    @property
    def groups(self) -> dict[str, slice]:
        """Latents that belong together, by name."""
        if self.holds == "joint":
            return {"continuous": slice(0, self.real), "categorical": slice(self.real, self.count)}
        return {"z": slice(0, self.count)}
