"""Seconds of training until a model is good: vaelab, pythae and the usual example script, side by side.

    python benchmarks/time_to_quality.py [--json] [--quick] [--epochs E] [--levels=-110,-105,-102,-100]
    python benchmarks/time_to_quality.py --precision [--json] [--quick] [--epochs E] [--seeds S]

The first form trains the network 784-512-20 (GELU) on MNIST, with a new binarization of each picture at every read,
batch 128 and Adam at a constant rate of 1e-3, once with each contestant. After each epoch it takes the ELBO of the
5,000 validation pictures, whose binarization is drawn once. It reports after how many seconds of training each level
was reached, with straight lines between epochs; null where it was not. Evaluation is not in the seconds. The first
epoch counts, but start and data loading do not.

One evaluator (quality.py, float32) reads the weights of all three. vaelab's curve is the one that its run writes; the
evaluator reads the weights that the run kept, and `evaluator_difference` says how far apart the two are, in nats.

The second form trains vaelab with training.precision=bfloat16 and float32, with equal epochs and seeds, and evaluates
both in float32: `elbo_difference` is the mean of bfloat16 − float32 over the seeds, in nats, with its standard error.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    BATCH,
    HIDDEN,
    LATENT,
    Pictures,
    arguments,
    check_pythae,
    helper,
    prepare,
    rows,
    run,
    say,
    summary,
    vaelab_train,
)
from quality import elbo, run_weights
from torch import Tensor

from vaelab.errors import InputError

LEARNING_RATE = 1e-3
LEVELS = "-110,-105,-102,-100"

Curve = list[tuple[float, float]]
"""(seconds of training, validation ELBO) after each epoch."""


def crossing(curve: Curve, level: float) -> float | None:
    """When the ELBO first reached a level, by straight lines between epochs; None if it never did.

    Before the first epoch's end there is nothing to draw a line from: a level reached by then counts as reached then.
    """
    before: tuple[float, float] | None = None
    for seconds, value in curve:
        if value >= level:
            if before is None:
                return seconds
            share = (level - before[1]) / (value - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, value)
    return None


def validation_pictures(pictures: Pictures) -> Tensor:
    """[M, 784], 0.0 or 1.0."""
    return torch.from_numpy(np.load(pictures.validation, allow_pickle=False)).flatten(1).float()


def vaelab_curve(folder: Path, pictures: Pictures, epochs: int) -> tuple[Curve, float]:
    """The curve of vaelab, and what the common evaluator says of the kept weights minus what the run says of them."""
    keys = ("training.schedule=constant", f"training.learning_rate={LEARNING_RATE}")
    training = vaelab_train(folder, pictures, epochs, *keys)
    best = max(line["validation"]["elbo"] for line in training.lines)
    difference = elbo(run_weights(training.path), validation_pictures(pictures)) - best
    return [(line["seconds"], line["validation"]["elbo"]) for line in training.lines], difference


def contestant_curve(name: str, folder: Path, pictures: Pictures, epochs: int) -> Curve:
    """The curve of a program of contestants.py."""
    words = ["--train", str(pictures.train), "--validation", str(pictures.validation), "--epochs", str(epochs)]
    words += ["--batch-size", str(BATCH), "--hidden", str(HIDDEN), "--latent", str(LATENT)]
    found = helper("contestants.py", name, *words, "--learning-rate", str(LEARNING_RATE), folder=folder)
    seconds = np.cumsum(found["seconds"]).tolist()
    return list(zip(seconds, found["elbo"], strict=True))


def race(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds to each level for each contestant; medians over the repetitions, ratios within them."""
    levels = numbers(chosen.levels)
    if not chosen.without_pythae:
        check_pythae()
    others = ("example",) if chosen.without_pythae else ("pythae", "example")
    epochs, repetitions = (2, 1) if chosen.quick else (chosen.epochs, chosen.repetitions)
    pictures = prepare(folder, chosen.quick)
    curves: list[dict[str, Curve]] = []
    differences: list[float] = []
    for repetition in range(repetitions):
        say(f"repetition {repetition + 1} of {repetitions}")
        found: dict[str, Curve] = {}
        found["vaelab"], difference = vaelab_curve(folder, pictures, epochs)
        differences.append(difference)
        for name in others:
            found[name] = contestant_curve(name, folder, pictures, epochs)
        for name, curve in found.items():
            say(f"  {name}: ELBO {curve[-1][1]:.2f} after {curve[-1][0]:.1f} s, {epochs} epochs")
        curves.append(found)
    return {
        "seconds_to": {f"{level:g}": seconds_to(curves, level) for level in levels},
        "speedup": {f"{level:g}": speedup(curves, level) for level in levels},
        "curves": curves,
        "evaluator_difference": max(differences, key=abs),
        "epochs": epochs,
        "repetitions": repetitions,
    }


