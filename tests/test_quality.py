"""Sample quality: every measure against an exact answer, and a whole run against a sick one."""

import errno
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import linalg, stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vaelab
from vaelab import cli
from vaelab.errors import InputError
from vaelab.evaluation import (
    SampleQuality,
    expected_coverage,
    frechet_bias,
    frechet_distance,
    gaussian_mmd,
    median_width,
    neighbor_scores,
    polynomial_mmd,
    sample_quality,
    two_sample_test,
)
from vaelab.evaluation.quality import arrays, features, summary, two_sample
from vaelab.evaluation.quality.record import METRICS
from vaelab.noise import generator
from vaelab.runs import Run, write_tensors

pytestmark = pytest.mark.usefixtures("without_reports")

Array = NDArray[np.float64]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Generator[None]:
    """Classifiers learn for a shorter time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_sample, "UPDATES", 200)
        patch.setattr(features, "UPDATES", 400)
        yield


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def test_samples_are_taken_from_whatever_holds_numbers() -> None:
    x, y = (np.round(8 * normal(30, 3, seed=seed)) for seed in (0, 1))
    expected = frechet_distance(x, y)
    tensors = torch.tensor(x, requires_grad=True), torch.tensor(y, dtype=torch.bfloat16)
    for held in ((x.tolist(), y.astype(np.int8)), tensors, (x[::-1], y[::-1])):
        assert frechet_distance(*held) == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances come in many small blocks."""
    monkeypatch.setattr(arrays, "PAIRS_AT_ONCE", 100)


# -- the Fréchet distance ------------------------------------------------------------------------------------------


def with_moments(n: int, mean: Array, covariance: Array, seed: int) -> Array:
    """A sample whose mean and covariance are exactly these."""
    x = normal(n, len(mean), seed=seed)
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_the_distance_of_diagonal_gaussians_is_that_of_means_and_scales() -> None:
    means, scales = (np.array([0.0, 1, -2]), np.array([1.0, 2, 3])), (np.array([1.0, 2, 0.5]), np.array([3.0, 0.1, 1]))
    x = with_moments(50, means[0], np.diag(scales[0] ** 2), seed=0)
    y = with_moments(80, means[1], np.diag(scales[1] ** 2), seed=1)
    exact = ((means[0] - means[1]) ** 2).sum() + ((scales[0] - scales[1]) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    for seed in range(5):  # of rank 3 in 40 dimensions: rounding must not make it negative
        flat = normal(200, 3, seed=seed) @ normal(3, 40, seed=seed + 1)
        assert frechet_distance(flat, flat) >= 0


@pytest.mark.parametrize("n", [100, 4])  # with 4 examples covariances have rank 3 of 6
def test_the_distance_of_any_gaussians_agrees_with_the_matrix_root_of_scipy(n: int) -> None:
    x, y = normal(n, 6) @ normal(6, 6, seed=1), normal(n + 3, 6, seed=2) @ normal(6, 6, seed=3) + 1
    c, d = np.cov(x.T), np.cov(y.T)
    root: Any = linalg.sqrtm(c @ d + (0 if n > 6 else 1e-13 * np.eye(6)))
    exact = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d) - 2 * np.trace(root).real
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-10 if n > 6 else 1e-5)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_the_bias_is_what_draws_of_one_gaussian_are_apart_on_average() -> None:
    scales = np.array([3.0, 1, 0.5, 0.1])
    found = [
        frechet_distance(normal(200, 4, seed=2 * s) * scales, normal(300, 4, seed=2 * s + 1) * scales)
        for s in range(1000)
    ]
    error = np.std(found) / math.sqrt(len(found))
    told = frechet_bias(with_moments(50, np.zeros(4), np.diag(scales**2), seed=0), 200, 300)
    assert error < 0.04 * told
    assert abs(np.mean(found) - told) < 3 * error
    # In one dimension: 1/N + 1/M of the variance for the means, and half as much for the scales.
    assert frechet_bias(np.array([[-1.0], [0.0], [1.0]]), 100, 50) == pytest.approx(1.5 * (1 / 100 + 1 / 50))


# -- the maximum mean discrepancy ----------------------------------------------------------------------------------


def pair_by_pair(x: Array, y: Array, k: Callable[[Array, Array], float]) -> float:
    def within(v: Array) -> float:
        return float(np.mean([k(a, b) for i, a in enumerate(v) for j, b in enumerate(v) if i != j]))

    return within(x) + within(y) - 2 * float(np.mean([k(a, b) for a in x for b in y]))


