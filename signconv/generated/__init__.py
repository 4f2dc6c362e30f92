"""Generated optimizers: ``from signconv.generated.adamw_stosign import AdamWStoSign``.

The files themselves live in the root folder ``generated/`` of a checkout, and inside an
installed package in ``signconv/_generated``. This package finds them in either place; in a
checkout the root folder comes first, so a rebuilt file is the one that is imported.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_ROOT = _PACKAGE.parent

# Only a checkout of ours has signconv/ beside a pyproject.toml and a templates/ folder: a folder
# named "generated" that another distribution left in site-packages must not be taken for it.
_IS_CHECKOUT = (_ROOT / "pyproject.toml").is_file() and (_ROOT / "templates").is_dir()

if _IS_CHECKOUT:
    __path__.append(str(_ROOT / "generated"))
if (_PACKAGE / "_generated").is_dir():
    __path__.append(str(_PACKAGE / "_generated"))
