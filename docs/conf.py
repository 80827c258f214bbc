"""How Sphinx builds these pages: `make docs` (HTML) and `make man`. A warning is an error there."""

import re
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import generated

import poolserver

project = "poolserver"
author = "the poolserver authors"
copyright = author
release = version = poolserver.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"poolserver {release}"
html_copy_source = False

smartquotes = False  # -- is an option's beginning here, and no dash

myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]

autodoc_typehints = "none"  # the signature has them, in the words of the source
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True

nitpicky = True
# The standard library's pages are on the network, which a build does not need; a name of ours must lead somewhere.
nitpick_ignore_regex = [(r"py:.*", r"(?!poolserver\b).*")]

man_pages = [
    ("poolserver.1", "poolserver", "production server for the handlers of Python's socketserver", "", 1),
    ("configuration", "poolserver.toml", "configuration of poolserver", "", 5),
]
man_make_section_directory = False


def fill_in(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Put what is made from the code where a page says so; a page named as ``NAME*`` need not be there."""
    source[0] = re.sub(r"^(\w+)\*$", _if_there, generated.filled(source[0]), flags=re.MULTILINE)


def _if_there(found: re.Match[str]) -> str:
    return found[1] if Path(__file__).with_name(f"{found[1]}.md").exists() else ""


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_lexer("haproxy", TextLexer)
    app.connect("source-read", fill_in)
