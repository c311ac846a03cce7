"""`:::{annotated} FILE`: a Python file side by side, what it says on the left and what it does on the right.

Docstrings and lines of comment are what it says, everything else is code. Nothing is left out: the pieces in their
order are the file.
"""

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from extension.github import ROOT


@dataclass(frozen=True)
class Piece:
    """Consecutive whole lines of a file."""

    kind: Literal["prose", "code"]
    text: str
    line: int


def pieces(source: str) -> list[Piece]:
    """A file as docstrings and blocks of comment lines, and the code between them; their texts make up the file."""
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source)
    strings: set[int] = set()  # lines of strings: no comment begins there
    prose: set[int] = set()
    starts: set[int] = set()  # lines at which a piece begins, whatever its kind
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings |= _lines(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = _lines(node.body[0])
            prose |= docstring
            starts |= {min(docstring), max(docstring) + 1}
        if isinstance(node, ast.stmt):
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            after_space = node in tree.body and first > 1 and not lines[first - 2].strip()
            if after_space or isinstance(node, ast.FunctionDef | ast.ClassDef):
                starts.add(first)
    prose |= {n for n, line in enumerate(lines, start=1) if line.lstrip().startswith("#") and n not in strings}
    starts |= {n for n in range(2, len(lines) + 1) if (n in prose) != (n - 1 in prose)}
    cuts = [1, *sorted(starts - {1, len(lines) + 1}), len(lines) + 1]
    return [
        Piece("prose" if first in prose else "code", "".join(lines[first - 1 : end - 1]), first)
        for first, end in pairwise(cuts)
    ]


def _lines(node: ast.expr | ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def rows(source: str) -> list[list[Piece]]:
    """The pieces, grouped: a comment with the code below it, a docstring with the function that it belongs to."""
    made: list[list[Piece]] = []
    found = pieces(source)
    for piece, after in zip(found, [*found[1:], None], strict=True):
        before = made[-1] if made else []
        spoken = any(one.kind == "prose" for one in before)
        docstring = after is not None and _is_docstring(after)
        if _is_docstring(piece):  # it belongs to the definition above it, if no comment has spoken for that
            new = spoken or not before
        elif piece.kind == "prose":
            new = True
        else:  # code without words goes on with code without words; a comment speaks for the code right below it
            goes_on = before[-1:] and before[-1].kind == "code"
            new = not before or (spoken and goes_on) or (docstring and goes_on) or (len(made) == 1 and not goes_on)
        if new:
            made.append([])
        made[-1].append(piece)
    return made


def _is_docstring(piece: Piece) -> bool:
    return piece.kind == "prose" and not piece.text.lstrip().startswith("#")


def said(piece: Piece) -> str:
    """The words of a docstring or of comment lines, without their signs."""
    text = textwrap.dedent(piece.text)
    if text.startswith("#"):
        return "".join(re.sub(r"^# ?", "", line) for line in text.splitlines(keepends=True)).strip()
    return inspect.cleandoc(ast.literal_eval(text.strip()))


def paragraphs(text: str) -> list[nodes.Element]:
    """Text as nodes: indented lines stay as they are, `code` is code, arXiv numbers are links; all else is verbatim."""
    made: list[nodes.Element] = []
    for block in re.split(r"\n\s*\n", text):
        if re.match(r" +", block):
            made.append(nodes.literal_block(block, textwrap.dedent(block), language="text", classes=["formula"]))
            continue
        paragraph = nodes.paragraph()
        for part in re.split(r"(`[^`]+`|arXiv:\d{4}\.\d{4,5})", block):
            if part.startswith("`") and len(part) > 1:
                paragraph += nodes.literal(part, part.strip("`"))
            elif part.startswith("arXiv:"):
                paragraph += nodes.reference(part, part, refuri=f"https://arxiv.org/abs/{part[6:]}", internal=False)
            elif part:
                paragraph += nodes.Text(part)
        made.append(paragraph)
    return made


class Annotated(SphinxDirective):
    """The directive; its argument is a path in the repository."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A container for each row, with one for what is said and one for the code in it."""
        file = ROOT / self.arguments[0]
        self.env.note_dependency(str(file))
        table = nodes.container(classes=["annotated"])
        for row in rows(file.read_text(encoding="utf-8")):
            left, right = nodes.container(classes=["said"]), nodes.container(classes=["done"])
            for piece in row:
                if piece.kind == "prose":
                    left += paragraphs(said(piece))
                elif piece.text.strip():
                    right += _block(piece)
            row_classes = ["annotated-row", *(["whole"] if not right.children else [])]
            sides = (side for side in (left, right) if side.children)
            table += nodes.container("", *sides, classes=row_classes, ids=[f"line-{n}" for n in _definitions(row)])
        return [table]


def _definitions(row: list[Piece]) -> list[int]:
    """The lines of a row that begin a function or a class."""
    numbered = [(piece.line + n, line) for piece in row for n, line in enumerate(piece.text.splitlines())]
    return [number for number, line in numbered if re.match(r"\s*(def|class) ", line)]


def _block(piece: Piece) -> nodes.literal_block:
    text = piece.text.rstrip()
    first = piece.line + len(text) - len(text.lstrip("\n")) if text.startswith("\n") else piece.line
    block = nodes.literal_block(text, text.lstrip("\n"), language="python", linenos=True)
    block["highlight_args"] = {"linenostart": first}
    return block


def setup(app: Sphinx) -> None:
    """Make the directive known."""
    app.add_directive("annotated", Annotated)
