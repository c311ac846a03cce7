"""Mistakes that are common in VAE code. Each check passes on vaelab and is shown to fail on the mistake itself.

`caught(check, mistake)` runs the same check on a deliberately wrong implementation and demands that it fails: a
check that cannot tell right from wrong proves nothing.
"""

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vaelab
from vaelab import data as datasets
from vaelab.composition import compose, settle
from vaelab.config import DataConfig, resolve
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.evaluation import estimates, importance_weighted_bounds
from vaelab.evaluation.likelihood import evaluate_model, examples_of
from vaelab.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian
from vaelab.model import VAE, Terms
from vaelab.noise import generator
from vaelab.objectives import ELBO, IWAE
from vaelab.posteriors import DiagonalGaussian, GaussianPosterior
from vaelab.runs import Run

pytestmark = pytest.mark.usefixtures("without_reports")

BINARY = DataSpec((1, 4, 6), "binary", 2)


def caught(check: Callable[..., None], mistake: Any) -> None:
    with pytest.raises(AssertionError):
        check(mistake)


def model_and_data() -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    model = compose(settle(resolve("test", {}, {"model.latent_dim": 3}), BINARY), BINARY)
    for parameter in model.parameters():
        parameter.data *= 2
    return model, (torch.rand(10, 1, 4, 6) < 0.5).float()


def test_reconstruction_is_summed_over_pixels_like_the_kl_over_latents() -> None:
    """A mean over pixels and batch beside a summed KL is a hidden β of 784 or more: the posterior collapses."""
    model, x = model_and_data()
    terms = model.terms(x, 1, generator(0))

    def check(loss: Callable[[Terms], Tensor]) -> None:
        logits = model.decoder(terms.z[0])[:, 0]
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        head = model.posterior.head(model.encoder(x))  # type: ignore[operator]
        kl = 0.5 * (head[:, 3:].exp() + head[:, :3] ** 2 - 1 - head[:, 3:]).sum(1)
        assert loss(terms).item() == pytest.approx((reconstruction + kl).mean().item(), rel=1e-5)

    check(lambda terms: ELBO()(terms).value)
    caught(check, lambda terms: terms.distortion.mean() / 24 + terms.rate.mean())
    caught(check, lambda terms: (terms.distortion + terms.rate).mean() / 10)


def test_noise_is_normal_not_uniform() -> None:
    """`rand` for `randn` shifts every sample by half a standard deviation."""

    def check(noise: Callable[[tuple[int, ...]], Tensor]) -> None:
        values = noise((200_000,)).double()
        assert values.mean().item() == pytest.approx(0, abs=0.012)  # 5 standard errors
        assert values.var().item() == pytest.approx(1, abs=0.016)
        assert values.pow(4).mean().item() == pytest.approx(3, abs=0.11)

    posterior = DiagonalGaussian(torch.zeros(1, 1), torch.ones(1, 1))
    check(lambda shape: posterior.rsample_with_log_prob(shape[0], generator(0))[0].flatten())
    check(lambda shape: vaelab.priors.StandardNormal(1).sample(shape[0], generator(0)).flatten())
    caught(check, lambda shape: torch.rand(shape, generator=generator(0)))


def test_a_sigmoid_appears_once() -> None:
    """A second one confines outputs to [0.5, 0.73]."""

    def check(mean: Callable[[Tensor], Tensor]) -> None:
        logits = torch.tensor([[-8.0, 0.0, 8.0]])
        assert mean(logits)[0].tolist() == pytest.approx([1 / (1 + math.exp(8)), 0.5, 1 / (1 + math.exp(-8))])

    check(lambda logits: Bernoulli(logits, 1).mean)
    caught(check, lambda logits: logits.sigmoid().sigmoid())
    model, _ = model_and_data()
    model.decoder.bias.data[...] = 20.0  # type: ignore[union-attr,operator]
    assert model.sample(50).min() > 0.99


def test_cross_entropy_on_grey_levels_is_no_likelihood() -> None:
    """∫₀¹ exp(−BCE) dx is 2 at logit 0 only with the right constant: without it the mass is not 1."""

    def check(log_prob: Callable[[Tensor], Tensor]) -> None:
        levels = torch.arange(17)[:, None].double() / 16
        assert log_prob(levels).exp().sum().item() == pytest.approx(1, abs=1e-9)

    loc, scale = torch.tensor([0.3]).double(), torch.tensor([0.2]).double()
    check(DiscretizedLogistic(loc, scale, 17, 1).log_prob)
    caught(check, lambda x: -F.binary_cross_entropy(loc.expand_as(x), x, reduction="none").sum(-1))
    with pytest.raises(InputError, match="not normalized on levels data"):
        spec = DataSpec((64,), "levels", 17)
        compose(resolve("test", {}, {"likelihood.name": "bernoulli"}), spec)


