"""signconv.inspect: shares of states with known contents, stalls of a step, bytes, the table."""

from __future__ import annotations

import json

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.s3gd_fp8raw_mathbf16 import S3GDFP8RAWMathBF16
from torch import Tensor, nn

import signconv
from signconv.runtime.inspect import SAMPLE, Health, Row, _parts
from signconv.runtime.optimizer import FusedOptimizer
from tests.support.runs import built


def stepped(
    cls: type[FusedOptimizer], *params: Tensor, scale: float = 1e-2, **arguments: object
) -> FusedOptimizer:
    optimizer = cls([p.requires_grad_() for p in params], backend="reference", **arguments)
    step(optimizer, scale)
    return optimizer


def step(optimizer: FusedOptimizer, scale: float = 1e-2, seed: int = 0) -> None:
    rng = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = (torch.randn(p.shape, generator=rng) * scale).to(p.dtype)
    optimizer.step()


def row(health: Health, moment: str, i: int = 0) -> Row:
    return [r for r in health.rows if r.moment == moment][i]


def test_fp8_shares_are_those_of_the_codes() -> None:
    p = torch.ones(10, 64)
    optimizer = stepped(AdamW, p)
    m, v = optimizer.state[p]["m"].view(-1), optimizer.state[p]["v"].view(-1)
    m.fill_(0x11)
    v.fill_(0x11)
    m[:64] = 0x00
    m[64:96] = 0x80  # a negative zero is a zero
    m[96:100], m[100:110] = 0x7E, 0xFE
    m[110:113], m[113:114] = 0x7F, 0xFF
    v[:5], v[5:12], v[12:13] = 0xF7, 0xF8, 0xFF
    with torch.no_grad():
        p[0, :3], p[1, 0], p[2, 2] = 0.0, float("inf"), float("nan")
    health = signconv.inspect(optimizer)
    found = row(health, "m")
    assert (found.zero, found.saturated, found.nonfinite) == (96 / 640, 14 / 640, 4 / 640)
    found = row(health, "v")
    assert (found.zero, found.saturated, found.nonfinite) == (0, 5 / 640, 8 / 640)
    found = row(health, "")
    assert (found.zero, found.saturated, found.nonfinite) == (3 / 640, 0, 2 / 640)
    assert (row(health, "m").format, row(health, "v").format) == ("e4m3", "e5m3")
    assert row(health, "m").bytes == 640 + 20
    assert health.state_bytes == 2 * 660
    assert health.parameter_bytes == 2560


def test_shares_of_whole_numbers() -> None:
    """-127 and 127 are ordinary codes, but of the largest scale; rows end in a partial block."""
    p = torch.ones(4, 40)
    optimizer = stepped(built("sgd", None, "int8"), p)
    m, scale = optimizer.state[p]["m"], optimizer.state[p]["m_scale"]
    m.fill_(0x11)
    m[0, :3], m[1, 35:39] = 0x80, 0
    m[2], m[3, :5], m[3, 39] = 0x7F, 0x81, 0x81
    scale.fill_(130)
    scale[2, 1], scale[3, 0] = 248, 248
    found = row(signconv.inspect(optimizer), "m")
    assert (found.zero, found.saturated, found.nonfinite) == (4 / 160, 13 / 160, 3 / 160)
    assert (found.format, found.bytes) == ("int8", 160 + 8)


def test_partial_blocks_are_counted() -> None:
    """Two codes to a byte: the last byte of a row of 33 holds one, and its rest is no zero."""
    for state, size in (("fp8", 33), ("fp4", 17)):
        p = torch.ones(4, 33)
        optimizer = stepped(built("adamw", None, state), p)
        v = optimizer.state[p]["v"]
        v.zero_()
        v[0, 0] = v[1, -1] = 0xFF if state == "fp8" else 0x0F
        health = signconv.inspect(optimizer)
        found = row(health, "v")
        assert (found.note, found.bytes) == ("", 4 * (size + 2))
        assert (found.nonfinite, found.zero) == (2 / 132, 130 / 132)
        stalls(optimizer, p)


