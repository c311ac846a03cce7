"""A grid of settings, trained and compared. What is finished is never repeated, what was stopped goes on."""

import hashlib
import itertools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaelab import plugins
from vaelab.comparison.compare import Comparison, compare
from vaelab.comparison.measure import FOLDER, Protocol, epochs_left
from vaelab.comparison.settings import keys_of, short, text
from vaelab.config import Config, parse_override
from vaelab.errors import InputError, VaelabError
from vaelab.files import remove_unfinished, write_text
from vaelab.pictures import output_path
from vaelab.report import stem
from vaelab.runs import Run, check_free
from vaelab.training import Interrupted, train
from vaelab.training.job import override_words, plan, value_text
from vaelab.training.loop import Diverged
from vaelab.training.processes import Processes

PAGE, TABLE = "compare.html", "compare.csv"
RECIPE = "recipe"
LONGEST = 80  # letters of a folder's name


@dataclass(frozen=True)
class Cell:
    """One training of the grid: the folder's name, the recipe, all that is chosen, and what follows from it."""

    name: str
    recipe: str
    overrides: Mapping[str, Any]
    config: Config

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of the configuration that can make a difference."""
        keys = {**keys_of(self.config), "training.seed": str(self.config.training.seed)}
        return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def parse_vary(words: Sequence[str]) -> dict[str, list[Any]]:
    """`objective.beta=0.5,1,2` and the like: the values of each key.

    Commas inside brackets or quotes part nothing: `network.hidden=[200,200],[400]` are two lists.

    Raises:
        InputError: no key, no value, or a key twice.
    """
    found: dict[str, list[Any]] = {}
    for word in words:
        key, equals, rest = word.partition("=")
        values = _split(rest)
        if not equals or not key or not all(values):
            raise InputError(f"--vary {word}: write KEY=VALUE,VALUE,..., such as objective.beta=0.5,1,2")
        if key in found:
            raise InputError(f"--vary {key}: given twice; put all values into one")
        found[key] = [_unquoted(value) or parse_override(f"{key}={value}")[1] for value in values]
    return found


def _unquoted(value: str) -> str:
    """What stands between quotes; nothing where there are none."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else ""


def _split(text: str) -> list[str]:
    """At commas that stand in no brackets and no quotes."""
    words, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and not depth and not quote:
            words.append("")
        else:
            words[-1] += sign
    return [word.strip() for word in words]


