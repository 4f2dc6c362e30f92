"""The one Jinja environment; finds the templates in a checkout or in an installed wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from signconv.errors import BuildError


def template_folder() -> Path:
    """The root folder templates/ of a checkout, or its copy inside the wheel."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "templates", package / "_templates"):
        if (folder / "module.py.j2").is_file():
            return folder
    raise BuildError("SC608", f"the templates are missing beside {package}: install signconv again")


def environment() -> Environment:
    """Strict about undefined variables; templates hold structure only."""
    return _environment(template_folder())


@cache  # it keeps templates compiled, which costs more than rendering them
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # What is no page is Python, and only identifiers and numbers enter it
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
    )
