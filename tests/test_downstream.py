"""Downstream: both probes and PCA against other implementations, and on data where the answer is known."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

import vaelab
from vaelab import cli
from vaelab.errors import InputError
from vaelab.evaluation.downstream import Downstream, Labeled, downstream, downstream_of
from vaelab.runs import Run

pytestmark = pytest.mark.usefixtures("without_reports")

Array = NDArray[np.float64]


def clusters(number: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """Four overlapping clusters [N, 3] and which one each point is of."""
    noise = np.random.default_rng(seed)
    y = noise.integers(0, 4, number)
    centers = np.array([[0.0, 0, 0], [2, 0, 1], [0, 2, -1], [2, 2, 0]])
    return centers[y] + noise.normal(size=(number, 3)) * np.array([1, 0.7, 0.4]), y


def in_pixels(z: Array, seed: int) -> Array:
    """Data [N, 12] in which z is mixed with noise."""
    mixing = np.random.default_rng(0).normal(size=(3, 12))
    return z @ mixing + 2 * np.random.default_rng(seed).normal(size=(len(z), 12)) + 5


@pytest.fixture(scope="module")
def parts() -> tuple[Labeled, Labeled]:
    (z, y), (z_test, y_test) = clusters(300, 1), clusters(200, 2)
    return Labeled(z, in_pixels(z, 3), y), Labeled(z_test, in_pixels(z_test, 4), y_test)


# -- other implementations -----------------------------------------------------------------------------------------


def told_linearly(x: Array, y: NDArray[np.int64], x_test: Array, c: float) -> NDArray[np.int64]:
    """Minimize Σ log-losses + |w|² / 2C; the offsets are not penalized."""
    mean, scale = x.mean(0), x.std(0)
    x, x_test = ((one - mean) / scale for one in (x, x_test))
    classes = y.max() + 1

    def loss(flat: Array) -> tuple[float, Array]:
        w = flat.reshape(x.shape[1] + 1, classes)
        scores = x @ w[:-1] + w[-1]
        log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        error = np.exp(log_p) - np.eye(classes)[y]
        gradient = np.vstack([x.T @ error + w[:-1] / c, error.sum(0)])
        return float(-log_p[np.arange(len(y)), y].sum() + (w[:-1] ** 2).sum() / 2 / c), gradient.ravel()

    found = minimize(loss, np.zeros((x.shape[1] + 1) * classes), jac=True, method="BFGS", options={"gtol": 1e-6})
    w = found.x.reshape(x.shape[1] + 1, classes)
    return (x_test @ w[:-1] + w[-1]).argmax(1)


def told_by_the_nearest(x: Array, y: NDArray[np.int64], x_test: Array) -> NDArray[np.int64]:
    return np.array([y[((x - one) ** 2).sum(1).argmin()] for one in x_test])


def components(x: Array, x_test: Array, number: int) -> tuple[Array, Array]:
    """By singular values of the centered training data."""
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:number]
    return (x - x.mean(0)) @ axes.T, (x_test - x.mean(0)) @ axes.T


def by_hand(train: Labeled, test: Labeled, c: float) -> dict[str, float]:
    z, x, y = (np.asarray(one) for one in (train.codes, train.data, train.labels))
    z_test, x_test, y_test = (np.asarray(one) for one in (test.codes, test.data, test.labels))
    features = {"latents": (z, z_test), "pca": components(x, x_test, z.shape[1])}
    found: dict[str, float] = {}
    for probe, tell in (("linear", lambda *one: told_linearly(*one, c)), ("neighbor", told_by_the_nearest)):
        right = {name: (tell(a, y, b) == y_test).astype(float) for name, (a, b) in features.items()}
        right["difference"] = right["latents"] - right["pca"]
        for name, each in right.items():
            found[f"{probe}_{name}"] = each.mean()
            found[f"{probe}_{name}_stderr"] = math.sqrt(each.var(ddof=1) / len(each))
    return found


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_probes_agree_with_other_implementations(parts: tuple[Labeled, Labeled], c: float) -> None:
    found = downstream(*parts, c=c).to_dict()
    expected = by_hand(*parts, c)
    for name, value in expected.items():
        # scikit-learn stops at a gradient of 1e-4, so an example on the border may fall to the other side.
        one_example = 1 / 200 if name.startswith("linear") else 0
        assert found[name] == pytest.approx(value, abs=one_example + 1e-9), name
    assert 0.5 < found["linear_pca"] < found["linear_latents"] < 0.95
    assert found["linear_difference_stderr"] < found["linear_latents_stderr"] + found["linear_pca_stderr"]
    assert (found["train"], found["test"], found["classes"], found["latents"], found["pca"]) == (300, 200, 4, 3, 3)
    most = np.bincount(parts[0].labels).argmax()
    assert found["chance"] == np.mean(np.asarray(parts[1].labels) == most) and found["C"] == c


# -- known answers -------------------------------------------------------------------------------------------------


def test_what_tells_all_and_what_tells_nothing() -> None:
    noise = np.random.default_rng(5)
    y, y_test = noise.integers(0, 5, 1000), noise.integers(0, 5, 1000)

    def telling(labels: NDArray[np.int64]) -> Array:  # its two largest components are the circle of labels
        turn = 2 * np.pi * labels / 5
        circle = np.stack([np.cos(turn), np.sin(turn)], axis=1) * 10
        return np.hstack([circle, np.zeros((len(labels), 3))]) + noise.normal(size=(len(labels), 5)) * 0.1

    def nothing(number: int, width: int) -> Array:
        return noise.normal(size=(number, width))

    found = downstream(Labeled(nothing(1000, 2), telling(y), y), Labeled(nothing(1000, 2), telling(y_test), y_test))
    for probe in (found.linear, found.neighbor):
        assert probe.pca == 1 and probe.pca_stderr == 0
        assert probe.latents == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 1000))
        assert probe.difference == pytest.approx(probe.latents - 1)
        assert probe.difference_stderr == pytest.approx(probe.latents_stderr)
    found = downstream(Labeled(telling(y), nothing(1000, 9), y), Labeled(telling(y_test), nothing(1000, 9), y_test))
    for probe in (found.linear, found.neighbor):
        assert probe.latents == 1 and probe.pca == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 1000))


def test_codes_that_are_the_components_make_no_difference(parts: tuple[Labeled, Labeled]) -> None:
    x, x_test = np.asarray(parts[0].data), np.asarray(parts[1].data)
    z, z_test = components(x, x_test, 4)
    turned = -z[:, ::-1], -z_test[:, ::-1]  # neither probe asks for order or sign
    found = downstream(Labeled(turned[0], x, parts[0].labels), Labeled(turned[1], x_test, parts[1].labels))
    for probe in (found.linear, found.neighbor):
        assert probe.difference == 0 and probe.difference_stderr == 0


def test_there_are_no_more_components_than_data_have(parts: tuple[Labeled, Labeled]) -> None:
    wide = [Labeled(np.hstack([np.asarray(one.data)] * 2), one.data, one.labels) for one in parts]
    found = downstream(*wide)
    assert (found.latents, found.pca) == (24, 12)
    few = Labeled(*(np.asarray(values)[:5] for values in (wide[0].codes, wide[0].data, wide[0].labels)))
    assert downstream(few, wide[1]).pca == 4
    assert "24 latents" in str(found) and "PCA, 12" in str(found)


def test_what_cannot_be_probed_is_refused(parts: tuple[Labeled, Labeled]) -> None:
    train, test = parts
    z, x, y = (np.asarray(one) for one in (train.codes, train.data, train.labels))
    for bad, complaint in [
        (Labeled(z, x, np.zeros(300, int)), "one label; there is nothing to tell"),
        (Labeled(z[:-1], x, y), r"train: codes \[299, 3\], data \[300, 12\], labels \[300\]"),
        (Labeled(z, x, y[:, None]), r"they must be \[N, D\], \[N, P\] and \[N\]"),
        (Labeled(np.where(z > 2, np.inf, z), x, y), "train: codes or data hold NaN or infinite"),
        (Labeled(z.astype(str), x, y), "train: codes: <U32 values; give real numbers"),
        (Labeled(z, x + 0j, y), "train: data: complex128 values"),
        (Labeled(z, x, y.astype(str)), "train: labels are <U21; number them"),
        (Labeled(z, x, y + 0.5), "train: labels are float64; number them"),
    ]:
        with pytest.raises(InputError, match=complaint):
            downstream(bad, test)


# -- of a run ------------------------------------------------------------------------------------------------------


def test_a_run_is_probed_by_its_posterior_means(
    digits_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["vaelab", "downstream", str(digits_run), "--c", "0.5", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0
        return capsys.readouterr().out

    model, data = vaelab.load(digits_run), digits_run.data()

    def labeled(name: str) -> Labeled:
        x = data[name].batch()
        with torch.no_grad():
            return Labeled(model.encode(x).mean, x.flatten(1), data[name].labels)  # type: ignore[arg-type]

    train, test = (Labeled(*(np.asarray(v) for v in vars(labeled(name)).values())) for name in ("train", "test"))
    found = downstream_of(digits_run, c=0.5)
    assert (found.split, found.train, found.test, found.latents, found.pca) == ("test", 1437, 180, 2, 2)
    for name, value in by_hand(train, test, 0.5).items():
        assert found.to_dict()[name] == pytest.approx(value, abs=2 / 180), name
    assert found.linear.latents > found.chance + 0.2
    assert found.to_dict() == json.loads(command("--json"))
    text = command("--limit", "100", "--split", "validation")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "validation: 100 examples, 10 labels; fitted on 100 training examples"
    fewer = downstream_of(digits_run, limit=100, split="validation", c=0.5)
    assert isinstance(fewer, Downstream) and (fewer.train, fewer.test, fewer.split) == (100, 100, "validation")
    assert f"{fewer.neighbor.difference:+.3f} ± {fewer.neighbor.difference_stderr:.3f}" in lines[3]


def test_runs_that_cannot_be_probed_are_refused(digits_run: Run) -> None:
    quick = {"network.hidden": (4,), "model.latent_dim": 2}
    np.save("unlabeled.npy", np.random.default_rng(0).normal(size=(60, 3)))
    unlabeled = vaelab.train("vae", data="unlabeled.npy", epochs=1, overrides=quick, progress=False)
    conditional = vaelab.train("cvae", data="digits", epochs=1, overrides=quick, progress=False)
    for run, how, complaint in [
        (digits_run, {"split": "train"}, "the probes are fitted on it"),
        (digits_run, {"limit": 1}, "limit=1: must be at least 2"),
        (digits_run, {"c": 0.0}, "C=0.0: must be a number above 0"),
        (digits_run, {"c": math.inf}, "C=inf"),
        (digits_run, {"split": "tset"}, "no tset split"),
        (unlabeled, {}, "has no labels"),
        (conditional, {}, "its encoder is told the label"),
    ]:
        with pytest.raises(InputError, match=complaint):
            downstream_of(run, **how)
