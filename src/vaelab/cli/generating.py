"""Commands that use a trained model: draw, reconstruct, walk through latents, encode."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vaelab.cli.shared import AsJson, Draw, Out, Plugin, RunFolder, Seed, SplitName, app, numbers, wrote


@app.command(epilog="Example: vaelab sample runs/vae-digits-1 -n 64 -o samples.png")
def sample(
    run: RunFolder,
    number: Annotated[int, typer.Option("-n", metavar="N", help="How many.")] = 64,
    label: Annotated[
        str | None, typer.Option(metavar="L", help="Of a conditional model: a label's name or number.")
    ] = None,
    out: Out = Path("samples.png"),
    draw: Draw = False,
    seed: Seed = 0,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """New examples: z from the prior, x from the decoder."""
    from vaelab import generation

    generation.sample(run, number, label=label, out=out, draw=draw, seed=seed)
    wrote(out, as_json)


@app.command(epilog="Example: vaelab reconstruct runs/vae-digits-1 -n 16 -o reconstructions.png")
def reconstruct(
    run: RunFolder,
    number: Annotated[int, typer.Option("-n", metavar="N", help="How many.")] = 16,
    split: SplitName = "test",
    out: Out = Path("reconstructions.png"),
    draw: Draw = False,
    latent: Annotated[Literal["mean", "sample"], typer.Option(help="Mean of q(z|x), or a sample from it.")] = "mean",
    seed: Seed = 0,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Held-out examples beside what comes back through the latent space."""
    from vaelab import generation

    generation.reconstruct(run, number, split=split, out=out, draw=draw, latent=latent, seed=seed)
    wrote(out, as_json)


@app.command(epilog="Example: vaelab interpolate runs/vae-digits-1 -o walk.gif")
def interpolate(
    run: RunFolder,
    pairs: Annotated[int, typer.Option("-n", metavar="N", help="How many pairs.")] = 4,
    steps: Annotated[int, typer.Option(help="Pictures on a path, both ends included.")] = 11,
    path: Annotated[Literal["linear", "spherical"], typer.Option(help="Kind of path.")] = "linear",
    split: SplitName = "test",
    out: Out = Path("interpolation.png"),
    draw: Draw = False,
    seed: Seed = 0,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Paths in latent space between pairs of held-out examples."""
    from vaelab import generation

    generation.interpolate(run, split=split, pairs=pairs, steps=steps, path=path, out=out, draw=draw, seed=seed)
    wrote(out, as_json)


@app.command(epilog="Example: vaelab traverse runs/vae-digits-1 --latents 0,3,7 -o traversal.png")
def traverse(
    run: RunFolder,
    latents: Annotated[
        str | None, typer.Option(metavar="I,J,...", help="Which latents. Default: the ten most active.")
    ] = None,
    span: Annotated[float, typer.Option(help="From -span to span, in prior standard deviations.")] = 3.0,
    steps: Annotated[int, typer.Option(help="Pictures a latent.")] = 11,
    split: SplitName = "test",
    out: Out = Path("traversal.png"),
    draw: Draw = False,
    seed: Seed = 0,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Move one latent at a time and hold the others still."""
    from vaelab import generation

    chosen = None if latents is None else numbers(latents, "--latents")
    generation.traverse(run, latents=chosen, span=span, steps=steps, split=split, out=out, draw=draw, seed=seed)
    wrote(out, as_json)


@app.command(epilog="Example: vaelab encode runs/vae-digits-1 --data digits -o latents.npz")
def encode(
    run: RunFolder,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="An .npz or .csv file.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="What to encode. Default: the run's own data.")
    ] = None,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Posterior mean and scale of every example."""
    from vaelab import generation

    generation.encode(run, data=data, out=out)
    wrote(out, as_json)
