"""DTensor parameters: a sharded step is the unsharded one, bit for bit, on any mesh.

Each state tensor has the unsharded shape and is cut as its parameter is (``runtime/mesh.py``), so
torch.distributed.checkpoint can save it and cut it anew. Where every cut falls between blocks, as
between rows of a matrix or between multiples of 32 columns, each rank steps its own part as an
ordinary tensor whose random numbers are those of its elements in the whole.  Elsewhere, and for
programs with reductions or that read the number of elements, parameters are dealt out: one rank
steps the whole of each (``runtime/owners.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import mesh
from signconv.runtime.errors import coded
from signconv.runtime.extras import Inputs
from signconv.runtime.formats import BLOCK, CHECK
from signconv.runtime.mesh import is_sharded, local
from signconv.runtime.program import (
    OptimizerProgram,
    block_shape,
    moment_shape,
    row_length,
    whole_blocks,
)

#: Param group indices with parameters to step.
Parts = list[tuple[int, list[Tensor]]]


def check_grad(p: Tensor, g: Tensor, name: str) -> None:
    """Raise RuntimeError unless the gradient is cut as its parameter is."""
    if is_sharded(p) != is_sharded(g) or (is_sharded(p) and mesh.lies(p) != mesh.lies(g)):
        theirs = (
            f"is a DTensor placed {mesh.placements(g)}" if is_sharded(g) else "is a plain tensor"
        )
        ours = f"a DTensor placed {mesh.placements(p)}" if is_sharded(p) else "a plain tensor"
        raise coded(
            RuntimeError,
            "SC420",
            f"{name}: a parameter is {ours} and its gradient {theirs}: they must be placed alike, "
            "redistribute the gradient",
        )


def wire(x: Any) -> str:
    """Where collectives of its ranks take their tensors, wherever its part lies."""
    return mesh.mesh_of(x).device_type


def first_element(p: Tensor) -> int:
    """Index of this rank's first element in the unsharded tensor."""
    strides = torch.empty(p.shape, dtype=torch.uint8, device="meta").stride()
    return sum(begin * n for (begin, _), n in zip(mesh.spans(p, p.shape), strides, strict=True))


def on_blocks(p: Tensor) -> bool:
    """Whether every cut falls between blocks, on all ranks: rows have their own."""
    if p.dim() == 0:
        return True
    if any(dim > 1 for dim in mesh.cuts(p)):
        return False
    if p.dim() < 2:
        return mesh.rows_begin_at(p, BLOCK)
    return mesh.columns_begin_at(p, (2, BLOCK))


def is_local(p: Tensor, program: OptimizerProgram, entry: Mapping[str, Tensor]) -> bool:
    """Whether a rank can step its part of a DTensor, whose state is ``entry``, without the
    others."""
    if not mesh.is_cut(p):
        return True
    if program.reductions or set(program.shapes) - {"ndim"}:
        return False
    if program.totals is not None and not (program.scaled or whole_blocks(p)):
        return False  # totals sum blocks, which go through rows as they lie there
    if program.scaled or CHECK in entry or program.totals is not None:
        return on_blocks(p)
    return all(dim < 2 for dim in mesh.cuts(p))


def wrap(part: Tensor, p: Tensor, shape: Sequence[int]) -> Tensor:
    """This rank's part of a tensor of global ``shape`` as a DTensor placed as ``p`` is."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    size = torch.Size(shape)
    stride = torch.empty(size, dtype=torch.uint8, device="meta").stride()
    placed = mesh.placed_as(p, len(size))
    if part.device.type != mesh.mesh_of(p).device_type:
        # FSDP2's CPU offload: from_local would move it to the mesh's device
        spec = DTensorSpec(mesh.mesh_of(p), placed, TensorMeta(size, stride, part.dtype))
        return DTensor(part, spec, requires_grad=False)
    return DTensor.from_local(
        part, mesh.mesh_of(p), placed, run_check=False, shape=size, stride=stride
    )


def zeros(p: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros of global ``shape``, placed as ``p`` is; scalars are never cut."""
    if not is_sharded(p) or len(shape) == 0:
        return torch.zeros(shape, dtype=dtype, device=local(p).device)
    sizes = [end - begin for begin, end in mesh.spans(p, shape)]
    return wrap(torch.zeros(sizes, dtype=dtype, device=local(p).device), p, shape)


def place(value: Tensor, p: Tensor, device: torch.device) -> Tensor:
    """A copy of a loaded state tensor on ``device``, placed as ``p`` is.

    A DTensor placed otherwise is gathered first, which all its ranks must do.
    """
    value = value.detach()
    if is_sharded(value):
        same = is_sharded(p) and value.dim() > 0
        if same and mesh.lies(value) == (mesh.mesh_of(p), mesh.placed_as(p, value.dim())):
            return wrap(_copy(local(value), device), p, value.shape)
        value = _full(value)
    if not is_sharded(p) or value.dim() == 0:
        return _copy(value, device)
    return wrap(_copy(mesh.part_of(value, p), device), p, value.shape)