def compare_grid(
    vary: Mapping[str, Sequence[Any]],
    *,
    seeds: int = 1,
    recipe: str | None = None,
    data: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    importance_samples: int = 100,
    split: str = "test",
    limit: int | None = None,
    csv: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Train every combination of some values, with several seeds each, and compare them.

    All runs are in one folder, with compare.html and compare.csv. The same call again goes on where it was stopped or
    killed: finished runs are kept as they are, one that was cut off goes on from its checkpoint. More values or seeds
    add runs to those that are there. A run that diverges is told of, and the others go on.

    Args:
        vary: values for each configuration key, `{"objective.beta": [0.5, 1, 2]}`; "recipe" varies the recipe.
        seeds: each combination is trained with the seeds 0 … seeds − 1.
        recipe, data, epochs, overrides: as for `train`, the same for all.
        out: the folder. Default: runs/compare-<recipe>-<source>.
        importance_samples, split, limit: as for `compare`.
        csv: a further .csv file to write.
        progress: show on stderr what is being done.

    Raises:
        InputError: a setting that cannot be trained, before anything is; or a folder with other runs of these names.
        Interrupted: stopped by Ctrl-C or SIGTERM.
        VaelabError: no run could be trained.
    """
    shared = {"data.source": None if data is None else os.fspath(data), "training.epochs": epochs}
    chosen = {**(overrides or {}), **{key: value for key, value in shared.items() if value is not None}}
    how, copy = Protocol(split, importance_samples, limit), None if csv is None else output_path(csv, ".csv")
    _check(vary, seeds, recipe, chosen)
    cells = _cells(vary, seeds, recipe or "vae", chosen, split)
    folder = Path(out) if out is not None else _folder(recipe, cells[0])
    _check_folder(folder, cells)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder):
            failed = _train(folder, cells, progress)
            runs = [folder / cell.name for cell in cells if cell.name not in failed]
            if not runs:
                raise VaelabError(f"all {len(cells)} runs failed, first {cells[0].name}: {failed[cells[0].name]}")
            files = folder / PAGE, folder / TABLE
            found = compare(runs, **asdict(how), out=files[0], csv=files[1], failed=failed, progress=progress)
    except (Interrupted, KeyboardInterrupt):
        again = _command(vary, seeds, recipe, chosen, how, folder, copy, cells)
        raise Interrupted(f"stopped; what is finished is kept, and this goes on: {again}") from None
    if copy is not None:
        write_text(copy, found.csv())
    return found


# -- what there is to train ----------------------------------------------------------------------------------------


def _check(vary: Mapping[str, Sequence[Any]], seeds: int, recipe: str | None, chosen: Mapping[str, Any]) -> None:
    if not vary:
        raise InputError("nothing to vary: give --vary KEY=VALUE,VALUE,...")
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: must be at least 1")
    for key, values in vary.items():
        if not values:
            raise InputError(f"--vary {key}: there is no value")
        fixed = {RECIPE: recipe, **chosen}.get(key)
        if fixed is not None:
            raise InputError(f"{key}: is varied, and set to {text(fixed)}; drop one")
    if "training.seed" in {*vary, *chosen}:
        raise InputError("training.seed: --seeds N trains every combination with the seeds 0 ... N - 1")


def _cells(
    vary: Mapping[str, Sequence[Any]], seeds: int, recipe: str, chosen: Mapping[str, Any], split: str
) -> list[Cell]:
    """All combinations, each composed once as `train` would: what cannot be trained or measured is refused here.

    Raises:
        InputError: that, or two that are the same.
    """
    if math.prod(map(len, vary.values())) < 2:
        raise InputError("nothing to compare: give --vary two values or more")
    processes, found = Processes(), list[Cell]()
    for values in itertools.product(*vary.values()):
        varied = dict(zip(vary, values, strict=True))
        name, base = _name(varied), str(varied.get(RECIPE, recipe))
        keys = {**chosen, **{key: value for key, value in varied.items() if key != RECIPE}}
        try:
            config, dataset, _ = plan(base, {**keys, "training.seed": 0}, processes)
            dataset[split]
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        for seed in range(seeds):
            seeded = config.with_part("training", **{**config.training.model_dump(), "seed": seed})
            found.append(Cell(f"{name}-seed={seed}", base, {**keys, "training.seed": seed}, seeded))
    _check_different(found)
    return found


def _check_different(cells: Iterable[Cell]) -> None:
    """Raise an InputError if a training is there twice."""
    named: dict[str, str] = {}
    for cell in cells:
        if (same := named.setdefault(cell.fingerprint, cell.name)) is not cell.name:
            both = f"{same}: is there twice" if same == cell.name else f"{same} and {cell.name}: are the same"
            raise InputError(f"{both}; drop one of the values (a list of numbers stands in brackets: [200,200])")


def _name(varied: Mapping[str, Any]) -> str:
    """Of a run's folder: `beta=0.5-latent_dim=10`. What a file's name cannot hold is replaced, and a hash added."""
    name = "-".join(f"{short(key, list(varied))}={text(value)}" for key, value in varied.items())
    safe = re.sub(r"[^\w.,=+-]", "_", name)[:LONGEST]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _folder(recipe: str | None, first: Cell) -> Path:
    return Path("runs") / f"compare-{stem(recipe or 'vae')}-{stem(first.config.data.source)}"


def _check_folder(folder: Path, cells: Iterable[Cell]) -> None:
    """Raise an InputError unless the folder can be written to and has none of these runs with other settings."""
    if folder.suffix.lower() == ".html":
        raise InputError(f"{folder}: with --vary, --out names a folder; the page is {PAGE} in it")
    if not folder.exists():
        check_free(folder)
    elif not folder.is_dir() or (folder / "config.toml").exists():
        raise InputError(f"{folder}: not a folder of several runs; choose another --out")
    for cell in cells:
        if (folder / cell.name / "config.toml").is_file():
            found = Run.open(folder / cell.name).config
            if keys_of(found) != keys_of(cell.config) or found.training.seed != cell.config.training.seed:
                key, was, wanted = _first_difference(found, cell.config)
                raise InputError(f"{folder / cell.name}: was made with {key}={was}, not {wanted}; choose another --out")


def _first_difference(one: Config, other: Config) -> tuple[str, str, str]:
    old, new = ({**keys_of(each), "training.seed": str(each.training.seed)} for each in (one, other))
    key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    return key, old.get(key, "none"), new.get(key, "none")


def _command(
    vary: Mapping[str, Sequence[Any]],
    seeds: int,
    recipe: str | None,
    chosen: Mapping[str, Any],
    how: Protocol,
    folder: Path,
    csv: Path | None,
    cells: Iterable[Cell],
) -> str:
    """The command line that goes on."""
    words = ["vaelab", "compare"]
    for key, values in vary.items():
        texts = [
            json.dumps(value) if isinstance(value, str) and "," in value else value_text(value) for value in values
        ]
        words += ["--vary", f"{key}={','.join(texts)}"]
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    for plugin in dict.fromkeys(name for cell in cells for name in plugins.used(cell.config)):
        words += ["--plugin", plugin]
    words += [recipe] if recipe else []
    words += [*override_words(chosen), "--out", str(folder)]
    words += [] if csv is None else ["--csv", str(csv)]
    usual = asdict(Protocol())
    for key, value in asdict(how).items():
        words += [f"--{key.replace('_', '-')}", str(value)] if value != usual[key] else []
    return shlex.join(words)


# -- training ------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep a second process out of the folder while the block runs. The lock goes with the process, however it ends."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another `vaelab compare` is at work there; wait until it is done") from None
        for unfinished in (folder, *folder.glob(f"*/{FOLDER}")):
            remove_unfinished(unfinished)
        yield


def _train(folder: Path, cells: Sequence[Cell], progress: bool) -> dict[str, str]:
    """Train what is not finished. Returns what failed, and why."""
    failed: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        record = _recorded(folder, cell)
        if record is None:
            if progress:
                print(f"vaelab: trains {cell.name} ({number} of {len(cells)})", file=sys.stderr, flush=True)
            record = _train_one(folder, cell, progress)
        if "failed" in record:
            failed[cell.name] = record["failed"]
    return failed


def _train_one(folder: Path, cell: Cell, progress: bool) -> dict[str, str]:
    """Train one run, or go on with it, and record how it ended; nothing is recorded of what may end well next time."""
    path = folder / cell.name
    record = {"config": cell.fingerprint}
    try:
        if (path / "config.toml").is_file():
            train(resume=True, out=path, progress=progress)
        else:
            if path.is_dir():  # killed before it had a configuration
                remove_unfinished(path)
            train(cell.recipe, overrides=cell.overrides, out=path, progress=progress)
    except Diverged as error:
        record["failed"] = str(error)
    except (InputError, Interrupted):
        raise
    except VaelabError as error:
        return {"failed": str(error)}
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        return {"failed": "out of memory"}
    write_text(_record(folder, cell), json.dumps(record, indent=1) + "\n")
    return record


def _record(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def _recorded(folder: Path, cell: Cell) -> dict[str, str] | None:
    """How a run ended, if it ended and is still there; training that diverged would do so again."""
    path = folder / cell.name
    try:
        record: dict[str, str] = dict(json.loads(_record(folder, cell).read_text()))
    except (OSError, ValueError, TypeError):
        record = {}
    ended = "failed" in record or (path / "model.safetensors").is_file()
    if ended and record.get("config") == cell.fingerprint:
        return record
    return {} if _is_finished(path) else None  # killed before the end was recorded


def _is_finished(path: Path) -> bool:
    """Whether a run came to its end: all epochs are there, and the report, which is written last, is of them."""
    files = [path / name for name in ("config.toml", "model.safetensors", "report.html")]
    if not all(file.is_file() for file in files) or epochs_left(Run.open(path)):
        return False
    return files[2].stat().st_mtime_ns >= files[1].stat().st_mtime_ns
