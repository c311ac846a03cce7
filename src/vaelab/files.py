"""Files are written whole or not at all."""

import os
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vaelab.errors import InputError


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Write to the yielded temporary path; on success it takes the place of `path`, on failure it is removed.

    Content and name have reached the disk when this is over, so a power cut leaves the old file or the new one. Where
    `path` is a symbolic link, what it leads to is replaced.

    Raises:
        InputError: a device or a pipe, say, is there.
    """
    check_regular(path)
    path = Path(os.path.realpath(path))
    name = (
        path.name if len(path.name) <= 50 else f"{zlib.crc32(os.fsencode(path.name)):08x}"
    )  # a longer one may not fit
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
        if os.name == "posix":
            _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_regular(path: Path) -> None:
    """Raise an InputError if something is there that is no file, and would be lost."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no regular file, and would be lost; name another")


def check_writable(path: Path, example: str) -> None:
    """See that a file can be written there, before any work is done.

    Args:
        example: the name of such a file, for a message.

    Raises:
        InputError: a folder, a device, or no folder that can be written to.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it, such as {path / example}")
    check_regular(path)
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{path}: nothing can be written in the folder {path.parent}; name another one")


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of writes that were killed."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
