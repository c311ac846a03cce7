"""Parts of your own: a Python file, or an installed package, that calls `vaelab.config.register`.

A plugin is executed where it is asked for by name, and nowhere else. A run records the names and hashes of the plugins
that its parts came from; loading the run does not execute them.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from vaelab.config import PARTS, Config, names, origin, part
from vaelab.errors import InputError

GROUP = "vaelab.plugins"
"""Entry points of this group name modules; `--plugin NAME` imports one."""

_hashes: dict[str, str] = {}


def load_plugin(name: str) -> None:
    """Execute a plugin: a file (`my_prior.py`), or the name of an entry point of the group `vaelab.plugins`.

    Raises:
        InputError: there is none of that name, or it fails, or it has a part whose name another plugin has taken.
    """
    path = Path(name)
    for group in PARTS:  # vaelab's own parts first: their names are taken
        names(group)
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if path.suffix != ".py" and name not in known:
        raise InputError(f"plugin {name}: neither a .py file nor an installed plugin ({', '.join(known) or 'none'})")
    if path.suffix == ".py" and not path.is_file():
        raise InputError(f"plugin {name}: no such file")
    before = _makers()
    with origin(name):
        try:
            module = _execute(path) if path.suffix == ".py" else known[name].load()
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"plugin {name}: {type(error).__name__}: {error}") from error
    file = getattr(module, "__file__", None) or getattr(sys.modules.get(module.__module__), "__file__", None)
    _hashes[name] = hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
    for key, maker in _makers().items():
        if (other := before.get(key)) not in (None, maker):
            raise InputError(f"plugin {name}: {key}: plugin {other} has a part of that name; rename one of them")


def used(config: Config) -> dict[str, str]:
    """The plugins that the parts of a configuration came from, and the SHA-256 of each."""
    found = [part(group, config.name(group)).plugin for group in PARTS]
    return {name: _hashes[name] for name in found if name is not None}


def changed(recorded: Mapping[str, Any]) -> list[str]:
    """Plugins that are recorded in another version than any that is loaded now, wherever its file lies."""
    return [name for name, digest in recorded.items() if _hashes and digest not in _hashes.values()]


def _makers() -> dict[str, str]:
    """Which plugin each part of a plugin came from: `{"prior.name=mine": "my_prior.py"}`."""
    found = {f"{group}.name={name}": part(group, name).plugin for group in PARTS for name in names(group)}
    return {key: plugin for key, plugin in found.items() if plugin is not None}


def _execute(path: Path) -> ModuleType:
    name = f"vaelab_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
