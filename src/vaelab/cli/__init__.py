"""The command line: parse, call the Python function of the same name, print. No logic of its own.

Answers go to stdout, everything else to stderr. Exit codes: 0 done; 1 failed; 2 wrong use or wrong input;
130 interrupted, after saving. Heavy imports happen inside the commands, so that `--help` is quick.
"""

import os
import sys
from typing import Annotated, NoReturn

import typer

from vaelab import __version__
from vaelab.cli import compressing, fitting, generating, judging  # in the order in which --help lists their commands
from vaelab.cli.shared import app
from vaelab.errors import VaelabError, process_rank

__all__ = ["app", "compressing", "fitting", "generating", "judging", "main"]


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
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except VaelabError as error:
        _fail(str(error), error.exit_code, error.met_by_all)
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "")  # pydantic's, under typer
        _fail(f"{message} (vaelab {_command()}--help tells more)", 2)
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
