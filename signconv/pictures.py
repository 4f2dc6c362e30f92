"""Pictures that commands write: one way to refuse, and one to draw without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from signconv.errors import PictureError

FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raise PictureError, before anything is measured, for a picture that cannot be drawn."""
    if path.suffix not in FORMATS:
        raise PictureError("SC715", f"{path.name}: a picture's name ends in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PictureError(
            "SC609", f"drawing {path.name} needs matplotlib: pip install matplotlib"
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PictureError("SC717", f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def drawn(path: Path, **options: Any) -> Iterator[Any]:
    """The axes of a figure that is written to ``path`` at the end; PictureError where it cannot be.

    options: of matplotlib's ``subplots``.
    """
    check(path)
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(layout="constrained", **options)
    try:
        yield axes
        axes.spines[["top", "right"]].set_visible(False)
        try:
            figure.savefig(path, dpi=130, format=path.suffix[1:])
        except (OSError, ValueError) as error:
            raise PictureError("SC717", f"cannot draw {path}: {error}") from error
    finally:
        plt.close(figure)
