"""Classes of models beside the plain VAE: hierarchical, quantized, conditional and joint, and the fitted prior."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import vaelab
from vaelab import report
from vaelab.composition import compose, compose_objective, settle
from vaelab.config import Config, resolve
from vaelab.data.dataset import Split
from vaelab.data.spec import DataSpec
from vaelab.data.stream import Rows
from vaelab.errors import InputError
from vaelab.evaluation import estimates
from vaelab.generation import latent_paths, sampling
from vaelab.hierarchical import Hierarchical, TopDown
from vaelab.labels import Labels
from vaelab.model import VAE, Model
from vaelab.noise import generator
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import AggregatePrior, ProductPrior, StandardNormal
from vaelab.quantized import FiniteScalarQuantizer, Quantized, VectorQuantizer
from vaelab.runs import Run
from vaelab.training.job import unchanged

pytestmark = pytest.mark.usefixtures("without_reports")

SPEC = DataSpec((4,), "binary", 2, classes=3)
PICTURE = DataSpec((1, 4, 6), "binary", 2, classes=3)
SMALL: dict[str, Any] = {"network.hidden": [6], "network.activation": "tanh", "likelihood.name": "bernoulli"}


def made(spec: DataSpec = SPEC, size: float = 0.3, **keys: Any) -> Any:
    """A model in float64 with random weights: `made(**{"model.name": "joint"})`."""
    torch.manual_seed(0)
    model = compose(settle(resolve("test", {}, {**SMALL, **keys}), spec), spec).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)
    return model.eval()


def binary(number: int, spec: DataSpec = SPEC) -> Tensor:
    return (torch.rand(number, *spec.shape, generator=generator(number, "x")) < 0.5).double()


def square(edge: float = 24.0, points: int = 801) -> tuple[Tensor, float]:
    """Points of two dimensions, and the logarithm of a cell's area."""
    axis = torch.linspace(-edge, edge, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), 2 * math.log(float(axis[1] - axis[0]))


MOMENTS: list[Callable[[Tensor], Tensor]] = [
    lambda z: z[..., 0],
    lambda z: z[..., 1],
    lambda z: z[..., 0] * z[..., 1],
    lambda z: z[..., 1] ** 2,
]


# -- hierarchical ----------------------------------------------------------------------------------------------------

TWO = {"model.name": "hierarchical", "model.latent_dims": [1, 1], "model.hidden": 5}
THREE = {"model.name": "hierarchical", "model.latent_dims": [2, 1, 3], "model.hidden": 5}


@pytest.mark.parametrize("prior", ["normal", pytest.param("mixture", marks=pytest.mark.slow), "flow"])
@torch.no_grad()
def test_densities_of_a_hierarchy_have_mass_one_and_draws_follow_them(prior: str) -> None:
    model = made(size=0.2, **TWO, **{"prior.name": prior}, **({"prior.hidden": [6]} if prior == "flow" else {}))
    z, log_cell = square()
    log_p = model.prior.log_prob(z) + log_cell
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=3e-3)
    posterior = model.encode(binary(3))
    log_q = posterior.log_prob(z[:, None]) + log_cell
    assert log_q.logsumexp(0).tolist() == pytest.approx([0] * 3, abs=1e-3)
    drawn, log_q_of_drawn = posterior.sample_with_log_prob(200_000, generator(0))
    assert log_q_of_drawn.tolist() == pytest.approx(posterior.log_prob(drawn).numpy(), abs=1e-9)
    for draws, log_density in ((model.prior.sample(200_000, generator(1)), log_p[:, None]), (drawn, log_q)):
        draws = draws.view(200_000, -1, 2)
        density = log_density.exp()
        for moment in MOMENTS:
            exact = (density * moment(z)[:, None]).sum(0)
            error = moment(draws).std(0) / math.sqrt(len(draws))
            assert ((moment(draws).mean(0) - exact).abs() < 5 * error + 2e-3).all()
            assert (error < 0.03 * exact.abs().clamp(min=1)).all()


@torch.no_grad()
def test_a_layer_of_the_posterior_is_the_product_of_two_gaussians() -> None:
    """q(z_i | z above, x) ∝ N(z_i; evidence) p(z_i | z above), by the densities themselves."""
    model: Hierarchical = made(**TWO)
    posterior = model.encode(binary(3))
    above = torch.tensor([[0.7]], dtype=torch.float64)
    line = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None, None]
    conditional = model.prior.heads[0](model.prior.embeddings[0](above) + model.prior.blocks[0](above))
    product = posterior.evidence[1].log_prob(line) + conditional.log_prob(line)
    product = product - product.logsumexp(0) - math.log(80 / 8000)
    own = posterior.layer(1, conditional).log_prob(line)
    near = product > -40
    assert own[near].numpy() == pytest.approx(product[near].numpy(), abs=1e-8)
    z = torch.cat((above.expand(8001, 3, 1), line.expand(8001, 3, 1)), -1)
    whole = posterior.log_prob(z) - posterior.evidence[0].log_prob(above)
    assert whole[near].numpy() == pytest.approx(product[near].numpy(), abs=1e-8)


@torch.no_grad()
def test_the_evidence_of_the_top_layer_has_seen_the_whole_way_up() -> None:
    """d_1 is nearest to x, d_N furthest from it; and heads go to the layers with their numbers of latents."""
    model: Hierarchical = made(**THREE)
    evidence = model.encode(binary(2)).evidence
    assert [one.loc.shape[-1] for one in evidence] == [2, 1, 3]
    d = model.encoder(binary(2))
    for climb, head, found in zip(model.climbs, reversed(model.heads), reversed(evidence), strict=True):
        d = climb(d)
        assert torch.equal(head(d).loc, found.loc) and torch.equal(head(d).scale, found.scale)


