"""Comparisons: errors that count seeds and examples, and nothing subtracted that is not alike."""

import base64
import csv
import io
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from test_report import parse, path_points

import vaelab
from vaelab import pictures, report
from vaelab.comparison import compare, crossed_mean, figures, groups, holm, measure, tables
from vaelab.comparison.settings import letter
from vaelab.errors import InputError
from vaelab.evaluation.estimates import batches, estimate
from vaelab.evaluation.likelihood import examples_of
from vaelab.noise import generator
from vaelab.runs import Run, write_tensors

pytestmark = pytest.mark.usefixtures("without_reports")

SMALL = {"data.binarize": "threshold", "network.hidden": [16], "training.batch_size": 256, "training.threads": 1}

# -- means over seeds and examples ---------------------------------------------------------------------------------


def test_the_error_of_a_mean_by_hand() -> None:
    # Seed means 3 and 5, example means 2, 3 and 7, nothing left: 2 / 2 + 7 / 3.
    found = crossed_mean(np.array([[1.0, 2, 6], [3, 4, 8]]))
    assert found.mean == 4.0
    assert found.stderr == pytest.approx((1 + 7 / 3) ** 0.5)
    # Of the error's square 3/10 and 7/10 are of seeds and examples, with 1 and 2 degrees of freedom.
    assert found.quantile(0.025) == pytest.approx(0.3 * stats.t.ppf(0.975, 1) + 0.7 * stats.t.ppf(0.975, 2))
    assert found.p_value is not None
    assert found.quantile(found.p_value / 2) == pytest.approx(4 / (1 + 7 / 3) ** 0.5)
    # With one seed over the examples alone: variance 7, three of them. That is the paired t-test.
    found = crossed_mean(np.array([[1.0, 2, 6]]))
    assert found[:2] == (3.0, pytest.approx((7 / 3) ** 0.5))
    assert found.p_value == pytest.approx(stats.ttest_rel([4.0, 4, 9], [3.0, 2, 3]).pvalue)
    low, high = stats.t.interval(0.95, 2, 3.0, (7 / 3) ** 0.5)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert crossed_mean(np.array([[1.0], [2.0]]))[:2] == (1.5, None)
    assert [crossed_mean(np.full((2, 3), value)).p_value for value in (0.0, 1.0)] == [1.0, 0.0]


def test_the_error_is_the_spread_of_the_mean() -> None:
    # 4,000 draws of d = 1 + a_s + b_i + e_si. The mean's variance is 0.5²/3 + 2²/40 + 1.5²/120 = 0.2021.
    rng = np.random.default_rng(0)
    a, b = 0.5 * rng.standard_normal((4000, 3, 1)), 2 * rng.standard_normal((4000, 1, 40))
    found = [crossed_mean(d) for d in 1 + a + b + 1.5 * rng.standard_normal((4000, 3, 40))]
    means, errors = (np.array([one[i] for one in found], dtype=float) for i in (0, 1))
    assert means.var() == pytest.approx(0.2021, rel=0.08)
    assert (errors**2).mean() == pytest.approx(0.2021, rel=0.04)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.3, 1.0])
def test_false_alarms_are_as_rare_as_promised(seeds: int, of_seeds: float) -> None:
    """Of 1,000 true differences of 0, p < 0.05 in at most 5 %, up to the chance of 1,000 draws."""
    rng = np.random.default_rng(seeds)
    d = rng.standard_normal((1000, 1, 50)) + rng.standard_normal((1000, seeds, 50))
    found = [crossed_mean(one) for one in d + of_seeds * rng.standard_normal((1000, seeds, 1))]
    missed = [abs(one.mean) > (one.half_width or 0) for one in found]
    assert 0.005 < np.mean(missed) < 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


