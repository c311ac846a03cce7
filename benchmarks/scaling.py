"""Images per second of `vaelab train` in one process and in two.

    python benchmarks/scaling.py [--json] [--quick] [--repetitions R] [--batch-size B]

The two processes are started by torchrun and share each batch: B is the batch over all of them. On a CPU they
average their gradients with gloo, and they share the cores that one process would use with threads. So there are two
things to compare with, measured in turn with it, R times:

    efficiency             two processes of one thread each, relative to twice one process of one thread: what the
                           exchange of gradients leaves over
    speedup_vs_threads     the same two processes, relative to one process that chooses its threads itself, which is
                           what `vaelab train` does: below 1, a second process on the same machine does not pay

On machines with a GPU each, or on several machines, the first of the two is the one that matters.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from common import arguments, prepare, rows, run, say, summary, vaelab_train

from vaelab.errors import InputError

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SETTINGS: dict[str, dict[str, Any]] = {
    "one_process_one_thread": {"launcher": (*TORCHRUN, "1"), "variables": ONE_THREAD},
    "two_processes_one_thread_each": {"launcher": (*TORCHRUN, "2"), "variables": ONE_THREAD},
    "one_process_auto_threads": {},
}


def figures(speeds: dict[str, float]) -> dict[str, float]:
    """Efficiency and speedup from the three speeds of one repetition."""
    one, two, threads = (speeds[name] for name in SETTINGS)
    return {"efficiency": two / (2 * one), "speedup_vs_threads": two / threads}


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The three settings in turn, R times."""
    if min(chosen.repetitions, chosen.batch_size) < 1 or chosen.epochs < 2:
        raise InputError("--repetitions and --batch-size must be at least 1, --epochs at least 2")
    pictures = prepare(folder, chosen.quick)
    repetitions, epochs = (1, 3) if chosen.quick else (chosen.repetitions, chosen.epochs)
    found: list[dict[str, float]] = []
    for repetition in range(repetitions):
        say(f"repetition {repetition + 1} of {repetitions}")
        speeds: dict[str, float] = {}
        for name in list(SETTINGS)[:: -1 if repetition % 2 else 1]:
            training = vaelab_train(folder, pictures, epochs, batch_size=chosen.batch_size, **SETTINGS[name])
            speeds[name] = training.images_per_second
            say(f"  {name}: {speeds[name]:,.0f} images/s, {training.precision}")
        found.append(speeds | figures(speeds))
    over = {name: summary(one[name] for one in found) for name in found[0]}
    return {
        **{name: over[name]["median"] for name in ("efficiency", "speedup_vs_threads")},
        "images_per_second": {name: over[name]["median"] for name in SETTINGS},
        "spread": {name: [value["min"], value["max"]] for name, value in over.items()},
        "batch_size": chosen.batch_size,
        "repetitions": repetitions,
        "epochs": epochs,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    spread = result["spread"]
    lines = [
        (name, f"{speed:,.0f}", f"{spread[name][0]:,.0f} - {spread[name][1]:,.0f}")
        for name, speed in result["images_per_second"].items()
    ]
    lines += [
        (name, f"{result[name]:.2f}", f"{spread[name][0]:.2f} - {spread[name][1]:.2f}")
        for name in ("efficiency", "speedup_vs_threads")
    ]
    cores = result["machine"]["cores"]
    note = f"All processes share the {cores} cores of this machine; compare with one_process_auto_threads."
    return f"{rows(('images/s', 'median', 'min - max'), lines)}\n\n{note}"


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--epochs", type=int, default=5, help="of each run; the first does not count (default 5)")
    parser.add_argument("--batch-size", type=int, default=512, help="over all processes together (default 512)")
    run(parser, measure, table)


if __name__ == "__main__":
    main()
