"""The identity of a program: what decides whether a checkpoint's state means the same to it.

It is taken from the Program and from how its moments are stored, not from lowered statements:
lowering may fold, fuse or decompose what it likes, and a checkpoint stays its program's.  Moments
and hyperparameters enter by name, since those are the keys of a state_dict; operands stay in the
order in which they were written.  Not part of it: names of intermediate values and whether one has
a name, the order of declarations, defaults, documentation, history, and which random bits round
what.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from signconv.errors import LoweringError
from signconv.ir.axes import reduced_moments
from signconv.ir.nodes import NOISES, Const, Expr, Hyper, Moment, Op, Program, Ref, rewrite
from signconv.ir.show import text
from signconv.lower.kernel_program import KernelProgram
from signconv.runtime.axes import NOTATION
from signconv.runtime.formats import named

#: Raised when the meaning of the canonical text changes: old checkpoints are then refused, unless
#: runtime/legacy.py knows their hashes.  Release 0.1 had 1, over lowered statements.
VERSION = 2

_LONG = 72  # letters of a meaning that a generated file holds whole

#: How references are written; moments after and before the step's update are two things.
_SPELLING = {
    "grad": "grad",
    "param": "param",
    "t": "t",
    "hyper": "hyper:{}",
    "value": "new:{}",
    "prev": "old:{}",
    "norm": "norm over {}",
    "stepped": "stepped",
    "shape": "{}",
    "extra": "extra:{}",
    "number": "extra:{}",
    "given": "given:{}",
}


def meaning(p: Program, name: str) -> str:
    """What a moment is, in the spec's words: ``ema(grad**2)``, or ``max(…)`` of one; "" for a state
    of the spec's own.  Moments of equal meaning may be taken from one optimizer to another.  Long
    words are cut, and told apart by a digest of the whole."""
    whole = _meaning(p, name)
    if len(whole) <= _LONG:
        return whole
    return f"{whole[: _LONG - 20]}... {hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def _meaning(p: Program, name: str) -> str:
    m = p.moment(name)
    if m.input is None:
        return ""

    def spelled(e: Expr) -> Expr | None:
        if isinstance(e, Ref) and e.kind == "temp":
            return rewrite(next(x.expr for x in p.temps if x.name == e.name), spelled)
        if isinstance(e, Ref) and e.kind == "value":
            return Ref("local", _meaning(p, e.name) or e.name)
        return None

    return f"{m.kind}({text(rewrite(m.input, spelled))})"


def former(k: KernelProgram) -> tuple[str, dict[str, str]] | None:
    """The hash of the program in releases that stored some of its moments otherwise, and those
    moments' formats in them; None if all are stored as before.  All signs had fresh noise then."""
    formats = {m.name: m.former for m in k.moments if m.former not in ("", m.format)}
    if not formats:
        return None
    stored = tuple(replace(m, format=formats.get(m.name, m.format)) for m in k.moments)
    return program_hash(replace(_with_noise(k, NOISES[0]), moments=stored)), formats


def other_noises(k: KernelProgram) -> dict[str, str]:
    """Hash and noise of the programs that differ in the sign's noise alone: their moments mean the
    same."""
    kinds = [n for n in NOISES if k.noise and n != k.program.noise]
    return {program_hash(_with_noise(k, kind)): kind for kind in kinds}


def _with_noise(k: KernelProgram, kind: str) -> KernelProgram:
    return replace(k, program=replace(k.program, noise=kind)) if k.noise else k


def program_hash(k: KernelProgram) -> str:
    """16 hex digits over the canonical text and its version."""
    return hashlib.sha256(f"signconv {VERSION}\n{canonical(k)}".encode()).hexdigest()[:16]


def _elsewhere(name: str) -> str:
    """What release 0.1 stored where a row was no multiple of 32; the text keeps it, for its
    checkpoints load and are converted."""
    return "bf16" if named(name).scaled else name


def canonical(k: KernelProgram) -> str:
    """The program as text, one line per thing; two programs are one where these texts are equal.

    Expressions are written ``function(operands)``; one that occurs more than once is written once,
    as ``%1``, so the text's length is linear in the number of nodes that differ.
    """
    p = k.program
    hypers = sorted(p.hypers, key=lambda h: h.name)
    moments = sorted(p.moments, key=lambda m: m.name)
    storage = {m.name: f"stored {m.format} or {_elsewhere(m.format)}" for m in k.moments}
    graph = _Graph(p)
    updates = [_update(m, graph) for m in moments]
    numerator = graph.number(p.numerator)
    denominator = None if p.denominator is None else graph.number(p.denominator)
    decay = None if p.decay is None else graph.number(p.decay.weight)
    gradient = None if p.grad is None else graph.number(p.grad)
    ends = (("becomes", p.new_param), ("evaluated", p.eval_param))
    last = [(what, graph.number(e)) for what, e in ends if e is not None]
    show = graph.shown()
    once = reduced_moments(p)
    extras = [f"extra {x.name}: per {x.per}" for x in sorted(p.extras, key=lambda x: x.name)]
    lines = [f"precision: {k.precision}", *map(_hyper, hypers), *extras, *show.shared]
    for m, parts in zip(moments, updates, strict=True):
        words = [f"{what} {show(node)}" for what, node in parts]
        kept = storage.get(m.name) or "one float64 for all elements"
        if m.name in once:
            kept = f"one fp32 number over {NOTATION[once[m.name]] or 'all'}"
        lines.append(f"moment {m.name}: {', '.join([*words, f'from {_start(m)}', kept])}")
    lines.append(f"numerator: {show(numerator)}")
    if denominator is not None:
        lines.append(f"denominator: {show(denominator)}")
    # What 0.1 knew has its text
    noise = "" if p.noise == "fresh" else f" with {p.noise} noise"
    lines.append(f"link: {p.link}{noise}")
    if p.decay is not None and decay is not None:
        lines.append(f"decay: {p.decay.kind} {show(decay)}")
    if gradient is not None:
        lines.append(f"gradient: {show(gradient)}")
    for what, node in last:
        lines.append(f"{what}: {show(node)}")
    return "\n".join(lines) + "\n"


