"""What a generated module tells the runtime about its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.axes import ELEMENTS, kept, matrices
from signconv.runtime.errors import coded
from signconv.runtime.formats import BLOCK, FORMATS, Format


@dataclass(frozen=True)
class HyperSlot:
    """A hyperparameter: the spec's ``name`` and where it lives in a param group.

    ``key`` is the param group's key; ``index`` the place inside it where it is a tuple (betas).
    """

    name: str
    default: float
    key: str
    index: int | None = None
    ge: float = -math.inf
    gt: float = -math.inf
    le: float = math.inf
    lt: float = math.inf

    def read(self, group: Mapping[str, Any]) -> Any:
        """Its value in a param group."""
        value = group[self.key]
        return value if self.index is None else value[self.index]

    def check(self, value: float) -> None:
        """Raise ValueError, with a number and the legal range, unless ``value`` is legal."""
        inside = self.ge <= value <= self.le and self.gt < value < self.lt
        if not (math.isfinite(value) and inside):
            raise coded(
                ValueError, "SC407", f"{self.label} = {value:g} is outside its range: {self.legal}"
            )

    @property
    def label(self) -> str:
        return self.key if self.index is None else f"{self.key}[{self.index}] ({self.name})"

    @property
    def legal(self) -> str:
        low = f"{self.gt:g} < " if self.gt > -math.inf else ""
        low = f"{self.ge:g} <= " if self.ge > -math.inf else low
        high = f" < {self.lt:g}" if self.lt < math.inf else ""
        high = f" <= {self.le:g}" if self.le < math.inf else high
        return f"{low}{self.name}{high}" if low or high else "any finite number"


@dataclass(frozen=True)
class RandomBits:
    """Which of an element's random bits: a field, 0 to 2, of a word (docs/design.md#bits)."""

    word: int
    field: int

    @property
    def code(self) -> int:
        """Its number inside a kernel."""
        return 3 * self.word + self.field


@dataclass(frozen=True)
class MomentSlot:
    """Storage of a moment: ``bits`` round it; ``init`` is the value before the first step, or
    "param"; ``apart``: the step's arithmetic takes its codes and its block scales, not their
    product; ``of``: what it is, "ema(grad**2)" or "max(…)" of one, and "" for anything else;
    ``beta``: the hyperparameter by which it forgets, where it is one; ``values``: how many numbers
    it can be, where the spec says so (a sign is one of three), and 0 for any.
    """

    name: str
    format: str
    bits: RandomBits
    init: float | str = 0.0
    apart: bool = False
    of: str = ""
    beta: str = ""
    values: int = 0

    @property
    def stored(self) -> Format:
        """Its format."""
        return FORMATS[self.format]


@dataclass(frozen=True)
class ExtraSlot:
    """An extra input of ``step``: per "element", a tensor for every parameter, or per "step", one
    number.  needed: no step can do without it; nonneg: the spec says that it is never negative."""

    name: str
    per: str
    needed: bool = False
    nonneg: bool = False


#: How the sign's noise at one step goes with that at others; a kernel knows a kind by its place.
NOISES = ("fresh", "antithetic", "golden")


def lasting(noise: str) -> bool:
    """Whether the sign's hash of an element stays over steps."""
    return noise in ("antithetic", "golden")


#: Moments of one tensor, flat and fp32, or what its reductions sum.  Of a moment that comes apart
#: the step takes (codes, scales).
Tensors = tuple[Tensor, ...]
#: Kinds of reductions; a kernel knows one by its place here.
REDUCTION_KINDS = ("norm", "mean", "sum", "amax", "amin", "msign")
#: Those that are sums.
SUM_KINDS = REDUCTION_KINDS[:3]


@dataclass(frozen=True)
class Reduction:
    """A value of a stage: of ``kind``, ``over`` a tensor or some of its dimensions (``axes``).

    Of "msign" there is one for each element: ``how`` it is found (``polar``), and of which
    ``matrix`` (``axes.matrices``).
    """

    name: str
    kind: str
    over: str = ""
    how: str = ""
    matrix: str = ""


@dataclass(frozen=True)
class Sums:
    """One pass: functions that give what ``results`` sum, in order.

    source: of how much of a tensor an operand is one number; of ``axes.ELEMENTS`` the functions are
    called with (p, g, moments, scalars), of others with (scalars): the outputs, then the values
    ``reads``; in Triton with CODEC as well.
    """

    results: tuple[Reduction, ...]
    reference: Any
    kernel: Any
    source: str = ELEMENTS
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Derived:
    """What functions of (scalars) make of the values ``reads``, one number ``over`` some
    dimensions."""

    over: str
    outputs: tuple[str, ...]
    reference: Any
    kernel: Any
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Passes whose results are known together, and then what is made of them."""

    sums: tuple[Sums, ...] = ()
    derived: tuple[Derived, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A state that is one fp32 number ``over`` a tensor or some of its dimensions, which a stage
    derives; its value before the step is read as ``<name>_prev``."""

    name: str
    over: str
    init: float = 0.0


