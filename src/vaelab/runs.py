"""The run folder: what a training leaves behind, and how it is read again.

    config.toml           everything that was chosen, and what an example is
    model.safetensors     the best weights
    checkpoint/           what resuming needs
    metrics.jsonl         one line an epoch
    numbers.json          the closing numbers, of the validation set (of the training set where there is none)
    report.html, samples.png, reconstructions.png, README.md

Every file is written under a temporary name and renamed, so a reader never sees half of one.
"""

import json
import os
import shlex
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import tomli_w
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from vaelab import config as configuration
from vaelab import data as datasets
from vaelab import plugins
from vaelab.composition import compose
from vaelab.config import Config
from vaelab.data import Dataset, DataSpec
from vaelab.errors import InputError
from vaelab.files import replacing, write_text
from vaelab.model import Model

FORMAT = 1


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a whole safetensors file, or nothing."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # Not save_file: it makes files that only their owner can read, and has an error type of its own for the disk.
        temporary.write_bytes(save(plain))


@dataclass(frozen=True)
class Run:
    """A run folder that can be read. `os.fspath(run)` is its path."""

    path: Path
    config: Config
    spec: DataSpec
    about: Mapping[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the labels 0, 1, ...; None for data without labels."""
        named = self.about.get("label_names")
        return tuple(named) if named else None

    @property
    def plugin_options(self) -> str:
        """What a command that reads this run must be given beside its path: " --plugin my_prior.py", or nothing."""
        return _plugin_options(self.about)

    def command(self, name: str, *options: str) -> str:
        """A command that reads this run."""
        return shlex.join(["vaelab", name, str(self), *options]) + self.plugin_options

    def data(self) -> Dataset:
        """The data that the run was trained on, read again.

        Raises:
            InputError: they are not the same any more: another division would test on training examples.
        """
        dataset = datasets.load(self.config.data)
        if dataset.fingerprint != self.about.get("fingerprint"):
            raise InputError(f"{self.config.data.source}: the data have changed since {self} was trained; restore them")
        return dataset

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch."""
        path, lines = self.path / "metrics.jsonl", list[dict[str, Any]]()
        for number, text in enumerate(path.read_text(errors="replace").splitlines() if path.is_file() else [], 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict) or not {"epoch", "validation"} <= line.keys():
                raise InputError(f"{path}: damaged (line {number} is no epoch); restore it, or train the run again")
            lines.append(line)
        return lines

    def best(self) -> dict[str, Any] | None:
        """The line of the epoch whose weights were kept: lowest validation loss, else the last; None before any."""
        return best_line(self.metrics())

    @property
    def examples(self) -> dict[str, int]:
        """How many examples each split had in training.

        Raises:
            InputError: config.toml does not say so.
        """
        found = self.about.get("examples")
        if not isinstance(found, dict) or "train" not in found:
            raise InputError(f"{self.path / 'config.toml'}: [about.examples] does not say how many; restore it")
        return found

    def summary(self) -> dict[str, Any]:
        """What `vaelab train --json` prints: how the training went, and its closing numbers."""
        lines, best = self.metrics(), self.best()
        seconds = lines[-1]["seconds"] if lines else 0.0
        images = lines[-1]["step"] * min(self.config.training.batch_size, self.examples["train"]) if lines else 0
        numbers = self.path / "numbers.json"
        return {
            "run": str(self.path),
            "recipe": self.config.recipe,
            "data": self.config.data.source,
            "epochs": len(lines),
            "best_epoch": best["epoch"] if best else None,
            "seconds": seconds,
            "images_per_second": round(images / seconds) if seconds else None,
            "numbers": json.loads(numbers.read_text()) if numbers.is_file() else None,
        }

    @classmethod
    def create(cls, path: Path, config: Config, spec: DataSpec, **about: Any) -> "Run":
        """Make the folder and write its config.toml.

        Raises:
            InputError: the folder exists and is not empty, or cannot be made.
        """
        check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        about = {"shape": list(spec.shape), "kind": spec.kind, **about}
        if spec.levels is not None:
            about["levels"] = spec.levels
        if spec.classes is not None:
            about["classes"] = spec.classes
        tables = {"format": FORMAT, **config.to_dict(), "about": about}
        write_text(path / "config.toml", tomli_w.dumps(tables))
        return cls(path, config, spec, about)

    @classmethod
    def open(cls, path: "str | os.PathLike[str] | Run") -> "Run":
        """Read a run folder's config.toml.

        Raises:
            InputError: the folder is missing, is no run, or was written by a newer version.
        """
        if isinstance(path, Run):
            return path
        path = Path(path)
        if path.is_file():
            raise InputError(f"{path}: is a file, not a run folder")
        if not path.is_dir():
            raise InputError(f"{path}: no such run folder; `vaelab train --out {path}` makes one")
        file = path / "config.toml"
        if not file.is_file():
            raise InputError(f"{path}: not a run folder (it has no config.toml)")
        try:
            return cls.parse(path, file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not readable as TOML ({error})") from None

    @classmethod
    def parse(cls, path: Path, text: str) -> "Run":
        """The run in `path` whose config.toml is `text`."""
        file = path / "config.toml"
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{file}: not readable as TOML ({error})") from None
        if not isinstance(tables.get("format"), int) or tables["format"] < 1:
            raise InputError(f"{file}: has no `format`; it was not written by vaelab")
        if tables["format"] > FORMAT:
            raise InputError(
                f"{path}: written by a newer vaelab (format {tables['format']}, this one reads {FORMAT}); upgrade"
            )
        return cls._read(path, tables)

    @classmethod
    def _read(cls, path: Path, tables: dict[str, Any]) -> "Run":
        about: dict[str, Any] = tables.pop("about", {})
        recipe = str(tables.pop("recipe", ""))
        tables.pop("format")
        try:
            config = configuration.resolve(recipe, tables)
            for name in plugins.changed(about.get("plugins", {})):
                print(f"vaelab: {name} is not the version that {path} was made with", file=sys.stderr)
            spec = TypeAdapter(DataSpec).validate_python(
                {key: about.get(key) for key in ("shape", "kind", "levels", "classes")}
            )
        except (AttributeError, ValidationError):
            raise InputError(f"{path / 'config.toml'}: [about] does not say what an example is; restore it") from None
        except InputError as error:
            made_with = _plugin_options(about)
            again = f"; the run was made with a plugin: give it again,{made_with}" if made_with else ""
            raise InputError(f"{path / 'config.toml'}: {error}{again}") from None
        return cls(path, config, spec, about)


def _plugin_options(about: Mapping[str, Any]) -> str:
    return "".join(f" --plugin {shlex.quote(name)}" for name in about.get("plugins", ()))


def compared(lines: list[dict[str, Any]]) -> str:
    """The part of a line that tells how good the model is: `validation`, or `train` where nothing is validated."""
    return "validation" if lines and lines[-1]["validation"] else "train"


def best_line(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the lines of metrics.jsonl, that of the lowest validation loss; the last one where nothing was validated."""
    if not lines or lines[-1]["validation"] is None:
        return lines[-1] if lines else None
    return min(lines, key=lambda line: line["validation"]["loss"])


def out_of_patience(lines: list[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last `training.patience` epochs had no lower validation loss: training ends there."""
    best = best_line(lines)
    return patience is not None and best is not None and lines[-1]["epoch"] - best["epoch"] >= patience


def check_free(path: Path) -> None:
    """Raise an InputError if `path` is taken, or if no folder can be made there."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        more = ", or continue it with --resume" if (path / "config.toml").is_file() else ""
        raise InputError(f"{path}: exists already; choose another --out{more}")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {nearest} is not a folder that can be written to; choose another --out")


def claim_name(recipe: str, source: str, parent: Path = Path("runs")) -> Path:
    """Make and return the first free `runs/<recipe>-<source>-<n>`; two runs at once get two names."""
    check_free(parent / "new")
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = parent / f"{Path(recipe).stem}-{Path(source).stem or 'data'}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError


def load(run: "str | os.PathLike[str] | Run") -> Model:
    """The trained model of a run folder, in evaluation mode, with its best weights.

    Nothing is unpickled and no code of the run is executed.

    Raises:
        InputError: the run is missing, incomplete, damaged, or from a newer version.
    """
    run = Run.open(run)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and overwritten: no trace of that
        model = compose(run.config, run.spec)
    load_weights(model, run.path / "model.safetensors")
    return model.eval()


def check_weights(path: Path) -> None:
    """Raise an InputError unless a run's file of weights is there and whole; only its head is read."""
    if not path.is_file():
        raise InputError(f"{path.parent}: incomplete run (it has no {path.name}); train it again, or --resume it")
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    why = str(error).strip().splitlines()[-1].strip()
    return InputError(f"{path}: damaged, or of another model ({why}); delete {path.parent} and train it again")


def load_weights(model: Model, path: Path) -> None:
    """Read weights into `model`; names and shapes must match exactly."""
    check_weights(path)
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise _damaged(path, error) from None
    if missing or unexpected:
        raise InputError(
            f"{path}: not the weights of this config.toml (first difference: {[*missing, *unexpected][0]})"
        )
