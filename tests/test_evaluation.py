"""Held-out numbers: right value, right error bar, every example counted, bounded memory."""

import json
import math
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import quadrature
from torch import Tensor

import vaelab
from vaelab import cli
from vaelab.composition import compose
from vaelab.config import resolve
from vaelab.data import Split
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.evaluation import Annealing, estimates, evaluate, importance_weighted_bounds
from vaelab.evaluation.estimates import ImportanceWeights, Moments
from vaelab.evaluation.latents import active
from vaelab.evaluation.likelihood import evaluate_model, examples_of
from vaelab.model import VAE
from vaelab.parallel import Unwanted, in_order, still_wanted
from vaelab.runs import Run

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture(scope="module")
def trained(digits_run: Run) -> tuple[VAE, Split, Tensor, Tensor]:
    """A model with two latents, its test examples, and log p(x) and KL to the true posterior by quadrature."""
    model, examples = vaelab.load(digits_run), examples_of(digits_run, "test")
    log_px, divergence = quadrature(model.double(), examples.batch().double())
    return model.float(), examples, log_px, divergence


def test_log_px_and_elbo_agree_with_quadrature(digits_run: Run, trained: tuple[VAE, Split, Tensor, Tensor]) -> None:
    _, examples, log_px, divergence = trained
    found = evaluate(digits_run, importance_samples=2000)
    assert found.n == len(examples) == 180
    assert abs(found.log_px - log_px.mean().item()) < 5 * found.log_px_monte_carlo + 1e-3
    assert abs(found.elbo - (log_px - divergence).mean().item()) < 5 * found.elbo_monte_carlo + 1e-3
    assert found.elbo == pytest.approx(-(found.rate + found.distortion), abs=1e-9)
    assert found.log_px_monte_carlo < 0.02
    assert divergence.mean() > 10 * found.elbo_monte_carlo, "the gap must be visible for this test to say anything"
    # The standard error over examples: that of the exact values, which a thousand draws hardly widen.
    assert found.log_px_stderr == pytest.approx(log_px.std().item() / math.sqrt(180), rel=0.02)


def test_the_stated_monte_carlo_error_is_the_real_one(trained: tuple[VAE, Split, Tensor, Tensor]) -> None:
    """Over 40 seeds, the spread of each estimate against what each states."""
    model, examples, _, _ = trained
    found = [evaluate_model(model, examples.head(60), 64, split="test", seed=seed) for seed in range(40)]
    for name in ("elbo", "distortion", "log_px"):
        spread = np.std([getattr(one, name) for one in found], ddof=1)
        stated = np.mean([getattr(one, f"{name}_monte_carlo") for one in found])
        assert 0.7 < spread / stated < 1.4, name  # the spread of 40 values is known to within 11 %


def test_bounds_rise_with_k_on_the_same_draws(trained: tuple[VAE, Split, Tensor, Tensor]) -> None:
    model, examples, log_px, divergence = trained
    bounds = importance_weighted_bounds(model, examples, (1, 5, 50, 500))
    steps = bounds.diff(dim=0)
    assert torch.all(steps.mean(1) > 2 * steps.std(1) / math.sqrt(180)), "paired over examples"
    assert bounds[0].mean().item() == pytest.approx((log_px - divergence).mean().item(), abs=0.05)
    assert bounds[-1].mean().item() == pytest.approx(log_px.mean().item(), abs=0.05)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_do_not_change_the_sums(chunk: int) -> None:
    log_weights = torch.randn(640, 5, generator=torch.Generator().manual_seed(0)).double() * 10
    weights, moments = ImportanceWeights(), Moments()
    for part in log_weights.split(chunk):
        weights.add(part)
        moments.add(part)
    normalized = log_weights.softmax(0)
    assert weights.log_mean.numpy() == pytest.approx((log_weights.logsumexp(0) - math.log(640)).numpy(), abs=1e-10)
    assert weights.effective_sample_size.numpy() == pytest.approx((1 / normalized.square().sum(0)).numpy(), rel=1e-9)
    assert moments.mean.numpy() == pytest.approx(log_weights.mean(0).numpy(), rel=1e-10)
    assert moments.variance_of_mean.numpy() == pytest.approx((log_weights.var(0) / 640).numpy(), rel=1e-10)


