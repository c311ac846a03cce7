"""The doctor and a run: each illness is found on a run that was made to have it, with the right numbers, and none else.

A sick run is a small healthy one with changed weights, curves or data, so that what it has is known.
"""

import ast
import importlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from exact import PCA, digits_16, linear_vae
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import vaelab
from vaelab import cli, recipes
from vaelab import data as datasets
from vaelab.composition import compose, settle
from vaelab.config import DataConfig, parse_override, resolve
from vaelab.data import Dataset, Split
from vaelab.diagnosis import (
    Case,
    Diagnosis,
    Finding,
    check_latents,
    check_likelihood,
    check_scale,
    check_training,
    foreign,
    look,
    rate_weight,
    run_checks,
)
from vaelab.diagnosis.check_curves import longer
from vaelab.diagnosis.findings import ordered
from vaelab.evaluation.latents import active, latents
from vaelab.evaluation.likelihood import evaluate_model
from vaelab.likelihoods import DiscretizedLogistic
from vaelab.likelihoods import Gaussian as GaussianDensity
from vaelab.likelihoods import Laplace as LaplaceDensity
from vaelab.noise import generator
from vaelab.quantized import Quantized
from vaelab.runs import Run, load, write_tensors

pytestmark = pytest.mark.usefixtures("without_reports")

NOISE = 0.15  # σ² of a linear VAE
ILLNESSES = {illness.name for illness in run_checks.ILLNESSES}

Edit = Callable[[dict[str, Tensor]], None]


# -- runs to examine -----------------------------------------------------------------------------------------------


def quick(path: Path, recipe: str = "vae", **overrides: Any) -> Run:
    overrides = {"network.hidden": [32], "training.epochs": 1, "training.batch_size": 512, **overrides}
    return vaelab.train(recipe, out=path, overrides=overrides, progress=False)


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small VAE on binarized digits that has nothing but the tails of its importance weights."""
    keys = {"data.binarize": "threshold", "model.latent_dim": 10, "network.hidden": [64], "training.epochs": 70}
    return quick(tmp_path_factory.mktemp("well") / "run", **keys, **{"training.batch_size": 128})


@pytest.fixture(scope="module")
def case(well: Run) -> Case:
    return look(well, well.data())


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Case]:
    """A copy of a run with other weights, measured anew: `edited(run, edit)`."""

    def make(run: Run, edit: Edit, **keys: Any) -> Case:
        copy = Run.open(shutil.copytree(run.path, tmp_path / f"run-{len(list(tmp_path.iterdir()))}"))
        state = {name: tensor.clone() for name, tensor in load(copy).state_dict().items()}
        edit(state)
        write_tensors(copy.path / "model.safetensors", state)
        return replace(look(copy, copy.data()), **keys)

    return make


def found(case: Case, name: str, severity: str) -> Finding:
    """The finding of that name. All that a finding must have is there, and its remedy can be carried out."""
    diagnosis = Diagnosis(str(case.run), run_checks.examine(case))
    assert {finding.name for finding in diagnosis.findings} <= ILLNESSES
    finding = diagnosis[name]
    assert finding.severity == severity, str(finding)
    assert finding.message.endswith(".") and finding.evidence and finding.cause
    for one in diagnosis.findings:
        hold(one.remedy, case)
        json.dumps(one.to_dict(), allow_nan=False)
    return finding


def drawn(finding: Finding) -> bool:
    return finding.plot is not None and finding.plot.drawing.startswith("<svg") and finding.plot.caption.endswith(".")


def alarms(case: Case) -> set[str]:
    return {finding.name for finding in run_checks.examine(case) if finding.is_alarm}


# -- a remedy is a command that can be carried out -----------------------------------------------------------------

COMMANDS: Any = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
_loaded: dict[Any, Dataset] = {}


def hold(remedy: str, case: Case) -> None:
    """Parse a remedy as the command line does, and compose the model that it would train."""
    line = remedy.splitlines()[-1].rpartition("train again: ")[2]
    if not line.startswith("vaelab "):
        assert line.startswith(("Nothing to do: ", "Mend these examples")), remedy
        return
    _, name, *words = shlex.split(line)
    told = COMMANDS[name].make_context(name, list(words)).params
    if name == "evaluate":
        assert Path(told["run"]) == case.run.path and told["split"] in case.dataset.splits
    elif told["resume"]:
        assert told["out"] == case.run.path and not told["words"]
    else:
        assert told["out"] is None
        recipe, *more = [word for word in told["words"] if "=" not in word]
        assert not more
        overrides = dict(parse_override(word) for word in told["words"] if "=" in word)
        shorthands = {"data.source": told["data"], "training.epochs": told["epochs"], "training.seed": told["seed"]}
        overrides |= {key: value for key, value in shorthands.items() if value is not None}
        config = resolve(recipe, recipes.load(recipe).tables, overrides)
        if config.data not in _loaded:
            _loaded[config.data] = datasets.load(config.data)
        spec = _loaded[config.data].spec
        compose(settle(config, spec), spec)


def test_a_remedy_keeps_what_the_run_was_given_and_changes_what_it_must(case: Case) -> None:
    given = "prior.name=vamp prior.components=5 'network.hidden=[8, 9]'"
    command = f"vaelab train vae --data digits --epochs 7 --seed 3 {given} --out x"
    told = replace(case, run=replace(case.run, about={**case.run.about, "command": command}))
    again = shlex.split(told.again("prior.name=aggregate", "training.patience=10", "--epochs", "20"))
    kept = ["vaelab", "train", "vae", "--data", "digits", "--seed", "3", "network.hidden=[8, 9]"]
    assert again == [*kept, "prior.name=aggregate", "training.patience=10", "--epochs", "20"]
    assert told.again() == command.removesuffix(" --out x")
    one = shlex.split(told.again("prior.components=2"))
    assert [word for word in one if word.startswith("prior.")] == ["prior.name=vamp", "prior.components=2"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes.names())
def test_remedies_of_every_recipe_compose(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All findings that can be provoked on a model that was never trained."""
    for where, name, value in (
        (check_latents, "HOLES", -1.0),
        (check_latents, "DEAD", -1.0),
        (check_latents, "BOUNDS", (1, 2)),
        (rate_weight, "FAR_BETA", 1.0),
        (rate_weight, "NAMED_BETA", 1.0),
    ):
        monkeypatch.setattr(where, name, value)
    config = resolve(recipe, recipes.load(recipe).tables, {"data.source": "digits"})
    dataset = datasets.load(config.data)
    config = settle(config, dataset.spec)
    model = compose(config, dataset.spec).eval()
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    run = Run(Path("run"), config, dataset.spec, {"command": f"vaelab train {recipe} --data digits", "examples": sizes})
    split = "validation" if "validation" in dataset.splits else "train"
    examples = dataset[split].head(30).fixed(0)
    lines = [line(epoch, 100.0 - epoch, 90.0 + 9 * abs(epoch - 6), 1.0 + epoch, skipped=3) for epoch in range(1, 11)]
    lines = [told | {"step": 10 * told["step"]} for told in lines]  # beyond the end of any warm-up
    evaluation = evaluate_model(model, examples, 30, split=split)
    size = None if evaluation.effective_sample_size is None else 1.2
    units = None if evaluation.active_units is None else 0
    sick = replace(evaluation, scale_at_floor=0.5, effective_sample_size=size, active_units=units)
    means, kl = latents(model, examples)
    none = torch.zeros_like(active(means, model.latents))
    case = Case(run, model, lines, dataset, examples, split, 180, sick, means, kl, none)
    findings = run_checks.examine(case)
    assert {"skipped-updates", "over-fitting", "holes", "scale-at-floor"} <= {f.name for f in findings}
    for finding in findings:
        hold(finding.remedy, case)


