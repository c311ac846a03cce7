"""What compression costs and gains: against −ELBO, and against established codecs."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from vaelab.compression import lossless
from vaelab.compression.classical import Classical, classical
from vaelab.compression.codec_file import file_size
from vaelab.compression.codecs import Message
from vaelab.compression.container import Mode
from vaelab.data import Split
from vaelab.errors import InputError
from vaelab.evaluation.estimates import batches, estimate
from vaelab.model import Model
from vaelab.parallel import one_thread
from vaelab.runs import Run, load

DRAWS = 16  # of z, for −ELBO
_Made = TypeVar("_Made")
ALONE = 500  # examples that established codecs compress one by one at most


@dataclass(frozen=True)
class Measured:
    """A compressed file, and what stands beside it.

    Attributes:
        compressed: the file.
        mode: `solid` or `image`.
        model_bytes: size of the codec file, which whoever decompresses needs, too.
        nelbo_nats: −ELBO of the same examples under the model as it was trained, nats an example.
        nelbo_bits_per_dim: the same in bits/dim.
        overhead: payload without initial bits, above −ELBO, as a fraction of it.
        encode_per_second, decode_per_second: examples a second, one thread.
        coder_share_encode, coder_share_decode: of that time, what the entropy coder takes; the rest are networks and
            tables.
        classical: what established codecs make of the same examples.
    """

    compressed: lossless.Compressed
    mode: str
    model_bytes: int
    nelbo_nats: float
    nelbo_bits_per_dim: float
    overhead: float
    encode_per_second: float
    decode_per_second: float
    coder_share_encode: float
    coder_share_decode: float
    classical: list[Classical]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"compressed": self.compressed.to_dict()}

    def __str__(self) -> str:
        own = self.compressed
        dims = own.examples * own.dims
        lines = [
            str(own),
            f"  payload {own.payload_bits_per_dim:.4f} bits/dim, {own.payload_bytes:,} bytes "
            f"({own.initial_bits // 8:,} of initial bits)",
            f"  -ELBO   {self.nelbo_bits_per_dim:.4f} bits/dim, {self.nelbo_nats:.2f} nats an example",
            f"  the payload without initial bits is {self.overhead:+.2%} of -ELBO",
            f"  encode  {self.encode_per_second:,.0f} examples/s, {self.coder_share_encode:.0%} of it in the coder",
            f"  decode  {self.decode_per_second:,.0f} examples/s, {self.coder_share_decode:.0%} (one thread)",
            "",
            f"  {'codec':<12} {'how':<9} {'bytes':>12} {'bits/dim':>9}",
        ]
        rows = [("vaelab", self.mode, own.bytes), ("vaelab", "+ model", own.bytes + self.model_bytes)]
        rows += [(one.codec, one.how, one.bytes) for one in self.classical if one.bytes is not None]
        for codec, how, size in sorted(rows, key=lambda row: row[2]):
            lines.append(f"  {codec:<12} {how:<9} {size:>12,} {8 * size / dims:>9.4f}")
        lines += [f"  {one.codec:<12} {one.how:<9} {one.note:>22}" for one in self.classical if one.bytes is None]
        return "\n".join([*lines, "", *self._verdicts()])

    def _verdicts(self) -> list[str]:
        own, found = self.compressed, [one for one in self.classical if one.bytes is not None]
        if not found:
            return []
        best = min(found, key=lambda one: one.bytes or 0)
        assert best.bytes is not None
        said = [f"  The smallest of the others is {best.codec}, {best.how}."]
        for what, size in (("", own.bytes), (" with the model counted", own.bytes + self.model_bytes)):
            more = size / best.bytes - 1
            said.append(f"  The file{what} is {abs(more):.1%} {'smaller' if more < 0 else 'LARGER'}.")
        return said


def measure(
    run: lossless.RunPath,
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    mode: Mode = "solid",
    chunk: int = lossless.CHUNK,
    tile: bool = False,
    said: Callable[[str], None] | None = None,
) -> Measured:
    """Compress as `compress` does, and measure it; the arguments are those of `compress`. It always verifies.

    Args:
        said: is told what comes next.

    Raises:
        InputError: as `compress`; or there are no examples.
    """
    run = Run.open(run)
    codec, taken = lossless.prepare(run, source, out, split, mode, chunk, tile)
    if not len(taken.examples):
        raise InputError("there are no examples to measure; compress them without a report")
    with one_thread():
        (data, made), encoding, encode_share = _timed(lambda: lossless.pack(codec, taken, mode, chunk))
        _, decoding, decode_share = _timed(lambda: lossless.check(codec, data, taken.examples))
        nelbo = -_elbo(load(run), Split(torch.from_numpy(taken.examples), scale=codec.model.levels - 1))
    compressed = lossless.write(data, made, taken, out)
    n, bits = compressed.examples, math.log(2) * compressed.dims
    net = (8 * compressed.payload_bytes - compressed.initial_bits) / (n * compressed.dims)
    return Measured(
        compressed=compressed,
        mode=mode,
        model_bytes=file_size(codec),
        nelbo_nats=nelbo,
        nelbo_bits_per_dim=nelbo / bits,
        overhead=net / (nelbo / bits) - 1,
        encode_per_second=n / encoding,
        decode_per_second=n / decoding,
        coder_share_encode=encode_share,
        coder_share_decode=decode_share,
        classical=classical(taken.examples, codec.model.levels, limit_per_image=min(n, ALONE), said=said),
    )


def _timed(work: Callable[[], _Made]) -> tuple[_Made, float, float]:
    """What the work gives, the seconds that it takes, and the share of the coder in them."""
    start, coder = time.perf_counter(), Message.seconds
    made = work()
    seconds = time.perf_counter() - start
    return made, seconds, (Message.seconds - coder) / seconds


def _elbo(model: Model, examples: Split) -> float:
    """Of the model as it was trained, nats an example, averaged over draws of z."""
    total = 0.0
    for x, _, noise in batches(examples, seed=0):
        elbo = estimate(model, x, 1, DRAWS, noise).elbo
        assert elbo is not None
        total += float(elbo.sum())
    return total / len(examples)
