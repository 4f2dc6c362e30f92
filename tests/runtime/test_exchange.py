"""Moments from torch.optim and its relatives, between our optimizers, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from signconv.generated.adam import Adam
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.amsgrad import AMSGrad
from signconv.generated.lion import Lion
from signconv.generated.nadam import NAdam
from signconv.generated.s3 import S3
from signconv.generated.sgd import SGD
from signconv.generated.stosignsgd import StoSignSGD
from torch import Tensor, nn

import signconv
from signconv.runtime import exchange, foreign
from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different
from tests.support.runs import built

SHAPES = [(6, 64), (33,), (4, 5, 7)]
FP32 = built("adamw", None, "fp32")


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in SHAPES]


def train(optimizer: Any, params: list[nn.Parameter], steps: range) -> None:
    for t in steps:
        rng = torch.Generator().manual_seed(10 + t)
        for p in params:
            p.grad = (torch.randn(p.shape, generator=rng) * 0.1).to(p.dtype)
        optimizer.step()


def theirs(cls: Any = torch.optim.AdamW, **options: Any) -> tuple[list[nn.Parameter], Any]:
    params = parameters()
    options = {"lr": 3e-3, **options}
    groups = [{"params": params[:1], "weight_decay": 0.3}, {"params": params[1:]}]
    optimizer = cls(groups, **options)
    train(optimizer, params, range(4))
    return params, optimizer


def ours(cls: Any, params: list[nn.Parameter], **options: Any) -> tuple[list[nn.Parameter], Any]:
    """Over copies, in the same groups."""
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    groups = [{"params": copies[:1]}, {"params": copies[1:]}]
    return copies, cls(groups, backend="reference", **options)


def moment(optimizer: FusedOptimizer, p: Tensor, name: str) -> Tensor:
    return exchange.decoded(optimizer.program, p, optimizer.state[p])[name]


def test_a_run_of_adamw_goes_on() -> None:
    """fp32 state: moments, counts and hyperparameters are theirs, and so are the next steps."""
    params, adamw = theirs(betas=(0.85, 0.97), eps=1e-6)
    copies, mine = ours(FP32, params)
    mine.load_torch_adamw(adamw.state_dict())
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(moment(mine, q, "m"), adamw.state[p]["exp_avg"])
        assert torch.equal(moment(mine, q, "v"), adamw.state[p]["exp_avg_sq"])
        assert int(mine.state[q]["step"]) == 4
    first, second = mine.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.3, 0.01)
    assert (first["lr"], first["betas"], first["eps"]) == (3e-3, (0.85, 0.97), 1e-6)
    train(adamw, params, range(4, 8))
    train(mine, copies, range(4, 8))
    for p, q in zip(params, copies, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cls", [AdamW, AdamWFP4, AdamWStoSign, Adam])
def test_moments_are_encoded_without_bias(cls: Any) -> None:
    params, adamw = theirs()
    sums: dict[str, Tensor] = {}
    seeds = 400
    for seed in range(seeds):
        copies, mine = ours(cls, params[:1] + params[1:], seed=seed)
        mine.load_moments(adamw)
        for name in ("m", "v"):
            x = moment(mine, copies[0], name).double()
            sums[name] = sums.get(name, torch.zeros_like(x)) + x
    for name, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
        wanted = adamw.state[params[0]][key].double()
        error = sums[name] / seeds - wanted
        # A code's spacing relative to the number, at most: 4 bits of E4M0 have a factor of two
        spacing = wanted.abs().clamp(min=float(wanted.abs().max()) * 2.0**-6)
        assert float((error / spacing).abs().max()) < 0.25
        assert abs(float(error.sum() / wanted.abs().sum())) < 0.01


def test_other_relatives() -> None:
    params, adam = theirs(torch.optim.AdamW, amsgrad=True)
    copies, mine = ours(AMSGrad, params)
    mine.load_moments(adam.state_dict())
    assert torch.allclose(
        moment(mine, copies[0], "v_max"), adam.state[params[0]]["max_exp_avg_sq"], rtol=0.15
    )
    params, adam = theirs(torch.optim.Adam)
    copies, mine = ours(built("adam", None, "fp32"), params)
    mine.load_moments(adam)
    train(adam, params, range(4, 7))
    train(mine, copies, range(4, 7))
    assert all(torch.allclose(p, q, rtol=1e-6, atol=1e-7) for p, q in zip(params, copies))


@pytest.mark.parametrize("dampening", [0.0, 0.5, 0.9])
def test_sgd_keeps_a_sum_and_we_an_average(dampening: float) -> None:
    """The same steps after the switch, lr and decoupled decay scaled to match."""
    params, sgd = theirs(torch.optim.SGD, momentum=0.9, dampening=dampening)
    for group in sgd.param_groups:
        group["weight_decay"] = 0.0
    copies, mine = ours(built("sgd", None, "fp32"), params)
    mine.load_moments(sgd.state_dict())
    assert mine.param_groups[0]["momentum"] == 0.9
    train(sgd, params, range(4, 8))
    train(mine, copies, range(4, 8))
    for p, q in zip(params, copies, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [AdamW, AdamWFP4, FP32, Lion, SGD])
def test_back_to_torch(cls: Any) -> None:
    """What torch reads is what was stored, and its next steps are ours where state is fp32."""
    params = parameters()
    _, mine = ours(cls, params)
    copies = [p for g in mine.param_groups for p in g["params"]]
    train(mine, copies, range(3))
    kind: Any = torch.optim.SGD if cls is SGD else torch.optim.AdamW
    again = [nn.Parameter(p.detach().clone()) for p in copies]
    other = kind([{"params": again[:1]}, {"params": again[1:]}], lr=1.0)
    saved = mine.torch_state_dict()
    if cls is Lion:  # which torch has not: its own keys alone
        assert set(saved["state"][0]) == {"step", "exp_avg"}
        assert saved["param_groups"][0]["betas"] == mine.param_groups[0]["betas"]
        return
    other.load_state_dict(saved)
    key = "momentum_buffer" if cls is SGD else "exp_avg"
    for p, q in zip(again, copies, strict=True):
        assert torch.equal(other.state[p][key], moment(mine, q, "m"))
    assert other.param_groups[0]["lr"] == mine.param_groups[0]["lr"]
    if cls is FP32:
        train(other, again, range(3, 6))
        train(mine, copies, range(3, 6))
        assert all(torch.allclose(p, q, rtol=1e-6, atol=1e-7) for p, q in zip(again, copies))
        _, third = ours(cls, copies)
        third.load_moments(mine.torch_state_dict())
        for p, q in zip((p for g in third.param_groups for p in g["params"]), copies, strict=True):
            for name in ("m", "v"):
                assert different(third.state[p][name], mine.state[q][name]) == 0


@pytest.mark.parametrize(
    ("source", "target"),
    [(FP32, AdamW), (AdamW, AdamWFP4), (AdamW, FP32), (AdamW, AdamWStoSign), (SGD, StoSignSGD)],
)
def test_between_storages_and_conversions(source: Any, target: Any) -> None:
    _, first = ours(source, parameters(), lr=2e-3)
    ps = [p for g in first.param_groups for p in g["params"]]
    train(first, ps, range(4))
    qs, second = ours(target, ps)
    if target is StoSignSGD:
        with pytest.raises(ValueError, match=r"G cannot be taken.*\[SC510\]"):
            second.load_moments(first)
        return
    second.load_moments(first)
    assert second.param_groups[0]["lr"] == 2e-3
    for p, q in zip(ps, qs, strict=True):
        assert int(second.state[q]["step"]) == 4
        a, b = moment(first, p, "m"), moment(second, q, "m")
        assert float((a - b).norm() / a.norm()) < (0.3 if target is AdamWFP4 else 0.05)
        if target is FP32:
            assert torch.equal(a, b)
    train(second, qs, range(4, 6))


REFUSED: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "another power": (lambda: theirs()[1].state_dict(), S3, r"s cannot be taken.*SC510"),
    "a product over steps": (lambda: theirs()[1], NAdam, r"mu_product cannot be taken.*SC510"),
    "no state": (lambda: {"model": 1}, AdamW, "takes an optimizer or its state_dict.*SC501"),
    "our own": (lambda: ours(AdamW, parameters())[1].state_dict(), AdamW, "SC512"),
    "other groups": (
        lambda: torch.optim.AdamW(parameters()).state_dict(),
        AdamW,
        r"groups of \[3\] parameters and AdamW of \[1, 2\].*SC502",
    ),
}


def values(optimizer: FusedOptimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_and_nothing_changes(name: str) -> None:
    source, cls, words = REFUSED[name]
    copies, mine = ours(cls, parameters())
    before = copy.deepcopy(
        [{k: v for k, v in g.items() if k != "params"} for g in mine.param_groups]
    )
    with pytest.raises(ValueError, match=words):
        mine.load_moments(source())
    assert not any(mine.state.get(p) for p in copies)
    assert before == values(mine)


def test_other_shapes_are_refused() -> None:
    _, adamw = theirs()
    saved = adamw.state_dict()
    saved["state"][2]["exp_avg"] = torch.zeros(3)
    copies, mine = ours(AdamW, parameters())
    with pytest.raises(ValueError, match=r"shape \[4, 5, 7\] and the other optimizer's ema.*SC507"):
        mine.load_moments(saved)
    assert not any(mine.state.get(p) for p in copies)


def test_what_torch_does_not_have_is_refused() -> None:
    params, mine = ours(S3, parameters())
    train(mine, params, range(1))
    with pytest.raises(ValueError, match=r"keeps s, for which torch.optim has no key.*SC513"):
        mine.torch_state_dict()


def test_a_loss_goes_on_falling() -> None:
    """Across the switch into FP8 and 4 bits, and back: no jump beyond what steps do anyway."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
    x = torch.randn(256, 32)
    y = torch.tanh(x @ torch.randn(32, 32) * 0.3)

    def steps(optimizer: Any, n: int) -> list[float]:
        losses = []
        for _ in range(n):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    before = steps(adamw := torch.optim.AdamW(model.parameters(), lr=3e-3), 60)
    state, weights = adamw.state_dict(), copy.deepcopy(model.state_dict())
    alone = steps(adamw, 20)
    for cls in (AdamW, AdamWFP4, FP32):
        model.load_state_dict(weights)
        mine = cls(model.parameters(), backend="reference")
        mine.load_torch_adamw(state)
        after = steps(mine, 20)
        assert max(after) < before[-1] * 1.02
        assert abs(after[-1] - alone[-1]) < 0.1 * (before[-1] - alone[-1])
        back = torch.optim.AdamW(model.parameters())
        back.load_state_dict(mine.torch_state_dict())
        assert max(steps(back, 5)) < after[-1] * 1.05