# -- healthy runs --------------------------------------------------------------------------------------------------


def test_a_healthy_run_raises_no_alarm(case: Case) -> None:
    assert alarms(case) == set()


@pytest.mark.slow
@pytest.mark.parametrize("binarize", ["none", "dynamic"])
@pytest.mark.parametrize("recipe", ["vae", "conv-vae", "iwae", "vq-vae"])
def test_recipes_at_their_own_length_raise_no_alarm(recipe: str, binarize: str, tmp_path: Path) -> None:
    run = vaelab.train(
        recipe, data="digits", out=tmp_path / "run", overrides={"data.binarize": binarize}, progress=False
    )
    diagnosis = vaelab.doctor(run)
    assert diagnosis.alarms == [], str(diagnosis)


# -- how training went ---------------------------------------------------------------------------------------------


def line(epoch: int, train: float, validation: float, rate: float = 5.0, skipped: int = 0) -> dict[str, Any]:
    """A line of metrics.jsonl, of 100 updates an epoch."""
    told = {"train": {"loss": train, "rate": rate}, "validation": {"loss": validation, "rate": rate}}
    return {"epoch": epoch, "step": 100 * epoch, "seconds": 1.0, "skipped": skipped, **told}


def with_curves(case: Case, train: list[float], validation: list[float], rates: list[float] | None = None) -> Case:
    """The same run with other learning curves, as many epochs of them as were planned."""
    rates = rates or [5.0] * len(train)
    lines = [line(n, *values) for n, values in enumerate(zip(train, validation, rates, strict=True), start=1)]
    training = case.run.config.training.model_copy(update={"epochs": len(lines)})
    return replace(case, lines=lines, run=replace(case.run, config=replace(case.run.config, training=training)))


LEVEL = [90.0, 60.0, 50.0, 45.0, 42.0, 41.0, 40.5, 40.2, 40.1, 40.09]  # falls by 49.91, and by 0.01 in the last tenth


def test_level_curves_are_no_illness(case: Case) -> None:
    assert alarms(with_curves(case, LEVEL, LEVEL)) == set()


def test_over_fitting_by_the_gap(case: Case) -> None:
    """A validation loss that fell by 49.91, and ends 15 above the training loss."""
    sick = with_curves(case, [value - 15 for value in LEVEL], LEVEL)
    finding = found(sick, "over-fitting", "warning")
    assert alarms(sick) == {"over-fitting"}
    assert finding.evidence == pytest.approx({"best_epoch": 10, "epochs": 10, "gap": 15, "rise": 0, "fall": 49.91})
    assert "training.ema_decay=0.99" in finding.remedy and drawn(finding)
    tried = found(with_training(sick, ema_decay=0.99), "over-fitting", "warning")
    assert "More training examples" in tried.remedy
    assert alarms(with_curves(case, [value - 0.24 * 49.91 for value in LEVEL], LEVEL)) == set()


def test_a_gap_is_no_alarm_where_it_is_a_small_part_of_the_loss_or_validation_still_falls(case: Case) -> None:
    small = [30.2, 29.5, 29.1, 28.9, 28.8, 28.71, 28.65, 28.62, 28.61, 28.605]  # falls by 1.595
    found(with_curves(case, [value - 0.6 for value in small], small), "over-fitting", "info")
    falling = [100.0 - 5 * epoch for epoch in range(10)]
    assert alarms(with_curves(case, [value - 15 for value in falling], falling)) == {"under-training"}


def test_over_fitting_by_the_rise(case: Case) -> None:
    rising = [*LEVEL[:5], 43.0, 46.0, 49.0, 51.0, 52.0]  # lowest 42, after a fall of 48; ends 10 above: 21 %
    finding = found(with_curves(case, LEVEL, rising), "over-fitting", "warning")
    assert finding.evidence == pytest.approx({"best_epoch": 5, "epochs": 10, "gap": 0, "rise": 10, "fall": 48})
    less = [*LEVEL[:5], 43.0, 44.0, 45.0, 46.0, 51.0]  # 19 %
    assert found(with_curves(case, LEVEL, less), "over-fitting", "info").evidence["rise"] == pytest.approx(9)


def test_instability_is_told_from_over_fitting(case: Case) -> None:
    rising = [*LEVEL[:5], 43.0, 46.0, 49.0, 51.0, 52.0]
    sick = with_curves(case, [value - 1 for value in rising], rising)
    finding = found(sick, "unstable", "warning")
    assert alarms(sick) == {"unstable"}
    assert finding.evidence["rise"] == pytest.approx(10) and finding.evidence["training_rise"] == pytest.approx(10)
    assert "training.learning_rate=0.0003" in finding.remedy


def test_a_training_loss_that_is_noisy_is_not_a_rise(case: Case) -> None:
    """Few updates an epoch: the last epoch is off by chance. The validation loss is lowest after epoch 10 of 20."""
    turned = [*LEVEL[:9], 40.0, *(40.0 + 2 * epoch for epoch in range(1, 11))]
    training = [*LEVEL, *(40.0 - 0.1 * epoch for epoch in range(1, 10)), 40.3]
    found(with_curves(case, training, turned), "over-fitting", "warning")
    few = with_curves(case, training, turned)  # the same in 200 updates: that is not too few
    few = replace(few, lines=[told | {"step": 10 * told["epoch"]} for told in few.lines])
    assert alarms(few) == {"over-fitting"}


def test_under_training_by_the_fall(case: Case) -> None:
    falling = [100.0 - 5 * epoch for epoch in range(10)]  # the last tenth has a ninth of the fall
    sick = with_curves(case, falling, falling)
    finding = found(sick, "under-training", "warning")
    assert alarms(sick) == {"under-training"}
    expected = {"fall_at_the_end": 5, "fall": 45, "share": 1 / 9, "steps": 1000, "epochs": 10}
    assert finding.evidence == pytest.approx(expected)
    assert "--epochs 30" in finding.remedy
    slower = [*LEVEL[:9], 40.1 - 0.019 * 50.8]  # less than 2 %
    assert alarms(with_curves(case, slower, slower)) == set()


def test_under_training_by_the_number_of_updates(case: Case) -> None:
    sick = with_curves(case, [50.0, 50.0], [50.0, 50.0])
    finding = found(sick, "under-training", "warning")
    assert finding.evidence["steps"] == 200 and "updated 200 times only" in finding.message
    assert "--epochs 15" in finding.remedy  # 1,500 updates
    assert "learning_rate" not in finding.remedy and finding.cause == "too few epochs"


def test_under_training_by_the_learning_rate(case: Case) -> None:
    sick = with_curves(case, [50.0, 50.0], [50.0, 50.0])
    training = sick.run.config.training.model_copy(update={"learning_rate": 1e-7})
    sick = replace(sick, run=replace(sick.run, config=replace(sick.run.config, training=training)))
    finding = found(sick, "under-training", "warning")
    assert "training.learning_rate=0.001" in finding.remedy and finding.cause.startswith("too low a learning rate")


