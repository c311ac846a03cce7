"""`vaelab.compress` and `vaelab.decompress`: from an input to a file, and back, bit for bit."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from vaelab.compression import cargo
from vaelab.compression.chain import decode, encode
from vaelab.compression.codec_file import Codec, open_codec
from vaelab.compression.container import Chunk, Container, Mode, Reader, Stream, content_hash, write_container
from vaelab.compression.quantize import CodecModel
from vaelab.errors import CorruptFile, InputError
from vaelab.evaluation.likelihood import examples_of
from vaelab.files import check_writable, replacing
from vaelab.parallel import in_order
from vaelab.runs import Run

RunPath = str | os.PathLike[str] | Run
Levels = NDArray[np.integer[Any]]
_Part = TypeVar("_Part")
_Made = TypeVar("_Made")
CHUNK = 1000


@dataclass(frozen=True)
class Compressed:
    """What a compressed file holds and costs.

    Attributes:
        file: its path.
        examples: how many are in it.
        dims: dimensions of an example.
        bytes: of the whole file.
        payload_bytes: of it, what the coder wrote, initial bits included.
        initial_bits: how many bits its streams began with, all together.
        bits_per_dim: of the whole file; None without examples.
        payload_bits_per_dim: of the payload.
    """

    file: str
    examples: int
    dims: int
    bytes: int
    payload_bytes: int
    initial_bits: int

    @property
    def bits_per_dim(self) -> float | None:
        return 8 * self.bytes / (self.examples * self.dims) if self.examples else None

    @property
    def payload_bits_per_dim(self) -> float | None:
        return 8 * self.payload_bytes / (self.examples * self.dims) if self.examples else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"bits_per_dim": self.bits_per_dim, "payload_bits_per_dim": self.payload_bits_per_dim}

    def __str__(self) -> str:
        cost = f", {self.bits_per_dim:.4f} bits/dim" if self.examples else ""
        return f"{self.file}: {self.examples:,} examples in {self.bytes:,} bytes{cost}"


def compress(
    run: RunPath,
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    mode: Mode = "solid",
    chunk: int = CHUNK,
    tile: bool = False,
    verify: bool = True,
) -> Compressed:
    """Compress without loss, with a trained model, by bits-back coding (Townsend et al. 2019, arXiv:1901.04866).

    Args:
        run: a run folder. Its model in whole numbers is kept there, as codec.safetensors.
        source: what to compress, all that `data.source` accepts: a name, a folder of pictures, an array file.
        out: the file to write.
        split: instead of a source, this part of the run's own data, as the run sees it (binarized once, say).
        mode: `solid`: the examples of a chunk are chained, and borrow bits from each other; `image`: each alone.
        chunk: how many examples can be decoded without the others; 0 puts all in one chunk.
        tile: cut pictures of other sizes into tiles of the model's.
        verify: decode all of it again before the file is written.

    Raises:
        InputError: the model has no codec, the input does not suit it, or there is no such mode.
        AssertionError: what was decoded is not what was encoded, which is a defect of vaelab. No file is written.
    """
    codec, taken = prepare(run, source, out, split, mode, chunk, tile)
    data, made = pack(codec, taken, mode, chunk)
    if verify:
        check(codec, data, taken.examples)
    return write(data, made, taken, out)


def decompress(
    run: RunPath,
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    only: Sequence[int] | None = None,
) -> Path:
    """Give back what `compress` was given.

    Args:
        run: the run folder that it was compressed with.
        file: the compressed file.
        out: where to write: an .npy or .npz as the input was, or a new folder of pictures.
        only: positions of the pictures (or rows of an array) to give back; only their chunks are decoded.

    Returns:
        Where it was written.

    Raises:
        CorruptFile: the file is damaged. Nothing is written.
        WrongModel: another model wrote it.
    """
    run, out = Run.open(run), Path(out)
    with Reader.open(file) as reader:
        codec = open_codec(run)
        reader.check_model(codec.model_hash, codec.tables_hash)
        if cargo.count_examples(reader.description) != reader.examples:
            raise CorruptFile(f"{file}: its description tells of other examples than it holds; copy it again")
        cargo.check_out(reader.description, out)
        wanted = None if only is None else cargo.examples_of(reader.description, only)
        cargo.write(unpack(codec, reader, wanted), reader.description, out, only)
    return out


# -- the steps of compression --------------------------------------------------------------------------------------


def prepare(
    run: RunPath,
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    split: str | None,
    mode: Mode,
    chunk: int,
    tile: bool,
) -> tuple[Codec, cargo.Cargo]:
    """Check what can be checked before any work is done; then the codec of the run, and the examples."""
    run = Run.open(run)
    if mode not in get_args(Mode):
        raise InputError(f"mode={mode}: must be {' or '.join(get_args(Mode))}")
    if chunk < 0:
        raise InputError(f"chunk={chunk}: must be at least 1, or 0 for one chunk of everything")
    _check_out(Path(out), source)
    return open_codec(run), _take(run, source, split, tile)


def _take(run: Run, source: str | os.PathLike[str] | None, split: str | None, tile: bool) -> cargo.Cargo:
    """The examples of a source, or of a split of the run's own data."""
    if (source is None) == (split is None):
        raise InputError("name either an input, or with --split a part of the run's own data")
    if source is not None:
        return cargo.read(source, run.spec, tile=tile)
    assert split is not None
    note = f"The {split} examples of {run.config.data.source}, as a run saw them; labels are no part of it."
    return cargo.of_array(
        examples_of(run, split).read().numpy(), run.spec, where=f"{split} examples", tile=tile, note=note
    )


