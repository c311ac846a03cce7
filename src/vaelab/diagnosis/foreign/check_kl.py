"""Checks of the KL in a foreign loss."""

import math
import re
from collections.abc import Iterator

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign.check_forward import plausible
from vaelab.diagnosis.foreign.check_loss import returned
from vaelab.diagnosis.foreign.loss_formulas import EXCHANGED, FORMULAS
from vaelab.diagnosis.foreign.loss_probe import Kl
from vaelab.diagnosis.foreign.loss_terms import LossTerms
from vaelab.diagnosis.foreign.patient import Patient
from vaelab.diagnosis.foreign.reading import meaning, words
from vaelab.diagnosis.foreign.source_lines import change, leave, line_of, told_at
from vaelab.diagnosis.foreign.tracing import Call

ILLNESSES = (
    Illness("kl-sign", "a KL with the wrong sign", "error"),
    Illness(
        "kl-formula",
        "a KL that is another formula",
        "error: the terms are found by least squares, to 1e-4; warning where the factor ½ is missing, or "
        "the prior has another variance",
    ),
    Illness("no-kl", "a loss without KL", "error: it does not change with mean and log-variance"),
)


def kl(p: Patient, loss: LossTerms) -> Iterator[Finding]:
    """Is its KL the KL?"""
    call = p.kl_call
    if not loss.repeats:
        return
    if not loss.kl.known:
        yield Finding(
            "unrecognized-loss",
            "info",
            "What the loss makes of mean and log-variance is no sum of the terms that KL formulas are made of; it was "
            "not examined.",
            {"line": line_of(call)},
            remedy=f"Compare it with  {p.right_kl()}",
        )
    elif loss.kl.is_none:
        where, text = returned(loss)
        yield Finding(
            "no-kl",
            "error",
            "The loss does not change with mean and log-variance: it has no KL. This trains an autoencoder, whose "
            "samples from the prior look like nothing.",
            {"line": where},
            "the KL is left out or multiplied by 0; or the loss returns several numbers, the total not first",
            (told_at(where, "add a KL term to what is returned", text) + "\n" if where else "Add a KL term, ")
            + p.right_kl(),
        )
    elif loss.kl.reading and loss.kl.weight < 0:
        yield Finding(
            "kl-sign",
            "error",
            f"The KL enters the loss with the weight {loss.kl.weight / p.unit:.3g}: training makes it as large as it "
            "can.",
            {"weight": loss.kl.weight, "line": line_of(call)},
            "a sign too many or too few",
            change(call, _other_sign, f"change the sign: {p.right_kl(loss.kl.reading, call)}"),
        )
    elif loss.kl.reading is None:
        yield _formula(p, loss.kl, call)
    elif p.reading.noise.reading is None and "log" in (p.spread.name or "") and loss.kl.reading not in plausible(p):
        yield _misread(p, loss.kl.reading, call)


def _other_sign(text: str) -> str:
    new = re.sub(r"(=|return|\+|\()\s*0\.5\s*\*", r"\1 -0.5 *", text)
    return new if new != text else re.sub(r"-\s*0\.5\s*\*", "0.5 *", text)


def _misread(p: Patient, reading: str, call: Call | None) -> Finding:
    return Finding(
        "kl-formula",
        "error",
        f"The KL in the loss takes the log-variance for a {reading}.",
        {"taken_for": reading, "line": line_of(call)},
        "log-variance, variance and standard deviation are mixed up",
        change(call, leave, f"write  {p.right_kl(call=call)}"),
    )


def _formula(p: Patient, kl: Kl, call: Call | None) -> Finding:
    if kl.wrong == EXCHANGED:
        in_order = [meaning(name) for name in p.arguments[2:]] == ["mean", "spread"]
        return Finding(
            "swapped-outputs",
            "error",
            "The KL takes the mean for the log-variance, and the log-variance for the mean.",
            {"line": line_of(call)},
            "the two are in the other order where the KL is called"
            if in_order
            else "the loss's last two arguments are in the other order",
            "Exchange mean and log-variance where the KL is called."
            if in_order
            else change(call, leave, "begin the loss with  def loss(reconstruction, x, mean, log_variance)"),
        )
    if kl.wrong:
        return Finding(
            "kl-formula",
            "error",
            "The loss holds KL(prior ‖ posterior). A VAE needs KL(posterior ‖ prior), which is another number.",
            {"line": line_of(call)},
            "the two distributions are exchanged",
            change(call, lambda text: re.sub(r"kl_divergence\((\w+), (\w+)\)", r"kl_divergence(\2, \1)", text),
                   f"write  {p.right_kl(call=call)}"),
        )  # fmt: skip
    if (variance := kl.prior_variance) is not None:
        return _other_prior(p, variance, call)
    name, weight = kl.closest()
    right = FORMULAS[name]
    terms = {term: one / (weight or p.unit) for term, one in kl.terms.items()}
    changes = [(terms.get(term, 0.0), right.get(term, 0.0), term) for term in {**right, **terms}]
    told = ", ".join(_change(*one) for one in changes if abs(one[0] - one[1]) > 1e-3)
    formula = " ".join(_factor(factor, term, True) for term, factor in right.items()).removeprefix("+ ")
    return Finding(
        "kl-formula",
        "error",
        f"The KL of a normal distribution with mean m and {words(name)} s from N(0, 1) is {formula} − 0.5, summed over "
        f"the latents. This loss {told}.",
        {"terms": terms, "expected": dict(right), "line": line_of(call)},
        "a term is missing, or has another factor or sign",
        change(call, leave, f"write  {p.right_kl(name, call)}"),
    )


def _other_prior(p: Patient, variance: float, call: Call | None) -> Finding:
    return Finding(
        "kl-formula",
        "warning",
        f"The KL is that from N(0, {variance:.3g}), not from N(0, 1): the prior's standard deviation is "
        f"{math.sqrt(variance):.3g}, and samples are right only if z is drawn with that.",
        {"prior_variance": variance, "line": line_of(call)},
        "a prior of another scale, or a factor on some terms of the KL alone",
        change(call, leave, f"write  {p.right_kl(call=call)}")
        + f"\nor sample with  {math.sqrt(variance):.3g} * torch.randn",
    )


def _change(value: float, right: float, term: str) -> str:
    if abs(value) < 1e-3:
        return f"lacks {_factor(right, term)}"
    return f"has {_factor(value, term)}" + (f" in place of {_factor(right, term)}" if right else ", no part of it")


def _factor(value: float, term: str, signed: bool = False) -> str:
    sign = ("+ ", "− ")[value < 0] if signed else ("", "−")[value < 0]
    number = "" if abs(abs(value) - 1) < 1e-3 else f"{abs(value):.3g} "
    return f"{sign}{number}{term}"
