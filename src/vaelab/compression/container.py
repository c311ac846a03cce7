"""The file that `vaelab compress` writes: a header that is checked as a whole, then chunks that are read one by one.

All numbers are little-endian. docs/reference/container.md tells the format byte for byte.
"""

import hashlib
import io
import json
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Literal

from numpy.typing import NDArray

from vaelab.errors import CorruptFile, InputError, WrongModel

MAGIC = b"\x89VAE\r\n\x1a\n"  # as PNG's: a copy that treats the file as text changes it
VERSION = 1
Mode = Literal["solid", "image"]

_MODES: tuple[Mode, ...] = ("solid", "image")
_START = struct.Struct("<8sH")  # magic, version: what every version begins with
_FIXED = struct.Struct("<8sHBxIII32s32s32s")
_ENTRY = struct.Struct("<IQ32s")  # a chunk in the table: examples, bytes, SHA-256
_CHECKSUM = struct.Struct("<I")
_WORD = 4
_MOST_VARINT_BYTES = 9  # 63 bits
_MOST_DESCRIPTION = 64 << 20
_COPY_AGAIN = "copy it again from its source, or compress the data again"


@dataclass(frozen=True)
class Stream:
    """What one run of bits-back coding left.

    Attributes:
        examples: how many examples are in it.
        initial_words: how many 32-bit words of initial bits it began with.
        payload: 32-bit words, little-endian.
    """

    examples: int
    initial_words: int
    payload: bytes


@dataclass(frozen=True)
class Chunk:
    """Examples that can be decoded without the others: one stream of all (`solid`), or a stream each (`image`)."""

    streams: tuple[Stream, ...]

    @property
    def examples(self) -> int:
        """How many examples are in it."""
        return sum(stream.examples for stream in self.streams)


@dataclass(frozen=True)
class Container:
    """All that a compressed file holds.

    Attributes:
        mode: `solid` (a chunk is one stream) or `image` (an example is one stream).
        model_hash: SHA-256 of the quantized model.
        tables_hash: SHA-256 of its tables.
        description: what the data were, as JSON has it (tuples come back as lists).
        content_hash: `content_hash` of all examples.
        chunks: in the order of the examples, none of them empty; without examples there is no chunk.
    """

    mode: Mode
    model_hash: bytes
    tables_hash: bytes
    description: dict[str, Any]
    content_hash: bytes
    chunks: tuple[Chunk, ...]


def content_hash(examples: NDArray[Any]) -> bytes:
    """SHA-256 of integer examples, whatever dtype they are in.

    Hashed are their values in C order, as the smallest of uint8, uint16 and uint32 that holds the largest one.

    Raises:
        ValueError: values that are no integers from 0 to 2³² − 1.
    """
    if examples.dtype.kind not in "bui":
        raise ValueError(f"{examples.dtype}: levels are integers")
    low, high = (int(examples.min()), int(examples.max())) if examples.size else (0, 0)
    if low < 0 or high >= 1 << 32:
        raise ValueError(f"levels from {low} to {high}; they go from 0 to 2³² − 1")
    size = 1 if high < 1 << 8 else 2 if high < 1 << 16 else 4
    return hashlib.sha256(examples.astype(f"<u{size}", copy=False).ravel().data).digest()


# -- writing -------------------------------------------------------------------------------------------------------


