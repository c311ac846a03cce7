"""How fast held-out log p(x) is estimated: K importance samples an example, within bounded memory.

    python benchmarks/evaluation.py [--importance-samples 5000] [--limit N] [--threads N] [--activation gelu]

Scores test pictures of MNIST, binarized once, with a network of 784-200-200-50-200-200-784 (that of Burda et al. 2016
with its tanh, or with --activation another). Its weights are at random: how long it takes does not depend on them.
Three contestants, each in a process of its own:

    vaelab    `vaelab.evaluation`: everything that `vaelab evaluate` tells, a chunk of draws at a time
    loop      what one writes by hand: log p(x) alone, picture by picture, all K draws at once
    products  the matrix products of the decoder for as many draws, and nothing else: what nothing can be faster than

With --limit only the first N pictures are scored, and the time for all of them is extrapolated: `seconds_for_all` is
10,000 times the seconds a picture. The first two agree on log p(x) but for their draws; `difference` and its error say
by how much.
"""

import argparse
import itertools
import json
import math
import resource
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from common import OtherLoad, arguments, helper, rows, run, say
from torch import Tensor

from vaelab import data as datasets
from vaelab.composition import compose
from vaelab.config import DataConfig, resolve
from vaelab.data import DataSpec, Split
from vaelab.errors import InputError
from vaelab.evaluation.likelihood import evaluate_model
from vaelab.model import Model
from vaelab.networks import ACTIVATIONS
from vaelab.parallel import in_order

PICTURES = 10_000
CONTESTANTS = ("vaelab", "loop", "products")
LATENT, HIDDEN = 50, 200
KEYS: dict[str, Any] = {"network.hidden": [HIDDEN, HIDDEN], "model.latent_dim": LATENT}
ROWS = 2500  # of a product: its result has 8 MB


def network(spec: DataSpec, activation: str = "tanh") -> Model:
    """The model that is scored: Burda et al. 2016, one stochastic layer."""
    torch.manual_seed(0)
    keys = {**KEYS, "network.activation": activation, "likelihood.name": "bernoulli"}
    return compose(resolve("evaluation", {}, keys), spec).eval()


def pictures(quick: bool, limit: int | None) -> tuple[Split, DataSpec]:
    """Test pictures, binarized once; with `quick`, digits of scikit-learn."""
    dataset = datasets.load(DataConfig(source="digits" if quick else "mnist", binarize="dynamic"))
    test = dataset["test"].fixed(0)
    return (test if limit is None else test.head(limit)), dataset.spec


