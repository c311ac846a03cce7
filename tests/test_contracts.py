"""What every combination of likelihood, posterior, prior and objective must keep, whichever parts are registered.

The combinations cover all pairs of parts. Each runs on a model so small that p(x) is known exactly: by quadrature over
two real latents, or as the sum over all one-hots or codes.
"""

import itertools
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from vaelab.composition import compose, compose_objective, settle
from vaelab.config import build, names, part, resolve, section
from vaelab.data.dataset import Split
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.evaluation import estimates, likelihood
from vaelab.model import Model, Terms
from vaelab.noise import generator
from vaelab.objectives import Objective
from vaelab.quantized import Quantized

pytestmark = pytest.mark.usefixtures("without_reports")

SHAPE = (2, 1, 1)
SPECS = {
    "binary": DataSpec(SHAPE, "binary", 2),
    "levels": DataSpec(SHAPE, "levels", 4),
    "real": DataSpec(SHAPE, "real", None),
}
GROUPS = ("likelihood", "posterior", "prior", "objective")
SMALL: dict[tuple[str, str], dict[str, Any]] = {
    ("posterior", "gumbel-softmax"): {"categories": 3},
    ("posterior", "planar"): {"steps": 2},
    ("posterior", "iaf"): {"hidden": [6], "context": 4},
    ("posterior", "spline"): {"hidden": [6], "context": 4, "bins": 4},
    ("posterior", "vq"): {"codes": 5, "channels": 2},
    ("posterior", "fsq"): {"levels": [3, 2]},
    ("prior", "flow"): {"hidden": [6]},
    ("prior", "mixture"): {"components": 3},
    ("prior", "vamp"): {"components": 3},
    ("prior", "aggregate"): {"components": 3, "draws": 500},
    ("prior", "autoregressive"): {"width": 8, "layers": 1, "heads": 2},
    ("objective", "free-bits"): {"nats": 0.001},
    ("objective", "miwae"): {"num_groups": 2, "num_samples": 3},
    ("objective", "factor"): {"critic_width": 8, "critic_depth": 2},
}
"""Keys that make a part quick. A part that is not here has its defaults."""


def chosen(group: str, name: str) -> dict[str, Any]:
    keys = {f"{group}.{key}": value for key, value in SMALL.get((group, name), {}).items()}
    return {f"{group}.name": name, **keys}


def keys_of(**parts: str) -> dict[str, Any]:
    """Configuration keys of a combination: `keys_of(posterior="iaf", prior="vamp")`."""
    keys: dict[str, Any] = {"network.hidden": [5], "network.activation": "tanh"}
    for group, name in parts.items():
        keys |= chosen(group, name)
    if part("posterior", parts.get("posterior", "gaussian")).build.by_place:
        return {"model.name": "quantized", "model.places": 2, **keys}
    return {"model.latent_dim": 2, **keys}


def composed(keys: dict[str, Any], spec: DataSpec) -> tuple[Model, Objective]:
    config = settle(resolve("test", {}, keys), spec)
    model = compose(config, spec)
    return model, compose_objective(config, model, examples=100)


LEARNED = ("mixture", "vamp", "flow", "autoregressive")
UNTAUGHT = {("distortion", prior) for prior in LEARNED} | {("wae-mmd", "mixture"), ("wae-mmd", "autoregressive")}
"""Objectives without log p(z) leave a prior as it is; `wae-mmd` feels it by draws, which tell nothing of chances."""


# -- which combinations there are ------------------------------------------------------------------------------------


def registered(group: str) -> list[str]:
    return [name for name in names(group) if name != "auto"]


def kind_of(likelihood_name: str) -> str:
    return part("likelihood", likelihood_name).build.kinds[0]


@cache
def model_of(posterior: str, prior: str) -> Model:
    config = settle(resolve("test", {}, keys_of(posterior=posterior, prior=prior)), SPECS["real"])
    return compose(config, SPECS["real"])


