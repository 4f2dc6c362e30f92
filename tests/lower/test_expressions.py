"""Everything an expression may say, lowered: reference against evaluator, kernel against reference.

One small spec per row.  The kernels of all rows run in one interpreter process.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from signconv.ir.evaluate import Evaluator
from signconv.pipeline import build, write
from signconv.verification.bits import load_class
from tests.support import python, spec_file

B = "b = hyper(0.75, ge=0, lt=1)\n"
FIRST = "m = ema(grad, 0.9)\n"

BODIES = [
    # elementwise
    "numerator = grad**2 - grad**3 + abs(grad)",
    "numerator = grad**16",
    "numerator = sign(grad) * 0.3 + max(grad, 0.1) - min(grad, 0.1)",
    "numerator = max(abs(grad), param**2) + max(grad, param) + min(grad, param)",
    "numerator = where(grad > 0.1, grad, 1) + where(grad >= param, 1, param)",
    "numerator = where(grad == 0, 1, grad) + where(grad != 0, 1, grad)",
    "numerator = where(grad < 0, 0.5, 2) * where(grad <= 0, 1, 2)",
    "numerator = where(where(grad > 0, 1, 0) > 0, grad, 2)",
    "numerator = grad / 3 + 1 / (2 + abs(param)) - -grad / (1 + grad**2)",
    "numerator = sqrt(grad**2 + 1) + root(abs(grad) + 1, 4) + root(grad**2, 2) + root(grad, 1)",
    "numerator = root(abs(grad), 3)",
    "numerator = root(abs(grad), 5) + root(abs(grad), 6) + root(abs(grad), 7) + root(abs(grad), 8)",
    "numerator = root(abs(grad), 9) + root(abs(grad), 10) + root(abs(grad), 17)",
    "numerator = root(abs(grad), 1.5) + root(abs(grad), 2.5) + abs(grad) ** 1.5 + (grad**2) ** 1.5",
    "v = moment(grad, order=1.5, beta=0.9)\nnumerator = grad\ndenominator = root(v, 1.5) + 0.1",
    "v = moment(grad, order=5, beta=0.9)\nnumerator = grad\ndenominator = root(v, 5) + 0.1",
    "numerator = exp(grad) + tanh(param) - log(abs(grad) + 0.5)",
    "numerator = grad - (param - (grad - param)) / (1 + abs(grad)) / (1 + abs(param))",
    "numerator = clip(grad, -1, 1)",
    "numerator = clip(grad, 0.5, -0.5) + clip(param, abs(grad), 0.1)",  # the upper bound comes last
    "numerator = max(grad, 0) + min(grad, 0)",
    "numerator = grad\ndenominator = 2",
    "numerator = max(0, grad) + min(1, grad)",
    "numerator = max(abs(grad), 1)",
    # scalars
    B + "numerator = grad * b**t",
    B + "numerator = grad * (max(b, 0.5) + min(t, 10) + abs(-b) - b / 0.01)",
    B + "numerator = grad * where(b > 0.5, 1, 0) * where(t >= 2, 1, 3)",
    "numerator = grad * where(t == 1, 2, 3) * where(t != 3, 1, 2) * (t % 3 + 1)",
    B + "rate = 1 - b**t\nhalf = rate / 2\nnumerator = grad * half - grad / rate",
    "numerator = grad * (1 / t + 2**t)",
    B + "numerator = grad * sqrt(1 - b)",
    B + "numerator = grad * b**2",
    B + "numerator = grad * b**0.5",
    B + "numerator = grad * b**(t + 1)",
    "numerator = grad * t**2",
    "numerator = grad * t**0.5",
    "numerator = grad * exp(-t) + grad * log(t + 1)",
    B + "numerator = grad * b**-1",
    "numerator = grad * 0.9**t",
    "m = ema(grad, 0.9)\nnumerator = m.corrected",
    "numerator = grad * sqrt(t)",
    "numerator = where(t % 2 == 0, grad, -grad)",
    "m = state()\nm.next = where(t % 3 == 0, grad, m.prev)\nnumerator = m",
    "numerator = grad * clip(t / 3, 0, 1)",
    "numerator = grad * sign(t - 2)",
    # moments
    FIRST + "numerator = m + m.prev",
    "m = ema(grad, 0.9, init='first')\nnumerator = m",
    "m = ema(grad * 3 + 1, 0)\nnumerator = m + grad",
    "u = max_ema(abs(grad), 0.5)\nnumerator = grad\ndenominator = u",
    "u = max_ema(abs(grad))\nnumerator = grad / u",
    "q = state(init=param)\nq.next = q.prev * 0.5 + grad\nnumerator = q",
    "q = state(init=3)\nq.next = q.prev * 0.5 + grad\nnumerator = q",
    "q, r = state(init=1), state()\nq.next = r.prev + grad\nr.next = q.prev\nnumerator = q + r",
    "q = state()\nq.next = param\nnumerator = grad + q.prev",
    "a, c, d, f = ema(grad, 0.9), ema(grad**2, 0.8), ema(abs(grad), 0.7), ema(grad, 0.6)\n"
    "numerator = a + d + f\ndenominator = sqrt(c) + 1",
    "v = moment(grad, order=4, beta=0.9)\nnumerator = grad\ndenominator = root(v, 4) + 0.1",
    "m = ema(grad * 3 + grad * grad / 2 + 1, 0.9)\nnumerator = m",
    "m = ema(grad, 1)\nnumerator = m + grad",
    # decays
    "wd = hyper(0.1)\nnumerator = grad\ndecay = l2(wd)",
    "wd = hyper(0.1)\nnumerator = grad\ndecay = decoupled(wd)",
    "wd = hyper(0.1)\nnumerator = grad\ndecay = independent(wd)",
    "numerator = grad\ndecay = decoupled(0.1)",
    B + "wd = hyper(0.1)\nnumerator = grad\ndecay = decoupled(wd * (1 - b**t))",
    "update = sign(grad - 0.2)",
]
STEPS = 4
LR = 0.125


@dataclass
class Outcome:
    """What became of one row: its parameter after STEPS, and how far the kernel is from it."""

    error: str = ""
    end: np.ndarray | None = None
    kernel: str = "did not run"


def gradients() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    return [torch.randn(4, 32, generator=rng) for _ in range(STEPS)]


def start() -> torch.Tensor:
    return torch.linspace(-2, 2, 128).view(4, 32).clone().requires_grad_()


RUN = """
import json, sys
import torch
from tests.lower.test_expressions import run
print(json.dumps({path: run(path) for path in sys.argv[1:]}))
"""


def run(path: str) -> str:
    """Kernel against reference; called in a process in which kernels are interpreted."""
    ends = []
    for backend in ("reference", "triton"):
        p = start()
        try:
            optimizer = load_class(Path(path))([p], lr=LR, backend=backend)
            for g in gradients():
                p.grad = g
                optimizer.step()
        except Exception as error:
            return f"{backend} crashed: {str(error).strip().splitlines()[-1][:200]}"
        ends.append(p.detach())
    wrong = int((ends[0].view(torch.int32) != ends[1].view(torch.int32)).sum())
    return f"{wrong} of 128 elements differ" if wrong else "equal"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("expressions")
    found, paths = {}, {}
    for i, body in enumerate(BODIES):
        found[body] = outcome = Outcome()
        try:
            made = build(spec_file(folder, body, name=f"s{i}.py").spec, state="fp32")
            path = str(write(made.module, folder / f"b{i}")[0])
            paths[path] = outcome
            p = start()
            optimizer = load_class(Path(path))([p], lr=LR, backend="reference")
            for g in gradients():
                p.grad = g
                optimizer.step()
            outcome.end = p.detach().double().numpy()
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
    done = python("-c", RUN, *paths, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-2000:]
    for path, words in json.loads(done.stdout.strip().splitlines()[-1]).items():
        paths[path].kernel = words
    return found


@pytest.mark.parametrize("body", BODIES)
def test_reference_computes_what_the_evaluator_says(
    body: str, outcomes: dict[str, Outcome], tmp_path: Path
) -> None:
    assert not outcomes[body].error
    evaluator = Evaluator(build(spec_file(tmp_path, body).spec, state="fp32").program, lr=LR)
    p = start().detach().double().numpy()
    state = evaluator.initial_state(p)
    for t, g in enumerate(gradients(), 1):
        p, state = evaluator.step(p, g.double().numpy(), state, t)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(outcomes[body].end, p, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("body", BODIES)
def test_kernel_equals_reference(body: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[body].kernel == "equal"
