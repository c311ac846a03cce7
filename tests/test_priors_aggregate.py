"""A prior fitted after training: how well it fits, and what it makes of odd draws."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaelab.errors import VaelabError
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import AggregatePrior, StandardNormal

KINDS = ["mixture", "flow"]


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on how well the flow fits."""
    monkeypatch.setattr("vaelab.priors.aggregate.UPDATES", 60)
    monkeypatch.setattr("vaelab.priors.aggregate.CHECK_EVERY", 20)
    monkeypatch.setattr("vaelab.priors.aggregate.BATCH", 64)


def known() -> MixtureSameFamily:
    """Three Gaussians with correlations, far apart."""
    torch.manual_seed(0)
    factor = 0.5 * torch.eye(2) + 0.4 * torch.randn(3, 2, 2).tril(-1)
    loc = 3 * torch.eye(3)[:, :2] - 1
    return MixtureSameFamily(
        Categorical(torch.tensor([0.5, 0.3, 0.2])), MultivariateNormal(loc, scale_tril=factor.tril())
    )


def drawn(number: int, seed: int) -> Tensor:
    source = known()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return source.sample((number,))


def fitted(z: Tensor, kind: Any, **keys: Any) -> AggregatePrior:
    torch.manual_seed(0)
    prior = AggregatePrior(z.shape[-1], kind=kind, **keys)
    prior.fit(z, noise())
    return prior


@pytest.mark.parametrize(("kind", "gap"), [("mixture", 0.015), ("flow", 0.06)])
def test_it_reaches_the_entropy_of_what_was_drawn(kind: str, gap: float) -> None:
    """KL(source ‖ prior) = E[log p_source − log p], over 10,000 fresh draws: N(0, I) loses 2 nats."""
    prior, fresh = fitted(drawn(6000, 1), kind), drawn(10_000, 2)
    exact = known().log_prob(fresh)
    with torch.no_grad():
        loss = exact - prior.log_prob(fresh)
        normal = exact - StandardNormal(2).log_prob(fresh)
    error = float(loss.std()) / 100
    assert -3 * error < loss.mean() < gap
    assert normal.mean() > 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_standard_normal_until_it_is_fitted(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    prior, normal = AggregatePrior(2, kind=kind, draws=300), StandardNormal(2)
    posterior = DiagonalGaussian(torch.randn(4, 2), torch.rand(4, 2) + 0.1)
    z = torch.randn(5, 2)
    assert torch.equal(prior.log_prob(z), normal.log_prob(z))
    assert torch.equal(prior.sample(5, noise()), normal.sample(5, noise()))
    kl, exact = prior.kl(posterior), normal.kl(posterior)
    assert kl is not None
    assert exact is not None
    assert torch.equal(kl, exact)
    assert list(prior.parameters()) == []  # the optimizer has nothing to do with it
    assert prior.fit_draws == 300

    prior.fit(4 + 0.1 * torch.randn(300, 2, generator=noise()), noise())
    assert prior.kl(posterior) is None
    assert prior.log_prob(torch.full((2,), 4.0)) > 1
    assert (prior.sample(50, noise()) - 4).abs().max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_kept_and_replayed(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    z, prior = drawn(500, 1), AggregatePrior(2, kind=kind)
    again = copy.deepcopy(prior)
    prior.fit(z, noise(3))
    torch.rand(7)  # where torch's own generator stands is no matter
    again.fit(z, noise(3))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in prior.state_dict().items())

    torch.manual_seed(9)
    loaded = AggregatePrior(2, kind=kind)
    loaded.load_state_dict(prior.state_dict())
    assert torch.equal(loaded.log_prob(z), prior.log_prob(z))
    assert torch.equal(loaded.sample(9, noise()), prior.sample(9, noise()))
    assert not torch.allclose(prior.log_prob(z), StandardNormal(2).log_prob(z), atol=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_units_change_the_density_by_their_volume(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder's z may be of any size: log p(a z + b) = log p(z) − Σ log a."""
    hasten(monkeypatch)
    z, scale, shift = drawn(1000, 1).double(), torch.tensor([2.0**12, 2.0**-9]).double(), torch.tensor([4096.0, -8.0])
    torch.manual_seed(0)
    prior = AggregatePrior(2, kind=kind).double()
    moved = copy.deepcopy(prior)
    prior.fit(z, noise())
    moved.fit(z * scale + shift, noise())
    exact = prior.log_prob(z) - scale.log().sum()
    assert torch.allclose(moved.log_prob(z * scale + shift), exact, atol=1e-5)
    assert torch.allclose((moved.sample(50, noise()) - shift) / scale, prior.sample(50, noise()), atol=1e-4)


def collapsed() -> Tensor:
    """Nineteen latents that say nothing, and one that does."""
    z = torch.randn(2000, 20, generator=noise())
    z[:, 0] = z[:, 0] * 0.2 + torch.where(torch.arange(2000) % 2 == 0, 2, -2)
    return z


def constant() -> Tensor:
    """An autoencoder with one latent that never changes, and one that another one repeats."""
    z = 1000 * torch.randn(400, 4, generator=noise())
    z[:, 1] = 7.0
    z[:, 2] = z[:, 0]
    return z


ODD = {
    "collapsed": collapsed,
    "constant": constant,
    "few": lambda: torch.randn(24, 30, generator=noise()),
    "repeated": lambda: torch.randn(40, 2, generator=noise()).repeat(50, 1),
    "not finite": lambda: torch.cat((drawn(200, 1), torch.tensor([[math.nan, 0], [1, math.inf]]))),
    "far out": lambda: torch.cat((drawn(500, 1), torch.tensor([[1e6, -1e6]]))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ODD)
def test_odd_draws(kind: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    z = ODD[which]()
    prior = fitted(z, kind)
    good = z[z.isfinite().all(-1)]
    with torch.no_grad():
        assert prior.log_prob(good).isfinite().all()
        sample = prior.sample(1000, noise())
        assert sample.isfinite().all()
        # Draws lie where the data do: hardly one beyond their range by more than the range itself.
        low, high = good.amin(0), good.amax(0)
        margin = high - low + 1e-3
        assert ((sample >= low - margin) & (sample <= high + margin)).double().mean() > 0.999
        if which == "collapsed":
            assert sample[:, 0].abs().mean() == pytest.approx(2, abs=0.15)
            assert sample[:, 1:].std(0).mean() == pytest.approx(1, abs=0.05)
        if which == "few":  # too few for thirty dimensions; no component sits on single draws
            fresh = torch.randn(500, 30, generator=noise(1))
            assert prior.log_prob(fresh).mean() > StandardNormal(30).log_prob(fresh).mean() - 8


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_draws_are_an_error(kind: str) -> None:
    for z in (torch.randn(19, 2), torch.zeros(500, 2), torch.full((500, 2), math.nan)):
        with pytest.raises(VaelabError, match="prior.name=aggregate: .* too few"):
            fitted(z, kind)
