"""Checks of what happens to z on its way to the decoder, and of the mode that forward leaves the model in."""

from collections.abc import Iterator

from torch import nn

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign_paths import after, again, before, keeps_values, meeting, takes
from vaelab.diagnosis.patient import Patient
from vaelab.diagnosis.source_lines import change, leave, line_of
from vaelab.diagnosis.tracing import tensors_in

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
        "warning: the first step after the draw is an activation, a normalization or dropout",
    ),
    Illness(
        "changed-mode",
        "a forward that ends training mode",
        "warning: the model has dropout or batch normalization, and is in evaluation mode after a call",
    ),
)


def altered(p: Patient) -> Iterator[Finding]:
    """Is the decoder given z itself?"""
    if len(p.reading.noise.draws) != 1 or not p.reading.noise.reaches:
        return
    made = again(p.seen.calls, p.reading.noise.draws[0].call)
    if made is not None and not takes(made, after(p.seen.calls, [p.mean.tensor])):  # unlike torch.normal(mean, std)
        made = meeting(p.seen.calls, tensors_in([made.output]), [p.mean.tensor])
    if made is None:
        return
    path = before(p.seen.calls, [p.reconstruction.tensor])
    ids = after([call for call in path if keeps_values(call)], tensors_in([made.output]))
    call = next((one for one in path if one is not made and not keeps_values(one) and takes(one, ids)), None)
    if call is None or call.name not in _ALTERS:
        return
    what, effect = _ALTERS[call.name]
    yield Finding(
        "altered-latent",
        "warning",
        f"z goes through {what} before it reaches the decoder's weights: {effect}.",
        {"step": call.name, "line": line_of(call)},
        "a step that belongs to other networks, between the draw of z and the decoder",
        f"{change(call, leave, 'give the decoder z itself')}\nor, if it is meant so, have samples from the prior go "
        "through it too",
    )


def mode(p: Patient) -> Iterator[Finding]:
    """Is the model still in training mode after a call in it?"""
    norm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
    dropout = nn.modules.dropout._DropoutNd  # pyright: ignore[reportPrivateUsage]
    layers = [one for one in p.subject.last.modules() if isinstance(one, norm | dropout)]
    if p.subject.last.training or not layers:
        return
    where, text = p.source_line(".eval()", ".train(False)")
    yield Finding(
        "changed-mode",
        "warning",
        f"forward leaves the model in evaluation mode: its {len(layers)} "
        f"{'layers' if len(layers) > 1 else 'layer'} of dropout or batch normalization never "
        f"{'do' if len(layers) > 1 else 'does'} in training what "
        f"{'they are' if len(layers) > 1 else 'it is'} there for.",
        {"layers": len(layers), "line": where},
        "eval() is called inside of forward",
        f"{where}: call it where the model is evaluated, not in forward  (there stands: {text})"
        if where
        else "Call eval() where the model is evaluated, and train() where it is trained.",
    )
