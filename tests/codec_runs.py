"""Run folders of small models with random weights: as good for a codec as trained ones, but for its size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vaelab import data as datasets
from vaelab.composition import compose, settle
from vaelab.config import resolve
from vaelab.data.spec import DataSpec
from vaelab.runs import Run, write_tensors

Make = Callable[..., Run]
LOGISTIC = {"likelihood.name": "discretized-logistic", "model.latent_dim": 3, "network.hidden": [12]}
BETA = LOGISTIC | {"likelihood.name": "beta-binomial"}
HIERARCHY = {"model.name": "hierarchical", "model.latent_dims": [2, 3], "model.hidden": 8, "network.hidden": 8}
BYTES = DataSpec((1, 6, 5), "levels", 256)
MODELS: dict[str, tuple[DataSpec | None, dict[str, Any]]] = {
    "binary": (None, {"data.binarize": "threshold", "model.latent_dim": 3, "network.hidden": [12]}),
    "grey": (None, LOGISTIC),
    "conv": (None, LOGISTIC | {"network.name": "conv", "network.channels": [3, 4], "network.hidden": 8}),
    "hierarchy": (None, HIERARCHY | {"likelihood.name": "beta-binomial"}),
    "bytes": (BYTES, BETA),
    "color": (DataSpec((3, 4, 4), "levels", 256), BETA | {"likelihood.name": "discretized-logistic-mixture"}),
    "frey": (None, BETA | {"data.source": "freyfaces"}),
    "flow": (None, LOGISTIC | {"posterior.name": "iaf"}),
    "vamp": (None, LOGISTIC | {"prior.name": "vamp"}),
    "real": (None, {"likelihood.name": "gaussian", "data.values": "real", "network.hidden": 8}),
}
"""What an example is (as the run's own data have it, by default), and keys."""


def untrained(path: Path, name: str, seed: int = 0) -> Run:
    """A run folder that was never trained. Weights are twice those at the start, so that z and x tell of each other."""
    spec, keys = MODELS[name]
    config = resolve("test", {}, {"data.source": "digits", **keys})
    about: dict[str, Any] = {}
    if spec is None:
        dataset = datasets.load(config.data)
        spec, about = dataset.spec, {"fingerprint": dataset.fingerprint}
    config = settle(config, spec)
    run = Run.create(path, config, spec, **about)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = compose(config, spec).state_dict()
    write_tensors(path / "model.safetensors", {key: 2 * value for key, value in weights.items()})
    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`made("grey")`: a run folder by name, each made once."""
    known: dict[str, Run] = {}

    def make(name: str) -> Run:
        if name not in known:
            known[name] = untrained(tmp_path_factory.mktemp("codecs") / name, name)
        return known[name]

    return make
