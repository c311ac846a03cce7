"""What the commands share: the program, options, and how answers are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vaelab.errors import InputError

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
Limit = Annotated[int | None, typer.Option(metavar="N", help="Only the first N examples.", show_default=False)]
ImportanceSamples = Annotated[int, typer.Option(metavar="K", help="Draws of z an example for log p(x).")]


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


def name_and_keys(words: list[str] | None, advice: str) -> tuple[str | None, dict[str, Any]]:
    """Of the words of a command, the one that is no KEY=VALUE, if there is one, and the keys.

    Raises:
        InputError: there are two such words; `advice` ends the message.
    """
    from vaelab.config import parse_override

    given = words or []
    name, *more = [word for word in given if "=" not in word] or [None]
    if more:
        raise InputError(f"{name} and {more[0]}: {advice}")
    return name, dict(parse_override(word) for word in given if "=" in word)


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers with commas between."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text}: write numbers as 0,3,7", param_hint=option) from None


def print_found(found: Any, as_json: bool) -> None:
    """A result with `to_dict` and a text, as asked for."""
    print_json(found.to_dict()) if as_json else print(found)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, default=str, allow_nan=False))


def print_rows(rows: list[Any]) -> None:
    """Rows of cells in aligned columns."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def wrote(out: Path | None, as_json: bool) -> None:
    """Tell which file was written."""
    print_json({"file": str(out)}) if as_json else print(out)