@torch.no_grad()
def plain_loop(model: Model, examples: Split, num_samples: int, seed: int) -> Tensor:
    """Log p(x) of each picture, [N], by K draws of z at once (Burda et al. 2016, eq. 8)."""
    noise = torch.Generator().manual_seed(seed)
    found = torch.empty(len(examples))  # not a list: each small tensor kept would pin the large ones freed around it
    for at in range(len(examples)):
        x = examples.batch(torch.tensor([at]))
        q = model.encode(x)
        assert q.stddev is not None
        epsilon = torch.randn((num_samples, 1, LATENT), generator=noise)
        z = q.mean + q.stddev * epsilon
        log_q = (-0.5 * epsilon.square() - q.stddev.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_p = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_w = model.decode(z).log_prob(x) + log_p - log_q
        found[at] = log_w.logsumexp(0) - math.log(num_samples)
    return found


@torch.no_grad()
def matrix_products(number: int, num_samples: int, pixels: int) -> None:
    """Those of the decoder for so many pictures, with a share of the pictures for each thread."""
    sizes = [LATENT, HIDDEN, HIDDEN, pixels]
    weights = [torch.randn(m, n) for m, n in itertools.pairwise(sizes)]
    z = torch.randn(num_samples, LATENT)

    @torch.no_grad()
    def one(_: int) -> None:
        for some in z.split(ROWS):
            for weight in weights:
                some = some @ weight

    deque(in_order(one, range(number)), maxlen=0)


def score(chosen: argparse.Namespace) -> dict[str, Any]:
    """One contestant in this process: seconds, and by how much memory grew at most."""
    torch.set_num_threads(chosen.threads)
    examples, spec = pictures(chosen.quick, chosen.limit)
    model = network(spec, chosen.activation)
    evaluate_model(model, examples.head(1), 2, split="test")  # what is loaded and built on first use
    before, began, worked = _peak_bytes(), time.perf_counter(), time.process_time()
    if chosen.contestant == "vaelab":
        evaluation = evaluate_model(model, examples, chosen.importance_samples, split="test", seed=0)
        log_px, error = evaluation.log_px, evaluation.log_px_monte_carlo
    elif chosen.contestant == "products":
        matrix_products(len(examples), chosen.importance_samples, spec.dims)
        log_px, error = None, None
    else:
        values = plain_loop(model, examples, chosen.importance_samples, seed=1).double()
        log_px, error = float(values.mean()), None
    seconds = time.perf_counter() - began
    return {
        "n": len(examples),
        "log_px": log_px,
        "log_px_monte_carlo": error,
        "seconds": seconds,
        "processor_seconds": time.process_time() - worked,
        "memory_growth_mb": (_peak_bytes() - before) / 2**20,
        "peak_memory_mb": _peak_bytes() / 2**20,
    }


def _peak_bytes() -> int:
    """The most memory that this process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All contestants, one after the other."""
    for name in ("importance_samples", "limit", "threads"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(chosen, name)}: must be at least 1")
    if chosen.quick:
        chosen.importance_samples, chosen.limit = min(chosen.importance_samples, 300), min(chosen.limit or 10, 10)
    others, found = OtherLoad(), {}
    words = ["--importance-samples", str(chosen.importance_samples), "--threads", str(chosen.threads)]
    words += ["--activation", chosen.activation]
    words += [] if chosen.limit is None else ["--limit", str(chosen.limit)]
    for name in CONTESTANTS:
        with others.measure():
            found[name] = helper(
                "evaluation.py", "--contestant", name, *words, *(["--quick"] if chosen.quick else []), folder=folder
            )
        one = found[name]
        one["images_per_second"] = one["n"] / one["seconds"]
        one["seconds_for_all"] = PICTURES * one["seconds"] / one["n"]
        one["processor_seconds_for_all"] = PICTURES * one["processor_seconds"] / one["n"]
        say(f"  {name}: {one['images_per_second']:.1f} images/s")
    return {
        "importance_samples": chosen.importance_samples,
        "threads": chosen.threads,
        "activation": chosen.activation,
        "contestants": found,
        "ratio": found["vaelab"]["images_per_second"] / found["loop"]["images_per_second"],
        "times_products": found["vaelab"]["seconds"] / found["products"]["seconds"],
        "processor_ratio": found["loop"]["processor_seconds"] / found["vaelab"]["processor_seconds"],
        "difference": found["vaelab"]["log_px"] - found["loop"]["log_px"],
        "difference_stderr": math.sqrt(2) * found["vaelab"]["log_px_monte_carlo"],
        "other_load_cores": others.cores,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    columns = {
        "images/s": ("images_per_second", ".1f"),
        "seconds for 10,000": ("seconds_for_all", ",.0f"),
        "of processor": ("processor_seconds_for_all", ",.0f"),
        "memory, MB": ("memory_growth_mb", ",.0f"),
    }
    lines = [
        (name, *(format(one[key], how) for key, how in columns.values())) for name, one in result["contestants"].items()
    ]
    head = (
        f"K = {result['importance_samples']:,}, {result['contestants']['vaelab']['n']:,} pictures, "
        f"{result['threads']} threads, {result['activation']}"
    )
    text = [head, "", rows(("", *columns), lines), ""]
    text.append(f"vaelab / loop: {result['ratio']:.2f} by the clock, {result['processor_ratio']:.2f} by the processor")
    text.append(f"seconds of vaelab / seconds of the products alone: {result['times_products']:.2f}")
    text.append(f"log p(x): they differ by {result['difference']:+.4f} ± {result['difference_stderr']:.4f} nats")
    if result["other_load_cores"] > 0.1:
        text.append(f"NOT QUIET: other programs used up to {result['other_load_cores']:.1f} cores")
    return "\n".join(text)


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--importance-samples", type=int, default=5000, metavar="K", help="draws a picture (5000)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures, and extrapolate")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of each contestant (default: all)"
    )
    parser.add_argument("--activation", default="tanh", choices=ACTIVATIONS, help="of the network (tanh)")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.contestant:
        print(json.dumps(score(chosen)))
        return
    run(parser, measure, table)


if __name__ == "__main__":
    main()
