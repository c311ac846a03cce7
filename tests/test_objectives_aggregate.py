"""Total correlation and moments: against sums over whole small data sets, and against numbers on paper."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exact import grid
from torch import Tensor, nn

from vaelab.latents import LatentSpec
from vaelab.model import Terms
from vaelab.noise import generator
from vaelab.objectives import DIP, ELBO, BetaTCVAE, FactorVAE, total_correlation
from vaelab.objectives.total_correlation import log_aggregate, mixture_log_weights, permuted
from vaelab.posteriors import Categorical, DiagonalGaussian, PosteriorDistribution
from vaelab.priors import CategoricalPrior, Prior, StandardNormal

NOTHING: Any = nn.Module()


def terms_of(posterior: PosteriorDistribution, draws: int, prior: Prior, seed: int = 0, exact: bool = True) -> Terms:
    noise = generator(seed)
    draw = posterior.sample_with_log_prob if exact else posterior.rsample_with_log_prob
    z, log_qz_x = draw(draws, noise)
    log_px_z = -z.square().sum(-1)
    return Terms(
        x=z[0],
        z=z,
        log_px_z=log_px_z,
        log_pz=prior.log_prob(z),
        log_qz_x=log_qz_x,
        kl=prior.kl(posterior),
        posterior=posterior,
        prior=prior,
        likelihood=NOTHING,
        noise=noise,
    )


def gaussians(examples: int = 5, dims: int = 2, seed: int = 0) -> DiagonalGaussian:
    """Posteriors whose means lie near a diagonal line, so that there is a total correlation."""
    noise = generator(seed)
    along = torch.randn(examples, 1, generator=noise).double() * 1.5
    return DiagonalGaussian(
        along + 0.3 * torch.randn(examples, dims, generator=noise).double(),
        torch.rand(examples, dims, generator=noise).double() * 0.5 + 0.3,
    )


def tcvae(examples: int, **keys: Any) -> BetaTCVAE:
    return BetaTCVAE(NOTHING, examples, **keys)


# -- beta-tcvae ----------------------------------------------------------------------------------------------------


def test_the_decomposition_of_the_mean_rate_is_exact_over_a_whole_data_set() -> None:
    """I, TC and D by a grid over two dimensions, on paper's definitions; the batch is the data set of five."""
    posterior, prior = gaussians(), StandardNormal(2).double()
    z, cell = grid(2, edge=9, points=401)
    log_each = torch.distributions.Normal(posterior.loc, posterior.scale).log_prob(z[:, None])  # [n, 5, 2]
    log_q = log_each.sum(-1).logsumexp(1) - math.log(5)
    log_product = (log_each.logsumexp(1) - math.log(5)).sum(-1)
    mass = log_q.exp() * cell
    conditional = log_each.sum(-1)
    exact = {
        "mutual_information": (conditional.exp() * (conditional - log_q[:, None])).sum().item() * cell / 5,
        "total_correlation": (mass * (log_q - log_product)).sum().item(),
        "dimension_wise_kl": (mass * (log_product - prior.log_prob(z))).sum().item(),
    }
    kl = prior.kl(posterior)
    assert kl is not None
    assert sum(exact.values()) == pytest.approx(kl.sum(-1).mean().item(), abs=1e-7)

    terms = terms_of(posterior, 40_000, prior)
    found = tcvae(5)(terms).metrics
    for name, value in exact.items():
        assert found[name].item() == pytest.approx(value, abs=0.012)  # the spread of 200,000 draws is below 0.003
        assert value > 0.3


def test_the_parts_sum_to_the_rate_of_the_same_draws_whatever_the_prior() -> None:
    class Line(StandardNormal):  # a prior that is no product over latents
        def log_prob(self, z: Tensor) -> Tensor:
            return -((z[..., 0] - z[..., 1]) ** 2) - z.square().sum(-1)

    for prior in (StandardNormal(2).double(), Line(2).double()):
        terms = terms_of(gaussians(), 3, prior)
        assert terms.log_qz_x is not None
        rate = (terms.log_qz_x - terms.log_pz).mean().item()
        loss = tcvae(100, alpha=1, beta=1, gamma=1)(terms)
        names = ("mutual_information", "total_correlation", "dimension_wise_kl")
        information, correlation, dimension_wise = (loss.metrics[name].item() for name in names)
        assert information + correlation + dimension_wise == pytest.approx(rate, abs=1e-12)
        assert loss.value.item() == pytest.approx(terms.distortion.mean().item() + rate, abs=1e-12)
        weighed = tcvae(100, alpha=2, beta=5, gamma=0.5)(terms).value.item()
        by_hand = terms.distortion.mean().item() + 2 * information + 5 * correlation + 0.5 * dimension_wise
        assert weighed == pytest.approx(by_hand, abs=1e-12)


