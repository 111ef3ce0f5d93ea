"""Settings of the site (`make html`): the executed notebooks, the scorecard and the API."""

import shutil
from pathlib import Path

from replication import __version__ as release

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "Inner Activations"
author = "the authors"
extensions = ["myst_nb", "numpydoc", "sphinx.ext.autodoc", "sphinx-mathjax-offline"]
exclude_patterns = []

nb_execution_mode = "off"  # they are committed executed, at `full`
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 2
# Links of the repository to files that the site does not hold.
suppress_warnings = ["myst.xref_missing", "myst.header", "mystnb.unknown_mime_type"]

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say it
numpydoc_show_class_members = False

html_title = f"Inner Activations {release}"
html_theme_options = {
    "description": "Papers on generalisation, replicated from a network's inner activations",
    "fixed_sidebar": True,
    "page_width": "1100px",
}

# Sphinx reads what lies below its own folder.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(ROOT / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*"))


def setup(app) -> None:
    """Take bars in docstrings for norms, and not for substitutions of reStructuredText."""

    def escape(app, what, name, obj, options, lines) -> None:
        lines[:] = [line.replace("|", r"\|") for line in lines]

    app.connect("autodoc-process-docstring", escape, priority=900)
