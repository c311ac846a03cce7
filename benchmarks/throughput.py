"""Images per second of training: vaelab, pythae and the usual example script, side by side.

    python benchmarks/throughput.py [--json] [--quick] [--repetitions R] [--parts ratios,peak,neighbor,growth]

All train the network 784-512-20 (GELU) on MNIST's 55,000 training pictures with Adam, each alone in a fresh process.
vaelab is the command `vaelab train` with its defaults; pythae is its own TrainingPipeline, the example script a loop
over per-image PIL conversion and a DataLoader (contestants.py), both in float32. vaelab draws a new binarization of
each picture at every read, which the other two leave out. The first epoch of each is left out of its time.

Everything is repeated R times in this one command, with the contestants in turn and in another order each time.
Ratios and fractions are taken within a repetition; what is reported is their median, and `spread` has the extremes.

    ratio_vs_pythae, ratio_vs_example   vaelab's images/s divided by theirs, batch 128
    stopwatch_ratio     images/s by a clock around the whole command, divided by what the run reports. Two runs of
                        different length are compared, so that start and report cancel; validation does not, and is
                        the reason for a ratio somewhat below 1
    peak_fraction       batch 512: operations/s in the matrix products of the training steps, divided by those of large
                        square matrix products (matmul.py) with as many threads and in the precision that vaelab used
    neighbour_fraction  vaelab's images/s while another process keeps one core busy, divided by those of vaelab with
                        training.threads=1 on the quiet machine. The neighbor arrives in the second epoch, and time
                        counts from then on, so the time that vaelab takes to notice is in it
    growth              images/s over batch size, draws of z an example (K) and hidden width; one run each
    other_load_cores    the most cores that other programs used during any of this; above 0.1 the machine was not quiet
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common import (
    BATCH,
    HIDDEN,
    LATENT,
    OtherLoad,
    Pictures,
    Training,
    arguments,
    check_pythae,
    helper,
    matmul_peak,
    multiply_adds,
    neighbor,
    prepare,
    rows,
    run,
    say,
    summary,
    vaelab_train,
)

from vaelab.errors import InputError

PARTS = ("ratios", "peak", "neighbor", "growth")
PIXELS = 784
GROWTH = {
    "batch_size": (32, 64, 128, 256, 512, 1024),
    "num_samples": (1, 5, 20),
    "hidden": (128, 256, 512, 1024, 2048),
}
QUICK_GROWTH = {"batch_size": (32, 128), "num_samples": (1,), "hidden": (512,)}
PEAK_BATCH = 512
PEAK_SECONDS = 3.0
QUIET_CORES = 0.1

Figures = dict[str, float]


class Session:
    """What the parts share: the pictures, the folder, and how long runs are."""

    def __init__(self, chosen: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.quick: bool = chosen.quick
        self.pictures: Pictures = prepare(folder, self.quick)
        self.epochs: int = 3 if self.quick else chosen.epochs
        self.settings: dict[str, dict[str, Any]] = {}
        self.others = OtherLoad()

    def vaelab(self, label: str, epochs: int, *keys: str, **more: Any) -> Training:
        """One run of `vaelab train`, and a line about it."""
        with nullcontext() if "after_first_epoch" in more else self.others.measure():
            training = vaelab_train(self.folder, self.pictures, epochs, *keys, **more)
        self.settings[label] = {"threads": training.threads, "precision": training.precision}
        say(f"  {label}: {training.images_per_second:,.0f} images/s, threads {training.threads}, {training.precision}")
        return training

    def contestant(self, name: str) -> float:
        """Images per second of a program of contestants.py after its first epoch."""
        epochs = 2 if self.quick else max(2, 1 + self.epochs // 4)
        words = ["--train", str(self.pictures.train), "--epochs", str(epochs), "--batch-size", str(BATCH)]
        words += ["--hidden", str(HIDDEN), "--latent", str(LATENT)]
        with self.others.measure():
            found = helper("contestants.py", name, *words, folder=self.folder)
        speed = found["images"] * (epochs - 1) / sum(found["seconds"][1:])
        say(f"  {name}: {speed:,.0f} images/s, threads {found['threads']}")
        return speed


def ratios(session: Session, repetition: int, others: tuple[str, ...]) -> Figures:
    """Images/s of all contestants at batch 128, and a stopwatch around vaelab."""
    figures: Figures = {}
    order = ("vaelab", *others)
    turn = repetition % len(order)
    for name in (*order[turn:], *order[:turn]):
        if name != "vaelab":
            figures[name] = session.contestant(name)
            continue
        long = session.vaelab("vaelab", session.epochs)
        short = session.vaelab("vaelab, one epoch for the stopwatch", 1)
        figures["vaelab"] = long.images_per_second
        if long.wall_seconds > short.wall_seconds:  # not so in a --quick run, where start and report are all there is
            figures["stopwatch"] = (long.images - short.images) / (long.wall_seconds - short.wall_seconds)
    return figures | {f"ratio_vs_{name}": figures["vaelab"] / figures[name] for name in others} | stopwatch(figures)


def stopwatch(figures: Figures) -> Figures:
    """What the clock around the command says, relative to what the run says of itself."""
    return {"stopwatch_ratio": figures["stopwatch"] / figures["vaelab"]} if "stopwatch" in figures else {}


def peak(session: Session) -> Figures:
    """How much of the matrix-product peak a training step at batch 512 uses."""
    label = f"vaelab_batch_{PEAK_BATCH}"
    training = session.vaelab(label, session.epochs, batch_size=PEAK_BATCH)
    seconds = 0.2 if session.quick else PEAK_SECONDS
    with session.others.measure():
        found = matmul_peak(training.threads, training.precision, session.folder, seconds)
    say(f"  peak: {found['gflops']:,.0f} GFLOP/s, threads {found['threads']}, {found['precision']}")
    figures = {label: training.images_per_second, "peak_gflops": float(found["gflops"])}
    return figures | {"peak_fraction": gflops(training.images_per_second) / figures["peak_gflops"]}


def gflops(images_per_second: float, hidden: int = HIDDEN, num_samples: int = 1) -> float:
    """10⁹ operations/s in the matrix products of the training steps; a multiply-add is two."""
    return 2e-9 * images_per_second * multiply_adds(PIXELS, hidden, LATENT, num_samples)


def busy_neighbor(session: Session, repetition: int) -> Figures:
    """Speed beside a process that comes after the start, relative to one thread without it."""
    figures: Figures = {}
    for name in ("vaelab_one_thread", "vaelab_with_neighbor")[:: -1 if repetition % 2 else 1]:
        if name == "vaelab_one_thread":
            figures[name] = session.vaelab(name, session.epochs, "training.threads=1").images_per_second
            continue
        with neighbor() as other:
            training = session.vaelab(name, session.epochs, after_first_epoch=other.start)
            asked, got = other.cores()
        say(f"  the neighbor asked for {asked:.2f} cores and got {got:.2f}")
        figures |= {name: training.images_per_second, "neighbor_cores": asked}
    figures["neighbour_fraction"] = figures["vaelab_with_neighbor"] / figures["vaelab_one_thread"]
    return figures


def growth(session: Session) -> dict[str, list[dict[str, float]]]:
    """Images/s over batch size, K and hidden width, each alone; the middle is run once and stands in all three."""
    base = {"batch_size": BATCH, "num_samples": 1, "hidden": HIDDEN}
    speeds: dict[tuple[int, ...], float] = {}
    table: dict[str, list[dict[str, float]]] = {}
    for axis, values in (QUICK_GROWTH if session.quick else GROWTH).items():
        table[axis] = []
        for value in values:
            size = {**base, axis: value}
            at = tuple(size.values())
            if at not in speeds:
                keys = (f"objective.num_samples={size['num_samples']}",)
                more = {"batch_size": size["batch_size"], "hidden": size["hidden"]}
                speeds[at] = session.vaelab(f"{axis} {value}", 2, *keys, **more).images_per_second
            done = gflops(speeds[at], size["hidden"], size["num_samples"])
            table[axis].append({axis: value, "images_per_second": speeds[at], "gflops": done})
    return table


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts that were asked for, R times."""
    parts = tuple(chosen.parts.split(","))
    for part in parts:
        if part not in PARTS:
            raise InputError(f"--parts {part}: there are {', '.join(PARTS)}")
    if chosen.repetitions < 1 or chosen.epochs < 2:
        raise InputError("--repetitions must be at least 1, --epochs at least 2")
    if not chosen.without_pythae and "ratios" in parts:
        check_pythae()
    others = ("example",) if chosen.without_pythae else ("pythae", "example")
    session = Session(chosen, folder)
    repetitions = 1 if session.quick else chosen.repetitions
    figures: list[Figures] = []
    for repetition in range(repetitions):
        say(f"repetition {repetition + 1} of {repetitions}")
        figures.append({})
        if "ratios" in parts:
            figures[-1] |= ratios(session, repetition, others)
        if "peak" in parts:
            figures[-1] |= peak(session)
        if "neighbor" in parts:
            figures[-1] |= busy_neighbor(session, repetition)
    result = report(figures)
    if "growth" in parts:
        result["growth"] = growth(session)
    first = next(iter(session.settings.values()))
    facts = {"other_load_cores": session.others.cores, "repetitions": repetitions, "epochs": session.epochs}
    return {**result, **first, "settings": session.settings, **facts}