@torch.no_grad()
def test_every_layer_depends_on_those_above_and_on_nothing_below() -> None:
    model: Hierarchical = made(**THREE)
    z = torch.randn(6, generator=generator(0), dtype=torch.float64)
    parts = {"top": [0, 1], "middle": [2], "bottom": [3, 4, 5]}

    def conditionals(z: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        split = z.split([2, 1, 3])

        def choose(layer: int, conditional: DiagonalGaussian | None) -> Tensor:
            found.append(torch.zeros(1) if conditional is None else conditional.loc)
            return split[layer]

        found.append(model.prior.descend(choose))
        return found

    before = conditionals(z)
    for place, name in enumerate(parts):
        moved = z.clone()
        moved[parts[name]] += 0.5
        after = conditionals(moved)
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [i > place for i in range(4)]
    assert torch.equal(model.prior.state(z), before[-1])


@pytest.mark.parametrize("prior", ["normal", "mixture"])
@torch.no_grad()
def test_kl_by_layer_is_unbiased_and_sums_to_the_rate(prior: str) -> None:
    model: Hierarchical = made(**THREE, **{"prior.name": prior})
    x = binary(3)
    terms = model.terms(x, 40_000, generator(0))
    assert terms.kl is not None and terms.rate is not None and terms.log_qz_x is not None
    assert terms.kl.shape == (3, 3) and list(terms.groups) == ["layer_3", "layer_2", "layer_1"]
    posterior = model.encode(x)
    by_layer: list[Tensor] = []  # log q − log p of each layer's own draws
    parts = terms.z.split([2, 1, 3], -1)

    def choose(layer: int, conditional: DiagonalGaussian | None) -> Tensor:
        log_p = model.prior.top.log_prob(parts[0]) if conditional is None else conditional.log_prob(parts[layer])
        by_layer.append(posterior.layer(layer, conditional).log_prob(parts[layer]) - log_p)
        return parts[layer]

    model.prior.descend(choose)
    for place, ratio in enumerate(by_layer):
        error = ratio.std(0) / math.sqrt(len(ratio))
        assert ((ratio.mean(0) - terms.kl[:, place]).abs() < 5 * error).all()
        assert (terms.kl[:, place] > 0.005).all() and (error < 0.1 * terms.kl[:, place]).all()
    assert (sum(by_layer) - (terms.log_qz_x - terms.log_pz)).abs().max() < 1e-9
    assert terms.log_pz.numpy() == pytest.approx(model.prior.log_prob(terms.z).numpy(), abs=1e-9)
    objective = compose_objective(resolve("test", {}, {}), model, 100)
    found = objective(terms).metrics
    rates = [float(found[f"rate_layer_{i}"]) for i in (1, 2, 3)]
    assert sum(rates) == pytest.approx(float(found["rate"]), rel=1e-9)
    assert rates[2] == pytest.approx(float(terms.kl[:, 0].mean()), rel=1e-9)  # the top layer is the third
    estimated = estimates.estimate(model, x, 4000, 4000, generator(1))
    assert estimated.rate is not None and set(estimated.rates) == {"layer_1", "layer_2", "layer_3"}
    assert sum(estimated.rates.values()).mean().item() == pytest.approx(float(estimated.rate.mean()), abs=0.05)


@torch.no_grad()
def test_bounds_of_a_hierarchy_lie_below_log_px() -> None:
    model = made(size=0.15, **TWO)
    x = binary(4)
    z, log_cell = square()
    log_joint = model.prior.log_prob(z)[:, None] + model.decode(z[:, None]).log_prob(x)
    log_px = log_joint.logsumexp(0) + log_cell
    log_q = model.encode(x).log_prob(z[:, None])
    exact = ((log_q + log_cell).exp() * (log_joint - log_q)).sum(0)
    found = estimates.estimate(model, x, 20_000, 20_000, generator(0))
    assert found.elbo is not None and found.log_px is not None
    assert found.elbo.tolist() == pytest.approx(exact.tolist(), abs=0.03)
    assert found.log_px.tolist() == pytest.approx(log_px.tolist(), abs=0.02)
    log_w = model.terms(x, 20_000, generator(1)).log_weights
    bound = (log_w.unflatten(0, (-1, 5)).logsumexp(1) - math.log(5)).mean(0)
    assert (exact + 0.02 < bound).all() and (bound < log_px - 0.005).all()


def test_gradients_of_a_hierarchy_reach_everything() -> None:
    model = made(**THREE, **{"model.conditional": True}).train()
    objective = compose_objective(resolve("test", {}, {}), model, 100)
    loss = objective(model.terms(binary(8), 1, generator(0), y=torch.arange(8) % 3, relaxed=True))
    loss.value.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_hierarchy_samples_from_its_prior_and_replays() -> None:
    model = made(**THREE)
    z = model.sample_latents(5, generator(0))
    assert torch.equal(z, model.sample_latents(5, generator(0))) and z.shape == (5, 6)
    assert model.sample(5, draw=True, generator=generator(1)).unique().tolist() == [0, 1]
    mean = model.encode(binary(2)).mean
    top = model.encode(binary(2)).evidence[0].loc
    assert torch.equal(mean[:, :2], top)


# -- quantized -------------------------------------------------------------------------------------------------------

PLACES = {"model.name": "quantized", "model.places": 2}
VQ = {**PLACES, "posterior.name": "vq", "posterior.codes": 4, "posterior.channels": 3}
FSQ = {**PLACES, "posterior.name": "fsq", "posterior.levels": [3, 2]}


def test_the_nearest_code_is_chosen_and_gradients_go_straight_through() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes=7, channels=3, update="loss", commitment=0.4).double()
    features = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    codes = quantizer(features.flatten(1))
    for b, p in itertools.product(range(5), range(4)):
        distances = [float((features[b, p] - code).detach().norm()) for code in quantizer.codebook]
        assert int(codes.index[b, p]) == distances.index(min(distances))
        assert torch.allclose(codes.vectors[b, p], quantizer.codebook[codes.index[b, p]], atol=1e-12)
    wanted = torch.randn(5, 12, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((codes.mean * wanted).sum(), features)
    assert torch.equal(gradient.flatten(1), wanted)
    off = features.detach() - quantizer.codebook.detach()[codes.index]
    by_hand = off.square().sum((1, 2))
    assert codes.penalties["commitment"].tolist() == pytest.approx((0.4 * by_hand).tolist(), rel=1e-12)
    assert codes.penalties["codebook"].tolist() == pytest.approx(by_hand.tolist(), rel=1e-12)
    of_features, of_table = torch.autograd.grad(
        codes.penalties["commitment"].sum(), [features, quantizer.table], allow_unused=True, retain_graph=True
    )
    assert of_table is None and of_features.numpy() == pytest.approx((0.8 * off).numpy(), rel=1e-12)
    of_features, of_table = torch.autograd.grad(
        codes.penalties["codebook"].sum(), [features, quantizer.table], allow_unused=True
    )
    expected = torch.zeros_like(of_table).index_add_(0, codes.index.flatten(), -2 * off.flatten(0, 1))
    assert of_features is None and of_table.numpy() == pytest.approx(expected.numpy(), abs=1e-12)


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_the_codebook_follows_a_loop_by_hand(update: Any) -> None:
    """Running counts and sums in numpy; a code below 2 % of the average use starts anew at a feature of the batch."""
    torch.manual_seed(1)
    quantizer = VectorQuantizer(codes=6, channels=2, update=update, decay=0.8, revive=0.02).double()
    table = quantizer.table.detach().numpy().copy()
    uses, sums, revived_later = np.zeros(6), np.zeros((6, 2)), 0
    for step in range(30):
        features = torch.randn(9, 3, 2, dtype=torch.float64, generator=generator(step)) * 0.3 + 1.0 * step
        flat = features.flatten(0, 1).numpy()
        index = np.array([np.argmin(((table - f) ** 2).sum(1)) for f in flat])
        codes = quantizer(features.flatten(1))
        assert codes.index.flatten().tolist() == index.tolist()
        if update == "ema":
            assert set(codes.penalties) == {"commitment"}
        quantizer.learn(features, codes, generator(step, "learn"))
        noise = generator(step, "learn")
        picked = torch.randint(27, (6,), generator=noise).numpy()
        patience = 1 + torch.rand(6, dtype=torch.float64, generator=noise).numpy()
        uses = 0.8 * uses + 0.2 * np.array([(index == code).sum() for code in range(6)])
        if update == "ema":
            sums = 0.8 * sums + 0.2 * np.stack([flat[index == code].sum(0) for code in range(6)])
            table = sums / np.maximum(uses, 1e-6)[:, None]
        dead = (uses < 0.02 * 27 / 6) | (step == 0)  # all start at features of the first batch
        revived_later += dead.sum() if step else 0
        lease = 0.02 * 27 / 6 * patience[dead]
        table[dead], uses[dead], sums[dead] = flat[picked][dead], lease, flat[picked][dead] * lease[:, None]
        assert quantizer.table.detach().numpy() == pytest.approx(table, abs=1e-12)
        assert quantizer.uses.numpy() == pytest.approx(uses, abs=1e-12)
    assert revived_later > 3


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_codes_that_are_left_behind_are_not_replaced_all_at_once(update: Any) -> None:
    """The features go far away after the first batch, as an encoder's do: all codes but a few follow, one by one."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes=32, channels=4, update=update)
    replaced: list[int] = []
    for step in range(500):
        noise = generator(step)
        features = torch.randn(16, 4, 4, generator=noise) + (10.0 if step else 0.0)
        before = quantizer.table.detach().clone()
        quantizer.learn(features, quantizer(features.flatten(1)), noise)
        jumped = (quantizer.table.detach() - before).abs().max(-1).values > 5
        replaced.append(int(jumped.sum()))
    assert max(replaced[1:]) <= 8
    assert sum(replaced[1:]) >= 24
    assert (quantizer.table.detach().mean(-1) > 5).all()


def test_features_that_are_not_finite_do_not_enter_the_codebook() -> None:
    quantizer = VectorQuantizer(codes=4, channels=2)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    features = torch.randn(3, 2, 2)
    features[1, 0, 0] = math.nan
    quantizer.learn(features, quantizer(features.flatten(1)), generator(0))
    assert all(torch.equal(buffer, before[name]) for name, buffer in quantizer.named_buffers())


def test_features_that_are_not_finite_in_another_process_do_not_enter_either(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def all_reduce(tensor: Tensor, op: Any = None) -> None:
        asked.append(op)
        tensor.zero_()  # the other process had a NaN

    monkeypatch.setattr("vaelab.quantized.dist.is_initialized", lambda: True)
    monkeypatch.setattr("vaelab.quantized.dist.all_reduce", all_reduce)
    quantizer = VectorQuantizer(codes=4, channels=2)
    before = quantizer.table.clone()
    features = torch.randn(3, 2, 2)
    quantizer.learn(features, quantizer(features.flatten(1)), generator(0))
    assert torch.equal(quantizer.table, before)
    assert asked == [torch.distributed.ReduceOp.MIN]  # it asked that alone: the other has stopped, too


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_without_revival_a_code_that_is_not_chosen_stays(update: Any) -> None:
    """All codes start at features of the first batch; then the features go far away, nearest to one of the codes."""
    quantizer = VectorQuantizer(codes=6, channels=2, update=update, decay=0.5, revive=0.0)
    tables: list[Tensor] = []
    for step in range(40):
        features = torch.randn(9, 3, 2, generator=generator(step)) + (20.0 if step else 0.0)
        codes = quantizer(features.flatten(1))
        quantizer.learn(features, codes, generator(step, "learn"))
        assert step == 0 or codes.index.unique().numel() == 1
        tables.append(quantizer.table.detach().clone())
    chosen = int(codes.index[0, 0])
    others = [code for code in range(6) if code != chosen]
    assert torch.allclose(tables[-1][others], tables[0][others], atol=1e-5)
    assert (tables[-1][chosen].mean() > 15) == (
        update == "ema"
    )  # by the loss it follows its gradient, which is not here


@pytest.mark.parametrize("levels", [(2,), (3,), (8, 5, 5), (4, 3), (2, 2, 2)])
def test_every_code_of_a_scalar_quantizer_is_reached_and_is_its_index(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels=levels).double()
    features = 4 * torch.randn(20_000, 1, len(levels), dtype=torch.float64, generator=generator(0))
    codes = quantizer(features.flatten(1))
    assert codes.index.unique().tolist() == list(range(math.prod(levels)))
    assert codes.vectors.numpy() == pytest.approx(quantizer.codebook[codes.index].numpy(), abs=1e-6)
    rows = list(itertools.product(*[np.linspace(-1, 1, n) for n in levels]))
    assert quantizer.codebook.numpy() == pytest.approx(np.array(rows), abs=1e-7)
    # Nearest on the scale on which the sigmoid is bounded: L intervals of equal width.
    for place, n in enumerate(levels):
        level = (features[:, 0, place].sigmoid() * n).floor().clamp(0, n - 1)
        assert codes.vectors[:, 0, place].numpy() == pytest.approx((2 * level / (n - 1) - 1).numpy(), abs=1e-12)
    extreme = quantizer(torch.tensor([[1e4] * len(levels), [-1e4] * len(levels)], dtype=torch.float64))
    assert extreme.index.flatten().tolist() == [math.prod(levels) - 1, 0]


def test_a_scalar_quantizer_has_the_gradient_of_its_bounded_number() -> None:
    quantizer = FiniteScalarQuantizer(levels=(5,)).double()
    features = torch.tensor([[-1.0, 0.3, 2.0]], dtype=torch.float64, requires_grad=True)
    codes = quantizer(features)
    (gradient,) = torch.autograd.grad(codes.mean.sum(), features)
    s = features.detach().sigmoid()
    assert gradient.tolist()[0] == pytest.approx((2 * 5 / 4 * s * (1 - s)).tolist()[0], rel=1e-12)
    assert codes.penalties == {}


@pytest.mark.parametrize("keys", [VQ, FSQ], ids=["vq", "fsq"])
@pytest.mark.parametrize("prior", ["categorical", "autoregressive"])
@torch.no_grad()
def test_the_bound_of_a_quantized_model_is_below_the_sum_over_all_grids(keys: dict[str, Any], prior: str) -> None:
    model: Quantized = made(
        **keys, **{"prior.name": prior, **({"prior.width": 8} if prior == "autoregressive" else {})}
    )
    codes = model.posterior.codes
    x, grids = binary(5), torch.cartesian_prod(torch.arange(codes), torch.arange(codes))
    one_hot = torch.eye(codes, dtype=torch.float64)[grids].flatten(1)
    log_p = model.prior.log_prob(one_hot)
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-9)
    z = model.choices[grids].flatten(1).double()
    log_joint = log_p[:, None] + model.decode(z[:, None]).log_prob(x)
    found = estimates.estimate(model, x, 3, 64, generator(0))
    assert found.elbo is not None and found.log_px is not None
    index = model.encode(x).index
    own = log_joint[index[:, 0] * codes + index[:, 1], torch.arange(5)]
    assert found.elbo.tolist() == pytest.approx(own.tolist(), abs=1e-9)
    assert found.log_px.tolist() == pytest.approx(own.tolist(), abs=1e-9)
    assert (found.elbo < log_joint.logsumexp(0)).all()
    # Samples: grids as often as the prior says, decoded from their codes' vectors.
    drawn = model.sample_latents(20_000, generator(1))
    hit = (drawn[:, None] - z).abs().amax(-1) < 1e-6
    assert (hit.sum(1) >= 1).all()
    if len({tuple(row) for row in z.tolist()}) == len(z):
        assert hit.double().mean(0).tolist() == pytest.approx(log_p.exp().tolist(), abs=0.015)


@pytest.mark.parametrize("keys", [VQ, FSQ], ids=["vq", "fsq"])
def test_the_priors_gradient_ends_at_the_codes(keys: dict[str, Any]) -> None:
    """log p(z) trains the prior and nothing else; log p(x|z) trains encoder and decoder and not the prior."""
    model = made(**keys, **{"prior.name": "autoregressive", "prior.width": 8})
    terms = model.terms(binary(6), 1, generator(0), relaxed=True)
    named = dict(model.named_parameters())
    of_prior = torch.autograd.grad(terms.log_pz.sum(), list(named.values()), allow_unused=True, retain_graph=True)
    of_x = torch.autograd.grad(terms.log_px_z.sum(), list(named.values()), allow_unused=True)
    for name, one, other in zip(named, of_prior, of_x, strict=True):
        assert (one is not None and bool(one.any())) == name.startswith("prior."), name
        assert (other is not None and bool(other.any())) == name.startswith(("encoder.", "decoder.")), name


def test_usage_is_told_and_penalties_enter_the_loss_but_not_the_bound() -> None:
    model: Quantized = made(**VQ, **{"posterior.update": "loss"})
    model.posterior.table.data[:] = torch.randn(4, 3)
    x = binary(40)
    terms = model.terms(x)
    found = compose_objective(resolve("test", {}, {}), model, 100)(terms).metrics
    share = np.bincount(model.encode(x).index.flatten().numpy(), minlength=4) / 80
    share = share[share > 0]
    assert float(found["codes_used"]) == len(share) > 1
    assert float(found["perplexity"]) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    penalty = float(found["commitment"] + found["codebook"])
    assert float(found["commitment"]) == pytest.approx(0.25 * float(found["codebook"]), rel=1e-6) and penalty > 0
    assert float(found["loss"]) == pytest.approx(-float(found["elbo"]) + penalty, rel=1e-9)


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_a_quantizer_learns_in_training_and_only_there(update: str) -> None:
    model: Quantized = made(**VQ, **{"posterior.update": update})
    x = binary(6)

    def buffers() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    before = buffers()
    model.eval().terms(x)
    with torch.no_grad():
        model.train().terms(x)
    assert same(before, buffers())
    with unchanged(model):
        model.terms(x, 1, generator(0))
    assert same(before, buffers())
    model.terms(x, 1, generator(0))
    assert not same(before, buffers())


def test_labels_stand_beside_every_place() -> None:
    model: Quantized = made(**VQ, **{"model.conditional": True})
    z, y = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    seen: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.decode(z, y=y)
    model.decode(z.expand(7, 5, 6), y=y)
    one_hot = torch.eye(3, dtype=torch.float64)[y]
    by_hand = torch.cat((z[:, :3], one_hot, z[:, 3:], one_hot), dim=1)
    assert torch.equal(seen[0], by_hand)
    assert torch.equal(seen[1], by_hand.repeat(7, 1))


# -- labels ----------------------------------------------------------------------------------------------------------

CONDITIONAL: list[dict[str, Any]] = [
    {},
    {"posterior.name": "gumbel-softmax", "posterior.categories": 3, "model.latent_dim": 2},
    {"model.name": "joint", "model.latent_dim": 2, "model.categories": 3},
    TWO,
    FSQ,
    {"prior.name": "vamp", "prior.components": 4, "model.latent_dim": 2},
]


@pytest.mark.parametrize("spec", [SPEC, PICTURE], ids=["vector", "picture"])
@pytest.mark.parametrize("keys", CONDITIONAL, ids=lambda keys: "-".join(map(str, keys.values())) or "vae")
def test_encoder_and_decoder_see_the_label(keys: dict[str, Any], spec: DataSpec) -> None:
    model: Model = made(spec, **keys, **{"model.conditional": True})
    x = binary(1, spec).expand(3, *spec.shape)
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(x, y=torch.arange(3))
    (inputs,) = seen
    if spec is PICTURE:
        assert torch.equal(inputs[:, :1], x) and inputs.shape[1] == 2
        assert model.labels is not None and torch.equal(inputs[:, 1:], model.labels.planes)
    else:
        assert torch.equal(inputs, torch.cat((x, torch.eye(3, dtype=x.dtype)), 1))
    z = model.sample_latents(1, generator(0)).expand(3, -1)
    with torch.no_grad():
        apart = model.decode(z, y=torch.arange(3)).mean
        assert (apart[0] - apart[1]).abs().max() > 1e-3 and (apart[1] - apart[2]).abs().max() > 1e-3
        # Each example's label is its own, also beside K draws.
        y = torch.tensor([2, 0, 1])
        several = model.decode(z.expand(4, 3, -1), y=y).mean
        assert torch.allclose(several, apart[y].expand_as(several), atol=1e-12)


def test_terms_of_a_conditional_model_are_those_of_each_label_alone() -> None:
    model = made(**{"model.conditional": True, "model.latent_dim": 2})
    x, y = binary(6), torch.tensor([0, 1, 2, 2, 1, 0])
    terms = model.terms(x, 3, generator(0), y=y)
    for row in range(6):
        alone = model.decode(terms.z[:, row : row + 1], y=y[row : row + 1]).log_prob(x[row : row + 1])
        assert terms.log_px_z[:, row].tolist() == pytest.approx(alone[:, 0].tolist(), abs=1e-12)
        own, whole = model.encode(x[row : row + 1], y=y[row : row + 1]), model.encode(x, y=y)
        assert own.loc[0].tolist() == pytest.approx(whole.loc[row].tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (None, "is conditional: give y, 4 labels from 0 to 2"),
        (torch.tensor([0, 1, 2]), "4 integers from 0 to 2"),
        (torch.tensor([0, 1, 2, 3]), "4 integers from 0 to 2"),
        (torch.tensor([0, -1, 2, 1]), "4 integers from 0 to 2"),
        (torch.tensor([0.0, 1.0, 2.0, 1.0]), "4 integers from 0 to 2"),
        (torch.zeros(4, 1, dtype=torch.int64), "4 integers from 0 to 2"),
        (torch.tensor([True, False, True, True]), "4 integers from 0 to 2"),
    ],
)
def test_wrong_labels_are_refused_in_one_line(y: Tensor | None, says: str) -> None:
    model = made(**{"model.conditional": True})
    for call in (lambda: model.encode(binary(4), y=y), lambda: model.terms(binary(4), y=y)):
        with pytest.raises(InputError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=says):
        model.decode(torch.zeros(4, 20, dtype=torch.float64), y=y)


def test_any_kind_of_integer_is_a_label() -> None:
    model = made(**{"model.conditional": True})
    wanted = model.encode(binary(3), y=torch.tensor([0, 2, 1])).mean
    for kind in (torch.uint8, torch.int32):
        assert torch.equal(model.encode(binary(3), y=torch.tensor([0, 2, 1], dtype=kind)).mean, wanted)


def test_labels_are_drawn_as_often_as_they_occur() -> None:
    labels = Labels(3, (4,))
    labels.counts.copy_(torch.tensor([10.0, 0.0, 30.0]))
    drawn = labels.sample(8000, generator(0))
    assert drawn.tolist() == sorted(drawn.tolist())
    assert (drawn.bincount(minlength=3) / 8000).tolist() == pytest.approx([0.25, 0, 0.75], abs=0.02)


def test_data_without_labels_make_no_conditional_model() -> None:
    for name in ("vae", "joint", "hierarchical", "quantized"):
        keys = {"model.name": name, "model.conditional": True, "data.source": "x.npy"}
        keys |= {"posterior.name": "fsq"} if name == "quantized" else {}
        with pytest.raises(InputError, match="x.npy has no labels") as caught:
            spec = DataSpec((4,), "binary", 2)
            compose(settle(resolve("test", {}, {**SMALL, **keys}), spec), spec)
        assert "\n" not in str(caught.value)


def test_too_many_labels_or_codes_are_refused() -> None:
    spec = DataSpec((4,), "binary", 2, classes=10**9)
    with pytest.raises(InputError, match="labels of x.npz go up to 999999999; number them"):
        keys = {"model.conditional": True, "data.source": "x.npz"}
        compose(settle(resolve("test", {}, {**SMALL, **keys}), spec), spec)
    with pytest.raises(InputError, match="posterior.levels: their product is 16,777,216; it may be 65,536"):
        made(**{"model.name": "quantized", "posterior.name": "fsq", "posterior.levels": [256, 256, 256]})


def labelled(path: Path, number: int = 300, names: list[str] | None = None) -> Path:
    """Pictures that say their label: all pixels of row y are bright."""
    y = np.random.default_rng(0).choice(3, number, p=[0.6, 0.3, 0.1])
    x = np.random.default_rng(1).integers(0, 60, (number, 3, 4)).astype(np.uint8)
    x[np.arange(number), y] += 190
    np.savez(path, x=x, y=y)
    return path


QUICK = {"network.hidden": [32], "model.latent_dim": 2, "training.threads": 1, "training.batch_size": 32}


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("conditional")
    overrides = {**QUICK, "model.conditional": True, "data.binarize": "threshold", "training.learning_rate": 0.01}
    data = labelled(folder / "rows.npz")
    return vaelab.train("vae", data=data, epochs=40, out=folder / "run", overrides=overrides, progress=False)


def test_samples_of_a_label_look_like_it(conditional_run: Run) -> None:
    for label in (0, 1, 2):
        made = vaelab.sample(conditional_run, 40, label=label)
        assert made.labels is not None and made.labels.tolist() == [label] * 40
        assert made.x.mean((0, 1, 3)).argmax() == label and made.x.mean((0, 1, 3))[label] > 0.9
        by_name = vaelab.sample(conditional_run, 40, label=str(label))
        assert torch.equal(by_name.x, made.x)
    made = vaelab.sample(conditional_run, 400, seed=1)
    assert made.labels is not None
    assert (made.labels.bincount(minlength=3) / 400).tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.08)
    rows = made.x.mean((1, 3)).argmax(-1)
    assert (rows == made.labels).double().mean() > 0.95


@pytest.mark.parametrize("label", ["3", "-1", "zero", 17])
def test_a_label_that_is_none_is_refused(conditional_run: Run, label: Any) -> None:
    with pytest.raises(InputError, match=f"label={label}: unknown") as caught:
        vaelab.sample(conditional_run, 4, label=label)
    assert "\n" not in str(caught.value)


def test_a_model_without_labels_takes_no_label(digits_run: Run) -> None:
    with pytest.raises(InputError, match="not conditional"):
        vaelab.sample(digits_run, 4, label=1)


def test_a_conditional_run_evaluates_with_each_examples_own_label(conditional_run: Run) -> None:
    """Given wrong labels the same pictures are far less probable."""
    model, split = vaelab.load(conditional_run), conditional_run.data()["test"].fixed(0)
    found = vaelab.evaluate(conditional_run, 50)
    x, y = split.batch(), split.labels
    assert y is not None and found.elbo is not None
    with torch.no_grad():
        right, wrong = (estimates.estimate(model, x, 50, 64, generator(0), labels).elbo for labels in (y, (y + 1) % 3))
    assert right is not None and wrong is not None
    assert found.elbo == pytest.approx(float(right.mean()), abs=0.2)
    assert float(wrong.mean()) < found.elbo - 3


def test_a_conditional_run_encodes_labels_that_it_knows(conditional_run: Run, tmp_path: Path) -> None:
    """Without names the numbers are the run's own."""
    x = np.random.default_rng(1).integers(0, 255, (3, 3, 4)).astype(np.uint8)
    np.savez(tmp_path / "some.npz", x=x, y=[2, 0, 2])
    found, model = vaelab.encode(conditional_run, data=tmp_path / "some.npz"), vaelab.load(conditional_run)
    binary = torch.from_numpy(x > 127).float()[:, None]
    with torch.no_grad():
        assert torch.allclose(found.mean, model.encode(binary, y=torch.tensor([2, 0, 2])).mean, atol=1e-6)
    for y, says in (([2, 0, 3], "does not know label 3"), ([2, -1, 0], "does not know label -1")):
        np.savez(tmp_path / "some.npz", x=x, y=y)
        with pytest.raises(InputError, match=f"some.npz: .* {says}") as caught:
            vaelab.encode(conditional_run, data=tmp_path / "some.npz")
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "some.npy", x)
    with pytest.raises(InputError, match="some.npy: has no labels"):
        vaelab.encode(conditional_run, data=tmp_path / "some.npy")


