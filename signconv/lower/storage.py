"""How each moment is stored: by its homogeneous degree in the gradient (docs/design.md#storage)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from signconv.errors import LoweringError, nearest
from signconv.ir.analysis import Degrees, Ranges, is_scalar, scalar_moments
from signconv.ir.axes import reduced_moments
from signconv.ir.bounds import Ties, covered, reached, unkept
from signconv.ir.nodes import (
    DEFAULT_STATE,
    GRAD,
    STATES,
    Const,
    Expr,
    Moment,
    Op,
    Program,
    Ref,
    everything,
    outside_totals,
    references,
    rewrite,
    walk,
)
from signconv.lower.kernel_program import MomentPlan
from signconv.runtime.axes import NOTATION
from signconv.runtime.formats import FORMATS, ROOT_ORDERS


@dataclass(frozen=True)
class Widths:
    """What ``--state`` asks for: of every moment its state format, those that the build or the spec
    names, and the word for the others."""

    of: Mapping[str, str]
    named: Collection[str]
    rest: str


def widths(p: Program, state: str) -> Widths:
    """``fp4``, ``m=fp8,v=fp4`` or ``fp4,m=fp8`` for this program's elementwise moments.

    A moment that ``state`` names has what it says; else what the spec's ``store=`` says; else the
    word without a name.  Raises LoweringError.
    """
    scalar = scalar_moments(p) | reduced_moments(p).keys()
    names = [m.name for m in p.moments if m.name not in scalar]
    own = {m.name: m.store for m in p.moments if m.store}
    for name in sorted({*own} & scalar):
        raise LoweringError("SC312", f"store={own[name]!r}: {_one_number(p, name)}")
    words, given = [], {}
    for part in (x.strip() for x in state.split(",")):
        name, equals, word = (x.strip() for x in part.rpartition("="))
        if word not in STATES:
            hint = nearest(word, STATES)
            raise LoweringError("SC301", f"--state {state}: unknown state format {word!r}; {hint}")
        if not equals:
            words.append(word)
        elif name in given:
            raise LoweringError("SC312", f"--state {state}: {name} is given twice")
        elif name in names:
            given[name] = word
        elif name in scalar:
            raise LoweringError("SC312", f"--state {part}: {_one_number(p, name)}")
        else:
            hint = nearest(name, names) if names else f"{p.name} has no moments"
            raise LoweringError("SC312", f"--state {part}: {p.name} has no moment {name!r}; {hint}")
    if len(words) > 1:
        raise LoweringError(
            "SC312", f"--state {state}: {' and '.join(words)} are both for every moment: keep one"
        )
    named = {**own, **given}
    rest = words[0] if words else DEFAULT_STATE
    return Widths({name: named.get(name, rest) for name in names}, named, rest)


def shortest(p: Program, state: str) -> str:
    """The ``--state`` that files, classes and commands say: the first of a word, what differs from
    FP8, and the request as it is, that plans the same for every moment."""
    asked = widths(p, state)
    if "=" not in state:
        return asked.rest
    wanted, plain = _planned(p, state), _planned(p, DEFAULT_STATE)
    differ = (f"{n}={word}" for n, word in asked.of.items() if wanted[n] != plain.get(n))
    for text in (asked.rest, *STATES, ",".join(differ)):
        if text and _planned(p, text) == wanted:
            return text
    given = (f"{n}={word}" for n, word in asked.of.items() if n in asked.named)
    return ",".join((asked.rest, *given))


def _planned(p: Program, state: str) -> dict[str, MomentPlan]:
    """What is planned for each moment; nothing where the request is refused."""
    try:
        return {m.name: m for m in plan(p, state)}
    except LoweringError:
        return {}


def without_widths(p: Program) -> Program:
    """The program without what the spec says of storage, for questions that begin with what if."""
    return replace(p, moments=tuple(replace(m, store="") for m in p.moments))


def _one_number(p: Program, name: str) -> str:
    over = reduced_moments(p).get(name)
    if over is None:
        return f"{name} is one float64 number per parameter, whatever the storage"
    where = f"axis={NOTATION[over]}" if over else "a tensor"
    return f"{name} is one fp32 number over {where}, whatever the storage"


def plan(p: Program, state: str) -> tuple[MomentPlan, ...]:
    """Formats and random bits of all moments for ``--state state`` (docs/design.md#bits)."""
    wanted = widths(p, state)
    degrees, ranges, loose = Degrees(p), Ranges(p), unkept(p)
    below = references(p.denominator, "value") if p.denominator is not None else set()
    bounding, read, parametric = covered(p), _read_by_others(p), _of_parameters(p)
    signed, whole = _whole(p, read)
    fields = _Fields(p.link == "stosign")
    plans: list[MomentPlan] = []
    once = scalar_moments(p) | reduced_moments(p).keys()
    for m in p.moments:
        if m.name in once:
            continue
        word, named = wanted.of[m.name], m.name in wanted.named
        fmt, former = word, word
        if word in ("fp8", "fp4", "int8"):
            degree = None if m.name in loose else degrees.moments[m.name]
            nonneg = m.name in ranges.nonneg_moments
            fmt = _fp8(degree, nonneg)
            if fmt == "e4m3" and not nonneg:
                as_wanted = word == "int8" and m.name in whole
                if as_wanted or (word == "fp8" and not named and m.name in signed):
                    fmt = "int8"
            former = _former(fmt, degree)
            if fmt == "bf16" and not named and m.name in parametric:
                fmt = "fp32"
            if word == "fp4":
                kept = m.name in read and not named
                narrow = None if kept else _fp4(m, degree, nonneg, m.name in bounding)
                if narrow:
                    fmt = former = narrow
            misses = {"fp4": not FORMATS[fmt].packed, "int8": fmt != "int8", "fp8": False}[word]
            if named and (fmt == "bf16" or misses):
                free = m.name in loose
                raise LoweringError("SC311", _too_few(p, m.name, word, fmt, free))
        elif word == "fp8-raw":
            fmt = former = "e4m3-raw"
            if degrees.moments[m.name] != 0:
                raise LoweringError(
                    "SC302",
                    f"--state fp8-raw has no scales and is for moments of signs: {p.name}'s "
                    f"{m.name} grows with the gradient; use --state fp8, or --convert presign",
                )
        init = m.init.value if isinstance(m.init, Const) else m.init if m.init == "param" else 0.0
        place, field = fields.take(m.name in below)
        plans.append(MomentPlan(m.name, fmt, place, field, init, former))
    if "fp4" in wanted.of.values() and plans and not any(FORMATS[x.format].packed for x in plans):
        raise LoweringError(
            "SC311",
            f"--state fp4: no moment of {p.name} fits 4 bits, which are for averages with a sign "
            "and for averages of degree 2 to 4 that bound their numerators, where no other moment "
            "reads them (docs/numerics.md#four-bits): use --state fp8",
        )
    if "int8" in wanted.of.values() and plans and not any(x.format == "int8" for x in plans):
        raise LoweringError(
            "SC311",
            f"--state int8 fits no moment of {p.name}: {_WHOLE} "
            "(docs/numerics.md#whole-numbers): use --state fp8",
        )
    return tuple(plans)


def _too_few(p: Program, name: str, word: str, fits: str, free: bool) -> str:
    use = "bf16" if fits == "bf16" else "fp8"
    unfit = f"so {p.name}'s {name} does not fit: use {name}={use}"
    return f"{name}={word}: {_why(word, free)} (docs/numerics.md), {unfit}"


def _why(word: str, free: bool) -> str:
    """Why a moment has more bits than ``word`` says; ``free``: it is one of ``unkept``."""
    if free:
        return "the ratio keeps no bound between its moments, which need scales of their own"
    if word == "int8":
        return _WHOLE
    if word == "fp4":
        return (
            "4 bits are for averages with a sign, and for averages of degree 2 to 4 that bound "
            "their numerators"
        )
    return "8 bits are for moments of degree 0 to 8 in the gradient, without a sign from 2 on"


#: What int8 is for, in a message.
_WHOLE = (
    "whole numbers are all as exact as the largest of their block, for averages with a sign that "
    "stand in no ratio and that no other moment reads"
)


def _whole(p: Program, read: set[str]) -> tuple[set[str], set[str]]:
    """Moments of which alone matrices that are signed are made, linearly, and those of which int8
    may be asked: these, and what no ratio and no other moment reads.

    The sign of a matrix raises small singular values, and an error reaches them by its Frobenius
    norm, whichever elements it is in: that is least where codes are equally far apart.
    """
    linear = Ties(p).linear
    signed, elsewhere, seen = set[str](), set[str](), set[str]()
    pending = [*p.roots, *(e for m in p.moments for e in _without_itself(m, linear))]
    while pending:
        e = pending.pop()
        if isinstance(e, Ref):
            if e.kind in ("value", "prev"):
                elsewhere.add(e.name)
            if e.kind == "temp" and e.name not in seen:
                seen.add(e.name)
                pending.append(p.temp(e.name).expr)
        elif isinstance(e, Op) and e.fn == "msign":
            (signed if linear(e.args[0]) else elsewhere).update(reached(p, e.args[0]))
        elif isinstance(e, Op):
            pending += e.args
    signed -= elsewhere
    return signed, signed | ({m.name for m in p.moments} - _in_ratios(p) - read)


def _without_itself(m: Moment, linear: Callable[[Expr], bool]) -> Iterator[Expr]:
    """What a moment's recurrence reads beside its own last value, of which it is a multiple, as
    in ``m.next = 0.9 * m.prev + grad``."""
    for e in m.reads:
        rest = rewrite(e, lambda x: GRAD if x == Ref("prev", m.name) else None)
        yield rest if linear(rest) else e


def _in_ratios(p: Program) -> set[str]:
    """Moments whose value, of this step or the last, a quotient divides or is divided by, wherever
    it stands."""
    quotients = (n for e in everything(p) for n in walk(e) if isinstance(n, Op) and n.fn == "div")
    pairs = [n.args for n in quotients if not is_scalar(n.args[1], p)]
    if p.denominator is not None:
        pairs.append((p.numerator, p.denominator))
    kinds = ("value", "prev")
    return {n for pair in pairs for e in pair for kind in kinds for n in reached(p, e, kind)}


def widened(p: Program, state: str) -> dict[str, tuple[str, str]]:
    """Moments for which ``--state state`` asks 8 or 4 bits and which have 16 or 32: their format,
    and why."""
    loose, found = unkept(p), {}
    for m in plan(p, state):
        asked = widths(p, state).of[m.name]
        if asked in ("fp8", "fp4", "int8") and m.format in ("bf16", "fp32"):
            why = "it starts from the parameter or reads it, which moves by less than bf16 resolves"
            if m.format == "bf16":
                why = _why("fp8", m.name in loose)
            found[m.name] = (m.format, why)
    return found


class _Fields:
    """Which field of the random bits each moment is rounded with: no two share one, and none has
    the sign's noise, which it meets over steps.

    The first moment that the denominator reads has field 2 of word 0; the first other one shares
    field 1 with the parameter; any further one takes what is free.
    """

    def __init__(self, noise: bool) -> None:
        self._free = [(0, 2), (0, 1)] if noise else [(0, 2), (0, 1), (0, 0)]
        self._words = 1

    def take(self, below: bool) -> tuple[int, int]:
        """Word and field of the next moment; ``below``: the denominator reads it."""
        wanted = (0, 2) if below else (0, 1)
        if wanted not in self._free:
            others = [x for x in self._free if x not in ((0, 2), (0, 1))]
            if not others:
                others = [(self._words, n) for n in range(3)]
                self._free += others
                self._words += 1
            wanted = others[0]
        self._free.remove(wanted)
        return wanted


def _of_parameters(p: Program) -> set[str]:
    """Moments that start from the parameter or read it, by way of others too: they are as large as
    it, and it moves by less than bf16 resolves."""
    temps = {x.name: (x.expr,) for x in p.temps}
    reads: dict[str, tuple[Expr, ...]] = {**temps, **{m.name: m.reads for m in p.moments}}
    found = {m.name for m in p.moments if m.init == "param"}
    while True:
        more = {
            name
            for name, expressions in reads.items()
            for e in expressions
            for n in outside_totals(e)
            if isinstance(n, Ref) and (n.kind in ("param", "stepped") or n.name in found)
        }
        if more <= found:
            return found
        found |= more


def _fp8(degree: int | float | str | None, nonneg: bool) -> str:
    """Which 8 bits hold a moment of this degree: the range of a block, in powers of two, is 17 of
    the moment in E4M3, 33 in E5M3 and 64 in E6M2, and 17 of the root in E4M3 roots."""
    if degree in (0, 1, Degrees.ANY):
        return "e4m3"
    if not nonneg or not isinstance(degree, int | float) or degree < 0:
        return "bf16"
    if degree <= 4:
        return "e5m3" if degree <= 2 else "e6m2"
    return f"e4m3-root{degree:g}" if degree in ROOT_ORDERS else "bf16"


def _fp4(m: Moment, degree: int | float | str | None, nonneg: bool, bounds: bool) -> str | None:
    """Which 4 bits hold a moment of this degree; None where 4 are too few: a denominator that does
    not bound what stands over it could be near 0 beside a numerator that is not."""
    if m.kind != "ema":
        return None
    if degree in (0, 1, Degrees.ANY):
        return None if nonneg else "e2m1"
    powers = nonneg and isinstance(degree, int | float) and 2 <= degree <= 4
    return "e4m0" if powers and bounds else None


def _read_by_others(p: Program) -> set[str]:
    """Moments that the recurrence of another one reads: their rounding would gather in it, as in a
    running maximum or in the square of a difference."""
    found: set[str] = set()
    for m in p.moments:
        for e in m.reads:
            found |= (reached(p, e) | reached(p, e, "prev")) - {m.name}
    return found


def _former(fmt: str, degree: int | float | str | None) -> str:
    """What releases before E5M3 stored in place of ``fmt``."""
    if fmt not in ("e5m3", "e6m2"):
        return fmt
    if degree == 2:
        return "e5m2"
    return f"e4m3-root{degree:g}" if degree in (3, 4) else "bf16"
