"""How values flow through the calls of torch that a `Tracer` saw: what comes before a tensor, and what after it."""

from collections.abc import Iterable

from torch import Tensor

from vaelab.diagnosis.foreign.tracing import NORMAL, UNIFORM, Call, tensors_in

_MAKES = ("new", "size", "empty", "zeros", "ones", "rand", "full", "is_", "_is", "argm")
_SHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "chunk", "split", "__getitem__",
           "contiguous", "unbind", "permute", "transpose", "tensor_split", "view_as", "reshape_as")  # fmt: skip


def makes(call: Call) -> bool:
    """Whether it makes a new tensor that no value of its inputs flows into: `zeros_like`, `randn_like`."""
    return call.name.startswith(_MAKES)


def keeps_values(call: Call) -> bool:
    """Whether it only gives the values another shape."""
    return call.name in _SHAPES


def after(calls: list[Call], sources: Iterable[Tensor]) -> set[int]:
    """The ids of the sources, and of all tensors that their values flow into."""
    found = {id(one) for one in sources}
    for call in calls:
        made = [id(one) for one in tensors_in([call.output])]
        if call.name == "broadcast_tensors":  # each of its inputs becomes one of its outputs
            found |= {new for own, new in zip(call.inputs, made, strict=False) if id(own) in found}
        elif not makes(call) and takes(call, found):
            found |= {*made}
    return found


def before(calls: list[Call], goals: Iterable[Tensor]) -> list[Call]:
    """The calls whose values flow into the goals, in the order in which they were made."""
    wanted, found = {id(one) for one in goals}, list[Call]()
    for call in reversed(calls):
        if any(id(one) in wanted for one in tensors_in([call.output])):
            found.append(call)
            if not makes(call):
                wanted |= {id(one) for one in call.inputs}
    return found[::-1]


def takes(call: Call, ids: set[int]) -> bool:
    """Whether one of these tensors goes in, by its values and not for its shape alone."""
    return any(id(one) in ids for one in call.inputs[: 1 if call.name.endswith("_as") else None])


def break_of_gradient(path: list[Call], within: set[int] | None = None) -> Call | None:
    """The call on a path that most likely lost the gradient.

    Args:
        within: ids of tensors, one of which it must take.
    """
    found = [call for call in path if call.breaks and not _is_noise(call) and (within is None or takes(call, within))]
    unlikely = [call.name == "__get__" or 2 * makes(call) for call in found]  # .data may just serve to make noise
    return found[unlikely.index(min(unlikely))] if found else None


def _is_noise(call: Call) -> bool:
    return call.name in (NORMAL | UNIFORM) - {"normal"}


def meeting(calls: list[Call], one: Iterable[Tensor], other: Iterable[Tensor]) -> Call | None:
    """The first call that brings two flows together: noise and mean, say."""
    first, second = after(calls, one), after(calls, other)
    return next((call for call in calls if not makes(call) and takes(call, first) and takes(call, second)), None)


def again(calls: list[Call], call: Call) -> Call | None:
    """A call of another run in this one; None where it was not made."""
    place = (call.name, call.file, call.line)
    return next((one for one in calls if (one.name, one.file, one.line) == place), None)


def made_by(calls: list[Call], call: Call) -> list[Tensor]:
    """What a call of another run gave in this one; empty where it was not made."""
    own = again(calls, call)
    return [*tensors_in([own.output])] if own else []


def where_z_is_made(calls: list[Call], draw: Call, mean: Tensor) -> Call | None:
    """The call that makes z of the mean and of what a call of another run drew, or that draws z whole."""
    own = again(calls, draw)
    if own is not None and not makes(own) and takes(own, after(calls, [mean])):  # torch.normal(mean, std)
        return own
    return meeting(calls, made_by(calls, draw), [mean])


def last_step(calls: list[Call], output: Tensor, behind: Iterable[str] = ()) -> Call | None:
    """What computed the values of an output, whatever shaped them after that, or was `behind` that."""
    passed = {*_SHAPES, *behind}
    return next((call for call in reversed(before(calls, [output])) if call.name.rstrip("_") not in passed), None)
