"""Objectives that hold the rate at a value: capacities and free bits, by hand; and all objectives on one model."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vaelab import config
from vaelab.composition import compose
from vaelab.config import resolve
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.latents import LatentSpec
from vaelab.model import Model, Terms
from vaelab.noise import generator
from vaelab.objectives import ELBO, Annealed, Distortion, FreeBits
from vaelab.posteriors import Categorical
from vaelab.priors import CategoricalPrior, ProductPrior, StandardNormal


def made(kl: Tensor, prior: Any = None, groups: dict[str, slice] | None = None, **more: Any) -> Terms:
    """Terms with this KL [B, G], and a distortion of 0, 1, 2, ... nats."""
    log_px_z = -torch.arange(len(kl), dtype=kl.dtype)[None]
    zeros = torch.zeros_like(log_px_z)
    prior = prior or StandardNormal(kl.shape[1])
    groups = groups or {"z": slice(0, kl.shape[1])}
    parts: Any = {"posterior": None, "likelihood": None}
    x, z = zeros[0, :, None], zeros[..., None]
    fields = {"kl": kl, "log_pz": zeros, "log_qz_x": zeros, **more}
    return Terms(x=x, z=z, log_px_z=log_px_z, prior=prior, groups=groups, **fields, **parts)


def small(**keys: Any) -> Model:
    torch.manual_seed(0)
    latents: dict[str, Any] = (
        {"latent_dims": [1, 2], "hidden": 8} if keys.get("model.name") == "hierarchical" else {"latent_dim": 3}
    )
    keys = {"network.hidden": [8], **{f"model.{key}": value for key, value in latents.items()}, **keys}
    return compose(resolve("test", {}, keys), DataSpec((6,), "binary", 2))


KL = torch.tensor([[0.1, 2.0, 0.4], [0.3, 1.0, 0.2]], dtype=torch.float64)  # means 0.2, 1.5, 0.3; the whole 2.0


@pytest.mark.parametrize(("step", "capacity"), [(0, 0.0), (25, 1.0), (50, 2.0), (75, 3.0), (100, 4.0), (999, 4.0)])
def test_the_capacity_rises_in_a_straight_line_and_then_stays(step: int, capacity: float) -> None:
    objective = Annealed(capacity=4, gamma=7, steps=100)
    objective.step = step
    loss = objective(made(KL))
    assert loss.value.item() == pytest.approx(0.5 + 7 * abs(2.0 - capacity), abs=1e-12)
    assert loss.metrics["capacity"].item() == pytest.approx(capacity)
    objective.step = None
    assert objective(made(KL)).value.item() == pytest.approx(0.5 + 7 * 2.0, abs=1e-12)


def test_the_capacity_pulls_the_mean_rate_from_both_sides() -> None:
    """Of the batch, not of each example: 2.5 and 1.5 nats are as good as 2 and 2."""
    for capacity, slope in ((1.0, 1.0), (3.0, -1.0)):
        kl = KL.clone().requires_grad_()
        Annealed(capacity=capacity, gamma=6)(made(kl)).value.backward()
        assert kl.grad is not None
        assert kl.grad.numpy() == pytest.approx(torch.full_like(KL, slope * 6 / 2).numpy())
    assert Annealed(capacity=2.0, gamma=6)(made(KL)).value.item() == pytest.approx(0.5, abs=1e-12)


def test_joint_latents_have_two_capacities_and_the_categorical_one_is_capped() -> None:
    latents = LatentSpec(real=2, categorical=1, categories=3)
    prior = ProductPrior(StandardNormal(2), CategoricalPrior(LatentSpec(categorical=1, categories=3)))
    terms = made(KL, prior=prior, groups=latents.groups)

    def value(**keys: Any) -> float:
        return Annealed(gamma=10, **keys)(terms).value.item()

    assert value(capacity=2, categorical_capacity=0.5) == pytest.approx(0.5 + 10 * (0.3 + 0.2), abs=1e-12)
    assert value(capacity=0.25) == pytest.approx(0.5 + 10 * (1.45 + 0.05), abs=1e-12)
    capped = Annealed(gamma=10, capacity=5)(terms)
    assert capped.value.item() == pytest.approx(0.5 + 10 * (3.3 + math.log(3) - 0.3), abs=1e-12)
    assert capped.metrics["capacity"].item() == 5
    assert capped.metrics["categorical_capacity"].item() == pytest.approx(math.log(3))
    alone = made(KL[:, :2], prior=CategoricalPrior(LatentSpec(categorical=2, categories=3)))
    assert Annealed(gamma=10, capacity=50)(alone).value.item() == pytest.approx(0.5 + 10 * (2 * math.log(3) - 1.7))


def test_no_rate_of_categorical_latents_exceeds_the_cap() -> None:
    """Σ log categories is reached by posteriors that are certain, under the uniform prior."""
    latents = LatentSpec(categorical=2, categories=3)
    certain = torch.full((1, 2, 3), -1e3)
    certain[..., 0] = 0.0
    kl = CategoricalPrior(latents).kl(Categorical(certain))
    assert kl is not None
    assert kl.sum().item() == pytest.approx(2 * math.log(3), rel=1e-6)


def test_free_bits_by_hand() -> None:
    groups = {"top": slice(0, 1), "bottom": slice(1, 3)}
    assert FreeBits(nats=0.25)(made(KL)).value.item() == pytest.approx(0.5 + 0.25 + 1.5 + 0.3, abs=1e-12)
    assert FreeBits(nats=0.25, by="group")(made(KL)).value.item() == pytest.approx(0.5 + 2.0, abs=1e-12)
    assert FreeBits(nats=3, by="group")(made(KL)).value.item() == pytest.approx(0.5 + 3.0, abs=1e-12)
    layers = FreeBits(nats=0.5, by="group")(made(KL, groups=groups))
    assert layers.value.item() == pytest.approx(0.5 + 0.5 + 1.8, abs=1e-12)
    assert FreeBits(nats=0)(made(KL)).value.item() == pytest.approx(ELBO()(made(KL)).value.item(), abs=1e-12)


def test_free_bits_cost_nothing_below_and_are_the_elbo_above() -> None:
    """The second example's 0.2 nats in latent 3 are below the floor of 0.25; the batch's mean of 0.3 is above it."""
    kl = KL.clone().requires_grad_()
    FreeBits(nats=0.25)(made(kl)).value.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]


def test_free_bits_of_one_group_take_a_rate_by_draws() -> None:
    log_qz_x, log_pz = torch.tensor([[3.0, 4.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.5, 1.5]])
    terms = made(torch.zeros(2, 1), log_qz_x=log_qz_x, log_pz=log_pz)
    terms.kl = None
    assert FreeBits(nats=0.1, by="group")(terms).value.item() == pytest.approx(0.5 + (2 + 3 + 0.5 + 0.5) / 4)
    assert FreeBits(nats=9, by="group")(terms).value.item() == pytest.approx(9.5)


def test_free_bits_are_refused_where_the_rate_cannot_be_divided() -> None:
    mixture = small(**{"prior.name": "mixture"})
    with pytest.raises(
        InputError, match=r"every latent by itself.*use objective\.by=group, or posterior\.name=gaussian"
    ):
        FreeBits().check(mixture)
    FreeBits(by="group").check(mixture)
    plain = small()
    assert plain.training
    FreeBits().check(plain)
    assert plain.training
    FreeBits(by="group").check(small(**{"model.name": "hierarchical"}))
    joint = small(**{"model.name": "joint", "prior.name": "mixture"})
    with pytest.raises(InputError, match=r"every group by itself.*; use posterior\.name=gaussian"):
        FreeBits(by="group").check(joint)


def test_capacities_are_refused_where_there_is_nothing_to_hold() -> None:
    with pytest.raises(InputError, match=r"categorical_capacity: the latents are all real; set objective\.capacity"):
        Annealed(categorical_capacity=1).check(small())
    Annealed().check(small(**{"prior.name": "mixture"}))
    Annealed().check(small(**{"posterior.name": "gumbel-softmax"}))
    Annealed(categorical_capacity=1).check(small(**{"model.name": "joint"}))
    with pytest.raises(InputError, match=r"no closed form; use posterior\.name=gaussian and prior\.name=auto"):
        Annealed().check(small(**{"model.name": "joint", "prior.name": "mixture"}))


POSTERIORS = ("gaussian", "full-gaussian", "gumbel-softmax", "iaf", "deterministic")
COMBINATIONS = [
    (name, {"posterior.name": posterior})
    for name, posterior in itertools.product(config.names("objective"), POSTERIORS)
    if config.part("objective", name).build.needs <= config.part("posterior", posterior).build.provides  # type: ignore[attr-defined]
]
COMBINATIONS += [
    (name, {"model.name": model})
    for name, model in itertools.product(config.names("objective"), ("joint", "hierarchical"))
    if name != "dip" and (name, model) != ("beta-tcvae", "hierarchical")
]


@pytest.mark.parametrize(
    ("name", "keys"), COMBINATIONS, ids=lambda value: "".join(value if isinstance(value, str) else value.values())
)
def test_every_objective_has_finite_gradients_and_the_models_own_numbers(name: str, keys: dict[str, Any]) -> None:
    """In training with a small batch, and in evaluation with the smallest, where moments and pairs are hardest."""
    model = small(**keys)
    own = {"by": "group"} if name == "free-bits" else {}
    objective = config.build("objective", config.section("objective", {"name": name, **own}), model, 50)
    assert objective.needs <= model.provides
    objective.check(model)
    objective.step = 3
    x = (torch.rand(7, 6, generator=generator(0)) < 0.5).float()
    draws = objective.num_samples
    loss = objective(model.terms(x, draws, generator(1), relaxed=True))
    loss.total.backward()
    parameters = [*model.parameters(), *objective.parameters()]
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)
    encoder = [p.grad.abs().sum() for p in model.encoder.parameters() if p.grad is not None]  # type: ignore[union-attr]
    assert torch.stack(encoder).sum() > 1e-4
    assert not any(metric.requires_grad or metric.ndim for metric in loss.metrics.values())

    objective.step = None
    with torch.no_grad():
        terms = model.eval().terms(x, draws, generator(1))
        found = objective(terms).metrics
        assert found["distortion"].item() == pytest.approx(Distortion()(terms).value.item())
        if model.has_density:
            assert found["elbo"].item() == pytest.approx(-ELBO()(terms).value.item(), rel=1e-6)
        for one in (model.terms(x[:1], draws, generator(1)), model.terms(x[:1], draws)):
            assert all(metric.isfinite() for metric in objective(one).metrics.values())
