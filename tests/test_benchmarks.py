"""The benchmarks count, divide and compare as they say; nothing here asserts how long anything takes."""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vaelab
from vaelab.composition import compose, compose_objective
from vaelab.config import resolve
from vaelab.data import DataSpec
from vaelab.errors import InputError, VaelabError
from vaelab.runs import Run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402
import contestants  # noqa: E402
import evaluation as evaluation_benchmark  # noqa: E402
import matmul  # noqa: E402
import quality  # noqa: E402
import recipes  # noqa: E402
import scaling  # noqa: E402
import throughput  # noqa: E402
import time_to_quality  # noqa: E402

MNIST = DataSpec(shape=(1, 28, 28), kind="binary", levels=2)
LEAVE_OUT = () if find_spec("pythae") else ("--without-pythae",)
OTHERS = ("example",) if LEAVE_OUT else ("pythae", "example")
needs_schedstat = pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="Linux's accounting")


def network(hidden: int, latent: int, num_samples: int = 1) -> tuple[vaelab.VAE, Any]:
    """The model and the objective that the benchmarks' keys name."""
    keys = {"network.hidden": hidden, "model.latent_dim": latent, "objective.num_samples": num_samples}
    config = resolve("vae", {}, {**keys, "likelihood.name": "bernoulli"})
    model = compose(config, MNIST)
    return model, compose_objective(config, model, 60_000)


# -- multiply-adds and the peak ------------------------------------------------------------------------------------


def test_multiply_adds_by_hand() -> None:
    # 3-2-(2), 1-2-3: layers of 6, 4 and 2, 6. Forward and weight gradients 2 · 18, input gradients 18 − 6.
    assert common.multiply_adds(3, 2, 1) == 48
    # With two draws of z the decoder's 8 count twice: 2 · (10 + 16) + 4 + 16.
    assert common.multiply_adds(3, 2, 1, num_samples=2) == 72
    # 784-512-20: 401408 + 20480 + 10240 + 401408 = 833536 forward; 3 · 833536 − 401408.
    assert common.multiply_adds(784, 512, 20) == 2_099_200


@pytest.mark.parametrize(("hidden", "latent", "num_samples"), [(512, 20, 1), (512, 20, 5), (128, 7, 20)])
def test_multiply_adds_are_those_that_torch_counts_in_a_step(hidden: int, latent: int, num_samples: int) -> None:
    model, objective = network(hidden, latent, num_samples)
    x = torch.rand(6, 1, 28, 28).round()
    with FlopCounterMode(display=False) as counter:
        objective(model.terms(x, num_samples)).value.backward()
    assert counter.get_total_flops() == 2 * len(x) * common.multiply_adds(784, hidden, latent, num_samples)


def test_gigaflops_are_two_operations_a_multiply_add() -> None:
    assert throughput.gflops(1000.0) == pytest.approx(2 * 2_099_200 * 1000 / 1e9)
    assert throughput.gflops(1000.0, hidden=128, num_samples=5) == pytest.approx(
        2 * common.multiply_adds(784, 128, 20, 5) * 1000 / 1e9
    )


