"""What the metrics are given, as arrays of real numbers."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vaelab.errors import InputError


def real(values: ArrayLike | Tensor, name: str) -> NDArray[np.float64]:
    """Numbers as float64, in memory of their own, whatever held them.

    Args:
        values: an array, a tensor on any device, or lists.
        name: of them, in messages.

    Raises:
        InputError: they are no real numbers, or rows differ in length.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    try:
        found = np.asarray(values)
    except ValueError:
        raise InputError(f"{name}: rows of different lengths; give an array [N, D]") from None
    if found.dtype.kind not in "biuf":
        raise InputError(f"{name}: {found.dtype} values; give real numbers")
    return np.array(found, np.float64, order="C")
