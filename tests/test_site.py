"""The site: it builds without a warning and offline, and every page of it works, in a browser, for everybody."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import vaelab
from vaelab import cli, config, recipes
from vaelab.course import chapters, site

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = shutil.ignore_patterns(*site._MADE)


@pytest.fixture(scope="session")
def extension() -> Iterator[Callable[[str], ModuleType]]:
    """The modules of docs/extension, by name."""
    sys.path.insert(0, str(DOCS))
    yield lambda name: importlib.import_module(f"extension.{name}")
    sys.path.remove(str(DOCS))


# -- what is made from the code ------------------------------------------------------------------------------------

FILES = [*sorted((ROOT / "reference").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_annotated_file_is_the_file(file: Path, extension: Callable[[str], ModuleType]) -> None:
    annotated = extension("annotated")
    source = file.read_text(encoding="utf-8")
    pieces = annotated.pieces(source)
    assert "".join(piece.text for piece in pieces) == source
    assert [piece for row in annotated.rows(source) for piece in row] == pieces
    tree = ast.parse(source)
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
    docstrings = [ast.get_docstring(node) for node in defined]
    comments = [line.strip()[2:] for line in source.splitlines() if line.strip().startswith("# ")]
    said = [annotated.said(piece) for piece in pieces if piece.kind == "prose"]
    assert sorted(text for text in said if text in docstrings) == sorted(text for text in docstrings if text)
    assert [line for text in said if text not in docstrings for line in text.splitlines()] == comments
    for piece in pieces:
        lines = [line for line in piece.text.splitlines() if line.strip()]
        assert (
            source.splitlines()[piece.line - 1 : piece.line - 1 + len(piece.text.splitlines())]
            == piece.text.splitlines()
        )
        if piece.kind == "code":
            assert not any(line.strip().startswith("#") for line in lines)


def test_a_docstring_stands_beside_its_function_and_a_comment_beside_the_code_below(
    extension: Callable[[str], ModuleType],
) -> None:
    source = (
        '"""All."""\n\nimport a\n\nB = """\n# no comment\n"""\n\n\n# one\n# two\ndef f():\n    """Says."""\n    x = 1\n'
        '    # three\n    return x\n\n\nc = 2\n\n\n@a\ndef g():\n    """Goes."""\n    return c\n'
    )
    rows = [[(piece.kind, piece.text.strip()) for piece in row] for row in extension("annotated").rows(source)]
    found = [[(kind, text) for kind, text in row if text] for row in rows]
    assert found == [
        [("prose", '"""All."""')],
        [("code", "import a"), ("code", 'B = """\n# no comment\n"""')],
        [("prose", "# one\n# two"), ("code", "def f():")],
        [("prose", '"""Says."""'), ("code", "x = 1")],
        [("prose", "# three"), ("code", "return x")],
        [("code", "c = 2")],
        [("code", "@a\ndef g():"), ("prose", '"""Goes."""'), ("code", "return c")],
    ]


def test_texts_for_github_become_myst(extension: Callable[[str], ModuleType]) -> None:
    text = (
        "$`a|b`$ and `$HOME`\n\n```math\nx^2\n```\n\n```bash\necho $`x`$\n```\n\n"
        "[one](docs/data.md#levels) [two](reference/vae.py) [3](https://x.y/a.md)\n\n`vaelab.load`\n"
    )
    assert extension("github").to_myst(text, "README.md", "project/overview", DOCS) == (
        "$a|b$ and `$HOME`\n\n$$\nx^2\n$$\n\n```bash\necho $`x`$\n```\n\n"
        "[one](../data.md#levels) [two](../annotated/vae.md) [3](https://x.y/a.md)\n\n{py:obj}`vaelab.load`\n"
    )


