"""Pages that are made, not written: the chapters as notebooks, annotated files, and texts from outside of docs/."""

from pathlib import Path

import nbformat

from extension.github import ROOT, TEXTS, to_myst
from extension.tables import MODULES
from vaelab.course import FAST, chapters
from vaelab.files import write_text

MADE = ("api/", "project/", "annotated/")
"""Folders of docs/ whose pages are made; so are the notebooks of docs/course."""


def write(docs: Path) -> None:
    """Write all of them into a folder of sources, and remove those whose file is gone."""
    made: dict[str, str] = {}
    for file in chapters.chapter_files():
        notebook = chapters.site_notebook(file, "fast" if FAST else "full")
        page = f"course/{file.stem}"
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = to_myst(cell.source, f"{page}.py", page, docs)
        made[f"{page}.ipynb"] = nbformat.writes(notebook) + "\n"
    for source, page in TEXTS.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        made[f"{page}.md"] = to_myst(_headings(page, text), source, page, docs)
    for file in [*sorted((ROOT / "reference").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]:
        name = file.relative_to(ROOT).as_posix()
        made[f"annotated/{file.stem}.md"] = f"---\nhide-toc: true\n---\n\n# {name}\n\n:::{{annotated}} {name}\n:::\n"
    for name in ("vaelab", *(f"vaelab.{module}" for module in MODULES)):
        made[f"api/{name}.md"] = f"# {name}\n\n<!-- made: {name} -->\n"
    for path, text in made.items():
        target = docs / path
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_text(target, text)
    for pattern in ("course/*.ipynb", *(f"{folder}*.md" for folder in MADE)):
        for old in docs.glob(pattern):
            if old.relative_to(docs).as_posix() not in made:
                old.unlink()


def _headings(page: str, text: str) -> str:
    title = {"project/overview": "Overview", "project/benchmarks": "Benchmarks"}.get(page)
    return f"# {title}\n{text.partition(chr(10))[2]}" if title else text
