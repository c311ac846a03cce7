"""The command line: parse, call the Python function of the same name, print. No logic of its own.

Answers go to stdout, everything else to stderr. Exit codes: 0 done; 1 failed; 2 wrong use or wrong input;
130 interrupted, after saving. Heavy imports happen inside the commands, so that `--help` is quick.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from vaelab import __version__
from vaelab.errors import InputError, VaelabError, process_rank

app = typer.Typer(
    name="vaelab",
    help="Train, evaluate and use variational autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="FILE", help="A .png, .gif or .npz file.", show_default=False)
]
Draw = Annotated[bool, typer.Option("--draw", help="Draw from p(x|z); otherwise show its mean.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers.")]
SplitName = Annotated[str, typer.Option("--split", help="train, validation or test.")]


def _load_plugins(names: list[str] | None) -> None:
    if names:
        from vaelab.plugins import load_plugin

        for name in names:
            load_plugin(name)


Plugin = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="A file with parts of your own. It is executed.",
        callback=_load_plugins,
        show_default=False,
    ),
]


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
    from vaelab.config import parse_override
    from vaelab.evaluation import Evaluation
    from vaelab.training import train as run_training

    given = words or []
    recipe, *more = [word for word in given if "=" not in word] or [None]
    if more:
        raise InputError(f"{recipe} and {more[0]}: give one recipe; all else is KEY=VALUE, like model.latent_dim=10")
    overrides = dict(parse_override(word) for word in given if "=" in word)
    run = run_training(
        recipe, data=data, epochs=epochs, seed=seed, out=out, resume=resume, overrides=overrides, progress=True
    )
    if process_rank():  # of several processes, the first one tells
        return
    facts = run.summary()
    if as_json:
        _print_json(facts)
        return
    print(f"{facts['epochs']} epochs, {facts['seconds']:.1f} s", end="")
    print(f", {facts['images_per_second']:,} images/s; the weights of epoch {facts['best_epoch']} are kept")
    print(Evaluation(**facts["numbers"]))
    more = run.plugin_options
    print(f"\nreport:   {run}/report.html\nevaluate: vaelab evaluate {run}{more}")
    print(f"sample:   vaelab sample {run} -o samples.png{more}")


@app.command(epilog="Example: vaelab evaluate runs/vae-digits-1 --importance-samples 500")
def evaluate(
    run: RunFolder,
    importance_samples: Annotated[int, typer.Option(metavar="K", help="Draws of z an example for log p(x).")] = 100,
    split: SplitName = "test",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N examples.", show_default=False)
    ] = None,
    method: Annotated[
        Literal["importance", "annealed", "quadrature"],
        typer.Option(
            help="How log p(x) is found. importance: from below, quick. annealed: from below, and from both sides on "
            "samples of the model; slow. quadrature: exact, for at most two real latents, or few "
            "categories."
        ),
    ] = "importance",
    chains: Annotated[
        int | None, typer.Option(metavar="C", help="Of annealing: chains an example, else 16.", show_default=False)
    ] = None,
    temperatures: Annotated[
        int | None,
        typer.Option(metavar="T", help="Of annealing: steps from prior to posterior, else 200.", show_default=False),
    ] = None,
    split_rate: Annotated[
        bool,
        typer.Option("--split-rate", help="Split the rate: mutual information, total correlation, dimension-wise KL."),
    ] = False,
    gaps: Annotated[
        bool,
        typer.Option("--gaps", help="Approximation and amortization gap: fits q(z|x) to each example by itself."),
    ] = False,
    seed: Seed = 0,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Held-out ELBO, rate, distortion and log p(x) in nats, with error bars."""
    from vaelab.evaluation import Annealing
    from vaelab.evaluation import evaluate as run_evaluation

    asked: dict[str, Any] = {"chains": chains, "temperatures": temperatures}
    given = {name: value for name, value in asked.items() if value is not None}
    result = run_evaluation(
        run,
        importance_samples,
        split,
        limit,
        seed,
        method=method,
        annealing=Annealing(**given) if given else None,
        split_rate=split_rate,
        gaps=gaps,
    )
    _print_json(result.to_dict()) if as_json else print(result)


