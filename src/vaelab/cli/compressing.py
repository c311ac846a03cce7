"""Commands that make files smaller, and give them back."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaelab.cli.shared import AsJson, Plugin, RunFolder, app, numbers, print_found, wrote

Output = Annotated[Path, typer.Option("-o", "--out", metavar="OUTPUT", help="What to write.", show_default=False)]


@app.command(epilog="Example: vaelab compress runs/codec-grey-mnist-1 pictures/ -o pictures.vae")
def compress(
    run: RunFolder,
    source: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="A folder of pictures, .npy, .npz or name.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The file to write.")] = Path(
        "compressed.vae"
    ),
    split: Annotated[
        str | None, typer.Option(help="Instead of INPUT, a split of the run's own data.", show_default=False)
    ] = None,
    mode: Annotated[Literal["solid", "image"], typer.Option(help="Chain examples, or code each alone.")] = "solid",
    chunk: Annotated[int, typer.Option(metavar="N", help="Examples that are decoded together; 0 for all.")] = 1000,
    tile: Annotated[bool, typer.Option("--tile", help="Cut larger pictures into tiles of the model's size.")] = False,
    verify: Annotated[bool, typer.Option(help="Decode all before the file is written (a report always does).")] = True,
    report: Annotated[
        bool, typer.Option("--report", help="Compare with PNG, WebP, zstd, ... and with -ELBO; slow.")
    ] = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Compress without loss, with a trained model."""
    from vaelab import compression

    options: dict[str, Any] = {"split": split, "mode": mode, "chunk": chunk, "tile": tile}
    if report:
        found = compression.measure(run, source, out, **options, said=lambda what: typer.echo(what, err=True))
    else:
        found = compression.compress(run, source, out, **options, verify=verify)
    print_found(found, as_json)


@app.command(epilog="Example: vaelab decompress runs/codec-grey-mnist-1 pictures.vae -o pictures")
def decompress(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What compress wrote.", show_default=False)],
    out: Output,
    only: Annotated[
        str | None,
        typer.Option(metavar="I,J,...", help="Only these pictures or rows, counted from 0.", show_default=False),
    ] = None,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Give back what was compressed, bit for bit."""
    from vaelab import compression

    chosen = None if only is None else numbers(only, "--only")
    compression.decompress(run, file, out, only=chosen)
    wrote(out, as_json)