def test_under_training_by_a_low_rate_that_a_schedule_ended(case: Case) -> None:
    """The fall of a loss that follows the rate of a cosine: level at the end, and far from done."""
    paid = [0.5 * (1 + math.cos(math.pi * epoch / 20)) for epoch in range(20)]
    crawling = [100.0 - 4 * sum(paid[:epoch]) for epoch in range(20)]
    level = with_curves(case, crawling, crawling)
    assert alarms(level) == set()
    sick = with_training(level, learning_rate=9e-5)
    finding = found(sick, "under-training", "warning")
    late, whole = crawling[9] - crawling[19], crawling[0] - crawling[19]
    assert alarms(sick) == {"under-training"} and finding.evidence["share"] == pytest.approx(late / whole)
    assert "In the last 10 epochs of 20" in finding.message and "training.learning_rate=0.001" in finding.remedy
    assert (
        alarms(with_training(with_curves(case, [*LEVEL, *[40.0] * 10], [*LEVEL, *[40.0] * 10]), learning_rate=9e-5))
        == set()
    )


def test_a_rate_that_rises_at_the_end(case: Case) -> None:
    rates = [2.0, 5.0, 8.0, 9.0, 9.5, 9.8, 9.85, 9.9, 10.0, 10.4]
    sick = with_curves(case, LEVEL, LEVEL, rates)
    finding = found(sick, "rising-kl", "warning")
    assert alarms(sick) == {"rising-kl"}
    assert finding.evidence == pytest.approx({"before": 10.0, "end": 10.4, "rise": 0.4, "epochs": 1})
    assert "--epochs 30" in finding.remedy
    assert alarms(with_curves(case, LEVEL, LEVEL, [*rates[:9], 10.29])) == set()
    by_heart = with_curves(case, LEVEL, [*LEVEL[:5], 43.0, 46.0, 49.0, 51.0, 52.0], rates)
    assert found(by_heart, "rising-kl", "warning").remedy == found(by_heart, "over-fitting", "warning").remedy


def test_training_that_was_cut_off(case: Case) -> None:
    sick = replace(case, lines=case.lines[:50])
    finding = found(sick, "unfinished", "warning")
    assert finding.evidence == {"epochs": 50, "planned": 70}
    assert finding.remedy == f"vaelab train --resume --out {case.run}"
    assert "through 70 epochs" in found(replace(case, lines=[]), "unfinished", "info").message  # metrics.jsonl is gone
    nowhere = replace(case, lines=[], run=replace(case.run, path=case.run.path / "none"))
    (finding,) = check_training.training_end(nowhere)
    assert "before its first epoch" in finding.message and finding.severity == "warning"


def with_beta(case: Case, beta: float) -> Case:
    objective = case.run.config.objective.model_copy(update={"beta": beta})
    return replace(case, run=replace(case.run, config=replace(case.run.config, objective=objective)))


def with_training(case: Case, **keys: float) -> Case:
    training = case.run.config.training.model_copy(update=keys)
    return replace(case, run=replace(case.run, config=replace(case.run.config, training=training)))


def test_losses_of_a_warm_up_that_did_not_end_are_no_over_fitting(case: Case) -> None:
    """The training loss has a smaller β than that of validation, which rises with the rate."""
    objective = case.run.config.objective.model_copy(update={"warmup": 10_000})
    short = replace(case, run=replace(case.run, config=replace(case.run.config, objective=objective)))
    rising = [90.0, *(91.0 + epoch for epoch in range(9))]
    assert "over-fitting" in alarms(with_curves(case, LEVEL, rising))
    assert "over-fitting" not in alarms(with_curves(short, LEVEL, rising))