def write_container(container: Container) -> bytes:
    """The bytes of the file.

    Raises:
        InputError: a description of more than 64 MiB.
        ValueError: fields that contradict each other or do not fit, or a description that JSON cannot hold.
    """
    _check(container)
    text = json.dumps(container.description, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(text) > _MOST_DESCRIPTION:
        raise InputError(
            f"the names and shapes of the data take {len(text):,} bytes, more than {_MOST_DESCRIPTION:,}; "
            "compress fewer files at a time"
        )
    packed = zlib.compress(text, level=9, wbits=-zlib.MAX_WBITS)
    bodies = [_pack(chunk) for chunk in container.chunks]
    header = b"".join(
        [
            _FIXED.pack(
                MAGIC,
                VERSION,
                _MODES.index(container.mode),
                len(packed),
                len(text),
                len(bodies),
                container.model_hash,
                container.tables_hash,
                container.content_hash,
            ),
            packed,
            *(
                _ENTRY.pack(chunk.examples, len(body), hashlib.sha256(body).digest())
                for chunk, body in zip(container.chunks, bodies, strict=True)
            ),
        ]
    )
    return b"".join([header, _CHECKSUM.pack(zlib.crc32(header)), *bodies])


def _check(container: Container) -> None:
    """Refuse what would come back as something else."""
    if any(len(digest) != 32 for digest in (container.model_hash, container.tables_hash, container.content_hash)):
        raise ValueError("a SHA-256 has 32 bytes")
    for chunk in container.chunks:
        if not chunk.examples:
            raise ValueError("a chunk without examples")
        if container.mode == "solid" and len(chunk.streams) != 1:
            raise ValueError(f"mode solid: a chunk of {len(chunk.streams)} streams")
        if container.mode == "image" and any(stream.examples != 1 for stream in chunk.streams):
            raise ValueError("mode image: a stream that does not have one example")
        if any(len(stream.payload) % _WORD for stream in chunk.streams):
            raise ValueError("a payload that is not made of 32-bit words")


def _pack(chunk: Chunk) -> bytes:
    """A chunk's bytes: the streams' initial words (once, if they agree) and lengths, then their payloads."""
    initial = [stream.initial_words for stream in chunk.streams]
    numbers = [initial[0] + 1] if len(set(initial)) == 1 else [0, *initial]
    numbers += [len(stream.payload) // _WORD for stream in chunk.streams]
    return b"".join([*map(_varint, numbers), *(stream.payload for stream in chunk.streams)])


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set (LEB128)."""
    if not 0 <= number < 1 << 7 * _MOST_VARINT_BYTES:
        raise ValueError(f"{number} has no place in the file")
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


# -- reading -------------------------------------------------------------------------------------------------------


class Reader:
    """A compressed file. Opening it checks all but the chunks, which are read and checked when they are asked for.

    What is checked at once, in this order: magic, version, that the header fits into the file, its checksum, its
    fields, the length of the file. No memory is taken for what a damaged header may claim.

    Attributes:
        name: what messages call the file.
        mode: `solid` or `image`.
        model_hash: SHA-256 of the quantized model that wrote it.
        tables_hash: SHA-256 of that model's tables.
        content_hash: SHA-256 of all decoded examples.
        description: what the data were.
        examples: how many there are.
        ranges: which examples each chunk has, counted from 0.
        header_size: bytes before the first chunk.
        size: bytes of the whole file.
    """

    def __init__(self, file: BinaryIO, name: str | os.PathLike[str]) -> None:
        """Read the header of an open file.

        Raises:
            CorruptFile: it is damaged.
        """
        self._file = file
        self.name = os.fspath(name)
        self.size = file.seek(0, io.SEEK_END)
        self._check_start()
        if self.size < _FIXED.size:
            raise self._no_header()
        fixed = _FIXED.unpack(self._read(0, _FIXED.size))
        _, _, mode, packed, text, chunks, self.model_hash, self.tables_hash, self.content_hash = fixed
        self.header_size = _FIXED.size + packed + chunks * _ENTRY.size + _CHECKSUM.size
        if self.size < self.header_size:
            raise self._no_header()
        header = self._read(0, self.header_size)
        body, checksum = header[: -_CHECKSUM.size], header[-_CHECKSUM.size :]
        if checksum != _CHECKSUM.pack(zlib.crc32(body)):
            raise self.fault("its header is damaged")
        if mode >= len(_MODES):
            raise self.fault(f"its header names mode {mode}, which there is not")
        self.mode: Mode = _MODES[mode]
        self.description = self._describe(body[_FIXED.size : _FIXED.size + packed], text)
        self._table = list(_ENTRY.iter_unpack(body[_FIXED.size + packed :]))
        *self._offsets, end = accumulate((length for _, length, _ in self._table), initial=self.header_size)
        if self.size < end:
            raise self.fault(f"is cut short: {self.size:,} bytes of {end:,}")
        if self.size > end:
            raise self.fault(f"{self.size - end:,} bytes follow its end")
        *starts, self.examples = accumulate((count for count, _, _ in self._table), initial=0)
        self.ranges = [range(start, start + count) for start, (count, _, _) in zip(starts, self._table, strict=True)]
        # Each stream of mode `image` takes a byte at least.
        if any(not count or (self.mode == "image" and count > length) for count, length, _ in self._table):
            raise self.fault("its table of chunks contradicts itself")

    @classmethod
    @contextmanager
    def open(cls, path: str | os.PathLike[str]) -> Generator["Reader"]:
        """Open a file by its path.

        Raises:
            InputError: it cannot be opened.
            CorruptFile: it is damaged.
        """
        try:
            file = Path(path).open("rb")  # noqa: SIM115 what fails later is no failure to open
        except OSError as error:
            raise InputError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None
        with file:
            yield cls(file, path)

    def check_model(self, model_hash: bytes, tables_hash: bytes) -> None:
        """See that a model is the one that wrote the file.

        Raises:
            WrongModel: it is not. The message says what differs: the model, its tables, or both.
        """
        own = {"model": (self.model_hash, model_hash), "tables": (self.tables_hash, tables_hash)}
        other = {what: pair for what, pair in own.items() if pair[0] != pair[1]}
        if other:
            hashes = ", ".join(f"{what} {file.hex()[:8]}… not {run.hex()[:8]}…" for what, (file, run) in other.items())
            another = "with another model" if "model" in other else "with this model, but other tables"
            raise WrongModel(f"{self.name}: was compressed {another} ({hashes}); name the run that compressed it")

    def chunk_of(self, example: int) -> int:
        """The chunk that has this example; both count from 0.

        Raises:
            InputError: there is no such example.
        """
        if not 0 <= example < self.examples:
            raise InputError(f"{self.name}: has no example {example}; it has {self.examples:,}, counted from 0")
        return bisect_right(self.ranges, example, key=lambda held: held.start) - 1

    def chunk(self, index: int) -> Chunk:
        """Read one chunk, and nothing else.

        Raises:
            CorruptFile: it is damaged.
        """
        examples, length, digest = self._table[index]
        body = self._read(self._offsets[index], length)
        if hashlib.sha256(body).digest() != digest:
            raise self.fault(f"chunk {index} is damaged")
        try:
            return _unpack(body, [examples] if self.mode == "solid" else [1] * examples)
        except ValueError:
            raise self.fault(f"chunk {index} contradicts itself") from None

    def _check_start(self) -> None:
        """Magic and version."""
        start = self._read(0, min(self.size, _START.size))
        if not start.startswith(MAGIC[: self.size]):
            if b"VAE" in start:
                raise self.fault("its first bytes are damaged, as by a transfer as text", "copy it again, in binary")
            raise self.fault("not a file of `vaelab compress`", "name one, or copy it again if it should be one")
        if len(start) < _START.size:
            raise self._no_header()
        _, version = _START.unpack(start)
        if version != VERSION:
            raise self.fault(
                f"has version {version} of the format, and this vaelab reads version {VERSION}",
                "use the vaelab that wrote it, or if it is damaged, copy it again",
            )

    def _describe(self, packed: bytes, size: int) -> dict[str, Any]:
        """The description, from its compressed text."""
        if size > _MOST_DESCRIPTION:
            raise self.fault(f"its description claims {size:,} bytes, more than {_MOST_DESCRIPTION:,}")
        try:
            inflating = zlib.decompressobj(-zlib.MAX_WBITS)
            text = inflating.decompress(packed, size + 1)  # one more: 0 would be no bound
            if inflating.eof and not inflating.unused_data and len(text) == size:
                found = json.loads(text.decode("ascii"))
                if isinstance(found, dict):
                    return found
        except (zlib.error, ValueError, RecursionError):
            pass
        raise self.fault("its description cannot be read")

    def _read(self, offset: int, size: int) -> bytes:
        """Exactly these bytes."""
        self._file.seek(offset)
        found = self._file.read(size)
        if len(found) != size:
            raise self.fault("became shorter while it was read")
        return found

    def _no_header(self) -> CorruptFile:
        return self.fault(f"its {self.size:,} bytes end within its header, or the header is damaged")

    def fault(self, what: str, remedy: str = _COPY_AGAIN) -> CorruptFile:
        """The error for what is wrong with this file."""
        return CorruptFile(f"{self.name}: {what}; {remedy}")


def _unpack(body: bytes, examples: list[int]) -> Chunk:
    """The chunk whose streams have so many examples each; ValueError where the numbers do not fit the bytes."""
    file = io.BytesIO(body)
    common = _read_varint(file)
    initial = [common - 1 if common else _read_varint(file) for _ in examples]
    lengths = [_WORD * _read_varint(file) for _ in examples]
    if file.tell() + sum(lengths) != len(body):
        raise ValueError("payloads that do not fill the chunk")
    return Chunk(
        tuple(Stream(n, words, file.read(size)) for n, words, size in zip(examples, initial, lengths, strict=True))
    )


def _read_varint(file: BinaryIO) -> int:
    number = 0
    for place in range(_MOST_VARINT_BYTES):
        byte = file.read(1)
        if not byte:
            break
        number |= (byte[0] & 0x7F) << 7 * place
        if byte[0] < 0x80:
            return number
    raise ValueError("a number without an end")
