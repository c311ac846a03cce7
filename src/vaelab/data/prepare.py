"""From what a source holds to what a model sees: levels, binarization, splits, fingerprint."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.dataset import Dataset, Split
from vaelab.data.division import Division, derive_seed
from vaelab.data.spec import DataSpec, Kind
from vaelab.errors import InputError


@dataclass(frozen=True, eq=False)
class Examples:
    """What a source holds, in its own order, and how it is to be divided.

    Attributes:
        raw: `[N, *shape]`: uint8, int16 or int32 for levels (0 … levels − 1), float32 for real values.
        levels: how many values a dimension can take; 2 is binary, None is real.
        division: which examples belong to which split.
        labels: `[N]` int64, or None.
        label_names: the names of label 0, 1, …, or None.
    """

    raw: Tensor
    levels: int | None
    division: Division
    labels: Tensor | None = None
    label_names: tuple[str, ...] | None = None


def prepare(examples: Examples, config: DataConfig) -> Dataset:
    """Apply `data.levels`, `data.values` and `data.binarize`, and divide.

    - `threshold`: 1 where a level is above the middle, (levels − 1) / 2.
    - `static`: one draw for all splits from `data.seed`, each dimension 1 with probability level / (levels − 1).
      It is this project's own draw. Published "static" numbers on MNIST use one particular file (Larochelle &
      Murray 2011), so they are close, but not the same pictures.
    - `dynamic`: training examples are drawn anew at every read. Validation and test examples are drawn once, from
      `data.seed`, so every evaluation of every run sees the same binary pictures: those that `static` draws.

    Real values can be binarized where all lie in [0, 1]: they are the probabilities then. Data that are binary
    already stay as they are.

    Raises:
        InputError: settings that contradict each other or the data.
    """
    levels = _levels(examples, config)
    kind: Kind = "real" if levels is None or config.values == "real" else "binary" if levels == 2 else "levels"
    values = Split(examples.raw, scale=1 if levels is None else levels - 1)
    binary = values
    if config.binarize != "none":
        if config.values == "real":
            raise InputError(f"data.values=real and data.binarize={config.binarize} exclude each other; drop one")
        if levels is None:
            _check_probabilities(examples.raw, config)
        if kind != "binary":
            binary = _binarize(values, config)
        kind = "binary"
    splits: dict[str, Split] = {}
    for name, part in examples.division.items():
        dynamic = config.binarize == "dynamic" and name == "train" and binary is not values
        whole = replace(values, dynamic=True) if dynamic else binary
        labels = None if examples.labels is None else _take(examples.labels, part)
        splits[name] = replace(whole, raw=_take(whole.raw, part), labels=labels)
    spec = DataSpec(tuple(examples.raw.shape[1:]), kind, {"binary": 2, "levels": levels, "real": None}[kind])
    return Dataset(spec, splits, levels, examples.label_names, _fingerprint(splits))


def _take(values: Tensor, part: slice | Tensor) -> Tensor:
    return values[part] if isinstance(part, slice) else values.index_select(0, part)


def _levels(examples: Examples, config: DataConfig) -> int | None:
    """The number of levels after `data.levels`."""
    if config.levels is None:
        return examples.levels
    if examples.levels is None:
        raise InputError(f"data.levels={config.levels}: {config.source} holds real numbers, not integer levels")
    highest = int(examples.raw.max())
    if highest >= config.levels:
        raise InputError(
            f"data.levels={config.levels}: {config.source} goes up to {highest}, so at least {highest + 1} are needed"
        )
    return config.levels


def _check_probabilities(values: Tensor, config: DataConfig) -> None:
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise InputError(
            f"data.binarize={config.binarize}: {config.source} holds real numbers from {low:g} to {high:g}; "
            "scale them to [0, 1] first"
        )


def _binarize(values: Split, config: DataConfig) -> Split:
    """All examples in the source's order, so that a picture's draw does not depend on the division."""
    if config.binarize == "threshold":
        # An integer level is above (L - 1) / 2 exactly if it is above that number rounded down.
        middle = values.scale // 2 if not values.raw.is_floating_point() else 0.5
        return Split((values.raw > middle).to(torch.uint8))
    return replace(values, dynamic=True).fixed(derive_seed(config.seed, "binarization"))


def _fingerprint(splits: dict[str, Split]) -> str:
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(f"{name} {split.scale} {split.dynamic}".encode())
        for tensor in (split.raw, split.labels):
            if tensor is None:
                digest.update(b" no labels")
                continue
            array = np.ascontiguousarray(tensor.numpy())
            digest.update(f" {array.dtype} {array.shape} ".encode())
            digest.update(array.data)
    return digest.hexdigest()
