"""Somebody's own model: found in a file, built, given examples, and its outputs taken apart."""

import ast
import contextlib
import copy
import dataclasses
import hashlib
import importlib.util
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, distributions, nn

from vaelab.diagnosis.foreign.source_lines import line_of
from vaelab.diagnosis.foreign.tracing import Call, Tracer, raised_by
from vaelab.errors import InputError

BATCH_NORM = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
DROPOUT = nn.modules.dropout._DropoutNd  # pyright: ignore[reportPrivateUsage]
_executed: dict[str, ModuleType] = {}  # by name, which follows from path and text


def find(reference: str, option: str) -> Any:
    """What `FILE.py:NAME` names. The file is executed, as a plugin is; `NAME` may have dots.

    Raises:
        InputError: there is no such file or name, or the file fails.
    """
    file, colon, name = reference.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise InputError(f"{option} {reference}: write FILE.py:NAME, for example my_vae.py:VAE")
    path = Path(file).resolve()
    if not path.is_file():
        raise InputError(f"{option} {reference}: {file} is no file")
    found: Any = _execute(path, option)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise InputError(f"{option} {reference}: {file} has no {name}; it has {', '.join(known) or 'nothing'}")
        found = getattr(found, part)
    return found


def find_loss(reference: str) -> Callable[..., Any]:
    """The loss that `FILE.py:NAME` names; of a class with a forward, an instance.

    Raises:
        InputError: there is none, or it cannot be called.
    """
    found = find(reference, "--loss")
    if inspect.isclass(found):
        try:
            found = found()
        except TypeError as error:
            raise InputError(f"--loss {reference}: {told(error)}; name a function of four arguments") from None
    if not callable(found):
        raise InputError(f"--loss {reference}: {type(found).__name__} cannot be called; name a function")
    return found


def arguments(loss: Callable[..., Any] | None) -> list[str]:
    """The names of the first four arguments of a loss; fewer where they have none."""
    if loss is None:
        return []
    try:
        found = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    except (TypeError, ValueError):  # some functions in C
        return []
    return [one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)][:4]


def _execute(path: Path, option: str) -> ModuleType:
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()
    name = f"vaelab_examined_{path.stem}_{digest[:12]}"
    if name in _executed:  # --model and --loss of one file share what it holds
        return _executed[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with as_script(path):
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise InputError(f"{option} {path.name}: {told(error)}; can it be imported?") from error
    return _executed.setdefault(name, module)


@contextlib.contextmanager
def as_script(path: Path | None = None, checks: bool = True, seed: int = 0) -> Generator[None]:
    """Somebody's code runs as it would as a script: its folder is on the path, and it sees no options of ours.

    What it prints goes to stderr. Random numbers that it draws leave no trace. Its warnings are not shown, for it is
    asked with arguments that it would never see. With `checks`, distributions check their arguments, as torch does by
    default; zuko, which vaelab uses, turns that off.
    """
    argv, folders, checked = sys.argv, list(sys.path), vars(distributions.Distribution)["_validate_args"]
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)  # torch's own visits all kinds of device, 1,000 times slower
        distributions.Distribution.set_default_validate_args(checks)
        if path is not None:
            sys.argv = [str(path)]
            sys.path.insert(0, str(path.parent))
        try:
            yield
        finally:
            sys.argv = argv
            sys.path[:] = folders
            distributions.Distribution.set_default_validate_args(checked)


