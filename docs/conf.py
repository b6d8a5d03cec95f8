"""The documentation as a site: `make docs`. Its pages are Markdown that reads as well without it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

PROJECT = Path(__file__).resolve().parent.parent
# Airflow writes its configuration there when it is imported, as it is for the docstrings.
os.environ.setdefault("AIRFLOW_HOME", str(PROJECT / ".airflow" / "docs"))

from airflow_provider_codegateway import __version__  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "airflow-provider-codegateway"
author = "airflow-provider-codegateway contributors"
copyright = author  # noqa: A001 - Sphinx's name
version = release = __version__

# The source is the whole repository: so links between pages, and from pages to code, are those that GitHub follows.
root_doc = "docs/README"
include_patterns = ["*.md", "benchmarks/README.md", "docs/*.md", "example_dags/README.md"]
exclude_patterns = [".*", "build", "demo-output", "dist"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4
highlight_language = "text"
default_role = "literal"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# Types of others, whose documentation is in the network, where a build need not be; and our names for literals.
nitpick_ignore_regex = [
    ("py:class", r"(?!airflow_provider_codegateway\.).*"),
    # The base of both operators is theirs alone: the reference has its arguments with each.
    ("py:class", r"airflow_provider_codegateway\.(operators|triggers)\.base\.Rendering(Operator|Trigger)"),
]

html_theme = "furo"
html_title = f"{project} {version}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#5a3e9b", "color-brand-content": "#5a3e9b"},
    "dark_css_variables": {"color-brand-primary": "#b7a3ee", "color-brand-content": "#b7a3ee"},
}
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "index.html"}  # leads to the root document
html_domain_indices = False


def _uncover(_app: Sphinx, _page: str, content: list[str]) -> None:
    """Show the site what ``<!-- site`` to ``-->`` hides from whoever reads the Markdown: directives."""
    content[0] = re.sub(r"(?ms)^<!-- site$(.*?)^-->$", r"\1", content[0])


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _uncover)
