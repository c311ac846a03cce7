"""Which output of a foreign model is which, and how noise enters it: found by replacing the noise.

A VAE draws z = mean + σ ε, and σ is some function f of its third output s. Let g be the gradient of the reconstruction
(a random projection of it) with respect to z. Then its gradient with respect to the mean is g, and with respect to s it
is g f′(s) ε. So with ε = 0 only the mean has a gradient: that tells the two apart. With ε = 1 the ratio of the two
gradients is f′(s), element by element: that tells what s is read as.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vaelab.diagnosis.foreign.model_file import Output, Subject, is_in_place
from vaelab.diagnosis.foreign.paths import after, before, meeting, takes
from vaelab.diagnosis.foreign.source_lines import line_of, text_of
from vaelab.diagnosis.foreign.tracing import MOMENTS, Call, Draw, Tracer
from vaelab.errors import InputError

READINGS: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "log-variance": ("exp(s / 2)", lambda s: (s / 2).exp(), lambda s: 0.5 * (s / 2).exp()),
    "log-standard-deviation": ("exp(s)", torch.exp, torch.exp),
    "standard-deviation": ("s", lambda s: s, torch.ones_like),
    "variance": ("sqrt(s)", torch.sqrt, lambda s: 0.5 / s.sqrt()),
    "softplus": ("softplus(s)", torch.nn.functional.softplus, torch.sigmoid),
    "doubled log-variance": ("exp(s / 4)", lambda s: (s / 4).exp(), lambda s: 0.25 * (s / 4).exp()),
    "log-precision": ("exp(-s / 2)", lambda s: (-s / 2).exp(), lambda s: 0.5 * (-s / 2).exp()),
}
"""What the third output can be read as: σ as a function f of it, in words; f; and |f′|."""
FIT = 1e-2  # spread of log(ratio / f′) that still counts as the same function; a wrong one leaves 0.1 and more
SPREAD = 0.3  # standard deviation that s must have before functions of it can be told apart
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
RANGE_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
RANGE_SIGNS = range(12)
SAMPLES, LINE = 24, 0.05  # passes; by how much moments of a line through the draws are off those of the draws by chance
_TURNS = {"erfinv", "log", "log1p", "cos", "sin", "special_ndtri", "ndtri", "icdf"}
SHOWN = 1e-5  # relative change of an output that is no rounding


def words(reading: str) -> str:
    """`standard-deviation` without its hyphen."""
    return reading.replace("standard-deviation", "standard deviation")


@dataclass
class Noise:
    """How noise enters z = mean + f(s) ε.

    Attributes:
        draws: those that may be noise of the latents.
        reaches: whether the reconstruction changes with it.
        reading: which of `READINGS` f is; None where that could not be told.
        mean, stddev: of ε, from the kind of draw and what is done to it; None where f could not be told.
        shared: whether examples share a draw.
        repeats: whether a second call draws the same.
        beside: where σ is used if not on ε: "mean · σ", or "mean + σ"; else empty.
        turned: whether uniform draws are turned into something else before they meet the mean, as by Box and Muller.
    """

    draws: list[Draw]
    reaches: bool
    reading: str | None = None
    mean: float | None = None
    stddev: float | None = None
    shared: bool = False
    repeats: bool = False
    beside: str = ""
    turned: bool = False


@dataclass
class Reading:
    """What forward returns, and how it comes about.

    Attributes:
        reconstruction, mean, spread: places in the list of outputs; `spread` is the log-variance, or what stands for
            it.
        latent: further outputs that change with the noise: z itself, say.
        how: how mean and spread were told apart.
        ranges: least and largest value that each of the three can take, by name.
    """

    reconstruction: int
    mean: int
    spread: int
    latent: list[int]
    how: str
    noise: Noise
    outputs: list[Output]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def pick(self, outputs: list[Output]) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and spread out of the outputs of a run."""
        return outputs[self.reconstruction].tensor, outputs[self.mean].tensor, outputs[self.spread].tensor


