"""Checks of what an example's outputs depend on: its own pixels, by way of z alone, and no chance but that of z."""

import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign.model_file import BATCH_NORM
from vaelab.diagnosis.foreign.paths import after, before, takes, where_z_is_made
from vaelab.diagnosis.foreign.patient import Patient
from vaelab.diagnosis.foreign.reading import constant, gradients, moved
from vaelab.diagnosis.foreign.source_lines import change, leave, line_of
from vaelab.diagnosis.foreign.tracing import Call, Tracer, tensors_in

PAST = 1e-3  # share of the gradient to x that may be rounding

ILLNESSES = (
    Illness(
        "mixed-examples",
        "examples that depend on each other",
        "error: in eval mode the outputs of one change with the pixels of another",
    ),
    Illness("dropout-in-eval", "dropout that is never turned off", "warning: a dropout call is active in eval mode"),
    Illness(
        "past-latent",
        "a decoder that sees the example",
        f"error: more than {PAST:g} of the reconstruction's gradient to the pixels does not go through z",
    ),
)


def _is_flow(calls: list[Call], reconstruction: Tensor, z: Tensor, x: Tensor, to_x: Tensor) -> bool:
    """Whether the decoder takes another z' that is z turned or mirrored as the example says: a Householder flow.

    It keeps the length of z, and so the density under the prior, and all of the gradient to x goes through it.
    """
    ids = after(calls, [z])
    for call in before(calls, [reconstruction]):
        for one in tensors_in([call.output]):
            if one is z or one.shape != z.shape or id(one) not in ids or not one.requires_grad:
                continue
            if moved(one.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1)):
                continue
            (to_one,) = gradients(reconstruction, [one])
            if to_one is None:
                continue
            (through,) = torch.autograd.grad(one, x, to_one, retain_graph=True, materialize_grads=True)
            if float((to_x - through).abs().max()) <= PAST * float(to_x.abs().max()):
                return True
    return False


def examples(p: Patient) -> Iterator[Finding]:
    """Does each example stand for itself in eval mode, and without dropout?"""
    others = p.subject.x.clone()
    others[0] = others[0].max() + others[0].min() - others[0]
    seen, again, changed = (Tracer(constant(0.5)) for _ in range(3))
    asked = ((seen, p.subject.x), (again, p.subject.x), (changed, others))
    try:
        given, repeated, after_change = (p.reading.pick(p.subject.evaluate(tracer, x)) for tracer, x in asked)
    except Exception:  # noqa: BLE001 - somebody's code may raise anything
        return
    dropout = next((call for call in seen.calls if "dropout" in call.name and call.kwargs.get("training")), None)
    if dropout:
        yield _dropout(dropout)
    elif p.is_finite and not _of_batch(p):
        names = ("reconstructions", "means", "log-variances")
        mixed = [
            name
            for name, a, same, b in zip(names, given, repeated, after_change, strict=True)
            if moved(a[1:], b[1:]) and not moved(a, same)  # by noise that torch does not draw
        ]
        if mixed:
            yield _mixed(mixed, seen.calls, changed.calls, len(others))


def _of_batch(p: Patient) -> bool:
    """Whether a layer takes the statistics of the batch in eval mode too, as it was told to."""
    return any(isinstance(one, BATCH_NORM) and one.running_mean is None for one in p.subject.model.modules())


def _dropout(call: Call) -> Finding:
    return Finding(
        "dropout-in-eval",
        "warning",
        "Dropout stays on in model.eval(): mean and log-variance of an example are others at every call.",
        {"line": line_of(call)},
        "F.dropout is on unless it is told training=False",
        change(
            call,
            lambda text: re.sub(r"(dropout\((?:[^()]|\([^()]*\))*)\)", r"\1, training=self.training)", text),
            "give it training=self.training, or use nn.Dropout",
        ),
    )


def _mixed(mixed: list[str], calls: list[Call], changed: list[Call], batch: int) -> Finding:
    """The first call that gives other rows than that of the changed example another value is to blame."""
    call = next((one for one, other in zip(calls, changed, strict=False) if _mixes(one, other, batch)), None)
    return Finding(
        "mixed-examples",
        "error",
        f"With other pixels in the first example, the {', '.join(mixed)} of other examples change too, in "
        "model.eval().",
        {"outputs": mixed, "line": line_of(call)},
        "an axis is taken for another: attention or a recurrent layer without batch_first=True, reshape where permute "
        "belongs, or a mean over the examples",
        change(call, leave, "keep the examples on their own axis, the first"),
    )


def _mixes(one: Call, other: Call, batch: int) -> bool:
    pairs = zip(tensors_in([one.output]), tensors_in([other.output]), strict=False)
    return any(
        a.ndim > 1 and len(a) == batch and a.shape == b.shape and a.is_floating_point() and moved(a[1:], b[1:])
        for a, b in pairs
    )


def bypass(p: Patient) -> Iterator[Finding]:
    """Does the reconstruction see the pixels through z alone?

    Its gradient to x, of a random projection, must be what comes by way of z.
    """
    if len(p.reading.noise.draws) != 1 or not p.reading.noise.reaches:
        return
    seen, asked = Tracer(constant(0.5)), replace(p.subject, x=p.subject.x.clone().requires_grad_())
    try:
        reconstruction, mean, _ = p.reading.pick(asked.run(seen))
    except Exception:  # noqa: BLE001 - somebody's code may want no gradient there
        return
    made = where_z_is_made(seen.calls, p.reading.noise.draws[0].call, mean)
    z = next(tensors_in([made.output] if made else []), None)
    if z is None:
        return
    x = asked.fed
    to_z, to_x = gradients(reconstruction, [z, x])
    if to_z is None or to_x is None:
        return
    (through,) = torch.autograd.grad(z, x, to_z, retain_graph=True, materialize_grads=True)
    past = float((to_x - through).abs().max() / to_x.abs().max())
    if not past > PAST or _is_flow(seen.calls, reconstruction, z, x, to_x):
        return
    aside = after([call for call in seen.calls if call is not made], [x])
    call = next((one for one in seen.calls if takes(one, after(seen.calls, [z])) and takes(one, aside)), None)
    yield Finding(
        "past-latent",
        "error",
        "The reconstruction depends on the pixels by another way than z: the decoder is shown what it shall draw, so z "
        "need not hold anything, and there is nothing to decode a sample from the prior with.",
        {"share": past, "line": line_of(call)},
        "a skip connection from the encoder, or x itself among the decoder's inputs",
        change(call, leave, "decode z alone"),
    )