def test_a_squared_error_has_a_scale_and_its_constant() -> None:
    """∫ p(x|z) dx = 1 for any σ; a bare squared error is a density for none but σ² = ½/π."""

    def check(log_prob: Callable[[Tensor, float], Tensor]) -> None:
        x = torch.linspace(-60, 60, 200_001, dtype=torch.float64)[:, None]
        for scale in (0.1, 1.0, 3.0):
            assert (log_prob(x, scale).exp().sum() * 6e-4).item() == pytest.approx(1, abs=1e-6)

    check(lambda x, scale: Gaussian(torch.zeros(1).double(), torch.tensor(scale, dtype=torch.float64), 1).log_prob(x))
    caught(check, lambda x, scale: -x.square().sum(-1))
    caught(check, lambda x, scale: -0.5 * (x / scale).square().sum(-1))


def test_log_px_has_the_sign_the_draws_and_all_the_examples(digits_run: Run) -> None:
    """A `get_nll` that returns +log p, takes another number of draws, or drops the remainder gives wrong tables."""
    model, examples = vaelab.load(digits_run), examples_of(digits_run, "train").head(260)  # batches: 250 and 10
    exact = importance_weighted_bounds(model, examples, [64])[0]

    def check(log_px: float) -> None:
        assert log_px == pytest.approx(exact.mean().item(), abs=1e-6)

    check(evaluate_model(model, examples, 64, split="train").log_px)
    caught(check, -exact.mean().item())
    caught(check, exact[:250].mean().item())
    caught(check, exact[:250].sum().item() / 260)
    caught(check, 0.5 * (exact[:250].mean() + exact[250:].mean()).item())
    caught(check, importance_weighted_bounds(model, examples, [5])[0].mean().item())


def test_the_importance_weighted_bound_is_no_weighted_mean_of_log_weights() -> None:
    """Σ w̃ log w has the bound's gradient (with w̃ held fixed) but exceeds the bound."""
    model, x = model_and_data()
    terms = model.terms(x, 50, generator(0))
    log_w = terms.log_weights
    assert log_w is not None

    def check(bound: float) -> None:
        assert bound == pytest.approx((log_w.exp().mean(0).log()).mean().item(), abs=1e-4)

    check(-IWAE(num_samples=50)(terms).value.item())
    check(IWAE(num_samples=50)(terms).metrics["bound"].item())
    caught(check, (log_w.softmax(0) * log_w).sum(0).mean().item())


def test_importance_weights_are_normalized_over_draws_and_favour_the_best() -> None:
    """Over the examples' axis, or over the loss instead of log w, the worst draw would get the weight."""
    log_w = torch.tensor([[0.0, -3.0], [5.0, -1.0], [1.0, -2.0]])

    def check(weights: Tensor) -> None:
        assert weights.sum(0).tolist() == pytest.approx([1.0, 1.0])
        assert weights.argmax(0).tolist() == [1, 1]

    leaf = log_w.clone().requires_grad_()
    zeros = torch.zeros_like(leaf)
    parts: Any = {"posterior": None, "prior": None, "likelihood": None}
    terms = Terms(x=zeros, z=zeros, log_px_z=leaf, log_pz=zeros, log_qz_x=zeros, kl=None, **parts)
    IWAE(num_samples=3)(terms).value.backward()
    assert leaf.grad is not None
    check(-leaf.grad * 2)
    caught(check, log_w.softmax(1))
    caught(check, (-log_w).softmax(0))


def test_the_second_half_of_the_head_is_a_log_variance() -> None:
    """Read as σ, or as log σ, it is another density."""
    head = torch.tensor([[0.7, math.log(0.09)]])

    def check(scale: Tensor) -> None:
        assert scale.item() == pytest.approx(0.3)

    posterior = GaussianPosterior(1, 1)
    posterior.head.weight.data.zero_()
    posterior.head.bias.data.copy_(head[0])
    found = posterior(torch.zeros(1, 1))
    assert found.loc.item() == pytest.approx(0.7)
    check(found.scale)
    caught(check, head[:, 1])
    caught(check, head[:, 1].exp())
    caught(check, F.softplus(head[:, 1]))


