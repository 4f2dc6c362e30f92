"""For how much of a tensor an expression is one number."""

from __future__ import annotations

from pathlib import Path

import pytest

from signconv.ir.axes import has_axes, over, reduced_moments
from signconv.runtime.axes import AXES, ELEMENTS, broadcast, joined, kept, reduced, view
from signconv.verification.witnesses import shape_for
from tests.support import program_of


@pytest.mark.parametrize(("body", "found"), [
    ("update = grad - mean(grad, axis=-1)", True),
    ("numerator = grad\ndenominator = sqrt(mean(grad**2, axis=-2)) + 1e-8", True),
    ("update = where(ndim >= 2, grad, sign(grad))", True),
    ("s = ema(norm(grad), 0.9)\nupdate = grad / (s + 1)", True),
    ("m = ema(grad, 0.9)\nupdate = m / (norm(m) + 1)", False),
])  # fmt: skip
def test_a_matrix_is_looked_at_wherever_anything_runs_over_dimensions(
    tmp_path: Path, body: str, found: bool
) -> None:
    """In the update too, and not in names alone."""
    program = program_of(tmp_path, body)
    assert has_axes(program) == found
    assert len(shape_for(program)) == (2 if found else 1)


def test_states_are_kept_for_as_much_as_they_read(tmp_path: Path) -> None:
    program = program_of(
        tmp_path,
        "row = ema(mean(grad**2, axis=-1), 0.9)\n"
        "column = ema(mean(grad**2, axis=-2), 0.9)\n"
        "both = ema(row * column, 0.9)\n"
        "whole = ema(mean(row), 0.9)\n"
        "mixed = ema(row / (whole + 1), 0.9)\n"
        "update = grad / (sqrt(both) + mixed + 1)",
    )
    kept_for = {"row": "last", "column": "second_last", "whole": "", "mixed": "last"}
    assert reduced_moments(program) == kept_for
    assert over(program.numerator, program) == ELEMENTS


SHAPES = [(), (7,), (96,), (3, 5), (3, 64), (2, 3, 4), (2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("a", AXES)
@pytest.mark.parametrize("b", AXES)
def test_what_joins_broadcasts_and_what_reduces_leaves_its_shape(
    a: str, b: str, shape: tuple[int, ...]
) -> None:
    """Against shapes themselves: numbers of two kinds make those of their broadcast."""
    import torch

    one, two = (torch.empty(broadcast(shape, x), device="meta") for x in (a, b))
    together = torch.empty(broadcast(shape, joined(a, b)), device="meta").shape
    assert one.numel() == torch.empty(kept(shape, a), device="meta").numel()
    assert torch.broadcast_shapes(one.shape, two.shape, together) == together
    left = reduced(a, b)
    if left is not None and b != ELEMENTS:
        before, length, behind = view(shape, a, left)
        assert before * length * behind == one.numel()
        assert before * behind == torch.empty(kept(shape, left), device="meta").numel()
