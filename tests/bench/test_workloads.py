"""The shapes that the targets are stated for."""

from math import prod

import pytest
import torch

from signconv.bench.workloads import MADE, choose
from signconv.errors import BenchError


def test_sizes_are_those_of_the_targets() -> None:
    a, b, c, d, e = choose("all")
    assert (len(a.shapes), a.elements) == (1, 2**28)
    assert len(b.shapes) == 145 and abs(b.elements / 1.24e9 - 1) < 0.01
    assert len(c.shapes) == 148 and c.elements == 124_439_808  # GPT-2 124M without its tied head
    assert d.shapes.count((64, 64)) == d.shapes.count((64,)) == 1000 and len(d.shapes) == 2000
    assert len(e.shapes) == 112 and abs(e.elements / 0.973e9 - 1) < 0.01


@pytest.mark.parametrize("quick", [False, True])
def test_rows_are_multiples_of_32(quick: bool) -> None:
    """So that every tensor has the state that bytes are counted for."""
    for w in choose("all", quick):
        assert all((prod(s[1:]) if len(s) > 1 else s[0]) % 32 == 0 for s in w.shapes), w.key


def test_quick_is_small() -> None:
    for w in choose("all", quick=True):
        assert w.elements < 100_000 and len(w.shapes) < 20


def test_choice() -> None:
    assert [w.key for w in choose("c, A,c")] == ["C", "A"]
    assert [w.key for w in choose("all")] == list(MADE)
    with pytest.raises(BenchError, match=r"unknown workload 'F'; .*valid: A, B, C, D, E, all"):
        choose("A,F")


def test_tensors_have_gradients_and_come_out_the_same() -> None:
    (w,) = choose("D", quick=True)
    once, again = w.tensors(torch.bfloat16, "cpu"), w.tensors(torch.bfloat16, "cpu")
    for p, q, shape in zip(once, again, w.shapes, strict=True):
        assert p.shape == shape and p.dtype == p.grad.dtype == torch.bfloat16
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad)
        assert p.grad.abs().max() > 0
