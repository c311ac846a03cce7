"""Networks take any size, and a composed model says which axis is wrong."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vaelab import networks
from vaelab.composition import compose, compose_objective, settle
from vaelab.config import Config
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.likelihoods import BernoulliLikelihood
from vaelab.model import VAE
from vaelab.networks import Convolutional, Family, Linear, Residual
from vaelab.noise import generator
from vaelab.posteriors import GaussianPosterior
from vaelab.priors import StandardNormal

FAMILIES: list[Family] = [Linear(), networks.MLP(hidden=(7, 5)), Convolutional(channels=(4, 6), hidden=5)]
FAMILIES.append(Residual(channels=(4, 6), blocks=2, hidden=5))


@given(
    family=st.sampled_from(FAMILIES),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 19), st.integers(1, 19)),
    parameters=st.integers(1, 3),
    batch=st.integers(1, 3),
)
def test_any_picture_size_goes_in_and_comes_out(
    family: Family, shape: tuple[int, int, int], parameters: int, batch: int
) -> None:
    encoder, decoder = family.encoder(shape), family.decoder(3, (parameters, *shape))
    features = encoder(torch.rand(batch, *shape))
    assert features.shape == (batch, encoder.num_features)
    assert decoder(torch.rand(batch, 3)).shape == (batch, parameters, *shape)


@pytest.mark.parametrize("family", FAMILIES[2:])
@pytest.mark.parametrize("size", [(7, 5), (8, 8), (9, 12)])
def test_every_output_depends_on_the_latent_and_every_input_reaches_the_features(
    family: Family, size: tuple[int, int]
) -> None:
    """A wrong crop or stride would leave a border row that no latent moves, or a pixel that nobody sees."""
    torch.manual_seed(0)
    z = torch.rand(1, 3, requires_grad=True)
    outputs = family.decoder(3, (1, 2, *size))(z).flatten()
    for output in outputs:
        (gradient,) = torch.autograd.grad(output, z, retain_graph=True)
        assert gradient.abs().sum() > 0
    x = torch.rand(1, 2, *size, requires_grad=True)
    family.encoder((2, *size))(x).sum().backward()
    assert x.grad is not None and (x.grad != 0).all()


def test_an_mlp_is_its_matrices() -> None:
    family = networks.MLP(hidden=(6,), activation="tanh")
    decoder = family.decoder(2, (1, 4))
    decoder.bias.data.uniform_()
    z = torch.rand(3, 2)
    first, last = decoder.layers[0], decoder.layers[2]  # type: ignore[index]
    by_hand = torch.tanh(z @ first.weight.T + first.bias) @ last.weight.T + decoder.bias[0]
    assert decoder(z)[:, 0].detach().numpy() == pytest.approx(by_hand.detach().numpy(), abs=1e-6)
    encoder = family.encoder((1, 2, 2))
    x = torch.rand(3, 1, 2, 2)
    layer = encoder.layers[1]  # type: ignore[index]
    by_hand = torch.tanh(x.flatten(1) @ layer.weight.T + layer.bias)
    assert encoder(x).detach().numpy() == pytest.approx(by_hand.detach().numpy(), abs=1e-6)


def test_tanh_is_tanh_with_a_gradient_and_without() -> None:
    x = torch.cat([torch.linspace(-20, 20, 40_001), torch.tensor([0.0, math.inf, -math.inf])])
    before, exact = x.clone(), torch.tanh(x.double())
    assert (networks.Tanh()(x).double() - exact).abs().max() < 2e-7
    assert networks.Tanh()(x.double()).numpy() == pytest.approx(exact.numpy(), abs=1e-15)
    assert torch.equal(x, before)
    leaf = x.requires_grad_()
    found = networks.Tanh()(leaf)
    assert torch.equal(found, torch.tanh(x))
    found.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.numpy() == pytest.approx((1 - exact.square()).detach().numpy(), abs=2e-7)


def test_a_residual_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(networks.ResidualBlock(4, nn.GELU)(x), x)


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_convolutions_refuse_vectors(configure: Callable[..., Config], name: str) -> None:
    config = settle(configure(**{"network.name": name}), DataSpec((21,), "real", None))
    with pytest.raises(InputError, match=f"network.name={name}.*21.*network.name=mlp"):
        compose(config, DataSpec((21,), "real", None))


BINARY = DataSpec((1, 4, 6), "binary", 2)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.rand(3, 1, 4, 5), r"5 on axis 3.*wants 6"),
        (torch.rand(3, 1, 3, 6), r"3 on axis 2.*wants 4"),
        (torch.rand(3, 2, 4, 6), r"2 on axis 1.*wants 1"),
        (torch.rand(1, 4, 6), r"3 axes.*\[B, 1, 4, 6\]"),
        (torch.rand(2, 3, 1, 4, 6), r"one batch axis"),
        (torch.ones(3, 1, 4, 6, dtype=torch.uint8), r"uint8.*floating point"),
    ],
)
def test_wrong_shapes_say_which_axis(configure: Callable[..., Config], x: torch.Tensor, says: str) -> None:
    model = compose(settle(configure(), BINARY), BINARY)
    with pytest.raises(InputError, match=says):
        model.terms(x)


def test_a_wrong_latent_says_so(configure: Callable[..., Config]) -> None:
    model = compose(settle(configure(**{"model.latent_dim": 3}), BINARY), BINARY)
    with pytest.raises(InputError, match="4 on axis 1.*wants 3"):
        model.decode(torch.rand(2, 4))


def test_an_objective_that_needs_a_density_refuses_a_deterministic_posterior(
    configure: Callable[..., Config],
) -> None:
    for objective in ("elbo", "iwae"):
        config = settle(configure(**{"posterior.name": "deterministic", "objective.name": objective}), BINARY)
        with pytest.raises(InputError, match="objective.name=distortion"):
            compose_objective(config, compose(config, BINARY), 100)


def test_a_deterministic_posterior_has_a_distortion_and_nothing_else(configure: Callable[..., Config]) -> None:
    config = settle(configure(**{"posterior.name": "deterministic"}), BINARY)
    terms = compose(config, BINARY).terms((torch.rand(3, 1, 4, 6) < 0.5).float(), 2)
    assert terms.rate is None and terms.log_weights is None and terms.kl is None
    assert torch.equal(terms.z[0], terms.z[1])


def test_terms_keep_samples_and_examples_apart(configure: Callable[..., Config]) -> None:
    """log p(x|z) of draw k for example b, for K = 3 and B = 2, against a loop."""
    model = compose(settle(configure(**{"model.latent_dim": 3}), BINARY), BINARY)
    x = (torch.rand(2, 1, 4, 6) < 0.5).float()
    terms = model.terms(x, num_samples=3, generator=generator(0))
    for k in range(3):
        for b in range(2):
            logits = model.decoder(terms.z[k, b][None])[0, 0]
            by_hand = -nn.functional.binary_cross_entropy_with_logits(logits, x[b], reduction="sum")
            assert terms.log_px_z[k, b].item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"posterior.name": "iaf"},
        {"posterior.name": "gumbel-softmax"},
        {"model.name": "hierarchical"},
        {"model.name": "quantized", "posterior.name": "vq"},
    ],
    ids=str,
)
def test_terms_of_a_posterior_that_is_known_are_those_of_the_encoders(
    configure: Callable[..., Config], keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compose(settle(configure(**keys), BINARY), BINARY).eval()
    x = (torch.rand(2, 1, 4, 6) < 0.5).float()
    with torch.no_grad():
        wanted, q = model.terms(x, 3, generator(0)), model.encode(x)
        monkeypatch.delattr(type(model.encoder), "forward")  # the encoder cannot run again
        found = model.terms(x, 3, generator(0), posterior=q)
    assert torch.equal(found.z, wanted.z)
    assert torch.equal(found.log_px_z, wanted.log_px_z)
    assert found.log_qz_x is not None and wanted.log_qz_x is not None
    assert torch.equal(found.log_qz_x, wanted.log_qz_x)


def test_modules_of_ones_own_make_a_vae() -> None:
    """Any pair of modules with the right shapes will do."""
    likelihood = BernoulliLikelihood(DataSpec((6,), "binary", 2))
    model = VAE(
        encoder=nn.Sequential(nn.Linear(6, 5), nn.ReLU()),
        decoder=nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (1, 6))),
        posterior=GaussianPosterior(num_features=5, latent_dim=2),
        prior=StandardNormal(2),
        likelihood=likelihood,
    )
    assert model.sample(3).shape == (3, 6)
    assert model.terms(torch.ones(4, 6)).log_px_z.shape == (1, 4)


def test_samples_and_reconstructions_can_be_replayed(configure: Callable[..., Config]) -> None:
    model = compose(settle(configure(), BINARY), BINARY)
    x = torch.ones(2, 1, 4, 6)
    for draw in (False, True):
        first, again, other = (model.sample(5, draw=draw, generator=generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        first, again, other = (
            model.reconstruct(x, draw=draw, latent="sample", generator=generator(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)
    assert set(model.sample(5, draw=True).unique().tolist()) == {0.0, 1.0}
    mean = model.reconstruct(x)
    assert torch.equal(mean, model.decode(model.encode(x).mean).mean)
    with pytest.raises(InputError, match="latent=median"):
        model.reconstruct(x, latent="median")


def test_network_precision_leaves_densities_in_float32(configure: Callable[..., Config]) -> None:
    model = compose(settle(configure(**{"network.hidden": [32]}), BINARY), BINARY)
    x = (torch.rand(64, 1, 4, 6) < 0.5).float()
    full = model.terms(x, 1, generator(0))
    half = model.terms(x, 1, generator(0), torch.bfloat16)
    assert half.log_px_z.dtype == half.log_pz.dtype == torch.float32
    assert half.kl is not None and half.kl.dtype == torch.float32
    assert half.z.dtype == torch.float32
    difference = (half.log_px_z - full.log_px_z).abs().max().item()
    assert 0 < difference < 0.02 * 24 * math.log(2)