def test_the_stratified_weights_are_right_on_average_over_all_batches() -> None:
    """E[q̂(z)] = q(z) with the example that z was drawn from in every batch: all 10 batches of 3 out of 6, no chance.

    With its weight in column 0 instead, the mean is wrong.
    """
    posterior = gaussians(6)
    z = posterior.loc[2] + 0.2
    log_each = torch.distributions.Normal(posterior.loc, posterior.scale).log_prob(z).sum(-1)
    exact = log_each.exp().mean().item()

    def mean(in_column_0: bool) -> float:
        found: list[float] = []
        for others in itertools.combinations([0, 1, 3, 4, 5], 2):
            rows = sorted([2, *others])
            own = rows.index(2)
            batch = DiagonalGaussian(posterior.loc[rows], posterior.scale[rows])
            weights = mixture_log_weights(z.expand(1, 3, 2), 6, "stratified")
            if in_column_0:
                weights = weights[:1].expand(3, 3)
            found.append(log_aggregate(batch, z.expand(1, 3, 2), weights)[0][0, own].exp().item())
        return sum(found) / len(found)

    assert mean(False) == pytest.approx(exact, rel=1e-12)
    assert abs(mean(True) / exact - 1) > 0.2


def test_the_weights_of_the_paper_averaged_over_its_order_are_these() -> None:
    """Chen et al., appendix C: 1/N, then 1/M for M − 1 others and (N − M)/(N M) for one, M = B − 1."""
    examples, m = 50, 7
    paper = [1 / m] * (m - 1) + [(examples - m) / (examples * m)]
    assert sum(paper) + 1 / examples == pytest.approx(1)
    weights = mixture_log_weights(torch.zeros(1, m + 1, 2).double(), examples, "stratified").exp()
    assert weights.diagonal().tolist() == pytest.approx([1 / examples] * (m + 1))
    assert weights[3, 5].item() == pytest.approx(sum(paper) / m)
    assert weights.sum(1).tolist() == pytest.approx([1.0] * (m + 1))


def test_information_of_examples_far_apart_is_log_n() -> None:
    """Not log B, and not a multiple for the number of dimensions: the weight enters each mixture once."""
    posterior = DiagonalGaussian(torch.arange(8.0)[:, None].expand(8, 5) * 100, torch.ones(8, 5))
    terms = terms_of(posterior, 2, StandardNormal(5))
    found = tcvae(1000)(terms).metrics
    assert found["mutual_information"].item() == pytest.approx(math.log(1000), rel=1e-5)
    assert found["total_correlation"].item() == pytest.approx(4 * math.log(1000), rel=1e-5)
    weighted = tcvae(1000, sampling="weighted")(terms).metrics
    assert weighted["mutual_information"].item() == pytest.approx(math.log(8), rel=1e-5)


def test_weighted_sampling_has_the_papers_gradient() -> None:
    """log q̂ with the paper's 1/(N B) differs from 1/B by a constant, in every mixture."""
    grads: list[Tensor] = []
    for weights in (mixture_log_weights(torch.zeros(1, 5, 2).double(), 70, "weighted"), None):
        posterior = gaussians()
        posterior.loc.requires_grad_()
        z, _ = posterior.rsample_with_log_prob(2, generator(3))
        table = torch.full((5, 5), -math.log(70 * 5)).double() if weights is None else weights
        log_q, log_product = log_aggregate(posterior, z, table)
        (6 * (log_q - log_product)).mean().backward()
        assert posterior.loc.grad is not None
        grads.append(posterior.loc.grad)
    assert grads[0].numpy() == pytest.approx(grads[1].numpy(), rel=1e-9, abs=1e-12)


def test_correlated_posteriors_enter_whole_not_as_their_marginals() -> None:
    @dataclass
    class Correlated(PosteriorDistribution):
        normal: torch.distributions.MultivariateNormal

        @property
        def mean(self) -> Tensor:
            return self.normal.mean

        def rsample_with_log_prob(self, num_samples: int, generator: Any = None) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

        def log_prob(self, z: Tensor) -> Tensor:
            return self.normal.log_prob(z)

        def marginal_log_prob(self, z: Tensor) -> Tensor:
            scale = self.normal.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
            return torch.distributions.Normal(self.normal.mean, scale).log_prob(z)

    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double().expand(4, 2, 2)
    posterior = Correlated(torch.distributions.MultivariateNormal(torch.zeros(4, 2).double(), covariance))
    z = posterior.normal.sample((3,))
    log_q, log_product = log_aggregate(posterior, z, mixture_log_weights(z, 4, "stratified"))
    assert log_q.numpy() == pytest.approx(posterior.normal.log_prob(z).numpy(), rel=1e-9)
    standard = torch.distributions.Normal(torch.zeros(()).double(), 1.0).log_prob(z).sum(-1)
    assert log_product.numpy() == pytest.approx(standard.numpy(), rel=1e-9)


