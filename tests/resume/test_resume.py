"""Stopped at a random step, saved, continued in a new process: the uninterrupted run, bit for bit.

Every generated optimizer in every storage.  One new process continues all runs of a storage.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signconv.errors import LoweringError
from signconv.ir.nodes import STATES
from signconv.pipeline import build, write
from signconv.pipeline.catalogue import GENERATED, Entry
from tests.resume.runs import STEPS, Case, Run, draw_stop, save_plan
from tests.runtime.test_faults import same
from tests.support import python

SEED = time.time_ns()


def modules(state: str, folder: Path) -> list[Path]:
    """Every optimizer of generated/ that this storage can hold, built into ``folder``."""
    made = {}
    for e in dict.fromkeys(replace(e, state=state) for e in GENERATED):
        try:
            module = build(e.spec, convert=e.convert, state=state, math=e.math).module
        except LoweringError as error:
            if error.code not in ("SC302", "SC311"):  # what a storage cannot hold
                raise
            continue
        made[module.file_name] = write(module, folder)[0]
    return list(made.values())


def resumed(cases: list[Case], folder: Path, interpret: bool = False) -> None:
    """Compare each uninterrupted run with the one that a new process continues."""
    wanted = {}
    for case in cases:
        torch.save(Run(case).train(1, case.stop).snapshot(), folder / f"{case.name}.pt")
        wanted[case.name] = Run(case).train(1, STEPS).snapshot()
    changes = {"TRITON_INTERPRET": "1"} if interpret else {}
    done = python("-m", "tests.resume.runs", str(save_plan(cases, folder)), **changes)
    assert done.returncode == 0, done.stderr
    for case in cases:
        end = torch.load(folder / f"{case.name}.end.pt", weights_only=True)
        assert same(end, wanted[case.name]), f"{case}, stopped after step {case.stop}"
        begin = Run(case).snapshot()
        assert not same(end["params"], begin["params"])


#: What one process of `make test` takes up again; `make test-long` takes all storages.
SOON = ("fp8",)


@pytest.mark.parametrize(
    "state", [s if s in SOON else pytest.param(s, marks=pytest.mark.long) for s in STATES]
)
def test_every_optimizer_resumes_in_a_new_process(state: str, tmp_path: Path) -> None:
    cases = []
    for i, path in enumerate(modules(state, tmp_path)):
        master = (None, "split")[(i + STATES.index(state)) % 2]
        stop = draw_stop(path.stem, SEED)
        cases.append(Case(path.stem, str(path), "reference", "cpu", master, stop))
    every = {replace(e, state=state) for e in GENERATED}
    assert len(cases) == {"fp8-raw": 3, "fp4": len(cases)}.get(state, len(every)) > 2
    resumed(cases, tmp_path)


def on_backend(entries: Iterable[Entry], backend: str, where: str, folder: Path) -> list[Case]:
    cases = []
    for e in entries:
        path = write(build(e.spec, convert=e.convert, state=e.state, math=e.math).module, folder)[0]
        stop = draw_stop(path.stem, SEED)
        cases.append(Case(path.stem, str(path), backend, where, None, stop))
    return cases


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_other_backends_resume_too(backend: str, device: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("llvmlite")
    where = device if backend == "triton" else "cpu"
    entries = [Entry("adamw", "stosign"), Entry("nadam")]
    cases = on_backend(entries, backend, where, tmp_path)
    resumed(cases, tmp_path, interpret=backend == "triton" and device == "cpu")


@pytest.mark.gpu
def test_every_kernel_resumes_in_a_new_process(tmp_path: Path) -> None:
    resumed(on_backend(GENERATED, "triton", "cuda", tmp_path), tmp_path)


def test_a_checkpoint_that_lost_a_step_is_noticed(tmp_path: Path) -> None:
    """The comparison itself: one step too few, or another seed of the noise, must not pass."""
    path = write(build("adamw", convert="stosign").module, tmp_path)[0]
    case = Case("a", str(path), "reference", "cpu", None, 3)
    whole = Run(case).train(1, STEPS).snapshot()
    saved = Run(case).train(1, 3).snapshot()
    assert same(Run(case).restore(saved).train(4, STEPS).snapshot(), whole)
    assert not same(Run(case).restore(saved).train(5, STEPS).snapshot(), whole)
    saved["optimizer"]["param_groups"][0]["seed"] += 1
    assert not same(Run(case).restore(saved).train(4, STEPS).snapshot()["params"], whole["params"])


def test_a_group_added_after_loading_draws_its_own_bits(tmp_path: Path) -> None:
    """Its offset goes on where the saved ones ended, as without saving and loading."""
    path = write(build("adamw", convert="stosign").module, tmp_path)[0]
    case = Case("a", str(path), "reference", "cpu", None, 3)
    ends = []
    for saved in (None, Run(case).train(1, 3).snapshot()):
        run = Run(case).train(1, 3) if saved is None else Run(case).restore(saved)
        late = torch.ones(64, requires_grad=True)
        run.optimizer.add_param_group({"params": [late]})
        late.grad = torch.ones(64)
        run.optimizer.step()
        ends.append(run.optimizer.state[late]["offset"])
        taken = [run.optimizer.state[p]["offset"] for p in run.params]
        assert ends[-1] > max(taken)
    assert ends[0] == ends[1]
