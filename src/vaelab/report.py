"""What a finished run shows of itself: report.html, README.md (the model card), samples.png, reconstructions.png.

The report is one file without network: figures are inline SVG (`vaelab.plots`), pictures are data URIs, words are in
`templates/`. All numbers come from the validation examples (from training examples where there are no others, and
then it says so); the test examples are left alone.
"""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from vaelab import film, pictures, plots
from vaelab.data import Dataset, DataSpec
from vaelab.diagnosis import run_checks
from vaelab.diagnosis.case import IMPORTANCE_SAMPLES, Case, look
from vaelab.evaluation import Evaluation
from vaelab.evaluation.latents import ACTIVE
from vaelab.files import write_text
from vaelab.noise import generator
from vaelab.priors import StandardNormal
from vaelab.runs import Run
from vaelab.words import count, rounded

SHEET_NUMBERS = 1_500_000  # numbers in a sheet of samples or reconstructions, at most
SPRITE_BYTES = 3_000_000  # of an animation before compression, at most
UNITS = {"perplexity": "codes", "codes_used": "codes", "mmd_squared": "no unit", "commitment": "squared distance",
         "codebook": "squared distance", "offdiagonal": "covariance", "diagonal": "variance"}  # fmt: skip


def publish(run: Run, dataset: Dataset, frames: list[Tensor]) -> None:
    """Write the pictures, the model card, the numbers and the report of a run, each file whole or not at all.

    Args:
        run: a run folder with weights and metrics.
        dataset: its data, on any device; the test split is not read.
        frames: what was kept for the animation, one tensor uint8 [n + 8, C, H, W] a kept epoch: reconstructions of
            the first n ≤ 8 validation examples, then 8 samples. May be empty.
    """
    found = look(run, dataset)
    x, x_hat = _reconstructed(found)
    samples = _sampled(found)
    facts = _facts(found, frames) | {
        "samples_image": plots.data_uri(_sheet(samples)),
        "reconstructions_image": plots.data_uri(pictures.pairs(x, x_hat)),
    }
    page, card = render("report.html.j2", facts), render("card.md.j2", facts)
    pictures.save(_sheet(samples, "Samples: the mean of p(x|z) for z from the prior"), run.path / "samples.png")
    caption = f"Reconstructions of {plots.SPLITS[found.split]} examples: the mean of p(x|z) at the posterior mean of z"
    pictures.save(pictures.pairs(x, x_hat, caption=caption), run.path / "reconstructions.png")
    write_text(run.path / "numbers.json", json.dumps(found.evaluation.to_dict(), indent=1) + "\n")
    write_text(run.path / "README.md", card)
    write_text(run.path / "report.html", page)


# -- what the templates are given ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number with its standard error, if it has one."""

    key: str
    title: str
    value: float
    error: float | None
    unit: str


def numbers(evaluation: Evaluation, dims: int) -> dict[str, Number]:
    """The numbers that have a meaning for the model, by their names in `Evaluation`."""
    e, nats = evaluation, "nats per example"
    bits_error = None if e.log_px_stderr is None else e.log_px_stderr / (math.log(2) * dims)
    rows: list[tuple[str, str, float | None, float | None, str]] = [
        ("log_px", "Log-likelihood log p(x)", e.log_px, e.log_px_stderr, nats),
        ("elbo", "ELBO", e.elbo, e.elbo_stderr, nats),
        ("rate", "Rate", e.rate, e.rate_stderr, nats),
        ("distortion", "Distortion", e.distortion, e.distortion_stderr, nats),
        ("bits_per_dim", "Bits per dimension", e.bits_per_dim, bits_error, "bits"),
        ("active_units", "Active latents", e.active_units, None, f"of {e.latent_dim}"),
    ]
    return {key: Number(key, title, value, error, unit) for key, title, value, error, unit in rows if value is not None}


