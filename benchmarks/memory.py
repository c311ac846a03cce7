"""Data larger than memory: how much memory a training on a stream takes, and what the stream costs in speed.

    python benchmarks/memory.py --json

1. A file of 5.1 GB is made: 1,250,000 grey pictures of 64 x 64, random bytes, uint8 `.npy`. `vaelab train` sees all of
   its training pictures once, in random order, from the file. Its anonymous memory (`RssAnon` in /proc/PID/status:
   what is its own, and not pages of a file that the system may drop) is read every 50 ms, from the start to the report.
2. A sixteenth of it is trained on from the file and in memory, in turn: `stream_vs_memory` is the ratio of their
   images/s within a repetition.
3. Pictures are decoded from JPEG files while others are trained on, with one thread for the training steps: images/s
   with reading ahead and without, and of decoding and of the steps alone. `overlap_gain` is the ratio of the first two:
   1 if nothing overlaps.

The file lies in the temporary folder ($TMPDIR) and is removed in the end. Linux only, for it reads /proc.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, environment, read_lines, rows, run, say, steady_speed, summary
from PIL import Image
from torch import Tensor

from vaelab.composition import compose, compose_objective, settle
from vaelab.config import resolve
from vaelab.data import DataSpec, Split, load, prefetch
from vaelab.errors import VaelabError
from vaelab.noise import generator

SIDE = 64
BATCH = 512
KEYS = (
    "data.binarize=threshold",
    "data.validation=0.01",
    "data.test=0.01",
    "network.hidden=32",
    "model.latent_dim=20",
    f"training.batch_size={BATCH}",
)
EVERY = 0.05  # seconds between two looks at a process
DECODE_BATCH = 64


def write_pictures(path: Path, n: int) -> None:
    """Random grey pictures, uint8 `[n, 64, 64]`."""
    values = np.lib.format.open_memmap(path, "w+", np.uint8, (n, SIDE, SIDE))
    random = np.random.default_rng(0)
    for start in range(0, n, 10_000):
        part = values[start : start + 10_000]
        part[:] = np.frombuffer(random.bytes(part.size), np.uint8).reshape(part.shape)
    values.flush()


def anonymous_bytes(process: int) -> int:
    """`RssAnon` of a process; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def train(path: Path, out: Path, *keys: str) -> tuple[float, int]:
    """One epoch of `vaelab train` on a file. Returns images/s and the peak of its anonymous memory in bytes."""
    command = [sys.executable, "-m", "vaelab", "train", "vae", "--data", str(path), "--epochs", "1", "--out", str(out)]
    messages = out.with_suffix(".txt")
    peak = 0
    with messages.open("w") as said:
        process = subprocess.Popen([*command, *KEYS, *keys], env=environment(), stdout=said, stderr=said)
        try:
            while process.poll() is None:
                peak = max(peak, anonymous_bytes(process.pid))
                time.sleep(EVERY)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise VaelabError(f"`vaelab train` ended with exit code {process.returncode}: {messages.read_text()[-300:]}")
    return steady_speed(read_lines(out), BATCH), peak


# -- decoding beside the steps -------------------------------------------------------------------------------------


