"""Splits, batches, binarization and divisions, on digits and on arrays made for the purpose."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from vaelab.config import DataConfig
from vaelab.data import Dataset, DataSpec, Split, load, sources
from vaelab.data.division import Division, divide_in_blocks, divide_randomly
from vaelab.data.prepare import Examples, prepare
from vaelab.errors import InputError


def whole(**keys: object) -> Dataset:
    """A data set in the order of its source, all of it for training."""
    return load(DataConfig.model_validate({"validation": 0, "test": 0} | keys))


@pytest.fixture
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's pixels [1797, 64] in 0 ... 16, and labels."""
    return load_digits(return_X_y=True)


# -- batches -------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = whole(source="digits")
    assert data.spec == DataSpec((1, 8, 8), "levels", 17)
    assert data["train"].raw.dtype == torch.uint8
    np.testing.assert_array_equal(data["train"].raw.reshape(1797, 64).numpy(), digits[0])
    labels = data["train"].labels
    assert labels is not None and labels.dtype == torch.int64
    np.testing.assert_array_equal(labels.numpy(), digits[1])
    assert data.label_names == tuple("0123456789")
    assert list(data.splits) == ["train"]


def test_batch_is_level_over_highest_level(digits: tuple[np.ndarray, np.ndarray]) -> None:
    split = whole(source="digits")["train"]
    index = torch.tensor([5, 0, 1796, 5])
    expected = (digits[0][index.numpy()] / 16).astype(np.float32).reshape(4, 1, 8, 8)
    batch = split.batch(index)
    assert batch.dtype == torch.float32
    np.testing.assert_array_equal(batch.numpy(), expected)
    np.testing.assert_array_equal(split.batch(slice(3, 7)).flatten(1).numpy(), (digits[0][3:7] / 16).astype(np.float32))
    assert torch.equal(split.batch()[index], batch)
    assert len(split) == 1797 and len(split.head(10)) == 10
    assert torch.equal(split.head(10).batch(), split.batch(slice(10)))


def test_batch_never_shares_memory_with_the_data() -> None:
    split = Split(torch.rand(6, 3))
    before = split.raw.clone()
    for index in (None, slice(0, 2), torch.tensor([0, 1])):
        split.batch(index).fill_(7.0)
    assert torch.equal(split.raw, before)