@dataclass(frozen=True)
class Totals:
    """Sums over all elements of many tensors, those of the param "group" or of "all" that the
    optimizer steps: float64 numbers ``names``, which the scalar functions read behind all else.

    The functions are called as those of a pass over elements (``Sums``), with what the step reads.
    rounds: how many passes before the step find those that it reads; trailing: whether the step
    finds others on its way, for the next.
    """

    names: tuple[str, ...]
    over: str
    reference: Any
    kernel: Any
    rounds: int = 0
    trailing: bool = False


@dataclass(frozen=True)
class Step:
    """The functions of a generated module in one language, Python with PyTorch or Triton.

    scalars(t, initial_lr, hypers, states) -> (outputs, new scalar states), float64 numbers, with
    the norm of all gradients behind the hypers where the program reads it, then the extra inputs
    per step, for every extra input 1 or 0, whether it was passed, and the ``Totals``;
    math(p, g, moments, scalars, noise) -> (new parameter, new moments), fp32 and elementwise, with
    scalars the outputs and then the values ``reads`` of stages, and the extra inputs per element
    behind the moments, 0 where one was not passed.  In Triton math takes CODEC as well
    (``kernel/constants.py``).
    """

    scalars: Any
    math: Any


@dataclass(frozen=True)
class Evaluation:
    """What the model is evaluated with where that is not the parameter, in Python with PyTorch:
    scalars(hypers) -> float64 numbers, math(p, moments, those) -> flat fp32."""

    scalars: Any
    math: Any


@dataclass(frozen=True)
class OptimizerProgram:
    """A compiled optimizer: its identity, what it stores, and its step in both languages.

    scalar_states: (name, initial value), float64, one number per parameter.  outputs: names of the
    scalars that the elementwise step reads.  words: of random bits, three fields each.  stages:
    what is summed before the step, of which it reads the values ``reads``; kept: states that are
    one number for more than an element; shapes: what it reads of a parameter's shape.  floors:
    those of the scalar states that a checkpoint may lack.  former: the hash under which earlier
    releases stored some moments in other formats, and those; their checkpoints are converted.
    noise: the kind of a sign that is drawn (NOISES; none: ""); other_noises: hashes of the programs
    that differ in it alone.  decay: the kind of weight decay.  norm: whose gradients' norm it
    reads, those of the param "group" or of "all" that the optimizer steps; none: "".  extras: what
    ``step`` takes beside.  totals: what is summed over many tensors; shared: scalar states made of
    it or of the norm, one number for all parameters of a group, of which each has a copy.
    evaluation: at which point, None: the parameter.  removed: hyperparameters and extra inputs that
    passes took away, and why.
    """

    name: str
    hash: str
    spec: str
    passes: tuple[str, ...]
    storage: str
    hypers: tuple[HyperSlot, ...]
    moments: tuple[MomentSlot, ...]
    outputs: tuple[str, ...]
    words: int
    reference: Step
    kernel: Step
    scalar_states: tuple[tuple[str, float], ...] = ()
    precision: str = "fp32"
    noise: str = ""
    decay: str = ""
    norm: str = ""
    extras: tuple[ExtraSlot, ...] = ()
    evaluation: Evaluation | None = None
    stages: tuple[Stage, ...] = ()
    reads: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    shapes: tuple[str, ...] = ()
    totals: Totals | None = None
    shared: tuple[str, ...] = ()
    floors: tuple[str, ...] = ()
    former: tuple[str, Mapping[str, str]] | None = None
    other_noises: Mapping[str, str] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        """How many 32-bit keys a step's random bits have (``reference.random_bits.step_keys``)."""
        return 2 * self.words + (3 if lasting(self.noise) else 0)

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """All its reductions."""
        return tuple(r for stage in self.stages for s in stage.sums for r in s.results)

    @property
    def staged(self) -> bool:
        """Whether it reads values of tensors, which something has to make before the step."""
        return bool(self.stages or self.shapes)

    @property
    def plain(self) -> bool:
        """Whether its reductions are sums of elements over whole tensors, in one pass."""
        sums = [s for stage in self.stages for s in stage.sums]
        whole = all(
            s.source == ELEMENTS and not r.over and r.kind in SUM_KINDS
            for s in sums
            for r in s.results
        )
        derives = any(stage.derived for stage in self.stages)
        plain = whole and len(sums) < 2 and not derives and not self.shapes
        return plain and self.totals is None

    @property
    def tensors(self) -> list[str]:
        """Its extra inputs per element."""
        return [x.name for x in self.extras if x.per == "element"]

    @property
    def numbers(self) -> list[str]:
        """Its extra inputs per step."""
        return [x.name for x in self.extras if x.per == "step"]

    @property
    def behind(self) -> int:
        """How many numbers the scalar code reads behind hyperparameters and norm."""
        totals = 0 if self.totals is None else len(self.totals.names)
        return len(self.numbers) + len(self.extras) + totals

    @property
    def formats(self) -> dict[str, str]:
        return {m.name: m.format for m in self.moments}

    @property
    def scaled(self) -> bool:
        """Whether any moment carries block scales."""
        return any(FORMATS[m.format].scaled for m in self.moments)


