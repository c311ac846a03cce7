"""Checks of what values the outputs of a foreign model can take, whatever its weights are."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign.loss_formulas import STRETCHED
from vaelab.diagnosis.foreign.patient import EDGE, Patient
from vaelab.diagnosis.foreign.source_lines import told_at

DOUBLE = (0.5, 1 / (1 + math.exp(-1)))  # where two sigmoids end: between σ(0) and σ(1)
NARROW = 2.0  # a range of log-variances: σ changes by a factor of e at most
DEEPEST, FAR = 1.76, 20.0  # SELU, of the usual activations, goes down to −1.758; without one, weights make ±20 easily
ACTIVATIONS = ("relu", "sigmoid", "tanh", "softplus", "softmax", "elu", "selu", "celu", "gelu", "silu")

ILLNESSES = (
    Illness(
        "latent-range",
        "an activation on the mean or the log-variance",
        "warning: never below 0 (or the least value of an ELU), or, of the mean, never outside ±1, or, of the "
        "log-variance, within a range of 2, "
        "whatever the weights (up to 32 times as large)",
    ),
    Illness(
        "output-range",
        "an output that cannot reach the data",
        "error if the data lie outside of it, or the outputs of an example sum to 1; warning for a ReLU or tanh "
        "over data in [0, 1]",
    ),
    Illness(
        "double-sigmoid",
        "a sigmoid twice",
        "error: outputs within [0.5, 0.731] whatever the weights; or outputs within [0, 1], and a loss that takes"
        " another sigmoid",
    ),
)


def latents(p: Patient) -> Iterator[Finding]:
    """Can mean and log-variance be any number?"""
    for name, shown in (("mean", "mean"), ("spread", "log-variance")):
        low, high = p.range_of(name)
        a_logarithm = p.reading.noise.reading in ("log-variance", "log-standard-deviation")
        a_sigmoid = abs(low) <= EDGE and abs(high - 1) <= EDGE
        if name == "spread" and EDGE < high - low < NARROW and not a_sigmoid and (a_logarithm or low < 0):
            yield _clamped(p, low, high)
            continue
        if name == "spread" and not a_logarithm:
            continue
        if low >= 0:
            kind, bounds = ("sigmoid", "[0, 1]") if high <= 1 + EDGE else ("ReLU or a softplus", "[0, ∞)")
            kind = "softmax" if name == "mean" and _sums_to_one(p.mean.tensor) else kind
        elif low >= -1 - EDGE and high <= 1 + EDGE and name == "mean":
            kind, bounds = "tanh", "[−1, 1]"
        elif low >= -DEEPEST and high > FAR and name == "mean":
            kind, bounds = "function with a least value, such as ELU", f"[{low:.2g}, ∞)".replace("-", "−")
        else:
            continue
        output = p.mean if name == "mean" else p.spread
        where, text = p.activation(output, *ACTIVATIONS)
        cut = p.activation(output, "clamp", "clip")
        if not where and cut[0]:
            yield _cut_off(shown, low, high, *cut)
            continue
        yield Finding(
            "latent-range",
            "warning",
            f"The {shown} goes through a {kind}: it stays in {bounds} whatever the weights, "
            + ("while z must be able to be any number." if name == "mean" else "so that σ is at least 1."),
            {"output": shown, "low": low, "high": high, "line": where},
            "an activation after the last layer of the encoder",
            told_at(where, "leave out the activation", text)
            if where
            else "Leave the last layer of the encoder linear.",
        )


def _cut_off(shown: str, low: float, high: float, where: str, text: str) -> Finding:
    """A mean or log-variance that is cut at 0, or to a small range."""
    span = f"below {low:.3g}" if high > NARROW else f"outside of {low:.3g} to {high:.3g}"
    return Finding(
        "latent-range",
        "warning",
        f"The {shown} is cut off {span}, "
        + ("while z must be able to be any number." if shown == "mean" else "so that σ is at least 1."),
        {"output": shown, "low": low, "high": high, "line": where},
        "a clamp after the last layer of the encoder",
        told_at(where, "leave it as it is, or cut it at ±10", text),
    )


def _clamped(p: Patient, low: float, high: float) -> Finding:
    """A log-variance that can hardly change."""
    where, text = p.activation(p.spread, "clamp", "clip", *ACTIVATIONS)
    return Finding(
        "latent-range",
        "warning",
        f"The log-variance stays between {low:.3g} and {high:.3g} whatever the weights, so no latent can be told much "
        "more sharply than another.",
        {"output": "log-variance", "low": low, "high": high, "line": where},
        "it is cut to a narrow range after the last layer of the encoder",
        (told_at(where, "leave it as it is, or cut it at ±10", text) if where else "Cut it at ±10, if at all."),
    )


def reconstruction(p: Patient) -> Iterator[Finding]:
    """Can the reconstruction be what the data are?"""
    low, high = p.range_of("reconstruction")
    least, most = float(p.data.min()), float(p.data.max())
    evidence = {"output": [low, high], "data": [least, most]}
    if low >= DOUBLE[0] - EDGE and high <= DOUBLE[1] + EDGE and high - low > 0.1:
        yield double_sigmoid(p, f"The outputs stay between {low:.2f} and {high:.2f}, whatever the weights: they went "
                             "through a sigmoid twice, inside of the model.", evidence)  # fmt: skip
    elif p.bounds == (0.0, 1.0) and _sums_to_one(p.reconstruction.tensor):
        yield Finding(
            "output-range",
            "error",
            "The outputs of each example sum to 1: no picture can be bright in many pixels.",
            evidence,
            "a softmax over the pixels",
            "Use a sigmoid in its place" + _told(p.activation(p.reconstruction, "softmax")),
        )
    elif p.bounds is not None:
        yield from _against_data(p, p.bounds, evidence)


def _sums_to_one(output: Tensor) -> bool:
    sums = output.detach().flatten(1).sum(1)
    return torch.allclose(sums, torch.ones_like(sums), atol=EDGE)


def _against_data(p: Patient, bounds: tuple[float, float], evidence: dict[str, Any]) -> Iterator[Finding]:
    least, most = evidence["data"]
    interval = "0 or more" if bounds[1] == math.inf else f"between {bounds[0]:g} and {bounds[1]:g}"
    if least < bounds[0] - EDGE or most > bounds[1] + EDGE:
        yield Finding(
            "output-range",
            "error",
            f"The outputs can only be {interval}, and the data reach from {least:.3g} to {most:.3g}.",
            evidence,
            "the decoder's last activation does not suit the data, or the data are scaled otherwise than it expects",
            "Scale the data to the outputs' range, or leave the decoder's last layer linear"
            + _told(p.activation(p.reconstruction, *ACTIVATIONS)),
        )
        return
    kind = "tanh" if bounds[0] == -1 else "ReLU" if bounds[1] == math.inf else ""
    stretched = p.loss is not None and p.loss.distance == STRETCHED
    if kind and least >= 0 and not (kind == "tanh" and stretched):
        yield Finding(
            "output-range",
            "warning",
            f"The outputs can be {interval}, as of a {kind}, while the data lie between {least:.3g} and {most:.3g}.",
            evidence,
            f"a {kind} at the end of the decoder"
            + (": where its input is below 0 a pixel is 0 and passes no gradient" if kind == "ReLU" else ""),
            "End the decoder with a sigmoid for data in [0, 1], or with no activation"
            + _told(p.activation(p.reconstruction, kind.lower())),
        )


def _told(found: tuple[str, str]) -> str:
    return f": {found[0]}  ({found[1]})" if found[0] else "."


def double_sigmoid(p: Patient, message: str, evidence: dict[str, Any], loss_line: str = "") -> Finding:
    """The finding that two sigmoids are applied, one of them perhaps by the loss at `loss_line`."""
    where, text = p.source_line("igmoid(")
    return Finding(
        "double-sigmoid",
        "error",
        message,
        evidence | {"line": where},
        "a sigmoid at the end of the decoder, and another one after it: probabilities can only be 0.5 to 0.73",
        (f"{where}: take the sigmoid out of  {text}" if where else "Take the sigmoid out of the decoder")
        + (f"\nor {loss_line}: use F.binary_cross_entropy, without logits" if loss_line else ""),
    )
