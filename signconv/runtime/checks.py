"""What every optimizer refuses, with a way out; ``name`` is what its class is called."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import legacy, sharded
from signconv.runtime.backend import NAMES
from signconv.runtime.errors import coded
from signconv.runtime.program import OptimizerProgram

#: Keys a param group carries beside the hyperparameters: DCP keeps only state and param_groups.
META = ("program", "format", "seed", "maximize", "skip_nonfinite", "master", "lr0")

#: For a program of the user's own: its hash of release 0.1 stands in no table.
_FROM_0_1 = (
    ". If release 0.1 wrote it with this very spec of your own, set group['program'] of its "
    "param_groups to the optimizer's program.hash (CHANGELOG.md)"
)


def arguments(backend: str, seed: object) -> None:
    """Raise ValueError for a backend or a seed that no optimizer has."""
    if backend not in NAMES:
        raise coded(ValueError, "SC401", f"backend={backend!r} is not one of {', '.join(NAMES)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise coded(ValueError, "SC402", f"seed = {seed!r} is not an integer in 0 <= seed < 2**63")


def names(
    program: OptimizerProgram, unknown: Iterable[str], known: Iterable[str], name: str
) -> None:
    """Raise TypeError for an argument that the optimizer does not have."""
    for key in unknown:
        if key in program.removed:
            why = program.removed[key]
            raise coded(TypeError, "SC403", f"{name} has no {key!r}: {why}")
        valid = [*known, "seed", "backend", "maximize", "skip_nonfinite", "master"]
        close = difflib.get_close_matches(key, valid, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" It takes: {', '.join(valid)}."
        raise coded(TypeError, "SC403", f"{name} has no {key!r}.{hint}")


def hypers(program: OptimizerProgram, group: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for a hyperparameter of a group that is outside its range."""
    for h in program.hypers:
        if h.index is not None:
            value = group[h.key]
            count = sum(1 for x in program.hypers if x.key == h.key)
            if not isinstance(value, tuple | list) or len(value) != count:
                raise coded(ValueError, "SC404", f"{h.key} = {value!r} needs {count} numbers")
        h.check(h.read(group))


def param(p: Tensor, name: str) -> None:
    """Raise TypeError for a parameter that no optimizer here can step."""
    if p.is_complex():
        raise coded(
            TypeError,
            "SC411",
            f"{name} does not support complex parameters: optimize "
            "torch.view_as_real(parameter) instead",
        )
    if p.dtype not in (torch.float32, torch.bfloat16):
        raise coded(
            TypeError,
            "SC412",
            f"{name} supports fp32 and bf16 parameters, not {p.dtype}: convert the model with "
            ".float() or .bfloat16()",
        )
    if p.layout != torch.strided:
        raise coded(
            TypeError, "SC413", f"{name} does not support {p.layout} parameters: use dense ones"
        )
    if sharded.is_sharded(p):
        sharded.check(p, name)


def grad(p: Tensor, g: Tensor, name: str) -> None:
    """Raise RuntimeError for a gradient that does not fit its parameter."""
    if g.is_sparse or g.layout != torch.strided:
        raise coded(
            RuntimeError,
            "SC414",
            f"{name} does not support sparse gradients: build the embedding with sparse=False, "
            "or give its parameters to torch.optim.SparseAdam",
        )
    if g.device != p.device:
        raise coded(
            RuntimeError,
            "SC415",
            f"{name}: a parameter on {p.device} has its gradient on {g.device}: move the model "
            "to one device before the optimizer is built",
        )
    if g.dtype not in (torch.float32, torch.bfloat16):
        raise coded(RuntimeError, "SC416", f"{name} needs fp32 or bf16 gradients, not {g.dtype}")
    sharded.check_grad(p, g, name)


def groups(
    program: OptimizerProgram,
    loaded: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]],
    name: str,
) -> None:
    """Raise ValueError for param groups of a state_dict that are not those of the optimizer."""
    if len(loaded) != len(own):
        raise coded(
            ValueError,
            "SC502",
            f"the state_dict has {len(loaded)} param groups, {name} has {len(own)}",
        )
    for i, (new, old) in enumerate(zip(loaded, own, strict=True)):
        if len(new["params"]) != len(old["params"]):
            raise coded(
                ValueError,
                "SC502",
                f"param group {i}: the state_dict has {len(new['params'])} parameters, {name} "
                f"has {len(old['params'])}",
            )
        theirs = new.get("program")
        if not legacy.accepts(theirs, program.hash):
            theirs_own = (
                theirs and new.get("format") == program.storage and not legacy.known(theirs)
            )
            raise coded(
                ValueError,
                "SC503",
                f"this state_dict belongs to program {theirs or '(none: another optimizer)'} "
                f"with {new.get('format', 'unknown')} state, {name} is program "
                f"{program.hash} with {program.storage} state: their moments mean "
                "different things, so load it with the optimizer that wrote it"
                + (_FROM_0_1 if theirs_own else ""),
            )
        missing = {*META, *(h.key for h in program.hypers)} - set(new)
        if missing:
            raise coded(
                ValueError,
                "SC504",
                f"param group {i} of the state_dict lacks {sorted(missing)}",
            )
        hypers(program, new)
