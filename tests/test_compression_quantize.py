"""Models in whole numbers: close to the trained network, and exact to the last digit.

Steps are held to Python's own integers, which have no limit; networks and latents to the float64 model that they were
made from; what has no codec is refused with the true reason.
"""

import json
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vaelab.composition import compose, settle
from vaelab.compression import codec_file, integers
from vaelab.compression.chain import encode
from vaelab.compression.codec_file import codec_of, open_codec, read_codec
from vaelab.compression.codecs import Message, pseudo_random_words
from vaelab.compression.integers import (
    ACTIVATION_BITS,
    OUTPUT_BITS,
    WEIGHT_BITS,
    Convolution,
    Dense,
    Step,
    TransposedConvolution,
    of_binary,
    to_integers,
)
from vaelab.compression.ladder import LadderLatents, scale_bounds
from vaelab.compression.latents import GRID_BITS, HIGHEST, LOWEST, FlatLatents
from vaelab.compression.layers import POINTWISE, steps_of
from vaelab.compression.logistic import LogisticPixels
from vaelab.compression.quantize import quantize
from vaelab.config import resolve
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.hierarchical import Hierarchical
from vaelab.model import VAE, Model
from vaelab.networks import ACTIVATIONS
from vaelab.noise import generator
from vaelab.posteriors.gaussian import DiagonalGaussian, Laplace
from vaelab.runs import Run, write_tensors

pytestmark = pytest.mark.usefixtures("without_reports")

CLOSE = 2e-3
_Module = TypeVar("_Module", bound=nn.Module)


def filled(module: _Module, gain: float = 1.0) -> _Module:
    """The module in float64 and evaluation mode, every number of it drawn anew, so that nothing is 0 or 1."""
    noise = generator("filled")
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        drawn = torch.randn(value.shape, generator=noise)
        if name.endswith("running_var"):
            value.copy_(drawn.exp())
        elif value.ndim > 1:
            fan_in = value[0].numel() if value.ndim == 2 else value.shape[1] * value[0, 0].numel()
            value.copy_(gain * drawn / math.sqrt(fan_in))
        else:
            value.copy_(0.5 * drawn)
    return module.double().eval()


def model_of(spec: DataSpec, gain: float = 0.7, /, **keys: Any) -> Model:
    return filled(compose(settle(resolve("test", {}, keys), spec), spec), gain)


def activations(*shape: int, gain: float = 1.0) -> Tensor:
    """Whole numbers at 2⁻¹⁰."""
    return to_integers(gain * torch.randn(*shape, generator=generator("x", *shape), dtype=torch.float64), 10)


def agree(steps: tuple[Step, ...], module: nn.Module, x: Tensor, bits: int) -> None:
    """Steps give what the module gives."""
    with torch.no_grad():
        expected = module(x / 2**ACTIVATION_BITS)
    found = integers.run(steps, x)
    assert found.equal(found.round())
    error = found / 2**bits - expected
    assert error.abs().max() < 2 * CLOSE and error.square().mean().sqrt() < CLOSE / 2
    assert expected.std(0).mean() > 0.02


# -- exactness: Python's own integers ------------------------------------------------------------------------------


def whole(tensor: Tensor) -> NDArray[Any]:
    """As Python integers."""
    return np.array([int(one) for one in tensor.flatten().tolist()] + [None], object)[:-1].reshape(tensor.shape)


def rounded(sums: NDArray[Any], bits: int) -> NDArray[Any]:
    """At 2⁻²⁴ -> at 2⁻ᵇⁱᵗˢ, half to even, between −32 and 32."""
    top = 32 << bits
    fractions = [Fraction(int(one), 1 << (ACTIVATION_BITS + WEIGHT_BITS - bits)) for one in sums.flatten()]
    return np.array([max(-top, min(top, round(one))) for one in fractions], object).reshape(sums.shape)


