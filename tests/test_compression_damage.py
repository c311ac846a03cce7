"""Ten thousand ways to damage a compressed file: each is refused in one line, and nothing is written."""

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_runs import Make, untrained
from codec_runs import made as made
from numpy.typing import NDArray

from vaelab.compression import Chunk, Container, Message, Reader, Stream, compress, decompress, lossless
from vaelab.compression.codec_file import Codec, open_codec
from vaelab.compression.container import Mode, write_container
from vaelab.errors import CorruptFile, InputError, WrongModel
from vaelab.runs import Run

Random = np.random.Generator
KINDS = ("binary", "grey", "conv", "hierarchy")
MODES: tuple[Mode, ...] = ("solid", "image")


def opened(data: bytes) -> Container:
    """All that is in a file."""
    reader = Reader(io.BytesIO(data), "x.vae")
    chunks = tuple(reader.chunk(index) for index in range(len(reader.ranges)))
    hashes = reader.model_hash, reader.tables_hash
    return Container(reader.mode, *hashes, reader.description, reader.content_hash, chunks)


# -- damage to bytes, which checksums tell ---------------------------------------------------------------------------


def place(data: bytes, random: Random) -> int:
    """As often in the header as behind it."""
    return int(random.integers(min(len(data), 400) if random.random() < 0.5 else len(data)))


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 9)):
        changed[place(data, random)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    return data[: place(data, random)]


def leave_out(data: bytes, random: Random) -> bytes:
    start = place(data, random)
    return data[:start] + data[start + int(random.integers(1, 50)) :]


def insert(data: bytes, random: Random) -> bytes:
    start = place(data, random)
    return data[:start] + random.bytes(int(random.integers(1, 50))) + data[start:]


def swap(data: bytes, random: Random) -> bytes:
    a, b, c = sorted(place(data, random) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def overwrite(data: bytes, random: Random) -> bytes:
    start, size = place(data, random), int(random.integers(1, 50))
    filling = random.bytes(size) if random.random() < 0.5 else bytes(size)
    return (data[:start] + filling + data[start + size :])[: len(data)]


def append(data: bytes, random: Random) -> bytes:
    return data + random.bytes(int(random.integers(1, 50)))


def nothing_of_ours(data: bytes, random: Random) -> bytes:
    return random.bytes(int(random.integers(len(data))))


# -- forgeries whose checksums are right: only decoding can tell ------------------------------------------------------


def words(data: bytes, random: Random) -> bytes:
    """Other words in a stream."""

    def changed(stream: Stream) -> Stream:
        found = np.frombuffer(stream.payload, "<u4").astype(np.uint32)
        n = len(found)
        match int(random.integers(6)):
            case 0:
                found[random.integers(n)] ^= np.uint32(1 << int(random.integers(32)))
            case 1:
                found = found[: random.integers(n)]
            case 2:
                found = found[random.integers(n) :]
            case 3:
                found = random.integers(0, 1 << 32, n, np.uint32)
            case 4:
                found = np.append(found, random.integers(0, 1 << 32, random.integers(1, 5), np.uint32))
            case _:
                found = np.full(n, random.choice(np.array([0, 1, 1 << 31, (1 << 32) - 1], np.uint32)))
        return replace(stream, payload=found.astype("<u4").tobytes())

    return one_stream(data, random, changed)


def initial_words(data: bytes, random: Random) -> bytes:
    """Another number of initial words in a stream."""
    return one_stream(
        data,
        random,
        lambda stream: replace(stream, initial_words=int(random.choice([0, 1, 3, 4, 9, 1 << 40, 1 << 62]))),
    )


def one_stream(data: bytes, random: Random, change: Callable[[Stream], Stream]) -> bytes:
    container = opened(data)
    chunks = [list(chunk.streams) for chunk in container.chunks]
    streams = chunks[random.integers(len(chunks))]
    at = random.integers(len(streams))
    streams[at] = change(streams[at])
    return write_container(replace(container, chunks=tuple(Chunk(tuple(streams)) for streams in chunks)))


def order(data: bytes, random: Random) -> bytes:
    """Chunks, or what is in them, in another order."""
    container = opened(data)
    chunks = [container.chunks[at] for at in random.permutation(len(container.chunks))]
    if container.mode == "image":
        chunks = [Chunk(tuple(chunk.streams[at] for at in random.permutation(len(chunk.streams)))) for chunk in chunks]
    return write_container(replace(container, chunks=tuple(chunks)))


def counts(data: bytes, random: Random) -> bytes:
    """Another number of examples, of which the description tells, too."""
    container = opened(data)
    chunks = list(container.chunks)
    if container.mode == "image":
        chunks = chunks[1:] if random.random() < 0.5 else [*chunks, chunks[0]]
    else:
        n = int(random.choice([1, 2, 15, 17, 1000, 10**6]))
        chunks[0] = Chunk((replace(chunks[0].streams[0], examples=n),))
    examples = sum(chunk.examples for chunk in chunks)
    description = container.description | {"shape": [examples, *container.description["shape"][1:]]}
    return write_container(replace(container, chunks=tuple(chunks), description=description))


def hashes(data: bytes, random: Random) -> bytes:
    """Another model, other tables, or other content."""
    name = str(random.choice(["model_hash", "tables_hash", "content_hash"]))
    return write_container(replace(opened(data), **{name: random.bytes(32)}))  # pyright: ignore[reportArgumentType]


def description(data: bytes, random: Random) -> bytes:
    """Fields of the description, so that it contradicts the examples."""
    container = opened(data)
    changes: list[dict[str, Any]] = [
        {"shape": [19, 8, 8]},
        {"shape": [18, 8, 7]},
        {"shape": [18, 8, 8], "axes": "ND"},
        {"event": [1, 4, 16]},
        {"event": [64]},
        {"tiled": "yes"},
        {"dtype": "|O"},
        {"dtype": "<U5"},
        {"file": "exe"},
        {"form": "folder"},
        {"file": "npz", "name": "../x"},
        {"note": "\x1b[2J"},
        {"labels": {"dtype": "|u1", "data": "AAAA"}},
        {"more": 1},
    ]
    found = container.description | changes[random.integers(len(changes))]
    if random.random() < 0.2:
        found.pop(str(random.choice(sorted(container.description.keys() - {"form"}))))
    return write_container(replace(container, description=found))


BYTES = (flip, cut, leave_out, insert, swap, overwrite, append, nothing_of_ours)
DAMAGES = (*BYTES, words, words, words, initial_words, order, counts, hashes, description)


# -- what it comes to -------------------------------------------------------------------------------------------------


def examples(kind: str) -> NDArray[np.uint8]:
    """18 pictures of 8 by 8, no two alike."""
    return np.random.default_rng(1).integers(0, 2 if kind == "binary" else 17, (18, 8, 8), np.uint8)


def refused(run: Run, data: bytes, out: Path) -> InputError:
    """One line, and what was there before stays as it was."""
    file = out.with_name("damaged.vae")
    file.write_bytes(data)
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(InputError) as caught:
        decompress(run, file, out)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert sorted(path.name for path in out.parent.iterdir()) == before
    assert not out.exists()
    return caught.value


@pytest.fixture
def batter(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[int], None]:
    """Each damage so often to a file of each kind and mode. A run's codec is read once, which takes longest."""
    codecs = {made(kind).path: open_codec(made(kind)) for kind in KINDS}

    def codec(run: Run) -> Codec:
        return codecs[run.path]

    monkeypatch.setattr(lossless, "open_codec", codec)

    def battered(each: int) -> None:
        for number, (kind, mode) in enumerate(product(KINDS, MODES)):
            np.save(tmp_path / "x.npy", examples(kind))
            compress(made(kind), tmp_path / "x.npy", tmp_path / "whole.vae", mode=mode, chunk=7)
            whole, random = (tmp_path / "whole.vae").read_bytes(), np.random.default_rng(number)
            for damage in DAMAGES:
                for _ in range(each):
                    while (data := damage(whole, random)) == whole:
                        pass
                    error = refused(made(kind), data, tmp_path / "out.npy")
                    assert type(error) in (CorruptFile, WrongModel), (damage, error)
        assert capfd.readouterr() == ("", "")  # not a word of a panic of the coder either

    return battered


def test_hundreds_of_damaged_files_are_refused(batter: Callable[[int], None]) -> None:
    batter(2)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused(batter: Callable[[int], None]) -> None:
    batter(80)


def test_a_file_of_another_model_is_refused(made: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", examples("grey"))
    other = untrained(tmp_path / "other", "grey", seed=1)
    for run in (other, made("conv"), made("binary")):
        compress(made("grey"), tmp_path / "x.npy", tmp_path / "x.vae")
        assert type(refused(run, (tmp_path / "x.vae").read_bytes(), tmp_path / "out.npy")) is WrongModel


def test_a_panic_of_the_coder_is_a_corrupt_file(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", examples("grey"))
    compress(made("grey"), tmp_path / "x.npy", tmp_path / "x.vae")

    def panics(*_: object) -> None:
        raise type("PanicException", (BaseException,), {})("attempt to subtract with overflow")

    monkeypatch.setattr(Message, "pop", panics)
    monkeypatch.setattr(Message, "pop_parts", panics)
    error = refused(made("grey"), (tmp_path / "x.vae").read_bytes(), tmp_path / "out.npy")
    assert type(error) is CorruptFile and "cannot be decoded" in str(error)
