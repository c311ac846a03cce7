"""The compressed file: its bytes are those that are documented, and no damage goes unseen."""

import hashlib
import io
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaelab.compression.container import Chunk, Container, Mode, Reader, Stream, content_hash, write_container
from vaelab.errors import CorruptFile, InputError, WrongModel

MODEL, TABLES, CONTENT = (bytes([first]) + bytes(range(1, 32)) for first in (0xA0, 0xB0, 0xC0))


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def container(mode: Mode, *chunks: Chunk, **description: Any) -> Container:
    return Container(mode, MODEL, TABLES, description, CONTENT, chunks)


SOLID = container(
    "solid",
    Chunk((Stream(3, 32, words(0xDEADBEEF, 1)),)),
    Chunk((Stream(300, 127, words(2, 3, 4)),)),
    shape=[2],
)
IMAGE = container(
    "image",
    Chunk((Stream(1, 2, words(5)), Stream(1, 2, b""))),
    Chunk((Stream(1, 0, words(6, 7)), Stream(1, 300, words(8)))),
    names=["a.png", "é.png", "\udcff"],
)
EMPTY = container("solid", dtype="uint8")
ALL = pytest.mark.parametrize("whole", [SOLID, IMAGE, EMPTY], ids=["solid", "image", "empty"])


def take_apart(data: bytes) -> Container:
    """All that the reader finds."""
    reader = Reader(io.BytesIO(data), "x.vae")
    chunks = tuple(reader.chunk(index) for index in range(len(reader.ranges)))
    hashes = reader.model_hash, reader.tables_hash
    return Container(reader.mode, *hashes, reader.description, reader.content_hash, chunks)


def refused(data: bytes, like: str = ".") -> None:
    """Reading these bytes ends with one line that names the file."""
    with pytest.raises(CorruptFile, match=like) as error:
        take_apart(data)
    assert re.fullmatch(r"x\.vae: .+; .+", str(error.value))


def sealed(data: bytes) -> bytes:
    """The bytes with the checksum that their header should have."""
    packed, _, chunks = struct.unpack_from("<III", data, 12)
    end = 120 + packed + 44 * chunks
    return data[:end] + struct.pack("<I", zlib.crc32(data[:end])) + data[end + 4 :]


def edited(data: bytes, offset: int, form: str, *numbers: int) -> bytes:
    """The bytes with other numbers at an offset."""
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, *numbers)
    return bytes(changed)


def forged(
    *, mode: int = 0, text: bytes = b"{}", packed: bytes | None = None, chunks: list[tuple[int, bytes]] | None = None
) -> bytes:
    """A file made by hand, all of whose checksums are right."""
    packed = zlib.compress(text, wbits=-15) if packed is None else packed
    chunks = chunks or []
    head = struct.pack("<HBBIII", 1, mode, 0, len(packed), len(text), len(chunks))
    rows = [struct.pack("<IQ", count, len(body)) + hashlib.sha256(body).digest() for count, body in chunks]
    header = b"".join([b"\x89VAE\r\n\x1a\n", head, MODEL, TABLES, CONTENT, packed, *rows])
    return b"".join([header, struct.pack("<I", zlib.crc32(header)), *(body for _, body in chunks)])


def short(value: object) -> str:
    """A name for a case."""
    return repr(value)[:20]


