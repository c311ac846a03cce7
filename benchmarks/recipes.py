"""What a better objective, posterior, prior or hierarchy gains over the plain VAE: held-out log p(x), in pairs.

    python benchmarks/recipes.py --out FOLDER [--epochs 20,100] [--entries vae,iwae,...] [--seeds 0,1,2]
    python benchmarks/recipes.py --out FOLDER --table
    python benchmarks/recipes.py --quick

Trains on MNIST with a new binarization of each picture at every read. Every entry has the encoder 784-200-200 and the
decoder 200-200-784 (GELU), batch 128, Adam with cosine decay, a KL term that warms up over the first 2,000 updates, and
50 latents in the layer next to x. What an entry adds beside them (a flow, pseudo-inputs, further layers) has weights of
its own, which the table counts.

The baseline is the entry `vae`. It is trained at each of --learning-rates, the others at 4e-3, the best that was found
for it at 20 epochs, unless --tune names them, too. For each budget (entry and epochs) the rate with the highest mean
validation log p(x) counts: K = 100, the first 2,000 validation examples. Test examples have no part in that choice:
only runs of the chosen rate see them.
The first of --epochs is for all entries, the others are for those of `LONGER`; --entries overrules both.

Every finished run stays in FOLDER, with the test log p(x) of each example as .npy, and is never repeated; one that was
interrupted goes on from its checkpoint. The table is of all that is there. It is also written to FOLDER as JSON.

The difference to the baseline is paired. Test examples are the same for all, and their binarization was drawn once. So
d[s, i] is the log p(x) of the entry with seed s for example i, minus that of the baseline with the same s and i. Its
mean is over both. Its standard error takes both seeds and examples as drawn at random (see
`vaelab.comparison.crossed_mean`).
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, rows, run, say

import vaelab
from vaelab.comparison import crossed_mean
from vaelab.errors import InputError, VaelabError
from vaelab.evaluation.likelihood import evaluate_each, examples_of
from vaelab.files import replacing, write_text
from vaelab.runs import Run
from vaelab.training import Interrupted

BASELINE = "vae"
LEARNING_RATE = 4e-3
COMMON: dict[str, Any] = {
    "data.binarize": "dynamic",
    "network.name": "mlp",
    "network.hidden": [200, 200],
    "network.activation": "gelu",
    "training.batch_size": 128,
    "training.schedule": "cosine",
    "objective.warmup": 2000,
}
FLAT = {"model.name": "vae", "model.latent_dim": 50}
ENTRIES: dict[str, dict[str, Any]] = {
    BASELINE: FLAT,
    "iwae": {**FLAT, "objective.name": "iwae", "objective.num_samples": 50},
    "vamp": {**FLAT, "prior.name": "vamp", "prior.components": 500},
    "flow-posterior": {**FLAT, "posterior.name": "iaf"},
    "flow-prior": {**FLAT, "prior.name": "flow"},
    "hierarchical": {
        "model.name": "hierarchical",
        "model.latent_dims": [10, 20, 50],
    },
}
LONGER = (BASELINE, "flow-posterior", "flow-prior", "hierarchical")
TRAINED = "trained.json"


# -- one run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One training: an entry, how long, how fast it learns, and the seed of weights, order and noise."""

    entry: str
    epochs: int
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.entry}-{self.epochs}-{self.learning_rate:g}-{self.seed}"

    @property
    def keys(self) -> dict[str, Any]:
        """What `vaelab.train` is told beside data, epochs and seed."""
        return {**COMMON, **ENTRIES[self.entry], "training.learning_rate": self.learning_rate}


@dataclass(frozen=True)
class Protocol:
    """How runs are evaluated: K draws of z an example, and how many of the first test examples; None for all."""

    importance_samples: int
    limit: int | None

    @property
    def name(self) -> str:
        """Of the files that hold what was found."""
        return f"test-K{self.importance_samples}-{self.limit or 'all'}"


