"""Commands that train, and that tell what there is to train with."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from vaelab.cli.shared import AsJson, Plugin, app, name_and_keys, print_json, print_rows
from vaelab.errors import process_rank


@app.command(epilog="Example: vaelab train vae --data mnist data.binarize=dynamic --epochs 20")
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A recipe (default: vae) and configuration keys."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A name, a folder of pictures, an .npy or .npz file, hf:owner/name."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often all training data are seen.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and noise.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run folder to make.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe and write its run folder (default: digits, in runs/)."""
    from vaelab.evaluation import Evaluation
    from vaelab.training import train as run_training

    recipe, overrides = name_and_keys(words, "give one recipe; all else is KEY=VALUE, like model.latent_dim=10")
    run = run_training(
        recipe, data=data, epochs=epochs, seed=seed, out=out, resume=resume, overrides=overrides, progress=True
    )
    if process_rank():  # of several processes, the first one tells
        return
    facts = run.summary()
    if as_json:
        print_json(facts)
        return
    print(f"{facts['epochs']} epochs, {facts['seconds']:.1f} s", end="")
    print(f", {facts['images_per_second']:,} images/s; the weights of epoch {facts['best_epoch']} are kept")
    print(Evaluation(**facts["numbers"]))
    print(f"\nreport:   {run}/report.html\nevaluate: {run.command('evaluate')}")
    print(f"sample:   {run.command('sample', '-o', 'samples.png')}")


@app.command(epilog="Example: vaelab recipes linear-vae")
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one whole.")] = None,
    as_json: AsJson = False,
) -> None:
    """The recipes that there are; or one, whole."""
    from vaelab import recipes as shipped

    if name is not None:
        recipe = shipped.load(name)
        if as_json:
            print_json(
                {key: getattr(recipe, key) for key in ("name", "title", "paper", "expected", "command", "tables")}
            )
        else:
            print(recipe.text, end="")
        return
    rows = [(recipe.name, recipe.title) for recipe in map(shipped.load, shipped.names())]
    print_json({"recipes": dict(rows)}) if as_json else print_rows(rows)


@app.command(epilog="Example: vaelab data")
def data(as_json: AsJson = False) -> None:
    """The sources of data that there are."""
    from vaelab.data import sources

    rows = sources()
    if as_json:
        print_json({"sources": [dict(zip(("name", "description", "status"), row, strict=True)) for row in rows]})
    else:
        print_rows(rows)


@app.command(epilog="Example: vaelab learn collapse")
def learn(
    chapter: Annotated[
        str | None, typer.Argument(metavar="[CHAPTER]", help="A number, a name, or a part of one; or clinic.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Serve, and open no browser.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Build with short experiments.")] = False,
    port: Annotated[int, typer.Option(metavar="N", help="Port of the server; 0 takes any that is free.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Open the course in the browser, served from this machine until Ctrl-C."""
    from vaelab.course import site

    page = site.page_of(chapter)
    with site.serving(site.built_site(fast), port) as server, suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{server.server_port}/{page}"
        print_json({"url": url}) if as_json else print(f"{url}  (Ctrl-C ends)")
        sys.stdout.flush()
        if not no_browser:
            site.open_browser(url)
        server.serve_forever()