def resolve(name: str) -> object:
    """What a dotted name stands for."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_every_name_in_the_pages_is_there(extension: Callable[[str], ModuleType]) -> None:
    pages = {file: file.read_text(encoding="utf-8") for file in DOCS.rglob("*.md")}
    names = {name for text in pages.values() for name in re.findall(r"`(vaelab\.[\w.]+)`", text)}
    papers = tomllib.loads((DOCS / "papers.toml").read_text(encoding="utf-8"))["paper"]
    code = [name for paper in papers for row in paper["equations"] for name in row["code"]]
    assert len(code) > 15
    for name in sorted(names | {name for name in code if "::" not in name}):
        assert resolve(name) is not None or name == "vaelab.objectives.Objective.step", name
    for file, _, definition in (name.partition("::") for name in code if "::" in name):
        line = extension("tables").line_of(file, definition)
        assert re.match(
            rf"(def|class) {definition}\b", (ROOT / file).read_text(encoding="utf-8").splitlines()[line - 1]
        )
    for file, text in pages.items():
        for path, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", text):
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (file.name, name)


def test_every_key_has_a_meaning_and_no_other(extension: Callable[[str], ModuleType]) -> None:
    tables = extension("tables")
    page = tables.configuration_page()
    keys: set[tuple[str, str]] = set()
    for group in ("data", "model", *config.PARTS, "training"):
        sections = [config.FIXED[group]] if group in config.FIXED else [
            config._registry[group][name].section for name in config.names(group)
        ]  # fmt: skip
        keys |= {(group, key) for section in sections for key in section.model_fields}
    for group, key in keys:
        assert f"`{group}.{key}`" in page
    told = tomllib.loads((DOCS / "keys.toml").read_text(encoding="utf-8"))
    for group, entries in told.items():
        for key, value in entries.items():
            inner = value if isinstance(value, dict) else {key: value}
            assert {(group, one) for one in inner} <= keys, key
    assert "| `model.latent_dim` | integer > 0 | `20` | number D of latents |" in page
    assert "| `network.hidden` | integer > 0, or several with commas | `512` |" in page
    assert "| `objective.beta` | number ≥ 0 | `1.0` |" in page


def test_every_command_and_recipe_is_told_with_its_example(extension: Callable[[str], ModuleType]) -> None:
    page = extension("tables").command_pages()
    for command in cli.app.registered_commands:
        assert command.callback is not None and command.epilog is not None
        section = page.partition(f"## vaelab {command.callback.__name__}\n")[2].partition("\n## ")[0]
        assert command.epilog.removeprefix("Example: ") in section
        for option in re.findall(r'"(--[\w-]+)"', str(command.callback.__annotations__)):
            assert option in section
    page = extension("tables").recipe_pages()
    for name in recipes.names():
        assert recipes.load(name).text.rstrip() in page and recipes.load(name).expected in page


def test_docstrings_keep_their_signs(extension: Callable[[str], ModuleType]) -> None:
    assert extension("docstrings").escape("[B, *event], a|b, x_ and `*c_`") == r"[B, \*event], a\|b, x\_ and `*c_`"


# -- the built site ------------------------------------------------------------------------------------------------


def site_test(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of the built site. One process runs them all (`--dist loadgroup`), so it is built once."""
    return pytest.mark.site(pytest.mark.xdist_group("site")(function))


