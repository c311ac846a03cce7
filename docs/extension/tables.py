"""Texts that are made from the code: a line `<!-- made: NAME -->` of a page is replaced by one of them."""

import ast
import inspect
import re
import tomllib
import typing
from collections.abc import Callable
from importlib import import_module
from pathlib import PurePath
from types import ModuleType
from typing import Any

from pydantic.fields import FieldInfo

import vaelab
from extension.combinations import combinations
from extension.github import ROOT
from vaelab import cli, config, recipes
from vaelab.diagnosis import foreign, run_checks

MODULES = (
    "data", "networks", "latents", "likelihoods", "posteriors", "priors", "objectives", "model", "hierarchical",
    "quantized", "labels", "composition", "training", "evaluation", "diagnosis", "generation", "comparison",
    "compression", "runs", "recipes", "config", "plugins", "errors", "noise", "course",
)  # fmt: skip
"""The public modules, in the order in which data go through them."""


def recipe_pages() -> str:
    """Each recipe: what it is, where it comes from, the command, what to expect, and its file."""
    parts: list[str] = []
    for recipe in map(recipes.load, recipes.names()):
        parts += [
            f"## {recipe.name}",
            f"{recipe.title}. {recipe.paper}.",
            f"```bash\n{recipe.command}\n```",
            f"Expected: {recipe.expected}.",
            f"```toml\n{recipe.text.rstrip()}\n```",
        ]
    return "\n\n".join(parts)


def command_pages() -> str:
    """Each command of the command line: what it does, its arguments and options, and an example."""
    import typer

    parts: list[str] = []
    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join(["vaelab", name, *command.collect_usage_pieces(context)])
        parts += [f"## vaelab {name}", command.help, f"```text\n{usage}\n```"]
        rows = [_parameter(parameter, context) for parameter in command.params]
        parts.append("\n".join(["| Argument or option | Meaning | Default |", "|---|---|---|", *rows]))
        parts.append(f"```bash\n{command.epilog.removeprefix('Example: ')}\n```")
    return "\n\n".join(parts)


def _parameter(parameter: Any, context: Any) -> str:
    """A row of the table, from what `--help` says."""
    shown, told = parameter.get_help_record(context)
    found = re.fullmatch(r"(?P<meaning>.*?)(?:  \[(?P<rest>.*)\])?", told)
    default = re.search(r"default: ([^;]*)", (found and found["rest"]) or "")
    meaning = found["meaning"] if found else told
    return f"| `{_cell(shown)}` | {_cell(meaning)} | {f'`{default[1]}`' if default else ''} |"


def configuration_page() -> str:
    """Every configuration key: type, default, meaning; part by part."""
    parts: list[str] = []
    for group in ("data", *config.PARTS, "training"):
        parts.append(f"## {group}")
        if group in config.FIXED:
            parts.append(_keys(group, "", config.FIXED[group]))
            continue
        parts.append(f"`{group}.name` chooses one of these. If nothing is chosen, it is `{config.PARTS[group]}`.")
        for name in config.names(group):
            part = config._registry[group][name]  # pyright: ignore[reportPrivateUsage]
            parts += [f"### {group}.name={name}", _summary(part.build)]
            if len(part.section.model_fields) > 1:
                parts.append(_keys(group, name, part.section))
    return "\n\n".join(parts)