def test_p_values_are_adjusted_after_holm() -> None:
    # 4 × 0.01, 3 × 0.02, 2 × 0.04 and 1 × 0.03, which may not be below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_settings_have_letters() -> None:
    assert [letter(number) for number in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


# -- runs beside each other ----------------------------------------------------------------------------------------


def trained(
    path: Path, recipe: str = "vae", overrides: dict[str, Any] | None = None, *, seed: int = 0, epochs: int = 2
) -> Run:
    overrides = {**SMALL, **(overrides or {})}
    return vaelab.train(recipe, seed=seed, epochs=epochs, out=path, overrides=overrides, progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two settings with two seeds each, and an autoencoder on other data."""
    folder = tmp_path_factory.mktemp("compare")
    found = {
        f"{dim}-{seed}": trained(folder / f"{dim}-{seed}", "vae", {"model.latent_dim": dim}, seed=seed, epochs=6)
        for dim in (2, 6)
        for seed in (0, 1)
    }
    other = {"data.binarize": "none", "data.values": "real"}
    return found | {"other": trained(folder / "other", "autoencoder", other)}


@pytest.fixture(scope="module")
def four(runs: dict[str, Run]) -> list[Run]:
    return [run for name, run in runs.items() if name != "other"]


def log_px(run: Run, importance_samples: int) -> np.ndarray:
    """Log p(x) of each test example, straight from the estimator."""
    model = vaelab.load(run)
    parts = [
        estimate(model, x, importance_samples, 64, noise, y) for x, y, noise in batches(examples_of(run, "test"), 0)
    ]
    found = [part.log_px for part in parts]
    return torch.cat([one for one in found if one is not None]).numpy()


def test_numbers_are_those_of_evaluate_and_differences_are_paired(runs: dict[str, Run], four: list[Run]) -> None:
    found = compare(four, importance_samples=7).to_dict()
    assert [(one["label"], [run["seed"] for run in one["runs"]]) for one in found["settings"]] == [
        ("latent_dim=2", [0, 1]),
        ("latent_dim=6", [0, 1]),
    ]
    assert found["differing"] == ["model.latent_dim"]
    for one in found["settings"]:
        for run in one["runs"]:
            expected = vaelab.evaluate(run["run"], 7).to_dict()
            assert {key: run[key] for key in expected} == expected
    values = {name: log_px(run, 7) for name, run in runs.items() if name != "other"}
    small, large = (np.stack([values[f"{dim}-{seed}"] for seed in (0, 1)]) for dim in (2, 6))
    for one, expected in zip(found["settings"], (small, large), strict=True):
        assert one["numbers"]["log_px"] == pytest.approx(expected.mean())
        assert one["numbers"]["log_px_stderr"] == pytest.approx(crossed_mean(expected).stderr)
    (group,) = found["groups"]
    difference = group["differences"]["B"]["log_px"]
    expected = crossed_mean(large - small)
    assert difference["difference"] == pytest.approx(expected.mean)
    assert difference["difference_stderr"] == pytest.approx(expected.stderr)
    assert difference["p"] == difference["p_adjusted"] == pytest.approx(expected.p_value)
    assert difference["pairs"] == 2
    # Pairing is what makes it sharp: unpaired, the errors of both add up.
    unpaired = math.hypot(*(one["numbers"]["log_px_stderr"] for one in found["settings"]))
    assert difference["difference_stderr"] < 0.6 * unpaired
    elbo = group["differences"]["B"]["elbo"]["difference"]
    parts = [group["differences"]["B"][name]["difference"] for name in ("rate", "distortion")]
    assert elbo == pytest.approx(-sum(parts), abs=1e-9)


def test_seeds_that_only_one_setting_has_have_no_part_in_the_difference(runs: dict[str, Run]) -> None:
    some = [runs["2-0"], runs["2-1"], runs["6-1"]]
    difference = compare(some, importance_samples=7).groups[0].differences["B"]["log_px"]
    expected = crossed_mean((log_px(runs["6-1"], 7) - log_px(runs["2-1"], 7))[None])
    assert difference.mean == pytest.approx(expected)
    assert difference.seeds == 1
    # No seed in common: runs are independent, so they are paired in their order.
    difference = compare([runs["2-0"], runs["6-1"]], importance_samples=7).groups[0].differences["B"]["log_px"]
    assert difference.mean.mean == pytest.approx((log_px(runs["6-1"], 7) - log_px(runs["2-0"], 7)).mean())


def test_what_is_not_alike_is_never_subtracted(runs: dict[str, Run], tmp_path: Path) -> None:
    """Probabilities and densities; other examples; the same values under another likelihood kind; labels given."""
    others = {
        "grey": trained(tmp_path / "grey", "vae", {"data.binarize": "none"}),
        "cvae": trained(tmp_path / "cvae", "cvae"),
    }
    every = [runs["2-0"], runs["other"], *others.values()]
    found = compare(every, importance_samples=2, out=tmp_path / "compare.html")
    assert [[one.letter for one in group.settings] for group in found.groups] == [["A"], ["B"], ["C"], ["D"]]
    assert all(not group.differences for group in found.groups)
    assert any("cannot be compared" not in note and "can be compared" in note for note in found.notes)
    (note,) = [note for note in found.notes if "Not all numbers can be compared" in note]
    for reason in ("different examples", "some densities", "given its label"):
        assert reason in note
    # Grey levels as probabilities and as densities are the same numbers x.
    assert others["grey"].spec.kind == "levels" and runs["other"].spec.kind == "real"
    assert found.groups[1].settings[0].runs[0].examples == found.groups[2].settings[0].runs[0].examples
    numbers = found.to_dict()["settings"][1]["numbers"]
    assert "log_px" not in numbers and numbers["distortion"] is not None  # an autoencoder has no density of z
    page = parse((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert not [one for one in page.all("div") if one.attributes.get("aria-label", "").startswith("Differences of")]
    assert "Note: Not all numbers can be compared" in " ".join(str(found).split())


def test_estimates_that_are_not_to_be_trusted_are_told(four: list[Run]) -> None:
    for k, start in ((1, "1 importance sample is"), (30, "30 importance samples are")):
        found = compare(four, importance_samples=k)
        warned = [one.letter for one in found.settings if any(run.evaluation.warning for run in one.runs)]
        (note,) = [note for note in found.notes if "too few" in note]
        assert note.startswith(f"{start} too few for many of the examples ({', '.join(warned)})")
        assert f"--importance-samples {max(100, 10 * k)}." in note
    runs = [run.evaluation for one in compare(four, importance_samples=400).settings for run in one.runs]
    assert not any(run.warning for run in runs)
    assert not [note for note in compare(four, importance_samples=400).notes if "too few" in note]


def test_dynamic_and_static_binarization_are_measured_on_the_same_examples(tmp_path: Path) -> None:
    static, dynamic = (
        trained(tmp_path / name, "vae", {"data.binarize": name, "model.latent_dim": 2}, epochs=1)
        for name in ("static", "dynamic")
    )
    assert static.about["fingerprint"] != dynamic.about["fingerprint"]
    found = compare([static, dynamic], importance_samples=2)
    assert len(found.groups) == 1 and found.differing == ["data.binarize"]


def test_what_has_no_density_is_not_ranked(runs: dict[str, Run], tmp_path: Path) -> None:
    """An autoencoder among VAEs: log p(x) ranks the VAEs; the first setting is compared by distortion alone."""
    blind = trained(tmp_path / "blind", "autoencoder", {"model.latent_dim": 2})
    found = compare([blind, runs["2-0"], runs["6-0"]], importance_samples=2, out=tmp_path / "page.html")
    (group,) = found.groups
    means = [one.runs[0].evaluation.log_px for one in found.settings]
    assert group.metric == "log_px" and means[0] is None
    assert group.best.letter == ("B" if (means[1] or 0) > (means[2] or 0) else "C")
    assert [one.letter for one in group.unranked] == ["A"] and "A" not in {one.letter for one in group.rivals}
    assert tables.verdict(group).endswith("Not ranked, for lack of a finite one: A.")
    assert {key: list(these) for key, these in group.differences.items()} == {"B": ["distortion"], "C": ["distortion"]}
    drawn = [one["aria-label"] for one in parse((tmp_path / "page.html").read_text(encoding="utf-8")).all("div")
             if one.attributes.get("aria-label", "").startswith("Differences of")]  # fmt: skip
    difference = group.differences["B"]["distortion"].mean.mean
    assert len(drawn) == 1 and drawn[0].startswith(f"Differences of distortion to A: B {difference:+.2f}, C ")
    # A single VAE among autoencoders: distortion ranks them, and the least is best.
    (group,) = compare([blind, runs["2-0"]], importance_samples=2).groups
    errors = [one.runs[0].evaluation.distortion for one in group.settings]
    assert group.metric == "distortion" and group.best is group.settings[int(np.argmin(errors))] and not group.unranked


def test_numbers_that_are_not_finite_are_told_and_not_ranked(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = measure.measure

    def broken(run: Run, how: measure.Protocol) -> measure.Measured:
        made = real(run, how)
        if run.path.name == "2-0":
            for column in made.columns.values():
                column[3] = math.nan
        return made

    monkeypatch.setattr(sys.modules["vaelab.comparison.compare"], "measure", broken)
    found = compare([runs["2-0"], runs["6-0"]], importance_samples=2, out=tmp_path / "page.html")
    (group,) = found.groups
    assert group.best.letter == "B" and not group.rivals and [one.letter for one in group.unranked] == ["A"]
    assert "Not finite: A. Training has diverged there." in found.notes
    told = found.to_dict()
    assert told["settings"][0]["numbers"]["log_px"] is None and json.dumps(told, allow_nan=False)
    assert (
        "not finite" in str(found) and "± not finite" not in str(found) and max(map(len, str(found).splitlines())) <= 80
    )


def test_an_encoder_that_gives_one_code_has_a_bound(runs: dict[str, Run], tmp_path: Path) -> None:
    quantized = trained(tmp_path / "quantized", "vq-vae", {"network.hidden": 16, "network.channels": [4, 8]}, epochs=1)
    found = compare([runs["2-0"], quantized], importance_samples=5)
    assert len(found.groups) == 1
    columns = found.settings[1].runs[0].columns
    assert columns["log_px"] == pytest.approx(columns["elbo"], rel=1e-6)
    (note,) = [note for note in found.notes if "at least what it says" in note]
    assert note.startswith("log p(x) of B is")


def test_seeds_that_only_one_has_are_told(runs: dict[str, Run]) -> None:
    found = compare([runs["2-0"], runs["2-1"], runs["6-1"]], importance_samples=2)
    assert found.groups[0].differences["B"]["elbo"].seeds == 1
    difference = runs["6-1"], runs["2-1"]
    expected = [vaelab.evaluate(run, 2).elbo for run in difference]
    assert expected[0] is not None and expected[1] is not None
    assert found.groups[0].differences["B"]["elbo"].mean.mean == pytest.approx(expected[0] - expected[1])
    assert any(note.startswith("B: not the seeds of A.") for note in found.notes)
    assert any(note.startswith("One seed only (B):") for note in found.notes)
    found = compare([runs["2-1"], runs["6-1"]], importance_samples=2)
    assert not any("not the seeds of" in note for note in found.notes)
    assert any(note.startswith("One seed only:") for note in found.notes)


def test_a_run_that_was_stopped_is_told(runs: dict[str, Run], tmp_path: Path) -> None:
    """With two of six epochs; one that lost its patience has come to its end."""
    cut = Path(shutil.copytree(runs["6-0"].path, tmp_path / "cut"))
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    (cut / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines[:2]))
    found = compare([runs["2-0"], cut], importance_samples=2)
    assert f"Not trained to the end: {cut} (2 of 6 epochs). What was kept so far was measured." in found.notes
    assert not [note for note in compare([runs["2-0"], runs["6-0"]], importance_samples=2).notes if "the end" in note]
    told = [json.loads(line) for line in lines]
    worse = {**told[3], "validation": {**told[3]["validation"], "loss": told[0]["validation"]["loss"] + 1}}
    (cut / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [*told[:3], worse]))
    text = (cut / "config.toml").read_text()
    for patience, left in ((1, 0), (2, 2)):
        (cut / "config.toml").write_text(text.replace("[training]", f"[training]\npatience = {patience}"))
        assert measure.epochs_left(Run.open(cut)) == left


def test_models_without_use_of_their_latents_and_curves_that_still_fall_are_told(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    def made(name: str, *losses: float) -> Path:
        """A copy of a run whose validation loss took this course."""
        copy = Path(shutil.copytree(runs[name].path, tmp_path / name))
        lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        for line, loss in zip(lines, losses, strict=True):
            line["validation"]["loss"] = loss
        (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return copy

    level, falling = made("6-0", 90, 50, 45, 42, 40.2, 40), made("2-1", 90, 50, 45, 44, 43, 40)
    for run, factor in ((level, 0), (falling, 20)):
        state = {name: tensor.clone() for name, tensor in vaelab.load(run).state_dict().items()}
        state["posterior.head.weight"] *= factor
        write_tensors(run / "model.safetensors", state)
    notes = compare([level, falling], importance_samples=2).notes
    (silent,) = [note for note in notes if note.startswith(f"No latent is active: {level}. ")]
    (open_end,) = [note for note in notes if note.startswith("Still improving at the end of training:")]
    assert f"`vaelab doctor {level}`" in silent
    assert str(falling) in open_end and str(level) not in open_end and f"`vaelab doctor {falling}`" in open_end


def test_an_incomplete_run_is_refused_before_any_is_measured(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = Path(shutil.copytree(runs["6-0"].path, tmp_path / "cut"))
    (cut / "model.safetensors").unlink()

    def refuse(*_: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(sys.modules["vaelab.comparison.compare"], "measure", refuse)
    with pytest.raises(InputError, match=r"cut: incomplete run .* train it again, or --resume it"):
        compare([runs["2-0"], cut])
    (cut / "model.safetensors").write_bytes((runs["6-0"].path / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model.safetensors: damaged.*; delete .*cut and train it again"):
        compare([runs["2-0"], cut])


def test_a_copy_of_a_run_is_no_further_seed(runs: dict[str, Run], tmp_path: Path) -> None:
    shutil.copytree(runs["2-0"].path, tmp_path / "copy")
    found = compare([runs["2-0"], tmp_path / "copy", runs["6-0"]], importance_samples=2)
    assert [len(one.runs) for one in found.settings] == [1, 1]
    assert any("copy has the setting and the seed of" in note for note in found.notes)
    with pytest.raises(InputError, match="nothing to compare: .*copy has the setting and the seed of .*left out"):
        compare([runs["2-0"], tmp_path / "copy"], importance_samples=2)
    with pytest.raises(InputError, match="2-0: its data have no other split, only train, validation, test; choose"):
        compare([runs["2-0"], runs["6-0"]], split="other")
    with pytest.raises(InputError, match="given twice"):
        compare([runs["2-0"], runs["2-0"].path / "."])
    with pytest.raises(InputError, match="name two runs or more"):
        compare([runs["2-0"]])


def test_measurements_are_kept_and_follow_the_weights(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [Run.open(shutil.copytree(runs[name].path, tmp_path / name)) for name in ("2-0", "6-0")]
    for copy in copies:
        shutil.rmtree(copy.path / "evaluations", ignore_errors=True)
    first = compare(copies, importance_samples=3)
    (file,) = (copies[0].path / "evaluations").iterdir()

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "load", refuse)
        assert compare(copies, importance_samples=3).to_dict() == first.to_dict()
        with pytest.raises(AssertionError, match="measured again"):
            compare(copies, importance_samples=4)
    whole = file.read_bytes()
    for place in (*range(30, len(whole), len(whole) // 40), len(whole) - 40):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        file.write_bytes(flipped)
        measure._read(copies[0], file)  # pyright: ignore[reportPrivateUsage] # raises nothing
    file.write_bytes(whole[:-40])
    assert measure._read(copies[0], file) is None  # pyright: ignore[reportPrivateUsage]
    assert compare(copies, importance_samples=3).to_dict() == first.to_dict()
    with monkeypatch.context() as patch:  # a plugin that was edited
        patch.setattr(measure.plugins, "used", lambda _: {"mine.py": "other"})  # pyright: ignore[reportUnknownLambdaType]
        assert not measure.is_measured(copies[0], measure.Protocol("test", 3))
    assert measure.is_measured(copies[0], measure.Protocol("test", 3))
    weights = load_file(copies[0].path / "model.safetensors")
    weights["decoder.bias"] += 0.5
    write_tensors(copies[0].path / "model.safetensors", weights)
    changed = compare(copies, importance_samples=3).to_dict()
    assert changed["settings"][0]["runs"][0]["elbo"] == vaelab.evaluate(copies[0], 3).elbo
    assert changed["settings"][0]["runs"][0]["elbo"] < first.to_dict()["settings"][0]["runs"][0]["elbo"] - 0.1
    assert not file.exists() and len(list(file.parent.iterdir())) == 1


def test_the_best_is_told_with_what_is_not_told_apart(
    runs: dict[str, Run], four: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose log p(x) is better by 0.5 ± 0 than another's, and one that differs by noise alone."""
    real = measure.measure

    def shifted(run: Run, how: measure.Protocol) -> measure.Measured:
        made = real(run, how)
        start = real(runs["2-0"], how).columns["log_px"]
        noise = np.random.default_rng(0).standard_normal(len(start))
        by = {"2-0": 0.0, "6-0": 0.5, "2-1": 0.5 + noise - noise.mean()}
        made.columns["log_px"] = start + by[run.path.name]
        return made

    third = Run.open(shutil.copytree(runs["2-1"].path, tmp_path / "2-1"))
    text = (third.path / "config.toml").read_text()
    (third.path / "config.toml").write_text(text.replace("beta = 1.0", "beta = 2.0"))
    monkeypatch.setattr(sys.modules["vaelab.comparison.compare"], "measure", shifted)
    found = compare([runs["2-0"], runs["6-0"], Run.open(third.path)], importance_samples=2)
    (group,) = found.groups
    assert {group.best.letter, *(one.letter for one in group.rivals)} == {"B", "C"}
    assert "Not told apart from it" in tables.verdict(group)
    assert group.differences["B"]["log_px"].p_adjusted == 0.0


def test_the_verdict_names_what_is_worse() -> None:
    """By letter, for other settings may be compared in a group of their own."""
    a, b, d = (SimpleNamespace(letter=letter, label=f"setting {letter}") for letter in "ABD")
    group: Any = SimpleNamespace(metric="log_px", best=b, settings=[a, b, d], rivals=[], unranked=[])
    assert tables.verdict(group) == "Highest log p(x): B (setting B). Worse by more than chance explains: A, D."


def test_the_table_counts_its_differences_and_the_verdict_all_pairs(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C is the best. C - A has p = 0.03, the largest of the two in the table, but not of the three pairs."""
    real = measure.measure

    def shifted(run: Run, how: measure.Protocol) -> measure.Measured:
        made = real(run, how)
        start = real(runs["2-0"], how).columns["log_px"]
        n = len(start)
        basis = np.linalg.qr(np.vstack([np.ones(n), np.random.default_rng(0).standard_normal((2, n))]).T)[0].T
        one, other = basis[1:] * math.sqrt(n - 1)  # of mean 0 and standard deviation 1, uncorrelated
        b, c = (stats.t.isf(p / 2, n - 1) / math.sqrt(n) for p in (0.01, 0.03))
        made.columns["log_px"] = start + {"2-0": 0.0, "6-0": 0.5 * (b + other), "2-1": c + one}[run.path.name]
        return made

    third = Run.open(shutil.copytree(runs["2-1"].path, tmp_path / "2-1"))
    text = (third.path / "config.toml").read_text()
    (third.path / "config.toml").write_text(text.replace("beta = 1.0", "beta = 2.0"))
    monkeypatch.setattr(sys.modules["vaelab.comparison.compare"], "measure", shifted)
    (group,) = compare([runs["2-0"], runs["6-0"], Run.open(third.path)], importance_samples=2).groups
    assert [group.differences[one]["log_px"].p_adjusted for one in "BC"] == pytest.approx([0.02, 0.03])
    assert group.best.letter == "C" and [one.letter for one in group.rivals] == ["A", "B"]
    assert "Not told apart from it, counting all 3 pairs: A, B." in tables.verdict(group)


class Drawn:
    """What `rivals` needs of a setting: its runs."""

    def __init__(self, letter: str, values: NDArray[np.float64]) -> None:
        self.letter = letter
        self.runs = [SimpleNamespace(columns={"log_px": values})]
        self.seeds = {0: self.runs[0]}


@pytest.mark.parametrize("settings", [3, 6])
def test_of_settings_that_are_alike_one_is_rarely_called_worse_than_the_best(settings: int) -> None:
    alarms, noise = 0, np.random.default_rng(settings)
    for _ in range(200):
        drawn: Any = [Drawn(str(number), noise.standard_normal(100)) for number in range(settings)]
        best = max(drawn, key=lambda one: one.runs[0].columns["log_px"].mean())
        alarms += len(groups._rivals(drawn, best, "log_px")) < settings - 1  # pyright: ignore[reportPrivateUsage]
    assert alarms / 200 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_of_settings_that_differ_the_worse_ones_are_told() -> None:
    noise = np.random.default_rng(0)
    drawn: Any = [Drawn(str(number), noise.standard_normal(100) - number) for number in (0, 0.1, 2)]
    rivals = groups._rivals(drawn, drawn[0], "log_px")  # pyright: ignore[reportPrivateUsage]
    assert rivals == [drawn[1]]


# -- what is shown -------------------------------------------------------------------------------------------------


def test_the_terminal_is_80_wide(four: list[Run], runs: dict[str, Run]) -> None:
    text = str(compare([*four, runs["other"]], importance_samples=2))
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    found = compare(four, importance_samples=2)
    for one in found.to_dict()["settings"]:
        value, error = one["numbers"]["log_px"], one["numbers"]["log_px_stderr"]
        assert f"{report.rounded(value, error)} ± {report.rounded(error, error)}" in words


def test_a_wide_table_goes_on_below() -> None:
    text = tables.table(
        ["", "setting", "one", "two"], [["A", "first", "1" * 9, "2"], ["B", "x" * 40, "3", "4"]], width=20
    )
    assert text.splitlines() == [
        "   setting",
        "A  first",
        "B  xxxxxxxxxxxxxxxx…",
        "",
        "         one  two",
        "A  111111111    2",
        "B          3    4",
    ]


def test_a_number_and_its_p_stay_together() -> None:
    text = tables.table(
        ["", "setting", "rate", "p", "ELBO", "p"], [["B", "b", "+1", "0.1", "−2", "0.2"]], width=26, together=2
    )
    assert text.splitlines() == ["   setting  rate    p", "B  b          +1  0.1", "", "   ELBO    p", "B    −2  0.2"]


def test_many_keys_are_told_in_sentences(runs: dict[str, Run]) -> None:
    """The first setting whole; of the others what is different, each with its value."""
    found = compare([runs["2-0"], runs["other"]], importance_samples=2)
    lines = str(found).split("\n\n")[1].splitlines()
    assert lines[0] == "Keys of A, and those that are different in the others"
    (start,) = [place for place, line in enumerate(lines) if line.startswith("B  ")]
    words = [" ".join(part)[3:].split() for part in (lines[1:start], lines[start:])]
    names = [key.rpartition(".")[2] for key in found.differing]
    for setting, told in zip(found.settings, words, strict=True):
        values = {key: value for key, value in setting.keys.items() if key in found.differing}
        assert sorted(word.partition("=")[2] for word in told) == sorted(values.values())
    assert len(names) > 8 and "values=real" in words[1] and "values=auto" in words[0]


def test_the_csv_has_a_line_a_setting(four: list[Run], tmp_path: Path) -> None:
    found = compare(four, importance_samples=2, csv=tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["model.latent_dim"] for row in rows] == ["2", "6"]
    told = found.to_dict()
    for row, one in zip(rows, told["settings"], strict=True):
        for key in ("log_px", "log_px_stderr", "rate", "distortion_stderr"):
            assert float(row[key]) == one["numbers"][key]
        bits = -one["numbers"]["log_px"] / (64 * math.log(2))
        assert float(row["bits_per_dim"]) == pytest.approx(bits)
    assert rows[0]["log_px_difference"] == ""
    assert float(rows[1]["log_px_difference"]) == told["groups"][0]["differences"]["B"]["log_px"]["difference"]


def test_the_page_shows_what_was_found(runs: dict[str, Run], four: list[Run], tmp_path: Path) -> None:
    found = compare([*four, runs["other"]], importance_samples=2, out=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = parse(html)
    ids = [one["id"] for one in page.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    assert not [one for one in page.all("img") if not one["src"].startswith("data:image/png;base64,")]
    assert "http" not in html.replace("http://www.w3.org", "")
    cells = [cell.text for table in page.all("table") for cell in table.all("td")]
    for one in found.to_dict()["settings"][:2]:
        value, error = one["numbers"]["elbo"], one["numbers"]["elbo_stderr"]
        assert f"{report.rounded(value, error)} ± {report.rounded(error, error)}" in cells
    assert all(str(run) in cells for run in (*four, runs["other"]))
    assert all(one["tabindex"] == "0" for one in page.all("div") if one.attributes.get("class") == "scroll")
    # The curves: a line a run, in two styles; at the end, the run's last validation ELBO.
    (figure,) = [
        one for one in page.all("div") if one.attributes.get("aria-label", "").startswith("Line plot of the ELBO")
    ]
    lines = [one for one in figure.all("path") if "stroke-width: 1.6" in one.attributes.get("style", "")]
    drawn = [path_points(one) for one in lines]
    ends = np.array([points[-1, 1] for points in drawn if len(points) == 6])
    truth = np.array([run.metrics()[-1]["validation"]["elbo"] for run in four])
    assert len(ends) == 4
    assert np.corrcoef(ends, truth)[0, 1] == pytest.approx(-1, abs=1e-4)  # SVG counts downward
    # The plane: a marker a setting of the group that has a rate.
    assert len([one for one in page.all("div") if one.attributes.get("aria-label", "").startswith("Rate against")]) == 1


def painted(monkeypatch: pytest.MonkeyPatch, figure: Callable[[], Any]) -> list[Any]:
    """The error bars that a figure draws: point, x interval, y interval; None where there is no bar."""
    axes = Figure().add_subplot()

    def draw(_name: str, _height: int, paint: Callable[[Any], None]) -> None:
        paint(axes)

    monkeypatch.setattr(figures, "draw", draw)
    figure()
    found: list[Any] = []
    for bars in axes.containers:
        point, _, lines = bars
        assert isinstance(bars, ErrorbarContainer)
        ends = [line.get_segments()[0] for line in lines]
        across, up = (
            next((end[:, axis] for end in ends if np.ptp(end[:, axis]) > np.ptp(end[:, 1 - axis])), None)
            for axis in (0, 1)
        )
        found.append((point.get_xydata()[0], across, up))
    return found


def test_the_plane_and_the_differences_are_drawn_where_they_are(
    four: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = compare(four, importance_samples=2)
    told = comparison.to_dict()
    places = painted(monkeypatch, lambda: figures.plane(list(enumerate(comparison.settings)), "plane"))
    for (point, across, up), one in zip(places, told["settings"], strict=True):
        rate, rate_error, distortion, error = (
            one["numbers"][name] for name in ("rate", "rate_stderr", "distortion", "distortion_stderr")
        )
        assert point == pytest.approx([rate, distortion])
        assert across == pytest.approx([rate - rate_error, rate + rate_error])
        assert up == pytest.approx([distortion - error, distortion + error])
    (group,) = comparison.groups
    ((point, across, up),) = painted(monkeypatch, lambda: figures.differences(group, {"A": 0, "B": 1}, "differences"))
    mean = group.differences["B"]["log_px"].mean
    assert mean.half_width is not None and mean.stderr is not None and mean.half_width > 1.9 * mean.stderr
    assert point == pytest.approx([mean.mean, 0]) and up is None
    assert across == pytest.approx([mean.mean - mean.half_width, mean.mean + mean.half_width])


def test_the_pictures_are_those_of_the_models(four: list[Run], tmp_path: Path) -> None:
    """Rows: the same test examples, and what the first seed of each setting makes of them; and samples."""
    compare(four, importance_samples=2, out=tmp_path / "page.html")
    page = parse((tmp_path / "page.html").read_text(encoding="utf-8"))
    content = [base64.b64decode(one["src"].partition("base64,")[2]) for one in page.all("img")]
    shown = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in content]
    firsts = [vaelab.load(run) for run in four[::2]]
    examples = examples_of(four[0], "test")
    x = examples.batch(torch.linspace(0, len(examples) - 1, 10, dtype=torch.float64).round().long())
    with torch.no_grad():
        rows = [x, *(model.reconstruct(x) for model in firsts)]
        samples = [model.sample(10, generator=generator(0, "sample")) for model in firsts]
    for image, parts, names in ((shown[0], rows, ["x", "A", "B"]), (shown[1], samples, ["A", "B"])):
        expected = pictures.grid(torch.cat(parts), columns=10, row_labels=names).convert("RGB")
        assert np.array_equal(image, np.asarray(expected))