@pytest.mark.parametrize("blocks", [False, True])
def test_mmd_is_the_mean_over_pairs(blocks: bool, request: pytest.FixtureRequest) -> None:
    if blocks:
        request.getfixturevalue("few_pairs")
    x, y = normal(23, 3), 1.5 * normal(31, 3, seed=1) + 0.3
    exact = pair_by_pair(x, y, lambda a, b: float((a @ b / 3 + 1) ** 3))
    assert polynomial_mmd(x, y) == pytest.approx(exact, rel=1e-10)
    exact = pair_by_pair(x, y, lambda a, b: math.exp(-((a - b) ** 2).sum() / 2.7))
    assert gaussian_mmd(x, y, 2.7) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_mmd_is_unbiased(shift: float) -> None:
    x, y = (
        [normal(15, 1, seed=2 * s) for s in range(400)],
        [shift + normal(20, 1, seed=2 * s + 1) for s in range(400)],
    )
    # E[(x y + 1)³] = 1 + 3 E[x] E[y] + 3 E[x²] E[y²] + E[x³] E[y³]; E[e^(−(a − b)²/w)] = e^(−m²/(w + 4)) (1 + 4/w)^−½.
    first, second, third = shift, 1 + shift**2, shift**3 + 3 * shift
    polynomial = 4 + (1 + 3 * first**2 + 3 * second**2 + third**2) - 2 * (1 + 3 * second)
    gaussian = 2 * (1 + 4 / 3) ** -0.5 * (1 - math.exp(-(shift**2) / 7))
    for exact, found in (
        (polynomial, [polynomial_mmd(a, b) for a, b in zip(x, y, strict=True)]),
        (gaussian, [gaussian_mmd(a, b, 3.0) for a, b in zip(x, y, strict=True)]),
    ):
        assert abs(np.mean(found) - exact) < 3 * np.std(found) / math.sqrt(len(found))