def test_the_elbo_averages_over_samples_of_q_not_at_its_mean(digits_run: Run) -> None:
    """At the mean of q the reconstruction looks better than it is: not a bound."""
    model, examples = vaelab.load(digits_run), examples_of(digits_run, "test")
    bounds = importance_weighted_bounds(model, examples, [1, 512])
    found = evaluate_model(model, examples, 512, split="test")

    def check(elbo: float) -> None:
        assert elbo == pytest.approx(bounds[0].mean().item(), abs=0.02)

    check(found.elbo)
    x = examples.batch()
    posterior = model.encode(x)
    kl = model.prior.kl(posterior)
    assert kl is not None
    caught(check, (model.decode(posterior.mean).log_prob(x) - kl.sum(-1)).mean().item())


def test_train_validation_and_test_share_no_example() -> None:
    """Validation taken from the test set, or drawn from the training set, leaks."""
    splits = datasets.load(DataConfig(source="digits")).splits

    def check(parts: list[Tensor]) -> None:
        seen = [{row.numpy().tobytes() for row in part} for part in parts]
        assert sum(map(len, seen)) == len(set().union(*seen))
        assert sum(len(part) for part in parts) == 1797

    check([split.raw for split in splits.values()])
    caught(check, [splits["train"].raw, splits["test"].raw, splits["test"].raw])


def test_every_epoch_sees_every_example_but_a_remainder_in_a_new_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same order in every epoch, or one that always leaves the same examples out, would go unnoticed."""
    rows: list[Tensor] = []
    read = datasets.Split.read

    def watching(self: datasets.Split, index: Any = None) -> Tensor:
        if isinstance(index, Tensor) and len(index) == 128:
            rows.append(index.clone())
        return read(self, index)

    monkeypatch.setattr(datasets.Split, "read", watching)
    overrides = {"network.hidden": [4], "data.binarize": "threshold"}
    vaelab.train("vae", epochs=2, out=tmp_path / "run", overrides=overrides, progress=False)
    first, second = torch.cat(rows[:11]), torch.cat(rows[11:22])
    assert len(first.unique()) == len(second.unique()) == 11 * 128
    assert not torch.equal(first, second)
    assert set(range(1437)) - set(first.tolist()) != set(range(1437)) - set(second.tolist())


def test_nothing_is_ever_unpickled(tmp_path: Path, digits_run: Run) -> None:
    source = Path(vaelab.__file__).parent
    for file in source.rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"\btorch\.load\b|\bimport pickle\b|\bjoblib\b|allow_pickle=True", text), file
    fired: list[str] = []

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return fired.append, ("ran",)

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_bytes((digits_run.path / "config.toml").read_bytes())
    for content in (pickle.dumps(Bomb()), _torch_file()):
        (run / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
            vaelab.load(run)
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"x\.npy"):
        datasets.load(DataConfig(source=str(tmp_path / "x.npy")))
    assert not fired


def _torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(nn.Linear(1, 1).state_dict(), buffer)
    return buffer.getvalue()


def test_mean_error_beside_summed_kl_is_a_variance_of_half_the_dimensions() -> None:
    """Then every eigenvalue of data in [0, 1] is below σ² = D/2, and a linear VAE collapses wholly (oracle 2)."""
    x = torch.as_tensor(datasets.load(DataConfig(source="digits", validation=0, test=0))["train"].batch()).double()
    eigenvalues = torch.linalg.eigvalsh(x.flatten(1).T.cov(correction=0))
    assert int((eigenvalues > 64 / 2).sum()) == 0
    assert eigenvalues.max().item() <= 64 / 4
    assert int((eigenvalues > 0.02).sum()) == 30


def test_evaluation_counts_each_draw_once() -> None:
    """Log-weights added once per dimension, or per chunk twice, change the bound by the logarithm of a whole number."""
    weights = estimates.ImportanceWeights()
    log_w = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double()

    def check(found: Tensor) -> None:
        assert found.tolist() == pytest.approx((log_w.exp().mean(0).log()).tolist(), abs=1e-12)

    for part in log_w.split(5):
        weights.add(part)
    check(weights.log_mean)
    twice = estimates.ImportanceWeights()
    for part in (log_w, log_w[:3]):
        twice.add(part)
    caught(check, twice.log_mean)
