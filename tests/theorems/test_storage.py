"""C7 and C8: what nearest rounding to raw FP8 does to moments, and that block scales with
stochastic rounding do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from signconv.runtime.formats import FORMATS
from signconv.runtime.reference import ops as ref
from tests.support.runs import built, keywords, run

LANES = 20_000
UNIT = torch.tensor(127)  # the byte of scale 1
HISTORY = 103  # the step of arXiv 2604.15416, Table 12


def nearest(x: Tensor, fmt: str = "e4m3") -> Tensor:
    """To the nearest code and back: float64 in, float64 out."""
    return ref.decode_fp8(ref.encode_fp8_nearest(x.float(), fmt), fmt).double()


def stochastic(x: Tensor, rng: torch.Generator) -> Tensor:
    field = torch.randint(-(1 << 31), 1 << 31, x.shape, generator=rng).to(torch.int32)
    return ref.decode_fp8(ref.encode_fp8(x.float(), UNIT, field, "e4m3"), "e4m3").double()


# ---------------------------------------------------------------- C7


def zeros(fmt: str, beta: float, power: int, scale: float, signs: bool = False) -> float:
    """Percent of zero codes after 103 steps of an EMA of g**power, or of sign(g)."""
    rng = np.random.default_rng(21)
    s = torch.zeros(LANES, dtype=torch.float64)
    for _ in range(HISTORY):
        g = torch.tensor(rng.standard_normal(LANES) * scale)
        u = torch.sign(g) if signs else g**power
        s = nearest(beta * s + (1 - beta) * u, fmt)
    return 100 * (s == 0).double().mean().item()


#: format, beta, power of g; percent of zeros at gradients of size 1e-1, 1e-2, … 1e-6.
COLLAPSE = [
    ("e4m3", 0.9, 1, (3.5, 29.7, 100, 100, 100, 100)),
    ("e4m3", 0.999, 2, (100, 100, 100, 100, 100, 100)),
    ("e4m3", 0.95, 2, (0, 100, 100, 100, 100, 100)),
    ("e5m2", 0.999, 2, (None, 100, 100, 100, 100, 100)),
    ("e5m2", 0.95, 2, (0, None, 100, 100, 100, 100)),
    ("e5m2", 0.9, 1, (None, None, 2.7, 24, 100, 100)),
]


@pytest.mark.parametrize(("fmt", "beta", "power", "row"), COLLAPSE)
def test_raw_fp8_loses_its_moments(fmt: str, beta: float, power: int, row: tuple) -> None:
    for exponent, percent in enumerate(row, 1):
        if percent is not None:
            got = zeros(fmt, beta, power, 10.0**-exponent)
            assert got == pytest.approx(percent, abs=1.5), f"|g| about 1e-{exponent}"


@pytest.mark.parametrize("exponent", [1, 3, 6])
def test_raw_fp8_keeps_moments_of_signs(exponent: int) -> None:
    assert zeros("e4m3", 0.9, 1, 10.0**-exponent, signs=True) < 1


@pytest.mark.parametrize("fmt", ["e4m3", "e5m2"])
@pytest.mark.parametrize("step", [1, -1])
def test_largest_size_that_rounds_to_zero(fmt: str, step: int) -> None:
    """E4M3 2**-10, E5M2 2**-17: half the smallest code, and its neighbours."""
    edge = np.float32({"e4m3": 2.0**-10, "e5m2": 2.0**-17}[fmt])
    beside = np.nextafter(edge, np.float32(step), dtype=np.float32)
    assert nearest(torch.tensor([edge]), fmt).item() == 0
    assert (nearest(torch.tensor([beside]), fmt).item() == 0) is (step < 0)


@pytest.mark.parametrize("spec", ["adamw", "stosignsgd"])
@pytest.mark.parametrize("exponent", [1, 3, 6, 12])
def test_block_scales_keep_them(spec: str, exponent: int) -> None:
    """The built classes with FP8 state at the sizes that raw codes lose."""
    rng = np.random.default_rng(22)
    shape, scale = (128, 32), 10.0**-exponent
    grads = [torch.tensor(rng.standard_normal(shape) * scale).float() for _ in range(HISTORY)]
    _, state = run(built(spec, None, "fp8"), grads, {}, torch.zeros(shape))
    moments = [n.removesuffix("_scale") for n in state if n.endswith("_scale")]
    assert len(moments) == 2
    for name in moments:
        assert state[name].dtype is torch.uint8
        assert ((state[name] & 0x7F) == 0).double().mean() < 0.01


# ---------------------------------------------------------------- C8

#: beta: (final value, steps) from 0 to 1, from 1 to 0 and from 1 to -1; codes that never move.
STALL = {
    0.9: ((0.75, 11), (0.0078125, 46), (-0.75, 17), 5),
    0.95: ((0.5, 13), (0.625, 6), (-0.5, 28), 39),
    0.99: ((0.21875, 21), (1.0, 0), (1.0, 0), 127),
    0.999: ((0.0234375, 12), (1.0, 0), (1.0, 0), 127),
}


def settle(beta: float, start: float, target: float) -> tuple[float, int]:
    """Where an EMA rounded to nearest stops, and after how many steps."""
    m = torch.tensor([start], dtype=torch.float64)
    for t in range(1000):
        new = nearest(beta * m + (1 - beta) * target)
        if new == m:
            return m.item(), t
        m = new
    raise AssertionError("never settles")


@pytest.mark.parametrize("beta", STALL)
def test_nearest_rounding_stalls(beta: float) -> None:
    *ends, stuck = STALL[beta]
    assert [settle(beta, a, b) for a, b in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0))] == list(ends)
    codes = ref.decode_fp8(torch.arange(0x7F, dtype=torch.uint8), "e4m3").double()
    assert int((nearest(beta * codes) == codes).sum()) == stuck


@pytest.mark.parametrize(("beta", "steps"), [(0.9, 60), (0.99, 600), (0.999, 3000)])
def test_stochastic_rounding_does_not(beta: float, steps: int) -> None:
    """The mean follows the exact EMA within four standard errors; 2048 lanes, raw codes."""
    rng = torch.Generator().manual_seed(23)
    m = torch.zeros(2048, dtype=torch.float64)
    for _ in range(steps):
        m = stochastic(beta * m + (1 - beta), rng)
    exact = 1 - beta**steps
    assert abs(m.mean() - exact) < 4 * m.std() / len(m) ** 0.5
    assert settle(beta, 0.0, 1.0)[0] < exact - 0.2


@pytest.mark.parametrize("target", [1.0, -1.0])
def test_s3gd_reaches_its_limit(target: float) -> None:
    """With FP8 block scales; nearest rounding would stop it at 0.75."""
    grads = [torch.full((64, 32), 1e-4 * target)] * 80
    points, state = run(built("s3gd", None, "fp8"), grads, {"lr": 1.0}, torch.zeros(64, 32))
    m = ref.load_moment(state["m"], state["m_scale"], FORMATS["e4m3"])
    assert m.mean().item() == pytest.approx(target, abs=0.01)
    last = (points[-2] - points[-1]).mean().item()
    assert last == pytest.approx(target, abs=0.01)


def test_a_decayed_maximum() -> None:
    """beta2 = 0.99995: nearest rounding never decays it, stochastic rounding does, on average."""
    beta, steps = 0.99995, 2000
    rng = torch.Generator().manual_seed(24)
    g = torch.ones(2048, dtype=torch.float64)
    assert torch.equal(nearest(beta * g), g)
    for _ in range(steps):
        g = stochastic(beta * g, rng)
    assert abs(g.mean() - beta**steps) < 4 * g.std() / len(g) ** 0.5


# ---------------------------------------------------------------- G is read before it is stored


def shrinking(rng: np.random.Generator, steps: int) -> list[Tensor]:
    """Gradients that grow and shrink by element, so that G is set anew at every step somewhere."""
    walk = np.cumsum(rng.normal(0, 0.5, (steps, 128, 32)), axis=0)
    return [torch.tensor(np.exp(w) * rng.choice([-1, 1], w.shape)).float() for w in walk]


@pytest.mark.parametrize("beta2", [1.0, 0.9])
def test_rounding_never_puts_sigma_below_m(beta2: float) -> None:
    """m/G of IE-StoSignSGD with FP8 state stays within 1, although stored G falls below m."""
    cls = built("ie_stosignsgd", None, "fp8")
    p = torch.zeros(128, 32, requires_grad=True)
    optimizer = cls([p], backend="reference", **keywords(cls, {"lr": 1.0, "beta2": beta2}))
    below = largest = 0.0
    for g in shrinking(np.random.default_rng(25), 60):
        p.data.zero_()
        p.grad = g
        optimizer.step()
        m, top = (
            ref.load_moment(
                optimizer.state[p][n], optimizer.state[p][f"{n}_scale"], FORMATS["e4m3"]
            )
            for n in ("m", "G")
        )
        below += int((top < m.abs()).sum())
        largest = max(largest, p.detach().abs().max().item())
    assert largest == 1.0
    assert below > 1000


def test_stosignsgd_reads_the_fresh_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the real reference multiplies the noise by, seen where it is computed."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    plain = ref.nonneg_maximum

    def spy(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a, b, plain(a, b)))
        return seen[-1][2]

    monkeypatch.setattr(ref, "nonneg_maximum", spy)
    grads = shrinking(np.random.default_rng(26), 40)
    run(built("stosignsgd", None, "fp8"), grads, {}, torch.zeros(128, 32))
    assert len(seen) == 40
    assert all(bool((sigma >= m).all()) for _, m, sigma in seen)
    assert sum(int((stored < m).sum()) for stored, m, _ in seen[1:]) > 1000
