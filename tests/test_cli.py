"""The command line: exit codes, one line for bad input, nothing half-written, one JSON object on stdout."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

import vaelab
from vaelab import cli, recipes
from vaelab.runs import Run
from vaelab.training.job import override_words


class Result:
    """What a command said and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def failed(self, *words: str) -> None:
        """It was refused in one plain line that holds these words."""
        assert self.code == 2, self.err
        assert self.out == ""
        line = self.err.strip()
        assert "\n" not in line and line.startswith("vaelab: "), self.err
        for word in words:
            assert word in line, line


Cli = Callable[..., Result]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process: `run_cli("train", "vae")`."""

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["vaelab", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(exit_.value.code or 0), captured.out, captured.err)

    return call


QUICK = ["--data", "digits", "--epochs", "1", "network.hidden=8", "model.latent_dim=2", "data.binarize=threshold"]


def test_train_writes_a_run_and_prints_its_numbers(run_cli: Cli, tmp_path: Path) -> None:
    result = run_cli("train", *QUICK, "--out", "run", "--json")
    assert result.code == 0
    facts = json.loads(result.out)
    assert facts["run"] == "run" and facts["epochs"] == 1 and facts["numbers"]["split"] == "validation"
    assert facts["numbers"]["elbo"] == json.loads((tmp_path / "run" / "numbers.json").read_text())["elbo"]
    assert vaelab.load(tmp_path / "run").latent_dim == 2


def test_train_names_runs_by_recipe_source_and_number(run_cli: Cli, tmp_path: Path) -> None:
    for number in (1, 2):
        result = run_cli("train", *QUICK)
        assert result.code == 0
        assert (tmp_path / "runs" / f"vae-digits-{number}" / "report.html").is_file()
        assert f"vaelab evaluate runs/vae-digits-{number}" in result.out
        assert max(map(len, result.out.splitlines())) <= 80


def test_a_run_records_the_command_that_makes_it_again(run_cli: Cli, tmp_path: Path) -> None:
    run_cli("train", "vae", *QUICK, "--seed", "3", "network.hidden=8,4", "--out", "first")
    command = shlex.split(Run.open(tmp_path / "first").about["command"])
    assert command[:3] == ["vaelab", "train", "vae"]
    words = command[3:]
    words[words.index("first")] = "second"
    assert run_cli("train", "vae", *words).code == 0
    first, second = (Run.open(tmp_path / name) for name in ("first", "second"))
    assert first.config == second.config
    assert (first.path / "model.safetensors").read_bytes() == (second.path / "model.safetensors").read_bytes()


def test_evaluate_prints_text_or_json(run_cli: Cli, digits_run: Run) -> None:
    text = run_cli("evaluate", digits_run, "--importance-samples", "5")
    found = run_cli("evaluate", digits_run, "--importance-samples", "5", "--json")
    assert text.code == found.code == 0
    numbers = json.loads(found.out)
    assert f"{numbers['log_px']:.3f}" in text.out
    assert numbers == vaelab.evaluate(digits_run, 5).to_dict()


def test_every_recipe_can_be_shown_whole(run_cli: Cli) -> None:
    for name in recipes.names():
        assert tomllib.loads(run_cli("recipes", name).out)["recipe"]["paper"]
    listed = run_cli("recipes").out.splitlines()
    assert [line.split()[0] for line in listed] == recipes.names()
    assert list(json.loads(run_cli("recipes", "--json").out)["recipes"]) == recipes.names()


def test_the_sources_fit_a_terminal(run_cli: Cli) -> None:
    result = run_cli("data")
    assert result.code == 0 and "digits" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert {one["name"] for one in json.loads(run_cli("data", "--json").out)["sources"]} >= {"digits", "mnist"}


def test_keys_that_no_option_takes_are_recorded_as_keys() -> None:
    overrides = {"training.epochs": "auto", "training.patience": None, "training.seed": 3, "data.source": "digits"}
    assert override_words(overrides) == ["training.epochs=auto", "--seed", "3", "--data", "digits"]


@pytest.mark.parametrize("command", ["", *sorted(one.callback.__name__ for one in cli.app.registered_commands)])
def test_every_command_has_help_with_an_example(run_cli: Cli, command: str) -> None:
    result = run_cli(*command.split(), "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 100
    if command:
        assert f"Example: vaelab {command}" in result.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], ["trian", "train"]),
        (["train", "vea"], ["unknown recipe vea", "did you mean vae?"]),
        (["train", "--data", "mnits"], ["mnits", "mnist"]),
        (["train", "model.latent_dim=0"], ["model.latent_dim=0", "greater than 0"]),
        (["train", "model.latent_dims=3"], ["did you mean model.latent_dim?"]),
        (["train", "vae", "conv-vae"], ["vae and conv-vae: give one recipe"]),
        (["train", "--epochs", "many"], ["--epochs", "valid integer"]),
        (["train", "--epochs", "0"], ["training.epochs=0"]),
        (["train", "likelihood.name=gaussian"], ["likelihood.name=gaussian", "levels", "data.values=real"]),
        (["train", "likelihood.name=bernoulli"], ["data.binarize"]),
        (["train", "posterior.name=deterministic"], ["objective.name=distortion"]),
        (["train", "training.device=abacus"], ["training.device=abacus"]),
        (["train", "--resume"], ["--resume needs the run folder"]),
        (["evaluate"], ["RUN"]),
        (["evaluate", "nowhere"], ["nowhere: no such run folder"]),
        (["evaluate", "x", "--method", "foo"], ["'--method': 'foo' is not one of 'importance', 'annealed'"]),
        (["sample", "nowhere"], ["nowhere: no such run folder"]),
        (["evaluate", __file__], ["test_cli.py: is a file, not a run folder"]),
        (["recipes", "vea"], ["unknown recipe vea"]),
        (["train", "--out", "/dev/null/run"], ["/dev/null/run", "choose another --out"]),
        (["train", "training.threads=100000"], ["training.threads=100000", "256"]),
        (["train", "model.latent_dim=true"], ["model.latent_dim=True", "valid integer"]),
        (["train", "network.name=conv", "network.channels=[]"], ["network.channels=[]", "at least 1 item"]),
        (["train", "data.source="], ["data.source=", "at least 1 character"]),
        (["train", "model=3"], ["model: a group, not a key"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    run_cli: Cli, tmp_path: Path, words: list[str], says: list[str]
) -> None:
    run_cli(*words).failed(*says)
    assert list(tmp_path.iterdir()) == []


def pictures(folder: Path, number: int = 12) -> Path:
    folder.mkdir()
    for index in range(number):
        Image.fromarray(np.full((8, 8), index * 8, np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def test_a_truncated_picture_among_good_ones_is_named_and_nothing_starts(run_cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    whole = (folder / "07.png").read_bytes()
    (folder / "07.png").write_bytes(whole[: len(whole) // 2])
    run_cli("train", "--data", folder, "--out", "run").failed("07.png")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_pictures_trains(run_cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", 30)
    result = run_cli("train", "conv-vae", "--data", folder, "--epochs", "1", "--out", "run")
    assert result.code == 0, result.err
    assert Run.open(tmp_path / "run").spec.shape == (1, 8, 8)


def test_bad_arrays_are_named(run_cli: Cli, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    bad = x.copy()
    bad[17, 2] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "rank.npy", np.zeros(5))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4)))
    np.save(tmp_path / "object.npy", np.array([None, 1], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "labels.npz", x=x, y=np.zeros(29, int))
    before = sorted(tmp_path.iterdir())
    for name, words in {
        "nan.npy": ["NaN", "17"],
        "rank.npy": ["rank"],
        "empty.npy": ["empty"],
        "object.npy": ["object"],
        "labels.npz": ["29", "30"],
    }.items():
        result = run_cli("train", "--data", tmp_path / name)
        result.failed(name)
        assert all(word.lower() in result.err.lower() for word in words), result.err
    assert sorted(tmp_path.iterdir()) == before


def copied(run: Run, to: Path) -> Path:
    shutil.copytree(run.path, to)
    return to


def test_a_run_folder_that_exists_is_refused(run_cli: Cli, digits_run: Run, tmp_path: Path) -> None:
    folder = copied(digits_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run_cli("train", *QUICK, "--out", folder).failed("run", "exists already", "--resume")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("x")
    refused = run_cli("train", *QUICK, "--out", tmp_path / "file")
    refused.failed("exists already; choose another --out")
    assert "--resume" not in refused.err


def test_broken_run_folders_are_refused(run_cli: Cli, digits_run: Run, tmp_path: Path) -> None:
    folder = copied(digits_run, tmp_path / "run")
    tables = tomllib.loads((folder / "config.toml").read_text())

    def with_config(**changes: object) -> None:
        (folder / "config.toml").write_text(tomli_w.dumps({**tables, **changes}))

    with_config(format=2)
    run_cli("evaluate", folder).failed("newer vaelab")
    with_config(model={"latent_dim": 3})
    run_cli("evaluate", folder).failed("model.safetensors")
    with_config(frobnicate={"a": 1})
    run_cli("evaluate", folder).failed("config.toml", "frobnicate")
    with_config(about={})
    run_cli("evaluate", folder).failed("config.toml", "[about]")
    (folder / "config.toml").write_text("not = [toml")
    run_cli("evaluate", folder).failed("config.toml")
    with_config()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    run_cli("evaluate", folder).failed("model.safetensors", "damaged")
    (folder / "model.safetensors").unlink()
    run_cli("evaluate", folder).failed("incomplete run")
    (folder / "config.toml").unlink()
    run_cli("evaluate", folder).failed("not a run folder")


def test_a_recipe_file_that_is_no_recipe_is_named(run_cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for content in (b"\xff\xfe\x00", b"recipe = 3", b"model = 3", b"[model]\nlatent_dim = 0"):
        path.write_bytes(content)
        run_cli("train", path).failed("mi" if content != b"[model]\nlatent_dim = 0" else "model.latent_dim=0")
    assert list(tmp_path.iterdir()) == [path]


def test_running_out_of_memory_is_one_line(run_cli: Cli, tmp_path: Path) -> None:
    result = run_cli("train", "model.latent_dim=2000000000", "network.hidden=2000000000", "--out", "run")
    assert result.code == 1
    assert result.err.startswith("vaelab: out of memory") and result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_bare_command_shows_help(run_cli: Cli) -> None:
    result = run_cli()
    assert result.code == 0 and "Commands:" in result.out


def test_pictures_with_a_wrong_ending_are_refused(run_cli: Cli, digits_run: Run, tmp_path: Path) -> None:
    for command in ("sample", "reconstruct", "interpolate", "traverse", "encode"):
        run_cli(command, digits_run, "-o", tmp_path / "out.jpg").failed("out.jpg", ".npz")
    run_cli("traverse", digits_run, "--latents", "0,x", "-o", "a.png").failed("0,x")
    run_cli("traverse", digits_run, "--latents", "2", "-o", "a.png").failed("2")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_sampling_is_exit_code_1(digits_run: Run, tmp_path: Path) -> None:
    command = f"ulimit -f 1; exec {sys.executable} -m vaelab sample {digits_run} -n 400 -o out.png"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("vaelab: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m vaelab recipes iwae | head -c 1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['vaelab', 'recipes']; from vaelab.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
