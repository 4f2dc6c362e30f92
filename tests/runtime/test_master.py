"""Master weights (``master="split"``): exact, kernel equal to reference, and safe to edit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from signconv.generated.signsgd import SignSGD
from torch import Tensor

from signconv.runtime import master
from signconv.runtime.compat import tl, triton
from signconv.runtime.formats import CHECK, MASTER, SPLIT, WHOLE
from signconv.runtime.kernel import ops as dev
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as ref
from signconv.verification.bits import different

BF16 = torch.bfloat16
#: Rows that are multiples of 32 and not, tails, a chunk and a bit, one that is not contiguous.
SHAPES = [(8, 64), (33,), (5, 32), (3, 5), (67, 32)]


def split_model(seed: int = 0) -> torch.nn.ParameterDict:
    """bf16 parameters by name; the last is a transposed view."""
    rng = torch.Generator().manual_seed(seed)
    made = {f"p{i}": torch.randn(s, generator=rng) for i, s in enumerate(SHAPES)}
    made["transposed"] = torch.randn(64, 32, generator=rng).t()
    return torch.nn.ParameterDict({k: torch.nn.Parameter(v.to(BF16)) for k, v in made.items()})


def give_grads(model: torch.nn.ParameterDict, t: int) -> None:
    """The same numbers whatever the dtype: they are bf16 ones."""
    rng = torch.Generator().manual_seed(t)
    for p in model.values():
        p.grad = (torch.randn(p.shape, generator=rng) * 1e-2).to(BF16).to(p.dtype).to(p.device)


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(torch.int32)


# ---------------------------------------------------------------- fp32 = bf16 and 16 bits


def hard_patterns() -> Tensor:
    """fp32 patterns: every upper half with the low halves near 0, a tie and the end; then every
    low half for the upper halves near 0, one, the largest number, Inf and NaN, of either sign."""
    lows = [0, 1, 2, 0x1234, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xABCD, 0xFFFE, 0xFFFF]
    near = [
        0,
        1,
        0x7F,
        0x80,
        0x3F7F,
        0x3F80,
        0x3F81,
        0x7F7E,
        0x7F7F,
        0x7F80,
        0x7F81,
        0x7FC0,
        0x7FFF,
    ]
    near += [0x8000 + x for x in near]
    wide = torch.arange(65536)[:, None] * 65536 + torch.tensor(lows)
    deep = torch.tensor(near)[:, None] * 65536 + torch.arange(65536)
    return torch.cat((wide.flatten(), deep.flatten())).to(torch.int32)


def test_every_fp32_number_is_one_bf16_and_one_rest() -> None:
    x = hard_patterns().view(torch.float32)
    high, low = ref.split_master(x)
    assert low.dtype == torch.int16
    number = ~x.isnan()
    back = ref.join_master(high, low)
    assert torch.equal(bits(back)[number], bits(x)[number])
    assert bool((bits(back)[~number] == 0x7FC00000).all())
    assert bool((low[~number] == 0).all())
    assert bool((bits(high) & 0xFFFF == 0).all())


@triton.jit
def _split_kernel(x_ptr, high_ptr, low_ptr, back_ptr, check_ptr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    offsets = row * 32 + tl.arange(0, 32)[None, :]
    high, low = dev.split_master(tl.load(x_ptr + offsets))
    tl.store(high_ptr + offsets, high)
    tl.store(low_ptr + offsets, low)
    tl.store(back_ptr + offsets, dev.join_master(high, low ^ (low & 1)))  # others' rests as well
    tl.store(check_ptr + row, dev.row_check(high, offsets))


def test_kernels_split_join_and_check_alike(device: str) -> None:
    """NaN of every payload included, which the CPU's arithmetic alone never makes."""
    x = hard_patterns()[::7]
    x = x[: len(x) // 8192 * 8192].contiguous().view(torch.float32)
    high, low = ref.split_master(x)
    back = ref.join_master(high, low ^ (low & 1))
    made = [torch.empty_like(t, device=device) for t in (high, low, back)]
    check = torch.empty(len(x) // 32, dtype=torch.int32, device=device)
    _split_kernel[(len(x) // 8192,)](x.to(device), *made, check, 256)
    for mine, theirs in zip((high, low, back, ref.row_check(high)), (*made, check), strict=True):
        assert torch.equal(mine.contiguous().view(torch.uint8), theirs.cpu().view(torch.uint8))


def test_the_bf16_half_is_the_nearest_and_differs_from_torchs_at_ties_alone() -> None:
    x = hard_patterns().view(torch.float32)
    x = x[~x.isnan()]
    high, low = ref.split_master(x)
    torchs = x.to(BF16).float()
    differs = bits(high) != bits(torchs)
    assert bool(differs.any())
    assert bool((low[differs] == -32768).all())
    finite = x[differs].isfinite() & torchs[differs].isfinite() & high[differs].isfinite()
    a, b, c = (v[differs][finite].double() for v in (x, high, torchs))
    assert torch.equal((a - b).abs(), (a - c).abs())
    assert bool((b.abs() > a.abs()).all())


def test_a_rest_beside_a_zero_or_inf_that_it_does_not_belong_to_makes_no_nan() -> None:
    """A pruned weight must not become NaN, even where the change went unnoticed."""
    low = torch.arange(-32768, 32768).to(torch.int16)
    for pattern in (0, -0x80000000, 0x7F800000, 0x7F800000 - 0x80000000):
        high = torch.full((65536,), pattern, dtype=torch.int32).view(torch.float32)
        x = ref.join_master(high, low)
        assert not bool(x.isnan().any())
        nearest, _ = ref.split_master(x)
        assert torch.equal(bits(nearest), bits(high))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "negated": lambda w: -w,
    "halved": lambda w: w * 0.5,
    "decayed": lambda w: w * 0.99,
    "one unit up": lambda w: (w.view(torch.int16) + 1).view(BF16),
    "neighbours swapped": lambda w: w.view(-1, 2).flip(1).view(-1),
    "rolled": lambda w: w.view(-1, 32).roll(1, dims=1).view(-1),
    "zeroed": torch.zeros_like,
    "clamped": lambda w: w.clamp(-0.5, 0.5),
    "one element": lambda w: torch.where(torch.arange(len(w)) % 32 == 7, w * 2, w),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checksum_sees_a_change_in_every_row(change: str) -> None:
    w = torch.randn(2**20, generator=torch.Generator().manual_seed(3)).to(BF16)
    changed = CHANGES[change](w)
    moved = (changed.view(torch.int16) != w.view(torch.int16)).view(-1, 32).any(dim=1)
    seen = ref.row_check(w.float()) != ref.row_check(changed.float())
    assert int(moved.sum()) > 2**14
    assert torch.equal(seen, moved)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("cls", [AdamW, AdamWStoSign, SignSGD, LAMB])
def test_split_training_is_fp32_training(cls: type[FusedOptimizer]) -> None:
    model = split_model()
    wide = copy.deepcopy(model).float()
    rng = torch.Generator().manual_seed(5)
    start = {k: torch.randn(p.shape, generator=rng) for k, p in model.items()}
    a = cls(model.parameters(), master="split", lr=1e-3, backend="reference")
    b = cls(wide.parameters(), lr=1e-3, backend="reference")
    a.load_master_weights(model, start)
    wide.load_state_dict(start)
    for t in range(5):
        give_grads(model, t)
        give_grads(wide, t)
        a.step()
        b.step()
        exact = a.master_weights(model)
        for name, q in wide.items():
            assert different(exact[name], q) == 0, (t, name)
            high, _ = ref.split_master(q.detach().contiguous())
            assert different(model[name], high.to(BF16)) == 0
    for p, q in zip(model.values(), wide.values(), strict=True):
        for m in cls.program.moments:
            assert different(a.state[p][m.name], b.state[q][m.name]) == 0


def edit(model: torch.nn.ParameterDict, t: int) -> None:
    """From outside: a row, a whole tensor past autograd, a zeroed mask, a NaN, a sign."""
    with torch.no_grad():
        if t == 1:
            model["p0"][2].mul_(1.5)
            model["p4"].data.copy_(model["p4"].data.neg())
        if t == 2:
            model["p2"].mul_(torch.arange(160).view(5, 32) % 3 != 0)
            model["p1"][::2].zero_()
            model["transposed"][3, 5] = float("nan")
            model["p3"].neg_()


@pytest.mark.parametrize("cls", [AdamWStoSign, SignSGD, LAMB])
def test_kernel_and_reference_agree_bit_for_bit(cls: type[FusedOptimizer], device: str) -> None:
    """Parameters, master weights and checksums, with weights changed from outside on the way."""
    model = split_model()
    copied = copy.deepcopy(model).to(device)
    a = cls(model.parameters(), master="split", lr=1e-2, backend="reference")
    b = cls(copied.parameters(), master="split", lr=1e-2, backend="triton")
    for t in range(4):
        for m, optimizer in ((model, a), (copied, b)):
            give_grads(m, t)
            edit(m, t)
            optimizer.step()
    formats = {master.param_format(a.state[p]) for p in model.values()}
    assert formats == {SPLIT, WHOLE}
    for name, p in model.items():
        q = copied[name]
        assert different(p, q.cpu()) == 0, name
        for key, value in a.state[p].items():
            assert different(value, b.state[q][key].cpu()) == 0, (name, key)


def test_split_and_plain_parameters_share_an_optimizer(device: str) -> None:
    """fp32 parameters have no master weight; a group may do without."""
    made = split_model()
    groups: list[dict[str, Any]] = [
        {"params": [made["p0"]]},
        {"params": [made["p2"]], "master": None},
        {"params": [torch.nn.Parameter(made["p4"].detach().float())]},
    ]
    params = [g["params"][0] for g in groups]
    results = []
    for backend, where in (("reference", "cpu"), ("triton", device)):
        qs = [p.detach().clone().to(where).requires_grad_() for p in params]
        own = [{**g, "params": [q]} for g, q in zip(groups, qs, strict=True)]
        optimizer = AdamW(own, master="split", backend=backend)
        for t in range(2):
            for i, q in enumerate(qs):
                rng = torch.Generator().manual_seed(10 * t + i)
                q.grad = torch.randn(q.shape, generator=rng).to(q.dtype).to(where)
            optimizer.step()
        assert [MASTER in optimizer.state[q] for q in qs] == [True, False, False]
        results.append(qs)
    for p, q in zip(*results, strict=True):
        assert different(p, q.cpu()) == 0


# ---------------------------------------------------------------- changes from outside

WAYS: dict[str, Callable[[torch.nn.ParameterDict, Tensor], None]] = {
    "copy_": lambda model, new: model["p0"].detach().copy_(new),
    "data.copy_": lambda model, new: model["p0"].data.copy_(new),
    "data =": lambda model, new: setattr(model["p0"], "data", new.clone()),
    "load_state_dict": lambda model, new: model.load_state_dict({**model.state_dict(), "p0": new}),
}


def trained(steps: int = 3) -> tuple[torch.nn.ParameterDict, AdamW]:
    model = split_model()
    optimizer = AdamW(model.parameters(), master="split", lr=1e-3, backend="reference")
    for t in range(steps):
        give_grads(model, t)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["p0", "p3"])
def test_a_weight_changed_from_outside_loses_its_rest(way: str, name: str) -> None:
    model, optimizer = trained()
    before = optimizer.master_weights(model)
    old = model["p0"].detach().clone()
    new = old.clone()
    new[2, 40] = 3.0
    WAYS[way](model, new)
    after = optimizer.master_weights(model)
    row = torch.zeros(8, 64, dtype=torch.bool)
    row[2, 32:] = True
    assert torch.equal(after["p0"][row], new.float()[row])
    assert torch.equal(after["p0"][~row], before["p0"][~row])
    assert int((after["p0"] != old.float())[~row].sum()) > 400  # rests that were kept
    WAYS[way](model, old)  # as after an evaluation with averaged weights
    assert torch.equal(optimizer.master_weights(model)["p0"], before["p0"])
    # The next step starts from what is read here
    WAYS[way](model, new)
    wide = torch.nn.Parameter(after["p0"].clone())
    single = AdamW([wide], lr=1e-3, backend="reference")
    entry = {k: v.clone() for k, v in optimizer.state[model["p0"]].items() if k[:6] != "master"}
    single.state[wide] = entry
    give_grads(model, 9)
    wide.grad = model["p0"].grad.float()
    optimizer.step()
    single.step()
    assert different(optimizer.master_weights(model)["p0"], wide) == 0


def test_without_blocks_only_the_changed_element_loses_its_rest() -> None:
    model, optimizer = trained()
    before = optimizer.master_weights(model)
    with torch.no_grad():
        model["p3"][1, 2] = 3.0
    after = optimizer.master_weights(model)
    changed = torch.zeros(3, 5, dtype=torch.bool)
    changed[1, 2] = True
    assert float(after["p3"][1, 2]) == 3.0
    assert torch.equal(after["p3"][~changed], before["p3"][~changed])


# ---------------------------------------------------------------- checkpoints


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("model_first", [True, False])
def test_a_checkpoint_resumes_exactly_in_either_order(model_first: bool) -> None:
    model, a = trained()
    saved = through_file({"model": model.state_dict(), "optimizer": a.state_dict()})
    other = split_model(seed=1)
    b = AdamW(other.parameters(), master="split", lr=1e-3, backend="reference")
    if model_first:
        other.load_state_dict(saved["model"])
    b.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["model"])
    for m, optimizer in ((model, a), (other, b)):
        give_grads(m, 9)
        optimizer.step()
    theirs = b.master_weights(other)
    for name, value in a.master_weights(model).items():
        assert different(value, theirs[name]) == 0


def test_state_tensors_are_ones_that_collectives_and_safetensors_take() -> None:
    model, optimizer = trained(1)
    for p in model.values():
        entry = optimizer.state[p]
        kinds = {MASTER: torch.uint8, CHECK: torch.int32}
        if CHECK not in entry:
            kinds = {MASTER: torch.float32}
        assert {k: entry[k].dtype for k in kinds} == kinds
    entry = optimizer.state[model["p0"]]
    held = sum(entry[k].nbytes for k in (MASTER, CHECK))
    assert held == 8 * 64 * 2 + 8 * 64 // 32 * 4


def test_a_checkpoint_without_master_weights_starts_them() -> None:
    model = split_model()
    a = AdamW(model.parameters(), lr=1e-3, backend="reference")
    give_grads(model, 0)
    a.step()
    b = AdamW(model.parameters(), master="split", backend="reference")
    b.load_state_dict(a.state_dict())
    assert b.param_groups[0]["master"] == "split"
    for name, value in b.master_weights(model).items():
        assert torch.equal(value, model[name].float())
    give_grads(model, 1)
    b.step()
    assert not torch.equal(b.master_weights(model)["p0"], model["p0"].float())


def test_a_master_weight_is_not_dropped_silently() -> None:
    model, a = trained(1)
    b = AdamW(model.parameters(), backend="reference")
    with pytest.raises(ValueError, match=r"master='split', or export"):
        b.load_state_dict(a.state_dict())


def test_fp32_weights_go_in_and_come_out_exactly() -> None:
    linear = torch.nn.Linear(64, 8)
    tied = torch.nn.ModuleDict({"a": linear, "b": linear, "norm": torch.nn.BatchNorm1d(8)})
    exact = {k: v.clone() for k, v in tied.state_dict().items()}
    tied["a"].to(BF16)
    optimizer = AdamW(tied.parameters(), master="split", backend="reference")
    optimizer.load_master_weights(tied, exact)
    assert tied["a"].weight is tied["b"].weight
    assert tied["a"].weight.dtype == BF16
    assert torch.equal(tied["a"].weight, exact["a.weight"].to(BF16))
    out = optimizer.master_weights(tied)
    assert out.keys() == exact.keys()
    for name, value in exact.items():
        assert out[name].dtype == value.dtype
        assert torch.equal(out[name], value), name
    fresh = torch.nn.ModuleDict({"a": linear, "b": linear, "norm": torch.nn.BatchNorm1d(8)}).float()
    fresh.load_state_dict(out)
    with pytest.raises(RuntimeError, match="Missing key"):
        optimizer.load_master_weights(tied, {"a.weight": exact["a.weight"]})


def test_a_wrong_master_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"master='fp32' is not one of None, 'split'"):
        AdamW(split_model().parameters(), master="fp32")


def test_a_checkpoint_is_as_small_as_the_state(tmp_path: Path) -> None:
    """The file holds codes as they live; a moment in bf16 would double it."""
    p = torch.randn(512, 1024).to(BF16).requires_grad_()
    sizes = {}
    for choice in (None, "split"):
        optimizer = AdamW([p], master=choice, backend="reference")
        p.grad = torch.ones_like(p)
        optimizer.step()
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        sizes[choice] = (tmp_path / "optimizer.pt").stat().st_size / p.numel()
    assert sizes[None] == pytest.approx(2 + 2 / 32, abs=0.02)
    assert sizes["split"] == pytest.approx(4 + 2 / 32 + 4 / 32, abs=0.02)
    fresh = AdamW([p], master="split", backend="reference")
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for name, value in optimizer.state[p].items():
        assert different(value, fresh.state[p][name]) == 0