def test_samples_are_small_whatever_the_rows() -> None:
    for shape in ((200_001,), (3, 70_001), (90_000, 2)):
        p = torch.zeros(shape)
        optimizer = stepped(built("adamw", None, "fp4"), p)
        sizes = [x.sample().numel() for x in _parts(optimizer, p, "x")]
        assert max(sizes) <= SAMPLE and min(sizes) > SAMPLE // 8


def stalls(optimizer: FusedOptimizer, p: torch.Tensor) -> None:
    """The watched step reads samples of every row."""
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert row(signconv.inspect(optimizer), "m").stalled is not None


def test_whole_master_weights_say_why() -> None:
    p, q = torch.ones(4, 33, dtype=torch.bfloat16), torch.ones(4, 32, dtype=torch.bfloat16)
    health = signconv.inspect(stepped(AdamW, p, q, master="split"))
    found = row(health, "master")
    assert (found.format, found.note, found.bytes) == ("fp32", "row of 33", 4 * 33 * 4)
    assert row(health, "master", 1).note == ""
    assert "row of 33" in str(health) and "kept whole" in health.notes[0]


def test_wide_states_are_counted() -> None:
    p = torch.ones(4, 33)
    optimizer = stepped(built("adamw", None, "bf16"), p)
    state = optimizer.state[p]["v"]
    state.zero_()
    state[0, 0], state[0, 1] = float("nan"), torch.finfo(torch.bfloat16).max
    found = row(signconv.inspect(optimizer), "v")
    assert (found.format, found.bytes) == ("bf16", 4 * 33 * 2)
    assert (found.nonfinite, found.saturated, found.zero) == (1 / 132, 1 / 132, 130 / 132)


def test_bytes_are_those_of_the_tensors() -> None:
    ps = [torch.randn(8, 64).bfloat16(), torch.randn(33).bfloat16(), torch.randn(5, 32)]
    optimizer = stepped(AdamWStoSign, *ps, master="split")
    health = signconv.inspect(optimizer)
    held = 0
    for s in optimizer.state.values():
        held += sum(v.nbytes for k, v in s.items() if k not in ("step", "offset"))
    assert health.state_bytes == held
    assert health.parameter_bytes == sum(p.nbytes for p in ps)


def test_stalls_are_those_of_the_step_after_the_call() -> None:
    """m of a long average barely moves; elements at rest (0 before and after) are none."""
    cls = built("adamw", None, "fp32")
    p = torch.ones(4, 64)
    optimizer = stepped(cls, p, lr=1e-3)
    assert row(signconv.inspect(optimizer), "m").stalled is None
    state = optimizer.state[p]["m"]
    state[0], state[1] = 0.0, 1.0
    p.grad = torch.full_like(p, 0.25)
    p.grad[0] = 0.0  # at rest: 0 stays 0
    p.grad[1] = 1.0  # one tenth of 1 and nine tenths of 1: m stays
    optimizer.step()
    step(optimizer)  # not watched
    health = signconv.inspect(optimizer)
    assert health.watched == 2
    assert row(health, "m").stalled == 64 / 192
    assert row(health, "v").stalled == 0
    assert row(signconv.inspect(optimizer), "m").stalled == 64 / 192  # no step since
    step(optimizer, seed=4)
    assert signconv.inspect(optimizer).watched == 4


def test_nearest_rounding_shows_as_stalled_where_stochastic_rounding_moves_on() -> None:
    """A constant gradient: raw E4M3 rounds a slow average back for good."""
    for cls, low, high in ((S3GDFP8RAWMathBF16, 1.0, 1.0), (AdamW, 0.1, 0.5)):
        p = torch.ones(64, 64, requires_grad=True)
        optimizer = cls([p], backend="reference")
        for _ in range(60):
            p.grad = torch.ones_like(p)
            optimizer.step()
        signconv.inspect(optimizer)
        p.grad = torch.ones_like(p) * 2
        optimizer.step()
        stalled = row(signconv.inspect(optimizer), "m").stalled
        assert stalled is not None
        assert low <= stalled <= high, cls


