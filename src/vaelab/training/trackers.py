"""Experiment trackers: `training.log_with=tensorboard|wandb|mlflow|trackio`, through accelerate's own wrappers."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vaelab.errors import InputError, VaelabError
from vaelab.runs import Run

FOLDER = "logs"
"""Where trackers that write files (TensorBoard) put them, in the run folder."""


def check_installed(names: tuple[str, ...]) -> None:
    """Refuse a tracker whose library is missing.

    Raises:
        InputError: it is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"training.log_with={name}: not installed; `pip install {name}`")


class Trackers:
    """The chosen trackers, told the configuration at once, then curves, and at the end numbers and pictures."""

    def __init__(self, run: Run, step: int) -> None:
        names = run.config.training.log_with
        self.trackers: list[Any] = []
        if not names:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorBoard without TensorFlow says so at each start
        for name in names:
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            if kind.requires_logging_directory:  # what a killed run has told beyond its last checkpoint is taken back
                tracker: Any = kind("vaelab", str(run.path / FOLDER), purge_step=step + 1)
            else:
                tracker = kind("vaelab")
            try:
                tracker.start()
                if not step:
                    tracker.store_init_configuration(_flat(run.config.to_dict()))
            except Exception as error:  # noqa: BLE001 each tracker has errors of its own: no account, no network
                raise VaelabError(f"training.log_with={name}: {str(error).splitlines()[0]}") from None
            self.trackers.append(tracker)

    def line(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, as curves `train/elbo`, `validation/elbo`, ... over the step."""
        values = {name: value for name, value in _flat(line).items() if isinstance(value, int | float)}
        for tracker in self.trackers:
            tracker.log(values, step=line["step"])

    def finish(self, run: Run, step: int) -> None:
        """The closing numbers as `final/elbo`, ..., and the pictures of the run folder."""
        numbers = run.summary()["numbers"] or {}
        values = {f"final/{name}": value for name, value in numbers.items() if isinstance(value, int | float)}
        pictures = [path for name in ("samples", "reconstructions") if (path := run.path / f"{name}.png").is_file()]
        for tracker in self.trackers:
            tracker.log(values, step=step)
            for path in pictures:
                _log_picture(tracker, path, step)
        self.close()

    def close(self) -> None:
        """Nothing more will come."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []


def _log_picture(tracker: Any, path: Path, step: int) -> None:
    from PIL import Image

    if tracker.name == "mlflow":
        tracker.log_artifact(str(path))
    elif tracker.name == "trackio":
        import trackio  # type: ignore[import-not-found]

        tracker.log({path.stem: trackio.Image(str(path))}, step=step)
    else:
        pixels = np.asarray(Image.open(path).convert("RGB"))[None]
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({path.stem: pixels}, step=step, **layout)


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with names `group/key`; what no tracker takes (lists) as text."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