# ---------------------------------------------------------------- other libraries' keys


def table(signed: bool) -> Tensor:
    """256 numbers that increase, 0 among them, as a quantization map is."""
    half = torch.linspace(0, 1, 128) ** 3
    return torch.cat([-half.flip(0), half]) if signed else torch.linspace(0, 1, 256) ** 2


@pytest.mark.parametrize("nested", [True, False])
def test_bitsandbytes(nested: bool) -> None:
    """Codes in a table, with a scale for each 256 elements."""
    params, adamw = theirs()
    saved = adamw.state_dict()
    wanted = {}
    for i, p in enumerate(params):
        entry: dict[str, Any] = {}
        for which, key, signed in (("1", "exp_avg", True), ("2", "exp_avg_sq", False)):
            x = adamw.state[p][key].flatten()
            blocks = nn.functional.pad(x, (0, -len(x) % 256)).view(-1, 256)
            largest = blocks.abs().amax(dim=1)
            scaled = (blocks / largest[:, None]).flatten()[: len(x)]
            codes = (scaled[:, None] - table(signed)).abs().argmin(dim=1)
            entry[f"state{which}"] = codes.to(torch.uint8).view(p.shape)
            entry[f"qmap{which}"], entry[f"absmax{which}"] = table(signed), largest
            each = largest.repeat_interleave(256)[: len(x)]
            wanted[i, key] = (table(signed)[codes] * each).view(p.shape)
        step = int(adamw.state[p]["step"])
        nested_entry = {"__bnb_optimizer_quant_state__": entry}
        saved["state"][i] = {"step": step, **(nested_entry if nested else entry)}
    copies, mine = ours(FP32, params)
    mine.load_moments(saved)
    for i, q in enumerate(copies):
        assert torch.equal(moment(mine, q, "m"), wanted[i, "exp_avg"])
        assert torch.equal(moment(mine, q, "v"), wanted[i, "exp_avg_sq"])
        assert int(mine.state[q]["step"]) == 4
    del saved["state"][0]["absmax1" if not nested else "__bnb_optimizer_quant_state__"]
    if not nested:
        with pytest.raises(ValueError, match="block_wise=True first"):
            mine.load_moments(saved)


