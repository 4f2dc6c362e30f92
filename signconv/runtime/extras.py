"""Extra inputs of a step: what was passed to ``step`` by name, checked as gradients are.

Per element: a tensor for every parameter that has a gradient, of its shape, device and placement,
fp32 or bf16.  Per step: a number, or a tensor of one element, which the device reads by itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.dense import as_it_lies, plain_copy
from signconv.runtime.errors import coded
from signconv.runtime.formats import ABSENT, GIVEN_BF16, GIVEN_FP32
from signconv.runtime.memory import foreign
from signconv.runtime.program import OptimizerProgram

#: How each of a program's extra inputs per element comes: ABSENT, GIVEN_FP32 or GIVEN_BF16.
Kinds = tuple[int, ...]
DTYPES = {torch.float32: GIVEN_FP32, torch.bfloat16: GIVEN_BF16}


@dataclass(frozen=True)
class Inputs:
    """The extra inputs of one step, in the program's order.

    tensors: of each per element its tensors by parameter, None where it was not passed; numbers: of
    each per step a float or a tensor of one element, 0 where it was not passed; given: of every
    one, whether it was.
    """

    tensors: tuple[Mapping[Tensor, Tensor] | None, ...] = ()
    numbers: tuple[float | Tensor, ...] = ()
    given: tuple[bool, ...] = ()

    def values(self) -> list[float | Tensor]:
        """What the scalar code reads behind hyperparameters and norm."""
        return [*self.numbers, *map(float, self.given)]

    def kinds(self, params: Sequence[Tensor]) -> Kinds:
        """How each input per element comes to these parameters, fp32 where some are of it."""
        made = []
        for by_param in self.tensors:
            half = by_param and all(by_param[p].dtype == torch.bfloat16 for p in params)
            made.append(ABSENT if by_param is None else GIVEN_BF16 if half else GIVEN_FP32)
        return tuple(made)

    def lent(
        self, params: Sequence[Tensor], device: torch.device | None = None
    ) -> list[list[Tensor] | None]:
        """Of each input per element contiguous tensors of these parameters in the dtype of
        ``kinds``, those that were passed or copies (bf16 is widened, which is exact); None where
        it was not passed."""
        made: list[list[Tensor] | None] = []
        for by_param, kind in zip(self.tensors, self.kinds(params), strict=True):
            if by_param is None:
                made.append(None)
                continue
            mine = [by_param[p] for p in params]
            if kind == GIVEN_FP32:
                mine = [x.float() for x in mine]
            made.append([x if as_it_lies(x, device) else plain_copy(x, device) for x in mine])
        return made

    def mapped(self, made: Mapping[Tensor, Tensor]) -> Inputs:
        """Those of tensors that stand in for this rank's part of others: {stand-in: DTensor}."""
        tensors = (
            m and {x: _part(m[p], x) for x, p in made.items() if p in m} for m in self.tensors
        )
        return replace(self, tensors=tuple(tensors))


#: Of a program that has none.
NONE = Inputs()


def _part(given: Tensor, made: Tensor) -> Tensor:
    """This rank's part; zeros where it has none and steps a block of zeros."""
    part = mesh.local(given)
    return part if part.shape == made.shape else torch.zeros_like(made, dtype=part.dtype)