def row_length(param: Tensor) -> int:
    """Elements per row, the unit of dim-0 sharding: numel/shape[0], or numel for 1-D tensors."""
    return math.prod(param.shape[1:]) if param.dim() > 1 else param.numel()


def whole_blocks(param: Tensor) -> bool:
    """Whether every row is a multiple of 32, so that rows of 32 elements are blocks as they lie."""
    return param.numel() > 0 and row_length(param) % BLOCK == 0


def by_row(param: Tensor, program: OptimizerProgram) -> bool:
    """Whether kernels have to go row by row: there are block scales, and rows end in a partial
    block with a scale of its own."""
    return program.scaled and param.numel() > 0 and row_length(param) % BLOCK != 0


def pitch_of(param: Tensor, entry: Mapping[str, Any]) -> int:
    """Elements from the beginning of a row to that of the next in the unsharded tensor: a stand-in
    of some columns (``sharded.Locals``) says so beside its state."""
    return int(entry.get("pitch", row_length(param)))


class Rows(IntEnum):
    """How kernels go through a tensor's rows of 32 elements."""

    FLAT = 0  #: one after the other, as they lie
    CUT = 1  #: so, but at the end of each of the tensor's own rows element numbers jump
    ENDING = 2  #: by the tensor's own rows, each of which may begin anywhere and end in a part


def rows_of(param: Tensor, entry: Mapping[str, Any], program: OptimizerProgram) -> Rows:
    """What the kernels of a parameter, or of what stands in for a part of one, have to do."""
    length, pitch = row_length(param), pitch_of(param, entry)
    several = param.dim() > 1 and param.shape[0] > 1
    jumps = several and pitch != length
    anywhere = int(entry["offset"]) % BLOCK or (jumps and (length % BLOCK or pitch % BLOCK))
    if by_row(param, program) or anywhere:
        return Rows.ENDING
    return Rows.CUT if jumps else Rows.FLAT


def block_count(param: Tensor) -> int:
    """How many blocks a parameter has, a row's last one partial where it is no multiple of 32."""
    return block_shape(param).numel()


def _per_row(param: Tensor, elements: int) -> torch.Size:
    """Shape of what there is once for so many elements of a row, one more for what is left."""
    if param.dim() < 2:
        return torch.Size([-(-param.numel() // elements)])
    return torch.Size([param.shape[0], -(-row_length(param) // elements)])


def block_shape(param: Tensor) -> torch.Size:
    """Shape of a parameter's block scales: its rows, so that both are cut alike along dim 0."""
    return _per_row(param, BLOCK)


def moment_shape(param: Tensor, fmt: Format) -> torch.Size:
    """Shape of a stored moment: the parameter's, or its rows of bytes where codes are packed."""
    return _per_row(param, 2) if fmt.packed else param.shape


def check_shape(param: Tensor, entry: Mapping[str, Tensor], program: OptimizerProgram) -> None:
    """Raise RuntimeError where a parameter no longer has the shape of its state."""
    shapes = {m.name: moment_shape(param, m.stored) for m in program.moments}
    shapes |= {k.name: torch.Size(kept(param.shape, k.over)) for k in program.kept}
    for name, shape in shapes.items():
        if entry[name].shape != shape:
            raise coded(
                RuntimeError,
                "SC418",
                f"a parameter has shape {list(param.shape)} and its optimizer state "
                f"{list(entry[name].shape)}: its data was replaced; make the optimizer anew",
            )


def of_shape(name: str, shape: Sequence[int]) -> float:
    """What ``OptimizerProgram.shapes`` name."""
    _, rows, columns = matrices(shape, "")
    known = {"ndim": len(shape), "numel": math.prod(shape), "rows": rows, "columns": columns}
    return float(known[name])