def test_a_large_tensor_is_sampled_by_whole_blocks_with_their_scales() -> None:
    """Rows move by factors, so a code beside another block's scale would not compare equal."""
    n = 3 * SAMPLE // 64
    p = torch.ones(n, 64)
    optimizer = stepped(AdamW, p)
    signconv.inspect(optimizer)
    for s in ("m", "v"):
        optimizer.state[p][f"{s}_scale"][:] = torch.randint(100, 120, (n * 2,)).view(
            optimizer.state[p][f"{s}_scale"].shape
        )
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["betas"] = (0.0, 0.0)  # everything becomes 0: nothing stalls
    optimizer.step()
    health = signconv.inspect(optimizer)
    assert row(health, "m").stalled == 0
    assert row(health, "m").zero == 1
    assert row(health, "").stalled == 0  # weight decay moved every one


def test_master_weights_show_changes_from_outside() -> None:
    ps = [torch.randn(8, 64).bfloat16(), torch.randn(3, 5).bfloat16()]
    optimizer = stepped(AdamW, *ps, master="split")
    assert [row(signconv.inspect(optimizer), "master", i).changed for i in (0, 1)] == [0, 0]
    with torch.no_grad():
        ps[0][3, 7] = 9.0
        ps[1][2, 2] = 9.0
    health = signconv.inspect(optimizer)
    assert [row(health, "master", i).changed for i in (0, 1)] == [32 / 512, 1 / 15]
    assert [row(health, "master", i).format for i in (0, 1)] == ["16 bits", "fp32"]
    assert "2 master weights were changed from outside" in str(health)


def test_the_table_and_the_dict_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 1))
    optimizer = AdamWStoSign(model.named_parameters(), backend="reference")
    empty = signconv.inspect(optimizer)
    assert [r.moment for r in empty.rows] == [""] * 4
    assert "no state yet" in str(empty)
    step(optimizer)
    health = signconv.inspect(optimizer)
    print(health)
    text = capsys.readouterr().out
    for words in ("AdamWStoSign", "0.weight", "8×64", "e5m3", "stalled", "528"):
        assert words in text
    plain = json.loads(json.dumps(health.to_dict()))
    assert plain["state_bytes"] == health.state_bytes
    assert plain["rows"][1]["moment"] == "m"
    assert len(plain["rows"]) == 12
    with pytest.raises(TypeError, match="generated by signconv, not AdamW"):
        signconv.inspect(torch.optim.AdamW(model.parameters()))  # type: ignore[arg-type]


def inspect_with_one_read(optimizer: FusedOptimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    kept = Tensor.tolist

    def tolist(x: Tensor) -> object:
        reads.append(1)
        return kept(x)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "tolist", tolist)
        for name in ("item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
            patch.setattr(Tensor, name, None)
        signconv.inspect(optimizer)
    assert len(reads) == 1


def test_inspecting_changes_nothing_and_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for look in (False, True):
        torch.manual_seed(0)
        ps = [torch.randn(8, 64).bfloat16(), torch.randn(33)]
        optimizer = stepped(AdamWStoSign, *ps, master="split")
        for t in range(3):
            if look:
                inspect_with_one_read(optimizer, monkeypatch)
            step(optimizer, seed=t)
        results.append((ps, [optimizer.state[p] for p in ps]))
    for p, q in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(p, q)
    for s, t in zip(results[0][1], results[1][1], strict=True):
        assert all(torch.equal(s[k], t[k]) for k in s)


def test_gradient_release_is_said_to_hide_stalls() -> None:
    model = nn.Linear(64, 8)
    optimizer = AdamW(model.parameters(), backend="reference")
    with signconv.gradient_release(optimizer):
        signconv.inspect(optimizer)
        model(torch.randn(2, 64)).sum().backward()
        optimizer.step()
        health = signconv.inspect(optimizer)
    assert row(health, "m").stalled is None
    assert "gradient_release" in str(health)


def test_numbers_of_rows_and_columns_are_counted_for_themselves() -> None:
    p = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = signconv.compile("sm3")([p])
    p.grad = torch.ones(4, 6)
    optimizer.step()
    optimizer.state[p]["row"][:2] = torch.nan
    found = {r.moment: r for r in signconv.inspect(optimizer).rows}
    assert (found["row"].nonfinite, found["column"].nonfinite) == (0.5, 0.0)
    assert (found["row"].bytes, found["column"].bytes) == (16, 24)
    assert found["row"].note == "one over axis=-1"
