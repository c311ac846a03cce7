"""Docstrings of the library, which are plain text with `code` between single backquotes, as reStructuredText."""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx


def escape(line: str) -> str:
    """A line with the signs that would begin markup made harmless, outside of code."""
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts
    )


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape all but blocks of literal text, which are indented below an empty line."""
    if what == "data" and lines and "\n".join(lines).strip() == inspect.cleandoc(type(obj).__doc__ or ""):
        lines.clear()  # what a dict is, nobody asks here
    sections = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")
    made: list[str] = []
    literal = in_section = False
    for number, line in enumerate(lines):
        if sections.match(line):
            in_section = True
        if not literal and not in_section and line.startswith("    ") and not lines[number - 1].strip():
            made += ["::", ""]
            literal = True
        if literal and line.strip() and not line.startswith("    "):
            literal = False
        made.append(line if literal else escape(line))
    lines[:] = made


def setup(app: Sphinx) -> None:
    """Before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=400)
