"""Parts of one's own: executed where they are asked for by name, and nowhere else."""

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import Cli, run_cli  # noqa: F401

import vaelab
from vaelab import config, plugins
from vaelab.errors import InputError

PLUGIN = '''
import math
from pathlib import Path

import torch

from vaelab.config import PositiveFloat, register
from vaelab.objectives import Loss, Objective
from vaelab.priors import Prior

with Path("trace.txt").open("a") as trace:
    trace.write("executed\\n")


@register("prior", "wide")
class Wide(Prior):
    """N(0, width² I)."""

    def __init__(self, latents, *, width: PositiveFloat = 2.0) -> None:
        super().__init__(latents)
        self.width = width
        self.shift = torch.nn.Parameter(torch.zeros(self.latent_dim))

    def log_prob(self, z):
        return -0.5 * (((z - self.shift) / self.width).square() + math.log(2 * math.pi * self.width**2)).sum(-1)

    def sample(self, num_samples, generator=None):
        noise = torch.randn(num_samples, self.latent_dim, generator=generator, dtype=self.origin.dtype)
        return self.shift + self.width * noise


@register("objective", "half-rate")
class HalfRate(Objective):
    def __init__(self, *, share: PositiveFloat = 0.5) -> None:
        super().__init__()
        self.share = share

    def loss(self, terms) -> Loss:
        return Loss((terms.distortion + self.share * terms.rate).mean(), {"share": terms.rate.new_tensor(self.share)})
'''
WORDS = ["--data", "digits", "--epochs", "1", "network.hidden=8", "model.latent_dim=2", "training.threads=1"]
WITH = ["--plugin", "mine.py", "prior.name=wide", "prior.width=3", "objective.name=half-rate"]


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The parts that a test has registered go, and plugins count as not loaded."""
    for group in config.PARTS:
        config.names(group)
    registry = config._registry  # pyright: ignore[reportPrivateUsage]
    before = {group: dict(found) for group, found in registry.items()}
    modules = set(sys.modules)
    monkeypatch.setattr(plugins, "_hashes", {})
    yield
    for group, found in before.items():
        registry[group].clear()
        registry[group].update(found)
    for name in set(sys.modules) - modules:
        if name.startswith(("vaelab_plugin", "installed_")):
            del sys.modules[name]


def forget() -> None:
    """As if this were another process, which has not loaded any plugin."""
    registry = config._registry  # pyright: ignore[reportPrivateUsage]
    for found in registry.values():
        for name in [name for name, part in found.items() if part.plugin is not None]:
            del found[name]
    plugins._hashes.clear()  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def traces(folder: Path) -> int:
    trace = folder / "trace.txt"
    return len(trace.read_text().splitlines()) if trace.exists() else 0


def vaelab_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "vaelab", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_run_made_with_a_plugin_never_executes_it_unless_it_is_given_again(mine: Path, tmp_path: Path) -> None:
    """In processes of their own: the plugin leaves a trace each time that it is executed."""
    done = vaelab_in(tmp_path, "train", *WORDS, *WITH, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert traces(tmp_path) == 1
    tables = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert tables["about"]["plugins"] == {"mine.py": hashlib.sha256(mine.read_bytes()).hexdigest()}
    assert "--plugin mine.py" in tables["about"]["command"]
    assert tables["prior"] == {"name": "wide", "width": 3.0}
    refused = vaelab_in(tmp_path, "evaluate", "run")
    assert refused.returncode == 2 and refused.stdout == ""
    assert len(refused.stderr.strip().splitlines()) == 1
    assert refused.stderr.startswith("vaelab: ") and "--plugin mine.py" in refused.stderr
    assert traces(tmp_path) == 1
    done = vaelab_in(tmp_path, "evaluate", "run", "--plugin", "mine.py", "--importance-samples", "2")
    assert done.returncode == 0 and "elbo" in done.stdout and traces(tmp_path) == 2
    assert done.stderr == ""


COMMANDS = [
    ("evaluate", "run"),
    ("sample", "run", "-n", "2"),
    ("reconstruct", "run", "-n", "2"),
    ("interpolate", "run", "-n", "1", "--steps", "2"),
    ("traverse", "run", "--steps", "2"),
    ("encode", "run", "-o", "codes.npz"),
    ("train", "--resume", "--out", "run"),
]


def test_every_command_refuses_without_and_works_with_it(run_cli: Cli, mine: Path, tmp_path: Path) -> None:  # noqa: F811
    assert run_cli("train", *WORDS, *WITH, "--out", "run").code == 0
    executed = traces(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for words in COMMANDS:
        forget()
        run_cli(*words).failed("prior.name=wide", "--plugin mine.py")
        assert traces(tmp_path) == executed
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for count, words in enumerate(COMMANDS, start=1):
        forget()
        result = run_cli(*words, "--plugin", "mine.py")
        assert result.code == 0, (words, result.err)
        assert traces(tmp_path) == executed + count
    forget()
    for call in (vaelab.load, vaelab.evaluate, vaelab.sample):
        with pytest.raises(InputError, match="--plugin mine.py") as caught:
            call(tmp_path / "run")
        assert "\n" not in str(caught.value)
    assert traces(tmp_path) == executed + len(COMMANDS)


def test_the_plugins_parts_are_what_was_trained(run_cli: Cli, mine: Path, tmp_path: Path) -> None:  # noqa: F811
    assert run_cli("train", *WORDS, *WITH, "--out", "run").code == 0
    run = vaelab.runs.Run.open(tmp_path / "run")
    (line,) = run.metrics()
    train = line["train"]
    assert train["share"] == pytest.approx(0.5)
    assert train["loss"] == pytest.approx(train["distortion"] + 0.5 * train["rate"], rel=1e-5)
    model = vaelab.load(run)
    assert type(model.prior).__name__ == "Wide" and model.prior.shift.any()  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_run_goes_on_with_its_plugin_to_the_bit(run_cli: Cli, mine: Path, tmp_path: Path) -> None:  # noqa: F811
    from safetensors.torch import load_file

    words = [*WORDS, *WITH]
    words[words.index("1")] = "2"
    assert run_cli("train", *words, "--out", "whole").code == 0
    forget()
    stop = "import os, signal, vaelab.training.loop as loop\n" + PLUGIN
    stop += "\nstep, calls = loop._step, 0\n\ndef stopping(*arguments):\n    global calls\n    calls += 1\n"
    stop += "    if calls == 15:\n        os.kill(os.getpid(), signal.SIGINT)\n    return step(*arguments)\n\n"
    stop += "loop._step = stopping\n"
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "mine.py").write_text(stop)
    done = vaelab_in(tmp_path / "stopped", "train", *words, "--out", "run", "training.precision=float32")
    assert done.returncode == 130, done.stderr
    (tmp_path / "stopped" / "mine.py").write_text(PLUGIN)
    done = vaelab_in(tmp_path / "stopped", "train", "--resume", "--out", "run", "--plugin", "mine.py")
    assert done.returncode == 0, done.stderr
    assert "mine.py is not the version that run was made with" in done.stderr
    whole, resumed = (load_file(tmp_path / path / "model.safetensors") for path in ("whole", "stopped/run"))
    assert all((whole[name] - resumed[name]).abs().max() < 1e-6 for name in whole)


@pytest.mark.parametrize("spelled", ["mine.py", "./mine.py", "{folder}/mine.py"])
def test_a_changed_file_is_reported_however_it_is_spelled(
    run_cli: Cli,  # noqa: F811
    mine: Path,
    tmp_path: Path,
    spelled: str,
) -> None:
    assert run_cli("train", *WORDS, *WITH, "--out", "run").code == 0
    forget()
    same = run_cli("evaluate", "run", "--limit", "20", "--plugin", spelled.format(folder=tmp_path))
    assert same.code == 0 and same.err == ""
    mine.write_text(PLUGIN + "\n# another version\n")
    forget()
    other = run_cli("evaluate", "run", "--limit", "20", "--plugin", spelled.format(folder=tmp_path))
    assert other.code == 0 and other.out == same.out
    assert other.err == "vaelab: mine.py is not the version that run was made with\n"


@pytest.mark.parametrize(("group", "name"), [("prior", "normal"), ("objective", "elbo"), ("model", "quantized")])
def test_names_of_vaelabs_own_parts_are_refused(run_cli: Cli, tmp_path: Path, group: str, name: str) -> None:  # noqa: F811
    (tmp_path / "mine.py").write_text(
        f"from vaelab.config import register\n\n\n@register('{group}', '{name}')\nclass Mine:\n    pass\n"
    )
    run_cli("train", *WORDS, "--plugin", "mine.py").failed(f"{group}.name={name}: vaelab has a part of that name")
    assert not (tmp_path / "runs").exists()
    assert config.part(group, name).build.__module__.startswith("vaelab.")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("def f(:\n    pass", "SyntaxError"),
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("from vaelab.config import register\nregister('priors', 'x')", "no such group; did you mean prior?"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_plugin_that_fails_is_one_line(run_cli: Cli, tmp_path: Path, code: str, says: str) -> None:  # noqa: F811
    (tmp_path / "mine.py").write_text(code)
    run_cli("train", *WORDS, "--plugin", "mine.py", "--out", "run").failed(says)
    assert not (tmp_path / "run").exists() and "vaelab_plugin_mine" not in sys.modules


def test_what_is_no_plugin_is_refused(run_cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    run_cli("train", "--plugin", "nothing.py").failed("plugin nothing.py: no such file")
    run_cli("train", "--plugin", "nothing").failed("plugin nothing: neither a .py file nor an installed plugin")
    (tmp_path / "folder.py").mkdir()
    run_cli("train", "--plugin", "folder.py").failed("plugin folder.py: no such file")


@pytest.mark.parametrize("target", ["installed_prior", "installed_prior:Wide"])
def test_an_installed_package_is_found_by_its_entry_point(
    run_cli: Cli,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    """A distribution as pip leaves it: importlib.metadata finds it, and nothing imports it unasked."""
    site = tmp_path / "site"
    (site / "installed_prior-1.0.dist-info").mkdir(parents=True)
    (site / "installed_prior-1.0.dist-info" / "METADATA").write_text("Name: installed-prior\nVersion: 1.0\n")
    (site / "installed_prior-1.0.dist-info" / "entry_points.txt").write_text(f"[vaelab.plugins]\nwide = {target}\n")
    (site / "installed_prior.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(site))
    run_cli("train", *WORDS, "prior.name=wide").failed("prior.name=wide: unknown")
    assert traces(tmp_path) == 0
    assert run_cli("train", *WORDS, "--plugin", "wide", "prior.name=wide", "--out", "run").code == 0
    digest = hashlib.sha256(PLUGIN.encode()).hexdigest()
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["about"]["plugins"] == {"wide": digest}
    forget()
    sys.modules.pop("installed_prior")
    run_cli("sample", "run").failed("--plugin wide")
    assert traces(tmp_path) == 1
    run_cli("train", "--plugin", "wider").failed("plugin wider", "wide")
    assert run_cli("sample", "run", "-n", "2", "--plugin", "wide").code == 0


def test_two_plugins_and_only_those_that_a_run_needs_are_recorded(run_cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    prior, objective = PLUGIN.split('@register("objective"')
    head = prior.split('@register("prior"')[0]
    (tmp_path / "a.py").write_text(prior)
    (tmp_path / "b.py").write_text(head + '@register("objective"' + objective)
    both = ["--plugin", "a.py", "--plugin", "b.py"]
    assert run_cli("train", *WORDS, *both, "prior.name=wide", "objective.name=half-rate", "--out", "run").code == 0
    about = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["about"]
    assert list(about["plugins"]) == ["a.py", "b.py"]
    forget()
    run_cli("evaluate", "run").failed("prior.name=wide", "a.py", "b.py")
    forget()
    run_cli("evaluate", "run", "--plugin", "b.py").failed("prior.name=wide")
    forget()
    assert run_cli("evaluate", "run", "--limit", "20", *both).code == 0
    assert run_cli("train", *WORDS, *both, "objective.name=half-rate", "--out", "other").code == 0
    assert list(tomllib.loads((tmp_path / "other" / "config.toml").read_text())["about"]["plugins"]) == ["b.py"]
    assert run_cli("train", *WORDS, *both, "--out", "neither").code == 0
    assert "plugins" not in tomllib.loads((tmp_path / "neither" / "config.toml").read_text())["about"]


def test_two_plugins_cannot_have_one_name(run_cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    """Else which of them a run was made with would hang on their order."""
    (tmp_path / "a.py").write_text(PLUGIN)
    (tmp_path / "b.py").write_text(PLUGIN)
    given = ["train", *WORDS, "--plugin", "a.py", "--plugin", "b.py", "prior.name=wide"]
    run_cli(*given).failed("plugin b.py: prior.name=wide: plugin a.py has a part of that name")
    assert not (tmp_path / "runs").exists()
    forget()
    plugins.load_plugin("b.py")
    plugins.load_plugin("b.py")  # the same one again: a notebook's cell that is run twice


def test_a_function_that_makes_a_part_is_one_too(run_cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    """`register` takes either; what it returns says of what kind it is."""
    (tmp_path / "mine.py").write_text(
        "from vaelab.config import PositiveInt, register\nfrom vaelab.latents import LatentSpec\n"
        "from vaelab.priors import CategoricalPrior, MixturePrior\n\n\n"
        "@register('prior', 'few')\ndef few(latents: LatentSpec, *, number: PositiveInt = 3) -> MixturePrior:\n"
        "    return MixturePrior(latents, components=number)\n\n\n"
        "@register('prior', 'free')\ndef free(latents: LatentSpec) -> CategoricalPrior:\n"
        "    return CategoricalPrior(latents, learned=True)\n"
    )
    given = ["train", *WORDS, "--plugin", "mine.py"]
    assert run_cli(*given, "prior.name=few", "prior.number=4", "--out", "run").code == 0
    assert len(vaelab.load("run").prior.logits) == 4  # type: ignore[union-attr]
    assert run_cli(*given, "prior.name=free", "posterior.name=gumbel-softmax", "--out", "other").code == 0
    run_cli(*given, "prior.name=free").failed("prior.name=free is a distribution of one-hot categories", "few")
    run_cli(*given, "posterior.name=deterministic").failed("posterior.name=gaussian")


def test_a_function_must_say_what_it_makes(run_cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "mine.py").write_text(
        "from vaelab.config import register\nfrom vaelab.priors import StandardNormal\n\n\n"
        "@register('prior', 'silent')\ndef silent(latents):\n    return StandardNormal(latents)\n"
    )
    run_cli("train", *WORDS, "--plugin", "mine.py", "prior.name=silent").failed("prior.name=silent", "-> MyPrior")