def test_the_decomposition_for_categorical_latents_is_that_of_all_their_combinations() -> None:
    logits = (torch.randn(4, 2, 3, generator=generator(5)).double() * 2).log_softmax(-1)
    posterior = Categorical(logits)
    prior = CategoricalPrior(LatentSpec(categorical=2, categories=3)).double()
    joint = torch.einsum("na,nb->nab", *logits.exp().unbind(1))  # q(z|x) of the nine combinations
    q = joint.mean(0)
    product = q.sum(1)[:, None] * q.sum(0)[None]
    exact = {
        "mutual_information": (joint * (joint / q).log()).sum().item() / 4,
        "total_correlation": (q * (q / product).log()).sum().item(),
        "dimension_wise_kl": (q * (product * 9).log()).sum().item(),
    }
    found = tcvae(4)(terms_of(posterior, 40_000, prior)).metrics
    for name, value in exact.items():
        assert found[name].item() == pytest.approx(value, abs=0.012)
    assert exact["total_correlation"] > 0.02


def test_the_table_is_made_in_pieces_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = gaussians(7)
    z, _ = posterior.rsample_with_log_prob(2, generator(0))
    weights = mixture_log_weights(z, 30, "stratified")
    whole = log_aggregate(posterior, z, weights)
    monkeypatch.setattr(total_correlation, "PAIRS_AT_ONCE", 2 * z.numel())
    for one, other in zip(whole, log_aggregate(posterior, z, weights), strict=True):
        assert torch.equal(one, other)


# -- factor --------------------------------------------------------------------------------------------------------


def factor(dims: int, **keys: Any) -> FactorVAE:
    torch.manual_seed(0)
    model: Any = nn.Module()
    model.latents = LatentSpec(real=dims)
    return FactorVAE(model, **keys)


def test_no_gradient_passes_between_model_and_critic() -> None:
    objective = factor(2, critic_width=8, critic_depth=2)
    posterior = DiagonalGaussian(torch.randn(9, 2).requires_grad_(), torch.rand(9, 2).requires_grad_())
    critic = list(objective.parameters())
    encoder = [posterior.loc, posterior.scale]
    loss = objective(terms_of(posterior, 1, StandardNormal(2), exact=False))
    assert loss.critic is not None
    from_value = torch.autograd.grad(loss.value, [*encoder, *critic], allow_unused=True, retain_graph=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in from_value[:2])
    assert all(gradient is None for gradient in from_value[2:])
    from_critic = torch.autograd.grad(loss.critic, [*encoder, *critic], allow_unused=True)
    assert all(gradient is None for gradient in from_critic[:2])
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in from_critic[2:])


def test_the_encoder_follows_the_critic_gamma_times() -> None:
    objective = factor(2, gamma=3, critic_width=8, critic_depth=1).double()
    posterior = gaussians(6)
    posterior.loc.requires_grad_()
    terms = terms_of(posterior, 2, StandardNormal(2).double(), exact=False)
    (whole,) = torch.autograd.grad(objective(terms).value, posterior.loc, retain_graph=True)
    (elbo,) = torch.autograd.grad(ELBO()(terms).value, posterior.loc, retain_graph=True)
    logits = objective.critic(terms.z)
    (critic,) = torch.autograd.grad((logits[..., 0] - logits[..., 1]).mean(), posterior.loc)
    assert (whole - elbo).numpy() == pytest.approx((3 * critic).numpy(), rel=1e-9, abs=1e-12)
    assert critic.abs().max() > 1e-3


def test_the_value_carries_gamma_times_the_critics_total_correlation() -> None:
    terms = terms_of(gaussians(6), 1, StandardNormal(2).double())
    objective = factor(2, gamma=3, critic_width=8, critic_depth=1).double()
    logits = objective.critic(terms.z[0])
    by_hand = (logits[:, 0] - logits[:, 1]).mean().item()
    assert terms.rate is not None
    elbo = -(terms.distortion + terms.rate).mean().item()
    loss = objective(terms)
    assert loss.metrics["total_correlation"].item() == pytest.approx(by_hand)
    assert loss.value.item() == pytest.approx(-elbo + 3 * by_hand)
    assert abs(by_hand) > 1e-3
    terms.noise = None
    with torch.no_grad():
        quiet = objective(terms)
    assert quiet.critic is None
    assert quiet.value.item() == pytest.approx(loss.value.item())


