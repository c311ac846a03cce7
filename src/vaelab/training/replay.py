"""Why a training step was not finite: the step once more, watched."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vaelab.model import Model
from vaelab.objectives import Objective

MOST_NAMES = 3


def explain(
    model: Model,
    objective: Objective,
    x: Tensor,
    noise: torch.Generator,
    dtype: torch.dtype | None,
    describe: Callable[[int], str],
    y: Tensor | None = None,
) -> str:
    """Where the first NaN or infinity of a step appears, and which examples have it, in one line; else an empty one.

    Looked for in this order: the data, the weights, the layers' outputs as they are computed, the terms of the loss,
    the gradients.

    Args:
        x: the step's examples [B, *event].
        noise: the step's generator, where it stood after x was made.
        dtype: the precision of the networks.
        describe: the name of example b of B.
        y: the labels of x, for a conditional model.
    """
    batch = len(x)

    def guilty(values: Tensor) -> str | None:
        """The examples with values that are not finite; rows are [B] or, where draws were decoded, [K * B]."""
        bad = (~values.detach().flatten(1).isfinite()).any(1)
        if not bad.any():
            return None
        examples = sorted({int(row) % batch for row in bad.nonzero()})
        named = ", ".join(describe(b) for b in examples[:MOST_NAMES])
        more = f" and {len(examples) - MOST_NAMES} more" if len(examples) > MOST_NAMES else ""
        return f"{len(examples)} of {batch} examples: {named}{more}"

    if (found := guilty(x)) is not None:
        return f"the data are NaN or infinite in {found}"
    parameters = {name: p for name, p in [*model.named_parameters(), *objective.named_parameters()] if p.requires_grad}
    if broken := next((name for name, parameter in parameters.items() if not parameter.isfinite().all()), None):
        return f"{broken} itself holds NaN or infinite values"
    suspects: list[str] = []
    hooks = [
        module.register_forward_hook(_watch(name, guilty, suspects)) for name, module in model.named_modules() if name
    ]
    try:
        terms = model.terms(x, objective.num_samples, noise, dtype, y=y, relaxed=True)
        loss = objective(terms).total
    finally:
        for hook in hooks:
            hook.remove()
    if suspects:
        return suspects[0]
    for name in ("log_px_z", "log_qz_x", "log_pz", "kl"):
        values: Tensor | None = getattr(terms, name)
        if values is not None and (found := guilty(values if name == "kl" else values.T)) is not None:
            return f"{name} is NaN or infinite for {found}"
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    bad = [name for name, gradient in zip(parameters, gradients, strict=True) if not gradient.isfinite().all()]
    if bad:
        return f"the gradient of {bad[-1]} is NaN or infinite, while the loss is {loss.item():.4g}"
    return ""


def _watch(
    name: str, guilty: Callable[[Tensor], str | None], suspects: list[str]
) -> Callable[[nn.Module, object, object], None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim > 1 and (found := guilty(output)) is not None:
            suspects.append(f"layer {name} ({type(module).__name__}) gave NaN or infinite values for {found}")

    return hook