def train(trial: Trial, data: str, out: Path) -> None:
    """Train, or go on where it was interrupted. Does nothing if it was finished before.

    Raises:
        InputError: the folder has a run of that name with other settings.
        VaelabError: training failed.
    """
    path = out / trial.name
    if (path / "config.toml").is_file():
        _check_same(Run.open(path), trial, data)
        if (path / TRAINED).is_file():
            return
        say(f"{trial.name}: goes on")
        found = vaelab.train(resume=True, out=path, progress=False)
    else:
        say(f"{trial.name}: trains")
        settings: dict[str, Any] = {"data": data, "epochs": trial.epochs, "seed": trial.seed, "overrides": trial.keys}
        found = vaelab.train("vae", **settings, out=path, progress=False)
    summary = found.summary()
    record = {
        **asdict(trial),
        "data": data,
        "seconds": summary["seconds"],
        "weights": sum(parameter.numel() for parameter in vaelab.load(found).parameters()),
        "validation": {key: summary["numbers"][key] for key in ("elbo", "log_px", "n", "importance_samples")},
    }
    write_text(path / TRAINED, json.dumps(record, indent=1) + "\n")


def _check_same(found: Run, trial: Trial, data: str) -> None:
    tables: dict[str, Any] = json.loads(json.dumps(found.config.to_dict()))  # tuples become lists
    wanted = {**trial.keys, "training.epochs": trial.epochs, "training.seed": trial.seed}
    for key, value in wanted.items():
        group, name = key.split(".")
        if (was := tables[group].get(name)) != value:
            raise InputError(f"{found}: was made with {key}={was}, not {value}; choose another --out")
    if (source := tables["data"]["source"]) not in (data, str(Path(data).resolve())):
        raise InputError(f"{found}: was made with --data {source}, not {data}; choose another --out")


def evaluate(path: Path, how: Protocol, seed: int) -> None:
    """Log p(x) of each test example as .npy, and means as .json, beside a finished run; unless they are there already.

    The draws of z differ from seed to seed, so that their noise, too, is in the differences between seeds.
    """
    values, means = path / f"{how.name}.npy", path / f"{how.name}.json"
    if means.is_file():
        return
    say(f"{path.name}: {how.name}")
    found, model = Run.open(path), vaelab.load(path)
    examples = examples_of(found, "test")
    if how.limit is not None:
        examples = examples.head(how.limit)
    found = evaluate_each(model, examples, how.importance_samples, split="test", seed=seed)[1]
    columns = {name: found[name].numpy() for name in ("log_px", "elbo", "rate")}
    with replacing(values) as temporary, temporary.open("wb") as file:
        np.save(file, columns["log_px"], allow_pickle=False)
    averages = {name: float(column.mean()) for name, column in columns.items()}
    write_text(means, json.dumps({**asdict(how), "n": len(columns["log_px"]), **averages}, indent=1) + "\n")


# -- all runs ------------------------------------------------------------------------------------------------------


