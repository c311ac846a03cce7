"""The chapters: reading, running and checking them, and making notebooks of them.

A chapter is in jupytext's percent format. Two tags mean something: a cell `exercise` holds a solution between the lines
`# begin solution` and `# end solution`, and the cell `check` after it tells right from wrong.
"""

import json
import linecache
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import vaelab.course
from vaelab.course import Quote, quoted
from vaelab.errors import InputError
from vaelab.files import write_text

_BESIDE = Path(__file__).parents[3] / "course"
COURSE: Path | None = _BESIDE if _BESIDE.is_dir() else None
"""The folder of the chapters; None where vaelab was installed without its sources."""

Kind = Literal["student", "solution"]
Length = Literal["full", "fast"]
Node = Any  # nbformat's nodes are dictionaries without a type

INSTALL = """# In Colab and other places without vaelab: install it.
import importlib.util

if importlib.util.find_spec("vaelab") is None:
    %pip install --quiet vaelab"""
_SOLUTION = re.compile(r"^( *)# begin solution\n.*?^ *# end solution\n?", re.DOTALL | re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*(?::([^{}]*))?\}\}")


def chapter_files() -> list[Path]:
    """The chapters in their order, and after them the clinic.

    Raises:
        InputError: vaelab was installed without the course.
    """
    if COURSE is None:
        raise InputError("the course is not part of this installation; clone the repository and install it from there")
    return [*sorted(COURSE.glob("[0-9][0-9]_*.py")), *COURSE.glob("clinic.py")]


def find_chapter(name: str, files: Sequence[Path] | None = None) -> Path:
    """The chapter of a number ("2", "02"), a file name, or a part of its name ("collapse"); among `files` if given.

    Raises:
        InputError: there is none of that name, or more than one.
    """
    files = chapter_files() if files is None else files
    wanted = Path(name).stem.replace("-", "_").lower()
    if wanted.isdigit():
        found = [file for file in files if file.stem.startswith(f"{int(wanted):02}_")]
    else:
        found = [file for file in files if file.stem == wanted] or [file for file in files if wanted in file.stem]
    if len(found) != 1:
        raise InputError(f"{name}: is not one chapter; there are {', '.join(file.stem for file in files)}")
    return found[0]


def title(path: Path) -> str:
    """The chapter's first heading."""
    return next(line[2:] for line in read(path).cells[0].source.splitlines() if line.startswith("# "))


# -- the text ------------------------------------------------------------------------------------------------------


def read(path: Path) -> Node:
    """A chapter as a notebook, as it stands.

    Raises:
        InputError: an exercise is not followed by its check, or holds no solution.
    """
    import jupytext

    notebook: Node = jupytext.read(path, fmt="py:percent")
    kinds = [[tag for tag in _tags(cell) if tag in ("exercise", "check")] for cell in notebook.cells]
    for number, (kind, after) in enumerate(zip(kinds, [*kinds[1:], []], strict=True)):
        if (kind == ["exercise"]) != (after == ["check"]):
            raise InputError(f"{path.name}, cell {number + 1}: an exercise and its check come in pairs")
        if kind == ["exercise"] and not _SOLUTION.search(notebook.cells[number].source + "\n"):
            raise InputError(f"{path.name}, cell {number + 1}: no `# begin solution` and `# end solution`")
    return notebook


def stub(source: str) -> str:
    """An exercise without its solution."""
    return _SOLUTION.sub(r'\1raise NotImplementedError("your turn")\n', source + "\n").rstrip("\n")


def without_markers(source: str) -> str:
    """An exercise with its solution, and without the two lines around it."""
    return re.sub(r"^ *# (begin|end) solution\n", "", source + "\n", flags=re.MULTILINE).rstrip("\n")


def insert_numbers(text: str, numbers: Mapping[str, Quote]) -> str:
    """Put the numbers where their names stand in double braces.

    Raises:
        InputError: a name that no cell quotes, or a format that Python does not know.
    """

    def told(match: re.Match[str]) -> str:
        name, form = match.groups()
        if name not in numbers:
            raise InputError(f"{match[0]}: no cell quotes {name}; run `python -m vaelab.course results`")
        try:
            said = format(numbers[name].value, form or ".3g")
        except ValueError:
            raise InputError(f"{match[0]}: {form!r} is no format of a number") from None
        # 1.2e-06 reads well in code; in a text it is 1.2·10⁻⁶.
        digits, _, exponent = said.partition("e")
        if exponent:
            said = f"{digits}·10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return said.replace("-", "−")

    return _PLACEHOLDER.sub(told, text)


def results_file(path: Path) -> Path:
    """Where a chapter's numbers lie."""
    return path.parent / "results" / f"{path.stem}.json"


def results(path: Path, length: Length) -> dict[str, Quote]:
    """What a run of the chapter has quoted, by name; empty if it was never run."""
    file = results_file(path)
    found = json.loads(file.read_text()) if file.exists() else {}
    return {name: Quote(**quote) for name, quote in found.get(length, {}).items()}


# -- notebooks -----------------------------------------------------------------------------------------------------


