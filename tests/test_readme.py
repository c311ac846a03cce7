"""The README and its companions: every command and snippet runs, every link leads somewhere, every table is current."""

import hashlib
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from safetensors import safe_open

import vaelab
from vaelab import cli, recipes
from vaelab import config as configuration
from vaelab.composition import compose, compose_objective, settle
from vaelab.compression import Reader
from vaelab.config import parse_override, resolve
from vaelab.course import site
from vaelab.data import mnist
from vaelab.runs import Run

ROOT = Path(__file__).parents[1]
MADE = {"annotated", "api", "project"}  # folders of docs/ with pages that the build of the site writes
PAGES = [file for file in sorted((ROOT / "docs").rglob("*.md")) if file.parent.name not in MADE]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What is made quicker before a command or snippet of the documents is run, and nothing else. A key is a regular
# expression. `test_each_substitution_is_needed` fails on one that changes nothing.
SUBSTITUTIONS = {
    r"^((?:torchrun .* -m )?vaelab train)(?!.*--(?:epochs|resume))(.*)": r"\1\2 --epochs 1",
    r"--epochs \d\d+": "--epochs 1",
    r"--data mnist\b": "--data mnist training.batch_size=5000",
    r"--data sprites\b": "--data sprites network.hidden=8 training.batch_size=1000 data.test=0.9 data.validation=0.02",
    r"^(vaelab disentanglement .*)": r"\1 --limit 200 --replicates 2",
    r"--importance-samples 500": "--importance-samples 5",
    r"data=\"digits\"\)": 'data="digits", epochs=1)',
    r"data=\"digits\", seed": 'data="digits", epochs=1, seed',
    r"0.5,1,2,4 --seeds 3": "0.5,4 --seeds 2 --epochs 1",
    r"^python reference/vae.py": f"python {(ROOT / 'reference' / 'vae.py').as_posix()} --epochs 1",
}


def quicker(text: str) -> str:
    """A command or snippet after the substitutions."""
    for pattern, replacement in SUBSTITUTIONS.items():
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    file: Path
    language: str
    text: str


def blocks(*languages: str) -> Iterator[Block]:
    """The fenced blocks of all documents in these languages."""
    fenced = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
    for file in DOCUMENTS:
        for found in fenced.finditer(file.read_text(encoding="utf-8")):
            if found["language"] in languages:
                yield Block(file, found["language"], textwrap.dedent(found["text"]))


def commands_of(block: Block) -> list[str]:
    """The shell commands of a block, in order; those of one line that are joined by && come apart."""
    code = [re.sub(r"\s+#.*", "", line).strip() for line in re.sub(r"\\\n\s*", "", block.text).splitlines()]
    return [command.strip() for line in code if line for command in line.split("&&")]


def commands(file: Path) -> list[str]:
    """The shell commands of a document, in order."""
    return [command for block in blocks("bash") if block.file == file for command in commands_of(block)]


ALL_COMMANDS = [command for file in DOCUMENTS for command in commands(file)]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    fences = sum(len(re.findall(r"^ *```", file.read_text(encoding="utf-8"), re.MULTILINE)) for file in DOCUMENTS)
    assert fences == 2 * len(list(blocks("bash", "python", "math", "text")))
    assert {command.split()[0] for command in ALL_COMMANDS} <= {
        "pip", "vaelab", "pytest", "python", "ruff", "pyright", "torchrun", "accelerate", "tensorboard"
    }  # fmt: skip


def test_each_substitution_is_needed() -> None:
    everything = [*ALL_COMMANDS, *(block.text for block in blocks("python"))]
    for pattern in SUBSTITUTIONS:
        assert any(re.search(pattern, text, re.MULTILINE) for text in everything), pattern