def _hyper(h: Hyper) -> str:
    bounds = (("ge", h.ge), ("gt", h.gt), ("le", h.le), ("lt", h.lt))
    return f"hyper {h.name}:" + "".join(f" {w} {_number(x)}" for w, x in bounds if x is not None)


def _update(m: Moment, graph: _Graph) -> list[tuple[str, int]]:
    """What a moment's update reads, each with its place in it."""
    parts = ((f"{m.kind} of", m.input), ("beta", m.beta), ("next", m.next))
    return [(what, graph.number(e)) for what, e in parts if e is not None]


def _start(m: Moment) -> str:
    return _number(m.init.value) if isinstance(m.init, Const) else m.init


def _number(x: float) -> str:
    """A float64 as the shortest decimal that reads back as the same number."""
    return repr(float(x))


class _Graph:
    """The expressions of a program with equal ones merged and temporaries written out.

    Nodes are numbered operands first, in order of first use.  Loops instead of recursion: an
    expression may be as deep as it is long.
    """

    def __init__(self, p: Program) -> None:
        self.temps = {x.name: x.expr for x in p.temps}
        self.nodes: list[str | tuple[str, tuple[int, ...]]] = []
        self.uses: Counter[int] = Counter()
        self._known: dict[str | tuple[str, tuple[int, ...]], int] = {}
        self._seen: dict[int, int] = {}  # id of an expression, which the Program keeps alive

    def number(self, root: Expr) -> int:
        """The number of an expression that the program reads as a whole."""
        pending = [root]
        while pending:
            e = pending[-1]
            missing = [x for x in self._below(e) if id(x) not in self._seen]
            if missing:
                pending += reversed(missing)
                continue
            pending.pop()
            if id(e) not in self._seen:
                self._seen[id(e)] = self._node(e)
        self.uses[self._seen[id(root)]] += 1
        return self._seen[id(root)]

    def _below(self, e: Expr) -> Sequence[Expr]:
        if isinstance(e, Ref) and e.kind == "temp":
            return (self.temps[e.name],)
        return e.args if isinstance(e, Op) else ()

    def _node(self, e: Expr) -> int:
        if isinstance(e, Ref) and e.kind == "temp":
            return self._seen[id(self.temps[e.name])]
        key: str | tuple[str, tuple[int, ...]]
        if isinstance(e, Const):
            key = _number(e.value)
        elif isinstance(e, Ref) and e.kind in _SPELLING:
            key = _SPELLING[e.kind].format(e.name)
        elif isinstance(e, Op):
            fn = f"{e.fn}[{NOTATION.get(e.over, e.over)}]" if e.over else e.fn
            key = (fn, tuple(self._seen[id(x)] for x in e.args))
        else:
            raise LoweringError("SC390", f"a program's identity cannot hold {type(e).__name__}")
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(key)
            self.uses.update(key[1] if isinstance(key, tuple) else ())
        return self._known[key]

    def shown(self) -> _Shown:
        """How nodes are written, once all expressions have been numbered."""
        names: dict[int, str] = {}
        for i, node in enumerate(self.nodes):
            if isinstance(node, tuple) and self.uses[i] > 1:
                names[i] = f"%{len(names) + 1}"
        shared = tuple(f"{name} = {self._text(i, names)}" for i, name in names.items())
        return _Shown(self, names, shared)

    def _text(self, root: int, names: dict[int, str]) -> str:
        parts: list[str] = []
        pending: list[str | int] = [root]
        while pending:
            x = pending.pop()
            node = x if isinstance(x, str) else self.nodes[x]
            if isinstance(x, int) and x in names and x != root:
                node = names[x]
            if isinstance(node, str):
                parts.append(node)
                continue
            fn, args = node
            parts.append(f"{fn}(")
            inner: list[str | int] = [y for a in args for y in (", ", a)]
            pending += [")", *reversed(inner[1:])]
        return "".join(parts)


@dataclass(frozen=True)
class _Shown:
    """Writes a node; ``shared`` are the lines of those that are written once and read by name."""

    graph: _Graph
    names: dict[int, str]
    shared: tuple[str, ...]

    def __call__(self, node: int) -> str:
        return self.names.get(node) or self.graph._text(node, self.names)


__all__ = ["VERSION", "canonical", "former", "other_noises", "program_hash"]