@cache
def makes_sense(posterior: str, prior: str, objective: str) -> bool:
    """By what the parts say of themselves, without asking composition."""
    if part("prior", prior).build.holds != part("posterior", posterior).build.holds or (objective, prior) in UNTAUGHT:
        return False
    model = model_of(posterior, prior)
    keys = {"name": objective, **SMALL.get(("objective", objective), {})}
    made: Objective = build("objective", section("objective", keys), model, 100)
    if not made.needs <= part("posterior", posterior).build.provides:
        return False
    try:
        made.check(model)
    except InputError:
        return False
    return True


def triples() -> Iterator[tuple[str, str, str]]:
    return itertools.product(*map(registered, GROUPS[1:]))  # type: ignore[return-value]


def covering() -> list[tuple[str, ...]]:
    """Combinations that make sense, few, with every pair of parts that occurs in any: greedily, the most new pairs."""
    able = [(name, *rest) for rest in triples() if makes_sense(*rest) for name in registered("likelihood")]
    bits: dict[Any, int] = {}
    masks = {
        one: sum(1 << bits.setdefault(pair, len(bits)) for pair in itertools.combinations(enumerate(one), 2))
        for one in able
    }
    left, found = (1 << len(bits)) - 1, list[tuple[str, ...]]()
    while left:
        best = max(able, key=lambda one: (masks[one] & left).bit_count())
        found.append(best)
        left &= ~masks[best]
    return found


COVERING = covering()
REFUSED = [one for one in triples() if not makes_sense(*one)]


def test_the_combinations_cover_every_pair() -> None:
    """All likelihoods go with everything; every part of the registry occurs."""
    for place, group in enumerate(GROUPS):
        assert {one[place] for one in COVERING} == set(registered(group))
    for other in (1, 2, 3):
        pairs = {(one[0], one[other]) for one in COVERING}
        assert len(pairs) == len(registered("likelihood")) * len(registered(GROUPS[other]))
    assert {one[1:3] for one in COVERING} == {one[:2] for one in triples() if makes_sense(*one)}
    assert {one[2:] for one in COVERING} == {one[1:] for one in triples() if makes_sense(*one)}
    assert len(COVERING) < 200


# -- the exact answer ------------------------------------------------------------------------------------------------


def perturbed(model: Model, seed: int, size: float = 0.15) -> Model:
    """Random weights, so that no flow is the identity, no prior is uniform and q is not the prior."""
    noise = generator(seed, "perturbed")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, dtype=parameter.dtype, generator=noise)
    return model


def some_x(kind: str, number: int) -> Tensor:
    x = torch.rand(number, *SHAPE, dtype=torch.float64, generator=generator(number, "x")) * 0.9 + 0.05
    return {"binary": x.round(), "levels": (x * 3).round() / 3, "real": x}[kind]


def support(model: Model, points: int = 161, edge: float = 8.0) -> tuple[Tensor, Tensor, float]:
    """Every z there is, or a line or square of them [n, D]; log p(z) [n]; and the logarithm of a cell's volume."""
    if isinstance(model, Quantized) or model.latents.categorical:
        count, categories = model.prior.latents.categorical, model.prior.latents.categories
        index = torch.cartesian_prod(*[torch.arange(categories)] * count).view(-1, count)
        z, one_hot = model.choices[index].flatten(1), torch.eye(categories).double()[index].flatten(1)
        return z.double(), model.prior.log_prob(one_hot), 0.0
    axis = torch.linspace(-edge, edge, points, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * model.latent_dim).view(-1, model.latent_dim)
    return z, model.prior.log_prob(z), model.latent_dim * math.log(float(axis[1] - axis[0]))


def joint_and_marginal(model: Model, x: Tensor, z: Tensor, log_pz: Tensor, log_cell: float) -> tuple[Tensor, Tensor]:
    """log p(x, z) [n, B] and log p(x) [B]."""
    log_joint = log_pz[:, None] + model.decode(z[:, None]).log_prob(x)
    return log_joint, log_joint.logsumexp(0) + log_cell


# -- the contract ----------------------------------------------------------------------------------------------------

DRAWS = 4096


@pytest.mark.parametrize("combination", COVERING, ids="-".join)
def test_contract(combination: tuple[str, ...]) -> None:
    kind = kind_of(combination[0])
    torch.manual_seed(0)
    model, objective = composed(keys_of(**dict(zip(GROUPS, combination, strict=True))), SPECS[kind])
    model, objective = perturbed(model.double(), seed=1), objective.double()
    check_gradients(model, objective, combination[3], some_x(kind, 6))
    model.eval()
    objective.step = None
    with torch.no_grad():
        x = some_x(kind, 2)
        if model.prior.fit_draws:
            model.prior.fit(torch.randn(500, 2, generator=generator(0)).double() * 0.8 + 0.5, generator(1))
        z, log_pz, log_cell = support(model)
        assert float(log_pz.logsumexp(0) + log_cell) == pytest.approx(0, abs=2e-3), "p(z) has mass 1"
        log_joint, log_px = joint_and_marginal(model, x, z, log_pz, log_cell)
        terms = model.terms(x, DRAWS, generator(2))
        found = objective(terms).metrics
        assert float(found["distortion"]) == pytest.approx(-float(terms.log_px_z.mean()), rel=1e-9)
        if not model.has_density:
            assert terms.log_weights is None and terms.rate is None and "elbo" not in found and "rate" not in found
            by_hand = model.decode(model.encode(x).mean).log_prob(x)
            assert terms.log_px_z[0].tolist() == pytest.approx(by_hand.tolist(), rel=1e-9)
        elif isinstance(model, Quantized):
            check_codes(model, x, terms, found, log_joint, log_px)
        else:
            check_bounds(model, x, terms, found, log_joint, log_px)
            if "log-prob" in model.provides:
                check_elbo(model, x, found, log_joint, log_cell, z)


def check_gradients(model: Model, objective: Objective, name: str, x: Tensor) -> None:
    """Finite, and there, for all that the loss depends on; the critic's loss and the model's keep apart."""
    model.train()
    objective.step = 3
    loss = objective(model.terms(x, objective.num_samples, generator(0), relaxed=True))
    own, critic = dict(model.named_parameters()), dict(objective.named_parameters())
    gradients = torch.autograd.grad(loss.total, [*own.values(), *critic.values()], allow_unused=True, retain_graph=True)
    sees_prior = "density" in objective.needs
    for parameter, gradient in zip([*own, *(f"objective.{one}" for one in critic)], gradients, strict=True):
        if gradient is not None:
            assert gradient.isfinite().all(), parameter
        if name == "distortion" and parameter.startswith("prior."):
            assert gradient is None or not gradient.any(), parameter
        elif sees_prior or not parameter.startswith("prior."):
            assert gradient is not None and gradient.any(), parameter
    assert (loss.critic is not None) == bool(critic)
    if loss.critic is not None:
        for scalar, others in ((loss.value, critic), (loss.critic, own)):
            reached = torch.autograd.grad(scalar, list(others.values()), allow_unused=True, retain_graph=True)
            assert all(gradient is None for gradient in reached)


def check_bounds(
    model: Model, x: Tensor, terms: Terms, found: dict[str, Tensor], log_joint: Tensor, log_px: Tensor
) -> None:
    """ELBO ≤ L_8 ≤ log p(x), and E_q[w] = p(x): in the objective's metrics, and as evaluation estimates them."""
    log_w = terms.log_weights
    assert log_w is not None and found["elbo"].isfinite()
    estimated = estimates.estimate(model, x, DRAWS, DRAWS, generator(3))
    assert estimated.elbo is not None and estimated.log_px is not None and estimated.elbo_variance is not None
    groups = log_w.unflatten(0, (-1, 8)).logsumexp(1) - math.log(8)
    bound, error = groups.mean(0), groups.std(0) / math.sqrt(len(groups))
    slack = (error.square() + estimated.elbo_variance).sqrt()
    assert (estimated.elbo <= bound + 5 * slack).all()
    assert (bound <= log_px + 5 * error + 1e-3).all()
    assert estimated.log_px_variance is not None and estimated.effective_sample_size is not None
    assert (estimated.effective_sample_size > 40).all(), "q is too far from p(z|x) for the check to say anything"
    off = (estimated.log_px - log_px).abs()
    assert (off < 5 * estimated.log_px_variance.sqrt() + 2e-3).all(), (estimated.log_px, log_px)
    assert (log_px - estimated.elbo).min() > -5 * float(estimated.elbo_variance.max().sqrt())
    error_of_mean = float(log_w.mean(1).std() / math.sqrt(DRAWS))
    assert float(found["elbo"]) == pytest.approx(-float(found["rate"] + found["distortion"]), rel=1e-9)
    assert abs(float(found["elbo"] - estimated.elbo.mean())) < 7 * error_of_mean + 1e-3
    if "bound" in found:  # of so many draws it is log p(x), or the mean of two of half as many
        error_of_bound = 5 * float(estimated.log_px_variance.max().sqrt()) + 1e-2
        assert float(found["bound"]) == pytest.approx(float(log_px.mean()), abs=error_of_bound)
        assert float(found["loss"]) == pytest.approx(-float(found["bound"]), rel=1e-9)


def check_elbo(
    model: Model, x: Tensor, found: dict[str, Tensor], log_joint: Tensor, log_cell: float, z: Tensor
) -> None:
    """q(z|x) has mass 1, and the ELBO is ∫ q (log p(x, z) − log q)."""
    log_q = model.encode(x).log_prob(z[:, None])
    q = (log_q + log_cell).exp()
    # A Laplace density has a cusp, which the grid sees to about h² / (12 b²).
    assert q.sum(0).tolist() == pytest.approx([1.0] * len(x), abs=1e-2)
    q = q / q.sum(0)
    exact = (q * (log_joint - log_q)).sum(0)
    spread = ((q * (log_joint - log_q - exact).square()).sum(0) / DRAWS).sum().sqrt() / len(x)
    assert float(found["elbo"]) == pytest.approx(float(exact.mean()), abs=5 * float(spread) + 1e-2)


def check_codes(
    model: Quantized, x: Tensor, terms: Terms, found: dict[str, Tensor], log_joint: Tensor, log_px: Tensor
) -> None:
    """The bound is the one term of the sum over all grids of codes that the encoder chose."""
    index = model.encode(x).index
    place = (index * model.posterior.codes ** torch.arange(index.shape[1] - 1, -1, -1)).sum(-1)
    chosen_terms = log_joint.gather(0, place[None])[0]
    assert terms.log_weights is not None
    assert terms.log_weights[0].tolist() == pytest.approx(chosen_terms.tolist(), rel=1e-9)
    assert float(found["elbo"]) == pytest.approx(float(chosen_terms.mean()), rel=1e-9)
    assert (chosen_terms < log_px).all()


# -- draws of x ------------------------------------------------------------------------------------------------------


def with_some_prior() -> list[tuple[str, str, str]]:
    """Each likelihood with a posterior and a prior, in turn."""
    pairs = [one[:2] for one in triples() if makes_sense(*one) and one[2] == "distortion"]
    priors = {prior: posterior for posterior, prior in pairs}
    return [
        (name, posterior, prior)
        for name, (prior, posterior) in zip(registered("likelihood"), itertools.cycle(priors.items()), strict=False)
    ]


@pytest.mark.parametrize("combination", with_some_prior(), ids="-".join)
def test_draws_of_the_model_have_the_models_density(combination: tuple[str, str, str]) -> None:
    """z ~ p(z), x ~ p(x|z) beside p(x): by frequencies where x is discrete; where it is not, for a box of area A,
    E[1_box(x) / p(x)] = A."""
    name, posterior, prior = combination
    kind = kind_of(name)
    torch.manual_seed(0)
    keys = keys_of(likelihood=name, posterior=posterior, prior=prior, objective="distortion")
    model = perturbed(composed(keys, SPECS[kind])[0].double().eval(), seed=4, size=0.25)
    with torch.no_grad():
        if model.prior.fit_draws:
            model.prior.fit(torch.randn(500, 2, generator=generator(0)).double() * 0.8 + 0.5, generator(1))
        if kind == "real":
            check_box(model)
            return
        number = 40_000
        x = model.sample(number, draw=True, generator=generator(5)).flatten(1)
        levels = SPECS[kind].levels or 0
        cells = torch.cartesian_prod(*[torch.arange(levels)] * 2).double() / (levels - 1)
        log_px = joint_and_marginal(model, cells.view(-1, *SHAPE), *support(model))[1]
        frequency = (x[:, None] - cells).abs().amax(-1).lt(1e-6).double().mean(0)
        error = (log_px.exp() * (1 - log_px.exp()) / number).sqrt()
        assert ((frequency - log_px.exp()).abs() < 5 * error + 1e-4).all(), (frequency, log_px.exp())
        assert error.max() < 3e-3


def check_box(model: Model) -> None:
    x = model.sample(2500, draw=True, generator=generator(5))
    quantiles = x[:500].flatten(1).quantile(torch.tensor([0.25, 0.75], dtype=x.dtype), dim=0)
    rest = x[500:]
    inside = ((rest.flatten(1) > quantiles[0]) & (rest.flatten(1) < quantiles[1])).all(1)
    where = support(model, points=61, edge=7.0)
    log_px = torch.cat([joint_and_marginal(model, some, *where)[1] for some in rest[inside].split(100)])
    values = torch.zeros(len(rest), dtype=x.dtype)
    values[inside] = (-log_px).exp()
    area = float((quantiles[1] - quantiles[0]).prod())
    error = float(values.std() / math.sqrt(len(values)))
    assert float(values.mean()) == pytest.approx(area, abs=5 * error)
    assert error < 0.1 * area


# -- gradients with an exact answer ----------------------------------------------------------------------------------


def with_log_prob() -> list[tuple[str, str]]:
    able = [one[:2] for one in triples() if makes_sense(*one) and one[2] == "iwae"]
    return [
        (posterior, next(prior for other, prior in able if other == posterior))
        for posterior in registered("posterior")
        if "log-prob" in part("posterior", posterior).build.provides
    ]


@pytest.mark.parametrize(("posterior", "prior"), with_log_prob())
def test_gradients_are_those_of_the_exact_bound(posterior: str, prior: str) -> None:
    """The ELBO's gradient, and that of log p(x) from importance weights, beside autograd's of the quadrature.

    Relaxed draws are not those of q, so that categorical posteriors are held to it for decoder and prior alone.
    """
    torch.manual_seed(0)
    keys = keys_of(likelihood="bernoulli", posterior=posterior, prior=prior)
    kinked = posterior in ("laplace", "spline")  # in z: on a square a grid's error would be larger than what is told
    keys["model.latent_dim"] = 1 if kinked else 2
    model = perturbed(composed(keys, SPECS["binary"])[0].double().eval(), seed=1)
    relaxed = bool(model.latents.categorical)
    x = some_x("binary", 2)
    weights = [w for name, w in model.named_parameters() if not (relaxed and name.startswith(("encoder", "posterior")))]
    z, log_pz, log_cell = support(model, 100_001, 20.0) if kinked else support(model, 121)
    log_joint, log_px = joint_and_marginal(model, x, z, log_pz, log_cell)
    log_q = model.encode(x).log_prob(z[:, None])
    elbo = ((log_q + log_cell).exp() * (log_joint - log_q)).sum(0)
    exact = {"elbo": torch.autograd.grad(-elbo.mean(), weights, retain_graph=True)}
    decoder = list(model.decoder.parameters())
    exact["iwae"] = torch.autograd.grad(-log_px.mean(), decoder)
    for name, moved in (("elbo", weights), ("iwae", decoder)):
        objective = composed({**keys, **chosen("objective", name)}, SPECS["binary"])[1].double()
        rounds: list[Tensor] = []
        for seed in range(16):
            loss = objective(model.terms(x, 2000, generator(seed, name), relaxed=False))
            gradients = torch.autograd.grad(loss.value, moved, allow_unused=True)
            pairs = zip(moved, gradients, strict=True)
            rounds.append(torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in pairs]))
        wanted = torch.cat([gradient.flatten() for gradient in exact[name]])
        mean, error = torch.stack(rounds).mean(0), torch.stack(rounds).std(0) / 4
        scale = float(wanted.abs().max())
        assert scale > 0.05 and error.max() < 0.05 * scale
        assert ((mean - wanted).abs() < 6 * error + 5e-3 * scale).all(), name


# -- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 7, 50, 1000])
def test_the_reported_bound_is_log_mean_exp_of_all_weights_for_any_chunks(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    torch.manual_seed(0)
    keys = keys_of(likelihood="gaussian", posterior="iaf", prior="vamp")
    model = perturbed(composed(keys, SPECS["real"])[0].eval(), seed=2)
    x, kept = some_x("real", 5).float(), list[Tensor]()
    monkeypatch.setattr(estimates, "OUTPUT_NUMBERS", at_once * len(x) * math.prod(model.likelihood.output_shape))
    terms_of = model.terms

    def watched(*arguments: Any, **more: Any) -> Terms:
        terms = terms_of(*arguments, **more)
        assert terms.log_weights is not None and terms.log_weights.shape[0] <= at_once
        kept.append(terms.log_weights)
        return terms

    monkeypatch.setattr(model, "terms", watched)
    for samples, draws in ((100, 100), (100, 130), (1, 64)):
        kept.clear()
        found = estimates.estimate(model, x, samples, draws, generator(0)).log_px
        log_w = torch.cat(kept).double()
        assert len(log_w) == draws and len(kept) == -(-draws // at_once)
        by_hand = torch.logsumexp(log_w[:samples], 0) - math.log(samples)
        assert found is not None
        assert found.tolist() == pytest.approx(by_hand.tolist(), abs=1e-6)
    kept.clear()
    bounds = likelihood.importance_weighted_bounds(model, Split(x), (1, 10, 100))
    log_w = torch.cat(kept).double()
    for k, bound in zip((1, 10, 100), bounds, strict=True):
        by_hand = (log_w.unflatten(0, (-1, k)).logsumexp(1) - math.log(k)).mean(0)
        assert bound.tolist() == pytest.approx(by_hand.tolist(), abs=1e-6)


# -- refusals --------------------------------------------------------------------------------------------------------


def remedies(message: str) -> list[dict[str, str]]:
    """What a refusal says would work: each alternative as keys and values."""
    _, _, text = message.rpartition("use ")
    found: list[dict[str, str]] = []
    for alternative in re.split(r"[,;] or (?=\w+\.\w+=)", text):
        settings = re.findall(r"(\w+\.\w+)=([\w-]+(?:(?:, | or )[\w-]+)*)", alternative)
        choices = [[(key, value) for value in re.split(", | or ", values)] for key, values in settings]
        found += [dict(one) for one in itertools.product(*choices)] if choices else []
    return found


def changed(keys: dict[str, Any], remedy: dict[str, str]) -> dict[str, Any]:
    """The keys with a remedy; another name of a part drops that part's other keys."""
    renamed = [key.removesuffix("name") for key in remedy if key.endswith(".name")]
    kept = {key: value for key, value in keys.items() if not key.startswith(tuple(renamed))}
    for key, value in remedy.items():
        group, _, word = key.partition(".")
        kept |= chosen(group, value) if word == "name" else {key: value}
    if remedy.get("model.name") == "vae":
        kept["model.latent_dim"] = 2
    return kept


@cache
def composes(items: tuple[tuple[str, Any], ...], kind: str) -> str:
    """The refusal, or nothing."""
    keys = {key: list(value) if isinstance(value, tuple) else value for key, value in items}
    try:
        composed(keys, SPECS[kind])
    except InputError as error:
        return str(error)
    return ""


def refusal(keys: dict[str, Any], kind: str) -> str:
    items = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    return composes(tuple(sorted(items.items())), kind)


def assert_true_refusal(keys: dict[str, Any], kind: str) -> str:
    """One line that names a part which was chosen, and only remedies that compose."""
    message = refusal(keys, kind)
    assert message and "\n" not in message, keys
    named = re.findall(r"(\w+)\.(\w+)=([\w-]+)", message.partition("use ")[0])
    tables = resolve("test", {}, keys).to_dict()
    classes = [part(group, keys[f"{group}.name"]).build.__name__ for group in GROUPS if f"{group}.name" in keys]
    is_named = any(f"{group}.name" in keys and tables[group].get(key) == value for group, key, value in named)
    assert is_named or any(one in message for one in classes), message
    found = remedies(message)
    assert found, message
    for remedy in found:
        assert not refusal(changed(keys, remedy), kind), (message, remedy)
    return message


def refused_pairs() -> list[tuple[str, str, str]]:
    """A refused combination for each pair of parts that is to blame."""
    found: dict[Any, tuple[str, str, str]] = {}
    for posterior, prior, objective in REFUSED:
        if part("prior", prior).build.holds != part("posterior", posterior).build.holds:
            found.setdefault((posterior, prior), (posterior, prior, "distortion"))
        else:
            found.setdefault((posterior, objective), (posterior, prior, objective))
    return list(found.values())


@pytest.mark.parametrize("combination", refused_pairs(), ids="-".join)
def test_a_refusal_names_the_part_and_what_would_work(combination: tuple[str, str, str]) -> None:
    keys = keys_of(**dict(zip(GROUPS[1:], combination, strict=True)))
    assert_true_refusal({**keys, "likelihood.name": "gaussian"}, "real")


def test_nothing_else_is_refused_or_let_through() -> None:
    """What parts say of themselves decides: all that is refused, and nothing that is not."""
    accepted = {one[1:] for one in COVERING}
    assert not accepted & set(REFUSED)
    for posterior, prior, objective in REFUSED[::5]:
        keys = keys_of(posterior=posterior, prior=prior, objective=objective)
        with pytest.raises(InputError):
            composed(keys, SPECS["real"])


@pytest.mark.parametrize(
    ("keys", "says", "remedy"),
    [
        ({"prior.name": "flow", "objective.beta": 0}, "objective.name=elbo gives it none", "objective.beta=1.0"),
        (
            {"prior.name": "mixture", "objective.name": "info", "objective.alpha": 1, "objective.lambda_mmd": 0},
            "objective.name=info gives it none",
            "prior.name=normal",
        ),
        (
            {**chosen("posterior", "gumbel-softmax"), "prior.name": "categorical", "prior.learned": True,
             "objective.name": "distortion"},
            "objective.name=distortion gives it none",
            "prior.learned=false",
        ),
    ],
)  # fmt: skip
def test_a_prior_that_would_learn_nothing_is_refused(keys: dict[str, Any], says: str, remedy: str) -> None:
    keys = keys_of() | keys | {"likelihood.name": "gaussian"}
    message = refusal(keys, "real")
    assert says in message
    assert remedy in message
    key, _, value = remedy.partition("=")
    assert not refusal(keys | {key: value}, "real")


def test_an_aggregate_prior_of_few_points_is_refused_before_training() -> None:
    keys = {"prior.name": "aggregate", "posterior.name": "deterministic", "objective.name": "distortion"}
    config = settle(resolve("test", {}, keys_of() | keys), SPECS["real"])
    model = compose(config, SPECS["real"])
    with pytest.raises(InputError, match="19 training examples give as many z, too few for a density"):
        compose_objective(config, model, examples=19)
    assert compose_objective(config, model, examples=20)


@pytest.mark.parametrize("name", registered("likelihood"))
@pytest.mark.parametrize("kind", SPECS)
def test_a_likelihood_is_taken_or_refused_by_the_kind_of_data(name: str, kind: str) -> None:
    keys = keys_of(likelihood=name)
    if kind in part("likelihood", name).build.kinds:
        assert not refusal(keys, kind)
        return
    message = refusal(keys, kind)
    assert "\n" not in message and f"likelihood.name={name} " in message
    found = [remedy for remedy in remedies(message) if "likelihood.name" in remedy]
    assert found
    for remedy in found:
        assert not refusal(changed(keys, remedy), kind), (message, remedy)


MODELS: list[dict[str, Any]] = [
    *({"model.name": "quantized", **chosen("posterior", name)} for name in ("gaussian", "iaf", "gumbel-softmax")),
    *({"model.name": name, **chosen("posterior", "vq")} for name in ("vae", "joint", "hierarchical")),
    *({"model.name": "hierarchical", **chosen("posterior", name)} for name in ("laplace", "planar")),
    {"model.name": "hierarchical", **chosen("posterior", "deterministic"), "objective.name": "distortion"},
    {"model.name": "joint", **chosen("posterior", "gumbel-softmax")},
    {"model.name": "joint", **chosen("prior", "categorical")},
    {"model.name": "hierarchical", **chosen("prior", "categorical")},
    *({"model.name": "joint", "objective.name": name} for name in ("dip",)),
    *(
        {"model.name": "joint", **chosen("posterior", "planar"), "objective.name": name}
        for name in ("dip", "beta-tcvae")
    ),
    {"model.name": "joint", **chosen("posterior", "deterministic"), "objective.name": "dip"},
    {"model.name": "joint", **chosen("prior", "vamp"), "objective.name": "annealed"},
    {"model.name": "joint", **chosen("prior", "vamp"), "objective.name": "free-bits", "objective.by": "group"},
    {"model.name": "joint", "objective.name": "iwae", "objective.gradient": "dreg"},
    {"model.name": "joint", **chosen("posterior", "deterministic")},
    {**chosen("posterior", "deterministic"), "objective.name": "free-bits", "objective.by": "group"},
    {"model.name": "hierarchical", "objective.name": "beta-tcvae"},
    {"model.name": "hierarchical", "objective.name": "dip"},
    {"model.name": "hierarchical", "objective.name": "iwae", "objective.gradient": "stl"},
    {"model.name": "quantized", **chosen("posterior", "vq"), "objective.name": "iwae", "objective.gradient": "stl"},
    {**chosen("posterior", "planar"), "objective.name": "iwae", "objective.gradient": "dreg"},
    {**chosen("posterior", "gumbel-softmax"), "objective.name": "miwae", "objective.gradient": "stl"},
]


@pytest.mark.parametrize("keys", MODELS, ids=lambda keys: "-".join(str(value) for value in keys.values()))
def test_classes_of_models_refuse_with_remedies_too(keys: dict[str, Any]) -> None:
    small = {"network.hidden": [5], "likelihood.name": "gaussian"}
    if keys.get("model.name") == "hierarchical":
        small |= {"model.latent_dims": [1, 2], "model.hidden": 4}
    assert_true_refusal({**small, **keys}, "real")
