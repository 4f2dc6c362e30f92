"""A step inside torch.compile, without a graph break: the bits of a plain one."""

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.lamb import LAMB
from torch import Tensor, nn
from torch._dynamo.utils import counters

from signconv.runtime.optimizer import FusedOptimizer
from signconv.verification.bits import different

COMPILERS = [
    "eager",
    "aot_eager",  # gives copies to be changed
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler"),
            pytest.mark.long,
        ],
    ),
]


@pytest.fixture(autouse=True)
def anew() -> None:
    torch.compiler.reset()
    counters.clear()


def trained(
    cls: type[FusedOptimizer], backend: str, device: str, compiler: Callable[[Any], Any]
) -> list[Tensor]:
    """Parameters, a moment and what a graph reads before and after a step, six times."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 4)).to(device)
    optimizer = cls(model.parameters(), lr=0.01, backend=backend, skip_nonfinite=True)
    weight = model[0].weight

    def step() -> Tensor:
        with torch.no_grad():
            before = weight * 2
            optimizer.step()
            return before + weight

    run, seen = compiler(step), []
    rng = torch.Generator().manual_seed(1)
    for t in range(6):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=rng).to(device)
            if t == 3:
                p.grad[0] = torch.inf  # skipped
        seen.append(run().clone())
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] *= 0.9
        if t == 4:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    params = [*model.parameters()]
    return [*params, *(optimizer.state[p]["m"] for p in params), *seen]


@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB])
@pytest.mark.parametrize("backend", ["reference", "triton", "auto"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_one_graph_has_the_bits_of_a_plain_step(
    compiler: str, backend: str, cls: type[FusedOptimizer], device: str
) -> None:
    where = device if backend == "triton" else "cpu"
    plain = trained(cls, backend, where, lambda step: step)
    made = trained(
        cls, backend, where, lambda step: torch.compile(step, backend=compiler, fullgraph=True)
    )
    assert all(different(a, b) == 0 for a, b in zip(made, plain, strict=True))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2, "another lr, or a loaded state, is no new step"


def test_parameters_without_gradients_stay() -> None:
    a, b = nn.Parameter(torch.ones(64)), nn.Parameter(torch.ones(64))
    optimizer = AdamWStoSign([a, b], lr=0.1)
    a.grad = torch.ones(64)
    torch.compile(lambda: optimizer.step(), backend="aot_eager", fullgraph=True)()
    assert (a < 1).all() and (b == 1).all() and b not in optimizer.state
    a.grad, b.grad = None, torch.ones(64)
    optimizer.zero_grad()
    torch.compile(lambda: optimizer.step(), backend="aot_eager", fullgraph=True)()
    assert b not in optimizer.state


def test_two_optimizers_in_one_graph() -> None:
    params = [nn.Parameter(torch.ones(64)) for _ in range(2)]
    made = [AdamWStoSign([p], lr=lr) for p, lr in zip(params, (0.1, 0.2), strict=True)]
    for p in params:
        p.grad = torch.ones(64)

    def step() -> None:
        for optimizer in made:
            optimizer.step()

    torch.compile(step, backend="aot_eager", fullgraph=True)()
    assert [float((1 - p.detach()).mean()) for p in params] == pytest.approx([0.1, 0.2], rel=0.02)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ["clamped", "twice", "two optimizers", "unrolled"])
def test_what_a_graph_made_of_parameters_before_is_stepped(kind: str, compiler: str) -> None:
    def run(compile: Callable[[Any], Any]) -> list[Tensor]:
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(4, 64))
        made = [AdamWStoSign([p], lr=0.1, seed=s) for s in (1, 2)]

        def step() -> None:
            with torch.no_grad():
                if kind == "clamped":
                    p.clamp_(-0.5, 0.5)
                made[0].step()
                if kind == "twice":
                    made[0].step()
                if kind == "two optimizers":
                    made[1].step()
                if kind == "unrolled":
                    p.grad = p.detach() * 2
                    made[0].step()

        step = compile(step)
        for t in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
            step()
        return [p, made[0].state[p]["m"], made[0].state[p]["v"]]

    plain = run(lambda f: f)
    graph = run(lambda f: torch.compile(f, backend=compiler, fullgraph=True))
    assert all(different(a, b) == 0 for a, b in zip(graph, plain, strict=True))


def test_an_optimizer_that_is_gone_is_named() -> None:
    p = nn.Parameter(torch.ones(64))
    with pytest.raises(RuntimeError, match=r"optimizer is gone, .* \[SC450\]"):
        torch.ops.signconv.step([p], [torch.ones(64)], [0], 1)


def test_a_copy_steps_its_own_parameters() -> None:
    model = nn.Linear(32, 4)
    optimizer = AdamWStoSign(model.parameters(), lr=0.1)
    twin = copy.deepcopy(optimizer)
    (p, *_), (q, *_) = (o.param_groups[0]["params"] for o in (optimizer, twin))
    before = p.detach().clone()
    for x in twin.param_groups[0]["params"]:
        x.grad = torch.ones_like(x)
    torch.compile(lambda: twin.step(), backend="aot_eager", fullgraph=True)()
    assert torch.equal(p, before) and not torch.equal(q, before)


def test_a_hook_is_called_where_a_graph_steps() -> None:
    p = nn.Parameter(torch.ones(64))
    optimizer = AdamWStoSign([p], lr=0.1)
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    p.grad = torch.ones(64)
    torch.compile(lambda: optimizer.step(), backend="eager")()
    assert seen == [1] and (p < 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("cls", [AdamWStoSign, LAMB])
def test_inductor_on_a_gpu(cls: type[FusedOptimizer]) -> None:
    plain = trained(cls, "auto", "cuda", lambda step: step)
    made = trained(cls, "auto", "cuda", lambda step: torch.compile(step, fullgraph=True))
    assert all(different(a, b) == 0 for a, b in zip(made, plain, strict=True))
    assert not counters["graph_break"]