@pytest.fixture(scope="session", params=["without-outputs", pytest.param("complete", marks=pytest.mark.slow)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, from a copy of docs/; a warning is an error. Complete: with the outputs of short experiments."""
    work = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, work / "docs", ignore=MADE)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-j", site.JOBS, "docs", "html"]
    command += ["-D", "nb_execution_mode=off"] if request.param == "without-outputs" else []
    done = subprocess.run(
        command, cwd=work, env={**os.environ, "FAST": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return work / "html"


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.ids.add(value)
            if key == "href" and value:
                (self.loaded if tag == "link" else self.links).append(value)
            if key in ("src", "poster", "data") and value:
                self.loaded.append(value)
            if key == "srcset" and value:
                self.loaded += [one.split()[0] for one in value.split(",")]


@pytest.fixture(scope="session")
def pages(built: Path) -> dict[str, Page]:
    return {path.relative_to(built).as_posix(): Page(path) for path in sorted(built.rglob("*.html"))}


@site_test
def test_every_link_anchor_and_picture_is_there(built: Path, pages: dict[str, Page]) -> None:
    assert {f"course/{file.stem}.html" for file in chapters.chapter_files()} <= pages.keys()
    assert {f"annotated/{file.stem}.html" for file in FILES} <= pages.keys()
    for name, page in pages.items():
        for target in page.loaded + page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert target in page.links or parts.scheme == "data", f"{name} loads {target}"
                continue
            file = (built / name).parent / unquote(parts.path) if parts.path else built / name
            file = Path(os.path.normpath(file))
            assert file.is_file(), f"{name}: {target}"
            anchor = unquote(parts.fragment)
            if anchor and file.suffix == ".html":
                assert anchor in pages[file.relative_to(built).as_posix()].ids, f"{name}: {target}"


@site_test
def test_every_public_name_has_an_entry(built: Path, extension: Callable[[str], ModuleType]) -> None:
    inventory = zlib.decompress((built / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    entries = {line.split(" ", 1)[0] for line in inventory.splitlines() if " py:" in line}
    tables = extension("tables")
    for module in ("vaelab", *(f"vaelab.{name}" for name in tables.MODULES)):
        assert module in entries
        for public in tables.public_names(importlib.import_module(module)):
            same = getattr(vaelab, public, None) is getattr(importlib.import_module(module), public)
            assert (f"vaelab.{public}" if same else f"{module}.{public}") in entries, (module, public)
    page = (built / "reference" / "papers.html").read_text(encoding="utf-8")
    for paper in tomllib.loads((DOCS / "papers.toml").read_text(encoding="utf-8"))["paper"]:
        for row in paper["equations"]:
            for name in row["code"]:
                if "::" not in name:
                    assert f'title="{name}"' in page, f"{name} leads nowhere"


@site_test
def test_the_code_of_an_annotated_page_is_that_of_the_file(built: Path, extension: Callable[[str], ModuleType]) -> None:
    class Code(HTMLParser):
        text, depth, skip = "", 0, False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.depth += tag == "pre"
            self.skip = ("class", "linenos") in attrs

        def handle_endtag(self, tag: str) -> None:
            self.depth -= tag == "pre"
            self.text += "\n" * (tag == "pre")
            self.skip = False

        def handle_data(self, data: str) -> None:
            self.text += data if self.depth and not self.skip else ""

    for file in FILES:
        found = Code()
        found.feed((built / "annotated" / f"{file.stem}.html").read_text(encoding="utf-8"))
        shown = [line for line in found.text.splitlines() if line.strip()]
        pieces = extension("annotated").pieces(file.read_text(encoding="utf-8"))
        code = [line for one in pieces if one.kind == "code" for line in one.text.splitlines() if line.strip()]
        formulae = [line for line in shown if line not in code]
        assert [line for line in shown if line in code] == code
        assert all(line.strip() in file.read_text(encoding="utf-8") for line in formulae)


# -- in a browser --------------------------------------------------------------------------------------------------

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = next(
    (path for path in ("/usr/bin/chromium", shutil.which("chromium")) if path and Path(path).exists()), None
)
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
OVERFLOW = """() => { let most = 0;
    for (let one = document.querySelector('article'); one; one = one.parentElement)
        if (getComputedStyle(one).overflowX !== 'visible') most = Math.max(most, one.scrollWidth - one.clientWidth);
    return most }"""
FORMULAE = """() => [...document.querySelectorAll('.math')].filter(one => !one.querySelector('mjx-container')
    || one.querySelector('[data-mml-node=merror], [mathcolor=red], [fill=red]'))
    .map(one => one.textContent.slice(0, 80))"""
DOLLARS = r"""() => { const copy = document.querySelector('article').cloneNode(true);
    copy.querySelectorAll('pre, code, .math, script, style').forEach(one => one.remove());
    return copy.textContent.match(/\$+[^$\n]{1,80}\$+|\\\(|\\\[|\{\{\w/g) || [] }"""
PICTURES = "() => [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
UNREACHABLE = """() => [...document.querySelectorAll('article *')].filter(one => one.scrollWidth > one.clientWidth + 1
    && one.clientWidth && ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one.tabIndex < 0
    && ![...one.querySelectorAll('a, button')].length).map(one => one.outerHTML.slice(0, 120))"""
AXE = """async rules => (await axe.run(rules ? {runOnly: {type: 'rule', values: rules}} : {})).violations
    .map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' | '))"""
# Axe takes long for these, which have thousands of elements of the same kinds and colors; so it sees the insides of
# code, of formulae, of the navigation and of signatures on one page each. One entry of the navigation keeps its links
# everywhere: what scrolls must have something that the keyboard reaches.
ALIKE = {
    ".highlight pre": "annotated/vae.html",
    "mjx-container": "reference/symbols.html",
    ".sidebar-tree li + li": "index.html",
    ".sig": "api/vaelab.errors.html",
}
FLATTEN = (
    "all => all.forEach(one => document.querySelectorAll(one).forEach(each => each.textContent = each.textContent))"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address(built: Path) -> Iterator[str]:
    from threading import Thread

    with site.serving(built) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def looked_at(names: list[str], complete: bool) -> list[str]:
    """All pages but most listings of source code: one template makes these, so every tenth tells of the others.

    Unless `complete`, one page of each folder.
    """
    listings = [name for name in names if name.startswith("_modules/")]
    others = [name for name in names if name not in listings]
    return others + listings[::10] if complete else [*{name.rpartition("/")[0]: name for name in others}.values()]


def visit(page: Any, url: str) -> None:
    page.goto(url, wait_until="load")
    page.wait_for_function("document.documentElement.dataset.ready === 'true'")


@site_test
def test_pages_work_in_a_browser(
    browser: Any, address: str, pages: dict[str, Page], request: pytest.FixtureRequest
) -> None:
    from axe_playwright_python.base import AXE_SCRIPT

    faults: list[str] = []
    here = [""]
    context = browser.new_context(viewport=WIDE, color_scheme="light", reduced_motion="reduce")
    page = context.new_page()
    page.on("console", lambda m: faults.append(f"{here[0]}: console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(f"{here[0]}: {error}"))
    page.on("requestfailed", lambda r: faults.append(f"{here[0]}: failed: {r.url}"))
    page.on("request", lambda r: r.url.startswith((address, "data:")) or faults.append(f"{here[0]} asks for {r.url}"))
    for name in looked_at(list(pages), "complete" in request.node.callspec.params.values()):
        here[0] = name
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(WIDE)
        visit(page, address + name)
        for script, what in ((FORMULAE, "formula"), (DOLLARS, "raw"), (PICTURES, "picture")):
            faults += [f"{name}: {what}: {one}" for one in page.evaluate(script)]
        page.set_viewport_size(NARROW)
        page.evaluate(DRAWN)  # the page has been told of its new size by then
        if page.evaluate(OVERFLOW) > 0:
            faults.append(f"{name}: {page.evaluate(OVERFLOW)} px too wide at 360")
        faults += [f"{name}: cannot be scrolled by keyboard: {one}" for one in page.evaluate(UNREACHABLE)]
        page.set_viewport_size(WIDE)
        page.evaluate(FLATTEN, [selector for selector, where in ALIKE.items() if where != name])
        page.evaluate(AXE_SCRIPT)
        faults += [f"{name}: {one}" for one in page.evaluate(AXE, None)]
        page.emulate_media(color_scheme="dark")
        faults += [f"{name}, dark: {one}" for one in page.evaluate(AXE, ["color-contrast"])]
    context.close()
    assert not faults, "\n".join(faults)


@site_test
def test_the_pages_can_be_used_by_keyboard(browser: Any, address: str) -> None:
    context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    page = context.new_page()
    first = chapters.chapter_files()[0].stem
    visit(page, f"{address}course/{first}.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#furo-main-content"
    focus = """() => { const one = document.activeElement, style = getComputedStyle(one);
        const { width, height } = one.getBoundingClientRect();
        return [one.tagName, style.outlineStyle !== 'none' || style.boxShadow !== 'none', width * height > 0] }"""
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        tag, marked, visible = page.evaluate(focus)
        if tag == "BODY":
            break
        assert marked and visible, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        seen.append(tag)
    assert "SUMMARY" in seen  # the code that is folded away
    summary = page.locator("details.hide > summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details.hide').open")
    page.set_viewport_size(NARROW)
    visit(page, f"{address}index.html")
    menu = page.locator(".sidebar-tree").get_by_role("link", name="The course", exact=True)
    assert menu.bounding_box()["x"] < 0
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('.sidebar-drawer').getBoundingClientRect().left === 0")
    page.set_viewport_size(WIDE)
    visit(page, f"{address}index.html")
    for wanted in ("Search", "The course"):
        page.keyboard.press("Tab")
        for _ in range(12):
            text = page.evaluate("document.activeElement.placeholder || document.activeElement.textContent.trim()")
            if text == wanted:
                break
            page.keyboard.press("Tab")
        assert text == wanted
    context.close()


@site_test
@pytest.mark.slow
@pytest.mark.parametrize("built", ["complete"], indirect=True)
def test_a_chapter_shows_a_picture_on_its_first_screen(browser: Any, address: str) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    for file in chapters.chapter_files():
        if file.stem == "clinic":
            continue
        visit(page, f"{address}course/{file.stem}.html")
        top = page.evaluate(
            "Math.min(...[...document.querySelectorAll('article img')].map(one => one.getBoundingClientRect().top))"
        )
        assert top < WIDE["height"], (file.stem, top)
        assert page.evaluate("[...document.querySelectorAll('article img')].every(one => one.alt.length > 20)"), (
            file.stem
        )
    context.close()


@site_test
def test_search_finds_a_chapter(browser: Any, address: str) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(f"{address}search.html?q=reparameterization")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a").count() >= 3
    context.close()


@site_test
def test_nothing_is_asked_of_the_network(built: Path) -> None:
    for file in built.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", file.read_text(encoding="utf-8")), file.name
    assert json.loads((built / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")"))[
        "titles"
    ]
