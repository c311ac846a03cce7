"""Who trains and who is held out: training, validation and test examples, divided once and for all."""

import hashlib

import torch
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.errors import InputError

Division = dict[str, slice | Tensor]  # split name -> which examples of the source, in its order


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that two draws from one `data.seed` share no random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big") >> 1


def part_size(config: DataConfig, name: str, n: int, default: int) -> int:
    """How many of `n` examples go to a part: `data.<name>` is their fraction, `default` their number if unset.

    Raises:
        InputError: a fraction above 0 that rounds to no example.
    """
    fraction: float | None = getattr(config, name)
    if fraction is None:
        return default
    size = round(fraction * n)
    if fraction and not size:
        raise InputError(f"data.{name}={fraction}: of {n} examples that is none; give a larger fraction, or 0")
    return size


def check_training(n: int, held_out: int, config: DataConfig) -> None:
    """Refuse a division that leaves nothing to train on.

    Raises:
        InputError: fewer than one training example.
    """
    if n - held_out < 1:
        raise InputError(
            f"data.validation={config.validation} and data.test={config.test} leave no training example of {n}; "
            "make them smaller"
        )


def divide_randomly(n: int, config: DataConfig) -> Division:
    """A random division that depends on `data.seed` and the fractions alone, never on the training seed.

    By default a tenth (rounded) is held out for validation and a tenth for test. The test examples stay the same
    whatever the validation fraction. Within a split the order is random too, so its first examples stand for all
    of it, even where the source is sorted by class. With both fractions 0 there is nothing to divide, and the
    training examples keep the order of the source.
    """
    n_test = part_size(config, "test", n, round(0.1 * n))
    n_validation = part_size(config, "validation", n, round(0.1 * n))
    check_training(n, n_test + n_validation, config)
    if n_test + n_validation == 0:
        return {"train": slice(0, n)}
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(config.seed, "division")))
    test, validation, train = order.split([n_test, n_validation, n - n_test - n_validation])
    return _without_empty({"train": train, "validation": validation, "test": test})


def divide_given(sizes: dict[str, int], config: DataConfig) -> Division:
    """A source's own parts, one after the other: training, then validation, then test, where there are any.

    A missing part is divided off the training examples, as `divide_randomly` does it. `data.validation=0` or
    `data.test=0` gives that part to training; it has no other fractions if it is the source's own.

    Raises:
        InputError: a fraction of a part that the source has of its own, or no training example left.
    """
    own = [name for name in ("validation", "test") if name in sizes]
    for name in own:
        if fraction := getattr(config, name):
            raise InputError(
                f"data.{name}={fraction}: {config.source} has its own {sizes[name]:,} {name} examples; leave "
                f"data.{name} out, or set it to 0"
            )
    start = sizes["train"]
    division = divide_randomly(start, config.model_copy(update=dict.fromkeys(own, 0.0)))
    for name in own:
        block = slice(start, start + sizes[name])
        if getattr(config, name) is None:
            division[name] = block
        else:
            every = torch.arange(block.stop)
            division["train"] = torch.cat([every[division["train"]], every[block]])
        start = block.stop
    return {name: division[name] for name in ("train", "validation", "test") if name in division}


def divide_in_blocks(n: int, config: DataConfig, validation: int, test: int) -> Division:
    """Three blocks in the order of the source: training first, then validation, then test.

    `validation` and `test` are the numbers of examples that hold where the configuration has no fraction.
    """
    n_test = part_size(config, "test", n, test)
    n_validation = part_size(config, "validation", n, validation)
    check_training(n, n_test + n_validation, config)
    n_train = n - n_validation - n_test
    return _without_empty(
        {"train": slice(0, n_train), "validation": slice(n_train, n - n_test), "test": slice(n - n_test, n)}
    )


def _without_empty(division: Division) -> Division:
    return {
        name: part
        for name, part in division.items()
        if (part.stop > part.start if isinstance(part, slice) else len(part))
    }