def named(program: OptimizerProgram, passed: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What was passed and is not None; TypeError for an input that the program does not have, and
    for one that is missing and that no step can do without."""
    known = [x.name for x in program.extras]
    for key in passed:
        if key not in known:
            raise coded(TypeError, "SC465", _unknown(program, key, known, name))
    given = {key: x for key, x in passed.items() if x is not None}
    for x in program.extras:
        if x.needed and x.name not in given:
            what = "a tensor for every parameter" if x.per == "element" else "a number"
            raise coded(
                TypeError,
                "SC466",
                f"{name} reads {x.name!r} at every step, and this one was not given it: "
                f"step({x.name}=…), {what}",
            )
    return given


def _unknown(program: OptimizerProgram, key: str, known: Sequence[str], name: str) -> str:
    if key in program.removed:
        return f"{name} has no extra input {key!r}: {program.removed[key]}"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"it takes: {', '.join(known)}" if known else "its step takes a closure and nothing else"
    return f"{name} has no extra input {key!r}; " + (
        f"did you mean {close[0]!r}" if close else hint
    )


def collect(
    program: OptimizerProgram,
    given: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    name: str,
) -> Inputs:
    """What ``named`` found, looked at tensor by tensor; nothing is written.

    Raises TypeError, ValueError or RuntimeError for what does not fit the parameters.
    """
    if not program.extras:
        return NONE
    params = [*chain.from_iterable(g["params"] for g in groups)]
    tensors = (
        _tensors(given[key], key, params, name) if key in given else None for key in program.tensors
    )
    numbers = (_number(given.get(key, 0.0), key, name) for key in program.numbers)
    return Inputs(tuple(tensors), tuple(numbers), tuple(x.name in given for x in program.extras))


def _number(value: Any, key: str, name: str) -> float | Tensor:
    if isinstance(value, Tensor) and value.numel() == 1 and not mesh.is_sharded(value):
        if value.dtype.is_floating_point and not value.is_meta:
            return value.detach()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    what = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise coded(
        TypeError,
        "SC467",
        f"{name}: {key}={what} is no number: give a float, or a floating tensor of one element, "
        "which is no DTensor",
    )


def _tensors(value: Any, key: str, params: list[Tensor], name: str) -> dict[Tensor, Tensor]:
    """By parameter, of those that have a gradient."""
    made: dict[Tensor, Tensor] = {}
    for p, x in pairs(value, key, params, name):
        if p.grad is None or not p.numel():
            continue
        if x is None:
            raise coded(
                ValueError,
                "SC468",
                f"{name}: a parameter of shape {list(p.shape)} has a gradient and no {key}: give "
                "one for every parameter that has a gradient, or none at all",
            )
        _check(x, p, key, name)
        made[p] = x.detach()
    return made


def pairs(value: Any, key: str, params: list[Tensor], name: str) -> Iterable[tuple[Tensor, Any]]:
    """What was passed for each parameter; ValueError for what is no list of tensors for them."""
    wanted = (
        f"{key}= takes a sequence with a tensor for each of the {len(params)} parameters in the "
        "order of the param groups (None where there is no gradient), or {parameter: tensor}"
    )
    if isinstance(value, Mapping):
        strange = [x for x in value if not isinstance(x, Tensor)]
        if strange or not {*value} <= {*params}:
            what = f"a key {strange[0]!r}" if strange else "a parameter that is in no param group"
            raise coded(ValueError, "SC468", f"{name}: {wanted}, and it got {what}")
        return ((p, value.get(p)) for p in params)
    if isinstance(value, Tensor) or not isinstance(value, Iterable):
        what = "one tensor" if isinstance(value, Tensor) else repr(value)
        raise coded(ValueError, "SC468", f"{name}: {wanted}, and it got {what}")
    values = [*value]
    if len(values) != len(params):
        raise coded(ValueError, "SC468", f"{name}: {wanted}, and it got {len(values)} of them")
    return zip(params, values, strict=True)


def _check(x: Any, p: Tensor, key: str, name: str) -> None:
    """Raise for a tensor that does not fit its parameter, by what is asked of gradients."""
    if not isinstance(x, Tensor):
        wrong, remedy = f"is {type(x).__name__}", "give a tensor"
    elif x.layout != torch.strided:
        wrong, remedy = f"is {x.layout}", "give a dense one"
    elif x.device != p.device:
        wrong, remedy = f"is on {x.device}", f"give it on {p.device}"
    elif x.dtype not in DTYPES:
        wrong, remedy = f"is {x.dtype}", "give fp32 or bf16"
    elif mesh.is_sharded(x) != mesh.is_sharded(p):
        wrong = "is a DTensor" if mesh.is_sharded(x) else "is no DTensor"
        remedy = "place it as the parameter is"
    elif mesh.is_sharded(x) and mesh.lies(x) != mesh.lies(p):
        wrong = f"is placed {mesh.placements(x)}"
        remedy = f"redistribute it to {mesh.placements(p)}"
    elif x.shape != p.shape or mesh.local(x).shape != mesh.local(p).shape:
        wrong, remedy = f"has shape {list(x.shape)}", "give it the parameter's shape"
    elif foreign(mesh.local(x)) and not mesh.local(x)._is_zerotensor():
        wrong = f"is a {type(x).__name__} without memory that is its elements"
        remedy = "give a plain tensor"
    else:
        return
    raise coded(
        RuntimeError,
        "SC469",
        f"{name}: the {key} of a {p.dtype} parameter of shape {list(p.shape)} {wrong}: {remedy}",
    )


__all__ = ["NONE", "Inputs", "Kinds", "collect", "named", "pairs"]