def _copy(value: Tensor, device: torch.device) -> Tensor:
    """Contiguous, whatever the order it was saved in: kernels read memory, not strides."""
    plain = value.resolve_neg().resolve_conj()
    return plain.to(device, copy=True, memory_format=torch.contiguous_format)


def _full(value: Tensor) -> Tensor:
    """The whole of a DTensor placed in any way; on the mesh's device, where collectives run."""
    from torch.distributed.tensor import DTensor

    if local(value).device.type != mesh.mesh_of(value).device_type:
        value = DTensor.from_local(
            local(value),
            mesh.mesh_of(value),
            mesh.placements(value),
            run_check=False,
            shape=value.shape,
            stride=value.stride(),
        )
    return value.full_tensor()  # type: ignore[attr-defined]


def gather(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The whole of each tensor, on every rank of its mesh: one collective for all of them where
    all are cut along dim 0 alone by the same ranks.

    There bytes travel, so that gloo takes every dtype.
    """
    first = tensors[0]
    group = mesh.cut_along_rows(first)
    if group is None:
        # Of uneven parts torch 2.11 makes views, and kernels read memory, not strides
        return [_copy(_full(x.detach()), local(x).device) for x in tensors]
    ranks = torch.distributed.get_world_size(group)
    parts, widths = [], []
    for x in tensors:
        row = x.numel() // x.shape[0] * x.element_size()
        widths.append(-(-x.shape[0] // ranks) * row)
        flat = local(x).detach().contiguous().view(-1).view(torch.uint8)
        parts.append(torch.nn.functional.pad(flat, (0, widths[-1] - flat.numel())))
    sent = torch.cat(parts).to(wire(first))
    received = torch.empty(ranks * sent.numel(), dtype=torch.uint8, device=sent.device)
    # torch 2.13 renamed it
    dist = torch.distributed
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collect(received, sent, group=group)
    made, begin = [], 0
    for x, width in zip(tensors, widths, strict=True):
        # Only the last parts are short, so the padding is all at the end
        flat = received.view(ranks, -1)[:, begin : begin + width].reshape(-1)
        flat = flat[: x.numel() * x.element_size()].clone().to(local(x).device)
        made.append(flat.view(x.dtype).view(x.shape))
        begin += width
    return made


def keep_part(target: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of ``whole`` into a DTensor."""
    local(target).detach().copy_(mesh.part_of(whole, target))


def placed_with(x: object, p: Tensor) -> bool:
    """Whether ``x`` is state that is cut as its parameter is; a user's own may be placed anyhow."""
    if not isinstance(x, Tensor) or not is_sharded(x):
        return False
    return mesh.lies(x) == (mesh.mesh_of(p), mesh.placed_as(p, x.dim()))


def whole(p: Tensor, entry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A cut parameter and its state, gathered (all ranks must call)."""
    names = [n for n, x in entry.items() if placed_with(x, p)]
    values, *states = gather([p, *(entry[n] for n in names)])
    return values, {**entry, **dict(zip(names, states, strict=True))}


def readable(p: Tensor, entry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Values and state as plain tensors that belong together: this rank's part, which shares
    memory, or all of it where the cuts fall inside blocks (all ranks must call)."""
    if is_sharded(p) and not on_blocks(p):
        return whole(p, entry)
    here = local(p.detach())
    return here, {n: x if _number(x) else local(x).to(here.device) for n, x in entry.items()}


def _number(x: Tensor) -> bool:
    """Whether it is a clock or a scalar state, which stays where it is; a moment of one element
    is 0-dim too."""
    return x.dim() == 0 and x.dtype in (torch.int64, torch.float64)


def place_part(value: Tensor, p: Tensor, shape: torch.Size) -> Tensor:
    """What was computed from ``readable``'s values, of global ``shape``, placed as ``p`` is."""
    if not is_sharded(p):
        return value
    if not on_blocks(p):
        value = mesh.part_of(value, p).clone()
    return wrap(value, p, shape)


def write_back(
    p: Tensor, entry: Mapping[str, Tensor], value: Tensor, plain: Mapping[str, Tensor]
) -> None:
    """Store what ``readable`` gave and was changed since; parts that share memory are there."""
    if is_sharded(p) and not on_blocks(p):
        keep_part(p, value)
        for name, x in plain.items():
            if is_sharded(entry[name]):
                keep_part(entry[name], x)
        return
    if value.data_ptr() != local(p).data_ptr():
        local(p).detach().copy_(value)
    for name, x in plain.items():
        if local(entry[name]).device != x.device:  # offloaded
            entry[name].copy_(x)


def agree(flag: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The largest ``flag`` of all ranks that share one of ``params``, which all must call."""
    seen: set[int] = set()
    for p in params:
        for group in mesh.groups_of(p) if is_sharded(p) else ():
            if id(group) in seen:
                continue
            seen.add(id(group))
            there = flag.to(wire(p))
            torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX, group=group)
            flag = there.to(flag.device)
    return flag


class Locals:
    """Plain tensors that stand in for the DTensors of an optimizer, kept from step to step."""

    def __init__(self, program: OptimizerProgram) -> None:
        self.program = program
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._made: dict[Tensor, tuple[tuple[Any, ...], Tensor]] = {}
        self._whole: dict[Tensor, Tensor] = {}  # by the stand-in
        self._first: dict[Tensor, int | None] = {}

    def split(
        self,
        parts: Parts,
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> tuple[Parts, Parts, list[dict[str, Any]]]:
        """The work of a step in stand-ins, the DTensors to deal out, and groups of stand-ins."""
        present = {p for group in groups for p in group["params"]}
        for p in [p for p in self._made if p not in present]:
            del self.state[self._made.pop(p)[1]]
        self._first = {p: x for p, x in self._first.items() if p in present}
        self.state = {p: e for p, e in self.state.items() if p in present or p not in state}
        made: dict[Tensor, Tensor] = {}
        locally: list[dict[str, Any]] = []
        for group in groups:
            held = [p for p in group["params"] if state.get(p)]
            known = [p for p in held if self._first_of(p, state[p]) is not None]
            made |= {p: self._stand_in(p, state[p]) for p in known}
            locally.append({**group, "params": [made[p] for p in known]})
        self._whole = {x: p for p, x in made.items()}
        near = [(i, [made[p] for p in ps if p in made]) for i, ps in parts]
        far = [(i, [p for p in ps if p not in made]) for i, ps in parts]
        return [x for x in near if x[1]], [x for x in far if x[1]], locally

    def whole(self, made: Tensor) -> Tensor:
        """The DTensor that a stand-in stands for; a plain parameter is its own."""
        return self._whole.get(made, made)

    def inputs(self, inputs: Inputs) -> Inputs:
        """Extra inputs as those of the stand-ins of this step."""
        return inputs.mapped(self._whole)

    def alone(self, p: Tensor, entry: dict[str, Tensor]) -> Tensor | None:
        """What stands in for one DTensor, with its gradient; None where the ranks have to meet."""
        return None if self._first_of(p, entry) is None else self._stand_in(p, entry)

    def done(self, p: Tensor, entry: dict[str, Tensor]) -> None:
        """Hand back what ``finish`` does, of one."""
        made = self._made[p][1]
        made.grad = None
        for name in ("step", *(n for n, _ in self.program.scalar_states)):
            entry[name] = self.state[made][name]

    def finish(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Hand back the scalars that the engines replaced; keep neither gradients nor what stands
        for parameters that are no longer there."""
        for p, (_, made) in [*self._made.items()]:
            if state.get(p):
                self.done(p, state[p])
            made.grad = None

    def _first_of(self, p: Tensor, entry: Mapping[str, Tensor]) -> int | None:
        """This rank's first element; None where no rank can step its part."""
        if p not in self._first:
            here = not is_sharded(p)
            mine = here or is_local(p, self.program, entry)
            self._first[p] = (0 if here else first_element(p)) if mine else None
        return self._first[p]

    def _stand_in(self, p: Tensor, entry: dict[str, Tensor]) -> Tensor:
        """What steps instead of ``p``, with its gradient; a plain parameter is its own.

        A rank without a part of ``p`` steps one block of zeros, so that its clock and scalar
        states go on as everybody's.
        """
        if not is_sharded(p):
            self.state[p] = entry
            return p
        part = local(p).detach()
        idle = part.numel() == 0
        kind = (part.data_ptr(), part.shape, part.stride())
        if p not in self._made or self._made[p][0] != kind:
            made = part.new_zeros(BLOCK if whole_blocks(p) else 1) if idle else part
            if p in self._made:
                del self.state[self._made[p][1]]
            self._made[p] = (kind, made)
            self.state[made] = {}
        made, mine = self._made[p][1], self.state[self._made[p][1]]
        for name, x in entry.items():
            if not is_sharded(x):
                mine[name] = x
            elif not idle:
                mine[name] = local(x)
            elif name not in mine:
                mine[name] = local(x).new_zeros(_idle_shape(made, name, x, self.program))
        if not idle:
            first = self._first_of(p, entry)
            assert first is not None
            mine["offset"] = entry["offset"] + first
            mine["pitch"] = torch.tensor(row_length(p), dtype=torch.int64, device="cpu")
        grad = None if p.grad is None else local(p.grad).detach()
        if grad is not None:
            grad = torch.zeros_like(made, dtype=grad.dtype) if idle else grad
        if grad is not None and grad.dtype != made.dtype:
            made.grad_dtype = None  # any
        made.grad = grad
        return made


def _idle_shape(made: Tensor, name: str, x: Tensor, program: OptimizerProgram) -> torch.Size:
    """Of the state of what a rank without a part of a parameter steps."""
    for m in program.moments:
        if name == m.name:
            return moment_shape(made, m.stored)
        if name == f"{m.name}_scale":
            return block_shape(made)
    if name == CHECK:
        return block_shape(made)
    return torch.Size([*made.shape, *((2,) if x.dtype == torch.uint8 else ())])  # a master weight
