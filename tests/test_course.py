"""The course: every chapter runs, says what it measured, and refuses an unsolved exercise and a wrong formula."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vaelab import course
from vaelab.course import chapters
from vaelab.course.__main__ import main
from vaelab.errors import InputError

CHAPTERS = chapters.chapter_files()
BUDGET = 180  # seconds until a chapter is killed: its fast run is to take 30 on a quiet machine
FAST = {**os.environ, "FAST": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

SMALL = '''# %% [markdown]
# # 9. A small one
#
# It is {{half:.2f}}, and {{tiny:.1e}} is small. [Before](08_before.py).

# %%
from vaelab.course import FAST, quote
quote("half", 0.25 if FAST else 0.5, abs=1e-6)
quote("tiny", 2.5e-7, rel=0.1)

# %% tags=["exercise"]
def double(x):
    """Twice x."""
    # begin solution
    twice = x + x
    return twice
    # end solution

# %% tags=["check"]
assert double(4) == 8
'''


def chapter(folder: Path, text: str = SMALL) -> Path:
    path = folder / "09_small.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem[:2] != "00"), id=path.stem) for path in CHAPTERS],
)
def test_a_chapter_runs_and_quotes_what_it_measures(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vaelab.course", "check", "--fast", path.stem],
        env=FAST, capture_output=True, text=True, timeout=BUDGET, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_at_full_length_measures_what_the_page_tells(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vaelab.course", "check", path.stem],
        env=FAST, capture_output=True, text=True, timeout=4 * BUDGET, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS[:1], ids=lambda path: path.stem)
def test_a_chapter_is_a_script(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)], env=FAST, capture_output=True, text=True, timeout=BUDGET, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


# In each chapter a coefficient, a sign or a reduction of a formula that it teaches. The first is tried by default.
WRONG = {
    "00": [
        ("return 0.5 * (log_variance.exp()", "return 1.0 * (log_variance.exp()"),
        ("mean**2 - 1 - log_variance)", "mean**2 + 1 - log_variance)"),
        ("+ (1 - x) * F.logsigmoid(-logits)", "+ (1 - x) * F.logsigmoid(logits)"),
    ],
    "01": [
        ("shannon = 0.5 * torch.log1p", "shannon = 0.45 * torch.log1p"),
        ("0.5 * (log_variance.exp() + mean**2 - 1", "0.4 * (log_variance.exp() + mean**2 - 1"),
        ("- math.log(len(z))", "- 0.9 * math.log(len(z))"),
    ],
    "02": [
        ("return -0.5 * ((value", "return -0.6 * ((value"),
        ("(log_qz_x - log_pz_x)).sum(-1) * step**2", "(log_qz_x - log_pz_x)).sum(-1) * step"),
        ("groups.logsumexp(-1) - math.log(K)", "groups.logsumexp(-1)"),
        ("toy_gap = 0.5 *", "toy_gap = 0.4 *"),
    ],
    "03": [
        ("score = f * epsilon[:, 0] / sigma", "score = f * epsilon[:, 0] / sigma**2"),
        ("path = 2 * from_c[:, 0]", "path = 1.9 * from_c[:, 0]"),
        ("best_b = d**2 + 3 * sigma**2 + m", "best_b = d**2 + 2 * sigma**2 + m"),
    ],
    "04": [
        ("16 * bernoulli(level / 16, logit)", "15 * bernoulli(level / 16, logit)"),
        ("-torch.expm1(-2 * h / s)", "-torch.expm1(-h / s)"),
        ("/ (2 * sigma**2) - torch.log(sigma)", "/ sigma**2 - torch.log(sigma)"),
    ],
    "05": [
        ("C = W @ W.T + variance * torch.eye(D)", "C = W @ W.T + 1.01 * variance * torch.eye(D)"),
        ("kl = 0.5 * (log_variance.exp() + mean**2", "kl = 0.5 * (log_variance.exp() + 0.99 * mean**2"),
        ("rate = 0.5 * torch.log(eigenvalues.clamp", "rate = 0.51 * torch.log(eigenvalues.clamp"),
        ("distortion + BETA * kl", "distortion + 1.2 * BETA * kl"),
    ],
    "06": [
        ("return 0.5 * (log_variance.exp() + mean**2", "return 0.5 * (log_variance.exp() + 0.8 * mean**2"),
        ("exact_kl = 0.5 *", "exact_kl = 0.52 *"),
        ("return log_px_z + log_pz - log_qz_x", "return log_px_z + 0.9 * log_pz - log_qz_x"),
    ],
    "07": [
        ("return -(p * q.log2()).sum()", "return -(q * q.log2()).sum()"),
        ("table[-1] + start + message % share", "table[-1] + message % share"),
        ("standard.cdf((edges - mean) / torch.exp(0.5 *", "standard.cdf((edges - mean) / torch.exp(0.3 *"),
        ("(model.decoder(CENTERS[z]).sigmoid())", "((1.4 * model.decoder(CENTERS[z])).sigmoid())"),
        ("pop(message, [table_of(log_joint(x.double()).softmax(-1))])", "pop(message, [table_of(weights)])"),
    ],
    "clinic": [
        ("both_means * PIXELS, (distortion + 8 * kl)", "both_means * PIXELS, (distortion + 7 * kl)"),
        ("log_q.logsumexp(1) - math.log(len(train_x))", "log_q.logsumexp(0) - math.log(len(train_x))"),
        ("from_z = 0.5 *", "from_z = 1.0 *"),
    ],
}
CASES = [
    pytest.param(number, *case, id=f"{number}-{place}")
    for number, cases in WRONG.items()
    for place, case in enumerate(cases)
]


def test_every_chapter_has_a_wrong_formula() -> None:
    assert [chapters.find_chapter(number) for number in WRONG] == CHAPTERS


@pytest.mark.slow
@pytest.mark.parametrize(("number", "right", "wrong"), CASES)
def test_a_chapter_with_a_wrong_formula_fails(number: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = chapters.find_chapter(number).read_text()
    assert text.count(right) >= 1
    path = tmp_path / "chapter.py"
    path.write_text(text.replace(right, wrong))
    done = subprocess.run([sys.executable, str(path)], env=FAST, capture_output=True, timeout=BUDGET, check=False)
    assert done.returncode == 1
    assert b"AssertionError" in done.stderr


def test_an_exercise_without_its_solution_keeps_what_stands_around_it() -> None:
    source = 'def f(x):\n    """Doc."""\n    y = 1\n    # begin solution\n    return x + y\n    # end solution\n\ng = 2'
    assert chapters.stub(source) == (
        'def f(x):\n    """Doc."""\n    y = 1\n    raise NotImplementedError("your turn")\n\ng = 2'
    )
    assert chapters.without_markers(source) == 'def f(x):\n    """Doc."""\n    y = 1\n    return x + y\n\ng = 2'


@pytest.mark.parametrize(
    ("value", "form", "told"),
    [(0.5, ":.2f", "0.50"), (-3.14159, "", "−3.14"), (1.27e-5, ":.0e", "1·10⁻⁵"), (0.292, ":.0%", "29%"),
     (2.5e7, ":.1e", "2.5·10⁷"), (12345.6, ":,.0f", "12,346")],
)  # fmt: skip
def test_numbers_are_told_as_in_print(value: float, form: str, told: str) -> None:
    assert chapters.insert_numbers(f"a {{{{n{form}}}}} b", {"n": course.Quote(value, 0.1, 0)}) == f"a {told} b"


def test_a_number_that_nobody_quotes_or_cannot_be_printed_is_named() -> None:
    with pytest.raises(InputError, match="no cell quotes half"):
        chapters.insert_numbers("{{half}}", {})
    with pytest.raises(InputError, match="is no format"):
        chapters.insert_numbers("{{half:.2q}}", {"half": course.Quote(0.5, 0.1, 0)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_quoted_number_is_finite(value: float) -> None:
    with pytest.raises(InputError, match="finite"):
        course.quote("broken", value, rel=0.1)


def test_a_quoted_number_has_a_tolerance_and_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "quoted", {})
    with pytest.raises(InputError, match="tolerance"):
        course.quote("n", 1.0)
    with pytest.raises(InputError, match="no identifier"):
        course.quote("a b", 1.0, rel=0.1)
    assert course.quote("n", 1.0, rel=0.1) == 1.0
    with pytest.raises(InputError, match="twice"):
        course.quote("n", 1.0, rel=0.1)


def test_a_run_is_held_to_the_results(tmp_path: Path) -> None:
    path = chapter(tmp_path)
    full, fast = chapters.write_results(path)
    assert (full.faults, fast.faults) == ([], [])
    assert (full.numbers["half"].value, fast.numbers["half"].value) == (0.5, 0.25)
    assert chapters.check(path, "full").faults == chapters.check(path, "fast").faults == []
    chapter(tmp_path, SMALL.replace("else 0.5", "else 0.501").replace("2.5e-7", "2.7e-7"))
    assert chapters.check(path, "full").faults == ["09_small.py: half = 0.501, but 0.5 ± 1e-06 is told"]
    chapter(tmp_path, SMALL.replace('"tiny"', '"small"').replace("{{tiny", "{{small"))
    assert chapters.check(path, "fast").faults == [
        "09_small.py: small is not recorded", "09_small.py: tiny is not quoted any more",
    ]  # fmt: skip


def test_a_chapter_leaves_no_precision_to_the_next(tmp_path: Path) -> None:
    import torch

    first = SMALL.replace("from vaelab", "import torch\ntorch.set_default_dtype(torch.float64)\nfrom vaelab")
    second = SMALL.replace(
        'quote("half"', 'import torch\nquote("size", torch.ones(1).element_size(), abs=0.1)\nquote("half"'
    )
    try:
        chapters.run(chapter(tmp_path, first), "fast")
        assert torch.get_default_dtype() == torch.float64
        found = chapters.run(chapter(tmp_path, second.replace("{{half", "{{size}}, {{half")), "fast")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.numbers["size"].value == 4


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("assert double(4) == 8", "pass", "09_small.py, cell 3: the check passes before the exercise is solved"),
        ("{{half:.2f}}", "a half", "09_small.py: half is quoted, but never told"),
        ("a small one".title(), "{{other}}", "09_small.py: other is told, but no cell quotes it"),
    ],
)
def test_faults_of_a_chapter_are_found(right: str, wrong: str, fault: str, tmp_path: Path) -> None:
    text = SMALL.replace("A small one", "A Small One").replace(right, wrong)
    assert fault in chapters.run(chapter(tmp_path, text), "fast").faults


def test_a_wrong_solution_ends_the_run_and_the_cell_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        chapters.run(chapter(tmp_path, SMALL.replace("x + x", "x * x")), "fast")
    assert caught.value.__notes__ == ["in 09_small.py, cell 4, which begins 'assert double(4) == 8'"]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [('# %% tags=["check"]\n', "# %%\n", "come in pairs"), ("    # end solution\n", "", "no `# begin solution`")],
)
def test_an_exercise_that_is_not_whole_is_refused(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        chapters.read(chapter(tmp_path, SMALL.replace(right, wrong)))


def test_notebooks_tell_numbers_and_only_one_kind_tells_solutions(tmp_path: Path) -> None:
    path = chapter(tmp_path)
    chapters.write_results(path)
    student, solution = chapters.notebook(path, "student"), chapters.notebook(path, "solution")
    for made in (student, solution):
        assert "It is 0.50, and 2.5·10⁻⁷ is small. [Before](08_before.ipynb)." in made.cells[0].source
        assert made.cells[1].source == chapters.INSTALL
        assert len({cell.id for cell in made.cells}) == len(made.cells)
    assert 'raise NotImplementedError("your turn")' in student.cells[3].source
    assert "twice" not in student.cells[3].source
    assert "twice = x + x" in solution.cells[3].source
    site = chapters.site_notebook(path, "fast")
    assert "It is 0.25" in site.cells[0].source
    assert site.cells[2].cell_type == "markdown" and "your turn" in site.cells[2].source
    assert "hide-input" in site.cells[3].metadata["tags"] and "x + x" in site.cells[3].source


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["student", "solution"])
def test_notebooks_are_made_and_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student's notebook fails at the exercises' checks and nowhere else, one with solutions nowhere."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setattr(sys, "argv", ["vaelab.course", "notebooks", "-o", str(tmp_path), f"--{kind}", "0"])
    assert main() == 0
    (path,) = tmp_path.rglob("*.ipynb")
    assert path.relative_to(tmp_path) == Path(kind) / "00_a_broken_vae.ipynb"
    notebook: Any = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(notebook, timeout=BUDGET, allow_errors=True).execute()
    failed = [
        cell.metadata.get("tags")
        for cell in notebook.cells
        if any(output["output_type"] == "error" for output in cell.get("outputs", []))
    ]
    assert failed == ([["check"]] * 3 if kind == "student" else [])


@pytest.mark.parametrize(
    ("name", "stem"), [("0", "00_a_broken_vae"), ("00", "00_a_broken_vae"), ("broken", "00_a_broken_vae")]
)
def test_a_chapter_is_found_by_number_and_name(name: str, stem: str) -> None:
    assert chapters.find_chapter(name).stem == stem


@pytest.mark.parametrize("name", ["77", "nonsense", "_"])
def test_a_chapter_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: is not one chapter; there are 00_a_broken_vae"):
        chapters.find_chapter(name)


def test_the_command_line_has_one_line_for_wrong_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["vaelab.course", "check", "77"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("vaelab.course: 77: is not one chapter; there are 00_a_broken_vae")


def test_the_commands_that_contributing_tells_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "00_small.py").write_text(SMALL)
    monkeypatch.setattr(chapters, "COURSE", tmp_path)
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = re.findall(r"^python -m (vaelab\.course .*?)(?: +#.*)?$", text, re.MULTILINE)
    assert [command.split()[1] for command in told] == ["results", "check"]
    for command in told:
        monkeypatch.setattr(sys, "argv", command.split())
        assert main() == 0
