"""``signconv.inspect``: what the state of an optimizer looks like, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from signconv.runtime import mesh, sharded
from signconv.runtime.axes import NOTATION
from signconv.runtime.formats import BLOCK, CHECK, MASTER, SPLIT, WHOLE, Format
from signconv.runtime.hybrid import Hybrid, rules
from signconv.runtime.master import param_format
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.program import row_length, whole_blocks
from signconv.runtime.reference import ops as ref
from signconv.runtime.wrapped import unwrapped

#: Elements of one tensor that a watched step compares, at most; whole blocks, evenly spaced.
SAMPLE = 65536
#: What a row counts, in the order of its columns.
SHARES = ("zero", "saturated", "stalled", "nonfinite")


@dataclass(frozen=True)
class Row:
    """One tensor: a parameter (``moment`` empty), one of its moments, or its master weight.

    Shares are of elements, 0 to 1.  zero: the stored value is 0 (of either sign).  saturated: it
    has the largest finite magnitude of its format.  nonfinite: it is Inf or NaN.  stalled: of the
    elements that are not zero, those which the watched step left exactly as they were; None if no
    step was watched.  changed: of a master weight, the share of elements in rows changed from
    outside since the last step, which lose their rests.  bytes: held by this tensor on this rank.
    rule: which optimizer of a hybrid steps it; the class's name of one by itself.
    """

    parameter: str
    moment: str
    shape: tuple[int, ...]
    format: str
    bytes: int
    zero: float
    saturated: float
    nonfinite: float
    stalled: float | None = None
    changed: float | None = None
    note: str = ""
    rule: str = ""


@dataclass(frozen=True)
class Health:
    """What ``inspect`` found; printing it prints a table.

    ``watched``: the number of the step whose stalls are given (the largest ``state[p]["step"]``
    after it); None before any.
    """

    optimizer: str
    rows: tuple[Row, ...]
    watched: int | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def state_bytes(self) -> int:
        """Bytes of moments and master weights, parameters apart."""
        return sum(r.bytes for r in self.rows if r.moment)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters themselves."""
        return sum(r.bytes for r in self.rows if not r.moment)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for a logger or JSON."""
        made = asdict(self)
        return {**made, "state_bytes": self.state_bytes, "parameter_bytes": self.parameter_bytes}

    def __rich__(self) -> Table:
        table = Table(title=f"{self.optimizer}: {self._summary()}", caption="\n".join(self.notes))
        several = len({r.rule for r in self.rows}) > 1
        for name in ("parameter", *["rule"] * several, "shape", "tensor", "format"):
            table.add_column(name)
        for name in (*SHARES, "bytes"):
            table.add_column(name, justify="right")
        for r in self.rows:
            shape = "×".join(map(str, r.shape)) or "scalar"
            label = f"{r.format} ({r.note})" if r.note else r.format
            shares = [_percent(getattr(r, name)) for name in SHARES]
            place = [r.parameter, *[r.rule] * several, shape]
            place = [""] * len(place) if r.moment else place
            table.add_row(*place, r.moment or "weights", label, *shares, f"{r.bytes:,}")
        return table

    def _summary(self) -> str:
        step = f", stalls of step {self.watched}" if self.watched is not None else ""
        return f"{self.state_bytes:,} bytes of state for {self.parameter_bytes:,} of weights{step}"

    def __str__(self) -> str:
        console = Console(width=140, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return "0" if share == 0 else f"{100 * share:.3g} %" if share >= 1e-4 else "<0.01 %"


def inspect(optimizer: object, model: torch.nn.Module | None = None) -> Health:
    """Shares of zero, saturated, stalled and non-finite elements of every tensor, and its bytes.

    Everything but ``stalled`` is counted over all elements of the state as it is now.  ``stalled``
    needs the values before and after a step, so each call watches the step that follows it, and
    the next call reports that one: called every hundred steps, step 101 is reported at 200; call
    it before and after a step to see that step.  A watched step is compared on at most 65,536
    elements of a tensor.  A stochastically rounded moment stalls for most of its elements at any
    one step by design (a change of a hundredth of a code's spacing moves one element in a hundred)
    and keeps its mean; with nearest rounding (``fp8-raw``) a stall is lost for good.

    Counts stay on the device until one read at the end.  Of a DTensor this rank's part
    is counted, of one cut inside blocks of 32 all of it, so every rank must call.

    optimizer: one of this library or a hybrid, or what a trainer has wrapped around it
    (accelerate, Lightning, DeepSpeed); model: whose parameters' names the rows have, where the
    optimizer has none.

    Raises TypeError for an optimizer not made by signconv.
    """
    ours = unwrapped(optimizer, "inspect")
    ours._arrive()
    names: dict[Tensor, str] = {}
    if model is not None:
        names = {p: n for n, p in model.named_parameters()}
    watch = _WATCHES.get(ours)
    parts = [x for o, p, name in _named(ours) for x in _parts(o, p, names.get(p, name))]
    rule_of = {p: r for r, o in rules(ours).items() for g in o.param_groups for p in g["params"]}
    counts = [part.count() for part in parts]
    stalls = [_stalled(watch, part) for part in parts]
    on_host = _read([x for x in (*counts, *(s for s in stalls if s is not None))])
    rows = []
    measured = iter(on_host[len(counts) :])
    for part, found, stall in zip(parts, on_host, stalls, strict=False):
        n = max(part.elements, 1)
        share = [float(x) / n for x in found]
        stalled = None
        if stall is not None:
            same, moving = next(measured)
            stalled = same / moving if moving else 0.0
        changed = share[3] if part.kind == MASTER else None
        rows.append(
            Row(
                part.name,
                part.moment,
                tuple(part.p.shape),
                part.label,
                part.bytes,
                share[0],
                share[1],
                share[2],
                stalled,
                changed,
                part.note,
                rule_of[part.p],
            )
        )
    notes = _notes(ours, rows, watch)
    _WATCHES[ours] = _Watch(ours, watch)
    step = None if watch is None else watch.step
    return Health(" + ".join(rules(ours)), tuple(rows), step, notes)


def _notes(
    optimizer: FusedOptimizer | Hybrid, rows: list[Row], watch: _Watch | None
) -> tuple[str, ...]:
    notes = []
    if any(r.note.startswith("row of") for r in rows):
        notes.append(f"row of n: n is no multiple of {BLOCK}, so the master weight is kept whole")
    changed = [r for r in rows if r.changed]
    if changed:
        notes.append(
            f"{len(changed)} master weights were changed from outside since the last step: up to "
            f"{_percent(max(r.changed or 0 for r in changed))} of a tensor restarts from bf16"
        )
    if not optimizer.state:
        notes.append("no state yet: it is made at the first step")
    elif optimizer.released:
        notes.append("stalls are not measured while gradient_release steps inside backward")
    elif watch is None or watch.step is None:
        notes.append("stalls: of the next step, shown at the next call")
    return tuple(notes)


# ---------------------------------------------------------------- the tensors


@dataclass(frozen=True)
class _Part:
    """A tensor to count: ``values`` as stored.

    ``weights``, ``entry`` and ``values`` are plain tensors that belong together (sharded.readable).
    """

    p: Tensor
    weights: Tensor
    entry: Mapping[str, Tensor]
    name: str
    moment: str
    kind: str
    label: str
    values: Tensor
    bytes: int
    fmt: Format | None = None
    note: str = ""
    few: bool = False

    @property
    def key(self) -> tuple[int, str]:
        return id(self.p), self.kind

    @property
    def elements(self) -> int:
        """What is counted: of a state that is one number for several elements those numbers."""
        return self.values.numel() if self.few else self.weights.numel()

    def count(self) -> Tensor:
        """float64 [4]: how many elements are zero, saturated, non-finite, and changed outside."""
        x = self.values
        none = torch.zeros((), dtype=torch.int64, device=x.device)
        changed = none
        if self.kind == MASTER:
            exact = ref.load_param(self.weights, self.entry)
            zero, bad, full = exact == 0, ~exact.isfinite(), none
            changed = self._changed()
        elif x.dtype == torch.uint8:
            assert self.fmt is not None
            if self.fmt.float4 is not None:
                scale = self.entry[f"{self.kind}_scale"]
                code = ref.unpack(ref.padded(x.reshape(-1), scale, BLOCK // 2))
                code = ref.trimmed(code, scale, self.weights.numel())
                layout = self.fmt.float4
                zero, bad = code == 0, code == layout.nan
                # The largest code is an ordinary one, but of the largest scale
                full = ((code & layout.magnitude) == layout.largest) & (self._scales() == 254)
            elif self.fmt.int8 is not None:
                whole = self.fmt.int8
                zero, bad = x == 0, x == whole.nan
                full = (x == whole.largest) | (x == 256 - whole.largest)  # and what is -127
                full &= self._scales().view(x.shape) == whole.most
            else:
                assert self.fmt.float8 is not None
                size, largest = x & self.fmt.float8.magnitude, self.fmt.float8.largest
                zero, full, bad = size == 0, size == largest, size > largest
        else:
            limit = torch.finfo(x.dtype).max
            zero, full, bad = x == 0, x.abs() == limit, ~x.isfinite()
        found = [zero.sum(), full.sum(), bad.sum(), changed]
        return torch.stack([f.to(torch.float64) for f in found])

    def _scales(self) -> Tensor:
        """Of each element the byte of its block's scale, flat."""
        scale = self.entry[f"{self.kind}_scale"]
        every = scale.reshape(-1).repeat_interleave(BLOCK)
        return ref.trimmed(every, scale, self.weights.numel())

    def _changed(self) -> Tensor:
        flat = ref.load_float(self.weights)
        if CHECK not in self.entry:
            high, _ = ref.split_master(self.values.reshape(-1))
            return (high.view(torch.int32) != flat.view(torch.int32)).sum()
        differs = ref.row_check(flat) != self.entry[CHECK].reshape(-1)
        return differs.sum() * BLOCK

    def sample(self) -> Tensor:
        """fp32 values of at most SAMPLE elements, decoded; whole blocks, evenly spaced."""
        if self.kind == MASTER:
            return _spaced(ref.load_param(self.weights, self.entry))
        flat = self.values.reshape(-1)
        if self.fmt is None or self.fmt.dtype != torch.uint8 or not flat.numel():
            return _spaced(flat).float()
        if not self.fmt.scaled:
            return ref.load_moment(_spaced(flat).contiguous(), None, self.fmt)
        scale = self.entry[f"{self.kind}_scale"]
        block = BLOCK // 2 if self.fmt.packed else BLOCK
        every = _stride(scale.numel() * BLOCK)
        codes = ref.padded(flat, scale, block).view(-1, block)[::every]
        return ref.load_moment(codes.contiguous(), scale.reshape(-1)[::every], self.fmt)


def _stride(numel: int) -> int:
    return max(1, -(-numel // SAMPLE))


def _spaced(flat: Tensor) -> Tensor:
    """Blocks of the elements."""
    every = _stride(flat.numel())
    if flat.numel() % BLOCK:
        return flat[::every].clone()
    return flat.view(-1, BLOCK)[::every].reshape(-1).clone()


def _named(optimizer: FusedOptimizer | Hybrid) -> Iterator[tuple[FusedOptimizer, Tensor, str]]:
    """Every parameter: which optimizer steps it, and its name."""
    i = 0
    for part in rules(optimizer).values():
        for group in part.param_groups:
            names = group.get("param_names")
            for j, p in enumerate(group["params"]):
                yield part, p, names[j] if names else f"group {i}, {j}"
            i += 1


def _parts(optimizer: FusedOptimizer, p: Tensor, name: str) -> Iterator[_Part]:
    held_here = {k: mesh.local(v).nbytes for k, v in optimizer.state.get(p, {}).items()}
    values, entry = sharded.readable(p, optimizer.state.get(p, {}))
    weights = values.contiguous()
    stored = "fp32" if p.dtype == torch.float32 else "bf16"
    form = param_format(entry)
    label = stored if stored == "fp32" or form in (SPLIT, WHOLE) else "bf16, stochastic"
    yield _Part(p, weights, entry, name, "", "", label, values, mesh.local(p).nbytes)
    wide = "" if whole_blocks(p) else f"row of {row_length(p)}"
    if form in (SPLIT, WHOLE):
        held = sum(held_here.get(k, 0) for k in (MASTER, CHECK))
        label = "16 bits" if form == SPLIT else "fp32"
        x = entry[MASTER]
        yield _Part(p, weights, entry, name, "master", MASTER, label, x, held, None, wide)
    for m in optimizer.program.moments:
        if m.name not in entry:
            continue
        held = sum(held_here.get(k, 0) for k in (m.name, f"{m.name}_scale"))
        x = entry[m.name]
        yield _Part(p, weights, entry, name, m.name, m.name, m.format, x, held, m.stored)
    for k in optimizer.program.kept:
        if k.name in entry:
            x, held = entry[k.name], held_here.get(k.name, 0)
            note = f"one over axis={NOTATION[k.over]}" if k.over else "one"
            yield _Part(p, weights, entry, name, k.name, k.name, "fp32", x, held, None, note, True)


# ---------------------------------------------------------------- the watched step


class _Watch:
    """Compares samples of every tensor before and after the next step, then takes itself off."""

    def __init__(self, optimizer: FusedOptimizer | Hybrid, last: _Watch | None) -> None:
        self.step: int | None = None
        self.found: dict[tuple[int, str], Tensor] = {}
        self.before: dict[tuple[int, str], Tensor] = {}
        self.hooks: list[Any] = []
        if last is not None:
            last.stop()
            self.step, self.found = last.step, last.found
        if not optimizer.released:
            self.hooks = [
                optimizer.register_step_pre_hook(self._hook(self._look)),
                optimizer.register_step_post_hook(self._hook(self._compare)),
            ]

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    @staticmethod
    def _hook(act: Callable[[FusedOptimizer | Hybrid], None]) -> Callable[..., None]:
        return lambda optimizer, args, kwargs: act(optimizer)

    @torch.no_grad()
    def _look(self, optimizer: FusedOptimizer | Hybrid) -> None:
        for owner, p, name in _named(optimizer):
            if p.grad is not None and p in owner.state:
                for part in _parts(owner, p, name):
                    self.before[part.key] = part.sample()

    @torch.no_grad()
    def _compare(self, optimizer: FusedOptimizer | Hybrid) -> None:
        if not self.before:
            return  # no state or no gradients: watch the next one
        self.found = {}
        for owner, p, name in _named(optimizer):
            for part in _parts(owner, p, name):
                old = self.before.get(part.key)
                if old is not None:
                    new = part.sample()
                    moving = (old != 0) | (new != 0)
                    counts = [((old == new) & moving).sum(), moving.sum()]
                    self.found[part.key] = torch.stack(counts).to(torch.float64)
        self.step = max(int(s["step"]) for s in optimizer.state.values())
        self.before = {}
        self.stop()


_WATCHES: WeakKeyDictionary[FusedOptimizer | Hybrid, _Watch] = WeakKeyDictionary()


def _stalled(watch: _Watch | None, part: _Part) -> Tensor | None:
    return None if watch is None else watch.found.get(part.key)


def _read(counts: list[Tensor]) -> list[list[float]]:
    """All counts on the host, with one transfer per device."""
    made: list[list[float]] = [[] for _ in counts]
    for device in {c.device for c in counts}:
        places = [i for i, c in enumerate(counts) if c.device == device]
        flat = torch.cat([counts[i] for i in places]).tolist()
        for i in places:
            made[i], flat = flat[: counts[i].numel()], flat[counts[i].numel() :]
    return made
