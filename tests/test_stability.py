"""Steps that are not finite are skipped, counted and explained; averages, patience and warm-ups do what they say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vaelab
from vaelab.errors import InputError, VaelabError
from vaelab.evaluation.likelihood import evaluate_model
from vaelab.runs import Run
from vaelab.training import job, loop, replay, state, validation

pytestmark = pytest.mark.usefixtures("without_reports")

SMALL = {"network.hidden": [16], "model.latent_dim": 3, "training.threads": 1}


def train(out: Path, data: str = "digits", **more: Any) -> Run:
    overrides = {**SMALL, **more.pop("overrides", {})}
    return vaelab.train("vae", data=data, out=out, progress=False, overrides=overrides, **{"epochs": 4, **more})


def checkpoint(run: Run) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    record = json.loads((run.path / "checkpoint" / "latest.json").read_text())
    return record, load_file(run.path / "checkpoint" / record["file"])


# -- steps that are not finite ---------------------------------------------------------------------------------------


@pytest.fixture
def stream_with_nan(tmp_path: Path) -> tuple[str, int]:
    """A streamed array of 400 vectors, of which row 123 holds a NaN."""
    values = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    values[123, 4] = np.nan
    np.save(tmp_path / "x.npy", values)
    return str(tmp_path / "x.npy"), 123


def test_a_nan_in_a_stream_is_found_and_named_and_the_run_survives(
    stream_with_nan: tuple[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, row = stream_with_nan
    keys = {"data.stream": True, "data.validation": 0.0, "data.test": 0.0, "training.batch_size": 40}
    run = train(tmp_path / "run", source, overrides=keys, epochs=3)
    record, _ = checkpoint(run)
    # 10 batches an epoch, one of them with that row: 3 updates of 30 are skipped, and all else is learned from.
    assert record["counters"]["skipped"] == 3
    assert [line["skipped"] for line in run.metrics()] == [1, 2, 3]
    first = record["counters"]["first_skipped"]
    assert first.endswith(f"the data are NaN or infinite in 1 of 40 examples: row {row} of {source}")
    assert first in capsys.readouterr().err
    # The batch that holds row 123 in the first epoch, by the permutation itself.
    order = torch.randperm(400, generator=torch.Generator().manual_seed(vaelab.noise.seed_of(0, "epoch", 0)))
    batch = int((order == row).nonzero()) // 40
    assert first.startswith(f"update {batch + 1} was skipped")
    assert all(np.isfinite(line["train"]["elbo"]) for line in run.metrics())
    assert run.metrics()[2]["train"]["elbo"] > run.metrics()[0]["train"]["elbo"]


def test_nan_among_held_out_examples_of_a_stream_are_left_out_of_the_numbers(tmp_path: Path) -> None:
    """Twenty rows with NaN: the others' numbers are those of a run on data without them."""
    values = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    values[::20, 1] = np.nan
    np.save(tmp_path / "x.npy", values)
    keys = {"data.stream": True, "data.validation": 0.5, "data.test": 0.2, "training.batch_size": 10}
    run = train(tmp_path / "run", str(tmp_path / "x.npy"), overrides=keys, epochs=2)
    split = run.data()["validation"]
    x = split.batch()[:50]  # one batch of evaluation, so that the others keep their draws of z
    good = x.isfinite().all(1)
    assert 0 < (~good).sum() < 10
    found = vaelab.evaluate(run, 3, split="validation", limit=50)
    assert found.n == int(good.sum())
    clean = type(split)(x[good].clone())
    expected = evaluate_model(vaelab.load(run), clean, 3, split="validation")
    assert (found.elbo, found.log_px) == (pytest.approx(expected.elbo), pytest.approx(expected.log_px))
    assert all(np.isfinite(line["validation"]["elbo"]) for line in run.metrics())