def test_values_real_keeps_digits_over_16(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = whole(source="digits", values="real")
    assert data.spec == DataSpec((1, 8, 8), "real", None)
    np.testing.assert_array_equal(data["train"].batch().flatten(1).numpy(), (digits[0] / 16).astype(np.float32))
    # the eigenvalue that the exact linear VAE needs: mean of the discarded ones at 10 latents
    covariance = torch.cov(data["train"].batch().flatten(1).double().T, correction=0)
    assert torch.linalg.eigvalsh(covariance)[:54].mean().item() == pytest.approx(0.02275, abs=5e-6)


def test_levels_override_changes_the_scale(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = whole(source="digits", levels=33)
    assert data.spec.levels == 33
    np.testing.assert_array_equal(data["train"].batch().flatten(1).numpy(), (digits[0] / 32).astype(np.float32))


# -- division ------------------------------------------------------------------------------------------------------


def test_random_division_is_a_partition() -> None:
    for n, validation, test in [(1797, None, None), (10, 0.3, 0.2), (7, 0, 0.5), (5, None, 0), (1, None, None)]:
        division = divide_randomly(n, DataConfig(validation=validation, test=test))
        rows = torch.cat([torch.arange(n)[part] for part in division.values()])
        assert sorted(rows.tolist()) == list(range(n))
        sizes = {name: len(torch.arange(n)[part]) for name, part in division.items()}
        assert sizes.get("validation", 0) == round((0.1 if validation is None else validation) * n)
        assert sizes.get("test", 0) == round((0.1 if test is None else test) * n)


def test_random_division_depends_on_the_data_seed_alone() -> None:
    torch.manual_seed(1)
    a = load(DataConfig(seed=3))
    torch.manual_seed(2)
    b = load(DataConfig(seed=3))
    c = load(DataConfig(seed=4))
    assert torch.equal(a["test"].raw, b["test"].raw) and a.fingerprint == b.fingerprint
    assert not torch.equal(a["test"].raw, c["test"].raw) and a.fingerprint != c.fingerprint


def test_test_examples_do_not_depend_on_the_validation_fraction() -> None:
    a, b = load(DataConfig()), load(DataConfig(validation=0.3))
    assert torch.equal(a["test"].raw, b["test"].raw)
    assert (len(a["validation"]), len(b["validation"])) == (180, 539)


def test_random_division_is_pinned() -> None:
    """Another version of torch that shuffles otherwise would silently move examples between the splits."""
    division = divide_randomly(1797, DataConfig())
    first = {name: part[:4].tolist() for name, part in division.items() if isinstance(part, Tensor)}
    assert first == {
        "train": [1781, 1508, 1418, 497],
        "validation": [55, 916, 1064, 1049],
        "test": [540, 500, 982, 757],
    }


def test_random_division_mixes_sorted_sources() -> None:
    """The first examples of a split must stand for all of it: 100 of a source sorted by 10 classes hold every class."""
    division = divide_randomly(10_000, DataConfig())
    train = division["train"]
    assert isinstance(train, Tensor)
    assert len((train[:100] // 1000).unique()) == 10


def test_blocks_follow_in_time() -> None:
    cases = [
        (None, None, (70, 20, 10)),
        (0.0, None, (90, 0, 10)),
        (None, 0.0, (80, 20, 0)),
        (0.05, 0.3, (65, 5, 30)),
        (0.0, 0.0, (100, 0, 0)),
    ]
    for validation, test, sizes in cases:
        division = divide_in_blocks(100, DataConfig(validation=validation, test=test), validation=20, test=10)
        rows = [torch.arange(100)[part].tolist() for part in division.values()]
        assert [row for part in rows for row in part] == list(range(100))
        names = [name for name, size in zip(("train", "validation", "test"), sizes, strict=True) if size]
        assert list(division) == names and [len(part) for part in rows] == [size for size in sizes if size]


def test_labels_follow_their_examples(digits: tuple[np.ndarray, np.ndarray]) -> None:
    known = {pixels.astype(np.uint8).tobytes(): label for pixels, label in zip(*digits, strict=True)}
    assert len(known) == 1797  # no two digits are equal, so pixels tell the label
    for split in load(DataConfig()).splits.values():
        assert split.labels is not None
        assert [known[row.numpy().tobytes()] for row in split.raw] == split.labels.tolist()


# -- binarization --------------------------------------------------------------------------------------------------


def test_threshold_is_above_the_middle(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = whole(source="digits", binarize="threshold")
    assert data.spec == DataSpec((1, 8, 8), "binary", 2)
    np.testing.assert_array_equal(data["train"].batch().flatten(1).numpy(), digits[0] > 8)  # 8 itself is not above 8


def test_threshold_with_an_even_number_of_levels(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = whole(source="digits", binarize="threshold", levels=18)  # the middle is 8.5
    np.testing.assert_array_equal(data["train"].batch().flatten(1).numpy(), digits[0] > 8.5)


def check_frequencies(ones: Tensor, reads: int, levels: np.ndarray) -> None:
    """Whether `ones` [N, D], counted over `reads` draws, fit Bernoulli(level / 16), level by level.

    Draws are independent, so the count of a level is binomial: 5 standard deviations are exceeded once in 1.7
    million times, and the seeds are fixed. 15 levels are tested.
    """
    counts = ones.numpy().reshape(levels.shape)
    for level in range(17):
        where = levels == level
        trials, p = int(where.sum()) * reads, level / 16
        total = float(counts[where].sum())
        assert abs(total - trials * p) <= 5 * math.sqrt(trials * p * (1 - p)), level


def test_dynamic_binarization_draws_bernoulli_at_every_read(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = whole(source="digits", binarize="dynamic")
    assert data.spec == DataSpec((1, 8, 8), "binary", 2)
    split = data["train"]
    generator = torch.Generator().manual_seed(0)
    reads = [split.batch(None, generator) for _ in range(40)]
    assert all(set(read.unique().tolist()) == {0.0, 1.0} for read in reads)
    check_frequencies(torch.stack(reads).sum(0), 40, digits[0])
    # Two reads of a pixel are independent: they agree with probability p^2 + (1 - p)^2.
    p = torch.from_numpy(digits[0] / 16).float()
    agree = (p**2 + (1 - p) ** 2).double()
    found = (reads[0] == reads[1]).flatten(1).double()
    assert abs((found - agree).sum()) < 5 * (agree * (1 - agree)).sum().sqrt()


def test_dynamic_binarization_is_replayable_and_demands_a_generator() -> None:
    split = load(DataConfig(binarize="dynamic"))["train"]
    index = torch.arange(50)
    a, b, c = (split.batch(index, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    with pytest.raises(ValueError, match="Generator"):
        split.batch(index)


def test_held_out_splits_of_dynamic_data_are_drawn_once() -> None:
    a, b = load(DataConfig(binarize="dynamic")), load(DataConfig(binarize="dynamic"))
    static = load(DataConfig(binarize="static"))
    for name in ("validation", "test"):
        assert torch.equal(a[name].batch(), a[name].batch())
        assert torch.equal(a[name].batch(), b[name].batch())
        assert torch.equal(a[name].batch(), static[name].batch())
    other = load(DataConfig(binarize="dynamic", seed=1))
    assert not torch.equal(a["test"].batch(), other["test"].batch())


def test_static_binarization_is_one_draw(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = whole(source="digits", binarize="static")
    assert data.spec == DataSpec((1, 8, 8), "binary", 2)
    split = data["train"]
    assert torch.equal(split.batch(), split.batch())
    check_frequencies(split.batch(), 1, digits[0])
    other = whole(source="digits", binarize="static", seed=1)["train"]
    assert not torch.equal(split.batch(), other.batch())


def test_draws_are_independent() -> None:
    """Equal pictures of fair coins: rows, neighbouring pixels and pixels four apart tell nothing of each other."""
    fixed = Split(torch.full((4096, 64), 8, dtype=torch.uint8), scale=16, dynamic=True).fixed(0).batch()
    assert len(fixed.unique(dim=0)) == 4096  # two equal rows: probability 5e-13
    for distance in (1, 2, 3, 4):
        agreement = (fixed[:, distance:] == fixed[:, :-distance]).float().mean().item()
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(4096 * (64 - distance))


@pytest.mark.parametrize("level", [0, 1, 2, 128, 254, 255])
def test_frequency_of_one_level_of_256(level: int) -> None:
    """4 million draws: 5 standard deviations are 5e-5 ... 1.3e-3 of probability; 0 and 255 are certain."""
    split = Split(torch.full((4_000, 1_000), level, dtype=torch.uint8), scale=255, dynamic=True)
    p, n = level / 255, 4_000_000
    assert abs(split.fixed(1).batch().double().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / n)


def test_odd_sizes_are_drawn_too() -> None:
    for n in range(1, 10):
        split = Split(torch.full((1, n), 255, dtype=torch.uint8), scale=255, dynamic=True)
        assert split.batch(None, torch.Generator()).tolist() == [[1.0] * n]


def test_splits_share_no_random_numbers() -> None:
    """Equal pictures in train, validation and test are binarized independently."""
    raw = torch.full((600, 64), 8, dtype=torch.uint8)
    division: Division = {"train": slice(0, 200), "validation": slice(200, 400), "test": slice(400, 600)}
    data = prepare(Examples(raw, 17, division), DataConfig(binarize="static"))
    a, b, c = (data[name].batch() for name in division)
    for x, y in ((a, b), (a, c), (b, c)):
        agreement = (x == y).float().mean().item()  # 12,800 fair coins: standard deviation 0.0044
        assert abs(agreement - 0.5) < 5 * 0.0044


def test_fixed_draws_once_from_a_seed(digits: tuple[np.ndarray, np.ndarray]) -> None:
    dynamic = whole(source="digits", binarize="dynamic")["train"]
    a, b, c = dynamic.fixed(1), dynamic.fixed(1), dynamic.fixed(2)
    assert torch.equal(a.batch(), b.batch()) and not torch.equal(a.batch(), c.batch())
    assert torch.equal(a.batch(), a.batch())
    assert a.labels is not None and a.labels.tolist() == digits[1].tolist()
    check_frequencies(a.batch(), 1, digits[0])
    plain = whole(source="digits")["train"]
    assert plain.fixed(1) is plain and a.fixed(9) is a


def test_already_binary_data_stay_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((50, 6)) < 0.4
    np.save(tmp_path / "x.npy", values)
    for binarize in ("none", "threshold", "static", "dynamic"):
        data = whole(source=str(tmp_path / "x.npy"), binarize=binarize)
        assert data.spec == DataSpec((6,), "binary", 2)
        np.testing.assert_array_equal(data["train"].batch().numpy(), values)


def test_real_data_in_the_unit_interval_are_probabilities(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((400, 50)).astype(np.float32)
    values[0] = 0.5
    np.save(tmp_path / "x.npy", values)
    threshold = whole(source=str(tmp_path / "x.npy"), binarize="threshold")
    assert threshold.spec == DataSpec((50,), "binary", 2)
    np.testing.assert_array_equal(threshold["train"].batch().numpy(), values > 0.5)
    dynamic = whole(source=str(tmp_path / "x.npy"), binarize="dynamic")["train"]
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([dynamic.batch(None, generator) for _ in range(50)]).mean(0).double().numpy()
    z = (mean - values) / np.sqrt(np.maximum(values * (1 - values), 1e-3) / 50)
    assert abs(z.mean()) < 5 / math.sqrt(values.size) and 0.95 < z.std() < 1.05


# -- the data set --------------------------------------------------------------------------------------------------


def test_fingerprint_tells_data_and_division_apart(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(20, 3)
    changed = values.copy()
    changed[7, 1] += 1
    other_shape = values.reshape(20, 1, 3)
    prints: dict[str, str] = {}
    for name, array in {"a": values, "copy": values.copy(), "changed": changed, "shape": other_shape}.items():
        np.save(tmp_path / f"{name}.npy", array)
        prints[name] = load(DataConfig(source=str(tmp_path / f"{name}.npy"))).fingerprint
    np.save(tmp_path / "wide.npy", values.astype(np.int32))
    prints["scale"] = load(DataConfig(source=str(tmp_path / "wide.npy"))).fingerprint
    np.savez(tmp_path / "labelled.npz", x=values, y=np.arange(20))
    prints["labels"] = load(DataConfig(source=str(tmp_path / "labelled.npz"))).fingerprint
    prints["seed"] = load(DataConfig(source=str(tmp_path / "a.npy"), seed=1)).fingerprint
    prints["fraction"] = load(DataConfig(source=str(tmp_path / "a.npy"), test=0.2)).fingerprint
    # the same two parts under two names
    prints["validation"] = load(DataConfig(source=str(tmp_path / "a.npy"), validation=0.1, test=0)).fingerprint
    prints["test"] = load(DataConfig(source=str(tmp_path / "a.npy"), validation=0, test=0.1)).fingerprint
    prints["binary"] = load(DataConfig(source=str(tmp_path / "a.npy"), binarize="threshold")).fingerprint
    assert prints.pop("copy") == prints["a"]
    assert len(set(prints.values())) == len(prints)
    assert all(len(p) == 64 for p in prints.values())


def test_missing_split_says_what_there_is() -> None:
    data = load(DataConfig(test=0))
    assert len(data["train"]) == 1797 - 180
    with pytest.raises(InputError, match=r"no test split.*only train, validation.*--split validation"):
        data["test"]


def test_sources_say_what_is_present(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    status = {name: status for name, _, status in sources()}
    assert status["digits"] == "built in"
    assert status["mnist"] == status["freyfaces"] == "to download"
    (tmp_path / "mnist").mkdir()
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz")
    for name in names:
        (tmp_path / "mnist" / name).touch()
    assert {name: status for name, _, status in sources()}["mnist"] == "to download"  # labels are missing
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").touch()
    assert {name: status for name, _, status in sources()}["mnist"] == "found"
