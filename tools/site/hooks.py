"""Hooks of MkDocs: pages made at build time, links out of docs/, formulas.

The Markdown under docs/ is written for a code host and stays as it is.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.site import api, catalogue, formulas

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A line of the navigation for each generated page."""
    own: dict[str, list[Any]] = {
        "Catalogue": [
            {"Overview": "catalogue.md"},
            {"All in one table": "algorithms.md"},
            *({catalogue.built(e).module.class_name: f"catalogue/{catalogue.stem(e)}.md"}
              for e in catalogue.GENERATED),
        ],
        "API": [x.as_posix() for x, _ in api.pages()],
    }  # fmt: skip
    for entry in config.nav or []:
        (title,) = entry
        entry[title] = own.get(title, entry[title])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The generated pages: none of them is written under docs/."""
    made = {Path("index.md"): (ROOT / "README.md").read_text("utf-8")}
    made |= dict(api.pages()) | dict(catalogue.pages())
    for own in ("site.css", "iframe-worker.js"):
        made[Path(own)] = Path(__file__).with_name(own).read_text("utf-8")
    for path, text in made.items():
        files.append(File.generated(config, path.as_posix(), content=text))
    files.append(File.generated(config, "math.woff", content=formulas.font()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them, and a place to link to for every error's code."""
    source = page.file.src_uri
    if source == "errors.md":
        markdown = re.sub(
            r"^\| (SC\d+) \|",
            lambda m: f'| <a id="{m[1].lower()}"></a>{m[1]} |',
            markdown,
            flags=re.M,
        )
    markdown = re.sub(r"^```python .*$", "```python", markdown, flags=re.MULTILINE)
    home = PurePosixPath("." if source == "index.md" else f"docs/{source}").parent
    if source == "index.md":
        home = PurePosixPath()

    def moved(found: re.Match[str]) -> str:
        opening, target, anchor, closing = found.groups(default="")
        if re.match(r"[a-z]+:", target):
            return found[0]
        return f"{opening}{resolved(target, home, source, files)}{anchor}{closing}"

    return LINK.sub(moved, markdown)


def resolved(target: str, home: PurePosixPath, source: str, files: Files) -> str:
    """A link of a page in the folder ``home`` of the repository: to a page of the site, else to the
    repository's address."""
    where = posixpath.normpath((home / target).as_posix())
    inside = where.removeprefix("docs/")
    if where == "README.md":
        inside = "index.md"
    found = files.get_file_from_path(inside)
    if found and found.inclusion.is_included() and (inside != where or where == "README.md"):
        return os.path.relpath(inside, PurePosixPath(source).parent).replace(os.sep, "/")
    kind = "tree" if (ROOT / where).is_dir() else "blob"
    return f"{catalogue.REPOSITORY}/{kind}/main/{where}"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML."""
    return formulas.in_page(html)