def told(error: BaseException) -> str:
    """An error in one line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}".rstrip(": "), 300, placeholder=" ...")


def build(found: Any, reference: str) -> nn.Module:
    """The model: a module as it is, or what a class or a function gives without arguments.

    Raises:
        InputError: it wants arguments, fails, or gives no module.
    """
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(f"--model {reference}: {type(found).__name__} is no model; name a class or a function")
    wanted = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if wanted:
        name = reference.rpartition(":")[2]
        raise InputError(
            f"--model {reference}: {name} wants {', '.join(wanted)}; add a function without arguments, "
            f"`def make(): return {name}(...)`, and give --model {reference.rpartition(':')[0]}:make"
        )
    try:
        with as_script():
            model = found()
    except Exception as error:
        raise InputError(f"--model {reference}: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--model {reference}: gives a {type(model).__name__}, not a torch.nn.Module")
    return model


@dataclass
class Output:
    """One tensor of what forward returns.

    Attributes:
        place: where it is, in words: `output 1`, `output "mu"`.
        name: of the field, the key, or the variable that was returned; None where it has none.
        derived: whether it was computed from a distribution that forward returned.
    """

    place: str
    name: str | None
    tensor: Tensor
    derived: bool = False


def outputs(value: Any, names: list[str | None]) -> list[Output]:
    """The tensors in what forward returned.

    Args:
        value: a tensor, a tuple, a list, a named tuple, a dataclass, a dictionary, or these inside of each other. A
            normal distribution stands for its mean and log-variance.
        names: of the variables that `return` lists, if it does.
    """
    return list(_outputs(value, None, names))


def _outputs(value: Any, name: str | None, names: list[str | None]) -> Iterator[Output]:
    if isinstance(value, Tensor):
        yield Output("", name, value)
    elif isinstance(value, distributions.Independent):
        yield from _outputs(value.base_dist, name, [])
    elif isinstance(value, distributions.Normal):
        yield Output("", "mean", value.loc, derived=True)
        yield Output("", "log_variance", 2 * value.scale.log(), derived=True)
    else:
        for key, one in items(value, names):
            for found in _outputs(one, key if isinstance(key, str) else None, []):
                place = f'output "{key}"' if isinstance(key, str) and not isinstance(value, tuple | list) else ""
                yield dataclasses.replace(found, place=found.place or place)


def items(value: Any, names: list[str | None]) -> list[tuple[str | None, Any]]:
    """What a tuple, list, named tuple, dataclass or dictionary holds, with its keys; `names` are those of a tuple."""
    if isinstance(value, Mapping):
        return list(value.items())
    if hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value):
        return [(one.name, getattr(value, one.name)) for one in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return list(zip(names if len(names) == len(value) else [None] * len(value), value, strict=True))
    return []


def returned_names(model: nn.Module) -> list[str | None]:
    """What the last `return` of forward lists, where these are plain names: `return recon, mu, logvar`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(model).forward)))
    except (OSError, TypeError, SyntaxError):
        return []
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    lists = [value.elts for value in returned if isinstance(value, ast.Tuple | ast.List)]
    return [one.id if isinstance(one, ast.Name) else None for one in lists[-1]] if lists else []


@dataclass
class Subject:
    """A foreign model, and how it wants its examples.

    Attributes:
        model: a copy of what was given; it is never changed, for every question goes to a copy of it.
        x: examples as it takes them, [B, ...].
        names: what forward's `return` lists.
        flat: whether it takes them as vectors.
        given: the model itself, which a lambda among its attributes may call.
        changed: the call with which forward changed its examples in place, if it does.
    """

    model: nn.Module
    x: Tensor
    names: list[str | None]
    flat: bool
    given: nn.Module
    changed: Call | None = None

    @property
    def title(self) -> str:
        """What it is called."""
        return type(self.model).__name__

    def run(self, tracer: Tracer, scale: float = 1.0, signs: int | None = None, seed: int = 0) -> list[Output]:
        """Outputs of a copy in training mode without dropout.

        Dropout would be a second source of noise. Batch normalization stays as in training.

        Args:
            scale: what its weights are multiplied by.
            signs: seed of random signs for its weights; None leaves them.
            seed: of what torch draws.
        """
        model = _copied(self.model).train()
        for module in model.modules():
            if isinstance(module, DROPOUT):
                module.eval()
        changed = scale != 1 or signs is not None
        if changed:
            noise = torch.Generator().manual_seed(signs or 0)
            with torch.no_grad():
                for parameter in model.parameters():
                    sign = 1 if signs is None else torch.randn(parameter.shape, generator=noise).sign()
                    parameter.mul_(scale * sign)
        self.last, self.fed = model, self.x.clone()
        self.awake = {module for module in model.modules() if module.training}
        with as_script(checks=not changed, seed=seed), tracer:
            found = self.taken_apart(model(self.fed))
        if not self.fed.equal(self.x):
            self.changed = next(filter(is_in_place, tracer.calls), None) or Call("", "", 0, [], None)
        return found

    def evaluate(self, tracer: Tracer, x: Tensor) -> list[Output]:
        """Outputs of a copy in evaluation mode for x [B, ...]."""
        model = _copied(self.model).eval()
        with torch.no_grad(), as_script(), tracer:
            return self.taken_apart(model(x.clone()))

    def again(self, tracer: Tracer) -> bool:
        """Run the copy that ran last once more, after other random numbers; whether it bears a second call."""
        try:
            with as_script(seed=1), tracer:
                self.last(self.x.clone())
        except Exception:  # noqa: BLE001 - somebody's code may raise anything
            return False
        return True

    def try_run(self, tracer: Tracer, scale: float, signs: int | None = None) -> list[Output] | None:
        """The same; None where the model does not bear such weights."""
        try:
            return self.run(tracer, scale, signs)
        except Exception:  # noqa: BLE001 - somebody's code may raise anything
            return None

    def taken_apart(self, value: Any) -> list[Output]:
        """Outputs with a place each."""
        found = outputs(value, self.names)
        for number, one in enumerate(found):
            one.place = one.place or (f"output {number}" + (f" ({one.name})" if one.name else ""))
        return found


