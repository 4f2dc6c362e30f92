"""docs/design.md#matrix-signs: iterations against the SVD, their errors, and the signs that there
are no passes for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signconv.ir.evaluate import Evaluator
from signconv.runtime import polar
from signconv.runtime.msign import matrix_sign
from signconv.verification.matrix import MARGIN, sign_error
from tests.support import program_of
from tests.support.runs import built

HOWS = ("quintic 5", "polar_express 8", "polar_express 5", "newton_schulz 16", "quintic 1")
SHAPES = ((8, 8), (32, 64), (128, 32), (1, 40), (40, 1), (1, 1))


def exact(x: np.ndarray, how: str) -> np.ndarray:
    """What the iteration makes of singular values, with the SVD's vectors."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(s)
    for a, b, c in polar.triples(how):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ v


def made(x: np.ndarray, how: str) -> np.ndarray:
    found = torch.empty(1, *x.shape)
    matrix_sign(torch.tensor(x, dtype=torch.float32)[None], how, found)
    return found[0].double().numpy()


def matrix(seed: int, shape: tuple[int, int], decades: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 10.0 ** -rng.uniform(0, decades, shape[1])
    return x.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), decades=st.sampled_from([0.0, 1.0, 3.0]))
def test_within_the_bound_of_bf16_products(
    how: str, shape: tuple[int, int], seed: int, decades: float
) -> None:
    x = matrix(seed, shape, decades)
    assert np.linalg.norm(made(x, how) - exact(x, how)) <= sign_error(x, 0.0, how)


@pytest.mark.parametrize("how", HOWS[:4])
def test_the_bound_is_no_more_than_it_needs_to_be(how: str) -> None:
    """Of ordinary matrices an error is a part of the root mean square, not a hundredth."""
    ratios = []
    for seed in range(20):
        x = matrix(seed, (48, 64))
        gap = np.linalg.norm(made(x, how) - exact(x, how))
        ratios.append(MARGIN * gap / sign_error(x, 0.0, how))
    assert 0.2 < np.median(ratios) < 2


def test_a_bound_of_a_perturbed_matrix_holds() -> None:
    rng = np.random.default_rng(7)
    for seed in range(20):
        x = matrix(seed, (12, 20))
        e = rng.standard_normal(x.shape)
        e *= 1e-4 * np.linalg.norm(x) / np.linalg.norm(e)
        for how in HOWS[:4]:
            gap = np.linalg.norm(exact(x + e, how) - exact(x, how))
            assert gap <= sign_error(x, float(np.linalg.norm(e)), how)


@pytest.mark.parametrize("how", HOWS)
def test_no_singular_value_is_above_the_largest(how: str) -> None:
    s = np.linspace(0, 1, 200_001)
    for a, b, c in polar.triples(how):
        s = np.abs(a * s + b * s**3 + c * s**5)
    top = polar.largest(how)
    assert s.max() <= top
    assert how == "polar_express 5" or top - s.max() < 0.21  # what the first steps reach at most


@pytest.mark.parametrize("how", HOWS[:4])
def test_what_is_large_enough_is_kept(how: str) -> None:
    least, start = polar.smallest_kept(how)
    s = np.geomspace(start, 1, 100_001)
    for a, b, c in polar.triples(how):
        s = a * s + b * s**3 + c * s**5
    assert s.min() >= 0.99 * least > 0.6


@pytest.mark.parametrize("how", ["polar_express 8", "newton_schulz 20"])
def test_comes_to_the_polar_factor(how: str) -> None:
    for shape in SHAPES:
        x = matrix(3, shape)
        u, _, v = np.linalg.svd(x, full_matrices=False)
        assert np.linalg.norm(exact(x, how) - u @ v) < 0.05 * np.sqrt(min(shape))
        assert np.linalg.norm(made(x, how) - u @ v) < 0.06 * np.sqrt(min(shape))


@pytest.mark.parametrize("power", [-100, -40, 30, 100])
def test_powers_of_two_change_no_bit(power: int) -> None:
    x = matrix(5, (24, 40)) * 2.0**-10
    assert np.array_equal(made(x, "quintic 5"), made(x * 2.0**power, "quintic 5"))