@app.command(epilog="Example: vaelab compare --vary objective.beta=0.5,1,2,4 --seeds 3 vae --data digits")
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...|[RECIPE] [KEY=VALUE]...",
            help="Run folders; or with --vary, what all runs have in common.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V,...", help="Train all these values, and compare. Several make a grid."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="With --vary: train each with N seeds.")] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="With --vary: as for train.")] = None,
    epochs: Annotated[int | None, typer.Option(help="With --vary: as for train.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The page, else compare.html. With --vary: the folder, else runs/compare-...",
            show_default=False,
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="The table as .csv.", show_default=False)] = None,
    importance_samples: Annotated[int, typer.Option(metavar="K", help="Draws of z an example for log p(x).")] = 100,
    split: SplitName = "test",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N examples.", show_default=False)
    ] = None,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Runs beside each other: settings, numbers with paired tests, curves, pictures."""
    from vaelab import comparison
    from vaelab.config import parse_override

    how: dict[str, Any] = {"importance_samples": importance_samples, "split": split, "limit": limit, "csv": csv}
    if vary:
        recipe, *more = [word for word in words if "=" not in word] or [None]
        if more:
            raise InputError(f"{recipe} and {more[0]}: with --vary, give one recipe; all else is KEY=VALUE")
        found = comparison.compare_grid(
            comparison.parse_vary(vary),
            seeds=1 if seeds is None else seeds,
            recipe=recipe,
            data=data,
            epochs=epochs,
            overrides=dict(parse_override(word) for word in words if "=" in word),
            out=out,
            **how,
        )
    else:
        for name, value in (("--seeds", seeds), ("--data", data), ("--epochs", epochs)):
            if value is not None:
                raise InputError(f"{name} {value}: says how to train, which only --vary does; leave it out")
        found = comparison.compare(words, out=out or Path("compare.html"), progress=True, **how)
    _print_json(found.to_dict()) if as_json else print(f"{found}\n\npage: {found.page}")
    if found.failed:
        raise VaelabError(
            f"{len(found.failed)} of the runs failed, first {next(iter(found.failed))}; the others are there"
        )


@app.command(epilog="Example: vaelab disentanglement runs/vae-sprites-1 --limit 1000")
def disentanglement(
    run: RunFolder,
    split: SplitName = "test",
    limit: Annotated[int, typer.Option(metavar="N", help="Only the first N examples.")] = 2000,
    regressor: Annotated[
        Literal["boosting", "forest"], typer.Option(help="Of DCI. The forest is quicker.")
    ] = "boosting",
    replicates: Annotated[int, typer.Option(metavar="N", help="For standard errors; 0 leaves them out.")] = 20,
    seed: Seed = 0,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """How latents relate to known factors: MIG, DCI, SAP and others."""
    from vaelab.evaluation import disentanglement_of

    found = disentanglement_of(run, split=split, limit=limit, regressor=regressor, replicates=replicates, seed=seed)
    _print_json(found.to_dict()) if as_json else print(found)


@app.command(epilog="Example: vaelab downstream runs/vae-digits-1")
def downstream(
    run: RunFolder,
    split: SplitName = "test",
    limit: Annotated[int, typer.Option(metavar="N", help="Only the first N examples, to fit and to test.")] = 10_000,
    c: Annotated[float, typer.Option("--c", metavar="C", help="Penalty of logistic regression: |w|² / 2C.")] = 1,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """How well latents tell labels, beside as many principal components."""
    from vaelab.evaluation import downstream_of

    found = downstream_of(run, split=split, limit=limit, c=c)
    _print_json(found.to_dict()) if as_json else print(found)


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
    _wrote(out, as_json)


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
    _wrote(out, as_json)


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
    _wrote(out, as_json)


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

    chosen = None if latents is None else _numbers(latents)
    generation.traverse(run, latents=chosen, span=span, steps=steps, split=split, out=out, draw=draw, seed=seed)
    _wrote(out, as_json)


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
    _wrote(out, as_json)


@app.command(epilog="Example: vaelab quality runs/vae-digits-1 --features classifier")
def quality(
    run: RunFolder,
    features: Annotated[
        Literal["raw", "pca", "classifier"], typer.Option(help="What examples are compared by.")
    ] = "pca",
    components: Annotated[int, typer.Option(metavar="D", help="Principal components, for pca.")] = 32,
    limit: Annotated[int, typer.Option(metavar="N", help="At most so many samples.")] = 2000,
    split: SplitName = "test",
    draw: Annotated[
        bool | None,
        typer.Option(
            "--draw/--mean", help="Draw from p(x|z), or take its mean. Default: draw binary data.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """How close samples come to held-out examples, beside real examples."""
    from vaelab.evaluation import sample_quality

    found = sample_quality(
        run, features=features, components=components, limit=limit, split=split, draw=draw, seed=seed
    )
    _print_json(found.to_dict()) if as_json else print(found)


@app.command(epilog="Example: vaelab doctor runs/vae-digits-1")
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN] [KEY=VALUE]...", help="A run folder; or with --model, keys of the data."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="A model of your own. The file is executed.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="What that model is made for.", show_default=False)
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="Its loss, called as loss(reconstruction, x, mean, log_variance).",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is an error or a warning.")] = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> int:
    """What is wrong with a run, or with a model of your own, and what to do about it."""
    from vaelab.config import parse_override
    from vaelab.diagnosis import doctor as examine

    given = words or []
    run, *more = [word for word in given if model is None or "=" not in word] or [None]
    if more:
        raise InputError(f"{run} and {more[0]}: give one run")
    overrides = {} if model is None else dict(parse_override(word) for word in given if "=" in word)
    found = examine(run, model=model, data=data, loss=loss, overrides=overrides)
    _print_json(found.to_dict()) if as_json else print(found)
    return int(strict and bool(found.alarms))


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
            _print_json(
                {key: getattr(recipe, key) for key in ("name", "title", "paper", "expected", "command", "tables")}
            )
        else:
            print(recipe.text, end="")
        return
    rows = [(recipe.name, recipe.title) for recipe in map(shipped.load, shipped.names())]
    _print_json({"recipes": dict(rows)}) if as_json else _print_rows(rows)


@app.command(epilog="Example: vaelab data")
def data(as_json: AsJson = False) -> None:
    """The sources of data that there are."""
    from vaelab.data import sources

    rows = sources()
    if as_json:
        _print_json({"sources": [dict(zip(("name", "description", "status"), row, strict=True)) for row in rows]})
    else:
        _print_rows(rows)


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
        _print_json({"url": url}) if as_json else print(f"{url}  (Ctrl-C ends)")
        sys.stdout.flush()
        if not no_browser:
            site.open_browser(url)
        server.serve_forever()


def _version(asked: bool) -> None:
    if asked:
        print(f"vaelab {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, evaluate and use variational autoencoders."""


def main() -> NoReturn:
    """Run the command line and exit."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except VaelabError as error:
        _fail(str(error), error.exit_code, error.met_by_all)
    except typer.TyperException as error:
        _fail(f"{error.format_message()} (vaelab {_command()}--help tells more)", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        _fail("out of memory: choose a smaller model, training.batch_size or objective.num_samples", 1)


def _fail(message: str, code: int, met_by_all: bool = False) -> NoReturn:
    rank = process_rank()
    if not (rank and met_by_all):
        who = f"vaelab (process {rank})" if rank else "vaelab"
        print(f"{who}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _command() -> str:
    known = {one.callback.__name__ for one in app.registered_commands if one.callback}
    return next((f"{word} " for word in sys.argv[1:2] if word in known), "")


def _print_json(value: Any) -> None:
    print(json.dumps(value, default=str, allow_nan=False))


def _print_rows(rows: list[Any]) -> None:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _wrote(out: Path | None, as_json: bool) -> None:
    _print_json({"file": str(out)}) if as_json else print(out)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text}: write latent numbers as 0,3,7", param_hint="--latents") from None