def is_in_place(call: Call) -> bool:
    """Whether a call changes its first tensor: `x.mul_(2)`, `x -= 1`, `x[0] = 0`."""
    return call.name == "__setitem__" or bool(re.fullmatch("__i[a-z]+__|[a-z].*_", call.name))


def fit(model: nn.Module, x: Tensor) -> Subject:
    """How the model takes examples x [B, *event]: as they are, without a channel axis, or as vectors.

    Raises:
        InputError: it takes none of these, or gives nothing of the examples' size back.
    """
    ways = {"as they are": x, "as vectors": x.flatten(1)}
    if x.ndim == 4 and x.shape[1] == 1:
        ways["without channels"] = x[:, 0]
    errors: list[str] = []
    failures: list[tuple[int, Exception]] = []
    for way, given in ways.items():
        seen = Tracer()
        try:
            awake = _awake(model, given)
            subject = Subject(awake, given, returned_names(model), way == "as vectors", model)
            found = subject.run(seen)
        except Exception as error:  # noqa: BLE001 - somebody's code may raise anything
            errors.append(f"given {list(given.shape)}, {told(error)}")
            layers = sum(any(isinstance(one, nn.Parameter) for one in call.inputs) for call in seen.calls)
            failures.append((layers, error))
            continue
        if any(len(one.tensor) == len(x) and one.tensor[0].numel() == x[0].numel() for one in found if one.tensor.ndim):
            return subject
        shapes = ", ".join(str(list(one.tensor.shape)) for one in found)
        several = next((one.tensor for one in found if _are_several(one.tensor, x)), None)
        if several is not None:
            raise InputError(
                f"{type(model).__name__}: forward returns {several.numel() // x.numel()} reconstructions of each "
                f"example, {list(several.shape)} for {len(x)} examples; give --model one that returns that of one "
                "draw of z"
            )
        errors.append(f"given {list(given.shape)}, it returns {shapes or 'no tensors'}: no reconstruction among them")
    if len(failures) == len(errors):
        _of_forward(type(model).__name__, failures)
    raise InputError(
        f"{type(model).__name__} does not take examples of shape {list(x.shape[1:])}: {errors[0]}; give --data that it "
        "was made for, or make it for these"
    )


def _are_several(output: Tensor, x: Tensor) -> bool:
    """Whether it holds each example several times: [B, S, ...] or [S, B, ...] for x [B, ...]."""
    times, left = divmod(output.numel(), x.numel())
    shapes = [times, len(x)], [len(x), times]
    return times > 1 and not left and output.ndim > 2 and [*output.shape[:2]] in shapes


def _of_forward(title: str, failures: list[tuple[int, Exception]]) -> None:
    """Say where forward failed, unless the shape of the examples is what its first layer does not take.

    Args:
        failures: for each way to give the examples, how many layers took them, and the error that came then.

    Raises:
        InputError: it failed for another reason.
    """
    layers, error = max(failures, key=lambda failure: failure[0])
    if layers or not isinstance(error, RuntimeError | ValueError | IndexError):
        call = raised_by(error)
        where = f" at {line_of(call)}" if call else ""
        hint = "; is --data what it was made for?" if layers and "mat1 and mat2" in str(error) else ""
        raise InputError(f"{title}: forward failed{where} with {told(error)}{hint}") from error


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy; torch refuses it where computed tensors are attributes, as `weight_norm` has them."""
    every = [one for module in model.modules() for one in vars(module).values() if isinstance(one, Tensor)]
    return copy.deepcopy(model, {id(one): one.detach() for one in every if not one.is_leaf})


def on_cpu(model: nn.Module) -> nn.Module:
    """The model itself, or a copy where it lies on another device."""
    tensors = [*model.parameters(), *model.buffers()]
    return model if all(one.is_cpu for one in tensors) else _copied(model).cpu()


def _awake(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of which all parts do something.

    Lazy layers take their shapes from the examples. Matrices that begin at zero are drawn anew, for what follows them
    would look as if it were not there.
    """
    model = _copied(model)
    if any(isinstance(one, nn.parameter.UninitializedParameter) for one in model.parameters()):
        with as_script(), torch.no_grad():
            model(x)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=noise) / parameter[0].numel() ** 0.5)
    return model


# -- lines of somebody's file --------------------------------------------------------------------------------------
