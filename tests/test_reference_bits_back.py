"""reference/bits_back.py: its coder, its tables, its ledger, and that it gives everything back."""

import math
import random
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn.datasets import load_digits
from test_reference import FOLDER, reference
from torch import Tensor

MODULE = reference("bits_back")
UNIT, BUCKETS, D = MODULE.UNIT, MODULE.BUCKETS, MODULE.LATENT_DIM
PICTURES = (torch.as_tensor(load_digits(return_X_y=True)[0]) > 8).float()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """A VAE that has seen the digits four times."""
    torch.manual_seed(0)
    made = MODULE.VAE()
    MODULE.fit(made, PICTURES, 4, torch.Generator().manual_seed(0))
    return made.requires_grad_(False)


@st.composite
def symbols_and_tables(draw: Any) -> tuple[list[int], list[list[int]]]:
    """Tables with symbols of any share, some of it 0; the symbols that are coded have one."""
    tables = [
        [0, *sorted(draw(st.lists(st.integers(0, UNIT), max_size=6))), UNIT] for _ in range(draw(st.integers(0, 5)))
    ]
    possible = [[s for s, (start, end) in enumerate(pairwise(table)) if end > start] for table in tables]
    return [draw(st.sampled_from(each)) for each in possible], tables


@settings(max_examples=100)
@given(st.integers(0, 2**200), symbols_and_tables())
def test_push_and_pop_undo_each_other(message: int, coded: tuple[list[int], list[list[int]]]) -> None:
    symbols, tables = coded
    assert MODULE.pop(MODULE.push(message, symbols, tables), tables) == (message, symbols)
    rest, found = MODULE.pop(message, tables)  # of a message that nothing was pushed on
    assert MODULE.push(rest, found, tables) == message


@settings(max_examples=30)
@given(st.integers(0, 4), st.lists(st.integers(0, UNIT), min_size=1, max_size=3), st.data())
def test_a_message_counts_the_integers_that_belong_to_its_symbol(turns: int, cuts: list[int], data: Any) -> None:
    """What `push` gives is, of the integers that lie in the symbol's share modulo UNIT, the one of number `message`."""
    table = [0, *sorted(cuts), UNIT]
    symbol = data.draw(st.sampled_from([s for s, (start, end) in enumerate(pairwise(table)) if end > start]))
    share = table[symbol + 1] - table[symbol]
    message = data.draw(st.integers(turns * share, (turns + 1) * share))
    pushed = MODULE.push(message, [symbol], [table])
    numbers = np.arange(pushed) % UNIT
    assert np.count_nonzero((numbers >= table[symbol]) & (numbers < table[symbol + 1])) == message
    assert table[symbol] <= pushed % UNIT < table[symbol + 1]


def test_a_long_message_grows_by_minus_log2_of_the_probability() -> None:
    message = random.Random(0).getrandbits(2000)
    tables = [[0, share, UNIT] for share in (1, 100, 30000, UNIT - 1)]
    pushed = MODULE.push(message, [0, 1, 0, 1], tables)
    probability = 1 / UNIT * (1 - 100 / UNIT) * 30000 / UNIT / UNIT
    assert math.log2(pushed) - math.log2(message) == pytest.approx(-math.log2(probability), abs=1e-9)


