"""What one example is: its shape, and which values it can take."""

import math
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["binary", "levels", "real"]


@dataclass(frozen=True)
class DataSpec:
    """What a data set says of its examples. A model is composed from it, and a run records it.

    Attributes:
        shape: the event shape: `(C, H, W)` for pictures, `(D,)` for vectors.
        kind: `binary` (0 or 1), `levels` (integers 0 … levels − 1, which a model sees divided by levels − 1, so
            in [0, 1]) or `real` (any number, seen as it is).
        levels: how many values a dimension can take: 2 if binary, None if real.
        classes: how many labels 0, 1, … there are; None for examples without labels. No part of what an example is, so
            it does not count when two are compared.
    """

    shape: tuple[int, ...]
    kind: Kind
    levels: int | None
    classes: int | None = field(default=None, compare=False)

    @property
    def dims(self) -> int:
        """Number of dimensions of one example."""
        return math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """Whether an example can be shown as a grey (1 channel) or colour (3 channels) picture."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)


@dataclass(frozen=True)
class Factor:
    """One of the independent causes that data were made from: the shape of a sprite, say.

    Attributes:
        name: of the factor.
        size: how many values it takes, counted 0 … size − 1.
        ordered: whether its values have an order; those of a shape have none.
    """

    name: str
    size: int
    ordered: bool = True