def test_a_row_of_values_far_too_large_is_blamed_for_skipped_updates(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "update 5 was skipped, for layer 0 gave NaN for 1 of 128 examples: training example 67"
    monkeypatch.setattr(Case, "first_skipped", told)
    sick = replace(case, lines=[*case.lines[:-1], {**case.lines[-1], "skipped": 20}])
    assert "training.learning_rate" in found(sick, "skipped-updates", "warning").remedy
    train = case.dataset["train"]
    raw = train.read().float() / train.scale
    raw[67] = 1e20
    dataset = replace(
        case.dataset, splits={**case.dataset.splits, "train": replace(train, raw=raw, scale=1, dynamic=False)}
    )
    finding = found(replace(sick, dataset=dataset), "skipped-updates", "warning")
    assert "Values of training example 67 reach 1e+20, where 1 is usual." in finding.message
    assert "leave them out" in finding.remedy and "training.learning_rate" not in finding.remedy


def test_a_command_is_broken_between_its_words_alone() -> None:
    command = "vaelab train vae 'network.hidden=[32, 32]' --data 'a folder of pictures/it is the data.npy' --epochs 9"
    told = str(Finding("name", "info", "message", remedy=command))
    shown = told[told.index("vaelab train") :]
    assert len(shown.splitlines()) > 1 and max(map(len, told.splitlines())) <= 80
    assert shlex.split(shown.replace("\\\n", "")) == shlex.split(command)


def test_training_that_diverged_is_not_resumed(case: Case) -> None:
    lines = [line(1, 90.0, 90.0), line(2, 60.0, 60.0, skipped=20)]
    sick = replace(case, lines=lines)
    remedy = found(sick, "unfinished", "warning").remedy
    assert "--resume" not in remedy and "training.learning_rate=0.0003 training.gradient_clip=1" in remedy
    assert alarms(sick) == {"unfinished", "skipped-updates"}
    training = case.run.config.training.model_copy(update={"learning_rate": 0.05})
    fast = replace(sick, run=replace(case.run, config=replace(case.run.config, training=training)))
    assert "training.learning_rate=0.001 " in found(fast, "skipped-updates", "warning").remedy


def test_training_that_stopped_by_itself(case: Case) -> None:
    training = case.run.config.training.model_copy(update={"patience": 4})
    patient = replace(case, run=replace(case.run, config=replace(case.run.config, training=training)))
    lines = [line(epoch, 50.0, 50.0 + abs(epoch - 20) / 1e3) for epoch in range(1, 25)]
    finding = found(replace(patient, lines=lines), "early-stopping", "info")
    assert finding.evidence == {"epochs": 24, "planned": 70}
    assert "after epoch 20 the validation loss did not fall for 4 epochs" in finding.message
    assert "unfinished" in alarms(replace(patient, lines=lines[:23]))
    few = [line(1, 50.0, 50.0), *(line(epoch, 49.0, 51.0) for epoch in range(2, 6))]
    few = [{**one, "step": one["epoch"]} for one in few]  # an update an epoch: to resume would do nothing
    remedy = longer(replace(patient, lines=few))
    assert "--resume" not in remedy and "training.patience=12" in remedy and "--epochs 1500" in remedy


def test_updates_that_were_skipped(case: Case) -> None:
    sick = replace(case, lines=[*case.lines[:-1], {**case.lines[-1], "skipped": 2}])
    finding = found(sick, "skipped-updates", "warning")
    assert alarms(sick) == {"skipped-updates"}
    assert finding.evidence == {"skipped": 2, "steps": 770, "first_skipped": ""}
    assert "training.learning_rate=0.0003 training.gradient_clip=1" in finding.remedy
    training = case.run.config.training.model_copy(update={"gradient_clip": 1.0})
    clipped = replace(sick, run=replace(case.run, config=replace(case.run.config, training=training)))
    assert "training.gradient_clip=0.1" in found(clipped, "skipped-updates", "warning").remedy
    training = case.run.config.training.model_copy(update={"precision": "float16"})
    half = replace(sick, run=replace(case.run, config=replace(case.run.config, training=training)))
    assert found(half, "skipped-updates", "info")


def test_rows_that_are_no_numbers_are_named_and_nothing_else_is_wrong(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    rows[::40] = np.nan
    np.save(tmp_path / "x.npy", rows)
    keys = {
        "data.stream": True,
        "data.seed": 1,
        "network.hidden": [4],
        "model.latent_dim": 2,
        "training.batch_size": 10,
    }
    run = vaelab.train("vae", data=tmp_path / "x.npy", epochs=8, out=tmp_path / "run", overrides=keys, progress=False)
    case = look(run, run.data())
    assert int(np.isnan(rows).sum()) > 0 and len(case.means) == case.evaluation.n < 60  # of 60 validation rows
    finding = found(case, "skipped-updates", "warning")
    assert finding.evidence["skipped"] == run.metrics()[-1]["skipped"] > 0
    assert re.search(r"the data are NaN or infinite in .*row \d+0 of", finding.message)
    assert finding.cause == "NaN or infinite values in the data"
    assert "not-finite" not in Diagnosis("", run_checks.examine(case))


def test_no_validation_examples(case: Case) -> None:
    splits = {name: split for name, split in case.dataset.splits.items() if name == "train"}
    alone = look(case.run, replace(case.dataset, splits=splits))
    assert found(alone, "no-validation", "info").evidence == {"training_examples": 1437}


def test_weights_that_are_no_numbers(well: Run, edited: Callable[..., Case]) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        state["decoder.layers.0.weight"][:2, :3] = math.nan

    sick = edited(well, spoil)
    finding = found(sick, "not-finite", "error")
    assert alarms(sick) == {"not-finite"}
    assert finding.evidence["weights"] == 6 and finding.evidence["of"] == sum(
        p.numel() for p in load(well).parameters()
    )
    assert math.isnan(finding.evidence["distortion"]) and finding.to_dict()["evidence"]["distortion"] is None
    assert "training.learning_rate=0.0001" in finding.remedy


# -- latents -------------------------------------------------------------------------------------------------------


def silence(state: dict[str, Tensor], latents: list[int], count: int = 10) -> None:
    """Give these latents the prior for every example."""
    for row in latents:
        for half in (0, count):
            state["posterior.head.weight"][half + row] = 0
            state["posterior.head.bias"][half + row] = 0


def test_collapse_of_all_latents(well: Run, edited: Callable[..., Case]) -> None:
    sick = edited(well, lambda state: silence(state, list(range(10))))
    finding = found(sick, "posterior-collapse", "error")
    assert finding.evidence == {
        "active": 0,
        "latents": 10,
        "silent": list(range(10)),
        "rate": pytest.approx(0, abs=1e-6),
    }
    assert "objective.warmup=256" in finding.remedy  # a third of 70 epochs of 11 updates
    assert drawn(finding) and finding.message.endswith("makes the same of every example.")
    assert sick.decoded and sick.model.labels is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sick.model, "labels", "given")
        (conditional,) = check_latents.collapse(sick)
    assert conditional.message.endswith("makes the same of every example of a label.")
    hardly = with_curves(sick, [50.0, 50.0], [50.0, 50.0])  # 200 updates: the remedy is more of them
    remedy = found(hardly, "under-training", "warning").remedy
    assert found(hardly, "posterior-collapse", "error").remedy == remedy and "--epochs 15" in remedy
    fixed = replace(hardly, model=load(hardly.run))
    fixed.model.likelihood.fixed_scale = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    (finding,) = check_latents.collapse(fixed)
    assert "likelihood.scale=learned" in finding.remedy
    heavy = with_beta(hardly, 20.0)  # more updates alone would not help
    remedy = found(heavy, "posterior-collapse", "error").remedy
    assert "objective.beta=1" in remedy and "--epochs 15" in remedy


def test_latents_that_carry_less_than_a_bit_in_all(case: Case) -> None:
    """An active one beside it does not make them a model of the data."""
    sick = replace(case, evaluation=replace(case.evaluation, rate=0.1, active_units=1))
    finding = found(sick, "posterior-collapse", "warning")
    assert "All together carry 0.1 nats" in finding.message and "objective.warmup=" in finding.remedy
    all_active = replace(case, evaluation=replace(case.evaluation, rate=0.49))
    assert "Not active" not in found(all_active, "posterior-collapse", "warning").message
    assert "posterior-collapse" not in Diagnosis(
        "", run_checks.examine(replace(case, evaluation=replace(case.evaluation, rate=0.51)))
    )


def test_of_a_model_that_is_hardly_trained_no_size_is_advised(well: Run, edited: Callable[..., Case]) -> None:
    four = edited(well, lambda state: silence(state, [0, 1, 3, 5, 7, 9]))
    assert found(four, "latent-dimension-large", "info") and found(four, "posterior-collapse", "info")
    names = {finding.name for finding in run_checks.examine(with_curves(four, [50.0, 50.0], [50.0, 50.0]))}
    assert "under-training" in names and not names & {"latent-dimension-large", "posterior-collapse"}


def test_collapse_of_some_latents_is_named(well: Run, edited: Callable[..., Case]) -> None:
    nine = edited(well, lambda state: silence(state, [0, 1, 2, 3, 5, 6, 7, 8, 9]))
    finding = found(nine, "posterior-collapse", "warning")
    assert finding.evidence["silent"] == [0, 1, 2, 3, 5, 6, 7, 8, 9] and finding.evidence["active"] == 1
    two = edited(well, lambda state: silence(state, [3, 7]))
    finding = found(two, "posterior-collapse", "info")
    assert "Not active, counted from 0: 3, 7." in finding.message
    model, x = load(well), two.examples.batch()
    with torch.no_grad():
        loc, log_variance = model.posterior.head(model.encoder(x)).double().chunk(2, -1)  # pyright: ignore
    q = Normal(loc, (0.5 * log_variance).exp())
    kl = kl_divergence(q, Normal(torch.zeros_like(loc), 1.0)).mean(0)
    kept = [latent for latent in range(10) if latent not in (3, 7)]
    assert finding.evidence["rate"] == pytest.approx(float(kl[kept].sum()), rel=1e-5)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A linear VAE with ten latents and a fixed σ, all digits for training; its weights are there to be replaced."""
    keys = {"data.values": "real", "data.validation": 0.0, "data.test": 0.0, "network.name": "linear"}
    keys |= {"likelihood.name": "gaussian", "likelihood.scale": math.sqrt(NOISE), "model.latent_dim": 10}
    path = tmp_path_factory.mktemp("linear") / "run"
    return vaelab.train("vae", data="digits", epochs=1, out=path, overrides=keys, progress=False)


def with_columns(run: Run, edited: Callable[..., Case], columns: int) -> Case:
    """Probabilistic PCA's weights for that σ, of which so many columns are in use."""
    exact = linear_vae(PCA.of(digits_16()), 10, NOISE).state_dict()

    def edit(state: dict[str, Tensor]) -> None:
        for name in state:
            state[name] = exact[name].float().reshape(state[name].shape)
        state["decoder.layers.weight"][:, columns:] = 0
        silence(state, list(range(columns, 10)))

    return edited(run, edit)


def test_collapse_against_the_threshold_of_a_linear_vae(linear: Run, edited: Callable[..., Case]) -> None:
    """A linear VAE uses a latent for each eigenvalue of the covariance above σ² = 0.15: there are nine."""
    expected = int((np.linalg.eigvalsh(np.cov(digits_16().T, bias=True)) > NOISE).sum())
    assert expected == 9
    finding = found(with_curves(with_columns(linear, edited, 9), LEVEL, LEVEL), "posterior-collapse", "info")
    assert finding.evidence["linear_vae_uses"] == 9 and finding.evidence["silent"] == [9]
    finding = found(with_columns(linear, edited, 6), "posterior-collapse", "warning")
    assert finding.evidence["linear_vae_uses"] == 9 and finding.evidence["active"] == 6
    assert "A linear VAE's optimum uses 9" in finding.message


def plane(path: Path, scale: float, directions: int = 2, rows: int = 800) -> Path:
    """Values of that scale in 10 columns, on a plane of so many directions but for noise; none is noise alone."""
    noise = np.random.default_rng(0)
    x = noise.normal(size=(rows, directions)) @ noise.normal(size=(directions, 10)) + 0.3 * noise.normal(
        size=(rows, 10)
    )
    np.save(path, (scale * x).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A run on values near a plane, which two of its fifty latents follow."""
    folder = tmp_path_factory.mktemp("plane")
    data = plane(folder / "x.npy", 1.0, rows=2000)
    run = vaelab.train("vae", data=data, epochs=60, out=folder / "run", progress=False)
    return look(run, run.data())


def test_as_many_latents_as_the_data_have_directions_are_no_collapse(flat: Case) -> None:
    """σ² is the mean of the eigenvalues that are left, so half of these exceed it, by chance and to no avail."""
    assert flat.evaluation.active_units == 2
    finding = found(flat, "posterior-collapse", "info")
    assert finding.evidence["linear_vae_uses"] > 2 and "Beyond the first 2 none exceeds it by more" in finding.message
    one = replace(flat, evaluation=replace(flat.evaluation, active_units=1))
    assert found(one, "posterior-collapse", "warning").evidence["active"] == 1


def test_one_latent_is_enough_for_data_of_one_direction_without_noise(tmp_path: Path) -> None:
    """The errors of its reconstruction have a direction in common, for they are the fit's own."""
    noise = np.random.default_rng(0)
    x = noise.normal(size=(1500, 2)) @ noise.normal(size=(2, 8))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    keys = {"network.hidden": [64], "model.latent_dim": 2}
    run = vaelab.train("vae", data=tmp_path / "x.npy", epochs=60, out=tmp_path / "run", overrides=keys, progress=False)
    case = look(run, run.data())
    assert check_latents.left_over(case) > 1.5 and case.kl is not None and case.kl.min() > 1.5
    assert "latent-dimension-small" not in Diagnosis("", run_checks.examine(case))


def test_the_scale_of_many_columns_and_of_what_is_no_array(flat: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more numbers than torch.quantile takes. A table gets its advice in words."""
    x = 50 * torch.randn(2000, 9000, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(check_scale, "few", lambda *_: (x, None))
    assert check_scale.scale_of(flat) == pytest.approx(50, rel=0.02)
    data = flat.run.config.data.model_copy(update={"source": "x.csv"})
    table = replace(flat, run=replace(flat.run, config=replace(flat.run.config, data=data)))
    assert check_scale.scaled(table, 50.0).startswith("Divide the values by 100, and train again: vaelab train vae ")


def test_a_few_values_far_out_do_not_make_the_scale(tmp_path: Path) -> None:
    x = np.load(plane(tmp_path / "x.npy", 1.0))
    x[::200] = 1e6
    np.save(tmp_path / "x.npy", x)
    dataset = datasets.load(DataConfig(source=str(tmp_path / "x.npy")))
    run = SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(seed=0)))
    case: Any = SimpleNamespace(dataset=dataset, run=run, training_examples=dataset["train"].head)
    assert np.std(x, 0).min() > 1e4 and check_scale.scale_of(case) is None


def test_values_with_nothing_in_common_have_no_collapse_to_mend(tmp_path: Path) -> None:
    keys = {"network.hidden": [32], "model.latent_dim": 4}
    run = vaelab.train("vae", data=plane(tmp_path / "x.npy", 1.0, directions=0), epochs=40, out=tmp_path / "run",
                       overrides=keys, progress=False)  # fmt: skip
    finding = found(look(run, run.data()), "posterior-collapse", "warning")
    assert "no direction of the data stands out" in finding.cause and "warmup" not in finding.remedy


@pytest.mark.usefixtures("with_reports")
def test_values_far_from_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy is carried out as it is printed, and the latents come to life."""
    data = plane(tmp_path / "my x.npy", 1e-4)
    keys = {"network.hidden": [32], "model.latent_dim": 4}
    run = vaelab.train("vae", data=data, epochs=60, out=tmp_path / "run", overrides=keys, progress=False)
    case = look(run, run.data())
    assert case.evaluation.active_units == 0
    (first,) = check_scale.unscaled(case)
    shown = str(first).partition("remedy: ")[2].replace(" \\\n", " ")
    made, again = (line.strip() for line in shown.splitlines())
    subprocess.run([sys.executable, *shlex.split(made)[1:]], check=True)
    assert 10**-0.5 < np.median(np.load(tmp_path / "my x-scaled.npy").std(0)) < 10**0.5
    finding = found(case, "unscaled-data", "warning")
    assert finding.evidence["standard_deviation"] == pytest.approx(np.median(np.load(data).std(0)), rel=0.1)
    assert "cannot be below 0.001" in finding.message
    assert found(case, "posterior-collapse", "error").remedy == finding.remedy
    assert call(monkeypatch, capsys, *shlex.split(again)[1:], "--out", tmp_path / "mended")[0] == 0
    mended = Run.open(tmp_path / "mended")
    assert look(mended, mended.data()).evaluation.active_units >= 2


def test_too_few_latents(digits_run: Run, edited: Callable[..., Case]) -> None:
    """Two latents, with standard deviations that are a quarter of what they were: each says more by about log 4."""

    def narrow(state: dict[str, Tensor]) -> None:
        state["posterior.head.bias"][2:] -= 2 * math.log(4)

    case = edited(digits_run, narrow)
    finding = found(case, "latent-dimension-small", "warning")
    model, x = load(case.run), case.examples.batch()
    with torch.no_grad():
        loc, log_variance = model.posterior.head(model.encoder(x)).double().chunk(2, -1)  # pyright: ignore
        errors = (x - model.decode(loc.float()).mean).flatten(1).double().numpy()
    kl = kl_divergence(Normal(loc, (0.5 * log_variance).exp()), Normal(torch.zeros_like(loc), 1.0)).mean(0)
    errors = errors[:, errors.std(0) > 1e-6]
    largest = np.linalg.eigvalsh(np.corrcoef(errors.T))[-1] / (1 + math.sqrt(errors.shape[1] / len(errors))) ** 2
    expected = {"latents": 2, "least": float(kl.min()), "rate": float(kl.sum()), "left_over": largest}
    assert finding.evidence == pytest.approx(expected, rel=1e-2) and largest > 1.5
    assert "model.latent_dim=8" in finding.remedy


def test_latents_that_are_as_many_as_the_data_have_are_not_too_few(two_dimensional: Case) -> None:
    """x = W z + 0.3 ε: both latents are in full use, and what they leave are independent errors."""
    assert two_dimensional.kl is not None and float(two_dimensional.kl.min()) > 1.5
    assert check_latents.left_over(two_dimensional) < 1.2
    assert alarms(two_dimensional) == set()


@pytest.fixture(scope="module")
def two_dimensional(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, noise = tmp_path_factory.mktemp("two"), np.random.default_rng(0)
    z, w = noise.standard_normal((2000, 2)), noise.standard_normal((2, 10))
    np.save(folder / "x.npy", (z @ w + 0.3 * noise.standard_normal((2000, 10))).astype(np.float32))
    keys: dict[str, Any] = {"data.source": str(folder / "x.npy"), "model.latent_dim": 2, "training.epochs": 60}
    run = quick(folder / "run", **keys, **{"training.batch_size": 64, "network.hidden": [64]})
    return look(run, run.data())


def test_levels_of_which_few_occur(tmp_path: Path) -> None:
    """Whole numbers from 0 to 9, as bytes, are taken for grey levels of 256."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 10, (600, 5)).astype(np.uint8))
    run = quick(tmp_path / "run", **{"data.source": str(tmp_path / "x.npy")})
    finding = found(look(run, run.data()), "likelihood-misfit", "warning")
    assert (finding.evidence["levels"], finding.evidence["used"]) == (256, 10) and "data.levels=10" in finding.remedy
    run = quick(tmp_path / "told", **{"data.source": str(tmp_path / "x.npy"), "data.levels": 10})
    assert "likelihood-misfit" not in Diagnosis("", run_checks.examine(look(run, run.data())))


def test_one_or_two_latents_are_too_few_sooner_than_ten(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_latents, "left_over", lambda case: 2.0)

    def told(*nats: float) -> set[str]:
        units = replace(case.evaluation, active_units=len(nats), latent_dim=len(nats))
        return alarms(replace(case, kl=torch.tensor(nats), evaluation=units, active=torch.ones(len(nats)) > 0))

    assert told(0.9) == told(0.51, 0.8) == told(1.6, 2, 2) == {"latent-dimension-small"}
    assert told(0.49) == told(0.49, 2.0) == told(1.4, 2, 2) == set()


def test_too_many_latents(well: Run, edited: Callable[..., Case]) -> None:
    sick = edited(well, lambda state: silence(state, [0, 1, 2, 4, 6, 8]))
    finding = found(sick, "latent-dimension-large", "info")
    assert finding.evidence == {"latents": 10, "active": 4} and "model.latent_dim=6" in finding.remedy


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Run:
    keys = {"network.hidden": 32, "posterior.codes": 16, "prior.name": "categorical"}
    return quick(tmp_path_factory.mktemp("quantized") / "run", "vq-vae", **keys)


def test_codes_that_are_dead(quantized: Run, edited: Callable[..., Case]) -> None:
    def kill(state: dict[str, Tensor]) -> None:
        state["posterior.table"][3:11] = 1e4

    sick = edited(quantized, kill)
    finding = found(sick, "dead-codes", "warning")
    model = sick.model
    assert isinstance(model, Quantized)
    with torch.no_grad():
        features = model.encoder(sick.dataset["train"].batch()).unflatten(-1, (-1, model.posterior.channels))
    chosen = torch.cdist(features.flatten(0, 1).double(), model.posterior.codebook.double()).argmin(1)
    share = np.bincount(chosen.numpy(), minlength=16) / len(chosen)
    assert not share[3:11].any()
    perplexity = math.exp(-sum(p * math.log(p) for p in share if p))
    assert finding.evidence == {
        "dead": int((share == 0).sum()),
        "codes": 16,
        "perplexity": pytest.approx(perplexity, rel=1e-6),
    }
    assert f"posterior.codes={16 - finding.evidence['dead']}" in finding.remedy  # revival was on
    keys = sick.run.config.posterior.model_copy(update={"revive": 0.0})
    never = replace(sick, run=replace(sick.run, config=replace(sick.run.config, posterior=keys)))
    never.model.posterior.revive = 0.0  # pyright: ignore
    assert "posterior.revive=0.02" in found(never, "dead-codes", "warning").remedy


def test_holes_of_the_prior(well: Run, edited: Callable[..., Case]) -> None:
    def move(state: dict[str, Tensor]) -> None:
        state["posterior.head.bias"][0] += 30

    sick = edited(well, move)
    finding = found(sick, "holes", "warning")
    assert finding.evidence == {"share": 1.0, "draws": 1000, "neighbors": 5}
    assert "prior.name=aggregate" in finding.remedy and drawn(finding)
    diverged = replace(sick, lines=[line(1, 90.0, 90.0), line(2, 60.0, 60.0, skipped=20)])
    assert "holes" not in alarms(diverged)  # a prior is no remedy for that


def test_holes_of_a_prior_over_codes(quantized: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is the prior that learns; where that is there already, training longer."""
    monkeypatch.setattr(check_latents, "HOLES", -1.0)
    sick = look(quantized, quantized.data())
    (finding,) = check_latents.holes(sick)
    assert finding.remedy == sick.again("prior.name=autoregressive")
    config = quantized.config.with_part("prior", name="autoregressive")
    (finding,) = check_latents.holes(replace(sick, run=replace(quantized, config=config)))
    assert finding.remedy == longer(sick) != sick.again()


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 0.7, 2.5])
def test_the_share_of_like_neighbors_is_that_of_scikit_learn(dims: int, shift: float) -> None:
    noise = torch.Generator().manual_seed(dims)
    z, prior = torch.randn(200, dims, generator=noise) + shift, torch.randn(200, dims, generator=noise)
    both = torch.cat([z, prior]).double().numpy()
    nearest = NearestNeighbors(n_neighbors=6).fit(both).kneighbors(both[:200], return_distance=False)[:, 1:]
    share = check_latents.neighbors_alike(z, prior, noise)
    assert share == pytest.approx((nearest < 200).mean(), abs=1e-12)
    if not shift:
        assert share == pytest.approx(199 / 399, abs=0.05)


def test_equal_points_are_neighbors_in_random_order() -> None:
    """Of codes that are all the same, a draw's neighbors are half of either kind."""
    z = torch.zeros(400, 2)
    share = check_latents.neighbors_alike(z, z.clone(), torch.Generator().manual_seed(0))
    assert 0 < share < 1 and abs(share - 399 / 799) < 0.5
    shares = [
        check_latents.neighbors_alike(z, z.clone(), torch.Generator().manual_seed(seed)) for seed in range(1, 200)
    ]
    assert np.mean(shares) == pytest.approx(399 / 799, abs=0.05)


def test_importance_sampling_that_is_not_to_be_trusted(well: Run, edited: Callable[..., Case]) -> None:
    def narrow(state: dict[str, Tensor]) -> None:
        state["posterior.head.bias"][:10] += 1.5  # q(z|x) is elsewhere

    sick = edited(well, narrow)
    finding = found(sick, "importance-sampling", "warning")
    expected = vaelab.evaluate(sick.run, importance_samples=100, split="validation")
    assert expected.effective_sample_size is not None and expected.effective_sample_size < 3
    assert finding.evidence == {
        "effective_sample_size": pytest.approx(expected.effective_sample_size, rel=1e-6),
        "importance_samples": 100,
        "untrusted": pytest.approx(expected.untrusted, rel=1e-6),
    }
    assert finding.remedy.endswith("--split validation --method annealed --limit 100") and drawn(finding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sick.model.latents), "holds", "categories")  # which gradients cannot move
        (finding,) = check_latents.importance_sampling(sick)
    assert finding.remedy.endswith("--split validation --importance-samples 5000")
    heavy = with_beta(sick, 20.0)  # draws are no remedy for what the objective asked for
    finding = found(heavy, "importance-sampling", "warning")
    assert finding.remedy == found(heavy, "effective-beta", "warning").remedy and "counted 20 times" in finding.cause


def test_heavy_tails_of_importance_weights_are_no_alarm(case: Case) -> None:
    warned = replace(case.evaluation, untrusted=0.5, warning="warning: too few")
    finding = found(replace(case, evaluation=warned), "importance-sampling", "info")
    assert finding.evidence["untrusted"] == 0.5 and "50% of the examples" in finding.message
    trusted = replace(case.evaluation, untrusted=0.1, warning=None)
    assert "importance-sampling" not in Diagnosis("", run_checks.examine(replace(case, evaluation=trusted)))


# -- how much the rate counts --------------------------------------------------------------------------------------


def density(scale: float, kind: Any, noise: torch.Generator) -> tuple[Any, Tensor]:
    """A likelihood of fixed scale around some locations, and data around the same."""
    loc = torch.randn(300, 6, generator=noise)
    x = loc + 0.2 * torch.randn(300, 6, generator=noise)
    return kind(loc, torch.tensor(scale), event_ndim=1), x


@pytest.mark.parametrize("scale", [0.01, 0.2, 3.0])
def test_the_scale_that_fits_has_a_closed_form(scale: float) -> None:
    """Of a Gaussian the root mean squared error, and β = σ² / MSE; of Laplace's density the mean absolute error."""
    noise = torch.Generator().manual_seed(0)
    likelihood, x = density(scale, GaussianDensity, noise)
    error = (x - likelihood.loc).double()
    fits = rate_weight.fitting_scale(likelihood, x)
    assert fits == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)
    pulls = [rate_weight.pull(replace(likelihood, scale=torch.tensor(s)), x) for s in (fits, scale)]
    assert pulls[0] / pulls[1] == pytest.approx(scale**2 / float(error.square().mean()), rel=1e-4)
    likelihood, x = density(scale, LaplaceDensity, noise)
    size = float((x - likelihood.loc).abs().double().mean())
    assert rate_weight.fitting_scale(likelihood, x) == pytest.approx(size, rel=1e-5)
    assert rate_weight.pull(likelihood, x) == pytest.approx(1 / scale, rel=1e-6)