def test_the_best_critic_tells_the_log_density_ratio() -> None:
    """For unit normals of correlation 0.8 against independent ones: the ratio on paper, and TC = −½ log(1 − 0.8²)."""
    rho, noise = 0.8, generator(0)
    objective = factor(2, critic_width=32, critic_depth=2)
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)

    def draws(count: int) -> Tensor:
        first, second = torch.randn(2, count, generator=noise)
        return torch.stack([first, rho * first + (1 - rho**2) ** 0.5 * second], -1)

    def terms(z: Tensor) -> Terms:
        rates = {"kl": torch.zeros_like(z), "log_qz_x": z[None, :, 0], "log_pz": z[None, :, 0]}
        return Terms(
            x=z,
            z=z[None],
            log_px_z=z[None, :, 0],
            posterior=NOTHING,
            prior=NOTHING,
            likelihood=NOTHING,
            noise=noise,
            **rates,  # type: ignore[arg-type]
        )

    for _ in range(300):
        optimizer.zero_grad()
        objective(terms(draws(1000))).total.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        z = draws(20_000)
        logits = objective.critic(z)
        a, b = z.unbind(-1)
        exact = -0.5 * math.log(1 - rho**2) - (rho**2 * (a**2 + b**2) - 2 * rho * a * b) / (2 * (1 - rho**2))
        error = logits[:, 0] - logits[:, 1] - exact
        assert error.square().mean().sqrt() < 0.15 < 0.2 * exact.std()
        correlation = objective(terms(z)).metrics["total_correlation"].item()
    assert correlation == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.04)  # 0.511


def test_latents_are_permuted_across_the_batch_each_by_itself_and_whole() -> None:
    """Within a row, or all latents by one permutation, it would be a draw of something else."""
    latents = LatentSpec(real=2, categorical=2, categories=3)
    latent_of = torch.arange(4).repeat_interleave(torch.tensor(latents.widths))
    count = 200
    z = torch.arange(count)[:, None] + 1000.0 * torch.arange(latents.width)  # says where it comes from
    found = permuted(z, latent_of, generator(0))
    rows, columns = found.long() % 1000, found.long() // 1000
    assert torch.equal(columns, torch.arange(8).expand(count, 8))  # no number leaves its column
    assert torch.equal(rows.sort(0).values, torch.arange(count)[:, None].expand(count, 8))  # all are there, once
    assert torch.equal(rows[:, 2:5], rows[:, 2:3].expand(-1, 3))  # blocks stay whole
    assert torch.equal(rows[:, 5:8], rows[:, 5:6].expand(-1, 3))
    orders = rows[:, [0, 1, 2, 5]]
    for one, other in itertools.combinations(range(4), 2):
        assert (orders[:, one] == orders[:, other]).sum() < 10  # one in 200 by chance
        assert abs(torch.corrcoef(orders[:, [one, other]].T.double())[0, 1].item()) < 0.3
    assert torch.equal(found, permuted(z, latent_of, generator(0)))
    assert not torch.equal(found, permuted(z, latent_of, generator(1)))


# -- dip -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "offdiagonal", "diagonal"), [(1, 2 * 2.0**2, 1 + 9), (2, 2 * 2.0**2, 1.25**2 + 16)])
def test_dip_on_means_of_known_covariance(kind: Any, offdiagonal: float, diagonal: float) -> None:
    """Means with covariance [[2, 2], [2, 4]] exactly; the posterior variances add ¼ and 1 to its diagonal."""
    a, b = torch.tensor([1.0, 1, -1, -1]).double(), torch.tensor([1.0, -1, 1, -1]).double()
    loc = torch.stack([3 + math.sqrt(2) * a, math.sqrt(2) * (a + b)], -1)
    scale = torch.tensor([[0.5, 1.0]]).double().expand(4, 2)
    terms = terms_of(DiagonalGaussian(loc, scale), 1, StandardNormal(2).double())
    assert terms.rate is not None
    elbo = -(terms.distortion + terms.rate).mean().item()
    loss = DIP(kind=kind, lambda_offdiagonal=3, lambda_diagonal=7)(terms)
    assert loss.metrics["offdiagonal"].item() == pytest.approx(offdiagonal)
    assert loss.metrics["diagonal"].item() == pytest.approx(diagonal)
    assert loss.value.item() == pytest.approx(-elbo + 3 * offdiagonal + 7 * diagonal)
    default = DIP(kind=kind, lambda_offdiagonal=3)
    assert default.lambda_diagonal == (30 if kind == 1 else 3)


def test_dip_is_at_rest_where_the_aggregate_posterior_is_white() -> None:
    a, b = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    loc = 0.6 * torch.stack([a, b], -1)
    found = DIP(kind=2)(terms_of(DiagonalGaussian(loc, torch.full((4, 2), 0.8)), 1, StandardNormal(2))).metrics
    assert found["offdiagonal"].item() == pytest.approx(0, abs=1e-12)
    assert found["diagonal"].item() == pytest.approx(0, abs=1e-12)