def cancelling(rows: int, columns: int) -> Tensor:
    """Weights up to 2³⁶ for inputs that come in pairs: products pass 2⁵⁰, their sums are small."""
    noise = generator("cancel", rows, columns)
    large = torch.randint(-(2**36), 2**36, (rows, columns // 2), generator=noise).double()
    small = torch.randint(-9000, 9000, (rows, columns // 2), generator=noise).double()
    return torch.stack((large, small - large), -1).flatten(1)


@pytest.mark.parametrize("bits", [ACTIVATION_BITS, OUTPUT_BITS])
def test_dense_is_exact(bits: int) -> None:
    weight, bias = cancelling(5, 12), torch.randint(-(2**24), 2**24, (5,), generator=generator("b")).double()
    x = activations(20, 6).clamp(-(2**13), 2**13).repeat_interleave(2, -1)
    expected = whole(x) @ whole(weight).T + whole(bias)
    assert abs(whole(x) * whole(weight)[0]).max() > 2**40
    np.testing.assert_array_equal(whole(Dense(weight, bias, bits)(x)), rounded(expected, bits))


def test_sums_are_rounded_half_to_even() -> None:
    halves = torch.arange(-5, 6).double() * 2 ** (WEIGHT_BITS - 1)
    assert Dense(halves[:, None], torch.zeros(11), ACTIVATION_BITS)(torch.ones(1, 1).double()).tolist() == [
        [-2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2]
    ]


@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (1, 1)), ((2, 1), (0, 2)), ((2, 2), (1, 0))])
def test_convolution_is_exact(stride: tuple[int, int], padding: tuple[int, int]) -> None:
    kernel = (3, 2)
    weight, bias = cancelling(4, 2 * 6).view(4, 6, 2).mT.flatten(1), torch.arange(4.0).double().view(4, 1) * 10**6
    x = activations(2, 1, 5, 6).repeat(1, 2, 1, 1)  # two channels alike
    step = Convolution(weight, bias, kernel, stride, padding, OUTPUT_BITS)
    padded = np.pad(whole(x), ((0, 0), (0, 0), *((p, p) for p in padding)))
    sizes = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], kernel, stride, strict=True)]
    sums = np.zeros((2, 4, *sizes), object)
    for (row, column), kept in np.ndenumerate(np.zeros(sizes)):
        seen = padded[:, :, row * stride[0] :, column * stride[1] :][:, :, :3, :2]
        sums[:, :, row, column] = kept + seen.reshape(2, -1) @ whole(weight).T + whole(bias)[:, 0]
    np.testing.assert_array_equal(whole(step(x)), rounded(sums, OUTPUT_BITS))


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding"),
    [((1, 1), (0, 0), (0, 0)), ((2, 2), (1, 1), (1, 0)), ((3, 1), (0, 1), (0, 0))],
)
def test_transposed_convolution_is_exact(
    stride: tuple[int, int], padding: tuple[int, int], output_padding: tuple[int, int]
) -> None:
    kernel = (4, 3)
    weight, bias = cancelling(3 * 12, 2), torch.arange(3.0).double().view(3, 1, 1) * 10**6
    x = activations(2, 1, 3, 4).repeat(1, 2, 1, 1)
    step = TransposedConvolution(weight, bias, kernel, stride, padding, output_padding, OUTPUT_BITS)
    sides = zip((3, 4), stride, kernel, output_padding, strict=True)
    sums = np.zeros((2, 3, *((n - 1) * s + k + o for n, s, k, o in sides)), object)
    each = whole(weight).reshape(3, 4, 3, 2)
    for row, column in product(range(3), range(4)):
        added = np.einsum("bc,oijc->boij", whole(x)[:, :, row, column], each, optimize=False)
        sums[:, :, row * stride[0] :, column * stride[1] :][:, :, :4, :3] += added
    (top, left), (bottom, right) = padding, (sums.shape[2] - padding[0], sums.shape[3] - padding[1])
    sums = sums[:, :, top:bottom, left:right] + whole(bias)
    np.testing.assert_array_equal(whole(step(x)), rounded(sums, OUTPUT_BITS))


