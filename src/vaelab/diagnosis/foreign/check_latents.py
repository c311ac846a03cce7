"""Checks of what happens to z on its way to the decoder, and of the mode that forward leaves the model in."""

from collections.abc import Iterator

from torch import Tensor

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign.model_file import BATCH_NORM, DROPOUT
from vaelab.diagnosis.foreign.paths import after, before, keeps_values, takes, where_z_is_made
from vaelab.diagnosis.foreign.patient import Patient
from vaelab.diagnosis.foreign.source_lines import change, leave, line_of, text_of, told_at
from vaelab.diagnosis.foreign.tracing import Call, tensors_in

_ALTERS = {
    "tanh": ("a tanh", "beyond ±2 all values of a latent look alike to the decoder"),
    "sigmoid": ("a sigmoid", "beyond ±4 all values of a latent look alike to the decoder"),
    "relu": ("a ReLU", "to the decoder all values of a latent below 0, half of those of the prior, are the same"),
    "softmax": ("a softmax", "what all latents have in common is lost, and the KL pays for it"),
    "normalize": ("a division by its length", "the decoder sees a direction alone, and the KL pays for the length"),
    "layer_norm": ("a layer normalization", "length and average of z are lost, and the KL pays for them"),
    "batch_norm": (
        "a batch normalization",
        "z is shifted and scaled by the other examples of its batch, and one from the prior is not: the KL speaks of "
        "another z than the decoder sees",
    ),
    "dropout": ("dropout", "the decoder sees other noise than that of q(z|x), of which the KL speaks"),
}  # fmt: skip
"""What may stand between z and the decoder's first weights: in words, and what comes of it."""

ILLNESSES = (
    Illness(
        "altered-latent",
        "a decoder that is given something else than z",
        "warning: the first step after the draw is an activation, a normalization or dropout, and no part of z goes "
        "another way; info for a softmax, which a model of topics has (Srivastava and Sutton 2017)",
    ),
    Illness(
        "changed-mode",
        "a forward that ends training mode",
        "warning: a part of the model with dropout or batch normalization is in evaluation mode after a call, and was "
        "not before; frozen parts aside",
    ),
)


def altered(p: Patient) -> Iterator[Finding]:
    """Is the decoder given z itself?"""
    if len(p.reading.noise.draws) != 1 or not p.reading.noise.reaches:
        return
    made = where_z_is_made(p.seen.calls, p.reading.noise.draws[0].call, p.mean.tensor)
    if made is None:
        return
    path = [one for one in before(p.seen.calls, [p.reconstruction.tensor]) if one is not made]
    call = _first_step(path, [*tensors_in([made.output])])
    step = _step(path, call) if call else ""
    if call is None or step not in _ALTERS:
        return
    what, effect = _ALTERS[step]
    yield Finding(
        "altered-latent",
        "info" if step == "softmax" else "warning",
        f"z goes through {what} before it reaches the decoder's weights: {effect}.",
        {"step": step, "line": line_of(call)},
        "a step that belongs to other networks, between the draw of z and the decoder",
        f"{change(call, leave, 'give the decoder z itself')}\nor, if it is meant so, have samples from the prior go "
        "through it too",
    )


def _first_step(path: list[Call], z: list[Tensor]) -> Call | None:
    """What z goes through first, if all of z does on its way to the reconstruction."""
    shaped = after([call for call in path if keeps_values(call)], z)
    call = next((one for one in path if not keeps_values(one) and not _is_length(one) and takes(one, shaped)), None)
    if call is None or any(one is call.output for one in call.inputs):  # in place: there is no other z any more
        return call
    others = after([one for one in path if one is not call and not _is_length(one)], z)
    return None if takes(path[-1], others) else call


def _is_length(call: Call) -> bool:
    return call.name in ("norm", "linalg_norm", "linalg_vector_norm", "vector_norm")


def _step(path: list[Call], call: Call) -> str:
    """What a call does, as a key of `_ALTERS` if it is one of these."""
    if call.name in ("div", "__truediv__", "true_divide"):
        lengths = after(path, [one.output for one in path if _is_length(one)])
        return "normalize" if len(call.inputs) > 1 and id(call.inputs[1]) in lengths else ""
    name = call.name.removesuffix("_")
    if name == "dropout":  # dropout layers are turned off while a model is examined
        share = call.args[1] if len(call.args) > 1 else call.kwargs.get("p", 0.5)
        return "dropout" if share > 0 and "training=False" not in text_of(call).replace(" ", "") else ""
    return name


def mode(p: Patient) -> Iterator[Finding]:
    """Are the layers that tell training from evaluation still in training after a call in it?"""
    asleep = [one for one in p.subject.last.modules() if one in p.subject.awake and not one.training]
    layers = {
        inside
        for one in asleep
        for inside in one.modules()
        if isinstance(inside, BATCH_NORM | DROPOUT) and any(weight.requires_grad for weight in one.parameters())
    }
    if not layers:
        return
    where, text = p.source_line(".eval()", ".train(False)", ".train(mode=False)")
    several = len(layers) > 1
    yield Finding(
        "changed-mode",
        "warning",
        f"forward leaves {'the model' if p.subject.last in asleep else 'a part of the model'} in evaluation mode: its "
        f"{len(layers)} {'layers' if several else 'layer'} of dropout or batch normalization never "
        f"{'do' if several else 'does'} in training what {'they are' if several else 'it is'} there for.",
        {"layers": len(layers), "line": where},
        "evaluation mode is switched on inside of forward",
        told_at(where, "call it where the model is evaluated, not in forward", text)
        if where
        else "Call eval() where the model is evaluated, and train() where it is trained.",
    )