def test_memory_does_not_grow_with_the_number_of_samples(
    trained: tuple[VAE, Split, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples, _, _ = trained
    most, decode = 0, VAE.decode
    encoded, encode = list[int](), VAE.encode

    def watching(self: VAE, z: Tensor, *more: Any, **keys: Any) -> Any:
        nonlocal most
        most = max(most, z[..., 0].numel() * 64)
        return decode(self, z, *more, **keys)

    def counting(self: VAE, x: Tensor, *more: Any, **keys: Any) -> Any:
        encoded.append(len(x))
        return encode(self, x, *more, **keys)

    monkeypatch.setattr(VAE, "decode", watching)
    monkeypatch.setattr(VAE, "encode", counting)
    evaluate_model(model, examples, 20_000, split="test")
    assert 0 < most <= estimates.OUTPUT_NUMBERS
    assert sum(encoded) == 2 * len(examples), "for the draws and for the latents, and not for each chunk of draws"


def test_no_tensor_of_a_batch_is_kept(
    trained: tuple[VAE, Split, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small tensors that stay, cut from large blocks that were freed, took 1 GB for 10,000 examples."""
    model, examples, _, _ = trained
    measured, made = sys.modules["vaelab.evaluation.likelihood"]._measured, list["weakref.ref[Tensor]"]()
    alive = list[int]()

    def noted(*arguments: Any) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = measured(*arguments)
        alive.append(sum(one() is not None for one in made))
        made.extend(weakref.ref(one) for one in columns.values())
        return columns

    monkeypatch.setattr("vaelab.evaluation.likelihood._measured", noted)
    evaluate_model(model, examples, 20, split="test")
    assert len(alive) == 4 and len(made) > 40
    assert max(alive) <= len(made) // 4, "the batch before, at most"


def test_threads_change_no_number(trained: tuple[VAE, Split, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, _, _ = trained
    alone = evaluate_model(model, examples, 20, split="test")
    measured, threads = sys.modules["vaelab.evaluation.likelihood"]._measured, set[bool]()

    def noted(*arguments: Any) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        return measured(*arguments)

    monkeypatch.setattr("vaelab.evaluation.likelihood._measured", noted)
    torch.set_num_threads(2)
    try:
        assert evaluate_model(model, examples, 20, split="test") == alone
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert threads == {False}


def test_an_error_in_a_thread_ends_the_work_and_gives_the_threads_back() -> None:
    def odd(number: int) -> int:
        assert torch.get_num_threads() == 1
        if number == 3:
            raise InputError("three")
        return number

    taken: list[int] = []
    torch.set_num_threads(2)
    try:
        assert list(in_order(odd, range(3))) == [0, 1, 2]
        with pytest.raises(InputError, match="three"):
            taken += in_order(odd, iter(range(100)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_work_that_nobody_waits_for_any_more_ends_at_once() -> None:
    ended: list[bool] = []

    def endless(number: int) -> int:
        if number == 0:
            return number
        while True:
            try:
                still_wanted()
            except Unwanted:
                ended.append(True)
                raise

    torch.set_num_threads(2)
    try:
        for number in in_order(endless, range(3)):  # as if Ctrl-C had come after the first
            assert number == 0
            break
    finally:
        torch.set_num_threads(1)
    assert ended
    still_wanted()  # in no such thread nothing happens


def test_scales_at_their_floor_are_counted_example_by_example(
    trained: tuple[VAE, Split, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples, _, _ = trained
    some = examples.head(51)  # a batch of 50, and one of 1

    def only_the_last(distribution: Any) -> Tensor:
        return torch.tensor(float(distribution.logits.shape[0] == 1))

    monkeypatch.setattr(model.likelihood, "fraction_at_floor", only_the_last)
    assert evaluate_model(model, some, 1, split="test").scale_at_floor == pytest.approx(1 / 51)


@pytest.mark.parametrize("num_samples", [[], [0], [5, -1]])
def test_bounds_of_no_draws_are_refused(trained: tuple[VAE, Split, Tensor, Tensor], num_samples: list[int]) -> None:
    model, examples, _, _ = trained
    with pytest.raises(InputError, match="num_samples=.*at least 1"):
        importance_weighted_bounds(model, examples, num_samples)


def test_the_first_k_draws_make_log_px_and_more_make_the_elbo(trained: tuple[VAE, Split, Tensor, Tensor]) -> None:
    """With K = 1, log_px is a single-sample ELBO, and elbo is still an average over 64 draws."""
    model, examples, log_px, divergence = trained
    one = evaluate_model(model, examples, 1, split="test")
    assert one.importance_samples == 1
    assert one.effective_sample_size == pytest.approx(1)
    assert one.elbo_monte_carlo < 0.05
    assert one.elbo == pytest.approx((log_px - divergence).mean().item(), abs=5 * one.elbo_monte_carlo)


def test_a_single_draw_states_no_error(trained: tuple[VAE, Split, Tensor, Tensor]) -> None:
    model, examples, _, _ = trained
    assert evaluate_model(model, examples, 1, split="test").log_px_monte_carlo is None


def test_numbers_that_are_not_finite_are_null_in_json(trained: tuple[VAE, Split, Tensor, Tensor]) -> None:
    _, examples, _, _ = trained
    model = compose(
        resolve("nan", {}, {"model.latent_dim": 2, "likelihood.name": "bernoulli"}), DataSpec((1, 8, 8), "binary", 2)
    )
    model.decoder.bias.data.fill_(float("nan"))  # type: ignore[union-attr,operator]
    found = evaluate_model(model, examples, 2, split="test")
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["elbo"] is None


def test_limit_takes_the_first_examples_and_their_numbers(digits_run: Run) -> None:
    """Batches of 250 do not divide 333: the remainder counts, with its own weight."""
    model, examples = vaelab.load(digits_run), examples_of(digits_run, "train")
    part = evaluate(digits_run, 3, split="train", limit=333)
    assert part.n == 333
    x = examples.head(333).batch()
    batches = _batches(examples, 333)
    by_hand = torch.cat([estimates.estimate(model, x, 3, 64, noise).rate for x, _, noise in batches])
    assert part.rate == pytest.approx(by_hand.mean().item(), abs=1e-9)
    mean, log_variance = model.posterior.head(model.encoder(x)).chunk(2, -1)  # type: ignore[operator]
    rate = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(-1)
    assert part.rate == pytest.approx(rate.mean().item(), rel=1e-5)


def _batches(examples: Split, number: int) -> Any:
    return estimates.batches(examples.head(number), 0)


def test_bits_per_dimension_are_log_px_over_dimensions(digits_run: Run) -> None:
    found = evaluate(digits_run, 5)
    assert found.bits_per_dim == pytest.approx(-found.log_px / (64 * math.log(2)))


def test_active_units() -> None:
    means = torch.zeros(1000, 3)
    means[:, 0] = torch.linspace(-1, 1, 1000)
    means[:, 1] = torch.linspace(-0.1, 0.1, 1000)  # variance 0.0033
    assert active(means).tolist() == [True, False, False]


def test_a_deterministic_posterior_has_nulls_and_no_number_without_meaning() -> None:
    spec = DataSpec((6,), "binary", 2)
    config = resolve("ae", {}, {"posterior.name": "deterministic", "model.latent_dim": 2})
    model = compose(config, spec)
    raw = (torch.rand(40, 6) < 0.5).to(torch.uint8)
    found = evaluate_model(model, Split(raw), 10, split="test")
    for name in ("elbo", "rate", "log_px", "effective_sample_size", "bits_per_dim", "active_units"):
        assert getattr(found, name) is None, name
    x = raw.float()
    assert found.distortion == pytest.approx(-model.decode(model.encode(x).mean).log_prob(x).mean().item(), rel=1e-6)
    assert "elbo" in str(found)


@pytest.mark.parametrize("method", ["annealed", "quadrature"])
def test_an_autoencoder_gets_no_log_px_by_its_decoder_and_prior(method: Any, tmp_path: Path) -> None:
    keys = {"network.hidden": [4], "model.latent_dim": 1}
    run = vaelab.train("autoencoder", data="digits", epochs=1, out=tmp_path / "run", overrides=keys, progress=False)
    with pytest.raises(InputError, match="an autoencoder, whose prior has no part in training"):
        evaluate(run, limit=2, method=method)


def test_evaluation_is_in_float32_after_bfloat16_training(digits_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Any] = set()
    terms = VAE.terms

    def watching(self: VAE, x: Tensor, *arguments: Any, **keys: Any) -> Any:
        found = terms(self, x, *arguments, **keys)
        seen.update((keys.get("network_dtype"), found.log_px_z.dtype, found.z.dtype, x.dtype))
        return found

    monkeypatch.setattr(VAE, "terms", watching)
    evaluate(digits_run, 2, limit=10)
    assert seen == {None, torch.float32}


def test_the_keys_of_the_json(digits_run: Run) -> None:
    keys = {"split", "n", "importance_samples", "effective_sample_size", "bits_per_dim", "active_units", "latent_dim"}
    for name in ("elbo", "rate", "distortion", "log_px"):
        keys |= {name, f"{name}_stderr"}
    found = json.loads(json.dumps(evaluate(digits_run, 2, limit=3).to_dict(), allow_nan=False))
    assert keys <= found.keys()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"importance_samples": 0}, "importance_samples=0: must be at least 1"),
        ({"limit": 0}, "limit=0: must be at least 1"),
        ({"split": "tset"}, "tset"),
    ],
)
def test_bad_arguments(digits_run: Run, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(digits_run, **keys)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_data_that_changed_since_training_are_refused(tmp_path: Any) -> None:
    """Another division would put training examples into the test set."""
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(60, 4)))
    overrides = {"network.hidden": [4], "model.latent_dim": 1}
    run = vaelab.train("vae", data=str(path), epochs=1, out=tmp_path / "run", overrides=overrides, progress=False)
    assert evaluate(run, 2).n == 6
    np.save(path, np.random.default_rng(1).normal(size=(60, 4)))
    with pytest.raises(InputError, match=r"x\.npy: the data have changed"):
        evaluate(run, 2)


def run_evaluate(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["vaelab", "evaluate", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_line_asks_for_all_of_it(
    digits_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(digits_run), "--limit", "4", "--method", "annealed", "--chains", "2", "--temperatures", "5"]
    assert run_evaluate(monkeypatch, *words, "--split-rate", "--json") == 0
    found = evaluate(
        digits_run, limit=4, method="annealed", annealing=Annealing(chains=2, temperatures=5), split_rate=True
    )
    assert json.loads(capsys.readouterr().out) == found.to_dict()
    assert run_evaluate(monkeypatch, str(digits_run), "--chains", "2") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "use --method annealed" in said.err