def read(subject: Subject) -> Reading:
    """Tell the outputs of a foreign model apart.

    Raises:
        InputError: there are no two latent outputs of one shape beside the reconstruction.
    """
    seen, again = Tracer(), Tracer()
    found = subject.run(seen)
    twice = subject.again(again)
    reconstruction, latents = _by_shape(subject, found)
    shape = found[latents[0]].tensor.shape

    def of_latents(draw: Tensor) -> bool:
        if draw.numel() == subject.x.numel() != shape.numel():  # noise on the examples: a denoising model
            return False
        return draw.numel() in {shape[1:].numel(), len(subject.x), 1} or draw.numel() % shape.numel() == 0

    draws = [draw for draw in seen.draws if of_latents(draw.values)]
    still, loud = (subject.run(Tracer(constant(value), of_latents)) for value in (0.0, 1.0))
    latent = [place for place in latents if moved(still[place].tensor, loud[place].tensor)]
    fixed = _distinct(still, [place for place in latents if place not in latent])
    if len(fixed) < 2:
        own = {id(found[place].tensor) for place in latents}
        call = next((one for one in seen.calls if is_in_place(one) and any(id(a) in own for a in one.inputs[:1])), None)
        why = f"; {line_of(call)} changes one of them in place ({text_of(call)})" if call else ""
        raise InputError(
            f"{subject.title}: forward gives no mean and log-variance that are the same at every draw of the noise"
            f"{why}; return (reconstruction, mean, log-variance)"
        )
    noise = Noise(draws, moved(still[reconstruction].tensor, loud[reconstruction].tensor))
    if not noise.reaches and not draws:
        noise.reaches = moved(found[reconstruction].tensor, subject.run(Tracer(), seed=1)[reconstruction].tensor)
    noise.shared = bool(draws) and all(draw.values.numel() < shape.numel() for draw in draws)
    noise.repeats = bool(twice and draws) and all(
        a.values.equal(b.values) for a, b in zip(seen.draws, again.draws, strict=False) if of_latents(a.values)
    )
    mean, spread, how = _mean_and_spread(still, loud, reconstruction, fixed, draws)
    reading = Reading(reconstruction, mean, spread, latent, how, noise, found)
    _measure_noise(subject, reading, of_latents)
    _sample_noise(subject, reading, of_latents)
    reading.ranges = _ranges(subject, reading)
    return reading


def constant(value: float) -> Callable[[Tensor], Tensor]:
    """A script that puts one value in the place of every draw."""
    return lambda draw: torch.full_like(draw, value)


