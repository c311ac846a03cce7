"""The site: `sphinx-build -W -b html docs OUT`. Nothing is fetched, neither to build it nor to read it.

`FAST=1` runs the chapters at their short length. What they print and draw is kept in the folder that the environment
variable `VAELAB_NOTEBOOK_CACHE` names (default: in OUT), apart for each state of the library and each length.
"""

import importlib
import os
import sys
from pathlib import Path

import vaelab
from vaelab.course import FAST, site

sys.path.insert(0, str(Path(__file__).parent))
os.environ["IPYTHONDIR"] = str(Path(__file__).parent / "_kernel")  # sharp figures: see the profile there

project = "vaelab"
author = "The vaelab developers"
copyright = author  # noqa: A001 - so Sphinx calls it
version = release = vaelab.__version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "extension",
]
exclude_patterns = ["_build", "_kernel", "extension", "**/.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

# -- text ------------------------------------------------------------------------------------------------------------
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_dmath_allow_digits = False
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a chapter's sections may begin at any level
smartquotes = False  # two hyphens begin an option
default_role = "literal"  # single backquotes in docstrings

# -- chapters --------------------------------------------------------------------------------------------------------
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = -1  # a chapter's own tests hold it to its time
nb_execution_show_tb = True
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
_cache = os.environ.get("VAELAB_NOTEBOOK_CACHE")
if _cache:
    nb_execution_cache_path = str(site.outputs(Path(_cache).absolute(), FAST))

# -- reference -------------------------------------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

# -- pages -----------------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = "vaelab"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
templates_path = ["_templates"]
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_theme_options = {
    "sidebar_hide_name": False,
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#00588f", "color-brand-content": "#00588f"},
    "dark_css_variables": {"color-brand-primary": "#6fc0f0", "color-brand-content": "#6fc0f0"},
}
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"
copybutton_exclude = ".linenos, .gp"

# MathJax from the package sphinx-mathjax-offline: one file that holds its letters as outlines, so no font is fetched.
_mathjax = Path(importlib.import_module("sphinx-mathjax-offline").__file__ or "").parent / "static" / "mathjax"
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
vaelab_assets = {"mathjax/tex-svg.js": str(_mathjax / "tex-svg.js")}