def _facts(found: Case, frames: list[Tensor]) -> dict[str, Any]:
    run, spec, model = found.run, found.run.spec, found.model
    return {
        "title": f"{stem(run.config.recipe)} on {stem(run.config.data.source)}",
        "data": describe(spec),
        "is_picture": spec.is_picture,
        "levels": spec.levels,
        "raw_bits": math.log2(spec.levels) if spec.levels else None,
        "dims": spec.dims,
        "examples": run.examples,
        "split": plots.SPLITS[found.split],
        "n": len(found.examples),
        "total": found.total,
        "has_density": model.has_density,
        "discrete": model.likelihood.discrete,
        "stochastic": "stochastic" in model.provides,
        "latent_dim": model.latent_dim,
        "latents": model.latents.count,
        "numbers": numbers(found.evaluation, spec.dims),
        "importance_samples": IMPORTANCE_SAMPLES,
        "effective_sample_size": found.evaluation.effective_sample_size,
        "active_threshold": ACTIVE,
        "findings": run_checks.examine(found),
        "illnesses": len(run_checks.ILLNESSES),
        "epochs": len(found.lines),
        "best_epoch": _best_epoch(found),
        "duration": duration(found.lines[-1]["seconds"] if found.lines else 0.0),
        "curves": _curves(found),
        "animation": _animation(found, frames),
        "latent_map": _latent_map(found),
        "kl_bars": _kl_bars(found),
        "command": run.about["command"],
        "evaluate_command": run.command("evaluate") if "test" in found.dataset.splits else None,
        "python_code": f"import vaelab\nmodel = vaelab.load({str(run)!r})\nx = model.sample(16)",
        "made": _made(found),
        "configuration": _configuration(run),
        "vaelab": run.about["vaelab"],
    }


def _best_epoch(found: Case) -> int | None:
    """The epoch whose weights validation chose; None without validation."""
    best = found.run.best()
    return best["epoch"] if best and best["validation"] else None


def _curves(found: Case) -> list[dict[str, Any]]:
    if not found.lines:
        return []
    titles = {"elbo": "ELBO", "rate": "Rate", "distortion": "Distortion", "bound": "Importance-weighted bound"}
    last, best = found.lines[-1], _best_epoch(found)
    parts = [part for part in plots.SPLITS if last[part]]
    # What an objective or a model tells beside the four, if it tells it of all these examples.
    told = [metric for metric in last["train"] if metric != "loss" and all(metric in last[part] for part in parts)]
    curves: list[dict[str, Any]] = []
    for metric in [*(name for name in titles if name in told), *(name for name in told if name not in titles)]:
        title = titles.get(metric, metric.replace("_", " ").capitalize())
        unit = UNITS.get(metric, "nats per example")
        curves.append(
            {
                "metric": metric,
                "title": title,
                "unit": unit.split(" per ")[0],
                "drawing": plots.curve(found.lines, metric, title, best, unit),
                "ends": {plots.SPLITS[part]: last[part][metric] for part in parts},
            }
        )
    return curves


def _latent_map(found: Case) -> dict[str, Any] | None:
    if not found.means.isfinite().all():
        return None
    labels = None if found.examples.labels is None else found.examples.labels.cpu()
    groups = plots.label_groups(labels, found.dataset.label_names)
    prior = found.model.has_density and isinstance(found.model.prior, StandardNormal)
    return {
        "drawing": plots.latent_map(found.means, groups, prior),
        "grouped": bool(groups),
        "too_many_labels": plots.MAX_LABELS if labels is not None and not groups else None,
        "prior": prior,
    }


def _kl_bars(found: Case) -> dict[str, Any] | None:
    if found.kl is None or not found.kl.isfinite().all():
        return None
    return {
        "drawing": plots.kl_bars(found.kl, found.active),
        "sum": float(found.kl.sum()),
        "largest": float(found.kl.max()),
        "active": int(found.active.sum()),
        "shown": min(len(found.kl), plots.MAX_BARS),
    }


def _made(found: Case) -> list[tuple[str, str]]:
    run = found.run
    about, data, training = run.about, run.config.data, run.config.training
    best = run.best()
    kept = f"epoch {best['epoch']}" if best else "the last"
    return [
        ("data", f"{data.source}: {describe(run.spec)}"),
        ("binarization", data.binarize),
        ("examples", ", ".join(f"{size:,} {plots.SPLITS.get(name, name)}" for name, size in about["examples"].items())),
        ("fingerprint of the data", about["fingerprint"][:16]),
        ("epochs", f"{len(found.lines)}; weights kept: {kept}"),
        ("parameters", f"{sum(p.numel() for p in found.model.parameters()):,}"),
        ("seeds", f"training {training.seed}, data {data.seed}"),
        ("duration", duration(found.lines[-1]["seconds"] if found.lines else 0.0)),
        ("begun", about["created"]),
        ("versions", f"vaelab {about['vaelab']}, torch {about['torch']}, Python {platform.python_version()}"),
    ]


