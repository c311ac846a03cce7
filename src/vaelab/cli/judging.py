"""Commands that judge a trained model, or somebody's own."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaelab.cli.shared import (
    AsJson,
    ImportanceSamples,
    Limit,
    Plugin,
    RunFolder,
    Seed,
    SplitName,
    app,
    name_and_keys,
    print_found,
    print_json,
)
from vaelab.errors import InputError, VaelabError


@app.command(epilog="Example: vaelab evaluate runs/vae-digits-1 --importance-samples 500")
def evaluate(
    run: RunFolder,
    importance_samples: ImportanceSamples = 100,
    split: SplitName = "test",
    limit: Limit = None,
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
    print_found(result, as_json)


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
    runs = [word for word in given if model is None or "=" not in word]
    if len(runs) > 1 and "=" in runs[1] and not Path(runs[1]).exists():
        raise InputError(f"{runs[1]}: keys are for --model; a run has its own, so leave them out")
    if len(runs) > 1:
        raise InputError(f"{runs[0]} and {runs[1]}: give one run")
    overrides = {} if model is None else dict(parse_override(word) for word in given if "=" in word)
    found = examine(runs[0] if runs else None, model=model, data=data, loss=loss, overrides=overrides)
    print_found(found, as_json)
    return int(strict and bool(found.alarms))


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
    importance_samples: ImportanceSamples = 100,
    split: SplitName = "test",
    limit: Limit = None,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Runs beside each other: settings, numbers with paired tests, curves, pictures."""
    from vaelab import comparison

    how: dict[str, Any] = {"importance_samples": importance_samples, "split": split, "limit": limit, "csv": csv}
    if vary:
        recipe, overrides = name_and_keys(words, "with --vary, give one recipe; all else is KEY=VALUE")
        found = comparison.compare_grid(
            comparison.parse_vary(vary),
            seeds=1 if seeds is None else seeds,
            recipe=recipe,
            data=data,
            epochs=epochs,
            overrides=overrides,
            out=out,
            **how,
        )
    else:
        for name, value in (("--seeds", seeds), ("--data", data), ("--epochs", epochs)):
            if value is not None:
                raise InputError(f"{name} {value}: says how to train, which only --vary does; leave it out")
        found = comparison.compare(words, out=out or Path("compare.html"), progress=True, **how)
    print_json(found.to_dict()) if as_json else print(f"{found}\n\npage: {found.page}")
    if found.failed:
        raise VaelabError(
            f"{len(found.failed)} of the runs failed, first {next(iter(found.failed))}; the others are there"
        )


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
            "--draw/--mean",
            help="Draw from p(x|z), or take its mean. Default: draw but for grey pictures.",
            show_default=False,
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
    print_found(found, as_json)


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
    print_found(found, as_json)


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
    print_found(found, as_json)