def test_the_scale_that_fits_a_discretized_logistic_is_that_of_a_grid() -> None:
    noise = torch.Generator().manual_seed(1)
    loc = torch.rand(200, 8, generator=noise)
    x = ((loc + 0.08 * torch.randn(200, 8, generator=noise)).clamp(0, 1) * 16).round() / 16
    likelihood = DiscretizedLogistic(loc, torch.tensor(1.0), 17, 1)
    grid = np.exp(np.linspace(math.log(0.02), math.log(0.2), 2000))
    best = max(
        grid, key=lambda scale: float(replace(likelihood, scale=torch.tensor(scale)).log_prob(x).double().mean())
    )
    assert rate_weight.fitting_scale(likelihood, x) == pytest.approx(best, rel=2e-3)


def test_a_beta_that_hides_in_a_fixed_scale(linear: Run, edited: Callable[..., Case]) -> None:
    """The errors of a linear VAE at its optimum are known: E‖x − x̂‖² = Σ min(λ, σ²), with an eigenvalue λ a latent."""
    well = with_columns(linear, edited, 10)
    x, likelihood = well.decoded
    error = float((x.double() - likelihood.mean.double()).square().mean())
    eigenvalues = PCA.of(digits_16()).eigenvalues
    told = (np.minimum(eigenvalues[:10], NOISE).sum() + eigenvalues[10:].sum()) / 64
    assert error == pytest.approx(told, rel=0.03)  # the first 1,000 of 1,797 digits, one draw each
    well.model.likelihood.fixed_scale = math.sqrt(told)  # pyright: ignore
    assert list(check_likelihood.effective_beta(replace(well))) == []
    for scale in (0.02, 2.0):
        sick = replace(well, model=load(well.run))
        sick.model.likelihood.fixed_scale = scale  # pyright: ignore
        finding = found(sick, "effective-beta", "warning")
        x, likelihood = sick.decoded
        error = float((x.double() - likelihood.mean.double()).square().mean())
        assert finding.evidence == {
            "objective_beta": 1.0,
            "scale": scale,
            "fitting_scale": pytest.approx(math.sqrt(error), rel=1e-4),
            "beta": pytest.approx(scale**2 / error, rel=1e-4),
        }
        assert "likelihood.scale=learned" in finding.remedy and drawn(finding)


