"""From what a source holds to what a model sees: levels, binarization, splits, fingerprint."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data.dataset import Dataset, Split
from vaelab.data.division import Division, derive_seed
from vaelab.data.spec import DataSpec, Factor, Kind
from vaelab.data.stream import Rows, Thresholded
from vaelab.errors import InputError


@dataclass(frozen=True, eq=False)
class Examples:
    """What a source holds, in its own order, and how it is to be divided.

    Attributes:
        raw: `[N, *shape]`: uint8, int16 or int32 for levels (0 … levels − 1), float32 for real values. `Rows` check
            their values when they are read.
        levels: how many values a dimension can take; 2 is binary, None is real.
        division: which examples belong to which split.
        labels: `[N]` int64, or None.
        label_names: the names of label 0, 1, …, or None.
        factors: `[N, F]` int64, the value of each known factor, or None.
        factor_specs: what the columns of `factors` are.
    """

    raw: Tensor | Rows
    levels: int | None
    division: Division
    labels: Tensor | None = None
    label_names: tuple[str, ...] | None = None
    factors: Tensor | None = None
    factor_specs: tuple[Factor, ...] | None = None


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

    Streams are binarized when they are read. What `static` draws of an example is then a function of `data.seed` and
    its position in the source (`vaelab.data.stream.Drawn`).

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
        if levels is None and isinstance(examples.raw, Tensor):
            _check_probabilities(examples.raw, config)
        if kind != "binary":
            binary = _binarize(values, config)
        kind = "binary"
    splits: dict[str, Split] = {}
    for name, part in examples.division.items():
        dynamic = config.binarize == "dynamic" and name == "train" and binary is not values
        whole = replace(values, dynamic=True) if dynamic else binary
        told = replace(whole, labels=examples.labels, factors=examples.factors, name=name)
        splits[name] = told.select(part)
    highest = {"binary": 2, "levels": levels, "real": None}[kind]
    spec = DataSpec(tuple(examples.raw.shape[1:]), kind, highest, _classes(examples))
    fingerprint = _fingerprint(examples.raw, splits, config)
    return Dataset(spec, splits, levels, examples.label_names, fingerprint, examples.factor_specs)


def _classes(examples: Examples) -> int | None:
    """How many labels there are, with or without examples in these data; None without labels 0, 1, …."""
    if examples.labels is None or not len(examples.labels) or int(examples.labels.min()) < 0:
        return None
    return max(len(examples.label_names or ()), int(examples.labels.max()) + 1)


def _levels(examples: Examples, config: DataConfig) -> int | None:
    """The number of levels after `data.levels`."""
    if config.levels is None:
        return examples.levels
    if examples.levels is None:
        raise InputError(f"data.levels={config.levels}: {config.source} holds real numbers, not integer levels")
    # A stream's values are checked when they are read, against the levels that its source found here.
    highest = int(examples.raw.max()) if isinstance(examples.raw, Tensor) else examples.levels - 1
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
        middle = 0.5 if values.raw.dtype.is_floating_point else values.scale // 2
        if isinstance(values.raw, Rows):
            return Split(Thresholded(values.raw, middle))
        return Split((values.raw > middle).to(torch.uint8))
    return replace(values, dynamic=True).fixed(derive_seed(config.seed, "binarization"))


def _fingerprint(raw: Tensor | Rows, splits: dict[str, Split], config: DataConfig) -> str:
    """SHA-256 over the stored values, the labels and the division.

    Of a stream: over shape, type, a sample of the content (`Rows.sample`), the labels and the division. A change of a
    value outside of the sample goes unnoticed; to find it would take a pass over all.
    """
    digest = hashlib.sha256()
    if isinstance(raw, Rows):
        digest.update(f"stream {raw.shape} {raw.dtype} {config.binarize} {config.seed}".encode())
        for piece in raw.sample():
            digest.update(piece)
    for name, split in splits.items():
        digest.update(f"{name} {split.scale} {split.dynamic}".encode())
        values = split.raw.place(torch.arange(len(split))) if isinstance(split.raw, Rows) else split.raw
        for tensor in (values, split.labels):
            if tensor is None:
                digest.update(b" no labels")
                continue
            array = np.ascontiguousarray(tensor.numpy())
            digest.update(f" {array.dtype} {array.shape} ".encode())
            digest.update(array.data)
    return digest.hexdigest()
