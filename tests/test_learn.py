"""`vaelab learn`: the chapter that is named, a site that is whole, served from this machine, and a clean end."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vaelab import cli
from vaelab.course import chapters, site
from vaelab.errors import InputError, VaelabError

COURSE = ("00_a_broken_vae", "02_the_evidence_lower_bound", "06_collapse", "clinic")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site of four chapters that came with the package."""
    folder = tmp_path / "_site"
    (folder / "course").mkdir(parents=True)
    for name in ("index", "course/index", *(f"course/{name}" for name in COURSE)):
        (folder / f"{name}.html").write_text(f"this is {name}")
    monkeypatch.setattr(site, "SHIPPED", folder)
    return folder


def test_a_chapter_is_found_by_number_name_or_part_of_it(shipped: Path) -> None:
    for name in ("2", "02", "evidence", "02_the_evidence_lower_bound"):
        assert site.page_of(name) == "course/02_the_evidence_lower_bound.html"
    assert site.page_of("collapse") == "course/06_collapse.html"
    assert site.page_of("clinic") == "course/clinic.html"
    assert site.page_of(None) == "index.html"
    for name in ("9", "nothing", "e"):
        with pytest.raises(InputError, match=f"{name}: .*00_a_broken_vae, .*clinic"):
            site.page_of(name)


def test_an_unknown_chapter_is_one_line_and_nothing_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(site, "built_site", lambda fast: pytest.fail("built for nothing"))
    monkeypatch.setattr(sys, "argv", ["vaelab", "learn", "nothing"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    said = capsys.readouterr()
    assert exit_.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and chapters.chapter_files()[0].stem in said.err


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def test_it_is_served_on_this_machine_alone_until_ctrl_c(shipped: Path) -> None:
    program = f"""
import sys, webbrowser
from pathlib import Path
from vaelab import cli
from vaelab.course import site
site.SHIPPED = Path({str(shipped)!r})
webbrowser.open = lambda url: Path("opened").write_text(url)
sys.argv = ["vaelab", "learn", "collapse", "--json"]
cli.main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        assert it.stdout is not None and it.stderr is not None
        url = json.loads(it.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:") and url.endswith("/course/06_collapse.html")
        assert get(url) == "this is course/06_collapse"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url.rpartition("/")[0] + "/../../../etc/passwd")
        it.send_signal(signal.SIGINT)
        assert it.wait(30) == 0
        assert it.stderr.read() == "" and it.stdout.read() == ""
    assert Path("opened").read_text() == url


def test_a_port_that_is_taken_is_one_line(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with site.serving(shipped) as server:
        for port in (server.server_port, 70_000):
            with pytest.raises(VaelabError, match=f"--port {port}: .* leave it out"), site.serving(shipped, port):
                pass


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_NEEDED", ("sphinx", "myst_nothing"))
    with pytest.raises(InputError, match=r'needs myst-nothing; pip install "vaelab\[learn\]"'):
        site.built_site()
    monkeypatch.setattr(site, "_ROOT", tmp_path)
    with pytest.raises(InputError, match="neither the course nor its sources"):
        site.built_site()


# -- building ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources whose site is one page, built by Sphinx in a second; the cache is empty."""
    root = tmp_path / "checkout"
    for name in site._SOURCES:
        target = root / name
        if target.suffix:
            root.mkdir(exist_ok=True)
            target.write_text(name)
        else:
            target.mkdir(parents=True)
    (root / "docs" / "conf.py").write_text("project = 'one page'\n")
    (root / "docs" / "index.rst").write_text("Title\n=====\n\nFirst.\n")
    monkeypatch.setattr(site, "_ROOT", root)
    monkeypatch.setattr(site, "SHIPPED", tmp_path / "nowhere")
    monkeypatch.setattr("pooch.os_cache", lambda name: str(tmp_path / "cache" / name))
    return root


def test_it_is_built_once_and_again_when_a_source_changes(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = site.built_site()
    assert "First." in (first / "index.html").read_text()
    assert "building the course" in capsys.readouterr().err
    before = (first / "index.html").stat().st_mtime_ns
    (checkout / "docs" / "course").mkdir()
    (checkout / "docs" / "course" / "made.ipynb").write_text("what the build itself writes")
    assert site.built_site() == first and (first / "index.html").stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""
    fast = site.built_site(fast=True)
    (checkout / "docs" / "index.rst").write_text("Title\n=====\n\nSecond.\n")
    second = site.built_site()
    assert "Second." in (second / "index.html").read_text()
    assert not first.exists() and fast.exists()  # the older one of the same length is gone
    assert sorted(path.name for path in second.parent.iterdir()) == sorted([fast.name, second.name])


def test_half_a_site_is_never_served(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "docs" / "conf.py").write_text(
        "def fail(app, error):\n    assert (app.outdir / 'index.html').is_file()\n    raise SystemExit(3)\n"
        "def setup(app):\n    app.connect('build-finished', fail)\n"
    )
    with pytest.raises(VaelabError, match="could not be built"):
        site.built_site()
    assert list((tmp_path / "cache" / "vaelab" / "site").iterdir()) == []

    def interrupted(command: list[str], environment: dict[str, str]) -> None:
        Path(command[-1]).mkdir()
        Path(command[-1], "index.html").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(site, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.built_site()
    assert list((tmp_path / "cache" / "vaelab" / "site").iterdir()) == []


def test_of_two_that_build_at_once_the_first_wins(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = site._run

    def slow(command: list[str], environment: dict[str, str]) -> None:
        run(command, environment)
        monkeypatch.setattr(site, "_run", run)
        other.append(site.built_site())

    other: list[Path] = []
    monkeypatch.setattr(site, "_run", slow)
    assert [site.built_site()] == other and (other[0] / "index.html").is_file()


def test_the_chapters_that_are_done_are_told(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "docs" / "conf.py").write_text(
        "print('/x/course/06_collapse.ipynb: Executed notebook in 3.00 seconds')\n"
    )
    site.built_site()
    assert f"1 of {len(chapters.chapter_files())} chapters are done: 06_collapse\n" in capsys.readouterr().err