def test_a_skipped_update_leaves_weights_and_optimizer_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Update 6 of 11 gets a batch of NaN: everything must then go on as if it had never been."""
    step = loop._step  # pyright: ignore[reportPrivateUsage]
    seen: list[dict[str, torch.Tensor]] = []

    def poisoned(one: Any, rows: torch.Tensor, raw: torch.Tensor, config: Any) -> None:
        at = one.state.counters.step
        if at in (5, 6):
            seen.append({name: value.clone() for name, value in one.state._tensors().items() if "best" not in name})
        step(one, rows, raw.float() * float("nan") if at == 5 else raw, config)

    monkeypatch.setattr(loop, "_step", poisoned)
    train(tmp_path / "run", epochs=1, overrides={"training.ema_decay": 0.9})
    before, after = seen
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name == "average.n_averaged":
            continue
        if name.startswith("average."):  # the average moves on, towards the weights that stand still
            assert after[name].isfinite().all()
        else:
            assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_streak_ends_the_run_whenever_it_is_looked_at(tmp_path: Path, seconds: float) -> None:
    """Six rows with NaN, one an update, somewhere among good ones; the order of epoch 1 puts some side by side."""
    order = torch.randperm(100, generator=torch.Generator().manual_seed(vaelab.noise.seed_of(0, "epoch", 0)))
    values = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    values[order[43:47]] = np.nan
    np.save(tmp_path / "x.npy", values)
    keys = {"data.stream": True, "data.validation": 0.0, "data.test": 0.0, "training.batch_size": 1}
    keys |= {"training.max_skipped": 4, "training.checkpoint_seconds": seconds}
    with pytest.raises(VaelabError, match="[4-9] updates in a row|diverged"):
        train(tmp_path / "run", str(tmp_path / "x.npy"), overrides=keys)
    keys["training.max_skipped"] = 5
    record, _ = checkpoint(train(tmp_path / "other", str(tmp_path / "x.npy"), overrides=keys, epochs=1))
    assert record["counters"]["skipped"] == 4


def test_float16_may_search_its_scale_for_long(tmp_path: Path) -> None:
    """Sixteen halvings of the scale are more than ten updates in a row, and no divergence."""
    values = np.random.default_rng(0).normal(size=(600, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    keys = {"training.precision": "float16", "training.batch_size": 48, "likelihood.name": "gaussian"}
    keys |= {"likelihood.scale": 0.005, "training.checkpoint_seconds": 0.0}
    record, _ = checkpoint(train(tmp_path / "run", str(tmp_path / "x.npy"), overrides=keys, epochs=4))
    assert 10 < record["counters"]["skipped"] < 30
    assert record["counters"]["first_skipped"] is None


def test_a_plateau_needs_validation_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.schedule=plateau: there are no validation data"):
        train(tmp_path / "run", overrides={"data.validation": 0.0, "training.schedule": "plateau"})


def test_many_in_a_row_end_the_run_with_advice_and_keep_the_checkpoint(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    values[:, 2] = np.inf
    np.save(tmp_path / "x.npy", values)
    keys = {"data.stream": True, "training.batch_size": 20, "training.max_skipped": 3}
    with pytest.raises(VaelabError, match=r"diverged in its first epoch: \d+ updates in a row.*lower training"):
        train(tmp_path / "run", str(tmp_path / "x.npy"), overrides=keys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: m.encoder.layers[1].bias.data.fill_(torch.nan), "encoder.layers.1.bias itself holds NaN"),
        (lambda m: m.encoder.layers[1].weight.data.fill_(3e38), "layer encoder.layers.1 (Linear) gave NaN"),
        (lambda m: m.posterior.head.bias.data[-1].fill_(1e4), "layer decoder.layers.0 (Linear) gave NaN"),
        (lambda m: m.decoder.bias.data.fill_(-3e38), "log_px_z is NaN or infinite for"),
    ],
)
def test_the_replay_names_the_first_layer_that_fails(tmp_path: Path, spoil: Any, says: str) -> None:
    run = train(tmp_path / "run", epochs=1, overrides={"data.binarize": "threshold"})
    model = vaelab.load(run)
    spoil(model)
    x = run.data()["train"].batch(slice(0, 8))
    objective = loop.begin.__globals__["compose_objective"](run.config, model, 1_437)
    found = replay.explain(model, objective, x, torch.Generator().manual_seed(0), None, str)
    assert found.startswith(says), found


def test_the_replay_names_the_examples(tmp_path: Path) -> None:
    """Only examples 2 and 5 have the pixel that leads into the broken weight."""
    run = train(tmp_path / "run", epochs=1, overrides={"data.binarize": "threshold"})
    model = vaelab.load(run)
    x = torch.zeros(8, 1, 8, 8)
    x[[2, 5], 0, 3, 3] = 1
    model.encoder.layers[1].weight.data[:, 27] = 3e38  # type: ignore[index, union-attr, operator]
    model.encoder.layers[1].bias.data.fill_(3e38)  # type: ignore[index, union-attr, operator]
    objective = job.compose_objective(run.config, model, 1_437)
    found = replay.explain(model, objective, x, torch.Generator().manual_seed(0), None, "number {}".format)
    assert found.startswith("layer encoder.layers.1 (Linear) gave NaN or infinite values for 2 of 8 examples: ")
    assert found.endswith("number 2, number 5")


def test_the_replay_names_the_examples_of_several_draws(tmp_path: Path) -> None:
    """Of 8 examples with 3 draws each, 24 rows are decoded; those of examples 2 and 5 overflow."""
    run = train(tmp_path / "run", epochs=1, overrides={"data.binarize": "threshold", "network.activation": "relu"})
    model: Any = vaelab.load(run)
    for parameter in model.encoder.parameters():
        parameter.data.zero_()
    model.encoder.layers[1].weight.data[:, 27] = 1e25
    model.posterior.head.weight.data.zero_()[:3] = 1.0
    model.decoder.layers[0].weight.data.fill_(1e15)
    x = torch.zeros(8, 1, 8, 8)
    x[[2, 5], 0, 3, 3] = 1
    objective = vaelab.objectives.IWAE(num_samples=3)
    found = replay.explain(model, objective, x, torch.Generator().manual_seed(0), None, "number {}".format)
    assert found.startswith("layer decoder.layers.0 (Linear) gave NaN or infinite values for 2 of 8 examples: ")
    assert found.endswith("number 2, number 5")


def test_a_gradient_that_fails_while_the_loss_does_not(tmp_path: Path) -> None:
    """sqrt at 0 has a finite value and an infinite slope."""

    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, terms: Any) -> Any:
            return vaelab.objectives.Loss(terms.distortion.mean() + self.weight.sqrt(), {})

        num_samples = 1

    run = train(tmp_path / "run", epochs=1)
    x = run.data()["train"].batch(slice(0, 4))
    objective: Any = Root()
    found = replay.explain(vaelab.load(run), objective, x, torch.Generator().manual_seed(0), None, str)
    assert found.startswith("the gradient of weight is NaN or infinite, while the loss is")


# -- averages, patience, warm-ups --------------------------------------------------------------------------------------


def test_the_average_of_the_weights_is_the_one_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept weights against the recursion a <- 0.9 a + 0.1 w, worked out here from the weights after each update."""
    update, seen = loop._update, []  # pyright: ignore[reportPrivateUsage]

    def watching(one: Any, config: Any) -> torch.Tensor:
        norm = update(one, config)
        seen.append({name: value.double().clone() for name, value in one.state.model.state_dict().items()})
        return norm

    monkeypatch.setattr(loop, "_update", watching)
    keys = {"training.ema_decay": 0.9, "data.validation": 0.0}
    run = train(tmp_path / "run", epochs=2, overrides=keys)
    average = seen[0]
    for weights in seen[1:]:
        average = {name: 0.9 * value + 0.1 * weights[name] for name, value in average.items()}
    kept = load_file(run.path / "model.safetensors")
    for name, value in average.items():
        assert kept[name].double().numpy() == pytest.approx(value.numpy(), abs=1e-6)
        if "weight" in name:
            assert not torch.equal(kept[name].double(), seen[-1][name])


