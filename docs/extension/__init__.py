"""What the site needs beyond Sphinx: pages and tables made from the code, and files annotated side by side."""

import re
import shutil
from pathlib import Path
from typing import Any

from jupyter_cache import get_cache
from sphinx.application import Sphinx
from sphinx.config import Config

from extension import annotated, docstrings, github, pages, tables


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_config_value("vaelab_assets", {}, "html")
    app.connect("config-inited", _prepare)
    app.connect("source-read", _from_github)
    app.connect("html-page-context", _accessible)
    app.connect("build-finished", _copy_assets)
    annotated.setup(app)
    docstrings.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _prepare(app: Sphinx, config: Config) -> None:
    """Make the pages that are made, and the cache of outputs, which processes that began it at once would spoil."""
    pages.write(Path(app.srcdir))
    config.nb_execution_cache_path = config.nb_execution_cache_path or str(Path(app.outdir, ".jupyter_cache"))
    get_cache(config.nb_execution_cache_path).get_cache_limit()


def _from_github(app: Sphinx, docname: str, content: list[str]) -> None:
    if Path(str(app.env.doc2path(docname))).suffix != ".md":
        return
    if not docname.startswith(pages.MADE):
        content[0] = github.to_myst(content[0], f"docs/{docname}.md", docname, Path(app.srcdir))
    content[0] = re.sub(r"^<!-- made: ([\w.]+) -->$", lambda found: tables.MADE[found[1]](), content[0], flags=re.M)


def _accessible(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    """What Sphinx and MyST-NB write that a screen reader cannot make sense of."""
    if "body" not in context:
        return
    # What unfolds hidden code is called by the words on it ("Show the solution"), not all of them by the same.
    body = context["body"].replace(' aria-label="Toggle hidden content"', "")
    # The way back from a listing to the reference: Sphinx takes all names of a module to be documented in one place.
    objects = app.env.get_domain("py").objects  # pyright: ignore[reportAttributeAccessIssue]
    anchors = {f"{one.docname}#{name.rpartition('.')[2]}": one.node_id for name, one in objects.items()}

    def way_back(found: re.Match[str]) -> str:
        path, name = found[1], found[2]
        document = path.partition("/api/")[2].removesuffix(".html")
        anchor = objects[name].node_id if name in objects else anchors.get(f"api/{document}#{name.rpartition('.')[2]}")
        return f'<a class="viewcode-back" href="{path}#{anchor}">[docs]</a>' if anchor else ""

    body = re.sub(r'<a class="viewcode-back" href="([^"#]*)#([^"]*)">\[docs\]</a>', way_back, body)
    body = body.replace('<th class="head"><p></p></th>', "<td></td>")  # an empty cell heads nothing
    # Parameters on lines of their own are no list of definitions.
    context["body"] = re.sub(
        r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>",
        lambda m: m[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>"),
        body,
    )


def _copy_assets(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for target, file in app.config.vaelab_assets.items():
            path = Path(app.outdir, "_static", target)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, path)