# -- commands ------------------------------------------------------------------------------------------------------


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry out a command of the documents in the current folder."""
    program, *words = shlex.split(quicker(command))
    if program == "python":
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return
    if program == "torchrun":
        subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True, capture_output=True)
        return
    assert program == "vaelab"
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0, command
    if "-o" in words:
        check_output(Path(words[words.index("-o") + 1]))


def check_output(file: Path) -> None:
    """The file can be read, and what it holds varies."""
    if file.suffix == ".vae":
        with Reader.open(file) as reader:
            assert reader.examples > 10
        return
    if file.suffix == ".npy":
        assert np.load(file).std() > 0
        return
    if file.is_dir():
        assert list(file.rglob("*.png"))
        return
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            assert arrays.files and all(arrays[name].std() > 0 for name in arrays.files)
        return
    if file.suffix == ".csv":
        lines = file.read_text().splitlines()
        assert len({line.count(",") for line in lines}) == 1 and len(set(lines)) == len(lines) > 10
        return
    with Image.open(file) as picture:
        low, high = picture.convert("L").getextrema()
        assert high - low > 100
        assert (getattr(picture, "n_frames", 1) > 1) == (file.suffix == ".gif")


def make_own_data() -> None:
    """What the README calls my-pictures and my-array.npy."""
    noise = np.random.default_rng(0)
    Path("my-pictures").mkdir()
    for number in range(20):
        pixels = noise.integers(0, 256, (60 + number, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("my-pictures", f"{number}.jpg"))
    np.save("my-array.npy", noise.standard_normal((40, 6)))


def test_the_readme_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_own_data()
    steps = [c for c in commands(ROOT / "README.md") if c.split()[0] in ("vaelab", "python") and "mnist" not in c]
    snippets = [block.text for block in blocks("python") if block.file.name == "README.md"]
    assert steps[0] == "vaelab train" and len(snippets) == 1
    run_command(steps[0], monkeypatch)
    assert (tmp_path / "runs" / "vae-digits-1" / "report.html").is_file()
    namespace: dict[str, Any] = {}
    exec(quicker(snippets[0]), namespace)
    pictures = namespace["pictures"]
    assert pictures.shape == (16, 1, 8, 8) and 0 <= pictures.min() < pictures.max() <= 1
    for command in steps[1:]:
        run_command(command, monkeypatch)
    with np.load("latents.npz") as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
    assert shapes == {"mean": (1797, 50), "scale": (1797, 50), "labels": (1797,)}
    assert Run.open("runs/conv-vae-my-pictures-1").spec.shape == (3, 64, 64)
    assert Run.open("runs/vae-my-array-1").spec.kind == "real"
    trained = sum(command.startswith("vaelab train") and "--resume" not in command for command in steps) + 1
    assert len(list(Path("runs").glob("*/model.safetensors"))) == trained


LONG_GUIDES = {
    "compare",
    "compose",
    "compress",
    "evaluate",
    "experiment",
    "many-gpus",
    "new-part",
    "own-network",
    "representation",
}
GUIDES = [
    pytest.param(file, marks=[pytest.mark.slow] * (file.stem in LONG_GUIDES), id=file.stem)
    for file in sorted((ROOT / "docs" / "guides").glob("*.md"))
]


@pytest.fixture
def _parts_of_a_guide_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {group: (configuration.names(group), dict(parts))[1] for group, parts in configuration._registry.items()}
    monkeypatch.setattr(configuration, "_registry", known)


@pytest.mark.usefixtures("_parts_of_a_guide_are_forgotten")
@pytest.mark.parametrize("file", GUIDES)
def test_a_guide_runs_from_top_to_bottom(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_own_data()
    namespace: dict[str, Any] = {}
    for block in (block for block in blocks("bash", "python", "text") if block.file == file):
        if block.language == "text":
            refuse(block.text)
        elif block.language == "python" and (name := re.match(r"# (\w+\.py)\n", block.text)):
            Path(name[1]).write_text(block.text, encoding="utf-8")  # a file that the guide tells to save
        elif block.language == "python":
            exec(quicker(block.text), namespace)
        else:
            for command in commands_of(block):
                if command.startswith("torchrun") and "nproc_per_node=2" not in command:
                    resolve_words(command)  # wants four GPUs or two machines
                else:
                    run_command(command, monkeypatch)
    assert list(Path("runs").glob("*/model.safetensors"))


def refuse(text: str) -> None:
    """Hold a command that is shown with its refusal (`$ COMMAND`, and the line that it prints) to both.

    In a process of its own, for this one knows the parts of plugins.
    """
    shown = re.fullmatch(r"\$ vaelab (.*)\n(vaelab: .*)\n", text)
    if shown is None:
        assert not text.startswith("$"), text
        return
    before = set(Path().rglob("*"))
    command = [sys.executable, "-m", "vaelab", *shlex.split(shown[1])]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert (done.stderr.strip(), done.stdout, done.returncode) == (shown[2], "", 2)
    assert {path for path in Path().rglob("*") if "__pycache__" not in path.parts} == before


def test_the_page_of_combinations_shows_a_refusal_as_it_is() -> None:
    file = ROOT / "docs" / "reference" / "combinations.md"
    (block,) = [block for block in blocks("text") if block.file == file]
    refuse(block.text)


def test_the_page_of_combinations_says_yes_where_parts_give_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("extension.combinations").combinations()

    def cells(heading: str, corner: str) -> dict[tuple[str, str], str]:
        section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        lines = section[section.index(f"| {corner} |") :].splitlines()
        rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
        reasons = re.findall(r"^\d+\. .+\.$", section[section.index(f"| {corner} |") :].partition("\n\n|")[0], re.M)
        numbers = {int(cell[4:-1]) for row in rows[2:] for cell in row[1:] if cell != "yes"}
        assert numbers == set(range(1, len(reasons) + 1))
        return {(row[0], column): cell for row in rows[2:] for column, cell in zip(rows[0][1:], row[1:], strict=True)}

    def known(group: str) -> dict[str, Any]:
        return {name: configuration.part(group, name).build for name in configuration.names(group) if name != "auto"}

    latents = cells("Posterior and prior", "Posterior")
    assert latents.keys() == {(q, p) for q in known("posterior") for p in known("prior")}
    for (q, p), cell in latents.items():
        assert (cell == "yes") == (known("posterior")[q].holds == known("prior")[p].holds), (q, p)
    trained = cells("Objective and posterior", "Objective")
    assert trained.keys() >= {(o, q) for o in known("objective") for q in known("posterior")}
    for o, one in known("objective").items():
        for q, posterior in known("posterior").items():
            enough = one.needs <= posterior.provides
            assert enough or trained[o, q] != "yes", (o, q)
            assert not enough or trained[o, q] == "yes" or o == "free-bits", (o, q)  # that one asks for more
    data = cells("Likelihood and data", "Likelihood")
    for likelihood, one in known("likelihood").items():
        for kind in ("binary", "levels"):
            assert (data[likelihood, kind] == "yes") == (kind in one.kinds), (likelihood, kind)
        assert (data[likelihood, "real, from 0 to 1"] == "yes") == ("real" in one.kinds)
        beyond = "real" in one.kinds and likelihood != "continuous-bernoulli"
        assert (data[likelihood, "real, beyond"] == "yes") == beyond


@pytest.mark.slow
def test_a_package_offers_parts_as_the_guide_says(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "docs" / "guides" / "new-part.md"
    (part,) = [block.text for block in blocks("python") if block.file == file and block.text.startswith("# my_prior")]
    (points,) = [block.text for block in blocks("text") if block.file == file and "entry-points" in block.text]
    ((group, entries),) = tomllib.loads(points)["project"]["entry-points"].items()
    ((name, module),) = entries.items()
    package = Path(*module.split(".")).with_suffix(".py")
    package.parent.mkdir()
    package.write_text(part, encoding="utf-8")
    Path("my_package-1.dist-info").mkdir()
    Path("my_package-1.dist-info", "METADATA").write_text("Name: my-package\nVersion: 1\n")
    Path("my_package-1.dist-info", "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    words = ["prior.name=student-t", "--epochs", "1", "--out", "run"]
    train = [sys.executable, "-m", "vaelab", "train", *words]
    done = subprocess.run(train, capture_output=True, text=True)
    assert done.returncode == 2 and "prior.name=student-t: unknown" in done.stderr
    subprocess.run([*train, "--plugin", name], check=True, capture_output=True)
    about = tomllib.loads(Path("run", "config.toml").read_text(encoding="utf-8"))["about"]
    assert about["plugins"] == {name: hashlib.sha256(package.read_bytes()).hexdigest()}


def resolve_words(command: str) -> None:
    """Hold the configuration keys of a command that starts several processes to the configuration."""
    words = shlex.split(command.partition(" -m vaelab train ")[2])
    resolve("vae", {}, dict(parse_override(word) for word in words if "=" in word))


def test_learn_knows_the_chapters_that_the_documents_open() -> None:
    found = [shlex.split(command) for command in ALL_COMMANDS if command.startswith("vaelab learn")]
    inline = [words.split() for file in DOCUMENTS for words in re.findall(r"`(vaelab learn [^`]*)`", file.read_text())]
    assert found
    for words in found + [words for words in inline if words[2].isalnum()]:
        assert site.page_of(words[2]).startswith("course/")


def test_mnist_commands_run(monkeypatch: pytest.MonkeyPatch) -> None:
    if not mnist.is_present():
        pytest.skip("MNIST is not in $VAELAB_DATA/mnist")
    found = [command for command in ALL_COMMANDS if "mnist" in command]
    assert found
    for command in found:
        run_command(command, monkeypatch)
    assert Run.open("runs/vae-mnist-1").spec.kind == "binary"


def test_a_part_is_added_as_contributing_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = [block.text for block in blocks("python") if block.file.name == "CONTRIBUTING.md"]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`(vaelab train objective.name=hardest [^`]*)`", text)
    known = {group: (configuration.names(group), dict(parts))[1] for group, parts in configuration._registry.items()}
    monkeypatch.setattr(configuration, "_registry", known)  # the part is gone again after this test
    exec(snippet, {"__name__": "part"})
    run_command(command, monkeypatch)
    run = Run.open("runs/vae-digits-1")
    assert run.config.objective.model_dump() == {"name": "hardest", "share": 0.25}
    train = run.metrics()[0]["train"]
    assert train["loss"] > 1.02 * -train["elbo"]  # the hardest quarter costs more than the mean does


# -- what the documents say ----------------------------------------------------------------------------------------


def requirements(file: str) -> list[Requirement]:
    """The lines of a requirements file that name a package."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def test_pins_lie_within_the_ranges_of_pyproject() -> None:
    for command in ALL_COMMANDS:
        if command.startswith("pip"):
            assert command.split()[:3] == ["pip", "install", "-r"] and (ROOT / command.split()[3]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["learn"]]
    ranges = {one.name: one.specifier for one in map(Requirement, named)}
    pins = {one.name: one.specifier for one in requirements("requirements.txt")}
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        (only,) = pin
        assert only.operator == "==" and ranges[name].contains(only.version), name
    assert "-e ." in (ROOT / "requirements.txt").read_text().splitlines()
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()
    tools = {one.name for one in requirements("requirements-dev.txt")}
    assert {command.split()[0] for command in ALL_COMMANDS} - {"pip", "vaelab", "python", "torchrun"} <= tools | {*pins}


