"""C1: the stochastic sign is unbiased, exactly, and as exactly as its 22 bits of noise allow.

The generated reference is asked for its sign at chosen noise values.  A sign never falls as the
noise grows (rounding keeps order), so all 2^22 values are counted from the two blocks of 2048 in
which it changes; one test goes through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch

from signconv.runtime.reference import ops as ref
from tests.support.runs import built, converted, keywords, run, updates

N = 1 << 22
BLOCK = 1 << 11
FP32 = 3e-7  # what the fp32 moments and their products themselves are off


def stated(r: Fraction, n: int) -> Fraction:
    """The mean of sign(r + noise) over n midpoints, by docs/design.md#the-unbiased-sign."""
    if abs(r) >= 1:
        return Fraction(int(r > 0) - int(r < 0))
    if (n * r).denominator == 1 and (n * r).numerator % 2:
        return r
    return Fraction(2 * math.floor(n * (1 + r) / 2 + Fraction(1, 2)) - n, n)


def enumerated(r: Fraction, n: int) -> Fraction:
    arguments = (n * r + 2 * u + 1 - n for u in range(n))
    return Fraction(sum((x > 0) - (x < 0) for x in arguments), n)


RATIOS = [Fraction(j, 1024) for j in range(-1030, 1031, 7)] + [
    Fraction(sign * a, b) for sign in (-1, 1) for a, b in ((0, 1), (1, 3), (1, 7), (254, 255))
]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_formula_by_enumeration(k: int) -> None:
    n = 1 << k
    odd = [Fraction(j, n) for j in range(-n, n + 1)]
    for r in (*RATIOS, *odd):
        mean = enumerated(r, n)
        assert mean == stated(r, n) == -stated(-r, n)
        assert abs(mean - max(min(r, 1), -1)) < Fraction(1, n)
        assert (mean == r) is ((n * r).denominator == 1 and abs(r) <= 1)
        assert mean == 0 or abs(n * r) >= 1


# ---------------------------------------------------------------- the real reference

Means = Callable[..., np.ndarray]
#: m is the gradient, and G its largest ever, as the paper has it.
STILL = {"momentum": 0.0, "beta2": 1.0}
Signs = Callable[[torch.Tensor], torch.Tensor]


def field_of(u: torch.Tensor) -> torch.Tensor:
    """The field whose sign noise is the u-th of the N midpoints."""
    return u.to(torch.int32) << 10


class Given:
    """A word of random bits whose fields are all this one."""

    def __init__(self, field: torch.Tensor) -> None:
        self.given = field

    def field(self, which: int) -> torch.Tensor:
        return self.given


def counted(signs: Signs, rows: int) -> np.ndarray:
    """The mean of a sign over all N noise values; ``signs`` maps u [rows, k] to signs."""
    starts = torch.arange(0, N, BLOCK).expand(rows, -1)
    coarse = signs(starts)
    assert (coarse.diff(dim=1) >= 0).all()
    below = []
    for lower in (coarse < 0, coarse <= 0):
        first = (lower.sum(dim=1, keepdim=True) - 1).clamp(min=0) * BLOCK
        fine = signs(first + torch.arange(BLOCK))
        assert (fine.diff(dim=1) >= 0).all()
        lower = fine < 0 if not below else fine <= 0
        below.append(first[:, 0] + lower.sum(dim=1))
    negative, not_positive = below
    return ((N - not_positive - negative).double() / N).numpy()


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> Means:
    """Mean update of each row of gradients after the last step, over every noise value."""

    def mean(name: str, convert: str | None, steps: Sequence[np.ndarray], **hypers: float):
        cls, rows = built(name, convert, "fp32"), len(steps[0])
        hypers = {"lr": 1.0, "weight_decay": 0.0, **hypers}

        def signs(u: torch.Tensor) -> torch.Tensor:
            monkeypatch.setattr(ref, "draw_words", lambda *_: [Given(field_of(u).flatten())])
            grads = [torch.tensor(g).float()[:, None].expand_as(u) for g in steps]
            start = torch.zeros(u.shape)
            points, _ = run(cls, grads, hypers, start)
            change = (points[-2] if len(points) > 1 else start) - points[-1]
            assert set(change.unique().tolist()) <= {-1.0, 0.0, 1.0}
            return change.int()

        return counted(signs, rows)

    return mean


def test_the_noise_is_the_midpoints() -> None:
    u = torch.arange(N)
    fields = field_of(u)
    wanted = (2 * u.numpy() + 1 - N) / N
    for below in (0, 0x155, 0x3FF):  # the ten bits that do not count
        assert np.array_equal(ref.sign_noise(fields | below).double().numpy(), wanted)


def test_counting_by_blocks_is_counting() -> None:
    """Against all N signs of the linear form, and of the squared one."""
    noise = ref.sign_noise(field_of(torch.arange(N)))
    rows = [(0.3, 1.0), (-0.7, 0.9), (1 / 3, 2.0), (0.0, 1.0), (2.0, 1.0), (-2.0, 1.0), (0.0, 0.0)]
    for power in (1, 2):
        r = torch.tensor([[m**power * (1 if m > 0 else -1) ** (power - 1), g] for m, g in rows])
        shaped = noise if power == 1 else noise * noise.abs()
        full = [torch.sign(m + g * shaped).double().mean().item() for m, g in r]
        fast = counted(lambda u, r=r, n=shaped: torch.sign(r[:, :1] + r[:, 1:] * n[u]), len(r))
        assert fast.tolist() == full


