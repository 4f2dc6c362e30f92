"""clip against torch's own functions before the step, over every scope and backend."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import signconv
from signconv.dsl import Optimizer, grad, hyper, norm, state, t, where
from signconv.errors import SignconvError
from signconv.ir.evaluate import Evaluator
from signconv.runtime.totals import Sums
from signconv.verification.bits import different


@cache
def built_class(spec: str, convert: str | None, state: str = "fp8") -> Any:
    return signconv.compile(spec, convert=convert, state=state)


BACKENDS = ["reference", "cpu", "triton"]
SHAPES = [(7, 64), (33,), (), (1, 5000), (64, 32)]


def params(dtype: torch.dtype = torch.float32, mixed: bool = False) -> list[nn.Parameter]:
    """Several tensors, one of them strided; ``mixed``: every other of another dtype."""
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=rng) for s in SHAPES]
    made.append(torch.randn(48, 40, generator=rng).t())
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    dtypes = [other if mixed and i % 2 else dtype for i in range(len(made))]
    return [nn.Parameter(p.to(d)) for p, d in zip(made, dtypes, strict=True)]


def give(ps: list[nn.Parameter], step: int, size: float = 1.0) -> None:
    for i, p in enumerate(ps):
        rng = torch.Generator().manual_seed(100 * step + i)
        p.grad = (size * torch.randn(p.shape, generator=rng)).to(p.dtype)


def groups(ps: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": ps[:2], "max_norm": 0.5}, {"params": ps[2:], "max_norm": 3.0}]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("over", ["all", "group", "tensor"])
def test_the_norm_is_clipped_as_torch_does(over: str, backend: str) -> None:
    """Two groups with limits of their own; some gradients below them, some above."""
    ours, theirs = params(), params()
    cls = built_class("adamw", f"clip:over={over}", "fp32")
    optimizer = cls(groups(ours), lr=1e-2, weight_decay=0.1, backend=backend)
    plain = torch.optim.AdamW(groups(theirs), lr=1e-2, weight_decay=0.1)
    for step, size in enumerate([1.0, 1e-3, 30.0, 0.2]):
        give(ours, step, size)
        give(theirs, step, size)
        parts = [g["params"] for g in plain.param_groups]
        whole = torch.nn.utils.get_total_norm([p.grad for p in theirs if p.grad is not None])
        for part, limit in zip(parts, (0.5, 3.0), strict=True):
            if over == "all":  # its factor for the group's own limit
                torch.nn.utils.clip_grads_with_norm_(part, limit, whole)
            for some in [part] if over == "group" else [[p] for p in part]:
                if over != "all":
                    torch.nn.utils.clip_grad_norm_(some, limit)
        optimizer.step()
        plain.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_clipped_as_torch_does(backend: str) -> None:
    ours, theirs = params(), params()
    optimizer = built_class("adam", "clip:value=0.3", "fp32")(ours, backend=backend)
    plain = torch.optim.Adam(theirs)
    for step in range(3):
        give(ours, step)
        give(theirs, step)
        torch.nn.utils.clip_grad_value_(theirs, 0.3)
        optimizer.step()
        plain.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-7)


def test_l2_decay_is_added_to_the_clipped_gradient() -> None:
    ours, theirs = params(), params()
    cls = built_class("sgd", "clip:norm=0.1", "fp32")
    optimizer = cls(ours, lr=0.1, momentum=0.0, weight_decay=0.5)
    plain = torch.optim.SGD(theirs, lr=0.1, weight_decay=0.5)
    give(ours, 0)
    give(theirs, 0)
    torch.nn.utils.clip_grad_norm_(theirs, 0.1)
    optimizer.step()
    plain.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-7)


def run(
    backend: str, over: str, state: str, convert: str = "stosign", **more: Any
) -> tuple[list[nn.Parameter], Any]:
    ps = params(torch.bfloat16, mixed=True)
    cls = built_class("adamw", f"clip:over={over},{convert}", state)
    optimizer = cls(groups(ps), lr=1e-2, seed=3, backend=backend, **more)
    for step, size in enumerate([1.0, 1e-3, 30.0]):
        give(ps, step, size)
        optimizer.step()
    return ps, optimizer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", ["lamb", "came"])
def test_norms_of_what_is_clipped_by_a_norm_take_one_more_pass(spec: str, backend: str) -> None:
    """torch clips to a norm over max_norm + 1e-6: two roundings away from ours."""
    plain, clipped = built_class(spec, None, "fp32"), built_class(spec, "clip:over=tensor", "fp32")
    passes = [sum(len(stage.sums) for stage in c.program.stages) for c in (plain, clipped)]
    assert passes[1] == passes[0] + 1
    one, two = ([nn.Parameter(p.detach().clone()) for p in params()[:2]] for _ in range(2))
    a, b = plain(one, lr=1e-2, backend="reference"), clipped(two, lr=1e-2, backend=backend)
    for step in range(2):
        give(one, step, size=30.0)
        give(two, step, size=30.0)
        for p in one:
            nn.utils.clip_grad_norm_([p], 1.0)
        a.step()
        b.step()
    for p, q in zip(one, two, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("state", ["fp8", "fp4"])
@pytest.mark.parametrize("over", ["all", "group", "tensor"])
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_every_backend_has_the_bits_of_the_reference(backend: str, over: str, state: str) -> None:
    """Two dtypes, so several launches whose tensors are in another order than the parameters."""
    assert_same(run(backend, over, state), run("reference", over, state))


def assert_same(a: tuple[list[nn.Parameter], Any], b: tuple[list[nn.Parameter], Any]) -> None:
    for p, q in zip(a[0], b[0], strict=True):
        assert different(p, q) == 0
        for name, x in a[1].state[p].items():
            assert different(x, b[1].state[q][name]) == 0, name


@pytest.mark.gpu
@pytest.mark.parametrize("over", ["all", "group", "tensor"])
def test_a_gpu_has_the_bits_of_the_reference(over: str) -> None:
    def on(device: str, backend: str) -> tuple[list[nn.Parameter], Any]:
        ps = [nn.Parameter(p.detach().to(device)) for p in params(torch.bfloat16, mixed=True)]
        large = torch.randn(3000, 1024, generator=torch.Generator().manual_seed(9)).to(device)
        ps.append(nn.Parameter(large))
        cls = built_class("adamw", f"clip:over={over},stosign", "fp8")
        optimizer = cls(groups(ps), lr=1e-2, seed=3, backend=backend)
        for step, size in enumerate([1.0, 1e-3, 30.0]):
            give([nn.Parameter(p.detach().cpu()) for p in ps], step, size)
            for i, p in enumerate(ps):
                rng = torch.Generator().manual_seed(100 * step + i)
                p.grad = (size * torch.randn(p.shape, generator=rng)).to(p)
            optimizer.step()
        return ps, optimizer

    assert_same(on("cuda", "auto"), on("cpu", "reference"))


@pytest.mark.gpu
def test_it_is_captured_in_a_graph() -> None:
    """The norm changes between replays, and nothing waits for the host."""
    sides = []
    for captured in (False, True):
        p = nn.Parameter(torch.linspace(-1, 1, 4096, device="cuda").view(64, 64))
        p.grad = torch.zeros_like(p)
        optimizer = built_class("adamw", "clip:norm=0.1", "fp32")([p], lr=1e-2)
        p.grad.fill_(1e-3)
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        if captured:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                p.grad.fill_(1e-3)
                optimizer.step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                optimizer.step()
        else:
            p.grad.fill_(1e-3)
            optimizer.step()
        for size in (10.0, 1e-4, 3.0):
            p.grad.fill_(size)
            graph.replay() if captured else optimizer.step()
        sides.append(p.detach().clone())
    assert different(*sides) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_scaled_gradients_are_clipped_as_they_would_be_unscaled(backend: str) -> None:
    """What a GradScaler leaves to the optimizer: powers of two, so bits are the same."""
    sides = []
    for scale in (1.0, 1024.0):
        ps = params()
        optimizer = built_class("adamw", "clip:norm=0.5", "fp32")(ps, backend=backend)
        if scale != 1.0:
            optimizer.grad_scale = torch.tensor(scale)
        for step in range(2):
            give(ps, step, scale)
            optimizer.step()
        sides.append(ps)
    assert all(different(p, q) == 0 for p, q in zip(*sides, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_nan_is_in_every_gradient_or_skips_the_step(backend: str) -> None:
    """As with clip_grad_norm_: no norm, so nothing that could be taken for a step."""
    for skips in (False, True):
        ps = params()
        cls = built_class("sgd", "clip", "fp32")
        optimizer = cls(ps, momentum=0.0, skip_nonfinite=skips, backend=backend)
        give(ps, 0)
        assert ps[3].grad is not None
        ps[3].grad[0, 7] = float("nan")
        before = [p.detach().clone() for p in ps]
        optimizer.step()
        if skips:
            assert all(torch.equal(p, q) for p, q in zip(ps, before, strict=True))
            assert optimizer.skipped_steps == 1
        else:
            assert all(p.isnan().all() for p in ps)


def test_a_parameter_without_gradient_counts_for_nothing() -> None:
    ps = params()
    optimizer = built_class("adamw", "clip:norm=0.5", "fp32")(groups(ps))
    give(ps, 0)
    for p in ps[:2]:
        p.grad = None  # a whole group
    others = params()[2:]
    alone = built_class("adamw", "clip:norm=0.5", "fp32")(others, max_norm=3.0)
    for p, q in zip(others, ps[2:], strict=True):
        assert q.grad is not None
        p.grad = q.grad.clone()
    optimizer.step()
    alone.step()
    assert all(torch.equal(p, q) for p, q in zip(ps[2:], others, strict=True))


def test_the_limit_changes_between_steps_and_is_saved() -> None:
    ps = params()
    optimizer = built_class("adamw", "clip:norm=0.5")(ps)
    give(ps, 0)
    optimizer.step()
    optimizer.param_groups[0]["max_norm"] = 0.25
    saved = optimizer.state_dict()
    fresh = built_class("adamw", "clip:norm=0.5")(ps)
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["max_norm"] == 0.25
    with pytest.raises(ValueError, match=r"max_norm = 0 is outside its range: 0 < max_norm"):
        built_class("adamw", "clip")(ps, max_norm=0.0)


def test_moments_of_an_optimizer_go_on_in_its_clipped_form() -> None:
    """They mean the same: averages of the gradient that the rule is given."""
    ps = params()
    plain = built_class("adamw", None)(ps)
    give(ps, 0)
    plain.step()
    clipped = built_class("adamw", "clip")(ps)
    clipped.load_moments(plain)
    assert different(clipped.state[ps[0]]["m"], plain.state[ps[0]]["m"]) == 0


@pytest.mark.parametrize("convert", [
    "clip:norm=1:value=1", "clip:value=1:over=all", "clip:over=row", "clip:norm=x",
    "clip:value=inf",
])  # fmt: skip
def test_what_it_does_not_take(convert: str) -> None:
    with pytest.raises(SignconvError, match=r"SC21[78]"):
        signconv.build("adamw", convert=convert)


class Slowed(Optimizer):
    """A running size of all gradients together, kept as one number."""

    lr = hyper(1e-2, ge=0)
    size = norm(grad, over="all")
    usual = state(0.0)
    usual.next = where(t > 1, 0.9 * usual.prev + 0.1 * size, size)
    update = grad / (usual + 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_spec_reads_the_norm_as_a_scalar(backend: str) -> None:
    """Against a loop written here; the state it is kept in is one number per parameter."""
    ps = params()
    cls = signconv.compile(Slowed, state="fp32")
    optimizer = cls(ps, backend=backend)
    wanted, usual = [p.detach().double() for p in ps], 0.0
    for step in range(3):
        give(ps, step)
        grads = [p.grad.double() for p in ps if p.grad is not None]
        size = float(torch.cat([g.flatten() for g in grads]).norm())
        usual = 0.9 * usual + 0.1 * size if step else size
        wanted = [w - 1e-2 * g / (usual + 1e-6) for w, g in zip(wanted, grads, strict=True)]
        optimizer.step()
    assert float(optimizer.state[ps[0]]["usual"]) == pytest.approx(usual, rel=1e-12)
    for p, w in zip(ps, wanted, strict=True):
        torch.testing.assert_close(p.double(), w, rtol=2e-6, atol=2e-7)


def test_a_clip_over_all_is_refused_where_the_spec_reads_that_of_a_group() -> None:
    class Grouped(Optimizer):
        lr = hyper(1e-2, ge=0)
        update = grad / (norm(grad, over="group") + 1e-6)

    with pytest.raises(SignconvError, match=r"clip:over=group, or clip:over=tensor \[SC217\]"):
        signconv.build(Grouped, convert="clip")
    signconv.build(Grouped, convert="clip:over=group")


def test_the_evaluator_takes_the_norm_of_more_than_one_tensor() -> None:
    program = signconv.build("sgd", convert="clip:norm=1").program
    evaluator = Evaluator(program, lr=1.0, momentum=0.0)
    p, g = torch.zeros(4).double().numpy(), torch.full((4,), 2.0).double().numpy()
    made, _ = evaluator.step(p, g, evaluator.initial_state(p), 1, norm=g.max() * 10)
    assert made[0] == pytest.approx(-2.0 / (20.0 + 1e-6), rel=1e-12)


def test_groups_are_added_up_in_their_order() -> None:
    """Whatever the order in which they came: 1 with 2**-53 added eight times stays 1."""
    tiny = torch.tensor(2.0**-53, dtype=torch.float64)
    made: list[Tensor] = []
    for order in (range(9), [*range(9)][::-1]):
        sums = Sums("all")
        for i in order:
            sums.add(i, tiny if i else torch.ones((), dtype=torch.float64))
        made.append(sums.norm(0))
        assert sums.norm(1) is sums.norm(0)  # made once for all groups
    assert float(made[0]) == float(made[1]) == 1
    assert float(torch.stack([*[tiny] * 8, torch.ones_like(tiny)]).sum().sqrt()) > 1