def test_set_up_is_one_line_each() -> None:
    lines = README.splitlines()
    assert lines.count("pip install -r requirements.txt && vaelab train") == 1
    assert lines.count("pip install -r requirements-dev.txt && pytest") == 1


@pytest.mark.parametrize("file", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda file: file.name)
def test_links_and_pictures_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    local = [one or other for one, other in targets if not (one or other).startswith(("http://", "https://"))]
    assert local or file.name != "README.md"
    for target in local:
        assert (file.parent / target.partition("#")[0]).exists(), target
    for name in re.findall(r"`((?:src|tests|docs|reference|examples)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_pictures_are_small() -> None:
    files = list((ROOT / "docs" / "images").iterdir())
    assert {file.name for file in files} == set(re.findall(r"docs/images/([\w.-]+)", README))
    assert sum(file.stat().st_size for file in files) < 400_000


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def table(head: str) -> list[str]:
    """The lines of a table of the README whose first line begins with `head`."""
    lines = README.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(head))
    end = next(number for number in range(first, len(lines)) if not lines[number].startswith("|"))
    return lines[first:end]


def test_the_recipe_table_is_what_the_recipes_say() -> None:
    lines = table("| Recipe |")
    assert [line.split("`")[1] for line in lines[2:]] == recipes.names()
    assert lines == script("tables").recipe_table()