def test_the_tables_are_the_densities(model: torch.nn.Module) -> None:
    """The Gaussian's mass between quantiles of the prior, by scipy; the Bernoulli's, by its definition."""
    edges = norm.ppf(np.linspace(0, 1, BUCKETS + 1))
    for x in PICTURES[:20]:
        loc, log_variance = model.encoder(x).double().numpy().reshape(2, D, 1)  # type: ignore[operator]
        cdf = norm.cdf(edges, loc, np.exp(0.5 * log_variance))
        tables = np.array(MODULE.posterior(model, x))
        assert np.abs(tables - UNIT * cdf).max() < 0.51
        assert (tables[:, 0] == 0).all() and (tables[:, -1] == UNIT).all()
        z = random.Random(0).choices(range(BUCKETS), k=D)
        centers = torch.as_tensor(norm.ppf((np.array(z) + 0.5) / BUCKETS)).float()
        black = expit(model.decoder(centers).double().numpy())  # type: ignore[operator]
        shares = np.array(MODULE.likelihood(model, z))
        assert (shares[:, 0] == 0).all() and (shares[:, 2] == UNIT).all()
        assert np.abs(shares[:, 1] - UNIT * (1 - black)).max() < 1.01
    prior = np.diff(MODULE.PRIOR)
    assert (prior == UNIT // BUCKETS).all() and prior.shape == (D, BUCKETS)


def test_no_pixel_is_impossible(model: torch.nn.Module) -> None:
    """A decoder that is too sure of itself costs 16 bits a pixel; it does not fail."""
    for sign in (-1, 1):
        sure = MODULE.VAE().requires_grad_(False)
        sure.decoder[2].bias.fill_(sign * 1000)
        message = random.Random(0).getrandbits(300)
        x = torch.tensor([0.0, 1.0]).repeat(32)
        found, decoded = MODULE.decode(sure, MODULE.encode(sure, message, x)[-1])
        assert found == message and (decoded == x).all()


def test_the_elbo_is_that_of_the_first_reference(model: torch.nn.Module) -> None:
    first = reference("vae")
    other = first.VAE(PICTURES.mean(0))
    state = {name.replace("encoder.2", "head"): value for name, value in model.state_dict().items()}
    state["bias"] = state.pop("decoder.2.bias")
    other.load_state_dict(state)
    eps = torch.randn(3, 50, D, generator=torch.Generator().manual_seed(1))
    expected = first.elbo(other, PICTURES[:50], eps)
    assert (MODULE.elbo(model, PICTURES[:50], eps) - expected).abs().max() < 1e-4


def log_densities(model: Any, x: Tensor, buckets: list[int]) -> list[float]:
    """log2 q(z|x), log2 p(x|z) and log2 p(z) of the buckets: densities at their centers, times their width."""
    z = torch.as_tensor(norm.ppf((np.array(buckets) + 0.5) / BUCKETS))
    loc, log_variance = model.encoder(x).double().view(2, D)
    normal = torch.distributions.Normal(loc, torch.exp(0.5 * log_variance))
    bernoulli = torch.distributions.Bernoulli(logits=model.decoder(z.float()).double())
    prior = torch.distributions.Normal(torch.zeros(D).double(), 1.0).log_prob(z)
    width = -math.log(BUCKETS) - prior  # of a bucket of mass 1 / BUCKETS, where the prior's density is that
    nats = (normal.log_prob(z) + width, bernoulli.log_prob(x.double()), prior + width)
    return [each.sum().item() / math.log(2) for each in nats]


def check(module: ModuleType, model: Any, pictures: Tensor) -> None:
    """A chain of pictures: the ledger against the densities and against the ELBO, and everything comes back."""
    messages = [random.Random(0).getrandbits(module.INITIAL_BITS)]
    for x in pictures:
        messages += module.encode(model, messages[-1], x)
    lengths = np.array([math.log2(message) for message in messages])
    ledger = np.diff(lengths).reshape(-1, 3)
    assert ledger.sum() == pytest.approx(lengths[-1] - lengths[0], abs=1e-8)
    message, found = messages[-1], list[list[float]]()
    for place in reversed(range(len(pictures))):
        _, buckets = module.pop(message, module.PRIOR)
        found.append(log_densities(model, pictures[place], buckets))
        message, x = module.decode(model, message)
        assert (x == pictures[place]).all()
        assert message == messages[3 * place]
    logs = np.array(found)[::-1] * [1, -1, -1]  # a pop shortens the message, a push lengthens it
    assert ledger.mean(0) == pytest.approx(logs.mean(0), rel=2e-3)
    assert ledger.sum() == pytest.approx(logs.sum(), rel=2e-3)
    noise = torch.randn(100, len(pictures), D, generator=torch.Generator().manual_seed(1))
    bound = -module.elbo(model, pictures, noise).double().mean().item() / math.log(2)
    assert ledger.sum(1).mean() == pytest.approx(bound, rel=0.005)


def test_the_chain_has_the_length_of_the_elbo_and_gives_all_back(model: torch.nn.Module) -> None:
    check(MODULE, model, PICTURES[:700])


WRONG = [
    ("message // share * UNIT + start", "message // share * UNIT + table[0]"),
    ("for table in reversed(tables)", "for table in tables"),
    ("return push(without_z, z, posterior(model, x)), x", "return push(without_z, z, PRIOR), x"),
    ("(EDGES - loc) / torch.exp(0.5 *", "(EDGES - loc) / torch.exp(0.4 *"),
    ("torch.arange(BUCKETS) + 0.5)", "0.8 * torch.arange(BUCKETS) + 0.5)"),
    ("BUCKETS = 2**8", "BUCKETS = 2**3"),
    ("white = (-model.decoder(CENTERS[z])).sigmoid()", "white = (-1.2 * model.decoder(CENTERS[z])).sigmoid()"),
    ("clamp(1, UNIT - 1)", "clamp(2**14, UNIT - 1)"),
    ("INITIAL_BITS = 128", "INITIAL_BITS = 8"),
    ("kl = 0.5 *", "kl = 0.4 *"),
]


@pytest.mark.parametrize(("right", "wrong"), WRONG)
def test_a_wrong_codec_is_noticed(right: str, wrong: str, model: torch.nn.Module, tmp_path: Path) -> None:
    text = (FOLDER / "bits_back.py").read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "bits_back.py").write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises((AssertionError, ValueError, ZeroDivisionError)):
        check(reference("bits_back", tmp_path), model, PICTURES[:60])