def test_compressed_flashoptim() -> None:
    """Codes of blocks of 32 with fp16 scales, of the root or bent by softsign."""
    codes = torch.randint(
        -127, 128, (4, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1)
    )
    scale = torch.rand(8).to(torch.float16)
    entry = {
        "exp_avg::quantized": codes,
        "exp_avg::scales": scale.view(torch.bfloat16),
        "exp_avg_sq::quantized": codes.view(torch.uint8),
        "exp_avg_sq::scales": scale,
    }
    found = foreign.found_in(entry, {})
    y = codes.double() / 127
    each = scale.double().repeat_interleave(32).view(4, 64)
    assert torch.allclose(found["ema(g)"].double(), y / (2 - y.abs()) * each, rtol=1e-6)
    y = codes.view(torch.uint8).double() / 255
    assert torch.allclose(found["ema(g**2)"].double(), (y * each) ** 2, rtol=1e-6)


# ---------------------------------------------------------------- the packages themselves


@pytest.mark.integration
@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("bitsandbytes.optim", "AdamW8bit"),
        ("bitsandbytes.optim", "Adam8bit"),
        ("bitsandbytes.optim", "AdamW"),
        ("torchao.optim", "AdamW8bit"),
        ("torchao.optim", "AdamW4bit"),
        ("torchao.optim", "AdamWFp8"),
        ("flashoptim", "FlashAdamW"),
    ],
)
def test_runs_of_other_libraries_go_on(package: str, name: str) -> None:
    """On the same gradients ours, on fp32 state, stays as near as theirs rounds."""
    other = getattr(pytest.importorskip(package), name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if package == "flashoptim" and device == "cpu":
        pytest.skip("FlashOptim quantizes on a CUDA device alone")
    rng = torch.Generator().manual_seed(0)
    shapes = [(128, 64), (4096 * 4,), (7,)]
    params = [nn.Parameter(torch.randn(s, generator=rng).to(device)) for s in shapes]
    first = other(params, lr=1e-3)

    def step(optimizer: Any, over: list[nn.Parameter], t: int) -> None:
        rng = torch.Generator().manual_seed(50 + t)
        for p in over:
            p.grad = (torch.randn(p.shape, generator=rng) * 0.1).to(device)
        optimizer.step()

    for t in range(4):
        step(first, params, t)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    second = FP32(copies, backend="reference")
    second.load_moments(first.state_dict())
    assert int(second.state[copies[0]]["step"]) == 4
    for t in range(4, 7):
        step(first, params, t)
        step(second, copies, t)
    apart = max(float((p - q).abs().max()) for p, q in zip(params, copies, strict=True))
    assert apart < 1e-3 and float(second.param_groups[0]["lr"]) == pytest.approx(1e-3)


# ---------------------------------------------------------------- found by a cold review


def test_what_was_stepped_before_gives_way() -> None:
    """Moments and counts are the source's, not those of steps taken before; loading twice too."""
    params, adamw = theirs()
    copies, mine = ours(FP32, params)
    mine.state[copies[0]]["note"] = "mine"
    train(mine, copies, range(2))
    for _ in range(2):
        mine.load_moments(adamw)
        for p, q in zip(params, copies, strict=True):
            assert int(mine.state[q]["step"]) == int(adamw.state[p]["step"])
            assert torch.equal(moment(mine, q, "m"), adamw.state[p]["exp_avg"])
        train(adamw, params, range(4, 6))
        train(mine, copies, range(4, 6))
        assert all(torch.allclose(p, q, atol=0.05) for p, q in zip(params, copies, strict=True))
    assert mine.state[copies[0]]["note"] == "mine"


def broken(**values: Any) -> dict[str, Any]:
    """A state_dict whose second group has values of its own."""
    saved = copy.deepcopy(theirs()[1].state_dict())
    saved["param_groups"][1] |= values
    return saved


def edited(edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    saved = broken()
    edit(saved)
    return saved


@pytest.mark.parametrize(
    "saved",
    [
        lambda: broken(lr=-1.0),
        lambda: broken(lr=float("nan")),
        lambda: broken(eps=-1.0),
        lambda: broken(betas=(0.9, 1.5)),
        lambda: broken(betas=(0.9,)),
        lambda: broken(betas=("a", "b")),
        lambda: broken(weight_decay="x"),
        lambda: broken(maximize=None),
        lambda: edited(lambda s: s["state"].update({0: None, 1: [1]})),
        lambda: edited(lambda s: s["param_groups"][0].pop("params")),
        lambda: edited(lambda s: s.update(state=None)),
        lambda: edited(lambda s: s.update(param_groups=None)),
        lambda: edited(lambda s: s["state"][1].update(exp_avg=torch.zeros(33, device="meta"))),
        lambda: edited(lambda s: s["state"][1].update(exp_avg=torch.zeros(33).to_sparse())),
        lambda: edited(lambda s: s["state"][1].update(exp_avg=torch.zeros(33, dtype=torch.cfloat))),
        lambda: edited(lambda s: s["state"][1].update(step=-3)),
        lambda: {**broken(), "state": {"0": broken()["state"][0]}},
    ],
)
def test_bad_values_are_refused_with_a_code_and_nothing_changes(saved: Any) -> None:
    copies, mine = ours(AdamW, parameters())
    before = values(mine)
    with pytest.raises((ValueError, TypeError), match=r"\[SC\d{3}\]$"):
        mine.load_moments(saved())
    assert values(mine) == before and not any(mine.state.get(p) for p in copies)
    train(mine, copies, range(1))


def test_a_sum_of_gradients_and_its_rates() -> None:
    """initial_lr and lr0 are scaled with lr; nesterov is refused; AdamW's first beta is the one."""
    params, sgd = theirs(torch.optim.SGD, momentum=0.9)
    torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 0.5)
    _, mine = ours(SGD, params)
    mine.load_moments(sgd)
    group = mine.param_groups[0]
    assert group["lr"] == pytest.approx(10 * 0.5 * 3e-3)
    assert group["initial_lr"] == pytest.approx(10 * 3e-3) == pytest.approx(group["lr0"])
    assert group["weight_decay"] == pytest.approx(0.1 * 0.3)
    _, ahead = theirs(torch.optim.SGD, momentum=0.9, nesterov=True)
    with pytest.raises(ValueError, match=r"nesterov=True.*\[SC510\]"):
        ours(SGD, params)[1].load_moments(ahead)
    _, adamw = theirs(betas=(0.9, 0.999))
    mine.load_moments(adamw)
    assert mine.param_groups[0]["momentum"] == 0.9
    _, lion = ours(Lion, params)
    lion.load_moments(adamw)
    assert lion.param_groups[0]["betas"] == (0.9, 0.9)  # its average forgets by the second


def test_a_tensor_lr_is_a_copy() -> None:
    params, adamw = theirs(lr=torch.tensor(3e-3))
    _, mine = ours(AdamW, params)
    mine.load_moments(adamw)
    assert mine.param_groups[0]["lr"] is not adamw.param_groups[0]["lr"]


def test_the_same_rule_brings_everything() -> None:
    """Scalar states, moments of its own kind, master weights: from one storage to another."""
    for spec in ("nadam", "adan"):
        _, first = ours(built(spec, None, "fp32"), parameters())
        ps = [p for g in first.param_groups for p in g["params"]]
        train(first, ps, range(3))
        qs, second = ours(built(spec, None, "fp32"), ps)
        second.load_moments(first)
        train(first, ps, range(3, 5))
        train(second, qs, range(3, 5))
        assert all(different(p, q) == 0 for p, q in zip(ps, qs, strict=True))
    params = parameters(torch.bfloat16)
    _, first = ours(AdamW, params, master="split")
    ps = [p for g in first.param_groups for p in g["params"]]
    train(first, ps, range(3))
    qs, second = ours(AdamW, ps, master="split")
    second.load_moments(first)
    for p, q in zip(ps, qs, strict=True):
        for name in ("master", "master_check"):
            assert name not in first.state[p] or torch.equal(
                first.state[p][name], second.state[q][name]
            )


def test_what_torch_would_step_wrongly_is_not_handed_out() -> None:
    for spec, convert in (("rmsprop", None), ("sgd", "nesterov")):
        params, mine = ours(built(spec, convert, "fp32"), parameters())
        train(mine, params, range(1))
        with pytest.raises(ValueError, match=r"torch.optim has no key.*\[SC513\]"):
            mine.torch_state_dict()


@pytest.mark.parametrize("name", ["adafactor", "adam_mini", "came", "sm3"])
def test_numbers_of_rows_and_columns_go_to_the_same_rule_alone(name: str) -> None:
    cls = signconv.compile(name, state="fp32")
    p = torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))
    one = cls([p], seed=1)
    for _ in range(3):
        p.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
        one.step()
    q = torch.nn.Parameter(p.detach().clone())
    two = cls([q], seed=1)
    two.load_moments(one)
    assert all(torch.equal(x, two.state[q][n]) for n, x in one.state[p].items())
    p.grad = q.grad = torch.ones(4, 6)
    one.step()
    two.step()
    assert torch.equal(p, q)
    other = torch.optim.AdamW([torch.nn.Parameter(p.detach().clone())])
    other.param_groups[0]["params"][0].grad = torch.ones(4, 6)
    other.step()
    kept = cls.program.kept[0].name
    with pytest.raises(ValueError, match=rf"{kept}.* cannot be taken from it.*SC510"):
        two.load_moments(other)
    assert torch.equal(one.state[p][kept], two.state[q][kept])
    with pytest.raises(ValueError, match=rf"{kept}, .*for which torch.optim has no key|{kept}"):
        two.torch_state_dict()
