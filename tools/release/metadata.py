"""The README as an index shows it: links into the repository are absolute there.

A build hook of hatchling (pyproject.toml, ``tool.hatch.metadata.hooks.custom``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

REPOSITORY = "https://github.com/signconv/signconv"
#: ``](target)`` where the target is no address and no place on the same page.
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)")


def absolute(text: str, version: str) -> str:
    """``text`` with links to the files of the tag of ``version``, raw ones for pictures."""

    def rewritten(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}{words}({REPOSITORY}/{kind}/v{version}/{target})"

    return LINK.sub(rewritten, text)


class ReadmeHook(MetadataHookInterface):
    """Sets ``readme``, which is declared as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, metadata["version"]),
        }
