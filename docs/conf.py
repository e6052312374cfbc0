"""Settings of the site that `make docs` builds with Sphinx. Pages are Markdown (MyST)."""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "skipwise"
release = re.search(r'__version__ = "(.+)"', Path("../src/skipwise/__init__.py").read_text())[1]
language = "en"

extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["alert", "colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]  # As forges write a formula.
myst_dmath_allow_digits = False  # "$2 or $3" is no formula.
myst_heading_anchors = 4  # The anchors that forges make, in lower case with hyphens.
nitpicky = True
smartquotes = False  # It would write the flag --base with a dash.
suppress_warnings = ["misc.highlighting_failure"]  # Output that is cut with "..." is no longer JSON or Python.

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"skipwise {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = html_show_sphinx = html_show_copyright = False

copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
copybutton_here_doc_delimiter = "EOF"


def _write_mathml(translator, node):
    block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app):
    """Formulas as MathML, which browsers draw by themselves: the page needs no script and no network."""
    app.add_html_math_renderer("mathml", (_write_mathml, None), (_write_mathml, None))


html_math_renderer = "mathml"
