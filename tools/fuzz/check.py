"""All witnesses on one random program: evaluator - reference - kernel, and the passes' laws."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signconv.errors import LoweringError, PassError, SignconvError
from signconv.ir.analysis import scalar_moments
from signconv.ir.bounds import moment_bounds
from signconv.ir.evaluate import Evaluator, _Scope
from signconv.ir.nodes import Program
from signconv.passes.base import canonical, parse, registry
from signconv.pipeline import Build, apply_passes, build, resolve, write
from signconv.runtime.formats import BLOCK, LEAST_SCALE, Format
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as ref
from signconv.runtime.reference.roots import LARGEST_ROOT
from signconv.verification import inputs
from signconv.verification.bits import different, load_class
from signconv.verification.enclosure import Enclosed, Enclosing
from signconv.verification.laws import verdicts
from tools.fuzz.programs import Case, features

STEPS = 2


@dataclass
class Tally:
    """What a run of many programs has covered, so that an idle one shows."""

    programs: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    links: Counter[str] = field(default_factory=Counter)
    laws: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    values: int = 0
    decided: int = 0

    def add(self, other: Tally) -> None:
        self.programs += other.programs
        self.refused += other.refused
        self.links += other.links
        self.laws += other.laws
        self.features += other.features
        self.values += other.values
        self.decided += other.decided


@dataclass(frozen=True)
class Result:
    """problems: one line each; refused: why the compiler would not have the program."""

    problems: list[str]
    refused: str
    tally: Tally


def check(case: Case, device: str = "cpu", kernel: bool = True) -> Result:
    """Build the program and run every witness on it; the kernel is slow in the interpreter."""
    tally = Tally(programs=1, features=Counter(features(case)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            made = compiled(case, folder)
        except SignconvError as error:
            words = error.message
            tally.refused[type(error).__name__] += 1
            return Result([], words, tally)
        cls = load_class(write(made.module, folder)[0])
        tally.links[made.program.link] += 1
        found = list(verdicts(made.base, made.program.history))
        tally.laws.update(law.promise for _, law, wrong in found if law and wrong is not None)
        problems = [f"law of {text}: {wrong}" for text, _, wrong in found if wrong]
        problems += run(case, made, cls, device, tally, kernel)
    return Result(problems, "", tally)


def compiled(case: Case, folder: Path) -> Build:
    """The build: passes that do not apply are left out, formats that cannot be are replaced."""
    path = folder / "mine.py"
    path.write_text(case.source)
    spec = f"{path}:Mine"
    program = resolve(spec)
    asked, groups = [], set()
    for request in (parse(text) for text in case.convert):
        if registry()[request.name].group not in groups:
            groups.add(registry()[request.name].group)
            asked.append(request)
    kept: list[str] = []
    for request in canonical(asked):
        try:
            program = apply_passes(program, [request])
        except PassError:
            continue
        kept.append(request.text)
    convert = ",".join(kept) or None
    for state, math in ((case.state, case.math), ("fp8", case.math), ("fp8", "fp32")):
        try:
            return build(spec, convert=convert, state=state, math=math)
        except LoweringError as error:
            last = error
    raise last


# ---------------------------------------------------------------- what it is run on


def parameters(case: Case) -> list[Tensor]:
    dtype = getattr(torch, case.dtype)
    rng = torch.Generator().manual_seed(11)
    made = []
    for shape in case.shapes:
        p = torch.randn(shape, generator=rng).to(dtype)
        if case.transposed and p.dim() == 2:
            p = torch.randn(shape[::-1], generator=rng).to(dtype).t()
        made.append(p.requires_grad_())
    return made


def gradient(kind: str, p: Tensor, t: int, index: int) -> Tensor:
    """Gradients of one kind; extreme ones stand beside ordinary ones in the same block."""
    rng = torch.Generator().manual_seed(100 * t + index)
    g = torch.randn(p.shape, generator=rng)
    if kind == "decades":
        g *= 10.0 ** (-6 + 6 * torch.rand(p.shape, generator=rng))
    elif kind == "small":
        g *= 1e-15
    elif kind == "subnormal":
        g *= 1e-40
    elif kind == "huge":
        g *= 1e38
    elif kind == "zeros":
        keep = torch.rand(p.shape, generator=rng)
        g = torch.where(keep < 0.3, 0.0, torch.where(keep < 0.6, -0.0, g))
    elif kind == "spike":
        g = torch.where(torch.rand(p.shape, generator=rng) < 0.1, 1e6, g * 1e-5)
    elif kind == "nonfinite":
        which = torch.rand(p.shape, generator=rng)
        for below, value in ((0.06, torch.nan), (0.04, torch.inf), (0.02, -torch.inf)):
            g = torch.where(which < below, value, g)
    return g.to(p.dtype)


def run(
    case: Case, made: Build, cls: Any, device: str, tally: Tally, kernel: bool = True
) -> list[str]:
    """Two steps from a state that the reference trained, with "auto" on the CPU and the kernel."""
    cpu = parameters(case)
    options = {"seed": case.seed, "maximize": case.maximize}
    reference = cls(cpu, backend="reference", **options)
    for t in range(case.warm):
        _set(case, cpu, t)
        reference.step(**_passed(case, cls, cpu, t))
    for p in cpu:
        if p not in reference.state and p.numel():
            reference.state[p] = reference._new_state(p, None)
    others = []
    for backend, where in (("auto", "cpu"), *((("triton", device),) if kernel else ())):
        other = [p.detach().clone().to(where).requires_grad_() for p in cpu]
        others.append((backend, other, cls(other, backend=backend, **options)))
        others[-1][2].load_state_dict(reference.state_dict())
    problems: list[str] = []
    for t in range(case.warm, case.warm + STEPS):
        _set(case, cpu, t)
        given = _passed(case, cls, cpu, t)
        norm = np.sqrt(sum(np.square(_flat(p.grad)).sum() for p in cpu if p.grad is not None))
        wanted = [
            _enclose(made.program, reference, p, case, made.kernel.precision, norm, _of(given, i))
            for i, p in enumerate(cpu)
        ]
        for _, other, optimizer in others:
            for p, q in zip(cpu, other, strict=True):
                assert p.grad is not None
                q.grad = p.grad.to(q.device)
            optimizer.step(**_placed(given, other))
        reference.step(**given)
        for i, p in enumerate(cpu):
            where = f"step {t + 1}, tensor {i} {list(p.shape)} ({case.gradients[i]})"
            if not p.numel():
                continue
            box = wanted[i]
            if box is not None:
                problems += [f"{where}: {w}" for w in _outside(box, reference, p, tally)]
            for backend, other, optimizer in others:
                q = other[i]
                pairs = {"parameter": (p, q)}
                pairs |= {k: (v, optimizer.state[q][k]) for k, v in reference.state[p].items()}
                for what, (a, b) in pairs.items():
                    if n := different(a, b):
                        problems.append(f"{where}: {backend} and reference differ in {what}: {n}")
    return problems


def _set(case: Case, params: list[Tensor], t: int) -> None:
    for i, (p, kind) in enumerate(zip(params, case.gradients, strict=True)):
        p.grad = gradient(kind, p, t, i)


def _passed(case: Case, cls: Any, params: list[Tensor], t: int) -> dict[str, Any]:
    """Extra inputs by name, tensors of the kinds of the gradients."""
    made = inputs.passed(cls.program, params, t + 1)
    for x in cls.program.extras:
        if x.per == "element" and x.name in made:
            kinds = zip(params, case.gradients, made[x.name], strict=True)
            drawn = [
                gradient(kind, p, 1000 + t, i).to(was.dtype)
                for i, (p, kind, was) in enumerate(kinds)
            ]
            made[x.name] = [g.abs() for g in drawn] if x.nonneg else drawn
    return made


def _placed(given: dict[str, Any], params: list[Tensor]) -> dict[str, Any]:
    """The same beside other parameters."""
    made = dict(given)
    for name, x in given.items():
        if isinstance(x, list):
            made[name] = [y.to(p.device) for y, p in zip(x, params, strict=True)]
    return made


def _of(given: dict[str, Any], i: int) -> dict[str, Any]:
    """The evaluator's of one parameter."""
    return {
        name: _flat(x[i]) if isinstance(x, list) else np.float64(float(x))
        for name, x in given.items()
    }