def test_peak_divides_operations_by_the_fastest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three products of 1, 4 and 2 seconds; time is up at second 5.
    ticks = iter([0.0, 0.0, 1.0, 10.0, 14.0, 20.0, 22.0, 99.0])
    monkeypatch.setattr(matmul.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(matmul, "SIZE", 64)
    found = matmul.peak(torch.get_num_threads(), "bfloat16", seconds=5)
    assert found["gflops"] == pytest.approx(2 * 64**3 / 1e9)
    assert found["median_gflops"] == pytest.approx(2 * 64**3 / 1e9 / 2)


# -- the same network for all --------------------------------------------------------------------------------------


def test_all_contestants_train_the_same_network() -> None:
    model, _ = network(common.HIDDEN, common.LATENT)
    ours = {tuple(p.shape) for p in model.parameters() if p.ndim == 2}
    theirs = {tuple(w.shape) for w, _ in contestants.MLP(common.HIDDEN, common.LATENT).weights()}
    assert ours == theirs == {(512, 784), (40, 512), (512, 20), (784, 512)}
    count = sum(p.numel() for p in contestants.MLP(common.HIDDEN, common.LATENT).parameters())
    assert count == sum(p.numel() for p in model.parameters())


def test_a_picture_goes_through_pil_unchanged() -> None:
    pictures = torch.arange(2 * 784).remainder(256).to(torch.uint8).view(2, 28, 28)
    x = contestants.PerImage(pictures.numpy(), binarize=False)[1]
    assert torch.equal(x, pictures[1:].float() / 255)
    draws = contestants.PerImage(pictures.numpy(), binarize=True)
    mean = torch.stack([draws[1] for _ in range(2000)]).mean(0)
    assert set(draws[0].unique().tolist()) == {0.0, 1.0}
    assert (mean - x).abs().max() < 5 * 0.5 / 2000**0.5


def test_the_evaluator_agrees_with_vaelab(digits_run: Run) -> None:
    expected = vaelab.evaluate(digits_run, split="validation")
    x = digits_run.data()["validation"].batch().flatten(1)
    found = quality.elbo(quality.run_weights(digits_run.path), x, draws=64)
    assert expected.elbo is not None and expected.elbo_monte_carlo is not None
    assert abs(found - expected.elbo) < 4 * 2**0.5 * expected.elbo_monte_carlo < 0.5


# -- times and ratios ----------------------------------------------------------------------------------------------


def test_steady_speed_leaves_the_first_epoch_out() -> None:
    lines = [{"step": 10, "seconds": 9.0}, {"step": 20, "seconds": 10.0}, {"step": 30, "seconds": 13.0}]
    assert common.steady_speed(lines, batch_size=128) == 20 * 128 / 4.0
    assert common.steady_speed(lines[:1], batch_size=128) == 10 * 128 / 9.0


def test_ratios_are_taken_within_a_repetition() -> None:
    # Medians 3 and 2 would give 1.5; the ratios of the repetitions are 4, 1 and 2.
    figures = [
        {"vaelab": ours, "pythae": theirs, "ratio_vs_pythae": ours / theirs}
        for ours, theirs in [(8, 2), (1, 1), (6, 3)]
    ]
    result = throughput.report(figures)
    assert result["ratio_vs_pythae"] == 2.0
    assert result["spread"]["ratio_vs_pythae"] == [1.0, 4.0]
    assert result["images_per_second"] == {"vaelab": 6, "pythae": 2}


def test_stopwatch_ratio_is_the_clock_over_the_report() -> None:
    assert throughput.stopwatch({"vaelab": 1000.0, "stopwatch": 950.0}) == {"stopwatch_ratio": 0.95}
    assert throughput.stopwatch({"vaelab": 1000.0}) == {}


def test_scaling_figures() -> None:
    speeds = dict(zip(scaling.SETTINGS, (10.0, 16.0, 20.0), strict=True))
    assert scaling.figures(speeds) == {"efficiency": 0.8, "speedup_vs_threads": 0.8}


@pytest.mark.parametrize(
    ("level", "expected"), [(-130.0, 2.0), (-120.0, 2.0), (-115.0, 3.0), (-110.0, 4.0), (-105.0, 8.8), (-99.0, None)]
)
def test_crossing_draws_straight_lines(level: float, expected: float | None) -> None:
    curve = [(2.0, -120.0), (4.0, -110.0), (6.0, -112.0), (10.0, -102.0)]
    found = time_to_quality.crossing(curve, level)
    assert found == (None if expected is None else pytest.approx(expected))


def test_seconds_to_a_level_are_medians_and_unreached_ones_are_none() -> None:
    curves = [
        {"vaelab": [(1.0, -110.0)], "pythae": [(4.0, -110.0)]},
        {"vaelab": [(2.0, -110.0)], "pythae": [(12.0, -110.0)]},
        {"vaelab": [(9.0, -105.0)], "pythae": [(9.0, -110.0)]},
    ]
    assert time_to_quality.seconds_to(curves, -110) == {"vaelab": 2.0, "pythae": 9.0}
    assert time_to_quality.speedup(curves, -110) == {"pythae": 4.0}
    assert time_to_quality.seconds_to(curves, -105) == {"vaelab": None, "pythae": None}
    assert time_to_quality.speedup(curves, -105) == {"pythae": None}


def test_precision_is_compared_seed_by_seed() -> None:
    found = time_to_quality.paired([-100.0, -103.0, -101.0], [-101.0, -102.0, -101.0])
    assert found["elbo_difference"] == 0.0
    assert found["elbo_difference_stderr"] == pytest.approx(1 / 3**0.5)
    assert time_to_quality.paired([-1.0], [-2.0])["elbo_difference_stderr"] is None


def test_a_learning_rate_is_chosen_by_validation_and_not_by_one_seed() -> None:
    found = [(1e-3, 0, -93.0), (1e-3, 1, -91.0), (2e-3, 0, -92.5), (2e-3, 1, -92.5), (5e-4, 0, -90.0)]
    records = [{"learning_rate": r, "seed": seed, "validation": {"log_px": value}} for r, seed, value in found]
    assert recipes.choose(records) == (1e-3, {1e-3: -92.0, 2e-3: -92.5})


def test_only_some_entries_get_the_longer_budgets() -> None:
    assert recipes.budgets([20, 100], None) == [
        *((name, 20) for name in recipes.ENTRIES),
        *((name, 100) for name in recipes.LONGER),
    ]
    assert recipes.budgets([1, 2], ["iwae", "vae"]) == [("vae", 1), ("iwae", 1), ("vae", 2), ("iwae", 2)]


@pytest.mark.parametrize("name", list(recipes.ENTRIES))
def test_all_entries_have_the_same_networks(name: str) -> None:
    config = resolve("vae", {}, {**recipes.COMMON, **recipes.ENTRIES[name]})
    model = compose(config, MNIST)
    compose_objective(config, model, 55_000)
    encoder, decoder = ([w.shape for w in part.parameters() if w.ndim == 2] for part in (model.encoder, model.decoder))
    assert encoder == [(200, 784), (200, 200)]
    assert decoder[1:] == [(200, 200), (784, 200)] and len(decoder) == 3


def test_other_load_is_what_the_machine_did_beyond_us(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, busy, own = (iter(values) for values in ([0.0, 10.0], [100.0, 117.0], [5.0, 20.0]))
    monkeypatch.setattr(common.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(common, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(common, "_own_seconds", lambda: next(own))
    others = common.OtherLoad()
    with others.measure():
        pass
    assert others.cores == pytest.approx((17 - 15) / 10)


# -- the neighbor --------------------------------------------------------------------------------------------------


@needs_schedstat
def test_the_neighbor_asks_for_a_whole_core_once_it_is_told() -> None:
    with common.neighbor() as other:
        other.began, other.before = time.monotonic(), other._times()
        time.sleep(0.5)
        assert other.cores()[0] < 0.1
        other.start()
        time.sleep(1.0)
        asked, got = other.cores()
        assert 0.8 < asked < 1.2  # running or waiting for a core; how much of one it gets is the machine's affair
        assert 0 < got <= asked
        pid = other.process.pid
    assert not Path(f"/proc/{pid}").exists()


@needs_schedstat
@pytest.mark.slow
def test_the_neighbor_does_not_outlive_who_started_it() -> None:
    code = "import os, common\nwith common.neighbor() as n: n.start(); print(n.process.pid, flush=True); os._exit(0)"
    found = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, stdout=subprocess.PIPE, text=True, check=True)
    process = Path("/proc", found.stdout.strip())
    for _ in range(600):
        if not process.exists() or " Z " in (process / "stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail("it still runs after a minute")


# -- the commands --------------------------------------------------------------------------------------------------


def quick(script: str, *words: str) -> dict[str, Any]:
    """What a --quick run prints."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert result["quick"] is True
    assert {"cpu", "cores", "capabilities", "torch"} <= result["machine"].keys()
    return result


@pytest.mark.slow
def test_quick_ratios() -> None:
    result = quick("throughput.py", "--parts", "ratios", *LEAVE_OUT)
    speeds = result["images_per_second"]
    for name in OTHERS:
        assert result[f"ratio_vs_{name}"] == pytest.approx(speeds["vaelab"] / speeds[name])
    assert result["threads"] == 1 and result["precision"] in ("float32", "bfloat16")
    assert result["settings"]["vaelab"] == {"threads": 1, "precision": result["precision"]}


@pytest.mark.slow
def test_quick_peak_and_neighbor() -> None:
    result = quick("throughput.py", "--parts", "peak,neighbor")
    speeds = result["images_per_second"]
    done = 2 * 2_099_200 * speeds["vaelab_batch_512"]
    assert result["peak_fraction"] == pytest.approx(done / (1e9 * result["peak_gflops"]))
    assert result["neighbour_fraction"] == pytest.approx(speeds["vaelab_with_neighbor"] / speeds["vaelab_one_thread"])
    assert 0.5 < result["neighbor_cores"] < 1.5


@pytest.mark.slow
def test_quick_growth() -> None:
    growth = quick("throughput.py", "--parts", "growth")["growth"]
    assert [point["batch_size"] for point in growth["batch_size"]] == [32, 128]
    assert growth["hidden"][0]["images_per_second"] == growth["batch_size"][1]["images_per_second"]
    for point in (point for points in growth.values() for point in points):
        assert point["gflops"] == pytest.approx(2e-9 * 2_099_200 * point["images_per_second"])


@pytest.mark.slow
def test_quick_time_to_quality() -> None:
    result = quick("time_to_quality.py", "--levels=-500,0", *LEAVE_OUT)
    curves = result["curves"][0]
    assert set(curves) == {"vaelab", *OTHERS}
    for name, curve in curves.items():
        (first, early), (second, late) = curve
        assert 0 < first < second and early < late < 0
        assert result["seconds_to"]["-500"][name] == first
        assert result["seconds_to"]["0"][name] is None
    assert abs(result["evaluator_difference"]) < 5  # of 180 pictures, with one draw of z each on one side


@pytest.mark.slow
def test_quick_precision() -> None:
    result = quick("time_to_quality.py", "--precision")
    elbos = result["elbo"]
    differences = [low - full for low, full in zip(elbos["bfloat16"], elbos["float32"], strict=True)]
    assert result["elbo_difference"] == pytest.approx(sum(differences) / len(differences))
    assert all(low != full for low, full in zip(elbos["bfloat16"], elbos["float32"], strict=True))


@pytest.mark.slow
def test_quick_scaling() -> None:
    result = quick("scaling.py")
    one, two, threads = (result["images_per_second"][name] for name in scaling.SETTINGS)
    assert result["efficiency"] == pytest.approx(two / (2 * one))
    assert result["speedup_vs_threads"] == pytest.approx(two / threads)


def compare(out: Path, **more: Any) -> dict[str, Any]:
    """What `recipes.py --quick` finds, without its start."""
    options: dict[str, Any] = {"entries": "vae,vamp", "seeds": "0,1", "learning_rates": "1e-3,3e-3", "tune": "vae"}
    options |= {"epochs": "1", "importance_samples": 5, "limit": None, "data": "digits", "table": False, "quick": True}
    return recipes.measure(argparse.Namespace(**{**options, **more}, out=out), out)


@pytest.mark.slow
def test_quick_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(tmp_path)
    baseline, vamp = result["rows"]
    assert (baseline["entry"], baseline["seeds"], baseline["difference"]) == ("vae", [0, 1], None)
    validation = {
        rate: sum(Run.open(tmp_path / f"vae-1-{rate}-{seed}").summary()["numbers"]["log_px"] for seed in (0, 1)) / 2
        for rate in ("0.001", "0.003")
    }
    best = max(validation, key=lambda rate: validation[rate])
    assert baseline["learning_rate"] == float(best)
    assert baseline["validation_log_px"] == pytest.approx(validation)
    means: dict[str, list[float]] = {}
    others = f"vamp-1-{recipes.LEARNING_RATE:g}"
    for name, row in ((f"vae-1-{best}", baseline), (others, vamp)):
        expected = [vaelab.evaluate(tmp_path / f"{name}-{s}", 5, limit=100, seed=s) for s in (0, 1)]
        for key in ("log_px", "elbo", "rate"):
            means[key] = [getattr(one, key) for one in expected]
            assert row[key] == pytest.approx(sum(means[key]) / 2, rel=1e-6)
        means[row["entry"]] = means["log_px"]
        values = np.load(tmp_path / f"{name}-0" / "test-K5-100.npy", allow_pickle=False)
        assert values.shape == (100,) and values.mean() == pytest.approx(means["log_px"][0], rel=1e-6)
    differences = [a - b for a, b in zip(means["vamp"], means["vae"], strict=True)]
    assert list(vamp["difference_by_seed"].values()) == pytest.approx(differences, abs=1e-5)
    assert vamp["difference"] == pytest.approx(sum(differences) / 2, abs=1e-5)
    assert f"{vamp['difference']:+.3f} ± {vamp['difference_stderr']:.3f}" in recipes.table(result)

    # Nothing is repeated. A run that was cut off before its end goes on, and gives the same.
    capsys.readouterr()
    assert compare(tmp_path) == result and capsys.readouterr().err == ""
    cut = tmp_path / f"{others}-1"
    for file in (recipes.TRAINED, "test-K5-100.json", "test-K5-100.npy"):
        (cut / file).unlink()
    (short,) = compare(tmp_path, table=True)["rows"][1:]
    assert short["seeds"] == [0] and "*" in recipes.table({**result, "rows": [baseline, short]})
    assert compare(tmp_path)["rows"] == result["rows"]
    assert f"{others}-1: goes on" in capsys.readouterr().err
    with pytest.raises(InputError, match="was made with --data digits, not mnist"):
        recipes.train(recipes.Trial("vamp", 1, recipes.LEARNING_RATE, 0), "mnist", tmp_path)


def test_the_plain_loop_agrees_with_vaelab_on_log_px() -> None:
    examples, spec = evaluation_benchmark.pictures(quick=True, limit=6)
    model = evaluation_benchmark.network(spec)
    expected = vaelab.evaluation.likelihood.evaluate_model(model, examples, 300, split="test")
    found = evaluation_benchmark.plain_loop(model, examples, 300, seed=1)
    assert expected.log_px is not None and expected.log_px_monte_carlo is not None
    assert abs(float(found.mean()) - expected.log_px) < 4 * 2**0.5 * expected.log_px_monte_carlo < 1


@pytest.mark.slow
def test_quick_evaluation() -> None:
    result = quick("evaluation.py", "--threads", "1")
    ours, loop, products = (result["contestants"][name] for name in evaluation_benchmark.CONTESTANTS)
    assert ours["n"] == loop["n"] == products["n"] == 10 and result["importance_samples"] == 300
    assert result["ratio"] == pytest.approx(loop["seconds"] / ours["seconds"])
    assert result["times_products"] == pytest.approx(ours["seconds"] / products["seconds"])
    assert ours["seconds_for_all"] == pytest.approx(1000 * ours["seconds"])
    assert result["difference"] == pytest.approx(ours["log_px"] - loop["log_px"])
    assert abs(result["difference"]) < 5 * result["difference_stderr"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["recipes.py", "--seeds", "a", "--out", "runs"], "--seeds a: must be whole numbers"),
        (["recipes.py", "--entries", "nvae", "--out", "runs"], "--entries nvae: there are vae, iwae"),
        (["throughput.py", "--parts", "ratio"], "--parts ratio: there are ratios, peak, neighbor, growth"),
        (["time_to_quality.py", "--levels=low"], "--levels=low: must be numbers"),
        (["scaling.py", "--batch-size", "0"], "must be at least 1"),
        (["evaluation.py", "--limit", "0"], "--limit 0: must be at least 1"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(command: list[str], message: str) -> None:
    script, *words = command
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), *words, "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_pythae_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vaelab\[bench\].*--without-pythae"):
        common.check_pythae()


def test_a_contestant_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(VaelabError, match=r"contestants.py example failed: .*nothing.npy"):
        common.helper("contestants.py", "example", "--train", "nothing.npy", folder=tmp_path)
