"""Where distances between examples are measured: their values, principal components, or what a small classifier sees.

A number in one feature space says nothing of a number in another. So each space says what it is: principal components
follow from the data, and a classifier carries the hash of its weights.
"""

import errno
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vaelab.data.download import data_folder
from vaelab.errors import InputError
from vaelab.evaluation.quality.classifier import SmallNetwork, trained
from vaelab.runs import write_tensors

Features = Literal["raw", "pca", "classifier"]
"""Names of feature spaces."""

COMPONENTS = 32
HIDDEN = (256, 64)
UPDATES = 2000
FOLDER = "classifiers"
_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """A map from examples to features, and what there is to know of it.

    Attributes:
        name: `raw`, the values as a model sees them; `pca`, the first principal components; or `classifier`, the last
            hidden layer of a network that was trained to tell labels.
        dimensions: how many features, D.
        transform: x [N, P] float32 -> [N, D] float64.
        fitted_on: how many training examples it was fitted on; 0 if it was not.
        explained: of `pca`, the share of the variance that the components hold.
        sha256: of `classifier`, the hash of its weights: of the file that keeps them. Numbers can be compared where the
            hashes agree.
        accuracy, accuracy_stderr: of `classifier`, the share of held-out examples whose label it tells.
    """

    name: Features
    dimensions: int
    transform: Callable[[Tensor], Tensor]
    fitted_on: int = 0
    explained: float | None = None
    sha256: str | None = None
    accuracy: float | None = None
    accuracy_stderr: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the map itself."""
        return {
            "features": self.name,
            "dimensions": self.dimensions,
            "fitted_on": self.fitted_on,
            "explained": self.explained,
            "classifier_sha256": self.sha256,
            "classifier_accuracy": self.accuracy,
            "classifier_accuracy_stderr": self.accuracy_stderr,
        }

    def __str__(self) -> str:
        if self.name == "raw":
            return f"raw, {self.dimensions:,} values"
        about = f"{self.name}, {self.dimensions} features, fitted on {self.fitted_on:,} training examples"
        if self.explained is not None:
            return f"{about}; {self.explained:.1%} of the variance"
        told = "" if self.accuracy is None else f"; accuracy {self.accuracy:.3f} ± {self.accuracy_stderr:.3f}"
        return f"{about}{told}; SHA-256 {self.sha256}"


def raw(dimensions: int) -> FeatureSpace:
    """The values themselves."""
    return FeatureSpace("raw", dimensions, torch.Tensor.double)


def principal_components(x: Tensor, components: int = COMPONENTS) -> FeatureSpace:
    """The first principal components of x [N, P], centered and not scaled; fewer where x does not have as many."""
    from sklearn.decomposition import PCA

    fitted: Any = PCA(min(components, len(x) - 1, x.shape[1]), random_state=0).fit(x.double().numpy())
    mean, directions = (torch.from_numpy(values) for values in (fitted.mean_, fitted.components_))

    def transform(x: Tensor) -> Tensor:
        return torch.cat([(part.double() - mean) @ directions.T for part in x.split(_AT_ONCE)])

    return FeatureSpace("pca", len(directions), transform, len(x), float(fitted.explained_variance_ratio_.sum()))


def classifier(train: "Labeled", test: "Labeled", fingerprint: str) -> FeatureSpace:
    """The last hidden layer of a network with 256 and 64 ReLUs that tells labels.

    Its values are divided by their root mean square over the training examples.

    It is trained here for 2,000 updates, in float32 on the CPU, with a fixed seed. The same data give the same weights
    on one machine; another one may round differently. They are kept in the folder of the data sets, as
    `classifiers/<name>.safetensors`; where that cannot be written, they are trained each time.

    Args:
        train: what it learns from.
        test: what its accuracy is told of.
        fingerprint: of the data: what the file is named after, together with how the network is trained.

    Raises:
        InputError: fewer than two different labels.
    """
    if len(train.y.unique()) < 2:
        raise InputError("features=classifier: the training examples have one label, so there is nothing to learn")
    classes = int(train.y.max()) + 1
    network = SmallNetwork(train.x.shape[1], HIDDEN, classes)
    made_of = f"{fingerprint} {list(train.x.shape)} {HIDDEN} {classes} {UPDATES}"
    file = data_folder() / FOLDER / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.safetensors"
    if not _read(network, file):
        network = trained(train.x, train.y, HIDDEN, classes, updates=UPDATES, key=("classifier", fingerprint))
        _keep(network, file)
    network.eval().requires_grad_(False)

    def hidden(x: Tensor) -> Tensor:
        return torch.cat([network.features(part) for part in x.split(_AT_ONCE)]).double()

    unit = hidden(train.x).square().mean().sqrt()
    right = torch.cat([network(part).argmax(1) for part in test.x.split(_AT_ONCE)]) == test.y
    accuracy = float(right.double().mean())
    return FeatureSpace(
        "classifier",
        HIDDEN[-1],
        lambda x: hidden(x) / unit,
        len(train.x),
        sha256=hashlib.sha256(save(network.state_dict())).hexdigest(),
        accuracy=accuracy,
        accuracy_stderr=math.sqrt(accuracy * (1 - accuracy) / len(right)),
    )


class Labeled(NamedTuple):
    """Examples x [N, P] float32 and their labels y [N] int64, 0, 1, …."""

    x: Tensor
    y: Tensor


def _read(network: SmallNetwork, file: Path) -> bool:
    """Whether the weights were kept, and are in the network now. A damaged file counts as none."""
    try:
        network.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _keep(network: SmallNetwork, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, network.state_dict())
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