# ---------------------------------------------------------------- evaluator against reference


def _flat(x: Tensor) -> Any:
    return x.detach().contiguous().view(-1).double().numpy()


def _moment(entry: dict[str, Tensor], name: str, fmt: Format, numel: int) -> Any:
    return ref.load_moment(entry[name], entry.get(f"{name}_scale"), fmt, numel).double().numpy()


def _blocks(x: Any, scale: Tensor) -> Any:
    """Values of all elements by block, [blocks, 32], with zeros behind a row's last one."""
    rows = scale.shape[0] if scale.dim() > 1 else 1
    by_row = x.reshape(rows, -1)
    missing = scale.numel() // rows * BLOCK - by_row.shape[1]
    return np.pad(by_row, ((0, 0), (0, missing))).reshape(-1, BLOCK)


@dataclass(frozen=True)
class Wanted:
    """What one step may come to: intervals of the parameter and of every moment."""

    param: Enclosed
    state: dict[str, Any]
    complaint: str


def _enclose(
    program: Program,
    optimizer: FusedOptimizer,
    p: Tensor,
    case: Case,
    precision: str,
    norm: Any,
    extras: dict[str, Any],
) -> Wanted | None:
    """The enclosure of the next step, from the reference's own state; ``norm``: of all gradients,
    which are one param group's; ``extras``: this step's extra inputs."""
    if not p.numel() or (optimizer.program.totals and len(case.shapes) > 1):
        return None  # of one tensor nobody knows what all of them sum to
    entry = optimizer.state[p]
    unit = 2.0**-24 if precision == "fp32" else 2.0**-8
    t = int(entry["step"]) + 1
    kind, base = program.noise, int(entry["offset"])
    word, *_ = ref.draw_words(
        case.seed, t, 1, kind, ref.element_numbers(base, p.numel(), torch.device("cpu"))
    )
    noise = ref.sign_noise(word.field(0)).double().numpy()
    assert p.grad is not None
    shape = tuple(p.shape) or (1,)  # which is seen where anything runs over dimensions
    start, noise = _flat(p).reshape(shape), noise.reshape(shape)
    grad = _flat(p.grad).reshape(shape) * (-1.0 if case.maximize else 1.0)
    extras = {n: x.reshape(shape) if np.ndim(x) else x for n, x in extras.items()}
    memory, once = scalar_moments(program), {k.name for k in optimizer.program.kept}
    formats = {m.name: m.stored for m in optimizer.program.moments}
    plain = {
        m.name: np.float64(entry[m.name]) if m.name in memory
        else np.atleast_1d(entry[m.name].double().numpy()) if m.name in once
        else _moment(entry, m.name, formats[m.name], p.numel()).reshape(shape)
        for m in program.moments
    }  # fmt: skip

    def exact(x: Any) -> Any:
        return Enclosed(x, x, False, unit) if np.ndim(x) else x

    prev = {name: exact(x) for name, x in plain.items()}
    enclosing: Any = Enclosing(program)
    evaluator = Evaluator(program)
    boxes = {n: exact(x) for n, x in extras.items()}
    if precision == "bf16":
        enclosing.rounded_hypers(unit)
        one = exact(np.ones(1))
        boxes = {n: x if np.ndim(extras[n]) else x * one for n, x in boxes.items()}
    if program.link == "ratio" and set(optimizer.program.formats.values()) != {"fp32"}:
        for b in moment_bounds(program):
            floor = _Scope(enclosing, exact(start), exact(grad), prev, t)(b.floor)
            size = abs(prev[b.upper.name]) ** float(b.order)
            prev[b.lower.name] = np.maximum(prev[b.lower.name], size * floor)
            with np.errstate(all="ignore"):
                floor = _Scope(evaluator, start, grad, plain, t)(b.floor)
                low = np.abs(plain[b.upper.name]) ** float(b.order) * floor
                plain[b.lower.name] = np.maximum(plain[b.lower.name], low)
    param, state = enclosing.step(exact(start), exact(grad), prev, t, noise, norm, boxes)
    if precision == "bf16":  # a first input is weighted by 1 and rounded too
        state = {n: x * 1.0 if isinstance(x, Enclosed) else x for n, x in state.items()}
    middle, states = evaluator.step(start, grad, plain, t, noise, norm, extras)
    pairs = [("parameter", param, middle)]
    pairs += [(n, state[n], states[n]) for n in formats]
    bad = [name for name, box, x in pairs if (~(box.has(x) | box.open)).any()]
    complaint = f"the evaluator's {', '.join(bad)} left its own enclosure" if bad else ""
    flat = {n: np.reshape(x, -1) if isinstance(x, Enclosed) else x for n, x in state.items()}
    return Wanted(np.reshape(param, -1), flat, complaint)


