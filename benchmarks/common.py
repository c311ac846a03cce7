"""What the benchmarks share: the pictures, `vaelab train` and other programs as processes of their own, the machine.

Every contestant runs alone in a fresh process, on the CPU, with the environment that the benchmark was started with.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaelab import data as datasets
from vaelab.config import DataConfig
from vaelab.errors import InputError, VaelabError

HERE = Path(__file__).parent
HIDDEN, LATENT, BATCH = 512, 20, 128
CAPABILITIES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


def say(text: str) -> None:
    """A line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that measures: this one's, without GPUs."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more}


# -- what is trained on --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Grey pictures of 28 x 28, the same for every contestant.

    Attributes:
        words: what tells `vaelab train` of them.
        train: an .npy file, uint8 `[N, 28, 28]`, grey.
        validation: an .npy file, uint8 `[M, 28, 28]`, 0 or 1: binarized once, the draw that vaelab validates on.
    """

    words: tuple[str, ...]
    train: Path
    validation: Path


def prepare(folder: Path, quick: bool) -> Pictures:
    """MNIST's training and validation pictures as files; with `quick`, 1,437 digits of scikit-learn, enlarged."""
    source = str(_enlarged_digits(folder / "digits.npy")) if quick else "mnist"
    dataset = datasets.load(DataConfig(source=source, binarize="dynamic"))
    raw = dataset["train"].raw
    assert isinstance(raw, Tensor)  # in memory
    train, validation = folder / "train.npy", folder / "validation.npy"
    np.save(train, raw.squeeze(1).numpy())
    np.save(validation, dataset["validation"].fixed(0).batch().squeeze(1).to(torch.uint8).numpy())
    return Pictures(("--data", source, "data.binarize=dynamic"), train, validation)


def _enlarged_digits(path: Path) -> Path:
    from sklearn.datasets import load_digits  # late: a second, and only for --quick

    small: NDArray[Any] = cast(Any, load_digits()).images  # [1797, 8, 8], levels 0 ... 16
    large = small.repeat(3, axis=1).repeat(3, axis=2).astype(np.uint8) * 15
    np.save(path, np.pad(large, ((0, 0), (2, 2), (2, 2))))
    return path


# -- vaelab itself -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One run of `vaelab train`, as its run folder and a stopwatch around the process tell it.

    Attributes:
        path: the run folder.
        images_per_second: from the end of the first epoch to the end of the last, by the run's own metrics.jsonl.
        wall_seconds: from the start of the process to its end, by this process's clock.
        images: seen in all epochs together.
        threads, precision: what training used at its end; None where the run does not say.
    """

    path: Path
    images_per_second: float
    wall_seconds: float
    images: int
    threads: int | None
    precision: str | None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The run's metrics.jsonl, one object an epoch."""
        return read_lines(self.path)


def read_lines(run: Path) -> list[dict[str, Any]]:
    """A run's metrics.jsonl, one object an epoch."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steady_speed(lines: Sequence[dict[str, Any]], batch_size: int) -> float:
    """Images per second of training after the first epoch; of the first where there is no other.

    `step` counts parameter updates and `seconds` the time of training, both from the start.
    """
    first = lines[0] if len(lines) > 1 else {"step": 0, "seconds": 0.0}
    return (lines[-1]["step"] - first["step"]) * batch_size / (lines[-1]["seconds"] - first["seconds"])


def vaelab_train(
    folder: Path,
    pictures: Pictures,
    epochs: int,
    *keys: str,
    hidden: int = HIDDEN,
    batch_size: int = BATCH,
    launcher: Sequence[str] = (),
    variables: dict[str, str] | None = None,
    after_first_epoch: Callable[[], None] | None = None,
) -> Training:
    """Run `vaelab train` as a user would: the whole command, with every key at its default but those of the network.

    Args:
        folder: where the run folder is made.
        keys: further KEY=VALUE words.
        launcher: what stands before `-m vaelab`, for instance torchrun; Python itself by default.
        variables: further environment variables.
        after_first_epoch: called when the command reports the end of its first epoch.

    Raises:
        VaelabError: the command failed, or never reported its first epoch.
    """
    path = folder / f"run-{len(list(folder.glob('run-*')))}"
    network = (f"network.hidden={hidden}", f"model.latent_dim={LATENT}", f"training.batch_size={batch_size}")
    words = ["-m", "vaelab", "train", "vae", *pictures.words, *network, *keys, "--epochs", str(epochs)]
    command = [*(launcher or [sys.executable]), *words, "--out", str(path)]
    began = time.perf_counter()
    _watch(command, environment(**(variables or {})), after_first_epoch)
    wall = time.perf_counter() - began
    lines = read_lines(path)
    threads, precision = settings_in_use(path)
    images = lines[-1]["step"] * batch_size
    return Training(path, steady_speed(lines, batch_size), wall, images, threads, precision)


def _watch(command: Sequence[str], variables: dict[str, str], after_first_epoch: Callable[[], None] | None) -> None:
    """Run a training to its end and read what it says on stderr."""
    last: deque[str] = deque(maxlen=5)
    waiting = after_first_epoch
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                last.append(line.strip())
                if waiting and line.startswith("epoch 1/"):
                    waiting()
                    waiting = None
        except BaseException:
            process.terminate()  # not kill: torchrun has to take its processes along
            raise
    if process.returncode:
        raise VaelabError(f"`{' '.join(command[1:])}` ended with exit code {process.returncode}: {' | '.join(last)}")
    if waiting:
        raise VaelabError("`vaelab train` never reported the end of its first epoch")


def settings_in_use(run: Path) -> tuple[int | None, str | None]:
    """Threads and precision that a training used: the checkpoint's record, else what was asked for in numbers."""
    record = json.loads((run / "checkpoint" / "latest.json").read_text())
    asked = tomllib.loads((run / "config.toml").read_text())["training"]
    threads = record.get("threads", asked["threads"])
    precision = record.get("precision", asked["precision"])
    return (threads if isinstance(threads, int) else None), (None if precision == "auto" else precision)


