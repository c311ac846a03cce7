"""Samples and reconstructions."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vaelab import pictures
from vaelab.config import nearest
from vaelab.errors import InputError
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
from vaelab.generation.geometry import closed_walk
from vaelab.model import Model
from vaelab.noise import generator
from vaelab.priors import StandardNormal
from vaelab.runs import Run, load
from vaelab.words import count

STOPS = 4  # samples on one closed walk, at most
WALK_FRAMES = 48


@dataclass(frozen=True, eq=False)
class Samples:
    """Examples x [n, *event], and the latents z [n, D] that they were decoded from.

    `labels` [n] int64 are what a conditional model was asked for; None for any other.
    """

    x: Tensor
    z: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Examples, and what comes back through the latent space.

    Attributes:
        original, x: the examples and their reconstructions, [n, *event].
        z: the latents between them, [n, D].
        index: position of each example in its split, [n] int64.
    """

    original: Tensor
    x: Tensor
    z: Tensor
    index: Tensor


@torch.no_grad()
def sample(
    run: RunPath,
    n: int = 64,
    *,
    label: str | int | None = None,
    out: Out = None,
    draw: bool = False,
    seed: int = 0,
) -> Samples:
    """New examples: z ~ p(z), then the mean of p(x|z), or with `draw` a draw from it.

    A conditional model takes a `label`, by its name or number. Without it, labels come as often as in its training
    data, in ascending order.

    In a GIF the samples are stops of closed walks, at most four on each, and of one label. Between two stops the
    direction of z turns evenly and its norm changes evenly, so z stays where p(z) has its mass: at norms near the
    square root of D.

    Raises:
        InputError: `n` below 1, a label that the run does not have, a run that cannot be read, or a file that cannot be
            written.
    """
    check_least("n", n, 1)
    run = Run.open(run)
    file = output_file(run, out)
    model = load(run)
    noise = generator(seed, "sample")
    y = _labels(run, model, label, n, noise)
    z = model.sample_latents(n, noise)
    made = Samples(show(model, z, draw, noise, y), z, y)
    asked = "" if label is None else f" of label {label}"
    caption = f"{count(n, 'sample')}{asked}: {shown(draw)}, z ~ {prior_words(model)}, seed {seed}"

    def sheet(made: Samples) -> Image.Image:
        return pictures.grid(made.x, caption=caption) if run.spec.is_picture else pictures.heatmap(made.x, caption)

    def frames(made: Samples) -> list[Image.Image]:
        stops = _stops(n, y)
        walks = torch.stack([closed_walk(made.z[at], WALK_FRAMES) for at in stops], dim=1)
        # Each frame takes the same noise: so a draw changes with z alone, and does not flicker.
        starts = None if y is None else torch.stack([y[at[0]] for at in stops])
        x = torch.stack([show(model, z, draw, generator(seed, "walk"), starts) for z in walks])
        x, text = pictures.clamp(x, f"{caption}, visited on {count(len(stops), 'closed walk')}")
        return [pictures.grid(frame, caption=text) for frame in x]

    return write(file, made, run.spec, draw, sheet, frames, seconds=0.08)


@torch.no_grad()
def reconstruct(
    run: RunPath,
    n: int = 16,
    *,
    split: str = "test",
    out: Out = None,
    draw: bool = False,
    latent: str = "mean",
    seed: int = 0,
) -> Reconstructions:
    """Held-out examples, encoded and decoded. A GIF shows originals and reconstructions in turn.

    Args:
        run: a run folder.
        n: how many examples, spread evenly over the split (neighbors in it may be near copies); all if it has fewer.
        split: which part of the run's data.
        out: the file to write.
        draw: a draw from p(x|z) instead of its mean.
        latent: "mean" of q(z|x), or "sample" from it.
        seed: of the draws.

    Raises:
        InputError: no such split, a run or data that cannot be read, or a file that cannot be written.
    """
    check_least("n", n, 1)
    if latent not in ("mean", "sample"):
        raise InputError(f"latent={latent}: must be mean or sample")
    run = Run.open(run)
    file = output_file(run, out)
    model = load(run)
    examples = examples_of(run, split)
    index = torch.linspace(0, len(examples) - 1, min(n, len(examples)), dtype=torch.float64).round().long()
    noise = generator(seed, "reconstruct")
    found = posteriors(model, examples, index)
    z = torch.cat([q.mean if latent == "mean" else q.sample_with_log_prob(1, noise)[0][0] for q in found])
    made = Reconstructions(
        examples.batch(index), show(model, z, draw, noise, labels_for(model, examples, index)), z, index
    )
    at = "the mean of q(z|x)" if latent == "mean" else "a sample from q(z|x)"
    seeded = f", seed {seed}" if draw or latent == "sample" else ""
    caption = f"{count(len(index), f'{split} example')}; reconstruction: {shown(draw)} at {at}{seeded}"

    def sheet(made: Reconstructions) -> Image.Image:
        return pictures.pairs(made.original, made.x, caption=caption)

    def frames(made: Reconstructions) -> list[Image.Image]:
        both, text = pictures.clamp(torch.stack((made.original, made.x)), caption)
        return [
            pictures.grid(x, caption=f"{name}\n{text}")
            for x, name in zip(both, ("ORIGINAL", "RECONSTRUCTION"), strict=True)
        ]

    return write(file, made, run.spec, draw, sheet, frames, seconds=1.0)


def _labels(run: Run, model: Model, label: str | int | None, n: int, noise: torch.Generator) -> Tensor | None:
    """N labels for a conditional model: the one that was asked for, or drawn as often as in the training data."""
    if model.labels is None:
        if label is not None:
            raise InputError(f"label={label}: {run} is not conditional; `vaelab train cvae` makes a model that is")
        return None
    if label is None:
        return model.labels.sample(n, noise)
    names = run.label_names or tuple(map(str, range(model.labels.classes)))
    if str(label) in names:
        number = names.index(str(label))
    elif str(label).isdigit() and int(label) < model.labels.classes:
        number = int(label)
    else:
        raise InputError(f"label={label}: unknown; {nearest(str(label), names)}")
    return torch.full((n,), number)


def _stops(n: int, y: Tensor | None) -> list[Tensor]:
    """Which of n samples each walk visits: at most four, and of one label if there are labels, in ascending order."""
    counts = [n] if y is None else y.unique_consecutive(return_counts=True)[1].tolist()
    return [at for part in torch.arange(n).split(counts) for at in part.tensor_split(-(-len(part) // STOPS))]


def prior_words(model: Model) -> str:
    """Where the z of samples are from."""
    name = "N(0, I)" if isinstance(model.prior, StandardNormal) else "p(z)"
    return name if model.has_density else f"{name} (an autoencoder is not trained to match it)"