def _outside(wanted: Wanted, optimizer: FusedOptimizer, p: Tensor, tally: Tally) -> list[str]:
    """Where the reference's step is not what the program means."""
    problems = [wanted.complaint] if wanted.complaint else []
    box = wanted.param
    if p.dtype == torch.bfloat16:
        box = box.wider(2.0**-7 * np.maximum(np.abs(box.lo), np.abs(box.hi)) + 2.0**-133)
    problems += _compare("parameter", box, _flat(p), tally)
    entry = optimizer.state[p]
    for k in optimizer.program.kept:
        problems += _compare(k.name, wanted.state[k.name], _flat(entry[k.name]), tally)
    for m in optimizer.program.moments:
        fmt = m.stored
        box = wanted.state[m.name]
        if not isinstance(box, Enclosed):  # a state that came out as one number
            box = Enclosed(np.full(p.numel(), box), np.full(p.numel(), box))
            box = box.wider(2.0**-22 * np.abs(box.lo))
        got = _moment(entry, m.name, fmt, p.numel())
        scale = entry.get(f"{m.name}_scale")
        if scale is not None:
            values = got ** (1 / fmt.order)
            problems += _scales(m.name, box, values, scale, fmt)
        problems += _compare(m.name, _stored(box, fmt, scale), got, tally)
    return problems