def test_the_commands_of_recipes_compose(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in map(recipes.load, recipes.names()):
        words = shlex.split(recipe.command)
        assert words[:3] == ["vaelab", "train", recipe.name]
        resolve(recipe.name, recipe.tables, dict(parse_override(word) for word in words[3:] if "=" in word))


def test_the_table_of_expectations_has_the_rows_that_are_measured() -> None:
    tables = script("tables")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table("| Change |")[2:]]
    assert {change: keys.strip("`") for change, keys, *_ in rows} == tables.EXPECT
    for keys in tables.EXPECT.values():
        resolve("vae", recipes.load("vae").tables, dict(parse_override(word) for word in keys.split()))
    for _, _, elbo, log_px, rate, distortion, _ in rows:
        values = [float(cell.split(" ± ")[0].replace("−", "-")) for cell in (elbo, log_px, rate, distortion)]
        assert values[0] < values[1]
        assert abs(values[0] + values[2] + values[3]) < 0.16  # ELBO = −(rate + distortion), three rounded numbers


def test_versions_agree() -> None:
    assert f"version: {vaelab.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert vaelab.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_page_on_training_has_every_key_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "docs" / "training.md"
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", file.read_text(encoding="utf-8"), re.MULTILINE)
    told = {key: default.strip("` ").removesuffix(" (off)") for key, default in rows if key in DEFAULTS}
    assert told.keys() == DEFAULTS.keys()
    for key, default in DEFAULTS.items():
        if isinstance(default, float) and default < float("inf"):
            assert float(told[key]) == default, key
        else:
            assert told[key] == {None: "off", float("inf"): "off", (): "none"}.get(default, str(default)), key
    for command in commands(file):
        if " -m vaelab train " in command:
            resolve_words(command)
    (tracked,) = [command for command in commands(file) if "log_with" in command]
    run_command(tracked, monkeypatch)
    assert list(Path("run", "logs").rglob("events.*"))