EXACT = [
    (Fraction(a, b), size)
    for size in (1.0, 0.75, 2.0**-40)
    for a, b in ((0, 1), (1, 1), (1, 2), (3, 4), (5, 8), (7, 128), (1, N), (3, N), (1, 2 * N))
]


def test_linear_form_is_exact(means: Means) -> None:
    """StoSignSGD, m = r*G with every product exact: the formula, odd N*r and dead zone included."""
    ratios = [sign * r for sign in (1, -1) for r, _ in EXACT]
    size = np.array([s for _ in (1, -1) for _, s in EXACT])
    got = means("stosignsgd", None, [size, size * np.array(ratios, dtype=float)], **STILL)
    assert [Fraction(x) for x in got] == [stated(r, N) for r in ratios]


@pytest.mark.parametrize(("largest", "momentum"), [(3.0, 0.0), (1e-20, 0.0), (1e6, 0.9)])
def test_linear_form_is_within_one_draw(means: Means, largest: float, momentum: float) -> None:
    """Any m and G: rounding can turn a sign only to 0, and only for one noise value."""
    rng = np.random.default_rng(3)
    steps = [largest * rng.uniform(-1, 1, 40) for _ in range(4)]
    steps = [g.astype(np.float32).astype(float) for g in steps]
    hypers = {"momentum": momentum, "beta2": 1.0}
    got = means("stosignsgd", None, steps, **hypers)
    (*_, r) = updates(converted("stosignsgd"), steps, **hypers)
    wanted = np.array([float(stated(Fraction(x), N)) for x in r])
    assert np.max(np.abs(got - wanted)) <= 1 / N + (FP32 if momentum else 0)


SQUARED = {
    "AdamW, squares": ("adamw", "stosign", {"eps": 0.0}),
    "S3 of order 3, cubes": ("adamw", "soft:p=3,nesterov,stosign", {}),
    "RMSprop, squares": ("rmsprop", "stosign", {"eps": 0.0}),
}


@pytest.mark.parametrize("name", SQUARED)
def test_power_forms(name: str, means: Means) -> None:
    """The clipped ratio to 1/N and fp32's own error; odd in the gradient; no gradient, no step."""
    spec, convert, zero = SQUARED[name]
    rng = np.random.default_rng(4)
    steps = [10.0 ** rng.uniform(-3, 1, 24) * rng.standard_normal(24) for _ in range(5)]
    steps = [np.concatenate([g, -g, [0.0]]).astype(np.float32).astype(float) for g in steps]
    got = means(spec, convert, steps)
    before = convert.replace(",stosign", "").replace("stosign", "") or None
    (*_, r) = updates(converted(spec, before), steps, **zero)
    assert np.max(np.abs(got - np.clip(r, -1, 1))) <= 1 / N + FP32
    assert np.array_equal(got[:24], -got[24:48])
    assert got[48] == 0


def test_left_ends_would_be_seen(means: Means, monkeypatch: pytest.MonkeyPatch) -> None:
    """2u/N - 1, what ``2*rand() - 1`` gives: biased, not odd, wrong at m = sigma."""
    monkeypatch.setattr(ref, "sign_noise", lambda field: ((field >> 10 & (N - 1)) * 2.0 - N) / N)
    r = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 1 / N])
    got = means("stosignsgd", None, [np.ones(6), r], **STILL)
    assert (got <= r).all() and (got < r).any()
    assert got[1] != -got[2]
    assert got[3] < 1


# ---------------------------------------------------------------- what follows from it


def gradient(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(10.0 ** rng.uniform(-3, 1, 256) * rng.standard_normal(256)).float()


def test_first_step_is_signsgds() -> None:
    """G = |m| and |n| < 1 leave nothing to chance."""
    start = torch.zeros(256)
    first, _ = run(built("stosignsgd"), [gradient(1)], {"lr": 0.5}, start)
    plain, _ = run(built("signsgd"), [gradient(1)], {"lr": 0.5}, start)
    assert torch.equal(first[0], plain[0])
    assert (first[0] != 0).all()


@pytest.mark.parametrize("exponent", [-30, -3, 30])
def test_scale_invariance(exponent: int) -> None:
    """Gradients times a power of two: the same steps, bit for bit."""
    grads = [gradient(seed) for seed in range(6)]
    start = torch.linspace(-1, 1, 256)
    one, _ = run(built("stosignsgd"), grads, {}, start)
    other, _ = run(built("stosignsgd"), [g * 2.0**exponent for g in grads], {}, start)
    assert torch.equal(torch.stack(one), torch.stack(other))


def test_seeds_draw_differently() -> None:
    """Otherwise the means above would say nothing about a single run."""
    grads = [gradient(seed) for seed in range(6)]
    cls = built("stosignsgd")
    a, b = (run(cls, grads, {}, torch.zeros(256), seed=s)[0][-1] for s in (1, 2))
    assert not torch.equal(a, b)
    assert keywords(cls, {})["beta2"] == 0.99
