"""What the tests of pages read off them."""

import re
from pathlib import Path


def anchors(path: Path) -> set[str]:
    """What a link to a heading of this file may end in, as GitHub spells it."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))
