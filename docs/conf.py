"""The site: its guides in Markdown, its reference from the docstrings.

sphinx-build -W --keep-going docs runs/site
"""

import hw1jax

project = "hw1jax"
release = version = hw1jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
copyright = "the hw1jax authors"
html_theme = "furo"
html_title = f"hw1jax {release}"
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a benchmark's headings are those of its file
napoleon_use_ivar = True  # or fields of a NamedTuple stand twice
autodoc_member_order = "bysource"
napoleon_attr_annotations = False
autodoc_typehints = "none"  # signatures show them; docstrings say shapes and units
autodoc_default_options = {"members": True, "show-inheritance": False}
