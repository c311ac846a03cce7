"""Trackers: TensorBoard for real; the others by what they are told."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import vaelab
from vaelab.errors import InputError
from vaelab.runs import Run
from vaelab.training import loop, trackers

SMALL = {"network.hidden": [16], "model.latent_dim": 3, "data.binarize": "threshold"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_curves_pictures_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = {**SMALL, "training.log_with": "tensorboard"}
    run = vaelab.train("vae", data="digits", epochs=3, out=tmp_path / "run", progress=False, overrides=keys)
    events = EventAccumulator(str(run.path / "logs" / "vaelab"))
    events.Reload()
    lines = run.metrics()
    for part in ("train", "validation"):
        for name in ("elbo", "rate", "distortion"):
            curve = events.Scalars(f"{part}/{name}")
            assert [point.step for point in curve] == [line["step"] for line in lines]
            assert [point.value for point in curve] == pytest.approx([line[part][name] for line in lines], rel=1e-5)
    numbers = run.summary()["numbers"]
    assert events.Scalars("final/log_px")[0].value == pytest.approx(numbers["log_px"], rel=1e-5)
    for name in ("samples", "reconstructions"):
        (logged,) = events.Images(name)
        with Image.open(run.path / f"{name}.png") as picture:
            assert (logged.width, logged.height) == picture.size


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_was_killed_tells_tensorboard_each_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in epoch 4, after it has told of epochs that its last checkpoint does not hold."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = {**SMALL, "training.log_with": "tensorboard"}
    close = loop.close_epoch

    def dying(job: Any, config: Any) -> Any:
        if job.state.counters.epoch == 3:
            raise KeyboardInterrupt
        return close(job, config)

    monkeypatch.setattr(loop, "close_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        vaelab.train("vae", data="digits", epochs=5, out=tmp_path / "run", progress=False, overrides=keys)
    monkeypatch.setattr(loop, "close_epoch", close)
    run = vaelab.train(out=tmp_path / "run", resume=True, progress=False)
    events = EventAccumulator(str(run.path / "logs" / "vaelab"))
    events.Reload()
    found = [point.step for point in events.Scalars("train/elbo")]
    assert found == [line["step"] for line in run.metrics()]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_tracker_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    keys = {**SMALL, "training.log_with": name}
    with pytest.raises(InputError, match=f"training.log_with={name}: not installed; `pip install {name}`"):
        vaelab.train("vae", data="digits", epochs=1, out=tmp_path / "run", overrides=keys, progress=False)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.log_with=tensorbord: must be .*'tensorboard'.*'trackio'"):
        vaelab.train("vae", data="digits", out=tmp_path / "run", overrides={"training.log_with": "tensorbord"})


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_other_trackers_are_told_the_same(digits_run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A recorder stands for accelerate's wrapper, since these libraries want accounts or servers."""
    from accelerate import tracking

    told: list[tuple[str, Any, Any]] = []

    class Recorder:
        requires_logging_directory = False

        def __init__(self, project: str) -> None:
            self.name = name
            told.append(("project", project, None))

        def start(self) -> None: ...

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told.append(("configuration", values, None))

        def log(self, values: dict[str, Any], step: int) -> None:
            told.append(("log", values, step))

        def log_images(self, values: dict[str, Any], step: int) -> None:
            told.append(("pictures", {key: value.shape for key, value in values.items()}, step))

        def log_artifact(self, path: str) -> None:
            told.append(("artifact", Path(path).name, None))

        def finish(self) -> None:
            told.append(("finish", None, None))

    if name == "trackio":
        module = ModuleType("trackio")
        module.Image = lambda path: Path(path).name  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Recorder)
    training = digits_run.config.training.model_copy(update={"log_with": (name,)})
    run = Run(digits_run.path, _with_training(digits_run, training), digits_run.spec, digits_run.about)
    chosen = trackers.Trackers(run, 0)
    chosen.line(digits_run.metrics()[0])
    chosen.finish(run, 99)
    kinds = [kind for kind, _, _ in told]
    assert kinds[:4] == ["project", "configuration", "log", "log"]
    assert kinds[-1] == "finish"
    assert told[1][1]["model/latent_dim"] == 2
    assert told[2][1]["validation/elbo"] == digits_run.metrics()[0]["validation"]["elbo"]
    assert told[3][1]["final/log_px"] == digits_run.summary()["numbers"]["log_px"]
    pictures = {str(value) for kind, value, _ in told[4:-1] for value in ([value] if kind == "artifact" else value)}
    assert {word.removesuffix(".png") for word in pictures} == {"samples", "reconstructions"}


def _with_training(run: Run, training: Any) -> Any:
    from dataclasses import replace

    return replace(run.config, training=training)
