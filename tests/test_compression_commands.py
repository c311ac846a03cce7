"""`vaelab compress` and `vaelab decompress`: what goes in comes back to the bit, and what fails leaves nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec_runs import BYTES, Make, untrained
from codec_runs import made as made
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from test_cli import Cli, Result
from test_cli import run_cli as run_cli

import vaelab
from vaelab import files
from vaelab.compression import Classical, CodecModel, Reader, compress, decompress, lossless, measure
from vaelab.data import freyfaces
from vaelab.errors import CorruptFile, WrongModel
from vaelab.runs import Run

DIGITS: NDArray[np.uint8] = np.asarray(load_digits(return_X_y=True)[0], np.uint8).reshape(-1, 8, 8)[:60]
BINARY = (DIGITS > 7).astype(np.uint8)
RNG = np.random.default_rng(0)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels_in(folder: Path) -> dict[str, tuple[str, bytes]]:
    found: dict[str, tuple[str, bytes]] = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as picture:
            found[str(path.relative_to(folder))] = (picture.mode, picture.tobytes())
    return found


def there_and_back(run_cli: Cli, run: Run, source: Path, *options: object) -> Path:
    """The output of both commands, in a folder of their own."""
    out = source.with_name(f"back-{source.name}")
    result = run_cli("compress", run, source, "-o", "x.vae", *options)
    assert result.code == 0 and result.err == "", result.err
    assert max(map(len, result.out.splitlines())) <= 80
    result = run_cli("decompress", run, "x.vae", "-o", out)
    assert (result.code, result.out, result.err) == (0, f"{out}\n", "")
    return out


# -- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--chunk", 1), ("--chunk", 7), ("--chunk", 0), ("--mode", "image")], ids=str)
@pytest.mark.parametrize("name", ["binary", "grey", "conv", "hierarchy"])
def test_arrays_come_back(run_cli: Cli, made: Make, tmp_path: Path, name: str, options: tuple[object, ...]) -> None:
    values = (BINARY if name == "binary" else DIGITS)[:15]
    np.save(tmp_path / "x.npy", values)
    out = there_and_back(run_cli, made(name), tmp_path / "x.npy", *options)
    assert out.read_bytes() == (tmp_path / "x.npy").read_bytes()
    with Reader.open("x.vae") as reader:
        size = {"7": 7, "1": 1}.get(str(options[-1:] and options[-1]), 15)
        assert [len(one) for one in reader.ranges] == [min(size, 15 - at) for at in range(0, 15, size)]
        assert reader.mode == ("image" if "image" in options else "solid")


@pytest.mark.parametrize("dtype", ["|u1", ">i4", "<f4", ">f8", "<u8", "|i1"])
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (8, 8, 1)], ids=str)
def test_arrays_of_every_kind_come_back(
    run_cli: Cli, made: Make, tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "x.npy", DIGITS[:3].reshape(3, *shape).astype(dtype))
    out = there_and_back(run_cli, made("grey"), tmp_path / "x.npy")
    assert out.read_bytes() == (tmp_path / "x.npy").read_bytes()


def test_labels_come_back(run_cli: Cli, made: Make, tmp_path: Path) -> None:
    labels = (np.arange(9) - 4).astype(">i2")
    np.savez(tmp_path / "x.npz", x=DIGITS[:9], y=labels)
    with np.load(there_and_back(run_cli, made("grey"), tmp_path / "x.npz")) as back:
        assert back["x"].dtype == np.uint8 and back["y"].dtype.str == ">i2"
        np.testing.assert_array_equal(back["x"], DIGITS[:9])
        np.testing.assert_array_equal(back["y"], labels)


def extremes(event: tuple[int, ...], highest: int) -> dict[str, NDArray[np.uint8]]:
    noise = RNG.integers(0, highest + 1, (11, *event), np.uint8)
    flat = {"zero": np.zeros_like(noise), "highest": np.full_like(noise, highest), "one": noise[:1], "empty": noise[:0]}
    return {"noise": noise, "stripes": noise % 2 * np.uint8(highest), **flat}


@pytest.mark.parametrize("mode", ["solid", "image"])
@pytest.mark.parametrize(
    ("name", "event", "highest"),
    [
        ("binary", (1, 8, 8), 1),
        ("grey", (1, 8, 8), 16),
        ("hierarchy", (1, 8, 8), 16),
        ("bytes", BYTES.shape, 255),
        ("color", (3, 4, 4), 255),
    ],
)
def test_extremes_come_back(
    made: Make, tmp_path: Path, name: str, event: tuple[int, ...], highest: int, mode: Any
) -> None:
    for what, values in extremes(event, highest).items():
        np.save(tmp_path / "x.npy", values)
        made_of = compress(made(name), tmp_path / "x.npy", "x.vae", mode=mode, chunk=4, verify=False)
        decompress(made(name), "x.vae", "back.npy")
        assert Path("back.npy").read_bytes() == (tmp_path / "x.npy").read_bytes(), what
        assert (made_of.examples, made_of.dims) == (len(values), np.prod(event))


@pytest.mark.skipif(not freyfaces.is_present(), reason="Frey faces are not there")
@pytest.mark.parametrize("mode", ["solid", "image"])
def test_frey_faces_come_back(run_cli: Cli, made: Make, tmp_path: Path, mode: str) -> None:
    np.save(tmp_path / "x.npy", np.load(freyfaces.file()).reshape(-1, 28, 20)[:8])
    out = there_and_back(run_cli, made("frey"), tmp_path / "x.npy", "--mode", mode)
    assert out.read_bytes() == (tmp_path / "x.npy").read_bytes()


def test_a_split_of_the_runs_own_data_comes_back(run_cli: Cli, made: Make) -> None:
    result = run_cli("compress", made("binary"), "--split", "test")
    assert result.code == 0 and result.out.startswith("compressed.vae: 180 examples in ")
    assert run_cli("decompress", made("binary"), "compressed.vae", "-o", "back.npy").code == 0
    run = made("binary")
    np.testing.assert_array_equal(np.load("back.npy"), run.data()["test"].fixed(run.config.data.seed).read().numpy())


def album(folder: Path, sizes: list[tuple[int, int]], color: bool = False) -> Path:
    for number, (height, width) in enumerate(sizes):
        file = folder / ("sub/ä b" if number % 2 else "") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (height, width, 3) if color else (height, width), np.uint8)).save(file)
    return folder


@pytest.mark.parametrize("color", [False, True])
def test_folders_come_back_whole_or_in_part(run_cli: Cli, made: Make, tmp_path: Path, color: bool) -> None:
    run, size = (made("color"), (4, 4)) if color else (made("bytes"), (6, 5))
    folder = album(tmp_path / "my album", [size] * 5, color)
    assert pixels_in(there_and_back(run_cli, run, folder, "--chunk", 2)) == pixels_in(folder)
    assert run_cli("decompress", run, "x.vae", "-o", "part", "--only", "3,0").code == 0
    names = sorted(pixels_in(folder))
    assert pixels_in(Path("part")) == {names[at]: pixels_in(folder)[names[at]] for at in (0, 3)}


def test_larger_pictures_come_back_from_tiles(run_cli: Cli, made: Make, tmp_path: Path) -> None:
    folder = album(tmp_path / "album", [(13, 9), (6, 5), (1, 1), (7, 16)])
    assert pixels_in(there_and_back(run_cli, made("bytes"), folder, "--tile", "--chunk", 4)) == pixels_in(folder)
    assert run_cli("decompress", made("bytes"), "x.vae", "-o", "part", "--only", "3").code == 0
    assert pixels_in(Path("part")) == {"sub/ä b/3.png": pixels_in(folder)["sub/ä b/3.png"]}
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (2, 11, 12), np.uint8))
    assert (
        there_and_back(run_cli, made("bytes"), tmp_path / "x.npy", "--tile").read_bytes() == files_in(tmp_path)["x.npy"]
    )


@pytest.mark.parametrize("mode", ["solid", "image"])
def test_only_some_rows_take_only_their_chunks(
    run_cli: Cli, made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    np.savez(tmp_path / "x.npz", x=DIGITS, y=np.arange(60))
    compress(made("grey"), tmp_path / "x.npz", "x.vae", chunk=10, mode=mode)
    data = bytearray(Path("x.vae").read_bytes())
    data[-1] ^= 1  # the last chunk is damaged, which the others do not mind
    Path("x.vae").write_bytes(data)
    decode, counts = lossless.decode, list[int]()

    def counted(model: Any, n: int, *rest: Any) -> Any:
        counts.append(n)
        return decode(model, n, *rest)

    monkeypatch.setattr(lossless, "decode", counted)
    assert run_cli("decompress", made("grey"), "x.vae", "-o", "y.npz", "--only", "42,17,41").code == 0
    assert counts == ([10, 10] if mode == "solid" else [1] * 20)
    with np.load("y.npz") as back:
        np.testing.assert_array_equal(back["x"], DIGITS[[42, 17, 41]])
        np.testing.assert_array_equal(back["y"], [42, 17, 41])
    run_cli("decompress", made("grey"), "x.vae", "-o", "z.npz", "--only", "55").failed("x.vae", "chunk 5 is damaged")
    run_cli("decompress", made("grey"), "x.vae", "-o", "z.npz").failed("chunk 5 is damaged")
    assert not Path("z.npz").exists()


# -- on another machine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "chunk", "coder"), [("solid", 10, (False, 1)), ("image", 10, (False, 1)), ("solid", 0, (True, 2))]
)
def test_threads_write_the_same_file(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, chunk: int, coder: tuple[bool, int]
) -> None:
    """A thread with one of torch's for each chunk; for a chunk that is alone all of torch's."""
    np.save(tmp_path / "x.npy", DIGITS)
    compress(made("conv"), tmp_path / "x.npy", "one.vae", mode=mode, chunk=chunk)
    encode, coders = lossless.encode, set[tuple[bool, int]]()

    def noted(*arguments: Any) -> Any:
        coders.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return encode(*arguments)

    monkeypatch.setattr(lossless, "encode", noted)
    torch.set_num_threads(2)
    try:
        compress(made("conv"), tmp_path / "x.npy", "two.vae", mode=mode, chunk=chunk)
        decompress(made("conv"), "one.vae", "back.npy")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert coders == {coder}
    assert Path("one.vae").read_bytes() == Path("two.vae").read_bytes()
    assert Path("back.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()


def test_another_process_with_other_arithmetic_decodes_the_same(made: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", DIGITS)
    other = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"}
    names = ("grey", "conv", "hierarchy")
    code = "import sys, torch; from vaelab.compression import decompress; torch.set_num_threads(2)\n"
    for name in names:
        compress(made(name), tmp_path / "x.npy", f"{name}.vae", chunk=23)
        code += f"decompress({str(made(name))!r}, '{name}.vae', '{name}.npy')\n"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | other)
    for name in names:
        assert Path(f"{name}.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()


def test_the_codec_alone_decompresses_and_another_training_does_not(run_cli: Cli, made: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", DIGITS)
    run = untrained(tmp_path / "run", "grey")
    compress(run, tmp_path / "x.npy", "x.vae")
    (tmp_path / "sent").mkdir()
    for name in ("config.toml", "codec.safetensors"):
        shutil.copy(run.path / name, tmp_path / "sent")
    assert run_cli("decompress", "sent", "x.vae", "-o", "back.npy").code == 0
    assert Path("back.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()
    Path("back.npy").unlink()
    other = untrained(tmp_path / "other", "grey", seed=1)
    shutil.copy(other.path / "model.safetensors", run.path)  # trained anew: the kept codec is not its own any more
    run_cli("decompress", run, "x.vae", "-o", "back.npy").failed("x.vae: was compressed with another model")
    with pytest.raises(WrongModel):
        decompress(other, "x.vae", "back.npy")
    assert not Path("back.npy").exists()


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("grey", [], ["an input", "--split"]),
        ("grey", ["x.npy", "--split", "test"], ["an input", "--split"]),
        ("grey", ["--split", "tset"], ["tset", "train, validation, test"]),
        ("grey", ["x.npy", "--chunk", "-1"], ["chunk=-1", "at least 1"]),
        ("grey", ["x.npy", "--chunk", "many"], ["--chunk"]),
        ("grey", ["x.npy", "--mode", "fluid"], ["fluid", "solid"]),
        ("grey", ["nothing.npy"], ["nothing.npy"]),
        ("grey", ["digitz"], ["digitz", "digits"]),
        ("grey", ["wide.npy"], ["[5, 8, 9]", "--tile"]),
        ("grey", ["flat.npy"], ["[5, 64]", "reshape it to [5, 1, 8, 8]"]),
        ("grey", ["high.npy"], ["levels above 16"]),
        ("binary", ["x.npy"], ["more than 0 and 1", "data.binarize=none"]),
        ("grey", ["x.npy", "-o", "nowhere/x.vae"], ["nowhere/x.vae", "make it first"]),
        ("grey", ["x.npy", "-o", "taken"], ["taken: is a folder", "name a file in it"]),
        ("grey", ["x.npy", "-o", "x.npy"], ["x.npy: is the input itself"]),
        ("flow", ["x.npy"], ["InverseAutoregressivePosterior", "posterior.name=gaussian", "codec-grey"]),
        ("vamp", ["x.npy"], ["VampPrior", "prior.name=normal"]),
        ("real", ["x.npy"], ["GaussianLikelihood", "density", "codec-grey"]),
    ],
)
def test_what_cannot_be_compressed_is_refused(
    run_cli: Cli, made: Make, tmp_path: Path, name: str, words: list[str], says: list[str]
) -> None:
    arrays = {"x": DIGITS, "wide": np.zeros((5, 8, 9), "u1"), "flat": np.zeros((5, 64), "u1"), "high": DIGITS * 9}
    for array, values in arrays.items():
        np.save(tmp_path / f"{array}.npy", values)
    (tmp_path / "taken").mkdir()
    (tmp_path / "compressed.vae").write_text("precious")
    before = files_in(tmp_path)
    run_cli("compress", made(name), *words).failed(*says)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x.vae"], ["--out"]),
        (["nothing.vae", "-o", "y.npy"], ["nothing.vae: cannot be read"]),
        (["taken", "-o", "y.npy"], ["taken: cannot be read"]),
        (["x.npy", "-o", "y.npy"], ["x.npy: not a file of `vaelab compress`"]),
        (["x.vae", "-o", "y.npz"], ["y.npz", ".npy"]),
        (["x.vae", "-o", "taken"], ["taken: is a folder"]),
        (["x.vae", "-o", "nowhere/y.npy"], ["nowhere", "make it first"]),
        (["x.vae", "-o", "old.npy", "--only", "0,x"], ["0,x", "--only"]),
        (["x.vae", "-o", "old.npy", "--only", "3,3"], ["only 3", "twice"]),
        (["x.vae", "-o", "old.npy", "--only", "60"], ["only 60", "60 pictures or rows"]),
        (["x.vae", "-o", "old.npy", "--only", "-1"], ["only -1"]),
        (["x.vae", "-o", "old.npy", "--only", ""], ["--only"]),
        (["cut.vae", "-o", "old.npy"], ["cut.vae: is cut short"]),
        (["album.vae", "-o", "taken"], ["taken: is not empty"]),
    ],
)
def test_what_cannot_be_decompressed_is_refused(
    run_cli: Cli, made: Make, tmp_path: Path, words: list[str], says: list[str]
) -> None:
    np.save(tmp_path / "x.npy", DIGITS)
    compress(made("grey"), tmp_path / "x.npy", "x.vae", verify=False)
    run: Run = made("grey")
    if "album.vae" in words:
        run = made("bytes")
        compress(run, album(tmp_path / "album", [(6, 5)]), "album.vae")
    Path("cut.vae").write_bytes(Path("x.vae").read_bytes()[:-4])
    album(tmp_path / "taken", [(1, 1)])
    (tmp_path / "old.npy").write_text("precious")
    before = files_in(tmp_path)
    run_cli("decompress", run, *words).failed(*says)
    assert files_in(tmp_path) == before


def test_a_missing_run_is_refused(run_cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", DIGITS)
    run_cli("compress", "nowhere", "x.npy").failed("nowhere: no such run folder")
    run_cli("decompress", "nowhere", "x.npy", "-o", "y.npy").failed("nowhere: no such run folder")
    assert list(files_in(tmp_path)) == ["x.npy"]


Broken = Callable[[pytest.MonkeyPatch], None]


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second chunk."""
    for name in ("encode", "decode"):
        code: Any = getattr(lossless, name)
        calls = [0]

        def stopping(*arguments: Any, code: Any = code, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                raise KeyboardInterrupt
            return code(*arguments)

        monkeypatch.setattr(lossless, name, stopping)


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No space left on the disk."""

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "_to_disk", refuse)


@pytest.mark.parametrize(
    ("breaks", "code", "says"), [(interrupted, 130, "interrupted"), (full, 1, "No space left on device")]
)
def test_what_is_broken_off_leaves_the_old_file(
    run_cli: Cli, made: Make, tmp_path: Path, breaks: Broken, code: int, says: str
) -> None:
    np.save(tmp_path / "x.npy", DIGITS)
    compress(made("grey"), tmp_path / "x.npy", "x.vae", chunk=20)
    for name in ("old.vae", "old.npy"):
        (tmp_path / name).write_text("precious")
    before = files_in(tmp_path)
    commands = [["compress", made("grey"), "x.npy", "-o", "old.vae", "--chunk", 20]]
    for words in [*commands, ["decompress", made("grey"), "x.vae", "-o", "old.npy"]]:
        with pytest.MonkeyPatch.context() as patch:
            breaks(patch)
            result: Result = run_cli(*words)
        assert (result.code, result.out) == (code, "") and says in result.err and result.err.count("\n") == bool(says)
        assert files_in(tmp_path) == before


def test_compress_looks_at_what_it_made(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", DIGITS)
    encode = lossless.encode

    def of_others(model: CodecModel, part: NDArray[Any]) -> Any:
        return encode(model, part[:, :, ::-1])

    monkeypatch.setattr(lossless, "encode", of_others)
    with pytest.raises(AssertionError, match="nothing was written"):
        compress(made("grey"), tmp_path / "x.npy", "x.vae")
    assert list(files_in(tmp_path)) == ["x.npy"]
    compress(made("grey"), tmp_path / "x.npy", "x.vae", verify=False)
    with pytest.raises(CorruptFile, match="its content is not what was compressed"):
        decompress(made("grey"), "x.vae", "y.npy")


# -- what is told ---------------------------------------------------------------------------------------------------


def test_json_tells_what_the_file_says(run_cli: Cli, made: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", DIGITS)
    found = json.loads(run_cli("compress", made("grey"), "x.npy", "-o", "x.vae", "--chunk", 9, "--json").out)
    with Reader.open("x.vae") as reader:
        streams = [stream for number in range(7) for stream in reader.chunk(number).streams]
    size, payload = Path("x.vae").stat().st_size, sum(len(stream.payload) for stream in streams)
    assert found == {
        "file": "x.vae",
        "examples": 60,
        "dims": 64,
        "bytes": size,
        "payload_bytes": payload,
        "initial_bits": 32 * sum(stream.initial_words for stream in streams),
        "bits_per_dim": 8 * size / 3840,
        "payload_bits_per_dim": 8 * payload / 3840,
    }
    assert json.loads(run_cli("decompress", made("grey"), "x.vae", "-o", "y.npy", "--json").out) == {"file": "y.npy"}
    np.save(tmp_path / "none.npy", DIGITS[:0])
    empty = json.loads(run_cli("compress", made("grey"), "none.npy", "--json").out)
    assert (empty["examples"], empty["payload_bytes"], empty["bits_per_dim"]) == (0, 0, None)
    run_cli("compress", made("grey"), "none.npy", "--report", "-o", "n.vae").failed("no examples to measure")
    assert not Path("n.vae").exists()


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Established codecs, of which one is far smaller and one far larger than anything of ours."""
    rows = [
        Classical("zlib -9", "solid", 10**9, 1.0, ""),
        Classical("PNG", "per image", None, None, "takes at most 256 levels"),
        Classical("brotli -11", "solid", 1000, 1.0, ""),
    ]

    def listed(*_: object, **__: object) -> list[Classical]:
        return rows

    monkeypatch.setattr(sys.modules["vaelab.compression.measure"], "classical", listed)


def test_a_report_is_consistent_and_says_who_wins(run_cli: Cli, digits_run: Run, others: None) -> None:
    words = ("compress", digits_run, "--split", "train", "-o", "x.vae")
    found = json.loads(run_cli(*words, "--report", "--json").out)
    plain = json.loads(run_cli(*words, "--json").out)
    assert found["compressed"] == plain
    elbo = vaelab.evaluate(digits_run, 200, split="train").elbo
    assert elbo is not None
    assert found["nelbo_nats"] == pytest.approx(-elbo, rel=2e-3)
    assert found["nelbo_bits_per_dim"] == pytest.approx(found["nelbo_nats"] / 64 / np.log(2))
    net = (8 * plain["payload_bytes"] - plain["initial_bits"]) / (plain["examples"] * 64)
    assert found["overhead"] == pytest.approx(net / found["nelbo_bits_per_dim"] - 1)
    assert abs(found["overhead"]) < 0.02
    assert found["model_bytes"] == (digits_run.path / "codec.safetensors").stat().st_size > 1000
    assert found["mode"] == "solid" and len(found["classical"]) == 3
    for way in ("encode", "decode"):
        assert found[f"{way}_per_second"] > 0 and 0 < found[f"coder_share_{way}"] < 1

    text = run_cli(*words, "--report").out.splitlines()
    assert max(map(len, text)) <= 80
    table = [line.split() for line in text if line.startswith(("  brotli", "  vaelab", "  zlib", "  PNG"))]
    assert [row[0] for row in table] == ["brotli", "vaelab", "vaelab", "zlib", "PNG"]
    assert table[1][1:] == ["solid", f"{plain['bytes']:,}", f"{plain['bits_per_dim']:.4f}"]
    assert table[-1][-5:] == ["takes", "at", "most", "256", "levels"]
    whole = plain["bytes"] + found["model_bytes"]
    for line, size in zip(text[-2:], (plain["bytes"], whole), strict=True):
        assert line.endswith(f" is {size / 1000 - 1:.1%} LARGER.")
    assert text[-3] == "  The smallest of the others is brotli -11, solid."


def test_a_report_with_the_real_codecs(made: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", DIGITS[:20])
    found = measure(made("grey"), tmp_path / "x.npy", "x.vae", mode="image")
    sizes = {(one.codec, one.how): one.bytes for one in found.classical}
    assert {("zlib -9", "solid"), ("PNG", "per image"), ("xz -9e", "per image")} <= sizes.keys()
    assert "vaelab       image " in str(found) and max(map(len, str(found).splitlines())) <= 80
    assert found.overhead == pytest.approx(
        (8 * found.compressed.payload_bytes - found.compressed.initial_bits) / 1280 / found.nelbo_bits_per_dim - 1
    )


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_help_fits_a_terminal(run_cli: Cli, command: str) -> None:
    assert max(map(len, run_cli(command, "--help").out.splitlines())) <= 80
