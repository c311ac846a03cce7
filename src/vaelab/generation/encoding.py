"""The latents of examples."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab import data as datasets
from vaelab import pictures
from vaelab.config import DataConfig, nearest, section
from vaelab.data import Dataset, Split
from vaelab.errors import InputError
from vaelab.evaluation.likelihood import examples_of
from vaelab.files import replacing
from vaelab.generation.common import Out, RunPath, describe, numpy_fields, posteriors, write_arrays
from vaelab.model import Model
from vaelab.runs import Run, load


@dataclass(frozen=True, eq=False)
class Encoding:
    """q(z|x) of N examples.

    Attributes:
        mean: [N, D].
        scale: standard deviation, [N, D]; None where the posterior has none (an autoencoder).
        labels: [N] int64; None where the data have none. Of a conditional run, by the numbers that it knows them by.
    """

    mean: Tensor
    scale: Tensor | None
    labels: Tensor | None


@torch.no_grad()
def encode(
    run: RunPath, *, data: str | os.PathLike[str] | None = None, split: str | None = None, out: Out = None
) -> Encoding:
    """Posterior mean and standard deviation of every example of a source, in the order of the source.

    What the run does to its data is done to these too (`binarize`, `values`, the `size` of a folder's pictures).
    Integers count levels as the run's do, and grey pictures serve a run of color pictures. Dynamic binarization is
    drawn once, from `data.seed`. A conditional run takes the source's labels by their names, where both have names.

    Args:
        run: a run folder.
        data: the source; the run's own unless told.
        split: only this part of the run's own data, in its order.
        out: the file to write: .npz (arrays `mean`, `scale`, `labels`, the last two where they exist), or .csv (a line
            an example: mean_0, ..., scale_0, ..., label).

    Raises:
        InputError: data that cannot be read or are of another shape or kind than the run's, labels that a conditional
            run does not know, or a file that cannot be written.
    """
    run = Run.open(run)
    file = None if out is None else pictures.output_path(out, ".npz", ".csv")
    if data is not None and split is not None:
        raise InputError(f"split={split}: only the run's own data are divided; leave out split, or data")
    model = load(run)
    if split is None:
        examples = _every_example(run, run.config.data.source if data is None else os.fspath(data), model)
    else:
        examples = examples_of(run, split)
    found = list(posteriors(model, examples))
    scales = [q.stddev for q in found if q.stddev is not None]
    encoding = Encoding(torch.cat([q.mean for q in found]), torch.cat(scales) if scales else None, examples.labels)
    if file is not None:
        save = _write_table if file.suffix.lower() == ".csv" else write_arrays
        save(file, numpy_fields(encoding))
    return encoding


# -- a source, as the run sees it ----------------------------------------------------------------------------------


def _every_example(run: Run, source: str, model: Model) -> Split:
    dataset = _undivided(run, source)
    examples, wanted, found = dataset["train"].fixed(run.config.data.seed), run.spec, dataset.spec
    if wanted.shape[0] == 3 and found.shape == (1, *wanted.shape[1:]):
        examples = examples.expand(wanted.shape)
        found = replace(found, shape=wanted.shape)
    if found != wanted:
        raise InputError(f"{source}: holds {describe(found)}; {run} was trained on {describe(wanted)}")
    if model.labels is None:
        return examples
    known = run.label_names or tuple(map(str, range(model.labels.classes)))
    return replace(examples, labels=_known_labels(examples.labels, dataset.label_names, known, source, run))


def _known_labels(
    labels: Tensor | None, names: tuple[str, ...] | None, known: tuple[str, ...], source: str, run: Run
) -> Tensor:
    """The labels of a source, by the numbers that they have in the run: the places of their names in `known`.

    Labels without names are the run's numbers themselves.
    """
    if labels is None:
        raise InputError(f"{source}: has no labels; {run} is conditional, and wants one for every example")
    numbers, places = labels.unique(return_inverse=True)
    found = [names[number] if names else str(number) for number in numbers.tolist()]
    of_run = {name: place for place, name in enumerate(known)} if names else {str(n): n for n in range(len(known))}
    for name in found:
        if name not in of_run:
            raise InputError(f"{source}: {run} does not know label {name}; {nearest(name, of_run)}")
    return torch.tensor([of_run[name] for name in found], dtype=torch.int64)[places]


def _undivided(run: Run, source: str) -> Dataset:
    """All examples as one split `train`, in the order of the source."""
    keys = run.config.data.model_dump() | {"source": source, "validation": 0, "test": 0}
    if keys["binarize"] == "dynamic":
        keys["binarize"] = "static"  # the draw that held-out examples have anyway
    if not datasets.takes_size(source):
        keys["size"] = None
    if source != run.config.data.source:
        keys["stream"] = "auto"
    config = section("data", keys)
    assert isinstance(config, DataConfig)
    try:
        return datasets.load(config)
    except InputError:
        # Integers count as levels of the run's data. Real values, or higher levels, are read as what they are.
        if config.levels is None:
            raise
        return datasets.load(config.model_copy(update={"levels": None}))


def _write_table(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """One line an example. Nine digits give a float32 back exactly."""
    header: list[str] = []
    formats: list[str] = []
    for name, array in arrays.items():
        header += ["label"] if name == "labels" else [f"{name}_{latent}" for latent in range(array.shape[1])]
        formats += ["%d"] if name == "labels" else ["%.9g"] * array.shape[1]
    columns = np.column_stack([array.astype(np.float64) for array in arrays.values()])
    with replacing(file) as temporary:
        np.savetxt(temporary, columns, formats, delimiter=",", header=",".join(header), comments="")