def test_the_width_is_that_of_the_median_distance() -> None:
    x = normal(15, 4)
    apart = sorted(float(((a - b) ** 2).sum()) for i, a in enumerate(x) for b in x[:i])
    assert median_width(x) == pytest.approx(2 * apart[(len(apart) - 1) // 2])
    with pytest.raises(InputError, match="no width for a kernel"):
        median_width(np.ones((5, 2)))
    with pytest.raises(InputError, match="width=0: must be a number above 0"):
        gaussian_mmd(x, x, 0)


# -- nearest neighbors ---------------------------------------------------------------------------------------------


def by_definition(real: Array, generated: Array, k: int, k_coverage: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage, one example after the other."""

    def radius(v: Array, i: int, k: int) -> float:
        return sorted(math.sqrt(((v[i] - one) ** 2).sum()) for j, one in enumerate(v) if j != i)[k - 1]

    def inside(one: Array, v: Array, k: int) -> list[bool]:
        return [math.sqrt(((one - v[i]) ** 2).sum()) <= radius(v, i, k) for i in range(len(v))]

    precision = np.mean([any(inside(one, real, k)) for one in generated])
    recall = np.mean([any(inside(one, generated, k)) for one in real])
    balls = np.array([inside(one, real, k_coverage) for one in generated])
    return float(precision), float(recall), float(balls.sum() / k_coverage / len(generated)), float(balls.any(0).mean())


@pytest.mark.parametrize(
    ("real", "generated"),
    [
        (normal(25, 3), 0.5 * normal(30, 3, seed=1) + 0.8),
        (normal(25, 3) > 0, normal(30, 3, seed=1) > 0.5),  # full of ties
        (1e6 + normal(25, 3), 1e6 + 0.3 + normal(30, 3, seed=1)),
    ],
    ids=["real", "binary", "far"],
)
@pytest.mark.usefixtures("few_pairs")
def test_neighbors_are_counted_as_the_papers_define(real: Array, generated: Array) -> None:
    found = neighbor_scores(real, generated, precision_neighbors=2, coverage_neighbors=4)
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    exact = by_definition(real, generated, 2, 4)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(exact, abs=1e-12)
    assert found.density != 1


def test_density_and_coverage_of_one_distribution_are_as_expected() -> None:
    n, m, k = 40, 25, 3
    found = [
        neighbor_scores(normal(n, 2, seed=2 * s), normal(m, 2, seed=2 * s + 1), coverage_neighbors=k)
        for s in range(400)
    ]
    for values, exact in (
        ([one.density for one in found], 1.0),
        ([one.coverage for one in found], 1 - (39 / 64) * (38 / 63) * (37 / 62)),
    ):
        assert abs(np.mean(values) - exact) < 3 * np.std(values) / math.sqrt(len(values))
    assert expected_coverage(n, m, k) == pytest.approx(1 - (39 / 64) * (38 / 63) * (37 / 62))


# -- the classifier two-sample test --------------------------------------------------------------------------------


def test_two_samples_that_never_mix_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "UPDATES", 500)
    assert two_sample_test(normal(60, 3), normal(60, 3) + 100).stderr == 1 / 60  # all are told, and that is no proof
    found = two_sample_test(normal(60, 3), normal(80, 3, seed=1) + np.array([6, 0, 0]))
    assert found.n == 60 and found.accuracy > 0.98 and found.p_value < 1e-12
    # Same mean and covariance, other shape: for a network with a hidden layer that is a difference, too.
    signs = np.sign(normal(400, 1, seed=2))
    found = two_sample_test(normal(400, 1), signs + 0.01 * normal(400, 1, seed=3))
    assert found.accuracy > 0.8 and found.p_value < 1e-12
    assert found.stderr == pytest.approx(math.sqrt(found.accuracy * (1 - found.accuracy) / 400))


def test_the_p_value_is_that_of_fishers_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.zeros(len(x)), x[:, 0]], 1)

    monkeypatch.setattr(two_sample, "trained", lambda *_, **__: Sign())
    x, y = normal(41, 1), normal(41, 1, seed=1) + 0.4
    found = two_sample_test(x, y, seed=5)
    noise = generator(5, "two-sample")
    a, b = (v[torch.randperm(41, generator=noise).numpy()][21:, 0] for v in (x, y))
    table = [[(b > 0).sum(), (b <= 0).sum()], [(a > 0).sum(), (a <= 0).sum()]]
    assert found.n == 40 and found.accuracy == pytest.approx(((b > 0).sum() + (a <= 0).sum()) / 40)
    assert found.p_value == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)
    assert 0.001 < found.p_value < 0.5


def test_p_values_of_one_distribution_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "UPDATES", 10)
    found = [two_sample_test(normal(120, 2, seed=2 * s), normal(120, 2, seed=2 * s + 1), seed=s) for s in range(200)]
    accuracies = [one.accuracy for one in found]
    assert abs(np.mean(accuracies) - 0.5) < 3 * np.std(accuracies) / math.sqrt(200)
    for level in (0.05, 0.2, 0.5):
        share, error = np.mean([one.p_value <= level for one in found]), math.sqrt(level * (1 - level) / 200)
        # Counts are whole numbers, so a few p-values are a step too large; too small they never are.
        assert level - 3 * error - 0.08 < share < level + 3 * error, level


# -- errors --------------------------------------------------------------------------------------------------------


def test_standard_errors_are_the_spread_over_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "UPDATES", 1)
    scales = torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)

    def drawn(seed: int) -> Any:
        held, samples, real, others = (torch.from_numpy(normal(60, 3, seed=10 * seed + i)) * scales for i in range(4))
        sets = {"samples": 1.6 * samples + 0.4, "real": real, "reconstructions": 0.8 * others}
        return summary._scores(held, sets, 3.0, seed)[0]  # pyright: ignore[reportPrivateUsage]

    found = [drawn(seed) for seed in range(30)]
    for name in ("frechet", "mmd_polynomial", "mmd_gaussian", "density", "coverage", "precision"):
        for part in ("samples", "difference"):
            values = [getattr(one[name], part) for one in found]
            told = math.sqrt(np.mean([getattr(one[name], f"{part}_stderr") ** 2 for one in found]))
            assert 0.7 < told / np.std(values) < 1.4, (name, part, told, np.std(values))
    # Near 0, where MMD² is no mean over examples, they are on the careful side.
    values = [one["mmd_gaussian"].real for one in found]
    told = math.sqrt(np.mean([one["mmd_gaussian"].real_stderr ** 2 for one in found]))
    assert 1.2 < told / np.std(values) < 2.2


def test_accuracies_on_the_same_held_out_examples_are_compared_in_pairs() -> None:
    noise = np.random.default_rng(0)
    told: list[float] = []
    found: list[float] = []
    for _ in range(2000):
        held = noise.random(40) < 0.7  # the same answers for both
        tests = [
            two_sample.TwoSampleTest(
                0.0, 0.0, 0.0, 80, torch.from_numpy(np.concatenate([held, noise.random(40) < 0.7]))
            )
            for _ in range(2)
        ]
        found.append(float(tests[0].right.double().mean() - tests[1].right.double().mean()))
        told.append(summary._error_of_difference(*tests))  # pyright: ignore[reportPrivateUsage]
    assert np.mean(np.square(told)) == pytest.approx(np.var(found), rel=0.1)


def test_no_share_is_told_better_than_one_example_tells_it() -> None:
    x = torch.from_numpy(normal(20, 3))
    far = dict.fromkeys(summary.SOURCES, x + 1000)
    found = summary._scores(x, far, 1.0, 0)[0]  # pyright: ignore[reportPrivateUsage]
    for name in ("precision", "recall", "coverage"):
        assert found[name].samples == 0, name  # and so in all halves
        assert found[name].samples_stderr == found[name].difference_stderr == 1 / 20, name
    assert found["density"].samples_stderr == 0


# -- feature spaces ------------------------------------------------------------------------------------------------


def labeled(part: slice) -> features.Labeled:
    images, y = load_digits(return_X_y=True)
    return features.Labeled(torch.tensor(images[part] / 16, dtype=torch.float32), torch.tensor(y[part]))


def test_principal_components_are_those_of_the_covariance() -> None:
    x = torch.from_numpy(normal(200, 5) @ normal(5, 5, seed=1)).float()
    space = features.principal_components(x, 3)
    values, vectors = np.linalg.eigh(np.cov(x.double().numpy().T))
    assert space.dimensions == 3 and space.fitted_on == 200
    assert space.explained == pytest.approx(values[-3:].sum() / values.sum())
    new = torch.from_numpy(normal(7, 5, seed=2)).float()
    exact = (new.double().numpy() - x.double().numpy().mean(0)) @ vectors[:, :-4:-1]
    assert np.allclose(np.abs(space.transform(new).numpy()), np.abs(exact), atol=1e-5)
    assert features.principal_components(x[:3], 32).dimensions == 2


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_classifier_is_kept_and_carries_the_hash_of_its_file(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = labeled(slice(1000)), labeled(slice(1000, 1500))
    space = features.classifier(train, test, "data")
    (file,) = (data_folder / "classifiers").iterdir()
    assert space.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    weights = {name: value.numpy() for name, value in load_file(file).items()}

    def hidden(x: Tensor) -> Any:
        h = (x.numpy() - weights["shift"]) / weights["scale"]
        for layer in ("hidden.0", "hidden.2"):
            h = np.maximum(h @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
        return h

    h = hidden(test.x)
    exact = h / np.sqrt(np.square(hidden(train.x)).mean())
    assert np.allclose(space.transform(test.x).numpy(), exact, atol=1e-4)
    right = (h @ weights["head.weight"].T + weights["head.bias"]).argmax(1) == test.y.numpy()
    assert space.accuracy == pytest.approx(right.mean()) and space.accuracy > 0.9
    assert space.accuracy_stderr == pytest.approx(right.std() / math.sqrt(500))

    train_again = features.trained
    monkeypatch.setattr(features, "trained", lambda *_, **__: pytest.fail("it was kept"))
    assert features.classifier(train, test, "data").sha256 == space.sha256
    monkeypatch.setattr(features, "trained", train_again)
    monkeypatch.setattr(features, "UPDATES", 30)
    other = features.classifier(train, test, "data")
    assert other.sha256 != space.sha256 and len(list(file.parent.iterdir())) == 2
    # A damaged file is made again, with the same weights.
    (quick,) = set(file.parent.iterdir()) - {file}
    whole = quick.read_bytes()
    for damaged in (whole[:100], b"", b"\x80\x04N."):
        quick.write_bytes(damaged)
        assert features.classifier(train, test, "data").sha256 == other.sha256
        assert quick.read_bytes() == whole
    save_file({"head.bias": torch.zeros(3)}, quick)
    assert features.classifier(train, test, "data").sha256 == other.sha256


def test_a_folder_that_cannot_be_written_costs_time_alone(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "UPDATES", 10)
    failure = PermissionError(errno.EACCES, "denied")

    def refuse(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(features, "write_tensors", refuse)
    assert features.classifier(labeled(slice(200)), labeled(slice(200, 300)), "data").sha256
    assert not list((data_folder / "classifiers").iterdir())
    failure = OSError(errno.ENOSPC, "full")  # a full disk is told of
    with pytest.raises(OSError, match="full"):
        features.classifier(labeled(slice(200)), labeled(slice(200, 300)), "data")


def test_a_classifier_needs_two_labels(data_folder: Path) -> None:
    train = labeled(slice(50))
    with pytest.raises(InputError, match="one label, so there is nothing to learn"):
        features.classifier(train._replace(y=torch.zeros(50, dtype=torch.int64)), train, "data")


# -- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(digits_run: Run) -> SampleQuality:
    return sample_quality(digits_run)


def test_the_samples_are_those_of_sample_and_the_floor_is_real(digits_run: Run) -> None:
    found = sample_quality(digits_run, features="raw", seed=3)
    assert (found.n, found.shown, found.prior) == (180, "draw", "N(0, I)")
    data = digits_run.data()
    held = data["test"].batch().flatten(1).double().numpy()
    samples = vaelab.sample(digits_run, 180, draw=True, seed=3).x.flatten(1).double().numpy()
    assert set(np.unique(samples)) == {0.0, 1.0}
    score = found.scores["frechet"]
    assert score.samples == pytest.approx(frechet_distance(held, samples))
    assert found.scores["mmd_gaussian"].samples == pytest.approx(gaussian_mmd(held, samples, found.kernel_width))
    exact = neighbor_scores(held, samples)
    for name, value in vars(exact).items():
        assert found.scores[name].samples == pytest.approx(value)
    assert score.difference == pytest.approx(score.samples - score.real)
    # The floor's examples are of the fifth of the training split that no feature space is fitted on.
    others = torch.randperm(1437, generator=generator("quality"))[1150:]
    rows = others[torch.randperm(287, generator=generator(3, "quality"))][:180]
    real = data["train"].batch(rows).flatten(1).double().numpy()
    assert score.real == pytest.approx(frechet_distance(held, real))
    assert found.scores["coverage"].expected == expected_coverage(180, 180)


def test_a_sick_run_is_worse_than_a_trained_one(digits_run: Run, found: SampleQuality, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    shutil.copytree(digits_run.path, sick)
    weights = load_file(sick / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if name.startswith("decoder"):
            weights[name] = 0.1 * torch.randn(value.shape, generator=noise)  # as before training
    write_tensors(sick / "model.safetensors", weights)
    ill = sample_quality(sick)
    for name, sign in zip(METRICS, (1, 1, 1, -1, -1, -1, -1, 1), strict=True):
        one, other = found.scores[name], ill.scores[name]
        assert other.real == one.real and other.real_stderr == one.real_stderr
        assert sign * (other.samples - one.samples) > 0, name
        assert sign * other.difference > 2 * other.difference_stderr, name
    assert ill.p_values["samples"] < 1e-6 < 0.01 < ill.p_values["real"]
    # Real examples are as one distribution: each measure with a known expectation is near it.
    for name in ("mmd_polynomial", "mmd_gaussian", "density", "coverage", "told_apart"):
        score = found.scores[name]
        assert score.expected is not None and abs(score.real - score.expected) < 4 * score.real_stderr, name


def test_the_command_tells_what_the_function_finds(
    digits_run: Run, found: SampleQuality, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vaelab", "quality", str(digits_run), "--json"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(found.to_dict()))
    frechet = found.scores["frechet"]
    assert told["frechet"] == frechet.samples and told["frechet_real_stderr"] == frechet.real_stderr
    assert told["told_apart_p_value_real"] == found.p_values["real"]
    assert (told["features"], told["dimensions"], told["n"]) == ("pca", 32, 180)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in ("samples", "reconstructions", "real", "draws from p(x|z), z ~ N(0, I)"))
    huge = {name: replace(one, real=-1.2345e9, real_stderr=1e5) for name, one in found.scores.items()}
    lines = str(replace(found, scores=huge)).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(
        line[at - 1] == " " != line[at] for line in lines if line.startswith("precision") for at in (17, 33, 49, 65)
    )
    assert any("−1.2e9 ± 1e5" in line for line in lines if line.startswith("precision"))


def test_a_model_of_vectors_that_fits_comes_near_the_floor(tmp_path: Path) -> None:
    """x = W z + 0.3 ε. By default its samples are draws; their means lack ε, and are told apart at once."""
    noise = np.random.default_rng(0)
    x = noise.standard_normal((1500, 2)) @ noise.standard_normal((2, 6)) + 0.3 * noise.standard_normal((1500, 6))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    keys = {"model.latent_dim": 2, "network.hidden": [64], "training.batch_size": 64}
    run = vaelab.train(
        "sigma-vae", data=tmp_path / "x.npy", epochs=60, overrides=keys, out=tmp_path / "run", progress=False
    )
    found = sample_quality(run, features="raw", limit=140)
    assert found.shown == "draw"
    means = sample_quality(run, features="raw", limit=140, draw=False)
    drawn, mean = found.scores["recall"], means.scores["recall"]
    assert abs(drawn.difference) < 3 * drawn.difference_stderr and mean.difference < -5 * mean.difference_stderr


def test_means_and_draws_are_as_asked_for(digits_run: Run, found: SampleQuality) -> None:
    means = sample_quality(digits_run, draw=False, limit=100)
    assert (means.shown, means.n) == ("mean", 100) and "means of p(x|z)" in str(means)
    # Gray pictures among black and white ones.
    assert means.scores["told_apart"].samples > found.scores["told_apart"].samples


TINY = {"network.hidden": [16], "model.latent_dim": 3, "training.batch_size": 256}


def test_conditional_models_and_gray_levels(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "UPDATES", 50)
    monkeypatch.setattr(two_sample, "UPDATES", 10)
    run = vaelab.train("cvae", data="digits", epochs=1, out=tmp_path / "run", overrides=TINY, progress=False)
    found = sample_quality(run, features="classifier", limit=60)
    assert (found.n, found.shown, found.space.dimensions) == (60, "mean", 64)
    assert found.space.sha256 is not None and found.space.sha256 in str(found) and found.space.accuracy is not None
    (file,) = (data_folder / "classifiers").iterdir()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == found.space.sha256 == found.to_dict()["classifier_sha256"]
    assert max(map(len, str(found).splitlines())) <= 80
    samples = vaelab.sample(run, 60)
    assert samples.labels is not None
    rows = torch.randperm(180, generator=_after_others(0))[:60]
    held = run.data()["test"].batch(rows).flatten(1)
    exact = frechet_distance(found.space.transform(held), found.space.transform(samples.x.flatten(1)))
    assert found.scores["frechet"].samples == pytest.approx(exact)


def _after_others(seed: int) -> torch.Generator:
    """Where the held-out examples are drawn from: what is left of the training split comes first."""
    noise = generator(seed, "quality")
    torch.randperm(287, generator=noise)
    return noise


def test_an_autoencoder_is_sampled_as_sample_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "UPDATES", 10)
    run = vaelab.train("autoencoder", data="digits", epochs=1, out=tmp_path / "run", overrides=TINY, progress=False)
    assert "not trained to match it" in " ".join(str(sample_quality(run, limit=20)).split())


def test_what_cannot_be_measured_is_refused_in_one_line(digits_run: Run, tmp_path: Path) -> None:
    for keys, message in (
        ({"features": "inception"}, "features=inception: must be raw, pca or classifier"),
        ({"limit": 19}, "limit=19: must be at least 20"),
        ({"components": 0}, "components=0: must be at least 1"),
        ({"split": "train"}, "split=train: the model has seen it; compare with validation or test"),
        ({"split": "holdout"}, "no holdout split"),
    ):
        with pytest.raises(InputError, match=message):
            sample_quality(digits_run, **keys)
    np.save("few.npy", normal(100, 3))
    run = vaelab.train("vae", data="few.npy", epochs=1, out=tmp_path / "run", overrides=TINY, progress=False)
    with pytest.raises(InputError, match="have no labels to train it on; use pca or raw"):
        sample_quality(run, features="classifier")
    with pytest.raises(InputError, match="10 test examples, and 16 training ones to compare with: give at least 20"):
        sample_quality(run)
    with pytest.raises(InputError, match=r"samples \[3, 2\] and \[3, 3\]: they must be"):
        frechet_distance(np.ones((3, 2)), np.ones((3, 3)))
    with pytest.raises(InputError, match="give at least 6 examples of each"):
        neighbor_scores(np.ones((5, 2)), np.ones((9, 2)))
    with pytest.raises(InputError, match="NaN or infinite"):
        polynomial_mmd(np.ones((3, 2)), np.full((3, 2), np.nan))
    with pytest.raises(InputError, match="a sample: complex128 values; give real numbers"):
        polynomial_mmd(np.ones((3, 2)), np.ones((3, 2)) + 0j)
    with pytest.raises(InputError, match="2,049 features: the Fréchet distance takes at most 2,048"):
        frechet_distance(np.ones((3, 2049)), np.ones((3, 2049)))