def test_patience_ends_the_run_and_a_resumed_one_stays_ended(tmp_path: Path) -> None:
    few = {"data.validation": 0.45, "data.test": 0.45, "data.binarize": "threshold", "training.learning_rate": 0.02}
    keys = {**few, "training.schedule": "constant", "training.patience": 7}
    run = train(tmp_path / "run", epochs=500, overrides=keys)
    best = run.best()
    assert best is not None
    assert len(run.metrics()) == best["epoch"] + 7 < 500
    again = vaelab.train(out=run.path, resume=True, progress=False)
    assert again.metrics() == run.metrics()


def test_patience_needs_validation_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.patience=3: there are no validation data"):
        train(tmp_path / "run", overrides={"data.validation": 0.0, "training.patience": 3})
    assert not (tmp_path / "run").exists()


def test_a_plateau_lowers_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    close = loop.close_epoch

    def watching(one: Any, config: Any) -> Any:
        found.append(one.state.optimizer.param_groups[0]["lr"])
        return close(one, config)

    monkeypatch.setattr(loop, "close_epoch", watching)
    few = {"data.validation": 0.45, "data.test": 0.45, "data.binarize": "threshold", "training.learning_rate": 0.02}
    keys = {**few, "training.schedule": "plateau", "training.decay_epochs": 2, "training.decay_factor": 0.5}
    run = train(tmp_path / "run", epochs=80, overrides=keys)
    losses = [line["validation"]["loss"] for line in run.metrics()]
    best, since, reductions, expected = float("inf"), 0, 0, []
    for loss in losses:
        expected.append(0.02 * 0.5**reductions)
        since = 0 if loss < best else since + 1
        best = min(best, loss)
        if since == 2:
            since, reductions = 0, reductions + 1
    assert reductions > 2
    assert found == pytest.approx(expected)