LAYERS: tuple[Callable[[], nn.Linear | nn.Conv2d | nn.ConvTranspose2d], ...] = (
    lambda: nn.Linear(4, 2),
    lambda: nn.Conv2d(1, 2, 2),
    lambda: nn.ConvTranspose2d(1, 2, 2),
)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_weights_whose_sums_could_pass_2_to_the_53_are_refused(
    make: Callable[[], nn.Linear | nn.Conv2d | nn.ConvTranspose2d], sign: int
) -> None:
    """Four weights of 2²² against activations of 32: 2²² · 2¹⁴ · 4 · 2¹⁵ = 2⁵³. A bias is as much a summand."""
    layer = make().double()
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.fill_(sign * (2**22 - 2**-14))
        layer.bias.fill_(0.9 * 2**-7)
        steps_of(layer, "here", ACTIVATION_BITS)
        layer.weight.fill_(sign * 2**22)
        with pytest.raises(InputError, match=r"^here: weights so large that a sum could pass 2\^53; "):
            steps_of(layer, "here", ACTIVATION_BITS)
        layer.weight.fill_(2**21)
        layer.bias.fill_(-(2**29))
        with pytest.raises(InputError, match=r"^here: .*; train with smaller ones$"):
            steps_of(layer, "here", ACTIVATION_BITS)


# -- binary inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shaped", [False, True])
def test_the_first_layer_of_a_binary_network_is_exact_in_single_precision(shaped: bool) -> None:
    layer = filled(nn.Linear(300, 40), gain=8.0)
    network = nn.Sequential(nn.Flatten(), layer) if shaped else layer
    x = torch.randint(0, 2, (50, 3, 100) if shaped else (50, 300), generator=generator("bits")).double() * 1024
    single = of_binary(steps_of(network, "here", OUTPUT_BITS))
    assert isinstance(single[-1], Dense) and single[-1].weight.dtype == torch.float32
    weight = [round(Fraction(one) * 2**14) for one in layer.weight.flatten().tolist()]
    bias = [round(Fraction(round(Fraction(one) * 2**24), 2**10)) * 2**10 for one in layer.bias.tolist()]
    sums = whole(x.flatten(1)) @ np.array(weight, object).reshape(40, 300).T + np.array(bias, object)
    np.testing.assert_array_equal(whole(integers.run(single, x)), rounded(sums, OUTPUT_BITS))
    with torch.autocast("cpu", torch.bfloat16):  # as training may have left it
        np.testing.assert_array_equal(whole(integers.run(single, x)), rounded(sums, OUTPUT_BITS))


def test_a_first_layer_that_single_precision_could_not_hold_stays_double() -> None:
    weight = torch.full((1, 4), 2.0**22)
    for bias, single in ((0.0, False), (-(2.0**10), False)):
        steps = (Dense(weight, torch.tensor([bias]), OUTPUT_BITS),)
        assert (of_binary(steps) != steps) == single or of_binary(steps) is steps
    fits = (Dense(weight - 1, torch.tensor([2.0**11]), OUTPUT_BITS),)
    assert isinstance(made := of_binary(fits)[0], Dense) and made.single
    convolution = steps_of(nn.Conv2d(1, 1, 2), "here", OUTPUT_BITS)
    assert of_binary(convolution) is convolution


# -- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp(activation: str) -> None:
    model = model_of(
        DataSpec((3, 5), "levels", 16),
        **{"network.hidden": [24, 12], "network.activation": activation, "model.latent_dim": 4},
    )
    agree(steps_of(model.encoder, "encoder", ACTIVATION_BITS), model.encoder, activations(50, 3, 5), ACTIVATION_BITS)
    assert isinstance(model, VAE)
    agree(steps_of(model.decoder, "decoder", OUTPUT_BITS), model.decoder, activations(50, 4), OUTPUT_BITS)


@pytest.mark.parametrize("kind", POINTWISE, ids=lambda kind: kind.__name__)
def test_functions_of_one_number_are_looked_up(kind: type[nn.Module]) -> None:
    """At every activation from −32 to 32, cut there and rounded once."""
    x = torch.arange(-(2**15), 2**15 + 1, dtype=torch.float64)
    expected = kind()(x / 2**10).clamp(-32, 32)
    assert (integers.run(steps_of(kind(), "here", ACTIVATION_BITS), x) / 2**10 - expected).abs().max() <= 2**-11
    assert (integers.run(steps_of(kind(), "here", OUTPUT_BITS), x) / 2**16 - expected).abs().max() <= 2**-11


