"""The Triton backend: one launch for all tensors of a group that share dtype and storage.

A table holds the pointers of every tensor, a second one a (tensor, chunk) pair for every program.
Both live on the device and are rebuilt only when something changed; every pointer is compared
each step.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.compat import tl, triton
from signconv.runtime.formats import BLOCK, CHECK, MASTER, PLAIN, SPLIT, WHOLE
from signconv.runtime.kernel import launch
from signconv.runtime.kernel.launch import Launcher
from signconv.runtime.kernel.sums import Reducer
from signconv.runtime.master import param_format
from signconv.runtime.program import OptimizerProgram, check_shape, has_blocks

#: Columns of the pointer table before the moments' pointers; two for a master weight come last.
CLOCK_ROW, ALIGNED, OFFSET, NUMEL, PARAM, GRAD, FIRST_MOMENT = range(7)
#: What the quick check of every step asks of thousands of tensors, as calls without Python frames.
_POINTER, _CONTIGUOUS = Tensor.data_ptr, Tensor.is_contiguous
_DTYPE, _DEVICE = attrgetter("dtype"), attrgetter("device")


@triton.jit
def find_nonfinite(
    table,
    chunks,
    flag,
    COLUMNS: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Set ``flag`` to 1 if any gradient of the chunk is Inf or NaN."""
    pid = tl.program_id(0)
    entry = table + tl.load(chunks + 2 * pid).to(tl.int64) * COLUMNS
    start = tl.load(chunks + 2 * pid + 1).to(tl.int64) * (TILES * ROWS * 32)
    g_ptr = tl.load(entry + 5).to(tl.pointer_type(G)) + start
    left = tl.load(entry + 3) - start
    for tile in tl.static_range(TILES):
        offsets = tile * (ROWS * 32) + tl.arange(0, ROWS * 32)
        g = tl.load(g_ptr + offsets, mask=offsets < left, other=0)
        bad = (g.to(tl.float32).to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000
        if tl.max(bad.to(tl.int32), axis=0) > 0:
            tl.store(flag, 1.0)


class Bucket:
    """Tensors of one launch: one parameter dtype, gradient dtype and storage."""

    def __init__(
        self,
        program: OptimizerProgram,
        device: torch.device,
        members: list[Tensor],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> None:
        self.program, self.device, self.members = program, device, members
        self.shape = launch.launch_shape(program, members[0].dtype)
        blocks = has_blocks(members[0])
        self.formats = [m.format_for(blocks) for m in program.moments]
        self.names: list[str] = []
        for m, fmt in zip(program.moments, self.formats, strict=True):
            self.names += [m.name, f"{m.name}_scale" if fmt.scaled else m.name]
        self.param_format = param_format(state[members[0]])
        masters = {PLAIN: (), SPLIT: (MASTER, CHECK), WHOLE: (MASTER, MASTER)}
        self.names += masters[self.param_format]
        self.watched = [*self.names, "step"]
        self.columns = FIRST_MOMENT + 2 * len(program.moments) + 2
        self.param_type = _pointer_type(members[0].dtype)
        assert members[0].grad is not None
        self.grad_dtype = members[0].grad.dtype
        self.grad_type = _pointer_type(self.grad_dtype)
        self.kinds = [_kind(p) for p in members]
        per_chunk = self.shape.chunk * BLOCK
        counts = torch.tensor([-(-p.numel() // per_chunk) for p in members])
        tensor_of = torch.repeat_interleave(torch.arange(len(members)), counts)
        starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        within = torch.arange(len(tensor_of)) - starts
        self.chunks = torch.stack((tensor_of, within), dim=1).to(torch.int32).to(device)
        self.programs = len(tensor_of)
        self.pointers: list[int] = []
        self.table = torch.empty((len(members), self.columns), dtype=torch.int64, device=device)
        self.reducer = None
        if program.reductions:
            self.reducer = Reducer(counts.tolist(), program.reductions, device)
        self.codec = launch.device_codec(device)
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.keep: list[Tensor] = []
        self.entries: list[dict[str, Tensor]] = []
        self.fixed = torch.empty(0, dtype=torch.int64)
        self.launchers: dict[bool, tuple[Launcher, Launcher]] = {}

    def follow(self) -> bool:
        """The quick check of every pointer, for tensors and state dictionaries already seen.

        Gradients may have moved, which uploads the table.  False asks for ``refresh`` or more: a
        gradient is missing or of another kind, or something else is not where it was.
        """
        if self.copies or self.keep or not self.entries:
            return False
        count = len(self.members)
        grads: list[Any] = [p.grad for p in self.members]
        try:
            pointers = self._pointers(self.members, grads)
        except (TypeError, KeyError, RuntimeError):  # no gradient or a sparse one, no such state
            return False
        if (
            pointers[:count] != self.pointers[:count]
            or pointers[2 * count :] != self.pointers[2 * count :]
            or {*map(_DTYPE, grads)} != {self.grad_dtype}
            or not all(map(_CONTIGUOUS, grads))
            or not all(map(_CONTIGUOUS, self.members))
        ):
            return False
        if pointers != self.pointers:
            if {*map(_DEVICE, grads)} != {self.device}:
                return False
            self._upload(pointers)
        return True

    def refresh(
        self, state: Mapping[Tensor, dict[str, Tensor]], clock_rows: Mapping[Tensor, int]
    ) -> bool:
        """Compare every pointer with the table's; upload the table if one changed.

        False where a tensor was replaced by one that this bucket was not made for.
        """
        self.copies, self.keep = [], []
        params, grads = [], []
        for p in self.members:
            g = p.grad
            assert g is not None
            flat = p.detach()
            if not p.is_contiguous():
                flat = flat.contiguous()
                self.copies.append((p, flat))
            if not g.is_contiguous():
                g = g.contiguous()
                self.keep.append(g)
            params.append(flat)
            grads.append(g)
        if self.kinds != [_kind(p) for p in self.members]:
            return False
        entries = [state[p] for p in self.members]
        if [*map(id, self.entries)] != [*map(id, entries)]:
            self.entries = entries
            rows = [clock_rows[p] for p in self.members]
            offsets = [int(e["offset"]) for e in entries]
            sizes = [p.numel() for p in self.members]
            self.fixed = torch.tensor([rows, [0] * len(rows), offsets, sizes])
        pointers = self._pointers(params, grads)
        if pointers != self.pointers:
            self._upload(pointers)
        return True

    def _pointers(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[int]:
        """Of all parameters, of all gradients, then of all state: name by name, clocks last."""
        state = [entry[name] for name in self.watched for entry in self.entries]
        return [*map(_POINTER, params), *map(_POINTER, grads), *map(_POINTER, state)]

    def _upload(self, pointers: list[int]) -> None:
        count = len(self.members)
        values = torch.frombuffer(array("q", pointers), dtype=torch.int64).view(-1, count)
        values = values[:-1]  # the clocks are found by their rows
        host = torch.zeros((count, self.columns), dtype=torch.int64)
        host[:, :PARAM] = self.fixed.t()
        host[:, ALIGNED] = (values % 16 == 0).all(dim=0)
        host[:, PARAM : PARAM + len(values)] = values.t()
        if self.device.type == "cuda":
            host = host.pin_memory()
        self.table.copy_(host, non_blocking=True)
        self.pointers = pointers

    def launch(self, scalars: Tensor, keys: Tensor, scaled: bool) -> None:
        """The one step launch of this bucket; reductions take two or more before it.

        ``scaled``: whether gradients are multiplied by a factor that may not be 1.
        """
        if scaled not in self.launchers:
            self.launchers[scaled] = self._launchers(scaled)
        reduce, step = self.launchers[scaled]
        tables = [self.table, self.chunks, scalars, keys]
        if self.reducer is not None:
            reduce(*tables, self.reducer.partials)
            tables.append(self.reducer.run())
        step(*tables)
        for p, flat in self.copies:
            p.copy_(flat)

    def _launchers(self, scaled: bool) -> tuple[Launcher, Launcher]:
        """The reduction's, which is idle in a program without one, and the step's."""
        shared = {
            "P_TYPE": self.param_type,
            "G_TYPE": self.grad_type,
            "p_format": self.param_format,
            **{
                f"{m.name}_format": f.code
                for m, f in zip(self.program.moments, self.formats, strict=True)
            },
            "CODEC": self.codec,
            "SCALED": scaled,
            "num_warps": launch.WARPS,
            "enable_fp_fusion": False,
        }
        levels = (self.shape.chunk * BLOCK).bit_length() - 1
        reduce = {**shared, "ROWS": self.shape.chunk, "LEVELS": levels}
        step = {
            **shared,
            "ROWS": self.shape.rows,
            "TAIL": self.shape.chunk if launch.interpreted() else launch.TAIL_ROWS,
            "TILES": self.shape.tiles,
            **self.shape.limits(self.codec),
        }
        kernels = (self.program.reduce_kernel, reduce), (self.program.step_kernel, step)
        first, second = (Launcher(k, self.programs, given) for k, given in kernels)
        return first, second


class GroupEngine:
    """All tensors of one param group on one device.

    Parameters with the same number of steps share a row of the clock and of the scalars.
    """

    def __init__(self, program: OptimizerProgram, device: torch.device) -> None:
        self.program, self.device = program, device
        self.active: list[int] = []
        self.buckets: list[Bucket] = []
        self.clock = torch.zeros(0, dtype=torch.int64, device=device)
        self.memory = torch.zeros(0, dtype=torch.float64, device=device)
        self.clock_rows: dict[Tensor, int] = {}
        self.active_rows = 0
        self.uploaded: list[float] = []
        self.hypers = torch.zeros(len(program.hypers) + 2, dtype=torch.float64, device=device)
        # A tensor: as a number a seed of 1 would be a literal, and a large one of another type
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.seed_value = 0
        self.zero = torch.zeros((), dtype=torch.float32, device=device)
        self.one = torch.ones((), dtype=torch.float32, device=device)
        self.scalars = torch.empty(0, device=device)
        self.keys = torch.empty(0, dtype=torch.int32, device=device)
        self.scalar_launcher: Launcher

    def prepare(
        self,
        group: Mapping[str, Any],
        params: list[Tensor],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> None:
        """Bring tables and clock up to date with this step's parameters."""
        active = [id(p) for p in params]
        if active != self.active or any(
            state[p]["step"].data_ptr() != self._step_pointer(p) for p in params
        ):
            self._rebuild(group, params, state)
        if not all(b.refresh(state, self.clock_rows) for b in self.buckets):
            self._rebuild(group, params, state)
            for b in self.buckets:
                b.refresh(state, self.clock_rows)
        self.active = active

    def follow(self, params: list[Tensor]) -> bool:
        """Whether ``prepare`` has nothing to do for these parameters, all of them with gradients,
        provided that their state dictionaries are still those of the last step."""
        return list(map(id, params)) == self.active and all(b.follow() for b in self.buckets)

    def _step_pointer(self, p: Tensor) -> int:
        row = self.clock_rows.get(p)
        return -1 if row is None else self.clock.data_ptr() + 8 * row

    def _rebuild(
        self,
        group: Mapping[str, Any],
        params: list[Tensor],
        state: Mapping[Tensor, dict[str, Tensor]],
    ) -> None:
        self.active = []  # should anything below fail, the next step starts over
        for p in params:
            check_shape(p, state[p], self.program)
        wanted = set(params)
        names = [name for name, _ in self.program.memory]
        found: dict[tuple[bool, int], Mapping[str, Tensor]] = {}
        members: dict[tuple[bool, int], list[Tensor]] = {}
        for p in group["params"]:
            if p.device == self.device and p in state:
                key = (p not in wanted, state[p]["step"].data_ptr())
                found[key] = state[p]
                members.setdefault(key, []).append(p)
        order = sorted(found)
        clock = torch.stack([found[k]["step"].to(self.device) for k in order])
        columns = [torch.stack([found[k][n].to(self.device) for k in order]) for n in names]
        memory = torch.stack(columns, dim=1) if names else self.memory[:0]
        # Fresh and loaded parameters come with steps of their own; equal values share a row.
        known: list[Any] = list(range(len(order)))
        if any(not self._owns(found[k]["step"]) for k in order):
            extra = memory.tolist() if names else [[]] * len(order)
            known = [(t, *more) for t, more in zip(clock.tolist(), extra, strict=True)]
        rows: dict[tuple[bool, Any], int] = {}
        picked: list[int] = []
        self.clock_rows = {}
        for i, key in enumerate(order):
            share = (key[0], known[i])
            if share not in rows:
                rows[share] = len(picked)
                picked.append(i)
            for p in members[key]:
                self.clock_rows[p] = rows[share]
        self.active_rows = sum(1 for inactive, _ in rows if not inactive)
        pick = torch.tensor(picked, device=self.device)
        self.clock = clock[pick].contiguous()
        self.memory = memory[pick].contiguous() if names else memory
        for p, row in self.clock_rows.items():
            state[p]["step"] = self.clock[row]
            for column, name in enumerate(names):
                state[p][name] = self.memory[row, column]
        width = 1 + len(self.program.outputs)
        self.scalars = torch.empty((self.active_rows, width), device=self.device)
        self.keys = torch.empty(
            (self.active_rows, 1 + 2 * self.program.words), dtype=torch.int32, device=self.device
        )
        self.scalar_launcher = Launcher(
            self.program.scalar_kernel,
            self.active_rows,
            {"num_warps": 1, "enable_fp_fusion": False},
        )
        buckets: dict[tuple[torch.dtype, torch.dtype, bool, int], list[Tensor]] = {}
        for p in params:
            assert p.grad is not None
            blocks = self.program.scaled and has_blocks(p)
            kind = (p.dtype, p.grad.dtype, blocks, param_format(state[p]))
            buckets.setdefault(kind, []).append(p)
        self.buckets = [Bucket(self.program, self.device, b, state) for b in buckets.values()]

    def _owns(self, step: Tensor) -> bool:
        first = self.clock.data_ptr()
        return first <= step.data_ptr() < first + 8 * self.clock.numel()

    def find_nonfinite(self, flag: Tensor) -> None:
        """Raise ``flag`` on the device if any gradient is Inf or NaN."""
        for b in self.buckets:
            find_nonfinite[(b.programs,)](
                b.table,
                b.chunks,
                flag,
                b.columns,
                b.grad_type,
                ROWS=b.shape.rows,
                TILES=b.shape.tiles,
                num_warps=launch.WARPS,
            )

    def launch(
        self, group: Mapping[str, Any], skip: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        """The scalar kernel, then one step launch per bucket."""
        lr = group["lr"]
        values = [
            0.0 if isinstance(v := h.read(group), Tensor) else float(v) for h in self.program.hypers
        ]
        lr0 = group["lr0"]
        values += [float(lr0), -1.0 if group["maximize"] else 1.0]
        if group["seed"] != self.seed_value:
            self.seed_value = group["seed"]
            self.seed.fill_(self.seed_value)
        if values != self.uploaded:
            self.uploaded = values
            self.hypers.copy_(torch.tensor(values, dtype=torch.float64))
        for i, h in enumerate(self.program.hypers):
            value = h.read(group)
            if isinstance(value, Tensor) and h.name != "lr":
                self.hypers[i] = value
        lr_source = lr.to(self.device) if isinstance(lr, Tensor) else self.hypers
        self.scalar_launcher(
            lr_source,
            self.hypers,
            self.clock,
            self.memory,
            self.seed,
            self.zero if skip is None else skip,
            self.one if grad_scale is None else grad_scale,
            self.scalars,
            self.keys,
        )
        scaled = grad_scale is not None or bool(group["maximize"])
        for b in self.buckets:
            b.launch(self.scalars, self.keys, scaled)


def _kind(p: Tensor) -> tuple[torch.dtype, torch.dtype, torch.Size]:
    """What a bucket was made for: a parameter's data can be replaced between steps."""
    assert p.grad is not None
    return p.dtype, p.grad.dtype, p.shape


def _pointer_type(dtype: torch.dtype) -> Any:
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float32