def _keys(group: str, name: str, section: type[config.Section]) -> str:
    lines = ["| Key | Values | Default | Meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        if name and key == "name":
            continue
        default = "none" if field.default in (None, ()) else f"`{_told(field.default)}`"
        lines.append(f"| `{group}.{key}` | {_cell(_type(field))} | {default} | {_cell(meaning(group, name, key))} |")
    return "\n".join(lines)


def meaning(group: str, name: str, key: str) -> str:
    """What a key means: from docs/keys.toml, and for training from the tables of docs/training.md."""
    if group == "training":
        text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
        return {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", text, re.M)}[key]
    told = tomllib.loads((ROOT / "docs" / "keys.toml").read_text(encoding="utf-8"))[group]
    return told.get(name, {}).get(key) or told[key]


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(field: FieldInfo) -> str:
    """The values that a key takes, in words."""
    return _words(field.annotation, field.metadata)


def _words(hint: Any, metadata: Any = ()) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _words(args[0], args[1:])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        inner = _words(args[0])
        return f"{inner}, or several with commas" if args[-1] is Ellipsis else f"{len(args)} of {inner}, with a comma"
    if args:
        return " or ".join(_words(arg) for arg in args if arg is not type(None))
    bounds = _bounds(metadata)
    name = {int: "integer", float: "number", bool: "`true`, `false`", str: "text"}[hint]
    return f"{name} {bounds}".strip()


def _bounds(metadata: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found: dict[str, Any] = {}
    for one in metadata:
        for sub in getattr(one, "metadata", [one]):
            found |= {sign: getattr(sub, sign) for sign in signs if getattr(sub, sign, None) is not None}
    return ", ".join(f"{signs[sign]} {value}" for sign, value in found.items() if value < 2**31 - 1)


def _summary(thing: Any) -> str:
    """The first paragraph of a docstring, with backquotes as they are."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def public_names(module: ModuleType) -> list[str]:
    """The names that a module offers: its `__all__`, or what it defines itself without a leading underscore."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("__")]
    tree = ast.parse(inspect.getsource(module))
    defined = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, defined) and not node.name.startswith("_")]


def python_page(name: str) -> str:
    """What a module offers, each with its docstring. What `vaelab` itself offers is told there alone."""
    module = import_module(name)
    lines = ["```{eval-rst}", f".. automodule:: {name}", "   :no-members:", ""]
    for public in public_names(module):
        thing = getattr(module, public)
        if name != "vaelab" and getattr(vaelab, public, None) is thing:
            lines += [f"`{public}`: see :any:`vaelab.{public}`.", ""]
            continue
        kind = "class" if inspect.isclass(thing) else "function" if callable(thing) else "data"
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            kind = "exception"
        lines += [f".. auto{kind}:: {name}.{public}"]
        bases = ["   :show-inheritance:"] if inspect.isclass(thing) and thing.__bases__ != (object,) else []
        lines += ["   :members:", *bases, ""] if kind == "class" else [""]
    return "\n".join([*lines, "```"])


def annotated_list() -> str:
    """The annotated files as the entries of a table of contents, the one to read first on top."""
    files = [*sorted((ROOT / "reference").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
    names = sorted((file.stem for file in files), key=lambda name: name != "vae")
    return ":::{toctree}\n:maxdepth: 1\n\n" + "\n".join(f"annotated/{name}" for name in names) + "\n:::"


def module_list() -> str:
    """The modules as the entries of a table of contents."""
    return ":::{toctree}\n:maxdepth: 1\n\n" + "\n".join(f"api/vaelab.{name}" for name in MODULES) + "\n:::"


def paper_index() -> str:
    """Papers, their equations, and the code that carries them: docs/papers.toml."""
    papers = tomllib.loads((ROOT / "docs" / "papers.toml").read_text(encoding="utf-8"))["paper"]
    parts: list[str] = []
    for paper in papers:
        link = f", [arXiv:{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})" if "arxiv" in paper else ""
        parts.append(f"## {paper['title']}{link}")
        lines = ["| Where | What it says | Code |", "|---|---|---|"]
        for row in paper["equations"]:
            code = ", ".join(map(_link, row["code"]))
            lines.append(f"| {row['where']} | {_cell(row['says'])} | {code} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def illness_tables() -> str:
    """What the doctor looks for, in a run and in a foreign model, with the thresholds."""
    parts: list[str] = []
    for title, illnesses in (("In a run", run_checks.ILLNESSES), ("In a model of your own", foreign.ILLNESSES)):
        rows = [f"| `{one.name}` | {_cell(one.sought)} | {_cell(one.threshold)} |" for one in illnesses]
        parts += [f"## {title}", "\n".join(["| Name | What it is | When it is found |", "|---|---|---|", *rows])]
    return "\n\n".join(parts)


def _link(name: str) -> str:
    file, _, definition = name.partition("::")
    if not definition:
        return f"{{py:obj}}`{name}`"
    line = line_of(file, definition)
    code = f'<code class="docutils literal notranslate">{file}:{line}</code>'
    return f'<a href="../annotated/{PurePath(file).stem}.html#line-{line}">{code}</a>'


def line_of(file: str, name: str) -> int:
    """Where a file of the repository defines a function or class.

    Raises:
        KeyError: it does not.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}[name]


MADE: dict[str, Callable[[], str]] = {
    "recipes": recipe_pages,
    "commands": command_pages,
    "configuration": configuration_page,
    "combinations": combinations,
    "annotated": annotated_list,
    "modules": module_list,
    "papers": paper_index,
    "illnesses": illness_tables,
    "vaelab": lambda: python_page("vaelab"),
    **{f"vaelab.{name}": (lambda name=name: python_page(f"vaelab.{name}")) for name in MODULES},
}
