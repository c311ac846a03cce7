"""Checks of the weights of a foreign model: whether they are registered, and whether gradients reach them."""

import linecache
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign.check_forward import EXPLICIT
from vaelab.diagnosis.foreign.model_file import Output
from vaelab.diagnosis.foreign.paths import after, before, break_of_gradient, last_step, made_by, meeting, takes
from vaelab.diagnosis.foreign.patient import Patient
from vaelab.diagnosis.foreign.reading import as_vector, gradients
from vaelab.diagnosis.foreign.source_lines import assigned, change, line_of, text_of, told_at
from vaelab.diagnosis.foreign.tracing import Call, Tracer

ILLNESSES = (
    Illness(
        "unregistered-layers",
        "layers that the model does not know of",
        "error: forward uses weights that are not in `parameters()`, so that no optimizer trains them",
    ),
    Illness(
        "no-gradient",
        "gradients that do not reach the encoder",
        "error: the reconstruction has no gradient to what makes mean or log-variance, or these have none to some of "
        "the weights they are computed from, frozen ones aside; or the loss has none to its arguments",
    ),
)

_NO_GRADIENT = r"no_grad|inference_mode|set_grad_enabled\(False"


# -- registered weights --------------------------------------------------------------------------------------------


def unregistered(p: Patient) -> Iterator[Finding]:
    """Are the weights that forward uses among the model's parameters?"""
    seen = Tracer()
    p.subject.run(seen)
    model = p.subject.last
    known = {id(one) for own in (model, p.subject.model, p.subject.given) for one in own.parameters()}
    used = [(call, one) for call in seen.calls for one in call.inputs
            if isinstance(one, nn.Parameter) and one.requires_grad and id(one) not in known]  # fmt: skip
    if not used:
        return
    lost = {id(one): one for _, one in used}
    attribute, kind, holder = _kept_in(model, set(lost))
    call = assigned(holder, attribute) or used[0][0]
    yield Finding(
        "unregistered-layers",
        "error",
        f"forward uses {len(lost)} weight tensors ({sum(map(torch.numel, lost.values())):,} numbers) that are not in "
        "model.parameters(): no optimizer trains them, and state_dict() does not save them.",
        {"tensors": len(lost), "attribute": attribute, "line": line_of(call)},
        f"self.{attribute} is a plain {kind}: torch looks for layers in attributes, not inside of these"
        if attribute
        else "layers that are no attribute of the model: kept in a plain list, in a closure, or made in forward",
        change(call, _as_container, "keep the layers in an nn.ModuleList or nn.Sequential that is an attribute"),
    )


def _kept_in(model: nn.Module, lost: set[int]) -> tuple[str, str, nn.Module]:
    """The attribute that holds some of these weights in a list, tuple or dictionary; its kind, and whose it is."""
    for module in model.modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and any(id(one) in lost for one in _weights_in(value)):
                return name, type(value).__name__, module
    return "", "", model


def _weights_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        inside: Any = value.values() if isinstance(value, Mapping) else value
        for one in inside:
            yield from _weights_in(one)


def _as_container(text: str) -> str:
    """`self.layers = [...]` as a ModuleList, `{...}` as a ModuleDict."""
    if not re.search(r"(?<![\w.])nn\.", text):
        return text
    text = re.sub(r"^(self\.\w+\s*=\s*)(\[.*\])$", r"\1nn.ModuleList(\2)", text)
    return re.sub(r"^(self\.\w+\s*=\s*)(\{.*\})$", r"\1nn.ModuleDict(\2)", text)


# -- gradients -----------------------------------------------------------------------------------------------------