DEFAULTS = {name: field.default for name, field in configuration.TrainingConfig.model_fields.items()}


def test_the_page_on_run_folders_names_all_that_is_there(digits_run: Run) -> None:
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    files = re.findall(r"^\| (`[^|]*) \|", text.partition("## metrics.jsonl")[0], re.MULTILINE)
    later = {"codec.safetensors", "evaluations"}  # other commands make these, perhaps in tests before this one
    assert all(f"`{name}" in text for name in later)
    there = {path.name for path in digits_run.path.iterdir()}
    assert set(re.findall(r"`([\w./]+?)/?`", " ".join(files))) == there - later
    keys = re.findall(r"^\| (`[^|]*) \|", text.partition("| Key of `[about]` |")[2].partition("\n## ")[0], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(keys))) == {*digits_run.about, "plugins"}
    with safe_open(digits_run.path / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert {"decoder.bias", "posterior.head.weight", "encoder.layers.1.weight", "decoder.layers.0.weight"} <= names
    for line in digits_run.metrics():
        for key in [*line, *line["train"]]:
            assert f"`{key}`" in text


METERS = [
    *[("vae", "gaussian", name) for name in configuration.names("objective")],
    ("joint", "gaussian", "annealed"),
    ("hierarchical", "gaussian", "elbo"),
    ("quantized", "vq", "elbo"),
]


@pytest.mark.parametrize(("model", "posterior", "objective"), METERS)
def test_the_page_on_run_folders_names_all_that_is_measured(model: str, posterior: str, objective: str) -> None:
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    keys = {"model.name": model, "posterior.name": posterior, "objective.name": objective, "network.hidden": (4,)}
    keys |= {"posterior.update": "loss"} if posterior == "vq" else {}
    spec = vaelab.DataSpec((1, 4, 4), "binary", 2)
    config = settle(resolve("keys", {}, keys), spec)
    built = compose(config, spec)
    minimized = compose_objective(config, built, examples=8)
    noise = torch.Generator().manual_seed(0)
    measured = set(minimized(built.terms(torch.ones(8, 1, 4, 4), minimized.num_samples, noise, relaxed=True)).metrics)
    everywhere = {"loss", "elbo", "rate", "distortion"}
    assert everywhere <= measured
    rows = re.findall(r"^\| (.*) \| (.*) \| .* \|$", text.partition("## metrics.jsonl")[2], re.MULTILINE)
    chosen = {f"`{choice}`" for choice in (f"model.name={model}", f"posterior.name={posterior}", objective)}
    told = " ".join(names for names, where in rows if chosen & set(where.split(", ")))
    assert measured - everywhere <= set(re.findall(r"`(\w+)`", told))


# -- pictures of the README ----------------------------------------------------------------------------------------


def test_figures_are_drawn_from_a_run_and_the_same_each_time(digits_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = script("figures")
    for out in ("one", "two"):
        words = ["--run", str(digits_run), "--map", str(digits_run), "--out", out]
        monkeypatch.setattr(sys, "argv", ["figures.py", *words])
        figures.main()
    drawn = sorted(path.name for path in Path("one").iterdir())
    assert drawn == sorted(set(re.findall(r"docs/images/([\w.-]+)", README)))
    for name in drawn:
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name


def test_the_opening_picture_shows_test_digits_above_their_reconstructions(digits_run: Run) -> None:
    figures = script("figures")
    shown = figures.look(digits_run, digits_run)
    found = vaelab.reconstruct(digits_run, figures.ROWS * figures.COLUMNS // 2, split="test")
    sheet = figures.tiled(shown.pairs)
    for row, column in ((0, 0), (2, 3)):
        for below, pictures in enumerate((found.original, found.x)):
            top, left = 9 * (2 * row + below), 9 * column
            cell = sheet[:, top : top + 8, left : left + 8]
            assert torch.equal(cell, pictures[row * figures.COLUMNS + column])
    encoding = vaelab.encode(digits_run, split="test")
    assert torch.equal(shown.latents, encoding.mean[: figures.MAP_EXAMPLES])