@pytest.fixture(scope="module")
def documented() -> Callable[[bytes], Any]:
    """The reader that the documentation shows, which knows nothing of vaelab."""
    page = (Path(__file__).parents[1] / "docs" / "reference" / "container.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["read"]


def as_documented(whole: Container) -> Any:
    """What the documentation's reader should find."""
    chunks = [
        [(struct.unpack(f"<{len(s.payload) // 4}I", s.payload), s.initial_words) for s in chunk.streams]
        for chunk in whole.chunks
    ]
    return int(whole.mode == "image"), MODEL, TABLES, CONTENT, whole.description, chunks


# -- the format ----------------------------------------------------------------------------------------------------

HASHES = "".join(first + bytes(range(1, 32)).hex() for first in ("a0", "b0", "c0"))
SOLID_BYTES = f"""
    895641450d0a1a0a 0100 00 00 0f000000 0d000000 02000000 {HASHES}
    ab562ace482c4855b28a368aad0500
    03000000 0a00000000000000 e7c55663df6eae8fd92d00b72d2df0187ab7431d5e0cf6927107ad85fddaf794
    2c010000 0f00000000000000 995c262ff5ca147cd0d2c12a5334fc5f1e9ae0b792074ae606c0478c30b09d98
    1b4b87d3
    21 02 efbeadde 01000000
    8001 03 02000000 03000000 04000000"""
IMAGE_CHUNKS = """
    03 01 00 05000000
    00 00 ac02 02 01 06000000 07000000 08000000"""


def test_the_bytes_of_a_small_file() -> None:
    assert write_container(SOLID).hex() == "".join(SOLID_BYTES.split())
    assert write_container(IMAGE).hex().endswith("".join(IMAGE_CHUNKS.split()))


def test_the_bytes_of_a_small_file_say_what_is_documented() -> None:
    data = bytes.fromhex(SOLID_BYTES)
    magic, version, mode, unused, packed, text, count = struct.unpack("<8sHBBIII", data[:24])
    assert (magic, version, mode, unused, packed, text, count) == (b"\x89VAE\r\n\x1a\n", 1, 0, 0, 15, 13, 2)
    assert data[24:56] == MODEL and data[56:88] == TABLES and data[88:120] == CONTENT
    assert zlib.decompress(data[120:135], wbits=-15) == b'{"shape":[2]}'
    rows = [struct.unpack("<IQ32s", data[start : start + 44]) for start in (135, 179)]
    (checksum,) = struct.unpack("<I", data[223:227])
    assert checksum == zlib.crc32(data[:223])
    first, second = data[227:237], data[237:]
    assert rows == [(3, 10, hashlib.sha256(first).digest()), (300, 15, hashlib.sha256(second).digest())]
    assert struct.unpack("<BBII", first) == (1 + 32, 2, 0xDEADBEEF, 1)
    assert struct.unpack("<BBBIII", second) == (0x80, 0x01, 3, 2, 3, 4)  # 1 + 127 = 128 takes two groups of 7 bits
    assert take_apart(data) == SOLID


@ALL
def test_what_is_written_is_read(whole: Container, documented: Callable[[bytes], Any], tmp_path: Path) -> None:
    data = write_container(whole)
    assert take_apart(data) == whole
    assert documented(data) == as_documented(whole)
    (tmp_path / "x.vae").write_bytes(data)
    with Reader.open(tmp_path / "x.vae") as reader:
        assert reader.size == len(data) and reader.header_size == len(data) - sum(length(c) for c in whole.chunks)
        assert [reader.chunk(index) for index in range(len(reader.ranges))] == list(whole.chunks)
    if whole.chunks:
        with pytest.raises(ValueError, match="closed"):
            reader.chunk(0)


def length(chunk: Chunk) -> int:
    """A chunk's bytes, for those above: each number takes one byte up to 127."""
    initial = {stream.initial_words for stream in chunk.streams}
    numbers = [initial.pop() + 1] if len(initial) == 1 else [0, *(stream.initial_words for stream in chunk.streams)]
    numbers += [len(stream.payload) // 4 for stream in chunk.streams]
    return sum(1 + (number > 127) for number in numbers) + sum(len(stream.payload) for stream in chunk.streams)


def streams(count: st.SearchStrategy[int]) -> st.SearchStrategy[Stream]:
    """Streams of so many examples."""
    payload = st.lists(st.integers(0, 2**32 - 1), max_size=6).map(lambda numbers: words(*numbers))
    return st.builds(Stream, count, st.one_of(st.just(32), st.integers(0, 2**62)), payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=30)
@given(st.data())
def test_any_file_is_read_as_it_was_written(documented: Callable[[bytes], Any], data: st.DataObject) -> None:
    mode: Mode = data.draw(st.sampled_from(["solid", "image"]))
    chunk = {
        "solid": st.builds(Chunk, st.tuples(streams(st.integers(1, 2**32 - 1)))),
        "image": st.builds(Chunk, st.lists(streams(st.just(1)), min_size=1, max_size=5).map(tuple)),
    }[mode]
    description = data.draw(st.dictionaries(st.text(), JSON, max_size=4))
    whole = Container(mode, MODEL, TABLES, description, CONTENT, tuple(data.draw(st.lists(chunk, max_size=4))))
    written = write_container(whole)
    assert take_apart(written) == whole
    assert documented(written) == as_documented(whole)


def test_what_a_file_costs_beside_its_words() -> None:
    payload = bytes(17_000)
    solid = write_container(container("solid", Chunk((Stream(1000, 32, payload),))))
    packed = len(zlib.compress(b"{}", wbits=-15))
    assert len(solid) - len(payload) == 168 + packed + 1 + 2  # header; initial words; 4,250 words
    image = write_container(container("image", Chunk(tuple(Stream(1, 32, bytes(4 * 12)) for _ in range(1000)))))
    assert len(image) - 1000 * 4 * 12 == 168 + packed + 1 + 1000


@pytest.mark.parametrize(
    "chunks",
    [
        [Chunk(())],
        [Chunk((Stream(0, 32, b""),))],
        [Chunk((Stream(1, 32, b"123"),))],
        [Chunk((Stream(1, 32, b""), Stream(1, 32, b"")))],
        [Chunk((Stream(1, 2**63, b""),))],
        [Chunk((Stream(1, -2, b""),))],
    ],
    ids=["no stream", "no example", "no words", "two streams", "too many initial words", "negative initial words"],
)
def test_what_no_reader_would_take_is_not_written(chunks: list[Chunk]) -> None:
    with pytest.raises(ValueError):
        write_container(container("solid", *chunks))


def test_other_files_that_are_not_written() -> None:
    with pytest.raises(ValueError, match="one example"):
        write_container(container("image", Chunk((Stream(2, 32, b""),))))
    with pytest.raises(ValueError, match="32 bytes"):
        write_container(Container("solid", MODEL, TABLES[1:], {}, CONTENT, ()))
    with pytest.raises(ValueError):
        write_container(container("solid", scale=float("nan")))


def test_names_that_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_container(SOLID)
    monkeypatch.setattr("vaelab.compression.container._MOST_DESCRIPTION", 13)
    assert write_container(SOLID) == data and take_apart(data) == SOLID
    monkeypatch.setattr("vaelab.compression.container._MOST_DESCRIPTION", 12)
    with pytest.raises(InputError, match="take 13 bytes, more than 12; compress fewer files at a time"):
        write_container(SOLID)
    refused(data, "claims 13 bytes, more than 12")


# -- content -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "form"),
    [([0, 1, 1, 0], "B"), ([0, 7, 255, 3], "B"), ([0, 7, 256, 3], "H"), ([9, 65_535], "H"), ([65_536, 2], "I")],
    ids=str,
)
def test_the_hash_of_the_content_knows_values_alone(numbers: list[int], form: str) -> None:
    expected = hashlib.sha256(struct.pack(f"<{len(numbers)}{form}", *numbers)).digest()
    for dtype in ("?", "u1", "<u2", ">u2", "i4", ">i8", "u8"):
        values = np.array(numbers).astype(dtype)
        if np.array_equal(values.astype(int), numbers):
            assert content_hash(values) == expected
            assert content_hash(values.reshape(2, -1)) == expected
            assert content_hash(np.asfortranarray(values.reshape(2, -1))) == expected
            assert content_hash(np.repeat(values, 2)[::2]) == expected


def test_the_hash_of_no_content() -> None:
    assert content_hash(np.zeros((0, 28, 28), np.int64)) == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("values", [[-1], [2**32], [0.5], [float("inf")], ["a"]], ids=str)
def test_what_has_no_levels_has_no_hash(values: list[Any]) -> None:
    with pytest.raises(ValueError, match="levels"):
        content_hash(np.array(values))


# -- seeking -------------------------------------------------------------------------------------------------------


class Counting(io.BytesIO):
    """Notes which bytes are read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.touched: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        found = super().read(size)
        self.touched.append((start, start + len(found)))
        return found


def test_a_chunk_is_read_without_the_others() -> None:
    chunks = [Chunk((Stream(10, 32, bytes([number]) * 4000),)) for number in range(20)]
    data = write_container(container("solid", *chunks))
    file = Counting(data)
    reader = Reader(file, "x.vae")
    assert max(end for _, end in file.touched) == reader.header_size == len(data) - 20 * 4003
    assert sum(end - start for start, end in file.touched) < 1.2 * reader.header_size
    file.touched.clear()
    assert reader.chunk(17) == chunks[17]
    assert file.touched == [(reader.header_size + 17 * 4003, reader.header_size + 18 * 4003)]
    file.touched.clear()
    assert [reader.chunk(reader.chunk_of(example)) for example in (42, 3)] == [chunks[4], chunks[0]]
    assert len(file.touched) == 2


def test_the_chunk_of_each_example() -> None:
    reader = Reader(io.BytesIO(write_container(SOLID)), "x.vae")
    assert reader.examples == 303 and reader.ranges == [range(3), range(3, 303)]
    assert [reader.chunk_of(example) for example in range(303)] == 3 * [0] + 300 * [1]
    for example in (-1, 303):
        with pytest.raises(InputError, match=f"x.vae: has no example {example}; it has 303, counted from 0"):
            reader.chunk_of(example)
    reader = Reader(io.BytesIO(write_container(EMPTY)), "x.vae")
    assert reader.examples == 0 and reader.ranges == []
    with pytest.raises(InputError, match="no example 0"):
        reader.chunk_of(0)


def test_a_damaged_chunk_leaves_the_others_readable() -> None:
    data = bytearray(write_container(SOLID))
    data[-1] ^= 1
    reader = Reader(io.BytesIO(bytes(data)), "x.vae")
    assert reader.chunk(0) == SOLID.chunks[0]
    with pytest.raises(CorruptFile, match="x.vae: chunk 1 is damaged; copy it again"):
        reader.chunk(1)


# -- damage --------------------------------------------------------------------------------------------------------


@ALL
def test_no_changed_byte_goes_unseen(whole: Container) -> None:
    data = write_container(whole)
    for place, byte in enumerate(data):
        for other in {byte ^ 1 << bit for bit in range(8)} | {0, 255, byte ^ 255} - {byte}:
            refused(data[:place] + bytes([other]) + data[place + 1 :])


@ALL
def test_no_file_is_read_that_ends_early_or_late(whole: Container) -> None:
    data = write_container(whole)
    for size in range(len(data)):
        refused(data[:size], "cut short|end within its header")
    for more in (b"\0", b"\n", data, bytes(100_000)):
        refused(data + more, f"{len(more):,} bytes follow its end")
    for place in range(len(data)):
        refused(data[:place] + data[place + 1 :])
        refused(data[:place] + bytes([data[place] ^ 255]) + data[place:])


def test_chunks_cannot_change_places() -> None:
    whole = container("solid", *(Chunk((Stream(5, 32, words(number, 0)),)) for number in (1, 2)))
    data = write_container(whole)
    start = len(data) - 20
    bodies, rows = (
        data[start + 10 :] + data[start : start + 10],
        data[start - 48 : start - 4] + data[start - 92 : start - 48],
    )
    refused(data[:start] + bodies, "chunk 0 is damaged")
    refused(data[: start - 92] + rows + data[start - 4 :], "header is damaged")
    refused(data[: start - 92] + rows + data[start - 4 : start] + bodies, "header is damaged")


def test_a_header_does_not_fit_the_chunks_of_another_file() -> None:
    first, same_size, longer = (
        write_container(container("solid", Chunk((Stream(5, 32, payload),))))
        for payload in (words(1, 2), words(3, 4), words(5, 6, 7))
    )
    start = len(first) - 10
    refused(first[:start] + same_size[start:], "chunk 0 is damaged")
    refused(first[:start] + longer[start:], "4 bytes follow its end")
    refused(longer[:start] + first[start:], "is cut short: [0-9]+ bytes of [0-9]+")


def mutations(data: bytes, other: bytes, count: int) -> Iterator[bytes]:
    """Random damage: bytes, runs of bytes, cuts, doublings, swaps, and pieces of another file."""
    draw, values = np.random.default_rng(0), np.frombuffer(data, np.uint8)
    for number in range(count):
        low, high, at = sorted(int(place) for place in draw.integers(0, len(data) + 1, 3))
        yield [
            (values ^ (draw.random(len(data)) < 0.01) * draw.integers(1, 256, len(data), np.uint8)).tobytes(),
            data[:low] + draw.bytes(high - low) + data[high:],
            data[:low] + data[high:],
            data[:high] + data[low:],
            data[:low] + data[high:at] + data[low:high] + data[at:],
            data[:low] + other[low:high] + data[high:],
            other[:low] + data[low:],
        ][number % 7]


def test_random_damage_is_seen() -> None:
    data = write_container(SOLID)
    other = write_container(container("solid", *SOLID.chunks[::-1], shape=[3]))
    assert len(other) == len(data)
    for damaged in mutations(data, other, 3000):
        if damaged not in (data, other):
            refused(damaged)


# -- files whose checksums are right -------------------------------------------------------------------------------


def test_forged_files_are_as_they_should_be() -> None:
    whole = container("solid", Chunk((Stream(3, 32, words(1)),)))
    assert take_apart(forged(chunks=[(3, b"\x21\x01" + words(1))])) == whole


@pytest.mark.parametrize("text", [b"[]", b"1", b"", b"{", b'{"a":}', b"\xff{}", b"9" * 9999, b"[" * 99_999], ids=short)
def test_a_description_that_is_none(text: bytes) -> None:
    refused(forged(text=text), "description cannot be read")


def test_a_description_of_another_length_than_it_says() -> None:
    packed = zlib.compress(b'{"a":1}', wbits=-15)
    right = forged(text=b'{"a":1}')
    assert Reader(io.BytesIO(right), "x.vae").description == {"a": 1}
    for wrong in (0, 6, 8, 2**20):
        refused(sealed(edited(right, 16, "<I", wrong)), "description cannot be read")
    for other in (packed[:-1], packed + b"\0", b"", b"\xff" * 9):
        refused(forged(text=b'{"a":1}', packed=other), "description cannot be read")


@pytest.mark.parametrize(
    ("mode", "count", "body"),
    [
        (0, 3, b""),
        (0, 3, b"\x21"),
        (0, 3, b"\x21\x02" + bytes(4)),
        (0, 3, b"\x21\x01" + bytes(5)),
        (0, 3, b"\x21\x01" + bytes(8)),
        (0, 3, b"\x80" * 9 + b"\x01\x01" + bytes(4)),
        (0, 3, b"\x21" + b"\xff" * 8 + b"\x7f" + bytes(4)),
        (0, 3, b"\xff" * 1000),
        (1, 3, b"\x21\x00\x00"),
        (1, 3, b"\x00\x01\x01\x01\x00\x00"),
    ],
    ids=short,
)
def test_a_chunk_whose_numbers_do_not_fit(mode: int, count: int, body: bytes) -> None:
    refused(forged(mode=mode, chunks=[(count, body)]), "chunk 0 contradicts itself")


def test_a_version_a_table_or_a_mode_that_cannot_be() -> None:
    refused(sealed(edited(forged(), 8, "<H", 0)), "version 0 of the format")
    refused(forged(chunks=[(0, b"\x21\x00")]), "table of chunks contradicts itself")
    refused(forged(mode=1, chunks=[(2**32 - 1, bytes(1000))]), "table of chunks contradicts itself")
    refused(forged(mode=2), "mode 2")


@pytest.mark.parametrize(
    ("offset", "form", "number"),
    [(20, "<I", 2**32 - 1), (12, "<I", 2**32 - 1), (16, "<I", 2**32 - 1), (16, "<I", 64 << 20), (126, "<Q", 2**60)],
    ids=["chunks", "stored description", "description", "largest description", "chunk"],
)
@pytest.mark.parametrize("seal", [False, True], ids=["damaged", "forged"])
def test_no_memory_is_taken_for_what_a_header_claims(offset: int, form: str, number: int, seal: bool) -> None:
    data = edited(forged(chunks=[(3, b"\x21\x01" + words(1))]), offset, form, number)
    data = sealed(data) if seal else data
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", [b"", b"{}"], ids=["empty", "short"])
def test_a_description_does_not_inflate_beyond_its_length(text: bytes) -> None:
    bomb = zlib.compress(bytes(32 << 20), wbits=-15)
    tracemalloc.start()
    try:
        refused(forged(text=text, packed=bomb), "description cannot be read")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@ALL
def test_any_header_under_a_right_checksum_is_taken_or_refused(whole: Container) -> None:
    data = write_container(whole)
    end = Reader(io.BytesIO(data), "x.vae").header_size - 4
    for place in range(10, end):
        for other in {0, 1, 2, 127, 128, 255, data[place] ^ 1, data[place] ^ 128} - {data[place]}:
            changed = data[:place] + bytes([other]) + data[place + 1 :]
            if 12 <= place < 16 or 20 <= place < 24:  # the checksum moves
                refused(changed)
                continue
            changed = sealed(changed)
            try:
                found = take_apart(changed)
            except CorruptFile:
                assert place == 10 or 16 <= place < 20 or place >= 120
                continue
            reader = Reader(io.BytesIO(changed), "x.vae")
            assert (found.model_hash != MODEL) == (24 <= place < 56)
            assert (found.tables_hash != TABLES) == (56 <= place < 88)
            assert (found.content_hash != CONTENT) == (88 <= place < 120)
            if 24 <= place < 88:
                with pytest.raises(WrongModel, match="model" if place < 56 else "tables"):
                    reader.check_model(MODEL, TABLES)


# -- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "like"),
    [
        (b"", "its 0 bytes end within its header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not a file of `vaelab compress`; name one"),
        (bytes(500), "not a file of `vaelab compress`"),
        (b"\x89VAE\n\x1a\n" + bytes(500), "as by a transfer as text; copy it again, in binary"),
        (b"\xef\xbf\xbdVAE\r\n\x1a\n" + bytes(500), "as by a transfer as text"),
        (
            edited(write_container(SOLID), 8, "<H", 2),
            "has version 2 of the format, and this vaelab reads version 1; use",
        ),
    ],
    ids=["empty", "picture", "zeros", "line ends", "UTF-8", "version"],
)
def test_what_is_no_file_of_this_version(data: bytes, like: str) -> None:
    refused(data, like)


def test_a_wrong_model_is_told_by_what_differs() -> None:
    reader = Reader(io.BytesIO(write_container(SOLID)), "x.vae")
    reader.check_model(MODEL, TABLES)
    other = hashlib.sha256(b"other").digest()
    for hashes, like in [
        ((other, TABLES), "with another model (model a0010203… not d9298a10…); name"),
        ((MODEL, other), "with this model, but other tables (tables b0010203… not d9298a10…); name"),
        ((other, other), "with another model (model a0010203… not d9298a10…, tables b0010203… not d9298a10…); name"),
    ]:
        with pytest.raises(WrongModel, match=re.escape(f"x.vae: was compressed {like} the run that compressed it")):
            reader.check_model(*hashes)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.vae", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read (")), Reader.open(path):
            pass


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "x.vae"
    path.write_bytes(write_container(container("solid", Chunk((Stream(1, 32, bytes(100_000)),)))))
    with Reader.open(path) as reader:
        path.write_bytes(b"")
        with pytest.raises(CorruptFile, match="became shorter while it was read"):
            reader.chunk(0)


def test_damage_is_wrong_input() -> None:
    assert CorruptFile("").exit_code == WrongModel("").exit_code == 2