# -- other programs ------------------------------------------------------------------------------------------------


def helper(script: str, *words: str, folder: Path, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a script of this folder in a process of its own; what it prints on stdout is one JSON object.

    Raises:
        VaelabError: it failed.
    """
    command = [sys.executable, str(HERE / script), *words]
    done = subprocess.run(command, cwd=folder, env=environment(**(variables or {})), capture_output=True, text=True)
    if done.returncode:
        raise VaelabError(f"{script} {words[0]} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return json.loads(done.stdout)


class Neighbor:
    """A process that can be told to keep one core busy, and how much of one it asked for and got."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.began = 0.0
        self.before = (0.0, 0.0)

    def start(self) -> None:
        """Multiply matrices from now on, without a pause."""
        assert self.process.stdin is not None
        self.began, self.before = time.monotonic(), self._times()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def cores(self) -> tuple[float, float]:
        """Cores asked for (running or ready to run) and cores got, on average since the start."""
        elapsed = time.monotonic() - self.began
        ran, waited = (now - before for now, before in zip(self._times(), self.before, strict=True))
        return (ran + waited) / elapsed, ran / elapsed

    def _times(self) -> tuple[float, float]:
        """Seconds that it ran, and seconds that it was ready but had no core (Linux's schedstat)."""
        ran, waited, _ = Path(f"/proc/{self.process.pid}/schedstat").read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9


@contextmanager
def neighbor() -> Generator[Neighbor]:
    """A neighbor that is loaded and waits; it is ended with the block, and ends itself if this process dies."""
    command = [sys.executable, str(HERE / "matmul.py"), "spin"]
    one_thread = environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    with subprocess.Popen(command, env=one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise VaelabError("the neighbor did not start")
            yield Neighbor(process)
        finally:
            process.kill()


class OtherLoad:
    """How busy everybody else keeps the machine while this process and those that it waits for do their work.

    Attributes:
        cores: the largest of what `measure` found: cores that other programs, or other guests of the same host, used.
    """

    def __init__(self) -> None:
        self.cores = 0.0

    @contextmanager
    def measure(self) -> Generator[None]:
        """Watch while the block runs. Does nothing where there is no /proc/stat."""
        began, all_before, own_before = time.monotonic(), _busy_seconds(), _own_seconds()
        yield
        if all_before is not None and (all_after := _busy_seconds()) is not None:
            others = (all_after - all_before) - (_own_seconds() - own_before)
            self.cores = max(self.cores, others / (time.monotonic() - began))


def _busy_seconds() -> float | None:
    """Seconds that all cores together were busy with anything, or taken by the host."""
    file = Path("/proc/stat")
    if not file.is_file():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Seconds of processor time of this process and of the processes that it has waited for."""
    return sum(os.times()[:4])


def matmul_peak(threads: int | None, precision: str | None, folder: Path, seconds: float) -> dict[str, Any]:
    """The machine's matrix-product peak in GFLOP/s, at a number of threads and in a precision; see matmul.py."""
    words = ["--threads", str(threads or torch.get_num_threads()), "--precision", precision or "float32"]
    return helper("matmul.py", "peak", *words, "--seconds", str(seconds), folder=folder)


# -- numbers -------------------------------------------------------------------------------------------------------


def multiply_adds(pixels: int, hidden: int, latent: int, num_samples: int = 1) -> int:
    """Multiply-adds of the matrix products of one training step, per image, for the MLP VAE with one hidden layer.

    A layer m → n costs m n in the forward pass, m n for the gradient of its weights and m n for the gradient of its
    input, which the first layer has no use for. The decoder does its part for each of the K draws of z.
    """
    encoder = [pixels * hidden, hidden * 2 * latent]
    decoder = [latent * hidden, hidden * pixels]
    return 3 * sum(encoder) - encoder[0] + 3 * num_samples * sum(decoder)


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, minimum and maximum over repetitions."""
    found = sorted(values)
    return {"median": statistics.median(found), "min": found[0], "max": found[-1]}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    fields = [line.partition(":") for line in info.read_text().splitlines()] if info.is_file() else []
    known = {key.strip(): value.strip() for key, _, value in fields}
    flags = known.get("flags", "").split()
    return {
        "cpu": known.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "capabilities": [name for name in CAPABILITIES if name in flags],
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


# -- the command line ----------------------------------------------------------------------------------------------


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a run of seconds on small data: a test, no measurement")
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace, Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> NoReturn:
    """Parse, measure in a temporary folder, print, and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    try:
        with TemporaryDirectory(prefix="vaelab-benchmark-") as folder:
            result = {"quick": chosen.quick, "machine": machine(), **measure(chosen, Path(folder))}
    except (VaelabError, OSError) as error:
        say(f"{parser.prog}: {error}")
        sys.exit(error.exit_code if isinstance(error, VaelabError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(result) if chosen.json else table(result))
    sys.exit(0)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM as an exception, so that other processes end and folders go."""
    sys.exit(128 + number)


def check_pythae() -> None:
    """Raise an InputError where pythae is not installed."""
    from importlib.util import find_spec

    if find_spec("pythae") is None:
        raise InputError('pythae is missing: pip install "vaelab[bench]", or leave it out with --without-pythae')


def rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in plain text: the first column to the left, numbers to the right."""
    cells = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )
