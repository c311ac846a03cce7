"""What the latents say, and whether draws of them can be trusted."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaelab.diagnosis import drawings
from vaelab.diagnosis.case import DRAWS, EXAMPLES, IMPORTANCE_SAMPLES, Case, few
from vaelab.diagnosis.check_curves import hardly_trained, longer, more_epochs
from vaelab.diagnosis.check_scale import scale_of, scaled
from vaelab.diagnosis.findings import Finding, Illness, Plot, Severity
from vaelab.diagnosis.rate_weight import fixed_scale, in_warmup, rate_weight
from vaelab.errors import InputError
from vaelab.evaluation.annealed import check_annealing
from vaelab.evaluation.likelihood import UNTRUSTED, importance_weighted_bounds
from vaelab.likelihoods import Gaussian
from vaelab.noise import generator
from vaelab.priors import AggregatePrior
from vaelab.quantized import Codes, Quantized, Quantizer
from vaelab.words import rounded

FEW_LATENTS, BEHIND = 0.1, 0.75  # shares of the latents, and of those that a linear VAE would use
LITTLE = 0.5  # nats of all latents; one bit is 0.69
SMALL_NATS, LARGE = 1.5, 0.5  # nats of the least latent; share of latents that are active
LEFT = 1.5  # times the largest eigenvalue that independent errors have by chance
VERY_FEW, VERY_FEW_NATS = 2, 0.5  # so many latents are a map of the data: less will do
WARMUP = 1_000  # updates, of a remedy against collapse
DEAD, CODED = 0.2, 10_000  # share of the codes; training examples that are encoded to count them
NEIGHBORS, HOLES = 5, 0.9
FEW_SAMPLES = 3.0  # effective importance samples, below which one draw or two decide the estimate
BOUNDS, BOUND_EXAMPLES = (1, 2, 5, 10, 20, 50, 100), 100  # of the figure beside importance sampling

ILLNESSES = (
    Illness(
        "posterior-collapse",
        "latents that say nothing",
        f"error: none has Var(E[z|x]) > 0.01 (Burda et al. 2016); warning: at most {FEW_LATENTS:.0%} have, of ten "
        f"or more, or all together carry less than {LITTLE:g} nats, or a linear VAE has less than {BEHIND:.0%} of "
        "those of its optimum; info: some have not, or have as many as exceed β σ² by more than chance. A linear VAE "
        "uses a latent where an eigenvalue of the data's covariance exceeds β σ² (Lucas et al. 2019), which is told "
        "wherever the likelihood is Gaussian with one σ",
    ),
    Illness(
        "latent-dimension-small",
        "too few latents",
        f"warning: each carries more than {SMALL_NATS:g} nats ({VERY_FEW_NATS:g} where there are no more than "
        f"{VERY_FEW}), β, as for effective-beta, is between 0.5 and 2, and the errors of the reconstruction have a "
        f"common direction: the largest eigenvalue of their correlations is {LEFT:g} times that of independent ones",
    ),
    Illness(
        "latent-dimension-large",
        "too many latents",
        f"info: fewer than {LARGE:.0%} of them are active. It costs time, and no likelihood",
    ),
    Illness(
        "dead-codes",
        "codes that no example uses",
        f"warning: {DEAD:.0%} or more of a learned codebook, over the training set (its first {CODED:,} examples); "
        "info for a fixed one",
    ),
    Illness(
        "holes",
        "draws of the prior where no example is",
        f"warning: of the {NEIGHBORS} nearest neighbors of a draw from the aggregate posterior, more than "
        f"{HOLES:.0%} are such draws as well, and not draws from the prior (Schilling 1986). If both were one "
        "distribution it would be half",
    ),
    Illness(
        "importance-sampling",
        "an estimate of log p(x) that few draws carry",
        f"warning: an effective sample size below {FEW_SAMPLES:g} of 100; info: the weights of more than "
        f"{UNTRUSTED:.0%} of the examples have too heavy a tail (Pareto k above 0.5 for 100 draws, Vehtari et al. "
        "2024)",
    ),
)


def collapse(case: Case) -> Iterator[Finding]:
    """Latents whose posterior mean is the same for every example, or that say next to nothing."""
    used, count, rate = case.evaluation.active_units, case.evaluation.latent_dim, case.evaluation.rate
    if used is None or rate is None or "reparameterized" not in case.model.provides:
        return
    little = rate < LITTLE
    if used == count and not little:
        return
    silent = (~case.active).nonzero().flatten().tolist()
    optimum, sure = linear_optimum(case), _beyond_chance(case)
    evidence: dict[str, Any] = {"active": used, "latents": count, "silent": silent, "rate": rate}
    theory, behind = "", False
    if optimum is not None and sure is not None:
        evidence["linear_vae_uses"] = min(optimum, count)
        theory = f" A linear VAE's optimum uses {min(optimum, count)}: so many eigenvalues of the data exceed β σ²."
        if sure <= used < optimum:
            rest = f"Beyond the first {sure} none exceeds" if sure else "None exceeds"
            theory += f" {rest} it by more than chance would have it."
        behind = case.run.config.name("network") == "linear" and used < min(BEHIND * optimum, BEHIND * count, sure)
    scarce = count >= 10 and used <= FEW_LATENTS * count and (sure is None or used < min(sure, count))
    nothing = sure == 0 and case.beta <= 1 and fixed_scale(case) is None and scale_of(case) is None
    severity = "warning" if little or behind or scarce or nothing else "info"
    severity = "error" if used == 0 and not nothing else severity
    if severity == "info" and hardly_trained(case):
        return
    told = f"{used} of {count} latents are active."
    if used == 0:
        told = f"Posterior collapse: no latent of {count} is active, so the decoder makes the same of every example"
        told += "." if case.model.labels is None else " of a label."
    elif silent:
        told += f" Not active, counted from 0: {', '.join(map(str, silent[:8]))}{', …' if len(silent) > 8 else ''}."
    if used and little:
        told += f" All together carry {rate:.2g} nats, less than one bit of an example."
    yield Finding(
        "posterior-collapse",
        severity,
        told + theory,
        evidence,
        *_cause_and_remedy(case, severity, nothing),
        drawings.kl(case.kl, case.active, "posterior-collapse"),
    )


def _cause_and_remedy(case: Case, severity: Severity, nothing: bool) -> tuple[str, str]:
    pays = "a latent pays only where it saves more nats than it costs"
    if severity == "info":
        return pays, "Nothing to do: silent latents cost time, and no likelihood."
    if nothing:
        return (
            "no direction of the data stands out by more than chance would have it: what the values have in common, if "
            "anything, is no straight line",
            "Nothing to do: a VAE tells what values have in common." if not hardly_trained(case) else longer(case),
        )
    if (spread := scale_of(case)) is not None:
        return "values of a scale that networks do not begin with", scaled(case, spread)
    if in_warmup(case):
        return (
            "β was still rising when training ended, for objective.warmup is longer than that; the epoch that was best "
            "at the full β was kept: one of the first",
            _against_collapse(case),
        )
    few_updates = hardly_trained(case) and case.beta <= 1 and fixed_scale(case) is None
    return (
        f"too much weight on the rate, a fixed σ that is too large, or too little training; {pays}",
        longer(case) if few_updates else _against_collapse(case),
    )


def _against_collapse(case: Case) -> str:
    """The ELBO with β = 1 and a warm-up over at most a third of the updates, and a scale that is learned."""
    own = hasattr(case.run.config.objective, "warmup")
    training, examples = case.run.config.training, case.run.examples["train"]
    warmup = max(1, min(WARMUP, case.planned * training.steps_per_epoch(examples) // 3))
    changes = [*([] if own else ["objective.name=elbo"]), f"objective.warmup={warmup}"]
    changes += ["objective.beta=1"] if own and case.beta > 1 else []
    changes += ["--epochs", str(more_epochs(case))] if hardly_trained(case) else []
    return case.again(*changes, *(["likelihood.scale=learned"] if fixed_scale(case) else []))


def linear_optimum(case: Case) -> int | None:
    """How many eigenvalues of the training data's covariance exceed β σ²: so many latents a linear VAE uses.

    Lucas et al. 2019 (arXiv:1911.02469): at the optimum a column of the decoder is not zero where its eigenvalue is
    above the noise. None where the likelihood is no Gaussian with one σ.
    """
    likelihood = case.decoded[1]
    if not isinstance(likelihood, Gaussian) or likelihood.scale.numel() != 1:
        return None
    return int((case.spectrum > case.beta * float(likelihood.scale) ** 2).sum())


def _beyond_chance(case: Case) -> int | None:
    """How many of these exceed β σ² by more than chance has it; None where a linear VAE's optimum is not known.

    All do of a σ that is fixed. A σ that is learned is the root of the mean of what is left, which half of it always
    exceeds a little. Of n draws of independent noise in d columns the largest eigenvalue is (1 + √(d / n))² times the
    variance (Marchenko and Pastur 1967).
    """
    optimum = linear_optimum(case)
    if optimum is None or fixed_scale(case) is not None:
        return optimum
    scale = float(case.decoded[1].scale)  # pyright: ignore[reportAttributeAccessIssue]
    examples = min(EXAMPLES, len(case.dataset["train"]))
    by_chance = (1 + math.sqrt(len(case.spectrum) / examples)) ** 2
    return int((case.spectrum > case.beta * scale**2 * by_chance).sum())


def dimension(case: Case) -> Iterator[Finding]:
    """Too few latents, or too many."""
    used, count, kl = case.evaluation.active_units, case.evaluation.latent_dim, case.kl
    key = "model.latent_dim"
    if used is None or not hasattr(case.run.config.model, "latent_dim") or case.model.latents.holds != "real":
        return
    if hardly_trained(case):
        return
    full = VERY_FEW_NATS if count <= VERY_FEW else SMALL_NATS
    every = kl is not None and used == count == len(kl) and float(kl.min()) > full
    # Of data that lie in so few directions, what is left of them is left by the fit.
    every = every and ((optimum := linear_optimum(case)) is None or optimum > count)
    if kl is not None and every and 0.5 < rate_weight(case).times < 2 and (left := left_over(case)) > LEFT:
        yield Finding(
            "latent-dimension-small",
            "warning",
            f"All {count} latents are in full use: the least of them carries {rounded(float(kl.min()))} nats."
            if count > 1
            else f"The only latent is in full use: it carries {rounded(float(kl.min()))} nats.",
            {"latents": count, "least": float(kl.min()), "rate": float(kl.sum()), "left_over": left},
            f"too small a {key}: another latent would most likely pay",
            case.again(f"{key}={max(4 * count, 8)}"),
            drawings.kl(kl, case.active, "latent-dimension-small"),
        )
    elif 0 < used < LARGE * count:
        yield Finding(
            "latent-dimension-large",
            "info",
            f"{count - used} of {count} latents are not active.",
            {"latents": count, "active": used},
            f"a larger {key} than the data want; it costs time, and no likelihood",
            case.again(f"{key}={max(1, round(1.5 * used))}"),
        )


@torch.no_grad()
def left_over(case: Case) -> float:
    """What a further latent could explain: the largest eigenvalue of the correlations between the errors x − x̂.

    It is told as a multiple of (1 + √(D/n))², the largest one of n independent errors in D dimensions (Marchenko &
    Pastur 1967). x̂ is decoded from the posterior mean. 0 where nothing can be told: for a single dimension, say.
    """
    x, y = few(case.examples, DRAWS)
    errors = (x - case.model.decode(case.model.encode(x, y=y).mean, y=y).mean).flatten(1).double()
    errors = errors - errors.mean(0)
    errors = errors[:, errors.std(0) > 1e-6 * errors.std()]
    n, dims = errors.shape
    if dims < 2 or n < 2:
        return 0.0
    largest = float(torch.linalg.svdvals(errors / errors.std(0))[0] ** 2 / n)
    return largest / (1 + (dims / n) ** 0.5) ** 2


def dead_codes(case: Case) -> Iterator[Finding]:
    """Codes of a quantized model that no training example uses."""
    if not isinstance(case.model, Quantized):
        return
    counts, examples = code_counts(case), min(CODED, len(case.dataset["train"]))
    dead, learned = int((counts == 0).sum()), hasattr(case.model.posterior, "uses")
    if dead < DEAD * min(len(counts), float(counts.sum())):
        return
    share = counts / counts.sum()
    perplexity = float(torch.special.entr(share).sum().exp())
    yield Finding(
        "dead-codes",
        "warning" if learned else "info",
        f"{dead} of {len(counts)} codes are used by none of {examples:,} training examples; the perplexity is "
        f"{perplexity:.1f}.",
        {"dead": dead, "codes": len(counts), "perplexity": perplexity},
        "codes that started far from the features are never chosen, so that nothing moves them"
        if learned
        else "more levels than the data need",
        _fewer_codes(case, case.model.posterior, len(counts) - dead)
        if learned
        else "Nothing to do: levels that are not used cost no likelihood.",
        drawings.ranks(
            counts,
            "dead-codes",
            ("Uses of a code", "rank of the code", "uses"),
            "How often each code is used by training examples, the most frequent one first.",
        ),
    )


def _fewer_codes(case: Case, quantizer: Quantizer, alive: int) -> str:
    """Revive codes; or, where that was tried, have fewer of them."""
    tried = getattr(quantizer, "revive", 1.0) >= 0.02
    return case.again(f"posterior.codes={max(2, alive)}" if tried else "posterior.revive=0.02")


def code_counts(case: Case) -> Tensor:
    """How often each code is used by the first 10,000 training examples, [codes]."""
    assert isinstance(case.model, Quantized)
    train = case.training_examples(CODED)
    counts = torch.zeros(case.model.posterior.codes, dtype=torch.float64)
    with torch.no_grad():
        for at in torch.arange(len(train)).split(500):
            x, y = train.examples(train.read(at), at)
            codes = case.model.encode(x, y=y)
            assert isinstance(codes, Codes)
            counts += torch.bincount(codes.index.flatten().cpu(), minlength=len(counts))
    return counts


def holes(case: Case) -> Iterator[Finding]:
    """Places that the prior fills and the examples do not, or the other way round."""
    x, y = few(case.training_examples(DRAWS), DRAWS)
    noise = generator("holes", device=x.device)
    with torch.no_grad():
        z = case.model.encode(x, y=y).sample_with_log_prob(1, noise)[0][0].flatten(1).cpu()
        prior = case.model.sample_latents(len(z), noise).flatten(1).cpu()
    if not (z.isfinite().all() and prior.isfinite().all()):
        return
    share = neighbors_alike(z, prior, generator("holes", "ties"))
    if share <= HOLES:
        return
    yield Finding(
        "holes",
        "warning",
        f"Draws from the prior do not lie where examples lie: of the {NEIGHBORS} nearest neighbors of an example's z, "
        f"{share:.0%} are examples' z too, where half would be if the two were alike. Samples are worse than "
        "reconstructions.",
        {"share": share, "draws": len(z), "neighbors": NEIGHBORS},
        "a rate that hardly counted in training, or a prior that is too simple for the aggregate posterior",
        _fill(case),
        drawings.scatter(z, prior, "holes"),
    )


def _fill(case: Case) -> str:
    """A rate that counts once; else a prior that learns where the examples are."""
    if case.model.has_density and (0 <= case.beta < 1 or in_warmup(case)):
        return case.again(*rate_weight(case).changes)
    if case.model.latents.holds == "categorical":
        learned = case.run.config.name("prior") == "autoregressive"
        return longer(case) if learned else case.again("prior.name=autoregressive")
    if case.model.latents.holds == "joint":
        return case.again("objective.name=elbo", "prior.name=flow")
    tried = isinstance(case.model.prior, AggregatePrior)
    return case.again("prior.name=aggregate", *(["prior.kind=flow"] if tried else []))


def neighbors_alike(z: Tensor, prior: Tensor, noise: torch.Generator) -> float:
    """Of the nearest neighbors of draws z [n, D] among these and draws of the prior [n, D], the share that is of z.

    The nearest-neighbor two-sample test of Schilling 1986. If both are draws of one distribution the share has the mean
    (n − 1) / (2n − 1), whatever D. Equal points count as neighbors in random order.

    Args:
        noise: shuffles the points, for that order.
    """
    n, every = len(z), len(z) + len(prior)
    both = torch.cat([z, prior]).double()
    order = torch.randperm(every, generator=noise)
    distances = torch.cdist(both[:n], both[order], compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.empty_like(order).scatter_(0, order, torch.arange(every))[:n]
    distances[torch.arange(n), own] = torch.inf
    nearest = distances.topk(min(NEIGHBORS, every - 1), largest=False).indices
    return float((order[nearest] < n).double().mean())


def importance_sampling(case: Case) -> Iterator[Finding]:
    """An estimate of log p(x) that is not to be trusted."""
    e = case.evaluation
    size, untrusted = e.effective_sample_size, e.untrusted
    if size is None or untrusted is None or "stochastic" not in case.model.provides:
        return
    evidence = {"effective_sample_size": size, "importance_samples": e.importance_samples, "untrusted": untrusted}
    if size < FEW_SAMPLES:
        weight = rate_weight(case)
        yield Finding(
            "importance-sampling",
            "warning",
            f"Of {e.importance_samples} importance samples, {size:.1f} carry the estimate of log p(x) (effective "
            "sample size). Its true value is probably higher; more samples come closer.",
            evidence,
            f"the rate counted {weight.times:.3g} times in training, and q(z|x) is as that asks"
            if weight.is_far
            else "q(z|x) is narrower than the posterior, or elsewhere",
            case.again(*weight.changes) if weight.is_far else _estimate_better(case),
            _bounds(case),
        )
    elif e.warning:
        yield Finding(
            "importance-sampling",
            "info",
            f"For {untrusted:.0%} of the examples the importance weights have too heavy a tail for "
            f"{e.importance_samples} draws, so log p(x) is rather too low.",
            evidence,
            "q(z|x) has lighter tails than the posterior",
            _estimate_again(case, 10),
        )


def _estimate_better(case: Case) -> str:
    """Without importance weights from q(z|x), where the model allows it: of so few effective draws more are no cure."""
    try:
        check_annealing(case.model)
    except InputError:
        return _estimate_again(case, 50)
    return case.run.command("evaluate", "--split", case.split, "--method", "annealed", "--limit", "100")


def _estimate_again(case: Case, times: int) -> str:
    return case.run.command("evaluate", "--split", case.split, "--importance-samples", str(times * IMPORTANCE_SAMPLES))


def _bounds(case: Case) -> Plot:
    """L_K of some examples over K, which would be level if K were large enough."""
    bounds = importance_weighted_bounds(case.model, case.examples.head(BOUND_EXAMPLES), BOUNDS).mean(1)
    return drawings.line(
        (BOUNDS, bounds.tolist()),
        "importance-sampling",
        ("Estimate of log p(x)", "importance samples", "nats per example"),
        "The estimate with more and more draws. It would be level at the end if they were enough.",
    )