def test_zeros_stay_and_what_is_not_finite_shows() -> None:
    x = torch.zeros(3, 8, 5)
    x[1], x[2] = torch.randn(8, 5), torch.randn(8, 5)
    for bad in (torch.nan, torch.inf):
        x[2, 4, 3] = bad
        found = torch.empty_like(x)
        matrix_sign(x, "quintic 5", found)
        assert (found[0] == 0).all() and found[1].isfinite().all() and found[2].isnan().all()


def test_no_setting_of_torch_changes_a_bit() -> None:
    x = matrix(17, (96, 128))
    wanted = made(x, "quintic 5")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert np.array_equal(made(x, "quintic 5"), wanted)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert np.array_equal(made(x, "quintic 5"), wanted)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["normuon", "adamuon"])
def test_zeros_move_nothing_without_eps(name: str) -> None:
    """0/0 of an element, or of a row, is no reason to move, or to lose, the others."""
    p = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = built(name)([p], lr=1.0, eps=0.0, weight_decay=0.0, backend="reference")
    p.grad = torch.zeros(4, 6)
    optimizer.step()
    assert (p == 1).all()
    p.grad = torch.randn(4, 6)
    p.grad[2] = 0
    optimizer.step()
    assert p.isfinite().all() and (p[0] != 1).all() and (p[2] == 1).all()


@pytest.mark.parametrize("how", HOWS[:4])
@pytest.mark.parametrize("shape", [(28, 28), (28, 56), (44, 88)])
def test_alike_roundings_add_up_within_the_bound(how: str, shape: tuple[int, int]) -> None:
    for x in (0.7 * np.eye(*shape), np.ones(shape)):
        assert np.linalg.norm(made(x, how) - exact(x, how)) <= sign_error(x, 0.0, how)


# ---------------------------------------------------------------- what there is no pass for


def test_a_stochastic_matrix_sign_has_its_argument_as_mean() -> None:
    """One u for all singular values, of which any may be 0 or 1; by a second sign."""
    u, _, v = np.linalg.svd(matrix(11, (6, 9)), full_matrices=False)
    s = np.array([1.0, 0.9, 0.5, 0.25, 0.01, 0.0])
    x, points = (u * s) @ v, (np.arange(4000) + 0.5) / 2000 - 1
    mean = sum((u * np.sign(s - p)) @ v for p in points) / len(points)
    assert np.abs(mean - x).max() < 1e-3
    for p in (-0.6, 0.3, 0.7):
        left, _, right = np.linalg.svd(x - p * (u @ v), full_matrices=False)
        assert np.allclose(left @ right, (u * np.sign(s - p)) @ v)


def test_the_language_can_write_it(tmp_path: Path) -> None:
    """Over many steps with one gradient the updates' mean is the gradient over its bound."""
    program = program_of(
        tmp_path,
        """
        m = ema(grad, 0.0)
        bound = max_ema(norm(grad))
        x = m / bound
        u = 2 * ((t * 0.6180339887498949) % 1) - 1
        update = msign(
            x - u * msign(x, coefficients="polar_express", steps=12),
            coefficients="polar_express", steps=12,
        )
        """,
    )
    evaluator, g = Evaluator(program), matrix(13, (4, 6))
    start = np.zeros_like(g)
    state, total, steps = evaluator.initial_state(start), np.zeros_like(g), 400
    for t in range(1, steps + 1):
        moved, state = evaluator.step(start, g, state, t)
        total -= moved / evaluator.hypers["lr"]
    assert np.abs(total / steps - g / np.linalg.norm(g)).max() < 0.02


def test_the_smooth_matrix_sign_is_a_block_of_a_sign() -> None:
    x, c = matrix(12, (6, 9)), 0.7
    u, s, v = np.linalg.svd(x, full_matrices=False)
    left, _, right = np.linalg.svd(np.hstack([x, c * np.eye(6)]), full_matrices=False)
    assert np.allclose((left @ right)[:, :9], (u * (s / np.sqrt(s * s + c * c))) @ v)
