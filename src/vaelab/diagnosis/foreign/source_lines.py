"""Lines of somebody's source: where they are, what they say, and how to change them."""

import inspect
import linecache
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from vaelab.diagnosis.foreign.tracing import Call


def line_of(call: Call | None) -> str:
    """`file.py:23`, or nothing."""
    return f"{Path(call.file).name}:{call.line}" if call and call.file else ""


def text_of(call: Call | None) -> str:
    """What stands in that line."""
    return linecache.getline(call.file, call.line).strip() if call and call.file else ""


def change(call: Call | None, rewrite: Callable[[str], str], otherwise: str) -> str:
    """The line to change and what to write there; `otherwise` where the text does not show how to rewrite it."""
    where, text = line_of(call), text_of(call)
    new = rewrite(text)
    if where and text and new != text:
        return f"{where}: write  {new}"
    return told_at(where, otherwise, text) if where else otherwise


def told_at(where: str, what: str, text: str) -> str:
    """What to do in a line, and what stands there, if that is known."""
    return f"{where}: {what}" + (f"  (there stands: {text})" if text else "")


def leave(text: str) -> str:
    """No rewriting: `change` then says what to do in words."""
    return text


def assigned(module: nn.Module, attribute: str) -> Call | None:
    """The one line of its class that assigns this attribute."""
    try:
        lines, start = inspect.getsourcelines(type(module))
        file = inspect.getsourcefile(type(module)) or ""
    except (OSError, TypeError):
        return None
    found = [n for n, line in enumerate(lines) if re.search(rf"\bself\.{attribute}\s*=[^=]", line)]
    return Call("", file, start + found[0], [], None) if attribute and len(found) == 1 else None


def file_of(kind: type) -> str:
    """The file that a class is written in; none of what was typed into a notebook or at a prompt."""
    try:
        return inspect.getfile(kind)
    except (OSError, TypeError):
        return ""


def line_with(thing: Any, *words: str, first: bool = False) -> tuple[str, str]:
    """Where the source of a class or function has one of these words last: (`file.py:23`, its text), or two blanks.

    Args:
        first: where it has one first.
    """
    try:
        lines, start = inspect.getsourcelines(thing)
        file = inspect.getsourcefile(thing) or ""
    except (OSError, TypeError):
        return "", ""
    for number in range(len(lines)) if first else reversed(range(len(lines))):
        if any(word in lines[number].partition("#")[0] for word in words):
            return f"{Path(file).name}:{max(1, start) + number}", lines[number].strip()
    return "", ""
