"""One thread, and no data but those that are there."""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import vaelab
from vaelab import report
from vaelab.config import Config, resolve
from vaelab.files import write_text
from vaelab.report import publish
from vaelab.runs import Run
from vaelab.training import Interrupted, loop

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
torch.set_num_threads(1)
settings.register_profile("vaelab", deadline=None, derandomize=True)
settings.load_profile("vaelab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the built site come first: they take longest, and with pytest-xdist one process has them all."""
    items.sort(key=lambda item: "site" not in item.keywords)


@pytest.fixture
def configure() -> Callable[..., Config]:
    """A configuration from keys alone: `configure(**{"model.latent_dim": 2})`."""
    return lambda **keys: resolve("test", {}, keys)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small VAE on binarized digits, trained for a few seconds; with its report, whichever module asks first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "publish", publish)
        return vaelab.train(
            "vae",
            data="digits",
            epochs=40,
            out=tmp_path_factory.mktemp("runs") / "digits",
            overrides={"data.binarize": "threshold", "model.latent_dim": 2, "network.hidden": [64]},
            progress=False,
        )


def unpublished(run: Run, *_: Any) -> None:
    """The file that `vaelab.report.publish` writes last, and nothing in it."""
    write_text(run.path / "report.html", "")


@pytest.fixture(scope="module")
def without_reports() -> Generator[None]:
    """Trainings draw no pictures, which takes twenty times as long as the training of a small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "publish", unpublished)
        yield


@pytest.fixture
def with_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do in this test of a module that is `without_reports`."""
    monkeypatch.setattr(report, "publish", publish)


@pytest.fixture
def stopped_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with stopped_at(5): ...`: training inside is told to stop during its fifth update, and must say how to go on."""

    @contextmanager
    def stopped(update: int) -> Generator[None]:
        step, calls = loop._step, 0  # pyright: ignore[reportPrivateUsage]

        def stopping(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == update:
                os.kill(os.getpid(), signal.SIGINT)
            return step(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="--resume --out"):
            patch.setattr(loop, "_step", stopping)
            yield

    return stopped


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on whether this machine multiplies bfloat16 matrices."""
    monkeypatch.setattr("vaelab.training.precision.has_bfloat16", lambda device: False)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test writes lands in the checkout."""
    monkeypatch.chdir(tmp_path)
