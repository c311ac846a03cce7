"""`vaelab learn`: the course in the browser, from a site that came with the package or is built on first use."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from vaelab.course import chapters
from vaelab.errors import InputError, VaelabError

SHIPPED = Path(__file__).parent / "_site"
"""A built site that came with the package."""
JOBS = "12"
"""Processes of Sphinx. It deals out the pages in handfuls; with so many, three chapters run at a time."""
_ROOT = Path(__file__).resolve().parents[3]
_SOURCES = (
    "docs",
    "course",
    "reference",
    "examples",
    "benchmarks",
    "src",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
_MADE = ("*.ipynb", "__pycache__", "annotated", "api", "project", "_build", ".*")
"""What `docs/conf.py` and Python write between the sources."""
_NEEDED = ("sphinx", "myst_nb", "jupytext", "furo", "ipykernel", "sphinx_design", "sphinx_copybutton")


def fingerprint(paths: Iterable[Path]) -> str:
    """A short name for the content of files and folders, without what is made from them."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            parts = file.relative_to(path.parent).parts
            if file.is_file() and not any(fnmatch(part, made) for part in parts for made in _MADE):
                digest.update(f"\0{'/'.join(parts)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def outputs(cache: Path, fast: bool) -> Path:
    """Where a build keeps what the chapters print and draw, for this state of the library and this length."""
    return cache / f"{_length(fast)}-{fingerprint([Path(__file__).parents[1]])}"


def built_site(fast: bool = False) -> Path:
    """The folder of the built site; built if need be, which is told on standard error.

    Args:
        fast: with short experiments. A site that came with the package is used whatever `fast` is.

    Raises:
        InputError: there is no site, and no sources or no programs to build one.
        VaelabError: building failed.
    """
    if (SHIPPED / "index.html").is_file():
        return SHIPPED
    if not (_ROOT / "docs" / "conf.py").is_file():
        raise InputError("this installation has neither the course nor its sources; install vaelab from a clone")
    missing = [name.replace("_", "-") for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'building the course needs {", ".join(missing)}; pip install "vaelab[learn]" brings them')
    import pooch

    cache = Path(pooch.os_cache("vaelab")) / "site"
    site = cache / f"{_length(fast)}-{fingerprint(_ROOT / name for name in _SOURCES)}"
    if not (site / "index.html").is_file():
        _build(site, fast)
    return site


def _length(fast: bool) -> str:
    return "fast" if fast else "full"


def _build(site: Path, fast: bool) -> None:
    """Build in a folder beside, and give it its name when it is whole; sites of older sources are removed."""
    site.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=site.parent, prefix=".building-") as work:
        docs, out = Path(work, "docs"), Path(work, "html")
        shutil.copytree(_ROOT / "docs", docs, ignore=shutil.ignore_patterns(*_MADE))
        environment = {**os.environ, "FAST": str(int(fast)), "VAELAB_NOTEBOOK_CACHE": str(site.parent / "outputs")}
        command = [sys.executable, "-m", "sphinx", "-b", "html", "-j", JOBS, "-d", str(Path(work, "doctrees"))]
        _tell(f"building the course from its sources; once, and some minutes{'' if fast else ' (--fast is quicker)'}")
        _run([*command, str(docs), str(out)], environment)
        try:
            out.rename(site)
        except OSError:
            if not (site / "index.html").is_file():  # else another process was first
                raise
    for kept in (site, outputs(site.parent / "outputs", fast)):
        for old in kept.parent.glob(f"{kept.name.partition('-')[0]}-*"):
            if old != kept:
                shutil.rmtree(old, ignore_errors=True)


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run Sphinx; tell which chapters are done, and at a failure the end of what it said."""
    total, count, said = len(chapters.chapter_files()), 0, list[str]()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                said.append(line)
                if found := re.search(r"course/(\w+)\.ipynb: Executed notebook", line):
                    count += 1
                    _tell(f"{count} of {total} chapters are done: {found[1]}")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.stderr.writelines(said[-40:])
        raise VaelabError("the course could not be built; the last lines of Sphinx stand above")


def page_of(chapter: str | None) -> str:
    """The page of a chapter within the site; the landing page if none is named.

    Raises:
        InputError: there is no such chapter; the message names those that there are.
    """
    if chapter is None:
        return "index.html"
    shipped = [path for path in sorted((SHIPPED / "course").glob("*.html")) if path.stem != "index"]
    return f"course/{chapters.find_chapter(chapter, shipped or None).stem}.html"


class _Quiet(SimpleHTTPRequestHandler):
    """Files alone: no log of requests, and no lists of folders."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        self.send_error(404)


@contextmanager
def serving(site: Path, port: int = 0) -> Generator[ThreadingHTTPServer]:
    """A server of the site on this machine alone; port 0 takes any that is free.

    Raises:
        VaelabError: the port is taken.
    """
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(site)))
    except (OSError, OverflowError) as error:
        raise VaelabError(f"--port {port}: {error}; leave it out to take any that is free") from None
    with server:
        yield server


def open_browser(url: str) -> None:
    """Open a page in the user's browser; a browser of the terminal would keep the server waiting, hence the thread."""
    Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _tell(message: str) -> None:
    print(f"vaelab: {message}", file=sys.stderr, flush=True)