def _configuration(run: Run) -> list[tuple[str, str]]:
    """Every key of the configuration by its dotted path."""
    rows = [("recipe", run.config.recipe)]
    for group, keys in run.config.to_dict().items():
        if isinstance(keys, Mapping):
            rows += [(f"{group}.{key}", _plain(value)) for key, value in keys.items()]
    return rows


# -- pictures ------------------------------------------------------------------------------------------------------


def _sampled(found: Case) -> Tensor:
    """Means of p(x|z) at draws of z from the prior."""
    noise = generator("report", device=found.examples.device)
    return found.model.sample(_sheet_size(found.run.spec, 64), generator=noise).cpu()


def _reconstructed(found: Case) -> tuple[Tensor, Tensor]:
    """The first examples, and the means of p(x|z) at their posterior means."""
    shown = found.examples.head(_sheet_size(found.run.spec, 32) // 2)
    x = shown.batch()
    return x.cpu(), found.model.reconstruct(x, y=shown.labels).cpu()


def _sheet(x: Tensor, caption: str | None = None) -> Image.Image:
    return pictures.grid(x, caption=caption) if x.ndim == 4 else pictures.heatmap(x, caption)


def _sheet_size(spec: DataSpec, most: int) -> int:
    """How many examples a sheet shows: a multiple of 8, at least 8, fewer where they are large."""
    return max(8, min(most, SHEET_NUMBERS // spec.dims) // 8 * 8)


def _animation(found: Case, frames: list[Tensor]) -> dict[str, Any] | None:
    """The originals, and strips of their reconstructions and of samples: one row a frame."""
    if not frames:
        return None
    originals = film.originals(found.dataset[found.split])[0].cpu()
    small = [plots.to_tile(frame) for frame in frames]
    every = -(-len(small) * small[0].numel() // SPRITE_BYTES)
    kept = range(len(frames))[::-every][::-1]  # the last frame always
    epochs = plots.frame_epochs(len(frames), len(found.lines))
    rows = torch.stack([small[index] for index in kept])
    first = plots.to_tile((originals.clamp(0, 1) * 255).round().to(torch.uint8))[None]
    strips = {"Originals": first, "Reconstructions": rows[:, : len(originals)], "Samples": rows[:, len(originals) :]}
    return {
        "epochs": [epochs[index] for index in kept],
        "strips": [plots.strip(title, strip, film.EXAMPLES) for title, strip in strips.items()],
    }


# -- words ---------------------------------------------------------------------------------------------------------


def describe(spec: DataSpec) -> str:
    """What an example is, in words: "grey pictures of 8 × 8 pixels with 17 levels"."""
    values = {"binary": "values 0 or 1", "levels": f"{spec.levels} levels", "real": "real values"}[spec.kind]
    if spec.is_picture:
        channels, height, width = spec.shape
        return f"{'grey' if channels == 1 else 'color'} pictures of {height} × {width} pixels with {values}"
    return f"vectors of {' × '.join(map(str, spec.shape))} numbers with {values}"


def duration(seconds: float) -> str:
    """For example 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 59.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    words = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return words.replace(" ", "\u00a0")


def markdown(text: str) -> str:
    """Text in one line that Markdown and HTML leave as it is."""
    line = re.sub(r"[^\S\u00a0]+", " ", text).strip()
    return re.sub(r"([\\`*_{}\[\]<>#|&!])", r"\\\1", line)


def _plain(value: Any) -> str:
    """A value of the configuration as text: `200, 200`."""
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def stem(name: str) -> str:
    """The name of a recipe or a source without its folder and ending."""
    return Path(name).stem or name


def render(template: str, facts: Mapping[str, Any]) -> str:
    """A template of `templates/` with its facts filled in."""
    environment = Environment(
        loader=PackageLoader("vaelab"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=not template.endswith(".html.j2"),
        lstrip_blocks=True,
    )
    environment.filters.update(rounded=rounded, markdown=markdown, count=count)  # type: ignore[arg-type]
    return environment.get_template(template).render(facts)