def notebook(path: Path, kind: Kind) -> Node:
    """A chapter as a notebook to work with: for students without the solutions, and otherwise with them."""
    from nbformat.v4 import new_code_cell  # pyright: ignore[reportUnknownVariableType]

    made = read(path)
    numbers = results(path, "full")
    for cell in made.cells:
        if cell.cell_type == "markdown":
            text = insert_numbers(cell.source, numbers)
            cell.source = re.sub(r"\]\((\w+)\.py\)", r"](\1.ipynb)", text)  # the other chapters lie beside it
        elif "exercise" in _tags(cell):
            cell.source = stub(cell.source) if kind == "student" else without_markers(cell.source)
    made.cells.insert(1, new_code_cell(INSTALL))
    return _finished(made)


def site_notebook(path: Path, length: Length) -> Node:
    """A chapter as a page of the site: an exercise shows what is asked, its check, and the solution when unfolded."""
    from nbformat.v4 import new_markdown_cell  # pyright: ignore[reportUnknownVariableType]

    made = read(path)
    numbers = results(path, length)
    cells: list[Node] = []
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = insert_numbers(cell.source, numbers)
        elif "exercise" in _tags(cell):
            cells.append(new_markdown_cell(f"```python\n{stub(cell.source)}\n```"))
            cell.source = without_markers(cell.source)
            cell.metadata["tags"] = [*_tags(cell), "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
        if "alt" in cell.metadata:
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": cell.metadata["alt"]}
        cells.append(cell)
    made.cells = cells
    return _finished(made)


def _finished(made: Node) -> Node:
    """With the names of cells and kernel that do not change from one making to the next."""
    made.nbformat, made.nbformat_minor = 4, 5
    for number, cell in enumerate(made.cells, start=1):
        cell.id = f"cell-{number}"
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return made


def _tags(cell: Node) -> list[str]:
    return cast("list[str]", cell.metadata.get("tags", []))


# -- running -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a chapter quoted in one run, what is wrong with it, and how long it took."""

    numbers: dict[str, Quote]
    faults: list[str]
    seconds: float


def run(path: Path, length: Length) -> Outcome:
    """Run a chapter from top to bottom: each exercise's check must refuse the stub and accept the solution.

    What a cell raises comes through, with a note that names the cell.
    """
    import matplotlib as mpl
    import torch
    from matplotlib import pyplot

    mpl.use("Agg")
    torch.set_default_dtype(torch.float32)  # a chapter before may have chosen another
    vaelab.course.FAST = length == "fast"
    quoted.clear()
    faults: list[str] = []
    began = time.perf_counter()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = read(path).cells
    for number, cell in enumerate(cells, start=1):
        if cell.cell_type != "code":
            continue
        name = f"{path.name}, cell {number}"
        if "exercise" in _tags(cell) and _accepts(stub(cell.source), cells[number].source, name, namespace):
            faults.append(f"{name}: the check passes before the exercise is solved")
        try:
            _execute(cell.source, name, namespace)
        except Exception as error:
            error.add_note(f"in {name}, which begins {cell.source.strip().splitlines()[0]!r}")
            raise
        pyplot.close("all")
    faults += _unused(path)
    return Outcome(dict(quoted), faults, time.perf_counter() - began)


def check(path: Path, length: Length) -> Outcome:
    """Run a chapter, and hold what it quotes to course/results."""
    outcome = run(path, length)
    known = results(path, length)
    for name in sorted(known.keys() ^ outcome.numbers.keys()):
        outcome.faults.append(f"{path.name}: {name} is " + ("not quoted any more" if name in known else "not recorded"))
    for name in known.keys() & outcome.numbers.keys():
        if not known[name].allows(outcome.numbers[name].value):
            found, told = outcome.numbers[name].value, known[name]
            outcome.faults.append(
                f"{path.name}: {name} = {found:.6g}, but {told.value:.6g} ± {_slack(told):.2g} is told"
            )
    return outcome


def write_results(path: Path) -> tuple[Outcome, Outcome]:
    """Run a chapter at both lengths, and put what it quotes into course/results."""
    full, fast = run(path, "full"), run(path, "fast")
    content = {
        length: {name: asdict(quote) for name, quote in outcome.numbers.items()}
        for length, outcome in (("full", full), ("fast", fast))
    }
    results_file(path).parent.mkdir(exist_ok=True)
    write_text(results_file(path), json.dumps(content, indent=1) + "\n")
    return full, fast


def _slack(quote: Quote) -> float:
    return quote.abs + quote.rel * abs(quote.value)


def _unused(path: Path) -> Iterator[str]:
    """Numbers that are told but not quoted, and the other way round."""
    text = "".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    told = {match[1] for match in _PLACEHOLDER.finditer(text)}
    for name in sorted(told ^ quoted.keys()):
        yield f"{path.name}: {name} is " + ("told, but no cell quotes it" if name in told else "quoted, but never told")


def _accepts(attempt: str, verdict: str, name: str, namespace: Mapping[str, Any]) -> bool:
    """Whether an exercise's check lets an attempt pass. What it leaves behind is forgotten."""
    forgotten = dict(namespace)
    try:
        _execute(attempt, f"{name}, attempt", forgotten)
        _execute(verdict, f"{name}, check of an attempt", forgotten)
    except Exception:  # noqa: BLE001 - whatever an unfinished exercise leads to
        return False
    return True


def _execute(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Run a cell under a name that a traceback can show lines of."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)