def seconds_to(curves: Sequence[dict[str, Curve]], level: float) -> dict[str, float | None]:
    """Median seconds to a level by contestant; None unless each repetition reached it."""
    times = {name: [crossing(one[name], level) for one in curves] for name in curves[0]}
    return {name: None if None in found else statistics.median(map(float, found)) for name, found in times.items()}  # type: ignore[arg-type]


def speedup(curves: Sequence[dict[str, Curve]], level: float) -> dict[str, float | None]:
    """How many times sooner vaelab got there than another: median of the ratios within repetitions."""
    result: dict[str, float | None] = {}
    for name in list(curves[0])[1:]:
        pairs = [(crossing(one["vaelab"], level), crossing(one[name], level)) for one in curves]
        found = [theirs / ours for ours, theirs in pairs if ours is not None and theirs is not None]
        result[name] = statistics.median(found) if len(found) == len(pairs) else None
    return result


def precision(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What bfloat16 networks cost in nats: the same training in both precisions, seed by seed."""
    epochs, seeds = (2, 2) if chosen.quick else (chosen.epochs, chosen.seeds)
    pictures = prepare(folder, chosen.quick)
    x = validation_pictures(pictures)
    elbos: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    speeds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(seeds):
        for name in elbos:
            training = vaelab_train(folder, pictures, epochs, f"training.precision={name}", "--seed", str(seed))
            elbos[name].append(elbo(run_weights(training.path), x, draws=16))
            speeds[name].append(training.images_per_second)
            say(f"  {name}, seed {seed}: ELBO {elbos[name][-1]:.3f}, {speeds[name][-1]:,.0f} images/s")
    return {
        **paired(elbos["bfloat16"], elbos["float32"]),
        "elbo": elbos,
        "images_per_second": {name: summary(found)["median"] for name, found in speeds.items()},
        "epochs": epochs,
        "seeds": seeds,
    }


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """Mean of first − second over pairs, and its standard error."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    return {"elbo_difference": statistics.mean(differences), "elbo_difference_stderr": error}


def numbers(text: str) -> list[float]:
    """`-110,-105` as numbers."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"--levels={text}: must be numbers with commas between, like --levels=-110,-100") from None


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One of the two forms."""
    if min(chosen.epochs, chosen.repetitions, chosen.seeds) < 1:
        raise InputError("--epochs, --repetitions and --seeds must be at least 1")
    return precision(chosen, folder) if chosen.precision else race(chosen, folder)


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    if "seconds_to" not in result:
        error = result["elbo_difference_stderr"]
        lines = [
            (name, *(f"{value:.3f}" for value in found), f"{result['images_per_second'][name]:,.0f}")
            for name, found in result["elbo"].items()
        ]
        head = ("validation ELBO", *(f"seed {seed}" for seed in range(result["seeds"])), "images/s")
        tail = "" if error is None else f" ± {error:.3f}"
        return f"{rows(head, lines)}\n\nbfloat16 − float32: {result['elbo_difference']:+.3f}{tail} nats"
    names = list(result["curves"][0])
    lines = [
        (level, *("-" if found[name] is None else f"{found[name]:.1f} s" for name in names))
        for level, found in result["seconds_to"].items()
    ]
    text = rows(("validation ELBO", *names), lines)
    return f"{text}\n\nThe two evaluators differ by {result['evaluator_difference']:+.3f} nats."


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--precision", action="store_true", help="compare vaelab's two precisions instead")
    parser.add_argument("--levels", default=LEVELS, help=f"validation ELBOs in nats (default --levels={LEVELS})")
    parser.add_argument("--epochs", type=int, default=30, help="of each run (default 30)")
    parser.add_argument("--repetitions", type=int, default=1, help="how often the three run (default 1)")
    parser.add_argument("--seeds", type=int, default=3, help="of --precision (default 3)")
    parser.add_argument("--without-pythae", action="store_true", help="leave pythae out")
    run(parser, measure, table)


if __name__ == "__main__":
    main()