def write_folder(folder: Path, n: int) -> None:
    """Color pictures of 128 x 128 as JPEG: soft blobs, which compress as photographs do."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((128, 128), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)


def trainer(split: Split, shape: tuple[int, ...]) -> Callable[[Tensor], None]:
    """A function that takes stored pictures and makes one training step of a VAE on them."""
    spec = DataSpec(shape, "levels", 256)
    config = settle(resolve("vae", {}, {"network.hidden": [256]}), spec)
    model = compose(config, spec)
    objective = compose_objective(config, model, len(split))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    noise = generator("benchmark")

    def step(raw: Tensor) -> None:
        loss = objective(model.terms(split.convert(raw, noise), 1, noise))
        optimizer.zero_grad(set_to_none=True)
        loss.value.backward()
        optimizer.step()

    return step


def speed(batches: Iterable[Tensor], use: Callable[[Tensor], object]) -> float:
    """Pictures per second of reading batches and using each."""
    began, seen = time.perf_counter(), 0
    for raw in batches:
        use(raw)
        seen += len(raw)
    return seen / (time.perf_counter() - began)


def overlap(folder: Path, pictures: int, repetitions: int) -> dict[str, Any]:
    """Images/s with and without reading ahead, and of decoding and of the steps alone."""
    write_folder(folder, pictures)
    config = resolve("vae", {}, {"data.source": str(folder), "data.size": SIDE, "data.stream": True}).data
    split = load(config)["train"]
    index = torch.arange(len(split)).split(DECODE_BATCH)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    step = trainer(split, tuple(split.raw.shape[1:]))
    decoded = split.read(index[0])
    found: dict[str, list[float]] = {"ahead": [], "in_turn": [], "decoding": [], "steps": []}
    for _ in range(repetitions):
        found["ahead"].append(speed(prefetch(split, index), step))
        found["in_turn"].append(speed(map(split.read, index), step))
        found["decoding"].append(speed(map(split.read, index), len))
        found["steps"].append(speed((decoded for _ in index), step))
    torch.set_num_threads(threads)
    gains = [ahead / in_turn for ahead, in_turn in zip(found["ahead"], found["in_turn"], strict=True)]
    return {"overlap_gain": summary(gains), "folder_images_per_second": {k: summary(v) for k, v in found.items()}}


# -- the whole -----------------------------------------------------------------------------------------------------


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All three parts."""
    if not Path("/proc/self/status").exists():
        raise VaelabError("this benchmark reads /proc, which only Linux has")
    n = 2_000 if chosen.quick else chosen.pictures
    repetitions = 1 if chosen.quick else chosen.repetitions
    large, small = folder / "large.npy", folder / "small.npy"
    say(f"writing {n * SIDE * SIDE / 1e9:.1f} GB")
    write_pictures(large, n)
    size = large.stat().st_size
    say("training on the large file")
    images, peak = train(large, folder / "large", "data.stream=true")
    large.unlink()
    write_pictures(small, max(1_000, n // 16))
    speeds: dict[str, list[float]] = {"stream": [], "memory": []}
    peaks: dict[str, int] = {}
    for repetition in range(repetitions):
        for name, value in (("stream", "true"), ("memory", "false")):
            say(f"the small file: {name}, {repetition + 1} of {repetitions}")
            images_small, peaks[name] = train(small, folder / f"{name}{repetition}", f"data.stream={value}")
            speeds[name].append(images_small)
    say("pictures from a folder")
    ratios = [a / b for a, b in zip(speeds["stream"], speeds["memory"], strict=True)]
    return {
        "file_bytes": size,
        "peak_anonymous_bytes": peak,
        "images_per_second": round(images),
        "small_file_bytes": small.stat().st_size,
        "small_peak_anonymous_bytes": peaks,
        "small_images_per_second": {name: summary(values) for name, values in speeds.items()},
        "stream_vs_memory": summary(ratios),
        **overlap(folder / "pictures", 128 if chosen.quick else 2_000, repetitions),
        "workers": min(4, os.cpu_count() or 1),
    }


def table(result: dict[str, Any]) -> str:
    """The same as text."""

    def of(found: dict[str, float], digits: int = 2) -> str:
        return f"{found['median']:,.{digits}f} ({found['min']:,.{digits}f} to {found['max']:,.{digits}f})"

    folder = result["folder_images_per_second"]
    peaks, speeds = result["small_peak_anonymous_bytes"], result["small_images_per_second"]
    lines = [
        ("file", f"{result['file_bytes'] / 1e9:.2f} GB"),
        ("peak of anonymous memory, streamed", f"{result['peak_anonymous_bytes'] / 1e9:.2f} GB"),
        ("images/s, streamed", f"{result['images_per_second']:,}"),
        ("small file", f"{result['small_file_bytes'] / 1e9:.2f} GB"),
        *((f"  peak, {name}", f"{peaks[name] / 1e9:.2f} GB") for name in speeds),
        *((f"  images/s, {name}", of(found, 0)) for name, found in speeds.items()),
        ("  stream / memory", of(result["stream_vs_memory"])),
        *((f"folder, images/s: {name}", of(found, 0)) for name, found in folder.items()),
        ("  ahead / in turn", of(result["overlap_gain"])),
    ]
    return rows(("", "median (min to max)"), lines)


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--pictures", type=int, default=1_250_000, help="in the large file (default 1,250,000)")
    parser.add_argument("--repetitions", type=int, default=3, help="of the comparisons (default 3)")
    run(parser, measure, table)


if __name__ == "__main__":
    main()