@pytest.mark.parametrize("name", ["linear", "conv", "resnet"])
@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 8, 5)])
def test_networks_of_pictures_of_odd_sizes(name: str, shape: tuple[int, ...]) -> None:
    keys: dict[str, Any] = {} if name == "linear" else {"network.channels": [4, 6], "network.hidden": 12}
    gain = {"linear": 1.0, "conv": 2.0, "resnet": 1.1}[name]
    model = model_of(DataSpec(shape, "levels", 16), gain, **{"network.name": name, "model.latent_dim": 3, **keys})
    agree(steps_of(model.encoder, "encoder", ACTIVATION_BITS), model.encoder, activations(8, *shape), ACTIVATION_BITS)
    agree(steps_of(model.decoder, "decoder", OUTPUT_BITS), model.decoder, activations(8, 3), OUTPUT_BITS)


def test_batch_norm_becomes_part_of_the_layer_before_it() -> None:
    ends = nn.Dropout(0.9), nn.Identity()
    dense = (nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), *ends)
    maps = (nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, affine=False, eps=0.1), *ends)
    back = (nn.ConvTranspose2d(3, 2, 2), nn.BatchNorm2d(2), *ends)
    whole_network = (*dense, nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.SiLU(), *back)
    for layers, shape in ((dense, (12,)), (maps, (3, 2, 2)), (back, (3, 2, 2)), (whole_network, (12,))):
        made = filled(nn.Sequential(*layers))
        agree(steps_of(made, "here", OUTPUT_BITS), made, activations(30, *shape), OUTPUT_BITS)


@pytest.mark.parametrize("bits", [ACTIVATION_BITS, OUTPUT_BITS])
def test_sequences_in_sequences_and_what_they_end_with(bits: int) -> None:
    for network in (
        nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.Tanh()), nn.Sequential(nn.Dropout(), nn.Identity())),
        nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1)))),
        nn.Sequential(nn.Identity()),
        nn.Identity(),
    ):
        made = filled(network)
        agree(steps_of(made, "here", bits), made, activations(30, 6), bits)


def test_quantizing_leaves_the_model_as_it_was() -> None:
    model = model_of(DataSpec((5,), "levels", 4), **{"model.latent_dim": 2, "network.hidden": [4]}).float().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantize(model)
    assert model.training and all(value.equal(before[name]) for name, value in model.state_dict().items())


# -- refusals ------------------------------------------------------------------------------------------------------


def refused(network: nn.Module, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        steps_of(network, "net", ACTIVATION_BITS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
            r"^net\.1 is a LayerNorm: its statistics depend on each .*BatchNorm",
        ),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4)), r"^net\.1 is a GroupNorm: its statistics depend"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)), "2 is a BatchNorm1d that does not follow a"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)), "0 is a BatchNorm1d that does not follow a"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), "keeps no statistics; train"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)), "2 is a BatchNorm1d that does not"),
        (nn.BatchNorm1d(4), "^net is a BatchNorm1d that does not follow a .*; train without it"),
        (nn.Conv2d(4, 4, 1, groups=2), r"^net has groups=2; compression knows groups=1 alone$"),
        (nn.ConvTranspose2d(4, 4, 1, groups=4), "groups=4; compression knows groups=1"),
        (nn.Conv2d(4, 4, 3, dilation=2), r"dilation=\(2, 2\); compression knows dilation=\(1, 1\)"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padding_mode=circular; compression knows padding_m"),
        (nn.Conv2d(4, 4, 3, padding="same"), "has padding=same; give it as numbers"),
        (nn.Softmax(-1), "^net is a Softmax: compression takes dense, convolutional and residual layers and functions"),
        (nn.MaxPool2d(2), "^net is a MaxPool2d: compression takes dense"),
        (nn.Flatten(0, 1), "flattens axes 0 to 1; compression knows"),
        (nn.Unflatten(2, (2, 2)), "unflattens axis 2; compression knows axis 1"),
    ],
    ids=lambda value: "" if isinstance(value, nn.Module) else value[:40],
)
def test_layers_that_have_no_codec(network: nn.Module, reason: str) -> None:
    refused(network, reason)


LEVELS, BINARY, REAL = DataSpec((4,), "levels", 16), DataSpec((4,), "binary", 2), DataSpec((4,), "real", None)
TRAIN = "vaelab train codec-grey --data SOURCE"


