"""Grids of settings, trained and compared: nothing is repeated, whatever stopped it; and the command `compare`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_cli import Cli, Result
from test_cli import run_cli as run_cli
from test_compare import four as four
from test_compare import runs as runs

import vaelab
from vaelab import files
from vaelab.comparison import compare, compare_grid, grid, measure, parse_vary
from vaelab.errors import InputError, VaelabError
from vaelab.runs import Run
from vaelab.training import Interrupted

pytestmark = pytest.mark.usefixtures("without_reports")

# -- what there is to train ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["objective.beta=0.5,1"], {"objective.beta": [0.5, 1]}),
        (["network.hidden=[200,200],[400]"], {"network.hidden": [[200, 200], [400]]}),
        (["network.hidden=200,400", "recipe=vae,iwae"], {"network.hidden": [200, 400], "recipe": ["vae", "iwae"]}),
        (['data.source="a,b.npy",digits'], {"data.source": ["a,b.npy", "digits"]}),
        (["model.conditional=true,false"], {"model.conditional": [True, False]}),
    ],
)
def test_values_to_vary_are_read(words: list[str], values: dict[str, Any]) -> None:
    assert parse_vary(words) == values


TINY: dict[str, Any] = {"network.hidden": [4], "training.batch_size": 700, "training.threads": 1}
BETAS = {"objective.beta": [0.5, 1, 4]}
Counted = list[tuple[str, bool]]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """The folder of each training that a grid begins, and whether it was a resumption."""
    calls: Counted = []
    real = grid.train

    def counting(recipe: str | None = None, **keys: Any) -> Run:
        calls.append((Path(keys["out"]).name, keys.get("resume", False)))
        return real(recipe, **keys)

    monkeypatch.setattr(grid, "train", counting)
    yield calls


def test_a_grid_trains_each_combination_once(trainings: Counted, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"epochs": 1, "overrides": TINY, "out": "grid", "progress": False, "importance_samples": 2}
    found = compare_grid({**BETAS, "model.latent_dim": [2, 3]}, seeds=2, **keys)
    names = [f"beta={b}-latent_dim={d}-seed={s}" for b in ("0.5", "1", "4") for d in (2, 3) for s in (0, 1)]
    assert trainings == [(name, False) for name in names]
    assert [len(one.runs) for one in found.settings] == [2] * 6
    for name in names:
        config = Run.open(tmp_path / "grid" / name).config
        assert f"beta={config.to_dict()['objective']['beta']:g}" in name and name.endswith(f"={config.training.seed}")
    assert {"compare.html", "compare.csv"} <= {path.name for path in Path("grid").iterdir()}
    times = {
        path: path.stat().st_mtime_ns for path in Path("grid").rglob("*") if path.is_file() and "comp" not in path.name
    }
    again = compare_grid({**BETAS, "model.latent_dim": [2, 3]}, seeds=2, **keys)
    assert len(trainings) == 12 and again.to_dict() == found.to_dict()
    # More values and seeds add runs, and leave the others alone.
    compare_grid({"objective.beta": [0.5, 8], "model.latent_dim": [2]}, seeds=3, **keys)
    added = ["beta=0.5-latent_dim=2-seed=2", *(f"beta=8-latent_dim=2-seed={seed}" for seed in range(3))]
    assert trainings[12:] == [(name, False) for name in added]
    assert all(path.stat().st_mtime_ns == at for path, at in times.items() if path.name != ".lock")
    keys["epochs"] = 2
    with pytest.raises(InputError, match=r"was made with training.epochs=1, not 2; choose another --out"):
        compare_grid(BETAS | {"model.latent_dim": [2]}, **keys)
    assert len(trainings) == 16


def test_recipes_can_be_varied(trainings: Counted) -> None:
    found = compare_grid(
        {"recipe": ["vae", "iwae"]}, epochs=1, overrides=TINY, out="grid", progress=False, importance_samples=2
    )
    assert [name for name, _ in trainings] == ["recipe=vae-seed=0", "recipe=iwae-seed=0"]
    assert [one.runs[0].run.config.recipe for one in found.settings] == ["vae", "iwae"]


@pytest.mark.parametrize(
    ("vary", "more", "says"),
    [
        ({"objective.beta": [1, -1]}, {}, "beta=-1: objective.beta=-1"),
        ({"objective.betta": [1, 2]}, {}, "did you mean objective.beta"),
        ({"posterior.name": ["gaussian", "deterministic"]}, {}, "name=deterministic: .*objective.name=distortion"),
        ({"likelihood.name": ["auto", "bernoulli"]}, {}, "likelihood.name=bernoulli is not normalized"),
        ({"recipe": ["vae", "vea"]}, {}, "unknown recipe vea"),
        ({"recipe": ["vae", "iwae"]}, {"recipe": "vae"}, "recipe: is varied, and set to vae"),
        ({"objective.beta": [1, 1.0]}, {}, "beta=1-seed=0: is there twice"),
        ({"network.hidden": [200, 200]}, {}, r"stands in brackets: \[200,200\]"),
        ({"network.hidden": [200, [200]]}, {}, "hidden=200-seed=0: is there twice"),
        ({"objective.beta": [1, 2]}, {"importance_samples": 0}, "importance_samples=0"),
        ({"objective.beta": [1, 2]}, {"limit": 0}, "limit=0"),
        ({"objective.beta": [1, 2]}, {"split": "tset"}, "no tset split"),
        ({"data.validation": [0.1, 0]}, {"split": "validation"}, "validation=0: no validation split"),
        ({"objective.beta": [1, 2]}, {"csv": "nowhere/table.csv"}, "there is no folder nowhere"),
        ({"objective.beta": [1, 2]}, {"overrides": {"objective.beta": 3}}, "is varied, and set to 3"),
        ({"training.seed": [1, 2]}, {}, "--seeds N"),
        ({"objective.beta": [1, 2]}, {"seeds": 0}, "--seeds 0"),
        ({"objective.beta": [1, 2]}, {"data": "nowhere.npy"}, "nowhere.npy"),
        ({"objective.beta": [1, 2]}, {"csv": "table.txt"}, "must be .csv"),
        ({}, {}, "nothing to vary"),
        ({"objective.beta": [1]}, {"seeds": 3}, "two values or more"),
        ({"objective.beta": [1, 2]}, {"out": "page.html"}, "--out names a folder"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    trainings: Counted, tmp_path: Path, vary: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    keys: dict[str, Any] = {"epochs": 1, "out": "grid", "progress": False, **more}
    with pytest.raises(InputError, match=says) as caught:
        compare_grid(vary, **keys)
    assert "\n" not in str(caught.value)
    assert not trainings and not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["signal", "interrupt"])
def test_an_interrupted_grid_says_how_to_go_on(trainings: Counted, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Ctrl-C inside the second training; or while the first run is measured."""
    keys: dict[str, Any] = {
        "epochs": 4,
        "overrides": TINY,
        "out": "my grid",
        "csv": "table.csv",
        "progress": False,
        "importance_samples": 2,
    }
    with monkeypatch.context() as patch:
        if how == "signal":
            step, calls = vaelab.training.loop._step, []

            def stopping(*arguments: Any) -> Any:
                calls.append(None)
                if len(calls) == 11:  # of two steps an epoch: inside epoch 2 of the second run
                    os.kill(os.getpid(), signal.SIGINT)
                return step(*arguments)

            patch.setattr(vaelab.training.loop, "_step", stopping)
        else:

            def interrupt(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(measure, "load", interrupt)
        with pytest.raises(Interrupted) as caught:
            compare_grid(BETAS, **keys)
    cut = [path.name for path in Path("my grid").iterdir() if path.suffix == ".json"]
    assert len(cut) == (1 if how == "signal" else 3)
    command = str(caught.value).partition("this goes on: ")[2]
    assert caught.value.exit_code == 130
    assert command == (
        "vaelab compare --vary objective.beta=0.5,1,4 'network.hidden=[4]' training.batch_size=700 "
        "training.threads=1 --epochs 4 --out 'my grid' --csv table.csv --importance-samples 2"
    )
    begun = len(trainings)
    found = compare_grid(BETAS, **keys)
    rest = [("beta=1-seed=0", True), ("beta=4-seed=0", False)] if how == "signal" else []
    assert trainings[begun:] == rest
    assert Path("table.csv").read_text() == Path("my grid", "compare.csv").read_text() == found.csv()
    for run in (setting.runs[0].run for setting in found.settings):
        assert [line["epoch"] for line in run.metrics()] == [1, 2, 3, 4]


def test_a_run_that_diverges_does_not_end_the_rest(trainings: Counted) -> None:
    keys: dict[str, Any] = {"epochs": 1, "overrides": TINY, "out": "grid", "progress": False, "importance_samples": 2}
    vary = {"training.learning_rate": [1e-3, 1e30, 2e-3]}
    found = compare_grid(vary, **keys)
    assert list(found.failed) == ["learning_rate=1e+30-seed=0"] and "diverged" in found.failed[next(iter(found.failed))]
    assert [one.label for one in found.settings] == ["learning_rate=0.001", "learning_rate=0.002"]
    assert "diverged" in Path("grid", "compare.html").read_text() and "Failed: learning_rate=1e+30" in str(found)
    assert compare_grid(vary, **keys).failed == found.failed
    assert len(trainings) == 3  # it would diverge again
    with pytest.raises(VaelabError, match="all 2 runs failed"):
        compare_grid({"training.learning_rate": [1e30, 1e31]}, **keys)
    assert len(trainings) == 4


def test_a_run_that_fails_for_another_reason_is_tried_again(
    trainings: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = grid.train

    def full(recipe: str | None = None, **keys: Any) -> Run:
        if "beta=1" in str(keys["out"]):
            raise VaelabError("no space left")
        return counting(recipe, **keys)

    keys: dict[str, Any] = {"epochs": 1, "overrides": TINY, "out": "grid", "progress": False, "importance_samples": 2}
    with monkeypatch.context() as patch:
        patch.setattr(grid, "train", full)
        assert compare_grid(BETAS, **keys).failed == {"beta=1-seed=0": "no space left"}
    assert compare_grid(BETAS, **keys).failed == {}
    assert [name for name, _ in trainings] == ["beta=0.5-seed=0", "beta=4-seed=0", "beta=1-seed=0"]


def test_a_run_that_was_finished_but_not_recorded_is_kept(trainings: Counted) -> None:
    """Killed between the last file of a training and the record of its end."""
    keys: dict[str, Any] = {"epochs": 1, "overrides": TINY, "out": "grid", "progress": False, "importance_samples": 2}
    found = compare_grid(BETAS, **keys)
    for file in Path("grid").glob("*.json"):
        file.unlink()
    Path("grid", "beta=4-seed=0", "report.html").unlink()
    Path("grid", "beta=0.5-seed=0.json").write_text("[1]")
    assert compare_grid(BETAS, **keys).to_dict() == found.to_dict()
    assert trainings[3:] == [("beta=4-seed=0", True)]
    # A report from before the last weights: stopped once, continued, then killed.
    Path("grid", "beta=4-seed=0.json").unlink()
    os.utime(Path("grid", "beta=4-seed=0", "report.html"), (0, 0))
    assert compare_grid(BETAS, **keys).to_dict() == found.to_dict()
    assert trainings[4:] == [("beta=4-seed=0", True)]


def test_two_cannot_work_at_one_grid(trainings: Counted) -> None:
    Path("grid").mkdir()
    hold = (
        "import fcntl, sys; f = open('grid/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(InputError, match="another `vaelab compare` is at work there"):
            compare_grid(BETAS, epochs=1, overrides=TINY, out="grid", progress=False)
        other.communicate("\n")
    assert not trainings


def files_of(run: Path) -> dict[Path, tuple[int, bytes]]:
    """Everything in a run's folder but what a comparison keeps there: when it was written, and what it is."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file() and path.parent.name != "evaluations"
    }


@pytest.mark.usefixtures("trainings")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_a_grid_that_is_killed_at_its_writes_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with SIGKILL again and again, each time in the middle of a write: the 11th, then the 12th, ...

    That falls into trainings and evaluations. What was finished is never touched, and all numbers are those of a grid
    that nobody stopped.
    """
    shared: dict[str, Any] = {"epochs": 2, "overrides": TINY, "progress": False, "importance_samples": 2}
    vary, real = {"objective.beta": [0.5, 1]}, getattr(files, "_to_disk")  # noqa: B009

    def killed(at: int) -> bool:
        """Whether a copy of this process that goes on was killed, at this write."""
        if (child := os.fork()) == 0:
            torch.set_num_threads(1)
            writes = 0

            def die(path: Path) -> None:
                nonlocal writes
                writes += 1
                if writes == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(path)

            monkeypatch.setattr(files, "_to_disk", die)
            code = 1
            try:
                compare_grid(vary, seeds=2, out="killed", **shared)
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    finished: dict[Path, tuple[int, bytes]] = {}
    trained: list[int] = []
    while killed(11 + len(trained)):
        assert {path: files_of(path.parent).get(path) for path in finished} == finished
        reports = list(Path("killed").glob("*/report.html"))
        for report in reports:
            finished |= files_of(report.parent)
        trained.append(len(reports))
        assert len(trained) < 20
    assert len(trained) > 3 and min(trained) < 3 and max(trained) == 4
    again = compare_grid(vary, seeds=2, out="killed", **shared)
    assert {path: files_of(path.parent).get(path) for path in finished} == finished
    whole = compare_grid(vary, seeds=2, out="whole", **shared)
    assert again.csv().replace("killed/", "whole/") == whole.csv()
    assert not list(Path("killed").glob(".*.tmp"))
    for run in Path("whole").glob("*-seed=?"):
        one, other = (load_file(folder / run.name / "model.safetensors") for folder in (Path("killed"), Path("whole")))
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_killed_grid_goes_on(tmp_path: Path) -> None:
    """12 runs, SIGKILL in the seventh: the finished ones stay untouched, the cut one goes on from its checkpoint."""
    words = ["--vary", "objective.beta=0.5,1,2", "--vary", "model.latent_dim=2,3", "--seeds", "2", "vae"]
    words += [
        "network.hidden=8",
        "training.checkpoint_seconds=0",
        "training.threads=1",
        "--epochs",
        "12",
        "--out",
        "grid",
    ]
    command = [sys.executable, "-m", "vaelab", "compare", *words, "--importance-samples", "2", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(list(Path("grid").glob("*.json"))) < 6:
        assert first.poll() is None
        time.sleep(0.02)
    cut = Path("grid", "beta=1-latent_dim=3-seed=0")
    while len(list((cut / "checkpoint").glob("latest.json"))) < 1:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    finished = [Path("grid", file.name.removesuffix(".json")) for file in Path("grid").glob("*.json")]
    assert len(finished) == 6 and not (cut / "report.html").exists()
    before = {path: path.stat().st_mtime_ns for run in finished for path in run.rglob("*") if path.is_file()}
    config = (cut / "config.toml").stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (cut / "config.toml").stat().st_mtime_ns == config
    found = json.loads(done.stdout)
    assert sorted(len(one["runs"]) for one in found["settings"]) == [2] * 6 and not found["failed"]
    assert done.stderr.count("trains ") == 6
    keys = {"network.hidden": 8, "training.checkpoint_seconds": 0, "training.threads": 1}
    keys |= {"objective.beta": 1, "model.latent_dim": 3}
    whole = vaelab.train("vae", epochs=12, seed=0, overrides=keys, out=tmp_path / "whole", progress=False)
    expected, weights = (load_file(path / "model.safetensors") for path in (whole.path, cut))
    assert all(torch.equal(expected[name], weights[name]) for name in expected)


# -- the command ---------------------------------------------------------------------------------------------------

Command = Callable[..., Result]


def test_the_command_compares_runs(run_cli: Cli, four: list[Run]) -> None:
    shown = run_cli("compare", *four, "--importance-samples", "2", "--csv", "table.csv")
    assert shown.code == 0 and Path("compare.html").is_file() and Path("table.csv").is_file()
    assert "page: compare.html" in shown.out
    told = json.loads(run_cli("compare", *four, "--importance-samples", "2", "--json").out)
    expected = compare(four, importance_samples=2).to_dict()
    assert told == {**expected, "page": "compare.html"}
    validation = run_cli("compare", *four[1:3], "--split", "validation", "--limit", "20", "--out", "v.html", "--json")
    told = json.loads(validation.out)
    assert told["settings"][0]["runs"][0] == {
        "run": str(four[1]),
        "seed": 1,
        **vaelab.evaluate(four[1], split="validation", limit=20).to_dict(),
    }


@pytest.mark.usefixtures("trainings")
def test_the_command_trains_a_grid(run_cli: Cli) -> None:
    words = ["--vary", "training.learning_rate=1e-3,1e30", "--vary", "network.hidden=[4],[4,4]", "vae", "--epochs", "1"]
    done = run_cli("compare", *words, "training.batch_size=700", "--importance-samples", "2", "--json")
    assert done.code == 1 and "2 of the runs failed, first learning_rate=1e+30-hidden=4-seed=0" in done.err
    told = json.loads(done.out)
    assert [one["label"] for one in told["settings"]] == ["hidden=4", "hidden=4,4"]
    assert told["page"] == str(Path("runs", "compare-vae-digits", "compare.html"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare"], ["name two runs", "--vary"]),
        (["compare", "nowhere", "there"], ["nowhere: no such run folder"]),
        (["compare", "--vary", "objective.beta=1,2", "/"], ["/: is a folder, not a recipe"]),
        (["compare", "a", "b", "--seeds", "2"], ["--seeds 2", "--vary"]),
        (["compare", "a", "b", "--importance-samples", "0"], ["importance_samples=0"]),
        (["compare", "a", "b", "--out", "page.txt"], ["page.txt", ".html"]),
        (["compare", "--vary", "objective.beta", "vae"], ["--vary objective.beta", "KEY=VALUE"]),
        (["compare", "--vary", "objective.beta=1,,2"], ["--vary objective.beta=1,,2"]),
        (["compare", "--vary", "objective.beta=1", "--vary", "objective.beta=2"], ["given twice"]),
        (["compare", "--vary", "objective.beta=1,2", "vae", "iwae"], ["vae and iwae"]),
        (["compare", "--vary", "objective.beta=1,x"], ["objective.beta=x"]),
        (["compare", "--vary", "network.hidden=[4,8"], ["--vary", "two values or more"]),
        (["compare", "--vary", "recipe=vae,iwae", "vae"], ["recipe: is varied"]),
    ],
)
def test_wrong_use_gets_one_line(run_cli: Cli, tmp_path: Path, words: list[str], says: list[str]) -> None:
    run_cli(*words).failed(*says)
    assert not list(tmp_path.iterdir())
