"""Bits-back chains: they cost −ELBO, they come back exactly, and their bytes stay what they are."""

import hashlib
import math
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from vaelab.composition import compose, settle
from vaelab.compression import chain, ladder, latents
from vaelab.compression.chain import decode, encode, groups, initial_words
from vaelab.compression.codecs import Message
from vaelab.compression.integers import Step, run
from vaelab.compression.latents import GRID_BITS
from vaelab.compression.quantize import CodecModel, quantize
from vaelab.config import resolve
from vaelab.data.spec import DataSpec
from vaelab.model import VAE, Model
from vaelab.noise import generator
from vaelab.runs import Run, load

Levels = NDArray[np.integer[Any]]


def by_hand(spec: DataSpec, **keys: Any) -> Model:
    """A model whose numbers are multiples of 1/64, one after the other by a rule."""
    model = compose(settle(resolve("test", {}, keys), spec), spec)
    with torch.no_grad():
        for place, (_, value) in enumerate(sorted(model.named_parameters())):
            number = torch.arange(value.numel(), dtype=torch.float64) + place
            value.copy_(((37 * number + 11) % 29 - 14).view(value.shape) / 64)
    return model


def pattern(n: int, spec: DataSpec) -> NDArray[np.int64]:
    """Examples that look like nothing, by a rule."""
    number = np.arange(n * spec.dims)
    return (number**2 // 7 + 3 * number) % (spec.levels or 2) * (number % 5 > 0).astype(int)


COLORS, GREY, VECTOR = DataSpec((3, 3, 2), "levels", 9), DataSpec((1, 5, 4), "levels", 16), DataSpec((7,), "levels", 5)
HIERARCHY = {"model.name": "hierarchical", "model.latent_dims": [2, 3, 2], "model.hidden": 6, "network.hidden": 5}
MIXTURE = {"likelihood.name": "discretized-logistic-mixture", "likelihood.components": 2}
MODELS: dict[str, tuple[DataSpec, dict[str, Any]]] = {
    "bernoulli": (DataSpec((12,), "binary", 2), {"network.hidden": 6, "model.latent_dim": 3}),
    "beta-binomial": (
        GREY,
        {"likelihood.name": "beta-binomial", "model.latent_dim": 3, "network.name": "conv"}
        | {"network.channels": [2, 3], "network.hidden": 4},
    ),
    "logistic": (GREY, {"posterior.name": "laplace", "model.latent_dim": 2, "network.hidden": [5, 4]}),
    "mixture": (COLORS, MIXTURE | {"model.latent_dim": 2, "network.hidden": 6}),
    "categorical": (VECTOR, {"likelihood.name": "categorical", "model.latent_dim": 2, "network.name": "linear"}),
    "hierarchy": (VECTOR, HIERARCHY | {"likelihood.name": "beta-binomial"}),
    "residual": (
        DataSpec((1, 3, 5), "levels", 9),
        HIERARCHY | MIXTURE | {"network.name": "resnet", "network.channels": [2, 2]},
    ),
}
ALL = pytest.mark.parametrize("name", MODELS)


@cache
def coded(name: str) -> tuple[CodecModel, DataSpec]:
    spec, keys = MODELS[name]
    return quantize(by_hand(spec, **keys)), spec


def comes_back(model: CodecModel, examples: Levels) -> tuple[int, NDArray[np.uint32]]:
    """What `encode` gives; its examples and initial bits come back."""
    count, words = encode(model, examples)
    found, whole = decode(model, len(examples), count, words)
    assert whole and found is not None
    np.testing.assert_array_equal(found, examples)
    return count, words


def digits(run: Run, n: int) -> tuple[Model, Tensor]:
    """A trained model in float64, and up to n examples as it was shown them."""
    x = torch.cat([run.data()[split].fixed(0).read() for split in ("test", "train")])[:n]
    return load(run).double(), x.double()


# -- length --------------------------------------------------------------------------------------------------------


def test_a_chain_costs_minus_the_elbo(digits_run: Run) -> None:
    model, x = digits(digits_run, 2000)
    count, words = comes_back(quantize(model), x.round().long().numpy())
    with torch.no_grad():
        terms = model.terms(x, 16, generator("elbo"))
        assert terms.kl is not None
        nelbo = (terms.kl.sum(-1) - terms.log_px_z.mean(0)).mean().item()
    assert 32 * (len(words) - count) / len(x) == pytest.approx(nelbo / math.log(2), rel=0.005)


def test_a_chain_costs_what_its_own_latents_cost(digits_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """log2 q(z|x) − log2 p(z) − log2 p(x|z) by the float64 model, at the z that were drawn: no luck is left."""
    model, x = digits(digits_run, 600)
    assert isinstance(model, VAE)
    codec = quantize(model)
    pop, drawn = codec.latents.pop_posterior, list[Tensor]()

    def recording(message: Message, seen: Tensor) -> Tensor:
        drawn.append(pop(message, seen))
        return drawn[-1]

    monkeypatch.setattr(codec.latents, "pop_posterior", recording)
    count, words = encode(codec, x.round().long().numpy())
    z = torch.cat(drawn)[-600:] / 2**GRID_BITS  # of the last attempt
    with torch.no_grad():
        nats = model.encode(x).log_prob(z) - model.prior.log_prob(z) - model.decode(z).log_prob(x)
    expected = nats.sum().item() / math.log(2)
    assert 32 * (len(words) - count) == pytest.approx(expected, rel=1e-3, abs=32)


def test_groups_grow_with_what_was_coded_before() -> None:
    assert [part.stop - part.start for part in groups(30)] == [1] * 16 + [2, 2, 2, 2, 3, 3]
    parts = list(groups(20_001))
    assert np.concatenate([np.arange(part.start, part.stop) for part in parts]).tolist() == list(range(20_001))
    assert max(part.stop - part.start for part in parts) == 1000
    assert all(part.stop - part.start <= max(1, part.start / 8) for part in parts)
    assert list(groups(0)) == []


# -- exactness -----------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("n", [0, 1, 2, 30])
def test_examples_and_initial_bits_come_back(name: str, n: int) -> None:
    model, spec = coded(name)
    count, words = comes_back(model, pattern(n, spec).reshape(n, *spec.shape))
    if n == 0:
        np.testing.assert_array_equal(words, initial_words(count))


@ALL
def test_examples_that_are_unlike_all_others_come_back(name: str) -> None:
    model, spec = coded(name)
    top = (spec.levels or 2) - 1
    noise = np.random.default_rng(0).integers(0, top + 1, (25, *spec.shape))
    for examples in (np.zeros_like(noise), np.full_like(noise, top), noise.astype(np.uint8)):
        comes_back(model, examples)


def test_unlikely_examples_come_back_under_a_trained_model(digits_run: Run) -> None:
    model = quantize(load(digits_run))
    noise = np.random.default_rng(0).integers(0, 2, (40, *model.shape))
    comes_back(model, np.concatenate((np.zeros_like(noise), noise, np.ones_like(noise))))


@ALL
def test_decoding_does_not_depend_on_threads_or_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks may be evaluated in other batches than the encoder's, in another memory layout, by more threads."""
    model, spec = coded(name)
    examples = pattern(40, spec).reshape(40, *spec.shape)
    count, words = encode(model, examples)

    def otherwise(steps: tuple[Step, ...], x: Tensor) -> Tensor:
        other = [part.mT.contiguous().mT for part in x.flatten(1).flip(0).split(3)]
        return torch.cat([run(steps, part.unflatten(1, x.shape[1:])) for part in other]).flip(0)

    for module in (import_module("vaelab.compression.quantize"), latents, ladder):
        monkeypatch.setattr(module, "run", otherwise)
    torch.set_num_threads(2)
    try:
        found, whole = decode(model, 40, count, words)
    finally:
        torch.set_num_threads(1)
    assert whole
    np.testing.assert_array_equal(found, examples)


# -- initial bits --------------------------------------------------------------------------------------------------


def test_initial_bits_are_as_many_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 latents with a scale of 1 borrow about 9 bits each before anything is there to borrow from."""
    spec = DataSpec((3,), "levels", 4)
    model = by_hand(spec, **{"model.latent_dim": 60, "network.hidden": 4})
    assert isinstance(model, VAE)
    with torch.no_grad():
        for parameter in model.posterior.parameters():
            parameter.zero_()
    codec = quantize(model)
    examples = pattern(3, spec).reshape(3, 3)
    borrowed = 60 * (7 + stats.norm.entropy() / math.log(2))
    count, _ = comes_back(codec, examples)
    assert borrowed / 32 < count < 1.25 * borrowed / 32 + 6
    tried = [2]
    while tried[-1] < count:
        tried.append(tried[-1] + max(1, tried[-1] // 4))
    assert tried[-1] == count
    encoding = chain._encode  # pyright: ignore[reportPrivateUsage]
    assert [encoding(codec, examples, words) is None for words in tried] == [True] * (len(tried) - 1) + [False]


def test_initial_words_end_in_no_zero() -> None:
    for count in range(1, 300):
        words = initial_words(count)
        assert len(words) == count and words[-1] % 2 == 1
    assert len(set(initial_words(1000))) > 990


def collapsed_latents(monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float64]:
    """z of 16 examples, coded one by one, of a model whose posterior is its prior, [16, 8]."""
    spec = DataSpec((3,), "levels", 4)
    model = by_hand(spec, **{"model.latent_dim": 8, "network.hidden": 4})
    assert isinstance(model, VAE)
    with torch.no_grad():
        for parameter in model.posterior.parameters():
            parameter.zero_()
    codec = quantize(model)
    pop, drawn = codec.latents.pop_posterior, list[Tensor]()

    def recording(message: Message, x: Tensor) -> Tensor:
        drawn.append(pop(message, x))
        return drawn[-1]

    monkeypatch.setattr(codec.latents, "pop_posterior", recording)
    comes_back(codec, pattern(16, spec).reshape(16, 3))
    return torch.cat(drawn[-16:]).numpy() / 2**GRID_BITS


def test_collapsed_latents_are_drawn_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the scrambling the z that was pushed last would be popped again."""
    z = collapsed_latents(monkeypatch)
    assert stats.kstest(z.flatten(), stats.norm.cdf)[1] > 0.01
    assert np.median(abs(np.diff(z[:, 0]))) > 0.2  # of the latents, the one that is popped first

    def nothing(self: Message, number: int, count: int) -> None:
        pass

    monkeypatch.setattr(Message, "scramble", nothing)
    z = collapsed_latents(monkeypatch)
    assert abs(np.diff(z[:, 0])).max() < 0.02


# -- what no encoder wrote -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "mixture", "categorical", "hierarchy"])
def test_damaged_words_are_no_examples_or_no_initial_bits(name: str) -> None:
    """Never an exception, never the examples with all their initial bits: so a file's hashes are not all there is."""
    model, spec = coded(name)
    examples = pattern(8, spec).reshape(8, *spec.shape)
    count, words = encode(model, examples)
    rng = np.random.default_rng(0)
    for _ in range(12):
        flipped = words.copy()
        flipped[rng.integers(len(words))] ^= np.uint32(1 << int(rng.integers(32)))
        assert not decode(model, 8, count, flipped)[1]
    for wrong in (words[:-1], words[1:], words[:1], words[:0], np.append(words, words[-1]), words[::-1].copy()):
        assert not decode(model, 8, count, wrong)[1]
    for n, initial in ((7, count), (9, count), (8, count + 1), (0, count), (10**6, count)):
        assert not decode(model, n, initial, words)[1]


# -- bytes ---------------------------------------------------------------------------------------------------------

PINNED = {
    "bernoulli": (3, 15, "7284057bc57d7394e47a8ebf84ae8a7f"),
    "beta-binomial": (4, 77, "4271d6e21322c176d20d83de6bc0f962"),
    "logistic": (3, 88, "5c76ea5ef86567dffd34fe3ff049b2ab"),
    "mixture": (3, 63, "a4fe03fa14ed94f96c31232ff6c00a66"),
    "categorical": (3, 19, "c1622464451046147782f9994c10faff"),
    "hierarchy": (4, 19, "2f2a9b3a979f0f36655f25b16a8ffd5c"),
    "residual": (4, 54, "29c7cbc0ebfb9462be244a6ea1386ae3"),
}
"""Initial words, words, and the start of their SHA-256, of 30 examples."""


@ALL
def test_the_bytes_of_a_chain_stay_what_they_are(name: str) -> None:
    """Else files that were written before could not be read any more: then chain, tables or coder have changed.

    Whoever wants that gives the container a new version.
    """
    model, spec = coded(name)
    count, words = encode(model, pattern(30, spec).reshape(30, *spec.shape))
    found = count, len(words), hashlib.sha256(words.astype("<u4").tobytes()).hexdigest()[:32]
    assert found == PINNED[name]