def gradient(p: Patient) -> Iterator[Finding]:
    """Do gradients of the reconstruction reach the weights that make mean and log-variance?"""
    seen = Tracer()
    found = p.subject.run(seen)
    weights = list(p.subject.last.parameters())
    reached, of_mean, of_spread = (_with_gradient(one, weights) for one in p.reading.pick(found))
    lost = [name for name, own in (("mean", of_mean - of_spread or of_mean), ("log-variance", of_spread - of_mean))
            if own and not own & reached and not _told_by_no_noise(p, name, seen, found)]  # fmt: skip
    detached = [name for name, own in (("mean", of_mean), ("log-variance", of_spread)) if not own]
    if detached == ["log-variance"] and (cut := _cut(p, seen, found)):
        yield cut
    elif detached:
        yield _detached(p, detached, before(seen.calls, p.reading.pick(found)[1:]))
    elif lost or (lost := ["log-variance"] * _unscaled(p, found, weights)):
        yield _lost(p, seen, found, lost, (len(of_mean | of_spread), len((of_mean | of_spread) & reached)))
    else:
        yield from _unreached(seen, list(p.reading.pick(found)[1:]), p.subject.last)


def _told_by_no_noise(p: Patient, name: str, seen: Tracer, found: list[Output]) -> bool:
    """Whether the decoder has no noise, and so no use for the log-variance; or does not take the mean either."""
    if p.reading.noise.reaches:
        return False
    reconstruction, mean, _ = p.reading.pick(found)
    return name == "log-variance" or not any(takes(call, {id(mean)}) for call in before(seen.calls, [reconstruction]))


def _unscaled(p: Patient, found: list[Output], weights: list[nn.Parameter]) -> bool:
    """Whether noise reaches the reconstruction, and no number among the weights does that makes the log-variance alone.

    One layer may make mean and log-variance, so this is asked of each number.
    """
    if not (p.is_finite and p.reading.noise.reaches and p.reading.noise.draws):
        return False
    of_reconstruction, of_mean, of_spread = (
        as_vector(gradients(one, [*weights]), weights) for one in p.reading.pick(found)
    )
    alone = _counts(of_spread) & ~_counts(of_mean)
    return bool(alone.any()) and not bool(_counts(of_reconstruction)[alone].any())


def _counts(gradient: Tensor) -> Tensor:
    """Which of its numbers are more than rounding."""
    return gradient.abs() > 1e-6 * gradient.abs().max()


def _cut(p: Patient, seen: Tracer, found: list[Output]) -> Finding | None:
    """A log-variance that is cut to a range, with all of its values at the ends, where a clamp has no gradient."""
    spread = p.reading.pick(found)[2].detach()
    call = last_step(seen.calls, p.reading.pick(found)[2])
    if call is None or call.name.rstrip("_") not in ("clamp", "clip") or len(spread.unique()) > 2:
        return None
    message = (
        f"All log-variances are cut off at {float(spread.max()):.3g}: no gradient flows back through a clamp there."
    )
    cause = "the range leaves out the values near 0 that an encoder begins with"
    return _finding(message, {"lost": ["log-variance"]}, call, cause, "leave it as it is, or cut it at ±10")


def _with_gradient(output: Tensor, weights: list[nn.Parameter]) -> set[int]:
    """Numbers of the weights to which a random projection of the output has a gradient."""
    return {number for number, grad in enumerate(gradients(output, [*weights])) if grad is not None}


def _finding(message: str, evidence: dict[str, Any], call: Call | None, cause: str, otherwise: str) -> Finding:
    evidence |= {"line": line_of(call), "call": call.name if call else ""}
    return Finding("no-gradient", "error", message, evidence, cause, change(call, _reparameterized, otherwise))


def _detached(p: Patient, names: list[str], path: list[Call]) -> Finding:
    what, plural = " and ".join(names), len(names) > 1
    used = [one for call in path for one in call.inputs if isinstance(one, nn.Parameter)]
    if used and not any(one.requires_grad for one in used):
        where, text = p.source_line("requires_grad")
        return Finding(
            "no-gradient",
            "warning",
            f"All weights that make the {what} are frozen: training leaves them as they were drawn, or loaded.",
            {"lost": names, "line": where},
            "requires_grad=False",
            told_at(where, "let them have a gradient while the VAE is trained", text)
            if where
            else "Set requires_grad_(True) on them, unless it is meant so.",
        )
    call = _opening(break_of_gradient(path))
    message = (
        f"The {what} {'come' if plural else 'comes'} out of forward cut off from the weights: no gradient flows back."
    )
    cause, otherwise = "detach, .data or torch.no_grad on the way", "let the gradient pass here"
    where, text = p.source_line("no_grad", "inference_mode", "set_grad_enabled(False")
    if where and call and not re.search(rf"{_NO_GRADIENT}|detach|\.data\b", text_of(call)):  # opened by a caller
        told = told_at(where, otherwise, text)
        return Finding("no-gradient", "error", message, {"lost": names, "line": where, "call": "no_grad"}, cause, told)
    return _finding(message, {"lost": names}, call, cause, otherwise)