def with_objective(case: Case, **keys: Any) -> Case:
    objective = case.run.config.objective.model_copy(update=keys)
    return replace(case, run=replace(case.run, config=replace(case.run.config, objective=objective)))


def test_a_beta_that_is_named(case: Case) -> None:
    assert found(with_objective(case, beta=4.0), "effective-beta", "info").evidence == {
        "objective_beta": 4.0,
        "beta": 4.0,
    }
    for beta in (0.01, 100.0):
        finding = found(with_objective(case, beta=beta), "effective-beta", "warning")
        assert finding.evidence["beta"] == beta and "objective.beta=1" in finding.remedy


def test_a_beta_that_hides_in_a_warm_up(case: Case) -> None:
    """770 updates of 7,700: the rate had a tenth of its weight at the end."""
    finding = found(with_objective(case, warmup=7_700), "effective-beta", "warning")
    assert finding.evidence == {"objective_beta": 1.0, "beta": pytest.approx(0.1), "steps": 770, "warmup": 7_700}
    assert "objective.warmup=256" in finding.remedy
    assert "effective-beta" not in Diagnosis("", run_checks.examine(with_objective(case, warmup=700)))


# -- the likelihood ------------------------------------------------------------------------------------------------


def test_a_binary_likelihood_on_grey_levels(case: Case) -> None:
    grey = datasets.load(resolve("", {}, {"data.source": "digits"}).data)
    sick = replace(case, examples=grey["validation"].head(60), dataset=grey)
    finding = found(sick, "likelihood-misfit", "error")
    x = digits_16()  # all of them, not the division's share
    share = float(((x > 0) & (x < 1)).mean())
    assert finding.evidence["share"] == pytest.approx(share, abs=0.03)
    assert (finding.evidence["least"], finding.evidence["most"]) == (0, 1)
    assert "data.binarize=dynamic likelihood.name=auto" in finding.remedy


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A continuous Bernoulli likelihood, whose support is [0, 1]."""
    keys = {"data.values": "real", "likelihood.name": "continuous-bernoulli"}
    return quick(tmp_path_factory.mktemp("unit") / "run", **keys)


def test_data_outside_of_the_support(unit: Run) -> None:
    case = look(unit, unit.data())
    assert "likelihood-misfit" not in Diagnosis("", run_checks.examine(case))
    raw = case.examples.raw.clone()  # pyright: ignore
    raw[:9, 0, 4, 4] = 20  # of 16
    finding = found(replace(case, examples=replace(case.examples, raw=raw)), "likelihood-misfit", "error")
    assert finding.evidence == pytest.approx({"least": 0, "most": 1.25, "share": 9 / 180})
    assert "likelihood.name=auto" in finding.remedy


def test_a_density_that_is_zero_is_a_misfit_and_no_divergence(linear: Run, edited: Callable[..., Case]) -> None:
    case = with_columns(linear, edited, 10)
    raw = case.examples.raw.float()  # pyright: ignore
    raw[:3] = 1e25  # whose square is infinite
    evaluation = replace(case.evaluation, distortion=math.inf, elbo=-math.inf)
    examples = replace(case.examples, raw=raw)
    finding = found(replace(case, examples=examples, evaluation=evaluation), "likelihood-misfit", "error")
    assert finding.evidence["share"] == pytest.approx(3 / 1000)


def test_a_density_on_two_values(unit: Run) -> None:
    case = look(unit, unit.data())
    two = Split((case.examples.raw > 8).to(torch.uint8) * 16, scale=16)  # pyright: ignore
    finding = found(replace(case, examples=two), "likelihood-misfit", "warning")
    assert finding.evidence == {"least": 0.0, "most": 1.0}
    assert "data.values=auto" in finding.remedy


def test_scales_at_their_floor(tmp_path: Path, edited: Callable[..., Case]) -> None:
    keys = {"data.values": "real", "likelihood.name": "gaussian", "likelihood.scale_shape": "dimension"}
    run = quick(tmp_path / "gaussian", **keys)

    def narrow(count: int) -> Edit:
        def edit(state: dict[str, Tensor]) -> None:
            state["likelihood.log_scale"].fill_(-1.0).flatten()[:count] = -9.0

        return edit

    finding = found(edited(run, narrow(16)), "scale-at-floor", "warning")
    assert finding.evidence == pytest.approx({"share": 16 / 64, "floor": 1e-3})
    assert "data.values=auto likelihood.name=auto" in finding.remedy and drawn(finding)
    assert found(edited(run, narrow(5)), "scale-at-floor", "info").evidence["share"] == pytest.approx(5 / 64)
    assert "scale-at-floor" not in Diagnosis("", run_checks.examine(edited(run, narrow(0))))


def test_a_key_of_an_automatic_likelihood_comes_with_its_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32))
    run = vaelab.train("vae", data=tmp_path / "x.npy", epochs=1, out=tmp_path / "run", progress=False)
    case = look(run, run.data())
    finding = found(replace(case, evaluation=replace(case.evaluation, scale_at_floor=0.4)), "scale-at-floor", "warning")
    assert "likelihood.name=gaussian likelihood.scale_floor=0.0001" in finding.remedy
    gone = replace(case, run=replace(case.run, config=replace(case.run.config, recipe="gone.toml")))
    (finding,) = check_likelihood.floor(replace(gone, evaluation=replace(case.evaluation, scale_at_floor=0.4)))
    assert "likelihood.name=gaussian likelihood.scale_floor=0.0001" in finding.remedy


def test_a_floor_that_a_probability_rests_on_is_harmless_where_it_is_narrow(tmp_path: Path) -> None:
    """Half a level of 17 is 1/32. A floor of 1/1000 costs nothing there, a floor of 0.3 does."""
    for held, severity in ((1e-3, "info"), (0.3, "warning")):
        keys = {"likelihood.name": "discretized-logistic", "likelihood.scale_floor": held}
        run = quick(tmp_path / f"{held}", **keys)
        case = look(run, run.data())
        sick = replace(case, evaluation=replace(case.evaluation, scale_at_floor=0.4))
        finding = found(sick, "scale-at-floor", severity)
        assert finding.evidence == {"share": 0.4, "floor": held}
        assert ("likelihood.scale_floor=0.001" in finding.remedy) == (held == 0.3)


def test_logits_that_are_saturated(well: Run, case: Case, edited: Callable[..., Case]) -> None:
    def sharpen(state: dict[str, Tensor]) -> None:
        for name in state:
            if name.startswith("decoder") and (name.endswith("layers.2.weight") or name == "decoder.bias"):
                state[name] *= 12

    sick = edited(well, sharpen)
    finding = found(sick, "saturated-outputs", "warning")
    x, likelihood = sick.decoded
    x, logits = x.flatten(1).numpy().astype(float), likelihood.logits.flatten(1).double().numpy()  # pyright: ignore
    varying = x.std(0) > 0
    probability = np.where(x > 0.5, 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits)))[:, varying]
    wrong = probability < math.exp(-10)
    assert finding.evidence["share"] == pytest.approx(wrong.mean(), rel=1e-3)
    assert finding.evidence["nats"] == pytest.approx(-np.log(probability[wrong]).sum() / len(x), rel=1e-3)
    assert finding.evidence["largest_logit"] == pytest.approx(np.abs(logits).max(), rel=1e-5)


class Twice(nn.Module):
    """A decoder that ends in a sigmoid of its own."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z).sigmoid()