@pytest.mark.parametrize(
    ("spec", "keys", "reason", "remedy"),
    [
        (REAL, {}, "GaussianLikelihood is a density, and only probabilities code", TRAIN),
        (REAL, {"likelihood.name": "laplace"}, "LaplaceLikelihood is a density", TRAIN),
        (LEVELS, {"likelihood.name": "poisson"}, "PoissonLikelihood has no codec here", TRAIN),
        (LEVELS, {"model.conditional": True}, "the model wants labels", TRAIN),
        (LEVELS, {"prior.name": "vamp"}, "VampPrior is no product", "prior.name=normal"),
        (LEVELS, {"prior.name": "mixture"}, "MixturePrior is no product", "prior.name=normal"),
        (LEVELS, {"prior.name": "flow"}, "FlowPrior is no product", "prior.name=normal"),
        (
            LEVELS,
            {"model.name": "hierarchical", "model.latent_dims": [2, 2], "prior.name": "vamp"},
            "VampPrior is no product",
            "prior.name=normal",
        ),
        (
            LEVELS,
            {"posterior.name": "iaf"},
            "no cumulative distribution of each latent",
            "posterior.name=gaussian or l",
        ),
        (LEVELS, {"posterior.name": "planar"}, "PlanarPosterior has no cumulative", "posterior.name=gaussian"),
        (LEVELS, {"posterior.name": "full-gaussian"}, "FullGaussianPosterior has no cum", "posterior.name=gaussian"),
        (LEVELS, {"posterior.name": "gumbel-softmax"}, "GumbelSoftmaxPosterior has no cum", "posterior.name=gaussian"),
        (LEVELS, {"posterior.name": "deterministic"}, "DeterministicPosterior has no", "posterior.name=gaussian"),
        (LEVELS, {"model.name": "joint"}, "ProductPosterior has no cumulative", "posterior.name=gaussian"),
        (LEVELS, {"model.name": "quantized", "posterior.name": "vq"}, "Quantized has no latents with a density", TRAIN),
        (DataSpec((4,), "levels", 4097), {}, "4097 levels are more than 4096", "fewer levels"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_models_that_have_no_codec(spec: DataSpec, keys: dict[str, Any], reason: str, remedy: str) -> None:
    spec = DataSpec(spec.shape, spec.kind, spec.levels, classes=3)
    model = compose(settle(resolve("test", {}, {"network.hidden": [4], **keys}), spec), spec)
    with pytest.raises(InputError) as error:
        quantize(model)
    message = str(error.value)
    assert message.startswith("compression: ") and "\n" not in message
    assert reason in message and remedy in message


def test_4096_levels_and_32_components_are_the_most() -> None:
    quantize(model_of(DataSpec((2,), "levels", 4096), **{"network.hidden": [4]}))
    keys = {"network.hidden": [4], "likelihood.name": "discretized-logistic-mixture"}
    quantize(model_of(LEVELS, **keys, **{"likelihood.components": 32}))
    with pytest.raises(InputError, match=r"^likelihood.components=33: compression sums at most 32 exactly; train with"):
        quantize(model_of(LEVELS, **keys, **{"likelihood.components": 33}))


# -- latents -------------------------------------------------------------------------------------------------------


def cost(push: Callable[[Message], None], pop: Callable[[Message], Tensor], z: Tensor) -> float:
    """Bits that z costs; it comes back, and the message too."""
    message = Message(pseudo_random_words(5, 9) | np.uint32(1))
    before, words = message.bits, message.words()
    push(message)
    grown = message.bits - before
    assert pop(message).equal(z)
    np.testing.assert_array_equal(message.words(), words)
    return grown


def near_density(bits: float, log_density: Tensor, latents: int) -> None:
    """−log2 (density · δ), up to what rounding location, scale and z to grids costs."""
    expected = -log_density.sum().item() / math.log(2) + latents * GRID_BITS
    assert bits == pytest.approx(expected, rel=1e-3, abs=4)


@pytest.mark.parametrize(("name", "kind"), [("gaussian", DiagonalGaussian), ("laplace", Laplace)])
def test_flat_latents(name: str, kind: type) -> None:
    model = model_of(LEVELS, **{"network.hidden": [8], "model.latent_dim": 3, "posterior.name": name})
    coded = quantize(model)
    levels = torch.randint(0, 16, (2000, 4), generator=generator("levels"))
    assert coded.see(levels).equal((levels / 15 * 1024).round())
    with torch.no_grad():
        q = model.encode(coded.see(levels) / 2**ACTIVATION_BITS)
        assert isinstance(q, DiagonalGaussian | Laplace) and type(q) is kind
        assert isinstance(coded.latents, FlatLatents)
        z = (q.rsample_with_log_prob(1, generator("z"))[0][0] * 2**GRID_BITS).round()
        log_q, log_p = q.log_prob(z / 2**GRID_BITS), model.prior.log_prob(z / 2**GRID_BITS)
    inside = ((z / 2**GRID_BITS - q.mean).abs() < 5.9 * q.stddev).all(1) & (z.abs() < 3.9 * 2**GRID_BITS).all(1)
    z, x, log_q, log_p = z[inside], coded.see(levels[inside]), log_q[inside], log_p[inside]
    assert len(z) > 1800
    latents = coded.latents
    push, pop = latents.push_posterior, latents.pop_posterior
    near_density(cost(lambda message: push(message, x, z), lambda message: pop(message, x), z), log_q, z.numel())
    bits = cost(lambda message: latents.push_prior(message, z), lambda message: latents.pop_prior(message, len(z)), z)
    near_density(bits, log_p, z.numel())
    assert latents.state(z).equal(z * 8)


@pytest.mark.parametrize("dims", [[3], [2, 3], [2, 3, 4]])
def test_latents_of_a_hierarchy(dims: list[int]) -> None:
    """Evidence, product of two Gaussians, conditional priors and what the decoder sees are the float64 model's."""
    keys = {"model.name": "hierarchical", "model.latent_dims": dims, "model.hidden": 16, "network.hidden": [12]}
    model = model_of(LEVELS, **keys)
    assert isinstance(model, Hierarchical)
    coded = quantize(model)
    latents = coded.latents
    assert isinstance(latents, LadderLatents) and latents.size == sum(dims)
    x = coded.see(torch.randint(0, 16, (1500, 4), generator=generator("levels")))
    with torch.no_grad():
        q = model.encode(x / 2**ACTIVATION_BITS)
        z = (q.rsample_with_log_prob(1, generator("z"))[0][0] * 2**GRID_BITS).round()
        at = z / 2**GRID_BITS
        log_q, log_p, h = q.log_prob(at), model.prior.log_prob(at), model.way_down.state(at)
    inside = (log_q > log_q.median() - 12) & (log_p > log_p.median() - 12) & (h.abs() < 30).all(1)
    x, z, log_q, log_p, h = (one[inside] for one in (x, z, log_q, log_p, h))
    assert len(z) > 1200
    push, pop = latents.push_posterior, latents.pop_posterior
    near_density(cost(lambda message: push(message, x, z), lambda message: pop(message, x), z), log_q, z.numel())
    bits = cost(lambda message: latents.push_prior(message, z), lambda message: latents.pop_prior(message, len(z)), z)
    near_density(bits, log_p, z.numel())
    torch.testing.assert_close(latents.state(z) / 2**ACTIVATION_BITS, h, rtol=0, atol=5 * CLOSE)


def test_the_scale_of_a_product_is_the_nearest_step() -> None:
    """ln σ = −½ ln(precision), 16 steps a unit."""
    step = torch.linspace(LOWEST, HIGHEST, 977, dtype=torch.float64)
    found = HIGHEST - torch.searchsorted(scale_bounds(), (-2 * step / 16).exp())
    assert (found - step).abs().max() <= 0.5


# -- the codec file ------------------------------------------------------------------------------------------------


def run_of(path: Path, **keys: Any) -> Run:
    """A run folder whose weights were never trained."""
    spec = DataSpec((1, 3, 4), "levels", 8)
    config = settle(resolve("test", {}, {"network.hidden": 6, **keys}), spec)
    run = Run.create(path, config, spec)
    write_tensors(path / "model.safetensors", filled(compose(config, spec)).float().state_dict())
    return run


KEPT: dict[str, dict[str, Any]] = {
    "mlp": {},
    "conv": {"network.name": "conv", "network.channels": [2, 3], "network.hidden": 4},
    "resnet": {"network.name": "resnet", "network.channels": [2, 3], "network.hidden": 4},
    "beta-binomial": {"likelihood.name": "beta-binomial"},
    "categorical": {"likelihood.name": "categorical"},
    "mixture": {"likelihood.name": "discretized-logistic-mixture", "likelihood.components": 2},
    "hierarchy": {"model.name": "hierarchical", "model.latent_dims": [2, 3], "model.hidden": 5},
}


@pytest.mark.parametrize("name", KEPT)
def test_a_codec_that_was_kept_is_the_one_that_was_made(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", **KEPT[name])
    made = open_codec(run)
    (run.path / "config.toml").write_text("")  # what is kept needs no model
    kept, _ = read_codec(run.path / codec_file.NAME)
    assert (kept.model_hash, kept.tables_hash) == (made.model_hash, made.tables_hash)
    assert open_codec(run).model_hash == made.model_hash
    levels = np.random.default_rng(0).integers(0, 8, (20, 1, 3, 4))
    (count, words), (kept_count, kept_words) = encode(made.model, levels), encode(kept.model, levels)
    assert count == kept_count
    np.testing.assert_array_equal(words, kept_words)


def test_a_weight_changes_the_model_hash_alone_and_a_table_the_tables_hash_alone(tmp_path: Path) -> None:
    codec = open_codec(run_of(tmp_path / "run"))
    dense, mass = codec.model.decoder[0], codec.model.pixels
    assert isinstance(dense, Dense) and isinstance(mass, LogisticPixels)
    for tensor, weight in ((dense.weight, True), (mass.sigmoid, False)):
        tensor.view(-1)[7] += 1
        changed = codec_of(codec.model)
        assert (changed.model_hash != codec.model_hash, changed.tables_hash != codec.tables_hash) == (
            weight,
            not weight,
        )
        tensor.view(-1)[7] -= 1
    assert codec_of(codec.model) == codec


def test_other_weights_make_it_anew(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    first = open_codec(run)
    weights = {name: value + 0.1 for name, value in load_file(run.path / "model.safetensors").items()}
    write_tensors(run.path / "model.safetensors", weights)
    second = open_codec(run)
    assert second.model_hash != first.model_hash
    assert read_codec(run.path / codec_file.NAME)[0].model_hash == second.model_hash
    (run.path / "model.safetensors").unlink()  # whoever decompresses needs no weights
    assert open_codec(run).model_hash == second.model_hash


def test_a_damaged_codec_file_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    codec = open_codec(run)
    path = run.path / codec_file.NAME
    whole_file = path.read_bytes()
    for length in (0, 7, 100, len(whole_file) // 2, len(whole_file) - 1):
        path.write_bytes(whole_file[:length])
        with pytest.raises(InputError, match=r"codec.safetensors: damaged; delete it, and it is made anew"):
            open_codec(run)
    for place in range(1, 20):  # of the tensors
        flipped = bytearray(whole_file)
        flipped[-1000 * place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"codec.safetensors: damaged; delete it, and it is made anew"):
            open_codec(run)
    path.unlink()
    assert open_codec(run).model_hash == codec.model_hash


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "1"},
        {"format": "1", "structure": "{}", "made_from": ""},
        {"format": "1", "structure": "[]", "made_from": ""},
        {"format": "1", "structure": "{", "made_from": ""},
        {"format": "1", "structure": json.dumps({"kind": "Path"}), "made_from": ""},
        {"format": "1", "structure": json.dumps({"kind": "Dense", "weight": 1, "bias": 2, "bits": 3}), "made_from": ""},
    ],
)
def test_another_file_of_that_name_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / codec_file.NAME
    save_file({"t0": torch.zeros(3)}, path, metadata)
    with pytest.raises(
        InputError, match=r"codec.safetensors: damaged; delete it, and it is made anew from the weights"
    ):
        read_codec(path)


def test_a_codec_file_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / codec_file.NAME
    save_file({"t0": torch.zeros(3)}, path, {"format": "2"})
    with pytest.raises(InputError, match=r"codec.safetensors: format 2, this vaelab reads 1; upgrade it"):
        read_codec(path)


def test_a_folder_that_cannot_be_written_to_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        unkept = open_codec(run)
    assert sorted(path.name for path in run.path.iterdir()) == ["config.toml", "model.safetensors"]
    assert open_codec(run).model_hash == unkept.model_hash
    assert (run.path / codec_file.NAME).is_file()