def test_a_plateau_waits_again_after_each_reduction() -> None:
    """Best at epoch 1, then never again: with a patience of 3, reductions after epochs 4, 7 and 10."""
    counters = state.Counters(best_epoch=1)
    config = vaelab.config.TrainingConfig(schedule="plateau", decay_epochs=3)
    found: list[int] = []
    for epoch in range(1, 12):
        counters.epoch = epoch
        validation._count_patience(counters, config)  # pyright: ignore[reportPrivateUsage]
        found.append(counters.reductions)
    assert found == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert counters.since_best == 10


def test_kl_warm_up_weighs_the_rate_in_training_only(tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=3, overrides={"objective.warmup": 22, "data.binarize": "threshold"})
    first, second, third = run.metrics()
    mean_weight = sum(range(11)) / 11 / 22
    assert first["train"]["loss"] != pytest.approx(-first["train"]["elbo"], abs=1e-3)
    assert mean_weight < 0.25
    assert third["train"]["loss"] == pytest.approx(-third["train"]["elbo"], abs=1e-3)
    for line in (first, second, third):
        assert line["validation"]["loss"] == pytest.approx(-line["validation"]["elbo"], abs=1e-3)


def test_kl_warm_up_is_a_straight_line(tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=1)
    model = vaelab.load(run)
    terms = model.terms(run.data()["train"].batch(slice(0, 5)), 1, torch.Generator().manual_seed(0))
    objective = vaelab.objectives.ELBO(beta=2.0, warmup=8)
    rate, distortion = terms.rate, terms.distortion
    assert rate is not None
    for step, weight in [(0, 0.0), (2, 0.5), (8, 2.0), (100, 2.0), (None, 2.0)]:
        objective.step = step
        expected = (distortion + weight * rate).mean().item()
        assert objective(terms).value.item() == pytest.approx(expected, rel=1e-6)