@pytest.mark.parametrize("name", ["well", "unit"])
def test_a_sigmoid_that_is_taken_twice(name: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    case = look(run, run.data())
    case.model.decoder = Twice(case.model.decoder)
    finding = found(case, "double-sigmoid", "error")
    with torch.no_grad():
        z = case.model.encode(case.examples.batch()).sample_with_log_prob(1, generator("doctor"))[0][0]
        outputs = case.model.decoder(z)
    assert finding.evidence == {"least": float(outputs.min()), "most": float(outputs.max())}
    assert finding.remedy.startswith("Take the sigmoid out of the decoder")


# -- the command ---------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["vaelab", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


@pytest.fixture
def sick_run(well: Run, edited: Callable[..., Case]) -> Run:
    return edited(well, lambda state: silence(state, list(range(10)))).run


def test_the_command_tells_findings_as_text_and_as_json(
    well: Run, sick_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "doctor", sick_run)
    assert code == 0 and "ERROR: posterior-collapse" in out and "remedy: vaelab train vae" in out
    assert all(len(line) <= 80 for line in out.splitlines() if str(sick_run) not in line)
    code, out, _ = call(monkeypatch, capsys, "doctor", sick_run, "--json")
    told = json.loads(out)
    assert code == 0 and set(told) == {"findings"}
    assert told == vaelab.doctor(sick_run).to_dict()
    for finding in told["findings"]:
        assert set(finding) == {"name", "severity", "message", "evidence", "cause", "remedy"}
        assert finding["severity"] in ("error", "warning", "info")
    (collapse,) = [finding for finding in told["findings"] if finding["name"] == "posterior-collapse"]
    assert collapse["evidence"]["silent"] == list(range(10))
    severities = [finding["severity"] for finding in told["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert call(monkeypatch, capsys, "doctor", sick_run, "--strict")[0] == 1
    assert call(monkeypatch, capsys, "doctor", sick_run, "--strict", "--json")[:2] == (1, out)
    assert call(monkeypatch, capsys, "doctor", well, "--strict")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["empty"], "empty: not a run folder"),
        (["half"], "half: incomplete run (it has no model.safetensors)"),
        ([], "nothing to examine; give a run folder, or --model"),
        (["half", "empty"], "half and empty: give one run"),
        (["half", "--data", "digits"], "give a run alone"),
        (["half", "--model", "model.py:Net", "--data", "digits"], "give a run alone"),
        (["--model", "model.py:Net"], "--data SOURCE is missing"),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    words: list[str], told: str, well: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    shutil.copytree(well.path, "half")
    Path("half", "model.safetensors").unlink()
    before = set(Path().rglob("*"))
    code, out, err = call(monkeypatch, capsys, "doctor", *words)
    assert (code, out) == (2, "") and told in err and "\n" not in err.strip()
    assert set(Path().rglob("*")) == before


def test_the_gravest_comes_first_and_commands_can_be_copied() -> None:
    command = "vaelab train vae --data digits " + " ".join(f"group.key{number}=1" for number in range(12))
    findings = ordered([Finding("b", "info", "B 1."), Finding("a", "warning", "A 2.", {}, "why", command)])
    text = str(Diagnosis("runs/x", findings))
    assert [finding.name for finding in findings] == ["a", "b"]
    assert text.startswith("runs/x: 1 warning, 1 info\n\nWARNING: a\n")
    assert all(len(line) <= 80 for line in text.splitlines())
    shown = text.partition("remedy: ")[2].partition("\n\n")[0]
    assert shlex.split(shown.replace("\\\n", " ")) == shlex.split(command)


def test_every_illness_is_made_and_found() -> None:
    """What the tests above have provoked is the list of all that is looked for."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "found"]
    assert {ast.literal_eval(call.args[1]) for call in calls} == ILLNESSES
    assert len(ILLNESSES) == len(run_checks.ILLNESSES)


def test_the_page_of_illnesses_lists_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs")
    page = importlib.import_module("extension.tables").MADE["illnesses"]()
    sections = page.split("\n## ")
    for section, illnesses in zip(sections, (run_checks.ILLNESSES, foreign.ILLNESSES), strict=True):
        names = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert names == [illness.name for illness in illnesses]