def _each(function: Callable[[_Part], _Made], parts: Sequence[_Part]) -> Iterable[_Made]:
    """`function` of each part, in order: a thread for each of several parts, all threads for one alone."""
    return in_order(function, parts) if len(parts) > 1 else map(function, parts)


def pack(codec: Codec, taken: cargo.Cargo, mode: Mode, chunk: int) -> tuple[bytes, Container]:
    """The file that holds these examples."""
    examples, n = taken.examples, len(taken.examples)
    starts = [*range(0, n, chunk or max(1, n)), n]
    parts = [examples[start:stop] for start, stop in pairwise(starts)]

    def made(part: Levels) -> Chunk:
        if mode == "solid":
            return Chunk((_stream(codec.model, part),))
        return Chunk(tuple(_stream(codec.model, part[at : at + 1]) for at in range(len(part))))

    chunks = tuple(_each(made, parts))
    container = Container(mode, codec.model_hash, codec.tables_hash, taken.description, content_hash(examples), chunks)
    return write_container(container), container


def unpack(codec: Codec, reader: Reader, wanted: Sequence[int] | None = None) -> NDArray[np.int32]:
    """The examples of a file, or the wanted ones, [N, *shape].

    Raises:
        CorruptFile: what comes out is not what went in.
    """
    numbers = range(len(reader.ranges)) if wanted is None else sorted({reader.chunk_of(one) for one in wanted})
    chunks = [reader.chunk(number) for number in numbers]  # all are checked before any is decoded

    def decoded(chunk: Chunk) -> tuple[NDArray[np.int32], bool]:
        found = [_decode(codec.model, stream, reader) for stream in chunk.streams]
        return np.concatenate([examples for examples, _ in found]), all(whole for _, whole in found)

    found = list(_each(decoded, chunks))
    if wanted is None:
        examples = np.concatenate([np.empty((0, *codec.model.shape), np.int32), *(part for part, _ in found)])
        if content_hash(examples) != reader.content_hash:
            raise reader.fault("its content is not what was compressed")
    else:
        held = {number: part for number, (part, _) in zip(numbers, found, strict=True)}
        examples = np.empty((len(wanted), *codec.model.shape), np.int32)
        for place, one in enumerate(wanted):
            number = reader.chunk_of(one)
            examples[place] = held[number][one - reader.ranges[number].start]
    if not all(whole for _, whole in found):
        raise reader.fault("its initial bits do not come back")
    return examples


def write(data: bytes, container: Container, taken: cargo.Cargo, out: str | os.PathLike[str]) -> Compressed:
    """Write the file; returns what it costs."""
    with replacing(Path(out)) as temporary:
        temporary.write_bytes(data)
    streams = [stream for chunk in container.chunks for stream in chunk.streams]
    return Compressed(
        str(Path(out)),
        len(taken.examples),
        int(np.prod(taken.examples.shape[1:])),
        len(data),
        sum(len(stream.payload) for stream in streams),
        32 * sum(stream.initial_words for stream in streams),
    )


def _check_out(out: Path, source: str | os.PathLike[str] | None) -> None:
    """See that a file can be written there, before any work is done."""
    check_writable(out, "compressed.vae")
    given = None if source is None else Path(source).expanduser()
    if given is not None and given.exists() and out.exists() and out.samefile(given):
        raise InputError(f"{out}: is the input itself, which would be lost; name another file")


def check(codec: Codec, data: bytes, examples: Levels) -> None:
    """See that a file gives back its examples; if not, the fault is ours, and no copying again would help."""
    try:
        with io.BytesIO(data) as file:
            same = np.array_equal(unpack(codec, Reader(file, "what was compressed")), examples)
    except CorruptFile as error:
        raise AssertionError(f"nothing was written: {error}") from error
    if not same:
        raise AssertionError("what was compressed does not come back; nothing was written")


def _stream(model: CodecModel, examples: Levels) -> Stream:
    initial, words = encode(model, examples)
    return Stream(len(examples), initial, words.astype("<u4").tobytes())


def _decode(model: CodecModel, stream: Stream, reader: Reader) -> tuple[NDArray[np.int32], bool]:
    words = np.frombuffer(stream.payload, "<u4").astype(np.uint32)
    examples, whole = decode(model, stream.examples, stream.initial_words, words)
    if examples is None:
        raise reader.fault("it cannot be decoded")
    return examples, whole