def test_an_animation_of_samples_changes_no_label_on_the_way(
    conditional_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stop is decoded with its own label: the first frame holds the first sample of each walk."""
    seen: list[tuple[Tensor, Tensor]] = []
    show = sampling.show

    def watched(model: Model, z: Tensor, draw: bool, noise: torch.Generator, y: Tensor) -> Tensor:
        seen.append((z, y))
        return show(model, z, draw, noise, y)

    monkeypatch.setattr(sampling, "show", watched)
    made = vaelab.sample(conditional_run, 30, out=tmp_path / "walk.gif", seed=3)
    assert made.labels is not None
    of_sample = {tuple(z.tolist()): int(y) for z, y in zip(made.z, made.labels, strict=True)}
    for z, y in seen[1:]:
        for point, label in zip(z, y, strict=True):
            assert of_sample.get(tuple(point.tolist()), int(label)) == label
    visited = {tuple(point.tolist()) for z, _ in seen[1:] for point in z}
    assert len(visited & set(of_sample)) > 20


def test_a_traversal_takes_the_most_used_codes(tmp_path: Path) -> None:
    data = labelled(tmp_path / "rows.npz")
    keys = {**VQ, "posterior.codes": 12, "network.hidden": [16], "training.threads": 1, "data.binarize": "threshold"}
    run = vaelab.train("vae", data=data, epochs=2, out=tmp_path / "run", overrides=keys, progress=False)
    model, examples = vaelab.load(run), run.data()["test"].fixed(0)
    with torch.no_grad():
        index = model.encode(examples.batch()).index  # type: ignore[union-attr]
    used = index.flatten().bincount(minlength=12).tolist()
    made = vaelab.traverse(run, latents=[1], steps=4, out=tmp_path / "way.png")
    assert made.codes is not None
    assert [used[code] for code in made.codes] == sorted(used, reverse=True)[:4]
    channels, table = model.posterior.channels, model.posterior.codebook
    assert torch.equal(made.z[0, :, channels : 2 * channels], table[made.codes])
    in_order = vaelab.traverse(run, latents=[1], steps=14).codes
    assert in_order is not None and in_order.tolist() == [*range(12), 0, 1]


@pytest.mark.parametrize(
    ("keys", "is_standard"),
    [
        ({}, True),
        ({"model.name": "joint"}, True),
        ({"prior.name": "mixture", "prior.components": 3}, False),
        (TWO, False),
    ],
)
def test_a_traversal_is_in_standard_deviations_of_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], is_standard: bool
) -> None:
    data = labelled(tmp_path / "rows.npz", 60)
    overrides = {"model.latent_dim": 2, "network.hidden": [8], "training.threads": 1, **keys}
    if "model.latent_dims" in keys:
        del overrides["model.latent_dim"]
    run = vaelab.train("vae", data=data, epochs=1, out=tmp_path / "run", overrides=overrides, progress=False)
    captions: list[str] = []
    monkeypatch.setattr(latent_paths.pictures, "grid", lambda x, *a, caption, **more: captions.append(caption))
    monkeypatch.setattr(latent_paths.pictures, "save", lambda *arguments: None)
    made = vaelab.traverse(run, latents=[0], steps=3, span=2, out=tmp_path / "way.png")
    if is_standard:
        assert made.z[0, :, 0].tolist() == [-2, 0, 2]
        assert "from −2 to +2 standard deviations of the prior" in captions[0]
    else:
        with torch.no_grad():
            means = vaelab.load(run).encode(run.data()["test"].fixed(0).batch()).mean[:, 0].double()
        wanted = [float(means.mean() + step * means.std(correction=0)) for step in (-2, 0, 2)]
        assert made.z[0, :, 0].tolist() == pytest.approx(wanted, abs=1e-5)
        assert "standard deviations of its values over the test examples" in captions[0]


class InMemory(Rows):
    """A stream whose source is an array."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.shape, self.dtype = x, tuple(x.shape), x.dtype

    def read(self, index: Tensor) -> Tensor:
        return self.x[index]

    def name(self, index: int) -> str:
        return f"row {index}"


def test_rows_with_nan_leave_together_with_their_labels() -> None:
    """In whatever order a stream is read, and whatever was selected from it, evaluation sees x beside its own y."""
    y = torch.randint(3, (300,), generator=generator(0))
    x = torch.randn(300, 5, generator=generator(1))
    x[:, 0] = 10.0 * y
    x[::7, 3] = math.nan
    split = Split(InMemory(x), y).select(torch.randperm(300, generator=generator(2)))
    seen = list(estimates.batches(split, 0))
    assert sum(len(batch) for batch, _, _ in seen) == int(x.isfinite().all(1).sum()) < 300
    for batch, labels, _ in seen:
        assert labels is not None and torch.equal(batch[:, 0], 10.0 * labels)


@pytest.mark.usefixtures("with_reports")
@pytest.mark.parametrize("stream", [False, True])
def test_training_gives_every_example_its_own_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """A folder of pictures whose brightness is their label: in training, validation, and evaluation."""
    levels = [0, 100, 255]
    for number, y in enumerate(np.random.default_rng(0).integers(0, 3, 150)):
        folder = tmp_path / "data" / f"of{y}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), levels[y], dtype=np.uint8)).save(folder / f"{number}.png")
    seen: list[tuple[Tensor, Tensor]] = []
    terms = VAE.terms

    def watched(self: VAE, x: Tensor, *arguments: Any, **more: Any) -> Any:
        seen.append((x, more["y"]))
        return terms(self, x, *arguments, **more)

    monkeypatch.setattr(VAE, "terms", watched)
    overrides = {**QUICK, "model.conditional": True, "data.stream": stream, "training.gradient_accumulation": 2}
    data, out = tmp_path / "data", tmp_path / "run"
    run = vaelab.train("vae", data=data, epochs=2, out=out, overrides=overrides, progress=False)
    vaelab.evaluate(run, 2)
    assert sum(len(x) for x, _ in seen) > 250
    for batch, labels in seen:
        assert torch.equal((batch[:, 0, 0, 0] * 255).round().long(), torch.tensor(levels)[labels])
    assert run.label_names == ("of0", "of1", "of2")
    shutil.rmtree(data / "of0")  # numbers 0 and 1 are other names now
    files = sorted(data.rglob("*.png"))
    encoded = vaelab.encode(run, data=data)
    assert encoded.labels is not None and set(encoded.labels.tolist()) == {1, 2}
    assert encoded.labels.tolist() == [int(file.parent.name[-1]) for file in files]
    (data / "of2").rename(data / "of7")
    with pytest.raises(InputError, match="does not know label of7; did you mean of") as caught:
        vaelab.encode(run, data=data)
    assert "\n" not in str(caught.value)
    made = vaelab.sample(run, 3, label="of1").labels
    assert made is not None and made.tolist() == [1, 1, 1]


# -- joint -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_joint_models_bound_is_below_the_sum_and_integral_over_all_latents() -> None:
    model = made(**{"model.name": "joint", "model.latent_dim": 1, "model.categorical": 2, "model.categories": 3})
    x = binary(4)
    line = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    one_hot = torch.eye(3, dtype=torch.float64)[torch.cartesian_prod(torch.arange(3), torch.arange(3))].flatten(1)
    z = torch.cat((line.repeat_interleave(9)[:, None], one_hot.repeat(1201, 1)), 1)
    log_pz, log_cell = model.prior.log_prob(z), math.log(18 / 1200)
    assert float(log_pz.logsumexp(0) + log_cell) == pytest.approx(0, abs=1e-6)
    log_joint = log_pz[:, None] + model.decode(z[:, None]).log_prob(x)
    log_q = model.encode(x).log_prob(z[:, None])
    assert (log_q.logsumexp(0) + log_cell).tolist() == pytest.approx([0] * 4, abs=1e-6)
    exact = ((log_q + log_cell).exp() * (log_joint - log_q)).sum(0)
    found = estimates.estimate(model, x, 20_000, 20_000, generator(0))
    assert found.elbo is not None and found.log_px is not None and found.rate is not None
    assert found.elbo.tolist() == pytest.approx(exact.tolist(), abs=0.02)
    assert found.log_px.tolist() == pytest.approx((log_joint.logsumexp(0) + log_cell).tolist(), abs=0.03)
    terms = model.terms(x, 1, generator(0))
    assert terms.kl is not None and terms.kl.shape == (4, 3)
    assert terms.groups == {"continuous": slice(0, 1), "categorical": slice(1, 3)}
    rate = ((log_q + log_cell).exp() * (log_q - log_pz[:, None])).sum(0)
    assert terms.kl.sum(-1).tolist() == pytest.approx(rate.tolist(), abs=1e-4)
    assert set(found.rates) == {"continuous", "categorical"}
    assert (found.rates["continuous"] + found.rates["categorical"]).tolist() == pytest.approx(rate.tolist(), abs=1e-4)
    assert (found.rates["categorical"] > 0).all() and (found.rates["categorical"] <= 2 * math.log(3)).all()


def test_draws_of_a_joint_model_are_real_numbers_and_one_hots() -> None:
    model = made(**{"model.name": "joint", "model.latent_dim": 2, "model.categorical": 2, "model.categories": 3})
    for z in (model.sample_latents(50, generator(0)), model.terms(binary(5), 10, generator(0)).z.flatten(0, 1)):
        blocks = z[:, 2:].unflatten(-1, (2, 3))
        assert set(blocks.unique().tolist()) == {0.0, 1.0} and (blocks.sum(-1) == 1).all()
        assert not (z[:, :2] == z[:, :2].round()).any()
    relaxed = model.terms(binary(5), 10, generator(0), relaxed=True).z[..., 2:].unflatten(-1, (2, 3))
    assert relaxed.sum(-1).detach().numpy() == pytest.approx(1.0) and ((relaxed > 0) & (relaxed < 1)).all()


# -- the prior that is fitted after training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same training with two priors. x is one of two patterns, so that the codes are two clusters, not N(0, I)."""
    folder = tmp_path_factory.mktemp("stages")
    random = np.random.default_rng(0)
    base = random.integers(0, 2, (2, 6, 6))
    x = np.abs(base[random.integers(0, 2, 500)] - (random.random((500, 6, 6)) < 0.05))
    np.save(folder / "x.npy", (255 * x).astype(np.uint8))
    overrides = {**QUICK, "training.learning_rate": 0.01, "data.binarize": "threshold"}
    priors: dict[str, dict[str, Any]] = {
        "normal": {"prior.name": "normal"},
        "aggregate": {"prior.name": "aggregate", "prior.draws": 2000},
    }
    return {
        name: vaelab.train(
            "vae",
            data=folder / "x.npy",
            epochs=40,
            out=folder / name,
            overrides={**overrides, **keys},
            progress=False,
        )
        for name, keys in priors.items()
    }


def test_the_fitted_prior_differs_and_is_better(stages: dict[str, Run]) -> None:
    one, other = vaelab.load(stages["normal"]), vaelab.load(stages["aggregate"])
    assert isinstance(other.prior, AggregatePrior) and bool(other.prior.fitted)
    weights, fitted = one.state_dict(), other.state_dict()
    for name, weight in weights.items():  # training itself has not seen another prior
        assert torch.equal(weight, fitted[name]), name
    before, after = (vaelab.evaluate(run, 200) for run in (stages["normal"], stages["aggregate"]))
    assert before.rate is not None and after.rate is not None and before.elbo is not None and after.elbo is not None
    assert after.distortion == pytest.approx(before.distortion, abs=0.2)
    assert after.rate < before.rate - 0.2
    assert after.elbo > before.elbo + 0.2
    assert after.log_px is not None and before.log_px is not None and after.log_px > before.log_px + 0.2


def test_samples_come_from_the_fitted_prior(stages: dict[str, Run]) -> None:
    """Draws of z lie where the codes lie: the distance in mean and covariance falls."""
    model = vaelab.load(stages["aggregate"])
    x = stages["aggregate"].data()["train"].fixed(0).batch()
    with torch.no_grad():
        codes = model.encode(x).sample_with_log_prob(1, generator(0))[0][0]
        fitted, normal = model.sample_latents(4000, generator(1)), StandardNormal(2).sample(4000, generator(1))
    fourth = [float((z - codes.mean(0)).div(codes.std(0)).pow(4).mean()) for z in (codes, fitted, normal)]
    assert abs(fourth[1] - fourth[0]) < 0.5 * abs(fourth[2] - fourth[0])
    assert torch.cov(fitted.T).numpy() == pytest.approx(torch.cov(codes.T).numpy(), abs=0.15)


def test_the_fit_is_replayed_and_survives_everything(stages: dict[str, Run]) -> None:
    """Loaded twice it is the same; resumed after its end, the run fits the same prior again."""
    run = stages["aggregate"]
    before = load_file(run.path / "model.safetensors")
    assert torch.equal(
        vaelab.load(run).prior.log_prob(torch.ones(3, 2)), vaelab.load(run).prior.log_prob(torch.ones(3, 2))
    )
    vaelab.train(out=run, resume=True, progress=False)
    after = load_file(run.path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("with_reports")
def test_the_report_tells_of_the_fitted_prior(stages: dict[str, Run]) -> None:
    run = stages["aggregate"]
    report.publish(run, run.data(), [])
    numbers = json.loads((run.path / "numbers.json").read_text())
    found = vaelab.evaluate(run, numbers["importance_samples"], split="validation")
    assert numbers["rate"] == pytest.approx(found.rate, abs=1e-6)


def test_the_top_of_a_hierarchy_and_the_real_half_of_a_joint_model_can_be_fitted() -> None:
    hierarchy: Hierarchical = made(**TWO, **{"prior.name": "aggregate", "prior.draws": 200})
    z = 3 + 0.1 * torch.randn(200, 2, dtype=torch.float64, generator=generator(0))
    assert isinstance(hierarchy.prior, TopDown) and hierarchy.prior.fit_draws == 200
    hierarchy.prior.fit(z, generator(0))
    top = hierarchy.prior.top
    assert isinstance(top, AggregatePrior) and bool(top.fitted)
    assert top.shift.tolist() == pytest.approx([float(z[:, 0].mean())])
    joint = made(**{"model.name": "joint", "model.latent_dim": 2, "model.categories": 3, "prior.name": "aggregate"})
    assert isinstance(joint.prior, ProductPrior) and joint.prior.fit_draws == 10_000
    joint.prior.fit(torch.cat((z, torch.eye(3, dtype=z.dtype)[torch.arange(200) % 3]), 1), generator(0))
    assert joint.prior.real.shift.tolist() == pytest.approx(z.mean(0).tolist())  # type: ignore[union-attr]


# -- to the bit ------------------------------------------------------------------------------------------------------

STATEFUL: dict[str, dict[str, Any]] = {
    "critic": {"objective.name": "factor", "objective.critic_width": 8, "objective.critic_depth": 2},
    "codebook": {
        "model.name": "quantized",
        "model.places": 4,
        "posterior.name": "vq",
        "posterior.codes": 8,
        "training.ema_decay": 0.9,
        "prior.name": "autoregressive",
        "prior.width": 8,
    },
    "vamp": {"prior.name": "vamp", "prior.components": 5},
    "flow": {"posterior.name": "iaf", "posterior.hidden": [8], "prior.name": "flow", "prior.hidden": [8]},
    "hierarchical": {"model.name": "hierarchical", "model.latent_dims": [2, 3], "model.hidden": 8},
    "conditional": {"model.conditional": True},
    "aggregate": {"prior.name": "aggregate", "prior.draws": 100},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "flow" else name for name in STATEFUL]
)
def test_what_has_a_state_of_its_own_resumes_to_the_bit(
    tmp_path: Path, stopped_at: Callable[[int], AbstractContextManager[None]], name: str
) -> None:
    overrides = {"network.hidden": [16], "training.threads": 1, "training.precision": "float32", **STATEFUL[name]}

    def train(out: str) -> Run:
        return vaelab.train("vae", data="digits", epochs=2, out=tmp_path / out, overrides=overrides, progress=False)

    whole = train("whole")
    with stopped_at(14):
        train("stopped")
    vaelab.train(out=tmp_path / "stopped", resume=True, progress=False)
    checkpoints = [next((tmp_path / run / "checkpoint").glob("*.safetensors")) for run in ("whole", "stopped")]
    files = [(whole.path / "model.safetensors", tmp_path / "stopped" / "model.safetensors"), tuple(checkpoints)]
    for one, other in files:
        expected, found = load_file(one), load_file(other)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), key
    keys = set(load_file(checkpoints[0]))
    if name == "critic":  # its weights and its own moments are among them
        assert any(key.startswith("objective.critic") for key in keys)
    if name == "codebook":
        assert {"model.posterior.table", "model.posterior.sums", "model.posterior.uses"} <= keys


def test_a_model_of_every_class_round_trips_through_its_state(configure: Callable[..., Config]) -> None:
    """Nothing that decides a density is left out of the state."""
    for keys in (TWO, THREE, VQ, FSQ, {"model.name": "joint"}, {"prior.name": "mixture"}):
        model, again = made(**keys), made(**keys, size=0.9)
        again.load_state_dict(model.state_dict())
        x = binary(3)
        one, other = model.terms(x, 2, generator(0)), again.terms(x, 2, generator(0))
        assert torch.equal(one.log_weights, other.log_weights), keys