def _stored(box: Enclosed, fmt: Format, scale: Tensor | None) -> Enclosed:
    """The interval widened by one step of the format; a non-finite moment is stored as NaN."""
    size = np.maximum(np.abs(box.lo), np.abs(box.hi))
    size = np.where(np.isinf(size), 0.0, size)
    if fmt.name == "fp32":
        return box
    if fmt.name == "bf16":
        return box.wider(2.0**-7 * size + 2.0**-133)
    if scale is None:  # raw E4M3, to nearest; saturates
        made = box.wider(2.0**-4 * size + 2.0**-10)
        return Enclosed(np.minimum(made.lo, 448.0), np.maximum(made.hi, -448.0), box.open, box.unit)
    every = scale.view(-1).repeat_interleave(BLOCK)
    unit = 2.0 ** (ref.trimmed(every, scale, size.size).double().numpy() - 127)
    if fmt.order > 1:
        return _stored_root(box, fmt.order, unit)
    if narrow := fmt.float4 or fmt.int8:  # saturates
        limit = narrow.limit
        clipped = (np.clip(end, -limit, limit) for end in (box.lo, box.hi))
        box, size = Enclosed(*clipped, box.open, box.unit), np.minimum(size, limit)
    smallest = {
        "e4m3": 2.0**-9, "e5m3": 2.0**-17, "e6m2": 2.0**-62, "int8": 1.0, "e2m1": 2.0**-15,
        "e4m0": 2.0**-14,
    }[fmt.name]  # fmt: skip
    return box.wider(2.0**-fmt.mantissa * size + smallest * unit)


def _stored_root(box: Enclosed, order: int, unit: Any) -> Enclosed:
    """The interval of a moment >= 0 widened by one E4M3 code of its root; 2^124 saturates."""
    ends = []
    for end, way in ((box.lo, -1.0), (box.hi, 1.0)):
        low = np.clip(end, 0.0, LARGEST_ROOT) ** (1 / order)
        ends.append(np.maximum(low + way * np.maximum(low * 2.0**-3, 2.0**-9 * unit), 0.0) ** order)
    # Exact code values meet the rounded 1/order-th power; fp32 rounds small powers to subnormals
    lo, hi = ends[0] * (1 - 2.0**-40) - 2.0**-148, ends[1] * (1 + 2.0**-40) + 2.0**-148
    return Enclosed(np.maximum(lo, 0.0), hi, box.open, box.unit)


def _scales(name: str, box: Enclosed, got: Any, scale: Tensor, fmt: Format) -> list[str]:
    """A block's scale fits its largest finite value: that is in the codes' last binade but one, of
    4 bits and whole numbers in the last.

    The smallest scale serves zeros too: 2^-120, or that of the root of the smallest normal number.
    """
    if fmt.int8 is not None:
        smallest, least = fmt.int8.least, 63.0
    elif fmt.float4 is not None:  # more than half of the largest code, rounded down
        smallest, least = fmt.float4.least, 3 * 2.0**-14 if fmt.signed else 2.0**-2
    else:
        layout = fmt.float8
        assert layout is not None
        smallest = LEAST_SCALE if fmt.order == 1 else 120 - 126 // fmt.order
        least = 2.0**layout.headroom
    largest = _blocks(np.abs(np.where(np.isfinite(got), got, 0.0)), scale).max(axis=1)
    sure = ~_blocks(box.open, scale).any(axis=1)
    byte = scale.view(-1).double().numpy()
    codes = largest / 2.0 ** (byte - 127.0)
    # Roots are taken in float64, where that of 128**3 is a little less than 128
    wasted = sure & (byte > smallest) & (codes < least * (1 - 2.0**-40))
    return [f"{name}: {int(wasted.sum())} blocks waste their scale"] if wasted.any() else []


def _compare(what: str, box: Enclosed, got: Any, tally: Tally) -> list[str]:
    tally.values += got.size
    tally.decided += int((~box.open).sum())
    bad = ~(box.has(got) | box.open | (np.isnan(got) & box.open))
    if not bad.any():
        return []
    i = int(np.argmax(bad))
    return [
        f"reference's {what} outside the evaluator's interval at {int(bad.sum())} of {got.size} "
        f"elements; element {i} is {got[i]!r}, not in [{box.lo[i]!r}, {box.hi[i]!r}]"
    ]
