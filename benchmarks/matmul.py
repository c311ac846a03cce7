"""Matrix products: the machine's peak, and a neighbor that keeps a core busy.

python matmul.py peak --threads 2 --precision float32      GFLOP/s of large square products, as JSON
python matmul.py spin                                      says "ready"; on a line of stdin, one core at full load

Of `peak`, `gflops` is the fastest product of the time given, `median_gflops` the usual one. A product of two N x N
matrices counts as 2 N³ operations.
"""

import argparse
import json
import os
import statistics
import sys
import time

import torch

SIZE = 2048


def peak(threads: int, precision: str, seconds: float) -> dict[str, float | int | str]:
    """Multiply two matrices again and again for some seconds."""
    torch.set_num_threads(threads)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    a, b = (torch.randn(SIZE, SIZE, dtype=dtype) for _ in range(2))
    out = torch.mm(a, b)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - began)
    operations = 2 * SIZE**3 / 1e9
    return {
        "gflops": operations / min(times),
        "median_gflops": operations / statistics.median(times),
        "threads": threads,
        "precision": precision,
    }


def spin() -> None:
    """Wait for a line, then multiply until killed, or until whoever started this is gone."""
    torch.set_num_threads(1)
    a, b = (torch.randn(256, 256) for _ in range(2))
    out = torch.mm(a, b)
    parent = os.getppid()
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    while os.getppid() == parent:
        torch.mm(a, b, out=out)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peak", "spin"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seconds", type=float, default=3.0)
    chosen = parser.parse_args()
    if chosen.what == "spin":
        spin()
    else:
        print(json.dumps(peak(chosen.threads, chosen.precision, chosen.seconds)))


if __name__ == "__main__":
    main()