def moved(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs differ by more than rounding."""
    if a.shape != b.shape:
        return True
    size = max(float(a.detach().abs().max()), float(b.detach().abs().max()), 1e-30)
    return not float((a - b).detach().abs().max()) <= SHOWN * size


def _distinct(found: list[Output], places: list[int]) -> list[int]:
    """Without outputs that repeat another one: z where it is the mean, or a distribution beside its mean."""
    kept: list[int] = []
    for place in sorted(places, key=lambda n: (found[n].derived, not meant(found[n]))):
        if not any(_same(found[place].tensor, found[other].tensor) for other in kept):
            kept.append(place)
    return sorted(kept) if len(kept) > 1 else places


def _by_shape(subject: Subject, found: list[Output]) -> tuple[int, list[int]]:
    """The place of the reconstruction, and of the outputs that are latents."""
    x = subject.x
    places = [n for n, one in enumerate(found) if one.tensor.ndim > 1 and len(one.tensor) == len(x)]
    places = [n for n in places if found[n].tensor.is_floating_point()]
    places = [n for n in places if not (found[n].tensor.numel() == x.numel() and _same(found[n].tensor, x))]
    groups: dict[torch.Size, list[int]] = {}
    for place in places:
        groups.setdefault(found[place].tensor.shape, []).append(place)
    as_large = [n for n in places if found[n].tensor.numel() == x.numel()]
    smaller = {shape: group for shape, group in groups.items() if len(group) > 1 and group[0] not in as_large}
    if smaller:  # then what is as large as x are reconstructions, all of them
        groups = smaller
        as_large.sort(key=lambda n: not found[n].tensor.requires_grad)
    elif len(as_large) > 1:  # as many latents as pixels: the reconstruction has a gradient with respect to the others
        as_large = [n for n in as_large if _depends(found[n].tensor, [found[m].tensor for m in as_large if m != n])]
    for reconstruction in as_large:
        latents = [
            [n for n in group if n != reconstruction]
            for group in groups.values()
            if len([n for n in group if n != reconstruction]) > 1
        ]
        if latents:
            return reconstruction, latents[0]
    shapes = ", ".join(f"{one.place}: {list(one.tensor.shape)}" for one in found)
    raise InputError(
        f"{subject.title}: forward returns {shapes or 'no tensors'}; among these are no reconstruction of shape "
        f"{list(x.shape)} with a mean and a log-variance of one shape; return (reconstruction, mean, log-variance)"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return not moved(a.flatten(), b.flatten())


def _depends(a: Tensor, others: list[Tensor]) -> bool:
    return any(one is not None for one in gradients(a, others))


def gradients(reconstruction: Tensor, of: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a fixed random projection of the reconstruction; None where there is none, or it is zero."""
    wanted = [one for one in of if one.requires_grad]
    if not reconstruction.requires_grad or not wanted:
        return [None] * len(of)
    weights = torch.randn(reconstruction.shape, generator=torch.Generator().manual_seed(1))
    try:
        grads = torch.autograd.grad((reconstruction * weights).sum(), wanted, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise InputError(
            "single gradients cannot pass torch.utils.checkpoint of the old kind; give it use_reentrant=False"
        ) from error
    found = iter(grads)
    every = [next(found) if one.requires_grad else None for one in of]
    return [None if one is None or not one.any() else one for one in every]


def as_vector(grads: Sequence[Tensor | None], of: Sequence[Tensor]) -> Tensor:
    """Gradients as one vector, 0 where there is none."""
    pairs = zip(grads, of, strict=True)
    return torch.cat([(torch.zeros_like(own) if one is None else one).detach().flatten() for one, own in pairs])


def _mean_and_spread(
    still: list[Output], loud: list[Output], reconstruction: int, fixed: list[int], draws: list[Draw]
) -> tuple[int, int, str]:
    """Places of the mean and of what the spread is made from, and how that was found."""
    quiet = gradients(still[reconstruction].tensor, [still[n].tensor for n in fixed])
    noisy = gradients(loud[reconstruction].tensor, [loud[n].tensor for n in fixed])
    means = [n for n, grad in zip(fixed, quiet, strict=True) if grad is not None]
    spreads = [n for n, a, b in zip(fixed, quiet, noisy, strict=True) if a is None and b is not None]
    if len(means) == 1:
        rest = spreads or [n for n in fixed if n not in means]
        spread = next((n for n in rest if re.search("log_?var", (still[n].name or "").lower())), rest[0])
        return means[0], spread, "by replacing the noise"
    for draw in draws:  # a draw that was given the mean itself
        for n in fixed:
            if draw.mean is not None and _same(draw.mean, still[n].tensor):
                return n, next(m for m in fixed if m != n), "by what the draw of z was given"
    named = {meaning(still[n].name): n for n in reversed(fixed)}
    if "mean" in named and len(fixed) > 1:
        return named["mean"], next(m for m in fixed if m != named["mean"]), "by their names"
    if "spread" in named:
        return next(m for m in fixed if m != named["spread"]), named["spread"], "by their names"
    return fixed[0], fixed[1], "by their order alone"


def meaning(name: str | None) -> str:
    """What a name says: `mean`, `spread` or nothing."""
    words = (name or "").lower()
    if any(word in words for word in ("var", "std", "sigma", "scale", "logv")):
        return "spread"
    return "mean" if any(word in words for word in ("mu", "mean", "loc")) else ""


def meant(output: Output) -> str:
    """What the name of an output says that it is: `mean`, `spread` or nothing."""
    return meaning(output.name)


def _measure_noise(subject: Subject, reading: Reading, of_latents: Callable[[Tensor], bool]) -> None:
    """Find f, and mean and standard deviation of ε, from ratios of gradients at ε that are chosen."""
    noise = reading.noise
    if not noise.draws or not noise.reaches:
        return
    if any(draw.stddev is not None for draw in noise.draws):
        _compare_stddev(reading)
        return
    for scale in SCALES:
        at_one = _ratio(subject, reading, of_latents, 1.0, scale)
        if at_one is None:
            return
        _, mean, s, usable = at_one
        if usable.sum() > 20 and float(s[usable].std()) > SPREAD:
            break
    else:
        return
    at_zero = _ratio(subject, reading, of_latents, 0.0, scale)
    at_two = _ratio(subject, reading, of_latents, 2.0, scale)
    if at_zero is None or at_two is None:
        return
    slope = (at_two[0] - at_zero[0]) / 2  # f′(s) times what a unit of the draw does to ε
    usable &= at_zero[3] & at_two[3]
    noise.beside = _beside(*(one[usable] for one in (at_zero[0], slope, mean, s)))
    if noise.beside:
        return
    usable &= slope.abs() > 1e-12
    fits: dict[str, tuple[float, float]] = {}
    for name, (_, _, derivative) in READINGS.items():
        away = (slope.abs() / derivative(s)).log()[usable]
        if len(away) > 20 and away.isfinite().all():
            fits[name] = (float(away.std()), float(away.median().exp()))
    if not fits:
        return
    best = min(fits, key=lambda name: fits[name][0])
    if fits[best][0] > FIT:
        return
    noise.reading, per_draw = best, fits[best][1]
    shift = float((at_zero[0] / READINGS[best][2](s))[usable].median())
    kind_mean, kind_stddev = MOMENTS[noise.draws[0].kind]
    noise.mean, noise.stddev = shift + per_draw * kind_mean, per_draw * kind_stddev


def _sample_noise(subject: Subject, reading: Reading, of_latents: Callable[[Tensor], bool]) -> None:
    """Mean and standard deviation of (z − mean) / σ over many draws, where these are not a line through the draws.

    What is done to a draw may be no line: a clamp, a square, an absolute value.
    """
    noise = reading.noise
    kinds = {draw.kind for draw in noise.draws}
    if not noise.reaches or noise.beside or len(kinds) != 1 or any(draw.stddev is not None for draw in noise.draws):
        return
    draw = torch.rand if kinds == {"uniform"} else torch.randn
    source = torch.Generator().manual_seed(3)
    found: list[Tensor] = []
    for _ in range(SAMPLES):
        seen = Tracer(lambda one: draw(one.shape, generator=source), of_latents)
        try:
            _, mean, s = reading.pick(subject.run(seen))
        except Exception:  # noqa: BLE001 - somebody's code may raise anything
            return
        drawn = [one.call.output for one in seen.draws if of_latents(one.values)]
        call = meeting(seen.calls, drawn, [mean])
        z = call.output if call else None
        if not isinstance(z, Tensor) or z.shape != mean.shape or any(map(partial(_changes, z), seen.calls)):
            return
        noisy = after(seen.calls, drawn)
        noise.turned = kinds == {"uniform"} and any(
            one.name in _TURNS and takes(one, noisy) for one in before(seen.calls, [z])
        )
        found.append(((z - mean) / READINGS[noise.reading or "log-variance"][1](s)).detach())
    standard = torch.stack(found)
    if not standard.isfinite().all() or (noise.reading is None and not noise.turned):
        return
    mean, stddev = float(standard.mean()), float(standard.std())
    if noise.mean is None or noise.stddev is None or max(abs(mean - noise.mean), abs(stddev - noise.stddev)) > LINE:
        noise.mean, noise.stddev = mean, stddev


def _changes(z: Tensor, call: Call) -> bool:
    """Whether a call changes z in place."""
    in_place = is_in_place(call) or call.kwargs.get("inplace") is True
    return in_place and call.output is not None and any(one is z for one in call.inputs[:1]) and call.name != "add_"


def _beside(at_zero: Tensor, slope: Tensor, mean: Tensor, s: Tensor) -> str:
    """Whether z = mean · exp(c s) + ε, where the ratio of the gradients is c · mean at every ε; or mean + f(s) + ε."""
    if len(slope) <= 20 or not float(slope.abs().max()) < 1e-3 * float(at_zero.abs().mean()):
        return ""
    away = mean.abs() > 0.1 * mean.abs().mean()
    factor = (at_zero / mean)[away]
    if len(factor) > 20 and float(factor.std()) < FIT * float(factor.mean().abs()):
        return "mean · σ"
    shifts = [(at_zero / derivative(s)) for _, _, derivative in READINGS.values()]
    if any(len(one) > 20 and float(one.std()) < FIT * float(one.mean().abs()) for one in shifts):
        return "mean + σ"
    return ""


def _ratio(
    subject: Subject, reading: Reading, of_latents: Callable[[Tensor], bool], value: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Gradient to s over gradient to the mean; mean; s; and where both can be relied on."""
    found = subject.try_run(Tracer(constant(value), of_latents), scale)
    if found is None:
        return None
    reconstruction, mean, s = reading.pick(found)
    to_mean, to_s = gradients(reconstruction, [mean, s])
    if to_mean is None:
        return None
    to_s = torch.zeros_like(to_mean) if to_s is None else to_s
    usable = to_mean.isfinite() & to_s.isfinite() & (to_mean.abs() > 1e-4 * to_mean.abs().nan_to_num().max())
    usable &= s.abs() < 20
    return (to_s / to_mean).detach(), mean.detach(), s.detach(), usable


def _compare_stddev(reading: Reading) -> None:
    """A draw that was given mean and standard deviation: compare the latter with functions of s."""
    s = reading.outputs[reading.spread].tensor.detach()
    for draw in reading.noise.draws:
        if draw.stddev is None or draw.stddev.numel() != s.numel():
            continue
        for name, (_, function, _) in READINGS.items():
            if torch.allclose(function(s).flatten(), draw.stddev.flatten(), rtol=1e-3, atol=1e-4):
                reading.noise.reading, reading.noise.mean, reading.noise.stddev = name, 0.0, 1.0
                return


def _ranges(subject: Subject, reading: Reading) -> dict[str, tuple[float, float]]:
    """Least and largest value of each output, over copies whose weights are made larger, and given random signs.

    With 12 choices of signs, the mean of a single latent has one sign throughout by chance in 1 of 4,000 models.
    """
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for scale, signs in [*((scale, None) for scale in RANGE_SCALES), *((1.0, seed) for seed in RANGE_SIGNS)]:
        with torch.no_grad():
            found = subject.try_run(Tracer(constant(0.5)), scale, signs)
        if found is None:
            continue
        for name, tensor in zip(("reconstruction", "mean", "spread"), reading.pick(found), strict=True):
            finite = tensor[tensor.isfinite()]
            if len(finite):
                lows[name] = min(lows.get(name, math.inf), float(finite.detach().min()))
                highs[name] = max(highs.get(name, -math.inf), float(finite.detach().max()))
    return {name: (lows[name], highs[name]) for name in lows}
