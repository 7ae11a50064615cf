"""The site: `make docs` writes it to docs/_build; warnings are errors.

The repository is the source, so that a link leads to the same page here and where the files are read as they are.
"""

from rcnet import __version__

CALLBACK = "<function <lambda>>"  # a default that does nothing, as Sphinx writes it

project = "rcnet"
author = "the rcnet developers"
copyright = "the rcnet developers, Apache-2.0"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "results/*.md", "results/*/README.md", "results/*/*/README.md", "*.md"]
exclude_patterns = ["README.md", "docs/_build", "results/study"]
html_theme = "furo"
html_title = f"rcnet {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
default_role = "code"  # of `text` in docstrings
smartquotes_action = "D"  # dashes alone: what is quoted can be copied
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_use_ivar = True
html_extra_path = ["front"]  # leads to docs/index.html


def without_lambdas(app, what, name, obj, options, signature, returns):
    """The signature with `...` for callbacks that do nothing."""
    return (signature or "").replace(CALLBACK, "...") or signature, returns


def setup(app):
    app.connect("autodoc-process-signature", without_lambdas)
