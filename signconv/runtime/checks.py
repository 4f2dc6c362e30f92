"""What every optimizer refuses, with a way out; ``name`` is what its class is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import dense, memory, mesh, sharded
from signconv.runtime.backend import NAMES
from signconv.runtime.errors import coded
from signconv.runtime.formats import CHECK, MASTER
from signconv.runtime.state import Layout


def backend(name: object) -> None:
    """Raise ValueError for a backend that there is not."""
    if name not in NAMES:
        raise coded(ValueError, "SC401", f"backend={name!r} is not one of {', '.join(NAMES)}")


def param(p: object, name: str) -> None:
    """Raise TypeError for a parameter that no optimizer here can step."""
    if not isinstance(p, Tensor):
        raise coded(
            TypeError, "SC436", f"{name}: {p!r} in a param group is no parameter: put tensors there"
        )
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
            ".float() or .bfloat16(), or freeze the parameter with requires_grad_(False)",
        )
    if p.layout != torch.strided:
        raise coded(
            TypeError, "SC413", f"{name} does not support {p.layout} parameters: use dense ones"
        )
    if getattr(p, "_fsdp_flattened", False) or hasattr(p, "_is_flat_param"):
        raise coded(
            TypeError,
            "SC440",
            f"{name}: a parameter is a piece of FullyShardedDataParallel's flat one, which says "
            "neither which elements it has nor where their rows begin: shard with FSDP2 "
            "(torch.distributed.fsdp.fully_shard), which any optimizer here steps as the whole",
        )
    if mesh.is_sharded(p):
        mesh.check(p, name)
        p = mesh.local(p)
    if memory.foreign(p):
        raise coded(
            TypeError,
            "SC423",
            f"{name}: a parameter of type {type(p).__name__} has no memory that is its elements "
            "(a quantized or otherwise wrapped tensor, or one whose storage was freed): train "
            "parameters that are plain tensors, and leave this one out or frozen",
        )


def memories(p: Tensor, g: Tensor, name: str) -> None:
    """Raise for a parameter or a gradient that cannot be stepped as it is now.

    What was checked at construction may have changed since: ``model.half()``, ``p.data = …``.
    TypeError or RuntimeError, before anything is written.
    """
    param(p, name)
    grad(p, g, name)
    for x in (mesh.local(p), mesh.local(g)):
        if x is not g and x.is_inference():
            raise coded(
                RuntimeError,
                "SC424",
                f"{name}: a parameter was made in inference mode and cannot be changed outside "
                "of it: make the model outside, or give it p.data = p.clone()",
            )
        if x is not g and memory.overlaps_itself(x):
            raise coded(
                RuntimeError,
                "SC425",
                f"{name}: elements of a parameter of shape {list(x.shape)} share memory (strides "
                f"{list(x.stride())}, as expand makes them): give it p.data = p.contiguous()",
            )


def states(
    entry: Mapping[str, Tensor], wanted: Layout, p: Tensor, name: str, host: bool = False
) -> None:
    """Raise RuntimeError for state that is not as the step left it.

    wanted: shapes and dtypes (of a DTensor the unsharded ones).  ``step`` and ``offset`` and scalar
    states may lie anywhere; host: the others lie on the CPU, and else beside the parameter.
    """
    device = torch.device("cpu") if host else mesh.local(p).device
    for key, (shape, dtype) in wanted.items():
        x = entry.get(key)
        if x is None and key in (MASTER, CHECK):  # bf16 only since the state was made
            continue
        if x is None:
            raise coded(
                RuntimeError,
                "SC426",
                f"{name}: state[p] has no {key!r}: give it back, or load the state_dict anew",
            )
        if x.shape != shape == p.shape != torch.Size([]):
            raise coded(
                RuntimeError,
                "SC418",
                f"a parameter has shape {list(p.shape)} and its optimizer state "
                f"{list(x.shape)}: its data was replaced; make the optimizer anew",
            )
        part = mesh.local(x)
        if not shape:
            right = x.shape == shape and x.dtype == dtype
        else:
            right = (
                x.shape == shape
                and x.dtype == dtype
                and part.device == device
                and dense.as_it_lies(part)
                and mesh.is_sharded(x) == mesh.is_sharded(p)
                and not memory.foreign(part)
            )
        if not right:
            raise coded(
                RuntimeError,
                "SC426",
                f"{name}: state[p][{key!r}] is {x.dtype} {list(x.shape)} on {part.device}, and a "
                f"step needs a contiguous {dtype} {list(shape)} on {device}: it was converted or "
                "moved; move it back before the step, or load the state_dict anew",
            )


def apart(params: Sequence[Tensor], name: str) -> None:
    """Raise ValueError where two parameters share memory: they would be stepped at once."""
    found = memory.sharing(params)
    if found is not None:
        a, b = (f"{params[i].dtype} {list(params[i].shape)}" for i in found)
        raise coded(
            ValueError,
            "SC427",
            f"{name}: two parameters ({a} and {b}) share memory: tie them as one Parameter "
            "(b.weight = a.weight) instead of b.weight.data = a.weight.data, or leave one out",
        )


def once(params: Sequence[Tensor], name: str) -> None:
    """Raise ValueError for a param group in which a parameter stands twice."""
    if len({*map(id, params)}) < len(params):
        raise coded(
            ValueError,
            "SC428",
            f"{name}: a param group has the same parameter twice: list it once "
            "(model.parameters() does so with tied ones)",
        )


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
    if g.shape != p.shape or mesh.local(g).shape != mesh.local(p).shape:
        raise coded(
            RuntimeError,
            "SC429",
            f"{name}: a parameter has shape {list(p.shape)} and its gradient {list(g.shape)}: its "
            "data was replaced after backward; zero_grad() and backward again",
        )
    part = mesh.local(g)
    if memory.foreign(part) and not part._is_zerotensor():
        raise coded(
            RuntimeError,
            "SC430",
            f"{name}: a gradient of type {type(part).__name__} has no memory that is its elements "
            "(a wrapped tensor, or one whose storage was freed): assign p.grad a plain tensor",
        )


def is_state_dict(found: Mapping[str, Any]) -> None:
    """Raise ValueError for what no optimizer's ``state_dict()`` returned."""
    for name in ("state", "param_groups"):
        if name not in found:
            raise coded(
                ValueError,
                "SC501",
                f"this is no optimizer's state_dict: it has no {name!r}, only "
                f"{', '.join(map(repr, found)) or 'nothing'}",
            )


def parted(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raise ValueError where two rules of a hybrid have one parameter; groups: those of each."""
    seen: dict[int, str] = {}
    for rule, own in groups.items():
        for i, group in enumerate(own):
            for j, p in enumerate(group["params"]):
                if seen.setdefault(id(p), rule) == rule:
                    continue
                name = (group.get("param_names") or {j: None})[j]
                what = f"{j} of group {i}, of shape {[*p.shape]}," if name is None else repr(name)
                raise coded(
                    ValueError,
                    "SC474",
                    f"the parameter {what} is in {seen[id(p)]} and in {rule}: a hybrid steps each "
                    "by one rule; leave it out of one (signconv.matrices splits a model)",
                )