def _lost(p: Patient, seen: Tracer, found: list[Output], lost: list[str], count: tuple[int, int]) -> Finding:
    what, (encoder, reached) = " and ".join(lost), count
    message = f"The reconstruction passes no gradient to the weights that make the {what}"
    message += " alone." if reached else f": 0 of {encoder} weight tensors of the encoder are reached."
    message += "" if reached else " It cannot learn to help the decoder."
    reconstruction, mean, spread = p.reading.pick(found)
    sources = [{"mean": mean, "log-variance": spread}[name] for name in lost]
    call = break_of_gradient(before(seen.calls, [reconstruction]), after(seen.calls, sources))
    cause = "a draw that gradients cannot pass (sample, torch.normal), or detach, .data, no_grad on the way"
    if call is None and lost == ["log-variance"] and p.reading.noise.draws:
        call = meeting(seen.calls, made_by(seen.calls, p.reading.noise.draws[0].call), [mean])
        cause = "z is made of mean and noise, without σ"
    return _finding(message, {"lost": lost}, _opening(call), cause, f"decode  {EXPLICIT}, and let gradients through it")


def _unreached(seen: Tracer, outputs: list[Tensor], model: nn.Module) -> Iterator[Finding]:
    """Weights that mean and log-variance are computed from, and that no gradient of these reaches."""
    path = before(seen.calls, outputs)
    names = {id(one): name for name, one in model.named_parameters() if one.requires_grad}
    used = {id(one): one for call in path for one in call.inputs if id(one) in names}
    total = torch.stack([one.sum() for one in outputs if one.requires_grad]).sum()
    grads: list[Tensor | None] = []
    if used:
        grads = [*torch.autograd.grad(total, list(used.values()), allow_unused=True, retain_graph=True)]
    numbers = [number for number, grad in zip(used, grads, strict=True) if grad is None]
    lost = [names[number] for number in numbers]
    call = break_of_gradient(path, after(path, [used[number] for number in numbers]))
    if lost and call:
        yield _finding(
            f"{len(lost)} of the {len(used)} weight tensors that mean and log-variance are computed from get no "
            f"gradient from them ({', '.join(lost[:2])}{', ...' * (len(lost) > 2)}): they stay as they were drawn.",
            {"lost": lost},
            _opening(call),
            "detach, .data or torch.no_grad on the way",
            "let the gradient pass here; or, if these weights are to stay as they are, freeze them with "
            "requires_grad_(False)",
        )


def _opening(call: Call | None) -> Call | None:
    """The `with torch.no_grad():` around a call, or the decorator of its function; or the call itself."""
    if call is None or not call.file:
        return call
    lines = linecache.getlines(call.file)
    depth = _indent(text := lines[call.line - 1]) if call.line <= len(lines) else 0
    for number in range(call.line - 1, 0, -1):
        text = lines[number - 1]
        if not text.strip() or _indent(text) >= depth:
            continue
        depth = _indent(text)
        if re.match(rf"\s*with\b.*({_NO_GRADIENT})", text):
            return Call("no_grad", call.file, number, [], None)
        if re.match(r"\s*(def|class)\b", text):
            above = [n for n in range(max(0, number - 4), number) if re.match(rf"\s*@.*({_NO_GRADIENT})", lines[n - 1])]
            return Call("no_grad", call.file, above[-1], [], None) if above else call
    return call


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _reparameterized(text: str) -> str:
    text = text.replace(".sample()", ".rsample()").replace(".detach()", "").replace(".requires_grad_()", "")
    text = re.sub(r"\.data\b(?![.(\w])", "", text)
    return re.sub(r"torch\.normal\(\s*(\w+)\s*,\s*(\w+)\s*\)", r"\1 + \2 * torch.randn_like(\2)", text)
