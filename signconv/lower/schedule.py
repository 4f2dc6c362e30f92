"""The lowering itself: scalars apart from elementwise code, everything in a fixed order.

Scalar subexpressions (bias corrections, 1 - beta, lr*weight_decay) move to a float64 program that
runs once per step; a division by a scalar becomes a multiplication by its float64 reciprocal.
What remains is elementwise fp32 in the order the spec was written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from signconv.errors import LoweringError
from signconv.ir.analysis import (
    Ranges,
    around_step,
    is_scalar,
    scalar_moments,
    uses_noise,
)
from signconv.ir.bounds import Ties, has_offset, moment_bounds
from signconv.ir.nodes import (
    APART,
    GRAD,
    PARAM,
    RELATIONS,
    STEP,
    Const,
    Expr,
    Moment,
    Op,
    Program,
    Ref,
    Temp,
    add,
    div,
    mul,
    op,
    references,
    rewrite,
    sub,
    walk,
)
from signconv.ir.show import link_text, step_text, text
from signconv.ir.totals import Totals
from signconv.lower.decompositions import functions
from signconv.lower.kernel_program import (
    Evaluation,
    KernelProgram,
    Statement,
    local_name,
)
from signconv.lower.kernel_program import Totals as TotalSums
from signconv.lower.powers import lowered_power, lowered_root
from signconv.lower.quotients import folded, quotient
from signconv.lower.reductions import Places, named_totals, needed_by
from signconv.lower.scalars import ROUNDED, bias, index, scalar_form
from signconv.lower.sign_form import ONE, over, sign_argument, times
from signconv.lower.storage import plan, shortest

#: fp32's smallest normal number.
SMALLEST = 2.0**-126
#: Above every floor, which are at most 1: the scalar state of one before its first step.
HIGHEST_FLOOR = 1.0


def lower(p: Program, state: str = "fp8", precision: str = "fp32") -> KernelProgram:
    """Lower a verified Program; raises LoweringError for what no backend can compute."""
    if precision not in ("fp32", "bf16"):
        raise LoweringError("SC303", f"--math {precision}: arithmetic is fp32 or bf16")
    moments = plan(p, state)
    spec, known = p, Totals(p)
    p, totals = named_totals(p, known)
    low = Lowerer(p, precision == "bf16", spec)
    if totals and low.bf16:
        raise LoweringError(
            "SC304", f"{p.name}: --math bf16 does not go with sums over all tensors"
        )
    if p.grad is not None:
        low.gradient(p.grad)
    for x in p.extras:
        if x.per == "element" and x.nonneg:  # what is proved of it holds of +0, not of -0
            low.math.append(Statement(x.name, add(x.ref, 0), "without -0"))
    if p.decay is not None and p.decay.kind == "l2":
        weight = rewrite(p.decay.weight, lambda e: _written_out(e, p))  # names come after g
        low.statement("g", add(GRAD, mul(weight, PARAM)), "l2 weight decay")
    exact = all(m.format == "fp32" for m in moments)
    if p.link == "ratio" and (not exact or not has_offset(p)):
        low.floors()
    scalar = scalar_moments(p)
    before, after = around_step(p)
    if low.bf16 and (after or p.new_param is not None or p.eval_param is not None):
        raise LoweringError(
            "SC304",
            f"{p.name}: --math bf16 does not go with what comes after the update: a point beside "
            "the parameter moves by less than bf16 resolves",
        )
    low.define(before)
    for name, operand in totals:
        low.total(name, operand)
    low.after(after)
    if not low.bf16:
        low.fuse()
    if low.bf16:
        hypers = [Statement(n, op("bf16", Ref("scalar", n)), n) for n in low.outputs]
        low.math = hypers + [replace(s, expr=rewrite(s.expr, rounded)) for s in low.math]
    low.keep_live([m.name for m in moments])
    if not low.bf16:
        moments = low.scales_apart(moments)
    stages = low.stages()
    elementwise = [s.expr for statements in low.lists.values() for s in statements]
    elementwise += [s.expr for statements in low.operands for s in statements]
    elementwise += [s.expr for _, statements in low.totals for s in statements]
    evaluated = _evaluation(p)
    called = [*elementwise, *(r.operand for r in low.reductions)]
    called += [r.operand for r, _ in low.totals]
    called += () if evaluated is None else evaluated.elementwise
    return KernelProgram(
        program=spec,
        storage=shortest(spec, state),
        scalars=tuple(low.scalars),
        outputs=tuple(low.outputs),
        math=tuple(low.math),
        moments=moments,
        noise=any(uses_noise(s.expr) for s in low.math),
        words=1 + max((m.word for m in moments), default=0),
        scalar_states=(
            *(
                (m.name, m.init.value if isinstance(m.init, Const) else 0.0)
                for m in p.moments
                if m.name in scalar
            ),
            *((name, HIGHEST_FLOOR) for name in low.lowest),
        ),
        floors=tuple(low.lowest),
        precision=precision,
        stages=stages,
        kept=low.kept(),
        shapes=low.shapes,
        functions=functions(called),
        evaluation=evaluated,
        totals=None
        if not totals
        else TotalSums(
            names=tuple(name for name, _ in totals),
            over=known.every[0].over,
            sums=low.total_sums(),
            rounds=known.rounds,
            trailing=known.trailing,
        ),
        shared=tuple(m.name for m in p.moments if m.name in known.shared),
    ).check()


def _evaluation(p: Program) -> Evaluation | None:
    if p.eval_param is None:
        return None
    low = Lowerer(p)
    result = low.element(p.eval_param, "evaluated")
    return Evaluation(tuple(low.scalars), tuple(low.outputs), tuple(low.math), result)


class Lowerer(Places):
    """Collects scalar and elementwise statements; one instance per program."""

    def __init__(self, p: Program, bf16: bool = False, written: Program | None = None) -> None:
        super().__init__(p, bf16, written)
        self.ranges, self.ties = Ranges(p), Ties(p)
        self.lowest: list[str] = []  # floors, as scalar states

    # ---------------------------------------------------------------- elementwise

    def statement(self, target: str, e: Expr, comment: str = "") -> Ref:
        """Append ``target = e``."""
        made = self.element(e, target)
        self.math.append(Statement(target, made, comment or text(e)))
        return Ref("local", target)

    def short(self, hint: str, e: Expr) -> Expr:
        """``e`` lowered, under a name of its own where it is long."""
        return self.local(hint, e) if _long(e) else self.element(e, hint)

    def element(self, e: Expr, hint: str) -> Expr:
        """Rewrite an expression into what the printers know, keeping its order of evaluation."""
        if is_scalar(e, self.p) and not (isinstance(e, Op) and e.fn in RELATIONS):
            return self.scalar(e, f"{hint}_scalar")
        apart = self.elsewhere(e, hint)
        if apart is not None:
            return apart
        if isinstance(e, Ref):
            return e
        assert isinstance(e, Op)
        if e.fn == "corrected":
            return self._corrected(e)
        if e.fn == "div" and is_scalar(e.args[1], self.p):
            return mul(
                self.element(e.args[0], hint), self.scalar(div(1, e.args[1]), f"{hint}_scale")
            )
        if e.fn == "div" and not self.bf16:
            made = quotient(self, *e.args)
            if made is not None:
                return made
        if e.fn == "pow":
            return self._power(e, hint)
        if e.fn == "root":
            return self._root(e, hint)
        if e.fn == "clip":
            x, low, high = e.args
            return self.element(op("min", op("max", x, low), high), hint)
        if e.fn in ("max", "min") and is_scalar(e.args[0], self.p):
            e = replace(e, args=e.args[::-1])  # the same number; a kernel wants the tensor first
        idle = e.fn in ("max", "min") and any(map(self._never_zero, e.args))
        if idle or (e.fn == "max" and all(self.ranges.nonneg(a) for a in e.args)):
            short = "nonneg_max" if e.fn == "max" else "nonzero_min"
            return replace(e, fn=short, args=tuple(self.element(a, hint) for a in e.args))
        if e.fn in RELATIONS and is_scalar(e, self.p):
            flag = self.scalar(op("where", e, 1, 0), f"{hint}_flag")
            return op("gt", flag, 0.5)
        if e.fn in RELATIONS:
            return replace(e, args=tuple(self.element(a, hint) for a in e.args))
        if e.fn in APART:
            return self.reduction(e)
        return replace(e, args=tuple(self.element(a, hint) for a in e.args))

    def _never_zero(self, e: Expr) -> bool:
        """Provably not 0 as an fp32 number, for scalars."""
        if isinstance(e, Op) and e.fn == "neg":
            return self._never_zero(e.args[0])
        if isinstance(e, Const):
            return abs(e.value) >= SMALLEST
        if not isinstance(e, Ref) or e.kind != "hyper":
            return False
        h = self.ranges.hypers.get(e.name)
        return h is not None and h.ge is not None and h.ge >= SMALLEST

    def keep_live(self, moments: list[str]) -> None:
        """Drop statements that neither the parameter nor a stored moment needs."""
        ends: list[Expr] = [PARAM, *(Ref("value", m) for m in moments)]
        self.math = [*needed_by(self.math, ends)]

    def _corrected(self, e: Op) -> Expr:
        m = e.args[0]
        assert isinstance(m, Ref)
        return mul(m, self.scalar(div(1, bias(self.p, m.name)), f"{m.name}_correction"))

    def _power(self, e: Op, hint: str) -> Expr:
        base, n = e.args[0], e.args[1]
        assert isinstance(n, Const)
        if n.value == 1:
            return self.element(base, hint)
        return lowered_power(self.local(f"{hint}_base", base), n.value)

    def _root(self, e: Op, hint: str) -> Expr:
        x, order = e.args
        assert isinstance(order, Const)
        return lowered_root(self.element(x, hint), order.value)

    # ---------------------------------------------------------------- moments and update

    def define(self, items: Iterable[Moment | Temp]) -> None:
        """Moments and temporaries, in order."""
        scalar = scalar_moments(self.p)
        for x in items:
            if x.name in scalar:
                self.remember(x.name)
            elif isinstance(x, Moment):
                with self.at(self.home(x)):
                    self.moment(x)
            elif not is_scalar(x.expr, self.p):
                with self.at(self.home(x)):
                    self.statement(x.name, x.expr)

    def after(self, items: Sequence[Moment | Temp]) -> None:
        """The update, then what is made of the parameter after it."""
        every = [e for x in items for e in (x.reads if isinstance(x, Moment) else (x.expr,))]
        every += [] if self.p.new_param is None else [self.p.new_param]
        old: Expr = PARAM
        if any(PARAM in walk(e) for e in every):
            old = Ref("local", self._fresh("p_before"))
            self.math.append(Statement(local_name(old), PARAM))
        self.update()

        def renamed(e: Expr) -> Expr:
            return rewrite(e, lambda x: old if x == PARAM else None)

        for x in items:
            if isinstance(x, Temp):
                self.define([replace(x, expr=renamed(x.expr))])
            else:
                own = replace(
                    x,
                    input=x.input and renamed(x.input),
                    beta=x.beta and renamed(x.beta),
                    next=x.next and renamed(x.next),
                )
                self.define([own])
        if self.p.new_param is not None:
            self.statement("p", renamed(self.p.new_param))

    def gradient(self, e: Expr) -> None:
        """What everything after it reads as the gradient."""
        self.math.append(Statement("g", self.element(e, "clip"), text(e)))
        self._raw = len(self.reductions)

    def moment(self, m: Moment) -> None:
        """The recurrence of one moment."""
        if m.next is not None:
            self.statement(m.name, m.next)
            return
        assert m.input is not None and m.beta is not None
        prev, beta = Ref("prev", m.name), m.beta
        rest: Expr = sub(1, m.beta)
        if m.init == "first":  # at t = 1 the first input itself: weight 0 for the zero state
            start = op("eq", STEP, 1)
            beta = Ref("scalar", self._first(m, "beta", op("where", start, 0, beta)))
            rest = Ref("scalar", self._first(m, "rest", op("where", start, 1, rest)))
        if m.kind == "max":
            decayed = prev if beta == Const(1.0) else mul(beta, prev)
            self.statement(m.name, op("max", decayed, m.input))
        else:
            u = self.short(f"{m.name}_input", m.input)
            self.math.append(
                Statement(
                    m.name,
                    add(
                        mul(self.element(beta, m.name), prev),
                        mul(self.element(rest, m.name), u),
                    ),
                    f"moment of {text(m.input)}",
                )
            )

    def _first(self, m: Moment, what: str, e: Expr) -> str:
        e = rewrite(e, scalar_form)
        if e not in self._known:
            for name in sorted(references(e, "temp"), key=lambda n: index(self.p, n)):
                self._scalar_temp(name)
            self._define(self._fresh(f"{m.name}_{what}"), e)
        return self._known[e]

    def floors(self) -> None:
        """Where stored moments are rounded, keep the bound between them
        (docs/design.md#storage).

        With fp32 state only where nothing is added to the denominator: there a power of a tiny
        gradient rounds to a few units of the smallest float, or to 0, before the moment does.
        """
        for b in moment_bounds(self.p):
            upper, lower = Ref("prev", b.upper.name), Ref("prev", b.lower.name)
            floor = self._lowest(b.floor, f"{b.lower.name}_floor")
            size: Expr = upper
            if b.order % 2:
                size = self.local(f"{b.upper.name}_size", op("abs", upper))
            power = lowered_power(size, b.order)
            if floor != Const(1.0):
                power = mul(power, floor)
            self.math.append(
                Statement(
                    f"{b.lower.name}_prev",
                    op("nonneg_max", lower, power),
                    f"at least what {b.upper.name} allows: both were rounded when they were stored",
                )
            )

    def _lowest(self, e: Expr, hint: str) -> Expr:
        """The smallest value of ``e`` at any step so far: betas may change between steps, and what
        was averaged with other betas keeps to their floor (docs/design.md#the-floor)."""
        if not any(references(e, kind) for kind in ("hyper", "temp")):
            return self.scalar(e, hint)
        e = rewrite(e, scalar_form)
        for name in sorted(references(e, "temp"), key=lambda n: index(self.p, n)):
            self._scalar_temp(name)
        name = self._fresh(hint)
        self._names.add(f"{name}_prev")
        self.lowest.append(name)
        self.outputs.append(name)
        self.scalars.append(Statement(name, op("min", Ref("prev", name), e), text(e)))
        return Ref("scalar", name)

    def update(self) -> None:
        """The update and the parameter's new value."""
        p = self.p
        scale: Expr = ONE
        if p.link in ("stosign", "sign"):
            argument = sign_argument(self)
            name = self._fresh("direction")
            self.math.append(Statement(name, argument, f"update = {link_text(p)}"))
            update: Expr = op("sign", Ref("local", name))
        else:
            numerator = p.numerator
            if p.link == "ratio" and p.denominator is not None and not self.bf16:
                numerator, scale = folded(self, numerator)
            if p.denominator is None:
                update = self.short("numerator", numerator)
            else:
                update = self._ratio(numerator, p.denominator)
            if p.link == "expected":
                update = op("min", op("max", update, -1), 1)
            name = self._fresh("update")
            comment = link_text(p)
            if scale != ONE:
                comment += f"; the correction of {text(numerator)} is part of lr"
            self.math.append(Statement(name, update, comment))
            update = Ref("local", name)
        self._step(update, scale)

    def _ratio(self, numerator: Expr, denominator: Expr) -> Expr:
        made = None if self.bf16 else quotient(self, numerator, denominator)
        if made is not None:
            return made
        # What is clipped may be infinite; otherwise x/0 is no step
        divide = "mean_ratio" if self.p.link == "expected" else "ratio"
        num = self.short("numerator", numerator)
        return op(divide, num, self.short("denominator", denominator))

    def _step(self, update: Expr, scale: Expr) -> None:
        """p - lr * scale * update and decoupled weight decay.

        Decay joins the update before lr, whose product is exact in the sum: what is below half a
        unit of p's last place is not lost alone. Independent of lr, it joins their product.
        """
        p, lr = self.p, times(scale, Ref("hyper", "lr"))
        decay = p.decay if p.decay is not None and p.decay.kind != "l2" else None
        weight: Expr = decay.weight if decay is not None else Const(0.0)
        independent = decay is not None and decay.kind == "independent"
        if independent:
            # An lr that starts at 0 has no size to be relative to: no decay
            first = Ref("hyper", "initial_lr")
            first_lr = op("where", op("eq", first, 0), math.inf, first)
            weight = mul(div(Ref("hyper", "lr"), first_lr), weight)
        if self.bf16:  # S3GD's order: in bf16 the sum of both terms would be another number
            if decay is not None:
                weight = weight if independent else mul(lr, weight)
                shrink = mul(PARAM, self._weight(sub(1, weight), "shrink"))
                self.math.append(Statement("p", shrink, f"{decay.kind} weight decay"))
            text_ = step_text(p) if decay is None else "p - lr * update"
            change = mul(self.scalar(lr, "lr"), update)
            self.math.append(Statement("p", sub(PARAM, change), text_))
            return
        if independent:
            kept = mul(self._weight(weight, "decay_step"), PARAM)
            stepped = sub(PARAM, add(mul(self.scalar(lr, "lr"), update), kept))
        else:
            if decay is not None:
                weight = over(weight, scale)
                update = add(update, mul(self._weight(weight, "decay"), PARAM))
            stepped = add(PARAM, mul(self.scalar(sub(0, lr), "minus_lr"), update))
        self.math.append(Statement("p", stepped, step_text(p)))

    def _weight(self, e: Expr, hint: str) -> Expr:
        """What multiplies the parameter: a scalar, or a number that its shape decides."""
        return self.scalar(e, hint) if is_scalar(e, self.p) else self.element(e, hint)


def _written_out(e: Expr, p: Program) -> Expr | None:
    """What a name stands for whose value a parameter's shape decides."""
    if isinstance(e, Ref) and e.kind == "temp" and not is_scalar(e, p):
        return rewrite(p.temp(e.name).expr, lambda inner: _written_out(inner, p))
    return None


def rounded(e: Expr) -> Expr | None:
    """An operation with its result rounded to bf16."""
    return Op("bf16", (e,)) if isinstance(e, Op) and e.fn in ROUNDED else None


def _long(e: Expr) -> bool:
    return sum(1 for _ in walk(e)) > 6


__all__ = ["Lowerer", "lower"]
