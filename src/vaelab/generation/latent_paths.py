"""Ways through latent space: between examples, and along single latents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vaelab import pictures
from vaelab.errors import InputError
from vaelab.evaluation.latents import latents as measure
from vaelab.evaluation.latents import spread
from vaelab.evaluation.likelihood import examples_of
from vaelab.generation.common import (
    Out,
    RunPath,
    check_least,
    labels_for,
    output_file,
    posteriors,
    show,
    shown,
    write,
)
from vaelab.generation.geometry import PATHS
from vaelab.model import Model
from vaelab.noise import generator
from vaelab.priors import ProductPrior, StandardNormal
from vaelab.runs import Run, load
from vaelab.words import count

MOST_ACTIVE = 10
SECONDS = 0.12  # a frame


@dataclass(frozen=True, eq=False)
class Interpolation:
    """P paths of S steps between the posterior means of two examples each.

    Attributes:
        x, z: along the paths, [P, S, *event] and [P, S, D].
        original: the examples at both ends, [P, 2, *event].
        index: their positions in the split, [P, 2] int64.
    """

    x: Tensor
    z: Tensor
    original: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False)
class Traversal:
    """M latents, each moved in S steps while all others stay.

    Attributes:
        x, z: [M, S, *event] and [M, S, D].
        latents: which ones, [M] int64.
        values: the steps from −span to +span, in standard deviations, [S].
        codes: which category the categorical ones have at each step, [S] int64; None where all are real.
        kl: KL(q(z|x) ‖ p(z)) of each, mean over the split in nats, [M] float64; None where there is no closed form.
        original: the example whose posterior mean the others stay at, [*event].
        index: its position in the split, a scalar int64.
    """

    x: Tensor
    z: Tensor
    latents: Tensor
    values: Tensor
    codes: Tensor | None
    kl: Tensor | None
    original: Tensor
    index: Tensor


# -- interpolation -------------------------------------------------------------------------------------------------


@torch.no_grad()
def interpolate(
    run: RunPath,
    *,
    split: str = "test",
    pairs: int = 4,
    steps: int = 11,
    path: str = "linear",
    out: Out = None,
    draw: bool = False,
    seed: int = 0,
) -> Interpolation:
    """Paths in latent space between the posterior means of two held-out examples. A GIF goes there and back.

    Args:
        run: a run folder.
        split: which part of the run's data.
        pairs: how many pairs of examples; no example comes twice. Where the model is conditional, both have one label.
        steps: points on a path, both ends included.
        path: "linear", or "spherical" (see `vaelab.generation.geometry`).
        out: the file to write.
        draw: draws from p(x|z) instead of its means.
        seed: chooses the examples.

    Raises:
        InputError: an argument out of its range, no such split, a run or data that cannot be read, or a file that
            cannot be written.
    """
    check_least("pairs", pairs, 1)
    check_least("steps", steps, 2)
    if path not in PATHS:
        raise InputError(f"path={path}: must be {' or '.join(PATHS)}")
    run = Run.open(run)
    file = output_file(run, out)
    model = load(run)
    examples = examples_of(run, split)
    if 2 * pairs > len(examples):
        raise InputError(f"pairs={pairs}: at most {len(examples) // 2}, for {split} has {len(examples)} examples")
    noise = generator(seed, "interpolate")
    index = _ends(torch.randperm(len(examples), generator=noise), pairs, labels_for(model, examples, slice(None)))
    ends = torch.cat([q.mean for q in posteriors(model, examples, index)]).unflatten(0, (pairs, 2))
    z = PATHS[path](ends[:, :1], ends[:, 1:], torch.linspace(0, 1, steps)[:, None])
    original = examples.batch(index).unflatten(0, (pairs, 2))
    y = labels_for(model, examples, index[::2])
    x = show(model, z, draw, noise, None if y is None else y[:, None])
    made = Interpolation(x, z, original, index.view(pairs, 2))
    caption = (
        f"{count(pairs, f'{path} path')} between the means of q(z|x) of two {split} examples: "
        f"{shown(draw)}, seed {seed}"
    )
    return write(
        file,
        made,
        run.spec,
        draw,
        sheet=lambda made: _interpolation_sheet(made, caption),
        frames=lambda made: _interpolation_frames(made, caption),
        seconds=SECONDS,
    )


def _ends(order: Tensor, pairs: int, labels: Tensor | None) -> Tensor:
    """The first `pairs` pairs of positions in this order, [2 * pairs]; of one label each, if labels are given."""
    if labels is None:
        return order[: 2 * pairs]
    waiting: dict[int, int] = {}
    ends: list[int] = []
    for position in order.tolist():
        label = int(labels[position])
        if (first := waiting.pop(label, None)) is None:
            waiting[label] = position
        else:
            ends += [first, position]
        if len(ends) == 2 * pairs:
            return torch.tensor(ends)
    raise InputError(f"pairs={pairs}: only {len(ends) // 2} pairs of examples have one label; lower it")


def _interpolation_sheet(made: Interpolation, caption: str) -> Image.Image:
    """A path a row, between its two originals."""
    number, steps = made.x.shape[:2]
    if made.x.ndim != 5:
        names = [f"path {i + 1}" for i in range(number)]
        return pictures.heatmap(
            made.x.flatten(0, 1), f"{caption}. Each path goes from top to bottom.", row_labels=names
        )
    heads = ["original", *(f"{step / (steps - 1):.2g}" for step in range(steps)), "original"]
    return pictures.grid(_between_originals(made).flatten(0, 1), steps + 2, caption=caption, labels=heads)


def _interpolation_frames(made: Interpolation, caption: str) -> list[Image.Image]:
    """There and back: in each row the moving picture between its two originals."""
    x, text = pictures.clamp(_between_originals(made), caption)
    steps = made.x.shape[1]
    sheets: list[Image.Image] = []
    for step in range(steps):
        heads = ["original", f"{step / (steps - 1):.2f}", "original"]
        sheets.append(pictures.grid(x[:, [0, step + 1, -1]].flatten(0, 1), 3, caption=text, labels=heads))
    return sheets + sheets[-2:0:-1]


def _between_originals(made: Interpolation) -> Tensor:
    """[P, S + 2, *event]."""
    return torch.cat((made.original[:, :1], made.x, made.original[:, 1:]), dim=1)


# -- traversal -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def traverse(
    run: RunPath,
    *,
    latents: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 11,
    split: str = "test",
    out: Out = None,
    draw: bool = False,
    seed: int = 0,
) -> Traversal:
    """Move one latent at a time; hold the others at the posterior mean of one held-out example.

    Args:
        run: a run folder.
        latents: which ones. Default: the ten of the largest KL(q(z|x) ‖ p(z)), averaged over the split; without a
            closed form of it, the ten whose posterior means vary most.
        span: from −span to +span standard deviations of the prior N(0, I). Where the prior is another one, or the model
            an autoencoder: standard deviations of the latent's posterior means over the split, around their mean. A
            latent that is one of several categories takes these in turn instead: as many as there are steps, the most
            used ones if there are more, the same ones again if there are fewer.
        steps: points on the way, both ends included.
        split: which part of the run's data.
        out: the file to write.
        draw: draws from p(x|z) instead of its means.
        seed: chooses the example.

    Raises:
        InputError: an argument out of its range, no such split, a run or data that cannot be read, or a file that
            cannot be written.
    """
    check_least("steps", steps, 2)
    if not (math.isfinite(span) and span > 0):
        raise InputError(f"span={span}: must be a number above 0")
    run = Run.open(run)
    file = output_file(run, out)
    model = load(run)
    examples = examples_of(run, split)
    means, kl = measure(model, examples)
    chosen = _choose(latents, spread(means, model.latents) if kl is None else kl)
    noise = generator(seed, "traverse")
    index = torch.randint(len(examples), (), generator=noise)
    values = torch.linspace(-span, span, steps)
    codes = _codes(model, means, steps) if max(chosen) >= model.latents.real else None
    z = _moved(model, means, index, chosen, values, codes)
    made = Traversal(
        x=show(model, z, draw, noise, labels_for(model, examples, index[None])),
        z=z,
        latents=torch.tensor(chosen),
        values=values,
        codes=codes,
        kl=None if kl is None else kl[chosen],
        original=examples.batch(index[None])[0],
        index=index,
    )
    way = _way(model, chosen, span, split)
    caption = (
        f"{'One latent' if len(chosen) == 1 else f'{len(chosen)} latents, one'} at a time {way}, the others "
        f"at the mean of q(z|x) of {split} example {int(index)}: {shown(draw)}" + (f", seed {seed}" if draw else "")
    )
    are_real = [latent < model.latents.real for latent in chosen]
    return write(
        file,
        made,
        run.spec,
        draw,
        sheet=lambda made: _traversal_sheet(made, caption, _heads(made, are_real)),
        frames=lambda made: _traversal_frames(made, caption, _heads(made, are_real)),
        seconds=SECONDS,
    )


def _is_standard(model: Model) -> bool:
    """Whether real latents have the prior N(0, I), and were trained to match it."""
    prior = model.prior.real if isinstance(model.prior, ProductPrior) else model.prior
    return model.has_density and isinstance(prior, StandardNormal)


def _codes(model: Model, means: Tensor, steps: int) -> Tensor:
    """The categories to show, [steps] int64: in order if all can be, else the most used ones over all latents."""
    choices, categorical = model.choices, model.latents.categorical
    order = torch.arange(len(choices))
    if len(choices) > steps:
        blocks = means[:, model.latents.real :].reshape(-1, model.latents.categories)
        used = torch.cat([torch.cdist(part, choices).argmin(-1) for part in blocks.split(1000 * categorical)])
        order = used.bincount(minlength=len(choices)).argsort(descending=True, stable=True)
    return order[torch.arange(steps) % len(order)]


def _moved(
    model: Model, means: Tensor, index: Tensor, chosen: list[int], values: Tensor, codes: Tensor | None
) -> Tensor:
    """Z [M, S, D]: the latents `chosen` moved, the others at the mean of example `index`.

    Real latents go through `values`, in standard deviations of the prior or of their means; others through `codes`.
    """
    z = means[index].repeat(len(chosen), len(values), 1)
    columns = torch.arange(means.shape[1]).split(model.latents.widths)
    for row, latent in enumerate(chosen):
        column = columns[latent]
        if latent >= model.latents.real:
            assert codes is not None
            z[row, :, column] = model.choices[codes]
        elif _is_standard(model):
            z[row, :, column] = values[:, None]
        else:
            found = means[:, column]
            z[row, :, column] = found.mean() + values[:, None] * found.double().std(correction=0).float()
    return z


def _way(model: Model, chosen: list[int], span: float, split: str) -> str:
    """Where the latents go, in words."""
    ways: list[str] = []
    if min(chosen) < model.latents.real:
        of = "of the prior" if _is_standard(model) else f"of its values over the {split} examples"
        ways.append(f"from −{span:g} to +{span:g} standard deviations {of}")
    if max(chosen) >= model.latents.real:
        ways.append("through the categories whose numbers are above")
    return " or ".join(ways)


def _heads(made: Traversal, are_real: list[bool]) -> list[str]:
    """What stands above each step: how many standard deviations, which category, or both."""
    values = [_signed(value) for value in made.values.tolist()] if any(are_real) else []
    codes = [] if made.codes is None else [str(code) for code in made.codes.tolist()]
    return [" | ".join(parts) for parts in zip(*(part for part in (values, codes) if part), strict=True)]


def _choose(latents: Sequence[int] | None, activity: Tensor) -> list[int]:
    """Those that were asked for, checked; else the most active ones."""
    if latents is None:
        return activity.argsort(descending=True, stable=True)[:MOST_ACTIVE].tolist()
    wrong = [latent for latent in latents if not 0 <= latent < len(activity)]
    if wrong or not latents:
        asked = ",".join(map(str, wrong))
        raise InputError(
            f"latents={asked}: the run's {count(len(activity), 'latent')} count from 0 to {len(activity) - 1}"
        )
    return list(latents)


def _traversal_sheet(made: Traversal, caption: str, heads: list[str]) -> Image.Image:
    """A latent a row."""
    names = [f"z{latent}" for latent in made.latents.tolist()]
    if made.kl is not None:
        names = [f"{name} (KL {nats:.1f} nats)" for name, nats in zip(names, made.kl.tolist(), strict=True)]
    x = made.x.flatten(0, 1)
    if made.x.ndim != 5:
        return pictures.heatmap(
            x, f"{caption}. Each latent moves from the top of its block to the bottom.", row_labels=names
        )
    return pictures.grid(x, len(heads), caption=caption, row_labels=names, labels=heads)


def _traversal_frames(made: Traversal, caption: str, heads: list[str]) -> list[Image.Image]:
    """There and back, all latents at once: a picture each."""
    x, text = pictures.clamp(made.x, caption)
    names = [f"z{latent}" for latent in made.latents.tolist()]
    sheets = [
        pictures.grid(x[:, step], min(5, len(names)), caption=f"now at {head}\n{text}", labels=names)
        for step, head in enumerate(heads)
    ]
    return sheets + sheets[-2:0:-1]


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0"