def report(figures: list[Figures]) -> dict[str, Any]:
    """Medians by name, extremes beside; speeds in a table of their own."""
    names = dict.fromkeys(name for one in figures for name in one)
    found = {name: summary(one[name] for one in figures if name in one) for name in names}
    is_ratio = {name: "ratio" in name or name.endswith("_fraction") for name in names}
    result: dict[str, Any] = {name: found[name]["median"] for name in names if is_ratio[name]}
    result["spread"] = {name: [found[name]["min"], found[name]["max"]] for name in names}
    plain = ("peak_gflops", "neighbor_cores")
    result |= {name: found[name]["median"] for name in plain if name in found}
    speeds = [name for name in names if not is_ratio[name] and name not in plain]
    result["images_per_second"] = {name: found[name]["median"] for name in speeds}
    return result


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    spread = result["spread"]
    lines = [
        (name, f"{speed:,.0f}", f"{spread[name][0]:,.0f} - {spread[name][1]:,.0f}")
        for name, speed in result["images_per_second"].items()
    ]
    text = [rows(("images/s", "median", "min - max"), lines), ""] if lines else []
    ratio_lines = [
        (name, f"{result[name]:.2f}", f"{low:.2f} - {high:.2f}")
        for name, (low, high) in spread.items()
        if name not in result["images_per_second"]
    ]
    text += [rows(("", "median", "min - max"), ratio_lines), ""] if ratio_lines else []
    for axis, points in result.get("growth", {}).items():
        cells = [
            (str(point[axis]), f"{point['images_per_second']:,.0f}", f"{point['gflops']:,.0f}") for point in points
        ]
        text += [rows((axis, "images/s", "GFLOP/s"), cells), ""]
    machine = result["machine"]
    text.append(f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['capabilities'])})")
    text.append(f"torch {machine['torch']}; threads {result['threads']}, precision {result['precision']}")
    if result["other_load_cores"] > QUIET_CORES:
        text.append(f"NOT QUIET: other programs used up to {result['other_load_cores']:.1f} cores during a run")
    return "\n".join(text)


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--epochs", type=int, default=9, help="of each vaelab run; the others take about a quarter")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--without-pythae", action="store_true", help="leave pythae out")
    run(parser, measure, table)


if __name__ == "__main__":
    main()
