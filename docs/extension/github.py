"""Texts that are written for GitHub, as MyST: formulae, pictures in two themes, links to files and Python names."""

import os
import posixpath
import re
from pathlib import Path

import vaelab

ROOT = Path(vaelab.__file__).resolve().parents[2]
TEXTS = {
    "README.md": "project/overview",
    "CONTRIBUTING.md": "project/contributing",
    "CHANGELOG.md": "project/changes",
    "benchmarks/README.md": "project/benchmarks",
}
"""Texts from outside of docs/, and the pages that they become."""
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^ *(?P=fence)`*$", re.M | re.S)
_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)" alt="(?P<alt>[^"]+)">\s*</picture>'
)


def to_myst(text: str, source: str, docname: str, docs: Path) -> str:
    """A Markdown text of the repository as the page `docname`.

    Args:
        text: what stands in the file.
        source: the file's path in the repository, to which its links are relative.
        docname: the page it becomes, a path in docs/ without ending.
        docs: the folder that the site is built from, docs/ or a copy of it.
    """

    def target(link: str) -> str:
        path, hash_, anchor = link.partition("#")
        if re.match(r"\w+:", link) or not path:
            return link
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        return _relative(found, docname, docs) + hash_ + anchor

    def outside(part: str) -> str:
        part = re.sub(r"\$`([^`]+)`\$", r"$\1$", part)
        part = re.sub(r"(?<![`}])`(vaelab(?:\.\w+)+)`", r"{py:obj}`\1`", part)
        part = _PICTURE.sub(
            lambda m: f"![{m['alt']}]({m['light']}){{.only-light}}\n![{m['alt']}]({m['dark']}){{.only-dark}}", part
        )
        return re.sub(r"\]\(([^)\s]+)\)", lambda m: f"]({target(m[1])})", part)

    made: list[str] = []
    end = 0
    for block in _FENCE.finditer(text):
        made.append(outside(text[end : block.start()]))
        math = block["language"] == "math"
        made.append(f"{block['indent']}$$\n{block['text']}{block['indent']}$$" if math else block[0])
        end = block.end()
    return "".join([*made, outside(text[end:])])


def page_of(path: str) -> tuple[str, str] | None:
    """The page made from a file of the repository, and the ending of its source; None if there is none."""
    if path in TEXTS:
        return TEXTS[path], ".md"
    folder, _, name = path.partition("/")
    if folder in ("reference", "examples") and name.endswith(".py"):
        return f"annotated/{Path(name).stem}", ".md"
    if folder == "course" and name.endswith(".py"):
        return f"course/{Path(name).stem}", ".ipynb"
    return None


def _relative(path: str, docname: str, docs: Path) -> str:
    """A link from a page to a file of the repository: to the page made from it, if there is one, else to the file."""
    start = posixpath.dirname(docname) or "."
    page = page_of(path)
    if page is not None:
        return posixpath.relpath(f"{page[0]}{page[1]}", start)
    if path.startswith("docs/"):
        return posixpath.relpath(path.removeprefix("docs/"), start)
    return Path(os.path.relpath(ROOT / path, docs / start)).as_posix()