def budgets(epochs: Sequence[int], entries: Sequence[str] | None) -> list[tuple[str, int]]:
    """(entry, epochs) of all that is to be trained: the baseline first, and the shortest."""
    known = entries or tuple(ENTRIES)
    return [
        (entry, length)
        for length in epochs
        for entry in sorted(known, key=lambda name: name != BASELINE)
        if entries or length == epochs[0] or entry in LONGER
    ]


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and evaluate what is missing, then collect all that is there."""
    read_lists(chosen)
    out, how, data = chosen.out, Protocol(chosen.importance_samples, chosen.limit), chosen.data
    if chosen.quick:
        out, how, data = out or folder, Protocol(5, 100), "digits"
    if out is None:
        raise InputError("--out is missing: it says where runs are kept; or try --quick")
    if chosen.table and not out.is_dir():
        raise InputError(f"--out {out}: no such folder; leave --table out to train")
    failed = [] if chosen.table else _measure(chosen, out, how, data)
    result = {**asdict(how), "rows": collect(out, how)}
    if out.is_dir():
        write_text(out / f"{how.name}.json", json.dumps(result, indent=1) + "\n")
    if failed:
        again = "the same command tries them again, and --table shows the others"
        raise VaelabError(f"{len(failed)} of the runs failed, first {failed[0]}; {again}")
    return result


def _measure(chosen: argparse.Namespace, out: Path, how: Protocol, data: str) -> list[str]:
    """Train and evaluate, one run after the other; a run that fails does not end the others. Returns what failed."""
    failed: list[str] = []
    epochs = [1] if chosen.quick else chosen.epochs
    out.mkdir(parents=True, exist_ok=True)
    for entry, length in budgets(epochs, chosen.entries):
        rates: list[float] = chosen.learning_rates if entry in chosen.tune else [LEARNING_RATE]
        for trial in (Trial(entry, length, rate, seed) for seed in chosen.seeds for rate in rates):
            try:
                train(trial, data, out)
            except (InputError, Interrupted):
                raise
            except VaelabError as error:
                say(f"{trial.name}: {error}")
                failed.append(f"{trial.name}: {error}")
        records = [record for record in finished(out) if (record["entry"], record["epochs"]) == (entry, length)]
        best, _ = choose(records) if records else (None, {})
        for record in records:
            if record["learning_rate"] == best:
                evaluate(Path(record["path"]), how, record["seed"])
    return failed


def finished(out: Path) -> list[dict[str, Any]]:
    """The records of all finished runs in a folder, each with its `path`."""
    found = [{**json.loads(path.read_text()), "path": path.parent} for path in sorted(out.glob(f"*/{TRAINED}"))]
    if len(sources := {str(record["data"]) for record in found}) > 1:
        raise InputError(f"{out}: has runs on {' and '.join(sorted(sources))}; give each a folder of its own")
    return found


def choose(records: Sequence[dict[str, Any]]) -> tuple[float, dict[float, float]]:
    """The best learning rate of one budget, and the mean validation log p(x) of each rate that was in the contest.

    Only rates that were tried with the most seeds are: a lucky seed alone shall not win.
    """
    by_rate: dict[float, list[float]] = {}
    for record in records:
        by_rate.setdefault(record["learning_rate"], []).append(record["validation"]["log_px"] or -math.inf)
    most = max(map(len, by_rate.values()))
    means = {rate: statistics.mean(found) for rate, found in sorted(by_rate.items()) if len(found) == most}
    return max(means, key=lambda rate: means[rate]), means


# -- numbers -------------------------------------------------------------------------------------------------------


def collect(out: Path, how: Protocol) -> list[dict[str, Any]]:
    """One row a budget that was evaluated, from the files of a folder."""
    evaluated: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    validation: dict[tuple[int, str], dict[float, float]] = {}
    grouped: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for record in finished(out):
        grouped.setdefault((record["epochs"], record["entry"]), []).append(record)
    for budget, records in grouped.items():
        best, validation[budget] = choose(records)
        chosen = {record["seed"]: record for record in records if record["learning_rate"] == best}
        if found := {seed: _read(record, how) for seed, record in chosen.items() if _is_evaluated(record, how)}:
            evaluated[budget] = found
    order = {name: place for place, name in enumerate(ENTRIES)}
    return [
        _row(evaluated[budget], evaluated.get((budget[0], BASELINE), {}), validation[budget])
        for budget in sorted(evaluated, key=lambda budget: (budget[0], order.get(budget[1], len(order))))
    ]


def _is_evaluated(record: dict[str, Any], how: Protocol) -> bool:
    return (record["path"] / f"{how.name}.json").is_file()


def _read(record: dict[str, Any], how: Protocol) -> dict[str, Any]:
    """The record with its test numbers, and `values` [N]: log p(x) example by example."""
    means = json.loads((record["path"] / f"{how.name}.json").read_text())
    values = np.load(record["path"] / f"{how.name}.npy", allow_pickle=False)
    return {**record, **means, "values": values}


def _row(
    found: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]], validation: dict[float, float]
) -> dict[str, Any]:
    """A budget's row from its evaluated runs and the baseline's, by seed."""
    first = next(iter(found.values()))
    row: dict[str, Any] = {key: first[key] for key in ("entry", "epochs", "learning_rate", "data", "weights", "n")}
    row["validation_log_px"] = {f"{rate:g}": value for rate, value in validation.items()}
    row["seeds"] = sorted(found)
    for key in ("log_px", "elbo", "rate", "seconds"):
        row[key] = statistics.mean(one[key] for one in found.values())
    pairs = sorted(found.keys() & baseline.keys()) if row["entry"] != BASELINE else []
    row |= {"difference": None, "difference_stderr": None, "difference_by_seed": {}}
    if pairs:
        differences = np.stack([found[seed]["values"] - baseline[seed]["values"] for seed in pairs])
        row["difference"], row["difference_stderr"] = crossed_mean(differences)[:2]
        row["difference_by_seed"] = dict(zip(map(str, pairs), differences.mean(1).tolist(), strict=True))
    return row


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    found: list[dict[str, Any]] = result["rows"]
    if not found:
        return f"Nothing was evaluated with K = {result['importance_samples']} on these test examples yet."
    head = ("entry", "epochs", "seeds", "log_px", "difference", "ELBO", "rate", "minutes", "weights", "learning rate")
    lines = [
        (
            row["entry"],
            str(row["epochs"]),
            ",".join(map(str, row["seeds"])),
            f"{row['log_px']:.3f}",
            _difference(row),
            f"{row['elbo']:.3f}",
            f"{row['rate']:.2f}",
            f"{row['seconds'] / 60:.1f}",
            f"{row['weights']:,}",
            f"{row['learning_rate']:g}" + (f" of {len(tried)}" if len(tried := row["validation_log_px"]) > 1 else ""),
        )
        for row in found
    ]
    n = found[0]["n"]
    which = f"the first {n:,}" if result["limit"] else f"all {n:,}"
    is_mnist = found[0]["data"] == "mnist"
    easier = " The first half of MNIST's test set is easier than the rest." if is_mnist and result["limit"] else ""
    notes = [
        f"{found[0]['data']}, {which} test examples; log_px with K = {result['importance_samples']}; nats an example, "
        f"minutes of training a run.{easier}",
        "difference: to the baseline of as many epochs, paired over seeds and examples, ± its standard error over both",
    ]
    if any(len(row["difference_by_seed"]) == 1 for row in found):
        notes.append("(*: one seed, so the error is over examples alone)")
    return "\n".join((rows(head, lines), "", *notes))


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    error, seeds = row["difference_stderr"], row["difference_by_seed"]
    text = f"{row['difference']:+.3f}" + ("" if error is None else f" ± {error:.3f}")
    missing = f" (seeds {','.join(seeds)})" if len(seeds) < len(row["seeds"]) else ""
    return text + ("*" if len(seeds) == 1 else "") + missing


# -- the command line ----------------------------------------------------------------------------------------------


def listed(option: str, text: str, convert: Callable[[str], float], above: float, wanted: str) -> Any:
    """What an option lists with commas between, each once and in order."""
    try:
        found = sorted({convert(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not all(above < value < math.inf for value in found) or not found:
        raise InputError(f"{option} {text}: must be {wanted} with commas between")
    return found


def entry_names(option: str, text: str) -> list[str]:
    """`vae,iwae` as names."""
    names = text.split(",")
    for name in names:
        if name not in ENTRIES:
            raise InputError(f"{option} {name}: there are {', '.join(ENTRIES)}")
    return names


def read_lists(chosen: argparse.Namespace) -> None:
    """Put what the options list in the place of their text.

    Raises:
        InputError: a word that the option has no use for.
    """
    for option, convert, above, wanted in (
        ("--epochs", int, 0, "whole numbers, at least 1,"),
        ("--seeds", int, -1, "whole numbers, at least 0,"),
        ("--learning-rates", float, 0, "positive numbers"),
    ):
        key = option[2:].replace("-", "_")
        setattr(chosen, key, listed(option, getattr(chosen, key), convert, above, wanted))
    chosen.entries = entry_names("--entries", chosen.entries) if chosen.entries else None
    chosen.tune = entry_names("--tune", chosen.tune)
    if chosen.importance_samples < 1 or (chosen.limit is not None and chosen.limit < 1):
        raise InputError("--importance-samples and --limit must be at least 1")


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, help="folder that keeps the runs (with --quick: a temporary one)")
    parser.add_argument("--table", action="store_true", help="train nothing: the table of what is there")
    parser.add_argument("--epochs", default="20", help="budgets (default 20)")
    parser.add_argument("--entries", help=f"some of {','.join(ENTRIES)}, for every budget")
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    rates = "tried for the baseline (default 2e-3,4e-3,8e-3)"
    parser.add_argument("--learning-rates", default="2e-3,4e-3,8e-3", help=rates)
    tune = f"entries that try all of them (default {BASELINE})"
    parser.add_argument("--tune", default=BASELINE, help=tune)
    parser.add_argument("--importance-samples", type=int, default=500, help="K of log_px (default 500)")
    parser.add_argument("--limit", type=int, help="only so many of the first test examples (default all)")
    parser.add_argument("--data", default="mnist", help="default mnist")
    run(parser, measure, table)


if __name__ == "__main__":
    main()
