"""The two kinds of failure that vaelab tells its user about in one line.

Both carry the exit code that the command line returns for them, and whether all processes of a training meet them at
once; then only the first process tells.
"""

import os


def process_rank() -> int:
    """Which of the processes that torchrun or `accelerate launch` started this is, from 0; 0 if it is the only one."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


class VaelabError(Exception):
    """Something went wrong that is nobody's wrong input: a full disk, a lost network (exit code 1)."""

    exit_code = 1
    met_by_all = False


class InputError(VaelabError, ValueError):
    """Wrong use or wrong input (exit code 2). The message names the thing and the remedy in one line."""

    exit_code = 2


class CorruptFile(InputError):
    """A compressed file that is damaged, cut short, or none of ours."""


class WrongModel(InputError):
    """A compressed file that another model has written."""