def test_weight_decay_is_decoupled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loshchilov & Hutter 2019: the same update as without, minus learning rate x decay x weights."""
    keys = {"training.schedule": "constant", "data.validation": 0.0, "training.learning_rate": 0.01}
    update, starts = loop._update, []  # pyright: ignore[reportPrivateUsage]

    def watching(one: Any, config: Any) -> torch.Tensor:
        starts.append({name: value.clone() for name, value in one.state.model.state_dict().items()})
        return update(one, config)

    monkeypatch.setattr(loop, "_update", watching)
    one_update = {**keys, "training.batch_size": 1617}
    plain = train(tmp_path / "plain", epochs=1, overrides=one_update)
    decayed = train(tmp_path / "decayed", epochs=1, overrides={**one_update, "training.weight_decay": 0.5})
    without, found = (load_file(run.path / "model.safetensors") for run in (plain, decayed))
    for name, start in starts[0].items():
        assert found[name].numpy() == pytest.approx((without[name] - 0.01 * 0.5 * start).numpy(), abs=1e-6)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deterministic model: with no noise, four parts must give the gradients of one batch."""
    found: list[list[torch.Tensor]] = []
    update = loop._update  # pyright: ignore[reportPrivateUsage]

    def watching(one: Any, config: Any) -> torch.Tensor:
        found.append([p.grad.clone() for p in one.parameters])
        return update(one, config)

    monkeypatch.setattr(loop, "_update", watching)
    keys = {"posterior.name": "deterministic", "objective.name": "distortion"}
    train(tmp_path / "whole", epochs=1, overrides=keys)
    train(tmp_path / "parts", epochs=1, overrides={**keys, "training.gradient_accumulation": 4})
    whole, parts = found[0], found[11]
    for one, other in zip(whole, parts, strict=True):
        assert other.numpy() == pytest.approx(one.numpy(), rel=1e-4, abs=1e-6)


def test_shares_of_a_batch_must_be_equal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size=128: 1 processes x .*=3 take .* a multiple of 3, such as 129"):
        train(tmp_path / "run", overrides={"training.gradient_accumulation": 3})


# -- precision ---------------------------------------------------------------------------------------------------------


def test_float16_scales_the_loss_and_survives_an_overflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"training.precision": "float16", "data.binarize": "threshold"}
    run = train(tmp_path / "run", epochs=8, overrides=keys)
    record, _ = checkpoint(run)
    assert record["precision"] == "float16"
    assert record["scaler"]["scale"] >= 1
    other = train(tmp_path / "other", epochs=8, overrides={"data.binarize": "threshold"})
    elbos = [one.metrics()[-1]["validation"]["elbo"] for one in (run, other)]
    assert elbos[0] == pytest.approx(elbos[1], abs=0.3)
    assert "was skipped" not in capsys.readouterr().err


def test_automatic_precision_is_measured_where_the_hardware_has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaelab.training import precision

    clock = [0.0]
    cost = {(torch.bfloat16, 1): 5.0, (torch.bfloat16, 2): 3.0, (None, 1): 6.0, (None, 2): 4.0}
    threads = [2]
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])

    def rehearse(dtype: torch.dtype | None) -> None:
        clock[0] += cost[dtype, threads[0]] / 1000

    def chosen() -> tuple[str, int]:
        return precision.choose(torch.device("cpu"), (1, 2), rehearse)

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    assert chosen() == ("bfloat16", 2)
    cost[torch.bfloat16, 2] = 3.9  # not worth it
    assert chosen() == ("float32", 2)
    cost[torch.bfloat16, 1] = 2.0  # faster with one thread
    assert chosen() == ("bfloat16", 1)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert chosen() == ("float32", 2)
    assert threads == [2]


# -- compiling -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_networks_train_as_well(tmp_path: Path) -> None:
    """The first epoch's numbers are those of the networks as they are, but for rounding."""
    lines = [
        train(tmp_path / str(c), epochs=1, overrides={"training.compile": c}).metrics()[0]["validation"]
        for c in (False, True)
    ]
    assert lines[1] == pytest.approx(lines[0], rel=1e-4)
    assert vaelab.load(tmp_path / "True").encoder is not None


def test_compiling_is_for_large_models_on_gpus_and_needs_a_compiler(
    digits_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaelab.training import compiling

    called: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: called.append(type(self).__name__))
    model = vaelab.load(digits_run)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not compiling.compile_networks(model, "auto", cpu, 10**6)
    assert not compiling.compile_networks(model, "auto", cuda, 10**6)  # 10,000 weights
    monkeypatch.setattr(compiling, "WEIGHTS", 1_000)
    assert not compiling.compile_networks(model, "auto", cuda, 100)
    assert not compiling.compile_networks(model, False, cuda, 10**6)
    assert called == []
    assert compiling.compile_networks(model, "auto", cuda, 10**6)
    assert called == ["Encoder", "Decoder"]
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="training.compile=true: needs a C\\+\\+ compiler"):
        compiling.compile_networks(model, True, cpu, 1)
