"""What established codecs make of a data set: PNG, WebP, JPEG XL, brotli, xz, bz2, zstd and zlib, without loss.

    python benchmarks/lossless.py RUN [--split test]
    python benchmarks/lossless.py --data mnist [--binarize dynamic] [--split test]

With RUN they are given what the model of a run folder sees: the split as the run reads it, dynamic binarization drawn
once. With --data they are given a source, divided as `vaelab train` divides it.

Each codec compresses every example alone, and all as one: see `vaelab.compression.classical`. The last column says in
which order of values it made least, or what pip has to install. All MNIST test pictures take some ten minutes. With
--limit-per-image N only N examples are coded alone, and their size is scaled up to all.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import arguments, rows, run, say

from vaelab import data as datasets
from vaelab.compression.classical import classical
from vaelab.config import DataConfig, section
from vaelab.data import DataSpec, Split
from vaelab.errors import InputError
from vaelab.evaluation.likelihood import examples_of
from vaelab.runs import Run

QUICK = 50  # examples


def held_out(chosen: argparse.Namespace) -> tuple[Split, DataSpec]:
    """The split that is compressed, and what one of its examples is.

    Raises:
        InputError: neither a run nor a source, or both; no such split; real values.
    """
    if (chosen.run is None) == (chosen.data is None):
        raise InputError("give either a run folder or --data SOURCE")
    if chosen.run is not None:
        if chosen.binarize is not None:
            raise InputError("--binarize goes with --data; a run has its own")
        found = Run.open(chosen.run)
        examples, spec = examples_of(found, chosen.split), found.spec
    else:
        config = section("data", {"source": chosen.data, "binarize": chosen.binarize or "none"})
        assert isinstance(config, DataConfig)
        dataset = datasets.load(config)
        examples, spec = dataset[chosen.split].fixed(config.seed), dataset.spec
    if spec.levels is None:
        raise InputError(f"{chosen.run or chosen.data}: holds real values, which no codec takes; use integers")
    return examples if chosen.limit is None else examples.head(chosen.limit), spec


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compress, and count."""
    if chosen.limit is not None and chosen.limit < 1:
        raise InputError(f"--limit {chosen.limit}: must be at least 1")
    if chosen.quick:
        chosen.data, chosen.limit = chosen.data or (None if chosen.run else "digits"), QUICK
    examples, spec = held_out(chosen)
    assert spec.levels is not None
    values = examples.read().numpy()
    found = classical(values, spec.levels, limit_per_image=chosen.limit_per_image, said=lambda what: say(f"  {what}"))
    return {
        "source": str(chosen.run or chosen.data),
        "split": chosen.split,
        "n": len(values),
        "shape": list(spec.shape),
        "levels": spec.levels,
        "classical": [
            {**asdict(one), "bits_per_dim": None if one.bytes is None else 8 * one.bytes / values.size} for one in found
        ],
    }


def table(result: dict[str, Any]) -> str:
    """The result for people: the smallest first, then what has no size."""
    lines: list[tuple[str, ...]] = []
    for one in sorted(result["classical"], key=lambda one: (one["bytes"] is None, one["bytes"] or 0)):
        numbers = ("-", "-", "-")
        if one["bytes"] is not None:
            numbers = (f"{one['bytes']:,}", f"{one['bits_per_dim']:.4f}", f"{one['seconds']:.1f}")
        lines.append((one["codec"], one["how"], *numbers, one["note"]))
    shape = " x ".join(map(str, result["shape"]))
    head = f"{result['source']}, {result['split']}: {result['n']:,} examples of {shape}, {result['levels']} levels"
    text = rows(("codec", "", "bytes", "bits/dim", "seconds", ""), lines)
    return "\n".join([head, "", *(line.rstrip() for line in text.splitlines())])


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--data", metavar="SOURCE", help="what `vaelab train --data` accepts")
    parser.add_argument("--binarize", metavar="HOW", help="data.binarize: threshold, static or dynamic")
    parser.add_argument("--split", default="test", help="train, validation or test (test)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    parser.add_argument("--limit-per-image", type=int, metavar="N", help="code N examples alone, and scale up")
    run(parser, measure, table)


if __name__ == "__main__":
    main()
